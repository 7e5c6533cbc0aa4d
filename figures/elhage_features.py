"""Five features in two dimensions, from always on (left) to rare (right) (Elhage et al. 2022, introduction).

Top: the directions of the features, brightest = most important. Dense models keep the two most important at right
angles and drop the rest; as features become rare more are fitted in, at first as antipodal pairs, then as a pentagon.
Middle: W W^T with the bias beside it: off the diagonal is interference, which a negative bias filters out. Bottom: the
norm of each feature; the darker the bar, the more others share its direction (polysemanticity, 0 to 1).
"""

import numpy as np
import xarray as xr

from toylab.measures.superposition import Geometry, NeuronWeights
from toylab.plotting import GREY, subplots

NEEDS = ["tms_intro"]
SHOWN = 5


def compute(runs):
    """Weights, bias, norm and polysemanticity of the last network of every run, dense to sparse."""
    rows = [xr.merge([run.map(t, run.steps[-1]).isel(step=0, drop=True) for t in (Geometry(), NeuronWeights())])
            for run in runs]  # fmt: skip
    return (
        xr.concat(rows, "run")
        .assign(p=("run", [float(r.task.density()[0]) for r in runs]))
        .sortby("p")[["neuron_weight", "bias", "norm", "polysemanticity", "p"]]
    )


def draw(table):
    from matplotlib import colormaps

    table = table.isel(run=slice(None, None, -1))
    # The first is dense; the levels between are skipped evenly.
    table = table.isel(run=np.unique(np.linspace(0, table.sizes["run"] - 1, SHOWN).round().astype(int)))
    n = table.sizes["feature"]
    figure, axes = subplots(3, table.sizes["run"], 4.6, squeeze=False, gridspec_kw={"height_ratios": (1, 1, 0.7)})
    shades = colormaps["viridis"](np.linspace(0.9, 0.1, n))
    for column, (top, middle, bottom) in enumerate(axes.T):
        one = table.isel(run=column)
        W, b = one.neuron_weight.values, one.bias.values
        for x, color in zip(W[:, :2], shades, strict=True):
            top.plot([0, x[0]], [0, x[1]], "-", color=color)
            top.plot(*x, "o", color=color, ms=4)
        top.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[], title=f"p = {one.p:.2g}")
        middle.imshow(np.column_stack([W @ W.T, np.full(n, np.nan), b]), cmap="RdBu", vmin=-1.2, vmax=1.2)
        middle.set(xticks=[], yticks=[])
        middle.grid(visible=False)
        colors = colormaps["YlOrRd"](0.15 + 0.75 * np.clip(one.polysemanticity.values, 0, 1))
        bottom.barh(np.arange(n), one.norm.values, color=colors, edgecolor=GREY, linewidth=0.4)
        bottom.set(xlim=(0, 1.5), yticks=[], xlabel="norm")
        bottom.invert_yaxis()
    axes[0, 0].set_ylabel("directions")
    axes[1, 0].set_ylabel("$W W^T$, b")
    axes[2, 0].set_ylabel("feature")
    return figure
