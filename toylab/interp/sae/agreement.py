"""Firing against the truth: do the latents fire when their features do, and as strongly?

1. `firing(acts, coefficients)` -> `Firing`: joint counts and sums over one batch; a + b is both batches. From it
   `latent_scores` (precision, recall, F1, accuracy), `shrinkage` and `absorption`; `beside_truth` is the usual set.
2. `latent_auroc`, `best_latent_auroc`: by exact ranks, so on one set of rows held in memory.
3. `sparse_probing`: how well k latents tell a label, beside its controls.

acts [*sae, n, d_sae] are a dictionary's activations, coefficients [n, n_features] the true ones, > 0 where a feature
is on. Which latent stands for which feature is decided by directions (recovery.py), or on other rows, never by the
numbers that are then scored.
Sources: Chanin et al. 2024 (arXiv 2409.14507, absorption), Chanin and Garriga-Alonso 2026 (F1 of latents), Karvonen et
al. 2025 (2503.09532, SAEBench: sparse probing). Read next: boards.py, leaderboard.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import require
from toylab.interp import probe_scores, probes, sparse_probes
from toylab.interp.sae.recovery import best_feature, best_latent, mmcs

# --- Counts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Firing:
    """Sums over n rows, in float64; f are activations, c true coefficients. a + b is the sums over both.

    latent, feature: rows where each is above 0.  both: rows where both are.
    acts, sizes: sums of f, and of c.  cross: sums of f c.  energy: sums of c^2.
    """

    n: int
    latent: Float[Tensor, "*sae d_sae"]
    feature: Float[Tensor, " n_features"]
    both: Float[Tensor, "*sae d_sae n_features"]
    acts: Float[Tensor, "*sae d_sae"]
    sizes: Float[Tensor, " n_features"]
    cross: Float[Tensor, "*sae d_sae n_features"]
    energy: Float[Tensor, " n_features"]

    def __add__(self, other: Firing) -> Firing:
        names = ("n", "latent", "feature", "both", "acts", "sizes", "cross", "energy")
        return Firing(**{name: getattr(self, name) + getattr(other, name) for name in names})


def firing(acts: Float[Tensor, "*sae n d_sae"], coefficients: Float[Tensor, "n n_features"]) -> Firing:
    """The sums for these rows. One matrix product of [d_sae, n] with [n, n_features] for each of both and cross."""
    require(
        bool(coefficients.isfinite().all()) and bool(acts.isfinite().all()),
        "the activations or coefficients hold NaN or infinity",
    )
    c = coefficients.to(acts)
    # float32 counts are exact up to 2^24 rows per call.
    fires, on = (acts > 0).to(acts), (c > 0).to(acts)
    return Firing(
        n=len(c),
        latent=fires.sum(-2).double(),
        feature=on.sum(0).double(),
        both=(fires.mT @ on).double(),
        acts=acts.sum(-2).double(),
        sizes=c.sum(0).double(),
        cross=(acts.mT @ c).double(),
        energy=c.pow(2).sum(0).double(),
    )


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)


def f1_table(counts: Firing) -> Float[Tensor, "*sae d_sae n_features"]:
    """F1 of "latent i fires" as a classifier of "feature j is on" = 2 both / (latent + feature); 0 where undefined."""
    return _ratio(2 * counts.both, counts.latent[..., None] + counts.feature)


@dataclass(frozen=True, eq=False)
class LatentScores:
    """Each latent as a classifier of the feature it stands for; 0 where undefined, so dead latents count 0.

    chance: F1 expected of the same latents and features with the rows permuted, exactly:
    2 P(latent) P(feature) / (P(latent) + P(feature)). What firing often gives by itself.
    """

    feature: Int[Tensor, "*sae d_sae"]
    precision: Float[Tensor, "*sae d_sae"]
    recall: Float[Tensor, "*sae d_sae"]
    f1: Float[Tensor, "*sae d_sae"]
    accuracy: Float[Tensor, "*sae d_sae"]
    chance: Float[Tensor, "*sae d_sae"]


def latent_scores(counts: Firing, feature: Int[Tensor, "*sae d_sae"]) -> LatentScores:
    """Scores of latent i against feature[i], usually best_feature(W_dec, features). Report the mean over latents.

    F1 stays below 1 even for a perfect dictionary whose encoder has a threshold: some true coefficients lie under it.
    """
    both = counts.both.gather(-1, feature[..., None]).squeeze(-1)
    fires, on = counts.latent, counts.feature[feature]
    return LatentScores(
        feature=feature,
        precision=_ratio(both, fires),
        recall=_ratio(both, on),
        f1=_ratio(2 * both, fires + on),
        accuracy=(counts.n - fires - on + 2 * both) / counts.n,
        chance=_ratio(2 * fires * on / counts.n, fires + on),
    )


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """Per feature: the share of the true coefficient that its latent writes, and that with the rows permuted."""

    value: Float[Tensor, "*sae n_features"]
    chance: Float[Tensor, "*sae n_features"]


def shrinkage(
    counts: Firing, W_dec: Float[Tensor, "*sae d_sae d"], features: Float[Tensor, "n_features d"]
) -> Shrinkage:
    """sum f (w . g) c / (|g|^2 sum c^2) for each feature g and its nearest latent w: 1 = all of it, 0 = silent.

    The slope, through the origin, of what that latent writes along g on the true coefficient; b_dec and other latents
    play no part. Known exactly: f = max(c - t, 0), c uniform in (0, 1): 1 - 3t/2 + t^3/2; the best L1 reconstruction
    with an orthonormal dictionary and loss |x - x^|^2 + lambda sum f has t = lambda/2. NaN for a feature never on.
    """
    latent = best_latent(W_dec, features)
    chosen = W_dec.gather(-2, latent[..., None].expand(*latent.shape, W_dec.shape[-1])).double()
    gain = (chosen * features).sum(-1) / features.double().pow(2).sum(-1)
    cross = counts.cross.gather(-2, latent[..., None, :]).squeeze(-2)
    independent = counts.acts.gather(-1, latent) * counts.sizes / counts.n
    energy = torch.where(counts.energy > 0, counts.energy, torch.nan)
    return Shrinkage(gain * cross / energy, gain * independent / energy)


@dataclass(frozen=True, eq=False)
class BesideTruth:
    """What is said of every dictionary whose world is known: counts, each latent's scores for the feature nearest to
    it, mean max cosine (signed), and the share of each feature's amplitude that is written."""

    counts: Firing
    latents: LatentScores
    mmcs: Float[Tensor, "*sae"]
    shrinkage: Shrinkage


def beside_truth(
    acts: Float[Tensor, "*sae n d_sae"],
    coefficients: Float[Tensor, "n n_features"],
    W_dec: Float[Tensor, "*sae d_sae d"],
    features: Float[Tensor, "n_features d"],
) -> BesideTruth:
    """The one scorer of leaderboards, sweeps and dictionaries through training.

    Domain and errors: as `firing`. Exact: the features with their own coefficients have mmcs 1, F1 1 and shrinkage 1.
    Null: LatentScores.chance and Shrinkage.chance are the same with the rows permuted, recovery.chance_mmcs is for
    random directions.
    """
    counts = firing(acts, coefficients)
    latents = latent_scores(counts, best_feature(W_dec, features))
    return BesideTruth(counts, latents, mmcs(W_dec, features), shrinkage(counts, W_dec, features))


@dataclass(frozen=True, eq=False)
class Absorption:
    """One number per edge (parent, child); NaN where a parent never fired with, or never without, that child.

    gap:    P(latent fires | parent, no child) - P(latent fires | parent and child).
    stderr: of two independent shares.  latent: the one that stands for the parent.
    n_child, n_alone: rows with the child, and with the parent but not that child.
    """

    gap: Float[Tensor, "*sae edge"]
    stderr: Float[Tensor, "*sae edge"]
    latent: Int[Tensor, "*sae edge"]
    n_child: Float[Tensor, " edge"]
    n_alone: Float[Tensor, " edge"]


def absorption(counts: Firing, edges: Int[Tensor, "edge two"], latent: Int[Tensor, "*sae n_features"]) -> Absorption:
    """Does a parent's latent fall silent just when a child takes over? 0 = never, 1 = always (fully absorbed).

    edges: (parent, child), the child on only where the parent is. latent: which stands for each feature, usually
    best_latent(W_dec, features). Chance: a latent that fires independently of the child has gap 0, up to stderr; so has
    a dead one. Why dictionaries absorb: with unit directions and sizes 1, parent and child together cost an L1 of 2 as
    two latents, of sqrt 2 as one along their sum; any pressure for sparsity prefers the second.
    """
    parent, child = edges.unbind(1)
    on_child, on_parent = counts.both[..., child], counts.both[..., parent]
    require(
        bool((on_child <= on_parent).all()) and bool((counts.feature[child] <= counts.feature[parent]).all()),
        "some children fire without their parents; edges are (parent, child) of a tree in which they never do",
    )
    chosen = latent[..., parent]
    with_child, with_parent = (part.gather(-2, chosen[..., None, :]).squeeze(-2) for part in (on_child, on_parent))
    n_child = counts.feature[child]
    n_alone = counts.feature[parent] - n_child
    covered, alone = with_child / n_child, (with_parent - with_child) / n_alone
    stderr = (covered * (1 - covered) / n_child + alone * (1 - alone) / n_alone).sqrt()
    return Absorption(alone - covered, stderr, chosen, n_child, n_alone)


# --- Ranks ------------------------------------------------------------------------------------------------------------


def latent_auroc(acts: Float[Tensor, "n d_sae"], on: Bool[Tensor, "n n_features"]) -> Float[Tensor, "d_sae n_features"]:
    """P(latent i is higher on a row with feature j than on one without) + half the ties; NaN where j is constant.

    = (sum of the ranks of the rows with j - n1 (n1 + 1)/2) / (n1 n0), ranks averaged over ties: exact, unchanged by any
    increasing map of the activations. 1/2 for a dead latent.
    """
    n = len(acts)
    with_j = on.double()
    n_on = with_j.sum(0)
    sums = []
    for some in acts.T.split(max(1, 2**24 // n)):  # blocks of latents: the ranks take 8 bytes each
        score = some.contiguous()
        ordered = score.sort(-1).values
        below, up_to = (torch.searchsorted(ordered, score, right=right) for right in (False, True))
        sums.append((below + up_to + 1).double() / 2 @ with_j)
    pairs = n_on * (n - n_on)
    return (torch.cat(sums) - n_on * (n_on + 1) / 2) / torch.where(pairs > 0, pairs, torch.nan)


@dataclass(frozen=True, eq=False)
class BestLatent:
    """The single latent that tells each feature best; -1 and NaN for features that are constant in one half.

    auroc, stderr: on rows that did not choose it.  chosen_on: on those that did, which is optimistic.
    """

    latent: Int[Tensor, " n_features"]
    auroc: Float[Tensor, " n_features"]
    stderr: Float[Tensor, " n_features"]
    chosen_on: Float[Tensor, " n_features"]
    n_on: Int[Tensor, " n_features"]


def best_latent_auroc(
    acts: Float[Tensor, "n d_sae"], coefficients: Float[Tensor, "n n_features"], generator: torch.Generator
) -> BestLatent:
    """Choose each feature's latent by AUROC on one random half of the rows, score it on the other.

    Chance: exactly 1/2 in expectation on the second half, while the maximum over latents on one set is above it: with
    1,000 latents and 10 rows per feature by 0.4. Standard errors as in probe_scores.auroc (DeLong).
    """
    n, n_features = coefficients.shape
    require(n >= 4, f"{n} rows arrived; at least 4, two per half")
    order, on = torch.randperm(n, generator=generator), coefficients > 0
    first, second = order[: n // 2], order[n // 2 :]
    shares = torch.stack([on[half].double().mean(0) for half in (first, second)])
    usable = ((shares > 0) & (shares < 1)).all(0)
    latent = torch.full((n_features,), -1)
    auroc, stderr, chosen_on = (torch.full((n_features,), torch.nan, dtype=torch.double) for _ in range(3))
    if bool(usable.any()):
        best = latent_auroc(acts[first], on[first][:, usable]).max(0)
        latent[usable], chosen_on[usable] = best.indices, best.values
        score = acts[second][:, best.indices]
        scored = probe_scores.auroc(torch.stack([-score, score], -1), on[second][:, usable].long())
        auroc[usable], stderr[usable] = scored.value, scored.stderr
    return BestLatent(latent, auroc, stderr, chosen_on, on[second].sum(0))


# --- Sparse probing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SparseProbing:
    """Held-out F1 of probes on k columns, [k, target], beside what it is to be compared with.

    ks: the k.  f1: on the best k.  random: on k random columns.  shuffled: on the best k for permuted labels.
    dense: [target], all columns.  constant: [target], the answer "always": 2r / (1 + r) at rate r.
    support: [target, max(ks)] the columns, best first.
    """

    ks: tuple[int, ...]
    f1: Float[Tensor, "k target"]
    random: Float[Tensor, "k target"]
    shuffled: Float[Tensor, "k target"]
    dense: Float[Tensor, " target"]
    constant: Float[Tensor, " target"]
    support: Int[Tensor, "target most"]

    def split_features(self, jump: float = 0.03) -> Int[Tensor, " target"]:
        """How many latents each label is split over: 1 + the consecutive k, from the second on, that add `jump` of F1.

        Chanin et al. 2024; needs ks = 1, 2, 3, ...
        """
        require(self.ks == tuple(range(1, len(self.ks) + 1)), f"ks={self.ks}: splitting is counted over 1, 2, 3, ...")
        return 1 + (self.f1.diff(dim=0) >= jump).long().cumprod(0).sum(0)


def sparse_probing(
    acts: Float[Tensor, "n d_sae"],
    labels: Bool[Tensor, "n target"],
    ks: tuple[int, ...],
    generator: torch.Generator,
    group: Int[Tensor, " n"] | None = None,
    select: str = "mean_difference",
    penalty: float = 1e-3,
    frac_train: float = 0.8,
) -> SparseProbing:
    """How well k latents tell each label: LDA probes on columns chosen on the training rows (sparse_probes.fit_sparse).

    The baselines that matter most are calls of the same function on other activations: the raw ones (neurons, whose k
    best are often as good) and those of a random dictionary. group: rows that must stay on one side (sequences).
    Known exactly: acts = labels gives F1 = 1 at k = 1; on permuted labels no probe beats `constant` but by chance.
    """
    require(len(labels) == len(acts), f"{len(labels)} rows of labels arrived with {len(acts)} rows of activations")
    group = torch.arange(len(acts)) if group is None else group
    train, test = probe_scores.split_by_group(group, frac_train, generator)
    y = labels.long()
    mixed = y[torch.randperm(len(y), generator=generator)]

    def sparse(target: Tensor, how: str) -> tuple[Tensor, probes.Probe]:
        fits = [sparse_probes.fit_sparse(acts[train], target[train], k, how, penalty, generator) for k in ks]
        return torch.stack([_f1(fit.predict(acts[test]), target[test]) for fit in fits]), fits[-1]

    f1, widest = sparse(y, select)
    assert widest.support is not None
    dense = probes.fit(acts[train], y[train], "lda", penalty)
    return SparseProbing(
        ks=ks,
        f1=f1,
        random=sparse(y, "random")[0],
        shuffled=sparse(mixed, select)[0],
        dense=_f1(dense.predict(acts[test]), y[test]),
        constant=_f1(torch.ones_like(y[test]), y[test]),
        support=widest.support,
    )


def _f1(predicted: Int[Tensor, "n target"], y: Int[Tensor, "n target"]) -> Float[Tensor, " target"]:
    hits = (predicted * y).sum(0).double()
    return _ratio(2 * hits, (predicted + y).sum(0).double())
