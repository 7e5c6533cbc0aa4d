"""Worlds with a known dictionary: every law against its formula, and the leaderboard between oracle and chance."""

import itertools

import pytest
import torch
from cases.models import rng
from scipy.stats import multivariate_normal, norm

from toylab.config import build, to_node
from toylab.data import Task
from toylab.errors import UserError
from toylab.interp.sae.leaderboard import BASELINES, TiedDictionary, leaderboard
from toylab.measures.sweeps import KINDS, SparsitySweep
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.snapshot import Snapshot
from toylab.tasks.dictionaries import FeatureTrees, SharkeyFeatures, SynthSAEBench, levels, tight_frame
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def sharkey(**changes):
    return SharkeyFeatures(**{"n_features": 40, "d_hidden": 16, "mean_active": 4.0, "decay": 0.95} | changes)


def nabeshima(**changes):
    """Two parents at .15, each with three exclusive children at .2."""
    settings = {
        "parent": (-1, -1, 0, 0, 0, 1, 1, 1), "probability": (0.15, 0.15, *[0.2] * 6), "exclusive": True,
        "size_std": 0.05, "d_hidden": 8, "directions": "orthonormal",
    }  # fmt: skip
    return FeatureTrees(**settings | changes)


CHAIN = FeatureTrees(parent=(-1, 0, 1, 0, -1), probability=(0.5, 0.6, 0.5, 0.3, 0.2), d_hidden=3, directions="tight")


def synth(**changes):
    settings = {
        "n_features": 60, "d_hidden": 24, "n_roots": 3, "branching": 3, "depth": 2, "zipf_exponent": 0.5, "p_max": 0.5,
        "p_min": 0.02, "correlation_rank": 0, "correlation_scale": 0.0, "size_first": 5.0, "size_last": 4.0,
        "size_std": 0.5, "bias": 0.5,
    }  # fmt: skip
    return SynthSAEBench(**settings | changes)


WORLDS = [
    pytest.param(sharkey(), id="sharkey"),
    pytest.param(sharkey(correlation_rank=3, correlation_scale=0.5, bias=0.3, n_test=50), id="correlated"),
    pytest.param(nabeshima(), id="nabeshima"),
    pytest.param(CHAIN, id="chain"),
    pytest.param(synth(correlation_rank=4, correlation_scale=0.2), id="synth"),
]
worlds = pytest.mark.parametrize("world", WORLDS)


def within(found, expected, stderr, sigmas):
    """Every number within so many standard errors; sigmas are chosen so that a true law fails about once in 10^4."""
    z = ((found - expected) / stderr).abs().max()
    assert z < sigmas, f"off by {z:.1f} standard errors"


# --- the Task protocol ----------------------------------------------------------------------------------------------


@worlds
def test_it_is_a_task(world):
    assert isinstance(world, Task)
    assert build(to_node(world), "task") == world
    batch = world.sample(20, rng())
    assert batch.inputs.shape == (20, world.n_features)
    assert torch.equal(batch.inputs, batch.targets)
    assert torch.equal(batch.inputs, world.sample(20, rng()).inputs)
    assert not torch.equal(batch.inputs, world.sample(20, rng(1)).inputs)
    assert len(world.split(0).all) == world.n_test
    assert not torch.equal(world.split(0).all.inputs, world.split(1).all.inputs)
    latents = world.latents(batch.inputs)
    assert torch.equal(latents["on"].values.bool(), batch.inputs > 0)
    assert torch.equal(latents["value"].values, batch.inputs)
    assert len(world.render(batch.inputs)) == 20
    assert SuperpositionSpec("relu_out", d_hidden=3).build(world, rng())(batch.inputs).shape == batch.inputs.shape


def obeys_the_trees(world, c):
    parents = world.parents()
    child = (parents >= 0).nonzero().squeeze(1)
    fine = not ((c[:, child] > 0) & (c[:, parents[child]] == 0)).any()
    if getattr(world, "exclusive", isinstance(world, SynthSAEBench)):
        together = (parents[:, None] == parents) & (parents >= 0) & ~torch.eye(len(parents), dtype=torch.bool)
        on = (c > 0).double()
        fine &= not (((on.T @ on) > 0) & together).any()
    return fine


@worlds
def test_counterfactuals_obey_the_trees_and_change_as_little_as_they_can(world):
    batch = world.sample(400, rng())
    new = world.counterfactual(batch, "on", rng(1))
    before, after = batch.inputs > 0, new.inputs > 0
    changed = before != after
    assert changed.any(1).all()
    assert obeys_the_trees(world, new.inputs)
    assert torch.equal(new.inputs[~changed], batch.inputs[~changed])
    # Every change is in the tree of one feature: roots are independent of each other.
    root = torch.arange(world.n_features)
    for _ in range(world.n_features):
        root = torch.where(world.parents()[root] >= 0, world.parents()[root], root)
    for row in changed:
        assert len(root[row].unique()) == 1
    with pytest.raises(UserError, match="accepted are on"):
        world.counterfactual(batch, "value", rng())


def test_counterfactual_by_hand():
    """Off takes the descendants along, on brings the ancestors and ends the branch that excludes them."""
    world = nabeshima(probability=(1.0, 1.0, *[0.3] * 6))
    batch = world.sample(500, rng())
    before, after = batch.inputs > 0, world.counterfactual(batch, "on", rng(1)).inputs > 0
    ended_parents = before[:, :2] & ~after[:, :2]
    assert not (after[:, 2:5].any(1) & ended_parents[:, 0]).any()
    swapped = (~before & after)[:, 2:5].any(1) & before[:, 2:5].any(1)
    assert swapped.sum() > 50
    assert (after[swapped, 2:5].sum(1) == 1).all()


# --- dictionaries ---------------------------------------------------------------------------------------------------


@worlds
def test_activations_are_unit_directions_times_coefficients_plus_bias(world):
    x, c = world.draw(50, rng())
    D, b = world.dictionary(), world.true_bias()
    torch.testing.assert_close(x, c @ D + b)
    torch.testing.assert_close(D.norm(dim=1), torch.ones(world.n_features))
    torch.testing.assert_close(b.norm(), torch.tensor(world.bias))
    D.zero_()  # a caller may write into its copy
    assert world.dictionary().norm() > 1


def test_kinds_of_directions():
    """Tight frames reach the least sum of squared cosines, n^2/d; random ones have n + n(n - 1)/d in expectation."""

    def sum_of_squares(**changes):
        D = sharkey(**changes).dictionary().double()
        return (D @ D.T).pow(2).sum()

    n, d = 40, 16
    torch.testing.assert_close(sum_of_squares(directions="tight"), torch.tensor(n * n / d).double(), rtol=1e-6, atol=0)
    random = torch.stack([sum_of_squares(dictionary_seed=s) for s in range(30)])
    assert abs(random.mean() - (n + n * (n - 1) / d)) < 4 * random.std() / 30**0.5
    assert random.min() > n * n / d * 1.1
    D = sharkey(directions="orthonormal", d_hidden=45).dictionary()
    torch.testing.assert_close(D @ D.T, torch.eye(n), atol=1e-6, rtol=0)
    near = tight_frame(sharkey().dictionary())
    assert (near * sharkey().dictionary()).sum(1).min() > 0.5


def test_levels():
    assert [level.tolist() for level in levels(torch.tensor([-1, 0, 1, 0, -1, 2]))] == [[0, 4], [1, 3], [2], [5]]
    assert CHAIN.edges().tolist() == [[0, 1], [1, 2], [0, 3]]


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlated", [{}, {"correlation_rank": 3, "correlation_scale": 0.5}])
def test_sharkey_marginals_and_sizes(correlated):
    world, n = sharkey(**correlated), 40_000
    p = world.firing_probabilities()
    torch.testing.assert_close(p.sum(), torch.tensor(4.0).double())
    torch.testing.assert_close(p[1:] / p[:-1], torch.full((39,), 0.95).double())
    c = world.coefficients(n, rng())
    within((c > 0).double().mean(0), p, (p * (1 - p) / n).sqrt(), 4.8)
    values = c[c > 0].double()
    within(values.mean(), 0.5, (1 / 12 / len(values)) ** 0.5, 4)
    within(values.pow(2).mean(), 1 / 3, (4 / 45 / len(values)) ** 0.5, 4)
    assert values.max() < 1


def test_sharkeys_own_independent_mode_was_not_rescaled():
    """sum of 0.99^i 5/512 is 0.97 features per row, not 5: why the probabilities here are."""
    assert (0.99 ** torch.arange(512).double() * 5 / 512).sum() == pytest.approx(0.97, abs=0.005)


def test_26_correlated_generator_matches_the_copula_and_rows_differ():
    n = 40_000
    world = sharkey(n_features=8, d_hidden=4, mean_active=2.4, decay=0.9, correlation_rank=2, correlation_scale=0.6)
    p, L = world.firing_probabilities().numpy(), world.loading()
    rho = (L @ L.T).numpy()
    on = (world.coefficients(n, rng()) > 0).double()
    together = on.T @ on / n
    pairs = list(itertools.combinations(range(8), 2))
    # P(z_i > a, z_j > b) of a bivariate normal, by its symmetry that of z < -a, z < -b.
    expected = [multivariate_normal.cdf(norm.ppf([p[i], p[j]]), cov=[[1, rho[i, j]], [rho[i, j], 1]]) for i, j in pairs]
    expected = torch.tensor(expected, dtype=torch.double)
    found = torch.stack([together[i, j] for i, j in pairs])
    within(found, expected, (expected * (1 - expected) / n).sqrt(), 4.5)
    independent = torch.tensor([p[i] * p[j] for i, j in pairs])
    assert (expected - independent).abs().max() > 0.03  # the pairs are far from independent...
    first, second = on[: n // 2].mean(0), on[n // 2 :].mean(0)
    within(first, second, (2 * on.var(0) / (n / 2)).sqrt(), 4)  # ...and nothing is shared by the rows of one batch


@pytest.mark.parametrize("world", [nabeshima(), CHAIN], ids=["nabeshima", "chain"])
def test_27_trees(world):
    n = 40_000
    c = world.coefficients(n, rng())
    assert obeys_the_trees(world, c)
    p = world.firing_probabilities()
    within((c > 0).double().mean(0), p, (p * (1 - p) / n).sqrt(), 4)
    if world is CHAIN:
        torch.testing.assert_close(p, torch.tensor([0.5, 0.3, 0.15, 0.15, 0.2]).double())
    else:
        assert p.sum() == pytest.approx(2 * 0.15 * 1.6)
        within(c[c > 0].double().mean(), 1.0, 0.05 / (c > 0).sum() ** 0.5, 4)
        # Trees are independent of each other.
        both = ((c[:, 2:5] > 0) & (c[:, 5:8] > 0)).double().mean(0)
        within(both, p[2] * p[5], (p[2] * p[5] / n).sqrt(), 4)


def test_27_independent_siblings_do_fire_together():
    on = nabeshima(exclusive=False).coefficients(20_000, rng())[:, 2:5] > 0
    assert on.sum(1).max() == 3


@pytest.mark.parametrize("correlated", [{}, {"correlation_rank": 4, "correlation_scale": 0.3}], ids=["", "correlated"])
def test_27_synth_marginals(correlated):
    world, n = synth(**correlated), 40_000
    c = world.coefficients(n, rng())
    assert obeys_the_trees(world, c)
    p = world.firing_probabilities(4096)
    # With correlations the law is itself a mean over 4,096 draws.
    noise = 1 / n + (1 / 4096 if correlated else 0)
    within((c > 0).double().mean(0), p, (p * (1 - p) * noise).sqrt(), 4.5)
    if not correlated:
        nominal = world.nominal_probabilities()
        torch.testing.assert_close(p[39:], nominal[39:])  # outside the trees nothing is taken away
        assert (p[3:39] < nominal[3:39]).all()  # within, compensation is not complete


def test_which_sibling_stays_against_all_subsets():
    """P(child stays) summed over every set of siblings that may fire, uniform winner."""
    world = synth(n_features=5, n_roots=1, branching=4, depth=1)
    q = world.conditional_probabilities()[1:].tolist()
    expected = torch.zeros(4).double()
    for fires in itertools.product([0, 1], repeat=4):
        weight = torch.tensor([x if on else 1 - x for x, on in zip(q, fires, strict=True)]).double().prod()
        if any(fires):
            expected += weight * torch.tensor(fires).double() / sum(fires)
    p = world.firing_probabilities()
    torch.testing.assert_close(p[1:], expected * p[0])


def test_children_are_scaled_by_their_parents():
    """E[size of child | on] = m_child E[size of parent | on] / m_parent."""
    world = synth(n_features=2, d_hidden=4, n_roots=1, branching=1, depth=1, p_max=0.6, p_min=0.5, size_std=1.0)
    c = world.coefficients(40_000, rng())
    parent, child = c[c[:, 1] > 0].T.double()
    covariance = ((parent - parent.mean()) * (child - child.mean())).mean()
    mean = world.mean_sizes()
    expected = parent.var() * mean[1] / mean[0]
    assert covariance == pytest.approx(float(expected), rel=0.05)


def test_synth_sae_bench_16k_has_its_published_l0():
    """The sheet: nominal probabilities add up to 59.1 [derived]; realised L0 34, 25 of it in the first 4,096 [seen]."""
    world = SynthSAEBench(
        n_features=16384, d_hidden=768, n_roots=128, branching=4, depth=3, zipf_exponent=0.5, p_max=0.4, p_min=5e-4,
        correlation_rank=25, correlation_scale=0.1, size_first=5.0, size_last=4.0, size_std=0.5, bias=0.5,
    )  # fmt: skip
    assert world.nominal_probabilities().sum() == pytest.approx(59.1, abs=0.1)
    p = world.firing_probabilities(32)
    assert p.sum() == pytest.approx(34, abs=0.6)
    assert p[:4096].sum() == pytest.approx(25, abs=0.6)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sharkey(directions="rando"), 'did you mean "random"'),
        (lambda: sharkey(directions="orthonormal"), "d_hidden=40"),
        (lambda: sharkey(directions="tight", d_hidden=40), "orthonormal"),
        (lambda: sharkey(mean_active=30.0), "probability 1.72"),
        (lambda: sharkey(correlation_rank=4, correlation_scale=0.5), "1.00; below 1"),
        (lambda: nabeshima(parent=(0, -1, 0, 0, 0, 1, 1, 1)), "earlier feature"),
        (lambda: nabeshima(probability=(0.1, 0.2)), "8 numbers"),
        (lambda: nabeshima(probability=(0.15, 0.15, *[0.4] * 6)), "add up to more than 1"),
        (lambda: synth(n_features=38), "hold 39"),
        (lambda: synth(p_min=0.9), "p_min <= p_max"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- the leaderboard ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board():
    world = sharkey(d_hidden=24, bias=0.4)
    same = TiedDictionary(world.dictionary(), world.true_bias())
    return {row["name"]: row for row in leaderboard({"mine": same}, world, 6000, rng())}


def test_leaderboard_has_the_baselines_first(board):
    assert list(board) == [*BASELINES, "mine"]
    drop = lambda row: {k: v for k, v in row.items() if k not in ("name", "absorption")}  # noqa: E731
    assert drop(board["mine"]) == drop(board["true directions"])


def test_leaderboard_oracle_is_1_wherever_1_is_best(board):
    oracle = board["oracle"]
    best = ["explained_variance", "mmcs", "mcc", "uniqueness", "f1", "precision", "recall", "auroc", "shrinkage"]
    assert {key: oracle[key] for key in best} == pytest.approx(dict.fromkeys(best, 1.0), abs=1e-5)
    assert oracle["l0"] == pytest.approx(4.0, abs=4 * (4 / 6000) ** 0.5)
    assert oracle["dead"] == 0


def test_leaderboard_chance_rows_are_at_chance(board):
    """Right directions with the codes of other rows: E|x - x'|^2 is twice the variance, and F1 is at its own chance."""
    shuffled, random, tied = board["shuffled codes"], board["random directions"], board["true directions"]
    assert shuffled["mcc"] == pytest.approx(1, abs=1e-5)
    assert shuffled["explained_variance"] == pytest.approx(-1, abs=0.1)
    assert shuffled["f1"] == pytest.approx(shuffled["chance_f1"], abs=0.01)
    assert shuffled["auroc"] == pytest.approx(0.5, abs=0.02)
    assert random["mmcs"] == pytest.approx(random["chance_mmcs"], abs=0.04)
    assert random["uniqueness"] == pytest.approx(random["chance_uniqueness"], abs=0.2)
    assert random["mcc"] < 0.6
    assert random["f1"] < 0.3
    assert random["l0"] <= 4
    # Projection ranks rows well (AUROC far above 1/2 and the random directions') and fires far too often.
    assert tied["mcc"] == pytest.approx(1, abs=1e-5)
    assert tied["auroc"] > random["auroc"] + 0.1
    assert tied["precision"] < 0.3


def test_leaderboard_sees_absorption():
    """A dictionary whose child latent writes parent + child and silences the parent's."""
    world = FeatureTrees(parent=(-1, 0), probability=(0.6, 0.5), d_hidden=2, directions="orthonormal")
    D = world.dictionary()

    class Absorbing:
        W_dec = torch.stack([D[0], D[0] + D[1]])

        def encode(self, x):
            child = x @ D[1]
            acts = torch.stack([x @ D[0] - child, child], 1)
            return torch.where(acts > 1e-4, acts, 0)  # where both are on, their difference is rounding

        def decode(self, acts):
            return acts @ self.W_dec

    rows = {row["name"]: row for row in leaderboard({"absorbing": Absorbing()}, world, 500, rng())}
    assert rows["absorbing"]["explained_variance"] == pytest.approx(1, abs=1e-5)
    assert rows["absorbing"]["l0"] < rows["oracle"]["l0"] - 0.2
    assert (rows["absorbing"]["absorption"], rows["oracle"]["absorption"]) == pytest.approx((1, 0), abs=0.02)


def test_leaderboard_refuses_the_name_of_a_baseline():
    with pytest.raises(UserError, match="oracle"):
        leaderboard({"oracle": TiedDictionary(torch.eye(2), torch.zeros(2))}, sharkey(), 10, rng())


# --- the sweep over penalties, kinds and widths ---------------------------------------------------------------------

SWEEP = SparsitySweep(
    l1=(0.05, 0.2, 5.0), d_sae=(3, 12), size_l1=0.2, k=1, seeds=2, steps=1000, batch_size=256, lr=5e-3
)


def toy(sparsity, seed=0):
    """Twelve features in eight directions, as a snapshot of an untrained linear toy model."""
    task = SparseFeatures(12, sparsity, 1.0, n_test=2000)
    model = SuperpositionSpec("linear", 8, init_std=8**-0.5).build(task, torch.Generator().manual_seed(seed))
    return Snapshot(0, model, task, task.split(0), "mse")


def test_the_sweep_finds_sparse_features_and_none_where_all_are_on():
    found, dense = SWEEP(toy(0.95)), SWEEP(toy(0.1))
    assert found["mmcs_by_l1"].values.shape == (3, 2)
    assert found["mmcs_by_l1"].values[1].min() > 0.9
    assert found["stability_by_l1"].values[1] > 0.8
    assert abs(found["true_l0"] - 0.6) < 0.05
    assert found["mmcs_by_l1"].values[2].max() < 0.85  # a penalty beyond every amplitude: chance
    assert found["explained_variance_by_l1"].values[2].max() < 0.05
    assert found["mmcs_by_size"].values[1].min() > found["mmcs_by_size"].values[0].max()
    assert dense["mmcs_by_l1"].values.max() < found["mmcs_by_l1"].values[1].min()
    assert dense["stability_by_l1"].values[1] < found["stability_by_l1"].values[1]
    assert list(found["l0_by_kind"].coords["kind"]) == list(KINDS)
    assert abs(found["l0_by_kind"].values[0].mean() - 1) < 0.2


def test_a_penalty_shrinks_amplitudes_and_topk_less():
    found = SWEEP(toy(0.95))
    kept = found["kept_by_l1"].values.mean(1)
    assert (kept[1:] < kept[:-1]).all()
    assert kept[2] < 0.1
    assert found["kept_by_kind"].values[0].mean() > kept[1]


def test_the_sweep_asks_for_a_toy_model_of_features():
    task = ModularArithmetic(7, "x+y", 0.5)
    model = TransformerSpec(1, 1, 8, 8, 16).build(task, torch.Generator())
    with pytest.raises(UserError, match="superposition measures read models"):
        SWEEP(Snapshot(0, model, task, task.split(0)))
    signed = SparseFeatures(12, 0.9, 1.0, target="abs", n_test=50)
    model = SuperpositionSpec("linear", 8).build(signed, torch.Generator())
    with pytest.raises(UserError, match="inputs are its features, 0 or more"):
        SWEEP(Snapshot(0, model, signed, signed.split(0), "mse"))
