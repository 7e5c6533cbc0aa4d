"""Elhage et al. 2022, "Toy Models of Superposition" (arXiv 2209.10652).

Small models whose best solutions are known exactly. README.md states the sizes, where they differ from the paper, and
what is not attempted. An instance of the paper is a run here; every run set is trained as one program.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from toylab.claims import Claim, RunSet
from toylab.interp.superposition import (
    antipodal_cost,
    detect_jumps,
    variance,
)
from toylab.measures.basic import Loss
from toylab.measures.superposition import ClosedForms, Geometry, NeuronWeights

PENTAGON = 0.05  # density at which five features in two dimensions form a pentagon
# More levels where D* is about 1/2 than a geometric series has.
LEVELS = np.unique(np.r_[np.geomspace(1, 0.7, 3), np.geomspace(0.7, 0.12, 14), np.geomspace(0.12, 0.05, 5)])[::-1]
PHASE_P = np.geomspace(1, 0.02, 10)
PHASE_RATIO = np.geomspace(0.1, 10, 10)


def cell(experiment: str, name: str, *overrides: str, saved: str = "[]") -> tuple[str, ...]:
    """An experiment under its own name; `saved` are the checkpoints besides the first and the last."""
    # One thread: at these sizes a second one gains nothing, and loses much where the machine is busy.
    name, saved = f"name='elhage2022/{name}'", f"train.checkpoints={saved}"
    return (f"experiment={experiment}", name, saved, "train.threads=1", *overrides)


def at_densities(experiment: str, name: str, densities, *overrides: str) -> tuple[tuple[str, ...], ...]:
    return tuple(cell(experiment, f"{name}/p={p:.4g}", f"task.sparsity={1 - p:.6g}", *overrides) for p in densities)


def geometry(name: str, *overrides: str) -> tuple[tuple[str, ...], ...]:
    small = ("task.n_features=80", "model.d_hidden=8", "train.batch_size=512", "train.steps=8000")
    return at_densities("tms_geometry", name, LEVELS, *small, *overrides)


def phases(name: str, *overrides: str) -> tuple[tuple[str, ...], ...]:
    """Loss divided by the larger importance, so that Adam's steps are of one size over the whole grid."""
    return tuple(
        cell(
            "tms_phase",
            f"{name}/p={p:.4g},r={r:.4g}",
            f"task.sparsity={1 - p:.6g}",
            f"task.importances=[{1 / max(r, 1):.6g},{r / max(r, 1):.6g}]",
            "train.batch_size=1024",
            "task.n_test=1024",
            *overrides,
        )
        for p in PHASE_P
        for r in PHASE_RATIO
    )


UNTRAINED = ("optim.lr=0", "train.steps=1")
INTRO = 20 ** (-np.arange(10) / 9)
NEURON_P = (0.75, 0.35, 0.15, 0.1, 0.06, 0.02, 0.01)
ABS_P = (1.0, 0.3, 0.1, 0.03, 0.01)
RUNS = (
    RunSet("intro", at_densities("tms_intro", "intro", INTRO, "task.n_test=16384"), 1, "T1, ten densities", True),
    RunSet("sparse end", at_densities("tms_intro", "pentagon", [PENTAGON]), 8, "T1 at p = .05, for the best", True),
    RunSet("geometry", geometry("geometry"), 1, "80 equal features in 8 dimensions, 20 densities", True),
    RunSet("untrained", geometry("untrained", *UNTRAINED), 1, "placebo", True),
    RunSet("phases", phases("phases"), 4, "2 features in 1 dimension, 10 x 10 grid", True),
    RunSet("untrained phases", phases("untrained_phases", *UNTRAINED), 2, "placebo", True),
    RunSet(
        "correlated", at_densities("tms_correlated", "correlated", (0.05, 0.1, 0.25)), 4, "T6, pairs on together", True
    ),
    RunSet(
        "anticorrelated",
        at_densities("tms_anticorrelated", "anticorrelated", (0.05, 0.1, 0.25)),
        4,
        "T7, pairs never both on",
        True,
    ),
    RunSet("three pairs", at_densities("tms_three_pairs", "three_pairs", (0.01, 0.1, 0.5)), 4, "T8, three pairs", True),
    RunSet("dynamics", (cell("tms_dynamics", "dynamics", saved="['log:120','every:50']"),), 4, "T10", True),
    RunSet("relu hidden", at_densities("tms_relu_hidden", "relu_hidden", NEURON_P), 8, "T11, for the best", True),
    RunSet(
        "absolute",
        at_densities("tms_abs", "abs", ABS_P, "train.batch_size=512", "train.steps=5000"),
        2,
        "T12, 100 features, 40 neurons",
        True,
    ),
)
QUICK = (RUNS[0], RUNS[1])
FIGURES = {
    "elhage_features": ("intro",),
    "elhage_geometry": ("geometry",),
    "elhage_phases": ("phases",),
    "elhage_correlated": ("correlated", "anticorrelated", "three pairs"),
    "elhage_dynamics": ("dynamics",),
    "elhage_neurons": ("relu hidden", "absolute"),
}


def measure(key: str, runs):
    """Geometry, exact losses and weights of every run's last network along `run`, with density and seed beside; of the
    dynamics the excess loss drop in windows with a jump."""
    if key == "dynamics":
        return xr.Dataset({"excess_drop": ("run", [jumps(run) for run in runs])})
    rows = []
    for run in runs:
        end = [run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in (Geometry(), ClosedForms())]
        weights = run.map(NeuronWeights(), run.steps[-1]).isel(step=0, drop=True)
        rows.append(xr.merge([*end, weights]))
    importances = [run.task.importance()[-1] / run.task.importance()[0] for run in runs]
    return xr.concat(rows, "run").assign(
        p=("run", [float(run.task.density()[0]) for run in runs]),
        ratio=("run", np.array(importances, float)),
        seed=("run", [run.experiment.seed for run in runs]),
    )


def jumps(run) -> float:
    """Mean log drop of the loss between checkpoints where a D_i jumped by .1, less that elsewhere.

    Between 16 steps on a log grid: closer together, every change is small.
    """
    steps = [step for step in run.pick("log:16") if step > 0]
    D = torch.from_numpy(run.map(Geometry(), steps).dimensionality.values)
    loss = torch.from_numpy(run.map(Loss(), steps).test_loss.values)
    return detect_jumps(D, loss).excess_drop()


# --- What the claims read ---------------------------------------------------------------------------------------------


def dense(table):
    """The run with every feature always on."""
    return table.isel(run=int(np.argmax(table.p.values)))


def represented_two(tables) -> list[float]:
    """2 when two norms exceed .9 and all others are below .1; else how many exceed .9, plus .5."""
    norm = dense(tables["intro"]).norm.values
    clear = ((norm > 0.9) | (norm < 0.1)).all()
    return [float((norm > 0.9).sum() + (0 if clear else 0.5))]


def best(table):
    return table.isel(run=int(np.argmin(table.loss.values)))


def pentagon_error(tables) -> list[float]:
    """Largest distance of a D_i of the best run from 2/5."""
    return [float(abs(best(tables["sparse end"]).dimensionality - 0.4).max())]


def sticky(key: str):
    def value(tables):
        return [float((abs(tables[key].dims_per_feature - 0.5) <= 0.03).sum())]

    return value


def clustering(D, fraction: float) -> float:
    """Hits within .005 of the fraction over twice the fuller of two windows as wide at +-.0125; 0 for under 10 hits.

    The claim holds from 1 on.
    """
    D = np.asarray(D)
    inside, *flanks = (
        np.sum(np.abs(D - centre) <= 0.005) for centre in (fraction, fraction - 0.0125, fraction + 0.0125)
    )
    return 0.0 if inside < 10 else float(inside / max(2 * max(flanks), 1))


def pooled(table) -> np.ndarray:
    """Every D_i >= .1 of the levels in superposition (D* < .95)."""
    D = table.dimensionality.values[table.dims_per_feature.values < 0.95]
    return D[D >= 0.1]


def other_lines(D) -> float:
    return max(clustering(D, f) for f in (3 / 4, 2 / 3, 2 / 5, 3 / 8))


def noised(tables) -> np.ndarray:
    D = pooled(tables["geometry"])
    return D + np.random.default_rng(0).uniform(-0.05, 0.05, D.shape)


def uniform(tables) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, pooled(tables["geometry"]).shape)


def phase_agreement(far: float):
    """Share of the cells (best seed of each) whose phase is the exact one; `far`: only where |log10(antipodal cost /
    drop cost)| exceeds it."""

    def value(tables):
        table = next(iter(tables.values()))
        cells = best_of_cells(table)
        shared = (1 + cells.ratio) * antipodal_cost(cells.p)
        dropped = np.minimum(cells.ratio, 1) * variance(cells.p)
        counted = abs(np.log10(shared / dropped)) > far
        return [float((cells.phase == cells.exact_phase).values[counted.values].mean())]

    return value


def best_of_cells(table):
    """The run of the lowest held-out loss among the seeds of each cell."""
    key = [f"{p:.4g},{r:.4g}" for p, r in zip(table.p.values, table.ratio.values, strict=True)]
    order = np.argsort(table.loss.values)
    _, first = np.unique(np.array(key)[order], return_index=True)
    return table.isel(run=np.sort(order[first]))


def pair_cosine(key: str):
    """Mean cosine of the two features of a pair, in the best run of the sparsest density."""

    def value(tables):
        table = tables[key]
        W = best(table.isel(run=table.p.values == table.p.values.min())).neuron_weight.values
        unit = W / np.linalg.norm(W, axis=1, keepdims=True)
        return [float((unit[0::2] * unit[1::2]).sum(1).mean())]

    return value


def purity_gap(key: str):
    """Mean neuron purity of the best dense run less that of the best run at p = .01."""

    def value(tables):
        table = tables[key]
        ends = [best(table.isel(run=np.isclose(table.p.values, p))) for p in (table.p.values.max(), 0.01)]
        return [float(ends[0].neuron_purity.mean() - ends[1].neuron_purity.mean())]

    return value


CLAIMS = (
    Claim(
        "dense loss",
        "Five features that are always on, in two dimensions: loss of keeping the two most important",
        ".03658 (closed form)",
        "derived",
        "within 2 %",
        lambda t: [float(dense(t["intro"]).loss)],
        lambda v: abs(v / 0.036585 - 1) < 0.02,
        needs=("intro",),
        placebos=("sparse end",),
        figure="T1",
    ),
    Claim(
        "dense features",
        "... and these two have norms > .9, the others < .1",
        "2",
        "seen",
        "exactly 2",
        represented_two,
        lambda v: v == 2,
        needs=("intro",),
        placebos=("sparse end",),
        figure="T1",
    ),
    Claim(
        "pentagon",
        "At p = .05 the best of eight seeds is a pentagon: largest |D_i - 2/5|",
        "pentagon",
        "seen",
        "< .02",
        pentagon_error,
        lambda v: v < 0.02,
        needs=("sparse end",),
        figure="T1",
    ),
    Claim(
        "seeds that stop early",
        "Loss of the worst of these seeds over that of the best (two digons: about 1.8)",
        "fits are repeated and the lowest loss kept",
        "seen",
        "not judged",
        lambda t: [float(t["sparse end"].loss.max() / t["sparse end"].loss.min())],
        None,
        needs=("sparse end",),
    ),
    Claim(
        "superposition pays",
        "Loss over the linear optimum of the same width, sparsest instance of T1",
        "below 1",
        "seen",
        "< .5",
        lambda t: [float(t["intro"].isel(run=int(np.argmin(t["intro"].p.values))).loss_over_linear)],
        lambda v: v < 0.5,
        needs=("intro",),
    ),
    Claim(
        "D* sticks",
        "Levels of density at which dimensions per feature are within .03 of 1/2",
        "flat at 1 and 1/2",
        "seen",
        ">= 3",
        lambda t: sticky(next(iter(t)))(t),
        lambda v: v >= 3,
        needs=("geometry",),
        placebos=("untrained",),
        figure="uniform superposition",
    ),
    Claim(
        "digon line",
        "Dimensionalities cluster at 1/2: hits within .005 over twice those in either flank",
        "clusters on 3/4, 2/3, 1/2, 2/5, 3/8",
        "seen",
        ">= 10 hits, ratio >= 1",
        lambda t: [clustering(pooled(next(iter(t.values()))), 1 / 2)],
        lambda v: v >= 1,
        needs=("geometry",),
        placebos=("untrained",),
        figure="feature dimensionality",
    ),
    Claim(
        "another line",
        "... and at one more of 3/4, 2/3, 2/5, 3/8",
        "the same",
        "seen",
        ">= 10 hits, ratio >= 1",
        lambda t: [other_lines(pooled(next(iter(t.values()))))],
        lambda v: v >= 1,
        needs=("geometry",),
        placebos=("untrained",),
        figure="feature dimensionality",
    ),
    Claim(
        "lines are not noise",
        "Control: the same dimensionalities with noise of +-.05, and uniform ones, have no such lines (larger ratio)",
        "-",
        "derived",
        "ratio < 1 at 1/2",
        lambda t: [max(clustering(noised(t), 1 / 2), clustering(uniform(t), 1 / 2))],
        lambda v: v < 1,
        needs=("geometry",),
    ),
    Claim(
        "sum rule",
        "The dimensionalities of a model sum to at most its width: largest excess",
        "<= 0",
        "derived",
        "< 1e-4",
        lambda t: [float((t["geometry"].sum_dimensionality - 8).max())],
        lambda v: v < 1e-4,
        needs=("geometry",),
    ),
    Claim(
        "phase diagram",
        "Cells (best of four seeds) in the exact phase",
        "96.9 % on a 16 x 16 grid",
        "recomputed",
        ">= 93 %",
        phase_agreement(0.0),
        lambda v: v >= 0.93,
        needs=("phases",),
        placebos=("untrained phases",),
        figure="phase change",
    ),
    Claim(
        "phase diagram, far",
        "... where the two best costs differ by more than a quarter",
        "98.7 %",
        "recomputed",
        ">= 96 %",
        phase_agreement(0.1),
        lambda v: v >= 0.96,
        needs=("phases",),
        placebos=("untrained phases",),
        figure="phase change",
    ),
    Claim(
        "correlated features",
        "Features that come together are orthogonal: cosine within a pair, sparsest density, best seed",
        "orthogonal",
        "seen",
        "within .15 of 0",
        lambda t: pair_cosine(next(iter(t)))(t),
        lambda v: abs(v) < 0.15,
        needs=("correlated",),
        placebos=("anticorrelated",),
        figure="correlated features",
    ),
    Claim(
        "anticorrelated features",
        "Features that exclude each other are antipodal",
        "antipodal",
        "seen",
        "< -.9",
        lambda t: pair_cosine(next(iter(t)))(t),
        lambda v: v < -0.9,
        needs=("anticorrelated",),
        placebos=("correlated",),
        figure="correlated features",
    ),
    Claim(
        "jumps",
        "Dimensionalities jump where the loss falls: mean log drop in windows with a jump less that in others",
        "each jump coincides with a drop",
        "seen",
        "not judged: the number of windows was chosen after a first run",
        lambda t: t["dynamics"].excess_drop.values,
        None,
        needs=("dynamics",),
        figure="learning dynamics",
    ),
    Claim(
        "relu hidden",
        "ReLU-hidden model: neurons are purer when dense: mean purity at p = .75 less that at p = .01, best seeds",
        "monosemantic, then polysemantic",
        "seen",
        "> 0",
        purity_gap("relu hidden"),
        lambda v: v > 0,
        needs=("relu hidden",),
        figure="privileged basis",
    ),
    Claim(
        "absolute",
        "Computing |x|: neurons are purer when dense (p = 1) than at p = .01",
        "monosemantic, then polysemantic",
        "seen",
        "> 0",
        purity_gap("absolute"),
        lambda v: v > 0,
        needs=("absolute",),
        figure="computation in superposition",
    ),
)
