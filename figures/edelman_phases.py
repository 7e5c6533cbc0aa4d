"""Uniform, unigram, bigram: what the network predicts like while it learns (Edelman et al. 2024, figure 1).

KL from each strategy to the network along training; the background has the colour of the nearest one. The unigram
strategy (orange) is nearest for a while, although it is never right, and is left for the bigram strategy (green).
"""

import numpy as np

from toylab.measures.beliefs import Strategies
from toylab.plotting import BLUE, GREEN, ORANGE, band, subplots

NEEDS = ["icl_markov"]
COLORS = {"uniform": BLUE, "unigram": ORANGE, "bigram": GREEN}


def compute(runs):
    """kl_<strategy> at every checkpoint."""
    return runs.map(Strategies())


def draw(table):
    figure, ax = subplots(1, 1, 2.8)
    first = table.isel(seed=0) if "seed" in table.dims else table
    nearest = np.stack([first[f"kl_{name}"].values for name in COLORS]).argmin(0)
    steps = np.maximum(table.step.values.astype(float), 0.8)  # step 0 on a logarithmic axis
    for start, end, which in zip(steps, steps[1:], nearest, strict=False):
        ax.axvspan(start, end, color=list(COLORS.values())[which], alpha=0.12, lw=0)
    shown = table.assign_coords(step=steps)
    for name, color in COLORS.items():
        band(ax, shown, f"kl_{name}", color, name)
    ax.set(xscale="log", xlabel="step", ylabel="KL to the network (nats)", xlim=(steps[0], steps[-1]), ylim=(0, None))
    ax.legend(loc="lower left", fontsize=8)
    return figure
