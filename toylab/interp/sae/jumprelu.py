"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold per latent, and L0 itself as the penalty.

    z = x W_enc + b_enc      f = z 1[z > threshold]      y = f W_dec + b_dec      loss = |x - y|^2 + l0 |f|_0

Neither step has a gradient. The paper's estimate of the gradient of the EXPECTED loss counts what lies within half a
bandwidth e of the threshold t, K = 1[|z - t| <= e/2]:  d f / dt = -(t / e) K,  d |f|_0 / dt = -(1 / e) K; and
d f / dz = 1[z > t], with nothing from the steps. K is taken of z, before the gate, or half of it would be lost.
Known exactly: for z ~ N(0, 1), t = 0.5 and small e the mean of d 1[z > t] / dt is -phi(0.5) = -0.35207.

The threshold is the parameter itself (its logarithm would move by no more than lr t per Adam step: far too slow) and
is kept at 0 or above. The penalty's gradient saturates under Adam: sweep l0 downwards on a logarithmic grid from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from toylab.errors import require
from toylab.interp.sae.dense import Dense, relu_backward


@dataclass(frozen=True, kw_only=True)
class JumpReLU(Dense):
    l0: float
    bandwidth: float = 0.05
    initial_threshold: float = 0.01
    apply_b_dec_to_input: bool = False

    KNOBS: ClassVar[tuple[str, ...]] = ("l0", "bandwidth")
    WARMED: ClassVar[tuple[str, ...]] = ("l0",)

    def __post_init__(self):
        super().__post_init__()
        require(self.l0 >= 0, f"l0={self.l0}: 0 or more; it saturates near 1")
        require(self.bandwidth > 0, f"bandwidth={self.bandwidth}: more than 0, in units of the pre-activations")
        require(self.initial_threshold >= 0, f"initial_threshold={self.initial_threshold}: 0 or more")

    def start(self, params, x):
        params["threshold"] = x.new_full((self.d_sae,), self.initial_threshold)

    def threshold(self, params, z):
        return torch.where(z > params["threshold"][..., None, :], z, 0)  # the threshold is 0 or more

    def activate(self, z, params, knobs):
        return self.threshold(params, z)

    def backward(self, tile):
        t, e, l0 = tile.params["threshold"][:, None], tile.knobs["bandwidth"], tile.knobs["l0"] / tile.n
        near = ((tile.z - t).abs_() <= e / 2).to(tile.df)
        tile.grads["threshold"] -= (
            l0 / e * near.sum(1, keepdim=True) + t / e * near.mul_(tile.df).sum(1, keepdim=True)
        )[:, 0]
        relu_backward(tile.df, tile.f, 0, grad_input=tile.df)

    def after_step(self, params):
        params["threshold"].clamp_(min=0)
