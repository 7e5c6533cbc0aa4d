"""Known models: weights written down by hand or compiled, with the truth attached, to grade tools on.

`truth` is a frozen dataclass of the family (AdderTruth, ...). Families use the same words for the same things, so
that a tool's test need not know the family: `freqs` (Fourier), `circuit` (edges that carry effect), `features`
(directions by name), `variables` (where each task latent lives). A family has those it can state exactly, no others.

Import floors: this package may use tasks and models; interp/ knows nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from toylab.data import Task
from toylab.taps import Tapped


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model, the task it is for, and what was planted in it.

    name:  short and unique within a zoo, for tables: "pizza mod 113".
    truth: a frozen dataclass; its docstring says what each field promises, and how exactly.
    about: one or two sentences a reader sees: what the model does and what a tool should find.
    """

    name: str
    model: Tapped
    task: Task
    truth: object
    about: str

    def __repr__(self) -> str:
        return f"KnownModel({self.name}: {self.about})"
