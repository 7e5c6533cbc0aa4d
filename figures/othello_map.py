"""How the directions of the squares lie: is the board laid out inside the network as it lies on the table?

Top: every square as a point, its direction of mine against theirs on the first two principal components; lines join
squares that touch in a row or column, colours go by row. Left: directions of a linear probe at the last block; middle:
means of the stream where the square is mine minus where it is theirs; right: the same means of the board itself,
without any network: neighbours tend to be of one colour, and this alone draws a net. So a net in the middle says
nothing of the network unless it is clearer than that; one on the left, where the correlation is taken out, would. In
brackets the share of variance that the plane shows: little, as directions are nearly orthogonal. Bottom left: cosines
of the probe's directions for all pairs of squares: the faint bands beside the diagonal are squares that touch. Right:
how much more alike nearer squares are (Spearman correlation), by block; dashed: untrained.
"""

import numpy as np

from toylab.measures.board_reading import DIRECTIONS, SquareMap
from toylab.plotting import BLUE, GREEN, ORANGE, WIDTH

NEEDS = ["othello_6x6"]
TITLES = {"probe": "probe directions", "means": "mine minus theirs", "board": "the board itself"}
COLORS = {"probe": GREEN, "means": BLUE, "board": ORANGE}


def compute(runs):
    """SquareMap at the last checkpoint of the first run."""
    run = runs.runs[0]
    return run.map(SquareMap(), run.steps[-1]).isel(step=0, drop=True)


def draw(table):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplot_mosaic([list(DIRECTIONS), ["cosines", "nearness", "nearness"]])
    n = round(table.sizes["square"] ** 0.5)
    layers = range(table.sizes["layer"])
    for kind in DIRECTIONS:
        one = table.sel(kind=kind).isel(layer=-1)
        draw_net(axes[kind], one.plane.values.reshape(n, n, 2))
        axes[kind].set(title=f"{TITLES[kind]} ({float(one.shares.sum()):.0%})", xticks=[], yticks=[])
        near, null = (table[name].sel(kind=kind) for name in ("nearness", "nearness_untrained"))
        axes["nearness"].plot(layers, near, "o-", color=COLORS[kind], ms=3, label=TITLES[kind])
        axes["nearness"].plot(layers, null, "--", color=COLORS[kind], lw=1)
    axes["nearness"].set(title="nearer squares, more alike", xlabel="after block", xticks=list(layers))
    axes["nearness"].axhline(0, color="black", lw=0.6)
    axes["nearness"].legend(fontsize=7)
    axes["cosines"].imshow(table.cosines.sel(kind="probe").isel(layer=-1), cmap="RdBu_r", vmin=-1, vmax=1)
    axes["cosines"].set(
        title="cosines (red 1, blue -1)", xticks=range(0, n * n, n), yticks=range(0, n * n, n), xlabel="square"
    )
    axes["cosines"].grid(False)
    return figure


def draw_net(ax, points):
    """Squares [row, col, 2] as points coloured by row, neighbours joined."""
    rows = np.repeat(np.arange(len(points)), len(points))
    for lines in (points, points.swapaxes(0, 1)):
        ax.plot(lines[..., 0].T, lines[..., 1].T, color="#BBBBBB", lw=0.7, zorder=1)
    ax.scatter(*points.reshape(-1, 2).T, c=rows, cmap="viridis", s=14, zorder=2)
    ax.margins(0.08)
