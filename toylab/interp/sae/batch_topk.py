"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the batch k largest pre-activations of the whole batch.

As TopK, but an input may use more latents than k when others need fewer; k may be a fraction. A finished dictionary
must not depend on who else is in the batch: it is a JumpReLU with one threshold, the running mean of the smallest
activation that was kept. Its L0 on new data is then near k, not equal to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toylab.interp.sae.sparse import Active, Sparse, in_threads, per_batch, pre_activations

THRESHOLD_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class BatchTopK(Sparse):
    def start(self, params, x):
        params["threshold"] = x.new_zeros(())

    def threshold(self, params, z):
        return torch.where(z > params["threshold"][..., None, None], z.relu(), 0)

    def select(self, params, x, knobs, state):
        S, _, M = params["W_enc"].shape
        z = x.new_empty(S, len(x), M)
        for members, rows, tile in pre_activations(self, params, x):
            z[members, rows] = tile
        wanted = (knobs["k"].flatten() * len(x)).round().to(torch.int64).tolist()
        found = in_threads(per_batch, list(zip(z.numpy(), wanted, strict=True)))
        values = [z[s].view(-1)[torch.from_numpy(flat)] for s, flat in enumerate(found)]
        self._follow(params["threshold"], values, first=state.step == 0)
        flat = np.concatenate(found)
        return Active(np.repeat(np.arange(S), [len(f) for f in found]), flat // M, flat % M, torch.cat(values))

    def _follow(self, threshold, values, first):
        least = torch.stack([v.min() if len(v) else t for v, t in zip(values, threshold, strict=True)])
        threshold.copy_(least if first else threshold.lerp(least, THRESHOLD_RATE))
