"""Liu et al. 2023, "Transformers Learn Shortcuts to Automata" (arXiv 2210.10749), small version.

Five automata, three depths, rows of 20 letters: which depth tracks which state, and what is left of it on longer rows
and with other odds. README.md says what differs.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toylab.claims import Claim, RunSet
from toylab.measures.shift import Shifted

AUTOMATA = {"flip-flop 2": "flipflop", "parity": "parity", "gridworld 4": "gridworld", "dihedral 4": "dihedral",
            "alternating 5": "a5"}  # fmt: skip
DEPTHS = (1, 2, 4)


def cells(automaton: str, *more: str, name: str = "", depths=DEPTHS) -> tuple[tuple[str, ...], ...]:
    chosen = ("experiment=liu2022_states", f"task.automaton='{automaton}'")
    name = name or AUTOMATA[automaton]
    return tuple((*chosen, f"model.n_layers={d}", f"name='liu2022/{name}/layers={d}'", *more) for d in depths)


RUNS = (
    *(RunSet(automaton, cells(automaton)) for automaton in AUTOMATA),
    RunSet("untrained", cells("gridworld 4", "optim.lr=0", "train.steps=1", name="untrained"), about="placebo"),
)
QUICK = (
    *(
        RunSet(a, cells(a, "train.steps=600", name=f"quick_{AUTOMATA[a]}", depths=(1, 2)))
        for a in ("flip-flop 2", "gridworld 4")
    ),
    RunSet("untrained", cells("gridworld 4", "optim.lr=0", "train.steps=1", name="untrained", depths=(1, 2))),
)
FIGURES = {"liu_depth": tuple(AUTOMATA)}


def measure(key: str, runs):
    """accuracy, longer (rows of 40), odds (one letter nine times in ten) [depth]; majority and last_letter, exact."""
    rows, depths = [], []
    for run in runs:
        n = run.task.d_vocab
        odds = [0.1 / (n - 1)] * (n - 1) + [0.9]
        tools = {"accuracy": Shifted(), "longer": Shifted({"length": 40}), "odds": Shifted({"probs": odds})}
        found = {name: float(run.map(tool, run.steps[-1]).accuracy.isel(step=0)) for name, tool in tools.items()}
        rows.append({k: ((), v) for k, v in (found | run.task.baselines()).items()})
        depths.append(run.experiment.model.n_layers)
    table = xr.concat([xr.Dataset(row) for row in rows], "depth").assign_coords(depth=depths)
    return table.rename({"last letter": "last_letter"}).sortby("depth")


def best(automaton: str) -> Claim:
    return Claim(
        f"{automaton} is learned",
        f"Some depth tracks {automaton}: best accuracy over depths",
        "near 100 % at some depth",
        "summary",
        ">= .99",
        lambda t: [float(t[automaton].accuracy.max())],
        lambda v: v >= 0.99,
        needs=(automaton,),
        placebos=("untrained",),
    )


def drop(automaton: str) -> Claim:
    return Claim(
        f"{automaton} on longer rows",
        f"What was learned of {automaton} is a shortcut: accuracy lost from 20 to 40 letters, at the best depth",
        "shortcuts fail on longer rows",
        "summary",
        "> .05, having been learned (accuracy >= .9)",
        lambda t: [lost(t[automaton])],
        lambda v: v > 0.05,
        needs=(automaton,),
        placebos=("untrained",),
    )


def hardest(t) -> float:
    """A5's share at depth 1 minus the lowest of the others; nan where one layer has learned nothing at all."""
    one = {a: t[a].sel(depth=1) for a in AUTOMATA}
    share = {a: float((x.accuracy - x.last_letter) / (1 - x.last_letter)) for a, x in one.items()}
    learned = max(float(x.accuracy) for x in one.values()) >= 0.9
    return share.pop("alternating 5") - min(share.values()) if learned else np.nan


def lost(table) -> float:
    """Accuracy lost on longer rows at the best depth; nan where no depth reaches .9."""
    at = int(table.accuracy.values.argmax())
    return float((table.accuracy - table.longer)[at]) if float(table.accuracy[at]) >= 0.9 else np.nan


CLAIMS = (
    best("flip-flop 2"),
    best("gridworld 4"),
    best("dihedral 4"),
    Claim(
        "A5 is the hardest",
        "The one automaton here that is not solvable is tracked worst by one layer: its share of the way from the best "
        "guess by the last letter to 1, minus the next lowest share",
        "A5 and S5 need the most depth",
        "summary",
        "< 0, one layer having learned something (accuracy >= .9)",
        lambda t: [hardest(t)],
        lambda v: v < 0,
        needs=("alternating 5", *(a for a in AUTOMATA if a != "alternating 5")),
    ),
    Claim(
        "depth helps",
        "Four layers track A5 better than one: gain of accuracy",
        "accuracy rises with depth",
        "summary",
        "> .05",
        lambda t: [float(t["alternating 5"].accuracy.sel(depth=4) - t["alternating 5"].accuracy.sel(depth=1))],
        lambda v: v > 0.05,
        needs=("alternating 5",),
    ),
    drop("gridworld 4"),
    drop("flip-flop 2"),
    Claim(
        "parity",
        "Parity of 20 bits, from random rows: best accuracy over depths",
        "near 100 % with enough depth and seeds",
        "from memory",
        "not judged",
        lambda t: [float(t["parity"].accuracy.max())],
        None,
        needs=("parity",),
    ),
)
