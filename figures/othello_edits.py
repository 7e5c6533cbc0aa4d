"""Edit the board inside the network: does it play by the edited board?

Left: top-N error against the legal moves of the edited board, by the first block that is edited, for four ways to
edit; the scale that did best is shown. Dashed: no edit. Grey: a step of the same length along a random direction.
Only what lies well below both dashed and grey changed what the network believes. Middle: of the moves whose legality
the edit changed, the share treated as on the edited board (dashed: without an edit); the papers' error also counts the
nine in ten moves that stay as they were. Right: the error while the edited game goes on: an edit that persists stays
below the dashed line of the unedited network.
"""

from toylab.measures.board import Interventions
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, subplots

NEEDS = ["othello_6x6"]
COLORS = {"gradient": PURPLE, "add": GREEN, "attn": BLUE, "reflect": ORANGE}


def compute(runs):
    """Interventions at the last checkpoint of the first run."""
    run = runs.runs[0]
    return run.map(Interventions(), run.steps[-1]).isel(step=0, drop=True)


def draw(table):
    figure, (error, changed, later) = subplots(1, 3, 2.7)
    layers = range(table.sizes["first_layer"])
    for name, color in COLORS.items():
        one = table.sel(operator=name)
        error.plot(layers, one.error.min("scale"), "o-", color=color, ms=3, label=name)
        changed.plot(layers, one.changed.max("scale"), "o-", color=color, ms=3)
        later.plot(one.persistence, "o-", color=color, ms=3)
    error.plot(layers, table.random_error.min("scale"), color=GREY, label="random direction")
    error.axhline(float(table.null_error), color=GREY, ls="--", label="no edit")
    changed.axhline(float(table.null_changed), color=GREY, ls="--")
    later.plot(table.null_persistence, color=GREY, ls="--")
    error.set(title="top-N error", xlabel="first block edited", xticks=list(layers), ylim=(0, None))
    changed.set(title="changed moves right", xlabel="first block edited", xticks=list(layers), ylim=(0, 1.02))
    later.set(title="error, further moves", xlabel="moves after the edit", ylim=(0, None))
    figure.legend(*error.get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=7)
    return figure
