"""Toy models whose features are known by direction: what a sparse dictionary should find in their hidden layer.

The inputs of the task are the coefficients c of its features, and the hidden layer is c D, with D the dictionary of the
task (tasks/dictionaries.py). The truth names each row of D.

    sparse features   independent, few on at a time, falling frequencies: every method should find them
    feature trees     parents with children that exclude each other and fire only with the parent: the sparsest code
                      has a latent for "parent and child" in the place of each child's (absorption), and whoever
                      rewards sparsity finds the parents only

Came from: known/__init__.py, tasks/dictionaries.py. Read next: exam.py, interp/sae/leaderboard.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.data import generator
from toylab.known import KnownModel
from toylab.models.superposition import Superposition, SuperpositionSpec
from toylab.tasks.dictionaries import FeatureTrees, PlantedDictionary, SharkeyFeatures


@dataclass(frozen=True, eq=False)
class DictionaryTruth:
    """features: name -> its unit direction in `hidden`; exact. active: how many are on at a time, on average."""

    features: dict[str, Float[Tensor, " d_hidden"]]
    active: float


def embedded(task: PlantedDictionary, about: str) -> KnownModel:
    """The linear toy model that embeds the task's features by its dictionary."""
    model = _linear(task)
    with torch.no_grad():
        model.W.copy_(task.dictionary())
    features = {f"x{i}": row for i, row in enumerate(task.dictionary())}
    truth = DictionaryTruth(features, float(task.firing_probabilities().sum()))
    return KnownModel(type(task).__name__, model, task, truth, about)


def other_directions(known: KnownModel, seed: int) -> KnownModel:
    """The control: the same task embedded by random directions, among which those of the truth are not."""
    model = _linear(known.task)
    model.initialise(generator(seed, "init"))
    return KnownModel(
        f"{known.name}, other directions", model, known.task, DictionaryTruth({}, 0.0), "not the features"
    )


def _linear(task) -> Superposition:
    return Superposition(SuperpositionSpec("linear", task.d_hidden), task.n_features)


_SPARSE = SharkeyFeatures(n_features=24, d_hidden=20, mean_active=1.5, decay=0.97, n_test=2048)
_TREES = FeatureTrees(
    parent=(-1, 0, 0, 0, -1, 4, 4, 4, -1, 8, 8, 8),
    probability=(0.15, 0.2, 0.2, 0.2) * 3,
    exclusive=True,
    size_std=0.05,
    d_hidden=12,
    directions="orthonormal",
    n_test=2048,
)
DICTIONARIES: dict[str, Callable[[], KnownModel]] = {
    "sparse features": partial(embedded, _SPARSE, "24 independent features in 20 dimensions; a dictionary finds each"),
    "feature trees": partial(
        embedded, _TREES, "three parents with three children each; a latent for both absorbs the child"
    ),
}
