"""Fourier measures through Snapshots: what was planted comes back, decoys do not count, nulls stay null."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases.models import scrambled
from cases.models import spec as tiny_spec
from cases.runs import ADAMW, MODEL, STEPS

from toylab import Labelled, Run, Snapshot
from toylab.config import build
from toylab.data import Split, Task, generator
from toylab.errors import UserError
from toylab.experiment import Experiment, Tracked
from toylab.interp.fourier import frequencies
from toylab.interp.phases import Phases, locate_phases, phases_over_seeds
from toylab.known.adders import AdderDecoys, clock_adder, memoriser, pizza_adder, quadratic_adder, random_adder
from toylab.measures.fourier import Attention, ClockPizza, LogitFourier, Neurons, Spectra
from toylab.models.mlp import MLPSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import Transformer, TransformerSpec
from toylab.tasks.induction import RepeatedTokens
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures
from toylab.train import train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

P, FREQS, AMPLITUDES = 29, (2, 5, 11), (1.0, 2.0, 0.5)
DECOYS = AdderDecoys(embedding=(7,), neurons=(9,), copies=2)
PLANTED = {
    "quadratic": lambda **kw: quadratic_adder(P, FREQS, AMPLITUDES, phase=0.3, **kw),
    "clock": lambda **kw: clock_adder(P, FREQS, AMPLITUDES, **kw),
    "pizza": lambda **kw: pizza_adder(P, FREQS, AMPLITUDES, **kw),
}
MEASURES = [Spectra(), LogitFourier("current"), LogitFourier("final"), Neurons(), Attention(), ClockPizza(50, seed=0)]
FINAL = LogitFourier("final")


def of(known, seed=0):
    snap = Snapshot(0, known.model, known.task, known.task.split(seed))
    snap.reference = Snapshot(1, known.model, known.task, known.task.split(seed))
    return snap


def plain(result):
    return {name: value.values if isinstance(value, Labelled) else value for name, value in result.items()}


def measured(measure, snap):
    return plain(measure(snap))


# --- Which tokens are the group's elements ---------------------------------------------------------------------------

GROUPED = [(7, "x+y"), (8, "x+y"), (2, "x+y"), (9, "x-y"), (7, "x*y"), (13, "x*y"), (3, "x/y"), (13, "x/y")]


@pytest.mark.parametrize("labels", ["true", "shuffled"])
@pytest.mark.parametrize("format", ["a b =", "a o b ="])
@pytest.mark.parametrize(("p", "operation"), GROUPED)
def test_in_the_group_the_answer_is_the_sum(p, operation, format, labels):
    task = ModularArithmetic(p, operation, 0.3, format=format, labels=labels)
    found = task.as_group()
    (n,) = found.group
    assert n == (p if operation in ("x+y", "x-y") else p - 1)
    i, j = torch.cartesian_prod(torch.arange(n), torch.arange(n)).unbind(1)
    pairs = torch.stack([found.left[i], found.right[j]], 1)
    assert torch.equal(task.true_answer(pairs), found.out[(i + j) % n])
    for tokens in (found.left, found.right, found.out):
        assert len(tokens.unique()) == n
    assert torch.equal(task.decode(task.split(0).all.inputs)[task.row_of(pairs)], pairs)


def test_operations_that_are_no_group_have_none():
    for operation in ("x^2+y^2", "x^3+xy", "x+y if x even else x*y", "x/y if y odd else x-y"):
        assert ModularArithmetic(7, operation, 0.3).as_group() is None
    assert ModularArithmetic(12, "x*y", 0.3).as_group() is None  # 3 * 4 = 0
    assert ModularArithmetic(7, "x+y", 0.3, n_operands=3).as_group() is None


@pytest.mark.parametrize(
    "task",
    [
        ModularArithmetic(5, "x+y", 0.3, n_operands=3),
        ModularArithmetic(7, "x/y if y odd else x-y", 0.3),
        ModularArithmetic(6, "x^2+y", 0.3, format="a o b ="),
    ],
)
def test_rows_are_numbered_as_in_the_table(task):
    assert torch.equal(task.row_of(task.operands()), torch.arange(len(task.operands())))


def test_a_row_that_is_not_in_the_table_is_refused():
    with pytest.raises(UserError, match="y = 0"):
        ModularArithmetic(7, "x/y", 0.3).row_of(torch.tensor([[3, 1], [3, 0]]))


# --- Planted adders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoys", [AdderDecoys(), DECOYS], ids=["bare", "decoys"])
@pytest.mark.parametrize("name", PLANTED)
def test_logit_fourier_returns_the_plant_and_no_decoy(name, decoys):
    known = PLANTED[name](decoys=decoys)
    snap = of(known)
    found = measured(FINAL, snap)
    y = snap.batch.targets[:, 0]
    full = F.cross_entropy(snap.logits[:, 0], y).item()
    assert found["n_key_freqs"] == 3
    assert [k for k in range(15) if found["key_freqs"][k]] == list(known.truth.freqs)
    planted = torch.zeros(15).double().index_put_((torch.tensor(FREQS),), torch.tensor(AMPLITUDES).double())
    np.testing.assert_allclose(found["logit_cos"], planted, atol=1e-10)
    exact = name != "pizza"
    fve = 1 if exact else 8 / math.pi**2
    assert found["logit_fve"] == pytest.approx(fve, abs=1e-12 if exact else 0.01)
    if exact:
        for loss in ("restricted_loss", "restricted_loss_uncorrected", "nonkey_removed_loss", "trig_loss"):
            assert found[loss] == pytest.approx(full, abs=1e-12), loss
        assert found["restricted_test_loss"] == pytest.approx(
            F.cross_entropy(snap.logits[snap.split.test, 0], y[snap.split.test]).item(), abs=1e-12
        )
        assert found["excluded_loss"] == pytest.approx(math.log(P), abs=1e-12)
    else:  # the same cosines without the weakening where a and b are opposite
        assert found["restricted_loss"] == pytest.approx(found["trig_loss"], abs=1e-3)
        assert found["trig_loss"] < full
        assert found["excluded_loss"] > math.log(P)
    # What each frequency is worth on the training pairs: nothing for those that are not there.
    train_full = F.cross_entropy(snap.logits[snap.split.train, 0], y[snap.split.train]).item()
    worth = found["excluded_loss_by_freq"] - train_full
    others = [k for k in range(1, 15) if k not in FREQS]
    assert (worth[list(FREQS)] > 0.01).all()
    assert np.abs(worth[others]).max() < (1e-12 if exact else 0.01)


def test_losses_are_their_definitions():
    """One frequency after another, each vector over pairs built and projected on, for logits of no structure."""
    task = ModularArithmetic(P, "x+y", 0.3)
    snap = Snapshot(0, scrambled(tiny_spec(biases=("in", "out", "U")), task), task, task.split(0))
    snap.reference = of(quadratic_adder(P, FREQS))
    found, y = measured(FINAL, snap), snap.batch.targets[:, 0]
    logits, train_rows, test_rows = snap.logits[:, 0], snap.split.train, snap.split.test
    a, b = task.decode(snap.batch.inputs).double().unbind(1)

    def part(k):
        angle = 2 * math.pi * k * (a + b) / P
        waves = [wave / wave.norm() for wave in (angle.cos(), angle.sin())]
        return sum(torch.outer(wave, wave @ logits) for wave in waves)

    def loss(table, rows=slice(None)):
        return pytest.approx(F.cross_entropy(table[rows], y[rows]).item(), rel=1e-10)

    keys, others = (sum(part(k) for k in freqs) for freqs in (FREQS, set(range(1, 15)) - set(FREQS)))
    assert found["restricted_loss"] == loss(keys + logits.mean(0))
    assert found["restricted_test_loss"] == loss(keys + logits.mean(0), test_rows)
    assert found["restricted_loss_uncorrected"] == loss(keys)
    assert found["excluded_loss"] == loss(logits - keys, train_rows)
    assert found["nonkey_removed_loss"] == loss(logits - others)
    for k in range(1, 15):
        assert found["excluded_loss_by_freq"][k] == loss(logits - part(k), train_rows)
    cube = (a + b)[:, None] - torch.arange(P)
    fit, explained, centred = 0, 0, logits - logits.mean(1, keepdim=True)
    for k in FREQS:
        wave = (2 * math.pi * k * cube / P).cos()
        coefficient = (logits * wave).sum() / (wave**2).sum()
        assert found["logit_cos"][k] == pytest.approx(coefficient.item(), rel=1e-10)
        fit, explained = fit + coefficient * wave, explained + coefficient**2 * (wave**2).sum()
    assert found["trig_loss"] == loss(fit)
    assert found["logit_fve"] == pytest.approx((explained / (centred**2).sum()).item(), rel=1e-10)


@pytest.mark.parametrize("name", PLANTED)
def test_spectra_count_what_is_represented(name):
    known = PLANTED[name](decoys=DECOYS)
    found = measured(Spectra(), of(known))
    embedded = list(known.truth.embedded)
    expected = np.zeros(15)
    expected[embedded] = 1 / len(embedded)
    np.testing.assert_allclose(found["embed_power"], expected, atol=1e-12)
    assert found["n_embed_freqs"] == len(embedded) == 5  # decoys are represented
    assert found["embed_gini"] == pytest.approx((P - 2 * len(embedded)) / P, abs=1e-12)
    rows = [row for k in FREQS for row in (2 * k - 1, 2 * k)]
    assert (found["embed_norm"] > 1e-9).sum() == 10
    assert sorted(np.flatnonzero(found["W_L_norm"] > 1e-9)) == sorted(rows)  # ... and not read
    assert found["W_L_power"][list(FREQS)].sum() == pytest.approx(1, abs=1e-12)
    # Neurons write with amplitude / gain, the gain the same for every frequency (of a pizza nearly).
    weight = np.array(AMPLITUDES) ** 2
    np.testing.assert_allclose(
        found["W_L_power"][list(FREQS)], weight / weight.sum(), atol=1e-12 if name != "pizza" else 2e-3
    )
    sizes = np.sort(np.concatenate([np.zeros(P - 6), np.repeat(AMPLITUDES, 2)]))
    gini = ((2 * np.arange(1, P + 1) - P - 1) * sizes).sum() / (P * sizes.sum())
    assert found["W_L_gini"] == pytest.approx(gini, abs=1e-12 if name != "pizza" else 2e-3)


@pytest.mark.parametrize("name", PLANTED)
def test_neurons_and_attention_return_the_plant(name):
    known = PLANTED[name](decoys=DECOYS)
    snap = of(known)
    found = measured(Neurons(), snap)
    assert found["neuron_freq"].tolist() == known.truth.neuron_freq.tolist()
    assert found["W_L_residual"] == pytest.approx(0, abs=1e-12)
    assert found["W_L_rank_energy"] == pytest.approx(1, abs=1e-12)
    if name == "pizza":
        assert found["neurons_explained"] == 1
        assert found["neuron_sum_share"] == pytest.approx(found["neuron_diff_share"], abs=0.01)
        assert found["neuron_sum_share"] == pytest.approx(0.109, abs=0.01)
        assert found["direction_fve"] == pytest.approx(8 / math.pi**2, abs=0.01)
    else:
        np.testing.assert_allclose(found["neuron_frac"], 0.8, atol=1e-12)
        assert found["neurons_explained"] == 0  # a square of two waves has .8, half of it in a - b
        assert found["neuron_sum_share"] == pytest.approx(0.4, abs=1e-12)
        assert found["neuron_diff_share"] == pytest.approx(0.4, abs=1e-12)
        assert found["direction_fve"] == pytest.approx(1, abs=1e-12)
    seen = measured(Attention(), snap)
    assert seen["attn_share"].tolist() == [0]
    assert seen["attn_freq"].tolist() == [0]
    assert seen["attn_to_operands"] == pytest.approx(2 / known.task.n_ctx)


def test_attention_waves_are_read_off_the_scores():
    """One head whose score of a token is cos w_3 x on both operands: planted through W_Q, W_K; "=" scores -40."""
    p = 11
    task = ModularArithmetic(p, "x+y", 0.3)
    spec = TransformerSpec(1, 2, 3, 2, 0, positions="none", biases=(), attn_scale=1.0, dtype="float64")
    model = Transformer(spec, task.d_vocab, task.n_ctx, task.d_out)
    weights = model.state_dict()
    wave = (2 * math.pi * 3 * torch.arange(p).double() / p).cos()
    weights["W_E"][:p, 0], weights["W_E"][p, 1] = wave, 1.0
    weights["W_K"][0, 0, 0, 0], weights["W_K"][0, 0, 1, 0] = 1.0, -40.0
    weights["W_Q"][0, 0, 1, 0] = 1.0
    found = measured(Attention(), Snapshot(0, model, task, task.split(0)))
    assert found["attn_freq"].tolist() == [3, 0]
    assert found["attn_share"] == pytest.approx([1, 0], abs=1e-12)
    assert found["attn_to_operands"] == pytest.approx([1, 2 / 3], abs=1e-12)


def test_a_faint_frequency_is_found_and_a_mean_is_none():
    """At 3 times the power of noise a frequency is far outside chi^2 with 2 * 64 degrees of freedom."""
    known = random_adder(23, d_model=64, d_mlp=8, seed=0)
    wave = (2 * math.pi * 4 * torch.arange(23).double() / 23).cos()
    W_E = known.model.state_dict()["W_E"]
    W_E[:23, 0] += 2 * wave / wave.norm()  # power 4 beside the noise's 2 * 64 / 64
    W_E[:23, 1] += 5.0
    found = measured(Spectra(), of(known))
    assert found["n_embed_freqs"] == 1
    assert found["embed_power"].argmax() == 4
    assert found["embed_power"][0] == 0
    assert found["embed_power"].sum() == pytest.approx(1)
    assert found["embed_norm"].argmax() == 0


def test_dead_neurons_count_for_nothing():
    known = pizza_adder(P, FREQS)
    whole = measured(Neurons(), of(known))
    known.model.state_dict()["W_in"][0, :, :3] = 0
    found = measured(Neurons(), of(known))
    assert found["neuron_freq"][:3].tolist() == found["neuron_frac"][:3].tolist() == [0, 0, 0]
    assert found["neurons_explained"] == 1
    assert found["neuron_sum_share"] == pytest.approx(whole["neuron_sum_share"], rel=1e-3)


@pytest.mark.parametrize("build", [clock_adder, quadratic_adder])
def test_clock_numbers_of_a_planted_clock(build):
    measure, k = ClockPizza(n_triples=200, seed=3), 4
    found = measured(measure, of(build(P, (k,))))
    a, b, _ = measure.triples((P,)).unbind(1)
    # dQ/dE_b holds cos w(a - b) in E's coordinates, and unit vectors in those of the head's sum and of the unembedding.
    cosines = (2 * math.pi * k * (a - b).double() / P).cos() / math.sqrt(3)
    assert found["gradient_symmetricity"] == pytest.approx(cosines.mean().item(), abs=1e-12)
    assert math.isnan(found["distance_irrelevance"])
    assert found["circularity"] == pytest.approx(1, abs=1e-12)


def test_pizza_numbers_of_a_planted_pizza():
    found = measured(ClockPizza(50, 0), of(pizza_adder(P, (4,), n_angles=32)))
    assert found["gradient_symmetricity"] == pytest.approx(1, abs=1e-10)
    assert found["distance_irrelevance"] < 0.01
    assert found["circularity"] == pytest.approx(1, abs=1e-10)


# --- Relabelling -----------------------------------------------------------------------------------------------------


def relabelled(model, c):
    """The same network on tokens c * x and classes c * y mod p."""
    p = model.d_out
    image = c * torch.arange(p) % p
    twin = Transformer(model.spec, model.d_vocab, model.n_ctx, model.d_out)
    twin.load_state_dict(model.state_dict())
    weights = twin.state_dict()
    weights["W_E"][image] = model.W_E.detach()[:p]
    weights["W_U"][:, image] = model.W_U.detach()
    return twin, image


@pytest.mark.parametrize("known", [random_adder(13, 24, 40, seed=1), pizza_adder(13, (2, 5), (1.0, 0.4))], ids=repr)
@pytest.mark.parametrize("c", [2, 5, 12])
def test_relabelling_permutes_frequencies_and_changes_nothing_else(known, c):
    p, task, split = 13, known.task, known.task.split(0)
    twin, image = relabelled(known.model, c)
    a, b = task.decode(split.all.inputs).unbind(1)
    rows = task.row_of(torch.stack([image[a], image[b]], 1))
    moved = Split(split.all, rows[split.train], rows[split.test])
    before, after = Snapshot(0, known.model, task, split), Snapshot(0, twin, task, moved)
    # cos(w_k x) at x = y/c is cos(w_(k/c) y).
    inverse = pow(c, -1, p)
    to = np.array([min(k * inverse % p, -k * inverse % p) for k in frequencies((p,))])
    for measure in MEASURES:
        if measure.__dict__.get("freqs") == "final":
            continue
        for name, old in measure(before).items():
            new = measure(after)[name]
            if name in ("embed_norm", "W_L_norm", "gradient_symmetricity"):
                continue  # cos and sin turn into each other's negatives; other triples
            if name == "circularity" and "pizza" in known.name:
                continue  # two circles of one size: any mixture of them is a principal component
            if name in ("neuron_freq", "attn_freq"):
                assert np.array_equal(to[old.values], new.values), name
            elif isinstance(old, Labelled) and old.dims == ("freq",):
                np.testing.assert_allclose(new.values[to], old.values, rtol=1e-9, atol=1e-12, err_msg=name)
            else:
                old, new = plain({"x": old})["x"], plain({"x": new})["x"]
                np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(("p", "operation"), [(12, "x-y"), (13, "x*y"), (13, "x/y")])
def test_other_groups_give_what_addition_gives(p, operation):
    """The additive adder of Z_12 on the tokens of another operation whose group is Z_12: every number is the same."""
    known = quadratic_adder(12, (1, 3, 5), (1.0, 0.5, 2.0), phase=0.2)
    added = known.task.split(0)
    task = ModularArithmetic(p, operation, 0.3, format="a b")
    labels = task.as_group()
    model = Transformer(known.model.spec, task.d_vocab, task.n_ctx, task.d_out)
    old, new, d = known.model.state_dict(), model.state_dict(), 6
    for name, weight in old.items():
        if weight.shape == new[name].shape:
            new[name].copy_(weight)
    # A residue that is no element gets anything, which nobody may see.
    new["W_E"].copy_(torch.randn(new["W_E"].shape, generator=generator(0, "fit")))
    new["W_U"].copy_(torch.randn(new["W_U"].shape, generator=generator(1, "fit")))
    new["W_E"][labels.left] = old["W_E"]
    new["W_U"][:, labels.out] = old["W_U"]
    if operation in ("x-y", "x/y"):  # the right operand shows its negative: its sine coordinates change sign
        in_a = new["W_in"][0, d : 2 * d].clone()
        in_b = new["W_in"][0, :d] + in_a
        in_b[1::2] *= -1
        new["W_in"][0, :d] = in_b - in_a
    i, j = torch.cartesian_prod(torch.arange(12), torch.arange(12)).unbind(1)
    rows = task.row_of(torch.stack([labels.left[i], labels.right[j]], 1))
    split = Split(task.split(0).all, rows[added.train], rows[added.test])
    other, one = Snapshot(0, model, task, split), Snapshot(0, known.model, known.task, added)
    other.reference, one.reference = other, one
    for measure in MEASURES:
        found, expected = measured(measure, other), measured(measure, one)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if operation != "x*y" and name == "gradient_symmetricity":
                continue  # the gradient by the embedded -b has other signs
            np.testing.assert_allclose(found[name], value, atol=1e-10, err_msg=f"{measure} {name}")
    assert measured(FINAL, other)["n_key_freqs"] == 3


# --- Nulls -----------------------------------------------------------------------------------------------------------


def assert_nothing_found(snap):
    found = measured(LogitFourier("current"), snap)
    n = len(frequencies(snap.task.as_group().group))
    assert found["n_key_freqs_current"] == 0
    assert found["logit_fve_current"] == 0
    assert found["key_freqs_current"].tolist() == [0] * n
    assert found["trig_loss_current"] == pytest.approx(math.log(snap.task.d_out), abs=1e-9)
    y, train_rows = snap.batch.targets[:, 0], snap.split.train
    logits = snap.logits[:, 0].double()
    assert found["excluded_loss_current"] == pytest.approx(
        F.cross_entropy(logits[train_rows], y[train_rows]).item(), rel=1e-12
    )
    assert found["restricted_loss_uncorrected_current"] == pytest.approx(math.log(snap.task.d_out), abs=1e-12)
    assert measured(Neurons(), snap)["neurons_explained"] == 0
    assert math.isnan(measured(Neurons(), snap)["direction_fve"])
    assert measured(Neurons(), snap)["W_L_residual"] == pytest.approx(1)
    return found


def test_untrained_networks_stay_in_the_null_band():
    finds, n_nulls = {"embed": 0, "logits": 0}, 40
    for seed in range(n_nulls):
        snap = of(random_adder(23, d_model=32, d_mlp=64, seed=seed))
        logits, spectra = measured(LogitFourier("current"), snap), measured(Spectra(), snap)
        finds["logits"] += logits["n_key_freqs_current"] > 0
        finds["embed"] += spectra["n_embed_freqs"] > 0
        # The Gini coefficient of n norms of d Gaussians is near 1/sqrt(2 pi d); at n = 23 its spread is a fifth of it.
        assert spectra["embed_gini"] == pytest.approx(1 / math.sqrt(2 * math.pi * 32), rel=0.6)
        assert measured(Neurons(), snap)["neurons_explained"] == 0
    assert max(finds.values()) <= 0.01 * n_nulls + 3 * math.sqrt(0.01 * n_nulls)
    assert_nothing_found(of(random_adder(23, 32, 64, seed=0)))


@pytest.mark.parametrize("labels", ["true", "shuffled"])
def test_a_memorising_table_has_no_key_frequency(labels):
    task = ModularArithmetic(23, "x+y", 0.4, format="a b", labels=labels)
    snap = of(memoriser(task, seed=0))
    found = assert_nothing_found(snap)
    assert found["excluded_loss_current"] < 1e-6  # all of it survives: nothing of it is a key frequency
    if labels == "shuffled":
        assert found["restricted_test_loss_current"] > math.log(23) - 0.05


@pytest.fixture(scope="module")
def shuffled_run(tmp_path_factory):
    """A network that memorises shuffled labels."""
    task = ModularArithmetic(17, "x+y", 0.5, labels="shuffled")
    steps = dataclasses.replace(STEPS, steps=200, checkpoints=("every:100",), eval_every=200)
    experiment = Experiment(
        "shuffled", 0, task, MODEL, dataclasses.replace(ADAMW, weight_decay=0.1), "cross_entropy", steps
    )
    return train(experiment, tmp_path_factory.mktemp("shuffled") / "seed=0", progress=False)


def test_a_network_trained_on_shuffled_labels_has_learned_and_shows_nothing(shuffled_run):
    snap = shuffled_run.final
    assert snap.mean(snap.losses, "train") < 0.5 * math.log(17)
    assert_nothing_found(snap)


def test_labels_outside_the_group_are_left_out():
    """Shuffled x*y says 0 for some pairs without a 0: they have no element, and count in no loss."""
    task = ModularArithmetic(11, "x*y", 0.5, labels="shuffled")
    snap = Snapshot(0, scrambled(tiny_spec(), task), task, task.split(0))
    found = measured(LogitFourier("current"), snap)
    operands, y = task.decode(snap.batch.inputs), snap.batch.targets[:, 0]
    counted = (operands > 0).all(1) & (y > 0)
    assert counted.sum() < (operands > 0).all(1).sum()
    train_rows = snap.split.train[counted[snap.split.train]]
    logits = snap.logits[train_rows, 0, 1:]
    without_means = logits - snap.logits[(operands > 0).all(1), 0, 1:].mean(0)
    assert found["excluded_loss_by_freq_current"][0] == pytest.approx(
        F.cross_entropy(without_means, y[train_rows] - 1).item(), rel=1e-12
    )


# --- Bad input -------------------------------------------------------------------------------------------------------


def snapshot_of(task, spec):
    return Snapshot(0, spec.build(task, generator(0, "init")), task, task.split(0))


TRANSFORMER = tiny_spec()
NO_GROUP = [
    (ModularArithmetic(7, "x^2+y^2", 0.3), TRANSFORMER),
    (ModularArithmetic(9, "x*y", 0.3), TRANSFORMER),
    (ModularArithmetic(3, "x+y", 0.3, n_operands=3), TRANSFORMER),
    (RepeatedTokens(d_tokens=6, length=3, n_test=16), TRANSFORMER),
    (SparseFeatures(5, 0.5, 0.9, n_test=16), SuperpositionSpec("linear", 2)),
]


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
@pytest.mark.parametrize(("task", "spec"), NO_GROUP, ids=lambda x: type(x).__name__)
def test_tasks_without_a_group_are_refused_by_name(measure, task, spec):
    snap = snapshot_of(task, spec)
    snap.reference = snap
    assert isinstance(task, Task)
    with pytest.raises(UserError) as error:
        measure(snap)
    for part in (type(measure).__name__, type(task).__name__, "abelian group", "x+y", "x/y", "n_operands=2"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("measure", "spec", "missing"),
    [
        (Spectra(), MLPSpec(8, 10, "relu"), "no W_out"),
        (Spectra(), tiny_spec(d_mlp=0), "no W_out"),
        (Neurons(), MLPSpec(0, 10, "quadratic"), "no W_E, W_out"),
        (Neurons(), tiny_spec(d_mlp=0), "no W_out"),
        (Attention(), MLPSpec(8, 10, "relu"), "no W_Q"),
        (ClockPizza(5, 0), MLPSpec(8, 10, "relu"), "no W_Q"),
    ],
)
def test_models_without_the_weights_are_refused_by_name(measure, spec, missing):
    with pytest.raises(UserError, match=rf"{type(measure).__name__}.*{missing}.*accepts transformers"):
        measure(snapshot_of(ModularArithmetic(7, "x+y", 0.3), spec))


def test_logits_are_measured_of_any_model():
    for spec in (MLPSpec(8, 10, "relu"), tiny_spec(d_mlp=0), tiny_spec(n_layers=2, norm="LN")):
        assert LogitFourier("current")(snapshot_of(ModularArithmetic(7, "x+y", 0.3), spec))


def test_tied_and_deep_transformers_are_measured():
    task = ModularArithmetic(7, "x+y", 0.3)
    for spec in (tiny_spec(tied=True), tiny_spec(n_layers=2, norm="LN")):
        snap = snapshot_of(task, spec)
        W_U = snap.model.W_E[:7].T if spec.tied else snap.model.W_U
        W_L = (snap.model.W_out[-1] @ W_U).detach()
        norms = measured(Spectra(), snap)["W_L_norm"]
        assert (norms**2).sum() == pytest.approx(W_L.pow(2).sum().item())  # Parseval
        assert measured(Neurons(), snap)["neuron_freq"].shape == (10,)


def test_hindsight_without_a_reference_or_with_a_foreign_one():
    known = quadratic_adder(13, (2,))
    snap = of(known)
    assert FINAL.hindsight
    assert not LogitFourier("current").hindsight
    snap.reference = None
    with pytest.raises(UserError, match=r"no reference.*run.reference\(\).*current"):
        FINAL(snap)
    snap.reference = of(quadratic_adder(11, (2,)))
    with pytest.raises(UserError, match=r"Z_11.*Z_13"):
        FINAL(snap)
    with pytest.raises(UserError, match=r"freqs.*last"):
        build({"_target_": "toylab.measures.fourier.LogitFourier", "freqs": "last"}, "measure")
    with pytest.raises(UserError, match="n_triples=0"):
        ClockPizza(0, 0)


def test_final_frequencies_come_from_the_reference():
    later, now = of(quadratic_adder(P, (2, 5))), of(quadratic_adder(P, (5, 11), (1.0, 2.0)))
    now.reference = later
    found, online = measured(FINAL, now), measured(LogitFourier("current"), now)
    assert np.flatnonzero(found["key_freqs"]).tolist() == [2, 5]
    assert np.flatnonzero(online["key_freqs_current"]).tolist() == [5, 11]
    assert found["logit_fve"] == pytest.approx(1 / 5)  # energies 1 and 4
    assert not found.keys() & online.keys()
    assert found["restricted_loss"] > online["restricted_loss_current"]


# --- Runs ------------------------------------------------------------------------------------------------------------

TRACKED = {
    "spectra": Tracked(Spectra(), 10),
    "logits": Tracked(LogitFourier("current"), 10),
    "neurons": Tracked(Neurons(), 10),
    "attention": Tracked(Attention(), 10),
    "clock_pizza": Tracked(ClockPizza(20, seed=1), 10),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = ModularArithmetic(p=11, operation="x+y", frac_train=0.5)
    experiment = Experiment("tiny", 0, task, MODEL, ADAMW, "cross_entropy", STEPS, TRACKED)
    return train(experiment, tmp_path_factory.mktemp("fourier") / "seed=0", progress=False)


def test_online_equals_offline_exactly(run):
    logged = {}
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        logged.setdefault(row["step"], {}).update(row)
    compared = 0
    for tracked in TRACKED.values():
        table = run.map(tracked.measure, range(0, 61, 10))
        for name, column in table.data_vars.items():
            if column.dims != ("step",):
                continue
            for step in table.step.values.tolist():
                online, offline = float(logged[step][name]), float(column.sel(step=step))
                assert online == offline or (math.isnan(online) and math.isnan(offline)), (name, step)
                compared += 1
    assert compared == 7 * 20  # numbers, not arrays, at seven steps


def test_the_stacked_path_is_the_unstacked_one(run):
    table = run.map(Spectra())
    for step in run.steps:
        for name, value in measured(Spectra(), run.snapshot(step)).items():
            assert np.array_equal(table[name].sel(step=step).values, value), (name, step)
    assert table["embed_norm"].dims == ("step", "row")
    assert table["row"].values.tolist()[:3] == ["const", "cos 1", "sin 1"]
    assert table["freq"].values.tolist() == [0, 1, 2, 3, 4, 5]


def test_every_measure_maps_over_a_run_with_named_axes(run):
    dims = {"freq", "row", "neuron", "head", "step"}
    for measure in MEASURES:
        hindsight = getattr(measure, "hindsight", False)
        table = run.map(measure, [0, 30, 60], run.reference() if hindsight else None)
        assert set(table.dims) <= dims
    final = run.map(FINAL, [0, 60], run.reference())
    assert float(final.n_key_freqs[0]) == float(final.n_key_freqs[1])
    online = run.map(LogitFourier("current"), [60])
    for name in final.data_vars:  # at the end, hindsight sees nothing new
        assert np.array_equal(final[name].sel(step=60).values, online[f"{name}_current"].sel(step=60).values)


def test_an_unfinished_run_is_no_reference(run, tmp_path):
    import shutil

    shutil.copytree(run.path, tmp_path / "seed=0")
    info = json.loads((tmp_path / "seed=0/run.json").read_text())
    (tmp_path / "seed=0/run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    with pytest.raises(UserError, match=r"interrupted at step 60 of 60.*finished run"):
        Run.open(tmp_path / "seed=0").reference()


def test_recorded_and_plain_logits_are_the_same_bits(run):
    """A snapshot takes its logits from the pass that records sites, if that came first."""
    one, two = run.final, run.final
    one.site("post", 0)
    assert "logits" in vars(one)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(two.site("post", 0), one.site("post", 0))


def test_configs_build_their_measures():
    for node, measure in (
        ({"_target_": "toylab.measures.fourier.LogitFourier", "freqs": "final"}, FINAL),
        ({"_target_": "toylab.measures.fourier.ClockPizza", "n_triples": 100, "seed": 0}, ClockPizza(100, 0)),
    ):
        assert build(node, "measure") == measure


# --- Phases ----------------------------------------------------------------------------------------------------------


def curves(scale=1.0, groks=True):
    """Four losses with one corner each, on steps 0, 10, ..., 2000 (times scale)."""
    t = np.arange(0, 2001, 10.0)
    train_loss = np.where(t < 200, 5.0, 0.01)
    excluded = np.interp(t, [0, 300, 1500, 2000], [5, 0.5, 9, 8])
    restricted = np.interp(t, [0, 300, 1400, 2000], [5, 5, 0, 0])
    test_loss = np.where(t < 1000, 12.0, np.where(t < 1600, 5.0, 0.1))
    if not groks:
        excluded, restricted, test_loss = np.interp(t, [0, 300], [5, 0.5]), np.full_like(t, 5.0), np.full_like(t, 12.0)
    return t * scale, train_loss, test_loss, restricted, excluded


def test_phases_are_the_corners_of_the_curves():
    assert locate_phases(*curves()) == Phases(200.0, 300.0, 990.0, 1600.0)


def test_phases_that_do_not_come_are_nan():
    found = locate_phases(*curves(groks=False))
    assert found.memorised == 200
    assert all(math.isnan(x) for x in (found.circuit_from, found.cleanup_from, found.cleanup_to))


def test_a_rise_of_excluded_loss_without_a_circuit_is_none():
    steps, train_loss, test_loss, restricted, excluded = curves()
    assert math.isnan(locate_phases(steps, train_loss, test_loss, np.full_like(steps, 5.0), excluded).circuit_from)
    flat = np.minimum(excluded, 0.9)
    assert math.isnan(locate_phases(steps, train_loss, test_loss, restricted, flat).circuit_from)


def test_a_collapse_takes_phases_back():
    """Memorisation and clean-up are states that last: a loss that returns at the end was not left."""
    steps, train_loss, test_loss, restricted, excluded = curves()
    train_loss[-1], test_loss[-1] = 5.0, 12.0
    found = locate_phases(steps, train_loss, test_loss, restricted, excluded)
    assert math.isnan(found.memorised)
    assert math.isnan(found.cleanup_from)
    assert math.isnan(found.cleanup_to)


def test_missing_steps_are_left_out():
    steps, *losses = curves()
    losses[2][5::7] = np.nan
    found = locate_phases(steps, *losses)
    assert found.circuit_from == 300
    assert locate_phases(steps[::-1][::-1], *losses) == found


def test_phases_over_seeds_give_median_and_range():
    per_seed = [curves(), curves(groks=False), curves()]
    late = [np.concatenate([np.repeat(x[:1], 20), x[:-20]]) for x in per_seed[2][1:]]  # everything 200 steps later
    tables = [np.stack([per_seed[0][i + 1], per_seed[1][i + 1], late[i]]) for i in range(4)]
    found = phases_over_seeds(per_seed[0][0], *tables)
    assert (found["memorised"].median, found["memorised"].low, found["memorised"].high) == (200, 200, 400)
    circuit = found["circuit_from"]
    assert (circuit.median, circuit.low, circuit.high, circuit.found, circuit.seeds) == (400, 300, 500, 2, 3)
    assert str(circuit) == "400 (300 to 500; 2 of 3 seeds)"
    never = phases_over_seeds(per_seed[0][0], *(np.stack([x]) for x in per_seed[1][1:]))["cleanup_to"]
    assert never.found == 0
    assert math.isnan(never.median)
    assert str(never) == "in none of 1 seeds"


def test_wrong_curves_are_refused():
    steps, *losses = curves()
    with pytest.raises(UserError, match="shapes"):
        locate_phases(steps[:-1], *losses)
    with pytest.raises(UserError, match="increase"):
        locate_phases(steps[::-1], *losses)
    with pytest.raises(UserError, match="none of the"):
        locate_phases(steps, losses[0] * np.nan, *losses[1:])
    with pytest.raises(UserError, match="takes one run"):
        phases_over_seeds(steps, *losses)
