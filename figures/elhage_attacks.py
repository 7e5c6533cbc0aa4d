"""Superposition makes a model easier to attack (Elhage et al. 2022, adversarial examples).

Vulnerability is the squared error that the best change of the input (a tenth of the mean input length) adds, in units
of the squared length of that change. Left: it is 1 where features are always on and none is in superposition, and rises
with their sparsity, together with the features per dimension, 1 / D*: look for the same bends at the same densities.
Right: the same against each other, one dot per model, with two standard errors. Dotted: unit vectors in a tight frame,
attacked in one output (1 / D*) and, without a ReLU, in all at once (its square). Where only some features share a
dimension, the attack is on those, and does worse harm than the mean number of features per dimension says.
"""

import xarray as xr

from toylab.measures.superposition import Vulnerability
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["tms_geometry"]


def compute(runs):
    """Vulnerability of the last network of every run."""
    rows = [run.map(Vulnerability(), run.steps[-1]).isel(step=0, drop=True).drop_vars("reach") for run in runs]
    return xr.concat(rows, "run").assign(p=("run", [float(run.task.density()[0]) for run in runs])).sortby("p")


def draw(table):
    figure, (left, right) = subplots(1, 2, 3.2)
    x, per = 1 / table.p.values, table.features_per_dimension.values
    left.plot(x, table.vulnerability, "o-", color=BLUE, ms=3, label="vulnerability")
    left.plot(x, per, "o-", color=ORANGE, ms=3, label="features per dimension, 1 / D*")
    left.axhline(1, color=GREY, lw=0.8, ls=":")
    left.set(xscale="log", yscale="log", xlabel="1 / p", title="attacks and features per dimension")
    left.legend(fontsize=7.5, loc="upper left")
    right.errorbar(per, table.vulnerability, 2 * table.vulnerability_stderr, fmt="o", color=BLUE, ms=3, lw=1)
    ends = [1, float(per.max())]
    right.plot(ends, ends, ":", color=GREY, lw=1)
    right.plot(ends, [end**2 for end in ends], ":", color=GREY, lw=1)
    right.text(ends[1], ends[1], "1 / D* ", ha="right", va="bottom", fontsize=8, color=GREY)
    right.text(ends[1] * 0.9, ends[1] ** 2, "1 / D*² ", ha="right", va="top", fontsize=8, color=GREY)
    right.set(xscale="log", yscale="log", xlabel="features per dimension, 1 / D*", title="vulnerability of each model")
    for ax in (left, right):
        plain_numbers(ax)
    return figure


def plain_numbers(ax):
    """1, 2, 5, 10, ... on both axes instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
