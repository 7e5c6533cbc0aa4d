"""When does it grok? From memorising to generalising, by training share, weight decay and size of the first weights.

Each cell: the median over seeds of (first step with 95 % held-out accuracy) / (first step with 99 % training accuracy);
below it both steps, in hundreds. Rows of panels: width of the model; columns: scale of the initial weights. 1 means
that it never memorised before it understood: even attention counts from the first step, and the answer is a curve over
the count. Large first weights make attention uneven, and with few strings a table of them is found first; weight decay
brings the count back. Grey: not within the budget.
"""

import numpy as np
import xarray as xr

from toylab.claims import first_step
from toylab.plotting import GREY, subplots

NEEDS = ["miu_map"]
AXES = ("d_model", "scale", "frac", "decay", "seed")


def settings(run):
    """(d_model, scale, frac, decay, seed) of a run."""
    e = run.experiment
    return e.model.d_model, e.model.init_scale, e.task.frac_train, e.optim.weight_decay, e.seed


def compute(runs):
    """memorised, general [d_model, scale, frac, decay, seed]: first evaluations with 99 % and 95 %; inf = never."""
    keys = [settings(run) for run in runs]
    coords = {name: sorted({key[i] for key in keys}) for i, name in enumerate(AXES)}
    shape = [len(values) for values in coords.values()]
    found = {name: np.full(shape, np.nan) for name in ("memorised", "general")}
    for run, key in zip(runs, keys, strict=True):
        at = tuple(coords[name].index(value) for name, value in zip(AXES, key, strict=True))
        log = run.metrics().expand_dims("seed")
        found["memorised"][at] = first_step(log.train_accuracy >= 0.99)[0]
        found["general"][at] = first_step(log.test_accuracy >= 0.95)[0]
    return xr.Dataset({name: (AXES, values) for name, values in found.items()}, coords)


def draw(table):
    rows, columns = table.sizes["d_model"], table.sizes["scale"]
    figure, axes = subplots(rows, columns, 0.6 + 2.2 * rows, squeeze=False, sharex=True, sharey=True)
    memorised, general = table.memorised.median("seed"), table.general.median("seed")
    delay = (general / memorised).where(np.isfinite(general))
    top = float(np.nanmax(delay.values)) if np.isfinite(delay.values).any() else 2.0
    for i, j in np.ndindex(rows, columns):
        ax, one = axes[i, j], {"d_model": i, "scale": j}
        values = delay.isel(one).values
        ax.set_facecolor("#dddddd")
        image = ax.imshow(
            np.log2(np.maximum(values, 1)), cmap="viridis", vmin=0, vmax=np.log2(max(top, 2)), aspect="auto"
        )
        for (y, x), value in np.ndenumerate(values):
            steps = [float(t.isel(one).values[y, x]) for t in (memorised, general)]
            shown = " ".join("never" if np.isinf(s) else f"{s / 100:.3g}" for s in steps)
            text = f"x{value:.2g}\n{shown}" if np.isfinite(value) else shown
            dark = np.isfinite(value) and np.log2(max(value, 1)) < 0.6 * np.log2(max(top, 2))
            ax.text(x, y, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        ax.set_xticks(range(table.sizes["decay"]), [f"{d:g}" for d in table.decay.values])
        ax.set_yticks(range(table.sizes["frac"]), [f"{f:g}" for f in table.frac.values])
        ax.grid(False)
        ax.set_title(f"width {table.d_model.values[i]}, first weights x {table.scale.values[j]:g}")
        if i == rows - 1:
            ax.set_xlabel("weight decay")
        if j == 0:
            ax.set_ylabel("share trained on")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, label="general / memorised")
    ticks = np.arange(0, np.floor(np.log2(max(top, 2))) + 1)
    bar.set_ticks(ticks, labels=[f"x{2**t:g}" for t in ticks])
    bar.outline.set_edgecolor(GREY)
    return figure
