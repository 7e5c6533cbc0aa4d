"""The standard sparse autoencoder of Bricken et al. 2023 (transformer-circuits.pub/2023/monosemantic-features).

    f = ReLU((x - b_dec) W_enc + b_enc)      y = f W_dec + b_dec      loss = |x - y|^2 + l1 sum_i f_i

Rows of W_dec have norm 1: after every step they are renormalised, and before it the gradient's part along them is
removed. Known exactly: on orthonormal features this is a soft threshold, so a latent that is always large comes out
l1/2 too small (`shrinkage`). Dead latents are resampled when training.resample_every says so (training.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toylab.errors import require
from toylab.interp.sae.dense import Dense, relu_backward


@dataclass(frozen=True, kw_only=True)
class Standard(Dense):
    l1: float

    KNOBS: ClassVar[tuple[str, ...]] = ("l1",)
    WARMED: ClassVar[tuple[str, ...]] = ("l1",)

    def __post_init__(self):
        super().__post_init__()
        require(self.l1 >= 0, f"l1={self.l1}: 0 or more; with E|x| = sqrt(d) values near 1 to 10 are usual")

    def threshold(self, params, z):
        return z.relu()

    def activate(self, z, params, knobs):
        return z.relu_()

    def backward(self, tile):
        tile.df += tile.knobs["l1"] / tile.n
        relu_backward(tile.df, tile.f, 0, grad_input=tile.df)
