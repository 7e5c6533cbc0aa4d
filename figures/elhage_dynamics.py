"""Learning goes by jumps (Elhage et al. 2022, "learning dynamics").

Two sets of three correlated features in three dimensions. Top: the dimensionality of every feature along training.
Bottom: held-out loss. Shaded: those of 16 log-spaced windows in which some dimensionality changed by more than .1. Look
for the loss to fall faster there than elsewhere.
"""

import numpy as np
import torch
import xarray as xr

from toylab.interp.superposition import detect_jumps
from toylab.measures.basic import Loss
from toylab.measures.superposition import Geometry
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["tms_dynamics"]


def compute(runs):
    """Dimensionality and loss at every checkpoint of the first run but step 0; the ends [window, end] of the windows
    with a jump."""
    run = next(iter(runs))
    steps = [step for step in run.steps if step > 0]
    table = xr.merge([run.map(Geometry(), steps)[["dimensionality"]], run.map(Loss(), steps)[["test_loss"]]])
    coarse = [step for step in run.pick("log:16") if step > 0]
    at = table.sel(step=coarse)
    jumps = detect_jumps(torch.from_numpy(at.dimensionality.values), torch.from_numpy(at.test_loss.values))
    ends = np.stack([coarse[:-1], coarse[1:]], 1)[jumps.window.numpy()]
    return table.assign(jump=(("window", "end"), ends))


def draw(table):
    figure, (top, bottom) = subplots(2, 1, 4.2, sharex=True)
    steps = table.step.values
    for feature in range(table.sizes["feature"]):
        color = (BLUE, ORANGE)[feature // (table.sizes["feature"] // 2)]
        top.plot(steps, table.dimensionality[:, feature], color=color, lw=1)
    bottom.plot(steps, table.test_loss, color=GREY)
    for start, end in table.jump.values:
        for ax in (top, bottom):
            ax.axvspan(start, end, color=ORANGE, alpha=0.2, lw=0)
    top.set(title="dimensionality of each feature (one colour per set)", ylim=(0, 1.05), xscale="log")
    bottom.set(title="held-out loss", xlabel="step", yscale="log")
    return figure
