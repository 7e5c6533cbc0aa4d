"""Probes: can a variable be read off activations, by how simple a reader?

1. `Moments`: means, scatter and class sums. Everything closed-form (ridge, LDA, mass-mean, sparse selection, LEACE) is
   a function of them, so all layers and all targets share one pass over the data. Moments of pieces add up.
2. `fit` -> `Probe` (ridge, lda, mass_mean, logistic), `fit_mlp` -> `MLPProbe`.

Sources: Alain and Bengio 2016 (arXiv 1610.01644); Marks and Tegmark 2023 (arXiv 2310.06824; mass-mean).
Knows tensors only.
Classes are integers, -1 where the variable is undefined (those rows are left out); reals are regressed on.
Letters: l layers, n rows, d activations, t targets, c classes. Read next: probe_scores.py (is what a probe reads more
than the input gives away?), sparse_probes.py (a few columns), erasure.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import optimize
from torch import Tensor

from toylab.errors import UserError, one_of, require

# --- Moments ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of activations x and columns y (class indicators or reals), in float64.

    n: rows.  mean: [*layer, d].  scatter: [*layer, d, d], sum of (x - mean)(x - mean)^T.  y_mean: [column].
    cross: [*layer, d, column], sum of (x - mean) y^T.  rtol: what counts as rank 0 beside the largest eigenvalue.
    a + b is the moments of both pieces together (Chan et al. 1983), so data may come in a stream.
    """

    n: int
    mean: Float[Tensor, "*layer d"]
    scatter: Float[Tensor, "*layer d d"]
    y_mean: Float[Tensor, " column"]
    cross: Float[Tensor, "*layer d column"]
    rtol: float

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        step, y_step = other.mean - self.mean, other.y_mean - self.y_mean
        weight = self.n * other.n / n
        return Moments(
            n=n,
            mean=self.mean + step * (other.n / n),
            scatter=self.scatter + other.scatter + weight * step[..., :, None] * step[..., None, :],
            y_mean=self.y_mean + y_step * (other.n / n),
            cross=self.cross + other.cross + weight * step[..., :, None] * y_step,
            rtol=max(self.rtol, other.rtol),
        )


def moments(x: Float[Tensor, "*layer n d"], y: Float[Tensor, "n column"]) -> Moments:
    """The moments of these rows. Sums run in x's dtype, everything after them in float64. Raises on NaN or infinity."""
    require(x.shape[-2] == len(y), f"{x.shape[-2]} rows of activations arrived with {len(y)} rows of labels")
    require(len(y) > 1, f"{len(y)} rows arrived; at least 2 are needed")
    n, d = x.shape[-2:]
    flat = x.reshape(-1, n, d)
    sums, squares = _sums(flat, y)
    mean = sums[..., -1] / n
    variance = squares.diagonal(dim1=-2, dim2=-1) / n - mean**2
    # sum x x^T - n mean mean^T loses the digits of mean^2/variance. A second pass over centred data keeps them, and
    # is only paid for where the loss would show.
    if bool((mean**2 > 10 * variance).any()):
        shift = mean.to(x.dtype)
        sums, squares = _sums(flat - shift[:, None], y)
        rest = sums[..., -1] / n
        mean = shift.double() + rest
    else:
        rest = mean
    finite = sums.isfinite().all() and squares.isfinite().all()
    require(bool(finite), "the activations or labels hold NaN or infinity (or overflow when squared)")
    y_mean = y.sum(0, dtype=torch.double) / n
    lead = x.shape[:-2]
    return Moments(
        n=n,
        mean=mean.reshape(*lead, d),
        scatter=(squares - n * rest[:, :, None] * rest[:, None, :]).reshape(*lead, d, d),
        y_mean=y_mean,
        cross=(sums[..., :-1] - n * rest[:, :, None] * y_mean).reshape(*lead, d, -1),
        rtol=d * torch.finfo(x.dtype).eps,
    )


def _sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(x^T [y, 1], x^T x) of each layer, in float64. One layer at a time stays in the processor's cache."""
    with_ones = torch.cat([y.to(x), x.new_ones(len(y), 1)], 1)
    return torch.stack([with_ones.T @ a for a in x]).mT.double(), torch.stack([a.T @ a for a in x]).double()


def class_moments(x: Float[Tensor, "*layer n d"], y: Int[Tensor, "n target"], n_classes: int) -> Moments:
    """Moments with one indicator column per target and class, column = target * n_classes + class; no -1 in y."""
    # The indicators of a target add up to 1 and x is centred: the last class is minus the sum of the others.
    some = moments(x, (y[..., None] == torch.arange(n_classes - 1)).flatten(1).to(x.dtype))
    y_mean, cross = (value.unflatten(-1, (y.shape[1], n_classes - 1)) for value in (some.y_mean, some.cross))
    y_mean = torch.cat([y_mean, 1 - y_mean.sum(-1, keepdim=True)], -1).flatten(-2)
    cross = torch.cat([cross, -cross.sum(-1, keepdim=True)], -1).flatten(-2)
    return Moments(some.n, some.mean, some.scatter, y_mean, cross, some.rtol)


def solve(
    scatter: Float[Tensor, "*layer d d"], penalty: float, rhs: Float[Tensor, "*layer d k"], rtol: float
) -> Tensor:
    """(scatter + penalty I)^-1 rhs; the pseudo-inverse where that is singular (eigenvalues below rtol * largest)."""
    d = scatter.shape[-1]
    if penalty > 0:
        factor, failed = torch.linalg.cholesky_ex(scatter + penalty * torch.eye(d, dtype=scatter.dtype))
        if not failed.any():
            return torch.cholesky_solve(rhs, factor)
    values, vectors = torch.linalg.eigh(scatter)
    values = values.clamp_min(0) + penalty
    kept = values > rtol * values[..., -1:]
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1), 0)
    return vectors @ (inverse[..., None] * (vectors.mT @ rhs))


# --- Linear probes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Probe:
    """scores = x @ weight^T + bias, one per target and class; the largest is the prediction. Reals have one "class".

    weight:    [*layer, target, class, d]; padded to the largest number of classes.
    bias:      [*layer, target, class]; -inf for classes a target does not have or never showed.
    n_classes: [target], 0 for reals.
    support:   [*layer, target, k] columns used by a sparse probe, best first; None when dense.
    """

    kind: str
    weight: Float[Tensor, "*layer target c d"]
    bias: Float[Tensor, "*layer target c"]
    n_classes: Int[Tensor, " target"]
    support: Int[Tensor, "*layer target k"] | None = None

    def scores(self, x: Float[Tensor, "*layer n d"]) -> Float[Tensor, "*layer n target c"]:
        """One score per row, target and class."""
        require(
            x.shape[-1] == self.weight.shape[-1] and x.shape[:-2] == self.weight.shape[:-3],
            f"activations of shape {tuple(x.shape)} arrived; this probe was fitted on "
            f"[{', '.join([*map(str, self.weight.shape[:-3]), 'n', str(self.weight.shape[-1])])}]",
        )
        out = x @ self.weight.flatten(-3, -2).mT
        return out.unflatten(-1, self.weight.shape[-3:-1]) + self.bias.unsqueeze(-3)

    def predict(self, x: Float[Tensor, "*layer n d"]) -> Tensor:
        """Classes [*layer, n, target], or real values."""
        return predictions(self.scores(x), self.n_classes)

    @property
    def directions(self) -> Float[Tensor, "*layer target c d"]:
        """Unit vectors along which the score of a class rises against the mean of the target's classes.

        With two classes row 1 points from class 0 to class 1 and row 0 is its negative. For reals: the weight.
        """
        valid = self.bias.isfinite().unsqueeze(-1)
        mean = (self.weight * valid).sum(-2, keepdim=True) / valid.sum(-2, keepdim=True)
        centred = torch.where((self.n_classes > 0)[:, None, None], (self.weight - mean) * valid, self.weight)
        return F.normalize(centred, dim=-1)


def predictions(scores: Float[Tensor, "*layer n target c"], n_classes: Int[Tensor, " target"]) -> Tensor:
    """The class with the largest score, or the score itself for reals: [*layer, n, target]."""
    return scores[..., 0] if not n_classes.any() else scores.argmax(-1)


def fit(x: Float[Tensor, "*layer n d"], y: Tensor, kind: str, penalty: float = 0.0) -> Probe:
    """A linear probe for every layer and every column of y ([n] or [n, target]).

    kind       scores                                                  penalty
    ridge      least squares on class indicators, or on real values    sum of squares + penalty |w|^2 (Ridge's alpha)
    lda        log of prior times Gaussian with the shared covariance  S + penalty I
    mass_mean  the nearest class mean; no covariance, no prior         none
    logistic   maximum likelihood                                      sum of losses + penalty/2 |w|^2 (1/C); > 0

    Intercepts are never penalised. Two classes use one logistic weight vector, more a softmax, as scikit-learn does.
    Known exactly: Gaussian classes with one covariance: LDA is the Bayes rule; ridge -> 0 is parallel to LDA. Accuracy,
    at any fixed penalty, does not change when the activations are rotated.
    Raises UserError for a target with one class, NaN, and reals with anything but ridge.
    """
    one_of("kind", kind, FAMILIES)
    require(penalty >= 0, f"penalty={penalty}: 0 or more")
    require(kind != "mass_mean" or penalty == 0, "mass_mean has nothing to penalise; lda is its regularised relative")
    require(kind != "logistic" or penalty > 0, "logistic needs penalty > 0: separable classes have no optimum without")
    y = checked_labels(y, x.shape[-2])
    require(
        kind == "ridge" or not y.is_floating_point(), f"{kind} needs classes (integers); these labels are real: ridge"
    )
    layers, flat = x.shape[:-2], x.reshape(-1, *x.shape[-2:])
    n_classes = count_classes(y)
    weight = flat.new_zeros(len(flat), y.shape[1], max(1, int(n_classes.max())), flat.shape[-1])
    bias = flat.new_full(weight.shape[:-1], -torch.inf)
    for targets, rows, c in shared_rows(y, n_classes):
        xs, ys = (flat, y[:, targets]) if rows is None else (flat[:, rows], y[rows][:, targets])
        w, b = FAMILIES[kind](xs, ys, c, penalty)
        weight[:, targets, : max(1, c)], bias[:, targets, : max(1, c)] = w.to(weight), b.to(bias)
    return Probe(kind, weight.reshape(*layers, *weight.shape[1:]), bias.reshape(*layers, *bias.shape[1:]), n_classes)


def checked_labels(y: Tensor, n: int) -> Tensor:
    """y as [n, target]; raises on wrong sizes, NaN, classes below -1, and targets with fewer than two values."""
    y = y[:, None] if y.ndim == 1 else y
    require(
        y.ndim == 2 and len(y) == n,
        f"labels of shape {tuple(y.shape)} arrived with {n} rows of activations; expected [{n}] or [{n}, target]",
    )
    if y.is_floating_point():
        require(bool(y.isfinite().all()), "the labels hold NaN or infinity")
        flat = (y == y[:1]).all(0).nonzero().flatten().tolist()
        require(not flat, f"target {flat[:1] and flat[0]} has the same value in all {n} rows: nothing to read")
        return y
    y = y.long()
    # Reductions over rows are twenty times faster in int32 than in int64.
    lowest, largest = y.int().amin(0), y.int().amax(0)
    require(int(lowest.min()) >= -1, f"a class of {int(lowest.min())} arrived; classes are 0, 1, ..., -1 is undefined")
    smallest = lowest if int(lowest.min()) >= 0 else torch.where(y < 0, y.max() + 1, y).amin(0)
    for t in (smallest >= largest).nonzero().flatten().tolist():
        known = int((y[:, t] >= 0).sum())
        raise UserError(
            f"target {t} has one class ({int(largest[t])}) in its {known} defined rows; a probe needs two to tell apart"
            if known
            else f"target {t} is undefined (-1) in every row"
        )
    return y


def count_classes(y: Tensor) -> Int[Tensor, " target"]:
    """The number of classes of each target, 1 + the largest; 0 for reals."""
    return torch.zeros(y.shape[1], dtype=torch.long) if y.is_floating_point() else y.int().amax(0).long() + 1


def defined_rows(y: Int[Tensor, "n target"]) -> Bool[Tensor, " n"]:
    """True where every target is defined."""
    return (y >= 0).all(1)


def shared_rows(y: Tensor, n_classes: Tensor) -> Iterator[tuple[Tensor, Tensor | None, int]]:
    """(targets, their rows or None for all, number of classes): targets that one solve can serve."""
    everywhere = y.is_floating_point() or int(y.int().min()) >= 0
    known = torch.ones_like(y, dtype=torch.bool) if everywhere else y >= 0
    kinds: dict[tuple[bytes, int], list[int]] = {}
    for t, c in enumerate(n_classes.tolist()):
        key = b"" if everywhere else known[:, t].cpu().numpy().tobytes()
        kinds.setdefault((key, c), []).append(t)
    for (_, c), targets in kinds.items():
        mask = known[:, targets[0]]
        yield torch.tensor(targets), None if bool(mask.all()) else mask.nonzero().squeeze(1), c


def _ridge(x: Tensor, y: Tensor, n_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    m = class_moments(x, y, n_classes) if n_classes else moments(x, y)
    coef = solve(m.scatter, penalty, m.cross, m.rtol).mT  # [l, t * c, d]
    bias = m.y_mean - torch.einsum("lkd,ld->lk", coef, m.mean)
    return _per_class(coef, bias, m, n_classes)


def _lda(x: Tensor, y: Tensor, n_classes: int, penalty: float, m: Moments | None = None) -> tuple[Tensor, Tensor]:
    m = class_moments(x, y, n_classes) if m is None else m
    to_mean, prior = class_means(m)
    weight = lda_weight(m, m.scatter, to_mean, prior, n_classes, penalty)
    bias = prior.log() - torch.einsum("lkd,ldk->lk", weight, m.mean[..., None] + to_mean / 2)
    return _per_class(weight, bias, m, n_classes)


def class_means(m: Moments) -> tuple[Tensor, Tensor]:
    """(class mean - mean [l, d, t * c], 0 for classes without rows; prior [t * c])."""
    return torch.where(m.y_mean > 0, m.cross / (m.n * m.y_mean), 0), m.y_mean.clamp_min(0)


def lda_weight(m: Moments, scatter: Tensor, to_mean: Tensor, prior: Tensor, n_classes: int, penalty: float) -> Tensor:
    """S^-1 (class mean - mean) as [l, t * c, d], S the pooled within-class covariance plus penalty.

    n S = A - B B^T with A the total scatter (plus n penalty I), which all targets share, and B the columns
    sqrt(n_c) (class mean - mean) of one target. So S^-1 B = n A^-1 B (I - B^T A^-1 B)^-1: one solve for all targets and
    a c x c one for each.
    """
    root = (m.n * prior).sqrt()
    between = to_mean * root  # B
    solved = solve(scatter, m.n * penalty, between, m.rtol)
    B, K = (value.unflatten(-1, (-1, n_classes)).movedim(-2, -3) for value in (between, solved))  # [l, t, d, c]
    values, vectors = torch.linalg.eigh(torch.eye(n_classes, dtype=B.dtype) - B.mT @ K)
    # 0 where classes do not vary at all along a direction: the weight would be infinite.
    values = values.clamp_min(m.rtol)
    weight = m.n * (K @ vectors / values[..., None, :]) @ vectors.mT  # [l, t, d, c]
    return torch.where(root > 0, weight.movedim(-3, -2).flatten(-2) / root, 0).mT


def _mass_mean(x: Tensor, y: Tensor, n_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    m = class_moments(x, y, n_classes)
    weight = class_means(m)[0].mT
    bias = -torch.einsum("lkd,lkd->lk", weight, m.mean[:, None] + weight / 2)
    return _per_class(weight, bias, m, n_classes)


def _per_class(weight: Tensor, bias: Tensor, m: Moments, n_classes: int) -> tuple[Tensor, Tensor]:
    """[l, t * c, ...] -> [l, t, c, ...]; a class that never occurs is never predicted."""
    if n_classes:
        bias = torch.where(m.y_mean > 0.5 / m.n, bias, -torch.inf)
    shape = (-1, max(1, n_classes))
    return weight.unflatten(1, shape), bias.unflatten(1, shape)


def _logistic(x: Tensor, y: Tensor, n_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """All targets of a layer in one run of scipy's L-BFGS, from LDA, in coordinates that make the Hessian about 1.

    With scatter = V diag(e) V^T and h the mean of p(1 - p) at the start, the Hessian in w of one target is about
    V diag(h e + penalty) V^T. So w = V diag(h e + penalty)^-1/2 u, and L-BFGS in u needs some ten steps instead of
    hundreds. The objective is untouched, so the optimum is too.
    """
    m = class_moments(x, y, n_classes)
    outputs = 1 if n_classes == 2 else n_classes
    start, _ = _lda(x, y, n_classes, 0.0, m)  # [l, t, c, d]
    seen = (m.y_mean > 0.5 / m.n).reshape(-1, n_classes)
    if outputs == 1:
        start = start[:, :, 1:] - start[:, :, :1]
    else:
        # A softmax does not see what all classes share. The penalty wants that part to be 0, and gradients keep it so.
        start = (start - start.sum(2, keepdim=True) / seen.sum(1)[:, None, None]) * seen[..., None]
    odds = m.y_mean.clamp_min(0.5 / m.n).log().reshape(-1, n_classes)
    odds = odds[:, 1:] - odds[:, :1] if outputs == 1 else odds - odds.mean(-1, keepdim=True)
    loss = _binary_loss(y) if outputs == 1 else _softmax_loss(y, seen)
    fits = [
        _minimise(a, loss, penalty, w, odds, mean, scatter)
        for a, w, mean, scatter in zip(x, start, m.mean, m.scatter, strict=True)
    ]
    weight, bias = (torch.stack(part) for part in zip(*fits, strict=True))
    if outputs == 1:
        return F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))
    return weight, torch.where(seen, bias, -torch.inf)


# From scores z [n, t, output] (which may be overwritten) to the loss of each target and its slope in z.
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


def _binary_loss(y: Tensor) -> Loss:
    flip = (1 - 2 * y).float()[..., None]

    def loss(z: Tensor) -> tuple[Tensor, Tensor]:
        wrong = z.mul_(flip.to(z))  # in place throughout: a new tensor of this size costs more than the arithmetic
        losses = F.softplus(wrong).sum((0, 2), dtype=torch.float64)
        return losses, wrong.sigmoid_().mul_(flip.to(z))

    return loss


def _softmax_loss(y: Tensor, seen: Tensor) -> Loss:
    blocked = torch.where(seen, 0.0, -torch.inf)

    def loss(z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = z.add_(blocked.to(z)).log_softmax(-1)
        losses = -log_p.gather(-1, y[..., None]).sum((0, 2), dtype=torch.float64)
        slope = log_p.exp_()
        return losses, slope.scatter_add_(-1, y[..., None], slope.new_full((1, 1, 1), -1).expand(*y.shape, 1))

    return loss


def _minimise(
    x: Tensor, loss: Loss, penalty: float, w: Tensor, b: Tensor, mean: Tensor, scatter: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight [t, output, d] and bias [t, output] with the least loss + penalty/2 |w|^2; w and b start it."""
    t, outputs = w.shape[:2]
    values, vectors = torch.linalg.eigh(scatter)
    inputs = torch.cat([(x - mean.to(x)) @ vectors.to(x), x.new_ones(len(x), 1)], 1)

    def at(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Penalised loss of each target, slope in z, and the gradient in v [d + 1, t, output] (intercepts last)."""
        z = (inputs @ v.flatten(1).to(x)).unflatten(1, (t, outputs))
        losses, slope = loss(z)
        gradient = (inputs.T @ slope.flatten(1)).double().unflatten(1, (t, outputs))
        gradient[:-1] += penalty * v[:-1]
        return losses + penalty / 2 * v[:-1].pow(2).sum((0, 2)), slope, gradient

    # LDA's direction is nearly right, its length only for Gaussian classes: take the best of a few.
    direction = torch.cat([(w @ vectors).movedim(-1, 0), torch.zeros_like(b)[None]])
    intercept = torch.cat([torch.zeros_like(direction[:-1]), b[None]])
    tries = torch.stack([direction * length + intercept for length in (0.0, 0.03, 0.1, 0.3, 1.0)])
    best = torch.stack([at(v)[0].nan_to_num(torch.inf) for v in tries]).argmin(0)
    v0 = tries.movedim(2, 0)[torch.arange(t), best].movedim(0, 1)  # [d + 1, t, output]
    p = at(v0)[1].abs()  # the slope is p or 1 - p
    spread = (p * (1 - p)).mean((0, 2)).double().clamp_min(1e-4)[:, None].expand(t, outputs)
    curvature = torch.cat([values.clamp_min(0), values.new_tensor([len(x)])])[:, None, None] * spread
    curvature[:-1] += penalty
    scale = curvature.rsqrt()

    def objective(u):
        losses, _, gradient = at(v0 + scale * torch.from_numpy(u).reshape(v0.shape))
        return float(losses.sum()), (scale * gradient).numpy().ravel()

    # In these units the optimum is missed by about |gradient|^2 / 2, and the loss is of order n. Sums of float32
    # products are noise below these bounds.
    gtol, ftol = (1e-6, 1e-9) if x.dtype != torch.float64 else (1e-7, 1e-14)
    options = {"gtol": gtol * len(x) ** 0.5, "ftol": ftol, "maxiter": 2000, "maxcor": 20}
    found = optimize.minimize(
        objective, scale.new_zeros(v0.numel()).numpy(), jac=True, method="L-BFGS-B", options=options
    )
    if found.status == 1:
        warnings.warn(f"logistic probe: {found.message}; a larger penalty converges sooner", stacklevel=5)
    v = v0 + scale * torch.from_numpy(found.x).reshape(v0.shape)
    w = torch.einsum("de,eto->tod", vectors, v[:-1])
    return w, v[-1] - w @ mean


FAMILIES: dict[str, Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]] = {
    "ridge": _ridge,
    "lda": _lda,
    "mass_mean": _mass_mean,
    "logistic": _logistic,
}


# --- MLP probes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """scores = relu((x - mean) / std @ W_in + b_in) @ W_out + b_out.

    One small network per layer and target (as many nets as targets), or one per layer whose hidden units all targets
    read (one net).
    """

    mean: Float[Tensor, "*layer d"]
    std: Float[Tensor, "*layer d"]
    W_in: Float[Tensor, "*layer net d hidden"]
    b_in: Float[Tensor, "*layer net hidden"]
    W_out: Float[Tensor, "*layer target hidden c"]
    b_out: Float[Tensor, "*layer target c"]
    n_classes: Int[Tensor, " target"]
    kind: str = "mlp"

    def scores(self, x: Float[Tensor, "*layer n d"]) -> Float[Tensor, "*layer n target c"]:
        """One score per row, target and class; -inf for classes a target does not have."""
        x = ((x - self.mean.unsqueeze(-2)) / self.std.unsqueeze(-2)).unsqueeze(-3)
        hidden = (x @ self.W_in + self.b_in.unsqueeze(-2)).relu()
        W_out = _by_net(self.W_out, self.W_in.shape[-3])
        return _by_target(hidden @ W_out, self.W_out).movedim(-3, -2) + self.b_out.unsqueeze(-3)

    def predict(self, x: Float[Tensor, "*layer n d"]) -> Tensor:
        """Classes [*layer, n, target], or real values."""
        return predictions(self.scores(x), self.n_classes)


def _by_net(W_out: Float[Tensor, "*layer target hidden c"], nets: int) -> Float[Tensor, "*layer net hidden column"]:
    """The output weights of all targets that read the same hidden units side by side."""
    return W_out.unflatten(-3, (nets, -1)).movedim(-3, -2).flatten(-2)


def _by_target(
    out: Float[Tensor, "*layer net n column"], W_out: Float[Tensor, "*layer target hidden c"]
) -> Float[Tensor, "*layer target n c"]:
    """The undoing of it, for what comes out."""
    return out.unflatten(-1, (-1, W_out.shape[-1])).movedim(-2, -3).flatten(-4, -3)


def fit_mlp(
    x: Float[Tensor, "*layer n d"],
    y: Tensor,
    hidden: int,
    steps: int,
    generator: torch.Generator,
    lr: float = 0.01,
    batch_size: int = 512,
    weight_decay: float = 0.0,
    shared: bool = False,
) -> MLPProbe:
    """A one-hidden-layer probe for every layer and target, by `steps` of AdamW on minibatches drawn from `generator`.

    shared: the targets of a layer read the same hidden units, which is how Li et al. (arXiv 2210.13382) read 64 squares
    at once; with few of them this is a bottleneck that targets compete for. Otherwise each target has its own.
    Cross-entropy for classes, squared error for reals; all networks train together as one batched product. Report
    `hidden` and a selectivity with the accuracy: a wide probe computes what the network does not (Hewitt and Liang).
    Known exactly: the parity of two bits, which no linear probe reads.
    """
    require(hidden >= 1 and steps >= 1, f"hidden={hidden}, steps={steps}: both at least 1")
    y = checked_labels(y, x.shape[-2])
    require(bool(x.isfinite().all()), "the activations hold NaN or infinity")
    layers, flat = x.shape[:-2], x.reshape(-1, *x.shape[-2:])
    (n_layers, n, d), t, n_classes = flat.shape, y.shape[1], count_classes(y)
    c = max(1, int(n_classes.max()))
    mean, std = flat.mean(1), flat.std(1).clamp_min(1e-6)
    blocked = torch.where(torch.arange(c) < n_classes.clamp_min(1)[:, None], 0.0, -torch.inf).to(flat)
    defined = torch.ones_like(y, dtype=flat.dtype) if y.is_floating_point() else (y >= 0).to(flat.dtype)

    def draw(*shape: int) -> Tensor:
        start = torch.randn(shape, generator=generator).to(flat) * shape[-2] ** -0.5
        return start.requires_grad_()

    nets = 1 if shared else t
    W_in, W_out = draw(n_layers, nets, d, hidden), draw(n_layers, t, hidden, c)
    b_in = flat.new_zeros(n_layers, nets, 1, hidden).requires_grad_()
    b_out = flat.new_zeros(n_layers, t, 1, c).requires_grad_()
    optimiser = torch.optim.AdamW([W_in, b_in, W_out, b_out], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for _ in range(steps):
        rows = torch.randint(n, (min(batch_size, n),), generator=generator)
        inputs = ((flat[:, rows] - mean[:, None]) / std[:, None])[:, None]
        seen = (inputs @ W_in + b_in).relu() @ _by_net(W_out, nets)
        out = _by_target(seen, W_out) + b_out  # [l, t, rows, c]
        labels = y[rows].T.expand(n_layers, -1, -1)
        if y.is_floating_point():
            losses = (out[..., 0] - labels) ** 2
        else:
            log_p = (out + blocked[:, None]).log_softmax(-1)
            losses = -log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        optimiser.zero_grad()
        # A sum over networks: each sees its own mean loss, so none depends on how many train beside it.
        ((losses * defined[rows].T).sum(-1) / defined[rows].sum(0).clamp_min(1)).sum().backward()
        optimiser.step()
        schedule.step()

    def shaped(value: Tensor) -> Tensor:
        return value.detach().reshape(*layers, *value.shape[1:])

    return MLPProbe(
        mean=shaped(mean),
        std=shaped(std),
        W_in=shaped(W_in),
        b_in=shaped(b_in[:, :, 0]),
        W_out=shaped(W_out),
        b_out=shaped(b_out[:, :, 0] + blocked),
        n_classes=n_classes,
    )
