"""Features of equal importance in superposition prefer certain fractions of a dimension (Elhage et al. 2022).

Left: dimensions per represented feature, D* = d_hidden / |W|^2, against 1/p. It sticks near 1 (no superposition) and
near 1/2 (antipodal pairs). Right: the dimensionality of every single feature at every level. Lines: fractions at
which regular polytopes lie. Look for the horizontal rows of dots on them, above all on 1/2; many features lie between.
"""

import xarray as xr

from toylab.interp.superposition import POLYTOPES
from toylab.measures.superposition import Geometry
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["tms_geometry"]


def compute(runs):
    """Geometry of the last network of every run."""
    rows = [run.map(Geometry(), run.steps[-1]).isel(step=0, drop=True) for run in runs]
    return xr.concat(rows, "run").assign(p=("run", [float(run.task.density()[0]) for run in runs])).sortby("p")


def draw(table):
    figure, (left, right) = subplots(1, 2, 3.4, gridspec_kw={"width_ratios": (1, 1.6)})
    x = 1 / table.p.values
    left.plot(x, table.dims_per_feature, "o-", color=BLUE, ms=3)
    for level in (1, 0.5):
        left.axhline(level, color=GREY, lw=0.8, ls=":")
    left.set(xscale="log", ylim=(0, 1.1), xlabel="1 / p", title="dimensions per feature, D*")
    for (size, rank), name in POLYTOPES.items():
        right.axhline(rank / size, color=ORANGE, lw=0.8, zorder=0)
        place = {5: "bottom", 8: "top"}.get(size, "center")  # 2/5 and 3/8 are near each other
        at = {"transform": right.get_yaxis_transform(), "va": place, "fontsize": 7, "color": GREY}
        right.text(1.01, rank / size, f"{name} {rank}/{size}", **at)
    shown = table.norm.values > 0.1
    for k, at in enumerate(x):
        D = table.dimensionality.values[k][shown[k]]
        right.plot([at] * len(D), D, ".", color=BLUE, ms=2.5, alpha=0.5)
    right.set(xscale="log", ylim=(0, 1.05), xlabel="1 / p", title="dimensionality of each feature")
    return figure
