"""Superposition: exact polytopes and losses, the phase diagram, k-gons, grouped features, memorised samples.

Tests named test_NN belong together with the list of exact checks of this subject, by their number there.
"""

import dataclasses
import itertools
import math

import pytest
import torch

from toylab.data import generator
from toylab.ensemble import Stacked, train_ensemble
from toylab.errors import UserError
from toylab.experiment import Experiment, TrainSpec
from toylab.interp.adversarial import linear_attack, reach, relu_attack, relu_bound
from toylab.interp.superposition import (
    FRACTIONS,
    PHASES,
    antipodal_cost,
    asymmetric_motifs,
    best_kgon,
    components,
    detect_jumps,
    dimensionality,
    dims_per_feature,
    exact_phase,
    feature_norms,
    found_phase,
    interference,
    kgon_levels,
    kgon_loss,
    leverage,
    linear_loss,
    memorising_weights,
    phase_losses,
    polysemanticity,
    polytopes,
    variance,
)
from toylab.measures.basic import FreshLoss, Loss
from toylab.measures.superposition import (
    ClosedForms,
    DataGeometry,
    Geometry,
    Motifs,
    NeuronWeights,
    Structure,
    Vulnerability,
)
from toylab.models.superposition import KINDS, Superposition, SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.snapshot import Snapshot
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import FixedSamples, SparseFeatures
from toylab.train import Trainer

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
FLOAT64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=FLOAT64)


def rotation(d, seed=0):
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


def polygon(k, turn=0.0):
    angles = turn + torch.arange(k, dtype=FLOAT64) * 2 * math.pi / k
    return torch.stack([angles.cos(), angles.sin()], 1)


def antiprism():
    """Two squares a quarter of a half-turn apart, at heights +-1/sqrt 3: a tight frame."""
    square = polygon(4) * (2 / 3) ** 0.5, polygon(4, math.pi / 4) * (2 / 3) ** 0.5
    height = torch.full((4, 1), 3**-0.5, dtype=FLOAT64)
    return torch.cat([torch.cat([square[0], height], 1), torch.cat([square[1], -height], 1)])


TETRAHEDRON = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=FLOAT64) / 3**0.5
DIGON = torch.tensor([[1.0], [-1.0]], dtype=FLOAT64)
SOLIDS = {
    "dedicated": (torch.ones(1, 1, dtype=FLOAT64), 1),
    "digon": (DIGON, 1 / 2),
    "triangle": (polygon(3), 2 / 3),
    "tetrahedron": (TETRAHEDRON, 3 / 4),
    "pentagon": (polygon(5), 2 / 5),
    "square antiprism": (antiprism(), 3 / 8),
}


def tegum(*parts):
    """The orthogonal sum of smaller solutions."""
    return torch.block_diag(*parts)


# --- 1, 2: geometry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLIDS)
def test_01_dimensionality_of_polytopes(name):
    W, fraction = SOLIDS[name]
    # Rotated, of another size, and with a dimension to spare.
    W = 1.3 * torch.cat([W, torch.zeros(len(W), 1, dtype=FLOAT64)], 1) @ rotation(W.shape[1] + 1)
    assert (dimensionality(W) - fraction).abs().max() < 1e-12
    assert (leverage(W) - fraction).abs().max() < 1e-9  # a tight frame meets its bound
    assert fraction in FRACTIONS
    assert polytopes(W / 1.3).names() == [name] * len(W)


def test_01_dimensionality_is_bounded_by_leverage_and_sums_to_at_most_the_rank():
    for n, m, seed in itertools.product((3, 10, 40), (2, 5), range(5)):
        W = randn(n, m, seed=seed)
        D = dimensionality(W)
        assert (leverage(W) - D >= -1e-9).all()
        assert D.sum() <= min(n, m) + 1e-9
        assert leverage(W).sum() == pytest.approx(min(n, m))


def test_02_nothing_depends_on_the_basis_or_the_order():
    W, order = randn(9, 4), torch.randperm(9, generator=rng())
    for f in (dimensionality, interference, polysemanticity, leverage):
        torch.testing.assert_close(f(W @ rotation(4)), f(W), rtol=0, atol=1e-12)
        torch.testing.assert_close(f(W[order]), f(W)[order], rtol=0, atol=1e-12)
    assert dims_per_feature(W @ rotation(4)) == pytest.approx(dims_per_feature(W).item())
    torch.testing.assert_close(dimensionality(3 * W), dimensionality(W))


def test_02_the_loss_does_not_depend_on_the_basis():
    task = SparseFeatures(6, 0.5, 0.9, n_test=100)
    model = SuperpositionSpec("relu_out", 3, init_std=0.5, dtype="float64").build(task, rng())
    batch = task.sample(100, rng())
    before = model(batch.inputs)
    with torch.no_grad():
        model.W.copy_(model.W @ rotation(3))
    torch.testing.assert_close(model(batch.inputs), before, rtol=0, atol=1e-12)


def test_interference_by_hand():
    W = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 0.0]], dtype=FLOAT64)
    # Along (1, 0): (0.6)^2. Along (.6, .8): (2 * .6)^2. A row of zeros has no direction.
    assert interference(W).tolist() == pytest.approx([0.36, 1.44, 0.0])
    assert polysemanticity(W).tolist() == pytest.approx([0.6, 1.2, 0.0])
    assert dimensionality(W).tolist() == pytest.approx([4 / 4.36, 1 / 2.44, 0.0])
    assert dims_per_feature(W).item() == pytest.approx(2 / 5)


def test_leading_axes_are_members():
    W = torch.stack([randn(6, 3, seed=s) for s in range(4)])
    for f in (dimensionality, interference, leverage, components, dims_per_feature):
        torch.testing.assert_close(f(W), torch.stack([f(w) for w in W]))


def test_tegum_products_fall_into_their_factors():
    W = tegum(polygon(3), DIGON, TETRAHEDRON, 0.1 * torch.eye(1, dtype=FLOAT64), antiprism(), polygon(5))
    W = W @ rotation(W.shape[1])
    names = polytopes(W).names()
    expected = ["triangle"] * 3 + ["digon"] * 2 + ["tetrahedron"] * 4 + ["-"] + ["square antiprism"] * 8
    assert names == expected + ["pentagon"] * 5
    assert components(W).tolist() == [0] * 3 + [3] * 2 + [5] * 4 + [-1] + [10] * 8 + [18] * 5
    octahedron = tegum(DIGON, DIGON, DIGON)
    assert polytopes(octahedron @ rotation(3)).names() == ["digon"] * 6


def test_a_chain_is_one_component():
    """Each row overlaps only with its neighbours: reached through many steps."""
    n = 20
    W = torch.eye(n, dtype=FLOAT64) + 0.5 * torch.diag(torch.ones(n - 1, dtype=FLOAT64), 1)
    assert components(W).tolist() == [0] * n


def test_random_directions_are_no_polytope():
    W = randn(60, 6)
    W = W / W.norm(dim=1, keepdim=True)
    assert set(polytopes(W).names()) == {"-"}
    assert set(components(W).tolist()) == {0}


# --- 3, 4, 6: exact losses and phases ---------------------------------------------------------------------------------


def test_03_drop_and_antipodal_costs_against_sampling():
    p, n = 0.3, 1_000_000
    x = SparseFeatures(2, 1 - p, 1.0).sample(n, rng()).inputs.double()
    dropped = (x - p / 2).square().mean().item()
    assert dropped == pytest.approx(variance(p), rel=0.01)
    W = DIGON
    shared = (x - (x @ W @ W.T).relu()).square().mean().item()
    assert shared == pytest.approx(antipodal_cost(p), rel=0.01)


def test_03_the_best_constant_is_the_mean():
    p = 0.3
    x = SparseFeatures(1, 1 - p, 1.0).sample(500_000, rng()).inputs.double()
    assert x.var().item() == pytest.approx(variance(p), rel=0.01)


@pytest.mark.parametrize("n", [2, 3])
def test_04_phase_boundaries(n):
    eps = 1e-4

    def phase(p, ratio):
        return PHASES[exact_phase(torch.tensor(p, dtype=FLOAT64), torch.tensor(ratio, dtype=FLOAT64), n)]

    for p in (0.05, 0.2, 0.4, 0.55):
        r = 2 * p / (4 - 5 * p)
        assert phase(p, r * (1 - eps)) == "drop the last"
        assert phase(p, r * (1 + eps)) == "share the last two"
        if n == 2:
            assert phase(p, (1 - eps) / r) == "share the last two"
            assert phase(p, (1 + eps) / r) == "drop the first"
    for r in (1.5, 4.0):
        if n == 3:
            assert phase(4 / 7 - eps, r) == "share the first two"
            assert phase(4 / 7 + eps, r) == "drop the first"
    assert phase(4 / 7 + 0.05, 0.99) == "drop the last"
    losses = phase_losses(torch.tensor(4 / 7, dtype=FLOAT64), torch.tensor(1.0, dtype=FLOAT64))
    assert (losses - losses[0]).abs().max() < 1e-12  # the triple point


@pytest.mark.parametrize(
    ("W", "phase"),
    [
        ([[1.0], [0.1]], "drop the last"),
        ([[0.1], [-1.0]], "drop the first"),
        ([[1.0], [-1.0]], "share the last two"),
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], "drop the last"),
        ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], "drop the first"),
        ([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]], "share the first two"),
        ([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]], "share the last two"),
    ],
)
def test_found_phases(W, phase):
    assert PHASES[found_phase(torch.tensor(W))] == phase
    assert found_phase(torch.zeros(3, 2)) == -1


def test_06_dense_loss_of_the_first_experiment():
    importance = 0.9 ** torch.arange(5, dtype=FLOAT64)
    by_hand = (0.9**2 + 0.9**3 + 0.9**4) / 12 / 5
    assert linear_loss(importance, 1.0, 2) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(0.036585, abs=1e-6)


def experiment(seed=0, task=None, model=None, steps=2000, **spec):
    task = task or SparseFeatures(5, 0.0, 0.9, n_test=2048)
    optim = OptimSpec("adam", 3e-3, 0.0, betas=(0.9, 0.999), warmup=0, schedule="cosine")
    spec = {"checkpoints": ("every:500",), "eval_every": 1000, "batch_size": 256, "threads": 1} | spec
    return Experiment(
        "x", seed, task, model or SuperpositionSpec("relu_out", 2), optim, "mse", TrainSpec(steps, **spec)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dense member and three sparse ones, as one program. Well separated importances: the dense one is done soon."""
    path = tmp_path_factory.mktemp("tms")
    settings = [(1.0, 0.5), (0.05, 0.9), (0.05, 0.9), (0.05, 0.9)]
    members = [
        experiment(seed, SparseFeatures(5, 1 - p, decay, n_test=2048), steps=2500)
        for seed, (p, decay) in enumerate(settings)
    ]
    return list(train_ensemble(members, [path / str(e.seed) for e in members], progress=False))


def test_06_trained_dense_model_keeps_the_two_most_important(trained):
    table = trained[0].map(Geometry()).isel(step=-1)
    assert (table.norm.values[:2] > 0.85).all()
    assert (table.norm.values[2:] < 0.1).all()
    forms = trained[0].map(ClosedForms()).isel(step=-1)
    assert float(forms.linear_loss) == pytest.approx((1 / 4 + 1 / 8 + 1 / 16) / 12 / 5)
    assert float(forms.loss_over_linear) == pytest.approx(1, abs=0.04)  # 2,048 held-out rows: 1 % of noise


def test_sparse_models_are_in_superposition_and_the_best_is_a_pentagon(trained):
    sparse = [run.map(Geometry()).isel(step=-1) for run in trained[1:]]
    loss = [float(run.map(ClosedForms()).isel(step=-1).loss_over_linear) for run in trained[1:]]
    best = sparse[loss.index(min(loss))]
    assert min(loss) < 0.5
    assert int(best.n_represented) == 5
    assert ((best.dimensionality.values > 0.37) & (best.dimensionality.values < 0.42)).all()
    structure = trained[1 + loss.index(min(loss))].map(Structure()).isel(step=-1)
    assert structure.polytope_size.values.tolist() == [5] * 5
    for table in sparse:
        assert float(table.sum_dimensionality) <= 2 + 1e-4


def test_untrained_models_are_no_polytope(trained):
    start = trained[1].map(Structure()).isel(step=0)
    assert not start.polytope_size.values.any()
    assert float(trained[1].map(ClosedForms()).isel(step=0).loss_over_linear) > 0.9


# --- 5: k-gons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("l2", "b"), [(1.0, 0.0), (1.4, -0.3), (0.8, 0.1), (1.7, -0.6)])
def test_05_kgon_loss_against_the_model_itself(k, l2, b):
    """The model on a fine grid of values of one feature."""
    task = SparseFeatures(k, 0.5, 1.0)
    model = SuperpositionSpec("relu_out", 2, dtype="float64").build(task, rng())
    with torch.no_grad():
        model.W.copy_(polygon(k) * l2**0.5)
        model.b.fill_(b)
    u = (torch.arange(20000, dtype=FLOAT64) + 0.5) / 20000
    x = torch.zeros(len(u), k, dtype=FLOAT64)
    x[:, 0] = u
    with torch.no_grad():
        on_grid = (x - model(x)).square().sum(1).mean().item()
    assert kgon_loss(k, l2, b).item() == pytest.approx(on_grid, abs=1e-7)


@pytest.mark.parametrize(
    ("k", "loss", "l2", "b"),
    [(2, 0, 1, 0), (3, 0, 1, 0), (4, 0, 1, 0), (5, 0.015826, 1.36994, -0.28227), (6, 0.048192, 1.74383, -0.61816)],
)
def test_05_best_kgons(k, loss, l2, b):
    best = best_kgon(k)
    assert best.loss == pytest.approx(loss, abs=1e-6)
    assert kgon_loss(k, l2, b).item() == pytest.approx(loss, abs=1e-6)
    if k > 4:
        assert (best.l2, best.b) == (pytest.approx(l2, abs=2e-4), pytest.approx(b, abs=2e-4))


def test_05_levels_of_six_features():
    levels = kgon_levels(6)
    expected = {"4": 1 / 9, "4+": 0.10417, "5": 0.06874, "5+": 0.06180, "6": 0.04819}
    assert levels == pytest.approx(expected, abs=1e-5)


# --- 7: ensembles -----------------------------------------------------------------------------------------------------

GROUPED = [SparseFeatures(6, 0.8, 0.9, group_size=2, grouping=kind) for kind in ("together", "exclusive")]
VARIANTS = [
    SparseFeatures(6, 0.8, 0.9),
    SparseFeatures(6, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 1.0),
    SparseFeatures(6, 0.3, 1.0, target="abs"),
    SparseFeatures(6, 0.8, 0.9, importances=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    *GROUPED,
]


@pytest.mark.parametrize("task", VARIANTS, ids=repr)
def test_07_drawing_together_gives_the_bits_of_drawing_alone(task):
    other = dataclasses.replace(task, sparsity=0.9, n_test=7)
    stacked = task.sample_stack([task, other], 50, [rng(1), rng(2)])
    for i, (one, seed) in enumerate([(task, 1), (other, 2)]):
        alone = one.sample(50, rng(seed))
        assert torch.equal(stacked.inputs[i], alone.inputs)
        assert torch.equal(stacked.targets[i], alone.targets)
        assert (stacked.weight is None) == (alone.weight is None)
        assert alone.weight is None or torch.equal(stacked.weight[i], alone.weight)


@pytest.mark.parametrize("kind", ["linear", "relu_out", "relu_hidden", "absolute"])
@pytest.mark.parametrize("task", VARIANTS, ids=repr)
def test_07_stacked_training_is_separate_training(task, kind):
    model = SuperpositionSpec(kind, 3, init_std=0.4, dtype="float64")
    members = [experiment(seed, task, model, batch_size=32) for seed in range(3)]
    stacked, solo = Stacked([Trainer(e) for e in members]), [Trainer(e) for e in members]
    stacked._slice = 2  # so that members cross a boundary
    for _ in range(20):
        assert stacked.advance() == pytest.approx([t.advance() for t in solo], rel=1e-10)
    for member, twin in zip(stacked.trainers, solo, strict=True):
        for name, tensor in member.weights().items():
            torch.testing.assert_close(tensor, twin.weights()[name], rtol=0, atol=1e-10)


def test_07_fixed_samples_stack_too():
    members = [
        experiment(seed, FixedSamples(20, 0.8, T, n_test=8), SuperpositionSpec("relu_out", 2, dtype="float64"),
                   batch_size=None)
        for seed, T in enumerate((3, 5))
    ]  # fmt: skip
    stacked, solo = Stacked([Trainer(e) for e in members]), [Trainer(e) for e in members]
    for _ in range(20):
        assert stacked.advance() == pytest.approx([t.advance() for t in solo], rel=1e-10)


def test_a_stack_refuses_a_loss_that_cannot_be():
    e = dataclasses.replace(experiment(), loss="cross_entropy")
    with pytest.raises(UserError, match="use loss=mse"):
        Stacked([Trainer(e)])


# --- 26, 27: grouped features -----------------------------------------------------------------------------------------


def test_26_together_features_come_together_with_values_of_their_own():
    x = SparseFeatures(6, 0.9, 1.0, group_size=3).sample(40000, rng()).inputs
    on = (x != 0).view(-1, 2, 3)
    assert (on.all(2) == on.any(2)).all()
    assert abs(on[..., 0].double().mean() - 0.1) < 5 * (0.09 / 80000) ** 0.5
    both = on[:, 0, 0] & on[:, 1, 0]
    assert abs(both.double().mean() - 0.01) < 5 * (0.01 / 40000) ** 0.5  # groups are independent
    values = x.view(-1, 3)[on[..., 0].flatten()].double()
    assert abs(torch.corrcoef(values.T) - torch.eye(3)).max() < 5 / len(values) ** 0.5
    assert abs(values.mean() - 0.5) < 5 * 12**-0.5 / values.numel() ** 0.5


@pytest.mark.parametrize("target", ["identity", "abs"])
def test_27_exclusive_features_never_meet(target):
    x = SparseFeatures(6, 0.8, 1.0, target, group_size=3, grouping="exclusive").sample(40000, rng()).inputs
    on = (x != 0).view(-1, 2, 3)
    assert (on.sum(2) <= 1).all()
    assert (on.double().mean(0) - 0.2).abs().max() < 5 * (0.16 / 40000) ** 0.5
    assert abs(on.any(2).double().mean() - 0.6) < 5 * (0.24 / 80000) ** 0.5
    assert (x.min() < -0.9) == (target == "abs")


def test_27_exactly_one_of_all():
    x = SparseFeatures(6, 1 - 1 / 6, 1.0, group_size=6, grouping="exclusive").sample(5000, rng()).inputs
    assert ((x != 0).sum(1) == 1).all()


@pytest.mark.parametrize("task", GROUPED, ids=repr)
def test_counterfactuals_switch_one_group_and_stay_possible(task):
    batch = task.sample(400, rng())
    new = task.counterfactual(batch, "on", rng(1))
    before, after = ((b.inputs != 0).view(-1, 3, 2) for b in (batch, new))
    assert ((before.any(2) != after.any(2)).sum(1) == 1).all()
    assert torch.equal(new.targets, new.inputs)
    if task.grouping == "together":
        assert torch.equal(after.all(2), after.any(2))
    else:
        assert (after.sum(2) <= 1).all()
    held = (before.any(2) == after.any(2))[..., None].expand_as(before)
    assert torch.equal(batch.inputs.view(-1, 3, 2)[held], new.inputs.view(-1, 3, 2)[held])


def test_each_feature_has_its_own_sparsity():
    sparsity = (0.0, 0.5, 0.9, 0.99)
    on = SparseFeatures(4, sparsity, 1.0).sample(40000, rng()).inputs != 0
    p = 1 - torch.tensor(sparsity, dtype=FLOAT64)
    assert ((on.double().mean(0) - p).abs() <= 5 * (p * (1 - p) / 40000).sqrt() + 1e-9).all()


# --- memorised samples ------------------------------------------------------------------------------------------------


def test_fixed_samples_are_sparse_unit_vectors_and_stay():
    task = FixedSamples(30, 0.95, 12, n_test=200)
    split = task.split(3)
    assert (split.train.tolist(), len(split.test)) == (list(range(12)), 200)
    assert (split.all.inputs.norm(dim=1) - 1).abs().max() < 1e-6  # rows with every feature off included
    assert torch.equal(task.split(3).all.inputs, split.all.inputs)
    assert abs((split.all.inputs != 0).double().mean() - 0.05) < 0.02
    with pytest.raises(UserError, match="unit vectors cannot change one feature"):
        task.counterfactual(split.train_batch, "on", rng())


@pytest.mark.parametrize("T", [2, 3, 4, 5, 8, 13])
def test_memorised_samples_form_a_polygon_of_zero_loss(T):
    blocks = torch.rand((T, 4), generator=rng(), dtype=FLOAT64) + 0.1
    x = torch.block_diag(*[row[None] / row.norm() for row in blocks])
    model = SuperpositionSpec("relu_out", 2, dtype="float64").build(FixedSamples(4 * T, 0.9, T), rng())
    W, b = memorising_weights(x)
    with torch.no_grad():
        model.W.copy_(W)
        model.b.copy_(b)
        assert (model(x) - x).abs().max() < 1e-12
    assert (dimensionality(x @ W) - 2 / max(T, 2)).abs().max() < 1e-12 or T == 2
    l2 = 1 / (1 - math.cos(2 * math.pi / T)) if T > 4 else 1.0
    assert W.square().sum().item() == pytest.approx(T * l2)
    with pytest.raises(UserError, match="share a feature"):
        memorising_weights(x.roll(1, 0) + x)


# --- measures ---------------------------------------------------------------------------------------------------------


def snapshot(W, task=None, kind="relu_out"):
    task = task or SparseFeatures(len(W), 0.9, 1.0, n_test=64)
    model = SuperpositionSpec(kind, W.shape[1], dtype="float64").build(task, rng())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("W"):
                p.copy_(W if name != "W_2" else 2 * W)
    return Snapshot(0, model, task, task.split(0), "mse")


def test_geometry_measures_a_planted_solution():
    found = Geometry()(snapshot(tegum(polygon(5), DIGON)))
    assert found["dimensionality"].values.tolist() == pytest.approx([0.4] * 5 + [0.5] * 2)
    assert found["sum_dimensionality"] == pytest.approx(3)
    assert found["dims_per_feature"] == pytest.approx(3 / 7)
    assert found["n_represented"] == 7
    structure = Structure()(snapshot(tegum(polygon(5), DIGON)))
    assert structure["n_components"] == 2
    assert structure["polytope_size"].values.tolist() == [5] * 5 + [2] * 2
    assert structure["polytope_rank"].values.tolist() == [2] * 5 + [1] * 2


def test_stacked_geometry_is_geometry(trained):
    table = trained[1].map(Geometry())
    for step in (0, 500):
        alone = Geometry()(trained[1].snapshot(step))
        assert table.dimensionality.sel(step=step).values == pytest.approx(alone["dimensionality"].values)


def test_closed_forms_know_the_phase():
    task = SparseFeatures(2, 0.95, 1.0, n_test=2000, importances=(1.0, 1.5))
    found = ClosedForms()(snapshot(DIGON, task))
    assert PHASES[int(found["phase"])] == PHASES[int(found["exact_phase"])] == "share the last two"
    assert found["loss"] < found["linear_loss"]
    grouped = ClosedForms()(snapshot(DIGON, SparseFeatures(2, 0.9, 1.0, n_test=64, group_size=2)))
    assert math.isnan(grouped["linear_loss"])
    assert math.isnan(grouped["exact_phase"])


def test_neuron_weights_and_purity():
    W = torch.tensor([[1.0, 1.0], [0.0, -3.0], [0.0, 0.0]], dtype=FLOAT64)
    snap = snapshot(W, SparseFeatures(3, 0.5, 1.0, target="abs", n_test=16), "absolute")
    found = NeuronWeights()(snap)
    assert found["neuron_purity"].values.tolist() == [1.0, 0.75]
    assert (NeuronWeights("out")(snap)["neuron_weight"].values == 2 * W.numpy()).all()


def test_data_geometry_measures_a_memorised_polygon():
    task = FixedSamples(400, 0.9975, 5, n_test=16)
    seed = next(s for s in range(200) if disjoint(task.split(s).train_batch.inputs))
    split = task.split(seed)
    model = SuperpositionSpec("relu_out", 2).build(task, generator(0, "init"))
    W, b = memorising_weights(split.train_batch.inputs)
    with torch.no_grad():
        model.W.copy_(W)
        model.b.copy_(b)
    found = DataGeometry()(Snapshot(0, model, task, split, "mse"))
    assert found["data_dimensionality"].values.tolist() == pytest.approx([0.4] * 5, abs=1e-5)
    assert found["train_loss"] < 1e-12 < 1e-5 < found["test_loss"]


def test_data_geometry_over_a_run(tmp_path):
    e = experiment(0, FixedSamples(30, 0.9, 4, n_test=8), steps=20, checkpoints=(), batch_size=None)
    (run,) = train_ensemble([e], [tmp_path], progress=False)
    table = run.map(DataGeometry())
    assert dict(table.sizes) == {"step": 2, "sample": 4, "hidden": 2}
    assert (table.data_dimensionality.sum("sample") <= 2 + 1e-4).all()


def disjoint(x):
    return bool(((x != 0).sum(0) <= 1).all())


def test_jumps_are_where_they_were_planted():
    D = torch.tensor([[0.5, 0.5], [0.5, 0.45], [1.0, 0.3], [1.0, 0.3]])
    jumps = detect_jumps(D, torch.tensor([1.0, 1.0, 0.5, 0.5]))
    assert jumps.feature.tolist() == [[False, False], [True, True], [False, False]]
    assert jumps.window.tolist() == [False, True, False]
    assert jumps.excess_drop() == pytest.approx(math.log(2))
    assert not detect_jumps(D[:1].repeat(4, 1), torch.ones(4)).window.any()


# --- attacks ----------------------------------------------------------------------------------------------------------

TIGHT = {"digon": DIGON, "triangle": polygon(3), "pentagon": polygon(5), "antiprism": antiprism()}


def on_sphere(n, d, size, seed=0):
    x = randn(n, d, seed=seed)
    return size * x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("name", TIGHT)
def test_attacks_on_tight_frames_are_known(name):
    """One output moves by e / sqrt D, all of them without a ReLU by e n/m; nothing else moves them as far."""
    W, e = TIGHT[name], 0.1
    A, (n, m), ones = W @ W.T, W.shape, torch.ones(len(W), dtype=FLOAT64)
    assert reach(A).tolist() == pytest.approx([(n / m) ** 0.5] * n)
    torch.testing.assert_close(reach(A), feature_norms(W).square() / dimensionality(W).sqrt())
    found = linear_attack(A, torch.zeros(3, n, dtype=FLOAT64), e, ones)
    assert found.error.tolist() == pytest.approx([(e * n / m) ** 2] * 3)
    assert found.change.norm(dim=1).tolist() == pytest.approx([e] * 3)
    pushed = on_sphere(2000, n, e) @ A
    assert (pushed.abs().amax(0) <= e * reach(A) + 1e-12).all()
    assert pushed.square().sum(1).max() <= (e * n / m) ** 2 + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_the_linear_attack_is_the_worst(seed):
    """Against 20,000 directions and against climbing from the best of them; with residuals and importances."""
    W, r = randn(6, 3, seed=seed), 0.3 * randn(4, 6, seed=seed + 10)
    A, importance = W @ W.T, torch.linspace(1, 0.2, 6, dtype=FLOAT64)
    found = linear_attack(A, r, 0.2, importance)

    def error(d):
        return ((r + d @ A).square() * importance).sum(-1)

    torch.testing.assert_close(error(found.change), found.error)
    d = on_sphere(20000, 6, 0.2, seed)[:, None].expand(-1, 4, -1)
    assert (error(d) <= found.error + 1e-12).all()
    d = d.gather(0, error(d).argmax(0)[None, :, None].expand(1, 4, 6))[0]
    for _ in range(500):
        g = ((r + d @ A) * importance) @ A.T
        d = 0.2 * g / g.norm(dim=1, keepdim=True)
    torch.testing.assert_close(error(d), found.error, rtol=1e-6, atol=0)


def test_the_linear_attack_where_the_residual_has_no_part_along_the_top():
    A = torch.diag(torch.tensor([2.0, 1.0], dtype=FLOAT64))
    found = linear_attack(A, torch.tensor([[0.0, 0.1]], dtype=FLOAT64), 1.0, torch.ones(2, dtype=FLOAT64))
    # d = (sqrt(1 - t^2), t): 4 (1 - t^2) + (.1 + t)^2 is largest at t = .1 / 3.
    assert found.error.item() == pytest.approx(4 * (1 - (0.1 / 3) ** 2) + (0.1 + 0.1 / 3) ** 2)


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("bias", [0.0, -0.05])
def test_the_relu_attack_is_within_its_bound_and_no_direction_is_worse(name, bias):
    W, e = TIGHT[name], 0.2
    A, n = W @ W.T, len(W)
    b, ones = torch.full((n,), bias, dtype=FLOAT64), torch.ones(n, dtype=FLOAT64)
    x = SparseFeatures(n, 0.6, 1.0).sample(12, rng()).inputs.double()
    found, bound = relu_attack(A, b, x, e, ones), relu_bound(A, b, x, e, ones)

    def error(d):
        return ((x @ A + b + d @ A).relu() - x).square().sum(-1)

    torch.testing.assert_close(error(found.change), found.error)
    assert found.change.norm(dim=1).max() <= e * (1 + 1e-9)
    assert (found.error <= bound + 1e-12).all()
    d = on_sphere(20000, n, e)[:, None]
    more = (error(d).amax(0) / found.error - 1).clamp(min=0)  # a lower bound, and a close one
    assert more.max() < 0.08
    assert more.mean() < 0.02
    if name == "digon":
        assert more.max() < 1e-6


def test_gradients_hide_what_the_closed_form_finds():
    """All outputs are off, so that the gradient is 0: a digon moves by 2 e^2 all the same, beyond the bias."""
    A, e, ones = DIGON @ DIGON.T, 0.2, torch.ones(2, dtype=FLOAT64)
    x = torch.zeros(1, 2, dtype=FLOAT64)
    for bias, error in ((0.0, 2 * e**2), (-0.1, (2**0.5 * e - 0.1) ** 2), (-0.5, 0.0)):
        b = torch.full((2,), bias, dtype=FLOAT64)
        assert relu_attack(A, b, x, e, ones).error.item() == pytest.approx(error)


def vulnerable(W, sparsity=0.9, **task):
    return Vulnerability()(snapshot(W, SparseFeatures(len(W), sparsity, 1.0, n_test=400, **task)))


def test_vulnerability_is_1_without_superposition_and_2_with_digons():
    alone, pairs = vulnerable(torch.eye(4, dtype=FLOAT64)), vulnerable(tegum(DIGON, DIGON))
    assert alone["vulnerability"] == pytest.approx(1)
    assert alone["clean_loss"] == pytest.approx(0)
    assert alone["features_per_dimension"] == pytest.approx(1)
    assert pairs["features_per_dimension"] == pytest.approx(2)
    # On an input without a collision the attack adds 2 e^2, and a collision is an error that it can add to.
    assert pairs["vulnerability"] >= 2 - 1e-9
    assert vulnerable(tegum(DIGON, DIGON), 0.999)["vulnerability"] == pytest.approx(2, abs=0.02)
    linear = Vulnerability()(snapshot(polygon(5), SparseFeatures(5, 0.999, 1.0, n_test=400), "linear"))
    assert linear["vulnerability"] >= 2.5**2 - 1e-9
    dropped = vulnerable(torch.cat([torch.eye(3, dtype=FLOAT64), torch.zeros(2, 3, dtype=FLOAT64)]))
    assert dropped["vulnerability"] == pytest.approx(1)  # what is dropped is an error, and no attack reaches it


def test_vulnerability_does_not_depend_on_the_basis_and_is_more_with_superposition():
    W = randn(8, 3)
    one, other = vulnerable(W), vulnerable(W @ rotation(3))
    for name, value in one.items():
        if isinstance(value, float):
            assert other[name] == pytest.approx(value, rel=1e-6), name
    assert one["vulnerability"] <= one["vulnerability_bound"]


def test_trained_vulnerability_rises_with_superposition_and_untrained_does_not(trained):
    dense, sparse = (trained[i].map(Vulnerability()) for i in (0, 1))
    assert float(dense.vulnerability[-1]) == pytest.approx(1, abs=0.15)
    assert float(sparse.vulnerability[-1]) > 3
    assert float(sparse.features_per_dimension[-1]) > 2
    untrained = [float(table.features_per_dimension[0]) for table in (dense, sparse)]
    assert max(untrained) / min(untrained) < 2


# --- the motif --------------------------------------------------------------------------------------------------------


def motif(r=2.0):
    """|x| of three features by seven neurons: the first serves 0 and 1 at a ratio r, the second takes back what 0 does
    to 1 through it; the others are pairs. Weights [feature, neuron]."""
    W_1 = torch.zeros(3, 7, dtype=FLOAT64)
    W_2 = torch.zeros(3, 7, dtype=FLOAT64)
    W_1[0, 0], W_1[1, 0] = r**0.5, r**-0.5
    W_2[0, 0], W_2[1, 0] = r**-0.5, r**0.5
    W_1[0, 1], W_2[1, 1] = 1.0, -r  # x_0 = 1 puts r^.5 r^.5 = r on output 1
    for k, (feature, sign) in enumerate([(0, -1), (1, -1), (2, 1), (2, -1)]):
        W_1[feature, 2 + k], W_2[feature, 2 + k] = sign, 1
    return W_1, W_2


def test_a_planted_motif_is_found_and_nothing_else():
    W_1, W_2 = motif()
    assert asymmetric_motifs(W_1, W_2).nonzero().tolist() == [[0, 1, 0]]
    assert not asymmetric_motifs(W_1, W_2, ratio=2.5).any()
    task = SparseFeatures(3, 0.5, 1.0, target="abs", n_test=16)
    model = SuperpositionSpec("absolute", 7, dtype="float64").build(task, rng())
    with torch.no_grad():
        model.W_1.copy_(W_1)
        model.W_2.copy_(W_2)
    found = Motifs()(Snapshot(0, model, task, task.split(0), "mse"))
    assert found["n_motifs"] == 1
    assert found["motif"].values.tolist() == [True] + [False] * 6


def test_a_motif_needs_all_of_its_parts():
    for change in ("symmetric", "not inhibited", "a third feature", "wrong"):
        W_1, W_2 = motif(1.0 if change == "symmetric" else 2.0)
        if change == "not inhibited":
            W_2[1, 1] = 0
        if change == "a third feature":
            W_1[2, 0] = 1.0
        if change == "wrong":
            W_2[1, 3] = 3.0
        assert not asymmetric_motifs(W_1, W_2).any(), change


def test_a_motif_does_not_depend_on_order_signs_and_scales_of_neurons():
    W_1, W_2 = motif()
    order, scale = torch.tensor([3, 0, 1, 6, 2, 5, 4]), torch.linspace(0.5, 2, 7, dtype=FLOAT64)
    assert asymmetric_motifs(W_1[:, order], W_2[:, order]).nonzero().tolist() == [[0, 1, 1]]
    assert asymmetric_motifs(-W_1, W_2).nonzero().tolist() == [[0, 1, 0]]
    assert asymmetric_motifs(W_1 * scale, W_2 / scale).nonzero().tolist() == [[0, 1, 0]]


def test_random_weights_show_no_motif():
    drawn = [asymmetric_motifs(randn(6, 10, seed=s), randn(6, 10, seed=s + 1000)).any() for s in range(200)]
    assert not any(drawn)


# --- one draw for all runs --------------------------------------------------------------------------------------------


def test_fresh_loss_is_one_draw_for_all_and_the_known_loss():
    p, rows = 0.3, 50_000
    one = Snapshot(0, *planted_digon(1 - p, seed=0), "mse")
    other = Snapshot(0, *planted_digon(1 - p, seed=5), "mse")
    found = FreshLoss(rows)(one)
    assert found == FreshLoss(rows)(other)
    assert Loss()(one) != Loss()(other)
    assert abs(found["fresh_loss"] - antipodal_cost(p)) < 5 * found["fresh_loss_stderr"]
    assert found["fresh_loss"] != FreshLoss(rows, seed=1)(one)["fresh_loss"]
    batch = one.task.sample(rows, generator(0, "fresh"))
    with torch.no_grad():
        by_hand = (one.model(batch.inputs) - batch.targets).square().mean().item()
    assert found["fresh_loss"] == pytest.approx(by_hand, rel=1e-5)


def planted_digon(sparsity, seed):
    task = SparseFeatures(2, sparsity, 1.0, n_test=100)
    model = SuperpositionSpec("relu_out", 1).build(task, rng())
    with torch.no_grad():
        model.W.copy_(DIGON)
    return model, task, task.split(seed)


# --- mistakes ---------------------------------------------------------------------------------------------------------

TASK_MISTAKES = [
    ({"sparsity": 1.0}, r"sparsity=1.0 is outside \[0, 1\)"),
    ({"sparsity": -0.1}, r"sparsity=-0.1 is outside \[0, 1\)"),
    ({"sparsity": (0.5, 0.5, 0.5, 1.0)}, r"sparsity=1.0 is outside \[0, 1\)"),
    ({"sparsity": (0.5, 0.5)}, "sparsity has 2 numbers for n_features=4"),
    ({"importances": (1.0, 2.0)}, r"importances=\[1.0, 2.0\] for n_features=4: one positive number per feature"),
    ({"importances": (1.0, 2.0, 3.0, -1.0)}, "one positive number per feature"),
    ({"group_size": 3}, "group_size=3 does not divide n_features=4"),
    ({"group_size": 2, "grouping": "apart"}, "grouping='apart': accepted are together, exclusive"),
    ({"group_size": 2, "grouping": "exclusive", "sparsity": 0.3}, "take 0.5 or more"),
    ({"group_size": 2, "sparsity": (0.5, 0.5, 0.5, 0.5)}, "one number for all, where features are grouped"),
]


@pytest.mark.parametrize(("change", "message"), TASK_MISTAKES, ids=[str(change) for change, _ in TASK_MISTAKES])
def test_mistakes_in_a_task_are_explained(change, message):
    with pytest.raises(UserError, match=message):
        SparseFeatures(**({"n_features": 4, "sparsity": 0.5, "importance_decay": 1.0} | change))


def test_mistakes_with_fixed_samples_and_functions_are_explained():
    with pytest.raises(UserError, match=r"sparsity=1.0 is outside \[0, 1\)"):
        FixedSamples(10, 1.0, 5)
    with pytest.raises(UserError, match="n_samples=0"):
        FixedSamples(10, 0.5, 0)
    with pytest.raises(UserError, match="2 checkpoints of D and 3 losses"):
        detect_jumps(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(UserError, match="there is no fixed training set"):
        DataGeometry()(snapshot(DIGON))


MEASURES = [Geometry(), Structure(), NeuronWeights(), ClosedForms(), Vulnerability(), Motifs()]


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_measures_refuse_other_models(measure):
    task = ModularArithmetic(7, "x+y", 0.5)
    model = TransformerSpec(1, 2, 8, 4, 16).build(task, rng())
    with pytest.raises(UserError, match=r"this model has|ModularArithmetic has no density"):
        measure(Snapshot(0, model, task, task.split(0)))


# --- The gradient in closed form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_is_what_autograd_finds(kind, n):
    """Losses and every gradient of three members, in both memory orders (few and many features), to 1e-12."""
    g, m = torch.Generator().manual_seed(0), 3
    model = Superposition(SuperpositionSpec(kind, m, dtype="float64"), n)
    params = {
        name: torch.randn(3, *p.shape, generator=g, dtype=torch.float64).requires_grad_()
        for name, p in model.named_parameters()
    }
    x = torch.rand(3, 40, n, generator=g) * (torch.rand(3, 40, n, generator=g) < 0.4)
    target = x.abs() if kind == "absolute" else x
    weight = torch.rand(3, n, generator=g, dtype=torch.float64)
    weight[:, 1] = 0
    y = torch.func.functional_call(model, params, (x,))
    losses = (weight[:, None] * (y - target) ** 2).sum((1, 2))
    expected = torch.autograd.grad(losses.sum(), list(params.values()))
    detached = {name: p.detach() for name, p in params.items()}
    found, by_hand = model.squared_error(detached, x, target, weight)
    torch.testing.assert_close(by_hand, losses.detach(), rtol=1e-12, atol=1e-12)
    for name, grad in zip(params, expected, strict=True):
        torch.testing.assert_close(found[name], grad, rtol=1e-12, atol=1e-12, msg=lambda text, k=name: f"{k}: {text}")
    assert all(grad.abs().max() > 0.1 for grad in expected)
    assert (found["b"][:, 1] == 0).all(), "a feature without weight moves nothing"


def test_what_cannot_be_attacked_or_drawn_is_explained():
    task = SparseFeatures(2, 0.5, 1.0, target="abs", n_test=16)
    with pytest.raises(UserError, match="kind linear or relu_out, not absolute"):
        Vulnerability()(snapshot(DIGON, task, "absolute"))
    with pytest.raises(UserError, match=r"size=0.0: more than 0"):
        Vulnerability(size=0.0)
    with pytest.raises(UserError, match="the motif is of kind absolute"):
        Motifs()(snapshot(DIGON))
    with pytest.raises(UserError, match=r"ratio=1\.0"):
        Motifs(ratio=1.0)
    with pytest.raises(UserError, match="rows=1"):
        FreshLoss(1)
