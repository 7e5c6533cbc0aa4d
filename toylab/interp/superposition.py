"""The geometry of features in superposition, and the losses that are known exactly.

W [..., feature, hidden] holds one direction per row; every function takes leading axes (members, checkpoints).

1. Geometry: norm, interference, dimensionality D_i, dims per feature D*, leverage.
2. Structure: which features interfere (components), and which regular polytope each component is.
3. Exact losses: dropping, sharing, the phase diagram, the linear optimum, the regular k-gon, memorised T-gons.
4. Computation: the asymmetric motif of a model that computes |x|.
5. Learning: at which checkpoints dimensionalities jump.

Source: Elhage et al. 2022, arXiv 2209.10652; Scherlis et al. 2022, 2210.01892 (capacity, the same as D_i); Chen et al.
2023, 2310.06301 (k-gons); Henighan et al. 2023 (memorised samples). p = probability that a feature is on; values are
uniform on (0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import require

TINY = 1e-5  # rows shorter than this have no direction
# D = rank / vectors of a tight frame of unit vectors: its name, and how many vectors in how many dimensions.
POLYTOPES = {
    (1, 1): "dedicated",
    (2, 1): "digon",
    (3, 2): "triangle",
    (4, 3): "tetrahedron",
    (5, 2): "pentagon",
    (8, 3): "square antiprism",
}
FRACTIONS = tuple(sorted({rank / size for size, rank in POLYTOPES}, reverse=True))


# --- 1. Geometry ------------------------------------------------------------------------------------------------------


def feature_norms(W: Float[Tensor, "*lead feature hidden"]) -> Float[Tensor, "*lead feature"]:
    """|W_i|: near 1 where the feature is represented."""
    return torch.linalg.vector_norm(W, dim=-1)


def _overlaps(W: Tensor) -> Tensor:
    """(W_i/|W_i| . W_j)^2 [..., i, j]; 0 in the rows of features without a direction."""
    norms = feature_norms(W)
    unit = W / norms.clamp(min=TINY)[..., None]
    return (unit @ W.mT).square() * (norms > TINY)[..., None]


def interference(W: Float[Tensor, "*lead feature hidden"]) -> Float[Tensor, "*lead feature"]:
    """sum over j != i of (W_i/|W_i| . W_j)^2: what the others write along feature i. Exact: 0 if orthogonal.

    Its square root is the paper's `polysemanticity`, the colour of its bar charts.
    """
    overlaps = _overlaps(W)
    return overlaps.sum(-1) - overlaps.diagonal(dim1=-2, dim2=-1)


def polysemanticity(W: Float[Tensor, "*lead feature hidden"]) -> Float[Tensor, "*lead feature"]:
    """sqrt(interference): 0 for a feature on its own, 1 in a digon."""
    return interference(W).clamp(min=0).sqrt()


def dimensionality(W: Float[Tensor, "*lead feature hidden"]) -> Float[Tensor, "*lead feature"]:
    """D_i = |W_i|^2 / sum_j (W_i/|W_i| . W_j)^2, j = i included: the share of a dimension that feature i has to itself.

    In [0, 1]; 0 for a row without a direction. sum_i D_i <= rank(W), with equality iff every W_i is an eigenvector
    of W^T W. On rows of activations h [sample, hidden] it is the data dimensionality of Henighan et al. 2023.
    Exact: k unit vectors that form a tight frame of r dimensions have r/k (digon 1/2, triangle 2/3, pentagon 2/5).
    Invariant under rotation of the hidden space and scaling of all rows together.
    """
    return feature_norms(W).square() / _overlaps(W).sum(-1).clamp(min=TINY**2)


def dims_per_feature(W: Float[Tensor, "*lead feature hidden"]) -> Float[Tensor, "*lead"]:
    """D* = hidden / |W|_F^2: dimensions there are for each feature that is represented; inf when none is."""
    return W.shape[-1] / W.square().sum((-2, -1))


def leverage(W: Float[Tensor, "*lead feature hidden"]) -> Float[Tensor, "*lead feature"]:
    """W_i (W^T W)^+ W_i: an upper bound on D_i (Cauchy-Schwarz), which sums to rank(W). Computed in float64."""
    W = W.double()
    return torch.einsum("...im,...mn,...in->...i", W, torch.linalg.pinv(W.mT @ W, hermitian=True), W)


# --- 2. Structure -----------------------------------------------------------------------------------------------------


def components(
    W: Float[Tensor, "*lead feature hidden"], represented: float = 0.5, edge: float = 0.05
) -> Int[Tensor, "*lead feature"]:
    """For every feature the first feature of its component: those it interferes with, directly or through others.

    Features are joined where (W_i/|W_i| . W_j)^2 or its transpose exceeds `edge`; those of a norm below `represented`
    are left out, with -1. Exact: orthogonal sums of polytopes ("tegum products") fall into their factors.
    """
    n = W.shape[-2]
    kept = feature_norms(W) >= represented
    overlaps = _overlaps(W)
    joined = (torch.maximum(overlaps, overlaps.mT) > edge) & kept[..., None] & kept[..., None, :]
    joined = joined | torch.eye(n, dtype=torch.bool)
    for _ in range(max(1, math.ceil(math.log2(max(n, 2))))):  # each squaring doubles the length of the paths
        joined = (joined.float() @ joined.float()) > 0
    return torch.where(kept, joined.int().argmax(-1), -1)


@dataclass(frozen=True, eq=False)
class Polytopes:
    """Of every feature the polytope it belongs to: vectors in it, dimensions it spans (0, 0 for no known one).

    size, rank [..., feature]; component as from `components`.
    """

    size: Tensor
    rank: Tensor
    component: Tensor

    def names(self) -> list[str]:
        """One name per feature of a single W: "digon", ...; "-" where the component is none of POLYTOPES."""
        pairs = zip(self.size.tolist(), self.rank.tolist(), strict=True)
        return [POLYTOPES.get(pair, "-") for pair in pairs]


def polytopes(
    W: Float[Tensor, "*lead feature hidden"], represented: float = 0.5, edge: float = 0.05, tolerance: float = 0.03
) -> Polytopes:
    """Which of POLYTOPES the component of each feature is: as many vectors, and every D_i within tolerance of its D.

    D_i is taken within the component, so that tiny rows elsewhere do not count. Source: Elhage et al. 2022, "Geometry".
    Exact: the polytopes themselves, and orthogonal sums of them. Null: Gaussian rows, many more than dimensions, form
    one component, of no name.
    """
    component = components(W, represented, edge)
    same = (component[..., None] == component[..., None, :]) & (component >= 0)[..., None]
    size = same.sum(-1)
    within = feature_norms(W).square() / (_overlaps(W) * same).sum(-1).clamp(min=TINY**2)
    rank = torch.zeros_like(size)
    for k, r in POLYTOPES:
        fits = (size == k) & ((within - r / k).abs() <= tolerance)
        whole = (same & fits[..., None, :]).sum(-1) == k
        rank = torch.where(whole & (size == k), r, rank)
    return Polytopes(torch.where(rank > 0, size, 0), rank, component)


# --- 3. Exact losses --------------------------------------------------------------------------------------------------


def variance(p):
    """Var(x) = p/3 - p^2/4: the cost of a feature that is not represented (its best constant output is p/2)."""
    return p / 3 - p * p / 4


def antipodal_cost(p):
    """p^2/6: the cost of each of two features that share a dimension as (1, -1), b = 0, averaged over the two."""
    return p * p / 6


def linear_loss(importance: Float[Tensor, " feature"], p: Float[Tensor, " feature"] | float, hidden: int) -> float:
    """The least loss of the linear model, mean over features: all but the `hidden` largest I_i Var(x_i) are dropped.

    At p = 1 also that of the ReLU-output model. Exact: five features of importance .9^i in 2 dimensions: .036585.
    """
    costs = (importance.double() * variance(torch.as_tensor(p, dtype=torch.float64))).sort(descending=True).values
    return costs[hidden:].sum().item() / len(importance)


PHASES = ("drop the first", "drop the last", "share the first two", "share the last two")


def phase_losses(p: Float[Tensor, "*lead"], ratio: Float[Tensor, "*lead"]) -> Float[Tensor, "*lead phase"]:
    """Loss of the four ideal solutions of n features in n - 1 dimensions, in the order of PHASES.

    All features have importance 1 but the last, which has `ratio`. Ideal: unit vectors, b = 0 (trained minima lie a few
    per cent lower). Source: wattenberg/superposition. For n = 2 the first two are the last two, and only the last
    column counts.
    """
    drop = variance(p)
    return torch.stack([drop, ratio * drop, 2 * antipodal_cost(p) + 0 * ratio, (1 + ratio) * antipodal_cost(p)], -1)


def exact_phase(p: Float[Tensor, "*lead"], ratio: Float[Tensor, "*lead"], n_features: int) -> Int[Tensor, "*lead"]:
    """The index in PHASES of the solution with the least loss: the exact phase diagram.

    Boundaries: for ratio < 1 the last two are shared iff ratio > 2p / (4 - 5p); for n >= 3 and ratio > 1 the first two
    are iff p < 4/7; for n = 2 and ratio > 1 iff ratio < (4 - 5p) / (2p). They meet at (4/7, 1).
    """
    require(n_features >= 2, f"n_features={n_features}: at least 2")
    losses = phase_losses(p, ratio)
    if n_features == 2:  # the first two are the last two
        losses = losses.clone()
        losses[..., 2] = torch.inf
    return losses.argmin(-1)


def found_phase(W: Float[Tensor, "*lead feature hidden"], represented: float = 0.35) -> Int[Tensor, "*lead"]:
    """Which of PHASES trained weights of n features in n - 1 dimensions show; -1 for none.

    Dropped: the first or the last feature has a norm below `represented`, and all others above. Shared: all are above;
    the pair with the larger (negative) cosine decides. For n >= 3 features between the first and the last count alike:
    dropping or sharing any of them is "the first", as they are interchangeable.
    """
    norms = feature_norms(W)
    low = norms < represented
    unit = W / norms.clamp(min=TINY)[..., None]
    cosines = unit @ unit.mT
    n = W.shape[-2]
    if n == 2:
        shared = torch.full(low.shape[:-1], 3)
    else:
        with_last = cosines[..., -1, :-1].amin(-1)
        others = cosines[..., :-1, :-1].flatten(-2).amin(-1)
        shared = torch.where(with_last < others, 3, 2)
    phase = torch.where(low[..., -1], 1, 0)
    phase = torch.where(low.sum(-1) == 1, phase, -1)
    return torch.where(low.sum(-1) == 0, shared, phase)


def _ramp(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """E ReLU(a u + b)^2 and E u ReLU(a u + b) for u uniform on (0, 1)."""
    root = torch.where(a == 0, torch.zeros_like(a), -b / torch.where(a == 0, torch.ones_like(a), a))
    on_at_0 = (b > 0) | ((b == 0) & (a > 0))
    rising = a > 0
    low = torch.where(rising, root.clamp(0, 1), torch.zeros_like(a))
    high = torch.where(rising, torch.ones_like(a), torch.where(a == 0, torch.ones_like(a), root.clamp(0, 1)))
    high = torch.where(on_at_0 | rising, high, low)

    def between(power: int) -> Tensor:
        return (high**power - low**power) / power

    square = a * a * between(3) + 2 * a * b * between(2) + b * b * between(1)
    return square, a * between(3) + b * between(2)


def kgon_loss(k: int, l2, b) -> Tensor:
    """Population loss of a regular k-gon in the plane with one feature on at a time, summed over features:

        E_u [ (u - ReLU(l2 u + b))^2 + sum_{j=1}^{k-1} ReLU(l2 cos(2 pi j / k) u + b)^2 ],    u uniform on (0, 1)

    l2: squared norm of every row; b: every bias. In closed form (cubic on the part where the ReLU is on). Source: Chen
    et al. 2023. Exact: k = 2, 3, 4 reach 0 at l2 = 1, b = 0.
    """
    l2, b = torch.as_tensor(l2, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    angles = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    # cos of a right angle is 0, not 6e-17: the sign of the slope decides which side of the root is on.
    cosines = torch.where(angles.cos().abs() < 1e-12, torch.zeros_like(angles), angles.cos())
    square, cross = _ramp(l2 * cosines, b.expand(k))
    return 1 / 3 - 2 * cross[0] + square.sum()


@dataclass(frozen=True)
class Kgon:
    """The best regular k-gon: its loss, squared norm and bias."""

    k: int
    loss: float
    l2: float
    b: float


def best_kgon(k: int) -> Kgon:
    """kgon_loss minimised over l2 and b. Exact for k <= 4: loss 0 at l2 = 1, b = 0. k = 5: .015826, k = 6: .048192."""
    from scipy.optimize import minimize

    require(k >= 2, f"k={k}: at least 2")
    found = minimize(
        lambda x: kgon_loss(k, x[0], x[1]).item(), [1.2, -0.1], method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 4000},
    )  # fmt: skip
    return Kgon(k, float(found.fun), float(found.x[0]), float(found.x[1]))


def kgon_levels(n: int) -> dict[str, float]:
    """Losses of the critical points of n features in the plane, one on at a time: "4", "5", "5+", "6", ...

    A k-gon of k features leaves n - k out, at 1/3 each, all weighed by 1/n; "k+" gives one of these its best positive
    bias 1/(2n), which saves 1/(4 n^2). Training steps down through them (Chen et al. 2023). Exact for n = 6: 5: .06874,
    5+: .06180, 6: .04819.
    """
    levels = {}
    for k in range(min(4, n), n + 1):
        loss = (k * best_kgon(k).loss + (n - k) / 3) / n
        levels[str(k)] = loss
        if k < n:
            levels[f"{k}+"] = loss - 1 / (4 * n * n)
    return levels


def memorising_weights(x: Float[Tensor, "sample feature"]) -> tuple[Tensor, Tensor]:
    """(W [feature, 2], b [feature]) that store samples of disjoint support as a regular T-gon, with zero loss.

        W = sum_a x_a w_a^T,  w_a the corners of a T-gon of radius l,  l^2 = 1 / (1 - cos(2 pi / T)) (1 for T <= 4),
        b_i = -l^2 cos(2 pi / T) x_{a,i} on the support of sample a (0 for T <= 4)

    x: unit vectors of which no two share a feature; raises UserError otherwise. The data dimensionality is 2/T, |W|^2
    is T l^2, which is why large T gives way (Henighan et al. 2023; derived). Known exactly: it is itself the answer.
    """
    T = len(x)
    require(T >= 2, f"{T} samples: at least 2")
    overlap = (x.abs() @ x.abs().mT - torch.diag(x.square().sum(1))).abs().max().item()
    require(overlap < 1e-6, "two samples share a feature; zero loss in this form needs disjoint supports")
    angles = torch.arange(T, dtype=x.dtype) * (2 * math.pi / T)
    nearest = math.cos(2 * math.pi / T) if T > 4 else 0.0
    l2 = 1 / (1 - nearest)
    corners = math.sqrt(l2) * torch.stack([angles.cos(), angles.sin()], 1)
    return x.mT @ corners, -l2 * nearest * x.sum(0)


# --- 4. Computation: the asymmetric motif -----------------------------------------------------------------------------


def asymmetric_motifs(
    W_1: Float[Tensor, "feature neuron"],
    W_2: Float[Tensor, "feature neuron"],
    ratio: float = 1.5,
    cancelled: float = 0.75,
    tolerance: float = 0.3,
) -> Bool[Tensor, "feature other neuron"]:
    """[i, j, k]: does neuron k of y = ReLU(ReLU(x W_1) W_2^T + b) serve features i and j by asymmetric superposition?

    1. It reads i and j, and no third feature at more than a quarter of its largest weight ...
    2. ... i at least `ratio` times as strongly as j, and writes j at least `ratio` times as strongly as i: so that x_j
       hardly disturbs y_i, and x_i disturbs y_j a lot, by |W_1[i, k]| W_2[j, k] per unit.
    3. Other neurons inhibit that: with x_i alone on, on the side that k reads, y_j is asked for at most the share
       1 - `cancelled` of it, bias left out.
    4. The model computes |x_i| and |x_j|: what x = +-1 alone gives to its own output is within `tolerance` of 1. Random
       weights meet 1 to 3 by chance, two times of five, and this never (1,000 draws of 6 features and 10 neurons).
    Source: Elhage et al. 2022, "the asymmetric superposition motif"; the thresholds are ours. Invariant under the order
    of neurons, under the signs of W_1, and under scaling a neuron's W_1 up and its W_2 down. Exact: planted weights.
    """
    size, (up, down) = W_1.abs(), (W_1.relu() @ W_2.mT, (-W_1).relu() @ W_2.mT)  # [on, output]
    read = size >= size.amax(0) / 4
    pair = read[:, None] & read & (read.sum(0) == 2)
    skew = (size[:, None] >= ratio * size) & (ratio * W_2.abs()[:, None] <= W_2)
    asked = torch.where(W_1[:, None] > 0, up[..., None], down[..., None])
    inhibited = asked <= (1 - cancelled) * size[:, None] * W_2
    works = ((up.diagonal() - 1).abs() < tolerance) & ((down.diagonal() - 1).abs() < tolerance)
    return pair & skew & inhibited & works[:, None, None] & works[:, None]


# --- 5. Learning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Jumps:
    """Windows between neighbouring checkpoints in which some dimensionality jumped.

    feature [window, feature]: which; window [window]: any of them; drop [window]: loss before / loss after, in logs.
    """

    feature: Bool[Tensor, "window feature"]
    window: Bool[Tensor, " window"]
    drop: Float[Tensor, " window"]

    def excess_drop(self) -> float:
        """Mean log drop of the loss in windows with a jump, less that in the others; nan if there are none of either.

        Positive where learning goes by jumps: each coincides with a drop of the loss (Elhage et al. 2022).
        """
        return (self.drop[self.window].mean() - self.drop[~self.window].mean()).item()


def detect_jumps(D: Float[Tensor, "step feature"], loss: Float[Tensor, " loss"], size: float = 0.1) -> Jumps:
    """Jumps of more than `size` between neighbouring checkpoints, and how much the loss fell in the same window.

    Raises UserError on fewer than two checkpoints or loss of another length. Exact: constant D has none.
    """
    require(
        len(D) >= 2 and len(D) == len(loss), f"{len(D)} checkpoints of D and {len(loss)} losses: as many, 2 or more"
    )
    feature = D.diff(dim=0).abs() > size
    return Jumps(feature, feature.any(1), -loss.log().diff())
