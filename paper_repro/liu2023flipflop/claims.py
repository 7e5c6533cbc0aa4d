"""Liu et al. 2023, "Exposing Attention Glitches with Flip-Flop Language Modeling" (arXiv 2306.00946), small version.

Trained on FFL(0.8), read on FFL(0.98) and FFL(0.1), where gaps are longer and shorter. README.md says what differs.
"""

from __future__ import annotations

import xarray as xr

from toylab.claims import Claim, RunSet
from toylab.measures.shift import Shifted

TAIL = ("experiment=flipflop_language", "name=liu2023_tail", "task.p_ignore=0.1")
RUNS = (
    RunSet("main", (("experiment=flipflop_language",),), 3, "FFL(0.8), 64 tokens"),
    RunSet("tail", (TAIL,), 3, "trained on the dense tail itself, FFL(0.1)"),
    RunSet(
        "untrained",
        (("experiment=flipflop_language", "name=liu2023_untrained", "optim.lr=0", "train.steps=1"),),
        about="placebo",
    ),
)
QUICK = (
    RunSet("main", (("experiment=flipflop_language", "name=liu2023_quick", "train.steps=800"),)),
    RUNS[-1],
)
FIGURES = {"flipflop_gaps": ("main",)}
SETTINGS = {"own": 0.8, "sparse": 0.98, "dense": 0.1}


def measure(key: str, runs):
    """Error rate at reads on each language [seed], from 8,192 rows."""
    rows = []
    for run in runs:
        found = {}
        for name, p in SETTINGS.items():
            table = run.map(Shifted({"p_ignore": p}, n=8192), run.steps[-1]).isel(step=0, drop=True)
            found[name], found[f"{name}_se"] = 1 - table.accuracy, table.accuracy_se
        rows.append(xr.Dataset(found))
    return xr.concat(rows, xr.Variable("seed", [run.experiment.seed for run in runs]))


def glitches(tail: str, where: str) -> Claim:
    return Claim(
        f"glitches, {tail}",
        f"{where} it is wrong more often than on its own data: difference of the error rates in standard errors",
        "sporadic errors on both tails",
        "summary",
        "> 4",
        lambda t: ((t["main"][tail] - t["main"].own) / (t["main"][f"{tail}_se"] + t["main"].own_se + 1e-12)).values,
        lambda v: v > 4,
        placebos=("untrained",),
    )


CLAIMS = (
    Claim(
        "own data",
        "On its own data the network is right: error rate at reads",
        "near 0",
        "summary",
        "<= .001",
        lambda t: t["main"].own.values,
        lambda v: v <= 0.001,
        placebos=("untrained",),
    ),
    glitches("sparse", "Where writes are rare, FFL(.98),"),
    glitches("dense", "Where writes are many, FFL(.1),"),
    Claim(
        "remedy",
        "Trained on it, a network errs less on FFL(.1): error rate over that of the main runs (medians)",
        "training on rare sequences is the best remedy",
        "summary",
        "< .5",
        lambda t: [float(t["tail"].dense.median() / max(float(t["main"].dense.median()), 1e-9))],
        lambda v: v < 0.5,
        needs=("tail", "main"),
    ),
)
