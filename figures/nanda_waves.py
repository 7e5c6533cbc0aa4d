"""Attention, neurons and logits are waves over a and b: stripes, checks and diagonals (Nanda et al. 2023, figure 4).

Top: as functions of the two operands, the attention from "=" to a in two heads, two neurons, and the logit of answer 0.
Bottom: the same tables in the two-dimensional Fourier basis, brightness by amplitude, the constant left out. Attention
and neurons have their weight at one frequency k each: on the edges (waves of a or of b alone) and in the corner (k, k)
(products of both). The logit is dark except for the diagonal cells of the key frequencies: it is a function of a + b.
"""

import numpy as np
import torch
import xarray as xr

from toylab.interp.fourier import power_2d
from toylab.interp.group_addition import neuron_frequencies
from toylab.plotting import subplots

NEEDS = ["nanda2023"]


def compute(runs):
    """Tables over (a, b) and their spectra for two heads, two neurons and one output of the first run's last network."""
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
    amplitude = power_2d(maps, group, (1, 2)).sqrt()
    amplitude[:, 0, 0] = 0
    maps = {"map": (("what", "a", "b"), maps.float().numpy())}
    maps["spectrum"] = (("what", "freq_a", "freq_b"), amplitude.float().numpy())
    return xr.Dataset(maps, {"what": names}, {"seed": run.experiment.seed})


def draw(table):
    figure, axes = subplots(2, 5, 3.1)
    for column, name in enumerate(table.what.values):
        one = table.sel(what=name)
        top, bottom = axes[:, column]
        top.imshow(one.map.values, cmap="viridis", origin="lower", interpolation="nearest")
        top.set_title(str(name).replace(", ", ",\n"), fontsize=8)
        bottom.imshow(one.spectrum.values, cmap="magma", origin="lower", interpolation="nearest")
        for ax in (top, bottom):
            ax.grid(False)
            ax.tick_params(labelsize=7)
        top.set_xlabel("b", fontsize=8, labelpad=1)
        bottom.set_xlabel("frequency in b", fontsize=8, labelpad=1)
    axes[0, 0].set_ylabel("a")
    axes[1, 0].set_ylabel("frequency in a")
    assert not np.isnan(table.spectrum.values).any()
    return figure
