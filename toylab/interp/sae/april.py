"""The April 2024 recipe (Conerly et al., transformer-circuits.pub/2024/april-update), and L1 crosscoders.

    f = ReLU(x W_enc + b_enc)      y = f W_dec + b_dec      loss = |x - y|^2 + l1 sum_i f_i |W_dec,i|

W_dec has no constraint; weighting by its norms makes the loss blind to how a latent's size is shared between f and
W_dec. Its rows start at norm 0.1 with W_enc = W_dec^T. Published with l1 = 5, warmed up over the first 5% of the steps,
E|x| = sqrt(d), clip = 1, lr falling to 0 over the last 20%, and no resampling.

With several sources (a crosscoder; Lindsey et al. 2024) |W_dec,i| is the sum over sources of the norms: it lets a
latent leave a source altogether, where the norm of the whole row would spread it over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toylab.interp.sae.dense import relu_backward
from toylab.interp.sae.spec import decoder_norms
from toylab.interp.sae.standard import Standard


@dataclass(frozen=True, kw_only=True)
class April(Standard):
    apply_b_dec_to_input: bool = False
    sources: int = 1

    UNIT_DECODER: ClassVar[bool] = False

    def prepare(self, params, knobs, state):
        return knobs | {"penalty": knobs["l1"] * decoder_norms(params["W_dec"], self.sources)[:, None]}

    def backward(self, tile):
        tile.df += tile.knobs["penalty"] / tile.n
        relu_backward(tile.df, tile.f, 0, grad_input=tile.df)

    def finish(self, params, grads, stats, knobs, n):
        parts = params["W_dec"].unflatten(-1, (self.sources, -1))  # [sae, d_sae, source, d]
        # The norm has no gradient at a row of zeros; 0 is in its subdifferential.
        units = parts / parts.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        grads["W_dec"] += (knobs["l1"] * stats.sum_f[..., None] / n) * units.flatten(-2)
