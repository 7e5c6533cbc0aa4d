"""From embedding to logits, a few frequencies explain almost everything; not so with shuffled labels (Nanda, figure 5).

Left: share of each living neuron's variance over all pairs that one frequency explains. After training on addition
most lie beyond the paper's threshold of .85 (about .96 is what an ideal ReLU neuron reaches); with shuffled labels none
does. Right: what the key frequencies explain at each stage, a dot for each seed: power of the embedding, share of
neurons beyond .85, the neuron-logit map W_L, the neurons along its directions as cos and sin of w(a + b), and the
logits as a sum of cos w(a + b - c).
"""

import numpy as np
import xarray as xr

from toylab.measures.fourier import LogitFourier, Neurons, Spectra
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["nanda2023", "nanda2023_shuffled"]
STAGES = ["embedding", "neurons", "W_L", "directions", "logits"]  # in the order of the computation
BINS = np.linspace(0, 1, 41)


def compute(runs):
    """Per run: the histogram of neuron fractions and what the key frequencies explain at each stage."""
    counts, shares = [], []
    for run in runs:
        end = [run.map(tool, run.steps[-1]).isel(step=0) for tool in (Neurons(), Spectra(), LogitFourier("current"))]
        neurons, spectra, logits = end
        frac = neurons.neuron_frac.values
        counts.append(np.histogram(frac[frac > 0], BINS)[0])
        key = logits.key_freqs_current.values > 0
        shares.append(
            [
                float(spectra.embed_power.values[key].sum()),
                float(neurons.neurons_explained),
                1 - float(neurons.W_L_residual),
                float(neurons.direction_fve) if key.any() else 0.0,
                float(logits.logit_fve_current),
            ]
        )
    arrays = {"neurons": (("run", "bin"), np.array(counts)), "share": (("run", "stage"), np.array(shares))}
    labels = [run.task.labels for run in runs]
    return xr.Dataset(arrays, {"bin": BINS[:-1], "stage": STAGES, "labels": ("run", labels)})


def draw(table):
    figure, (histogram, stages) = subplots(1, 2, 2.8)
    for kind, color, label in (("true", BLUE, "addition"), ("shuffled", GREY, "shuffled labels")):
        ours = table.isel(run=np.flatnonzero(table.labels.values == kind))
        if not ours.sizes["run"]:
            continue
        mean = ours.neurons.mean("run")
        histogram.stairs(mean.values, BINS, fill=True, color=color, alpha=0.75, label=label)
        place = np.arange(len(table.stage))
        for i in range(ours.sizes["run"]):
            stages.plot(
                place,
                ours.share.values[i],
                "o" if kind == "true" else "x",
                color=color,
                ms=5,
                alpha=0.8,
                label=label if i == 0 else None,
            )
    histogram.axvline(0.85, color=ORANGE, lw=1, ls="--")
    histogram.text(0.84, 0.97, "0.85", color=ORANGE, ha="right", va="top", transform=histogram.get_xaxis_transform())
    histogram.set(
        title="number of neurons (mean over seeds)", xlabel="variance explained by one frequency", xlim=(0, 1)
    )
    histogram.legend(loc="upper center")
    stages.set(title="share explained by the key frequencies", ylim=(-0.04, 1.04), xlim=(-0.4, len(table.stage) - 0.6))
    stages.set_xticks(np.arange(len(table.stage)), table.stage.values, fontsize=8)
    stages.legend(loc="center left")
    return figure
