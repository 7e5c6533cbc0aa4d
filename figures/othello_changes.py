"""Three ways to change one square inside the network: turn a disc over, take it away, leave a board no game can reach.

Top-N error against the legal moves of the changed board, by the first block that is edited, at the scale that did best;
bars are two standard errors. Purple: gradient steps through a probe with hidden units (Li et al.). Green: a step along
the linear probe's direction (Nanda et al.). Grey: the same step along a random direction; dashed: no edit. Only what
lies well below both did something. An unnatural board that is obeyed as well as a natural one says that the network
works with the board it holds, and does not look up boards that it has seen; late edits fail because nothing after them
reads the board.
"""

import xarray as xr

from toylab.measures.board import Interventions
from toylab.plotting import GREEN, GREY, PURPLE, subplots
from toylab.tasks.othello import CHANGES

NEEDS = ["othello_6x6"]
COLORS = {"gradient": PURPLE, "add": GREEN}
TITLES = {"flip": "a disc turned over", "erase": "a disc taken away", "unnatural": "a board no game has"}


def compute(runs):
    """Interventions of every kind at the last checkpoint of the first run, along `change`."""
    run = runs.runs[0]
    tools = [Interventions(change=change, operators=tuple(COLORS), hidden=64, later=0) for change in CHANGES]
    tables = [run.map(tool, run.steps[-1]).isel(step=0, drop=True) for tool in tools]
    return xr.concat(tables, "change").assign_coords(change=list(CHANGES))


def draw(table):
    figure, axes = subplots(1, len(CHANGES), 2.8, sharey=True)
    layers = range(table.sizes["first_layer"])
    for ax, change in zip(axes, CHANGES, strict=True):
        here = table.sel(change=change)
        for name, color in COLORS.items():
            one = here.sel(operator=name)
            best = one.error.argmin("scale")
            error, bar = one.error.isel(scale=best), 2 * one.error_stderr.isel(scale=best)
            ax.errorbar(layers, error, bar, fmt="o-", color=color, ms=3, elinewidth=0.8, label=name)
        ax.plot(layers, here.random_error.min("scale"), color=GREY, label="random direction")
        ax.axhline(float(here.null_error), color=GREY, ls="--", label="no edit")
        ax.set(title=TITLES[change], xlabel="first block edited", xticks=list(layers), ylim=(0, None))
    axes[0].set_ylabel("top-N error")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=7)
    return figure
