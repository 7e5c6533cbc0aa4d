"""Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): every prefix of the latents must reconstruct on its own.

    f as in BatchTopK      y_g = f[:, :m_g] W_dec[:m_g] + b_dec      loss = sum_g |x - y_g|^2 + AuxK

with nested widths m_1 < ... < m_G = d_sae. Early latents cannot leave part of their feature to later ones, which
works against absorption and splitting, at a little more error for the same L0. The levels are summed, each with weight
1. Known exactly: with the one width d_sae it is BatchTopK.
"""

from __future__ import annotations

from dataclasses import dataclass

from toylab.errors import require
from toylab.interp.sae.batch_topk import BatchTopK


@dataclass(frozen=True, kw_only=True)
class Matryoshka(BatchTopK):
    widths: tuple[int, ...]

    def __post_init__(self):
        super().__post_init__()
        rising = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        require(
            bool(self.widths) and self.widths[0] >= 1 and rising and self.widths[-1] == self.d_sae,
            f"widths={self.widths}: nested widths rise and end with d_sae={self.d_sae}, "
            f"for instance {tuple(max(1, self.d_sae // n) for n in (16, 4, 1))}",
        )

    def edges(self):
        return self.widths
