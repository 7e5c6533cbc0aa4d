"""Optimisers and learning-rate schedules as one plain spec; torch's own implementations do the work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from toylab.errors import one_of, require

KINDS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class OptimSpec:
    """kind:      adamw decays weights decoupled from the gradient (theta -= lr * weight_decay * theta); adam and sgd
               add weight_decay * theta to the gradient. Every parameter decays, embeddings and biases too (Power,
               Nanda).
    warmup:    step t (from 0) runs at lr * min((t + 1) / warmup, 1). Papers that use t / warmup spend their first
               step at lr 0.
    schedule:  after the warm-up: constant, or from lr to final_lr * lr along a line (linear) or half a cosine: step t
               has gone (t - warmup) / (steps - warmup) of the way, so that final_lr is reached after the last step.
    betas and eps belong to adam and adamw, momentum to sgd.
    """

    kind: str
    lr: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    momentum: float = 0.0
    warmup: int = 10
    schedule: str = "constant"
    final_lr: float = 0.0

    def __post_init__(self):
        one_of("optim.kind", self.kind, KINDS)
        one_of("optim.schedule", self.schedule, SCHEDULES)
        require(self.lr >= 0, f"optim.lr={self.lr}: 0 or more; 1e-3 is the usual start")
        require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay}: 0 or more")
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas={self.betas}: each in [0, 1)")
        require(self.eps >= 0, f"optim.eps={self.eps}: 0 or more")
        require(self.momentum >= 0, f"optim.momentum={self.momentum}: 0 or more; 0.9 is usual")
        require(self.warmup >= 0, f"optim.warmup={self.warmup}: 0 or more steps")
        require(self.final_lr >= 0, f"optim.final_lr={self.final_lr}: 0 or more, as a share of lr")

    def lr_factor(self, step: int, total: int) -> float:
        """What multiplies lr at this step (counted from 0) of `total`."""
        warm = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        if self.schedule == "constant":
            return warm
        done = min(max(step - self.warmup, 0) / max(total - self.warmup, 1), 1.0)
        shape = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return warm * (self.final_lr + (1 - self.final_lr) * shape)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        parameters = list(model.parameters())
        if self.kind == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.kind == "adamw" else torch.optim.Adam
        return kind(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)
