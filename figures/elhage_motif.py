"""Asymmetric superposition: one neuron for two features, others to repair the damage (Elhage et al. 2022).

A model that computes |x| of six features with ten neurons, the first seed that shows the motif. Left, middle: what each
neuron reads (W_1) and writes (W_2), red negative. The framed neuron reads one feature strongly and another weakly, and
writes them the other way round: the weakly read one hardly disturbs the other, but the strongly read one disturbs the
output of the weakly read one a lot. Right: with the strongly read feature alone on (one unit), what every neuron puts
on that other output: look for the framed neuron's bar (orange), and for those that take it back.
"""

import numpy as np
import torch
import xarray as xr

from toylab.interp.superposition import asymmetric_motifs
from toylab.measures.superposition import Motifs, NeuronWeights
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["tms_motif"]


def compute(runs):
    """n_motifs of every run; W_1, W_2 [feature, neuron] of the first run that has one (of the first, if none has)."""
    runs = list(runs)
    counts = np.array([float(run.map(Motifs(), run.steps[-1]).n_motifs[0]) for run in runs])
    run = runs[int(np.argmax(counts > 0))]
    W_1, W_2 = (
        run.map(NeuronWeights(which), run.steps[-1]).isel(step=0).neuron_weight.values for which in ("in", "out")
    )
    axes = ("feature", "neuron")
    return xr.Dataset({"W_1": (axes, W_1), "W_2": (axes, W_2), "n_motifs": ("run", counts)})


def draw(table):
    from matplotlib.patches import Rectangle

    W_1, W_2 = table.W_1.values, table.W_2.values
    motifs = asymmetric_motifs(torch.from_numpy(W_1), torch.from_numpy(W_2)).nonzero().tolist()
    figure, (reads, writes, effect) = subplots(1, 3, 3.5, sharey=True, gridspec_kw={"width_ratios": (1, 1, 1.2)})
    for ax, W, title in ((reads, W_1, "reads, $W_1$"), (writes, W_2, "writes, $W_2$")):
        image = ax.imshow(W.T, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
        ax.set(title=title, xlabel="feature", xticks=range(len(W)), yticks=range(W.shape[1]))
        ax.grid(visible=False)
    reads.set_ylabel("neuron")
    figure.colorbar(image, ax=[reads, writes], location="bottom", fraction=0.05, label="weight")
    if not motifs:
        effect.set(title="no motif in any run", xticks=[])
        return figure
    i, j, k = motifs[0]
    for ax in (reads, writes):
        ax.add_patch(Rectangle((-0.5, k - 0.5), len(W_1), 1, fill=False, color=ORANGE, lw=2, clip_on=False))
    put = np.maximum(np.sign(W_1[i, k]) * W_1[i], 0) * W_2[j]
    effect.barh(np.arange(len(put)), put, 0.8, color=[ORANGE if n == k else BLUE for n in range(len(put))])
    effect.axvline(0, color=GREY, lw=0.8)
    effect.axvline(put.sum(), color=GREY, lw=1, ls="--")
    sign = "" if W_1[i, k] > 0 else "-"
    effect.set(title=f"put on output {j} by $x_{i}$ = {sign}1", xlabel=f"dashed: all neurons, {put.sum():.2f}")
    return figure
