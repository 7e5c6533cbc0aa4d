"""Two features in one dimension: dropped or in superposition, measured and exact (Elhage et al. 2022, "phase change").

From bottom to top features become more frequent; from left to right the second becomes more important than the first.
Left: what the best of several trained networks does in each cell. Right: the solution of the lowest loss among the
ideal ones, in closed form; the boundaries are r = 2p/(4-5p) and its inverse, and meet at p = 4/7. Cells that
differ are marked with a cross: look for them on the boundaries only.
"""

import numpy as np
import xarray as xr

from toylab.interp.superposition import PHASES
from toylab.measures.superposition import ClosedForms
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, subplots

NEEDS = ["tms_phase"]
COLORS = {-1: GREY, 0: BLUE, 1: ORANGE, 2: "white", 3: GREEN}


def compute(runs):
    """phase, exact_phase [p, ratio] of the run of the lowest loss in every cell."""
    rows = []
    for run in runs:
        found = run.map(ClosedForms(), run.steps[-1]).isel(step=0, drop=True)
        importance = run.task.importance()
        cell = {"p": round(float(run.task.density()[0]), 5), "ratio": round(float(importance[-1] / importance[0]), 3)}
        rows.append(found.assign_coords(cell))
    table = xr.concat(rows, "run").sortby("loss")
    cells = table.to_dataframe().drop_duplicates(["p", "ratio"])
    return xr.Dataset.from_dataframe(cells.set_index(["p", "ratio"])[["phase", "exact_phase", "loss"]])


def edges(centres):
    """Borders of cells whose centres are evenly spaced in the logarithm."""
    half = np.sqrt(centres[1] / centres[0])
    return np.r_[centres / half, centres[-1] * half]


def draw(table):
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    figure, axes = subplots(1, 2, 3.4, sharex=True, sharey=True)
    colors = ListedColormap(list(COLORS.values()))
    norm = BoundaryNorm(np.arange(-1.5, 4), len(COLORS))
    x, y = table.ratio.values, table.p.values
    for ax, name, title in zip(axes, ("phase", "exact_phase"), ("trained, best seed", "exact"), strict=True):
        ax.pcolormesh(edges(x), edges(y), table[name].transpose("p", "ratio").values, cmap=colors, norm=norm)
        ax.set(xscale="log", yscale="log", xlabel="relative importance of the second feature", title=title)
        ax.grid(visible=False)
    wrong = (table.phase != table.exact_phase).transpose("p", "ratio").values
    rows, columns = np.nonzero(wrong)
    axes[0].plot(x[columns], y[rows], "x", color="black", ms=4)
    axes[0].set_ylabel("p")
    names = {0: PHASES[0], 1: PHASES[1], 3: "superposition", -1: "none of these"}
    figure.legend(
        handles=[Patch(color=COLORS[k], label=v) for k, v in names.items()], loc="outside lower center", ncols=4
    )
    return figure
