"""MU-GPT: whether a transformer trained on MIU strings finds the invariant, and whether it then denies MU.

A study of our own; there is no paper. "Prediction" is what the reference algorithm, a counter modulo 3, would show, or
what a table of the training strings would not. README.md says what was asked, how, and what was found.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet, first_step, last, ratio
from toylab.cli.figure import figure_module
from toylab.measures.basic import Loss
from toylab.measures.derivations import NextSteps, StepChecks
from toylab.measures.residues import (
    CountingHeads,
    ResidueCode,
    ResidueLosses,
    ResidueSteering,
    TheoremBelief,
    TwinSensitivity,
)
from toylab.tasks.miu_system import n_theorems

FRACTIONS, DECAYS, SCALES, WIDTHS = (0.1, 0.2, 0.4), (0.3, 1.0, 3.0), (1.0, 4.0), (32, 64)
STOP = "train.stop={measure: test_accuracy, at_least: 0.99, hold: 200}"


def changed(name: str, *overrides: str) -> tuple[str, ...]:
    return ("experiment=miu_grok", f"name='{name}'", *overrides)


def early(form: str) -> tuple[str, ...]:
    """Hardly trained."""
    short = ("train.steps=50", "train.eval_every=50", "train.checkpoints=[]")
    return (f"experiment=miu_{form}", f"name=miu_{form}_early", *short)


def cell(width: int, scale: float, frac: float, decay: float) -> tuple[str, ...]:
    """One cell of the map: stopped once it generalises, read from the log alone."""
    return changed(
        f"miu_map/width={width}_scale={scale:g}_frac={frac:g}_decay={decay:g}",
        f"model.d_model={width}",
        f"model.d_head={width // 4}",
        f"model.d_mlp={4 * width}",
        f"model.init_scale={scale}",
        f"task.frac_train={frac}",
        f"optim.weight_decay={decay}",
        "measure=[]",
        "train.steps=4000",
        "train.checkpoints=[]",
        STOP,
    )


RUNS = (
    RunSet("main", (("experiment=miu_grok",),), 5, "is it a theorem; 15 % of the strings, first weights x 4"),
    RunSet("small weights", (changed("miu_small", "model.init_scale=1", "train.steps=2000"),), 3, "first weights x 1"),
    RunSet("no weight decay", (changed("miu_no_decay", "optim.weight_decay=0", "train.steps=5000"),), 2, "placebo"),
    RunSet("shuffled labels", (changed("miu_shuffled", "task.labels=shuffled", "train.steps=5000"),), 2, "placebo"),
    RunSet("prefix", (("experiment=miu_prefix",),), 3, "the residue after every symbol"),
    RunSet("language", (("experiment=miu_language",),), 3, "the next symbol of theorems"),
    RunSet("validity", (("experiment=miu_validity",),), 3, "does t follow from s, and by which rule"),
    RunSet("derivation", (("experiment=miu_derivation",),), 3, "the next string of a derivation"),
    RunSet("validity, early", (early("validity"),), about="placebo: 50 steps of training"),
    RunSet("derivation, early", (early("derivation"),), about="placebo: 50 steps of training"),
    RunSet(
        "map",
        tuple(cell(w, s, f, d) for w in WIDTHS for s in SCALES for f in FRACTIONS for d in DECAYS),
        2,
        "share x weight decay x first weights x width; train_map.py trains it as ensembles",
    ),
)
QUICK = (
    RunSet(
        "main",
        (changed("miu_quick", "task.frac_train=0.2", "train.steps=3000", "train.checkpoints=['log:30','every:100']"),),
    ),
    RunSet("small weights", (changed("miu_quick_small", "model.init_scale=1", "train.steps=1000"),)),
    RunSet("shuffled labels", (changed("miu_quick_shuffled", "task.labels=shuffled", "train.steps=1500"),)),
    RunSet("prefix", (("experiment=miu_prefix", "name=miu_quick_prefix", "train.steps=800"),)),
)
FIGURES = {
    "mu_grok": ("main",),
    "mu_comb": ("main", "prefix"),
    "mu_map": ("map",),
    "mu_steps": ("validity", "derivation"),
}


def measure(key: str, runs):
    """Of the map its events; of the language its losses; of single steps and derivations what they get right; of all
    others every measure at every checkpoint, and twins, heads and steering at the last one.
    """
    if key == "map":
        return figure_module("mu_map").compute(runs)
    if key.startswith("validity"):
        return xr.merge([runs.map(m) for m in (Loss(), StepChecks(), ResidueCode(3, site="mlp_out"))])
    if key.startswith("derivation"):
        return xr.merge([runs.map(m) for m in (Loss(), NextSteps())])
    if key == "language":
        belief = runs.map(TheoremBelief(("MUUUUUUUUUU", "MIIUIIUIIUI"), n=50))[["p_theorem"]]
        return xr.merge([runs.map(Loss()), belief])
    through = (Loss(), ResidueCode(3, site="mlp_out"), ResidueLosses(3), TheoremBelief())
    ends = [at_the_end(runs, tool) for tool in (ResidueSteering(3), CountingHeads(), TwinSensitivity())]
    return xr.merge([*(runs.map(m, progress=True) for m in through), *ends], compat="no_conflicts", join="outer")


def at_the_end(runs, tool):
    """A tool at the last checkpoint of every run, along `seed`."""
    return runs.join([run.map(tool, run.steps[-1]).isel(step=0, drop=True) for run in runs])


# --- What the claims read ---------------------------------------------------------------------------------------------


def memorised(t):
    return first_step(t.train_accuracy >= 0.99)


def general(t):
    return first_step(t.test_accuracy >= 0.95)


def period_3(t):
    """[seed], Fourier power of the means of the MLP's output by count at 1/3; 0 where another period has more."""
    share = t.period_share
    found = last(share.sel(period=3))
    others = np.stack([last(share.sel(period=q)) for q in share.period.values if q != 3])
    return np.where(found > others.max(0), found, 0.0)


def p_of(t, *strings):
    """[seed], the largest P(theorem) of these strings at the end."""
    return np.stack([last(t.p_theorem.sel(string=s)) for s in strings]).max(0)


def on_slice(t, name):
    return last(t.slice_accuracy.sel(slice=name))


def hidden(t):
    """[seed], steps from excluded loss above twice the training loss and 0.1 nats, after memorising, to 75 % test."""
    risen = (t.excluded_loss > 2 * t.train_loss) & (t.excluded_loss > 0.1) & (t.train_accuracy >= 0.99)
    return first_step(t.test_accuracy >= 0.75) - first_step(risen)


def floor():
    """Nats per token of a perfect model of theorems of 10 symbols: log T(10) over its 10 symbols and EOS."""
    return math.log(n_theorems(10)) / 11


def over_map(t, name, low, high):
    """[one number], median over the other settings of general(low) / general(high), where both are finite."""
    a, b = (t.general.sel({name: value}).values for value in (low, high))
    seen = np.isfinite(a) & np.isfinite(b)
    return [float(np.median(a[seen] / b[seen])) if seen.any() else math.nan]


def delay_by_scale(t):
    """[one number], median delay (general / memorised) at the largest first weights over that at the smallest."""
    delay = [ratio(t.general.sel(scale=s), t.memorised.sel(scale=s)) for s in (SCALES[-1], SCALES[0])]
    finite = [d[np.isfinite(d)] for d in delay]
    return [float(np.median(finite[0]) / np.median(finite[1])) if all(map(len, finite)) else math.nan]


CLASSIFY_PLACEBOS = ("no weight decay", "shuffled labels")

CLAIMS = (
    Claim(
        "generalises",
        "15 % of the strings are enough: held-out accuracy at the end",
        "1 for a counter, 1/2 for a table",
        "derived",
        "> 0.95",
        lambda t: last(t["main"].test_accuracy),
        lambda v: v > 0.95,
        placebos=CLASSIFY_PLACEBOS,
        figure="mu_grok",
    ),
    Claim(
        "groks",
        "It memorises first: steps to 95 % held-out over steps to 99 % training accuracy",
        "several (grokking); 1 for one that never memorises",
        "derived",
        "> 2",
        lambda t: ratio(general(t["main"]), memorised(t["main"])),
        lambda v: 2 < v < np.inf,
        placebos=("small weights", "shuffled labels"),
        figure="mu_grok",
    ),
    Claim(
        "at once",
        "With first weights of the usual size it does not: the same ratio",
        "1: even attention counts from the start",
        "derived",
        "<= 1.5",
        lambda t: ratio(general(t["small weights"]), memorised(t["small weights"])),
        lambda v: v <= 1.5,
        needs=("small weights",),
        placebos=("main",),
        figure="mu_map",
    ),
    Claim(
        "decay",
        "Without weight decay the table stays: held-out accuracy at the end",
        "1/2",
        "derived",
        "< 0.8",
        lambda t: last(t["no weight decay"].test_accuracy),
        lambda v: v < 0.8,
        needs=("no weight decay",),
        placebos=("main",),
    ),
    Claim(
        "Z3 code",
        "The MLP's output turns with period 3 in #I: Fourier power at 1/3, more than at 1/2, 1/4 ... 1/7",
        "1 for the hand-built counter",
        "derived",
        "> 0.7",
        lambda t: period_3(t["main"]),
        lambda v: v > 0.7,
        placebos=CLASSIFY_PLACEBOS,
        figure="mu_grok",
    ),
    Claim(
        "probe",
        "A linear probe reads the residue, beyond what the tokens give",
        "accuracy 1 for the hand-built counter",
        "derived",
        "gain over the input probe > 0.25",
        lambda t: last(t["main"].probe_accuracy) - last(t["main"].input_accuracy),
        lambda v: v > 0.25,
        placebos=CLASSIFY_PLACEBOS,
        figure="mu_grok",
    ),
    Claim(
        "restricted",
        "What of the logits depends on the residue alone is enough on held-out strings: loss",
        "the full loss, for a counter",
        "derived",
        "< 0.1 nats",
        lambda t: last(t["main"].restricted_test_loss),
        lambda v: v < 0.1,
        placebos=CLASSIFY_PLACEBOS,
        figure="mu_grok",
    ),
    Claim(
        "excluded",
        "Without that part the training strings are not answered either: loss",
        "log 2 = 0.69 or more for a counter, the training loss for a table",
        "derived",
        "> 0.35 nats",
        lambda t: last(t["main"].excluded_loss),
        lambda v: v > 0.35,
        placebos=CLASSIFY_PLACEBOS,
        figure="mu_grok",
    ),
    Claim(
        "hidden progress",
        "Excluded loss rises before held-out accuracy reaches 75 %: steps between",
        "> 0 as in modular addition",
        "derived",
        "not judged",
        lambda t: hidden(t["main"]),
        None,
        figure="mu_grok",
    ),
    Claim(
        "counter share",
        "Share of the variance of the MLP's output that is the three-state counter",
        "1 for the hand-built recogniser",
        "derived",
        "not judged",
        lambda t: last(t["main"].residue_share),
        None,
        figure="mu_comb",
    ),
    Claim(
        "triangle, theorem or not",
        "Theorem or not: the three residues' means are an equilateral triangle, shortest side over longest",
        "1 is not needed: residues 1 and 2 share their answer",
        "derived",
        "not judged",
        lambda t: last(t["main"].polygon),
        None,
        figure="mu_comb",
    ),
    Claim(
        "triangle, residues",
        "Residue after every symbol: the same triangle",
        "near 1",
        "derived",
        "> 0.7",
        lambda t: last(t["prefix"].polygon),
        lambda v: v > 0.7,
        needs=("prefix",),
        figure="mu_comb",
    ),
    Claim(
        "steering",
        "Adding the difference of two residues' means turns the answer into the next residue's (prefix)",
        "1 for a causal code",
        "derived",
        "accuracy > 0.9, and > 0.4 above a random direction",
        lambda t: np.minimum(
            t["prefix"].turned_accuracy, t["prefix"].turned_accuracy - t["prefix"].random_accuracy + 0.5
        ),
        lambda v: v > 0.9,
        needs=("prefix",),
        placebos=("shuffled labels",),
    ),
    Claim(
        "counting head",
        "One head's attention carries the count: largest squared correlation over heads",
        "1 for the hand-built head; near 1 in untrained ones too",
        "derived",
        "not judged",
        lambda t: t["main"].copies_count.max(("layer", "head")).values,
        None,
    ),
    Claim(
        "twins",
        "A flip is seen at every place alike: accuracy on twins at the worst place",
        "1",
        "derived",
        "> 0.9",
        lambda t: t["main"].twin_accuracy.min("place").values,
        lambda v: v > 0.9,
        placebos=CLASSIFY_PLACEBOS,
    ),
    Claim(
        "MU",
        "It denies MU, MUU and MUUU, although no string without an I was ever shown: largest P(theorem)",
        "0 for who has the invariant, 1/2 for the prior",
        "derived",
        "< 0.1",
        lambda t: p_of(t["main"], "MU", "MUU", "MUUU"),
        lambda v: v < 0.1,
        figure="mu_grok",
    ),
    Claim(
        "MU asserted",
        "It calls MU itself a theorem: P(theorem | MU)",
        "0 for who has the invariant",
        "derived",
        "not judged",
        lambda t: p_of(t["main"], "MU"),
        None,
        figure="mu_comb",
    ),
    Claim(
        "MU, prefix",
        "Asked for residues it denies them (a body that begins with U shows the residue of no I)",
        "0",
        "derived",
        "< 0.1",
        lambda t: p_of(t["prefix"], "MU", "MUU", "MUUU"),
        lambda v: v < 0.1,
        needs=("prefix",),
        figure="mu_comb",
    ),
    Claim(
        "many I's",
        "Accuracy on strings of trained lengths with nine I's in ten",
        "1",
        "derived",
        "> 0.9",
        lambda t: on_slice(t["main"], "P(I)=0.9"),
        lambda v: v > 0.9,
        placebos=CLASSIFY_PLACEBOS,
    ),
    Claim(
        "longer",
        "Accuracy on bodies of 11 to 13 symbols, of which 3 to 10 were trained",
        "1 for a counter without end",
        "derived",
        "> 0.9",
        lambda t: on_slice(t["main"], "longer"),
        lambda v: v > 0.9,
        placebos=CLASSIFY_PLACEBOS,
        figure="mu_comb",
    ),
    Claim(
        "language",
        "The language model reaches the exact floor, log T(10) a string, on held-out theorems: loss over floor",
        "1; 1.06 for one that only knows the length",
        "derived",
        "< 1.03",
        lambda t: last(t["language"].test_loss) / floor(),
        lambda v: v < 1.03,
        needs=("language",),
    ),
    Claim(
        "knows the rules",
        "Asked which rule leads from s to t: accuracy on the rule it knows least",
        "1; 0 for who takes every pair for no step",
        "derived",
        "> 0.9",
        lambda t: last(t["validity"].rule_accuracy.min("answer")),
        lambda v: v > 0.9,
        placebos=("validity, early",),
        needs=("validity",),
        figure="mu_steps",
    ),
    Claim(
        "rules need no invariant",
        "... and it has no code for the residue of t: gain of a probe over the input probe",
        "0: no rule asks for it",
        "derived",
        "< 0.1",
        lambda t: last(t["validity"].probe_accuracy) - last(t["validity"].input_accuracy),
        lambda v: v < 0.1,
        placebos=("main",),
        needs=("validity",),
    ),
    Claim(
        "legal steps",
        "It derives: share of its own next strings that follow by a rule, from held-out theorems",
        "1",
        "derived",
        "> 0.9",
        lambda t: last(t["derivation"].legal),
        lambda v: v > 0.9,
        placebos=("derivation, early",),
        needs=("derivation",),
        figure="mu_steps",
    ),
    Claim(
        "derivation floor",
        "Its loss on held-out derivations above the exact floor, nats per token",
        "0",
        "derived",
        "< 0.05",
        lambda t: last(t["derivation"].excess_loss),
        lambda v: v < 0.05,
        placebos=("derivation, early",),
        needs=("derivation",),
    ),
    Claim(
        "stays with theorems",
        "What it derives from theorems are theorems, legal or not",
        "1 for who follows the rules; 2/3 for any string",
        "derived",
        "> 0.9",
        lambda t: last(t["derivation"].theorem),
        lambda v: v > 0.9,
        placebos=("derivation, early",),
        needs=("derivation",),
        figure="mu_steps",
    ),
    Claim(
        "MU after a theorem",
        "MU never is its next string after MI, MII, MIU or MUI: largest P(MU)",
        "0",
        "derived",
        "< 0.001",
        lambda t: last(t["derivation"].p_mu.sel(string=["MI", "MII", "MIU", "MUI"]).max("string")),
        lambda v: v < 0.001,
        needs=("derivation",),
        figure="mu_steps",
    ),
    Claim(
        "MU after MIII",
        "... but after MIII, which is no theorem and was never shown, the rules lead there: P(MU)",
        "1/3 for who knows the rules and nothing else",
        "derived",
        "not judged",
        lambda t: last(t["derivation"].p_mu.sel(string="MIII")),
        None,
        needs=("derivation",),
        figure="mu_steps",
    ),
    Claim(
        "less data, later",
        "A smaller share takes more steps to generalise: steps at .2 over steps at .4, median over the map",
        "> 1",
        "derived",
        "> 1",
        lambda t: over_map(t["map"], "frac", 0.2, 0.4),
        lambda v: v > 1,
        needs=("map",),
        figure="mu_map",
    ),
    Claim(
        "more decay, sooner",
        "Weight decay brings it forward: steps at 1 over steps at 3, median over the map",
        "> 1",
        "derived",
        "> 1",
        lambda t: over_map(t["map"], "decay", 1.0, 3.0),
        lambda v: v > 1,
        needs=("map",),
        figure="mu_map",
    ),
    Claim(
        "first weights",
        "Larger first weights make the delay: median delay at x 4 over that at x 1",
        "> 1",
        "derived",
        "> 1.2",
        lambda t: delay_by_scale(t["map"]),
        lambda v: v > 1.2,
        needs=("map",),
        figure="mu_map",
    ),
)
