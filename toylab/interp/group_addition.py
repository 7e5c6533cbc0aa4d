"""How a network adds in an abelian group: neurons, neuron-logit map and logits, in the directions a + b.

Tables hold every pair once, row a*n + b, the last axis a neuron or an output c. In the trained network (Nanda et al.
2023) the embedding gives cos w_k a and sin w_k a, neurons multiply them, and the logits are about
sum_k cos w_k(a + b - c), w_k = 2 pi k / n.

1. Sum a table over the pairs with a + b = s (one pass): what is left is a function of s. Its 1-D transform holds the
   coefficients of the unit vectors cos w_k(a + b) sqrt(2)/n and sin w_k(a + b) sqrt(2)/n, for ALL k (`sum_components`).
2. Keep some frequencies (`restricted_logits`), remove some (`excluded_logits`), or remove each in turn and score all
   of these together (`exclusion_losses`): subtracting a function of (s, c) inside a softmax is a product of
   exponentials, so all the partition functions are one batched matrix product.
3. Neurons likewise: sums over b, over a, over a + b and over a - b span everything with both indices in
   {0, cos k, sin k}, so no 2-D transform is needed (`neuron_frequencies`).
4. `trig_fit`: the logits on cos w_k(a + b - c); `key_logit_frequencies`: which of these are there.
   `neuron_logit_map`: W_L = W_out W_U on its key directions.

Came from: fourier.py, which also says what a `group`, a `row` and a `freq` axis are. Read next: clock_pizza.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod, sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from toylab.errors import require
from toylab.interp.fourier import (
    Group,
    KeyFrequencies,
    fold,
    fourier_basis,
    freq_mask,
    group_differences,
    group_name,
    group_sums,
    key_frequencies,
    power_by_frequency,
    transform,
)

# --- Sums over a + b -------------------------------------------------------------------------------------------------


def sum_components(table: Float[Tensor, "*batch pair c"], group: Group) -> Float[Tensor, "*batch row c"]:
    """Coefficients of a table on the unit vectors that depend on a + b alone, for every frequency at once.

    Row r: sum_{a,b} basis[r, a + b] table[a, b] / sqrt(n). The pairs with the same a + b are summed first, then
    transformed: n^2 additions and an n x n product per column, instead of two n^2 projections per frequency.
    Rows and not [freq, 2], so that frequencies without a sine (even n) need no padding.
    Source: Nanda et al. 2023, section 5.1. Exact for any table.
    """
    return transform(_sum_pairs(table, pairs_by_sum(group), group), group, -2)


def sum_part(
    components: Float[Tensor, "*batch row c"], freqs: Iterable[int], group: Group
) -> Float[Tensor, "*batch n c"]:
    """The part of a table at these frequencies of a + b, as a function of s = a + b. 0 is the mean over pairs."""
    basis = fourier_basis(group)
    rows = freq_mask(freqs, group)[basis.freq_index].nonzero().squeeze(1)
    waves = basis.matrix[rows].to(components) / sqrt(prod(group))
    return torch.einsum("rs,...rc->...sc", waves, components[..., rows, :])


def restricted_logits(
    logits: Float[Tensor, "*batch pair c"], freqs: Iterable[int], group: Group, bias_correction: bool = True
) -> Float[Tensor, "*batch pair c"]:
    """Keep only cos w_k(a + b) and sin w_k(a + b) of the logits at these frequencies (0 is not given).

    bias_correction adds back each output's mean over all pairs, as in the paper's restricted loss; without it the
    loss is another number, usually a worse one. Source: Nanda et al. 2023, section 5.1. Exact: logits that are a sum
    of cos w_k(a + b - c) over these k come back unchanged.
    """
    freqs = [*freqs]
    require(0 not in freqs, "frequency 0 is the mean over pairs; bias_correction decides about it")
    part = sum_part(sum_components(logits, group), [0, *freqs] if bias_correction else freqs, group)
    return part[..., group_sums(group).flatten().to(part.device), :]


def excluded_logits(
    logits: Float[Tensor, "*batch pair c"], freqs: Iterable[int], group: Group
) -> Float[Tensor, "*batch pair c"]:
    """The logits without cos w_k(a + b) and sin w_k(a + b) at these frequencies; no bias correction.

    Restricted (without bias correction) + excluded = logits. Its cross-entropy on the *training* pairs is the
    paper's excluded loss. Source: Nanda et al. 2023, section 5.1.
    """
    return logits - restricted_logits(logits, freqs, group, bias_correction=False)


def exclusion_losses(
    logits: Float[Tensor, "*batch pair c"],
    targets: Int[Tensor, " pair"],
    group: Group,
    weight: Float[Tensor, " pair"] | None = None,
) -> Float[Tensor, "*batch freq"]:
    """Cross-entropy (nats) after removing each frequency of a + b alone, for all frequencies together, in float64.

    Entry k: mean over pairs (by `weight`: 1 on the training pairs for the excluded loss) of the loss of
    excluded_logits(logits, [k]); entry 0 removes each output's mean. What is removed, R_k(s, c), depends on s = a + b,
    so the partition function is sum_c exp(L[a, b, c]) exp(-R_k[s, c]): for each s a product of [a, c] and [c, k].
    """
    n, basis = prod(group), fourier_basis(group)
    logits = logits.double()
    components = sum_components(logits, group)
    waves = basis.matrix.to(logits) / sqrt(n)
    removed = fold(torch.einsum("rs,...rc->...rsc", waves, components), group, -3)  # [..., freq, s, c]

    weight = torch.ones(n * n) if weight is None else weight
    order = _with_weight_first(pairs_by_sum(group), weight.cpu()).to(logits.device)  # [s, a]
    weight = (weight.to(logits) / weight.sum())[order]
    target = targets[order]  # [s, a]
    by_sum = logits[..., order, :]  # [..., s, a, c]
    high, low = by_sum.amax(-1), removed.amin(-1)
    # The largest logit alone keeps the sum above exp(-spread of R); past 600 it could leave float64's range.
    if (removed.amax(-1) - low).max() > 600:
        return _exclusion_losses_in_turn(logits, targets, removed, weight.flatten(), order.flatten(), group)
    partition = torch.einsum(
        "...sac,...ksc->...ska", (by_sum - high[..., None]).exp_(), (low[..., None] - removed).exp_()
    )
    log_partition = partition.log_() + high[..., :, None, :] - low.transpose(-1, -2)[..., None]
    right = by_sum.gather(-1, target.expand(by_sum.shape[:-1])[..., None])[..., 0]  # [..., s, a]
    right_removed = removed.gather(-1, target.expand(*removed.shape[:-2], *target.shape))  # [..., freq, s, a]
    return torch.einsum("sa,...ska->...k", weight, log_partition - right[..., :, None, :]) + torch.einsum(
        "sa,...ksa->...k", weight, right_removed
    )


def _with_weight_first(pairs: Int[Tensor, "s a"], weight: Float[Tensor, " pair"]) -> Int[Tensor, "s most"]:
    """Of the pairs with each sum those with weight, then others up to the largest number of these at any sum."""
    counts = weight[pairs] > 0
    order = counts.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.sum(1).max())]
    return pairs.gather(1, order)


def _exclusion_losses_in_turn(logits, targets, removed, weight, order, group) -> Tensor:
    """The same, one frequency after another: the definition, and the way for logits hundreds of nats wide."""
    sums = group_sums(group).flatten().to(logits.device)
    losses = []
    for part in removed.unbind(-3):
        log_probs = (logits - part[..., sums, :]).log_softmax(-1)
        right = log_probs.gather(-1, targets.expand(log_probs.shape[:-1])[..., None])[..., 0]
        losses.append(-(right[..., order] * weight).sum(-1))
    return torch.stack(losses, -1)


def _sum_pairs(table: Tensor, pairs: Tensor, group: Group) -> Tensor:
    """Sum a table [..., pair, c] over rows of pair numbers [s, n], divided by sqrt(n): [..., s, c]."""
    n = prod(group)
    require(
        table.ndim >= 2 and table.shape[-2] == n * n,
        f"a table of shape {tuple(table.shape)} arrived; expected [..., {n * n} pairs, c] for {group_name(group)}",
    )
    flat = table.reshape(-1, table.shape[-1])
    offset = torch.arange(len(flat) // n**2, device=table.device)[:, None, None] * n**2
    # embedding_bag adds rows where they lie; indexing would first copy the whole table.
    sums = F.embedding_bag((pairs.to(table.device) + offset).flatten(0, 1), flat, mode="sum")
    return sums.reshape(*table.shape[:-2], len(pairs), table.shape[-1]) / sqrt(n)


def pairs_by_sum(group: Group) -> Int[Tensor, "s a"]:
    """The number of the pair (a, s - a)."""
    n = prod(group)
    return torch.arange(n) * n + group_differences(group)


def pairs_by_difference(group: Group) -> Int[Tensor, "d b"]:
    """The number of the pair (d + b, b)."""
    n = prod(group)
    return group_sums(group) * n + torch.arange(n)


# --- Logits as sums of cos w_k(a + b - c) ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrigFit:
    """logits = sum_k cos_k cos w_k(a + b - c) + sin_k sin w_k(a + b - c) + rest; the fit is an orthogonal projection.

    cos, sin: [..., freq], in logits. Entry 0: the mean of all logits.
    energy:   [..., freq], the squared length of that part of the table.
    alignment: [..., freq], its share of everything at k in a + b (centred over c): 1 when c turns with a + b.
    fve:      [...], share of the logits (centred over c, which a softmax cannot see) in the cosines of all k > 0.
    total:    [...], squared length of the centred logits.
    """

    cos: Float[Tensor, "*batch freq"]
    sin: Float[Tensor, "*batch freq"]
    energy: Float[Tensor, "*batch freq"]
    alignment: Float[Tensor, "*batch freq"]
    fve: Float[Tensor, "*batch"]
    total: Float[Tensor, "*batch"]

    def fve_of(self, mask: Tensor) -> Float[Tensor, "*batch"]:
        """Share of the centred logits in the cosines of these frequencies (a mask over `freq`)."""
        in_cos = self.energy * self.cos**2 / (self.cos**2 + self.sin**2).clamp_min(torch.finfo(self.cos.dtype).tiny)
        return _ratio((in_cos * mask)[..., 1:].sum(-1), self.total)


def trig_fit(logits: Float[Tensor, "*batch pair c"], group: Group) -> TrigFit:
    """Project the logits on cos and sin of w_k(a + b - c) for every k.

    alpha_k = <L, u_k>, u_k = cos w_k(a + b - c) with unit length over the n^3 cube. In the sum directions
    sqrt(2) u_k = cos w_k(a+b) cos w_k c + sin w_k(a+b) sin w_k c, each factor a unit vector.
    Source: Nanda et al. 2023, section 4.2 and appendix. Exact: logits that are such a sum give their coefficients
    back and FVE 1. Raises UserError when there is not one output per element.
    """
    n, basis = prod(group), fourier_basis(group)
    require(
        logits.shape[-1] == n,
        f"{logits.shape[-1]} outputs arrived; {group_name(group)} has {n} elements (drop the columns of other tokens)",
    )
    rows, has_sine = basis.rows.to(logits.device), basis.has_sine.to(logits.device)
    components = sum_components(logits, group)
    on_cos, on_sin = components[..., rows, :].unbind(-2)  # [..., freq, c]
    cos_c, sin_c = basis.matrix.to(logits)[rows].unbind(1)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("...fc,fc->...f", x, y)

    alpha = torch.where(has_sine, (dot(on_cos, cos_c) + dot(on_sin, sin_c)) / sqrt(2), dot(on_cos, cos_c))
    beta = torch.where(has_sine, (dot(on_sin, cos_c) - dot(on_cos, sin_c)) / sqrt(2), 0)
    at_k = fold((components - components.mean(-1, keepdim=True)) ** 2, group, -2).sum(-1)
    total = (logits - logits.mean(-1, keepdim=True)).pow(2).sum((-1, -2))
    unit = torch.where(has_sine, 2.0, 1.0).to(logits).sqrt() / n**1.5  # u_k = unit * cos w_k(a + b - c)
    return TrigFit(
        cos=alpha * unit,
        sin=beta * unit,
        energy=alpha**2 + beta**2,
        alignment=_ratio(alpha**2 + beta**2, at_k),
        fve=_ratio(alpha[..., 1:].pow(2).sum(-1), total),
        total=total,
    )


def key_logit_frequencies(
    logits: Float[Tensor, "*batch pair c"], group: Group, alpha: float = 0.01, min_share: float = 0.001
) -> KeyFrequencies:
    """The frequencies the network answers with: cos w_k(a + b - c) is in the logits beyond what chance puts there.

    A frequency is key when both hold, so that a false find has at most probability alpha:
    1. Its power stands out among the frequencies: `key_frequencies` of trig_fit(logits).energy, dof 2.
    2. Its alignment exceeds what a readout that knows nothing of c gives. For a Gaussian W_U with independent columns
       it is Beta(1, n - 2) whatever comes before; the cut is the 1 - alpha/(number of frequencies) quantile.
    min_share is for what trained networks do: in ten of them (p = 113, two recipes) the weakest cosine without which
    the loss rises has a share of .0066, the strongest other one, a second harmonic, .00012; .001 is between.
    The first alone finds too much in untrained networks, whose power at different k is unequal before the readout
    (9% of them instead of 5% at p = 113, 17% at p = 31 with d_model 32; the second alone 4% and 6%). The second alone
    would call every frequency of a memorising table key: its answers do turn with a + b, at all frequencies alike.
    """
    fit = trig_fit(logits, group)
    found = key_frequencies(fit.energy, group, dof=2, alpha=alpha, min_share=min_share)
    n, has_sine = prod(group), fourier_basis(group).has_sine
    n_tests = len(has_sine) - 1
    # A complex direction among n - 1 (a real one where there is no sine); the constant over c is centred away.
    with_sine, without = (float(stats.beta.isf(alpha / n_tests, h, h * (n - 2))) for h in (1, 0.5))
    cut = torch.where(has_sine, with_sine, without).to(logits)
    return replace(found, mask=found.mask & (fit.alignment > cut))


# --- Neurons ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NeuronFrequencies:
    """The frequency of each neuron and how its variance over pairs divides. Shapes [..., d_mlp].

    freq:     the frequency with the largest share; 0 for a neuron that is constant.
    frac:     its share: all nine products with both indices in {0, cos k, sin k} (the paper's fraction explained).
    frac_sum: the same without the a - b part: linear + sum (the 7-term fit).
    linear, sum, diff: the share of cos and sin of w a and w b; of w(a + b); of w(a - b). They add up to `frac`.
    phase_a, phase_b, phase_sum, phase_diff: phi in cos(w a + phi), cos(w b + phi), cos(w(a + b) + phi) and
              cos(w(a - b) + phi), in (-pi, pi]; without meaning where that share is 0.
    by_freq:  [..., freq, d_mlp], the share of every frequency.
    """

    freq: Int[Tensor, "*batch m"]
    frac: Float[Tensor, "*batch m"]
    frac_sum: Float[Tensor, "*batch m"]
    linear: Float[Tensor, "*batch m"]
    sum: Float[Tensor, "*batch m"]
    diff: Float[Tensor, "*batch m"]
    phase_a: Float[Tensor, "*batch m"]
    phase_b: Float[Tensor, "*batch m"]
    phase_sum: Float[Tensor, "*batch m"]
    phase_diff: Float[Tensor, "*batch m"]
    by_freq: Float[Tensor, "*batch freq m"]


def neuron_frequencies(post: Float[Tensor, "*batch pair m"], group: Group) -> NeuronFrequencies:
    """Dominant frequency, fraction explained and phases of neurons over all pairs; each neuron's mean is removed.

    The four sums of the table over b, a, the pairs with equal a + b, and with equal a - b, transformed, are its
    coefficients on orthonormal vectors that span the nine products (cos cos and sin sin are the half sum and half
    difference of cos w(a - b) and cos w(a + b)). A frequency without a sine has a + b and a - b in one direction,
    counted as sum. Source: Nanda et al. 2023, section 4.1; clusters there have frac >= .85.
    Exact: relu(cos w a + cos w b) has frac .962 = .745 linear + .109 sum + .109 diff at p = 113, for any phase, and
    (cos w a + cos w b)^2 has .8 = 0 + .4 + .4 (its squares sit at 2w).
    """
    basis = fourier_basis(group)
    has_sine = basis.has_sine.to(post.device)
    coefficients, total = _pair_waves(post, group)
    energy = fold(coefficients**2, group, -2)  # [..., part, freq, m]
    energy[..., 1, :, :] *= has_sine[:, None]
    energy[..., 0, :] = 0
    shares = _ratio(energy, total[..., None, None, :])
    by_freq = shares.sum(-3)
    best = by_freq.argmax(-2)  # [..., m]

    def at_best(x: Tensor, rows: Tensor) -> list[Tensor]:
        at = rows[..., None, None, :].expand(*x.shape[:-2], 1, x.shape[-1])
        return [*x.gather(-2, at).squeeze(-2).unbind(-2)]

    of_sum, of_diff, of_a, of_b = at_best(shares, best)
    cos_row, sin_row = basis.rows.to(post.device)[best].unbind(-1)
    # cos x + phi: cosine coefficient cos phi, sine coefficient -sin phi.
    phases = [
        torch.atan2(-sin * has_sine[best], cos)
        for cos, sin in zip(at_best(coefficients, cos_row), at_best(coefficients, sin_row), strict=True)
    ]
    phase_sum, phase_diff, phase_a, phase_b = phases
    return NeuronFrequencies(
        freq=torch.tensor(basis.freqs, device=post.device)[best],
        frac=of_sum + of_diff + of_a + of_b,
        frac_sum=of_sum + of_a + of_b,
        linear=of_a + of_b,
        sum=of_sum,
        diff=of_diff,
        phase_a=phase_a,
        phase_b=phase_b,
        phase_sum=phase_sum,
        phase_diff=phase_diff,
        by_freq=by_freq,
    )


def _pair_waves(post: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """(coefficients [..., part, row, m] on waves of a + b, a - b, a and b; total variance times n^2 [..., m]).

    The total is 0 for a neuron that is constant up to rounding.
    """
    n = prod(group)
    mean = post.mean(-2, keepdim=True)
    post = post - mean
    by_sum, by_difference = (_sum_pairs(post, pairs(group), group) for pairs in (pairs_by_sum, pairs_by_difference))
    table = post.unflatten(-2, (n, n))
    sums = torch.stack([by_sum, by_difference, table.sum(-2) / sqrt(n), table.sum(-3) / sqrt(n)], -3)
    # In blocks: the memory of a second table costs more than the arithmetic. tensor.var is ten times slower here.
    total = torch.stack([block.pow(2).sum(-2) for block in post.split(1024, -2)]).sum(0)
    alive = total > (4 * n * torch.finfo(post.dtype).eps * mean.squeeze(-2)) ** 2
    return transform(sums, group, -2), total * alive


def neuron_clusters(neurons: NeuronFrequencies, threshold: float = 0.85, min_size: int = 5) -> dict[int, Tensor]:
    """Frequency -> numbers of the neurons it explains to at least `threshold`; smaller clusters are left out.

    The paper's code takes every frequency that is some neuron's largest; asking for a few well-explained neurons
    keeps chance ones out. For one table of neurons (no batch axes).
    """
    require(neurons.freq.ndim == 1, f"neurons of shape {tuple(neurons.freq.shape)}: index one checkpoint first")
    clear = (neurons.frac >= threshold) & (neurons.freq > 0)
    members = {int(k): (clear & (neurons.freq == k)).nonzero().squeeze(1) for k in neurons.freq[clear].unique()}
    return {k: of_k for k, of_k in members.items() if len(of_k) >= min_size}


# --- From neurons to logits ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NeuronLogitMap:
    """W_L = W_out W_U [d_mlp, c] as sum over key rows of (direction in neurons) x (wave over c), plus a rest.

    norms:      [..., row], length of W_L along each Fourier row of the output.
    directions: [..., key row, d_mlp], u_k (cosine rows) and v_k (sine rows); `labels` names them.
    residual:   [...], share of |W_L|^2 outside the key rows.
    rank_energy: [...], share of |W_L|^2 in its largest singular values, as many as there are key rows.
    """

    norms: Float[Tensor, "*batch row"]
    directions: Float[Tensor, "*batch key m"]
    labels: tuple[str, ...]
    residual: Float[Tensor, "*batch"]
    rank_energy: Float[Tensor, "*batch"]


def neuron_logit_map(W_L: Float[Tensor, "*batch m c"], freqs: Iterable[int], group: Group) -> NeuronLogitMap:
    """The neuron-logit map on the waves of these frequencies. Source: Nanda et al. 2023, section 4.2 (rank 10).

    An output-constant part of W_L counts as residual, although a softmax cannot see it.
    """
    basis = fourier_basis(group)
    coefficients = transform(W_L, group, -1)
    norms = coefficients.norm(dim=-2)
    rows = freq_mask(freqs, group)[basis.freq_index].nonzero().squeeze(1)
    total = norms.pow(2).sum(-1)
    largest = torch.linalg.svdvals(W_L)[..., : len(rows)]
    return NeuronLogitMap(
        norms=norms,
        directions=coefficients[..., rows].transpose(-1, -2),
        labels=tuple(basis.labels[r] for r in rows.tolist()),
        residual=1 - _ratio(norms[..., rows].pow(2).sum(-1), total),
        rank_energy=_ratio(largest.pow(2).sum(-1), total),
    )


def direction_fve(
    post: Float[Tensor, "*batch pair m"], W_L: Float[Tensor, "*batch m c"], freqs: Iterable[int], group: Group
) -> Float[Tensor, "*batch key"]:
    """How much of the neurons read along u_k is cos w_k(a + b), and along v_k sin w_k(a + b); key rows in basis order.

    Share of the variance over pairs of N u_k in the unit vector of the same row. Nanda et al. 2023, section 4.2
    (93-98% in the trained model). Exact: 1 for a clock, below 1 for a pizza, whose amplitude depends on a - b.
    """
    freqs = [*freqs]
    rows = freq_mask(freqs, group)[fourier_basis(group).freq_index].nonzero().squeeze(1)
    if not len(rows):
        return post.new_zeros(*post.shape[:-2], 0)
    directions = neuron_logit_map(W_L, freqs, group).directions
    read = torch.einsum("...xm,...km->...xk", post, directions)
    on_wave = sum_components(read, group)[..., rows, :].diagonal(dim1=-2, dim2=-1)
    return _ratio(on_wave**2, read.var(-2, correction=0) * len(group_sums(group)) ** 2)


def split_by_directions(
    x: Float[Tensor, "*batch pair m"], directions: Float[Tensor, "*batch key m"]
) -> tuple[Tensor, Tensor]:
    """(x projected on the span of the directions, the rest). To ablate neurons outside or inside the key span."""
    span = torch.linalg.qr(directions.transpose(-1, -2)).Q
    inside = x @ span @ span.transpose(-1, -2)
    return inside, x - inside


def attention_wave(log_odds: Float[Tensor, "*batch pair"], group: Group) -> tuple[Tensor, Tensor]:
    """(frequency [...], share [...]) of the score that decides between the two operands.

    log_odds: score of key a minus score of key b from the read position, s(a) - s'(b) in a softmax over tokens. The
    mean over b leaves s up to a constant; its largest frequency and that frequency's share of the variance come back.
    Nanda et al. 2023, section 4.1: each head's attention follows one frequency.
    """
    n = prod(group)
    power = power_by_frequency(log_odds.unflatten(-1, (n, n)).mean(-1), group, -1)
    best = power[..., 1:].argmax(-1) + 1
    freqs = torch.tensor(fourier_basis(group).freqs, device=power.device)
    return freqs[best], _ratio(power.gather(-1, best[..., None])[..., 0], power[..., 1:].sum(-1))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where whole is 0."""
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0)
