"""Dictionaries through training: trained afresh at every checkpoint, then matched latent by latent.

    W = [directions(train_alike(spec, (0, 1), Stream.of_snapshot(snap, site), training)) for snap in ...]
    found = follow(torch.stack(W))                     # [step, sae, d_sae, d]
    appeared(other_seeds(found.to_final), above=0.9)   # when each latent of the last dictionaries was there to stay

1. `train_alike`: one spec from several seeds, as one stack on one stream.
2. `partners`: the cosine of every latent with its one-to-one partner in another dictionary (Hungarian, signed).
3. `follow`: that from each checkpoint to the next, and to the last.
4. `chance_partners`: the same for directions that share nothing but the space they are spread over.

Two dictionaries of one seed start from the same directions and see rows in the same order: a latent that learned
nothing matches itself perfectly. What a checkpoint has of the last dictionary is therefore asked of the OTHER seeds
(`other_seeds`); there the best that can be reached is what two seeds agree on at the last checkpoint itself.
Came from: recovery.py, training.py. measures/dictionaries.py puts it under `run.map`. Instead of one dictionary per
checkpoint, crosscoder.py trains one for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toylab.errors import require
from toylab.interp.sae.dictionary import SAE
from toylab.interp.sae.recovery import match
from toylab.interp.sae.spec import SAESpec
from toylab.interp.sae.stream import Stream
from toylab.interp.sae.training import SAETraining, train_sae


def train_alike(spec: SAESpec, seeds: Sequence[int], stream: Stream, training: SAETraining) -> tuple[SAE, ...]:
    """One dictionary per seed, which decides where it starts; they share the stream."""
    return train_sae([dataclasses.replace(spec, seed=seed) for seed in seeds], stream, training).saes


def directions(saes: Sequence[SAE]) -> Float[Tensor, "sae d_sae d"]:
    """The decoders of dictionaries of one shape."""
    return torch.stack([sae.W_dec for sae in saes])


def partners(W: Float[Tensor, "sae m d"], V: Float[Tensor, "other d_sae d"]) -> Float[Tensor, "sae other d_sae"]:
    """Entry [s, r, i]: the cosine of latent i of V[r] with its partner in W[s], of the best one-to-one matching.

    1 where W holds the same direction, whatever the order of its latents; dead latents have partners too.
    """
    require(W.shape[1:] == V.shape[1:], f"dictionaries {tuple(W.shape)} and {tuple(V.shape)} differ in their sizes")
    n, m = len(W), len(V)
    found = match(W.repeat_interleave(m, 0), V.repeat(n, 1, 1), absolute=False)
    return torch.zeros_like(found.cosine).scatter(1, found.feature, found.cosine).unflatten(0, (n, m))


def mixtures(W: Float[Tensor, "d_sae d"], n: int, generator: torch.Generator) -> Float[Tensor, "n d_sae d"]:
    """n dictionaries of random directions spread over the space as the rows of W are: Gaussian sums of its unit rows.

    Their second moment is that of W, so they keep what is due to the space and lose what is due to single directions.
    """
    z = torch.randn(n, len(W), len(W), generator=generator).to(W)
    return F.normalize(z @ F.normalize(W, dim=-1), dim=-1)


def chance_partners(
    W: Float[Tensor, "sae d_sae d"], V: Float[Tensor, "other d_sae d"], generator: torch.Generator, n_draws: int = 4
) -> Float[Tensor, "sae other"]:
    """The mean of `partners` when W is replaced by mixtures of itself, n_draws of each.

    Above the chance of directions uniform in d dimensions as soon as the dictionary fills a part of the space only,
    and near it where it fills all of it evenly.
    """
    return torch.stack([partners(mixtures(one, n_draws, generator), V).mean((0, 2)) for one in W])


def other_seeds(cosines: Float[Tensor, "*step sae sae d_sae"]) -> Float[Tensor, "*step sae d_sae"]:
    """For each latent of the second dictionary, the mean over those of other seeds."""
    n = cosines.shape[-2]
    require(n > 1, "one seed arrived; agreement between seeds needs two")
    others = ~torch.eye(n, dtype=torch.bool, device=cosines.device)
    return (cosines * others[..., None]).sum(-3) / (n - 1)


@dataclass(frozen=True, eq=False)
class Followed:
    """to_next [step - 1, sae, next_sae, d_sae]: latents of the next checkpoint's dictionaries and their partners here.
    to_final [step, sae, final_sae, d_sae]: latents of the last checkpoint's dictionaries and their partners here.

    Diagonal in the middle axes: the same seed; the rest: `other_seeds`.
    """

    to_next: Float[Tensor, "pair sae sae d_sae"]
    to_final: Float[Tensor, "step sae sae d_sae"]


def follow(W: Float[Tensor, "step sae d_sae d"]) -> Followed:
    """Match the dictionaries of every checkpoint with those of the next and of the last one.

    Known exactly: checkpoints with the same activations give 1 for the same seed.
    """
    require(len(W) > 1, f"{len(W)} checkpoint arrived; following needs two")
    to_next = torch.stack([partners(now, then) for now, then in pairwise(W)])
    return Followed(to_next, torch.stack([partners(now, W[-1]) for now in W]))


def appeared(to_final: Float[Tensor, "step sae d_sae"], above: float) -> Int[Tensor, "sae d_sae"]:
    """The first checkpoint (an index) from which on a latent's cosine is `above` or more at every later one.

    -1 for latents that are below it even at the last: what two seeds do not agree on has no birth to date.
    """
    lasts = (to_final >= above).flip(0).long().cumprod(0).sum(0)
    return torch.where(lasts > 0, len(to_final) - lasts, -1)
