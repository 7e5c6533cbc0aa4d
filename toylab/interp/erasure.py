"""Erasure: remove a variable from activations so that no linear reader finds it, and see what the model loses.

1. `fit` (or `fit_moments`, for data that come in pieces) -> `Eraser`, LEACE: the smallest affine change after which the
   activations have no covariance with the variable. Then all class means are equal, and the best linear classifier,
   whatever convex loss it minimises, is a constant.
2. `random_eraser`: the same number of directions drawn at random, the control.
3. `amnesic_test`: what a metric of the model loses when a site is erased, beside the same with random subspaces.

Sources: Belrose et al. 2023 (arXiv 2306.03819), theorems 3.1 and 4.3; Elazar et al. 2021 (arXiv 2006.00995).
A reader that is not linear (`probes.fit_mlp`) may still find an erased variable: report both. Read next: steering.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import require
from toylab.interp.probes import Moments, checked_labels, class_moments, count_classes, defined_rows, moments
from toylab.interp.steering import Steer
from toylab.taps import Tapped


@dataclass(frozen=True, eq=False)
class Eraser:
    """r(x) = x - ((x - mean) @ read) @ write: what `read` sees is taken away along `write`.

    mean: [*layer, d].  read: [*layer, d, rank].  write: [*layer, rank, d].  rank is at most classes - 1, summed over
    targets; where a layer needs fewer directions the others are 0. Idempotent: write @ read is the identity.
    """

    mean: Float[Tensor, "*layer d"]
    read: Float[Tensor, "*layer d rank"]
    write: Float[Tensor, "*layer rank d"]

    def __call__(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """x [*layer, n, d] erased; with a single layer any leading axes."""
        mean, read, write = self.mean.to(x), self.read.to(x), self.write.to(x)
        return x - ((x - (mean.unsqueeze(-2) if mean.ndim > 1 else mean)) @ read) @ write

    @property
    def rank(self) -> int:
        return self.read.shape[-1]


def fit(x: Float[Tensor, "*layer n d"], y: Tensor) -> Eraser:
    """The LEACE eraser of one or more variables, y [n] or [n, target]: classes (-1 left out) or reals.

    Several targets are erased together; rows where any is undefined are left out. Raises as `probes.fit` does.
    """
    y = checked_labels(y, x.shape[-2])
    if not y.is_floating_point():
        rows = defined_rows(y)
        require(bool(rows.any()), "no row defines every target; erase them one at a time")
        x, y = x[..., rows, :], checked_labels(y[rows], int(rows.sum()))
    return fit_moments(label_moments(x, y))


def label_moments(x: Float[Tensor, "*layer n d"], y: Tensor, n_classes: int | None = None) -> Moments:
    """Moments of a piece of the data, to be added up and given to `fit_moments`.

    y: [n] or [n, target], no -1. For classes say how many there are, or a piece without the last one has other columns.
    """
    y = y[:, None] if y.ndim == 1 else y
    if y.is_floating_point():
        return moments(x, y)
    require(bool((y >= 0).all()), "these labels hold -1 (undefined): leave those rows out first")
    return class_moments(x, y, int(count_classes(y).max()) if n_classes is None else n_classes)


def fit_moments(m: Moments) -> Eraser:
    """LEACE from moments: r(x) = x - W^+ Q W (x - mean), W = (Sigma_xx^1/2)^+, Q the projector on the columns of
    W Sigma_xz.

    Known exactly: Cov(r(x), z) = 0, applying twice = once, and no affine map with that property is nearer to x in
    mean square (theorem 4.3). Directions in which x does not vary, and singular values below rounding, are dropped.
    """
    values, vectors = torch.linalg.eigh(m.scatter / m.n)
    kept = values > m.rtol * values[..., -1:]
    root = torch.where(kept, values, 0).sqrt()[..., None, :]
    inverse = torch.where(kept, values, 1).rsqrt()[..., None, :] * kept[..., None, :]
    whiten, unwhiten = (vectors * inverse) @ vectors.mT, (vectors * root) @ vectors.mT
    U, S, _ = torch.linalg.svd(whiten @ m.cross / m.n, full_matrices=False)
    # Whitened x has unit variance, so S is in standard deviations of z. A direction that only holds rounding is noise.
    used = S / S[..., :1].clamp_min(m.rtol) > m.rtol
    U = U * used[..., None, :]
    rank = max(1, int(used.sum(-1).max()))
    return Eraser(m.mean, (whiten @ U)[..., :rank], (U.mT @ unwhiten)[..., :rank, :])


def random_eraser(mean: Float[Tensor, "*layer d"], rank: int, generator: torch.Generator) -> Eraser:
    """Takes away `rank` random orthonormal directions about the mean: what erasing that many costs by itself."""
    d = mean.shape[-1]
    require(0 < rank <= d, f"rank={rank}: 1 to {d}")
    basis = torch.linalg.qr(torch.randn(*mean.shape, rank, generator=generator, dtype=torch.double)).Q
    return Eraser(mean, basis, basis.mT)


@dataclass(frozen=True, eq=False)
class Amnesia:
    """A metric of the model: untouched, with the variable erased, and with random subspaces of the same rank erased.

    effect: how much lower the metric is with the variable erased than with random subspaces. z: that in standard
    deviations of the random ones; infinite when they do not vary, and 0 when there is no effect either.
    """

    clean: float
    erased: float
    random: Float[Tensor, " draw"]

    @property
    def effect(self) -> float:
        return float(self.random.mean()) - self.erased

    @property
    def z(self) -> float:
        spread = float(self.random.std())
        if spread:
            return self.effect / spread
        return inf * self.effect if self.effect else 0.0


def amnesic_test(
    model: Tapped,
    inputs: Tensor,
    site: str,
    eraser: Eraser,
    metric: Callable[[Tensor], Tensor | float],
    generator: torch.Generator,
    n_random: int = 20,
    positions: Sequence[int] | None = None,
) -> Amnesia:
    """metric(outputs) of the model with the eraser at this site and positions (None = all), and its controls.

    Known exactly: erasing what the model does not use from a site changes nothing, erasing the variable that the
    output is read from brings accuracy to that of the best constant. Source: Elazar et al. 2021, section 3.
    """
    require(eraser.mean.ndim == 1, f"an eraser for {tuple(eraser.mean.shape[:-1])} layers arrived; index one first")
    require(n_random >= 2, f"n_random={n_random}: at least 2, for a spread")

    def score(change: Callable[[Tensor], Tensor]) -> float:
        return float(metric(model.run_with_hooks(inputs, [Steer(site, change, positions).hook])))

    with torch.no_grad():
        clean = float(metric(model(inputs)))
        drawn = [score(random_eraser(eraser.mean, eraser.rank, generator)) for _ in range(n_random)]
        return Amnesia(clean, score(eraser), torch.tensor(drawn))
