"""Nanda, Lee and Wattenberg 2023, "Emergent Linear Representations in World Models" (arXiv 2309.00941), on 6 x 6.

The paper's network is 8 x 8 with 25 M parameters; README.md states our sizes, what differs and what is not attempted.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet, last
from toylab.measures.board import BoardProbes, Interventions, LegalMoves, PathIndependence, ProbeGeometry


def sized(name: str, layers: int, width: int, *overrides: str) -> tuple[str, ...]:
    """The 6 x 6 experiment at another size, under its own name."""
    shape = (f"model.n_layers={layers}", f"model.d_model={width}", f"model.n_heads={width // 32}")
    return ("experiment=othello_6x6", f"name='othello_{name}'", *shape, f"model.d_mlp={4 * width}", *overrides)


SIZES = (1, 64), (2, 64), (3, 128)
QUARTER = (
    "train.steps=8000",
    "optim.lr=2e-3",
    "optim.warmup=200",
    "train.eval_every=500",
    "measure.legal_moves.every=500",
)
SHORT = (
    "train.precision=float32",
    "optim.lr=2e-3",
    "optim.warmup=200",
    "train.steps=1200",
    "train.batch_size=128",
    "train.eval_every=300",
    "train.checkpoints=['log:8']",
)
STOPPED = "train.steps=60", "train.eval_every=60", "train.checkpoints=[]", "optim.warmup=10"
RUNS = (
    RunSet("main", (("experiment=othello_6x6",),), about="4 layers of 192, 2,048,000 games"),
    RunSet(
        "sizes", tuple(sized(f"{n}x{d}", n, d, *QUARTER) for n, d in SIZES), about="smaller networks, 512,000 games"
    ),
    RunSet("4 x 4", (("experiment=othello_4x4",),), about="four fifths of the 6-move openings of all 60,060 games"),
    RunSet("stopped early", (sized("early", 4, 192, *STOPPED),), about="placebo: 3,840 games"),
)
QUICK = (
    RunSet("main", (sized("quick", 2, 64, *SHORT),), about="2 layers of 64, 150,000 games"),
    RunSet("stopped early", (sized("quick_early", 2, 64, *SHORT, *STOPPED),), about="placebo: 8,000 games"),
)
FIGURES = {
    "othello_learning": ("main",),
    "othello_probes": ("main",),
    "othello_edits": ("main",),
    "othello_scaling": ("main", "sizes"),
    "othello_order": ("main",),
    "othello_heads": ("main",),
    "othello_dictionaries": ("main",),
    "othello_latents": ("main",),
}


def measure(key: str, runs):
    """Moves through training; probes, their geometry, edits and paths at each run's last checkpoint."""
    if key == "sizes":
        return xr.Dataset()
    if key == "4 x 4":
        return xr.merge([runs.map(LegalMoves()), at_the_end(runs, BoardProbes())], join="outer")
    ends = [at_the_end(runs, tool) for tool in (BoardProbes(), ProbeGeometry(), Interventions(), PathIndependence())]
    return xr.merge([runs.map(LegalMoves()), *ends], compat="no_conflicts", join="outer")


def at_the_end(runs, tool):
    """A tool at the last checkpoint of every run, along `seed`."""
    return runs.join([run.map(tool, run.steps[-1]).isel(step=0, drop=True) for run in runs])


def best(t, frame: str):
    """[seed], accuracy at the best layer."""
    return t.accuracy.sel(frame=frame).max("layer").values


def edited(t, operator: str):
    """[seed], error after the edit over the error without one; nan where the network does not play at all."""
    return t.best_error.sel(operator=operator).values / t.null_persistence.isel(later=0).values


def random_edit(t):
    """[seed], the least error of a random direction over the error without an edit."""
    return t.random_error.min(("first_layer", "scale")).values / t.null_error.values


PLACEBO = ("stopped early",)
CLAIMS = (
    Claim(
        "mine is linear",
        "A linear probe reads mine / theirs / empty better than black / white / empty",
        "99.6 % against 75.0 %",
        "seen",
        "difference of accuracies, each at its best layer, > 0.05",
        lambda t: best(t["main"], "board") - best(t["main"], "colour"),
        lambda v: v > 0.05,
        placebos=PLACEBO,
        figure="Table 1",
    ),
    Claim(
        "more than the moves",
        "... and better than the best linear readout of the moves (our control)",
        "99.6 % against 86 to 87 % for such a readout",
        "derived",
        "gain at the best layer > 0",
        lambda t: t["main"].gain.sel(frame="board").max("layer").values,
        lambda v: v > 0,
        placebos=PLACEBO,
        figure="Table 1",
    ),
    Claim(
        "rises with depth",
        "Mine / theirs accuracy rises from the first block to the best",
        "90.9 % to 99.6 %",
        "seen",
        "difference > 0.02",
        lambda t: best(t["main"], "board") - t["main"].accuracy.sel(frame="board").isel(layer=0).values,
        lambda v: v > 0.02,
        placebos=PLACEBO,
        figure="Table 1",
    ),
    Claim(
        "opposite directions",
        "Black-minus-white directions of even and odd plies are opposite",
        "cosine close to -1",
        "seen",
        "mean cosine at the layer where it is lowest < -0.8",
        lambda t: t["main"].even_odd.min("layer").values,
        lambda v: v < -0.8,
        placebos=PLACEBO,
        figure="section 3",
    ),
    Claim(
        "adding a direction",
        "Adding the linear direction makes the network play by the edited board",
        "error 0.10 against 2.72 without",
        "seen",
        "error over that without the edit < 0.5",
        lambda t: edited(t["main"], "add"),
        lambda v: v < 0.5,
        placebos=PLACEBO,
        figure="Table 2",
    ),
    Claim(
        "not any direction",
        "A random direction of the same length does far less (our control)",
        "not reported",
        "derived",
        "its least error, over that without the edit, exceeds that of the probe's direction by > 0.3",
        lambda t: random_edit(t["main"]) - edited(t["main"], "add"),
        lambda v: v > 0.3,
        placebos=PLACEBO,
    ),
    Claim(
        "as good as the gradient",
        "The direction does as well as gradient steps through a linear probe",
        "0.10 against 0.12 (MLP probe)",
        "seen",
        "ratio of errors over null: < 0.5, and at most 0.2 above the gradient's",
        lambda t: np.where(
            edited(t["main"], "add") < 0.5, edited(t["main"], "add") - edited(t["main"], "gradient"), np.inf
        ),
        lambda v: v < 0.2,
        placebos=PLACEBO,
        figure="Table 2",
    ),
    Claim(
        "paths",
        "Two orders of moves with the same board: total variation of the predictions over that of unrelated boards",
        "0.230 for a network trained on human games (a public report)",
        "replication",
        "shown",
        lambda t: np.asarray(t["main"].variation / t["main"].other_variation),
        None,
    ),
    Claim(
        "legal moves",
        "Illegal best moves on unseen openings",
        "0.01 % at 8 x 8 with 20 million games",
        "seen",
        "shown",
        lambda t: last(t["main"].unseen_illegal_top1),
        None,
        figure="Li et al., section 2",
    ),
    Claim(
        "4 x 4, legal moves",
        "The same on 4 x 4, where every game is known",
        "not reported",
        "derived",
        "shown",
        lambda t: last(t["4 x 4"].unseen_illegal_top1),
        None,
        needs=("4 x 4",),
    ),
    Claim(
        "4 x 4, more than the moves",
        "On 4 x 4 mine / theirs / empty is read better than from the moves: gain at the best layer",
        "not reported; games are so short that moves tell .92 linearly",
        "derived",
        "shown",
        lambda t: t["4 x 4"].gain.sel(frame="board").max("layer").values,
        None,
        needs=("4 x 4",),
    ),
)
