"""Features that come together get a basis of their own (Elhage et al. 2022, local almost-orthogonal bases).

Cosines of the directions of twenty features in ten dimensions. Left: two sets of ten, each all on or all off: within a
set (the blocks on the diagonal) features are orthogonal, and what does not fit goes between the sets, which are never
needed at once. Right: the same twenty features, independent: no blocks. The numbers are root mean square cosines, one
for each seed: 1 / sqrt 10 = .316 between any two orthonormal bases of ten dimensions.
"""

import numpy as np
import xarray as xr

from toylab.measures.superposition import NeuronWeights
from toylab.plotting import subplots

NEEDS = ["tms_local_bases"]
KINDS = ("two sets of ten that come together", "twenty independent features")


def compute(runs):
    """cosine [kind, feature, other] of the first run of each kind; within, between [kind, seed]."""
    found = {kind: [] for kind in KINDS}
    for run in runs:
        W = run.map(NeuronWeights(), run.steps[-1]).isel(step=0).neuron_weight.values
        unit = W / np.linalg.norm(W, axis=1, keepdims=True)
        found[KINDS[run.task.group_size == 1]].append(unit @ unit.T)
    kinds = [kind for kind in KINDS if found[kind]]
    seeds = min(len(found[kind]) for kind in kinds)
    cosine = np.stack([found[kind][:seeds] for kind in kinds])
    first = np.arange(cosine.shape[-1]) < cosine.shape[-1] // 2
    same, other = (first[:, None] == first) & ~np.eye(len(first), dtype=bool), first[:, None] != first
    rms = {name: (cosine[..., mask] ** 2).mean(-1) ** 0.5 for name, mask in (("within", same), ("between", other))}
    return xr.Dataset(
        {"cosine": (("kind", "feature", "other"), cosine[:, 0])}
        | {name: (("kind", "seed"), values) for name, values in rms.items()},
        {"kind": kinds},
    )


def draw(table):
    figure, axes = subplots(1, table.sizes["kind"], 3.7, squeeze=False)
    for i, ax in enumerate(axes[0]):
        image = ax.imshow(table.cosine.values[i], cmap="RdBu", vmin=-1, vmax=1)
        within, between = (", ".join(f"{x:.3f}" for x in table[name].values[i]) for name in ("within", "between"))
        ax.set(title=str(table.kind.values[i]), xticks=[], yticks=[])
        ax.set_xlabel(f"within a set: {within}\nbetween sets: {between}", fontsize=8)
        ax.set_ylabel("feature" if i == 0 else "")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, label="cosine", fraction=0.04, pad=0.02, shrink=0.75)
    return figure
