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
from toylab.measures.basic import FreshLoss, Loss
from toylab.measures.superposition import ClosedForms, Geometry, Motifs, NeuronWeights, Vulnerability

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
MANY_P = (1.0, 0.3, 0.1, 0.03, 0.01)
FIRST_P = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)  # of the one feature; the others: PENTAGON


def many(name: str, *overrides: str) -> tuple[tuple[str, ...], ...]:
    return at_densities("tms_many", name, MANY_P, "train.batch_size=512", "train.steps=6000", *overrides)


def one_rarer(name: str, *overrides: str) -> tuple[tuple[str, ...], ...]:
    """Five features, the first of another density than the rest."""
    rest = ",".join([f"{1 - PENTAGON:.6g}"] * 4)
    return tuple(
        cell(
            "tms_sparsity", f"{name}/p={p:.4g}", f"task.sparsity=[{1 - p:.6g},{rest}]", "task.n_test=16384", *overrides
        )
        for p in FIRST_P
    )


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
    RunSet("many", many("many"), 1, "T2, 100 features in 20 dimensions, five densities", True),
    RunSet("untrained many", many("untrained_many", *UNTRAINED), 1, "placebo", True),
    RunSet("one rarer", one_rarer("one_rarer"), 8, "T5, one of five features more or less often on", True),
    RunSet("untrained rarer", one_rarer("untrained_rarer", *UNTRAINED), 2, "placebo", True),
    RunSet("local bases", (cell("tms_local_bases", "local_bases"),), 4, "T9, two sets of ten", True),
    RunSet(
        "no sets", (cell("tms_local_bases", "no_sets", "task.group_size=1"),), 4, "placebo: the same, independent", True
    ),
    RunSet("motif", (cell("tms_motif", "motif"),), 16, "T13, |x| of 6 features by 10 neurons", True),
    RunSet("untrained motif", (cell("tms_motif", "untrained_motif", *UNTRAINED),), 16, "placebo", True),
)
QUICK = (RUNS[0], RUNS[1])
FIGURES = {
    "elhage_features": ("intro",),
    "elhage_geometry": ("geometry",),
    "elhage_phases": ("phases",),
    "elhage_correlated": ("correlated", "anticorrelated", "three pairs"),
    "elhage_dynamics": ("dynamics",),
    "elhage_neurons": ("relu hidden", "absolute"),
    "elhage_attacks": ("geometry",),
    "elhage_many": ("many",),
    "elhage_rarer": ("one rarer",),
    "elhage_bases": ("local bases", "no sets"),
    "elhage_motif": ("motif",),
}
# What is measured of some run sets besides what is measured of all.
ALSO = {
    "geometry": Vulnerability(),
    "untrained": Vulnerability(),
    "one rarer": FreshLoss(2**17),
    "untrained rarer": FreshLoss(2**17),
    "motif": Motifs(),
    "untrained motif": Motifs(),
}


def measure(key: str, runs):
    """Geometry, exact losses and weights (and ALSO) of every run's last network along `run`, with the density of the
    first feature and the seed beside; of the dynamics the excess loss drop in windows with a jump."""
    if key == "dynamics":
        return xr.Dataset({"excess_drop": ("run", [jumps(run) for run in runs])})
    tools = [Geometry(), ClosedForms(), NeuronWeights(), *([ALSO[key]] if key in ALSO else [])]
    rows = [xr.merge([run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in tools]) for run in runs]
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


def fewest_added(tables) -> list[float]:
    """Of features with a norm above .5: how many come with each step to a sparser level, the smallest number."""
    table = next(iter(tables.values())).sortby("p")
    return [float(np.diff((table.norm.values > 0.5).sum(1)[::-1]).min())]


def important_first(tables) -> list[float]:
    """Share of pairs of a represented and another feature in which the first matters more, at the worst level."""
    shares = []
    for norm in next(iter(tables.values())).norm.values:  # features are in the order of importance
        represented, others = np.flatnonzero(norm > 0.5), np.flatnonzero(norm <= 0.5)
        shares.append((represented[:, None] < others).mean() if len(represented) and len(others) else np.nan)
    return [float(np.min(shares))]


def at_density(table, p: float):
    """The run of the lowest fresh loss at this density of the first feature."""
    runs = table.isel(run=np.isclose(table.p.values, p))
    return runs.isel(run=int(np.argmin(runs.fresh_loss.values)))


def two_digons_error(tables) -> list[float]:
    """Largest distance of a D_i from 0 (the first feature) or 1/2, where the first is on least often."""
    D = at_density(next(iter(tables.values())), FIRST_P[0]).dimensionality.values
    return [float(abs(D - np.r_[0, [0.5] * 4]).max())]


# Dimensionalities of a pentagon, and of two digons without the first feature.
SHAPES = [xr.DataArray(D, dims="feature") for D in ([0.4] * 5, [0, 0.5, 0.5, 0.5, 0.5])]


def crossing(tables) -> list[float]:
    """Density of the first feature, as a share of that of the rest, below which two digons cost less than a pentagon.

    Where both are found at a level, the lowest loss of each; between the two levels about the change of sign, by
    straight lines in the logarithm. nan where neither or only one of them ever wins.
    """
    table = next(iter(tables.values()))
    five, four = ((abs(table.dimensionality - D).max("feature") < 0.05).values for D in SHAPES)
    at, gap = [], []
    for p in FIRST_P:
        level = np.isclose(table.p.values, p)
        if (level & five).any() and (level & four).any():
            loss = table.fresh_loss.values
            at.append(np.log(p))
            gap.append(loss[level & four].min() - loss[level & five].min())
    gap = np.array(gap)
    turns = np.flatnonzero((gap[:-1] < 0) & (gap[1:] > 0))
    if len(turns) != 1:
        return [np.nan]
    i = turns[0]
    return [float(np.exp(at[i] - gap[i] * (at[i + 1] - at[i]) / (gap[i + 1] - gap[i])) / PENTAGON)]


def largest_jump(tables) -> list[float]:
    """Largest change of the first feature's dimensionality between neighbouring densities, best run of each."""
    table = next(iter(tables.values()))
    D = [float(at_density(table, p).dimensionality[0]) for p in FIRST_P]
    return [float(abs(np.diff(D)).max())]


def set_cosine(which: str):
    """Root mean square cosine of two features of one set, or of two sets, for every seed."""

    def value(tables):
        W = next(iter(tables.values())).neuron_weight.transpose("run", "feature", "neuron").values
        unit = W / np.linalg.norm(W, axis=2, keepdims=True)
        squares = (unit @ unit.transpose(0, 2, 1)) ** 2
        first = np.arange(W.shape[1]) < W.shape[1] // 2
        same = (first[:, None] == first) & ~np.eye(len(first), dtype=bool)
        chosen = same if which == "same" else first[:, None] != first
        return squares[:, chosen].mean(1) ** 0.5

    return value


def rise(tables) -> list[float]:
    """Largest vulnerability over that of the dense model."""
    table = next(iter(tables.values()))
    return [float(table.vulnerability.max() / dense(table).vulnerability)]


def follows(tables) -> list[float]:
    """Rank correlation of vulnerability and features per dimension over the levels; nan where these do not differ."""
    table = next(iter(tables.values()))
    x, y = table.features_per_dimension.values, table.vulnerability.values
    if np.ptp(x) < 1e-6:
        return [np.nan]
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return [float(np.corrcoef(ranks)[0, 1])]


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
    Claim(
        "attack without superposition",
        "Features that are always on: the best attack adds its own squared length to the squared error",
        "1 (closed form)",
        "derived",
        "within 3 %",
        lambda t: [float(dense(next(iter(t.values()))).vulnerability)],
        lambda v: abs(v - 1) < 0.03,
        needs=("geometry",),
        placebos=("untrained",),
        figure="adversarial vulnerability",
    ),
    Claim(
        "attacks gain",
        "... and as superposition sets in, more: largest vulnerability over that",
        "more than 3",
        "seen",
        "> 3",
        rise,
        lambda v: v > 3,
        needs=("geometry",),
        placebos=("untrained",),
        figure="adversarial vulnerability",
    ),
    Claim(
        "attacks follow",
        "Vulnerability goes with features per dimension, 1 / D*: rank correlation over 20 densities",
        "closely tracks",
        "seen",
        "> .9",
        follows,
        lambda v: v > 0.9,
        needs=("geometry",),
        placebos=("untrained",),
        figure="adversarial vulnerability",
    ),
    Claim(
        "many, dense",
        "100 features of falling importance that are always on: loss over that of keeping the twenty most important",
        "1 (closed form)",
        "derived",
        "within 2 %",
        lambda t: [float(dense(next(iter(t.values()))).loss_over_linear)],
        lambda v: abs(v - 1) < 0.02,
        needs=("many",),
        placebos=("untrained many",),
        figure="T2",
    ),
    Claim(
        "many, sparse",
        "... each rarer level represents more of them: fewest that are added from one of five levels to the next",
        "more in superposition as sparsity rises",
        "seen",
        ">= 5",
        fewest_added,
        lambda v: v >= 5,
        needs=("many",),
        placebos=("untrained many",),
        figure="T2",
    ),
    Claim(
        "important first",
        "... and the important ones: share of pairs in which the represented one matters more, worst level",
        "the most important are represented",
        "from memory",
        "not judged",
        important_first,
        None,
        needs=("many",),
        figure="T2",
    ),
    Claim(
        "rare feature",
        "One of five features, a twentieth as often on as the rest, is dropped; they form two digons: largest error "
        "of a D_i",
        "two digons",
        "seen",
        "< .02",
        two_digons_error,
        lambda v: v < 0.02,
        needs=("one rarer",),
        placebos=("untrained rarer",),
        figure="non-uniform superposition",
    ),
    Claim(
        "losses cross",
        "Pentagon and two digons are both reached; their losses cross once: where, as a share of the others' density",
        "they cross: a first-order change",
        "seen",
        "between 1/20 and 1",
        crossing,
        lambda v: 0.05 < v < 1,
        needs=("one rarer",),
        placebos=("untrained rarer",),
        figure="non-uniform superposition",
    ),
    Claim(
        "jump of the rare feature",
        "... so that its dimensionality jumps between neighbouring densities (from 0 to 2/5 at most)",
        "discontinuous",
        "seen",
        "> .25",
        largest_jump,
        lambda v: v > 0.25,
        needs=("one rarer",),
        placebos=("untrained rarer",),
        figure="non-uniform superposition",
    ),
    Claim(
        "local bases",
        "Two sets of ten features that come together, in ten dimensions: RMS cosine within a set",
        "almost orthogonal",
        "seen",
        "< .05",
        set_cosine("same"),
        lambda v: v < 0.05,
        needs=("local bases",),
        placebos=("no sets",),
        figure="local almost-orthogonal bases",
    ),
    Claim(
        "local bases share",
        "... and between the sets, which share all ten dimensions: that of any two orthonormal bases is 1 / sqrt 10",
        ".316",
        "derived",
        "within 5 %",
        set_cosine("other"),
        lambda v: abs(v * 10**0.5 - 1) < 0.05,
        needs=("local bases",),
        placebos=("no sets",),
        figure="local almost-orthogonal bases",
    ),
    Claim(
        "motif",
        "Computing |x| of six features: share of sixteen seeds with the asymmetric superposition motif",
        "about half",
        "replication",
        "1/4 to 3/4",
        lambda t: [float((next(iter(t.values())).n_motifs > 0).mean())],
        lambda v: 0.25 <= v <= 0.75,
        needs=("motif",),
        placebos=("untrained motif",),
        figure="asymmetric superposition motif",
    ),
)
