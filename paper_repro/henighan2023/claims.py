"""Henighan et al. 2023, "Superposition, Memorization, and Double Descent".

Reduced: 1,000 features, two dimensions, one training set for each number of samples. README.md states the sizes and
what is not attempted; the paper's own position of the transition is known to depend on the optimisation.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet
from toylab.measures.superposition import DataGeometry, Geometry

SAMPLES = (3, 5, 6, 8, 12, 20, 50, 200, 1000, 3000)
SEEDS = dict.fromkeys(SAMPLES, 8) | {20: 4, 50: 4, 200: 2, 1000: 1, 3000: 1}
FEW, MANY = (5, 6, 8), SAMPLES[-1]  # three or four samples may stand at any angles of 90 degrees and more


def cells(name: str, samples, *overrides: str) -> tuple[tuple[str, ...], ...]:
    common = ("experiment=tms_memorised", "optim.lr=3e-3", "train.checkpoints=[]", "train.threads=1")
    return tuple((*common, f"name='henighan2023/{name}/T={T}'", f"task.n_samples={T}", *overrides) for T in samples)


# The map: fewer features, as many of them on, so that the largest training set shows each feature some thirty times.
WIDTHS = (2, 4, 8, 16)
MAP_SAMPLES = (4, 8, 16, 32, 64, 128, 256, 512)
MAP_FEATURES, MAP_SPARSITY = 150, 0.94


def map_sets(name: str, width: int, *overrides: str) -> tuple[RunSet, RunSet]:
    """All numbers of samples at one hidden size. Two stacks, as each member of a stack is padded to the longest."""
    small = (f"task.n_features={MAP_FEATURES}", f"task.sparsity={MAP_SPARSITY}", "train.steps=1500", *overrides)
    halves = [T for T in MAP_SAMPLES if T <= 64], [T for T in MAP_SAMPLES if T > 64]
    few, many = (cells(f"{name}/m={width}", half, f"model.d_hidden={width}", *small) for half in halves)
    return (
        RunSet(f"{name}, m = {width}, few", few, 2, f"{MAP_FEATURES} features, T to 64", True),
        RunSet(f"{name}, m = {width}, many", many, 1, f"{MAP_FEATURES} features, T from 128", True),
    )


def map_keys(name: str, *widths: int) -> tuple[str, ...]:
    return tuple(f"{name}, m = {width}, {half}" for width in widths for half in ("few", "many"))


RUNS = (
    *(RunSet(f"T = {T}", cells("main", [T]), SEEDS[T], "unit vectors", True) for T in SAMPLES),
    RunSet("untrained", cells("untrained", FEW, "optim.lr=0", "train.steps=1"), 2, "placebo"),
    *(s for width in WIDTHS for s in map_sets("map", width)),
    *map_sets("untrained_map", 2, "optim.lr=0", "train.steps=1"),
)
QUICK = RUNS[1:4]
FIGURES = {"henighan_regimes": tuple(f"T = {T}" for T in SAMPLES), "henighan_map": map_keys("map", *WIDTHS)}


def measure(key: str, runs):
    """Along `run`, at the last step: the number of samples; data and feature dimensionality; losses and norms.

    data_error is the largest |D - m/T| over samples, angle_error the largest deviation of the angle between neighbours
    from 2 pi / T, as a share of it (nan but in two dimensions); top_features the dimensionalities of the five longest
    features; nothing the loss of the answer 0 on held-out samples.
    """
    rows = []
    for run in runs:
        data = run.map(DataGeometry(), run.steps[-1]).isel(step=0, drop=True)
        features = run.map(Geometry(), run.steps[-1]).isel(step=0, drop=True)
        T, m = run.task.n_samples, run.experiment.model.d_hidden
        longest = np.argsort(-features.norm.values)[:5]
        rows.append(
            data[["W_norm", "b_norm", "train_loss", "test_loss"]].assign(
                samples=float(T),
                nothing=1 / run.task.n_features,
                data_error=float(abs(data.data_dimensionality - m / T).max()),
                angle_error=angle_error(data.hidden_state.values) if m == 2 else np.nan,
                data_dimensionality=float(data.data_dimensionality.mean()),
                top_features=("top", features.dimensionality.values[longest]),
                feature_dimensionality=float(features.dimensionality.mean()),
            )
        )
    return xr.concat(rows, "run")


def angle_error(hidden) -> float:
    angles = np.sort(np.arctan2(hidden[:, 1], hidden[:, 0]))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
    return float(abs(gaps * len(hidden) / (2 * np.pi) - 1).max())


def best(table):
    """The run of the lowest training loss, as in the paper; of several numbers of samples one each."""
    order = np.argsort(table.train_loss.values)
    _, first = np.unique(table.samples.values[order], return_index=True)
    return table.isel(run=order[first])


def of_best(name: str):
    """The largest over the run sets that the claim needs."""

    def value(tables):
        return [max(float(best(table)[name].max()) for table in tables.values())]

    return value


def bump(tables) -> list[float]:
    """Largest test loss at a middle T over the test loss at the largest T."""
    losses = {key: float(best(table).test_loss.values[0]) for key, table in tables.items()}
    end = losses[f"T = {MANY}"]
    return [max(v for key, v in losses.items() if key != f"T = {MANY}") / end]


def size_ratio(tables) -> list[float]:
    """|W| at T = 12 over |W| at T = 3."""
    norms = {key: float(best(table).W_norm.values[0]) for key, table in tables.items()}
    return [norms["T = 12"] / norms["T = 3"]]


def curves(tables, name: str) -> list[np.ndarray]:
    """Of every hidden size the best runs' values in units of the loss of the answer 0, in the order of T."""
    merged: dict[str, list] = {}
    for key, table in tables.items():
        merged.setdefault(key.split(", ")[1], []).append(best(table))
    joined = [xr.concat(halves, "run").sortby("samples") for halves in merged.values()]
    return [(table[name] / table.nothing).values for table in joined]


def memorised(tables) -> list[float]:
    """Training loss of the fewest samples, at the hidden size where it is largest."""
    return [float(max(loss[0] for loss in curves(tables, "train_loss")))]


def understood(tables) -> list[float]:
    """Held-out loss at the most samples, at the hidden size where it is largest."""
    return [float(max(loss[-1] for loss in curves(tables, "test_loss")))]


def bump_of_all(tables) -> list[float]:
    """Largest held-out loss between the ends over the larger of those at the ends, at the hidden size where this is
    smallest."""
    return [float(min(loss[1:-1].max() / max(loss[0], loss[-1]) for loss in curves(tables, "test_loss")))]


def moves(tables) -> list[float]:
    """T of the largest held-out loss at the largest hidden size over that at the smallest."""
    worst = [MAP_SAMPLES[int(np.argmax(loss))] for loss in curves(tables, "test_loss")]
    return [worst[-1] / worst[0]]


CLAIMS = (
    *(
        Claim(
            f"polygon of {T}",
            f"{T} samples are memorised as a regular {T}-gon: largest error of an angle, as a share of 2 pi / {T}",
            f"regular {T}-gon",
            "seen",
            "< 20 %: zero loss leaves room, only weight decay evens the angles",
            of_best("angle_error"),
            lambda v: v < 0.2,
            needs=(f"T = {T}",),
            placebos=("untrained",),
        )
        for T in FEW
    ),
    *(
        Claim(
            f"data dimensionality of {T}",
            f"... each with 2/{T} of a dimension: largest |D - 2/{T}|",
            f"2/{T}",
            "derived",
            "< .02",
            of_best("data_error"),
            lambda v: v < 0.02,
            needs=(f"T = {T}",),
            placebos=("untrained",),
        )
        for T in FEW
    ),
    Claim(
        "norms grow",
        "A larger polygon needs longer weights: |W| of 12 samples over |W| of 3",
        "|W|^2 = T / (1 - cos(2 pi / T)) for disjoint supports: 5.5 for T = 12 over 3",
        "derived",
        "> 1.5",
        size_ratio,
        lambda v: v > 1.5,
        needs=("T = 3", "T = 12"),
    ),
    Claim(
        "double descent",
        f"Held-out loss has a bump: its largest value at fewer samples over that at {MANY:,}",
        "a bump; its position depends on the optimisation",
        "seen",
        "> 1.05",
        bump,
        lambda v: v > 1.05,
        needs=tuple(f"T = {T}" for T in SAMPLES),
    ),
    Claim(
        "features at many samples",
        f"Dimensionality of the longest feature at {MANY:,} samples (a pentagon alone would have 2/5)",
        "well below 2/5",
        "seen",
        "not judged",
        lambda t: [float(best(t[f"T = {MANY}"]).top_features.max())],
        None,
        needs=(f"T = {MANY}",),
    ),
    Claim(
        "map, memorised",
        f"At every hidden size {MAP_SAMPLES[0]} samples are memorised: largest training loss, the answer 0 being 1",
        "0",
        "derived",
        "< .1",
        memorised,
        lambda v: v < 0.1,
        needs=map_keys("map", *WIDTHS),
        placebos=("untrained_map, m = 2, few",),
        figure="over T and m",
    ),
    Claim(
        "map, bump",
        "... held-out loss has a bump between few and many: its top over the larger of the ends, where this is least",
        "double descent at every size",
        "seen",
        "> 1.02",
        bump_of_all,
        lambda v: v > 1.02,
        needs=map_keys("map", *WIDTHS),
        figure="over T and m",
    ),
    Claim(
        "map, understood",
        f"... and {MAP_SAMPLES[-1]} samples teach something of others: largest held-out loss, the answer 0 being 1",
        "features are learned",
        "seen",
        "< .97",
        understood,
        lambda v: v < 0.97,
        needs=(*map_keys("map", WIDTHS[0])[::-1], *map_keys("map", *WIDTHS[1:])),
        placebos=("untrained_map, m = 2, many",),
        figure="over T and m",
    ),
    Claim(
        "map, where",
        f"T of the worst held-out loss at m = {WIDTHS[-1]} over that at m = {WIDTHS[0]}",
        "depends on the optimisation",
        "seen",
        "not judged",
        moves,
        None,
        needs=map_keys("map", *WIDTHS),
        figure="over T and m",
    ),
)
