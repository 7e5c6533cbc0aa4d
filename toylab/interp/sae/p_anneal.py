"""p-annealing (Karvonen et al. 2024, arXiv 2408.00113): the penalty sum f^p, with p falling from 1 towards 0.

    f = ReLU((x - b_dec) W_enc + b_enc)      y = f W_dec + b_dec      loss = |x - y|^2 + l1 s sum_i f_i^p

p stays 1 until `anneal_start` (a share of the steps), then falls to `p_end` in ten equal stages. At each change s is
multiplied by the ratio of the old to the new sum f^p on the batch at hand, so that the penalty itself is continuous.
(The published code takes the ratio over its last ten batches; one batch here has thousands of rows.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toylab.errors import require
from toylab.interp.sae.dense import relu_backward
from toylab.interp.sae.spec import pre_bias
from toylab.interp.sae.standard import Standard

STAGES = 10
SMALL = 1e-8  # f^(p - 1) grows without bound towards f = 0


@dataclass(frozen=True, kw_only=True)
class PAnneal(Standard):
    p_end: float = 0.2
    anneal_start: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.p_end <= 1, f"p_end={self.p_end} is outside (0, 1]; the paper uses 0.2")
        require(0 <= self.anneal_start < 1, f"anneal_start={self.anneal_start} is outside [0, 1), a share of the steps")

    def p(self, step: int, steps: int) -> float:
        """The exponent at this step: 1, then ten equal stages down to p_end."""
        done = (step / steps - self.anneal_start) / (1 - self.anneal_start)
        return 1 - (1 - self.p_end) * min(max(int(done * STAGES) + 1, 0), STAGES) / STAGES if done >= 0 else 1.0

    def before_step(self, params, x, knobs, state):
        scale = state.extra.setdefault("penalty_scale", x.new_ones(len(params["W_enc"])))
        new, old = self.p(state.step, state.steps), self.p(state.step - 1, state.steps)
        if new != old:
            f = torch.baddbmm(pre_bias(self, params), x.expand(len(scale), -1, -1), params["W_enc"]).relu_() + SMALL
            active = f > SMALL
            before, after = ((f.pow(p) * active).sum((1, 2)) for p in (old, new))
            scale *= torch.where(after > 0, before / after, 1)

    def prepare(self, params, knobs, state):
        p = torch.full_like(knobs["l1"], self.p(state.step, state.steps))
        return knobs | {"p": p, "penalty": knobs["l1"] * state.extra["penalty_scale"][:, None, None] * p}

    def backward(self, tile):
        p = tile.knobs["p"].flatten()[0].item()
        weight = tile.knobs["penalty"] / tile.n
        tile.df += weight if p == 1 else weight * (tile.f + SMALL).pow(p - 1)
        relu_backward(tile.df, tile.f, 0, grad_input=tile.df)
