"""What a network that plays Othello knows of the board: legal moves, probes with controls, edits, path independence.

Every measure here takes snapshots of an Othello task and works under `run.map`. Layer l means the residual stream
after block l (`resid_post`), position t the one that has just read the (t + 1)-th move. Probes are fitted on games
drawn for them, the same at every checkpoint and seed, and scored on openings that they, and the network, never saw.

Sources: Li et al. 2023 (arXiv 2210.13382), Nanda et al. 2023 (arXiv 2309.00941). Came from: tasks/othello.py and
interp/board.py. Read next: board_reading.py (how hard to read, how fresh, in what order), board_circuit.py (by which
parts), board_features.py (by single features).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from toylab.data import generator
from toylab.errors import one_of, require
from toylab.interp.board import (
    OPERATORS,
    Steps,
    board_edit,
    changed_score,
    class_steps,
    empty_directions,
    mine_directions,
    top_n_error,
)
from toylab.interp.lens import logit_lens
from toylab.interp.probe_scores import split_by_group
from toylab.interp.probes import FAMILIES, MLPProbe, Probe, fit, fit_mlp
from toylab.snapshot import Labelled, Snapshot
from toylab.tasks.othello import FRAMES, Edits, Othello

KINDS = (*FAMILIES, "mlp")
CONTROLS = ("ply", "bag", "signed_bag", "ply_square")
Results = Mapping[str, float | Tensor | Labelled]


def othello(snap: Snapshot) -> Othello:
    require(
        isinstance(snap.task, Othello),
        f"{type(snap.task).__name__} has no board: this measure is for runs of an Othello task",
    )
    return snap.task


# --- Moves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LegalMoves:
    """How well the network knows the rules, over all asked positions: {all,seen,unseen}_*, unseen = held-out openings.

    illegal_top1: share of positions whose likeliest output is no legal move (padding is none).
    illegal_mass: mean probability of everything that is not legal.
    top_n_error:  mean top-N error against the true legal set.
    excess_loss:  mean cross-entropy above the entropy of the next move, in nats: 0 is the best there is.

    Known exactly: a network that is uniform on the legal moves has 0, 0, 0 and (with sampling=moves) excess 0 in
    expectation. `seen` or `unseen` is nan when there is no such game. Li et al. 2023, section 2.3.
    """

    def __call__(self, snap: Snapshot) -> Results:
        task, batch = othello(snap), snap.batch
        legal, unseen = task.legal_tokens(batch.inputs), task.unseen(batch.inputs)
        logits, asked = snap.logits.cpu(), batch.weight.cpu() > 0  # type: ignore[union-attr]
        losses = F.cross_entropy(logits.double().flatten(0, 1), batch.targets.cpu().flatten(), reduction="none")
        values = {
            "illegal_top1": ~legal.gather(-1, logits.argmax(-1, keepdim=True))[..., 0],
            "illegal_mass": (logits.softmax(-1) * ~legal).sum(-1),
            "top_n_error": top_n_error(logits, legal),
            "excess_loss": losses.view(asked.shape) - task.entropy(batch.inputs),
        }
        rows = {"all": torch.ones_like(unseen), "seen": ~unseen, "unseen": unseen}
        return {
            f"{subset}_{name}": value[asked & those[:, None]].double().mean().item()
            for subset, those in rows.items()
            for name, value in values.items()
        }


@dataclass(frozen=True)
class LensMoves:
    """lens_illegal_top1 [layer], lens_top_n_error [layer]: LegalMoves of the logit lens before each block and at the
    end. The last entry is the network's own. On `n_games` games of the fixed draw."""

    n_games: int = 200

    def __call__(self, snap: Snapshot) -> Results:
        task, batch = othello(snap), snap.batch[: self.n_games]
        legal, asked = task.legal_tokens(batch.inputs), batch.weight > 0  # type: ignore[operator]
        with torch.no_grad():
            _, cache = snap.model.run_with_cache(batch.inputs)
        logits, labels = logit_lens(snap.model, cache)
        wrong = ~legal.expand_as(logits).gather(-1, logits.argmax(-1, keepdim=True))[..., 0]
        coords = {"lens": list(labels)}
        return {
            "lens_illegal_top1": Labelled(wrong[:, asked].double().mean(1), ("lens",), coords),
            "lens_top_n_error": Labelled(
                top_n_error(logits, legal.expand_as(logits))[:, asked].mean(1), ("lens",), coords
            ),
        }


# --- Probes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Positions:
    """Rows (game, position) where the game goes on, and what is true there.

    inputs: [game, pos]. row: mask [game, pos]. labels: frame -> [n, square]. ply, last, group: [n], the position, the
    token just read, the game. test: mask [n], rows that no probe is fitted on.
    """

    inputs: Int[Tensor, "game pos"]
    row: Tensor
    labels: dict[str, Int[Tensor, "n square"]]
    ply: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    test: Tensor


@lru_cache(maxsize=8)
def positions(task: Othello, n_games: int, seed: int) -> Positions:
    """Random games drawn for probing. Test rows: games with held-out openings; without any, a fifth of the games."""
    inputs = task.games(int(generator(seed, "probe").initial_seed() % 2**62), 0, n_games).inputs
    latents = task.latents(inputs)
    row = latents["to_move"].values >= 0
    group = torch.arange(n_games)[:, None].expand_as(row)[row]
    unseen = task.unseen(inputs)
    require(
        task.held_out == 0 or 0 < int(unseen.sum()) < n_games,
        f"n_games={n_games}: {int(unseen.sum())} of them have held-out openings; draw more",
    )
    test = unseen[group]
    if task.held_out == 0:
        test[split_by_group(group, 0.8, generator(seed, "split"))[1]] = True
    return Positions(
        inputs=inputs,
        row=row,
        labels={name: latents[name].values[row] for name in FRAMES},
        ply=torch.arange(row.shape[1]).expand_as(row)[row],
        group=group,
        test=test,
    )


def streams(model: Any, data: Positions) -> Float[Tensor, "layer n d"]:
    """The residual stream after every block at these rows."""
    names = [("resid_post", layer) for layer in range(model.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(data.inputs, names)
    return torch.stack([cache[name][data.row] for name in names])


def control_inputs(task: Othello, data: Positions, name: str) -> Float[Tensor, "n feature"]:
    """What is known of the moves so far without a network, each with the ply as a one-hot:

    ply         nothing else
    bag         which squares have been played
    signed_bag  and +1 for those that the side to move played, -1 for the opponent's (by the true colours)
    ply_square  which square was played at which ply: everything, in the form that the network is given
    """
    one_of("control", name, CONTROLS)
    n_pos = data.row.shape[1]
    ply = F.one_hot(data.ply, n_pos).float()
    if name == "ply":
        return ply
    played = F.one_hot(data.inputs, task.d_vocab)[..., 1:].float()  # [game, pos, square]
    if name == "ply_square":
        so_far = played[data.group] * (torch.arange(n_pos) <= data.ply[:, None])[..., None]
        return torch.cat([so_far.flatten(1), ply], 1)
    bag = torch.cat([played.cumsum(1)[data.row], ply], 1)
    if name == "bag":
        return bag
    # Who made move t: Black the first, and then whoever was to move after move t - 1.
    white = task.latents(data.inputs)["to_move"].values
    mover = F.pad(white, (1, -1)).clamp_min(0)
    to_move = white.clamp_min(0)
    by_black = (played * (1 - 2 * mover)[..., None]).cumsum(1)
    return torch.cat([(by_black * (1 - 2 * to_move)[..., None])[data.row], bag], 1)


@dataclass(frozen=True)
class BoardProbes:
    """Can the board be read off the residual stream, and is that more than the moves give away?

    One probe per layer, frame and square, all squares of all layers in one solve. Over held-out games:
    accuracy [frame, layer], occupied [frame, layer] (squares with a disc only), stderr [frame, layer] (over games);
    untrained [frame, layer]: the same for a network of the same shape before training;
    controls [frame, control]: linear probes on the moves themselves; majority [frame]: the commonest class by square
    and ply; gain [frame, layer]: accuracy minus the best control: the headline. accuracy_by_ply [frame, layer, ply].

    kind: ridge, lda, mass_mean, logistic, or mlp (`hidden` units for each square, or with `shared` for all squares of
    all frames together; `steps` of AdamW; controls stay linear).
    labels="shuffled" permutes the boards over games at the same ply: the null, at majority.
    Known exactly: 6 x 6 controls of the side-to-move frame are .611 (ply), .759 (bag), .877 (signed bag), .752
    (ply_square) on independent games. Raises UserError for a frame the board lacks.
    """

    frames: tuple[str, ...] = tuple(FRAMES)
    kind: str = "ridge"
    penalty: float = 0.1
    n_games: int = 500
    seed: int = 0
    hidden: int = 64
    steps: int = 300
    shared: bool = False
    labels: str = "true"

    def __post_init__(self):
        for frame in self.frames:
            one_of("frame", frame, FRAMES)
        one_of("kind", self.kind, KINDS)
        one_of("labels", self.labels, ("true", "shuffled"))
        require(self.n_games >= 10, f"n_games={self.n_games}: at least 10, for a training and a test side")

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        control, majority = control_scores(self, task)
        right = self.right(streams(snap.model, data), data)
        accuracy, untrained = right.mean((-1, -2)), untrained_scores(self, task, snap.model.spec)
        dims, coords = ("frame", "layer"), {"frame": list(self.frames)}
        by_ply = F.one_hot(data.ply[data.test], data.row.shape[1]).double()
        tested = {
            "accuracy": accuracy,
            "occupied": (right * self.occupied(data)[:, None]).sum((-1, -2))
            / self.occupied(data)[:, None].sum((-1, -2)),
            "stderr": _group_stderr(right.mean(-1), data.group[data.test]),
            "untrained": untrained,
            "gain": accuracy - control.amax(1, keepdim=True),
        }
        return {name: Labelled(value, dims, coords) for name, value in tested.items()} | {
            "controls": Labelled(control, ("frame", "control"), coords | {"control": list(CONTROLS)}),
            "majority": Labelled(majority, ("frame",), coords),
            "accuracy_by_ply": Labelled((right.mean(-1) @ by_ply) / by_ply.sum(0), (*dims, "ply"), coords),
        }

    def targets(self, data: Positions, frame: str) -> Int[Tensor, "n square"]:
        y = data.labels[frame]
        if self.labels == "true":
            return y
        g, mixed = generator(self.seed, "shuffle"), y.clone()
        for side in (data.test, ~data.test):
            for ply in data.ply.unique():
                rows = (side & (data.ply == ply)).nonzero().squeeze(1)
                mixed[rows] = y[rows[torch.randperm(len(rows), generator=g)]]
        return mixed

    def fit(self, x: Float[Tensor, "*layer n d"], y: Tensor) -> Probe | MLPProbe:
        if self.kind == "mlp":
            return fit_mlp(x, y, self.hidden, self.steps, generator(self.seed, "fit"), shared=self.shared)
        return fit(x, y, self.kind, self.penalty if self.kind != "mass_mean" else 0.0)

    def right(self, x: Float[Tensor, "*layer n d"], data: Positions) -> Float[Tensor, "frame *layer test square"]:
        """1 where a probe fitted on the training rows is right, on the test rows. All linear frames in one solve."""
        ys = [self.targets(data, frame) for frame in self.frames]
        y = torch.cat(ys, 1)
        probe = self.fit(x[..., ~data.test, :], y[~data.test])
        right = (probe.predict(x[..., data.test, :]) == y[data.test]).double()
        return torch.stack(right.split([part.shape[1] for part in ys], -1))

    def occupied(self, data: Positions) -> Float[Tensor, "frame test square"]:
        return torch.stack([(self.targets(data, frame)[data.test] > 0).double() for frame in self.frames])


@lru_cache(maxsize=32)
def control_scores(measure: BoardProbes, task: Othello) -> tuple[Tensor, Tensor]:
    """(accuracy of a linear probe on each control input [frame, control], majority by square and ply [frame])."""
    data = positions(task, measure.n_games, measure.seed)
    linear = dataclasses.replace(measure, kind="ridge", penalty=0.1)
    found = [linear.right(control_inputs(task, data, name), data).mean((-1, -2)) for name in CONTROLS]
    majority = []
    for frame in measure.frames:
        y = F.one_hot(measure.targets(data, frame), 3).double()
        counts = torch.zeros(data.row.shape[1], *y.shape[1:], dtype=torch.double)
        counts.index_add_(0, data.ply[~data.test], y[~data.test])
        said = counts.argmax(-1)[data.ply[data.test]]
        majority.append((said == y[data.test].argmax(-1)).double().mean())
    return torch.stack(found, 1), torch.stack(majority)


@lru_cache(maxsize=32)
def untrained_scores(measure: BoardProbes, task: Othello, spec: Any) -> Tensor:
    """Accuracy [frame, layer] on a freshly initialised network."""
    data = positions(task, measure.n_games, measure.seed)
    return measure.right(streams(untrained(task, spec, measure.seed), data), data).mean((-1, -2))


def untrained(task: Othello, spec: Any, seed: int) -> Any:
    """A network of this shape before any training: the control that every measure here takes."""
    return spec.build(task, generator(seed, "untrained"))


def _group_stderr(values: Float[Tensor, "*lead n"], group: Tensor) -> Float[Tensor, "*lead"]:
    """Standard error of the mean over rows when rows of one game are not independent."""
    _, member = group.unique(return_inverse=True)
    sums = values.new_zeros(*values.shape[:-1], int(member.max()) + 1)
    sums.index_add_(-1, member, values - values.mean(-1, keepdim=True))
    return sums.pow(2).sum(-1).sqrt() / values.shape[-1]


@dataclass(frozen=True)
class ProbeGeometry:
    """How the directions of the squares lie, by layer; cosines are means over squares that are not in the centre.

    even_odd [layer]:   between black-minus-white directions fitted on even and on odd plies. -1: the network codes
                        mine and theirs, not colours (Nanda et al. 2023, section 3). +1: it codes colours.
    mine_empty [layer]: |cosine| between mine_dir and empty_dir of the same square.
    neighbours, others [layer]: cosine between mine_dirs of touching squares, and of all other pairs.
    """

    penalty: float = 0.1
    n_games: int = 500
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        x = streams(snap.model, data)
        squares = task.square_of[1:]
        sides = []
        for parity in (0, 1):
            rows = data.ply % 2 == parity
            probe = fit(x[:, rows], data.labels["colour"][rows][:, squares], "ridge", self.penalty)
            sides.append(mine_directions(probe))
        probe = fit(x, data.labels["board"][:, squares], "ridge", self.penalty)
        mine, empty = F.normalize(mine_directions(probe), dim=-1), F.normalize(empty_directions(probe), dim=-1)
        cosines = mine @ mine.mT
        row, col = squares // task.n, squares % task.n
        apart = torch.maximum((row[:, None] - row).abs(), (col[:, None] - col).abs())
        found = {
            "even_odd": F.cosine_similarity(sides[0], sides[1], dim=-1).mean(-1),
            "mine_empty": (mine * empty).sum(-1).abs().mean(-1),
            "neighbours": cosines[:, apart == 1].mean(-1),
            "others": cosines[:, apart > 1].mean(-1),
        }
        return {name: Labelled(value, ("layer",)) for name, value in found.items()}


# --- Edits -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _cases(task: Othello, count: int, change: str, seed: int) -> Edits:
    return task.edits(count, change, generator(seed, f"edits {change}"))


@dataclass(frozen=True)
class Interventions:
    """Edit one square of the board in the residual stream; does the network play by the edited board?

    error, error_stderr [operator, first_layer, scale]: mean top-N error against the edited board's legal set, and its
    standard error; null_error: the same without an edit; random_error [first_layer, scale]: an `add` step along a
    random direction of the same length.
    changed [operator, first_layer, scale], null_changed: of the moves whose legality changed, the share treated right.
    best_error [operator], and persistence [operator, later]: top-N error after 0 .. later further moves by the edited
    board, with the edit of the best setting left at its position, beside null_persistence [later] without it.

    change: flip, erase or unnatural (tasks/othello.py). The best setting is chosen on the first half of the cases and
    everything named best or persistence is of the second half. Linear probes of kind `kind`; `gradient` goes through an
    MLP probe when `hidden` > 0 (Li et al.). Known exactly: a network that plays perfectly has a null of twice the mean
    number of moves of the edited board it lacks: 3.07 on 8 x 8 flips.
    """

    change: str = "flip"
    operators: tuple[str, ...] = OPERATORS
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    n_cases: int = 100
    n_games: int = 300
    later: int = 3
    hidden: int = 0
    steps: int = 300
    kind: str = "ridge"
    penalty: float = 0.1
    seed: int = 0

    def __post_init__(self):
        for operator in self.operators:
            one_of("operator", operator, OPERATORS)
        require(self.n_cases >= 4, f"n_cases={self.n_cases}: at least 4, half of them to choose a setting on")

    def __call__(self, snap: Snapshot) -> Results:
        task, model = othello(snap), snap.model
        cases = _cases(task, self.n_cases, self.change, self.seed)
        data = positions(task, self.n_games, self.seed)
        x, y = streams(model, data), data.labels["board"]
        linear = fit(x, y, self.kind, self.penalty)
        steps = class_steps(linear, x, y)
        reader = fit_mlp(x, y, self.hidden, self.steps, generator(self.seed, "fit")) if self.hidden else linear
        noise = torch.randn(steps.unit.shape, generator=generator(self.seed, "random"))
        random = Steps(F.normalize(noise, dim=-1), steps.means)
        squares = task.square_of[1:]
        legal_before, legal_after = cases.legal_before[:, squares], cases.legal_after[:, squares]

        def played(tap: Any, inputs: Tensor, at: Tensor) -> Tensor:
            with torch.no_grad():
                logits = model(inputs) if tap is None else model(inputs, tap)
            return logits[torch.arange(len(at)), at, 1:]

        def edit(operator: str, layer: int, scale: float, by: Steps = steps):
            at = (cases.at, cases.square, cases.before, cases.after)
            return board_edit(operator, reader, by, *at, layer, scale)

        def score(tap: Any) -> tuple[Tensor, Tensor]:
            logits = played(tap, cases.inputs, cases.at)
            return top_n_error(logits, legal_after), changed_score(logits, legal_before, legal_after)

        settings = [(layer, scale) for layer in range(model.n_layers) for scale in self.scales]
        shape = (model.n_layers, len(self.scales), self.n_cases)
        scored = [[score(edit(o, *s)) for s in settings] for o in self.operators]
        error, changed = (
            torch.stack([torch.stack([pair[i] for pair in row]).view(shape) for row in scored]) for i in (0, 1)
        )
        noised = torch.stack([score(edit("add", *s, random))[0] for s in settings]).view(shape)
        null, null_changed = score(None)
        half = self.n_cases // 2
        best = error[..., :half].mean(-1).flatten(1).argmin(1)
        later = task.follow(cases, self.later, generator(self.seed, "follow"))
        chosen = [None, *(edit(o, *settings[int(b)]) for o, b in zip(self.operators, best, strict=True))]
        persistence = torch.stack([self._later(played, tap, cases.at, *later, half) for tap in chosen])
        dims = ("operator", "first_layer", "scale")
        coords = {"operator": list(self.operators), "scale": list(self.scales)}
        chosen_error = error.flatten(1, 2)[torch.arange(len(best)), best, half:].mean(-1)
        return {
            "error": Labelled(error.mean(-1), dims, coords),
            "error_stderr": Labelled(error.std(-1) / self.n_cases**0.5, dims, coords),
            "changed": Labelled(changed.mean(-1), dims, coords),
            "random_error": Labelled(noised.mean(-1), dims[1:], coords),
            "best_error": Labelled(chosen_error, ("operator",), coords),
            "persistence": Labelled(persistence[1:], ("operator", "later"), coords),
            "null_persistence": Labelled(persistence[0], ("later",)),
            "null_error": null.mean().item(),
            "null_changed": null_changed.mean().item(),
        }

    def _later(self, played: Any, tap: Any, at: Tensor, inputs: Tensor, legal: Tensor, half: int) -> Tensor:
        """[later] mean error after each further move, over second-half cases whose edited game goes on."""
        errors = []
        for k, now in enumerate(legal.unbind(1)):
            error = top_n_error(played(tap, inputs, at + k), now)
            errors.append(error[now.any(-1) & (torch.arange(len(at)) >= half)].mean())
        return torch.stack(errors)


@dataclass(frozen=True)
class Saliency:
    """Is the network's reason for a move the real one? Flip every disc of a board in turn, by `add` from `first_layer`
    on, and see how the probability of one legal move falls; the judge is whether the flip makes it illegal.

    auroc: over cases, P(a disc whose flip makes the move illegal is more salient than one whose flip does not);
    rank_correlation: mean Spearman between the two maps, below 1 even for a perfect network since the judge says only
    yes or no. 1/2 and 0 for a network without a board.
    Li et al. 2023, section 5 (there without a judge).
    """

    first_layer: int
    scale: float = 1.0
    n_cases: int = 40
    n_games: int = 300
    penalty: float = 0.1
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        maps = self.maps(snap)
        areas, ranks = [], []
        for fall, truth in zip(maps["fall"], maps["truth"], strict=True):
            disc = fall.isfinite()
            hangs = truth[disc] == 1
            if hangs.any() and not hangs.all():
                wins = stats.mannwhitneyu(fall[disc][hangs], fall[disc][~hangs]).statistic
                areas.append(wins / int(hangs.sum() * (~hangs).sum()))
                ranks.append(stats.spearmanr(fall[disc], hangs).statistic if fall[disc].std() > 0 else 0.0)
        return {
            "auroc": float(torch.tensor(areas).mean()),
            "rank_correlation": float(torch.tensor(ranks).mean()),
            "n_judged": float(len(areas)),
        }

    def maps(self, snap: Snapshot) -> dict[str, Tensor]:
        """move [case]; fall [case, square], the fall of its probability; truth [case, square], 1 where the flip makes
        it illegal. NaN on empty squares."""
        task, model = othello(snap), snap.model
        cases = _cases(task, self.n_cases, "flip", self.seed)
        data = positions(task, self.n_games, self.seed)
        x = streams(model, data)
        probe = fit(x, data.labels["board"], "ridge", self.penalty)
        steps = class_steps(probe, x, data.labels["board"])
        move = torch.multinomial(cases.legal_before.float(), 1, generator=generator(self.seed, "move"))[:, 0]
        case, square = (cases.before > 0).nonzero(as_tuple=True)  # one row per disc of each board
        rows, before, at = torch.arange(len(case)), cases.before[case], cases.at[case]
        after = before.clone()
        after[rows, square] = 3 - before[rows, square]
        edit = board_edit("add", probe, steps, at, square, before, after, self.first_layer, self.scale)
        token = task.token_of[move]

        def probability(inputs: Tensor, at: Tensor, token: Tensor, *taps: Any) -> Tensor:
            with torch.no_grad():
                logits = model(inputs, *taps)[torch.arange(len(at)), at]
            return logits.softmax(-1).gather(-1, token[:, None])[:, 0]

        clean = probability(cases.inputs, cases.at, token)
        fall, truth = torch.full((2, *cases.before.shape), torch.nan)
        fall[case, square] = clean[case] - probability(cases.inputs[case], at, token[case], edit)
        truth[case, square] = (~task.legal_on(after)[rows, move[case]]).float()
        return {"move": move, "fall": fall, "truth": truth}


@dataclass(frozen=True)
class PathIndependence:
    """Does the network treat two histories that lead to the same board alike?

    disagreement: share of pairs with different likeliest moves. variation: mean total variation between the two
    predictions; other_variation: between predictions for unrelated boards, for scale. top_n_overlap: share of the true
    legal set's N best moves that both have in common. 0, 0 and 1 for a network that sees only the board.
    Source: the same-board test of public studies of Othello networks; pairs are exact transpositions.
    """

    n_pairs: int = 300
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        first, second, at = _pairs(task, self.n_pairs, self.seed)
        rows = torch.arange(len(at))
        with torch.no_grad():
            a, b = (snap.model(inputs)[rows, at] for inputs in (first, second))
        p, q = a.softmax(-1), b.softmax(-1)
        legal = task.legal_tokens(first)[rows, at]
        both = (top_n_error(a, legal), top_n_error(b, legal))
        n = legal.sum(-1)
        best = [z.argsort(-1, descending=True).argsort(-1) < n[:, None] for z in (a, b)]
        return {
            "disagreement": (a.argmax(-1) != b.argmax(-1)).double().mean().item(),
            "variation": (p - q).abs().sum(-1).mean().item() / 2,
            "other_variation": (p - q.roll(1, 0)).abs().sum(-1).mean().item() / 2,
            "top_n_overlap": ((best[0] & best[1]).sum(-1) / n).mean().item(),
            "transposed_top_n_error": (sum(both).mean() / 2).item(),  # type: ignore[union-attr]
        }


@lru_cache(maxsize=8)
def _pairs(task: Othello, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return task.transpositions(count, generator(seed, "transpositions"))
