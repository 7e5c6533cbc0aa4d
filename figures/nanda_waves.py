"""Attention, neurons and logits are waves over a and b: checks, dots and diagonals (Nanda et al. 2023, figure 4).

Top: as functions of the two operands, the attention from "=" to a in two heads, two neurons, and the logit of answer 0.
Bottom: the same tables in the two-dimensional Fourier basis; a dot's area is the energy at its pair of frequencies, the
constant left out. Attention has its weight on the edges, as waves of a or of b alone. A neuron has it at one
frequency k: at (k, 0), at (0, k), and at (k, k), where a and b are multiplied. The logit has nothing but the diagonal
cells of the key frequencies: it is a function of a + b.
"""

import matplotlib as mpl
import numpy as np
import torch
import xarray as xr

from toylab.interp.fourier import power_2d
from toylab.interp.group_addition import neuron_frequencies
from toylab.plotting import BLUE, subplots

NEEDS = ["nanda2023"]


def compute(runs):
    """Tables over (a, b), and their spectra, of two heads, two neurons and one output of the first run at its end."""
    run = runs.runs[0]
    snap, group = run.final, run.task.as_group().group
    n = run.task.p
    to_a = snap.site("pattern", 0)[:, :, 0, snap.task.operand_positions[0]].double()  # [pair, head]
    post = snap.site("post", 0)[:, 0].double()
    heads = to_a.var(0).argsort(descending=True)[:2]
    neurons = neuron_frequencies(post, group)
    # The neuron that varies most, and the one that varies most among those of another frequency.
    size = post.var(0) * (neurons.frac > 0.85)
    first = int(size.argmax())
    second = int((size * (neurons.freq != neurons.freq[first])).argmax())
    names = [f"attention to a, head {h}" for h in heads.tolist()]
    names += [f"neuron {m}, k = {int(neurons.freq[m])}" for m in (first, second)] + ["logit of 0"]
    columns = torch.cat([to_a[:, heads], post[:, [first, second]], snap.logits[:, 0, :1].double()], 1)
    maps = columns.T.reshape(-1, n, n)
    energy = power_2d(maps, group, (1, 2))
    energy[:, 0, 0] = 0
    energy /= energy.sum((1, 2), keepdim=True)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    percent = (100 * (maps - low) / (high - low)).round().to(torch.int8)  # the eye needs no more
    tables = {"percent": (("what", "a", "b"), percent.numpy())}
    tables["energy"] = (("what", "freq_a", "freq_b"), energy.float().numpy())
    return xr.Dataset(tables, {"what": names}, {"seed": run.experiment.seed})


def draw(table):
    figure, axes = subplots(2, 5, 3.3)
    colors = mpl.colormaps["viridis"].resampled(16)  # few colours keep the file small
    for column, name in enumerate(table.what.values):
        one = table.isel(what=column)
        top, bottom = axes[:, column]
        top.imshow(one.percent.values, cmap=colors, origin="lower", interpolation="nearest")
        top.set_title(str(name).replace(", ", ",\n"), fontsize=8)
        freq_a, freq_b = np.nonzero(one.energy.values > 0.005)
        bottom.scatter(
            freq_b, freq_a, 120 * one.energy.values[freq_a, freq_b], color=BLUE, alpha=0.8, lw=0, clip_on=False
        )
        last = one.sizes["freq_a"] - 1
        bottom.set(xlim=(-1, last), ylim=(-1, last), aspect="equal")
        top.grid(False)
        for ax in (top, bottom):
            ax.tick_params(labelsize=7)
        top.set_xlabel("b", fontsize=8, labelpad=1)
        bottom.set_xlabel("frequency in b", fontsize=8, labelpad=1)
    axes[0, 0].set_ylabel("a")
    axes[1, 0].set_ylabel("frequency in a")
    return figure
