"""Sparse features: vectors whose entries are mostly zero, of falling importance (Elhage et al. 2022, section 2).

Each feature is on with probability 1 - sparsity, independently of the others, and then uniform. The targets are the
inputs themselves (can they pass through fewer dimensions?) or their absolute values (can that be computed there?).
The world is not finite: training data are drawn fresh at every step.

Came from: data.py. Read next: models/superposition.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import one_of, require


@dataclass(frozen=True)
class SparseFeatures:
    """Inputs [batch, n_features]; the weight of feature i is importance_decay^i.

    sparsity: probability that a feature is 0, in [0, 1). On features are uniform in (0, 1), or in (-1, 1) for `abs`.
    target:   "identity" (targets = inputs) or "abs" (targets = |inputs|).
    n_test:   rows of the fixed held-out draw.
    """

    n_features: int
    sparsity: float
    importance_decay: float
    target: str = "identity"
    n_test: int = 4096

    def __post_init__(self):
        require(self.n_features >= 1, f"n_features={self.n_features}: at least 1")
        require(
            0 <= self.sparsity < 1,
            f"sparsity={self.sparsity} is outside [0, 1): it is the probability of a zero; 0.9 is sparse",
        )
        require(
            0 < self.importance_decay <= 1,
            f"importance_decay={self.importance_decay} is outside (0, 1]; 1 = all features matter equally",
        )
        one_of("target", self.target, ("identity", "abs"))
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    def importance(self) -> Float[Tensor, " n_features"]:
        """importance_decay^i for feature i."""
        return self.importance_decay ** torch.arange(self.n_features, dtype=torch.float32)

    def _values(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Values of features that are on: uniform, and never exactly 0, so that "on" can be read off the input."""
        # torch.rand is a multiple of 2^-24 in [0, 1): this moves the one point 0.
        size = torch.rand(shape, generator=generator).clamp(min=2**-24)
        if self.target == "identity":
            return size
        return size * (2 * torch.randint(2, shape, generator=generator) - 1)

    def _batch(self, inputs: Tensor) -> Batch:
        targets = inputs if self.target == "identity" else inputs.abs()
        example = self.render(inputs[:1])[0] if len(inputs) else ""
        return Batch(inputs, targets, weight=self.importance().expand_as(targets), example=example)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh vectors."""
        shape = (n, self.n_features)
        on = torch.rand(shape, generator=generator) >= self.sparsity
        return self._batch(self._values(shape, generator) * on)

    def split(self, seed: int) -> Split:
        """n_test held-out vectors; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    def latents(self, inputs: Float[Tensor, "batch n_features"]) -> dict[str, Latent]:
        """Which features are on, and the value of each (0 when off)."""
        return {"on": Latent((inputs != 0).long(), ("off", "on")), "value": Latent(inputs)}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One feature per row, drawn uniformly, switched: on becomes 0, off gets a fresh value. The others are held."""
        one_of("latent", latent, ("on",))
        inputs = batch.inputs.clone()
        rows, flipped = torch.arange(len(inputs)), torch.randint(self.n_features, (len(inputs),), generator=generator)
        fresh = self._values((len(inputs),), generator).to(inputs.dtype)
        inputs[rows, flipped] = torch.where(inputs[rows, flipped] == 0, fresh, 0)
        return self._batch(inputs)

    def render(self, inputs: Float[Tensor, "batch n_features"]) -> list[str]:
        """ "x2=0.31 x4=0.77" (the features that are on)"""
        rows = [[(i, x) for i, x in enumerate(row) if x] for row in inputs.tolist()]
        return [" ".join(f"x{i}={x:.2f}" for i, x in row) or "all off" for row in rows]
