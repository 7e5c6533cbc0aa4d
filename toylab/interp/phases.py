"""When a grokking run memorises, forms its circuit and cleans up, by a rule that is written down.

From four loss curves along training (Nanda et al. 2023, section 5.2, read their three phases off by eye):

1. memorised: the first step from which the training loss stays below 1% of where it started.
2. circuit_from: the step at which excluded loss is smallest. From there on removing the key frequencies hurts more
   and more: the circuit carries what the table carried. Only counted when a circuit did form: later excluded loss
   exceeds twice that minimum, and restricted loss half of where it started is undercut.
3. cleanup_from: the last step at which test loss is at least half of its peak.
4. cleanup_to: the first step from which it stays below 1% of its peak.

A phase that does not come is nan. Numbers are steps of the curves given, so they are as fine as the checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import nan

import numpy as np

from toylab.errors import require

MEMORISED, LEFT, HALF, TWICE = 0.01, 0.01, 0.5, 2.0


@dataclass(frozen=True)
class Phases:
    """Steps at which the phases begin and end; nan for one that does not come.

    Memorisation lasts until `memorised`, circuit formation from `circuit_from` to `cleanup_from`, clean-up from there
    to `cleanup_to`.
    """

    memorised: float
    circuit_from: float
    cleanup_from: float
    cleanup_to: float


@dataclass(frozen=True)
class Spread:
    """Median and range over the seeds in which a phase came, and in how many it did. nan when in none."""

    median: float
    low: float
    high: float
    found: int
    seeds: int

    def __str__(self) -> str:
        if not self.found:
            return f"in none of {self.seeds} seeds"
        return f"{self.median:g} ({self.low:g} to {self.high:g}; {self.found} of {self.seeds} seeds)"


def locate_phases(steps, train_loss, test_loss, restricted, excluded) -> Phases:
    """The phases of one run, by the rule at the top of this file. All arguments are sequences [step].

    restricted and excluded: with the final key frequencies, restricted on any fixed set of pairs, excluded on the
    training pairs (LogitFourier("final")). Steps at which a curve is nan are left out. Raises UserError when lengths
    differ, steps do not increase, or no step is left. Exact: curves with one corner each give these corners
    (tests/test_measures_fourier.py).
    """
    curves = [np.asarray(x, dtype=float) for x in (steps, train_loss, test_loss, restricted, excluded)]
    shapes = [c.shape for c in curves]
    require(
        len(set(shapes)) == 1 and len(shapes[0]) == 1,
        f"curves of shapes {shapes} arrived; expected one number per step in each, steps first",
    )
    known = ~np.isnan(np.stack(curves)).any(0)
    require(bool(known.any()), f"none of the {len(curves[0])} steps has all four losses")
    at, train, test, restricted, excluded = (c[known] for c in curves)
    require(bool((np.diff(at) > 0).all()), "steps must increase")

    best, peak = int(excluded.argmin()), test.max()
    formed = excluded[best:].max() > TWICE * excluded[best] and restricted[best:].min() < HALF * restricted[0]
    high = (test >= HALF * peak).nonzero()[0][-1]
    return Phases(
        memorised=_stays_below(at, train, MEMORISED * train[0]),
        circuit_from=float(at[best]) if formed else nan,
        cleanup_from=float(at[high]) if high < len(at) - 1 else nan,
        cleanup_to=_stays_below(at, test, LEFT * peak),
    )


def phases_over_seeds(steps, train_loss, test_loss, restricted, excluded) -> dict[str, Spread]:
    """Each phase's step over seeds: name -> median and range. Curves [seed, step], as RunGroup.map gives them.

    The range is of the seeds themselves, not of their median, and with few seeds it is what there is to say. A phase
    that some seeds lack is summarised over the others; `found` says how many. Raises as `locate_phases` does.
    """
    tables = [np.asarray(x, dtype=float) for x in (train_loss, test_loss, restricted, excluded)]
    shapes = [t.shape for t in tables]
    require(
        len(set(shapes)) == 1 and len(shapes[0]) == 2,
        f"tables of shapes {shapes} arrived; expected [seed, step] in each (locate_phases takes one run)",
    )
    every = [locate_phases(steps, *curves) for curves in zip(*tables, strict=True)]
    return {f.name: _spread([getattr(phases, f.name) for phases in every]) for f in fields(Phases)}


def _spread(values: list[float]) -> Spread:
    found = [v for v in values if not np.isnan(v)]
    if not found:
        return Spread(nan, nan, nan, 0, len(values))
    return Spread(float(np.median(found)), min(found), max(found), len(found), len(values))


def _stays_below(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """The first step from which every value is below the level; nan when the last is not."""
    above = (values >= level).nonzero()[0]
    first = above[-1] + 1 if len(above) else 0
    return float(steps[first]) if first < len(steps) else nan
