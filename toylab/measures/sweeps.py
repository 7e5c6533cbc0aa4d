"""Dictionaries trained on a model whose features are known, over penalties, kinds and widths, and scored against them.

The features are the rows of W of a toy superposition model, its hidden layer what the dictionaries see. Every setting
is trained from several seeds. Came from: interp/sae/ (training.py, recovery.py, agreement.py), superposition.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toylab.errors import UserError, require
from toylab.interp.sae import recovery
from toylab.interp.sae.agreement import beside_truth
from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.dictionary import SAE
from toylab.interp.sae.metrics import reconstruction
from toylab.interp.sae.spec import SAESpec
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Stream
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining, train_sae
from toylab.measures.superposition import matrix
from toylab.snapshot import Labelled, Snapshot

KINDS = ("BatchTopK", "TopK", "TopK without AuxK")


@dataclass(frozen=True)
class SparsitySweep:
    """Standard autoencoders over `l1` and over `d_sae`, and the TopK family at `k`, each from `seeds` seeds.

    For each sweep, named _by_l1 (d_sae = number of features), _by_size (l1 = `size_l1`) and _by_kind (KINDS):
    mmcs, f1            [setting, dictionary]  recovery of the features: mean max cosine (signed), mean F1 of latents
    kept                [setting, dictionary]  mean over features of the share of the true amplitude that is written
    explained_variance, l0, dead, length       on held-out inputs; length is the mean of |x^| / |x|
    stability           [setting]  mean matched cosine of the first two dictionaries (nan for one)
    and chance_mmcs, chance_mmcs_by_size [d_sae], true_l0. l1 is in units of the activations as they are (no scaling).

    Source: Sharkey, Braun, Millidge 2022, who sweep l1 and width. Domain: toy superposition models whose features are
    the inputs. Known exactly: f with a penalty l1 on a feature alone in its direction is the amplitude less l1 / 2.
    Null: on features that are nearly always on there is nothing to find, and mmcs stays near chance_mmcs.
    Cost: it trains (settings x seeds) dictionaries; about a minute on one core as configured.
    """

    l1: tuple[float, ...]
    d_sae: tuple[int, ...]
    size_l1: float
    k: int | float
    seeds: int
    steps: int
    batch_size: int
    lr: float

    def __post_init__(self):
        require(len(self.l1) > 0 and len(self.d_sae) > 0, "l1 and d_sae: at least one value each")
        require(self.seeds >= 1, f"seeds={self.seeds}: at least 1; what one seed finds may be chance")

    def __call__(self, snap: Snapshot) -> dict[str, float | Labelled]:
        features, x, coefficients = _world(snap, self)
        n, d = features.shape
        sweeps: dict[str, tuple[Sequence[Any], list[list[SAESpec]]]] = {
            "l1": (self.l1, [self._members(Standard, d_sae=n, l1=l1) for l1 in self.l1]),
            "size": (self.d_sae, [self._members(Standard, d_sae=m, l1=self.size_l1) for m in self.d_sae]),
            "kind": (
                KINDS,
                [
                    self._members(BatchTopK, d_sae=n, k=self.k),
                    self._members(TopK, d_sae=n, k=max(1, round(self.k))),
                    self._members(TopK, d_sae=n, k=max(1, round(self.k)), aux=0.0),
                ],
            ),
        }
        found: dict[str, float | Labelled] = {
            "true_l0": (coefficients > 0).double().sum(1).mean().item(),
            "chance_mmcs": recovery.chance_mmcs(d, n),
            "chance_mmcs_by_size": Labelled(
                [recovery.chance_mmcs(d, m) for m in self.d_sae], ("size",), {"size": list(self.d_sae)}
            ),
        }
        for name, (settings, members) in sweeps.items():
            saes = self._trained(snap, members, together=name != "kind")
            scores = [[_scores(sae, features, x, coefficients) for sae in group] for group in saes]
            coords = {name: list(settings)}
            for key in scores[0][0]:
                values = [[s[key] for s in group] for group in scores]
                found[f"{key}_by_{name}"] = Labelled(values, (name, "dictionary"), coords)
            found[f"stability_by_{name}"] = Labelled([_stability(group) for group in saes], (name,), coords)
        return found

    def _members(self, kind: type, **settings: Any) -> list[SAESpec]:
        return [kind(lr=self.lr, seed=seed, **settings) for seed in range(self.seeds)]

    def _trained(self, snap: Snapshot, members: list[list[SAESpec]], together: bool) -> list[list[SAE]]:
        """Every group of members, as one stack where they are of one program; each stack sees the same stream."""
        training = SAETraining(steps=self.steps, batch_size=self.batch_size, b_dec="zero")

        def train(specs: list[SAESpec]) -> list[SAE]:
            stream = Stream.of_snapshot(snap, "hidden", normalise="none")
            return list(train_sae(specs, stream, training, progress=False).saes)

        if not together:
            return [train(group) for group in members]
        flat = train([spec for group in members for spec in group])
        return [flat[i : i + self.seeds] for i in range(0, len(flat), self.seeds)]


def _world(snap: Snapshot, measure: object) -> tuple[Tensor, Tensor, Tensor]:
    """(unit features [feature, hidden], held-out activations [row, hidden], their true coefficients [row, feature])."""
    W = matrix(dict(snap.model.named_parameters()))
    inputs = snap.batch.inputs
    if inputs.ndim != 2 or inputs.shape[1] != len(W) or bool((inputs < 0).any()):
        raise UserError(
            f"{measure!r} reads a toy superposition model whose inputs are its features, 0 or more: "
            "task=sparse_features with target=identity"
        )
    norms = W.norm(dim=1)
    return W / norms[:, None], inputs.to(W) @ W, inputs.to(W) * norms


@torch.no_grad()
def _scores(sae: SAE, features: Tensor, x: Tensor, coefficients: Tensor) -> dict[str, float]:
    acts = sae.encode(x)
    rebuilt = reconstruction(x, sae.decode(acts), acts)
    found = beside_truth(acts, coefficients, sae.W_dec, features)
    return {
        "mmcs": float(found.mmcs),
        "f1": float(found.latents.f1.mean()),
        "explained_variance": float(rebuilt.explained_variance),
        "l0": float(rebuilt.l0),
        "dead": float(rebuilt.dead),
        "length": float(rebuilt.shrinkage),
        "kept": float(found.shrinkage.value.nanmean()),
    }


def _stability(saes: list[SAE]) -> float:
    if len(saes) < 2:
        return float("nan")
    return float(recovery.stability(torch.stack([sae.W_dec for sae in saes[:2]]))[0, 1])


# The sweep of `toylab paper sharkey2022` and of its figure.
SHARKEY = SparsitySweep(
    l1=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    d_sae=(32, 64, 128),
    size_l1=0.1,
    k=3,
    seeds=2,
    steps=6000,
    batch_size=512,
    lr=1e-3,
)
