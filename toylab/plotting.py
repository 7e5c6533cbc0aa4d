"""House style for figures: the only file of toylab that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler

WIDTH = 6.75  # inches, two columns
# Okabe and Ito's colours: told apart with any common colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]),
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "toylab",
}


def house_style() -> Any:
    """A context in which everything is drawn in house style; outside it matplotlib is as the user left it."""
    return mpl.rc_context(STYLE)


def subplots(rows: int, columns: int, height: float, **kwargs: Any) -> tuple[Any, Any]:
    """Figure and axes, WIDTH wide. No display is needed. Draw within `house_style()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def save(figure: Any, path: str | Path) -> None:
    """The same figure gives the same bytes: no dates, no software versions inside."""
    path = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    figure.savefig(path, metadata=metadata)


def band(ax: Any, table: Any, name: str, color: str, label: str, **kwargs: Any) -> None:
    """One number along `step`: a line for a single run; the median with every run drawn faintly for several."""
    values = table[name]
    many = [d for d in values.dims if d != "step"]
    if many:
        for member in values.transpose(..., "step").values.reshape(-1, values.sizes["step"]):
            seen = member == member  # NaN where this run has no checkpoint
            ax.plot(values.step.values[seen], member[seen], color=color, alpha=0.35, lw=0.8)
        values = values.median(many)
    seen = values.notnull()
    ax.plot(values.step[seen], values[seen], color=color, label=label, **kwargs)
