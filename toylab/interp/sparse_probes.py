"""Probes on k columns: is a variable in a few neurons, or spread over many?

`fit_sparse` chooses k columns (neurons, dictionary latents) by one of SELECTIONS, then fits LDA on them, both from the
same `Moments`: all layers and targets share one pass over the data. The curve over k tells one neuron from a code.

Source: Gurnee et al. 2023 (arXiv 2305.01610). Knows tensors only. Came from: probes.py.
Letters: l layers, n rows, d activations, t targets, c classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.errors import one_of, require
from toylab.interp.probes import (
    Moments,
    Probe,
    checked_labels,
    class_means,
    class_moments,
    count_classes,
    lda_weight,
    shared_rows,
    solve,
)

SELECTIONS = ("mean_difference", "f_statistic", "forward", "adaptive", "l1", "random")
# The L1 path: penalties as shares of the one that lets no column in.
PATH = tuple(0.9**i for i in range(1, 61))


def fit_sparse(
    x: Float[Tensor, "*layer n d"],
    y: Tensor,
    k: int,
    select: str,
    penalty: float = 0.0,
    generator: torch.Generator | None = None,
) -> Probe:
    """An LDA probe on the k best columns (neurons), by layer and target; zeros elsewhere, `support` says which.

    mean_difference  largest |class mean - mean of the rest| in standard deviations, over the target's classes
    f_statistic      one-way analysis of variance: between / within
    forward          greedy: each time the column that lowers the squared error most, given those already in
    adaptive         a dense ridge, then the half with the largest weights (times standard deviation), again down to k
    l1               the columns that enter the L1 path first (least squares on the class indicators, see `_l1_path`)
    random           a control; needs the generator

    penalty is that of the refit (S + penalty I, on standardised columns also during `adaptive`).
    Source: Gurnee et al. 2023, section 4 and their code. Known exactly: planted columns, and of two copies of one
    column `forward` takes one while `mean_difference` takes both. A column that only echoes a chosen one is passed over
    by `forward` and `l1`.
    """
    one_of("select", select, SELECTIONS)
    d = x.shape[-1]
    require(1 <= k <= d, f"k={k}: 1 to {d}, the number of columns")
    require(select != "random" or generator is not None, "select='random' needs a generator")
    y = checked_labels(y, x.shape[-2])
    require(not y.is_floating_point(), "sparse probes need classes (integers)")
    layers, flat = x.shape[:-2], x.reshape(-1, *x.shape[-2:])
    n_classes = count_classes(y)
    weight = flat.new_zeros(len(flat), y.shape[1], int(n_classes.max()), d)
    bias = flat.new_full(weight.shape[:-1], -torch.inf)
    support = torch.zeros(len(flat), y.shape[1], k, dtype=torch.long)
    for targets, rows, c in shared_rows(y, n_classes):
        xs, ys = (flat, y[:, targets]) if rows is None else (flat[:, rows], y[rows][:, targets])
        m = class_moments(xs, ys, c)
        chosen = _ranking(m, c, k, select, penalty, generator)
        w, b = _refit(m, c, chosen, penalty)
        weight[:, targets, :c], bias[:, targets, :c], support[:, targets] = w.to(weight), b.to(bias), chosen
    lead = (*layers, y.shape[1])
    return Probe(
        f"sparse {select}", weight.reshape(*lead, -1, d), bias.reshape(*lead, -1), n_classes, support.reshape(*lead, k)
    )


def _ranking(m: Moments, c: int, k: int, select: str, penalty: float, generator: torch.Generator | None) -> Tensor:
    """The k columns chosen, best first: [l, t, k]."""
    to_mean, prior = (value.unflatten(-1, (-1, c)) for value in class_means(m))  # [l, d, t, c], [t, c]
    to_mean = to_mean.movedim(1, -1)  # [l, t, c, d]
    n_layers, t, _, d = to_mean.shape
    total = (m.scatter.diagonal(dim1=-2, dim2=-1) / m.n)[:, None]  # [l, 1, d]
    floor = m.rtol * total.amax(-1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
    std = torch.maximum(total, floor).sqrt()
    if select == "random":
        return torch.rand(n_layers, t, d, generator=generator).topk(k).indices
    if select == "mean_difference":
        # mean - mean of the rest = (mean - overall) / (1 - prior)
        rest = (1 - prior).clamp_min(0.5 / m.n)[..., None]
        return ((to_mean.abs() / rest).amax(-2) / std).topk(k).indices
    if select == "f_statistic":
        between = (prior[..., None] * to_mean**2).sum(-2)
        return (between / torch.maximum(total - between, floor)).topk(k).indices
    corr = m.scatter / m.n / std.mT / std  # standardised columns from here on
    cross = (prior[..., None] * to_mean) / std[:, :, None]  # covariance with the indicators [l, t, c, d]
    if select == "forward":
        return _forward(corr, cross, k, m.rtol)
    if select == "l1":
        return _l1_path(corr, cross, k)
    kept, left = torch.ones(n_layers, t, d, dtype=torch.bool), d
    while True:
        # A column that is out gets a unit diagonal and nothing else, so one solve serves every support.
        inside = kept[..., :, None] & kept[..., None, :]
        system = torch.where(inside, corr[:, None], torch.eye(d, dtype=corr.dtype))
        coef = solve(system, max(penalty, 1e-6), (cross * kept[:, :, None]).mT, m.rtol)
        size = torch.where(kept, coef.norm(dim=-1), -1)
        if left == k:
            return size.topk(k).indices
        left = max(k, left // 2)
        kept = torch.zeros_like(kept).scatter_(-1, size.topk(left).indices, True)


def _forward(corr: Tensor, cross: Tensor, k: int, rtol: float) -> Tensor:
    """Greedy least squares by pivoted Cholesky: what a column adds is (covariance with the rest of y)^2 / its own rest.

    corr [l, d, d], cross [l, t, c, d]; after column j entered, everything is projected off it.
    """
    t = cross.shape[1]
    rest = corr.diagonal(dim1=-2, dim2=-1)[:, None].repeat(1, t, 1)
    chosen: list[Tensor] = []
    bases: list[Tensor] = []
    layer = torch.arange(len(cross))[:, None]
    for _ in range(k):
        open_ = rest > 10 * rtol  # what is left of a copy of a chosen column is rounding
        gain = torch.where(open_, (cross**2).sum(-2) / torch.where(open_, rest, 1), -1.0)
        for j in chosen:
            gain.scatter_(-1, j[..., None], -torch.inf)
        j = gain.argmax(-1)  # [l, t]
        at = j[..., None]
        basis = corr[layer, j] - sum(b * b.gather(-1, at) for b in bases)
        size = rest.gather(-1, at)
        basis = torch.where(size > 10 * rtol, basis / size.clamp_min(rtol).sqrt(), 0)
        cross = cross - cross.gather(-1, at[:, :, None].expand(-1, -1, cross.shape[2], -1)) * (
            basis / size.clamp_min(rtol).sqrt()
        ).unsqueeze(2)
        rest = (rest - basis**2).clamp_min(0)
        chosen.append(j)
        bases.append(basis)
    return torch.stack(chosen, -1)


def _l1_path(
    corr: Float[Tensor, "l d d"], cross: Float[Tensor, "l t c d"], k: int, tolerance: float = 1e-5
) -> Int[Tensor, "l t k"]:
    """The k columns that enter first as the penalty falls, on the path of

        min_B  1/2 tr(B corr B^T) - tr(B cross^T) + penalty sum_j |B_j|,     B [class, d], |B_j| the length of column j:

    the group lasso of least squares on the class indicators, so that a column is in for all classes or for none; with
    two classes it is the lasso, whose order of entry is LARS's (Efron et al. 2004). It needs moments alone, where L1
    logistic regression needs the rows. Solved by accelerated proximal gradient (Beck and Teboulle 2009), each penalty
    from the solution before. Columns that enter between two penalties are ordered by length, those that never enter
    by what is left of their covariance with the labels.
    """
    cross = cross[:, :, :1] if cross.shape[2] == 2 else cross  # the indicators of two classes are opposite
    step = 1 / torch.linalg.eigvalsh(corr)[:, -1, None, None, None]
    first = cross.norm(dim=2, keepdim=True).amax(-1, keepdim=True)  # the penalty that lets no column in
    B, entered = torch.zeros_like(cross), torch.zeros_like(cross[:, :, 0])
    for i, share in enumerate(PATH):
        before, ahead, momentum = B, B, 1.0
        for _ in range(500):
            moved = ahead - step * (ahead @ corr[:, None] - cross)
            length = moved.norm(dim=2, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
            before, B = B, moved * (1 - step * share * first / length).clamp_min(0)
            momentum, last = (1 + (1 + 4 * momentum**2) ** 0.5) / 2, momentum
            ahead = B + (last - 1) / momentum * (B - before)
            if bool((B - before).abs().amax() <= tolerance * B.abs().amax()):
                break
        size = B.norm(dim=2)
        new = (size > 0) & (entered == 0)
        entered = torch.where(new, len(PATH) - i + size / (2 * size.amax(-1, keepdim=True)), entered)
        if bool(((entered > 0).sum(-1) >= k).all()):
            break
    rest = (cross - B @ corr[:, None]).norm(dim=2)
    return torch.where(entered > 0, entered, rest / (2 * first[:, :, 0])).topk(k).indices


def _refit(m: Moments, c: int, chosen: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """LDA on the chosen columns, from the same moments: weight [l, t, c, d], bias [l, t, c]."""
    n_layers, t = chosen.shape[:2]
    to_mean, prior = class_means(m)
    layer = torch.arange(n_layers)[:, None, None]
    small = m.scatter[layer[..., None], chosen[..., :, None], chosen[..., None, :]]  # [l, t, k, k]
    own = to_mean.unflatten(-1, (t, c)).permute(0, 2, 1, 3)  # [l, t, d, c]
    own = own.gather(2, chosen[..., None].expand(-1, -1, -1, c))
    # Each (layer, target) now has its own columns, so each is a layer of one target.
    mean = m.mean[layer, chosen]
    weight, bias = [], []
    for i in range(t):  # priors differ by target; layers go together
        p = prior.reshape(t, c)[i]
        w = lda_weight(m, small[:, i], own[:, i], p, c, penalty)  # [l, c, k]
        b = p.log() - torch.einsum("lck,lkc->lc", w, mean[:, i, :, None] + own[:, i] / 2)
        weight.append(w)
        bias.append(torch.where(p > 0.5 / m.n, b, -torch.inf))
    dense = m.mean.new_zeros(n_layers, t, c, m.mean.shape[-1])
    dense.scatter_(-1, chosen[:, :, None].expand(-1, -1, c, -1), torch.stack(weight, 1))
    return dense, torch.stack(bias, 1)
