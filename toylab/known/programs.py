"""Compiled RASP programs as known models: the compiler says where each variable lives, the search which edges matter.

    known = compiled_program("frac_prevs")
    known.truth.variables["is x"]            # site and direction of the number 1[token = x]
    known.truth.circuit["resample"].minimal  # {("tok", "m0"), ("m0", "a1.0.v"), ("a1.0", "out")}

Came from: rasp/compiler.py, truth.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from toylab.data import generator
from toylab.errors import one_of
from toylab.known import KnownModel
from toylab.known.truth import CircuitTruth, Variable
from toylab.rasp.compiler import Compiled
from toylab.rasp.programs import PROGRAMS, ProgramTask

MAX_TRUTH_ROWS = 1500  # of a finite world; above, a fixed draw of as many rows


def compiled_program(
    name: str,
    vocab: Sequence | None = None,
    max_len: int | None = None,
    min_len: int = 1,
    frac_train: float = 0.5,
    dtype: str = "float64",
) -> KnownModel:
    """One program of rasp/programs.py; vocab and max_len None are those it is shown with.

    min_len = max_len gives the fixed-length world, where resampling sees neither length nor positions.
    """
    one_of("program", name, PROGRAMS)
    shown = PROGRAMS[name]
    task = ProgramTask(name, tuple(vocab or shown.vocab), max_len or shown.max_len, frac_train, min_len)
    compiled = task.compile(dtype)
    batch = task.split(0).all
    if len(batch) > MAX_TRUTH_ROWS:
        batch = batch[torch.randperm(len(batch), generator=generator(0, "truth"))[:MAX_TRUTH_ROWS]]
    truth = CircuitTruth(compiled.model, batch, _variables(compiled), _nodes(compiled))
    world = "rows" if min_len < task.max_len else "rows of one length"
    return KnownModel(f"{name} ({world} to {task.max_len})", compiled.model, task, truth, shown.about)


def _variables(compiled: Compiled) -> dict[str, Variable]:
    """Every s-op of the lowered program; those with a name of their own are latents of the task."""
    eye = torch.eye(compiled.model.d_model, dtype=compiled.model.W_E.dtype)
    latents = {name for name in compiled.written if not name.endswith((".share", ".found"))}
    return {
        name: Variable(w.site, eye[list(w.columns)], w.values, w.numerical, name if name in latents else "")
        for name, w in compiled.written.items()
    }


def _nodes(compiled: Compiled) -> dict[str, str]:
    nodes: dict[str, list[str]] = {}
    for name, written in compiled.written.items():
        nodes.setdefault(written.by, []).append(name)
    return {node: ", ".join(names) for node, names in nodes.items()}
