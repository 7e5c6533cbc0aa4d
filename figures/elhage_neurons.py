"""Neurons that stand for one feature, and neurons that stand for several (Elhage et al. 2022).

Left: the ReLU-hidden model, whose hidden layer has a privileged basis. Right: a model that computes |x| with fewer
neurons than features. One panel per density, from dense (top) to sparse, the best seed of each. Each bar is a neuron,
each segment a feature that it reads, as long as |weight|, coloured by feature. Dense models have bars of mostly one
colour; the rarer the features, the more of them share a neuron. Purity: the longest segment's share of its bar.
"""

import numpy as np
import xarray as xr

from toylab.measures.basic import Loss
from toylab.measures.superposition import NeuronWeights
from toylab.plotting import subplots

NEEDS = ["tms_relu_hidden", "tms_abs"]
KINDS = ("relu_hidden", "absolute")
SHOWN = 4


def compute(runs):
    """weight [kind, level, feature, neuron], purity and p [kind, level] of the best run at some densities; nan where a
    model has no such feature or neuron."""
    found = {}
    for run in runs:
        key = run.experiment.model.kind, float(run.task.density()[0])
        end = xr.merge([run.map(t, run.steps[-1]).isel(step=0, drop=True) for t in (Loss(), NeuronWeights())])
        if key not in found or end.test_loss < found[key].test_loss:
            found[key] = end
    kinds = []
    for kind in KINDS:
        levels = np.array(sorted((p for k, p in found if k == kind), reverse=True))
        shown = levels[np.linspace(0, len(levels) - 1, SHOWN).round().astype(int)]
        tables = [found[kind, p][["neuron_weight", "neuron_purity"]] for p in shown]
        kinds.append(labelled(xr.concat(tables, "level").assign(p=("level", shown))))
    return xr.concat(kinds, "kind", join="outer").assign_coords(kind=list(KINDS))


def labelled(table):
    """With coordinates, so that models of other sizes can be joined."""
    return table.assign_coords({name: np.arange(table.sizes[name]) for name in ("feature", "neuron")})


def draw(table):
    from matplotlib import colormaps

    figure, axes = subplots(table.sizes["level"], 2, 6.2, squeeze=False, gridspec_kw={"width_ratios": (1, 1.8)})
    for column, kind in enumerate(table.kind.values):
        for row in range(table.sizes["level"]):
            one, ax = table.sel(kind=kind).isel(level=row), axes[row, column]
            size = abs(one.neuron_weight.dropna("feature", how="all").dropna("neuron", how="all").values)
            base = np.cumsum(size, 0) - size
            for f, color in enumerate(colormaps["turbo"](np.linspace(0.05, 0.95, len(size)))):
                ax.bar(np.arange(size.shape[1]), size[f], 0.85, base[f], color=color)
            ax.set_title(f"{kind}, p = {float(one.p):.2g}: purity {float(one.neuron_purity.mean()):.2f}")
            ax.set(xticks=[])
            ax.grid(visible=False)
        axes[-1, column].set_xlabel("neuron")
    return figure
