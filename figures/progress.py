"""Grokking, seen from outside: memorised first, general much later.

Top left: accuracy on the training pairs is perfect long before accuracy on held-out pairs leaves chance. Top right:
the loss on held-out pairs rises far above that of guessing (log p) before it collapses. Bottom left: the weights
shrink while the general solution replaces the memorised table. Bottom right: the margin of the right answer.
"""

import numpy as np

from toylab.measures.basic import LogitStats, Loss, WeightNorms
from toylab.plotting import BLUE, GREY, ORANGE, band, subplots

NEEDS = ["demo"]


def compute(runs):
    """Loss, norms and margins at every checkpoint; log p is the loss of guessing."""
    table = runs.map(Loss()).merge(runs.map(WeightNorms())).merge(runs.map(LogitStats()))
    return table.assign_attrs(guessing=float(np.log(runs.runs[0].task.d_out)), chance=1 / runs.runs[0].task.d_out)


def draw(table):
    figure, axes = subplots(2, 2, 4.6, sharex=True)
    (accuracy, loss), (norm, margin) = axes
    for name, color in (("train", BLUE), ("test", ORANGE)):
        band(accuracy, table, f"{name}_accuracy", color, name)
        band(loss, table, f"{name}_loss", color, name)
        band(margin, table, f"{name}_margin", color, name)
    band(norm, table, "sum_sq_weights", GREY, "all parameters")
    accuracy.axhline(table.attrs["chance"], color=GREY, lw=0.8, ls=":")
    accuracy.set(title="accuracy", ylim=(-0.02, 1.05))
    accuracy.legend(loc="center right")
    loss.axhline(table.attrs["guessing"], color=GREY, lw=0.8, ls=":")
    loss.text(0.98, table.attrs["guessing"], "guessing", transform=loss.get_yaxis_transform(), ha="right", va="bottom")
    loss.set(title="loss (nats)", yscale="log")
    norm.set(title="sum of squared weights", xlabel="step", ylim=(0, None))
    margin.axhline(0, color=GREY, lw=0.8, ls=":")
    margin.set(title="margin of the right answer (logits)", xlabel="step")
    last = int(table.step.max())
    for ax in (accuracy, loss, norm, margin):
        ax.set_xlim(0, last)
    return figure
