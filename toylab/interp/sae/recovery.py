"""Directions against the truth: has the dictionary found the features, each once, and unmixed?

    mmcs, mcc, recovered    how near the nearest (matched) latent lies to each true feature
    uniqueness, splitting   one latent per feature, or several on the same
    hedging                 a feature's latent that leans towards another feature
    stability               the same questions between dictionaries, when nobody knows the truth

Every score needs its chance value: in few dimensions some latent is near anything (two dimensions and five latents:
mean max |cos| = 0.94). Exact for max-cosines and uniqueness (`chance_mmcs`, ...), by drawing for the rest (`chance`).
Sources: Sharkey et al. 2022 (MMCS); O'Neill et al. 2024 (arXiv 2411.13117, MCC); Chanin et al. 2025 (2505.11756,
hedging).

W_dec is [*sae, d_sae, d], features [n_features, d] or stacked likewise; lengths never matter, a zero row has cosine 0.
Came from: metrics.py. Read next: agreement.py (when the latents fire).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.special import betainc
from torch import Tensor

from toylab.errors import one_of, require


def cosines(
    W_dec: Float[Tensor, "*sae d_sae d"], features: Float[Tensor, "... n_features width"]
) -> Float[Tensor, "*sae d_sae n_features"]:
    """Cosine of every latent's direction with every feature; 0 for zero rows. Raises on NaN."""
    require(
        W_dec.shape[-1] == features.shape[-1],
        f"latents of {W_dec.shape[-1]} dimensions arrived with features of {features.shape[-1]}",
    )
    result = F.normalize(W_dec, dim=-1) @ F.normalize(features.to(W_dec), dim=-1).mT
    require(bool(result.isfinite().all()), "the directions hold NaN or infinity")
    return result


def feature_directions(
    x: Float[Tensor, "n d"], coefficients: Float[Tensor, "n n_features"]
) -> Float[Tensor, "n_features d"]:
    """What one unit of each feature adds to x: the least squares fit of x on the coefficients and a constant.

    Exact (to rounding) where x = c D + b, as in the hidden layer of a linear or ReLU-output toy model; elsewhere the
    best linear account. Of coefficients that determine each other the solution of least norm.
    """
    require(len(x) > coefficients.shape[1], f"{len(x)} rows arrived for {coefficients.shape[1]} features; more rows")
    c, y = (part.double() - part.double().mean(0) for part in (coefficients, x))
    return torch.linalg.lstsq(c, y, driver="gelsd").solution.to(x)


def best_latent(W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor) -> Int[Tensor, "*sae n_features"]:
    """The latent nearest to each feature, by |cos|."""
    return cosines(W_dec, features).abs().argmax(-2)


def best_feature(W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor) -> Int[Tensor, "*sae d_sae"]:
    """The feature nearest to each latent, by |cos|."""
    return cosines(W_dec, features).abs().argmax(-1)


def mmcs(
    W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor, absolute: bool = False, over: str = "features"
) -> Float[Tensor, "*sae"]:
    """Mean max cosine similarity: the mean over features of the largest cosine of any latent (Sharkey: signed).

    over="latents" swaps the parts: the mean over latents of the nearest feature. The first is like recall (a feature
    nobody found costs), the second like precision (a latent that is no feature costs). Chance: `chance_mmcs`.
    """
    one_of("over", over, ("features", "latents"))
    cos = cosines(W_dec, features)
    return (cos.abs() if absolute else cos).amax(-2 if over == "features" else -1).mean(-1)


def recovered(
    W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor, above: float = 0.9, absolute: bool = False
) -> Float[Tensor, "*sae"]:
    """Share of the features with a latent at a cosine above this (papers: 0.9 or 0.95)."""
    cos = cosines(W_dec, features)
    return ((cos.abs() if absolute else cos).amax(-2) > above).double().mean(-1)


@dataclass(frozen=True, eq=False)
class Matching:
    """The one-to-one pairs with the largest sum of cosines, min(d_sae, n_features) of them, sorted by latent."""

    latent: Int[Tensor, "*sae pair"]
    feature: Int[Tensor, "*sae pair"]
    cosine: Float[Tensor, "*sae pair"]


def match(W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor, absolute: bool) -> Matching:
    """The Hungarian matching on cosines, or on |cos|. `features` may be another dictionary's W_dec."""
    cos = cosines(W_dec, features)
    value = (cos.abs() if absolute else cos).detach().cpu()
    flat = value.reshape(-1, *value.shape[-2:])
    pairs = [linear_sum_assignment(table.numpy(), maximize=True) for table in flat]
    latent = torch.stack([torch.as_tensor(rows) for rows, _ in pairs])
    feature = torch.stack([torch.as_tensor(columns) for _, columns in pairs])
    found = flat[torch.arange(len(flat))[:, None], latent, feature]
    lead = value.shape[:-2]
    return Matching(*(part.reshape(*lead, -1).to(W_dec.device) for part in (latent, feature, found)))


def mcc(W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor) -> Float[Tensor, "*sae"]:
    """Mean correlation coefficient: the mean |cos| over the matched pairs. Copies count once."""
    return match(W_dec, features, absolute=True).cosine.mean(-1)


def uniqueness(W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor) -> Float[Tensor, "*sae"]:
    """Number of different nearest features over d_sae: 1 = every latent its own, 1/d_sae = all on the same.

    Taken on the nearest feature and not on a one-to-one matching, which would give 1 by construction.
    Never above n_features / d_sae.
    """
    nearest = best_feature(W_dec, features).sort(-1).values
    return (1 + (nearest.diff(dim=-1) != 0).sum(-1)).double() / nearest.shape[-1]


def splitting(
    W_dec: Float[Tensor, "*sae d_sae d"], features: Tensor, above: float = 0.7
) -> Int[Tensor, "*sae n_features"]:
    """How many latents lie at a cosine above this to each feature: 0 not found, 1 as it should be, more = split.

    With orthogonal features 0.7 admits few latents to two features at once (the midpoint is at 0.707).
    By chance d_sae * P(cos > above): `chance_cosine_above`.
    """
    return (cosines(W_dec, features) > above).sum(-2)


def hedging(
    W_dec: Float[Tensor, "*sae d_sae d"], features: Float[Tensor, "n_features d"], pairs: Int[Tensor, "pair two"]
) -> Float[Tensor, "*sae pair"]:
    """For pairs (i, j): how far the latent of feature i leans towards feature j, as a cosine.

    The cosine of that latent (the nearest to i, its sign so that cos > 0) with the part of g_j orthogonal to g_i, so
    that a latent along g_i has 0 for whatever features. Known exactly: two orthogonal features with sizes 1,
    P(j | i) = q, j only with i, and one latent: between q / sqrt(1 + q^2) (its activation constant) and the top
    eigenvector of [[1, q], [q, q]] (free); 0 for independent features, negative where they avoid each other.
    Chance: a random direction has mean 0 (given its sign to i) and standard deviation about 1/sqrt(d).
    """
    unit = F.normalize(features.to(W_dec), dim=-1)
    i, j = pairs.unbind(1)
    cos = cosines(W_dec, features)
    nearest = cos.abs().argmax(-2)[..., i]
    latent = F.normalize(W_dec, dim=-1).gather(-2, nearest[..., None].expand(*nearest.shape, W_dec.shape[-1]))
    sign = (latent * unit[i]).sum(-1).sign()
    rest = unit[j] - (unit[i] * unit[j]).sum(-1, keepdim=True) * unit[i]
    require(
        bool((rest.norm(dim=-1) > 1e-6).all()),
        "some pairs have parallel features: nothing could lean from one to the other",
    )
    return sign * (latent * F.normalize(rest, dim=-1)).sum(-1)


def mean_overlap(W_dec: Float[Tensor, "*sae d_sae d"]) -> Float[Tensor, "*sae"]:
    """Mean |cos| between different latents: with L0 too low, latents mix and this rises (Chanin et al. 2508.16560).

    Chance: `chance_mmcs(d, 1, absolute=True)`.
    """
    m = W_dec.shape[-2]
    require(m > 1, "one latent arrived; overlap needs two")
    cos = cosines(W_dec, W_dec).abs()
    return (cos.sum((-2, -1)) - cos.diagonal(dim1=-2, dim2=-1).sum(-1)) / (m * (m - 1))


def stability(W_dec: Float[Tensor, "seed d_sae d"]) -> Float[Tensor, "seed seed"]:
    """Mean matched cosine (signed, one to one) between dictionaries trained alike: 1 = the same up to order.

    What is not found again by another seed is not a fact about the model. `match` gives the cosine of each latent.
    Chance: `chance(lambda W: match(W, other, absolute=False).cosine.mean(-1), ...)`.
    """
    n = len(W_dec)
    a, b = torch.triu_indices(n, n)
    pairs = match(W_dec[a], W_dec[b], absolute=False).cosine.mean(-1)
    result = pairs.new_zeros(n, n)
    result[a, b] = result[b, a] = pairs
    return result


# --- Chance -----------------------------------------------------------------------------------------------------------


def _cosine_below(t: float, d: int) -> float:
    """P(cos <= t) for a direction drawn uniformly in d dimensions: cos^2 is Beta(1/2, (d - 1)/2), the sign fair."""
    return 0.5 * (1 + (1 if t > 0 else -1) * betainc(0.5, (d - 1) / 2, t * t))


def chance_cosine_above(t: float, d: int) -> float:
    """P(cos > t) of a random direction with a given one in d dimensions, exactly."""
    require(d >= 2, f"d={d}: at least 2 dimensions")
    return 1 - _cosine_below(t, d)


def chance_mmcs(d: int, d_sae: int, absolute: bool = False) -> float:
    """E of the largest (absolute) cosine of d_sae uniform random directions with a given one, exactly.

    = integral of 1 - P(cos <= t)^d_sae. It is the same for every feature, so this is the chance value of mmcs over
    features whatever their geometry. Over latents, d_sae is the number of features, if these are random too.
    """
    require(d >= 2 and d_sae >= 1, f"d={d}, d_sae={d_sae}: at least 2 dimensions and 1 latent")
    low, below = (
        (0.0, lambda t: betainc(0.5, (d - 1) / 2, t * t)) if absolute else (-1.0, lambda t: _cosine_below(t, d))
    )
    # The integrand falls from 1 to 0 near 1/sqrt(d): break there, or quad may not see it.
    breaks = [t for t in (0.0, d**-0.5, 3 * d**-0.5, 6 * d**-0.5) if low < t < 1]
    return 1 - quad(lambda t: below(t) ** d_sae, low, 1, points=breaks, limit=200)[0]


def chance_uniqueness(d_sae: int, n_features: int) -> float:
    """Expected uniqueness when every latent's nearest feature is uniform: n (1 - (1 - 1/n)^d_sae) / d_sae.

    Exact for random latents and features that are random or orthonormal.
    """
    return n_features * (1 - (1 - 1 / n_features) ** d_sae) / d_sae


def random_dictionaries(n_draws: int, d_sae: int, d: int, generator: torch.Generator) -> Float[Tensor, "draw d_sae d"]:
    """Unit directions, uniform on the sphere."""
    return F.normalize(torch.randn(n_draws, d_sae, d, generator=generator), dim=-1)


def chance(
    metric: Callable[[Tensor], Tensor], d_sae: int, d: int, generator: torch.Generator, n_draws: int = 20
) -> tuple[float, float]:
    """(mean, standard deviation over draws) of a metric of W_dec on random dictionaries.

    metric: W_dec [draw, d_sae, d] -> [draw], for instance lambda W: mcc(W, features). The standard error of the mean
    is the deviation over sqrt(n_draws).
    """
    require(n_draws >= 2, f"n_draws={n_draws}: at least 2, to see how they vary")
    values = metric(random_dictionaries(n_draws, d_sae, d, generator)).double()
    require(values.shape == (n_draws,), f"the metric gave {tuple(values.shape)}; expected one number per dictionary")
    return float(values.mean()), float(values.std())
