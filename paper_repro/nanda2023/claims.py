"""Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217).

The claims, with the runs that test them. Tolerances and the tag of each value: what could be read of the paper, of
its code or of other people's runs of it; README.md says where we differ and what is not attempted.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet, first_step, last, ratio
from toylab.interp.group_addition import neuron_logit_map, split_by_directions
from toylab.measures.basic import Loss, WeightNorms
from toylab.measures.fourier import Attention, LogitFourier, Neurons, Spectra

GENERAL = 0.95  # test accuracy that counts as having generalised
EVENTS = {"train_accuracy": 0.99, "test_accuracy": GENERAL}


def variant(name: str, *overrides: str, steps: int) -> tuple[str, ...]:
    """The paper's setting with some changes, under its own name and with fewer checkpoints."""
    saved = "train.checkpoints=['log:40','every:200']"
    return ("experiment=nanda2023", f"name='nanda2023_{name}'", f"train.steps={steps}", saved, *overrides)


def swept(name: str, *overrides: str, steps: int) -> tuple[str, ...]:
    """The same for a sweep, which reads the log only: no checkpoints, and stop once general for 500 steps."""
    stop = "train.stop={measure: test_accuracy, at_least: 0.99, hold: 500}"
    return (*variant(name, steps=steps), "train.checkpoints=[]", "train.eval_every=25", stop, *overrides)


DECAYS, FRACTIONS = (0.5, 2.0), (0.2, 0.4, 0.5, 0.7)
# 17.6k steps at weight decay .5 and 3.1k at 2 in a replication, whose seeds spread by a third: budgets leave room.
DECAY_STEPS = {0.5: 25000, 2.0: 8000}
FRACTION_STEPS = {0.2: 15000, 0.4: 12000, 0.5: 6000, 0.7: 4000}
# lr is constant, so these are, bit for bit, the first steps of experiment=nanda2023; clean-up is over when they stop.
MAIN = variant("main", "train.stop={measure: test_accuracy, at_least: 0.999, hold: 2000}", steps=20000)

RUNS = (
    RunSet("main", (MAIN,), 5, "the paper's setting, until 99.9 % test accuracy has held for 2,000 steps"),
    RunSet("no weight decay", (variant("no_decay", "optim.weight_decay=0", steps=8000),), about="placebo"),
    RunSet("shuffled labels", (variant("shuffled", "task.labels=shuffled", steps=8000),), about="placebo"),
    RunSet("stopped early", (variant("early", steps=1000),), about="placebo: memorised, not yet general"),
    RunSet(
        "weight decay",
        tuple(swept(f"decay={d}", f"optim.weight_decay={d}", steps=DECAY_STEPS[d]) for d in DECAYS),
        about="0.5, 2 until they have generalised",
    ),
    RunSet(
        "data fraction",
        tuple(swept(f"frac={f}", f"task.frac_train={f}", steps=FRACTION_STEPS[f]) for f in FRACTIONS),
        about="0.2, 0.4, 0.5, 0.7 until they have generalised",
    ),
)
QUICK = (
    RunSet("main", (("experiment=demo",),), about="the fast recipe: lr 2e-3, weight decay 2"),
    RunSet(
        "shuffled labels",
        (
            (
                "experiment=demo",
                "name=demo_shuffled",
                "task.labels=shuffled",
                "train.stop=null",
                "train.steps=800",
                "train.checkpoints=['log:20','every:100']",
            ),
        ),
        about="placebo",
    ),
    RunSet(
        "stopped early",
        (("experiment=demo", "name=demo_early", "train.stop=null", "train.steps=150", "train.checkpoints=['log:20']"),),
        about="placebo: memorised, not yet general",
    ),
)
FIGURES = {
    "nanda_losses": ("main",),
    "nanda_spectra": ("main",),
    "nanda_waves": ("main",),
    "nanda_explained": ("main", "shuffled labels"),
    "nanda_ablation": ("main",),
    "nanda_progress": ("main",),
    "nanda_sensitivity": ("main", "weight decay", "data fraction"),
}


def measure(key: str, runs):
    """Of a sweep the steps of its events. Of all others the losses, norms and logits at every checkpoint, and neurons
    and attention at each run's last one: these have no `step`.
    """
    if key in ("weight decay", "data fraction"):
        return events(runs, {"weight decay": "weight_decay", "data fraction": "frac_train"}[key])
    loss = runs.map(Loss(), progress=True)
    through = [runs.map(m, progress=True) for m in (WeightNorms(), Spectra())]
    through.append(runs.map(LogitFourier("final"), progress=True, hindsight=True))
    ends = [at_the_end(runs, tool) for tool in (Neurons(), Attention(), mlp_ablation)]
    return xr.merge([loss, *through, *ends], compat="no_conflicts", join="outer")


def events(runs, setting: str):
    """memorised, general [setting]: the first evaluations with 99 % training and 95 % test accuracy; inf = never."""
    rows = []
    for run in runs:
        log = run.metrics().expand_dims("seed")
        value = getattr(run.experiment.optim if setting == "weight_decay" else run.task, setting)
        found = [first_step(log[name] >= level)[0] for name, level in EVENTS.items()]
        rows.append([value, *found])
    values, memorised, general = np.array(sorted(rows)).T
    return xr.Dataset({"memorised": (setting, memorised), "general": (setting, general)}, {setting: values})


def at_the_end(runs, tool):
    """A tool at the last checkpoint of every run, along `seed`."""
    rows = [run.map(tool, run.steps[-1]).isel(step=0, drop=True) for run in runs]
    return runs.join(rows)


def mlp_ablation(snap):
    """Loss on all pairs after the neurons' part in or outside the key directions of W_L is taken from the logits.

    {outside_removed, inside_removed}_loss. The neurons are split by the span of the directions u_k, v_k of
    W_L = W_out W_U; only the path through the MLP is changed. Nanda et al. 2023, section 4.4.
    """
    from toylab.interp.group_addition import key_logit_frequencies

    group = snap.task.as_group().group
    logits, post = snap.logits[:, 0].double(), snap.site("post", 0)[:, 0].double()
    W_L = (snap.model.W_out[0] @ snap.model.W_U).detach().double()
    freqs = key_logit_frequencies(logits, group).freqs
    if not freqs:
        return {"outside_removed_loss": np.nan, "inside_removed_loss": np.nan}
    inside, outside = split_by_directions(post, neuron_logit_map(W_L, freqs, group).directions)
    targets = snap.batch.targets[:, 0]

    def loss(removed):
        log_probs = (logits - removed @ W_L).log_softmax(-1)
        return -log_probs.gather(-1, targets[:, None]).mean().item()

    return {"outside_removed_loss": loss(outside), "inside_removed_loss": loss(inside)}


# --- What the claims read ---------------------------------------------------------------------------------------------


def general(t):
    """[seed], the first checkpoint with test accuracy of at least .95."""
    return first_step(t.test_accuracy >= GENERAL)


def order_of_signs(t):
    """[seed], steps from the later of two hidden signs of progress to the fall of test loss to half its peak.

    The signs: excluded loss above twice its minimum so far (and its minimum lies behind it), restricted loss below
    half of what it was at the start.
    """
    signs = []
    for i in range(t.sizes["seed"]):
        one = t.isel(seed=i).dropna("step", subset=["test_loss"])
        step, test = one.step.values.astype(float), one.test_loss.values
        excluded, restricted = one.excluded_loss.values, one.restricted_loss.values
        halved = first_index((np.arange(len(test)) > test.argmax()) & (test < test.max() / 2))
        risen = first_index(excluded > 2 * np.fmin.accumulate(excluded))
        fallen = first_index(restricted < restricted[0] / 2)
        if None in (halved, risen, fallen):
            signs.append(np.nan)
        else:
            signs.append(step[halved] - max(step[risen], step[fallen]))
    return np.array(signs)


def excluded_rise(t):
    """[seed], excluded loss at the end over its minimum; 1 where there is no key frequency that could be excluded."""
    rise = last(t.excluded_loss) / t.excluded_loss.min("step").values
    return np.where(last(t.n_key_freqs) > 0, rise, 1.0)


def first_index(condition):
    return int(condition.argmax()) if condition.any() else None


def across_cleanup(t, name):
    """[seed], rise of a number from the peak of test loss to the end."""
    rises = []
    for i in range(t.sizes["seed"]):
        one = t.isel(seed=i).dropna("step", subset=["test_loss"])
        values = one[name].values
        rises.append(values[-1] - values[one.test_loss.values.argmax()])
    return np.array(rises)


def single_removals(t):
    """[seed], the largest rise of training loss over key frequencies when one of them alone is removed, as a ratio."""
    losses, key = last_by(t.excluded_loss_by_freq), last_by(t.key_freqs) > 0
    worst = np.where(key, losses, np.nan)
    found = key.any(-1)
    rise = np.full(len(found), np.nan)
    rise[found] = np.nanmax(worst[found], -1) / last(t.train_loss)[found]
    return rise


def last_by(values):
    """[seed, freq] at each seed's last checkpoint; as it is where there is no step."""
    if "step" not in values.dims:
        return values.transpose("seed", ...).values
    return np.stack([last(values.isel(freq=i)) for i in range(values.sizes["freq"])], -1)


PLACEBOS = ("no weight decay", "shuffled labels", "stopped early")

CLAIMS = (
    Claim(
        "generalises",
        "Held-out loss ends near zero, long after training loss",
        "2.0e-7 after 25k steps",
        "seen",
        "final test loss < 1e-5",
        lambda t: last(t["main"].test_loss),
        lambda v: v < 1e-5,
        placebos=PLACEBOS,
        figure="authors' demo notebook; Fig. 2",
    ),
    Claim(
        "test peak",
        "Before that, held-out loss climbs far above guessing (4.73)",
        "34.1 at step 1,400",
        "seen",
        "peak in 20 to 45",
        lambda t: t["main"].test_loss.max("step").values,
        lambda v: 20 <= v <= 45,
        figure="authors' demo notebook; Fig. 2",
    ),
    Claim(
        "delay",
        "Steps from 99 % training to 95 % test accuracy",
        "memorised by 1.4k, clean-up ends at 14k",
        "seen",
        "delay > 5 times the steps to memorise",
        lambda t: ratio(general(t["main"]), first_step(t["main"].train_accuracy >= 0.99)),
        lambda v: 5 < v < np.inf,
        placebos=PLACEBOS,
        figure="Fig. 7",
    ),
    Claim(
        "key count",
        "A handful of frequencies carries the answer",
        "5: 14, 35, 41, 42, 52",
        "seen",
        "3 to 8",
        lambda t: last(t["main"].n_key_freqs),
        lambda v: 3 <= v <= 8,
        placebos=("shuffled labels",),
        figure="Fig. 3",
    ),
    Claim(
        "logit FVE",
        "Logits are a sum of cos w(a+b-c) over the key frequencies",
        "97.5 % on a released model",
        "recomputed",
        "> 90 % of the variance",
        lambda t: last(t["main"].logit_fve),
        lambda v: v > 0.9,
        placebos=PLACEBOS,
        figure="sec. 4.2",
    ),
    Claim(
        "logit FVE, as remembered",
        "The same in the paper's own network",
        "95 %",
        "from memory",
        "not judged",
        lambda t: last(t["main"].logit_fve),
        None,
        figure="sec. 4.2",
    ),
    Claim(
        "trig loss",
        "Replacing the logits by that sum does not hurt",
        "3.5e-7 to 2.2e-9 on a released model",
        "recomputed",
        "loss on all pairs, ratio <= 1",
        lambda t: last(t["main"].trig_loss) / last(t["main"].all_loss),
        lambda v: v <= 1,
        figure="sec. 4.2",
    ),
    Claim(
        "restricted loss",
        "Keeping only the key frequencies of a+b does not hurt",
        "restricted below full loss",
        "recomputed",
        "loss on all pairs, ratio <= 1",
        lambda t: last(t["main"].restricted_loss) / last(t["main"].all_loss),
        lambda v: v <= 1,
        figure="sec. 4.4",
    ),
    Claim(
        "other frequencies",
        "Removing all other frequencies of a+b improves the loss",
        "by about 70 %",
        "summary",
        "not worse: ratio <= 1",
        lambda t: last(t["main"].nonkey_removed_loss) / last(t["main"].all_loss),
        lambda v: v <= 1,
        figure="Fig. 6",
    ),
    Claim(
        "one frequency",
        "Removing a single key frequency destroys the answer",
        "a large increase for each",
        "seen",
        "training loss x 100 or more for at least one",
        lambda t: single_removals(t["main"]),
        lambda v: v > 100,
        placebos=PLACEBOS,
        figure="Fig. 6",
    ),
    Claim(
        "excluded loss",
        "Without the key frequencies the training pairs are not answered either",
        "excluded loss rises while training loss does not",
        "seen",
        "final excluded loss > 2 x its minimum",
        lambda t: excluded_rise(t["main"]),
        lambda v: v > 2,
        placebos=("no weight decay", "shuffled labels"),
        figure="Fig. 7",
    ),
    Claim(
        "neurons",
        "Most neurons follow one frequency (85 % of their variance or more)",
        "433 of 512 = 84.6 %",
        "summary",
        "> 60 % of living neurons",
        lambda t: t["main"].neurons_explained.values,
        lambda v: v > 0.6,
        placebos=PLACEBOS,
        figure="Fig. 5",
    ),
    Claim(
        "W_L rank",
        "The neuron-logit map lies in two directions per key frequency",
        "residual < 0.55 %",
        "summary",
        "residual < 5 %",
        lambda t: t["main"].W_L_residual.values,
        lambda v: v < 0.05,
        placebos=PLACEBOS,
        figure="sec. 4.3",
    ),
    Claim(
        "directions",
        "Along these directions the neurons compute cos and sin of w(a+b)",
        "93 to 98 %",
        "summary",
        "FVE > 85 %",
        lambda t: t["main"].direction_fve.values,
        lambda v: v > 0.85,
        placebos=PLACEBOS,
        figure="sec. 4.3",
    ),
    Claim(
        "complement",
        "Without these directions of the MLP the network is worse than guessing (4.73)",
        "5.27",
        "summary",
        "loss > ln 113",
        lambda t: t["main"].inside_removed_loss.values,
        lambda v: v > np.log(113),
        placebos=("shuffled labels",),
        figure="sec. 4.4",
    ),
    Claim(
        "MLP directions",
        "With only these directions of the MLP the loss is",
        "half of the full loss",
        "summary",
        "not judged: ratio to the full loss",
        lambda t: t["main"].outside_removed_loss.values / last(t["main"].all_loss),
        None,
        figure="sec. 4.4",
    ),
    Claim(
        "attention",
        "A head's attention follows one frequency: smallest share over the heads",
        "no number read",
        "seen",
        "not judged",
        lambda t: t["main"].attn_share.min("head").values,
        None,
        figure="Fig. 4",
    ),
    Claim(
        "hidden progress",
        "Restricted loss falls and excluded loss rises before held-out loss falls",
        "circuit formation 1.4k to 9.4k, clean-up 9.4k to 14k",
        "seen",
        "both signs before test loss is half its peak (steps between > 0)",
        lambda t: order_of_signs(t["main"]),
        lambda v: v > 0,
        placebos=PLACEBOS,
        figure="Fig. 7",
    ),
    Claim(
        "Gini W_E",
        "The embedding becomes sparse in the Fourier basis",
        "a sharp rise in clean-up; ends at .54 to .58 in released models",
        "recomputed",
        "rise > .1 from the peak of test loss to the end",
        lambda t: across_cleanup(t["main"], "embed_gini"),
        lambda v: v > 0.1,
        placebos=PLACEBOS,
        figure="Fig. 7",
    ),
    Claim(
        "Gini W_L",
        "So does the neuron-logit map",
        "a sharp rise in clean-up; ends at .60 to .76 in released models",
        "recomputed",
        "rise > .1 from the peak of test loss to the end",
        lambda t: across_cleanup(t["main"], "W_L_gini"),
        lambda v: v > 0.1,
        placebos=PLACEBOS,
        figure="Fig. 7",
    ),
    Claim(
        "no decay, no circuit",
        "Without weight decay excluded loss stays flat: no circuit forms",
        "flat",
        "seen",
        "final excluded loss <= 2 x its minimum",
        lambda t: excluded_rise(t["no weight decay"]),
        lambda v: v <= 2,
        needs=("no weight decay",),
        placebos=("main",),
        figure="Fig. 27",
    ),
    Claim(
        "weight decay",
        "Steps to generalise go as 1 / weight decay, from .3 to 2",
        "23.9k, 17.6k, 8.35k, 3.1k at .3, .5, 1, 2",
        "replication",
        "steps x weight decay within a factor 2 of that at 1",
        lambda t: [worst_ratio(t["weight decay"].general * t["weight decay"].weight_decay, general(t["main"]))],
        lambda v: v <= 2,
        needs=("weight decay", "main"),
        figure="Fig. 27",
    ),
    Claim(
        "much data",
        "With 70 % of the pairs it generalises at once",
        "immediate from 60 % on",
        "seen",
        "95 % test within 3 times the steps to 99 % train",
        lambda t: ratio(*(t["data fraction"][name].sel(frac_train=[0.7]) for name in ("general", "memorised"))),
        lambda v: v <= 3,
        needs=("data fraction",),
        figure="Fig. 20",
    ),
    Claim(
        "little data",
        "With 20 % it does not generalise",
        "never in 40k",
        "seen",
        "no step with 95 % test accuracy in 15,000",
        lambda t: [float(t["data fraction"].general.sel(frac_train=0.2))],
        lambda v: v == np.inf,
        needs=("data fraction",),
        figure="Fig. 20",
    ),
    Claim(
        "data order",
        "Between them more data means fewer steps: 30 %, 40 %, 50 %",
        "x 10 to 20 between 30 % and 50 % in two replications",
        "replication",
        "steps at .3 / steps at .5 > 3, and .4 between",
        lambda t: [data_order(t["data fraction"].general, general(t["main"]))],
        lambda v: v > 3,
        needs=("data fraction", "main"),
        figure="Fig. 20, 21",
    ),
)


def worst_ratio(products, at_one) -> float:
    """How far, as a factor of 1 or more, the products lie from their value at weight decay 1 (median over seeds)."""
    away = ratio(products.values, np.median(at_one))
    return float(np.maximum(away, 1 / away).max())


def data_order(steps, at_30) -> float:
    """Steps at 30 % over steps at 50 %; 0 unless those at 40 % lie between."""
    few, middle, many = np.median(at_30), float(steps.sel(frac_train=0.4)), float(steps.sel(frac_train=0.5))
    return few / many if many <= middle <= few < np.inf else 0.0
