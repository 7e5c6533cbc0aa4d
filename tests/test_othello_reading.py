"""Othello: how the board is read, in what order, by which parts and by which dictionaries, where it is planted.

The plants are those of test_othello.py. Every measure is also asked of a network before training and of wrong labels.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_othello import EARLY_ENDS, FOUR, PASS_LINES, SIX, SPEC, Plain, Planted

from toylab import Experiment
from toylab.cli import figure
from toylab.data import generator
from toylab.errors import UserError
from toylab.experiment import TrainSpec
from toylab.interp import attention
from toylab.interp.probes import fit_mlp
from toylab.measures import board as measures
from toylab.measures import board_circuit as circuit
from toylab.measures import board_features as features
from toylab.measures import board_reading as reading
from toylab.optim import OptimSpec
from toylab.snapshot import Snapshot
from toylab.taps import Tapped, no_tap
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.othello import Othello
from toylab.train import train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


@pytest.fixture(scope="module")
def planted():
    return Snapshot(0, Planted(SIX), SIX, SIX.split(0))


@pytest.fixture(scope="module")
def untrained():
    return Snapshot(0, SPEC.build(SIX, generator(0, "init")), SIX, SIX.split(0))


# --- The size of a probe ---------------------------------------------------------------------------------------------


def test_a_small_probe_reads_a_planted_board_and_no_size_reads_it_from_the_moves(planted):
    tool = reading.ProbeCapacity(hidden=(0, 2, 24), n_games=50, steps=60)
    found = {name: value.values for name, value in tool(planted).items()}
    linear, two, many = found["accuracy"][0]  # frame board
    assert (linear > 0.999).all()
    assert (linear > found["moves"][0].max() + 0.05).all()
    assert (two < 0.75).all()  # 36 squares cannot pass through two units
    assert (many > two + 0.1).all()
    assert (found["accuracy"][1, 0] < 0.85).all()  # colour is not linear
    assert (found["untrained"][0] < linear.min() - 0.1).all()
    assert (found["untrained"] > found["majority"][:, None, None] - 0.1).all()
    alone = measures.BoardProbes(("board",), n_games=50)
    assert linear.tolist() == alone(planted)["accuracy"].values[0].tolist()  # the same probe as there


def test_targets_that_share_hidden_units_compete_for_them():
    """Eight bits through one hidden unit: no more than a bit or so; each with a unit of its own: all of them."""
    g = generator(0, "bits")
    y = torch.randint(2, (600, 8), generator=g)
    x = (2 * y - 1).float() @ torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    right = {}
    for shared in (False, True):
        probe = fit_mlp(x[None], y, 1, 200, generator(0, "fit"), lr=0.05, shared=shared)
        assert probe.W_in.shape == (1, 1 if shared else 8, 8, 1)
        assert probe.scores(x[None]).shape == (1, 600, 8, 2)
        right[shared] = (probe.predict(x[None])[0] == y).double().mean().item()
    assert right[False] > 0.99
    assert right[True] < 0.8
    # Units that all are shared, or none when there is one target, are the same thing.
    one, other = (fit_mlp(x, y[:, 0], 3, 5, generator(1, "fit"), shared=shared) for shared in (False, True))
    assert torch.equal(one.scores(x), other.scores(x))


# --- How long after a change -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [FOUR, SIX])
def test_ages_are_those_of_a_plain_engine(task):
    data = measures.positions(task, 20, 3)
    found, row = reading.ages(task, data), 0
    for game in task.decode(data.inputs).tolist():
        plain, changed = Plain(task.n), {}
        for t, square in enumerate(game):
            if square < 0:
                break
            changed |= dict.fromkeys((square, *plain.play(square)), t)
            if plain.legal():
                age = [t - changed.get(s, -1) if disc else -1 for s, disc in enumerate(plain.board)]
                assert found[row].tolist() == age
                row += 1
    assert row == len(found)


def test_mean_by_counts_every_key_once():
    values, key = torch.rand(2, 5, 3, generator=generator(0, "v")), torch.tensor([[0, 1, -1]] * 4 + [[2, 2, -1]])
    mean, count = reading.mean_by(values, key, 4)
    assert count.tolist() == [4, 4, 2, 0]
    torch.testing.assert_close(mean[:, 0], values[:, :4, 0].mean(1))
    torch.testing.assert_close(mean[:, 2], values[:, 4, :2].mean(1))
    assert mean[:, 3].isnan().all()


def test_a_planted_board_is_known_at_every_age(planted, untrained):
    tool = reading.BoardByAge(hidden=(0,), n_games=120)
    found = {name: value.values for name, value in tool(planted).items()}
    seen = found["discs"] > 0
    assert (found["accuracy"][0][:, seen] > 0.99).all()
    assert np.isnan(found["accuracy"][0][:, ~seen]).all()
    data = measures.positions(SIX, 120, 0)
    discs = (data.labels["board"][data.test] > 0).sum(1).double().mean().item()
    assert found["discs"].sum() == pytest.approx(discs)
    assert (found["illegal_by_ply"] == 0).all()
    whole = measures.BoardProbes(("board",), n_games=120)(planted)
    assert found["accuracy_by_ply"][0] == pytest.approx(whole["accuracy_by_ply"].values[0], abs=1e-12)
    null = tool(untrained)
    assert np.nanmax(null["accuracy"].values[..., :8]) < 0.9
    assert null["illegal_by_ply"].values.mean() > 0.5
    assert null["moves"].values == pytest.approx(found["moves"], nan_ok=True)  # knows no network


# --- The map of the squares ------------------------------------------------------------------------------------------


def test_a_board_held_as_orthogonal_directions_draws_the_map_of_the_board(planted):
    found = {name: value.values for name, value in reading.SquareMap(n_games=150)(planted).items()}
    probe, means, board = found["cosines"]
    assert abs(probe[0] - np.eye(36)).max() < 0.1
    assert means == pytest.approx(board, abs=1e-4)
    assert found["plane"][1] == pytest.approx(found["plane"][2], abs=1e-3)
    assert found["shares"][1] == pytest.approx(found["shares"][2], abs=1e-4)
    assert found["shares"][0].sum(-1).max() < 0.2
    assert found["nearness"][2, 0] > 0.4  # neighbours are often of one colour


def test_directions_laid_out_as_the_board_are_mapped_back():
    at = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    Q = torch.linalg.qr(torch.randn(9, 9, generator=generator(0, "Q")))[0]
    v = (at @ Q[:2] + 5 * Q[2])[None]
    plane, shares = reading.principal_plane(v)
    assert shares.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(torch.cdist(plane[0], plane[0]), torch.cdist(at, at), atol=1e-3, rtol=1e-4)
    turned = reading.principal_plane(v @ torch.linalg.qr(torch.randn(9, 9, generator=generator(1, "Q")))[0] + 3.0)
    torch.testing.assert_close(turned[1], shares)  # neither rotation nor a shift
    centred = v - v.mean(1, keepdim=True)
    assert reading.nearness(centred, 6)[0] > 0.6
    mixed = centred[:, torch.randperm(36, generator=generator(0, "mix"))]
    assert abs(reading.nearness(mixed, 6)[0]) < 0.2


# --- In what order ---------------------------------------------------------------------------------------------------


def test_reading_order_by_hand():
    board = torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 0, 1]]).bool()
    moves = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 0, 0, 0]]).bool()
    names = [reading.ORDERS[i] for i in reading.reading_order(board, moves).int().argmax(0)]
    assert names == ["board first", "same block", "moves first", "neither", "same block"]
    assert (reading.reading_order(board, moves).sum(0) == 1).all()


class Late(Planted):
    """After its first block the board lies along other directions, which the unembedding does not read."""

    def forward(self, tokens, tap=no_tap):
        def turn(name, layer, value):
            value = value.roll(1, -1) if (name, layer) == ("resid_post", 0) else value
            return (
                tap(name, layer, value).roll(-1, -1) if (name, layer) == ("resid_post", 0) else tap(name, layer, value)
            )

        return super().forward(tokens, turn)


def test_the_board_comes_before_moves_that_are_not_yet_written_out(planted, untrained):
    tool = reading.ReadingOrder(n_games=120)
    found = tool(planted)
    same, first = reading.ORDERS.index("same block"), reading.ORDERS.index("board first")
    assert found["moves_right"].values.tolist() == [1, 1]
    assert found["board_right"].values.min() > 0.98
    assert found["overall"].values[same] > 0.98
    assert found["by_ply"].values.sum(0) == pytest.approx(1)
    late = tool(Snapshot(0, Late(SIX), SIX, SIX.split(0)))
    assert late["moves_right"].values[0] < 0.2
    assert late["moves_right"].values[1] == 1
    assert late["overall"].values[first] > 0.7
    assert tool(untrained)["overall"].values[reading.ORDERS.index("neither")] > 0.9


def test_flips_are_read_where_they_are_held(planted, untrained):
    """The stream of a network that holds the discs just turned over, beside one that holds the board alone."""

    class Turning(Planted):
        def forward(self, tokens, tap=no_tap):
            flipped = self.task.latents(tokens)["flipped"].values.clamp_min(0).float() @ self.D[:36]
            return super().forward(
                tokens, lambda name, layer, x: tap(name, layer, x + flipped if "resid" in name else x)
            )

    tool = reading.FlippedDiscs(n_games=120)
    found = tool(Snapshot(0, Turning(SIX), SIX, SIX.split(0)))
    assert found["f1"].values.min() > 0.9
    null = tool(untrained)
    assert null["f1"].values.max() < 0.5
    assert null["untrained"].values == pytest.approx(null["f1"].values, abs=0.15)
    data = measures.positions(SIX, 120, 0)
    y = reading.turned(SIX, data)
    assert y.shape[1] <= 32  # no corner is ever turned over
    mixed = y[torch.randperm(len(y), generator=generator(0, "mix"))]
    assert tool.f1(measures.streams(planted.model, data), mixed, data.test).max() < found["always"] + 0.05


# --- By which parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 6, 8])
def test_the_moves_of_each_side_after_a_pass_and_at_the_end(n):
    task = Othello(n, "moves", 1, 0.0, 1)
    mine, theirs = circuit.side_masks(task, task.encode(torch.tensor([PASS_LINES[n][0]])).inputs)
    last = len(PASS_LINES[n][0]) - 1
    # White made the last move and moves again: its own moves are every second one up to and with the last.
    assert mine[0, last].nonzero().flatten().tolist() == list(range(1, last + 1, 2))
    assert theirs[0, last].nonzero().flatten().tolist() == list(range(0, last + 1, 2))
    assert mine[0, 2].nonzero().flatten().tolist() == [1]  # Black moved third, White is next
    over = task.encode(torch.tensor([EARLY_ENDS[n][0]])).inputs
    assert not circuit.side_masks(task, over)[:, 0, len(EARLY_ENDS[n][0]) - 1 :].any()


def test_a_head_that_looks_at_one_side_is_found():
    inputs = measures.positions(SIX, 30, 0).inputs
    mine, theirs = circuit.side_masks(SIX, inputs)
    looks = mine.double() / mine.sum(-1, keepdim=True).clamp_min(1)
    pattern = looks[None, :, None]
    assert attention.attention_scores(pattern, mine).item() == pytest.approx(1)
    assert attention.attention_scores(pattern, theirs).item() == 0


def test_heads_before_training_look_everywhere_alike(untrained):
    found = circuit.HeadSides(n_games=40)(untrained)
    for name in ("mine", "theirs"):
        assert found[name].values == pytest.approx(found[f"uniform_{name}"], abs=0.08)


class OneHead(Tapped):
    """Its only head looks everywhere and writes, for every move, that this square is not empty: an exact circuit."""

    n_layers = 1

    def __init__(self, task):
        super().__init__()
        self.task, self.spec, d = task, dataclasses.replace(SPEC, norm="none"), task.d_vocab
        self.register_buffer("W_E", torch.eye(d))
        self.register_buffer("W_V", torch.eye(d)[None, None])
        self.register_buffer("W_O", torch.eye(d)[None, None])

    def forward(self, tokens, tap=no_tap):
        pre = tap("resid_pre", 0, self.W_E[tokens])
        written = pre.cumsum(1)
        for site in ("resid_mid", "resid_post"):
            written = tap(site, 0, written)
        return written

    def example_input(self):
        return torch.zeros(1, 3, dtype=torch.long)


def test_a_bag_of_moves_is_an_exact_empty_circuit(untrained):
    found = circuit.EmptyCircuit(n_games=100)(Snapshot(0, OneHead(SIX), SIX, SIX.split(0)))
    assert found["cosine"].values[0] < -0.9
    assert found["strongest"] == pytest.approx(found["cosine"].values[0])
    assert abs(found["strongest_other"]) < 0.2
    before, after, last = found["empty_right"].values
    assert after == last == 1
    assert before < 0.9
    null = circuit.EmptyCircuit(n_games=100)(untrained)
    assert null["strongest"] > -0.6
    assert null["empty_untrained"].values == pytest.approx(null["empty_right"].values, abs=0.05)


def test_shares_of_the_parts_add_up_and_follow_who_writes(untrained):
    for layer in (0, 1):
        found = circuit.BoardParts(layer, n_games=40)(untrained)
        assert found["share"].values.sum() == pytest.approx(1, abs=1e-4)
        assert found["by_square"].values.sum(1) == pytest.approx(found["share"].values, abs=1e-6)
        assert f"L{layer}H1" in found["share"].coords["component"]
        assert f"L{layer + 1}H0" not in found["share"].coords["component"]
    y = torch.tensor([[1, 2], [2, 1], [1, 1], [0, 2]])
    along = torch.stack([F.one_hot(y, 3)[..., 1].float(), torch.ones(4, 2)])  # 1 where mine; the same everywhere
    assert circuit.separation(along, y).tolist() == [[1, 1], [0, 0]]


# --- Dictionaries ----------------------------------------------------------------------------------------------------


def test_dictionaries_of_a_planted_board_recover_its_play():
    snap = Snapshot(0, Planted(FOUR), FOUR, FOUR.split(0))
    tool = features.BoardSweep(
        1, kinds=("batchtopk", "standard"), d_sae=64, lr=3e-3, steps=400, batch_size=256, n_games=200
    )
    found = {name: value.values for name, value in tool(snap).items()}
    k = found["strength"][0]
    assert k.tolist() == [4, 8, 16, 32, 64]
    assert found["l0"][0, :3] == pytest.approx(k[:3], rel=0.35)
    assert (np.diff(found["l0"][1]) < 0).all()  # a larger penalty, fewer latents
    assert found["recovered"][0, 2] > 0.9  # sixteen squares are sixteen directions
    assert found["recovered"][0, 0] < found["recovered"][0, 2]
    assert found["coverage"][0].max() > 0.75
    assert found["fvu"][0, 2] < 0.1
    null = dataclasses.replace(tool, kinds=("batchtopk",), labels="shuffled", steps=5)(snap)
    assert null["reconstruction"].values.max() < 0.05


def test_losses_of_next_moves_are_those_of_the_batch():
    batch = SIX.encode(torch.tensor([EARLY_ENDS[6][0]]))  # nothing follows its last move
    logits = torch.randn(*batch.inputs.shape, SIX.d_out, generator=generator(0, "z"))
    asked = batch.targets[:, :-1] > 0
    known = F.cross_entropy(logits[:, :-1][asked], batch.targets[:, :-1][asked], reduction="none")
    assert torch.equal(features.next_move_losses(batch.inputs)(logits), known)


def test_the_boards_of_latents_that_are_the_squares(monkeypatch):
    """With the properties themselves as latents every board is one cell, at the latent's own square."""
    snap = Snapshot(0, Planted(FOUR), FOUR, FOUR.split(0))
    tool = features.BoardDictionary(1, d_sae=32, n_games=100, steps=5)
    data = measures.positions(FOUR, 100, 0)
    properties = features.board_properties(data).float()

    class Perfect:
        def encode(self, x):
            return properties[data.test]

    monkeypatch.setattr(features.BoardDictionary, "fit", lambda self, snap: Perfect())
    found = tool.boards(snap, 4)
    assert found["f1"].tolist() == [1] * 4
    rows = torch.arange(4)
    own = found["lean"][rows, found["square"]]
    assert (own.sign() == 1 - 2 * found["theirs"]).all()
    assert torch.equal(found["lean"].abs().argmax(1), found["square"])


# --- Everything, everywhere ------------------------------------------------------------------------------------------


SMALL = (
    reading.ProbeCapacity(hidden=(0, 2), n_games=40, steps=3),
    reading.BoardByAge(hidden=(0, 2), n_games=60, steps=3),
    reading.SquareMap(n_games=60),
    reading.ReadingOrder(n_games=60),
    reading.FlippedDiscs(n_games=60),
    circuit.HeadSides(n_games=20),
    circuit.EmptyCircuit(n_games=60),
    circuit.BoardParts(1, n_games=60),
    features.BoardSweep(1, kinds=("topk", "p-anneal", "gated"), d_sae=64, steps=5, batch_size=64, n_games=60),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of four steps on 6 x 6; on 4 x 4 there are no unnatural boards to edit."""
    experiment = Experiment(
        name="tiny",
        seed=0,
        task=Othello(6, "moves", 60, 0.2, 5),
        model=SPEC,
        optim=OptimSpec("adamw", lr=3e-3, weight_decay=0.01),
        loss="cross_entropy_float32",
        train=TrainSpec(steps=4, checkpoints=("every:2",), eval_every=2, batch_size=32, threads=1),
    )
    return train(experiment, tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_everything_runs_over_checkpoints(tiny):
    for tool in SMALL:
        table = tiny.map(tool)
        assert table.sizes["step"] == 3
        assert all(np.isfinite(table[name]).any() for name in table.data_vars), tool


def test_a_run_without_a_board_is_refused():
    task = ModularArithmetic(p=7, operation="x+y", frac_train=0.5)
    snap = Snapshot(0, SPEC.build(task, generator(0, "init")), task, task.split(0))
    for measure in SMALL:
        with pytest.raises(UserError, match="ModularArithmetic has no board"):
            measure(snap)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: reading.ProbeCapacity(frames=("color",)), 'did you mean "colour"'),
        (lambda: reading.ProbeCapacity(hidden=(-1,)), "0 .a linear probe. or more units"),
        (lambda: reading.BoardByAge(frame="mine"), "accepted are board, colour, parity"),
        (lambda: features.BoardSweep(0, kinds=("batch_topk",)), 'did you mean "batchtopk"'),
        (lambda: features.BoardSweep(0, ablation="none"), "accepted are zero, mean"),
        (lambda: features.BoardSweep(0, labels="shufled"), 'did you mean "shuffled"'),
    ],
)
def test_mistakes_are_told(make, said):
    with pytest.raises(UserError, match=said):
        make()


# --- Figures ---------------------------------------------------------------------------------------------------------


DICTIONARY = functools.partial(features.BoardDictionary, d_sae=32, k=4, steps=3, batch_size=64, n_games=60)
SWEEP = functools.partial(features.BoardSweep, d_sae=64, steps=3, batch_size=64, n_games=60)
SMALLER = {  # figure -> the tools that train something, at a size for a test
    "othello_map": {},
    "othello_order": {},
    "othello_heads": {},
    "othello_capacity": {"ProbeCapacity": functools.partial(reading.ProbeCapacity, n_games=40, steps=3)},
    "othello_age": {"BoardByAge": functools.partial(reading.BoardByAge, n_games=60, steps=3)},
    "othello_changes": {"Interventions": functools.partial(measures.Interventions, n_cases=6, n_games=60, steps=3)},
    "othello_dictionaries": {"BoardSweep": SWEEP, "BoardDictionary": DICTIONARY},
    "othello_latents": {"BoardDictionary": DICTIONARY},
}


@pytest.mark.parametrize("name", SMALLER)
def test_a_figure_is_drawn_from_a_run_of_any_size(name, tiny, tmp_path, monkeypatch):
    module = figure.figure_module(name)
    for tool, smaller in SMALLER[name].items():
        monkeypatch.setattr(module, tool, smaller)
    monkeypatch.setattr(figure, "figure_module", lambda name: module)
    picture = figure.draw_figure(name, [tiny.path], tmp_path / f"{name}.png")
    assert picture.stat().st_size > 10000
