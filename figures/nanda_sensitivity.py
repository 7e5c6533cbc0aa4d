"""More weight decay and more data shorten the wait (Nanda et al. 2023, figures 20, 21 and 27).

Left: steps until 95 % of the held-out pairs are right against weight decay, both on log scales; the dashed line is
1 / weight decay through the runs at 1. Right: the same against the share of pairs trained on. A triangle is a run
that never got there: it stands at the number of steps that run was given. Grey: steps until 99 %
of the training pairs are right, which hardly moves.
"""

import numpy as np
import xarray as xr

from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = [
    "nanda2023",
    *(f"nanda2023_decay={d}" for d in (0.5, 2.0)),
    *(f"nanda2023_frac={f}" for f in (0.2, 0.4, 0.5, 0.7)),
]


def compute(runs):
    """First evaluations with 99 % training and 95 % test accuracy (inf: never), and the settings of each run."""
    rows = []
    for run in runs:
        table, e = run.metrics(), run.experiment
        first = [
            float(table.step[np.flatnonzero(table[name] >= level)[0]]) if (table[name] >= level).any() else np.inf
            for name, level in (("train_accuracy", 0.99), ("test_accuracy", 0.95))
        ]
        rows.append([e.optim.weight_decay, e.task.frac_train, *first, float(table.step[-1])])
    names = ("weight_decay", "frac_train", "memorised", "general", "steps")
    return xr.Dataset({name: ("run", column) for name, column in zip(names, np.array(rows).T, strict=True)})


def draw(table):
    figure, axes = subplots(1, 2, 2.9, sharey=True)
    usual = {name: float(np.median(table[name])) for name in ("weight_decay", "frac_train")}
    for ax, name, fixed in zip(axes, usual, reversed(usual), strict=True):
        one = table.isel(run=np.flatnonzero(table[fixed].values == usual[fixed]))
        x, general = one[name].values, one.general.values
        got = np.isfinite(general)
        ax.plot(x, one.memorised, "o", color=GREY, ms=4, label="99 % of training pairs")
        ax.plot(x[got], general[got], "o", color=ORANGE, ms=5.5, alpha=0.8, label="95 % of held-out pairs")
        ax.plot(x[~got], one.steps.values[~got], "^", color=ORANGE, ms=7, mfc="none", label="never in these steps")
        ax.set(yscale="log")
        if name == "weight_decay":
            center = float(np.median(general[x == usual[name]]))
            line = np.array([x.min(), x.max()])
            ax.plot(line, center * usual[name] / line, color=BLUE, lw=1, ls="--", label="1 / weight decay")
            ax.set(xscale="log", xlabel="weight decay", title="steps to generalise")
            ax.set_xticks(sorted(set(x)), [f"{v:g}" for v in sorted(set(x))])
            ax.minorticks_off()
        else:
            ax.set(xlabel="share of pairs trained on")
        ax.legend(loc="best", fontsize=7)
    return figure
