"""The embedding and the neuron-logit map use a few frequencies and hardly any other (Nanda et al. 2023, figure 3).

Top: length of the token embedding W_E along each Fourier wave over the tokens; bottom: of the neuron-logit map
W_L = W_out W_U along each wave over the outputs. For every frequency a bar for its cosine and one for its sine. Orange
and numbered: the key frequencies, found in the logits and not in these spectra. Grey line: the same network untrained,
where all waves are alike. A frequency that is tall in the embedding and small in W_L is represented and not used.
"""

import numpy as np

from toylab.interp.fourier import fourier_basis
from toylab.measures.fourier import LogitFourier, Spectra
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["nanda2023"]


def compute(runs):
    """Fourier norms of W_E and W_L at the start and at the end of the first run, and its key frequencies."""
    run = runs.runs[0]
    group = run.task.as_group().group
    table = run.map(Spectra(), [run.steps[0], run.steps[-1]])[["embed_norm", "W_L_norm"]]
    found = run.map(LogitFourier("current"), run.steps[-1]).isel(step=0, drop=True)
    basis = fourier_basis(group)
    table = table.assign_coords(row_freq=("row", np.array(basis.freqs)[basis.freq_index]))
    return table.assign(key=("key_freq", found.freq.values[found.key_freqs_current.values > 0])).assign_attrs(
        seed=run.experiment.seed
    )


def draw(table):
    figure, axes = subplots(2, 1, 3.8, sharex=True)
    start, end = table.isel(step=0), table.isel(step=-1)
    freq = table.row_freq.values
    is_sine = np.array([str(name).startswith("sin") for name in table.row.values])
    key = np.isin(freq, table.key.values)
    for ax, name, title in zip(
        axes,
        ("embed_norm", "W_L_norm"),
        ("token embedding: norm along each wave", "neuron-logit map: norm along each wave"),
        strict=True,
    ):
        for chosen, color in ((~key, BLUE), (key, ORANGE)):
            ax.bar((freq + np.where(is_sine, 0.2, -0.2))[chosen], end[name].values[chosen], 0.4, color=color)
        ax.plot([0, freq.max()], [start[name].values[1:].mean()] * 2, color=GREY, lw=1, label="untrained (mean)")
        for k in table.key.values:
            height = end[name].values[freq == k].max()
            ax.annotate(str(k), (k, height), ha="center", va="bottom", color=ORANGE, fontsize=8)
        ax.set(title=title, xlim=(-0.8, freq.max() + 0.8))
        ax.margins(y=0.15)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.97))
    axes[1].set(xlabel=f"frequency (0: the constant); seed {table.attrs['seed']}")
    return figure
