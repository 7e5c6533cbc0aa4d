"""Othello through training: the rules of the game come first, the board after them.

Top left: the share of positions whose likeliest move is illegal, on openings that were trained on (blue) and on
openings that never were (orange): where the curves part, the network memorises. Top right: loss above the exact floor.
Bottom left: accuracy of linear probes for the board as the side to move sees it (best layer), beside what a linear
readout of the moves gives away (dotted) and an untrained network (dashed): only above the dotted line does the
network know more than its input. Bottom right: the same by colour, which parity hides from a linear probe.
"""

import xarray as xr

from toylab.measures.board import BoardProbes, LegalMoves
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, subplots

NEEDS = ["othello_6x6"]
PROBES = BoardProbes(frames=("board", "colour"))


def compute(runs):
    """Moves and probes at every checkpoint; `games` is how many were seen by then."""
    table = xr.merge([runs.map(LegalMoves()), runs.map(PROBES)])
    return table.assign(games=table.step * runs.runs[0].experiment.train.batch_size)


def draw(table):
    figure, axes = subplots(2, 2, 4.8, sharex=True)
    one = table.isel(seed=0) if "seed" in table.dims else table
    games = one.games.values
    for ax, name, title in (
        (axes[0, 0], "illegal_top1", "likeliest move is illegal"),
        (axes[0, 1], "excess_loss", "loss above the floor (nats)"),
    ):
        for subset, color in (("seen", BLUE), ("unseen", ORANGE)):
            ax.plot(games, one[f"{subset}_{name}"], color=color, label=f"{subset} openings")
        ax.set(title=title, yscale="log")
    axes[0, 0].legend()
    for ax, frame, title in ((axes[1, 0], "board", "mine / theirs / empty"), (axes[1, 1], "colour", "black / white")):
        chosen = one.sel(frame=frame)
        ax.plot(games, chosen.accuracy.max("layer"), color=GREEN, label="linear probe, best layer")
        ax.plot(games, chosen.untrained.max("layer"), color=GREY, ls="--", label="untrained network")
        ax.axhline(float(chosen.controls[0].max()), color=PURPLE, ls=":", label="moves alone")
        ax.axhline(float(chosen.majority[0]), color=GREY, ls=":", lw=0.8, label="commonest class")
        ax.set(title=f"squares read: {title}", xlabel="games seen", xscale="symlog")
    axes[1, 0].legend(fontsize=7)
    return figure
