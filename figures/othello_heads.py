"""Which parts read the board: heads that look at one side's moves, and who writes mine and theirs.

Left: attention of every head on the moves of the side that moves next (up) against its opponent's (right), one colour
per block; the cross is a head that looks everywhere alike. Heads far along either axis tell the sides apart, which is
what "mine" and "theirs" are made from. Middle: accuracy of "this square is empty" before the first attention, after it
and after its MLP, beside an untrained network (dashed) and the ply alone (dotted): one step of attention over the moves
should be enough. Below it, the mean cosine between what the most opposed head writes for a move and the direction of
"this square is empty", and that for the direction of another square. Right: of what separates mine from theirs at the
last block, the share that every head (circle) and MLP (square) wrote; all shares add up to 1.
"""

import numpy as np
import xarray as xr

from toylab.measures.board_circuit import BoardParts, EmptyCircuit, HeadSides
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, subplots

NEEDS = ["othello_6x6"]
SHADES = (BLUE, ORANGE, GREEN, PURPLE)


def compute(runs):
    """HeadSides, EmptyCircuit and BoardParts (last block) at the last checkpoint of the first run."""
    run = runs.runs[0]
    tools = HeadSides(), EmptyCircuit(), BoardParts(run.final.model.n_layers - 1)
    return xr.merge([run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in tools])


def draw(table):
    figure, (sides, empty, parts) = subplots(1, 3, 2.9)
    n_layers, n_heads = table.mine.shape
    names = [str(name) for name in table.component.values]
    for layer in range(n_layers):
        color, here = SHADES[layer % len(SHADES)], table.isel(layer=layer)
        sides.scatter(here.theirs, here.mine, color=color, s=16, label=f"block {layer}")
        heads = [names.index(f"L{layer}H{head}") for head in range(n_heads)]
        parts.scatter([layer - 0.12] * n_heads, table.share[heads], color=color, s=14)
        parts.scatter(layer + 0.12, table.share[names.index(f"{layer}_mlp_out")], color=color, marker="s", s=20)
    sides.plot(float(table.uniform_theirs), float(table.uniform_mine), "kx", ms=6)
    sides.set(title="attention to own moves", xlabel="... to the opponent's", xlim=(0, 1), ylim=(0, 1.02))
    sides.legend(fontsize=7)
    where = range(table.sizes["site"])
    empty.plot(where, table.empty_right, "o-", color=GREEN, ms=3, label="network")
    empty.plot(where, table.empty_untrained, "o--", color=GREY, ms=3, label="untrained")
    empty.axhline(float(table.ply), color=GREY, ls=":", label="ply alone")
    empty.set_xticks(list(where), ["before", "attention", "MLP"])
    said = f"cosine {float(table.strongest):.2f} (another square {float(table.strongest_other):.2f})"
    empty.set(title="empty or not, first block", ylim=(None, 1.005))
    empty.set_xlabel(said, fontsize=8)
    empty.legend(fontsize=7, loc=(0.42, 0.1))
    parts.axhline(0, color=GREY, lw=0.8)
    parts.set(title="who writes mine / theirs", xlabel="block", xticks=np.arange(n_layers))
    return figure
