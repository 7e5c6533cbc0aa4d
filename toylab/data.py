"""The nouns every file shares: Batch, Split, Latent, the Task protocol, and named random generators.

A task is a frozen dataclass. It makes data and knows the truth about it; losses, models and measures never ask
which task they are on. Five very different tasks meet this protocol without a special case:

    modular arithmetic   finite, tokens [a, b, =], the answer is read at the last position
    Othello moves        streaming, one target per position, `weight` marks the padding
    MIU strings          finite or streaming; latents are #I mod 3 and the parity of doublings at each position
    toy superposition    real-valued inputs [batch, n_features]; targets are the inputs, `weight` their importance
    compiled programs    finite, every input of the stated size, latents are the program's variables

Read next: taps.py (how a model offers its activations), then tasks/modular.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from toylab.errors import UserError


def generator(seed: int, name: str) -> torch.Generator:
    """An independent CPU generator for one purpose ("init", "split", "batch", "label_noise", "fit").

    The name is hashed together with the seed, so drawing more for one purpose never shifts another, and the global
    generator is never touched.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples with their answers.

    inputs:  token ids [batch, pos], or real vectors [batch, n_features].
    targets: class ids [batch, read] (or [batch, n_features] reals for vector tasks), one per position in `read`.
    read:    the positions the targets speak of, counted from the end if negative; None = every position.
    weight:  same shape as targets; 0 where nothing is asked. None = 1 everywhere.
    example: the first row as a person would write it.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor | None = None
    read: tuple[int, ...] | None = None
    example: str = ""

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows) -> Batch:
        """The same kind of batch with these rows: an index tensor, a slice or a mask."""
        weight = None if self.weight is None else self.weight[rows]
        return dataclasses.replace(self, inputs=self.inputs[rows], targets=self.targets[rows], weight=weight)

    def to(self, device: str | torch.device) -> Batch:
        weight = None if self.weight is None else self.weight.to(device)
        return dataclasses.replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device), weight=weight)

    def __repr__(self) -> str:
        read = "every position" if self.read is None else f"position {', '.join(map(str, self.read))}"
        example = f', for example "{self.example}"' if self.example else ""
        return f"Batch({len(self):,} x {tuple(self.inputs.shape[1:])}, answers at {read}{example})"


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows are trained on and which are held out.

    all: every example in the task's canonical order (finite tasks), or one fixed held-out draw (streaming tasks).
    train, test: row numbers into `all`; `train` is None when training data are drawn fresh at every step.
    """

    all: Batch
    train: Tensor | None
    test: Tensor

    @property
    def train_batch(self) -> Batch:
        if self.train is None:
            raise UserError("this task streams its training data: use task.sample(n, generator)")
        return self.all[self.train]

    @property
    def test_batch(self) -> Batch:
        return self.all[self.test]

    def __repr__(self) -> str:
        train = "streamed" if self.train is None else f"{len(self.train):,}"
        return f"Split(train {train}, test {len(self.test):,}, all {self.all!r})"


@dataclass(frozen=True, eq=False)
class Latent:
    """One true variable of the world at every position.

    values:  [batch, pos, ...] (token tasks) or [batch, ...] (vector tasks). Integers index `classes`; -1 where the
             tokens up to and including that position do not determine the variable. Reals when `classes` is empty.
    classes: what each integer means, for instance ("empty", "mine", "theirs").
    """

    values: Tensor
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:4]) + (", ..." if len(self.classes) > 4 else "")
        kind = f"{len(self.classes)} classes: {shown}" if self.classes else "real-valued"
        return f"Latent({tuple(self.values.shape)}, {kind})"


@dataclass(frozen=True, eq=False)
class GroupLabels:
    """Which tokens and classes are the elements of a finite abelian group, so that answer = left + right in it.

    group:       the orders of its cyclic factors, (113,) or (5, 7); elements are numbered as in interp/fourier.py.
    left, right: [element], the token of the first and of the second operand that stands for this element.
    out:         [element], the answer class.
    By hand, 3 / 5 = 2 mod 7, with powers of 3: 3 = 3^1 is element 1 on the left, 5 = 3^5 is element -5 = 1 on the
    right, and 2 = 3^2 is element 1 + 1 = 2 of Z_6.
    """

    group: tuple[int, ...]
    left: Tensor
    right: Tensor
    out: Tensor


@runtime_checkable
class Task(Protocol):
    """What every task offers. Token tasks also have d_vocab, n_ctx, d_out; vector tasks have n_features.

    Tasks whose answer may be a sum of two operands in an abelian group also have `as_group() -> GroupLabels | None`
    and `row_of(operands)`, which is all that the Fourier measures ask of them.
    A task is a frozen dataclass whose fields are its settings; nothing derived is stored.
    """

    def split(self, seed: int) -> Split:
        """Train and test rows, from generators derived from the seed."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n examples: fresh ones (streaming) or rows of the whole table with replacement (finite)."""
        ...

    def latents(self, inputs: Tensor) -> dict[str, Latent]:
        """The true variables at each position."""
        ...

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """The same batch with this latent changed in every row, the rest held where possible, and the new answers.

        Raises UserError for a latent the task cannot change, naming those it can.
        """
        ...

    def render(self, inputs: Tensor) -> list[str]:
        """Each row as a person would write it."""
        ...


def axes(x: Tensor, names: str, **sizes: int) -> dict[str, int]:
    """The size of each named axis, e.g. axes(x, "batch pos d_model", d_model=128) -> {"batch": 64, "pos": 3, ...}.

    Raises UserError with both shapes when the number of axes or a stated size is wrong.
    """
    wanted = names.split()
    found = dict(zip(wanted, x.shape, strict=False))
    if x.ndim != len(wanted) or any(found[name] != size for name, size in sizes.items()):
        expected = " ".join(f"{name}={sizes[name]}" if name in sizes else name for name in wanted)
        raise UserError(f"a tensor of shape {tuple(x.shape)} arrived; expected [{expected}]")
    return found
