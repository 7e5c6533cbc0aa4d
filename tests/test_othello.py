"""Othello: the engine against a plain one, exact counts, labels, and measures on a network whose board is planted.

Names A1 .. A18 are those of the acceptance list: counts, statistics and baselines derived by exact enumeration or from
a million games, with tolerances of four standard errors.
"""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from toylab import Experiment
from toylab.data import Task, generator
from toylab.errors import UserError
from toylab.experiment import TrainSpec
from toylab.interp import board as tools
from toylab.interp.erasure import fit as fit_eraser
from toylab.interp.probes import fit
from toylab.interp.sae.dictionary import load, save
from toylab.measures import board as measures
from toylab.measures import board_features as features
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.snapshot import Snapshot
from toylab.taps import Tapped, no_tap
from toylab.tasks import othello_engine as engine
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.othello import CHANGES, Othello
from toylab.train import train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
SIX = Othello(6, "moves", 200, 0.2, 5)
FOUR = Othello(4, "moves", 200, 0.2, 4)
LEAVES = Othello(4, "leaves", None, 0.2, 6)
PASS_LINES = {  # moves, what is legal then: the side that moved last moves again
    8: ([19, 18, 17, 9, 37, 16, 0, 2], [20, 45]),
    6: ([8, 7, 6, 0, 22, 26, 32, 12], [9, 28]),
    4: ([1, 0, 11, 2, 4, 8], [7, 13, 14, 15]),
}
EARLY_ENDS = {  # moves, discs of Black and White
    8: ([19, 18, 17, 11, 4, 43, 51, 20, 29], (13, 0)),
    6: ([8, 7, 6, 9, 10, 16, 22, 26, 32], (13, 0)),
    4: ([1, 2, 3, 0, 8, 15], (9, 1)),
}


# --- A plain engine: one game, square by square ----------------------------------------------------------------------


class Plain:
    def __init__(self, n):
        self.n, self.mover = n, 1
        self.board = [0] * (n * n)  # 1 black, 2 white
        a, b = n // 2 - 1, n // 2
        for row, col, colour in ((a, a, 2), (b, b, 2), (a, b, 1), (b, a, 1)):
            self.board[n * row + col] = colour
        self.passed = False

    def flips(self, square, mover):
        if self.board[square]:
            return []
        found = []
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                row, col, line = square // self.n + dr, square % self.n + dc, []
                while 0 <= row < self.n and 0 <= col < self.n and self.board[self.n * row + col] == 3 - mover:
                    line.append(self.n * row + col)
                    row, col = row + dr, col + dc
                if line and 0 <= row < self.n and 0 <= col < self.n and self.board[self.n * row + col] == mover:
                    found += line
        return found

    def legal(self):
        return [s for s in range(self.n**2) if self.flips(s, self.mover)]

    def play(self, square):
        flipped = self.flips(square, self.mover)
        assert flipped
        for s in (square, *flipped):
            self.board[s] = self.mover
        self.mover = 3 - self.mover
        self.passed = not self.legal()
        if self.passed:
            self.mover = 3 - self.mover
            if not self.legal():
                self.passed, self.mover = False, 3 - self.mover
        return flipped


def disagreements(n, moves):
    """(positions compared, those in which anything differs) between the engine and the plain one on these games."""
    seen, compared, wrong = engine.replay(n, moves), 0, 0
    for g, game in enumerate(moves.tolist()):
        plain = Plain(n)
        for t, square in enumerate(game):
            if square == engine.NONE:
                wrong += bool(plain.legal()) or seen.played[g, t:].any()
                break
            flipped = plain.play(square)
            legal = plain.legal()
            same = (
                seen.board[g, t].tolist() == plain.board
                and np.flatnonzero(seen.flipped[g, t]).tolist() == sorted(flipped)
                and np.flatnonzero(seen.legal[g, t]).tolist() == legal
                and bool(seen.passed[g, t]) == plain.passed
                and (not legal or bool(seen.white[g, t]) == (plain.mover == 2))
            )
            compared, wrong = compared + 1, wrong + (not same)
    return compared, wrong


@pytest.mark.parametrize(("n", "games"), [(4, 100), (6, 60), (8, 30)])
def test_engine_agrees_with_the_plain_one(n, games):
    compared, wrong = disagreements(n, engine.random_games(n, 5, 0, games))
    assert compared > 1000
    assert wrong == 0


def test_random_games_end_only_when_nobody_can_move():
    moves = engine.random_games(4, 1, 0, 300)
    played = moves != engine.NONE
    assert (played[:, :-1] >= played[:, 1:]).all()
    seen, last = engine.replay(4, moves), played.sum(1) - 1
    assert not seen.legal[np.arange(300), last].any()
    assert (seen.legal.any(2) == np.pad(played[:, 1:], ((0, 0), (0, 1)))).all()


@pytest.mark.parametrize(
    ("n", "counts"),
    [
        (8, [1, 4, 12, 56, 244, 1396, 8200, 55092]),
        (6, [1, 4, 12, 56, 244, 1364, 7604, 47740]),
        (4, [1, 4, 12, 44, 128, 436, 1296, 3784, 9756, 22152, 41296, 58912, 53580]),
    ],
)
def test_A1_perft(n, counts):
    assert [len(moves) for moves, _ in engine.every_line(n, len(counts) - 1)] == counts


def test_A2_all_4x4_games_and_boards():
    games = engine.all_games(4)
    assert len(games) == 60060
    assert len(np.unique(games, axis=0)) == 60060
    boards = [g.colours() for _, g in engine.every_line(4, 12)]
    assert len(np.unique(np.concatenate(boards), axis=0)) == 51943
    winner = engine.replay(4, games)
    last = (games >= 0).sum(1) - 1
    final = winner.board[np.arange(60060), last]
    margin = (final == 1).sum(1) - (final == 2).sum(1)
    assert [(margin > 0).sum(), (margin == 0).sum(), (margin < 0).sum()] == [24632, 5312, 30116]


@pytest.mark.parametrize("n", [4, 6, 8])
def test_A3_passes_and_early_ends(n):
    moves, legal = PASS_LINES[n]
    seen = engine.replay(n, np.array([moves]))
    assert np.flatnonzero(seen.legal[0, -1]).tolist() == legal
    assert seen.passed[0].tolist() == [False] * (len(moves) - 1) + [True]
    assert seen.white[0, -1]
    moves, discs = EARLY_ENDS[n]
    seen = engine.replay(n, np.array([moves]))
    assert not seen.legal[0, -1].any()
    assert ((seen.board[0, -1] == 1).sum(), (seen.board[0, -1] == 2).sum()) == discs


@pytest.fixture(scope="module")
def many():
    """10,000 random 8x8 games, replayed; tolerances are four standard errors."""
    moves = engine.random_games(8, 7, 0, 10000)
    return moves, engine.replay(8, moves)


def around(on):
    """Squares [..., 64] that touch one of these."""
    x = np.pad(on.reshape(*on.shape[:-1], 8, 8), ((0, 0),) * (on.ndim - 1) + ((1, 1), (1, 1)))
    rows = x[..., :-2, :] | x[..., 1:-1, :] | x[..., 2:, :]
    return (rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]).reshape(on.shape)


def test_A4_A5_A7_statistics_of_random_games(many):
    moves, seen = many
    assert (moves[:, -1] >= 0).mean() == pytest.approx(0.99055, abs=0.004)
    assert seen.passed.any(1).mean() == pytest.approx(0.3451, abs=0.019)
    asked = seen.legal.any(2)
    n_legal = seen.legal.sum(2)
    assert np.log(n_legal[asked]).mean() == pytest.approx(2.0103, abs=0.005)
    outside = ~np.isin(np.arange(64), engine.centre(8))
    empty = (seen.board == 0) & asked[..., None]
    assert (n_legal[asked] / 60).mean() == pytest.approx(0.1436, abs=0.01)
    assert seen.legal[asked].mean(0).max() == pytest.approx(0.1588, abs=0.01)
    assert (n_legal[asked] / (empty & outside).sum(2)[asked]).mean() == pytest.approx(0.4088, abs=0.01)
    theirs = np.where(seen.white, 1, 2)[..., None]  # of the side that does not move
    for discs, share in (
        (seen.board > 0, 0.4884),
        (seen.board == theirs, 0.6229),
    ):  # a random empty square beside these
        beside = empty & around(discs)
        assert (n_legal[asked] / beside.sum(2)[asked]).mean() == pytest.approx(share, abs=0.01)


def test_move_uniform_choice_is_uniform():
    """Of the four first moves, and of those after the first reply, each comes as often as it should."""
    moves = engine.random_games(4, 3, 0, 40000)
    first = np.unique(moves[:, 0], return_counts=True)[1]
    assert len(first) == 4
    assert abs(first - 10000).max() < 4 * 87
    for a in np.unique(moves[:, 0]):
        second = np.unique(moves[moves[:, 0] == a, 1], return_counts=True)[1]
        assert len(second) == 3
        assert abs(second - second.mean()).max() < 4 * 60


def test_A17_a_game_is_the_same_in_every_batch_and_worker(monkeypatch):
    whole = engine.random_games(6, 11, 0, 300)
    assert np.array_equal(engine.random_games(6, 11, 123, 50), whole[123:173])
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda first: engine.random_games(6, 11, first, 150), (0, 150)))
    assert np.array_equal(np.concatenate(halves), whole)
    monkeypatch.setattr(engine, "BATCH", 70)
    assert np.array_equal(engine.random_games(6, 11, 0, 300), whole)
    assert np.array_equal(engine.replay(6, whole).board[290:], engine.replay(6, whole[290:]).board)
    assert (engine.random_games(6, 12, 0, 300) != whole).any(1).mean() > 0.9


def test_legal_moves_of_any_board_are_those_of_the_games():
    seen = engine.replay(6, engine.random_games(6, 2, 0, 100))
    mine, theirs = (np.where(seen.white, a, b) for a, b in ((2, 1), (1, 2)))
    found = engine.legal_moves(
        (seen.board == mine[..., None]).reshape(-1, 36), (seen.board == theirs[..., None]).reshape(-1, 36)
    )
    asked = seen.legal.any(2).reshape(-1)
    assert np.array_equal(found[asked], seen.legal.reshape(-1, 36)[asked])


# --- The task --------------------------------------------------------------------------------------------------------


def test_A6_tokens():
    task = Othello(8, "moves", 1, 0.0, 1)
    assert task.token_of[[26, 29, 34, 37, 63]].tolist() == [27, 28, 33, 34, 60]
    assert task.square_of[task.token_of[task.square_of[1:]]].equal(task.square_of[1:])
    assert (task.d_vocab, task.n_ctx, task.d_out) == (61, 59, 61)
    batch = SIX.split(0).all
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert torch.equal(batch.weight > 0, batch.targets > 0)
    assert isinstance(SIX, Task)
    assert torch.equal(
        SIX.encode(SIX.square_of[torch.cat([batch.inputs, batch.targets[:, -1:]], 1)]).inputs, batch.inputs
    )


@pytest.mark.parametrize("n", [4, 6, 8])
def test_A18_after_a_pass_the_frames_part(n):
    task = Othello(n, "moves", 1, 0.0, 1)
    inputs = task.encode(torch.tensor([PASS_LINES[n][0]])).inputs
    last = len(PASS_LINES[n][0]) - 1
    found = task.latents(inputs)
    board, parity = found["board"].values[0], found["parity"].values[0]
    assert torch.equal(board[:last], parity[:last])
    occupied = board[last] > 0
    assert torch.equal(board[last][occupied], 3 - parity[last][occupied])
    assert found["to_move"].values[0, last - 1 : last + 1].tolist() == [1, 1]  # White played it and plays again
    assert (found["board"].values[0, last + 1 :] == -1).all()


def test_latents_by_hand_on_the_first_move():
    found = Othello(4, "moves", 1, 0.0, 1).latents(torch.tensor([[2]]))  # Black plays square 1
    assert found["colour"].values[0, 0].reshape(4, 4).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 2, 0], [0] * 4]
    assert found["board"].values[0, 0].reshape(4, 4).tolist() == [[0, 2, 0, 0], [0, 2, 2, 0], [0, 2, 1, 0], [0] * 4]
    assert found["flipped"].values[0, 0].nonzero().flatten().tolist() == [5]
    assert found["legal"].values[0, 0].nonzero().flatten().tolist() == [0, 2, 8]
    assert found["to_move"].values.item() == 1


def test_latents_know_only_the_past():
    inputs = SIX.split(0).all.inputs[:20]
    cut = inputs.clone()
    cut[:, 12:] = 0
    for name, latent in SIX.latents(inputs).items():
        assert torch.equal(SIX.latents(cut)[name].values[:, :12], latent.values[:, :12]), name


def test_held_out_openings_are_never_trained_on():
    batch = SIX.sample(400, generator(0, "batch"))
    assert len(batch) == 400
    assert not SIX.unseen(batch.inputs).any()
    share = Othello(6, "moves", 4000, 0.2, 5).split(0)
    assert SIX.unseen(share.all.inputs).double().mean() == pytest.approx(0.2, abs=0.05)
    assert torch.equal(SIX.sample(50, generator(0, "batch")).inputs, batch.inputs[:50])
    split = LEAVES.split(0)
    openings = [set(map(tuple, split.all.inputs[rows, :6].tolist())) for rows in (split.train, split.test)]
    assert not openings[0] & openings[1]
    assert len(split.train) + len(split.test) == 60060
    assert not LEAVES.unseen(LEAVES.sample(500, generator(0, "b")).inputs).any()


def test_floors_are_exact():
    """4 x 4: 0.8850 nats when games are alike, 0.8328 when moves are; log of the number of legal moves otherwise."""
    table = LEAVES.split(0).all
    assert ((LEAVES.entropy(table.inputs) * table.weight).sum() / table.weight.sum()).item() == pytest.approx(
        0.8850, abs=5e-5
    )
    moves = Othello(4, "moves", 60060, 0.2, 6)
    seen = engine.replay(4, engine.all_games(4))
    # The probability of a game is the product of 1 / legal moves (4 at the start).
    n_legal = np.maximum(seen.legal.sum(2), 1)
    p = np.exp(-np.log(n_legal[:, :-1]).sum(1)) / 4
    assert p.sum() == pytest.approx(1)
    length = (engine.all_games(4) >= 0).sum(1)
    floor = (p * moves.entropy(table.inputs).numpy().sum(1)).sum() / (p * (length - 1)).sum()
    assert floor == pytest.approx(0.83279, abs=1e-5)


@pytest.mark.parametrize("latent", ["board", "legal"])
def test_counterfactuals_change_the_latent_and_ask_where_it_changed(latent):
    batch = SIX.sample(60, generator(0, "x"))
    new = SIX.counterfactual(batch, latent, generator(1, "x"))
    rows, at = torch.arange(60), new.weight.argmax(1)
    assert (new.weight.sum(1) == 1).all()
    before, after = (SIX.latents(b.inputs)[latent].values[rows, at] for b in (batch, new))
    assert (before != after).any(1).all()
    asked = new.targets[rows, at]
    assert SIX.legal_tokens(new.inputs)[rows, at].gather(1, asked[:, None]).all()
    if latent == "legal":
        assert not SIX.legal_tokens(batch.inputs)[rows, at].gather(1, asked[:, None]).any()
    elif latent == "board":
        assert ((before != after).sum(1) < 8).double().mean() > 0.8
    assert torch.equal(new.inputs, SIX.counterfactual(batch, latent, generator(1, "x")).inputs)


def test_transpositions_are_different_ways_to_the_same_board():
    first, second, at = SIX.transpositions(40, generator(0, "t"))
    rows = torch.arange(40)
    assert (first != second).any(1).all()
    a, b = SIX.latents(first), SIX.latents(second)
    for name in ("board", "colour", "legal"):
        assert torch.equal(a[name].values[rows, at], b[name].values[rows, at])


def connected(n, board):
    """Whether every disc touches, through others, the disc of the centre; square by square."""
    todo, seen = [engine.centre(n)[0]], set()
    while todo:
        s = todo.pop()
        if s not in seen and board[s]:
            seen.add(s)
            todo += [
                s + n * dr + dc
                for dr in (-1, 0, 1)
                for dc in (-1, 0, 1)
                if 0 <= s // n + dr < n and 0 <= s % n + dc < n
            ]
    return len(seen) == sum(map(bool, board))


@pytest.mark.parametrize("change", CHANGES)
def test_edits_change_one_square_and_the_legal_set(change):
    cases = SIX.edits(50, change, generator(0, "e"))
    rows = torch.arange(50)
    assert ((cases.before != cases.after).sum(1) == 1).all()
    assert (cases.before[rows, cases.square] != cases.after[rows, cases.square]).all()
    assert torch.equal(SIX.latents(cases.inputs)["board"].values[rows, cases.at], cases.before)
    assert (cases.legal_before != cases.legal_after).any(1).all()
    assert cases.legal_after.any(1).all()
    assert torch.equal(SIX.legal_on(cases.after), cases.legal_after)
    if change != "flip":
        assert not torch.isin(cases.square, torch.tensor(engine.centre(6))).any()
        assert (cases.after[rows, cases.square] == 0).all()
    apart = [not connected(6, board) for board in cases.after.tolist()]
    assert all(apart) if change == "unnatural" else not all(apart)
    inputs, legal = SIX.follow(cases, 2, generator(0, "f"))
    assert torch.equal(legal[:, 0], cases.legal_after[:, SIX.square_of[1:]])
    assert cases.legal_after[rows, SIX.decode(inputs)[rows, cases.at + 1]].all()
    assert torch.equal(inputs.scatter(1, cases.at[:, None] + torch.tensor([1, 2]), 0), cases.inputs)


def test_A8_a_perfect_model_without_an_edit_has_the_null_error():
    task = Othello(8, "moves", 1, 0.0, 1)
    cases = task.edits(4000, "flip", generator(0, "e"))
    tied = cases.legal_before + 0.1 * torch.rand(cases.before.shape, generator=generator(0, "ties"))
    null = tools.top_n_error(tied, cases.legal_after)
    assert null.mean().item() == pytest.approx(3.07, abs=0.1)
    overlap = (cases.legal_before & cases.legal_after).sum(1) / cases.legal_after.sum(1)
    assert overlap.mean().item() == pytest.approx(0.880, abs=0.01)
    assert (cases.legal_before ^ cases.legal_after).sum(1).double().mean().item() == pytest.approx(1.985, abs=0.1)


@pytest.mark.parametrize(
    ("n", "games", "board", "colour"),  # ply, bag, signed bag and, where it is small, (ply, square)
    [
        (4, 1500, [0.614, 0.795, 0.921, 0.804], [0.624, 0.822, 0.830, 0.925]),
        (6, 600, [0.611, 0.759, 0.877], [0.611, 0.762, 0.762]),
        (8, 400, [0.624, 0.757, 0.862], [0.624, 0.757, 0.756]),
    ],
)
def test_A9_input_linear_controls(n, games, board, colour):
    task, tool = Othello(n, "moves", 1, 0.0, 1), measures.BoardProbes(frames=("board", "colour"), n_games=games)
    data = measures.positions(task, games, 0)
    for i, name in enumerate(measures.CONTROLS[: len(board)]):
        found = tool.right(measures.control_inputs(task, data, name), data).mean((-1, -2))
        assert found.tolist() == pytest.approx([board[i], colour[i]], abs=0.01), name


def test_A9_the_commonest_class_by_square_and_ply():
    _, majority = measures.control_scores(measures.BoardProbes(n_games=600), Othello(6, "moves", 1, 0.0, 1))
    assert majority[0].item() == pytest.approx(0.6117, abs=0.01)


# --- Tools on a network whose board is planted -----------------------------------------------------------------------


class Planted(Tapped):
    """Two layers that hold the true board of the side to move as orthogonal directions, and play by what they hold."""

    n_layers = 2

    def __init__(self, task, blind=False):
        super().__init__()
        self.task, self.blind, self.spec = task, blind, SPEC
        d = 3 * task.n**2
        self.register_buffer("D", torch.linalg.qr(torch.randn(d, d, generator=generator(0, "D")))[0])

    def forward(self, tokens, tap=no_tap):
        seen = engine.replay(self.task.n, self.task.decode(tokens).numpy(), strict=False)
        board = self.task._latents(seen)["board"].values.clamp_min(0)
        x = (held := F.one_hot(board, 3).float().flatten(2)) @ self.D
        for layer in range(2):
            x = x + tap("attn_out", layer, torch.zeros_like(x))
            tap("post", layer, held)
            x = tap("resid_post", layer, x)
        return self.play(board) if self.blind else self.unembed(x)

    def unembed(self, x):
        return self.play((x @ self.D.T).unflatten(-1, (-1, 3)).argmax(-1))

    def play(self, held):
        legal = self.task.legal_on(held.flatten(0, 1)).unflatten(0, held.shape[:2])[..., self.task.square_of[1:]]
        return torch.cat([torch.full((*held.shape[:2], 1), -30.0), 30.0 * legal.float() - 30], -1)

    def example_input(self):
        return torch.zeros(1, 3, dtype=torch.long)


SPEC = TransformerSpec(n_layers=2, n_heads=2, d_model=32, d_head=16, d_mlp=64, act="gelu", norm="LN")


@pytest.fixture(scope="module")
def planted():
    return Snapshot(0, Planted(SIX), SIX, SIX.split(0))


@pytest.fixture(scope="module")
def untrained():
    return Snapshot(0, SPEC.build(SIX, generator(0, "init")), SIX, SIX.split(0))


def test_a_perfect_network_makes_no_mistake_and_reaches_the_floor(planted, untrained):
    found = measures.LegalMoves()(planted)
    for subset in ("all", "seen", "unseen"):
        assert found[f"{subset}_illegal_top1"] == 0
        assert found[f"{subset}_illegal_mass"] < 1e-9
        assert found[f"{subset}_top_n_error"] == 0
        assert abs(found[f"{subset}_excess_loss"]) < 1e-6  # equal logits on legal moves: log |legal| at every position
    null = measures.LegalMoves()(untrained)
    assert null["all_illegal_top1"] > 0.5
    assert null["all_excess_loss"] > 1
    assert set(measures.LensMoves(20)(untrained)) == {"lens_illegal_top1", "lens_top_n_error"}


def test_probes_find_a_planted_board_and_no_other(planted, untrained):
    probes = measures.BoardProbes(frames=("board", "colour"), n_games=120)
    found = probes(planted)
    accuracy = found["accuracy"].values
    assert (accuracy[0] > 0.999).all()  # board
    assert (found["occupied"].values[0] > 0.999).all()
    assert (accuracy[1] < 0.85).all()  # colour: only what parity and passes leave
    assert found["gain"].values[0] == pytest.approx(1 - found["controls"].values[0].max(), abs=2e-3)
    shuffled = dataclasses.replace(probes, labels="shuffled", frames=("board",))(planted)
    assert (shuffled["accuracy"].values <= shuffled["majority"].values[:, None] + 0.02).all()
    null = dataclasses.replace(probes, frames=("board",))(untrained)
    assert (null["gain"].values < 0).all()
    assert null["accuracy"].values == pytest.approx(null["untrained"].values, abs=0.03)
    by_ply = found["accuracy_by_ply"].values[0]
    assert np.nanmin(by_ply) > 0.99
    mlp = measures.BoardProbes(frames=("board",), kind="mlp", n_games=30, hidden=8, steps=60)(planted)
    assert (mlp["accuracy"].values > 0.85).all()


def test_geometry_of_a_board_held_as_mine_and_theirs(planted, untrained):
    found = measures.ProbeGeometry(n_games=200)(planted)
    assert (found["even_odd"].values < -0.95).all()
    assert (abs(found["mine_empty"].values) < 0.25).all()
    assert (abs(measures.ProbeGeometry(n_games=200)(untrained)["even_odd"].values) < 0.6).all()


def test_edits_of_a_planted_board_are_obeyed(planted):
    found = measures.Interventions(n_cases=20, n_games=100, later=1)(planted)
    assert found["best_error"].values.tolist() == [0] * 4
    assert found["null_error"] > 2
    assert found["null_changed"] < 0.5
    # `add` by one full step between class means, at the last layer: every case obeys.
    at = {"operator": 1, "first_layer": 1, "scale": 1}
    assert found["error"].values[tuple(at.values())] == 0
    assert found["changed"].values[tuple(at.values())] == 1
    assert found["random_error"].values[1, 1] == pytest.approx(found["null_error"], abs=0.5)
    assert found["persistence"].values[1, 0] == 0
    # This network reads the board afresh from the moves: nothing persists.
    assert found["persistence"].values[1, 1] == found["null_persistence"].values[1]
    # One that does not use what it holds cannot be edited.
    blind = Snapshot(0, Planted(SIX, blind=True), SIX, planted.split)
    unmoved = measures.Interventions(n_cases=20, n_games=100, later=0, operators=("add",))(blind)
    assert (unmoved["error"].values == unmoved["null_error"]).all()


def test_an_mlp_probe_can_be_edited_through(planted):
    tried = measures.Interventions(
        n_cases=10, n_games=60, later=0, operators=("gradient",), hidden=8, steps=100, scales=(3.0,)
    )(planted)
    assert tried["best_error"].values[0] < 0.5 * tried["null_error"]


def test_erasing_and_unnatural_boards_are_obeyed_too(planted):
    for change in ("erase", "unnatural"):
        found = measures.Interventions(change=change, n_cases=12, n_games=100, later=0, operators=("add",))(planted)
        assert found["best_error"].values[0] == 0
        assert found["null_error"] > 0.5


def test_saliency_is_what_the_rules_say(planted, untrained):
    found = measures.Saliency(1, n_cases=15, n_games=200, scale=1.0)(planted)
    assert found["auroc"] == 1
    assert found["rank_correlation"] > 0.5
    assert measures.Saliency(1, n_cases=15, n_games=200)(untrained)["auroc"] < 0.8


def test_path_independence(planted, untrained):
    found = measures.PathIndependence(40)(planted)
    assert (found["disagreement"], found["variation"], found["top_n_overlap"]) == (0, 0, 1)
    assert found["other_variation"] > 0.3
    assert measures.PathIndependence(40)(untrained)["variation"] > 0.01


def test_A10_labels_as_features_cover_and_reconstruct():
    data = measures.positions(SIX, 60, 0)
    properties = features.board_properties(data)
    labels = properties.float() * torch.linspace(0.5, 2, properties.shape[1])
    covered, chance, rebuilt = features.square_scores(labels, properties, data.test)
    assert (covered, rebuilt) == (1, 1)
    rate = properties[data.test].double().mean(0)
    assert chance == pytest.approx((2 * rate / (1 + rate))[rate > 0].mean().item())
    mixed = labels[torch.randperm(len(labels), generator=generator(0, "mix"))]
    covered, _, rebuilt = features.square_scores(mixed, properties, data.test)
    assert covered < chance + 0.02
    assert rebuilt < 0.05


def test_square_scores_do_not_depend_on_the_batch_they_are_summed_in(monkeypatch):
    data = measures.positions(SIX, 40, 0)
    properties = features.board_properties(data)
    x = features.played_by_sides(SIX, data) + torch.rand(1, 1, generator=generator(0, "x"))
    whole = features.square_scores(x, properties, data.test)
    monkeypatch.setattr(features, "ROWS", 100)
    assert features.square_scores(x, properties, data.test) == whole


def test_a_dictionary_finds_the_squares_of_a_planted_board():
    """Neurons that are the board itself: exactly 1. A dictionary of the planted directions, a third of which are on at
    once: well above its controls. Shuffled boards: at chance and 0."""
    snap = Snapshot(0, Planted(FOUR), FOUR, FOUR.split(0))
    tool = features.BoardDictionary(1, d_sae=32, k=9, lr=3e-3, steps=800, batch_size=256, n_games=300)
    found = tool(snap)
    covered, rebuilt = (
        dict(zip(features.FEATURES, found[name].values, strict=True)) for name in ("coverage", "reconstruction")
    )
    assert covered["neurons"] == rebuilt["neurons"] == 1
    assert covered["dictionary"] > 0.85
    assert rebuilt["dictionary"] > 0.7
    assert found["fvu"] < 0.02
    for control in ("untrained", "moves"):
        assert covered["dictionary"] > covered[control] + 0.1
        assert rebuilt["dictionary"] > rebuilt[control] + 0.3
    null = dataclasses.replace(tool, labels="shuffled", steps=10)(snap)
    assert (null["coverage"].values < null["chance"] + 0.02).all()
    assert (null["reconstruction"].values < 0.02).all()


def test_a_dictionary_knows_where_it_belongs(planted, untrained, tmp_path):
    sae = features.BoardDictionary(1, d_sae=32, k=4, steps=5, batch_size=64, n_games=30).fit(untrained)
    load(save(sae, tmp_path), untrained, ("resid_post", 1))
    with pytest.raises(UserError, match=r"not blocks\.0\.hook_resid_post"):
        load(tmp_path, untrained, ("resid_post", 0))
    with pytest.raises(UserError, match="belongs to checkpoint"):
        load(tmp_path, planted)


def test_A11_erasing_a_square_leaves_no_linear_trace():
    data = measures.positions(SIX, 150, 0)
    x, y = measures.control_inputs(SIX, data, "signed_bag").double(), data.labels["board"][:, 0]
    erased = fit_eraser(x, y)(x)
    means = torch.stack([erased[y == c].mean(0) for c in range(3)])
    assert (means - means[0]).abs().max() < 1e-6
    majority = (y == y.mode().values).double().mean()
    found = (fit(erased, y, "logistic", 1e-3).predict(erased)[:, 0] == y).double().mean()
    assert found.item() == pytest.approx(majority.item(), abs=1e-3)


def test_top_n_error_by_hand():
    legal = torch.tensor([[True, True, False, False]] * 3)
    logits = torch.tensor([[3.0, 2, 1, 0], [3.0, 1, 2, 0], [0.0, 1, 2, 3]])
    assert tools.top_n_error(logits, legal).tolist() == [0, 2, 4]
    before = torch.tensor([[True, False, True, False]] * 3)
    assert tools.changed_score(logits, before, legal).tolist() == [1, 0, 0]
    uniform = torch.tensor([[0.0, 0, -40, -40]])
    assert tools.kl_to_uniform(uniform, legal[:1]).item() == pytest.approx(0, abs=1e-6)
    assert tools.kl_to_uniform(torch.tensor([[40.0, 0, 0, 0]]), legal[:1]).item() == pytest.approx(
        math.log(2), abs=1e-6
    )


def test_everything_runs_over_checkpoints(tmp_path):
    experiment = Experiment(
        name="tiny",
        seed=0,
        task=Othello(4, "moves", 60, 0.2, 4),
        model=SPEC,
        optim=OptimSpec("adamw", lr=3e-3, weight_decay=0.01),
        loss="cross_entropy_float32",
        train=TrainSpec(steps=60, checkpoints=("every:30",), eval_every=30, batch_size=32, threads=1),
    )
    run = train(experiment, tmp_path / "run", progress=False)
    moves = run.map(measures.LegalMoves())
    assert moves.all_excess_loss.values[-1] < moves.all_excess_loss.values[0] - 0.5
    probes = run.map(measures.BoardProbes(n_games=50))
    assert probes.accuracy.dims == ("step", "frame", "layer")
    assert list(probes.frame.values) == ["board", "colour", "parity"]
    for tool in (
        measures.ProbeGeometry(n_games=60),
        measures.Interventions(n_cases=6, n_games=60, later=1, operators=("add",)),
        measures.Saliency(0, n_cases=6, n_games=60),
        measures.PathIndependence(20),
        features.BoardFeatures(1, n_games=60),
        features.BoardDictionary(1, d_sae=32, k=4, steps=20, batch_size=64, n_games=60),
        measures.LensMoves(20),
    ):
        assert run.map(tool).sizes["step"] == 3


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Othello(5, "moves", 10, 0.2, 4), "n=5: the board must be 4, 6 or 8"),
        (lambda: Othello(10, "moves", 10, 0.2, 4), "n=10: the board must be 4, 6 or 8"),
        (lambda: Othello(6, "leaves", None, 0.2, 4), "only n=4 allows"),
        (lambda: Othello(6, "leafs", None, 0.2, 4), 'did you mean "leaves"'),
        (lambda: Othello(4, "moves", 70000, 0.2, 4), "only 60,060 different games"),
        (lambda: Othello(4, "leaves", 100, 0.2, 4), "give null"),
        (lambda: Othello(6, "moves", 10, 1.0, 4), r"outside \[0, 1\)"),
        (lambda: Othello(6, "moves", 10, 0.2, 40), "an opening has 1 to 32 moves"),
        (lambda: engine.all_games(6), "only the 4 x 4"),
        (lambda: engine.replay(8, np.zeros((1, 61), int)), "at most 60 moves"),
        (lambda: SIX.latents(torch.ones(1, 40, dtype=torch.long)), "at most 31 inputs"),
        (lambda: SIX.latents(torch.full((1, 3), 99)), "token 99 arrived"),
        (lambda: measures.BoardProbes(frames=("mine",)), "accepted are board, colour, parity"),
        (lambda: measures.BoardProbes(kind="svm"), "accepted are"),
        (lambda: features.BoardDictionary(1, labels="shufled"), 'did you mean "shuffled"'),
        (lambda: features.BoardDictionary(1, d_sae=8, k=9), "at most d_sae=8 latents"),
        (lambda: measures.Interventions(operators=("ad",)), 'did you mean "add"'),
        (lambda: SIX.edits(3, "flp", generator(0, "e")), 'did you mean "flip"'),
        (lambda: SIX.counterfactual(SIX.split(0).all, "ply", generator(0, "c")), "accepted are board, legal"),
        (lambda: SIX.show(torch.zeros(3, dtype=torch.long)), "no move was played"),
    ],
)
def test_mistakes_are_told(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_an_illegal_move_is_named_with_its_reason_and_the_board():
    line = PASS_LINES[8][0]
    with pytest.raises(UserError) as error:
        engine.replay(8, np.array([line, [*line[:7], 3]]))
    assert "move 8 of game 1 is d1 (square 3), which is illegal: it flips nothing; White may play" in str(error.value)
    assert "3 O O X X" in str(error.value)
    for moves, said in (([19, 19], "a black disc lies there"), ([*EARLY_ENDS[8][0], 0], "the game is over")):
        with pytest.raises(UserError, match=said):
            engine.replay(8, np.array([moves]))
    with pytest.raises(UserError, match="game 0 goes on after -1"):
        engine.replay(8, np.array([[19, -1, 18]]))
    assert engine.replay(8, np.array([[*line[:7], 3]]), strict=False).played[0].tolist() == [True] * 7 + [False]


def test_a_run_without_a_board_is_refused():
    task = ModularArithmetic(p=7, operation="x+y", frac_train=0.5)
    snap = Snapshot(0, SPEC.build(task, generator(0, "init")), task, task.split(0))
    for measure in (
        measures.LegalMoves(),
        measures.BoardProbes(),
        measures.Saliency(0),
        measures.PathIndependence(),
        features.BoardFeatures(0),
        features.BoardDictionary(0),
    ):
        with pytest.raises(UserError, match="ModularArithmetic has no board"):
            measure(snap)


def test_a_board_as_text():
    assert SIX.show(SIX.token_of[[8]]).splitlines()[0].split() == list("abcdef")
    assert engine.render(np.array([0, 1, 2, 0] * 4), np.arange(16) == 0).splitlines()[1] == "1 * X O ."
