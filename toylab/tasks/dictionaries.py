"""Sparse features with a known dictionary D: coefficients c, and the activations x = c D + b that a dictionary sees.

A task's inputs are the coefficients [batch, n_features], as in superposition.py, so a toy model can be trained on
them. `activations` embeds them in d_hidden dimensions with rows the experimenter chose: whatever a sparse autoencoder
finds there can be compared with `dictionary()` row by row, and its latents with the coefficients.

    SharkeyFeatures   falling frequencies, uniform sizes, correlated or not           Sharkey et al. 2022
    FeatureTrees      a child fires only with its parent; siblings may exclude each other (absorption, hedging)
    SynthSAEBench     all of that at once, and a bias                                 Chanin and Garriga-Alonso 2026

Every law here is exact: `firing_probabilities` is a formula, not an average of samples (one case says otherwise).
Came from: superposition.py. Read next: interp/sae/leaderboard.py (dictionaries compared on these tasks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import one_of, require

DIRECTIONS = ("random", "tight", "orthonormal")


@dataclass(frozen=True, kw_only=True)
class PlantedDictionary:
    """What the three tasks share. Subclasses give n_features, `coefficients`, `sizes` and `firing_probabilities`.

    d_hidden:   dimensions of the activations.
    directions: "random" unit Gaussian rows; "tight" = the unit rows nearest to those whose mean squared cosine is as
                low as n_features > d_hidden allows; "orthonormal" (n_features <= d_hidden).
    bias:       norm of b, in a random direction.
    dictionary_seed: which dictionary, bias and correlations. It belongs to the world and not to a run: several runs
                that learn one dictionary differ in their own seeds only.
    n_test:     rows of the fixed held-out draw; training data are streamed.
    """

    d_hidden: int
    directions: str = "random"
    bias: float = 0.0
    dictionary_seed: int = 0
    n_test: int = 4096

    n_features: ClassVar[int]  # a field or a property of each task

    def __post_init__(self):
        one_of("directions", self.directions, DIRECTIONS)
        n, d = self.n_features, self.d_hidden
        require(d >= 1, f"d_hidden={d}: at least 1")
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")
        require(self.bias >= 0, f"bias={self.bias} is the norm of the bias: 0 or more")
        require(
            self.directions != "orthonormal" or n <= d,
            f"{n} features do not fit orthonormally into d_hidden={d}; try directions=tight, or d_hidden={n}",
        )
        require(
            self.directions != "tight" or n > d,
            f"{n} features in d_hidden={d} need no tight frame; try directions=orthonormal",
        )

    # --- what subclasses give -------------------------------------------------------------------------------------

    def coefficients(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        """n fresh rows; exactly 0 where a feature is off, above 0 where it is on."""
        raise NotImplementedError

    def sizes(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        """Coefficients every feature would have if it were on."""
        raise NotImplementedError

    def firing_probabilities(self) -> Float[Tensor, " n_features"]:
        """P(feature is on), exactly; the sum is the true L0."""
        raise NotImplementedError

    def parents(self) -> Int[Tensor, " n_features"]:
        """The feature without which this one never fires; -1 for none. A parent comes before its children."""
        return torch.full((self.n_features,), -1)

    # --- the dictionary -------------------------------------------------------------------------------------------

    def dictionary(self) -> Float[Tensor, "n_features d_hidden"]:
        """D: the unit direction of each feature."""
        return _embedding(self)[0].clone()

    def activations(self, coefficients: Float[Tensor, "batch n_features"]) -> Float[Tensor, "batch d_hidden"]:
        """c D + b."""
        rows, bias = _embedding(self)
        return coefficients @ rows.to(coefficients) + bias.to(coefficients)

    def true_bias(self) -> Float[Tensor, " d_hidden"]:
        """b."""
        return _embedding(self)[1].clone()

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n d_hidden"], Float[Tensor, "n n_features"]]:
        """(activations, coefficients) of n fresh rows: what a dictionary is trained on, and what it should say."""
        coefficients = self.coefficients(n, generator)
        return self.activations(coefficients), coefficients

    def edges(self) -> Int[Tensor, "edge two"]:
        """(parent, child) of every feature that has a parent."""
        parents = self.parents()
        children = (parents >= 0).nonzero().squeeze(1)
        return torch.stack([parents[children], children], 1)

    # --- the Task protocol ----------------------------------------------------------------------------------------

    def _batch(self, inputs: Tensor) -> Batch:
        return Batch(inputs, inputs, example=self.render(inputs[:1])[0] if len(inputs) else "")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh rows of coefficients, which are also the targets."""
        return self._batch(self.coefficients(n, generator))

    def split(self, seed: int) -> Split:
        """n_test held-out rows; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    def latents(self, inputs: Float[Tensor, "batch n_features"]) -> dict[str, Latent]:
        """Which features are on, and the coefficient of each (0 when off)."""
        return {"on": Latent((inputs != 0).long(), ("off", "on")), "value": Latent(inputs)}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One feature per row, drawn uniformly, switched; the rest held as far as the trees allow.

        Off takes the feature's descendants with it. On brings its ancestors, with fresh sizes, and ends whatever fired
        on branches that exclude one of them.
        """
        one_of("latent", latent, ("on",))
        c, n = batch.inputs, len(batch)
        rows, chosen = torch.arange(n), torch.randint(self.n_features, (n,), generator=generator)
        fresh = self.sizes(n, generator).to(c)
        was_on = (c[rows, chosen] != 0)[:, None]
        path = self._path(chosen)
        ended = torch.where(was_on, F.one_hot(chosen, self.n_features).bool(), self._rivals(path))
        parents = self.parents()
        for level in levels(parents)[1:]:
            ended[:, level] |= ended[:, parents[level]]
        begun = path & ~was_on & (c == 0)
        return self._batch(torch.where(ended, 0, torch.where(begun, fresh, c)))

    def _path(self, chosen: Int[Tensor, " batch"]) -> Bool[Tensor, "batch n_features"]:
        """True at the chosen feature and its ancestors."""
        parents = F.pad(self.parents(), (0, 1), value=-1)  # the last place is the parent of roots: nobody
        path = torch.zeros(len(chosen), self.n_features + 1, dtype=torch.bool)
        at = chosen
        while bool((at >= 0).any()):
            path[torch.arange(len(at)), at] = True
            at = parents[at]
        return path[:, :-1]

    def _rivals(self, path: Bool[Tensor, "batch n_features"]) -> Bool[Tensor, "batch n_features"]:
        """Features that cannot fire together with these."""
        return torch.zeros_like(path)

    def render(self, inputs: Float[Tensor, "batch n_features"]) -> list[str]:
        """ "x2=0.31 x4=0.77" (the features that are on)"""
        rows = [[(i, x) for i, x in enumerate(row) if x] for row in inputs.tolist()]
        return [" ".join(f"x{i}={x:.2f}" for i, x in row) or "all off" for row in rows]


@lru_cache(maxsize=8)
def _embedding(task: PlantedDictionary) -> tuple[Tensor, Tensor]:
    """(D, b) of this task. Kept, because every batch needs them; nobody writes into them."""
    n, d = task.n_features, task.d_hidden
    g = generator(task.dictionary_seed, "dictionary")
    rows = F.normalize(torch.randn(n, d, generator=g), dim=1)
    if task.directions == "orthonormal":
        rows = torch.linalg.qr(rows.double().T)[0].T.float().contiguous()
    elif task.directions == "tight":
        rows = tight_frame(rows)
    bias = F.normalize(torch.randn(d, generator=generator(task.dictionary_seed, "bias")), dim=0)
    return rows, task.bias * bias


def tight_frame(rows: Float[Tensor, "n d"], steps: int = 100) -> Float[Tensor, "n d"]:
    """Unit rows V with V^T V = (n/d) I, near these: the sum of squared cosines is then n^2/d, the least there is.

    Alternates the nearest matrix with equal singular values and the nearest with unit rows (Tropp et al. 2005; the
    bound is Benedetto and Fickus 2003).
    """
    v = rows.double()
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(v.T @ v)
        v = F.normalize(v @ (vectors * values.rsqrt()) @ vectors.T, dim=1)
    return v.to(rows)


def levels(parents: Int[Tensor, " n_features"]) -> list[Int[Tensor, " feature"]]:
    """The features at depth 0 (roots), 1, 2, ..."""
    depth, above = torch.zeros_like(parents), parents
    while bool((above >= 0).any()):
        depth += above >= 0
        above = torch.where(above >= 0, parents[above], -1)
    return [(depth == level).nonzero().squeeze(1) for level in range(int(depth.max()) + 1)]


# --- Firing together --------------------------------------------------------------------------------------------------


def correlation_factor(n_features: int, rank: int, scale: float, seed: int) -> Float[Tensor, "n_features rank"]:
    """L with entries N(0, scale^2): the Gaussian behind the firing has correlations L L^T off the diagonal.

    Rows longer than sqrt(0.99) are shortened to it, so that something of each feature's own is always left.
    """
    loading = scale * torch.randn(n_features, rank, generator=generator(seed, "correlation"), dtype=torch.double)
    return loading * (0.99**0.5 / loading.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)


def fires(
    probabilities: Float[Tensor, " n_features"],
    loading: Float[Tensor, "n_features rank"],
    n: int,
    generator: torch.Generator,
) -> Bool[Tensor, "n n_features"]:
    """A Gaussian copula: on where z > Phi^-1(1 - p), z = e L^T + h sqrt(1 - |L|^2), with e and h drawn for EVERY row.

    P(on_i) = p_i exactly, and P(on_i and on_j) is the bivariate normal's with correlation L_i . L_j. (The generator
    that Sharkey et al. published draws one Gaussian per batch: within a batch its features are independent.)
    """
    if not loading.shape[1]:
        return torch.rand(n, len(probabilities), generator=generator) < probabilities.float()
    shared = torch.randn(n, loading.shape[1], generator=generator) @ loading.T.float()
    own = torch.randn(n, len(probabilities), generator=generator)
    return shared + own * _own_share(loading).float() > -torch.special.ndtri(probabilities).float()


def _own_share(loading: Tensor) -> Tensor:
    return (1 - loading.pow(2).sum(1)).sqrt()


# --- The three tasks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SharkeyFeatures(PlantedDictionary):
    """P(feature i is on) proportional to decay^i, mean_active on at a time; sizes uniform in (0, 1).

    correlation_rank, correlation_scale: of `correlation_factor`; rank 0 = independent.
    Source: Sharkey, Braun and Millidge 2022: n_features 512, d_hidden 256, decay 0.99, mean_active 5. Their independent
    mode forgets to rescale the probabilities (0.97 features on at a time); here they are rescaled in both modes.
    """

    n_features: int
    mean_active: float
    decay: float
    correlation_rank: int = 0
    correlation_scale: float = 0.0

    def __post_init__(self):
        require(self.n_features >= 1, f"n_features={self.n_features}: at least 1")
        require(0 < self.decay <= 1, f"decay={self.decay} is outside (0, 1]; the paper's is 0.99")
        require(self.mean_active > 0, f"mean_active={self.mean_active}: above 0; the paper's is 5")
        _check_correlation(self.correlation_rank, self.correlation_scale)
        super().__post_init__()
        most = float(self.firing_probabilities().max())
        require(
            most < 1,
            f"mean_active={self.mean_active} would make the first feature fire with probability {most:.2f}; try fewer, "
            f"or a decay nearer to 1",
        )

    def firing_probabilities(self) -> Float[Tensor, " n_features"]:
        """mean_active decay^i / sum of decay^j, correlated or not."""
        p = self.decay ** torch.arange(self.n_features, dtype=torch.double)
        return self.mean_active * p / p.sum()

    def loading(self) -> Float[Tensor, "n_features rank"]:
        """The L of `fires`."""
        return correlation_factor(self.n_features, self.correlation_rank, self.correlation_scale, self.dictionary_seed)

    def sizes(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        """Uniform in (0, 1), never exactly 0, so that "on" can be read off the coefficient."""
        return torch.rand(n, self.n_features, generator=generator).clamp_min(2**-24)

    def coefficients(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        on = fires(self.firing_probabilities(), self.loading(), n, generator)
        return on * self.sizes(n, generator)


@dataclass(frozen=True, kw_only=True)
class FeatureTrees(PlantedDictionary):
    """Features that fire only with their parent: the smallest worlds in which dictionaries absorb and hedge.

    parent:      the parent's number for each feature, -1 for roots; a parent comes before its children.
    probability: of firing given that the parent fires (roots: of firing).
    exclusive:   siblings never fire together; their probabilities add up to at most 1. Roots are always independent.
    size, size_std: sizes are |N(size, size_std^2)|.

    Hedging (Chanin et al. 2025): parent=(-1, 0), probability=(.25, .2), d_hidden=50, orthonormal; one latent.
    Absorption (Chanin et al. 2024): parent=(-1, 0, -1, -1, -1), one hierarchy among five features.
    Nabeshima's tree: parents at .15, each with three exclusive children at .2, orthonormal, size_std=.05.
    """

    parent: tuple[int, ...]
    probability: tuple[float, ...]
    exclusive: bool = False
    size: float = 1.0
    size_std: float = 0.0

    def __post_init__(self):
        n = len(self.parent)
        require(n >= 1, "parent=(): at least one feature")
        require(
            all(-1 <= p < i for i, p in enumerate(self.parent)),
            f"parent={self.parent}: -1 for a root, else the number of an earlier feature",
        )
        require(
            len(self.probability) == n and all(0 < p <= 1 for p in self.probability),
            f"probability={self.probability}: {n} numbers in (0, 1], one per feature",
        )
        require(
            self.size > 0 and self.size_std >= 0, f"size={self.size} is above 0, size_std={self.size_std} 0 or more"
        )
        if self.exclusive:
            low, p = self._intervals(), self._conditional()
            require(
                bool((low + p <= 1 + 1e-9).all()),
                f"probability={self.probability}: those of exclusive siblings add up to more than 1",
            )
        super().__post_init__()

    @property
    def n_features(self) -> int:  # type: ignore[override]
        return len(self.parent)

    def parents(self) -> Int[Tensor, " n_features"]:
        return torch.tensor(self.parent)

    def _conditional(self) -> Tensor:
        return torch.tensor(self.probability, dtype=torch.double)

    def _intervals(self) -> Float[Tensor, " n_features"]:
        """Where each feature's share of a uniform number begins: after those of its earlier siblings, if exclusive."""
        parents, p = self.parents(), self._conditional()
        siblings = (parents[:, None] == parents) & (parents >= 0)
        return siblings.double().tril(-1) @ p if self.exclusive else torch.zeros_like(p)

    def firing_probabilities(self) -> Float[Tensor, " n_features"]:
        """The product of the conditional probabilities from the root down."""
        p, parents = self._conditional(), self.parents()
        for level in levels(parents)[1:]:
            p[level] *= p[parents[level]]
        return p

    def sizes(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        if not self.size_std:
            return torch.full((n, self.n_features), self.size)
        size = self.size + self.size_std * torch.randn(n, self.n_features, generator=generator)
        return size.abs().clamp_min(2**-24)

    def coefficients(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        parents, low = self.parents(), self._intervals()
        # float64: in float32 the end of one sibling's interval and the start of the next can round apart.
        u = torch.rand(n, self.n_features, generator=generator, dtype=torch.double)
        if self.exclusive:
            # One number per parent, shared by its children, whose intervals do not overlap.
            shared = torch.rand(n, self.n_features, generator=generator, dtype=torch.double)
            u = torch.where(parents >= 0, shared[:, parents], u)
        on = (u >= low) & (u < low + self._conditional())
        for level in levels(parents)[1:]:
            on[:, level] &= on[:, parents[level]]
        return on * self.sizes(n, generator)

    def _rivals(self, path: Bool[Tensor, "batch n_features"]) -> Bool[Tensor, "batch n_features"]:
        parents = self.parents()
        siblings = (parents[:, None] == parents) & (parents >= 0)
        return (path.float() @ siblings.float() > 0) & ~path if self.exclusive else torch.zeros_like(path)


@dataclass(frozen=True, kw_only=True)
class SynthSAEBench(PlantedDictionary):
    """Zipfian frequencies, trees of exclusive children, low-rank correlations, sizes that differ: SynthSAEBench's law.

    1. Nominal p_i = p_min + (p_max - p_min) (i^-a - n^-a) / (1 - n^-a), i = 1..n, a = zipf_exponent.
    2. The first features stand in n_roots trees, breadth first (all roots, then all their children, ...): each node has
       `branching` children down to `depth`. The others are roots of their own.
    3. A feature fires by the copula of `fires`, a child with p_i / p_parent (1 + sum of its siblings' p / p_parent), at
       most 1, which makes up for what its parent and its siblings will take away again. (Not entirely.)
    4. Level by level: a child of a parent that is off is off; of several siblings one, drawn uniformly, stays; its
       size is multiplied by (parent's size) / (parent's mean size).
    5. Sizes |N(m_i, s_i^2)|, m_i from size_first down to size_last, s_i = |N(size_std, size_std^2)|.
       (SAELens has ReLU(N) in place of |N|: a few firings are lost.)

    Source: Chanin and Garriga-Alonso 2026 (arXiv 2602.14687), whose 16k version has n_features 16384, d_hidden 768,
    n_roots 128, branching 4, depth 3, zipf_exponent .5, p_max .4, p_min 5e-4, correlation_rank 25, correlation_scale
    .1, sizes 5 to 4, size_std .5, bias .5.
    """

    n_features: int
    n_roots: int
    branching: int
    depth: int
    zipf_exponent: float
    p_max: float
    p_min: float
    correlation_rank: int
    correlation_scale: float
    size_first: float
    size_last: float
    size_std: float

    def __post_init__(self):
        require(
            self.n_roots >= 1 and self.branching >= 1 and self.depth >= 0,
            f"n_roots={self.n_roots} and branching={self.branching} are at least 1, depth={self.depth} at least 0",
        )
        in_trees = sum(self._level_sizes())
        require(
            self.n_features >= in_trees,
            f"n_features={self.n_features}, but {self.n_roots} trees of depth {self.depth} with {self.branching} "
            f"children per node hold {in_trees}",
        )
        require(
            0 < self.p_min <= self.p_max < 1,
            f"p_min={self.p_min}, p_max={self.p_max}: 0 < p_min <= p_max < 1; the benchmark's are 0.0005 and 0.4",
        )
        require(self.zipf_exponent > 0, f"zipf_exponent={self.zipf_exponent}: above 0; the benchmark's is 0.5")
        require(
            min(self.size_first, self.size_last) > 0 and self.size_std >= 0,
            f"sizes {self.size_first}, {self.size_last} are above 0, size_std={self.size_std} 0 or more",
        )
        _check_correlation(self.correlation_rank, self.correlation_scale)
        super().__post_init__()

    def _level_sizes(self) -> list[int]:
        return [self.n_roots * self.branching**level for level in range(self.depth + 1)]

    def _families(self) -> list[tuple[slice, slice]]:
        """(parents, children) of each level as ranges; the children of one parent stand together."""
        ends = np.cumsum([0, *self._level_sizes()]).tolist()
        spans = [slice(a, b) for a, b in pairwise(ends)]
        return list(pairwise(spans))

    def parents(self) -> Int[Tensor, " n_features"]:
        result = torch.full((self.n_features,), -1)
        for above, below in self._families():
            result[below] = torch.arange(above.start, above.stop).repeat_interleave(self.branching)
        return result

    def nominal_probabilities(self) -> Float[Tensor, " n_features"]:
        """Step 1."""
        v = torch.arange(1, self.n_features + 1, dtype=torch.double) ** -self.zipf_exponent
        return self.p_min + (self.p_max - self.p_min) * (v - v[-1]) / (v[0] - v[-1]).clamp_min(1e-300)

    def conditional_probabilities(self) -> Float[Tensor, " n_features"]:
        """Step 3: with which probability each feature fires before steps 4 prune."""
        nominal = self.nominal_probabilities()
        p = nominal.clone()
        for above, below in self._families():
            share = nominal[below].view(-1, self.branching) / nominal[above, None]
            p[below] = (share * (1 + share.sum(1, keepdim=True) - share)).clamp_max(1 - 1e-9).flatten()
        return p

    def loading(self) -> Float[Tensor, "n_features rank"]:
        """The L of `fires`."""
        return correlation_factor(self.n_features, self.correlation_rank, self.correlation_scale, self.dictionary_seed)

    def firing_probabilities(self, n_draws: int = 1024) -> Float[Tensor, " n_features"]:
        """Exact for correlation_rank 0; else the mean of the exact law given the shared Gaussian, over n_draws of it.

        With siblings that fire independently with q_k, child j is the one that stays with probability
        q_j E[1 / (1 + number of others)] = q_j integral over t in (0, 1) of prod_{k != j} (1 - q_k + q_k t).
        """
        q, loading = self.conditional_probabilities(), self.loading()
        if loading.shape[1]:
            shared = torch.randn(n_draws, loading.shape[1], generator=generator(0, "law"), dtype=torch.double)
            q = torch.special.ndtr((torch.special.ndtri(q) + shared @ loading.T) / _own_share(loading))
        q = q.reshape(-1, self.n_features).clone()
        # Gauss-Legendre with m nodes is exact up to degree 2m - 1; the integrand has degree branching - 1.
        nodes, weights = np.polynomial.legendre.leggauss(ceil(self.branching / 2))
        for above, below in self._families():
            siblings = q[:, below].unflatten(1, (-1, self.branching))
            stays = torch.zeros_like(siblings)
            for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                factor = 1 - siblings * (1 - t)
                stays += weight * factor.prod(-1, keepdim=True) / factor
            q[:, below] = (siblings * stays * q[:, above, None]).flatten(1)
        return q.mean(0)

    def mean_sizes(self) -> Float[Tensor, " n_features"]:
        """m_i of step 5."""
        return torch.linspace(self.size_first, self.size_last, self.n_features)

    def sizes(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        """Step 5, before children are scaled by their parents."""
        std = _size_std(self.n_features, self.size_std, self.dictionary_seed)
        return (self.mean_sizes() + std * torch.randn(n, self.n_features, generator=generator)).abs().clamp_min(2**-24)

    def coefficients(self, n: int, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
        c = fires(self.conditional_probabilities(), self.loading(), n, generator) * self.sizes(n, generator)
        mean = self.mean_sizes()
        for above, below in self._families():
            siblings = c[:, below].unflatten(1, (-1, self.branching)) * (c[:, above] / mean[above])[:, :, None]
            lot = torch.rand(siblings.shape, generator=generator) * (siblings > 0)
            stays = torch.zeros_like(siblings).scatter_(-1, lot.argmax(-1, keepdim=True), 1)
            c[:, below] = (siblings * stays).flatten(1)
        return c

    def _rivals(self, path: Bool[Tensor, "batch n_features"]) -> Bool[Tensor, "batch n_features"]:
        rivals = torch.zeros_like(path)
        for _, below in self._families():
            here = path[:, below].unflatten(1, (-1, self.branching))
            rivals[:, below] = (here.any(-1, keepdim=True) & ~here).flatten(1)
        return rivals


@lru_cache(maxsize=8)
def _size_std(n_features: int, size_std: float, seed: int) -> Tensor:
    """|N(size_std, size_std^2)| for each feature."""
    return (size_std * (1 + torch.randn(n_features, generator=generator(seed, "size_std")))).abs()


def _check_correlation(rank: int, scale: float) -> None:
    require(rank >= 0 and scale >= 0, f"correlation_rank={rank} and correlation_scale={scale}: 0 or more")
    require(
        rank * scale**2 < 1,
        f"correlation_rank={rank} times correlation_scale={scale} squared is {rank * scale**2:.2f}; below 1 leaves "
        f"each feature something of its own",
    )
