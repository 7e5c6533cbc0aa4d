"""Edelman et al. 2024, "The Evolution of Statistical Induction Heads: In-Context Learning Markov Chains" (2402.11004).

Chains over three tokens, two layers of attention with one head each: the network predicts evenly, then as if the order
did not matter, then by the token at hand. README.md says what differs.
"""

from __future__ import annotations

import numpy as np

from toylab.claims import Claim, RunSet, last
from toylab.measures.beliefs import Strategies

NAMES = ("uniform", "unigram", "bigram")
ONE_LAYER = ("experiment=icl_markov", "name=icl_markov_one_layer", "model.n_layers=1")
DOUBLY = ("experiment=icl_markov", "name=icl_markov_doubly", "task.rows='doubly stochastic'")

RUNS = (
    RunSet("main", (("experiment=icl_markov",),), 3, "k = 3, stationary starts"),
    RunSet("one layer", (ONE_LAYER,), about="placebo: one layer cannot pair a token with the one before it"),
    RunSet("doubly stochastic", (DOUBLY,), 3, "counting tokens without their order tells nothing"),
)
QUICK = (RunSet("main", (("experiment=icl_markov",),)), *RUNS[1:2])
FIGURES = {"edelman_phases": ("main",)}


def measure(key: str, runs):
    """KL from each strategy to the model at every checkpoint [seed, step]."""
    table = runs.map(Strategies(), progress=True)
    return table if "seed" in table.dims else table.expand_dims("seed")


def nearest(table):
    """[seed, step]: which strategy is nearest, 0 uniform, 1 unigram, 2 bigram."""
    return np.stack([table[f"kl_{name}"].transpose("seed", "step").values for name in NAMES]).argmin(0)


def in_order(table):
    """[seed]: steps for which the unigram strategy is nearest; 0 unless uniform comes before it and bigram after."""
    found, steps = [], table.step.values
    for row in nearest(table):
        middle = np.flatnonzero(row == 1)
        ordered = len(middle) and (row[: middle[0]] == 0).all() and (row[middle[-1] + 1 :] == 2).any()
        found.append(float(steps[middle[-1]] - steps[middle[0]] + 1) if ordered else 0.0)
    return np.array(found)


def arrival(table):
    """[seed]: the first step at which the bigram strategy is nearest and within .05 nats; inf if never."""
    good = (nearest(table) == 2) & (table.kl_bigram.transpose("seed", "step").values < 0.05)
    return np.where(good.any(1), table.step.values[good.argmax(1)], np.inf)


CLAIMS = (
    Claim(
        "bigram",
        "In the end the network predicts as the bigram strategy does: KL(bigram || network)",
        "close to the Bayes-optimal bigram predictor",
        "seen",
        "<= .02 nats",
        lambda t: last(t["main"].kl_bigram),
        lambda v: v <= 0.02,
        placebos=("one layer",),
    ),
    Claim(
        "phases",
        "On the way from uniform to bigram it passes the unigram strategy: steps for which that is the nearest",
        "uniform, then unigram, then bigram",
        "seen",
        "> 0, and in this order",
        lambda t: in_order(t["main"]),
        lambda v: v > 0,
        placebos=("one layer",),
    ),
    Claim(
        "doubly stochastic",
        "Where counting without order tells nothing, the bigram strategy comes sooner: steps over the main runs'",
        "faster",
        "seen",
        "ratio of the medians < 1",
        lambda t: [float(np.median(arrival(t["doubly stochastic"])) / np.median(arrival(t["main"])))],
        lambda v: v < 1,
        needs=("doubly stochastic", "main"),
    ),
)
