"""Dictionaries on board games: do single latents tell board-state properties, and is the board in them?

Properties are booleans [n, n_properties]: "this square is mine", "this square is theirs", one column each.
1. `board_counts(acts, labels, maxima)` -> `BoardCounts`, summed over batches (a + b). A latent fires at threshold t if
   its activation is above t times its maximum; t = 0, .1, ..., .9.
2. `coverage(counts)`: the best single latent's F1 for each property.
3. `detectors(counts)`: the (latent, threshold) pairs that are almost never wrong on these games; `reconstruct_boards`
   says a property holds where any of its detectors fires, on other games -> `BoardScores`, summed likewise.

The perfect dictionary (one latent per property) has coverage = reconstruction = 1. MLP neurons are a strong baseline: a
dictionary that does not beat them has shown nothing. Any activations [n, d] >= 0 may stand in the place of acts.
Source: Karvonen et al. 2024 (arXiv 2408.00113) and its code. Came from: agreement.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toylab.errors import one_of, require

THRESHOLDS = tuple(t / 10 for t in range(10))


@dataclass(frozen=True, eq=False)
class BoardCounts:
    """Sums over n rows: maxima [d_sae] they were taken with, fires [t, d_sae], holds [property], both of the two."""

    n: int
    maxima: Float[Tensor, " d_sae"]
    fires: Float[Tensor, "t d_sae"]
    holds: Float[Tensor, " n_properties"]
    both: Float[Tensor, "t d_sae n_properties"]

    def __add__(self, other: BoardCounts) -> BoardCounts:
        assert torch.equal(self.maxima, other.maxima), "counts with different maxima do not add up"
        return BoardCounts(
            self.n + other.n,
            self.maxima,
            self.fires + other.fires,
            self.holds + other.holds,
            self.both + other.both,
        )


def _fires(acts: Tensor, maxima: Tensor, threshold: float) -> Tensor:
    return (acts > threshold * maxima).to(acts)


def board_counts(
    acts: Float[Tensor, "n d_sae"], labels: Bool[Tensor, "n n_properties"], maxima: Float[Tensor, " d_sae"]
) -> BoardCounts:
    """The counts of these rows. maxima: each latent's largest activation over ALL the data."""
    require(len(acts) == len(labels), f"{len(labels)} rows of labels arrived with {len(acts)} rows of activations")
    require(bool((acts >= 0).all()), "activations below 0 (or NaN) arrived: thresholds are shares of a maximum")
    y = labels.to(acts)
    fires = [_fires(acts, maxima, t) for t in THRESHOLDS]
    return BoardCounts(
        n=len(y),
        maxima=maxima,
        fires=torch.stack([f.sum(0) for f in fires]).double(),
        holds=y.sum(0).double(),
        both=torch.stack([f.T @ y for f in fires]).double(),
    )


@dataclass(frozen=True, eq=False)
class Coverage:
    """value: the score.  f1 [property]: of the best latent.  threshold [property]: where.  chance [property]."""

    value: float
    f1: Float[Tensor, " n_properties"]
    threshold: Float[Tensor, " n_properties"]
    chance: Float[Tensor, " n_properties"]


def coverage(counts: BoardCounts, threshold: str = "common") -> Coverage:
    """Mean over properties of the largest F1 of any latent.

    threshold "common": the one that is best after averaging over properties (the code); "per_property": the best for
    each (the paper's definition), never lower. chance is that of a latent that always fires, 2r / (1 + r) at rate r: no
    latent that fires independently of the property expects more.
    """
    one_of("threshold", threshold, ("common", "per_property"))
    total = counts.fires[..., None] + counts.holds
    best = torch.where(total > 0, 2 * counts.both / total.clamp_min(1), 0).amax(1)  # [t, property]
    at = best.argmax(0) if threshold == "per_property" else best.mean(1).argmax().expand(best.shape[1])
    f1 = best.gather(0, at[None])[0]
    return Coverage(
        value=float(f1.mean()),
        f1=f1,
        threshold=torch.tensor(THRESHOLDS, dtype=torch.double)[at],
        chance=2 * counts.holds / (counts.n + counts.holds),
    )


def detectors(counts: BoardCounts, precision: float = 0.95, least: int = 10) -> Bool[Tensor, "t d_sae n_properties"]:
    """True where a latent, firing at a threshold at least `least` times, is right this often about a property."""
    often = (counts.fires >= least)[..., None]
    return often & (counts.both >= precision * counts.fires[..., None])


@dataclass(frozen=True, eq=False)
class BoardScores:
    """Counts per threshold [t] over all rows and properties: right = predicted and true. a + b is both batches."""

    right: Float[Tensor, " t"]
    predicted: Float[Tensor, " t"]
    true: Float[Tensor, " t"]

    def __add__(self, other: BoardScores) -> BoardScores:
        return BoardScores(self.right + other.right, self.predicted + other.predicted, self.true + other.true)

    @property
    def f1(self) -> Float[Tensor, " t"]:
        """Of all predictions pooled (not the mean of the boards' own F1). 0 where nothing is there or predicted."""
        return 2 * self.right / (self.predicted + self.true).clamp_min(1)

    @property
    def value(self) -> float:
        """F1 at the best common threshold. Chance, for labels that have nothing to do with the latents: about 0."""
        return float(self.f1.max())


def reconstruct_boards(
    acts: Float[Tensor, "n d_sae"],
    labels: Bool[Tensor, "n n_properties"],
    maxima: Float[Tensor, " d_sae"],
    detectors: Bool[Tensor, "t d_sae n_properties"],
) -> BoardScores:
    """Boards of games that did not make the detectors, with the same maxima: a property holds where one fires."""
    y = labels.to(acts)
    found = [
        (_fires(acts, maxima, t) @ table.to(acts) > 0).to(acts) for t, table in zip(THRESHOLDS, detectors, strict=True)
    ]
    return BoardScores(
        right=torch.stack([(p * y).sum() for p in found]).double(),
        predicted=torch.stack([p.sum() for p in found]).double(),
        true=y.sum().double().expand(len(found)),
    )
