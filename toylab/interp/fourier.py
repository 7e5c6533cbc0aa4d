"""Fourier analysis on a finite abelian group: bases, spectra, and which frequencies are really there.

A group is given by the orders of its cyclic factors: (113,) is Z_113, (5, 7) is Z_5 x Z_7. Its n elements are
numbered row-major (last factor fastest) and so are its n characters chi_k(x) = exp(2 pi i sum_j k_j x_j / n_j).

1. `fourier_basis`: real characters, orthonormal, as rows: the constant, then cos and sin of each frequency. k and -k
   give the same two rows, so they are one frequency, named by the smaller number: 68 in Z_113 is 45.
2. `transform`, `transform_2d`: coefficients along one or two axes. Orthonormal, so energies add up (Parseval).
3. `power_by_frequency`, `power_2d`: energy per frequency. A `freq` axis always lists `frequencies(group)`, which
   starts with 0, the constant; for one cyclic factor entry k is frequency k.
4. `key_frequencies`: those whose power no flat random spectrum would show, however many they are.
5. `gini`, `fourier_gini`: how unequal a spectrum is.

Source: Nanda et al. 2023 (arXiv 2301.05217), sections 4 and 5. Knows tensors only. Leading axes are batch axes
(seeds, checkpoints), and everything runs in the dtype it is given. Read next: group_addition.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats
from torch import Tensor

from toylab.errors import UserError, require

Group = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Basis:
    """The real characters of a group. Shared between callers: do not write into its tensors.

    matrix:     [row, element] float64, orthonormal. Row 0 is the constant 1/sqrt(n).
    labels:     what each row is: "const", "cos 1", "sin 1", ...; "cos (1, 2)" in a product.
    freqs:      the frequencies, 0 first. One that equals its own negative (n/2 in a cyclic group of even order) has a
                cosine row only, which is +-1/sqrt(n).
    freq_index: [row], the position in `freqs` that the row belongs to.
    rows:       [freq, 2], the cosine and the sine row of each frequency; the cosine row twice where there is no sine.
    has_sine:   [freq].
    """

    group: Group
    matrix: Float[Tensor, "row n"]
    labels: tuple[str, ...]
    freqs: tuple[int, ...]
    freq_index: Int[Tensor, " row"]
    rows: Int[Tensor, "freq two"]
    has_sine: Bool[Tensor, " freq"]


@lru_cache(maxsize=32)
def fourier_basis(group: Group) -> Basis:
    """The orthonormal real Fourier basis of a group, in float64.

    For Z_p: row 2k-1 is sqrt(2/p) cos(2 pi k x / p), row 2k the sine, k = 1..(p-1)//2; for even p the last row is
    (-1)^x / sqrt(p). Source: Nanda et al. 2023, section 4.1. Raises UserError for anything but a tuple of orders.
    """
    elements, negative = _elements(group), _negative(group)
    orders = torch.tensor(group)
    freqs = (torch.arange(len(elements)) <= negative).nonzero().squeeze(1)
    has_sine = negative[freqs] != freqs
    # The product k*x is reduced in integers first: cos of a large angle would lose digits.
    turns = ((elements[freqs, None] * elements) % orders / orders.double()).sum(-1)
    waves = torch.stack([(2 * torch.pi * turns).cos(), (2 * torch.pi * turns).sin()], 1)
    keep = torch.stack([torch.ones_like(has_sine), has_sine], 1)  # [freq, cos or sin]
    scale = torch.where(has_sine, 2.0, 1.0).double() / len(elements)
    freq_index, is_sine = keep.nonzero().unbind(1)
    number = torch.full(keep.shape, -1).masked_scatter_(keep, torch.arange(len(elements)))
    return Basis(
        group=group,
        matrix=(waves * scale.sqrt()[:, None, None])[keep],
        labels=tuple(
            "const" if f == 0 else f"{'sin' if s else 'cos'} {frequency_name(int(freqs[f]), group)}"
            for f, s in zip(freq_index.tolist(), is_sine.tolist(), strict=True)
        ),
        freqs=tuple(freqs.tolist()),
        freq_index=freq_index,
        rows=torch.where(keep, number, number[:, :1]),
        has_sine=has_sine,
    )


def frequencies(group: Group) -> tuple[int, ...]:
    """What a `freq` axis lists: 0 (the constant), then one number for each pair k, -k. Z_113: 0, 1, ..., 56."""
    return fourier_basis(group).freqs


def frequency_name(k: int, group: Group) -> str:
    """ "14" in a cyclic group, "(1, 2)" in a product."""
    return str(k) if len(group) == 1 else str(tuple(int(i) for i in np.unravel_index(k, group)))


def freq_mask(freqs: Iterable[int], group: Group) -> Bool[Tensor, " freq"]:
    """True at these frequencies on a `freq` axis. Raises UserError on a repeated or foreign one, or on -k for k."""
    basis, freqs = fourier_basis(group), list(freqs)
    require(len(set(freqs)) == len(freqs), f"freqs={freqs} repeats a frequency; name each once")
    for k in freqs:
        if k not in basis.freqs:
            folded = int(_negative(group)[k]) if 0 <= k < prod(group) else None
            hint = "" if folded is None else f"; {k} is the same frequency as {folded}"
            raise UserError(f"frequency {k} is not one of 0..{basis.freqs[-1]} of {group_name(group)}{hint}")
    return torch.tensor([k in freqs for k in basis.freqs])


def group_name(group: Group) -> str:
    """ "Z_5 x Z_7" """
    return " x ".join(f"Z_{order}" for order in group)


@lru_cache(maxsize=32)
def group_sums(group: Group) -> Int[Tensor, "a b"]:
    """The number of the element a + b."""
    elements = _elements(group)
    return _number(elements[:, None] + elements, group)


@lru_cache(maxsize=32)
def group_differences(group: Group) -> Int[Tensor, "a b"]:
    """The number of the element a - b."""
    elements = _elements(group)
    return _number(elements[:, None] - elements, group)


def _elements(group: Group) -> Int[Tensor, "n factor"]:
    require(
        isinstance(group, tuple) and len(group) > 0 and all(isinstance(m, int) and m >= 2 for m in group),
        f"group={group!r}: a tuple of the orders (2 or more) of the cyclic factors is needed, such as (113,) or (5, 7)",
    )
    return torch.cartesian_prod(*map(torch.arange, group)).reshape(-1, len(group))


def _negative(group: Group) -> Int[Tensor, " n"]:
    return _number(-_elements(group), group)


def _number(elements: Int[Tensor, "... factor"], group: Group) -> Int[Tensor, "..."]:
    strides = torch.tensor([prod(group[i + 1 :]) for i in range(len(group))])
    return (elements % torch.tensor(group) * strides).sum(-1)


# --- Transforms and spectra ------------------------------------------------------------------------------------------


def transform(x: Float[Tensor, "..."], group: Group, dim: int) -> Float[Tensor, "..."]:
    """Fourier coefficients of x along the axis `dim`, which must have one entry per element; same shape back.

    coefficient[row] = sum_x basis[row, x] x. Sums of squares are kept. Raises UserError when the axis has another
    length, which is what an embedding or logits that still hold the "=" token do.
    """
    basis = fourier_basis(group)
    require(
        x.shape[dim] == len(basis.labels),
        f"axis {dim} of shape {tuple(x.shape)} has {x.shape[dim]} entries; {group_name(group)} has "
        f"{len(basis.labels)} elements (drop the rows or columns of other tokens first)",
    )
    return (x.movedim(dim, -1) @ basis.matrix.to(x).T).movedim(-1, dim)


def transform_2d(x: Float[Tensor, "..."], group: Group, dims: tuple[int, int] = (0, 1)) -> Float[Tensor, "..."]:
    """Coefficients along two axes, F x F^T for one table: a function of a and b in products of cos and sin."""
    return transform(transform(x, group, dims[0]), group, dims[1])


def fold(x: Float[Tensor, "..."], group: Group, dim: int) -> Float[Tensor, "..."]:
    """Sum the rows that belong to one frequency: axis `dim` [row] becomes [freq]."""
    basis = fourier_basis(group)
    shape = list(x.shape)
    shape[dim] = len(basis.freqs)
    return x.new_zeros(shape).index_add_(dim, basis.freq_index.to(x.device), x)


def power_by_frequency(x: Float[Tensor, "..."], group: Group, dim: int) -> Float[Tensor, "..."]:
    """Energy of x at each frequency along `dim`; the axis becomes [freq], entry 0 the constant. Sums to sum x^2.

    For the spectrum of an embedding W_E [n, d_model] sum over d_model: power_by_frequency(W_E, group, 0).sum(-1).
    """
    return fold(transform(x, group, dim) ** 2, group, dim)


def power_2d(x: Float[Tensor, "..."], group: Group, dims: tuple[int, int] = (0, 1)) -> Float[Tensor, "..."]:
    """Energy at each pair of frequencies along two axes, [freq, freq]; (0, 0) the constant. Sums to sum x^2."""
    return fold(fold(transform_2d(x, group, dims) ** 2, group, dims[0]), group, dims[1])


# --- Which frequencies are there -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KeyFrequencies:
    """What `key_frequencies` found.

    mask:      [..., freq], True where the frequency is key; never at 0.
    share:     [..., freq], its part of the power without the constant (0 at entry 0).
    threshold: [...], the share that had to be exceeded.
    """

    group: Group
    mask: Bool[Tensor, "*batch freq"]
    share: Float[Tensor, "*batch freq"]
    threshold: Float[Tensor, "*batch"]
    alpha: float
    min_share: float

    @property
    def freqs(self) -> tuple[int, ...]:
        """The key frequencies in ascending order, of one spectrum."""
        require(self.mask.ndim == 1, f"{tuple(self.mask.shape[:-1])} spectra: read `mask`, or index one of them")
        return tuple(k for k, key in zip(frequencies(self.group), self.mask.tolist(), strict=True) if key)


def key_frequencies(
    power: Float[Tensor, "*batch freq"], group: Group, dof: float | int, alpha: float = 0.01, min_share: float = 0.01
) -> KeyFrequencies:
    """The frequencies that stand out of a spectrum [..., freq]: as many as there are, none in a flat random one.

    Null: the power of each frequency is an independent scale * chi^2 with `dof` degrees of freedom. The scale is read
    from the data as the median over frequencies, so strong ones do not hide each other while they are less than half.
    Rule: power > t * median, where t makes the chance of any false find `alpha` (exact, see `null_ratio`), and
    power > min_share * total. The second clause keeps rounding noise and faint harmonics from being called key.

    dof counts the independent Gaussians in one frequency's power: 2 * d_model for W_E, `effective_dof(W_out)` for
    W_L = W_out W_U (a Gaussian W_U read through W_out).

    Which spectrum? Those of the embedding and of W_L say what is *represented*. To ask what the network *computes*,
    use `group_addition.key_logit_frequencies`: a frequency in the embedding or in neurons that nothing reads is not
    in the logits.

    Where it is exact: independent Gaussian tables. Where it is conservative: a frequency without a sine has half the
    dof and is compared as it is. Where it fails: once half of all frequencies are key the median is one of them and
    nothing stands out; a table that memorises sums has the same power at every frequency and no key one.
    """
    require(0 < alpha < 1, f"alpha={alpha} is outside (0, 1); 0.01 allows one false find in a hundred flat spectra")
    n_freqs = len(frequencies(group))
    require(
        power.shape[-1] == n_freqs,
        f"a spectrum with {power.shape[-1]} entries arrived; {group_name(group)} has {n_freqs}, counting 0",
    )
    rest = power[..., 1:]
    total = rest.sum(-1)
    cut = torch.maximum(null_ratio(n_freqs - 1, float(dof), alpha) * rest.median(-1).values, min_share * total)
    tiny = torch.finfo(power.dtype).tiny
    none = torch.zeros_like(power[..., :1])
    return KeyFrequencies(
        group=group,
        mask=torch.cat([none > 0, rest > cut[..., None]], -1),
        share=torch.cat([none, rest / total.clamp_min(tiny)[..., None]], -1),
        threshold=cut / total.clamp_min(tiny),
        alpha=alpha,
        min_share=min_share,
    )


def effective_dof(through: Float[Tensor, "m d"]) -> float:
    """Degrees of freedom of |through @ (g + i h)|^2 for Gaussian g, h: 2 (sum s^2)^2 / sum s^4, s singular values.

    Matches the first two moments (Satterthwaite 1946). 2d for d equal singular values, 2 for rank one.
    """
    squares = torch.linalg.svdvals(through) ** 2
    return float(2 * squares.sum() ** 2 / (squares**2).sum())


@lru_cache(maxsize=128)
def null_ratio(n_freqs: int, dof: float, alpha: float) -> float:
    """The t that largest / median of n_freqs independent chi^2(dof) exceeds with probability alpha.

    The median is the m-th smallest, m = (n_freqs + 1) // 2 (torch's lower median). With F the chi^2 distribution,
    U = F(median) is Beta(m, n_freqs - m + 1), and given U the larger ones are independent draws from above it:
        P(largest <= t median | U) = ((F(t F^-1(U)) - U) / (1 - U))^(n_freqs - m).
    Averaged over U by 200-point Gauss-Legendre in the quantiles of the Beta, and solved for t.
    """
    if n_freqs < 2:
        return 1.0  # the only frequency is its own median; nothing can exceed it
    m = (n_freqs + 1) // 2
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = stats.beta.ppf((nodes + 1) / 2, m, n_freqs - m + 1)
    median = stats.chi2.ppf(u, dof)

    def false_find(t: float) -> float:
        # Survival functions: F itself is 1 to rounding where it matters.
        log_below = (n_freqs - m) * np.log1p(-stats.chi2.sf(t * median, dof) / (1 - u))
        return float(-(weights / 2 * np.expm1(log_below)).sum())

    high = 2.0
    while false_find(high) > alpha:
        high *= 2
    return float(optimize.brentq(lambda t: false_find(t) - alpha, 1 + 1e-9, high))


# --- Inequality ------------------------------------------------------------------------------------------------------


def gini(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Gini coefficient along `dim`: sum_i (2i - n - 1) x_i / (n sum x), x_1 <= ... <= x_n. x must be >= 0.

    0 = all equal, (n - m)/n = m equal ones and the rest 0; 0 where everything is 0.
    """
    n = x.shape[dim]
    x = x.sort(dim).values.movedim(dim, -1)
    weight = 2 * torch.arange(1, n + 1, device=x.device, dtype=x.dtype) - n - 1
    return (x @ weight) / (n * x.sum(-1)).clamp_min(torch.finfo(x.dtype).tiny)


def fourier_gini(x: Float[Tensor, "*batch n d"], group: Group) -> Float[Tensor, "*batch"]:
    """Gini coefficient of the n Fourier norms of W_E [..., n, d_model], or of W_L transposed [..., n, d_mlp].

    Convention: amplitudes (not energies), over all n rows with the constant, cos and sin apart (Nanda et al. 2023,
    figure 7). #K frequencies of equal norms give (n - 2 #K)/n exactly. Gaussian entries give about
    1/sqrt(2 pi d), the Gini of n nearly equal norms: .035 at d = 128.
    """
    return gini(transform(x, group, -2).norm(dim=-1))
