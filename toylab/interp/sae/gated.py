"""The gated autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014): whether a latent fires, and how strongly, apart.

    u = (x - b_dec) W_enc                        pi = u + b_gate           m = u exp(r_mag) + b_mag
    f = 1[pi > 0] ReLU(m)                        y = f W_dec + b_dec
    loss = |x - y|^2 + l1 sum_i ReLU(pi_i) + |x - ReLU(pi) W_dec' - b_dec'|^2       (' = no gradient)

The penalty shrinks pi, which decides, and not m, which measures. The step passes no gradient, so pi learns from the
last two terms alone; W_dec and b_dec, frozen there, learn from the first alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from toylab.interp.sae.dense import relu_backward
from toylab.interp.sae.standard import Standard


@dataclass(frozen=True, kw_only=True)
class Gated(Standard):
    BIASES: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")

    def threshold(self, params, z):
        b_gate, b_mag, r_mag = (params[name][..., None, :] for name in self.BIASES)
        return torch.where(z + b_gate > 0, (z * r_mag.exp() + b_mag).relu(), 0)

    def activate(self, z, params, knobs):
        return self.threshold(params, z)

    def backward(self, tile):
        p, grads, scale = tile.params, tile.grads, tile.params["r_mag"][:, None].exp()
        dm = relu_backward(tile.df, tile.f, 0, grad_input=tile.df)
        pi = (tile.z + p["b_gate"][:, None]).relu_()
        error = torch.baddbmm(p["b_dec"][:, None], pi, p["W_dec"]).sub_(tile.y)
        if self.skip:
            error.baddbmm_(tile.x, p["W_skip"])
        dpi = torch.bmm(error.mul_(2 / tile.n), p["W_dec"].mT).add_(tile.knobs["l1"] / tile.n)
        relu_backward(dpi, pi, 0, grad_input=dpi)
        grads["b_mag"] += dm.sum(1)
        grads["b_gate"] += dpi.sum(1)
        grads["r_mag"] += (dm * tile.z).sum(1) * scale[:, 0]
        dm.mul_(scale).add_(dpi)
