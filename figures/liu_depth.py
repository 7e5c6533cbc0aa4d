"""Which depth tracks which automaton, and what is left of it elsewhere (after Liu et al. 2023, figure 2).

Accuracy of the state over all positions, by automaton and number of layers. Left: rows as in training. Middle: rows
twice as long. Right: one letter nine times in ten. What is dark on the left and pale on the right was a shortcut.
"""

import numpy as np
import xarray as xr

from toylab.measures.shift import Shifted
from toylab.plotting import subplots

NEEDS = ["liu2022"]


def compute(runs):
    """accuracy [automaton, depth, setting]; settings: as trained, twice as long, other odds."""
    automata = list(dict.fromkeys(run.task.automaton for run in runs))
    depths = sorted({run.experiment.model.n_layers for run in runs})
    found = np.full((len(automata), len(depths), 3), np.nan)
    for run in runs:
        n = run.task.d_vocab
        shifts = ({}, {"length": 2 * run.task.length}, {"probs": [0.1 / (n - 1)] * (n - 1) + [0.9]})
        at = automata.index(run.task.automaton), depths.index(run.experiment.model.n_layers)
        found[at] = [float(run.map(Shifted(s), run.steps[-1]).accuracy.isel(step=0)) for s in shifts]
    names = ["as trained", "twice as long", "other odds"]
    dims = ("automaton", "depth", "setting")
    return xr.Dataset({"accuracy": (dims, found)}, {"automaton": automata, "depth": depths, "setting": names})


def draw(table):
    figure, axes = subplots(1, 3, 2.6, sharey=True)
    for ax, name in zip(axes, table.setting.values, strict=True):
        values = table.accuracy.sel(setting=name).values
        ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (i, j), v in np.ndenumerate(values):
            ax.text(j, i, f"{v:.2f}", ha="center", va="center", fontsize=8, color="white" if v > 0.6 else "black")
        ax.set_xticks(range(table.sizes["depth"]), [str(d) for d in table.depth.values])
        ax.set(title=str(name), xlabel="layers")
        ax.grid(False)
    axes[0].set_yticks(range(table.sizes["automaton"]), [str(a) for a in table.automaton.values])
    return figure
