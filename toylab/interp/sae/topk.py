"""TopK with AuxK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of every input, nothing else.

    z = (x - b_dec) W_enc + b_enc      f = ReLU(the k largest of z, the others 0)      y = f W_dec + b_dec
    loss = |x - y|^2 + aux s |e - e_hat|^2 / |e - mean e|^2

e = x - y as a constant, e_hat = what the k_aux largest dead latents make of it, s = min(dead / k_aux, 1). There is no
penalty, so nothing shrinks. Rows of W_dec have norm 1, or ranking by z would mean nothing.
Learning rates of 2e-4 / sqrt(d_sae / 2^14) are usual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toylab.errors import require
from toylab.interp.sae.sparse import Active, Sparse, in_threads, per_row, pre_activations


@dataclass(frozen=True, kw_only=True)
class TopK(Sparse):
    def __post_init__(self):
        super().__post_init__()
        require(float(self.k).is_integer(), f"k={self.k}: a whole number per input; BatchTopK takes fractions")

    def threshold(self, params, z):
        top = z.topk(int(self.k), dim=-1, sorted=False)
        return torch.zeros_like(z).scatter_(-1, top.indices, top.values.relu())

    def select(self, params, x, knobs, state):
        member, row, latent, value = [], [], [], []
        k = knobs["k"].flatten().to(torch.int64).numpy()
        for members, rows, z in pre_activations(self, params, x):
            S, R, M = z.shape
            flat_z, wanted = z.view(S * R, M).numpy(), np.repeat(k[members], R)
            step = -(-len(flat_z) // torch.get_num_threads())
            parts = [(flat_z[i : i + step], wanted[i : i + step]) for i in range(0, len(flat_z), step)]
            found = [i * step * M + flat for i, flat in enumerate(in_threads(per_row, parts))]
            flat = np.concatenate(found)
            at, r = np.divmod(flat // M, R)
            member.append(at + members.start)
            row.append(r + rows.start)
            latent.append(flat % M)
            value.append(z.view(-1)[torch.from_numpy(flat)])
        return Active(np.concatenate(member), np.concatenate(row), np.concatenate(latent), torch.cat(value))
