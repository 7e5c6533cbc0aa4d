"""Why does the network think that this move is legal? Each disc is flipped inside the network in turn.

Top: boards of four cases; the framed square is the move. Squares are coloured by the fall of the move's probability
when the network is made to see that disc in the other colour: red, the move hangs on it. Bottom: the truth, red where
flipping the disc makes the move illegal. A network with a board shows the same red squares in both rows. In words
this is the rule of the game: the own disc at the end of a line, and the line before it.
"""

import numpy as np
import xarray as xr

from toylab.measures.board import Saliency
from toylab.plotting import subplots

NEEDS = ["othello_6x6"]
CASES = 4
TOOL = Saliency(first_layer=1)


def compute(runs):
    """Maps of the first cases at the last checkpoint of the first run."""
    snap = runs.runs[0].final
    maps = TOOL.maps(snap)
    dims = ("case", "square")
    chosen = np.flatnonzero(np.nansum(maps["truth"].numpy(), 1))[:CASES]  # cases in which some single disc matters
    fall, truth = (maps[name].numpy()[chosen].astype(float) for name in ("fall", "truth"))
    found = {"fall": (dims, fall), "truth": (dims, truth), "move": ("case", maps["move"].numpy()[chosen].astype("i4"))}
    return xr.Dataset(found, attrs={"n": snap.task.n, "auroc": TOOL(snap)["auroc"]})


def draw(table):
    n = int(table.attrs["n"])
    figure, axes = subplots(2, CASES, 3.6)
    for i in range(table.sizes["case"]):
        for ax, name in ((axes[0, i], "fall"), (axes[1, i], "truth")):
            values = table[name].values[i].reshape(n, n)
            size = np.nanmax(np.abs(values)) or 1
            ax.set_facecolor("#EEEEEE")  # empty squares have nothing to flip
            ax.imshow(values, cmap="RdBu_r", vmin=-size, vmax=size)
            row, col = divmod(int(table.move.values[i]), n)
            ax.plot(np.array([-1, 1, 1, -1, -1]) / 2 + col, np.array([-1, -1, 1, 1, -1]) / 2 + row, "k", lw=1.5)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    axes[0, 0].set_title(f"in the network (AUROC {table.attrs['auroc']:.2f})")
    axes[1, 0].set_title("by the rules")
    return figure
