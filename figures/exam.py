"""The exam: which tool finds what was planted in which known model.

Rows are tools, columns known models. Colour is the score, from 0 (pale) to 1 (dark); white cells were not asked, for
want of anything of the kind in the model. A red dot: the tool also found something that is not there. A cross: it
raised an error. An orange frame: the untrained control scores as well, so the score says nothing. Look for rows that
are dark throughout (exact tools), for the models on which first-order methods pale, and for probes with a frame.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from toylab.exam import from_json
from toylab.plotting import ORANGE, RED, subplots

NEEDS = []  # no runs: `toylab exam` draws it from its own table


def compute(folder: str | Path):
    """The table of a saved exam."""
    return from_rows(from_json((Path(folder) / "exam.json").read_text(encoding="utf-8")))


def from_rows(rows):
    """score, null, false (1 where something was falsely found) and failed over tool x model."""
    asked = [row for row in rows if row.asked]
    tools, models = (list(dict.fromkeys(getattr(row, name) for row in asked)) for name in ("tool", "model"))
    order = list(dict.fromkeys(row.tool for row in rows))
    tools.sort(key=order.index)
    values = {name: np.full((len(tools), len(models)), np.nan) for name in ("score", "null", "false", "failed")}
    for row in asked:
        at = tools.index(row.tool), models.index(row.model)
        for name, value in (("score", row.score), ("null", row.null), ("false", bool(row.false))):
            values[name][at] = value
        values["failed"][at] = row.failed
    dims = ("tool", "model")
    return xr.Dataset({name: (dims, value) for name, value in values.items()}, {"tool": tools, "model": models})


def draw(table):
    n_tools, n_models = table.sizes["tool"], table.sizes["model"]
    figure, ax = subplots(1, 1, 1.9 + 0.155 * n_tools)
    image = ax.imshow(table.score.values, cmap="Blues", vmin=-0.15, vmax=1, aspect="auto")
    for values, marker, color, label in (
        (table.false.values == 1, "o", RED, "something falsely found"),
        (table.failed.values == 1, "x", RED, "error"),
    ):
        tools, models = np.nonzero(values)
        if len(tools):
            ax.scatter(models, tools, s=9, marker=marker, color=color, linewidth=0.8, label=label)
    blind = table.null.values >= table.score.values - 1e-9
    tools, models = np.nonzero(blind & (table.score.values > 0))
    ax.scatter(
        models, tools, s=26, marker="s", facecolor="none", edgecolor=ORANGE, linewidth=0.8, label="no better than null"
    )
    ax.set_xticks(range(n_models), table.model.values, rotation=90, fontsize=6)
    ax.set_yticks(range(n_tools), table.tool.values, fontsize=6)
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, label="score", ticks=[0, 0.5, 1])
    bar.ax.set_ylim(0, 1)
    figure.legend(loc="outside upper right", ncols=3, fontsize=7)
    return figure
