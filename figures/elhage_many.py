"""A hundred features of falling importance in twenty dimensions (Elhage et al. 2022, basic results).

Each column is a model, from features that are always on (left) to rare ones; each bar a feature, the most important on
top, as long as the norm of its direction, darker the more others share that direction. Dense models keep the twenty
most important, each on its own, and drop the rest. The rarer features are, the more are represented, in the order of
importance, and the more of them share.
"""

import numpy as np
import xarray as xr

from toylab.measures.superposition import Geometry
from toylab.plotting import GREY, subplots

NEEDS = ["tms_many"]


def compute(runs):
    """Norm and polysemanticity of every feature of the last network of every run, dense to sparse."""
    rows = [run.map(Geometry(), run.steps[-1]).isel(step=0, drop=True) for run in runs]
    table = xr.concat(rows, "run")[["norm", "polysemanticity"]]
    sizes = {
        "p": [float(run.task.density()[0]) for run in runs],
        "hidden": [run.experiment.model.d_hidden for run in runs],
    }
    return table.assign({name: ("run", values) for name, values in sizes.items()}).sortby("p", ascending=False)


def draw(table):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = subplots(1, table.sizes["run"], 3.6, sharey=True, squeeze=False)
    n, shade = table.sizes["feature"], ScalarMappable(Normalize(-0.2, 1.1), "YlOrRd")
    for one, ax in zip((table.isel(run=i) for i in range(table.sizes["run"])), axes[0], strict=True):
        ax.barh(np.arange(n), one.norm.values, height=1, color=shade.to_rgba(np.clip(one.polysemanticity.values, 0, 1)))
        ax.axhline(float(one.hidden) - 0.5, color=GREY, lw=0.8, ls=":")
        kept = int((one.norm > 0.5).sum())
        ax.set(xlim=(0, 1.3), ylim=(n - 0.5, -0.5), xlabel="norm", title=f"p = {float(one.p):.2g}\n{kept} represented")
        ax.grid(visible=False)
    axes[0, 0].set_ylabel("feature, most important first (line: dimensions)")
    bar = figure.colorbar(shade, ax=axes, label="polysemanticity", fraction=0.03, pad=0.02)
    bar.ax.set_ylim(0, 1)
    return figure
