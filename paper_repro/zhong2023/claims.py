"""Zhong et al. 2023, "The Clock and the Pizza" (arXiv 2306.17844).

The sweep over the attention rate, small: from constant attention (0) to ordinary attention (1). README.md states the
sizes, what differs and what is not attempted.
"""

from __future__ import annotations

import xarray as xr
from scipy import stats

from toylab.claims import Claim, RunSet
from toylab.measures.basic import Loss
from toylab.measures.fourier import ClockPizza

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
CIRCULAR = 0.995  # the paper reads the other two numbers only from here on
# Midway between the means of the paper's outermost bins of the rate: .982 and .455, .335 and .820.
MIDDLE_SYMMETRY, MIDDLE_IRRELEVANCE = (0.982 + 0.455) / 2, (0.335 + 0.820) / 2


def cell(rate: float, *overrides: str, name: str = "") -> tuple[str, ...]:
    name = name or f"zhong2023/rate={rate}"
    return ("experiment=zhong2023", f"model.attention_rate={rate}", f"name='{name}'", *overrides)


RUNS = (
    RunSet("pizza", (cell(0.0),), 3, "constant attention"),
    RunSet("clock", (cell(1.0),), 3, "ordinary attention"),
    RunSet("between", tuple(cell(rate) for rate in RATES[1:-1]), 3, "rates .25, .5, .75"),
    RunSet("shuffled labels", (cell(0.0, "task.labels=shuffled", name="zhong2023/shuffled"),), about="placebo"),
)
QUICK = tuple(
    RunSet(key, (cell(rate, "task.p=31", "train.steps=3000", name=f"zhong2023/quick/rate={rate}"),), about="p = 31")
    for key, rate in (("pizza", 0.0), ("clock", 1.0))
)
FIGURES = {"zhong_rates": ("pizza", "clock", "between")}


def measure(key: str, runs):
    """The three numbers and the test accuracy of every run's last network, along `run`; its attention rate beside."""
    rows = []
    for run in runs:
        end = [run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in (ClockPizza(100, 0), Loss())]
        rows.append(xr.merge(end))
    table = xr.concat(rows, "run")
    return table.assign(rate=("run", [run.experiment.model.attention_rate for run in runs]))


def together(*tables):
    return xr.concat(tables, "run")


def rank_correlation(tables, name) -> list[float]:
    """Spearman's correlation of a number with the attention rate, over every run of the sweep."""
    table = together(tables["pizza"], tables["between"], tables["clock"])
    return [float(stats.spearmanr(table.rate.values, table[name].values).statistic)]


def number(name: str, key: str):
    return lambda t: t[key][name].values


CLAIMS = (
    Claim(
        "pizza symmetricity",
        "With constant attention a and b enter alike: gradient symmetricity",
        ".994 (model A); mean .982 for rates to .1",
        "recomputed",
        f"> {MIDDLE_SYMMETRY:.2f}, midway between the paper's extremes",
        number("gradient_symmetricity", "pizza"),
        lambda v: v > MIDDLE_SYMMETRY,
        needs=("pizza",),
        placebos=("clock",),
        figure="sec. 4",
    ),
    Claim(
        "clock symmetricity",
        "With ordinary attention they do not",
        ".334 (model B); mean .455 for rates from .9",
        "recomputed",
        f"< {MIDDLE_SYMMETRY:.2f}",
        number("gradient_symmetricity", "clock"),
        lambda v: v < MIDDLE_SYMMETRY,
        needs=("clock",),
        placebos=("pizza",),
        figure="sec. 4",
    ),
    Claim(
        "pizza irrelevance",
        "With constant attention the right logit depends on a - b: distance irrelevance",
        ".172 (model A); mean .335 for rates to .1",
        "recomputed",
        f"< {MIDDLE_IRRELEVANCE:.2f}, midway between the paper's extremes",
        number("distance_irrelevance", "pizza"),
        lambda v: v < MIDDLE_IRRELEVANCE,
        needs=("pizza",),
        placebos=("clock", "shuffled labels"),
        figure="sec. 4",
    ),
    Claim(
        "clock irrelevance",
        "With ordinary attention it does not",
        ".848 (model B); mean .820 for rates from .9",
        "recomputed",
        f"> {MIDDLE_IRRELEVANCE:.2f}",
        number("distance_irrelevance", "clock"),
        lambda v: v > MIDDLE_IRRELEVANCE,
        needs=("clock",),
        placebos=("pizza",),
        figure="sec. 4",
    ),
    Claim(
        "symmetricity and rate",
        "Symmetricity falls as the attention rate rises",
        ".982, .989, .982, .850, .626, .455 by bin",
        "recomputed",
        "rank correlation over all runs < -0.5",
        lambda t: rank_correlation(t, "gradient_symmetricity"),
        lambda v: v < -0.5,
        needs=("pizza", "between", "clock"),
        figure="Fig. 7",
    ),
    Claim(
        "irrelevance and rate",
        "Distance irrelevance rises with it",
        ".335, .327, .342, .501, .696, .820 by bin",
        "recomputed",
        "rank correlation over all runs > 0.5",
        lambda t: rank_correlation(t, "distance_irrelevance"),
        lambda v: v > 0.5,
        needs=("pizza", "between", "clock"),
        figure="Fig. 7",
    ),
    Claim(
        "accuracy",
        "All of these networks add: held-out accuracy",
        "1.0",
        "seen",
        "> 99 %",
        lambda t: together(t["pizza"], t["clock"]).test_accuracy.values,
        lambda v: v > 0.99,
        needs=("pizza", "clock"),
    ),
    Claim(
        "circular",
        "Share of runs whose embedding is made of circles (circularity >= .995), which the paper filters by",
        "about 21 % of one-layer runs",
        "recomputed",
        "not judged; the numbers above are of all runs",
        lambda t: [float((together(t["pizza"], t["clock"]).circularity >= CIRCULAR).mean())],
        None,
        needs=("pizza", "clock"),
    ),
    Claim(
        "circularity",
        "Circularity",
        ".998 (model A), .999 (model B)",
        "recomputed",
        "not judged",
        lambda t: together(t["pizza"], t["clock"]).circularity.values,
        None,
        needs=("pizza", "clock"),
    ),
)
