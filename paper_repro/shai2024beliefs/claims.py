"""Shai et al. 2024, "Transformers Represent Belief State Geometry in their Residual Stream" (arXiv 2405.15943).

Mess3 and RRXOR at the paper's sizes, trained with Adam for minutes; with the controls that the paper lacks: what the
tokens themselves and the true law of the next token give away linearly. README.md says what differs.
"""

from __future__ import annotations

import xarray as xr

from toylab.claims import Claim, RunSet
from toylab.measures.beliefs import BeliefRegression

UNTRAINED = ("optim.lr=0", "train.steps=1", "train.checkpoints=[]")

RUNS = (
    RunSet("mess3", (("experiment=mess3",),), 2, "x = .05, a = .85: the fractal simplex"),
    RunSet("rrxor", (("experiment=rrxor",),), 2, "random, random, exclusive or"),
    RunSet("mess3 untrained", (("experiment=mess3", "name=mess3_untrained", *UNTRAINED),), about="placebo"),
    RunSet("rrxor untrained", (("experiment=rrxor", "name=rrxor_untrained", *UNTRAINED),), about="placebo"),
)
QUICK = (
    RunSet("mess3", (("experiment=mess3", "name=mess3_quick", "train.steps=2000"),), about="half the steps, one seed"),
    RunSet("rrxor", (("experiment=rrxor", "name=rrxor_quick", "train.steps=2000"),), about="half the steps, one seed"),
    *RUNS[2:],
)
FIGURES = {"shai_simplex": ("mess3", "mess3 untrained"), "shai_layers": ("mess3", "rrxor")}


def measure(key: str, runs):
    """Of each run's last network: R^2 by site with the controls, and `excess` [seed]: its loss above the floor."""
    rows = []
    for run in runs:
        found = [run.map(tool, run.steps[-1]) for tool in (BeliefRegression("belief", 5), excess)]
        rows.append(xr.merge(found).isel(step=0, drop=True))
    return runs.join(rows) if len(rows) > 1 else rows[0].expand_dims("seed")


def excess(snap):
    """The expected loss above the floor at the worst position: KL(true next-token law || model), mean over rows.

    Exact in the next token, so that it carries the error of the prefixes alone.
    """
    law = snap.task.latents(snap.batch.inputs)["next_token"].values
    log_law = law.clamp_min(1e-300).log()
    kl = (law * (log_law - snap.logits.double().log_softmax(-1))).sum(-1)
    return {"excess": kl.mean(0).max().item()}


def at(table, site, name="r2"):
    return table[name].sel(site=site).values


def last_layer(table, name="r2"):
    return at(table, str(table.site.values[-2]), name)


CLAIMS = (
    Claim(
        "mess3 loss",
        "Mess3 is predicted as well as it can be: loss above the exact floor at the worst position",
        "loss near optimal",
        "derived",
        "<= .005 nats",
        lambda t: t["mess3"].excess.values,
        lambda v: v <= 0.005,
        needs=("mess3",),
        placebos=("mess3 untrained",),
    ),
    Claim(
        "mess3 simplex",
        "The belief is an affine map of the last residual stream: R^2, cross-validated by prefix",
        "mean squared error 0.0004 before the final norm",
        "seen",
        "R^2 >= .994 (error per component 1e-3)",
        lambda t: last_layer(t["mess3"]),
        lambda v: v >= 0.994,
        needs=("mess3",),
        placebos=("mess3 untrained",),
    ),
    Claim(
        "mess3 beyond the tokens",
        "What the best linear map of the tokens leaves unexplained, the network leaves a fifth of at most",
        "not tested there; tokens give R^2 = .966",
        "derived",
        "(1 - R^2) over that of the tokens <= .2",
        lambda t: (1 - last_layer(t["mess3"])) / (1 - t["mess3"].input_linear_r2.values),
        lambda v: v <= 0.2,
        needs=("mess3",),
        placebos=("mess3 untrained",),
    ),
    Claim(
        "mess3 next token",
        "On Mess3 the true law of the next token gives the belief exactly, so the simplex alone proves little: R^2",
        "1",
        "derived",
        "> .9999",
        lambda t: t["mess3"].next_token_r2.values,
        lambda v: v > 0.9999,
        needs=("mess3",),
    ),
    Claim(
        "shuffled",
        "Beliefs permuted over rows cannot be read: largest R^2 of any layer",
        "collapse to the centre",
        "seen",
        "<= .02",
        lambda t: t["mess3"].shuffled_r2.max("site").values,
        lambda v: v <= 0.02,
        needs=("mess3",),
    ),
    Claim(
        "rrxor loss",
        "RRXOR is predicted as well as it can be: loss above the exact floor at the worst position",
        "loss near optimal",
        "derived",
        "<= .02 nats",
        lambda t: t["rrxor"].excess.values,
        lambda v: v <= 0.02,
        needs=("rrxor",),
        placebos=("rrxor untrained",),
    ),
    Claim(
        "rrxor belief",
        "The belief of RRXOR is an affine map of all layers together: R^2, fitted on all rows as in the paper",
        "found in the concatenation of all layers",
        "seen",
        "R^2 >= .9 (the next token's law gives .246)",
        lambda t: at(t["rrxor"], "all", "fitted_r2"),
        lambda v: v >= 0.9,
        needs=("rrxor",),
        placebos=("rrxor untrained",),
    ),
    Claim(
        "rrxor belief, held out",
        "The same, every prefix predicted by a map that has not seen it (two are of length 1, four of 2)",
        "not tested there",
        "derived",
        "not judged",
        lambda t: at(t["rrxor"], "all"),
        None,
        needs=("rrxor",),
    ),
    Claim(
        "rrxor last layer",
        "...and not of the last layer alone: R^2 of all layers minus that of the last, fitted on all rows",
        "not in the final layer",
        "seen",
        "> .1",
        lambda t: at(t["rrxor"], "all", "fitted_r2") - last_layer(t["rrxor"], "fitted_r2"),
        lambda v: v > 0.1,
        needs=("rrxor",),
    ),
    Claim(
        "rrxor distances",
        "Distances between activations are those of beliefs, not of next-token laws: difference of the two R^2",
        ".95 and .31",
        "seen",
        "> .3",
        lambda t: t["rrxor"].distance_r2.values - t["rrxor"].next_token_distance_r2.values,
        lambda v: v > 0.3,
        needs=("rrxor",),
        placebos=("rrxor untrained",),
    ),
)
