"""Dictionaries of the network, from sparse to dense: what do they keep, and do their latents stand for squares?

By the number of latents on at once (L0), one line for each kind of dictionary over five settings, on the middle block.
Left: the share of the network's loss that does not come back when the dictionary stands in for the stream (lower is
better; of what putting the mean there loses). Middle: coverage, the F1 of the best single latent for a square, mean
over squares. Right: reconstruction, F1 of boards put together from latents that are almost never wrong. Horizontal
lines are the controls: neurons of the same block, the moves themselves, a dictionary of an untrained network, and
(thin, black) chance. A dictionary that does not lie above neurons and moves has not found squares, however little loss
it costs; note that the kinds that are best by one score need not be by another.
"""

import xarray as xr

from toylab.measures.board_features import BoardDictionary, BoardSweep
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, subplots

NEEDS = ["othello_6x6"]
COLORS = {"standard": BLUE, "p-anneal": PURPLE, "gated": ORANGE, "topk": RED, "batchtopk": GREEN}
CONTROLS = {"neurons": "-", "moves": "--", "untrained": ":"}


def compute(runs):
    """BoardSweep and, for its controls (control_*), BoardDictionary, at the last checkpoint of the first run."""
    run = runs.runs[0]
    layer = run.final.model.n_layers // 2
    sweep, one = (
        run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in (BoardSweep(layer), BoardDictionary(layer))
    )
    names = {name: f"control_{name}" for name in ("coverage", "reconstruction", "chance")}
    return xr.merge([sweep, one[list(names)].rename(names)])


def draw(table):
    figure, (loss, coverage, rebuilt) = subplots(1, 3, 2.9)
    for kind in table.kind.values:
        one = table.sel(kind=kind).sortby("l0")
        for ax, values in ((loss, 1 - one.recovered), (coverage, one.coverage), (rebuilt, one.reconstruction)):
            ax.plot(one.l0, values, "o-", ms=3, lw=1.2, color=COLORS[str(kind)], label=str(kind))
    for name, style in CONTROLS.items():
        for ax, score in ((coverage, "coverage"), (rebuilt, "reconstruction")):
            ax.axhline(float(table[f"control_{score}"].sel(features=name)), color=GREY, ls=style, lw=1, label=name)
    chance = coverage.axhline(float(table.control_chance), color="black", lw=0.6)
    loss.set(title="loss not recovered", xlabel="L0", xscale="log", yscale="log")
    coverage.set(title="coverage of squares", xlabel="L0", xscale="log", ylim=(0, 1))
    rebuilt.set(title="boards rebuilt", xlabel="L0", xscale="log", ylim=(0, None))
    handles, labels = rebuilt.get_legend_handles_labels()
    figure.legend([*handles, chance], [*labels, "chance"], loc="outside upper center", ncols=8, fontsize=7)
    return figure
