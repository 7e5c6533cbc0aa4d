"""The simplex of beliefs in the residual stream (Shai et al. 2024, figure 6).

Every dot is a prefix of Mess3, coloured by the true belief (how much red, green and blue: its three states). Left: the
beliefs themselves, a fractal. Middle: what an affine map of the last residual stream makes of the prefixes it was not
fitted on: the same fractal. Right: the same map fitted on an untrained network of the same shape.
"""

import numpy as np
import xarray as xr

from toylab.interp.probes import fit
from toylab.measures.beliefs import prefix_numbers
from toylab.plotting import subplots

NEEDS = ["mess3", "mess3_untrained"]
SHOWN = 6000


def compute(runs):
    """true, trained, untrained [prefix, state]: of distinct prefixes of the first run, and of the last."""
    table = {}
    for name, run in (("trained", runs.runs[0]), ("untrained", runs.runs[-1])):
        snap = run.final
        inputs = snap.batch.inputs
        belief = snap.task.latents(inputs)["belief"].values.float().flatten(0, 1)
        x = snap.run_with_cache([("resid_post", -1)])[1][("resid_post", -1)].flatten(0, 1)
        number = prefix_numbers(inputs).flatten()
        held = number % 5 == 0
        predicted = fit(x[~held], belief[~held], "ridge").predict(x[held])
        seen = np.unique(number[held].numpy(), return_index=True)[1][:SHOWN]
        table[name] = (("prefix", "state"), predicted.numpy()[seen])
        table["true"] = (("prefix", "state"), belief[held].numpy()[seen])
    return xr.Dataset(table)


def draw(table):
    figure, axes = subplots(1, 3, 2.5)
    corners = np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2]])
    color = np.clip(table.true.values, 0, 1)
    titles = {"true": "true beliefs", "trained": "from the residual stream", "untrained": "from an untrained network"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        xy = table[name].values @ corners
        ax.scatter(xy[:, 0], xy[:, 1], s=1.5, c=color, lw=0, rasterized=True)
        ax.plot(*corners[[0, 1, 2, 0]].T, color="#999999", lw=0.6)
        ax.set(title=title, aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.12, 1))
        ax.axis("off")
    return figure
