"""Reading the board more closely: with how large a probe, how long after a change, before or after the move.

Probes, games, frames and controls are those of board.py: layer l is the residual stream after block l, position t the
one that has just read the (t + 1)-th move; probes are fitted on games with openings that were trained on and scored on
held-out openings.

Sources: Li et al. 2023 (arXiv 2210.13382), Nanda et al. 2023 (arXiv 2309.00941). Came from: board.py. Read next:
board_circuit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from toylab.errors import one_of, require
from toylab.interp.board import MINE, THEIRS, mine_directions, top_n_error
from toylab.interp.probes import fit
from toylab.measures.board import (
    CONTROLS,
    BoardProbes,
    Positions,
    control_inputs,
    control_scores,
    othello,
    positions,
    streams,
    untrained,
    untrained_scores,
)
from toylab.snapshot import Labelled, Snapshot
from toylab.tasks.othello import FRAMES, Othello

LINEAR = 0  # hidden units of a probe that has none
DIRECTIONS = ("probe", "means", "board")
ORDERS = ("board first", "same block", "moves first", "neither")
Results = Mapping[str, float | Tensor | Labelled]


def probes(frame: str, hidden: tuple[int, ...], n_games: int, steps: int, seed: int) -> tuple[BoardProbes, ...]:
    """One frame read by each of these sizes of probe."""
    size = {"n_games": n_games, "seed": seed, "steps": steps, "shared": True}
    return tuple(
        BoardProbes((frame,), kind="mlp" if units else "ridge", hidden=units or 1, **size)  # type: ignore[arg-type]
        for units in hidden
    )


@dataclass(frozen=True)
class ProbeCapacity:
    """Accuracy against the size of the probe: a small one that reads the board has little room to work it out.

    accuracy [frame, hidden, layer] and untrained [frame, hidden, layer] (a network of the same shape before training),
    hidden = 0 being the linear probe, else the units of one hidden layer that all squares share (Li et al.: 2 to 512).
    moves [frame, hidden]: the same probe on the moves themselves, the better of two ways to write them (the squares of
    each side, and which square was played at which ply); majority [frame]: the commonest class by square and ply.

    A trained network that holds the board lets a small probe do what a large one cannot do with the moves. Known
    exactly: of a board held linearly the linear probe reads everything. Hewitt and Liang 2019 on why probes need such
    controls. Cost: 50 s on one core for 3 layers of 128, most of it for the largest size.
    """

    frames: tuple[str, ...] = ("board", "colour")
    hidden: tuple[int, ...] = (LINEAR, 2, 8, 32, 128)
    n_games: int = 300
    steps: int = 400
    seed: int = 0

    def __post_init__(self):
        for frame in self.frames:
            one_of("frame", frame, FRAMES)
        require(min(self.hidden) >= 0, f"hidden={self.hidden}: {LINEAR} (a linear probe) or more units")

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        x = streams(snap.model, data)
        rows = [probes(frame, self.hidden, self.n_games, self.steps, self.seed) for frame in self.frames]
        dims, coords = ("frame", "hidden", "layer"), {"frame": list(self.frames), "hidden": list(self.hidden)}

        def table(value: Any) -> Tensor:
            return torch.stack([torch.stack([value(probe) for probe in row]) for row in rows])

        return {
            "accuracy": Labelled(table(lambda probe: probe.right(x, data).mean((0, -1, -2))), dims, coords),
            "untrained": Labelled(table(lambda p: untrained_scores(p, task, snap.model.spec)[0]), dims, coords),
            "moves": Labelled(table(lambda probe: _from_moves(probe, task)), dims[:2], coords),
            "majority": Labelled(torch.cat([control_scores(row[0], task)[1] for row in rows]), dims[:1], coords),
        }


@lru_cache(maxsize=64)
def _from_moves(probe: BoardProbes, task: Othello) -> Tensor:
    """What a probe of this size reads from the moves, at best."""
    data = positions(task, probe.n_games, probe.seed)
    ways = [probe.right(control_inputs(task, data, name), data).mean() for name in ("signed_bag", "ply_square")]
    return torch.stack(ways).amax()


# --- How long after a change -----------------------------------------------------------------------------------------


def ages(task: Othello, data: Positions) -> Int[Tensor, "n square"]:
    """Plies since each disc was placed or last turned over: 0 for the last move's own, -1 where there is no disc.

    Discs of the start that were never turned count from before the first move.
    """
    latents, n_pos = task.latents(data.inputs), data.inputs.shape[1]
    placed = task.square_of[data.inputs][..., None] == torch.arange(task.n**2)
    now = torch.arange(n_pos)[:, None]
    last = torch.where(placed | (latents["flipped"].values == 1), now, -1).cummax(1).values
    return torch.where(latents["colour"].values > 0, now - last, -1)[data.row]


def mean_by(
    values: Float[Tensor, "*lead n square"], key: Int[Tensor, "n square"], size: int
) -> tuple[Float[Tensor, "*lead key"], Float[Tensor, " key"]]:
    """(mean of the values with key 0 .. size-1, NaN where there is none; how many there are). Key -1 is left out."""
    keys = key.flatten() + 1
    sums = values.new_zeros(*values.shape[:-2], size + 1).index_add_(-1, keys, values.flatten(-2))
    count = torch.bincount(keys, minlength=size + 1).to(values)
    return (sums / count)[..., 1:], count[1:]


@dataclass(frozen=True)
class BoardByAge:
    """Does the network know of a square at once, and does it forget? Accuracy by plies since a disc was last changed.

    accuracy [hidden, layer, age]: of discs (empty squares are left out) that were placed or turned `age` plies ago;
    hidden as in ProbeCapacity. moves [age]: the same of the best linear readout of the moves; discs [age]: how many,
    per position. accuracy_by_ply [hidden, layer, ply], moves_by_ply [ply]: of all squares (Li et al., appendix; sheet
    of small boards). On the fixed draw of the run: illegal_by_ply [ply] and its stderr illegal_stderr [ply].

    Known exactly: a board that is held in full has accuracy 1 at every age. nan where no disc is so old. `moves` takes
    the control with the highest accuracy overall, in its frame. Cost: 6 s on one core for 3 layers of 128.
    """

    hidden: tuple[int, ...] = (LINEAR, 64)
    frame: str = "board"
    n_games: int = 500
    steps: int = 400
    seed: int = 0

    def __post_init__(self):
        one_of("frame", self.frame, FRAMES)
        require(min(self.hidden) >= 0, f"hidden={self.hidden}: {LINEAR} (a linear probe) or more units")

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        x, n_pos = streams(snap.model, data), data.inputs.shape[1]
        readers = probes(self.frame, self.hidden, self.n_games, self.steps, self.seed)
        right = torch.stack([probe.right(x, data)[0] for probe in readers])
        linear = BoardProbes((self.frame,), n_games=self.n_games, seed=self.seed)
        best = CONTROLS[int(control_scores(linear, task)[0].argmax())]
        of_moves = linear.right(control_inputs(task, data, best), data)[0]
        age = ages(task, data)[data.test]
        ply = data.ply[data.test, None].expand_as(age)
        by_age, count = mean_by(right, age, n_pos + 1)
        illegal, stderr = _illegal(snap)
        dims, coords = ("hidden", "layer"), {"hidden": list(self.hidden)}
        return {
            "accuracy": Labelled(by_age, (*dims, "age"), coords),
            "moves": Labelled(mean_by(of_moves, age, n_pos + 1)[0], ("age",)),
            "discs": Labelled(count / len(age), ("age",)),
            "accuracy_by_ply": Labelled(mean_by(right, ply, n_pos)[0], (*dims, "ply"), coords),
            "moves_by_ply": Labelled(mean_by(of_moves, ply, n_pos)[0], ("ply",)),
            "illegal_by_ply": Labelled(illegal, ("ply",)),
            "illegal_stderr": Labelled(stderr, ("ply",)),
        }


def _illegal(snap: Snapshot) -> tuple[Float[Tensor, " ply"], Float[Tensor, " ply"]]:
    """(share of games whose likeliest output after this ply is no legal move, its standard error), held-out or not."""
    task, batch = othello(snap), snap.batch
    asked = batch.weight.cpu() > 0  # type: ignore[union-attr]
    best = snap.logits.cpu().argmax(-1, keepdim=True)
    wrong = ~task.legal_tokens(batch.inputs).gather(-1, best)[..., 0] & asked
    share = wrong.sum(0).double() / asked.sum(0)
    return share, (share * (1 - share) / asked.sum(0)).sqrt()


# --- Where the directions lie ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SquareMap:
    """The directions of the squares as a map: their cosines, and their first two principal components.

    One vector per square, mine against theirs, of three kinds:
      probe  mine_dir = W_mine - W_theirs of a linear probe
      means  mean of the stream where the square is mine, minus where it is theirs
      board  the same means of the board itself, one axis per square and class: the map that neighbours' tendency to be
             of one colour draws without any network
    cosines [kind, layer, square, square]; plane [kind, layer, square, 2] and shares [kind, layer, 2], the projection on
    the first two components over squares and the share of variance in each; signs are such that the largest entry is
    positive. nearness [kind, layer]: Spearman correlation, over pairs of squares, of cosine and minus the distance on
    the board; nearness_untrained [kind, layer].

    Known exactly: for a network that holds the board as orthogonal directions, `means` draws the map of `board`, and
    cosines of `probe` are 0 off the diagonal. Li et al. 2023, Fig. 7 (class vectors of a non-linear probe, there in
    three dimensions); Nanda et al. 2023 (cosines). Cost: 1 s on one core.
    """

    penalty: float = 0.1
    n_games: int = 500
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        found = self.directions(snap.model, data)
        null = self.directions(untrained(task, snap.model.spec, self.seed), data)
        unit = [F.normalize(v, dim=-1) for v in found]
        planes, shares = zip(*map(principal_plane, found), strict=True)
        dims, coords = ("kind", "layer"), {"kind": list(DIRECTIONS)}
        return {
            "cosines": Labelled(torch.stack([v @ v.mT for v in unit]), (*dims, "square", "other"), coords),
            "plane": Labelled(torch.stack(planes), (*dims, "square", "axis"), coords),
            "shares": Labelled(torch.stack(shares), (*dims, "axis"), coords),
            "nearness": Labelled(torch.stack([nearness(v, task.n) for v in found]), dims, coords),
            "nearness_untrained": Labelled(torch.stack([nearness(v, task.n) for v in null]), dims, coords),
        }

    def directions(self, model: Any, data: Positions) -> tuple[Float[Tensor, "layer square d"], ...]:
        """Those of each kind in DIRECTIONS; the board's are repeated for every layer."""
        x, y = streams(model, data), data.labels["board"]
        held = F.one_hot(y, 3).flatten(1).to(x)
        probe = mine_directions(fit(x, y, "ridge", self.penalty))
        return probe, class_contrast(x, y), class_contrast(held[None], y).expand(len(x), -1, -1)


def class_contrast(x: Float[Tensor, "layer n d"], y: Int[Tensor, "n square"]) -> Float[Tensor, "layer square d"]:
    """Mean of x where a square is mine minus where it is theirs; a class that never occurs has mean 0."""
    mine, theirs = ((y == c).to(x) for c in (MINE, THEIRS))
    sides = [torch.einsum("lnd,ns->lsd", x, w) / w.sum(0).clamp_min(1)[:, None] for w in (mine, theirs)]
    return sides[0] - sides[1]


def principal_plane(
    v: Float[Tensor, "layer square d"],
) -> tuple[Float[Tensor, "layer square axis"], Float[Tensor, "layer axis"]]:
    """(coordinates on the first two principal components over squares, share of variance in each)."""
    left, size, _ = torch.linalg.svd(v - v.mean(1, keepdim=True), full_matrices=False)
    plane = left[..., :2] * size[:, None, :2]
    largest = plane.gather(1, plane.abs().argmax(1, keepdim=True))
    return plane * largest.sign(), size[:, :2] ** 2 / (size**2).sum(1, keepdim=True)


def nearness(v: Float[Tensor, "layer square d"], n: int) -> Float[Tensor, " layer"]:
    """Spearman correlation over pairs of squares: cosine of their vectors, minus their distance on the board."""
    unit, square = F.normalize(v.double(), dim=-1), torch.arange(n * n)
    at = torch.stack([square // n, square % n], 1).double()
    first, second = torch.triu_indices(n * n, n * n, 1)
    near = -(at[first] - at[second]).norm(dim=1)
    cosines = (unit[:, first] * unit[:, second]).sum(-1)
    return torch.tensor([stats.spearmanr(row, near).statistic for row in cosines])


# --- The board before the move? --------------------------------------------------------------------------------------


def reading_order(
    board_right: Bool[Tensor, "layer n"], moves_right: Bool[Tensor, "layer n"]
) -> Bool[Tensor, "order n"]:
    """Which of ORDERS each row is: the first layer with a right board against the first with right moves; one that is
    never right comes after the last layer, and both never is "neither"."""
    never = len(board_right)
    first, then = (torch.where(right.any(0), right.int().argmax(0), never) for right in (board_right, moves_right))
    tied = first == then
    return torch.stack([first < then, tied & (first < never), first > then, tied & (first == never)])


@dataclass(frozen=True)
class ReadingOrder:
    """Is the whole board there before the right moves are? On positions of held-out openings.

    board_right [layer]: share of positions in which a linear probe reads every square right; moves_right [layer]: in
    which the lens (the stream after this block, through the final norm and the unembedding) has the legal moves, all
    of them and no other, as its N best. order [order, ply]: share of positions in which the first layer with a right
    board is earlier than, the same as or later than the first with right moves, or neither ever is; the four add up to
    1. overall [order]: over all plies.

    Nanda et al. 2023, section 5 ("MoveFirst"). Known exactly: a network that holds its board from the first block on
    and plays by it is all "same block". The lens is blind to moves that are held in another basis, so "board first" may
    mean "not yet written out". An untrained network is all "neither". Cost: half a second.
    """

    penalty: float = 0.1
    n_games: int = 500
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task, model = othello(snap), snap.model
        data = positions(task, self.n_games, self.seed)
        x = streams(model, data)
        probe = BoardProbes(("board",), penalty=self.penalty, n_games=self.n_games, seed=self.seed)
        board_right = probe.right(x, data)[0].bool().all(-1)
        legal = task.legal_tokens(data.inputs)[data.row][data.test]
        with torch.no_grad():
            logits = model.unembed(x[:, data.test])  # type: ignore[operator]
        moves_right = top_n_error(logits, legal.expand_as(logits)) == 0
        order = reading_order(board_right, moves_right).double()
        ply = F.one_hot(data.ply[data.test], data.inputs.shape[1]).double()
        dims, coords = ("order", "ply"), {"order": list(ORDERS)}
        return {
            "board_right": Labelled(board_right.double().mean(1), ("layer",)),
            "moves_right": Labelled(moves_right.double().mean(1), ("layer",)),
            "by_ply": Labelled(order @ ply / ply.sum(0), dims, coords),
            "overall": Labelled(order.mean(1), dims[:1], coords),
        }


# --- What has just changed -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlippedDiscs:
    """Does the stream say which discs the last move turned over?

    f1 [layer], untrained [layer]: F1 over all squares and held-out positions, from 0 to 1, of linear probes for
    "this disc was turned"; moves: the best of the same probes on the moves themselves; always: that of saying yes
    everywhere, 2r / (1 + r) at rate r. Squares that are never turned (corners) are left out.

    Nanda et al. 2023, section 5 (74.8 to 97.1 % by block at 8 x 8). Probes are LDA, which knows how rare flips are.
    Known exactly: 1 where the stream holds the flips themselves; shuffled flips are at `always` or below. Cost: 1.3 s.
    """

    penalty: float = 1e-3
    n_games: int = 500
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        flipped = turned(task, data)
        inputs = [control_inputs(task, data, name) for name in CONTROLS]
        rate = flipped[data.test].double().mean()
        return {
            "f1": Labelled(self.f1(streams(snap.model, data), flipped, data.test), ("layer",)),
            "untrained": Labelled(_flips_untrained(self, task, snap.model.spec), ("layer",)),
            "moves": max(float(self.f1(x[None], flipped, data.test)) for x in inputs),
            "always": float(2 * rate / (1 + rate)),
        }

    def f1(self, x: Float[Tensor, "layer n d"], y: Int[Tensor, "n square"], test: Tensor) -> Float[Tensor, " layer"]:
        """Of probes fitted on the other rows."""
        said = fit(x[:, ~test], y[~test], "lda", self.penalty).predict(x[:, test])
        true = y[test].double()
        return 2 * (said * true).sum((1, 2)) / (said.sum((1, 2)) + true.sum())


@lru_cache(maxsize=8)
def _flips_untrained(measure: FlippedDiscs, task: Othello, spec: Any) -> Tensor:
    data = positions(task, measure.n_games, measure.seed)
    x = streams(untrained(task, spec, measure.seed), data)
    return measure.f1(x, turned(task, data), data.test)


def turned(task: Othello, data: Positions) -> Int[Tensor, "n square"]:
    """1 where the last move turned a disc over; only squares on which this happens among the rows that probes see."""
    flipped = task.latents(data.inputs)["flipped"].values[data.row]
    return flipped[:, flipped[~data.test].any(0)]
