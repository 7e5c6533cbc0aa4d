"""Sharkey, Braun, Millidge 2022, "Taking features out of superposition with sparse autoencoders" (interim report).

128 sparse features in 64 random directions; dictionaries over penalties, widths and kinds. README.md states what
differs and where each value is from.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet
from toylab.measures.sweeps import SHARKEY

RUNS = (
    RunSet("world", (("experiment=sharkey2022",),), 2, "3 of 128 features on at a time"),
    RunSet(
        "dense",
        (("experiment=sharkey2022", "name=sharkey2022_dense", "task.sparsity=0.25"),),
        about="placebo: 96 of 128 features on at a time, more than there are dimensions",
    ),
)
QUICK = (RunSet("world", (("experiment=sharkey2022",),)),)
FIGURES = {"sharkey_sweeps": ("world", "dense")}


def measure(key: str, runs):
    """The sweep on every world, along `seed`."""
    rows = [run.map(SHARKEY, run.steps[0], progress=True).isel(step=0, drop=True) for run in runs]
    return xr.concat(rows, "seed")


def over(table, name: str, setting: str = "l1"):
    """[seed, setting]: a score, averaged over the dictionaries of one setting."""
    return table[f"{name}_by_{setting}"].mean("dictionary").transpose("seed", setting).values


def at(table, name: str, setting: str, value):
    return table[f"{name}_by_{setting}"].sel({setting: value}).mean("dictionary").values


def interior_maximum(table):
    """[seed]: how far the best recovery over penalties lies above that at either end."""
    mmcs = over(table, "mmcs")
    return mmcs.max(1) - np.maximum(mmcs[:, 0], mmcs[:, -1])


def at_best_recovery(table, name: str):
    """[seed]: another score, at the penalty of the best recovery."""
    best = over(table, "mmcs").argmax(1)
    return over(table, name)[np.arange(len(best)), best]


def recovery_at_best_variance(table):
    """[seed]: best recovery less the recovery of the dictionary that explains most variance."""
    mmcs = over(table, "mmcs")
    return mmcs.max(1) - mmcs[np.arange(len(mmcs)), over(table, "explained_variance").argmax(1)]


def largest_rise(table, name: str):
    """[seed]: the largest rise of a score from one penalty to the next."""
    return np.diff(over(table, name), axis=1).max(1)


def matched(table):
    """[seed]: matched cosine between two dictionaries trained alike, at the penalty of the best recovery."""
    best = over(table, "mmcs").argmax(1)
    return table.stability_by_l1.transpose("seed", "l1").values[np.arange(len(best)), best]


CLAIMS = (
    Claim(
        "recovered",
        "At the right penalty the features are found: best mean max cosine over penalties",
        "near 1 in a band of penalties and widths",
        "seen",
        "> .9 (chance .32)",
        lambda t: over(t["world"], "mmcs").max(1),
        lambda v: v > 0.9,
        needs=("world",),
        placebos=("dense",),
        figure="heat map of MMCS",
    ),
    Claim(
        "stable",
        "... and two dictionaries trained from different seeds are the same: matched cosine at that penalty",
        "-",
        "derived",
        "> .9",
        lambda t: matched(t["world"]),
        lambda v: v > 0.9,
        needs=("world",),
        placebos=("dense",),
    ),
    Claim(
        "interior",
        "Too small and too large penalties find less: best recovery above that at either end",
        ".997 at .1; .794 at .03",
        "recomputed",
        "> .05",
        lambda t: interior_maximum(t["world"]),
        lambda v: v > 0.05,
        needs=("world",),
        placebos=("dense",),
        figure="heat map of MMCS",
    ),
    Claim(
        "extremes",
        "At the largest penalty nothing is found",
        "below .5 at the extremes",
        "summary",
        "mean max cosine < .5",
        lambda t: over(t["world"], "mmcs")[:, -1],
        lambda v: v < 0.5,
        needs=("world",),
    ),
    Claim(
        "variance falls",
        "Explained variance only falls as the penalty grows: largest rise from one to the next",
        ".967, .945, .879 at .03, .1, .3",
        "recomputed",
        "< 0",
        lambda t: largest_rise(t["world"], "explained_variance"),
        lambda v: v < 0,
        needs=("world",),
    ),
    Claim(
        "best is not best",
        "So the dictionary that explains most is not the one that finds most: recovery lost by choosing it",
        ".2",
        "recomputed",
        "> .05",
        lambda t: recovery_at_best_variance(t["world"]),
        lambda v: v > 0.05,
        needs=("world",),
        placebos=("dense",),
    ),
    Claim(
        "shrinkage",
        "An L1 penalty shrinks what is rebuilt, more as it grows: largest rise of |x^| / |x| from .03 to .1 to .3",
        ".911, .870, .801",
        "recomputed",
        "< 0",
        lambda t: largest_rise(t["world"].sel(l1=[0.03, 0.1, 0.3]), "length"),
        lambda v: v < 0,
        needs=("world",),
    ),
    Claim(
        "TopK shrinks less",
        "BatchTopK at the true number of features shrinks less than L1 at the penalty with that number (.3)",
        ".919 and .801",
        "recomputed",
        "difference > .05",
        lambda t: at(t["world"], "length", "kind", "BatchTopK") - at(t["world"], "length", "l1", 0.3),
        lambda v: v > 0.05,
        needs=("world",),
    ),
    Claim(
        "F1 below 1",
        "Even there a latent is no perfect classifier, as small coefficients fall under its threshold: F1",
        ".65 at mean max cosine .997",
        "recomputed",
        "< .95",
        lambda t: at_best_recovery(t["world"], "f1"),
        lambda v: v < 0.95,
        needs=("world",),
    ),
    Claim(
        "too narrow",
        "Dictionaries of a quarter of the width find clearly less: recovery at 128 latents less that at 32",
        "clearly below its best",
        "summary",
        "> .2",
        lambda t: at(t["world"], "mmcs", "size", 128) - at(t["world"], "mmcs", "size", 32),
        lambda v: v > 0.2,
        needs=("world",),
        placebos=("dense",),
        figure="heat map of MMCS",
    ),
    Claim(
        "dead",
        "Without the auxiliary loss TopK leaves latents dead: share of them",
        "13 of 128",
        "recomputed",
        "> .02",
        lambda t: at(t["world"], "dead", "kind", "TopK without AuxK"),
        lambda v: v > 0.02,
        needs=("world",),
    ),
    Claim(
        "revived",
        "... and with it fewer: share without less share with",
        "-",
        "derived",
        "> 0",
        lambda t: at(t["world"], "dead", "kind", "TopK without AuxK") - at(t["world"], "dead", "kind", "TopK"),
        lambda v: v > 0,
        needs=("world",),
    ),
)
