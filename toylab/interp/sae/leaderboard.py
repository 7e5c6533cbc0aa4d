"""Any list of dictionaries, scored on one world whose features are known, between an oracle and chance.

Rows that are always there, before the dictionaries:

    oracle              the true directions with the true coefficients: 1 wherever 1 is best
    true directions     the same directions with an encoder that only projects, ReLU((x - b) D^T): what training adds
    shuffled codes      the oracle's coefficients of OTHER rows: directions right, firing at chance
    random directions   as many random directions as the true ones, the top k projections kept, k the true L0
A dictionary that is not far above the last two has found nothing; which columns tell them apart is the lesson.

Best explained variance is not best recovery (Chanin and Garriga-Alonso 2026: nearly the opposite order), hence the
columns side by side. `lineup` is one of each kind to put on it. Came from: metrics.py, recovery.py, agreement.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from toylab import data
from toylab.errors import require
from toylab.interp.sae import agreement, recovery
from toylab.interp.sae.april import April
from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.gated import Gated
from toylab.interp.sae.jumprelu import JumpReLU
from toylab.interp.sae.matryoshka import Matryoshka
from toylab.interp.sae.metrics import Dictionary, reconstruction
from toylab.interp.sae.p_anneal import PAnneal
from toylab.interp.sae.spec import SAESpec
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.topk import TopK

BASELINES = ("oracle", "true directions", "shuffled codes", "random directions")


@runtime_checkable
class World(Protocol):
    """What a world with known features offers (tasks/dictionaries.py)."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...

    def dictionary(self) -> Tensor: ...

    def true_bias(self) -> Tensor: ...

    def edges(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class TiedDictionary:
    """f = ReLU((x - b) W_dec^T), of which the k largest stay (None: all); x^ = f W_dec + b. Nothing is trained."""

    W_dec: Float[Tensor, "d_sae d"]
    b_dec: Float[Tensor, " d"]
    k: int | None = None

    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d_sae"]:
        acts = ((x - self.b_dec) @ self.W_dec.T).relu()
        if self.k is None:
            return acts
        top = acts.topk(self.k, dim=1)
        return torch.zeros_like(acts).scatter_(1, top.indices, top.values)

    def decode(self, acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d"]:
        return acts @ self.W_dec + self.b_dec


def lineup(d_sae: int, active: float, lr: float = 5e-3) -> dict[str, SAESpec]:
    """One dictionary of each kind, for worlds with `active` features on at a time and inputs with E|x| = sqrt(d).

    Penalties are those that recover 24 features in 20 dimensions (tests/test_sae.py); tune them for anything else.
    """
    size: dict[str, Any] = {"d_sae": d_sae, "lr": lr}
    k = 1.2 * active
    return {
        "standard": Standard(l1=2.0, **size),
        "April 2024": April(l1=1.5, **size),
        "gated": Gated(l1=4.0, **size),
        "TopK": TopK(k=math.ceil(active), **size),
        "BatchTopK": BatchTopK(k=k, **size),
        "Matryoshka": Matryoshka(k=k, widths=(max(1, d_sae // 4), d_sae), **size),
        "JumpReLU": JumpReLU(l0=2.5, bandwidth=1.5, initial_threshold=0.8, **size),
        "p-anneal": PAnneal(l1=1.5, p_end=0.5, **size),
    }


@torch.no_grad()
def leaderboard(
    dictionaries: Mapping[str, Dictionary], world: World, n: int, generator: torch.Generator
) -> list[dict[str, float | str]]:
    """One row of scores per dictionary after the four BASELINES, all on the same n fresh rows of the world.

    name, n, d_sae; l0, explained_variance, dead; mmcs, mcc, uniqueness (directions); f1, precision, recall, auroc,
    shrinkage (firing); absorption (mean gap over the tree's edges, NaN without). Beside them chance_mmcs,
    chance_uniqueness and chance_f1, exact for each row's own size and rates; chance of auroc is 1/2, of absorption 0.
    Means of auroc, shrinkage and absorption are over features (edges) that occurred in these rows. Memory: n * d_sae.
    """
    taken = [name for name in dictionaries if name in BASELINES]
    require(not taken, f"{taken}: these names are the baselines' ({', '.join(BASELINES)})")
    x, c = world.draw(n, generator)
    truth, bias = world.dictionary(), world.true_bias()
    true_l0 = max(1, round(float((c > 0).sum(1).double().mean())))
    n_features, d = truth.shape
    random = recovery.random_dictionaries(1, n_features, d, generator)[0]
    chance = TiedDictionary(random, bias, min(true_l0, n_features))
    elsewhere = c.roll(1, 0)  # rows are independent
    codes = {
        "oracle": (truth, c, x),
        "true directions": _code(TiedDictionary(truth, bias), x),
        "shuffled codes": (truth, elsewhere, elsewhere @ truth + bias),
        "random directions": _code(chance, x),
    }
    rows = [_row(name, *code, x, c, world) for name, code in codes.items()]
    return rows + [_row(name, *_code(d, x), x, c, world) for name, d in dictionaries.items()]


def _code(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W_dec, activations, reconstruction)."""
    acts = dictionary.encode(x)
    return dictionary.W_dec.detach(), acts, dictionary.decode(acts)


def _row(
    name: str, W_dec: Tensor, acts: Tensor, recon: Tensor, x: Tensor, c: Tensor, world: World
) -> dict[str, float | str]:
    truth, edges = world.dictionary(), world.edges()
    rebuilt, found = reconstruction(x, recon, acts), agreement.beside_truth(acts, c, W_dec, truth)
    scores = found.latents
    gaps = agreement.absorption(found.counts, edges, recovery.best_latent(W_dec, truth)).gap
    halves = data.generator(0, "auroc halves")  # the same for every dictionary
    values: dict[str, Any] = {
        "n": len(x),
        "d_sae": len(W_dec),
        "l0": rebuilt.l0,
        "explained_variance": rebuilt.explained_variance,
        "dead": rebuilt.dead,
        "mmcs": found.mmcs,
        "chance_mmcs": recovery.chance_mmcs(truth.shape[1], len(W_dec)),
        "mcc": recovery.mcc(W_dec, truth),
        "uniqueness": recovery.uniqueness(W_dec, truth),
        "chance_uniqueness": recovery.chance_uniqueness(len(W_dec), len(truth)),
        "f1": scores.f1.mean(),
        "chance_f1": scores.chance.mean(),
        "precision": scores.precision.mean(),
        "recall": scores.recall.mean(),
        "auroc": agreement.best_latent_auroc(acts, c, halves).auroc.nanmean(),
        "shrinkage": found.shrinkage.value.nanmean(),
        "absorption": gaps.nanmean(),
    }
    return {"name": name} | {key: float(value) for key, value in values.items()}
