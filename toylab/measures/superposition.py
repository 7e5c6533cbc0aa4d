"""Toy models of superposition through training: geometry, polytopes, exact losses, neurons, data.

Came from: interp/superposition.py, which defines every number. All of these need only the weights, but for those of
losses and of data. Models: models/superposition.py; `absolute` has two matrices, and its W_1 (what is read in) counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from toylab.errors import UserError, one_of, require
from toylab.interp.adversarial import linear_attack, reach, relu_attack, relu_bound
from toylab.interp.superposition import (
    PHASES,
    asymmetric_motifs,
    components,
    dimensionality,
    dims_per_feature,
    exact_phase,
    feature_norms,
    found_phase,
    interference,
    leverage,
    linear_loss,
    polysemanticity,
    polytopes,
)
from toylab.snapshot import Labelled, Snapshot, Stack

Numbers = dict[str, float | Labelled]


def matrix(params: dict[str, Tensor], which: str = "in") -> Tensor:
    """W, or W_1 ("in") or W_2 ("out") of a model that has two; [..., feature, hidden]. Raises UserError without any."""
    name = {"in": "W_1", "out": "W_2"}[which]
    for key in ("W", name):
        if key in params and params[key].ndim >= 2:
            return params[key].detach()
    raise UserError(
        f"this model has {', '.join(params)} and no W or {name}: superposition measures read models/superposition.py"
    )


def _params(snap: Snapshot) -> dict[str, Tensor]:
    return dict(snap.model.named_parameters())


def _first(values: dict[str, Labelled]) -> Numbers:
    """The single checkpoint of a stack of one."""
    return {
        key: float(v.values[0]) if v.dims == ("step",) else Labelled(v.values[0], v.dims[1:], v.coords)
        for key, v in values.items()
    }


@dataclass(frozen=True)
class Geometry:
    """Where each feature's direction lies among the others.

    norm, dimensionality, polysemanticity, interference, leverage, bias [feature]; dims_per_feature (D*),
    sum_dimensionality, n_represented (features of norm >= `represented`).
    Formulas, sources and exact values: interp/superposition.py. sum_dimensionality never exceeds d_hidden.
    Null (untrained, n = 80, d_hidden = 8): sum_dimensionality is near 8 too, as Gaussian rows are nearly a tight frame;
    what training adds is the clustering of single dimensionalities.
    """

    represented: float = 0.5

    def __call__(self, snap: Snapshot) -> Numbers:
        return _first(self._numbers({name: p.detach()[None] for name, p in _params(snap).items()}))

    def stack(self, stack: Stack) -> dict[str, Labelled]:
        return self._numbers(stack.params)

    def _numbers(self, params: dict[str, Tensor]) -> dict[str, Labelled]:
        W = matrix(params).double()
        D, norms = dimensionality(W), feature_norms(W)
        by_feature = {
            "norm": norms,
            "dimensionality": D,
            "polysemanticity": polysemanticity(W),
            "interference": interference(W),
            "leverage": leverage(W),
            "bias": params["b"].detach(),
        }
        by_step = {
            "dims_per_feature": dims_per_feature(W),
            "sum_dimensionality": D.sum(-1),
            "n_represented": (norms >= self.represented).sum(-1),
        }
        return {k: Labelled(v, ("step", "feature")) for k, v in by_feature.items()} | {
            k: Labelled(v, ("step",)) for k, v in by_step.items()
        }


@dataclass(frozen=True)
class Structure:
    """Which features interfere, and as which regular polytope.

    component [feature] (the first feature of its component, -1 = not represented), polytope_size, polytope_rank
    [feature] (5, 2 = pentagon; 0, 0 = none; interp/superposition.py names them), n_components.
    Source: Elhage et al. 2022, the graphs of its figure on uniform superposition.
    """

    represented: float = 0.5
    edge: float = 0.05
    tolerance: float = 0.03

    def __call__(self, snap: Snapshot) -> Numbers:
        W = matrix(_params(snap)).double()
        found = polytopes(W, self.represented, self.edge, self.tolerance)
        own = found.component == torch.arange(len(W))
        return {
            "component": Labelled(components(W, self.represented, self.edge), ("feature",)),
            "polytope_size": Labelled(found.size, ("feature",)),
            "polytope_rank": Labelled(found.rank, ("feature",)),
            "n_components": float(own.sum()),
        }


@dataclass(frozen=True)
class ClosedForms:
    """The loss beside what is known exactly: loss (held out), linear_loss, loss_over_linear, and the phase.

    linear_loss: the optimum of the linear model of the same width, which superposition undercuts. nan for grouped
    features (not independent) and for `abs` targets. phase, exact_phase (index into interp.superposition.PHASES, -1 =
    none): only of n features in n - 1 dimensions that are equally important but for the last; nan elsewhere.
    Exact: at sparsity 0 a trained model has loss_over_linear 1.
    """

    represented: float = 0.35

    def __call__(self, snap: Snapshot) -> dict[str, float]:
        task, result = snap.task, {"loss": snap.mean(snap.losses, "test", importance=True)}
        for name in ("density", "importance", "group_size"):
            require(hasattr(task, name), f"{type(task).__name__} has no {name}: closed forms are for SparseFeatures")
        known = task.group_size == 1 and task.target == "identity"
        width = matrix(_params(snap)).shape[-1]
        linear = linear_loss(task.importance().double(), task.density(), width) if known else nan
        result |= {"linear_loss": linear, "loss_over_linear": result["loss"] / linear if linear else nan}
        return result | self._phases(snap, known)

    def _phases(self, snap: Snapshot, known: bool) -> dict[str, float]:
        p, importance = snap.task.density(), snap.task.importance().double()
        even = known and bool((p == p[0]).all()) and bool((importance[:-1] == importance[0]).all())
        if not even or matrix(_params(snap)).shape[-1] != len(p) - 1:
            return {"phase": nan, "exact_phase": nan}
        exact = exact_phase(p[0], importance[-1] / importance[0], len(p))
        return {"phase": float(found_phase(matrix(_params(snap)), self.represented)), "exact_phase": float(exact)}


@dataclass(frozen=True)
class NeuronWeights:
    """Which features each hidden neuron reads ("in") or writes ("out"): the data of the paper's stack plots.

    neuron_weight [feature, neuron]; neuron_purity [neuron]: the largest |weight| of the neuron over the sum of all
    (1 = monosemantic, 1/n = even; nan for a neuron of zeros). Meaningful where the hidden layer has a privileged basis
    (relu_hidden, absolute); in the others any rotation gives the same function and other numbers.
    """

    matrix: str = "in"

    def __post_init__(self):
        one_of("matrix", self.matrix, ("in", "out"))

    def __call__(self, snap: Snapshot) -> Numbers:
        W = matrix(_params(snap), self.matrix)
        total = W.abs().sum(0)
        purity = torch.where(total > 0, W.abs().amax(0) / total, torch.nan)
        return {
            "neuron_weight": Labelled(W, ("feature", "neuron")),
            "neuron_purity": Labelled(purity, ("neuron",)),
        }


@dataclass(frozen=True)
class Motifs:
    """Asymmetric superposition in a model that computes |x|: motif [neuron], whether a neuron is part of one, and
    n_motifs, of how many (feature, feature, neuron) it holds.

    Definition, source, exact values and null: interp.superposition.asymmetric_motifs. `ratio`: how much more strongly
    one feature is read and the other written; `cancelled`: the share of the interference that others inhibit.
    """

    ratio: float = 1.5
    cancelled: float = 0.75

    def __post_init__(self):
        require(self.ratio > 1, f"ratio={self.ratio}: more than 1; symmetric superposition has 1")
        require(0 < self.cancelled <= 1, f"cancelled={self.cancelled} is outside (0, 1]")

    def __call__(self, snap: Snapshot) -> Numbers:
        params = _params(snap)
        require(
            "W_2" in params, f"the motif is of kind absolute, with a W_1 and a W_2; this model has {', '.join(params)}"
        )
        found = asymmetric_motifs(matrix(params), matrix(params, "out"), self.ratio, self.cancelled)
        return {"motif": Labelled(found.any(0).any(0), ("neuron",)), "n_motifs": float(found.sum())}


@dataclass(frozen=True)
class Vulnerability:
    """What the best attack of a given size on the inputs does to the loss (Elhage et al. 2022, adversarial examples).

    attack_size e           `size` times the mean length of the held-out inputs
    clean_loss, attacked_loss   of the first `rows` held-out inputs: mean over features of importance x squared error
    vulnerability           n (attacked_loss - clean_loss) / (e^2 max importance), with its vulnerability_stderr over
                            inputs: the squared error that an attack adds, in units of its own squared length
    vulnerability_bound     the same if every output could be attacked apart (interp/adversarial.py, relu_bound)
    features_per_dimension  |W|_F^2 / m = 1 / D*
    reach [feature]         the farthest that an attack of length 1 moves an output: |W_i|^2 / sqrt(D_i)

    For a model without superposition (W W^T a projection, outputs on) vulnerability is exactly 1, so that it is
    relative to such a model; for digons with b = 0 it is 2; for a tight frame of n unit vectors in m dimensions under a
    linear model (n/m)^2. The attack is exact for `linear`, and the best found for `relu_out`, a lower bound.
    Domain: `linear` and `relu_out` on identity targets. Invariant under rotation of the hidden space. Null: untrained
    weights have a vulnerability too, as their errors are large and an attack can add to them; what training adds is
    that it goes with features_per_dimension from density to density.
    """

    size: float = 0.1
    rows: int = 256

    def __post_init__(self):
        require(self.size > 0, f"size={self.size}: more than 0; the paper's attacks are 0.1 of the mean input length")
        require(self.rows >= 2, f"rows={self.rows}: at least 2")

    def __call__(self, snap: Snapshot) -> Numbers:
        params, kind = _params(snap), getattr(getattr(snap.model, "spec", None), "kind", type(snap.model).__name__)
        W = matrix(params).double()
        require(
            kind in ("linear", "relu_out") and getattr(snap.task, "target", "identity") == "identity",
            f"vulnerability is of models y = f(x W W^T + b) that return x: kind linear or relu_out, not {kind} "
            f"on {snap.task!r}",
        )
        inputs = snap.batch.inputs[snap.rows("test")].double()
        size, x = self.size * inputs.norm(dim=1).mean().item(), inputs[: self.rows]
        weight = torch.ones(len(W)) if snap.batch.weight is None else snap.batch.weight[0]
        A, b, weight = W @ W.mT, params["b"].detach().double(), weight.double()
        y = x @ A + b
        if kind == "linear":
            clean = ((y - x).square() * weight).sum(1)
            attacked = linear_attack(A, y - x, size, weight).error
            bound = (((y - x).abs() + size * reach(A)).square() * weight).sum(1)
        else:
            clean = ((y.relu() - x).square() * weight).sum(1)
            attacked = relu_attack(A, b, x, size, weight).error
            bound = relu_bound(A, b, x, size, weight)
        unit = size**2 * weight.max()
        added = (attacked - clean) / unit
        return {
            "attack_size": size,
            "clean_loss": clean.mean().item() / len(W),
            "attacked_loss": attacked.mean().item() / len(W),
            "vulnerability": added.mean().item(),
            "vulnerability_stderr": (added.std() / len(x) ** 0.5).item(),
            "vulnerability_bound": ((bound - clean) / unit).mean().item(),
            "features_per_dimension": (1 / dims_per_feature(W)).item(),
            "reach": Labelled(reach(A), ("feature",)),
        }


@dataclass(frozen=True)
class DataGeometry:
    """How the training samples lie in the hidden space (Henighan et al. 2023).

    data_dimensionality [sample]: D of the rows of h = x W; hidden_state [sample, hidden]; W_norm, b_norm; train_loss,
    test_loss. Only for tasks with a fixed training set. Exact: memorised samples of disjoint support form a regular
    T-gon with data_dimensionality 2/T (interp.superposition.memorising_weights).
    """

    def __call__(self, snap: Snapshot) -> Numbers:
        rows = snap.rows("train")
        params = _params(snap)
        W = matrix(params)
        hidden = snap.batch.inputs[rows].to(W.dtype) @ W
        return {
            "data_dimensionality": Labelled(dimensionality(hidden.double()), ("sample",)),
            "hidden_state": Labelled(hidden, ("sample", "hidden")),
            "W_norm": W.norm().item(),
            "b_norm": params["b"].norm().item(),
            "train_loss": snap.mean(snap.losses, "train"),
            "test_loss": snap.mean(snap.losses, "test"),
        }


def phase_name(code: float) -> str:
    """The name of ClosedForms' `phase` and `exact_phase`."""
    return PHASES[int(code)] if code >= 0 else "none"
