"""Remove a key frequency and the answer is gone; keep nothing else and it improves (Nanda et al. 2023, figure 6).

Left: loss on the training pairs after the waves of a + b at one frequency are taken from the logits, for each frequency
of the first run. Only the key ones (orange) matter: the others leave the loss at its old value (line). Right, a dot for
each seed: loss on all pairs of the full network, of its logits without the other frequencies of a + b, of nothing but
the key frequencies of a + b, and of their best fit by cos w(a + b - c). The last two lie below the full network:
what else is in its logits does harm. "Without key", on training pairs, is the excluded loss: worse than guessing.
"""

import numpy as np

from toylab.measures.basic import Loss
from toylab.measures.fourier import LogitFourier
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["nanda2023"]
KINDS = {
    "all_loss": "full",
    "nonkey_removed_loss_current": "others\nremoved",
    "restricted_loss_current": "key\nonly",
    "trig_loss_current": "cosine\nfit",
    "excluded_loss_current": "without\nkey",
}


def compute(runs):
    """Losses of each run's last network, with parts of its logits removed."""
    rows = []
    for run in runs:
        end = [run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in (Loss(), LogitFourier("current"))]
        names = [*KINDS, "train_loss", "excluded_loss_by_freq_current", "key_freqs_current"]
        rows.append(end[0].merge(end[1])[names])
    return runs.join(rows).assign_attrs(guessing=float(np.log(runs.runs[0].task.d_out)))


def draw(table):
    figure, (single, sets) = subplots(1, 2, 2.9)
    one = table.isel(seed=0)
    seen = one.freq.values > 0
    freq, key = one.freq.values[seen], one.key_freqs_current.values[seen] > 0
    loss = one.excluded_loss_by_freq_current.values[seen]
    base = float(one.train_loss)
    for chosen, color, label in ((~key, GREY, "other"), (key, ORANGE, "key")):
        single.vlines(freq[chosen], base, loss[chosen], color=color, lw=1.2)
        single.plot(freq[chosen], loss[chosen], "o", ms=3.5, color=color, label=label)
    for k, value in zip(freq[key], loss[key], strict=True):
        single.annotate(str(k), (k, value), (0, 4), textcoords="offset points", ha="center", color=ORANGE, fontsize=8)
    single.axhline(base, color=BLUE, lw=1, label="nothing removed")
    single.set(yscale="log", title="training loss without one frequency", xlabel="frequency removed")
    single.set_ylim(base / 5, loss.max() * 100)  # room for the legend
    single.legend(loc="upper left", ncols=3, fontsize=8, columnspacing=1, handletextpad=0.3)
    for place, name in enumerate(KINDS):
        values = np.atleast_1d(table[name].values)
        sets.plot(np.full(len(values), place), values, "o", ms=5, alpha=0.8, color=BLUE if place == 0 else ORANGE)
    sets.axhline(table.attrs["guessing"], color=GREY, lw=0.8, ls=":")
    sets.text(0.02, table.attrs["guessing"], "guessing", transform=sets.get_yaxis_transform(), va="bottom")
    sets.set(yscale="log", title="loss of parts of the logits", xlim=(-0.5, len(KINDS) - 0.5))
    sets.set_xticks(range(len(KINDS)), list(KINDS.values()), fontsize=8)
    return figure
