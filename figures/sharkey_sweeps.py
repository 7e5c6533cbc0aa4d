"""Dictionaries against 128 true features in 64 dimensions (Sharkey, Braun, Millidge 2022, reduced).

Left: over the L1 penalty, recovery of the true directions (mean max cosine, blue) has a maximum inside, where
explained variance (orange) has long begun to fall: the dictionary that explains most is not the one that finds most.
Grey: chance; dashed: a world whose features are nearly always on. Middle: the penalty
shrinks the amplitudes that are written, the more so the larger it is; the TopK kinds (squares) shrink less at the same
number of latents. Right: recovery by the number of latents, with its chance value.
"""

import xarray as xr

from toylab.measures.sweeps import KINDS, SHARKEY
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, subplots

NEEDS = ["sharkey2022"]


def compute(runs):
    """The sweep on every world, along `world`, with the share of zeros beside."""
    rows = [run.map(SHARKEY, run.steps[0], progress=True).isel(step=0, drop=True) for run in runs]
    return xr.concat(rows, "world").assign(sparsity=("world", [float(run.task.sparsity) for run in runs]))


def draw(table):
    sparse, dense = (table.isel(world=rows) for rows in (table.sparsity.values > 0.9, table.sparsity.values < 0.9))
    figure, (left, middle, right) = subplots(1, 3, 2.7)
    for name, color, label in (("mmcs", BLUE, "recovery (MMCS)"), ("explained_variance", ORANGE, "explained variance")):
        spread(left, sparse.l1, sparse[f"{name}_by_l1"], color, label)
    if dense.sizes["world"]:
        left.plot(
            dense.l1, dense.mmcs_by_l1.mean(("world", "dictionary")), "--", color=BLUE, lw=1, label="... dense world"
        )
    left.axhline(float(sparse.chance_mmcs[0]), color=GREY, lw=1, label="... by chance")
    left.set(xscale="log", xlabel="L1 penalty", ylim=(-0.05, 1.05), title="best fit is not best find")
    left.legend(loc="lower left", fontsize=7)
    l0, kept = (sparse[f"{name}_by_l1"].mean(("world", "dictionary")) for name in ("l0", "kept"))
    middle.plot(l0, kept, "o-", color=BLUE, ms=3, label="L1, penalty .01 to 3")
    for kind, color in zip(KINDS, (GREEN, PURPLE, RED), strict=True):
        at = {name: float(sparse[f"{name}_by_kind"].sel(kind=kind).mean()) for name in ("l0", "kept")}
        middle.plot(at["l0"], at["kept"], "s", color=color, ms=4, label=kind)
    middle.axvline(float(sparse.true_l0.mean()), color=GREY, lw=1)
    middle.set(
        xscale="log",
        xlim=(0.5, 110),
        xlabel="latents on at a time (line: truth)",
        ylim=(0, 1.05),
        title="share of the amplitude kept",
    )
    middle.legend(loc="lower center", fontsize=6.5)
    spread(right, sparse["size"], sparse.mmcs_by_size, BLUE, "recovery (MMCS)")
    right.plot(sparse["size"], sparse.chance_mmcs_by_size[0], color=GREY, lw=1, label="chance")
    right.set(
        xscale="log", xlim=(28, 148), xlabel="latents (128 features)", ylim=(0, 1.05), title="too narrow finds less"
    )
    right.set_xticks(sparse["size"].values, [str(m) for m in sparse["size"].values])
    right.minorticks_off()
    right.legend(loc="lower right", fontsize=7)
    return figure


def spread(ax, x, values, color, label):
    """Mean over worlds and dictionaries, and every one of them."""
    ax.plot(x, values.mean(("world", "dictionary")), color=color, label=label)
    for world in values.transpose("world", "dictionary", ...).values:
        for one in world:
            ax.plot(x, one, ".", color=color, alpha=0.5, ms=4)
