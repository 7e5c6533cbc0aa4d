"""Hidden Markov worlds against brute-force Bayes, exact entropies, and the measures on activations made by hand."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from cases.models import rng

from toylab.data import Task
from toylab.errors import UserError
from toylab.measures.beliefs import (
    BeliefRegression,
    LossByPosition,
    Strategies,
    distance_r2,
    exact_controls,
    joint_r2,
    prefix_numbers,
    tokens_by_lag,
)
from toylab.measures.shift import Shifted
from toylab.models.transformer import TransformerSpec
from toylab.snapshot import Snapshot
from toylab.taps import Tapped, no_tap
from toylab.tasks.automata import StateTracking
from toylab.tasks.hmm import HMM, PROCESSES, HiddenMarkov, InContextMarkov, named, stationary_law
from toylab.tasks.modular import ModularArithmetic

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
NAMES = ["mess3 0.05 0.85", "mess3 0.15 0.6", "rrxor", "z1r", "even", "golden-mean"]


def path_sums(process, word):
    """P(word and hidden state after it) for every state, by adding up all hidden paths in plain Python."""
    T, n = process.T.tolist(), len(process.states)
    found = [0.0] * n
    for path in itertools.product(range(n), repeat=len(word) + 1):
        p = process.initial[path[0]].item()
        for x, i, j in zip(word, path, path[1:], strict=False):
            p *= T[x][i][j]
        found[path[-1]] += p
    return found


@pytest.mark.parametrize("name", NAMES)
def test_beliefs_are_bayes_by_the_sum_over_hidden_paths(name):
    process = named(name)
    depth = 4 if len(process.states) > 3 else 5
    total = 0.0
    for word in itertools.product(range(len(process.tokens)), repeat=depth):
        joint = torch.tensor(path_sums(process, word), dtype=torch.float64)
        total += joint.sum().item()
        if joint.sum() > 1e-12:
            torch.testing.assert_close(process.beliefs(torch.tensor([word]))[0, -1], joint / joint.sum())
    assert total == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_the_process_is_stochastic_stationary_and_its_entropies_fall(name):
    process = named(name)
    torch.testing.assert_close(process.T.sum((0, 2)), torch.ones(len(process.states)).double())
    torch.testing.assert_close(process.initial @ process.T.sum(0), process.initial)
    h = process.entropies(8)
    assert (h.diff() < 1e-12).all()
    # From words instead of merged beliefs: h_t = H(t + 1 tokens) - H(t tokens).
    words, probs = process.prefixes(6)
    block = [0.0] + [-torch.xlogy(6 * p, 6 * p).sum().item() for p in
                     (probs[(words >= 0).sum(1) == t] for t in range(1, 7))]  # fmt: skip
    torch.testing.assert_close(h[:6], torch.tensor(block).double().diff(), atol=1e-6, rtol=0)
    if process.unifilar:
        assert 0 <= h[8] - process.entropy_rate() < 0.2


def test_a15_entropies_and_beliefs_of_the_sheet():
    """Reference sheet 7.8, exact there; nats for Mess3, bits for the others."""
    expected = {
        "mess3 0.05 0.85": [1.098612, 0.857719, 0.813356, 0.798118, 0.794740, 0.793783, 0.793543, 0.793480],
        "mess3 0.15 0.6": [1.098612, 1.091068, 1.089391, 1.089004, 1.088915, 1.088894, 1.088890, 1.088889],
        "rrxor": [1, 1, 0.918296, 0.906715, 0.863711, 0.833333, 0.810012, 0.778835, 0.760213, 0.744170, 0.726162],
        "z1r": [1, 0.918296, 2 / 3, 1 / 3, 1 / 3],
    }
    for name, values in expected.items():
        unit = 1 if name.startswith("mess3") else math.log(2)
        assert (named(name).entropies(len(values) - 1) / unit).tolist() == pytest.approx(values, abs=1e-6)
    assert named("rrxor").entropy_rate() == pytest.approx(2 / 3 * math.log(2))
    levels = named("rrxor").belief_tree(14)
    beliefs = torch.cat([b for b, _ in levels])
    distinct = (beliefs * 1e9).round().unique(dim=0) / 1e9
    assert len(distinct) == 36
    laws = (named("rrxor").next_token(distinct) * 1e6).round().unique(dim=0)[:, 0] / 1e6
    assert laws.tolist() == pytest.approx(
        [0, 1 / 4, 1 / 3, 3 / 8, 2 / 5, 1 / 2, 3 / 5, 5 / 8, 2 / 3, 3 / 4, 1], abs=1e-6
    )
    unsure = [
        probs[(b.max(1).values < 1 - 1e-9)].sum().item() for b, probs in levels[1:11]
    ]  # the sheet counts from the first token
    assert unsure == pytest.approx([1, 1, 1, 11 / 12, 0.75, 2 / 3, 0.5625, 0.4375, 0.375, 0.307], abs=1e-3)
    assert len(named("mess3 0.05 0.85").belief_tree(6)[6][0]) == 3**6


def test_drawn_words_follow_their_law():
    for name in ("rrxor", "mess3 0.15 0.6"):
        task = HiddenMarkov(name, 3)
        batch = task.sample(20000, rng())
        words = torch.cat([batch.inputs, batch.targets[:, -1:]], 1)
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        every, probs = task.hmm.prefixes(4)
        whole = (every >= 0).all(1)
        for word, p in zip(every[whole], 4 * probs[whole], strict=True):
            found = (words == word).all(1).double().mean()
            assert abs(found - p) < 5 * (p * (1 - p) / 20000) ** 0.5 + 1e-12
        assert (task.hmm.prefixes(4)[1].sum() - 1).abs() < 1e-12


def test_the_floor_is_the_loss_of_the_true_law():
    task = HiddenMarkov("rrxor", 10)
    batch = task.sample(20000, rng())
    law = task.latents(batch.inputs)["next_token"].values
    loss = -law.gather(-1, batch.targets[..., None])[..., 0].log()
    assert ((loss.mean(0) - task.floor()).abs() < 5 * loss.std(0) / 20000**0.5 + 1e-9).all()


@pytest.mark.parametrize("name", ["rrxor", "mess3 0.05 0.85"])
def test_the_belief_counterfactual_is_another_word_of_the_process(name):
    task = HiddenMarkov(name, 6)
    batch = task.sample(500, rng())
    new = task.counterfactual(batch, "belief", rng(1))
    place = new.weight.argmax(1)
    before, after = (task.latents(b.inputs)["belief"].values for b in (batch, new))  # raises on impossible words
    rows = torch.arange(500)
    assert ((before - after).abs().amax(2)[rows, place] > 1e-9).all()
    for row, other, s in zip(batch.inputs, new.inputs, place.tolist(), strict=True):
        assert torch.equal(row[:s], other[:s])
        assert row[s] != other[s]
    assert torch.equal(new.inputs[:, 1:], new.targets[:, :-1])
    # What follows is drawn from the process, not kept: among tokens after the place, as likely as the law says.
    law = task.latents(new.inputs)["next_token"].values.gather(-1, new.targets[..., None])[..., 0]
    assert (law[new.weight > 0] > 0).all()


# --- in-context chains -----------------------------------------------------------------------------------------------


def test_a16_baselines_of_in_context_chains():
    """Reference sheet 7.7 (20,000 chains, +-.004): within .004 and four standard errors of ours."""
    sheet = {
        2: {"entropy rate": 0.481, "bigram": 0.511, "unigram": 0.579, "stationary": 0.566, "uniform": 0.693},
        3: {"entropy rate": 0.818, "bigram": 0.885, "unigram": 1.004, "stationary": 0.979, "uniform": 1.099},
        5: {"entropy rate": 1.277, "bigram": 1.419, "unigram": 1.571, "stationary": 1.526, "uniform": 1.609},
        8: {"entropy rate": 1.715, "bigram": 1.943, "unigram": 2.087, "stationary": 2.024, "uniform": 2.079},
    }
    for k, expected in sheet.items():
        found = InContextMarkov(k, 100).baselines(1500, rng())
        for name, value in expected.items():
            assert abs(found[name][0] - value) < 0.004 + 4 * found[name][1], (k, name)


def test_stationary_law_and_counting_twice_stochastic_rows():
    P = InContextMarkov(4, 3).chains(50, rng())
    pi = stationary_law(P)
    torch.testing.assert_close(torch.einsum("bi,bij->bj", pi, P), pi)
    torch.testing.assert_close(pi.sum(1), torch.ones(50).double())
    flat = InContextMarkov(4, 3, rows="doubly stochastic").chains(50, rng())
    torch.testing.assert_close(flat.sum(2), torch.ones(50, 4).double())
    torch.testing.assert_close(flat.sum(1), torch.ones(50, 4).double(), atol=1e-4, rtol=0)
    # Rows of the first kind are uniform over the simplex: each entry has mean 1/4 and variance 3/80.
    entries = InContextMarkov(4, 3).chains(5000, rng())[:, 0, 0]
    assert abs(entries.mean() - 1 / 4) < 5 * (3 / 80 / 5000) ** 0.5
    assert abs(entries.var() - 3 / 80) < 0.004


def test_the_bigram_strategy_is_bayes_when_the_start_is_uniform():
    """k = 2: P(next | row) as a ratio of integrals over both rows of the matrix, on a fine grid."""
    task, grid = InContextMarkov(2, 6, start="uniform"), (np.arange(2000) + 0.5) / 2000
    for row in torch.randint(2, (10, 6), generator=rng()):
        found = task.strategies(row[None])["bigram"][0, -1]
        chance = []
        for x in range(2):
            word = [*row.tolist(), x]
            steps = list(itertools.pairwise(word))
            rows = [np.mean(grid ** steps.count((i, 0)) * (1 - grid) ** steps.count((i, 1))) for i in range(2)]
            chance.append(np.prod(rows))
        assert found.tolist() == pytest.approx([c / sum(chance) for c in chance], abs=1e-5)


def test_strategies_by_hand():
    """0 1 1 0: at the end 0 has been followed by 1 once; 0 and 1 seen twice each."""
    found = InContextMarkov(2, 4).strategies(torch.tensor([[0, 1, 1, 0]]))
    assert found["bigram"][0, -1].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert found["unigram"][0, 2].tolist() == pytest.approx([2 / 5, 3 / 5])
    assert found["bigram"][0, 0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "task", [HiddenMarkov("mess3 0.05 0.85", 5, n_test=30), InContextMarkov(3, 12, n_test=30)], ids=["mess3", "icl"]
)
def test_protocol(task):
    assert isinstance(task, Task)
    batch, other = task.sample(50, rng()), task.sample(50, rng(1))
    assert batch.inputs.shape == batch.targets.shape == (50, task.n_ctx)
    for name, latent in task.latents(batch.inputs).items():
        assert latent.classes == ()
        torch.testing.assert_close(latent.values.sum(-1), torch.ones(50, task.n_ctx).double())
        for t in range(task.n_ctx):
            future = torch.cat([batch.inputs[:, : t + 1], other.inputs[:, t + 1 :]], 1)
            assert torch.equal(task.latents(future)[name].values[:, : t + 1], latent.values[:, : t + 1])
    assert torch.equal(task.split(3).all.inputs, task.split(3).all.inputs)
    assert not torch.equal(task.split(3).all.inputs, task.split(4).all.inputs)
    for name in ("belief",) if isinstance(task, HiddenMarkov) else ("unigram", "bigram"):
        new = task.counterfactual(batch, name, rng())
        a, b = (task.latents(x.inputs)[name].values for x in (batch, new))
        assert (a != b).flatten(1).any(1).all()
        assert torch.equal(new.inputs[:, 1:], new.targets[:, :-1])
    with pytest.raises(UserError, match="accepted are"):
        task.counterfactual(batch, "wether", rng())
    assert task.render(batch.inputs[:1])[0]


# --- measures --------------------------------------------------------------------------------------------------------


def test_controls_over_all_words():
    """Reference sheet 7.8: input-linear .966, .989, .149; from the next token's law 1, 1, .246 (derived there)."""
    for name, (linear, following) in {
        "mess3 0.05 0.85": (0.966, 1), "mess3 0.15 0.6": (0.989, 1), "rrxor": (0.149, 0.246)
    }.items():  # fmt: skip
        found = exact_controls(named(name), 10)
        assert found["input_linear"] == pytest.approx(linear, abs=6e-4)
        assert found["next_token"] == pytest.approx(following, abs=6e-4)
        assert found["last_token"] <= found["input_linear"] + 1e-9


def test_prefix_numbers_and_lags():
    inputs = torch.tensor([[0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 1, 0]])
    number = prefix_numbers(inputs)
    assert len(number.unique()) == 2 + 2 + 3
    assert torch.equal(number[0], number[3])
    assert number[0, 1] == number[1, 1] != number[2, 1]
    features = tokens_by_lag(inputs, 2)
    assert features.shape == (4, 3, 3 * 2 + 3)
    assert features[1, 2].tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 1]  # 1 now, 1 before, 0 before that; position 2
    assert features[1, 0].tolist() == [1, 0, 0, 0, 0, 0, 1, 0, 0]


def test_r2_and_distances_are_1_for_similar_figures_and_0_for_the_mean():
    y = torch.randn(500, 3, generator=rng())
    assert joint_r2(y, y) == 1
    assert abs(float(joint_r2(y.mean(0).expand_as(y), y))) < 1e-6
    turned = 2 * y @ torch.linalg.qr(torch.randn(3, 3, generator=rng())).Q + 1
    assert distance_r2(turned, y, 5000, rng()) == pytest.approx(1)
    assert distance_r2(torch.randn(500, 3, generator=rng(7)), y, 5000, rng()) < 0.01


class Planted(Tapped):
    """Stands in for a model: its second layer holds the belief in two directions, its embedding the last token."""

    n_layers = 1

    def __init__(self, task, noise):
        super().__init__()
        self.task, self.noise = task, noise

    def forward(self, inputs, tap=no_tap):
        belief = self.task.latents(inputs)["belief"].values.float()
        mix = torch.randn(belief.shape[-1], 8, generator=rng(3))
        hidden = belief @ mix + 1 + self.noise * torch.randn(*belief.shape[:2], 8, generator=rng(4))
        token = torch.nn.functional.one_hot(inputs, 8).float()
        tap("resid_pre", 0, token)
        return tap("resid_post", 0, hidden)

    def example_input(self):
        return torch.zeros(1, 1, dtype=torch.long)


@pytest.mark.parametrize("name", ["mess3 0.05 0.85", "rrxor"])
def test_a_planted_belief_is_found_where_it_is_and_shuffled_ones_are_not(name):
    task = HiddenMarkov(name, 8, n_test=1500)
    measure = BeliefRegression("belief", 5, penalty=0.0)

    def found(noise):
        snap = Snapshot(0, Planted(task, noise), task, task.split(0))
        return measure(snap)

    clean = found(0.0)
    assert clean["r2"].coords["site"] == ["embed", "resid_post0", "all"]
    assert clean["r2"].values[1:].min() > 0.999
    assert clean["mse"].values[1:].max() < 1e-5
    assert clean["distance_r2"] > 0.999
    # Cross-validated from the last token, and the same at its best.
    assert clean["last_token_r2"] - 0.06 < clean["r2"].values[0] < clean["last_token_r2"] + 1e-3
    assert clean["fitted_r2"].values[1:].min() > 0.999
    assert clean["shuffled_r2"].values.max() < 0.02
    exact = exact_controls(task.hmm, 8)
    for control in ("input_linear", "last_token", "next_token"):
        assert clean[f"{control}_r2"] == pytest.approx(exact[control], abs=0.06)
    assert found(0.5)["r2"].values[1] < 0.95


def test_an_untrained_network_does_not_hold_the_belief_of_rrxor_and_the_reader_says_what_it_needs():
    task = HiddenMarkov("rrxor", 8, n_test=1500)
    model = TransformerSpec(2, 2, 32, 16, 32).build(task, rng())
    snap = Snapshot(0, model, task, task.split(0))
    found = BeliefRegression("belief", 5)(snap)
    assert found["r2"].values.max() < 0.6
    assert snap.batch.inputs.shape == (1500, 8)
    with pytest.raises(UserError, match="no real latent 'beliefs'; it has belief, next_token"):
        BeliefRegression("beliefs", 5)(snap)
    with pytest.raises(UserError, match="HiddenMarkov knows no strategies"):
        Strategies()(snap)
    by_position = LossByPosition()(snap)
    torch.testing.assert_close(torch.tensor(by_position["loss"].values).mean(), snap.losses.mean().double())
    assert (by_position["excess"].values > -5 * by_position["loss_se"].values).all()


class Says(Tapped):
    """A model that predicts what one strategy says."""

    def __init__(self, task, name):
        super().__init__()
        self.task, self.name = task, name

    def forward(self, inputs, tap=no_tap):
        return self.task.strategies(inputs)[self.name].log() + 3


@pytest.mark.parametrize("name", ["uniform", "unigram", "bigram"])
def test_a_model_that_is_a_strategy_has_no_distance_from_it(name):
    task = InContextMarkov(3, 20, n_test=50)
    found = Strategies()(Snapshot(0, Says(task, name), task, task.split(0)))
    assert found[f"kl_{name}"] == pytest.approx(0, abs=1e-12)
    assert all(value > 0.02 for key, value in found.items() if key != f"kl_{name}")


class LastLetter(Tapped):
    """Right on parity exactly where all letters before the last are even in number."""

    n_ctx = 16

    def forward(self, inputs, tap=no_tap):
        return torch.nn.functional.one_hot(inputs, 2).double()


def test_shifted_rows_are_those_of_the_changed_task():
    task = StateTracking("parity", 8, max_length=16, n_test=50)
    snap = Snapshot(0, LastLetter(), task, task.split(0))
    p = 0.1
    found = Shifted({"length": 12, "probs": [1 - p, p]}, n=4000)(snap)
    right = np.array([(1 + (1 - 2 * p) ** t) / 2 for t in range(12)])  # P(an even number among t letters)
    error = 5 * (right * (1 - right) / 4000) ** 0.5
    assert (abs(found["accuracy_at"].values - right) <= error + 1e-12).all()
    assert abs(found["accuracy"] - right.mean()) < 5 * found["accuracy_se"]
    assert found["row_accuracy"] == pytest.approx((1 - p) ** 10 * 1.0, abs=0.05)
    with pytest.raises(UserError, match=r'StateTracking has .*did you mean "length"'):
        Shifted({"lenght": 12})(snap)
    with pytest.raises(UserError, match="length=20 is beyond the context, max_length=16"):
        Shifted({"length": 20})(snap)
    with pytest.raises(UserError, match="rows of 20 tokens; this model was made for n_ctx=16"):
        Shifted({"length": 20, "max_length": 20})(snap)


# --- bad input -------------------------------------------------------------------------------------------------------

HALF = ((0.5, 0.0), (0.0, 0.5))
MISTAKES = [
    (lambda: HMM(("a", "b"), ("p", "q"), (HALF, ((0.5, 0.0), (0.1, 0.3)))), r"row 1 \(state 'q'\) adds up to 0.9"),
    (lambda: HMM(("a", "b"), ("p", "q"), (HALF, ((0.7, -0.2), (0.1, 0.4)))), "row 0 .* negative entry -0.2"),
    (lambda: HMM(("a", "b"), ("p", "q"), (HALF, ((0.5,), (0.5,)))), "matrix of token 'b' is 2 x"),
    (lambda: HMM(("a", "b"), ("p", "q"), (HALF,)), "1 matrices for 2 tokens"),
    (lambda: HMM(("a", "b"), ("p", "q"), (HALF, HALF)), "2 parts of this process never meet: say where it starts"),
    (lambda: HMM(("a", "b"), ("p", "q"), (HALF, HALF), (0.5, 0.6)), "expected 2 probabilities"),
    (lambda: HiddenMarkov("rroxr", 5), 'did you mean "rrxor"'),
    (lambda: HiddenMarkov("mess3", 5), "mess3 takes 2 numbers: 'mess3 0.05 0.85'"),
    (lambda: HiddenMarkov("mess3 0.05 x", 5), "mess3 takes 2 numbers"),
    (lambda: HiddenMarkov("mess3 0.7 0.5", 5), "x in"),
    (lambda: named("golden-mean").beliefs(torch.tensor([[0, 1, 0], [0, 1, 1]])), "row 1: token 2 is impossible"),
    (lambda: named("mess3 0.05 0.85").entropy_rate(), "no closed form"),
    (lambda: named("mess3 0.05 0.85").belief_tree(20), "more than 200,000 distinct beliefs"),
    (lambda: InContextMarkov(1, 5), "k=1: 2 to 64"),
    (lambda: InContextMarkov(3, 5, start="stationery"), 'did you mean "stationary"'),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_mistake_is_explained(make, message):
    with pytest.raises(UserError, match=re.compile(message)):
        make()


def test_a_process_with_a_stated_start_and_every_name():
    split = HMM(("a", "b"), ("p", "q"), (HALF, HALF), (1.0, 0.0))
    assert split.beliefs(torch.tensor([[0, 1]])).tolist() == [[[1, 0], [1, 0]]]
    assert dataclasses.is_dataclass(split)
    assert {name.split()[0] for name in NAMES} == set(PROCESSES)
    assert ModularArithmetic(7, "x+y", 0.5).d_out == 7
