"""Loss, accuracy, weight norms and logit statistics: the numbers one looks at first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toylab.data import generator
from toylab.errors import require
from toylab.losses import loss_named
from toylab.snapshot import Labelled, Snapshot, Stack


@dataclass(frozen=True)
class Loss:
    """{train,test,all}_loss and {train,test,all}_accuracy.

    The loss is the one trained with, averaged as in training (nats for cross-entropies). Accuracy is the share of
    asked positions whose largest output is the target; vector tasks have none. Known exactly: a model that ignores
    its input and answers uniformly over n classes has loss log n and accuracy 1/n.
    """

    def __call__(self, snap: Snapshot) -> dict[str, float]:
        result = {f"{name}_loss": snap.mean(snap.losses, name, importance=True) for name in snap.subsets()}
        if not snap.batch.targets.is_floating_point():
            right = (snap.logits.argmax(-1) == snap.batch.targets).double()
            result |= {f"{name}_accuracy": snap.mean(right, name) for name in snap.subsets()}
        return result


@dataclass(frozen=True)
class FreshLoss:
    """fresh_loss: the training loss on `rows` fresh examples of a task that streams, with its fresh_loss_stderr.

    The draw depends on `seed` alone, not on the run's: runs of one task are compared on the same examples, and tasks
    that differ in their settings on the same random numbers. For choosing the better of two nearly equal minima, where
    the held-out draws of two seeds differ by more than the losses. Domain: tasks with `sample`.
    Known exactly: on the run's own held-out examples it is test_loss; any two models that compute the same have the
    same. Null: a model that answers 0 has the mean square of the targets.
    """

    rows: int
    seed: int = 0

    def __post_init__(self):
        require(self.rows >= 2, f"rows={self.rows}: at least 2")

    def __call__(self, snap: Snapshot) -> dict[str, float]:
        require(hasattr(snap.task, "sample"), f"{type(snap.task).__name__} has no fresh examples to draw")
        batch = snap.task.sample(self.rows, generator(self.seed, "fresh"))
        with torch.no_grad():
            losses = loss_named(snap.loss)(snap.model(batch.inputs, read=batch.read), batch.targets)
        weight = torch.ones_like(losses) if batch.weight is None else batch.weight.to(losses)
        each = (weight * losses).flatten(1).sum(1) * len(losses) / (weight > 0).sum()
        return {"fresh_loss": each.mean().item(), "fresh_loss_stderr": (each.std() / len(each) ** 0.5).item()}


@dataclass(frozen=True)
class WeightNorms:
    """weight_norm [param]: Frobenius norm of each parameter; sum_sq_weights: sum of squares over all of them.

    Source: sum of squared weights, Nanda et al. 2023, figure 7. Known exactly: invariant under any orthogonal
    change of basis of the residual stream; N(0, 1/d) weights of n entries give n/d in expectation.
    """

    def __call__(self, snap: Snapshot) -> dict[str, float | Labelled]:
        stacked = {name: p.detach()[None] for name, p in snap.model.named_parameters()}
        return {key: _first(value) for key, value in self._norms(stacked).items()}

    def stack(self, stack: Stack) -> dict[str, Labelled]:
        return self._norms(stack.params)

    def _norms(self, params: dict[str, Tensor]) -> dict[str, Labelled]:
        norms = [torch.linalg.vector_norm(p.flatten(1), dim=1, dtype=torch.float64) for p in params.values()]
        weight_norm = torch.stack(norms, 1)
        return {
            "weight_norm": Labelled(weight_norm, ("step", "param"), {"param": list(params)}),
            "sum_sq_weights": Labelled(weight_norm.square().sum(1), ("step",)),
        }


def _first(value: Labelled) -> float | Labelled:
    """The single checkpoint of a stack of one."""
    if value.dims == ("step",):
        return float(value.values[0])
    return Labelled(value.values[0], value.dims[1:], value.coords)


@dataclass(frozen=True)
class LogitStats:
    """Of the logits centred over outputs: logit_rms, logit_max, and {train,test}_margin.

    The margin is the correct logit minus the largest other, averaged over asked positions. Centring removes what
    softmax ignores; all three scale with the logits. Known exactly: logits 0 except s on the answer, n classes:
    margin s, rms s sqrt((n-1))/n.
    """

    def __call__(self, snap: Snapshot) -> dict[str, float]:
        logits = snap.logits.double()
        centred = logits - logits.mean(-1, keepdim=True)
        result = {"logit_rms": centred.square().mean().sqrt().item(), "logit_max": centred.max().item()}
        if not snap.batch.targets.is_floating_point():
            targets = snap.batch.targets.unsqueeze(-1)
            right = logits.gather(-1, targets).squeeze(-1)
            other = logits.scatter(-1, targets, -torch.inf).amax(-1)
            margin = right - other
            result |= {f"{n}_margin": snap.mean(margin, n) for n in snap.subsets() if n != "all"}
        return result
