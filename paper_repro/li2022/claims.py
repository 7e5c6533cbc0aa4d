"""Li et al. 2022, "Emergent World Representations" (arXiv 2210.13382), on 6 x 6.

The paper's network is 8 x 8 with 25 M parameters; README.md states our sizes, what differs and what is not attempted.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, last
from toylab.cli.paper import paper_module
from toylab.measures.board import BoardProbes, Interventions, LegalMoves, Saliency

# The runs of nanda2023othello, where their sizes are said: they are trained once.
SHARED = paper_module("nanda2023othello")
RUNS = tuple(s for s in SHARED.RUNS if s.key in ("main", "stopped early"))
QUICK = SHARED.QUICK
FIGURES = {
    "othello_game": ("main",),
    "othello_learning": ("main",),
    "othello_edits": ("main",),
    "othello_saliency": ("main",),
    "othello_capacity": ("main",),
    "othello_age": ("main",),
    "othello_changes": ("main",),
    "othello_map": ("main",),
}
MLP = BoardProbes(frames=("colour",), kind="mlp", n_games=300)
LINEAR = BoardProbes(frames=("colour",), n_games=300)
NATURAL = Interventions(operators=("gradient",), hidden=64)
UNNATURAL = Interventions(change="unnatural", operators=("gradient",), hidden=64, later=0)


def measure(key: str, runs):
    """Moves through training; MLP and linear probes by colour, edits through MLP probes and saliency at the end."""
    ends = [
        prefixed("mlp_", SHARED.at_the_end(runs, MLP)[["accuracy"]]),
        SHARED.at_the_end(runs, LINEAR),
        SHARED.at_the_end(runs, NATURAL)[["best_error", "null_persistence"]].isel(later=0),
        prefixed("unnatural_", SHARED.at_the_end(runs, UNNATURAL)[["best_error", "null_persistence"]].isel(later=0)),
        SHARED.at_the_end(runs, Saliency(first_layer=1)),
    ]
    return xr.merge([runs.map(LegalMoves()), *ends], compat="no_conflicts", join="outer")


def prefixed(prefix: str, table):
    return table.rename({name: f"{prefix}{name}" for name in table.data_vars})


def edited(t, prefix: str = ""):
    """[seed], error after the edit over the error without one, on the half that no setting was chosen on."""
    return (t[f"{prefix}best_error"].isel(operator=0) / t[f"{prefix}null_persistence"]).values


PLACEBO = ("stopped early",)
CLAIMS = (
    Claim(
        "legal moves",
        "The best move is nearly always legal, on openings never trained on",
        "0.01 % illegal (untrained: 93.29 %)",
        "seen",
        "illegal < 2 % (ours, for this size)",
        lambda t: last(t["main"].unseen_illegal_top1),
        lambda v: v < 0.02,
        placebos=PLACEBO,
        figure="section 2.3",
    ),
    Claim(
        "no memory of openings",
        "Openings left out of training are played as well as others",
        "0.02 % against 0.01 %",
        "seen",
        "illegal on unseen minus seen openings < 0.5 %, unseen < 10 %",
        lambda t: np.where(
            last(t["main"].unseen_illegal_top1) < 0.1,
            last(t["main"].unseen_illegal_top1) - last(t["main"].seen_illegal_top1),
            np.inf,
        ),
        lambda v: v < 0.005,
        placebos=PLACEBO,
        figure="section 2.3",
    ),
    Claim(
        "not linear in colour",
        "Black / white / empty is read by an MLP probe and not by a linear one",
        "error 1.7 % against 20.4 %, best layers",
        "seen",
        "difference of accuracies at best layers > 0.05",
        lambda t: (t["main"].mlp_accuracy.max(("frame", "layer")) - t["main"].accuracy.max(("frame", "layer"))).values,
        lambda v: v > 0.05,
        placebos=PLACEBO,
        figure="Tables 1 and 2",
    ),
    Claim(
        "edits",
        "After gradient steps through the probe the network plays by the edited board",
        "error 0.12 against 2.68",
        "seen",
        "error over that without the edit < 0.5",
        lambda t: edited(t["main"]),
        lambda v: v < 0.5,
        placebos=PLACEBO,
        figure="Fig. 4",
    ),
    Claim(
        "unnatural edits",
        "... also when no game can reach the edited board",
        "error 0.06 against 2.59",
        "seen",
        "error over that without the edit < 0.5",
        lambda t: edited(t["main"], "unnatural_"),
        lambda v: v < 0.5,
        placebos=PLACEBO,
        figure="Fig. 4",
    ),
    Claim(
        "saliency",
        "Latent saliency marks the discs that the move's legality hangs on (the judge is ours)",
        "maps only",
        "derived",
        "AUROC against exact counterfactuals > 0.75",
        lambda t: t["main"].auroc.values,
        lambda v: v > 0.75,
        placebos=PLACEBO,
        figure="Fig. 5",
    ),
)
