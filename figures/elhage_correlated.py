"""Features that come together are kept orthogonal, features that exclude each other antipodal (Elhage et al. 2022).

Each panel is the best network of its kind and density; a pair has one colour. First row: pairs that are both on or both
off: right angles within a pair. Second row: pairs of which one at most is on: opposite directions, as they never
interfere. Third row: three correlated pairs; when dense (right) pairs fall together into one direction each, like
principal components.
"""

import numpy as np
import xarray as xr

from toylab.measures.basic import Loss
from toylab.measures.superposition import NeuronWeights
from toylab.plotting import BLUE, GREEN, ORANGE, subplots

NEEDS = ["tms_correlated", "tms_anticorrelated", "tms_three_pairs"]
KINDS = ("together", "exclusive", "three pairs")


def compute(runs):
    """weight [kind, level, feature, neuron] of the best run at each density, sparse to dense; nan for no feature."""
    found = {}
    for run in runs:
        kind = "three pairs" if run.task.n_features == 6 else run.task.grouping
        p = float(run.task.density()[0])
        end = xr.merge([run.map(t, run.steps[-1]).isel(step=0, drop=True) for t in (Loss(), NeuronWeights())])
        if (kind, p) not in found or end.test_loss < found[kind, p].test_loss:
            found[kind, p] = end
    levels = {kind: sorted(p for k, p in found if k == kind) for kind in KINDS}
    depth = max(map(len, levels.values()))
    weight, density = np.full((3, depth, 6, 2), np.nan), np.full((3, depth), np.nan)
    for i, kind in enumerate(KINDS):
        for j, p in enumerate(levels[kind]):
            W = found[kind, p].neuron_weight.values
            weight[i, j, : len(W)], density[i, j] = W, p
    return xr.Dataset(
        {"weight": (("kind", "level", "feature", "neuron"), weight), "p": (("kind", "level"), density)},
        {"kind": list(KINDS)},
    )


def draw(table):
    figure, axes = subplots(3, table.sizes["level"], 6, squeeze=False)
    for i, kind in enumerate(KINDS):
        for j, ax in enumerate(axes[i]):
            for f, x in enumerate(table.weight.values[i, j]):
                ax.plot([0, x[0]], [0, x[1]], "o-", color=(BLUE, ORANGE, GREEN)[f // 2], ms=4, markevery=[1])
            ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])
            ax.set_title(f"p = {table.p.values[i, j]:.2g}")
        axes[i, 0].set_ylabel(kind)
    return figure
