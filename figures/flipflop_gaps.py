"""Glitches of the flip-flop language: how often a read is wrong, by how long ago the write was (Liu et al. 2023).

Error rate at reads against instructions since the last write: on the language of training (ignore .8), on one with
rarer writes and longer gaps (.98), and on one with many writes and reads (.1); faint: single runs. A point at the
bottom has no error among its reads. Where two lines differ at the same gap, it is not the gap alone that misleads the
network, but what else the row holds.
"""

import numpy as np
import torch
import xarray as xr

from toylab.data import generator
from toylab.measures.shift import Shifted
from toylab.plotting import BLUE, GREEN, RED, subplots

NEEDS = ["liu2023"]
LANGUAGES = {0.8: BLUE, 0.98: RED, 0.1: GREEN}
FLOOR = 1e-5


def compute(runs):
    """error, count [run, language, gap]."""
    n_gaps = max(run.task.length for run in runs) // 2
    error, count = (np.zeros((len(runs), len(LANGUAGES), n_gaps)) for _ in range(2))
    for i, run in enumerate(runs):
        snap = run.final
        for j, p in enumerate(LANGUAGES):
            batch = Shifted({"p_ignore": p}).task(snap).sample(4096, generator(0, "gaps"))
            with torch.no_grad():
                wrong = torch.cat([snap.model(x).argmax(-1) for x in batch.inputs.split(512)]) != batch.targets
            asked = batch.weight > 0
            gap = snap.task.gaps(batch.inputs)[asked]
            count[i, j] = gap.bincount(minlength=n_gaps).numpy()
            error[i, j] = gap[wrong[asked]].bincount(minlength=n_gaps).numpy()
    dims = ("run", "language", "gap")
    rate = error / np.where(count, count, np.nan)
    return xr.Dataset({"error": (dims, rate), "count": (dims, count)}, {"language": list(LANGUAGES)})


def draw(table):
    figure, ax = subplots(1, 1, 2.8)
    for j, (p, color) in enumerate(LANGUAGES.items()):
        for row in table.error.values[:, j]:
            ax.plot(np.maximum(row, FLOOR), color=color, alpha=0.3, lw=0.8)
        counts = table["count"].values[:, j].sum(0)
        pooled = np.nansum(table.error.values * table["count"].values, 0)[j] / np.where(counts, counts, np.nan)
        ax.plot(np.maximum(pooled, FLOOR), "o-", color=color, ms=3, label=f"ignore {p:g}")
    ax.set(yscale="log", xlabel="instructions since the last write", ylabel="error rate", ylim=(FLOOR / 1.5, 1))
    ax.legend(loc="upper right", fontsize=8)
    return figure
