"""Does the network know at once what a move changed, and does it forget what is long past?

Left: accuracy for discs of mine / theirs by the turns (two plies) since they were placed or last turned over, at every
block (linear probe) and for a larger probe (dashed, last block); purple: the best linear readout of the moves. The grey
area says how many discs of a position are that old. A network with a board is flat and lies above purple; a dip at 0
would mean that what has just been turned is not yet known. A disc that changed an even number of plies ago is theirs,
an odd number mine (but for passes), so single plies would zigzag with whatever a probe says when in doubt. Middle: what
the network knows of all squares above the moves, by ply: near 0 early, when the moves say it all, and growing as flips
accumulate. Right: illegal best moves by ply, with two standard errors: rules are broken where the board is least known.
"""

from toylab.measures.board_reading import LINEAR, BoardByAge
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, subplots

NEEDS = ["othello_6x6"]
SHADES = (GREY, BLUE, ORANGE, GREEN)
FEWEST = 0.02  # discs per position: ages with fewer are not drawn


def compute(runs):
    """BoardByAge at the last checkpoint of the first run."""
    run = runs.runs[0]
    return run.map(BoardByAge(), run.steps[-1]).isel(step=0, drop=True)


def draw(table):
    figure, (by_age, by_ply, illegal) = subplots(1, 3, 2.9)
    discs = by_turn(table.discs)
    often = discs >= FEWEST
    accuracy, moves = (by_turn(table[name].fillna(0) * table.discs) / discs for name in ("accuracy", "moves"))
    many = by_age.twinx()
    many.fill_between(discs.age, discs.where(often), color=GREY, alpha=0.15, lw=0)
    many.set(ylim=(0, 2.5 * float(discs.max())), yticks=[])
    linear = table.sel(hidden=LINEAR)
    for layer in range(table.sizes["layer"]):
        color, label = SHADES[layer % len(SHADES)], f"block {layer}"
        by_age.plot(discs.age, accuracy.sel(hidden=LINEAR).isel(layer=layer).where(often), color=color, label=label)
        by_ply.plot(linear.accuracy_by_ply.isel(layer=layer) - table.moves_by_ply, color=color)
    largest, label = accuracy.isel(hidden=-1, layer=-1), f"last, {int(table.hidden[-1])} units"
    by_age.plot(discs.age, largest.where(often), "--", color=RED, lw=1, label=label)
    by_age.plot(discs.age, moves.where(often), color=PURPLE, lw=1, label="moves alone")
    by_age.set(title="discs read right", xlabel="turns since last changed", ylim=(None, 1.0))
    by_ply.axhline(0, color=PURPLE, lw=1)
    by_ply.set(title="accuracy above the moves", xlabel="ply")
    illegal.errorbar(table.ply, table.illegal_by_ply, 2 * table.illegal_stderr, color=RED, lw=1.2, elinewidth=0.6)
    illegal.set(title="illegal best moves", xlabel="ply", ylim=(0, None))
    figure.legend(*by_age.get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=7)
    return figure


def by_turn(values):
    """Sums over two plies of age each; age then counts turns."""
    sums = values.assign_coords(age=range(values.sizes["age"])).coarsen(age=2, boundary="trim").sum()
    return sums.assign_coords(age=range(sums.sizes["age"]))
