"""Claims: what a paper says, with a tolerance, measured over seeds, and refused when a placebo shows it too.

1. `RunSet`: runs for one purpose: the paper's own setting, a placebo, a sweep.
2. `Claim`: `value` turns the tables of these runs into one number per seed, `holds` says which numbers agree.
3. `judge`: pass when it holds on nearly every seed and on no placebo. What has not been trained is "not run".
4. `results`, `markdown`: the same findings for a machine and for a reader. A claim that fails stays in both.

A paper is paper_repro/<paper>/claims.py; `toylab paper` trains, measures, judges and draws it (cli/paper.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toylab.errors import one_of, require

# Where the paper's value comes from. What was recalled and not read may be shown, never be a gate.
TAGS = ("seen", "summary", "recomputed", "replication", "derived", "from memory")
VERDICTS = {"pass": "🟢", "fail": "🔴", "not run": "⚪", "shown": "·"}
AGREEING = 0.8  # share of the seeds on which a claim must hold: 4 of 5, and every one of fewer

Tables = Mapping[str, Any]  # key of a RunSet -> what the paper's `measure` made of its runs


@dataclass(frozen=True)
class RunSet:
    """key:     what these runs are for: "main", "shuffled labels", ...
    cells:   settings, each as on the command line of `toylab train` but for the seed; each has a name=... of its own
             (or that of its experiment).
    seeds:   every cell is trained with seeds 0 .. seeds-1. `--seeds N` replaces it where it is more than 1.
    about:   one line for the list that is printed before training.
    stacked: train all cells and seeds as one program (ensemble.py), which pays for small models.
    """

    key: str
    cells: tuple[tuple[str, ...], ...]
    seeds: int = 1
    about: str = ""
    stacked: bool = False

    def __post_init__(self):
        require(self.seeds >= 1, f"seeds={self.seeds}: at least 1")
        require(len(self.cells) >= 1, f"the run set {self.key!r} has no cells")


@dataclass(frozen=True)
class Claim:
    """key:       short and unique.
    text:      the claim as a sentence.
    paper:     the paper's value as printed, with the figure or table it is from in `figure`.
    tag:       how that value was obtained, one of TAGS; "from memory" is never a gate.
    tolerance: in words, what `holds` checks.
    value:     tables -> one number per seed (one in all for a comparison between run sets). inf = never, nan = there
               is nothing to measure; nan holds nowhere.
    holds:     which numbers agree with the paper. None: the number is shown and not judged.
    needs:     the run sets that `value` reads.
    placebos:  run sets on which the claim must fail when they stand in for needs[0].
    """

    key: str
    text: str
    paper: str
    tag: str
    tolerance: str
    value: Callable[[Tables], Iterable[float]]
    holds: Callable[[float], bool] | None
    needs: tuple[str, ...] = ("main",)
    placebos: tuple[str, ...] = ()
    figure: str = ""

    def __post_init__(self):
        one_of(f"the tag of claim {self.key}", self.tag, TAGS)
        require(
            self.holds is None or self.tag != "from memory",
            f"claim {self.key} is gated on a value from memory; give holds=None to show it only",
        )
        require(
            self.holds is not None or not self.placebos, f"claim {self.key} is only shown; a placebo cannot fail it"
        )

    def values(self, tables: Tables, stand_in: str | None = None) -> tuple[float, ...]:
        """One number per seed, with the runs of `stand_in` in place of needs[0]."""
        seen = {key: tables[key] for key in self.needs}
        if stand_in is not None:
            seen[self.needs[0]] = tables[stand_in]
        return tuple(float(v) for v in self.value(seen))


@dataclass(frozen=True)
class Finding:
    """A claim judged: its numbers, on how many of them it holds, the numbers of each placebo, the verdict and why."""

    claim: Claim
    verdict: str
    why: str
    values: tuple[float, ...] = ()
    holding: int = 0
    placebos: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """nan only when there is no number at all: seeds without anything to measure are left out of it."""
        numbers = [v for v in self.values if not math.isnan(v)]
        return float(np.median(numbers)) if numbers else math.nan


def judge(claim: Claim, tables: Tables, asked: Iterable[str]) -> Finding:
    """The verdict on one claim.

    asked: keys of all run sets of this reproduction, trained or not. A placebo that is not among them (a quick
    reproduction has fewer) is not waited for.
      not run  a run set that it needs, or a placebo, has not been trained
      shown    it has no gate
      fail     it does not hold on AGREEING of the seeds, or it holds on any seed of a placebo
      pass     otherwise
    """
    asked = list(asked)
    missing = [key for key in claim.needs if key not in tables]
    if missing:
        gone = [key for key in missing if key not in asked]
        return Finding(claim, "not run", f"{', '.join(missing)} {'not part of this set' if gone else 'not trained'}")
    values = claim.values(tables)
    if claim.holds is None:
        return Finding(claim, "shown", "not judged", values)
    holding = sum(bool(claim.holds(v)) for v in values if not math.isnan(v))
    placebos = {key: claim.values(tables, key) for key in claim.placebos if key in tables}
    fooled = [k for k, vs in placebos.items() if any(claim.holds(v) for v in vs if not math.isnan(v))]
    pending = [key for key in claim.placebos if key in asked and key not in tables]
    reasons = []
    if not values or holding < AGREEING * len(values):
        reasons.append(f"holds on {holding} of {len(values)}")
    if fooled:
        reasons.append(f"also holds on {', '.join(fooled)}")
    verdict, why = "pass", f"fails on {', '.join(placebos)}" if placebos else ""
    if reasons:
        verdict, why = "fail", "; ".join(reasons)
    elif pending:
        verdict, why = "not run", f"holds, but the placebo {', '.join(pending)} is not trained"
    return Finding(claim, verdict, why, values, holding, placebos)


def tally(findings: Sequence[Finding]) -> str:
    """ "7 pass, 1 fail, 2 not run, 1 shown" """
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    return ", ".join(f"{n} {v}" for v, n in counts.items() if n)


def results(findings: Sequence[Finding], about: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json holds: `about` (command, time, machine, runs) and every claim. JSON has no inf: it is text."""

    def numbers(values: Iterable[float]) -> list[float | str]:
        return [float(f"{v:.6g}") if math.isfinite(v) else str(v) for v in values]

    return dict(about) | {
        "tally": tally(findings),
        "claims": [
            {
                "key": f.claim.key,
                "text": f.claim.text,
                "figure": f.claim.figure,
                "paper": f.claim.paper,
                "tag": f.claim.tag,
                "tolerance": f.claim.tolerance,
                "values": numbers(f.values),
                "median": numbers([f.median])[0] if f.values else None,
                "holding": f.holding,
                "placebos": {key: numbers(values) for key, values in f.placebos.items()},
                "verdict": f.verdict,
                "why": f.why,
            }
            for f in findings
        ],
    }


def shown(values: Sequence[float]) -> str:
    """ "3.1 (2.9 to 4.0)", "never", or a dash where there is nothing."""
    numbers = sorted(v for v in values if not math.isnan(v))
    if not numbers:
        return "–" if not values else "undefined"
    low, high = short(numbers[0]), short(numbers[-1])
    median = short(float(np.median(numbers)))
    lost = len(values) - len(numbers)
    return (median if low == high else f"{median} ({low} to {high})") + (f", {lost} undefined" if lost else "")


def short(value: float) -> str:
    """Three digits; inf is "never"."""
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def markdown(findings: Sequence[Finding], about: Mapping[str, Any]) -> str:
    """The claims table, then how it was made."""
    lines = [
        f"# {about['title']}: {tally(findings)}",
        "",
        "| claim | paper | ours: median (range), seeds | tolerance | verdict |",
        "|---|---|---|---|---|",
    ]
    for f in findings:
        c = f.claim
        source = f"{c.paper} ({c.figure}) `[{c.tag}]`" if c.figure else f"{c.paper} `[{c.tag}]`"
        ours = f"{shown(f.values)}; {len(f.values)}" if f.values else "–"
        verdict = f"{VERDICTS[f.verdict]} {f.verdict}" + (f": {f.why}" if f.why else "")
        cells = (c.text, source, ours, c.tolerance, verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", *[f"- {key}: {value}" for key, value in about.items() if isinstance(value, str) and key != "title"]]
    return "\n".join(lines) + "\n"


# --- For the functions that papers write ------------------------------------------------------------------------------


def last(values: Any) -> np.ndarray:
    """[seed] from an array with `seed` and `step`: each seed's value at its own last checkpoint."""
    table = values.transpose("seed", "step")
    seen = table.notnull().values
    at = np.where(seen.any(1), seen.shape[1] - 1 - seen[:, ::-1].argmax(1), 0)
    return table.values[np.arange(len(at)), at].astype(float)


def ratio(a: Any, b: Any) -> np.ndarray:
    """a / b for numbers of steps: inf (never) where only a is inf, nan where b is inf."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=np.isfinite(b))


def first_step(condition: Any) -> np.ndarray:
    """[seed] from a truth table over `seed` and `step`: the first step at which it is true, inf if never."""
    table = condition.transpose("seed", "step")
    steps = np.append(table.step.values.astype(float), np.inf)
    found = np.concatenate([table.values.astype(bool), np.ones((table.sizes["seed"], 1), bool)], 1)
    return steps[found.argmax(1)]
