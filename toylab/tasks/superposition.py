"""Sparse features: vectors whose entries are mostly zero, of differing importance (Elhage et al. 2022).

SparseFeatures   each feature is on with probability p = 1 - sparsity and then uniform; features of a group may come
                 together or exclude each other. The targets are the inputs themselves (can they pass through fewer
                 dimensions?) or their absolute values (can that be computed there?). Drawn fresh at every step.
FixedSamples     the same world, but with a fixed training set of T unit vectors, to be memorised or understood
                 (Henighan et al. 2023).

Came from: data.py. Read next: models/superposition.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, one_of, require


@dataclass(frozen=True)
class SparseFeatures:
    """Inputs [batch, n_features]; the weight of feature i is its importance.

    sparsity:         probability that a feature is 0, in [0, 1): one number, or one per feature. On features are
                      uniform in (0, 1), or in (-1, 1) for `abs`. (A draw of exactly 0, one in 2^24, counts as off.)
    importance_decay: feature i has importance importance_decay^i ...
    importances:      ... or these numbers, one per feature.
    target:           "identity" (targets = inputs) or "abs" (targets = |inputs|).
    group_size:       consecutive features form groups of this size; 1 = every feature on its own.
    grouping:         "together": a group is all on, with probability p and values of their own, or all off.
                      "exclusive": with probability group_size * p exactly one of the group is on, each as likely.
                      Either way each feature is on with probability p = 1 - sparsity.
    n_test:           rows of the fixed held-out draw.
    """

    n_features: int
    sparsity: float | tuple[float, ...]
    importance_decay: float
    target: str = "identity"
    n_test: int = 4096
    importances: tuple[float, ...] | None = None
    group_size: int = 1
    grouping: str = "together"

    def __post_init__(self):
        require(self.n_features >= 1, f"n_features={self.n_features}: at least 1")
        check_sparsity(self.sparsity, self.n_features)
        require(
            0 < self.importance_decay <= 1,
            f"importance_decay={self.importance_decay} is outside (0, 1]; 1 = all features matter equally",
        )
        if self.importances is not None:
            require(
                len(self.importances) == self.n_features and min(self.importances) > 0,
                f"importances={list(self.importances)} for n_features={self.n_features}: one positive number per "
                "feature, or null for importance_decay",
            )
        one_of("target", self.target, ("identity", "abs"))
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")
        one_of("grouping", self.grouping, ("together", "exclusive"))
        require(
            self.group_size >= 1 and self.n_features % self.group_size == 0,
            f"group_size={self.group_size} does not divide n_features={self.n_features}",
        )
        if self.group_size > 1:
            require(isinstance(self.sparsity, float | int), "sparsity: one number for all, where features are grouped")
            if self.grouping == "exclusive":
                require(
                    self.group_size * (1 - self.sparsity) <= 1 + 1e-9,  # type: ignore[operator]
                    f"sparsity={self.sparsity}: exclusive features of a group of {self.group_size} can each be on "
                    f"1/{self.group_size} of the time at most; take {1 - 1 / self.group_size:.4g} or more",
                )

    def density(self) -> Float[Tensor, " n_features"]:
        """p = 1 - sparsity of every feature."""
        given = self.sparsity if isinstance(self.sparsity, tuple) else (self.sparsity,) * self.n_features
        return 1 - torch.tensor(given, dtype=torch.float64)

    def importance(self) -> Float[Tensor, " n_features"]:
        """The weight of each feature in the loss."""
        if self.importances is not None:
            return torch.tensor(self.importances, dtype=torch.float32)
        return self.importance_decay ** torch.arange(self.n_features, dtype=torch.float32)

    @property
    def uniform(self) -> bool:
        """Whether every importance is 1 by setting: batches then carry no weight."""
        return self.importances is None and self.importance_decay == 1

    @staticmethod
    def sample_stack(tasks: Sequence[SparseFeatures], n: int, generators: Sequence[torch.Generator]) -> Batch:
        """[member, n, n_features]: the bits of task.sample(n, generator) for each pair, drawn without a copy.

        The tasks may differ in sparsity and importance.
        """
        first = tasks[0]
        u = torch.empty(len(tasks), n, first.n_features)
        for member, g in zip(u, generators, strict=True):
            member.uniform_(generator=g)
        p, importance = _stacked_settings(tuple(tasks))
        if first.group_size > 1:
            groups = torch.empty(len(tasks), n, first.n_features // first.group_size)
            for member, g in zip(groups, generators, strict=True):
                member.uniform_(generator=g)
            inputs = first._grouped(u, groups, p)
        elif first.target == "identity":
            # u / p is uniform on (0, 1) exactly where u < p, so that one draw says both whether and how much.
            inputs = torch.addcmul(u.new_ones(()), u, -1 / p).clamp_(min=0)
        else:
            inputs = torch.addcmul(-1 / p, u, 2 / p)
            inputs.mul_(inputs.abs() <= 1)
        targets = inputs if first.target == "identity" else inputs.abs()
        return Batch(inputs, targets, None if importance is None else importance.expand_as(inputs))

    def _grouped(self, u: Tensor, groups: Tensor, p: Tensor) -> Tensor:
        """Values from u [..., n_features] where the uniform number of their group [..., group] says they are on."""
        values = 1 - u if self.target == "identity" else 1 - 2 * u
        each = groups.repeat_interleave(self.group_size, -1)
        if self.grouping == "together":
            return values * (each < p)
        member = torch.arange(self.n_features) % self.group_size
        return values * ((each / p).floor() == member)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh vectors."""
        return self._batch(self.sample_stack([self], n, [generator]).inputs[0])

    def split(self, seed: int) -> Split:
        """n_test held-out vectors; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    def _batch(self, inputs: Tensor) -> Batch:
        targets = inputs if self.target == "identity" else inputs.abs()
        weight = None if self.uniform else self.importance().expand_as(targets)
        return Batch(inputs, targets, weight, example=self.render(inputs[:1])[0] if len(inputs) else "")

    def latents(self, inputs: Float[Tensor, "batch n_features"]) -> dict[str, Latent]:
        """Which features are on, and the value of each (0 when off)."""
        return feature_latents(inputs)

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One group per row (one feature, where there are no groups), drawn uniformly, switched: present becomes 0,
        absent gets fresh values, of all its features or of one of them. The others are held."""
        one_of("latent", latent, ("on",))
        size, rows = self.group_size, torch.arange(len(batch))
        inputs = batch.inputs.unflatten(1, (-1, size)).clone()
        group = torch.randint(inputs.shape[1], (len(rows),), generator=generator)
        # Never exactly 0: what was switched on must be seen to be on.
        fresh = torch.rand((len(rows), size), generator=generator).clamp(min=2**-24).to(inputs.dtype)
        if self.target == "abs":
            fresh = fresh * (2 * torch.randint(2, fresh.shape, generator=generator) - 1)
        if size > 1 and self.grouping == "exclusive":
            fresh = fresh * (torch.randint(size, (len(rows), 1), generator=generator) == torch.arange(size))
        present = (inputs[rows, group] != 0).any(1, keepdim=True)
        inputs[rows, group] = torch.where(present, 0, fresh)
        return self._batch(inputs.flatten(1))

    def render(self, inputs: Float[Tensor, "batch n_features"]) -> list[str]:
        """ "x2=0.31 x4=0.77" (the features that are on)"""
        return render_features(inputs)


@dataclass(frozen=True)
class FixedSamples:
    """n_samples training vectors and n_test held-out ones: sparse as in SparseFeatures, then scaled to unit length.

    A vector with every feature off gets one feature, drawn uniformly, so that all have unit length. Without the scaling
    the few longest samples decide what is learned (Henighan et al. 2023). Targets are the inputs, all weights 1.
    """

    n_features: int
    sparsity: float
    n_samples: int
    n_test: int = 1024

    def __post_init__(self):
        require(self.n_features >= 1, f"n_features={self.n_features}: at least 1")
        check_sparsity(self.sparsity, self.n_features)
        require(self.n_samples >= 1, f"n_samples={self.n_samples}: at least 1")
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh unit vectors."""
        x = SparseFeatures(self.n_features, self.sparsity, 1.0).sample(n, generator).inputs
        spare = torch.randint(self.n_features, (n, 1), generator=generator)
        x = x + torch.zeros_like(x).scatter_(1, spare, 1.0) * (x == 0).all(1, keepdim=True)
        x = x / x.norm(dim=1, keepdim=True)
        return Batch(x, x, example=self.render(x[:1])[0])

    def split(self, seed: int) -> Split:
        """The training samples, then the held-out ones."""
        batch = self.sample(self.n_samples + self.n_test, generator(seed, "split"))
        rows = torch.arange(len(batch))
        return Split(batch, rows[: self.n_samples], rows[self.n_samples :])

    def latents(self, inputs: Float[Tensor, "batch n_features"]) -> dict[str, Latent]:
        """Which features are on, and the value of each (0 when off)."""
        return feature_latents(inputs)

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Raises UserError: to keep its length, a vector that changes in one feature must change in the others."""
        raise UserError(
            f"latent={latent!r}: unit vectors cannot change one feature and hold the others; SparseFeatures can"
        )

    def render(self, inputs: Float[Tensor, "batch n_features"]) -> list[str]:
        """ "x2=0.31 x4=0.95" """
        return render_features(inputs)


@lru_cache(maxsize=256)
def _stacked_settings(tasks: tuple[SparseFeatures, ...]) -> tuple[Tensor, Tensor | None]:
    """Densities [member, 1, n_features or 1], importances [member, 1, n_features] (None where all are 1).

    Kept, as an ensemble asks for them at every step.
    """
    density = torch.stack([task.density() for task in tasks])[:, None].float()
    if not any(isinstance(task.sparsity, tuple) for task in tasks):
        density = density[..., :1]  # broadcasts along whole rows of memory, at a third of the time
    if all(task.uniform for task in tasks):
        return density, None
    return density, torch.stack([task.importance() for task in tasks])[:, None]


def check_sparsity(sparsity: float | tuple[float, ...], n_features: int) -> None:
    """Raise unless it is in [0, 1), one number or one per feature."""
    given = sparsity if isinstance(sparsity, tuple) else (sparsity,)
    require(
        not isinstance(sparsity, tuple) or len(given) == n_features,
        f"sparsity has {len(given)} numbers for n_features={n_features}: one for all, or one per feature",
    )
    for s in given:
        require(0 <= s < 1, f"sparsity={s} is outside [0, 1): it is the probability of a zero; 0.9 is sparse")


def feature_latents(inputs: Tensor) -> dict[str, Latent]:
    return {"on": Latent((inputs != 0).long(), ("off", "on")), "value": Latent(inputs)}


def render_features(inputs: Tensor) -> list[str]:
    rows = [[(i, x) for i, x in enumerate(row) if x] for row in inputs.tolist()]
    return [" ".join(f"x{i}={x:.2f}" for i, x in row) or "all off" for row in rows]
