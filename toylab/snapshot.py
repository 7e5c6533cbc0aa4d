"""A Snapshot: one model at one step of its training, with the task it learns and activations computed at most once.

A measure is a pure function of a Snapshot, so it gives the same number during training (the trainer makes snapshots
of the live model) and afterwards (`run.map` makes them from checkpoints).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toylab.data import Batch, Split
from toylab.errors import UserError, one_of
from toylab.losses import loss_named, weighted_mean
from toylab.taps import Cache, Record, Tap, Tapped, act_name

SUBSETS = ("train", "test", "all")


@dataclass(frozen=True)
class Labelled:
    """An array with named axes, what measures return for anything that is not one number."""

    values: Any
    dims: tuple[str, ...]
    coords: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        values = self.values.detach().cpu().numpy() if isinstance(self.values, Tensor) else np.asarray(self.values)
        object.__setattr__(self, "values", values)
        assert values.ndim == len(self.dims), f"{values.shape} for axes {self.dims}"


Result = float | Tensor | Labelled | Mapping[str, float | Tensor | Labelled]


@dataclass
class Snapshot:
    """step:      number of updates the weights have seen.
    split:     the task's data; everything is computed on `split.all`, and `rows` picks train or test.
    loss:      name of the loss this model is trained with.
    reference: the snapshot that hindsight measures look back from (usually the final one); None otherwise.
    sha256:    hash of the checkpoint file; "" for a live or hand-built model.
    """

    step: int
    model: Tapped
    task: Any
    split: Split
    loss: str = "cross_entropy"
    reference: Snapshot | None = None
    sha256: str = ""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def batch(self) -> Batch:
        """All examples: finite worlds in canonical order, streaming worlds one fixed held-out draw."""
        return self.split.all

    @cached_property
    def logits(self) -> Tensor:
        """Outputs on every example at the read positions: [example, read, d_out], or [example, n_features]."""
        with torch.no_grad():  # with a tap, though it does nothing: the path, and so the bits, of `site`
            return self.model(self.batch.inputs, Tap(), self.batch.read)

    @cached_property
    def losses(self) -> Tensor:
        """The loss of every example at every read position [example, read]."""
        return loss_named(self.loss)(self.logits, self.batch.targets)

    def subsets(self) -> list[str]:
        """Those of train, test, all that differ: a streaming task has only test."""
        return ["test"] if self.split.train is None else list(SUBSETS)

    def rows(self, subset: str) -> Tensor | slice:
        """Row numbers of "train", "test" or "all" in `batch`."""
        one_of("subset", subset, SUBSETS)
        if subset == "all":
            return slice(None)
        rows = self.split.train if subset == "train" else self.split.test
        if rows is None:
            raise UserError("this task streams its training data; there is no fixed training set to measure")
        return rows

    def mean(self, values: Tensor, subset: str, importance: bool = False) -> float:
        """Mean of per-target values [example, read] over the asked positions of one subset.

        importance: weight them as the training loss does, instead of counting every asked position once.
        """
        rows, weight = self.rows(subset), self.batch.weight
        if weight is None:
            return weighted_mean(values[rows], None).item()
        return weighted_mean(values[rows], (weight if importance else (weight > 0).to(values.dtype))[rows]).item()

    def site(self, name: str, layer: int | None = None) -> Tensor:
        """One activation on every example, query positions cut to the read positions: ("post", 0) is
        [example, read, d_mlp], ("pattern", 0) is [example, head, read, key].

        The last block's sites from attn_scores on come from the fast path; the first such request computes all.
        """
        full = act_name(name, layer)
        if full not in self._last_block:
            self._last_block[full] = self._by_forward(full)
        return self._last_block[full]

    @cached_property
    def _last_block(self) -> dict[str, Tensor]:
        record = Record()
        with torch.no_grad():
            if self.batch.read is not None:
                logits = self.model(self.batch.inputs, record, self.batch.read)
                self.__dict__.setdefault("logits", logits)  # the same bits: no second pass for these
        return record.tensors

    def _by_forward(self, full: str) -> Tensor:
        with torch.no_grad():
            _, cache = self.model.run_with_cache(self.batch.inputs, full)
        value, read = cache[full], self.batch.read
        if read is None or value.ndim < 3 or full.endswith(("hook_k", "hook_v", "hook_rot_k")):
            return value
        axis = 2 if full.endswith(("hook_pattern", "hook_attn_scores")) else 1
        return value.index_select(axis, torch.tensor([r % value.shape[axis] for r in read], device=value.device))

    def run_with_cache(self, names_filter=None) -> tuple[Tensor, Cache]:
        """The model's own run_with_cache on every example, all positions."""
        with torch.no_grad():
            return self.model.run_with_cache(self.batch.inputs, names_filter)

    def shared(self, key: Any, compute: Callable[[], Any]) -> Any:
        """compute(), once per snapshot: how measures share a spectrum or a projection."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    def __repr__(self) -> str:
        return f"Snapshot(step {self.step:,} of {self.model!r} on {self.task!r})"


@dataclass(frozen=True)
class Stack:
    """The weights of many checkpoints as one: params[name] is [step, ...]. For measures that need only weights, or
    that map the model over them with torch.func.vmap."""

    steps: tuple[int, ...]
    params: dict[str, Tensor]
    model: Tapped
    task: Any
    split: Split

    def __repr__(self) -> str:
        return f"Stack({len(self.steps)} checkpoints, steps {self.steps[0]:,}..{self.steps[-1]:,}, of {self.model!r})"
