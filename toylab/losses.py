"""What is minimised, by name. Comparing these is itself a grokking experiment (Prieto et al. 2025).

Each takes outputs [batch, read, d_out] (or [batch, n_features]), the batch's targets and weight, and returns one
number per target: the caller averages. Cross-entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from toylab.data import Batch
from toylab.errors import one_of, require


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax in float64: float32 log-probabilities are quantised at 1.2e-7, which spikes late training."""
    return cross_entropy_float32(outputs.double(), targets)


def cross_entropy_float32(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax in the dtype of the outputs."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)


def stablemax(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log of s(x) / sum s(x), s(x) = x + 1 for x >= 0 and 1 / (1 - x) below; float64 (Prieto et al. 2025, eq. 6)."""
    return stablemax_float32(outputs.double(), targets)


def stablemax_float32(outputs: Tensor, targets: Tensor) -> Tensor:
    """stablemax in the dtype of the outputs."""
    s = torch.where(outputs >= 0, outputs + 1, 1 / (1 - outputs.clamp(max=0)))
    return s.sum(-1).log() - s.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error: against real targets per feature, against class targets averaged over the one-hot outputs."""
    if targets.is_floating_point():
        return (outputs - targets) ** 2
    # Not F.one_hot, which looks at the values and so cannot run under vmap.
    one_hot = targets.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=targets.device)
    return ((outputs - one_hot.to(outputs.dtype)) ** 2).mean(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (cross_entropy, cross_entropy_float32, stablemax, stablemax_float32, mse)
}


def loss_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    one_of("loss", name, LOSSES)
    return LOSSES[name]


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over everything; with a weight, sum(weight * values) / number of targets with weight > 0.

    Dividing by the count, not by the sum of weights, keeps importance weights (toy superposition) what they are
    and padding weights (0 or 1) a plain mean over what is asked.
    """
    if weight is None:
        return values.mean()
    return (weight * values).sum() / (weight > 0).sum()


def batch_loss(name: str, outputs: Tensor, batch: Batch) -> Tensor:
    """The scalar that training minimises."""
    require(
        batch.targets.is_floating_point() <= (name == "mse"),
        f"loss={name} needs class targets; this task's targets are real numbers: use loss=mse",
    )
    return weighted_mean(loss_named(name)(outputs, batch.targets), batch.weight)
