"""What comes first on the way through the blocks: the board, or the legal moves?

Left: after each block, the share of held-out positions in which a linear probe reads every square right (green), and in
which the lens already has exactly the legal moves as its best (blue). Middle: for every ply, whether the whole board
was right at an earlier block than the moves (green), at the same (grey), at a later one or never (orange: "moves
first"), or neither ever was (white). A network that worked out its moves from a whole board would be green throughout;
orange late in the game says that few legal moves can be had without all of the board. Right: F1 of probes for "the last
move turned this disc", beside an untrained network (dashed), the best linear readout of the moves (purple) and saying
yes always.
"""

import numpy as np
import xarray as xr

from toylab.measures.board_reading import ORDERS, FlippedDiscs, ReadingOrder
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, subplots

NEEDS = ["othello_6x6"]
COLORS = dict(zip(ORDERS, (GREEN, GREY, ORANGE, "white"), strict=True))


def compute(runs):
    """ReadingOrder and FlippedDiscs at the last checkpoint of the first run."""
    run = runs.runs[0]
    tools = ReadingOrder(), FlippedDiscs()
    return xr.merge([run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in tools])


def draw(table):
    figure, (blocks, order, flips) = subplots(1, 3, 2.9)
    layers = range(table.sizes["layer"])
    blocks.plot(layers, table.board_right, "o-", color=GREEN, ms=3, label="whole board")
    blocks.plot(layers, table.moves_right, "o-", color=BLUE, ms=3, label="legal moves")
    blocks.set(title="positions all right", xlabel="after block", xticks=list(layers), ylim=(0, 1))
    blocks.legend(fontsize=7)
    plies = np.arange(table.sizes["ply"])
    order.stackplot(plies, table.by_ply.values, colors=[COLORS[name] for name in ORDERS], labels=ORDERS)
    order.set(title="which is right first", xlabel="ply", ylim=(0, 1), xlim=(0, plies[-1]))
    order.legend(fontsize=6, loc="center right", frameon=True, framealpha=0.9)
    flips.plot(layers, table.f1, "o-", color=GREEN, ms=3, label="network")
    flips.plot(layers, table.untrained, "o--", color=GREY, ms=3, label="untrained")
    flips.axhline(float(table.moves), color=PURPLE, lw=1, label="moves alone")
    flips.axhline(float(table.always), color=GREY, lw=1, ls=":", label="always yes")
    flips.set(title="discs just turned, F1", xlabel="after block", xticks=list(layers), ylim=(0, 1.25))
    flips.legend(fontsize=7)
    return figure
