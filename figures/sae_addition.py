"""Dictionaries of the MLP through grokking: latents turn from tables into waves, at the final frequencies first.

Two sparse autoencoders (128 latents, 16 on) are trained on the MLP's 512 neurons, over all pairs, at each of 14
checkpoints. Top left: losses; with the key frequencies of the finished network kept (restricted) or removed (excluded).
Top right: the share of latents that a key frequency leads (blue) leaves chance, 5 of 56, while the training pairs are
being memorised, and is nearly 1 before test accuracy (orange) moves; so it is for the neurons themselves (dashed). The
share with more than half of their variance at one frequency (green) rises last. Bottom left: every latent by the share
of its variance at the frequency that leads it, coloured if that is a key one.
Bottom right: cosines of one-to-one matched latents, of the two seeds at one checkpoint (blue) and with the other seed's
dictionary of the finished network (orange); dotted, what random directions in the same space would show. Seeds agree
before anything is learned, on tables of single numbers: agreement alone is no sign of a mechanism. In the end they
agree less beyond chance, as a wave may be cut into latents at any phase: what they share are the frequencies.
"""

import numpy as np

from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining
from toylab.measures.basic import Loss
from toylab.measures.dictionaries import DictionaryWaves
from toylab.measures.fourier import LogitFourier, Neurons
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, subplots

NEEDS = ["demo"]
MEASURE = DictionaryWaves(
    "post0",
    TopK(d_sae=128, k=16, lr=2e-3),
    SAETraining(steps=600, batch_size=1024, lr_warmup=50, dead_after=100),
    hindsight=True,
)
FROM, COUNT = 20, 13  # before step 20 nothing happens


def compute(runs):
    """Losses at every checkpoint of the first run (dim step); dictionaries at some of them (dim checkpoint)."""
    run = next(iter(runs))
    table = run.map(LogitFourier("final"), reference=run.reference())[["restricted_loss", "excluded_loss", "key_freqs"]]
    table = table.assign(key_freqs=table.key_freqs.isel(step=-1))
    table = table.merge(run.map(Loss())[["train_loss", "test_loss", "test_accuracy"]])
    steps = np.array(run.steps)
    wanted = np.geomspace(FROM, steps[-1], COUNT)
    chosen = sorted({0, *steps[np.abs(steps[:, None] - wanted).argmin(0)].tolist()})
    found = run.map(MEASURE, chosen, run.reference(), progress=True).rename(step="checkpoint").drop_vars("W_dec")
    neurons = run.map(Neurons(), chosen).rename(step="checkpoint").neuron_freq
    keys = table.freq[table.key_freqs > 0]
    led = {"led_by_key": _led(found.latent_freq, keys, "latent"), "neurons_led": _led(neurons, keys, "neuron")}
    return table.merge(found).assign(led)


def _led(freq, keys, dim):
    """The share of what varies at all whose leading frequency is one of these."""
    return freq.isin(keys).sum(dim) / (freq > 0).sum(dim)


def draw(table):
    figure, axes = subplots(2, 2, 5.2, sharex=True)
    (losses, share), (latents, agreement) = axes
    colors = {"train_loss": BLUE, "test_loss": ORANGE, "restricted_loss": GREEN, "excluded_loss": RED}
    for name, color in colors.items():
        losses.plot(table.step, table[name], color=color, lw=1.2, label=name.removesuffix("_loss"))
    losses.set(yscale="log", title="losses (nats)")
    losses.legend(fontsize=7, loc="lower left")

    at, keys = table.checkpoint.values, table.freq.values[table.key_freqs.values > 0]
    for name, color, label in (
        ("led_by_key", BLUE, "latents led by a key frequency"),
        ("one_frequency", GREEN, "latents mostly at one frequency"),
    ):
        share.plot(at, table[name].mean("sae"), "o-", ms=3, color=color, label=label)
        share.fill_between(at, table[name].min("sae"), table[name].max("sae"), color=color, alpha=0.2, lw=0)
    share.plot(at, table.neurons_led, color=BLUE, lw=0.8, ls="--", label="neurons led by a key frequency")
    share.plot(table.step, table.test_accuracy, color=ORANGE, lw=1.2, label="test accuracy")
    share.axhline(len(keys) / (table.sizes["freq"] - 1), color=BLUE, lw=1, ls=":")
    share.set(title="shares of latents, and accuracy", ylim=(-0.02, 1.04))
    share.legend(fontsize=7, loc="upper left")

    _scatter(latents, table, keys)
    for name, color, label in (("seed", BLUE, "two seeds, same step"), ("final", ORANGE, "with the final, other seed")):
        agreement.plot(at, table[f"{name}_cosine"], "o-", ms=3, color=color, label=label)
        agreement.plot(at, table[f"{name}_chance"], ":", color=color, lw=1)
    agreement.set(title="cosine of matched latents", ylim=(0, 0.85), xlabel="step")
    agreement.legend(fontsize=7, loc="upper left")
    for ax in axes.flat:
        ax.set_xscale("symlog", linthresh=FROM)
        ax.set_xlim(-3, int(at[-1]) * 1.2)
        ax.set_xticks([0, 20, 100, 300, 1000], ["0", "20", "100", "300", "1,000"])
        ax.minorticks_off()
    figure.text(0.995, 0.002, "dotted: chance", ha="right", va="bottom", fontsize=7, color=GREY)
    return figure


def _scatter(ax, table, keys):
    """Every latent that varies, at its step (spread a little) and the share of its leading frequency."""
    at = table.checkpoint.values
    freq, frac = (table[f"latent_{name}"].values.reshape(len(at), -1) for name in ("freq", "frac"))
    spread = np.random.default_rng(0).uniform(-0.07, 0.07, freq.shape) * np.maximum(at, FROM)[:, None]
    palette = dict(zip(keys.tolist(), (BLUE, ORANGE, GREEN, RED, PURPLE, "black"), strict=False))
    for k in [None, *palette]:
        chosen = ~np.isin(freq, [*palette]) & (freq > 0) if k is None else freq == k
        label, color = ("other", "#bbbbbb") if k is None else (f"k = {k}", palette[k])
        ax.plot((at[:, None] + spread)[chosen], frac[chosen], ".", ms=2.2, color=color, alpha=0.8, label=label)
    ax.axhline(MEASURE.dominant, color=GREY, lw=0.8)
    ax.set(title="each latent's share at its leading frequency", ylim=(-0.02, 1), xlabel="step")
    ax.legend(fontsize=6, loc="upper left", ncols=2, markerscale=3, handletextpad=0.1)
