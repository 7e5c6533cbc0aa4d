"""Sparse autoencoders as a measure: trained at each checkpoint from several seeds, scored, followed through a run.

1. `Dictionaries`: any site of any model. How well, how sparsely, and whether another seed finds the same.
2. `RecoveredFeatures`: also against the true features, of tasks that know them.
3. `DictionaryWaves`: also the Fourier frequency of every latent, of tasks that add in a group.

    measure = Dictionaries("post0", TopK(d_sae=128, k=16, lr=2e-3), SAETraining(steps=600, batch_size=1024))
    table = run.map(measure, "log:14")
    found = follow(torch.from_numpy(table.W_dec.values))      # interp/sae/through.py: from checkpoint to checkpoint

They cost what training costs, seconds per checkpoint and not milliseconds: give `run.map` a schedule such as "log:14".
The algebra is in interp/sae/ (through.py, metrics.py, recovery.py, agreement.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.data import generator
from toylab.errors import UserError, require
from toylab.interp.group_addition import neuron_frequencies
from toylab.interp.sae import recovery
from toylab.interp.sae.agreement import beside_truth
from toylab.interp.sae.dictionary import SAE
from toylab.interp.sae.metrics import reconstruction
from toylab.interp.sae.spec import SAESpec
from toylab.interp.sae.stream import Stream, rows_of
from toylab.interp.sae.through import chance_partners, directions, other_seeds, partners, train_alike
from toylab.interp.sae.training import SAETraining
from toylab.snapshot import Labelled, Snapshot

Numbers = dict[str, float | Labelled]


@dataclass(frozen=True)
class Dictionaries:
    """Dictionaries of one site, one per seed, on every example of the task (of a streaming task: held-out ones).

    fvu, l0, dead [sae]        share of variance left unexplained, mean latents on, share of latents never on
    density, W_dec [sae, latent (, d)]   share of rows on which a latent is on; its direction
    seed_cosine, seed_chance   mean cosine of one-to-one partners between dictionaries of different seeds (NaN for one
                               seed), and that of random directions spread over the same space (`chance_partners`)
    hindsight adds, with the dictionaries of the finished network (`snap.reference`):
    final_cosine, final_chance mean cosine of their latents with partners here, of OTHER seeds; and the same chance.
                               At the last checkpoint it is seed_cosine, and never much above it.

    site: as for `run_with_cache`, "post0", "hidden". spec: one of interp/sae's; its seed is replaced by `seeds`.
    Sources: Bricken et al. 2023 (agreement of seeds), Karvonen et al. 2025 (metrics). Variants in the wild: cosine with
    the nearest latent instead of one-to-one partners, the same seed at every checkpoint, chance of uniform directions;
    all of them give larger differences from chance.
    Domain: any site whose last axis is a space. Exact: at a checkpoint equal to the reference final_cosine is
    seed_cosine. Invariant under permuting latents; under rotating the site only up to where training ends.
    Null: on noise seed_cosine is not above seed_chance (it is below where the latents of each seed lean to a side of
    their own). On an UNTRAINED network it is: activations are sparse functions of the tokens before anything is
    learned, and seeds agree on those. Agreement says that there is something to find, not that it was learned.
    Cost: training, at each checkpoint.
    """

    site: str
    spec: object
    training: SAETraining
    seeds: tuple[int, ...] = (0, 1)
    hindsight: bool = False

    def __post_init__(self):
        require(isinstance(self.spec, SAESpec), f"spec={self.spec!r}: a dictionary of toylab.interp.sae is needed")
        require(len(set(self.seeds)) == len(self.seeds) > 0, f"seeds={list(self.seeds)}: different ones, at least one")

    def __call__(self, snap: Snapshot) -> Numbers:
        saes, x = self.trained(snap), rows_of(snap, self.site)
        W = directions(saes)
        parts = [reconstruction(x, sae(x), sae.encode(x)) for sae in saes]
        found: Numbers = {
            "fvu": self._by_sae([part.fvu for part in parts]),
            "l0": self._by_sae([part.l0 for part in parts]),
            "dead": self._by_sae([part.dead for part in parts]),
            "density": self._by_sae([part.density for part in parts], "latent"),
            "W_dec": self._by_sae([*W], "latent", "d"),
            **self._agreement("seed", W, W),
        }
        if self.hindsight:
            require(
                snap.reference is not None,
                f"{type(self).__name__} with hindsight looks back from the finished network, and this snapshot has no "
                "reference: use run.map(measure, reference=run.reference()), or hindsight=False during training",
            )
            found |= self._agreement("final", W, directions(self.trained(snap.reference)))  # type: ignore[arg-type]
        return found

    def trained(self, snap: Snapshot) -> tuple[SAE, ...]:
        """The dictionaries, one per seed; trained once per snapshot."""
        assert isinstance(self.spec, SAESpec)
        spec = self.spec
        return snap.shared(
            ("dictionaries", self.site, spec, self.training, self.seeds),
            lambda: train_alike(spec, self.seeds, Stream.of_snapshot(snap, self.site), self.training),
        )

    def _agreement(self, name: str, W: Tensor, V: Tensor) -> Numbers:
        if len(self.seeds) == 1:
            return {f"{name}_cosine": torch.nan, f"{name}_chance": torch.nan}
        chance = chance_partners(W, V, generator(0, "mixtures"))
        return {
            f"{name}_cosine": other_seeds(partners(W, V)).mean().item(),
            f"{name}_chance": other_seeds(chance[..., None]).mean().item(),
        }

    def _by_sae(self, values: list[Tensor], *axes: str) -> Labelled:
        return Labelled(torch.stack(values), ("sae", *axes), {"sae": list(self.seeds)})


@dataclass(frozen=True)
class RecoveredFeatures(Dictionaries):
    """Dictionaries, scored against features that are known at every checkpoint.

    mcc, mmcs [sae]            mean |cosine| of features and one-to-one latents; mean largest cosine of any latent
    chance_mcc, chance_mmcs    of dictionaries of uniform random directions (mmcs exactly, mcc by drawing 20)
    f1, chance_f1 [sae]        mean F1 of "the latent fires" as "its feature is on"; and with the rows permuted
    feature_cosine [sae, feature]   |cosine| of each feature with its latent, 0 where there are fewer latents
    feature_direction [feature, d]   the features' directions here: what one unit of each adds to the site

    latent: the task's numerical latent that holds the coefficients, [example, feature]; directions are its linear
    effects (recovery.feature_directions), exact where the site is affine in it, as in a toy model of superposition.
    Sources: Sharkey et al. 2022 (MMCS), O'Neill et al. 2024 (MCC). Variants in the wild: scores against the FINAL
    directions at every step, which mix what the dictionary found with how far the model had come.
    Exact: a dictionary of the features has mcc = mmcs = 1. Null: on a model whose hidden layer is noise mcc is near
    chance_mcc. In few dimensions chance is high (5 features in 2: .94); read f1 there.
    An untrained toy model is NOT a null: x W with random W is a world whose dictionary is W, and can be recovered.
    """

    latent: str = "value"

    def __call__(self, snap: Snapshot) -> Numbers:
        found = super().__call__(snap)
        x, c = rows_of(snap, self.site), self._coefficients(snap)
        require(len(x) == len(c), f"{self.site} has {len(x)} rows and {self.latent} {len(c)}: one per example needed")
        features, W = recovery.feature_directions(x, c), directions(self.trained(snap))
        on = (c != 0).to(x)
        matched = recovery.match(W, features, absolute=True)
        cosine = torch.zeros(len(W), len(features)).to(W).scatter(1, matched.feature, matched.cosine)
        scores = [beside_truth(sae.encode(x), on, sae.W_dec, features) for sae in self.trained(snap)]
        d_sae, d = W.shape[1:]
        chance, _ = recovery.chance(lambda R: recovery.mcc(R, features), d_sae, d, generator(0, "chance"))
        return found | {
            "mcc": self._by_sae([*matched.cosine.mean(1)]),
            "mmcs": self._by_sae([s.mmcs for s in scores]),
            "chance_mcc": chance,
            "chance_mmcs": recovery.chance_mmcs(d, d_sae),
            "f1": self._by_sae([s.latents.f1.mean() for s in scores]),
            "chance_f1": self._by_sae([s.latents.chance.mean() for s in scores]),
            "feature_cosine": self._by_sae([*cosine], "feature"),
            "feature_direction": Labelled(features, ("feature", "d")),
        }

    def _coefficients(self, snap: Snapshot) -> Float[Tensor, "example feature"]:
        latents = snap.task.latents(snap.batch.inputs)
        latent = latents.get(self.latent)
        if latent is None or latent.classes or latent.values.ndim != 2:
            numerical = [name for name, one in latents.items() if not one.classes and one.values.ndim == 2]
            raise UserError(
                f"{type(snap.task).__name__} has no numerical latent {self.latent!r} with one row per example; "
                f"it has {', '.join(numerical) or 'none'}: recovery needs a task whose features are known"
            )
        return latent.values


@dataclass(frozen=True)
class DictionaryWaves(Dictionaries):
    """Dictionaries, and the Fourier frequency in which each latent turns over all pairs (a, b) of a group.

    latent_freq, latent_frac [sae, latent]   the frequency with the largest share of the variance of the latent's
                               activation over pairs, and that share (`neuron_frequencies`); 0 for a latent that is
                               never on
    one_frequency [sae]        share of the latents that are ever on whose latent_frac is `dominant` or more
    chance_frac [sae]          mean latent_frac of the same activations with the pairs permuted

    dominant: a wave clipped at 0 keeps .84 of its variance at one frequency, a narrow bump less, as it has harmonics.
    Source: Nanda et al. 2023, section 4.1, asked of latents instead of neurons. Domain: tasks with a group, sites with
    one row per example. Exact: a dictionary whose latents read single waves cos w(a + b) > 0 has one_frequency 1.
    Null (an untrained network, p = 113, 256 latents): one_frequency 0, latent_frac .06 on average, .12 at most (a
    latent that says "a is 17" has its variance at all frequencies alike), and the one that leads is as good as any.
    """

    dominant: float = 0.5

    def __call__(self, snap: Snapshot) -> Numbers:
        found = super().__call__(snap)
        rows, group = self._pairs(snap)
        x = rows_of(snap, self.site)
        require(len(x) == len(snap.batch), f"{self.site} has {len(x)} rows for {len(snap.batch)} pairs: one is needed")
        shuffled = torch.randperm(len(rows), generator=generator(0, "pairs"))
        waves, mixed = [], []
        for sae in self.trained(snap):
            acts = sae.encode(x)[rows]
            waves.append(neuron_frequencies(acts, group))
            mixed.append(neuron_frequencies(acts[shuffled], group).frac)
        alive = [wave.freq > 0 for wave in waves]
        return found | {
            "latent_freq": self._by_sae([wave.freq for wave in waves], "latent"),
            "latent_frac": self._by_sae([wave.frac for wave in waves], "latent"),
            "one_frequency": self._by_sae(
                [(w.frac[on] >= self.dominant).double().mean() for w, on in zip(waves, alive, strict=True)]
            ),
            "chance_frac": self._by_sae([m[on].mean() for m, on in zip(mixed, alive, strict=True)]),
        }

    def _pairs(self, snap: Snapshot) -> tuple[Tensor, tuple[int, ...]]:
        """The row of every pair of group elements, in the order of interp/group_addition.py, and the group."""
        task: Any = snap.task
        labels = task.as_group() if hasattr(task, "as_group") else None
        if labels is None:
            raise UserError(
                f"{type(self).__name__} is for tasks whose answer is the sum of two operands in an abelian group, and "
                f"{task!r} is none; Dictionaries takes any task"
            )
        return task.row_of(torch.cartesian_prod(labels.left, labels.right)), labels.group
