"""From memorised samples to features (Henighan et al. 2023, reduced to 1,000 features in two dimensions).

Top: the hidden vectors of the training samples for some numbers of samples T. Few samples lie on a regular polygon,
each with 2/T of a dimension; many do not. Bottom left: training and held-out loss against T; look for the bump of the
held-out loss between the two regimes. Bottom right: the norms of weights and bias, which peak there. Lines: the run of
the lowest training loss of several; dots: every run.
"""

import numpy as np
import xarray as xr

from toylab.measures.superposition import DataGeometry
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, WIDTH

NEEDS = ["tms_memorised"]
SHOWN = (3, 5, 8, 50)


def compute(runs):
    """Losses and norms of every run; hidden vectors [shown, sample, xy] of the best run for some T, nan beyond T."""
    rows, vectors = [], {}
    for run in runs:
        T = run.task.n_samples
        end = run.map(DataGeometry(), run.steps[-1]).isel(step=0, drop=True)
        rows.append(end[["W_norm", "b_norm", "train_loss", "test_loss"]].assign(samples=float(T)))
        if T in SHOWN and (T not in vectors or end.train_loss < vectors[T].train_loss):
            vectors[T] = end
    hidden = np.full((len(SHOWN), max(SHOWN), 2), np.nan)
    for i, T in enumerate(SHOWN):
        if T in vectors:
            hidden[i, :T] = vectors[T].hidden_state.values
    return xr.concat(rows, "run").assign(hidden=(("shown", "sample", "xy"), hidden)).assign_coords(shown=list(SHOWN))


def draw(table):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, len(SHOWN), height_ratios=(1, 1.3))
    for i, T in enumerate(SHOWN):
        ax, points = figure.add_subplot(grid[0, i]), table.hidden.values[i, :T]
        ax.plot(*points.T, "o", color=BLUE, ms=3)
        reach = 1.15 * np.nanmax(np.abs(points)) if np.isfinite(points).any() else 1
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[], title=f"T = {T}")
    half = len(SHOWN) // 2
    losses, norms = figure.add_subplot(grid[1, :half]), figure.add_subplot(grid[1, half:])
    order = np.argsort(table.train_loss.values)
    T, first = np.unique(table.samples.values[order], return_index=True)
    lowest = table.isel(run=order[first])
    colors = {"train_loss": BLUE, "test_loss": ORANGE, "W_norm": GREEN, "b_norm": GREY}
    for name, color in colors.items():
        ax = losses if name.endswith("loss") else norms
        ax.plot(table.samples, table[name], ".", color=color, alpha=0.3)
        ax.plot(T, lowest[name], color=color, label=name.replace("_", " "))
    losses.set(xscale="log", yscale="log", xlabel="training samples T", title="loss")
    norms.set(xscale="log", xlabel="training samples T", title="norms")
    for ax in (losses, norms):
        ax.legend(loc="best", fontsize=8)
    return figure
