"""Do single features of a network that plays Othello stand for single squares: its neurons, and dictionaries of it.

A property is "this square is mine" or "this square is theirs" as the side that moves next sees it. Features are any
activations [n, feature], negative ones cut to 0. `square_scores` is what every kind of feature is scored by: coverage
(the best single feature's F1, on held-out openings) and reconstruction (boards of held-out openings put together from
features that were almost never wrong on others). The labels themselves have 1 and 1.

Source: Karvonen et al. 2024 (arXiv 2408.00113). Came from: measures/board.py and interp/sae/boards.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.data import generator
from toylab.errors import one_of, require
from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.boards import board_counts, coverage, detectors, reconstruct_boards
from toylab.interp.sae.dictionary import SAE
from toylab.interp.sae.gated import Gated
from toylab.interp.sae.metrics import loss_recovered
from toylab.interp.sae.p_anneal import PAnneal
from toylab.interp.sae.spec import SAESpec
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Origin, Stream, checkpoint_hash
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining, train_sae
from toylab.measures.board import Positions, control_inputs, othello, positions, untrained
from toylab.snapshot import Labelled, Snapshot
from toylab.taps import act_name
from toylab.tasks.othello import Othello

ROWS = 2048  # counted at once, so that memory does not grow with the number of games
FEATURES = ("dictionary", "untrained", "neurons", "moves")
Results = Mapping[str, float | Tensor | Labelled]


def square_scores(
    features: Float[Tensor, "n feature"], properties: Bool[Tensor, "n property"], test: Bool[Tensor, " n"]
) -> tuple[float, float, float]:
    """(coverage of the test rows, its chance, reconstruction of the test rows with detectors of the others).

    Coverage takes the best threshold of each property, as the paper defines it (its code takes a common one). Chance is
    a feature that always fires. Properties that never hold in the test rows do not count. Reconstruction's chance is 0.
    """
    features, maxima = features.clamp_min(0), features.amax(0).clamp_min(0)
    properties = properties[:, properties[test].any(0)]

    def parts(rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield from ((features[part], properties[part], maxima) for part in rows.nonzero().squeeze(1).split(ROWS))

    covered = coverage(_total(board_counts(*part) for part in parts(test)), "per_property")
    found = detectors(_total(board_counts(*part) for part in parts(~test)))
    rebuilt = _total(reconstruct_boards(*part, found) for part in parts(test))
    return covered.value, float(covered.chance.mean()), rebuilt.value


def _total(parts: Iterator[Any]) -> Any:
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def board_properties(data: Positions) -> Bool[Tensor, "n property"]:
    """[n, 2 * square]: each square is mine; each square is theirs."""
    board = data.labels["board"]
    return torch.cat([board == 1, board == 2], 1)


def activations(model: Any, data: Positions, site: str, layer: int) -> Float[Tensor, "n d"]:
    """One site at these rows."""
    with torch.no_grad():
        _, cache = model.run_with_cache(data.inputs, act_name(site, layer))
    return cache[site, layer][data.row]


@dataclass(frozen=True)
class BoardFeatures:
    """coverage, reconstruction of squares by the activations of one site (post: MLP neurons), and chance (of coverage).

    Known exactly: 1 and 1 where the activations are the board itself; coverage at most chance in expectation, and
    reconstruction 0, for features that have nothing to do with it.
    """

    layer: int
    site: str = "post"
    n_games: int = 200
    seed: int = 0

    def __call__(self, snap: Snapshot) -> Results:
        data = positions(othello(snap), self.n_games, self.seed)
        scores = square_scores(activations(snap.model, data, self.site, self.layer), board_properties(data), data.test)
        return dict(zip(("coverage", "chance", "reconstruction"), scores, strict=True))


@dataclass(frozen=True)
class BoardDictionary:
    """A BatchTopK dictionary trained on one site of this checkpoint: do its latents stand for squares?

    coverage, reconstruction [features], of
      dictionary  its latents
      untrained   those of a dictionary trained alike on a network of the same shape before training
      neurons     the MLP neurons of the same block: a dictionary that does not beat them has shown nothing
      moves       the moves themselves: which squares the side to move has played, and which the other side
    chance (of coverage; of reconstruction it is 0), and on held-out openings fvu (share of the variance that the
    dictionary leaves), l0 (latents on at once) and alive (share of latents that are ever on).

    It is trained on the positions of `n_games` games with openings that were trained on, the same at every checkpoint.
    labels="shuffled" gives every position the board of another: the null, at chance and 0. `fit` is the dictionary
    itself, ready to be saved. Cost: 8 s on one core for 512 latents of 128 dimensions.
    """

    layer: int
    site: str = "resid_post"
    d_sae: int = 512
    k: int = 16
    lr: float = 1e-3
    steps: int = 1000
    batch_size: int = 1024
    n_games: int = 1000
    seed: int = 0
    labels: str = "true"

    def __post_init__(self):
        one_of("labels", self.labels, ("true", "shuffled"))
        require(self.k <= self.d_sae, f"k={self.k}: at most d_sae={self.d_sae} latents can be on")

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        sae, x = self.fit(snap), activations(snap.model, data, self.site, self.layer)
        latents, properties = sae.encode(x), self.properties(data)
        kinds = {
            "dictionary": square_scores(latents, properties, data.test),
            "untrained": _untrained(self, task, snap.model.spec),
            "neurons": square_scores(activations(snap.model, data, "post", self.layer), properties, data.test),
            "moves": square_scores(played_by_sides(task, data), properties, data.test),
        }
        covered, chance, rebuilt = zip(*(kinds[name] for name in FEATURES), strict=True)
        x, on = x[data.test], latents[data.test] > 0
        dims, coords = ("features",), {"features": list(FEATURES)}
        return {
            "coverage": Labelled(covered, dims, coords),
            "reconstruction": Labelled(rebuilt, dims, coords),
            "chance": chance[0],
            "fvu": ((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()).item(),
            "l0": on.double().sum(1).mean().item(),
            "alive": on.any(0).double().mean().item(),
        }

    def boards(self, snap: Snapshot, count: int) -> dict[str, Tensor]:
        """The `count` latents that tell one square best, and what they stand for: on held-out openings,

        lean [latent, square]: P(mine) - P(theirs) where the latent is on, minus the same over all positions;
        square [latent], theirs [latent]: the property that the latent tells best; f1 [latent], with which F1;
        rate [latent]: share of positions at which it is on.
        """
        data = positions(othello(snap), self.n_games, self.seed)
        latents = self.fit(snap).encode(activations(snap.model, data, self.site, self.layer)[data.test])
        properties, n = self.properties(data)[data.test], snap.task.n**2
        counts = board_counts(latents, properties, latents.amax(0))
        total = counts.fires[..., None] + counts.holds
        f1, told = torch.where(total > 0, 2 * counts.both / total.clamp_min(1), 0).amax(0).max(1)
        best = f1.topk(count).indices
        on, holds = (latents[:, best] > 0).double(), properties.double()
        where_on = on.T @ holds / on.sum(0)[:, None] - holds.mean(0)
        return {
            "lean": where_on[:, :n] - where_on[:, n:],
            "square": told[best] % n,
            "theirs": told[best] // n,
            "f1": f1[best],
            "rate": on.mean(0),
        }

    def properties(self, data: Positions) -> Bool[Tensor, "n property"]:
        true = board_properties(data)
        if self.labels == "true":
            return true
        return true[torch.randperm(len(true), generator=generator(self.seed, "shuffle"))]

    def fit(self, snap: Snapshot) -> SAE:
        """The dictionary, which knows the checkpoint and the site that it belongs to."""
        data = positions(othello(snap), self.n_games, self.seed)
        origin = Origin((act_name(self.site, self.layer),), (checkpoint_hash(snap),))
        return self.train(activations(snap.model, data, self.site, self.layer)[~data.test], origin)

    def train(self, x: Float[Tensor, "n d"], origin: Origin) -> SAE:
        spec = BatchTopK(d_sae=self.d_sae, lr=self.lr, k=self.k, seed=self.seed)
        training = SAETraining(steps=self.steps, batch_size=self.batch_size)
        return train_sae([spec], Stream.of_tensor(x, origin=origin, seed=self.seed), training).saes[0]


# Kinds of dictionary, and the setting of each that is swept: how many latents are on, or how much each costs.
SWEPT: dict[str, tuple[type[SAESpec], str, tuple[float, ...]]] = {
    "standard": (Standard, "l1", (0.5, 1.0, 2.0, 4.0, 8.0)),
    "p-anneal": (PAnneal, "l1", (0.5, 1.0, 2.0, 4.0, 8.0)),
    "gated": (Gated, "l1", (0.5, 1.0, 2.0, 4.0, 8.0)),
    "topk": (TopK, "k", (4, 8, 16, 32, 64)),
    "batchtopk": (BatchTopK, "k", (4, 8, 16, 32, 64)),
}


@dataclass(frozen=True)
class BoardSweep:
    """Dictionaries of several kinds, from dense to sparse, on one site: what sparsity costs and what it buys.

    By [kind, setting], on held-out openings: l0, latents on at once; recovered, the share of the network's loss that
    comes back when the dictionary stands in for the site, (H_ablated - H_dictionary) / (H_ablated - H_intact); fvu;
    coverage and reconstruction of squares; alive, share of latents ever on. strength [kind, setting]: what was set.
    ablation: "zero" as in the paper, or "mean", which leaves less to recover and so is the harder one.

    labels="shuffled" as in BoardDictionary, which has the controls (neurons, moves, an untrained network). Known
    exactly: a dictionary that is the identity recovers 1. Karvonen et al. 2024, Fig. 3. Cost: 33 s on one
    core for one kind (BatchTopK, 128 dimensions) with batches of 1,024 and 1,000 games; the sizes here are smaller.
    """

    layer: int
    site: str = "resid_post"
    kinds: tuple[str, ...] = ("standard", "gated", "batchtopk")
    d_sae: int = 512
    lr: float = 1e-3
    steps: int = 1000
    batch_size: int = 512
    n_games: int = 600
    ablation: str = "mean"
    seed: int = 0
    labels: str = "true"

    def __post_init__(self):
        for kind in self.kinds:
            one_of("kind", kind, SWEPT)
        one_of("labels", self.labels, ("true", "shuffled"))
        one_of("ablation", self.ablation, ("zero", "mean"))

    def __call__(self, snap: Snapshot) -> Results:
        task = othello(snap)
        data = positions(task, self.n_games, self.seed)
        x = activations(snap.model, data, self.site, self.layer)
        plain = BoardDictionary(self.layer, self.site, n_games=self.n_games, seed=self.seed, labels=self.labels)
        properties = plain.properties(data)
        unseen = data.inputs[task.unseen(data.inputs)] if task.held_out else data.inputs
        site, mean = act_name(self.site, self.layer), x[~data.test].mean(0) if self.ablation == "mean" else None

        def scores(sae: SAE) -> tuple[float, ...]:
            latents, here = sae.encode(x), x[data.test]
            on = latents[data.test] > 0
            covered, _, rebuilt = square_scores(latents, properties, data.test)
            lost = loss_recovered(snap.model, unseen, next_move_losses(unseen), site, sae, self.ablation, mean)
            fvu = (here - sae(here)).square().sum() / (here - here.mean(0)).square().sum()
            return (
                *(float(on.double().sum(1).mean()), lost.value, float(fvu)),
                *(covered, rebuilt, float(on.any(0).double().mean())),
            )

        table = torch.tensor([[scores(sae) for sae in self.train(x[~data.test], kind)] for kind in self.kinds])
        dims, coords = ("kind", "setting"), {"kind": list(self.kinds)}
        names = ("l0", "recovered", "fvu", "coverage", "reconstruction", "alive")
        strength = torch.tensor([SWEPT[kind][2] for kind in self.kinds])
        return {name: Labelled(table[..., i], dims, coords) for i, name in enumerate(names)} | {
            "strength": Labelled(strength, dims, coords)
        }

    def train(self, x: Float[Tensor, "n d"], kind: str) -> tuple[SAE, ...]:
        """One dictionary of this kind per setting, as one stack."""
        made, name, settings = SWEPT[kind]
        common = {"d_sae": self.d_sae, "lr": self.lr, "seed": self.seed}
        specs = [made(**(common | {name: setting})) for setting in settings]  # type: ignore[arg-type]
        training = SAETraining(steps=self.steps, batch_size=self.batch_size)
        return train_sae(specs, Stream.of_tensor(x, seed=self.seed), training).saes


def next_move_losses(inputs: Int[Tensor, "game pos"]) -> Callable[[Tensor], Tensor]:
    """Outputs for these games -> cross-entropy of every move that follows one, in nats."""
    there = inputs[:, 1:] > 0

    def losses(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, :-1][there], inputs[:, 1:][there], reduction="none")

    return losses


@lru_cache(maxsize=32)
def _untrained(measure: BoardDictionary, task: Othello, spec: Any) -> tuple[float, float, float]:
    """Scores of a dictionary trained alike on a freshly initialised network."""
    data = positions(task, measure.n_games, measure.seed)
    model = untrained(task, spec, measure.seed)
    x = activations(model, data, measure.site, measure.layer)
    latents = measure.train(x[~data.test], Origin()).encode(x)
    return square_scores(latents, measure.properties(data), data.test)


def played_by_sides(task: Othello, data: Positions) -> Float[Tensor, "n feature"]:
    """[n, 2 * (square outside the centre)]: 1 where the side to move has played; 1 where its opponent has."""
    signed = control_inputs(task, data, "signed_bag")[:, : task.d_vocab - 1]
    return torch.cat([signed.clamp_min(0), (-signed).clamp_min(0)], 1)
