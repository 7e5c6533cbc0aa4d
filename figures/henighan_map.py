"""From memorised samples to features, over numbers of samples and hidden sizes (Henighan et al. 2023, reduced).

Left: held-out loss over training samples T (across) and hidden dimensions m (up), in units of the loss of the answer 0:
above 1 (red) a model does worse than to say nothing. Ringed: the worst T of each m. Right: the same as curves (full),
with the training loss (dashed). Look for where the dashed lines leave zero: the more dimensions, the more samples are
memorised. Only the narrowest model has a bump there; the wider ones, after this short training, have none to speak of.
"""

import numpy as np
import xarray as xr

from toylab.measures.superposition import DataGeometry
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, subplots

NEEDS = ["tms_memorised"]


def compute(runs):
    """train_loss, test_loss [m, T] of the run of the lowest training loss, in units of the loss of the answer 0."""
    found = {}
    for run in runs:
        end = run.map(DataGeometry(), run.steps[-1]).isel(step=0, drop=True)[["train_loss", "test_loss"]]
        end = end * run.task.n_features  # unit vectors: the answer 0 costs 1 / n_features
        cell = run.experiment.model.d_hidden, run.task.n_samples
        if cell not in found or end.train_loss < found[cell].train_loss:
            found[cell] = end
    widths, samples = (sorted({cell[axis] for cell in found}) for axis in (0, 1))
    rows = [xr.concat([found[m, T].assign_coords(T=T) for T in samples], "T").assign_coords(m=m) for m in widths]
    return xr.concat(rows, "m")


def draw(table):
    figure, (left, right) = subplots(1, 2, 3.3, gridspec_kw={"width_ratios": (1.15, 1)})
    T, m = table["T"].values, table.m.values
    loss = table.test_loss.transpose("m", "T").values
    reach = max(0.1, float(np.abs(loss - 1).max()))
    image = left.imshow(loss, cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach, origin="lower", aspect="auto")
    for (i, j), value in np.ndenumerate(loss):
        left.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < 0.8 else "black")
    left.plot(loss.argmax(1), np.arange(len(m)), "o", mfc="none", color="black", ms=20)
    left.set_xticks(np.arange(len(T)), [str(t) for t in T])
    left.set_yticks(np.arange(len(m)), [str(k) for k in m])
    left.set(xlabel="training samples T", ylabel="hidden dimensions m", title="held-out loss (answer 0: 1)")
    left.grid(visible=False)
    figure.colorbar(image, ax=left, fraction=0.05, pad=0.02)
    for i, color in zip(range(len(m)), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        right.plot(T, loss[i], "o-", ms=3, color=color, label=f"m = {m[i]}")
        right.plot(T, table.train_loss.transpose("m", "T").values[i], "--", lw=1, color=color)
    right.axhline(1, color=GREY, lw=0.8, ls=":")
    right.set(xscale="log", xlabel="training samples T", title="held-out loss; dashed: training", ylim=(0, None))
    right.set_xticks(T, [str(t) for t in T])
    right.minorticks_off()
    right.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(0.0, 0.6))
    return figure
