"""How large a probe does it take to read the board? "The network holds it" against "the probe finds it".

Accuracy on held-out openings at the best layer, by the size of the probe: a linear one, then hidden units that all
squares share. Left: mine / theirs / empty; right: black / white / empty. Green: the trained network, dashed grey: one
of the same shape before training, purple: the same probe on the moves themselves, dotted: the commonest class. Left,
green should be high from the linear probe on, and above purple: the board is there to be read. Right, a linear probe
should fail and larger ones gain: colours must be worked out from mine and theirs. Where purple is as high as green, so
large a probe works out the board by itself. Small shared layers lie below the linear probe because 36 squares compete
for them.
"""

from toylab.measures.board_reading import LINEAR, ProbeCapacity
from toylab.plotting import GREEN, GREY, PURPLE, subplots

NEEDS = ["othello_6x6"]
TITLES = {"board": "mine / theirs / empty", "colour": "black / white / empty"}


def compute(runs):
    """ProbeCapacity at the last checkpoint of the first run."""
    run = runs.runs[0]
    return run.map(ProbeCapacity(), run.steps[-1]).isel(step=0, drop=True)


def draw(table):
    figure, axes = subplots(1, 2, 2.9, sharey=True)
    sizes = range(table.sizes["hidden"])
    names = ["linear" if units == LINEAR else str(units) for units in table.hidden.values]
    wide = table.hidden > LINEAR
    for ax, (frame, title) in zip(axes, TITLES.items(), strict=True):
        one = table.sel(frame=frame)
        network, untrained = one.accuracy.max("layer"), one.untrained.max("layer")
        lines = {"network, best layer": (network, GREEN, "-"), "the moves themselves": (one.moves, PURPLE, "-")}
        lines["untrained network"] = (untrained, GREY, "--")
        for label, (values, color, style) in lines.items():
            ax.plot(sizes, values, "o", color=color, ms=3.5)
            ax.plot(sizes, values.where(wide), style, color=color, label=label)
        ax.axhline(float(one.majority), color=GREY, ls=":", lw=1, label="commonest class")
        ax.set(title=title, xlabel="hidden units of the probe", ylim=(0.55, 1.0))
        ax.set_xticks(list(sizes), names)
    axes[0].set_ylabel("squares read right")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=7)
    return figure
