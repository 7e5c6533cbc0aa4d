"""Toy models of superposition: more features than dimensions (Elhage et al. 2022, arXiv 2209.10652).

    linear       h = x W          y = h W^T + b             learns the leading principal components
    relu_out     h = x W          y = ReLU(h W^T + b)       the paper's main model
    relu_hidden  h = ReLU(x W)    y = ReLU(h W^T + b)       a privileged basis in the hidden layer
    absolute     h = ReLU(x W_1)  y = ReLU(h W_2^T + b)     computes |x| in superposition; two matrices

x, y [batch, n_features], h [batch, d_hidden], every matrix [n_features, d_hidden], b [n_features].
Came from: tasks/superposition.py (what the features are).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toylab.errors import one_of, require
from toylab.models.transformer import DTYPES
from toylab.taps import Tap, Tapped, no_tap

KINDS = ("linear", "relu_out", "relu_hidden", "absolute")
FEW = 64  # up to so many features, rows of memory hold one feature of all examples: matrix products are wider so


@dataclass(frozen=True)
class SuperpositionSpec:
    """Which of the four models, and how wide; n_features comes from the task.

    init_std: standard deviation of every entry of W; None = sqrt(2 / (n_features + d_hidden)), Xavier's rule for one
              matrix. (The published notebook applies that rule to a stack [instance, n_features, d_hidden], which
              takes the fans from other axes: sqrt(2 / ((n_features + instances) d_hidden)).)
    """

    kind: str
    d_hidden: int
    init_std: float | None = None
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self):
        one_of("kind", self.kind, KINDS)
        one_of("dtype", self.dtype, DTYPES)
        require(self.d_hidden >= 1, f"d_hidden={self.d_hidden}: at least 1 is needed")
        require(self.init_std is None or self.init_std >= 0, f"init_std={self.init_std}: 0 or more, or None")

    def build(self, task, generator: torch.Generator) -> Superposition:
        """A freshly initialised model for this task's n_features. Same generator state, same bits."""
        require(
            hasattr(task, "n_features"),
            f"{type(task).__name__} has no n_features: it needs a vector task such as SparseFeatures",
        )
        model = Superposition(self, n_features=task.n_features)
        model.initialise(generator)
        return model


class Superposition(Tapped):
    """The model a SuperpositionSpec describes: W, b; or W_1, W_2, b for `absolute`."""

    W: Tensor
    W_1: Tensor
    W_2: Tensor
    # `forward` is algebra on the last axes: with weights [member, ...] and inputs [member, batch, n_features] it is
    # every member's forward pass (torch.func.functional_call), which is how ensembles run it.
    broadcasts = True

    def __init__(self, spec: SuperpositionSpec, n_features: int):
        super().__init__()
        self.spec, self.n_features, self.d_hidden = spec, n_features, spec.d_hidden
        for name in ("W_1", "W_2") if spec.kind == "absolute" else ("W",):
            setattr(self, name, nn.Parameter(torch.zeros(n_features, spec.d_hidden, dtype=DTYPES[spec.dtype])))
        self.b = nn.Parameter(torch.zeros(n_features, dtype=DTYPES[spec.dtype]))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every matrix in the order of `parameters()`; b = 0."""
        std = (2 / (self.n_features + self.d_hidden)) ** 0.5 if self.spec.init_std is None else self.spec.init_std
        for name, p in self.named_parameters():
            if name.startswith("W"):
                # Drawn in float32 whatever the dtype, so that a float64 model starts from the same numbers.
                p.copy_(torch.randn(p.shape, generator=generator) * std)

    def forward(
        self, features: Float[Tensor, "*member batch n_features"], tap: Tap = no_tap
    ) -> Float[Tensor, "*member batch n_features"]:
        """The reconstruction of the features (or of their absolute values)."""
        require(
            features.shape[-1] == self.n_features,
            f"{features.shape[-1]} features arrived; this model was made for n_features={self.n_features}",
        )
        W_in, W_out = (self.W_1, self.W_2) if self.spec.kind == "absolute" else (self.W, self.W)
        hidden = features.to(W_in.dtype) @ W_in
        if self.spec.kind in ("relu_hidden", "absolute"):
            hidden = tap("hidden_pre", None, hidden).relu()
        out = tap("hidden", None, hidden) @ W_out.mT + self.b.unsqueeze(-2)
        return out if self.spec.kind == "linear" else tap("features_pre", None, out).relu()

    @torch.no_grad()
    def squared_error(
        self,
        params: dict[str, Float[Tensor, "member ..."]],
        x: Float[Tensor, "member batch n_features"],
        target: Float[Tensor, "member batch n_features"],
        weight: Float[Tensor, "member n_features"],
    ) -> tuple[dict[str, Tensor], Float[Tensor, " member"]]:
        """(gradients, losses) of sum_{batch, i} weight_i (y_i - target_i)^2 for many members, without autograd.

        With g = 2 weight (y - target) where the output's ReLU lets it through: b gets sum g, W_2 gets g^T h, W_1 gets
        x^T (g W_2) where the hidden ReLU does; a matrix that is both gets both. Equal to autograd of `forward` up to
        rounding, in a quarter of its time for few features.
        """
        W_1, W_2 = (params["W_1"], params["W_2"]) if self.spec.kind == "absolute" else (params["W"], params["W"])
        few = self.n_features <= FEW

        def laid(a: Tensor) -> Tensor:  # [member, features, batch] when there are few
            return a.mT.contiguous() if few else a

        def times(a: Tensor, M: Tensor) -> Tensor:
            return M.mT @ a if few else a @ M

        def outer(a: Tensor, c: Tensor) -> Tensor:
            return a @ c.mT if few else a.mT @ c

        batch, wide = (2, (..., None)) if few else (1, (..., None, slice(None)))
        inputs = laid(x.to(W_1.dtype))
        hidden = times(inputs, W_1)
        if self.spec.kind in ("relu_hidden", "absolute"):
            hidden.relu_()
        y = times(hidden, W_2.mT).add_(params["b"][wide])
        if self.spec.kind != "linear":
            y.relu_()
        error = y - (inputs if target is x else laid(target.to(y.dtype)))
        losses = (error.square().sum(batch) * weight).sum(1)
        g = error.mul_(2 * weight[wide])
        if self.spec.kind != "linear":
            g.mul_(y.sign_())  # y >= 0, so its sign is 1 where the ReLU passes
        back = times(g, W_2)
        if self.spec.kind in ("relu_hidden", "absolute"):
            back.mul_(hidden.sign())
        first, second = outer(inputs, back), outer(g, hidden)
        b = g.sum(batch)
        if self.spec.kind == "absolute":
            return {"W_1": first, "W_2": second, "b": b}, losses
        return {"W": first.add_(second), "b": b}, losses

    def example_input(self) -> Tensor:
        return torch.zeros(1, self.n_features, dtype=self.b.dtype, device=self.b.device)

    def __repr__(self) -> str:
        return (
            f"Superposition({self.spec.kind}, n_features {self.n_features}, d_hidden {self.d_hidden}; "
            f"{self.n_params():,} parameters)"
        )
