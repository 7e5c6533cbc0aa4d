"""What can be read of the board, layer by layer and ply by ply, and what the moves give away without any network.

Left: accuracy of linear probes at the last checkpoint for three frames. `board` is whose disc it is for the side that
really moves next, `parity` the public labels, which take every pass for a move, `colour` black and white. Dotted: the
best linear readout of the moves alone in the same frame. A world model shows as a solid line above its dotted one.
Middle: the same for `board` along the game. Right: cosine between the directions fitted on even and on odd plies: near
-1 the network holds mine and theirs, near +1 colours.
"""

import xarray as xr

from toylab.measures.board import BoardProbes, ProbeGeometry
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, subplots

NEEDS = ["othello_6x6"]
COLORS = {"board": GREEN, "parity": ORANGE, "colour": BLUE}


def compute(runs):
    """Probes and their geometry at the last checkpoint of the first run."""
    run = runs.runs[0]
    tables = [run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in (BoardProbes(), ProbeGeometry())]
    return xr.merge(tables)


def draw(table):
    figure, (by_layer, by_ply, geometry) = subplots(1, 3, 2.6)
    layers = range(table.sizes["layer"])
    for frame, color in COLORS.items():
        one = table.sel(frame=frame)
        by_layer.plot(layers, one.accuracy, "o-", color=color, ms=3, label=frame)
        by_layer.axhline(float(one.controls.max()), color=color, ls=":", lw=1)
    by_layer.set(title="accuracy", xlabel="after block", xticks=list(layers))
    by_layer.legend(fontsize=7, loc="center left", bbox_to_anchor=(0, 0.33))
    shades = [GREY, BLUE, ORANGE, GREEN]
    for layer in layers:
        color = shades[layer % 4]
        by_ply.plot(
            table.accuracy_by_ply.sel(frame="board").isel(layer=layer), color=color, lw=1, label=f"block {layer}"
        )
    by_ply.set(title="`board` by ply", xlabel="ply")
    by_ply.legend(fontsize=7)
    geometry.plot(layers, table.even_odd, "o-", color=GREEN, ms=3, label="even, odd plies")
    geometry.plot(layers, table.neighbours, "o-", color=BLUE, ms=3, label="touching squares")
    geometry.plot(layers, table.mine_empty, "o-", color=GREY, ms=3, label="mine, empty (size)")
    geometry.axhline(0, color=GREY, lw=0.8, ls=":")
    geometry.set(title="cosines of directions", xlabel="after block", ylim=(-1.05, 1.05), xticks=list(layers))
    geometry.legend(fontsize=7)
    return figure
