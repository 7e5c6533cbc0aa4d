"""How well a probe reads, and whether that is more than the input gives away: rows, splits, scores, controls.

1. `as_rows` lays activations [*layer, batch, pos, d] and a latent's values [batch, pos, ...] out as rows.
   `split_by_group` puts whole sequences on one side: positions of one sequence share tokens, so splitting them leaks.
2. `evaluate`: accuracy, balanced accuracy, AUROC or R^2, each with its count and a standard error over sequences.
3. `ladder`: the same probe on the input, an untrained network, the trained one, and on shuffled or control labels.

Source: Hewitt and Liang 2019 (arXiv 1909.03368; control tasks). Knows tensors only. Came from: probes.py.
Letters: n rows, d activations, t targets, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toylab.errors import one_of, require
from toylab.interp.probes import MLPProbe, Probe, checked_labels, predictions

# --- Rows and splits -------------------------------------------------------------------------------------------------


def as_rows(x: Float[Tensor, "*layer batch pos d"], values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations and a latent's values [batch, pos, ...] as (x [*layer, n, d], y [n, target], group [n]).

    Row number = sequence * pos + position; group is the sequence number. Targets are the trailing axes of `values`,
    flattened (the 64 squares of a board).
    """
    require(
        values.shape[:2] == x.shape[-3:-1],
        f"values of shape {tuple(values.shape)} arrived with activations {tuple(x.shape)}; "
        f"expected [batch={x.shape[-3]}, pos={x.shape[-2]}, ...]",
    )
    batch, pos = values.shape[:2]
    group = torch.arange(batch, device=values.device).repeat_interleave(pos)
    return x.flatten(-3, -2), values.reshape(batch * pos, -1), group


def split_by_group(
    group: Int[Tensor, " n"], frac_train: float, generator: torch.Generator
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Row numbers (train, test) such that no group (sequence, game) is on both sides; groups are drawn at random."""
    require(0 < frac_train < 1, f"frac_train={frac_train} is outside (0, 1); 0.8 is usual")
    names, member = group.unique(return_inverse=True)
    n_train = round(frac_train * len(names))
    require(
        0 < n_train < len(names),
        f"frac_train={frac_train} of {len(names)} groups leaves one side empty; take more sequences",
    )
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[torch.randperm(len(names), generator=generator)[:n_train]] = True
    in_train = chosen.to(member.device)[member]
    return in_train.nonzero().squeeze(1), (~in_train).nonzero().squeeze(1)


def control_labels(
    types: Int[Tensor, " n"], y: Int[Tensor, "n target"], generator: torch.Generator
) -> Int[Tensor, "n target"]:
    """Hewitt and Liang's control task: a fixed random class for every type (token, last move), the marginals of y.

    The class of a type is drawn from the rows of y where it is defined; undefined rows stay -1. A probe that does
    well on these labels has memorised types; selectivity = accuracy(y) - accuracy(control).
    """
    _, member = types.unique(return_inverse=True)
    n_types = int(member.max()) + 1
    columns = []
    for column in y.T:
        defined = column[column >= 0]
        drawn = defined[torch.randint(len(defined), (n_types,), generator=generator)]
        columns.append(torch.where(column >= 0, drawn[member], -1))
    return torch.stack(columns, 1)


# --- How well --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Metric:
    """A number per layer and target with its standard error (over groups) and the count of defined rows [target]."""

    value: Float[Tensor, "*layer target"]
    stderr: Float[Tensor, "*layer target"]
    n: Int[Tensor, " target"]


def evaluate(
    probe: Probe | MLPProbe, x: Float[Tensor, "*layer n d"], y: Tensor, group: Int[Tensor, " n"] | None = None
) -> dict[str, Metric]:
    """accuracy, balanced_accuracy and auroc of the probe on these rows; r2 for reals. Undefined rows do not count."""
    y = y[:, None] if y.ndim == 1 else y
    require(
        len(y) == x.shape[-2] and y.shape[1] == len(probe.n_classes),
        f"labels of shape {tuple(y.shape)} arrived; expected [{x.shape[-2]}, {len(probe.n_classes)}]",
    )
    scores = probe.scores(x)
    predicted = predictions(scores, probe.n_classes)
    if y.is_floating_point():
        return {"r2": r2(predicted, y, group)}
    return {
        "accuracy": accuracy(predicted, y, group),
        "balanced_accuracy": balanced_accuracy(predicted, y, group),
        "auroc": auroc(class_contrasts(scores), y, group),
    }


def accuracy(predicted: Int[Tensor, "*layer n target"], y: Tensor, group: Tensor | None = None) -> Metric:
    """Share of the defined rows that are right."""
    defined = (y >= 0).double()
    n = defined.sum(0)
    right = (predicted == y).double()
    value = (right * defined).sum(-2) / n
    return _metric(value, (right - value.unsqueeze(-2)) * defined, n, group)


def balanced_accuracy(predicted: Int[Tensor, "*layer n target"], y: Tensor, group: Tensor | None = None) -> Metric:
    """Mean over the classes that occur of the share of their rows that are right: 1/classes for a constant answer."""
    defined = (y >= 0).double()
    n = defined.sum(0)
    size = torch.zeros(int(y.max()) + 1, y.shape[1], dtype=torch.double).scatter_add_(0, y.clamp_min(0), defined)
    index = y.clamp_min(0)
    weight = defined / size.gather(0, index).clamp_min(1)  # one over the size of the row's class
    right = (predicted == y).double()
    of_class = right.new_zeros(*right.shape[:-2], *size.shape)
    of_class.scatter_add_(-2, index.expand_as(right), right * weight)
    occurring = (size > 0).sum(0)
    influence = (right - of_class.gather(-2, index.expand_as(right))) * weight * n / occurring
    return _metric(of_class.sum(-2) / occurring, influence, n, group)


def r2(predicted: Float[Tensor, "*layer n target"], y: Tensor, group: Tensor | None = None) -> Metric:
    """1 - squared error / squared distance from the mean of y: 1 perfect, 0 no better than the mean, and below."""
    n = torch.full((y.shape[1],), len(y), dtype=torch.double)
    error, spread = (predicted - y).double() ** 2, (y - y.mean(0)).double() ** 2
    ratio = error.sum(-2) / spread.sum(0)
    influence = -(error - ratio.unsqueeze(-2) * spread) * n / spread.sum(0)
    return _metric(1 - ratio, influence, n, group)


def class_contrasts(scores: Float[Tensor, "*layer n target c"]) -> Float[Tensor, "*layer n target c"]:
    """Each class's score minus the mean of the target's other classes: how strongly a row is called that class."""
    valid = scores.isfinite()
    filled = torch.where(valid, scores, 0)
    others = (filled.sum(-1, keepdim=True) - filled) / (valid.sum(-1, keepdim=True) - 1).clamp_min(1)
    return torch.where(valid, filled - others, -torch.inf)


def auroc(
    contrasts: Float[Tensor, "*layer n target c"], y: Int[Tensor, "n target"], group: Tensor | None = None
) -> Metric:
    """P(a row of the class ranks above one that is not) + half the ties; the mean over one-versus-rest classes.

    Classes without a row, or without a row outside, do not count. Standard error after DeLong et al. 1988: each row's
    influence is the share of the other side that it beats. A constant score gives exactly 1/2.
    """
    n = (y >= 0).sum(0).double()
    value = contrasts.new_zeros(*contrasts.shape[:-3], y.shape[1], dtype=torch.double)
    influence = value.new_zeros(*value.shape, len(y))
    occurring = torch.zeros(y.shape[1], dtype=torch.double)
    for c in range(contrasts.shape[-1]):  # one class at a time: the sorted copies are large
        inside, outside = (y == c).T, ((y != c) & (y >= 0)).T  # [t, n]
        usable = inside.any(1) & outside.any(1)
        # With two classes both rankings are the same one reversed.
        if not usable.any() or (c == 0 and contrasts.shape[-1] == 2):
            continue
        score = contrasts[..., c].mT.double().contiguous()
        wins = torch.where(inside, _share_below(score, outside), 1 - _share_below(score, inside))
        n_in, n_out = (side.sum(1).clamp_min(1).double() for side in (inside, outside))
        area = (wins * inside).sum(-1) / n_in
        psi = (wins - area.unsqueeze(-1)) * (inside / n_in[:, None] + outside / n_out[:, None])
        value = value + torch.where(usable, area, 0)
        influence = influence + psi * usable[:, None]
        occurring += usable
    require(bool((occurring > 0).all()), "AUROC needs rows of at least two classes for every target")
    return _metric(value / occurring, (influence * (n / occurring)[:, None]).mT, n, group)


def _share_below(score: Tensor, side: Tensor) -> Tensor:
    """For every row the share of the rows in `side` that score lower, ties counting half. score [..., t, n]."""
    ordered = torch.where(side, score, torch.inf).sort(-1).values.contiguous()
    below, up_to = (torch.searchsorted(ordered, score, right=right) for right in (False, True))
    # Scores of -inf or inf do not occur among usable classes; the padding is +inf and lies above every score.
    return (below + up_to).double() / 2 / side.sum(-1, keepdim=True).clamp_min(1)


def _metric(value: Tensor, influence: Tensor, n: Tensor, group: Tensor | None) -> Metric:
    """Standard error from per-row influences [..., n, t] that sum to 0: rows of one group are not independent."""
    rows = influence.shape[-2]
    member = torch.arange(rows) if group is None else group.unique(return_inverse=True)[1]
    n_groups = int(member.max()) + 1
    sums = influence.new_zeros(*influence.shape[:-2], n_groups, influence.shape[-1]).index_add_(-2, member, influence)
    correction = n_groups / max(1, n_groups - 1)
    return Metric(value, (sums.pow(2).sum(-2) * correction).sqrt() / n, n.long())


# --- The ladder of controls ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ladder:
    """What the same probe reads from different things, on the same held-out sequences.

    rungs:       name -> Metric; "majority" (the constant answer fitted on the training rows), then the activations.
    shuffled:    name -> Metric with the labels permuted over rows: what fitting alone gives.
    control:     name -> Metric on control labels (a random class per type); empty without types.
    """

    metric: str
    input: str
    rungs: dict[str, Metric]
    shuffled: dict[str, Metric]
    control: dict[str, Metric]

    @property
    def gain(self) -> dict[str, Tensor]:
        """Rung minus the input-only rung: what the network adds to what its input gives away."""
        return {name: rung.value - self.rungs[self.input].value for name, rung in self.rungs.items()}

    @property
    def selectivity(self) -> dict[str, Tensor]:
        """Rung minus the same probe on control labels (Hewitt and Liang 2019)."""
        return {name: self.rungs[name].value - control.value for name, control in self.control.items()}


def ladder(
    activations: Mapping[str, Float[Tensor, "... n d"]],
    y: Tensor,
    group: Int[Tensor, " n"],
    fit_probe: Callable[[Tensor, Tensor], Probe | MLPProbe],
    generator: torch.Generator,
    metric: str = "accuracy",
    input: str = "input",
    frac_train: float = 0.8,
    types: Int[Tensor, " n"] | None = None,
) -> Ladder:
    """Fit `fit_probe(x, y)` on each of the named activations and score it on sequences it has not seen.

    activations: for instance {"input": one-hot tokens so far, "untrained": ..., "trained": ...}, each [*layer, n, d]
    with the same rows. metric: one of what `evaluate` gives. types: [n], for control labels. The caller brings the
    untrained network's and the input's activations; nothing here knows models.
    Null: on shuffled labels every rung is at the majority rung (accuracy) or 1/2 (AUROC) up to its standard error.
    """
    one_of("input", input, activations)
    y = checked_labels(y, len(group))
    known = ("r2",) if y.is_floating_point() else ("accuracy", "balanced_accuracy", "auroc")
    one_of("metric", metric, known)
    for name, x in activations.items():
        require(x.shape[-2] == len(y), f"{name} has {x.shape[-2]} rows, the labels {len(y)}")
    train, test = split_by_group(group, frac_train, generator)
    mixed = y[torch.randperm(len(y), generator=generator)]
    types_y = None if types is None else control_labels(types, y, generator)

    def climb(x: Tensor, labels: Tensor) -> Metric:
        probe = fit_probe(x[..., train, :], labels[train])
        return evaluate(probe, x[..., test, :], labels[test], group[test])[metric]

    rungs = {"majority": _majority(y[train], y[test], group[test], metric)}
    rungs |= {name: climb(x, y) for name, x in activations.items()}
    shuffled = {name: climb(x, mixed) for name, x in activations.items()}
    control = {} if types_y is None else {name: climb(x, types_y) for name, x in activations.items()}
    return Ladder(metric, input, rungs, shuffled, control)


def _majority(y_train: Tensor, y_test: Tensor, group: Tensor, metric: str) -> Metric:
    """The metric of the best constant answer: the commonest class, or the mean."""
    if metric == "r2":
        return r2(y_train.mean(0).expand_as(y_test), y_test, group)
    counts: Float[Tensor, "c target"] = F.one_hot(y_train + 1)[..., 1:].sum(0).T.float()
    constant = counts.argmax(0).expand_as(y_test)
    if metric == "auroc":
        return auroc(torch.zeros(*y_test.shape, len(counts)), y_test, group)
    return {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}[metric](constant, y_test, group)
