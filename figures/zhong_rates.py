"""From pizza to clock: what attention does decides by which algorithm the network adds (Zhong et al. 2023, figure 7).

Each dot is a network; from left to right attention goes from constant (0) to ordinary (1). Left: gradient symmetricity,
near 1 when a and b enter alike (pizza). Right: distance irrelevance, near 0 when the right logit depends on a - b alone
(pizza), near 1 when it does not (clock). Filled dots have circular embeddings (circularity of .995 or more), the only
ones that the paper reads. Crosses: the paper's two example networks.
"""

import numpy as np
import xarray as xr

from toylab.measures.fourier import ClockPizza
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["zhong2023"]
PAPER = {"gradient_symmetricity": (0.9937, 0.3336), "distance_irrelevance": (0.1717, 0.8483)}


def compute(runs):
    """The three numbers of each run's last network."""
    rows = [run.map(ClockPizza(100, 0), run.steps[-1]).isel(step=0, drop=True) for run in runs]
    return xr.concat(rows, "run").assign(rate=("run", [run.experiment.model.attention_rate for run in runs]))


def draw(table):
    figure, axes = subplots(1, 2, 2.8, sharex=True)
    circular = table.circularity.values >= 0.995
    for ax, (name, examples) in zip(axes, PAPER.items(), strict=True):
        x, y = table.rate.values, table[name].values
        rates = np.unique(x)
        ax.plot(rates, [np.median(y[x == rate]) for rate in rates], color=GREY, lw=1, label="median")
        ax.plot(x[~circular], y[~circular], "o", color=BLUE, mfc="none", label="not circular")
        ax.plot(x[circular], y[circular], "o", color=BLUE, label="circular")
        ax.plot([0, 1], examples, "x", color=ORANGE, ms=7, mew=2, label="paper, models A and B")
        ax.set(title=name.replace("_", " "), xlabel="attention rate", ylim=(-0.03, 1.05), xlim=(-0.06, 1.06))
    axes[0].legend(loc="lower left", fontsize=8)
    return figure
