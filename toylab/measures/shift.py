"""The same network on another version of its task: longer rows, other odds, rarer events.

A shortcut that is right on the training distribution need not be right elsewhere (Liu et al. 2023, arXiv 2210.10749,
section 5, and arXiv 2306.00946). What "elsewhere" means is one or a few settings of the task.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from toylab.data import generator
from toylab.errors import UserError, did_you_mean, require
from toylab.losses import loss_named
from toylab.snapshot import Labelled, Snapshot


@dataclass(frozen=True)
class Shifted:
    """Loss and accuracy on n fresh rows of the task with some settings changed: {length: 40}, {p_ignore: 0.98}.

    loss (nats), accuracy over the asked positions, each with its standard error over rows (_se: rows are independent,
    positions of one row are not); row_accuracy: share of the rows that are right everywhere; accuracy_at [pos].
    The draw is the same at every checkpoint. Known exactly: without changes it is the test set of another seed.
    Raises UserError for a setting that the task has not, and for rows beyond the model's context.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    n: int = 1024
    seed: int = 0
    chunk: int = 512

    def __call__(self, snap: Snapshot) -> dict[str, float | Labelled]:
        batch = snap.shared(("shifted", repr(self)), lambda: self.task(snap).sample(self.n, self._generator()))
        longest, context = batch.inputs.shape[1], getattr(snap.model, "n_ctx", batch.inputs.shape[1])
        require(
            longest <= context,
            f"{self.changes} makes rows of {longest} tokens; this model was made for n_ctx={context}: train it with a "
            "larger max_length",
        )
        losses, right = [], []
        with torch.no_grad():
            for rows in torch.arange(len(batch)).split(self.chunk):  # long rows need much memory
                outputs = snap.model(batch.inputs[rows], read=batch.read)
                losses.append(loss_named(snap.loss)(outputs, batch.targets[rows]).double())
                right.append((outputs.argmax(-1) == batch.targets[rows]).double())
        loss, hit = torch.cat(losses), torch.cat(right)
        asked = torch.ones_like(hit) if batch.weight is None else (batch.weight > 0).double()
        count = asked.sum(0)
        read = range(longest) if batch.read is None else [r % longest for r in batch.read]
        found: dict[str, float | Labelled] = {
            "row_accuracy": ((hit * asked).sum(1) == asked.sum(1)).double().mean().item(),
            "accuracy_at": Labelled((hit * asked).sum(0) / count, ("pos",), {"pos": list(read)}),
        }
        for name, values in (("loss", loss), ("accuracy", hit)):
            mean = (values * asked).sum() / asked.sum()
            influence = ((values - mean) * asked).sum(1)
            found |= {name: mean.item(), f"{name}_se": (influence.square().sum().sqrt() / asked.sum()).item()}
        return found

    def task(self, snap: Snapshot) -> Any:
        """The task with the changes; its own checks apply."""
        known = [f.name for f in dataclasses.fields(snap.task)]
        for key in self.changes:
            if key not in known:
                raise UserError(
                    f"changes.{key}: {type(snap.task).__name__} has {', '.join(known)}{did_you_mean(key, known)}"
                )
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in self.changes.items()}
        return dataclasses.replace(snap.task, **settings)

    def _generator(self) -> torch.Generator:
        return generator(self.seed, "shifted")
