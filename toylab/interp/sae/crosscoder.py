"""Reading crosscoders: which source uses a latent, since when, and along which direction (Lindsey et al. 2024).

A crosscoder is a dictionary of several sources side by side, layers, models or checkpoints of one run:

    stream = Stream.of_sources([(run.snapshot(step), "resid_post0") for step in steps])
    sae = train_sae([April(d_sae=512, lr=1e-3, l1=2, sources=len(steps))], stream, training).saes[0]
    births = birth(source_norms(sae))            # index into steps, per latent

April is the published L1 crosscoder. Its penalty can make a shared latent look exclusive, by shrinking its weaker side
to nothing or by splitting it in two (Minder et al. 2025, arXiv 2504.02922); TopK and BatchTopK have no penalty and are
the check: a claim of exclusivity should survive both. Norms are in the model's units, so sources whose activations are
larger have larger norms; `source_norms(sae, stream.scale_out)` gives those of training.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import require
from toylab.interp.sae.dictionary import SAE


def directions(sae: SAE, scale: Tensor | None = None) -> Float[Tensor, "source d_sae d"]:
    """W_dec of each source; times `scale` (the stream's scale_out) in the units it was trained in."""
    require(sae.sources > 1, f"{sae!r} has one source: a crosscoder has several")
    W_dec = sae.W_dec if scale is None else sae.W_dec * scale
    return W_dec.unflatten(1, (sae.sources, -1)).transpose(0, 1)


def source_norms(sae: SAE, scale: Tensor | None = None) -> Float[Tensor, "source d_sae"]:
    """|W_dec,i^source|: 0 where a source does not use the latent."""
    return directions(sae, scale).norm(dim=2)


def relative_norm(norms: Float[Tensor, "source d_sae"], a: int, b: int) -> Float[Tensor, " d_sae"]:
    """|W^b| / (|W^a| + |W^b|) in [0, 1]: 0 only a has the latent, 1/2 both, 1 only b; NaN where neither has."""
    return norms[b] / (norms[a] + norms[b])


def exclusive(relative: Float[Tensor, " d_sae"], least: float = 0.05) -> dict[str, Bool[Tensor, " d_sae"]]:
    """Which latents are exclusive to "a" or "b" (within `least` of 0 or 1) and which are "shared" (0.3 to 0.7)."""
    require(0 < least < 0.3, f"least={least} is outside (0, 0.3); 0.05 is usual")
    return {"a": relative < least, "b": relative > 1 - least, "shared": (relative >= 0.3) & (relative <= 0.7)}


def rotation(sae: SAE) -> Float[Tensor, "step d_sae"]:
    """cos(W_dec,i^source, W_dec,i^next) of neighbouring sources; 0 where one of them is nothing."""
    W = directions(sae)
    W = W / W.norm(dim=2, keepdim=True).clamp(min=1e-12)
    return torch.einsum("sid,sid->si", W[:-1], W[1:])


def birth(norms: Float[Tensor, "source d_sae"], share: float = 0.5) -> Int[Tensor, " d_sae"]:
    """The first source in which a latent has this share of its largest norm; -1 for a latent with no norm at all."""
    require(0 < share <= 1, f"share={share} is outside (0, 1]")
    largest = norms.max(0).values
    return torch.where(largest > 0, (norms >= share * largest).int().argmax(0), -1)


def death(norms: Float[Tensor, "source d_sae"], share: float = 0.5) -> Int[Tensor, " d_sae"]:
    """The last source in which a latent has this share of its largest norm; -1 for a latent with no norm at all."""
    last = len(norms) - 1 - birth(norms.flip(0), share)
    return torch.where(norms.max(0).values > 0, last, -1)
