"""By which parts a network reads the board: heads that look at one side's moves, what they write, whose output it is.

1. `HeadSides`: a head may look at the moves of the side to move or at its opponent's; the truth is who made each move.
2. `EmptyCircuit`: what a first-block head writes for a move that it looks at, against the direction of "that square is
   empty"; and how well empty squares are read before and after the first attention.
3. `BoardParts`: of the separation between mine and theirs along a probe's direction, the share of every head and MLP.

Source: Nanda et al. 2023 (arXiv 2309.00941), sections 4 and 5. Came from: board_reading.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import require
from toylab.interp.attention import attention_scores, stack_patterns, uniform_scores
from toylab.interp.board import EMPTY, MINE, THEIRS, empty_directions, mine_directions
from toylab.interp.probes import fit
from toylab.interp.residual import get_full_resid_decomposition
from toylab.interp.weights import reading
from toylab.measures.board import Positions, control_inputs, othello, positions, untrained
from toylab.snapshot import Labelled, Snapshot
from toylab.taps import act_name
from toylab.tasks.othello import Othello

SITES = ("resid_pre", "resid_mid", "resid_post")  # of the first block: before and after its attention, and its MLP
Results = Mapping[str, float | Tensor | Labelled]


def side_masks(task: Othello, inputs: Int[Tensor, "game pos"]) -> Bool[Tensor, "side game query key"]:
    """[mine, theirs]: the moves so far that the side to move after the query made itself; those of its opponent.

    By who really moved (passes!), so neither is every other position. No key where the game is over.
    """
    to_move = task.latents(inputs)["to_move"].values
    mover = F.pad(to_move, (1, -1))  # Black (0) makes the first move, then whoever was to move
    past = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).tril()
    asked = (to_move >= 0)[:, :, None] & past
    same = to_move[:, :, None] == mover[:, None, :]
    return torch.stack([asked & same, asked & ~same])


@dataclass(frozen=True)
class HeadSides:
    """mine, theirs [layer, head]: mean attention on the moves of the side that moves next, and of its opponent, from
    positions that have any; uniform_mine, uniform_theirs: those of a head that looks everywhere alike.

    Known exactly: 1 for a head that looks at one side alone; the uniform values for constant scores. Nanda et al. 2023,
    section 4: some heads of the first block look at own moves, some at the opponent's.
    """

    n_games: int = 200
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        inputs = positions(task, self.n_games, self.seed).inputs
        with torch.no_grad():
            _, cache = snap.model.run_with_cache(inputs, lambda name: name.endswith("hook_pattern"))
        pattern, masks = stack_patterns(cache), side_masks(task, inputs)
        found = {name: attention_scores(pattern, mask) for name, mask in zip(("mine", "theirs"), masks, strict=True)}
        return {name: Labelled(value, ("layer", "head")) for name, value in found.items()} | {
            f"uniform_{name}": uniform_scores(mask) for name, mask in zip(found, masks, strict=True)
        }


@dataclass(frozen=True)
class EmptyCircuit:
    """How the network knows that a square is no longer empty: from the move itself, in one step of attention.

    PLAYED_h(m) = W_E[m] W_V^h W_O^h (with the gain of the norm, and centred), what head h of the first block writes for
    move m; empty_dir(m) from a linear probe on the stream after that attention.
    cosine [head]: mean over moves of cos(PLAYED_h(m), empty_dir(m)); strongest: mean over moves of its least value over
    heads; strongest_other: the same with the empty_dir of another square, the chance of a least of several.
    empty_right [site], empty_untrained [site]: accuracy of "this square is empty" over squares outside the centre,
    before and after the attention of the first block and after its MLP; ply: from the ply alone.

    Nanda et al. 2023, section 4: -0.862; accuracy 76.8 % before, 98.9 % after. Known exactly: one attention suffices,
    as the bag of moves has 1; a head that writes -empty_dir has -1.
    """

    penalty: float = 0.1
    n_games: int = 300
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task, model = othello(snap), snap.model
        data = positions(task, self.n_games, self.seed)
        squares = task.square_of[1:]
        x = _first_block(model, data)
        y = data.labels["board"][:, squares]
        empty = F.normalize(empty_directions(fit(x[1], y, "ridge", self.penalty)), dim=-1)
        cosines = F.normalize(written_for_moves(model), dim=-1) @ empty.T  # [head, move, square]
        own = cosines.diagonal(dim1=1, dim2=2)
        sites = {"site": list(SITES)}
        ply = control_inputs(task, data, "ply")[None]
        return {
            "cosine": Labelled(own.mean(1), ("head",)),
            "strongest": own.amin(0).mean().item(),
            "strongest_other": cosines.roll(1, 2).diagonal(dim1=1, dim2=2).amin(0).mean().item(),
            "empty_right": Labelled(self.right(x, data, squares), ("site",), sites),
            "empty_untrained": Labelled(_empty_untrained(self, task, model.spec), ("site",), sites),
            "ply": self.right(ply, data, squares).item(),
        }

    def right(self, x: Float[Tensor, "site n d"], data: Positions, squares: Tensor) -> Float[Tensor, " site"]:
        y = (data.labels["board"][:, squares] == EMPTY).long()
        probe = fit(x[:, ~data.test], y[~data.test], "ridge", self.penalty)
        return (probe.predict(x[:, data.test]) == y[data.test]).double().mean((1, 2))


def written_for_moves(model: Any) -> Float[Tensor, "head move d"]:
    """PLAYED of every head of the first block."""
    embedded, values, outputs = model.W_E.detach()[1:], reading(model, "W_V")[0], model.W_O.detach()[0]
    return torch.einsum("md,hde,hek->hmk", embedded, values, outputs)


def _first_block(model: Any, data: Positions) -> Float[Tensor, "site n d"]:
    with torch.no_grad():
        _, cache = model.run_with_cache(data.inputs, [act_name(site, 0) for site in SITES])
    return torch.stack([cache[site, 0][data.row] for site in SITES])


@lru_cache(maxsize=8)
def _empty_untrained(measure: EmptyCircuit, task: Othello, spec: Any) -> Tensor:
    data = positions(task, measure.n_games, measure.seed)
    return measure.right(_first_block(untrained(task, spec, measure.seed), data), data, task.square_of[1:])


@dataclass(frozen=True)
class BoardParts:
    """Who writes the board: share [component] of the separation of mine and theirs that each part of the stream makes.

    v_s is mine_dir of square s from a linear probe on the stream after block `layer`; separation(part, s) = mean of
    part . v_s where s is mine, minus where it is theirs. share is that of a part, summed over squares, over that of all
    parts; by_square [component, square] is not summed. Parts are every head up to this block, every MLP, the
    embeddings and the biases; they add up to the stream, so shares add up to 1, exactly.

    A share may be negative: a part that writes against what the others wrote. Nanda et al. 2023 trace a direction in
    the same way (section 4). A separation is a correlation: a part may write what other squares' moves predict of s.
    """

    layer: int
    penalty: float = 0.1
    n_games: int = 100
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        task, model = othello(snap), snap.model
        require(0 <= self.layer < model.n_layers, f"layer={self.layer}: 0 to {model.n_layers - 1}")
        data = positions(task, self.n_games, self.seed)
        with torch.no_grad():
            _, cache = model.run_with_cache(data.inputs)
        y = data.labels["board"]
        direction = mine_directions(fit(cache["resid_post", self.layer][data.row], y, "ridge", self.penalty))
        parts = get_full_resid_decomposition(model, cache, self.layer + 1, expand_neurons=False)
        found = separation(parts.values[:, data.row] @ direction.T, y)
        coords = {"component": list(parts.labels)}
        return {
            "share": Labelled(found.sum(1) / found.sum(), ("component",), coords),
            "by_square": Labelled(found / found.sum(), ("component", "square"), coords),
        }


def separation(
    along: Float[Tensor, "component n square"], y: Int[Tensor, "n square"]
) -> Float[Tensor, "component square"]:
    """Mean coordinate where a square is mine minus where it is theirs."""
    mine, theirs = ((y == c).to(along) for c in (MINE, THEIRS))
    sides = [torch.einsum("cns,ns->cs", along, w) / w.sum(0).clamp_min(1) for w in (mine, theirs)]
    return sides[0] - sides[1]
