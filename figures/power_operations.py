"""Which operations can be completed from how much of their table (Power et al. 2022, figure 2 right and 1 center).

Left: best accuracy on the held-out part of the table within the budget, against the share that was trained on; median
of the seeds, each seed a faint dot. Symmetric operations (solid) rise at smaller shares than their unsymmetric partners
of the same colour (dashed); x^3+xy^2+y stays at chance. Right: steps to 99 % held-out accuracy on a log scale, where
most seeds get there: the less of the table is shown, the longer the wait.
"""

import numpy as np
import xarray as xr
from matplotlib.ticker import LogLocator, NullFormatter

from toylab.plotting import BLUE, GREEN, GREY, ORANGE, subplots

STYLES = {
    "x+y": (BLUE, "-"), "x-y": (BLUE, "--"), "x*y": (ORANGE, "-"), "x/y": (ORANGE, "--"),
    "x^2+xy+y^2": (GREEN, "-"), "x^2+xy+y^2+x": (GREEN, "--"), "x^3+xy^2+y": (GREY, "-"),
}  # fmt: skip
NEEDS = ["power2022"]


def compute(runs):
    """best and steps [operation, seed, frac] from what training logged."""
    rows = {}
    for run in runs:
        log = run.metrics()
        good = log.test_accuracy.values >= 0.99
        steps = float(log.step.values[good.argmax()]) if good.any() else np.inf
        rows[run.task.operation, run.experiment.seed, run.task.frac_train] = (float(log.test_accuracy.max()), steps)
    names = [name for name in STYLES if any(key[0] == name for key in rows)]
    seeds, fractions = (sorted({key[i] for key in rows}) for i in (1, 2))
    shape = (len(names), len(seeds), len(fractions))
    values = np.array([[[rows.get((n, s, f), (np.nan, np.nan)) for f in fractions] for s in seeds] for n in names])
    dims = ("operation", "seed", "frac")
    values = values.reshape(*shape, 2)
    arrays = {"best": (dims, values[..., 0]), "steps": (dims, values[..., 1])}
    return xr.Dataset(arrays, {"operation": names, "seed": seeds, "frac": fractions}).assign_attrs(
        chance=1 / runs.runs[0].task.d_out
    )


def draw(table):
    figure, (best, steps) = subplots(1, 2, 3.2)
    x = table.frac.values
    for name in table.operation.values:
        color, dash = STYLES[str(name)]
        one = table.sel(operation=name)
        best.plot(x, one.best.median("seed"), color=color, ls=dash, label=str(name))
        best.plot(x, one.best.values.T, "o", color=color, ms=2.5, alpha=0.4)
        wait = one.steps.median("seed").values
        seen = np.isfinite(wait)
        steps.plot(x[seen], wait[seen], "o", color=color, ls=dash, ms=3)
    best.axhline(table.attrs["chance"], color=GREY, lw=0.8, ls=":")
    best.set(title="best held-out accuracy", xlabel="share of the table trained on", ylim=(-0.02, 1.05))
    steps.set(
        title="steps to 99 % held-out accuracy",
        xlabel="share of the table trained on",
        yscale="log",
        xlim=best.get_xlim(),
    )
    steps.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    steps.yaxis.set_major_formatter("{x:,.0f}")
    steps.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure
