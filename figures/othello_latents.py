"""Dictionaries block by block and through training, and what single latents stand for.

Top left: coverage (solid) and reconstruction (dashed) of squares by a dictionary of every block (green), the neurons of
that block (orange), the moves themselves (blue) and a dictionary of an untrained network (grey). Top right: the same
scores for the middle block over the games seen: do latents become squares while the network learns the board? Green
must lie above orange and blue to have found squares. Bottom: the six latents that tell one square best; every board
shows how much likelier each square is mine (red) or theirs (blue) when that latent is on than otherwise; the frame
marks the square it tells, above it the F1. A latent of one square is one dark cell; one that also colours a line stands
for a pattern: a disc just placed, and those that it turned over.
"""

import numpy as np
import xarray as xr

from toylab.measures.board_features import BoardDictionary
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, WIDTH

NEEDS = ["othello_6x6"]
SHOWN = 6
COLORS = {"dictionary": GREEN, "neurons": ORANGE, "moves": BLUE, "untrained": GREY}
SCORES = {"coverage": "-", "reconstruction": "--"}


def compute(runs):
    """Scores of every block at the end (layer_*), of the middle block along training, and its best latents."""
    run = runs.runs[0]
    n_layers, last = run.final.model.n_layers, run.steps[-1]
    tools = [BoardDictionary(layer) for layer in range(n_layers)]
    ends = xr.concat([run.map(tool, last).isel(step=0, drop=True)[list(SCORES)] for tool in tools], "layer")
    middle = tools[n_layers // 2]
    through = run.map(middle, run.pick("log:6"))[list(SCORES)]
    through = through.assign(games=through.step * run.experiment.train.batch_size)
    boards = middle.boards(run.final, SHOWN)
    lean = boards.pop("lean").numpy()
    found = {f"latent_{name}": ("latent", value.numpy()) for name, value in boards.items()}
    found["latent_lean"] = (("latent", "square"), lean)
    return xr.merge([through, ends.rename({name: f"layer_{name}" for name in SCORES}), xr.Dataset(found)])


def draw(table):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1))
    blocks, training = top.subplots(1, 2, sharey=True)
    layers = range(table.sizes["layer"])
    for name, color in COLORS.items():
        one = table.sel(features=name)
        for score, style in SCORES.items():
            blocks.plot(layers, one[f"layer_{score}"], style, marker="o", ms=3, color=color)
            training.plot(one.games, one[score], style, marker="o", ms=3, color=color, label=f"{name}, {score}")
    blocks.set(title="at the end", xlabel="after block", xticks=list(layers), ylim=(0, 1))
    training.set(title="middle block, through training", xlabel="games seen", xscale="symlog")
    training.set_xlim(0, 1.5 * float(table.games.max()))
    top.legend(*training.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6)
    n = round(table.sizes["square"] ** 0.5)
    for i, ax in enumerate(bottom.subplots(1, table.sizes["latent"])):
        one = table.isel(latent=i)
        ax.imshow(one.latent_lean.values.reshape(n, n), cmap="RdBu_r", vmin=-1, vmax=1)
        row, col = divmod(int(one.latent_square), n)
        ax.plot(np.array([-1, 1, 1, -1, -1]) / 2 + col, np.array([-1, -1, 1, 1, -1]) / 2 + row, "k", lw=1.2)
        side = ("mine", "theirs")[int(one.latent_theirs)]
        ax.set_title(f"{side}, F1 {float(one.latent_f1):.2f}", fontsize=7)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure
