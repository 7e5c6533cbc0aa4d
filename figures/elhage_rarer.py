"""One of five features is on less, or more, often than the rest (Elhage et al. 2022, non-uniform superposition).

Top: the best network at some densities of that feature (orange; the other four are on one time in twenty). Rare, it
is dropped, and the others are two antipodal pairs; more frequent, all five form a pentagon. Bottom left: its
dimensionality in every trained network: there are two branches, and over a range of densities both are reached. Bottom
right: loss of every network, on the same examples, above the lowest at its density: the branches cross. Look for the
jump of the best network (ringed) from one branch to the other where they do: a first-order change.
"""

import numpy as np
import xarray as xr

from toylab.measures.basic import FreshLoss
from toylab.measures.superposition import Geometry, NeuronWeights
from toylab.plotting import BLUE, GREY, ORANGE, WIDTH

NEEDS = ["tms_sparsity"]
SHOWN = 5


def compute(runs):
    """Dimensionality of the first feature, weights and loss of the last network of every run; p is its density."""
    rows = []
    for run in runs:
        tools = Geometry(), NeuronWeights(), FreshLoss(2**17)
        end = xr.merge([run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in tools])
        rows.append(end[["dimensionality", "neuron_weight", "fresh_loss"]])
    return (
        xr.concat(rows, "run").assign(p=("run", [round(float(run.task.density()[0]), 6) for run in runs])).sortby("p")
    )


def draw(table):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 2 * SHOWN, height_ratios=(1, 1.8))
    levels = np.unique(table.p.values)
    best = {p: one.isel(run=int(np.argmin(one.fresh_loss.values))) for p, one in table.groupby("p")}
    for i, p in enumerate(levels[np.linspace(0, len(levels) - 1, SHOWN).round().astype(int)]):
        ax = figure.add_subplot(grid[0, 2 * i : 2 * i + 2])
        for f, x in enumerate(best[p].neuron_weight.values):
            ax.plot([0, x[0]], [0, x[1]], "o-", color=BLUE if f else ORANGE, ms=4, markevery=[1], zorder=3 - min(f, 1))
        ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[], title=f"p = {p:.3g}")
    left, right = figure.add_subplot(grid[1, :SHOWN]), figure.add_subplot(grid[1, SHOWN:])
    least = np.array([float(best[p].fresh_loss) for p in table.p.values])
    excess = table.fresh_loss.values / least - 1
    kept = table.dimensionality.values[:, 0] > 0.25
    for chosen, color, label in ((~kept, GREY, "first feature dropped"), (kept, ORANGE, "all five kept")):
        left.plot(table.p[chosen], table.dimensionality[chosen, 0], "o", color=color, ms=3.5, alpha=0.6, label=label)
        right.plot(table.p[chosen], 100 * excess[chosen], "o", color=color, ms=3.5, alpha=0.6)
    at = [float(best[p].dimensionality[0]) for p in levels]
    left.plot(levels, at, "o", mfc="none", color=BLUE, ms=7, label="best at its density")
    left.set(ylim=(-0.03, 0.66), title="dimensionality of the first feature")
    left.legend(fontsize=7.5, loc="upper left")
    right.set(title="loss above the lowest at its density, %")
    for ax in (left, right):
        ax.axvline(0.05, color=GREY, lw=0.8, ls=":")
        ax.set(xscale="log", xlabel="density of the first feature (dotted: of the rest)")
        ax.set_xticks(ticks := [0.0025, 0.005, 0.01, 0.02, 0.05, 0.1], [f"{x:g}" for x in ticks])
        ax.minorticks_off()
    return figure
