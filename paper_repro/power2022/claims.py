"""Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets" (arXiv 2201.02177).

Small version of figure 2, right: which operations need how much data. README.md states the sizes, what differs and
what is not attempted.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet, ratio

FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.8)
OPERATIONS = {
    "x+y": "add",
    "x-y": "sub",
    "x*y": "mul",
    "x/y": "div",
    "x^2+xy+y^2": "square",
    "x^2+xy+y^2+x": "square_plus_x",
    "x^3+xy^2+y": "cubic",
}


def cells(operation: str, *overrides: str, name: str = "", fractions=FRACTIONS) -> tuple[tuple[str, ...], ...]:
    """One run for each share of the table that is trained on."""
    name = name or OPERATIONS[operation]
    chosen = ("experiment=power2022", f"task.operation='{operation}'", *overrides)
    return tuple((*chosen, f"task.frac_train={f}", f"name='power2022/{name}/frac={f}'") for f in fractions)


RUNS = (
    *(RunSet(operation, cells(operation), 3) for operation in OPERATIONS),
    RunSet("shuffled labels", cells("x+y", "task.labels=shuffled", name="shuffled"), about="placebo"),
)
QUICK = (
    *(
        RunSet(
            operation, cells(operation, "train.steps=2000", name=f"quick_{OPERATIONS[operation]}", fractions=(0.4, 0.8))
        )
        for operation in ("x+y", "x-y")
    ),
    RunSet(
        "shuffled labels",
        cells("x+y", "task.labels=shuffled", "train.steps=2000", name="quick_shuffled", fractions=(0.4, 0.8)),
        about="placebo",
    ),
)
FIGURES = {"power_operations": tuple(OPERATIONS)}
NEVER = 1.0  # data needed by an operation that reached 99 % at no fraction: more than any that was tried


def measure(key: str, runs):
    """best [seed, frac]: best held-out accuracy; steps [seed, frac]: evaluation with 99 % (inf: never)."""
    seeds = sorted({run.experiment.seed for run in runs})
    fractions = sorted({run.task.frac_train for run in runs})
    best, steps = (np.full((len(seeds), len(fractions)), np.nan) for _ in range(2))
    for run in runs:
        at = seeds.index(run.experiment.seed), fractions.index(run.task.frac_train)
        log = run.metrics()
        accuracy = log.test_accuracy.values
        best[at] = np.nanmax(accuracy)
        steps[at] = log.step.values[(accuracy >= 0.99).argmax()] if (accuracy >= 0.99).any() else np.inf
    dims = ("seed", "frac")
    return xr.Dataset({"best": (dims, best), "steps": (dims, steps)}, {"seed": seeds, "frac": fractions})


def data_needed(t):
    """[seed], the share of the table at which the best held-out accuracy crosses 99 %, interpolated; NEVER if none."""
    found = []
    for accuracy in t.best.values:
        good = np.flatnonzero(accuracy >= 0.99)
        if not len(good):
            found.append(NEVER)
            continue
        i, x = good[0], t.frac.values
        if i == 0:
            found.append(x[0])
        else:
            weight = (0.99 - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
            found.append(x[i - 1] + weight * (x[i] - x[i - 1]))
    return np.array(found)


def steps_at(t, frac):
    return t.steps.sel(frac=frac).values


def ahead(symmetric: str, other: str) -> Claim:
    """The symmetric operation of a pair needs less data than the other."""
    return Claim(
        f"{symmetric} before {other}",
        f"{symmetric} needs less data than {other}",
        "symmetric operations need less",
        "seen",
        "difference of the shares needed for 99 % > 0",
        lambda t: data_needed(t[other]) - np.resize(data_needed(t[symmetric]), len(data_needed(t[other]))),
        lambda v: v > 0,
        needs=(symmetric, other),
        placebos=("shuffled labels",),
        figure="Fig. 2 right",
    )


CLAIMS = (
    ahead("x+y", "x-y"),
    ahead("x*y", "x/y"),
    ahead("x^2+xy+y^2", "x^2+xy+y^2+x"),
    Claim(
        "subtraction as division",
        "x-y and x/y need about the same data",
        "about the same",
        "seen",
        "shares within 0.10 of each other, and below 1",
        lambda t: np.where(data_needed(t["x-y"]) < NEVER, abs(data_needed(t["x-y"]) - data_needed(t["x/y"])), np.inf),
        lambda v: v <= 0.1,
        needs=("x-y", "x/y"),
        placebos=("shuffled labels",),
        figure="Fig. 2 right",
    ),
    Claim(
        "cubic",
        "x^3+xy^2+y never generalises: best held-out accuracy over all shares",
        "at chance up to 95 % of the table",
        "seen",
        "<= 5 % (chance here is 2.1 %)",
        lambda t: t["x^3+xy^2+y"].best.max("frac").values,
        lambda v: v <= 0.05,
        needs=("x^3+xy^2+y",),
        placebos=("x+y", "x*y"),
        figure="Fig. 2 right",
    ),
    Claim(
        "less data, more steps",
        "With less data an operation takes many more steps: x+y at 40 % over 80 %",
        "generalisation time explodes as data shrink (S5)",
        "seen",
        "ratio of steps > 3 (ours: the paper's numbers are for S5)",
        lambda t: ratio(steps_at(t["x+y"], 0.4), steps_at(t["x+y"], 0.8)),
        lambda v: v > 3,
        needs=("x+y",),
        placebos=("shuffled labels",),
        figure="Fig. 1 center",
    ),
)
