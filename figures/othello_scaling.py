"""How much training does a world model take? Networks of several sizes on 6 x 6, along the games they have seen.

Left: the share of illegal best moves on openings that were never trained on. Right: the headline of probing, accuracy
of linear probes for mine / theirs / empty at the best layer minus the best linear readout of the moves alone. Above
the dotted zero a network holds more of the board than its input gives away.
"""

import numpy as np
import xarray as xr

from toylab.measures.board import BoardProbes, LegalMoves
from toylab.plotting import GREY, subplots

NEEDS = ["othello_6x6"]


def compute(runs):
    """illegal, gain [run, point] at the checkpoints of every run, padded with NaN; games [run, point]."""
    rows, names = [], []
    for run in runs:
        steps = run.pick("log:10")
        moves, probes = run.map(LegalMoves(), steps), run.map(BoardProbes(frames=("board",)), steps)
        gain = probes.gain.isel(frame=0).max("layer").values
        games = np.array(steps) * run.experiment.train.batch_size
        rows.append(np.stack([games, moves.unseen_illegal_top1.values, gain]))
        names.append(f"{run._empty_model.n_params() / 1e6:.2f} M")
    longest = max(row.shape[1] for row in rows)
    table = np.stack([np.pad(r, ((0, 0), (0, longest - r.shape[1])), constant_values=np.nan) for r in rows])
    dims = ("run", "point")
    found = {name: (dims, table[:, i]) for i, name in enumerate(("games", "illegal", "gain"))}
    return xr.Dataset(found, {"run": names})


def draw(table):
    figure, (illegal, gain) = subplots(1, 2, 2.8)
    for i, name in enumerate(table.run.values):
        one = table.isel(run=i)
        illegal.plot(one.games, one.illegal, "o-", ms=3, label=f"{name} parameters")
        gain.plot(one.games, one.gain, "o-", ms=3)
    gain.axhline(0, color=GREY, ls=":")
    illegal.set(title="illegal best moves, unseen openings", xlabel="games seen", xscale="symlog", yscale="log")
    gain.set(title="probe gain over the moves", xlabel="games seen", xscale="symlog")
    for ax in (illegal, gain):
        ax.set_xlim(0, 1.5 * float(table.games.max()))
    illegal.legend(fontsize=7)
    return figure
