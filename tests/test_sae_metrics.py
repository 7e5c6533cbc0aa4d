"""Metrics of dictionaries: planted truth, identities and invariances, and what each says of nothing at all."""

import itertools
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cases.models import FEATURES, rng
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import f1_score, roc_auc_score

from toylab.errors import UserError
from toylab.interp.sae import boards
from toylab.interp.sae.agreement import (
    absorption,
    beside_truth,
    best_latent_auroc,
    f1_table,
    firing,
    latent_auroc,
    latent_scores,
    shrinkage,
    sparse_probing,
)
from toylab.interp.sae.leaderboard import TiedDictionary
from toylab.interp.sae.metrics import evaluate, loss_recovered, reconstruction
from toylab.interp.sae.recovery import (
    best_feature,
    best_latent,
    chance,
    chance_cosine_above,
    chance_mmcs,
    chance_uniqueness,
    cosines,
    hedging,
    match,
    mcc,
    mean_overlap,
    mmcs,
    random_dictionaries,
    recovered,
    splitting,
    stability,
    uniqueness,
)
from toylab.models.superposition import SuperpositionSpec

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.double)


def planted(n=4000, n_features=6, p=0.3, seed=0):
    """Coefficients, uniform where on."""
    g = rng(seed)
    on = torch.rand(n, n_features, generator=g, dtype=torch.double) < p
    return on * torch.rand(n, n_features, generator=g, dtype=torch.double).clamp_min(1e-6)


def rotation(d, seed=5):
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


# --- reconstruction ---------------------------------------------------------------------------------------------------


def test_11_explained_variance():
    """Perfect 1, mean predictor 0, x and x^ scaled and shifted together: unchanged, also far from the origin."""
    x, acts = normal(500, 4) * torch.tensor([1.0, 2.0, 0.1, 3.0]) + 2, torch.zeros(500, 3)
    assert reconstruction(x, x, acts).explained_variance == 1
    assert abs(reconstruction(x, x.mean(0).expand_as(x), acts).explained_variance) < 1e-12
    recon = x + normal(500, 4, seed=1)
    before = reconstruction(x, recon, acts).explained_variance
    for c, v in ((3.0, 0.0), (-0.2, 1.0), (1.0, 1e4)):
        moved = reconstruction(c * x + v, c * recon + v, acts).explained_variance
        torch.testing.assert_close(moved, before, rtol=1e-6, atol=0)
    # A constant error counts, unlike in 1 - Var(x - x^)/Var(x).
    assert reconstruction(x, x + 1, acts).explained_variance == pytest.approx(1 - 4 / float(x.var(0, False).sum()))
    # Somebody else's reconstruction, as good as x itself: twice the variance, so -1.
    far = reconstruction(x, x.roll(1, 0), acts).explained_variance
    assert far == pytest.approx(-1, abs=0.2)


def test_pieces_add_up_and_the_mean_of_their_ratios_does_not():
    x = torch.cat([normal(30, 5), 9 * normal(200, 5, seed=1) + 4])
    recon, acts = x + normal(230, 5, seed=2), normal(230, 7, seed=3).relu()
    whole = reconstruction(x, recon, acts)
    parts = [reconstruction(x[s], recon[s], acts[s]) for s in (slice(0, 30), slice(30, 31), slice(31, 230))]
    summed = parts[0] + parts[1] + parts[2]
    for key in ("fvu", "l0", "mse", "cosine", "shrinkage", "relative_bias", "density", "dead"):
        torch.testing.assert_close(getattr(summed, key), getattr(whole, key))
    assert abs((parts[0].fvu + parts[2].fvu) / 2 - whole.fvu) > 0.1


def test_reconstruction_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    recon = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    acts = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = reconstruction(x, recon, acts)
    assert found.l0 == pytest.approx(1.0)
    assert found.mse == pytest.approx((16 + 1) / 3)
    assert found.cosine == pytest.approx((0.6 + 1) / 2)
    assert found.shrinkage == pytest.approx((0.6 + 0.5) / 2)
    assert found.relative_bias == pytest.approx(10 / 11)
    assert found.density.tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert found.dead == pytest.approx(1 / 3)
    assert found.dense() == pytest.approx(2 / 3)
    assert found.dense(above=0.5) == pytest.approx(1 / 3)


def test_relative_bias_is_the_best_rescaling():
    x = normal(300, 4)
    recon = 0.6 * x + 0.3 * normal(300, 4, seed=1)
    gamma = reconstruction(x, recon, torch.zeros(300, 1)).relative_bias
    errors = [(x - recon * s).pow(2).sum() for s in (1 / gamma, 1.01 / gamma, 0.99 / gamma)]
    assert errors[0] == min(errors)


def test_a_stack_of_dictionaries_is_each_by_itself():
    x, recon, acts = normal(50, 4), normal(3, 50, 4, seed=1), normal(3, 50, 6, seed=2).relu()
    c, truth, W = planted(50, 5), normal(5, 4, seed=4), normal(3, 6, 4, seed=3)
    stacked, counts = reconstruction(x, recon, acts), firing(acts, c)
    pairs = torch.tensor([[0, 1], [2, 0]])
    for i in range(3):
        alone, one = reconstruction(x, recon[i], acts[i]), firing(acts[i], c)
        for key in ("fvu", "l0", "cosine", "shrinkage", "relative_bias", "density", "dead"):
            torch.testing.assert_close(getattr(stacked, key)[i], getattr(alone, key))
        for metric in (mmcs, mcc, uniqueness, splitting, recovered, best_latent):
            torch.testing.assert_close(metric(W, truth)[i], metric(W[i], truth))
        torch.testing.assert_close(hedging(W, truth, pairs)[i], hedging(W[i], truth, pairs))
        torch.testing.assert_close(
            latent_scores(counts, best_feature(W, truth)).f1[i], latent_scores(one, best_feature(W[i], truth)).f1
        )
        torch.testing.assert_close(shrinkage(counts, W, truth).value[i], shrinkage(one, W[i], truth).value)


def test_evaluate_streams():
    W, x = F.normalize(normal(8, 5), dim=1), normal(90, 5, seed=1)
    dictionary = TiedDictionary(W, torch.ones(5).double(), k=3)
    acts = dictionary.encode(x)
    whole, streamed = reconstruction(x, dictionary.decode(acts), acts), evaluate(dictionary, iter(x.split(40)))
    torch.testing.assert_close(streamed.fvu, whole.fvu)
    assert streamed.l0 <= 3
    with pytest.raises(UserError, match="stream of batches is empty"):
        evaluate(dictionary, [])


def test_bad_activations_are_refused():
    x, acts = normal(10, 3), torch.zeros(10, 2)
    with pytest.raises(UserError, match="no variance to explain"):
        _ = reconstruction(torch.zeros(10, 3), torch.zeros(10, 3), acts).fvu
    with pytest.raises(UserError, match="no variance to explain"):
        _ = reconstruction(torch.full((10, 3), 0.1), torch.zeros(10, 3), acts).fvu
    with pytest.raises(UserError, match="NaN"):
        reconstruction(x, x * torch.nan, acts)
    with pytest.raises(UserError, match="5 dimensions"):
        mmcs(normal(4, 5), normal(4, 3))


@dataclass
class Case:
    model: object
    batch: object

    def score(self, reconstruct, ablation="zero", mean=None, rows=slice(None)):
        batch = self.batch[rows]
        losses = lambda out: (out - batch.targets) ** 2  # noqa: E731
        return loss_recovered(self.model, batch.inputs, losses, "hidden", reconstruct, ablation, mean)


@pytest.fixture
def case():
    """A model that passes every feature through: the clean loss is 0."""
    model = SuperpositionSpec("relu_out", d_hidden=5, dtype="float64").build(FEATURES, rng())
    with torch.no_grad():
        model.W.copy_(torch.eye(5))
    return Case(model, FEATURES.sample(60, rng(1)))


def test_12_loss_recovered(case):
    """The identity recovers 1, the ablation 0, a c-fold activation 1 - (c - 1)^2; and the ablation matters."""
    hidden = case.model.run_with_cache(case.batch.inputs, "hidden")[1]["hidden"]
    mean = hidden.mean(0)
    assert case.score(lambda x: x).value == 1
    assert case.score(torch.zeros_like).value == 0
    assert case.score(lambda x: x, "mean", mean).value == 1
    assert case.score(lambda x: mean.expand_as(x), "mean", mean).value == 0
    assert case.score(lambda x: mean.expand_as(x)).value != 0
    assert case.score(lambda x: 0.7 * x).value == pytest.approx(0.91)
    assert case.score(lambda x: 3 * x).value == pytest.approx(-3)
    assert case.score(torch.zeros_like).clean == 0
    assert case.score(torch.zeros_like).ablated == pytest.approx(float(case.batch.targets.double().pow(2).mean()))


def test_loss_recovered_adds_up(case):
    whole = case.score(lambda x: 0.7 * x)
    summed = case.score(lambda x: 0.7 * x, rows=slice(0, 10)) + case.score(lambda x: 0.7 * x, rows=slice(10, 60))
    assert summed.value == pytest.approx(whole.value)
    assert summed.n == whole.n == 300


def test_loss_recovered_bad_input(case):
    with pytest.raises(UserError, match="give mean="):
        case.score(lambda x: x, "mean")
    with pytest.raises(UserError, match='did you mean "zero"'):
        case.score(lambda x: x, "zeros")
    dead = SuperpositionSpec("relu_out", d_hidden=3, init_std=0.0).build(FEATURES, rng())
    with pytest.raises(UserError, match="does not matter"):
        _ = Case(dead, case.batch).score(lambda x: x).value


# --- directions -------------------------------------------------------------------------------------------------------


def test_21_matching_metrics_know_the_truth_and_no_order_or_sign():
    truth = normal(7, 12)
    mixed = truth[torch.randperm(7, generator=rng(1))] * (normal(7, 1, seed=2).abs() + 0.1)
    signs = torch.tensor([1.0, -1, 1, -1, -1, 1, 1])[:, None]
    assert mmcs(mixed, truth) == pytest.approx(1)
    assert mmcs(mixed * signs, truth) < 0.9
    assert mmcs(mixed * signs, truth, absolute=True) == pytest.approx(1)
    assert mcc(mixed * signs, truth) == pytest.approx(1)
    assert uniqueness(mixed * signs, truth) == 1
    assert recovered(mixed, truth) == 1
    assert uniqueness(truth[:1].expand(9, -1), truth) == pytest.approx(1 / 9)
    W, Q = normal(9, 12, seed=3), rotation(12)
    for metric in (mmcs, mcc, uniqueness, mean_overlap):
        args = () if metric is mean_overlap else (truth @ Q,)
        plain = () if metric is mean_overlap else (truth,)
        torch.testing.assert_close(metric(W @ Q, *args), metric(W, *plain))


def test_what_each_direction_of_mmcs_punishes():
    truth = torch.eye(6).double()
    missing, noisy = truth[:3], torch.cat([truth, normal(6, 6)])
    assert (mmcs(missing, truth), mmcs(missing, truth, over="latents")) == pytest.approx((0.5, 1))
    assert mmcs(noisy, truth) == pytest.approx(1)
    assert mmcs(noisy, truth, over="latents") < 0.95
    assert mcc(torch.cat([truth[:1]] * 6), truth) == pytest.approx(1 / 6)  # copies count once
    assert recovered(missing, truth) == pytest.approx(0.5)


def test_matching_is_the_best_of_all_permutations():
    W, truth = normal(5, 3), normal(4, 3, seed=1)
    cos = cosines(W, truth)
    for absolute in (False, True):
        table = cos.abs() if absolute else cos
        best = max(sum(table[i, j] for j, i in enumerate(p)) for p in itertools.permutations(range(5), 4))
        found = match(W, truth, absolute)
        assert found.cosine.sum() == pytest.approx(float(best))
        torch.testing.assert_close(table[found.latent, found.feature], found.cosine)
    assert linear_sum_assignment(cos.numpy(), maximize=True)[1].tolist() == match(W, truth, False).feature.tolist()


@pytest.mark.parametrize(
    ("d", "d_sae", "signed", "absolute"),
    [(256, 512, 0.189, 0.202), (50, 50, 0.313, 0.347), (100, 50, 0.222, 0.249), (768, 4096, 0.130, 0.137),
     (5, 5, 0.52, 0.675), (2, 5, 0.79, 0.94)],
)  # fmt: skip
def test_21_chance_table(d, d_sae, signed, absolute):
    """Values by simulation [derived]; here an integral."""
    assert chance_mmcs(d, d_sae) == pytest.approx(signed, abs=0.0055)
    assert chance_mmcs(d, d_sae, absolute=True) == pytest.approx(absolute, abs=0.0055)


def test_exact_chance_is_what_random_dictionaries_do():
    d, d_sae, n, draws = 6, 8, 10, 400
    truth = random_dictionaries(1, n, d, rng(9))[0]
    for absolute in (False, True):
        mean, std = chance(partial(mmcs, features=truth, absolute=absolute), d_sae, d, rng(), draws)
        assert abs(mean - chance_mmcs(d, d_sae, absolute)) < 4 * std / draws**0.5
    axes = torch.eye(d)
    mean, std = chance(lambda W: uniqueness(W, axes), d_sae, d, rng(1), draws)
    assert abs(mean - chance_uniqueness(d_sae, d)) < 4 * std / draws**0.5
    mean, std = chance(lambda W: splitting(W, truth, 0.4).double().mean(-1), d_sae, d, rng(2), draws)
    assert abs(mean - d_sae * chance_cosine_above(0.4, d)) < 4 * std / draws**0.5
    mean, std = chance(mean_overlap, d_sae, d, rng(3), draws)
    assert abs(mean - chance_mmcs(d, 1, absolute=True)) < 4 * std / draws**0.5
    mean, _ = chance(lambda W: mcc(W, axes), d_sae, d, rng(4), 50)
    assert 0.5 < mean < 0.8
    assert chance_mmcs(2, 1) == pytest.approx(0, abs=1e-6)
    assert chance_mmcs(2, 1, absolute=True) == pytest.approx(2 / torch.pi, abs=1e-6)  # mean |cos| on the circle


def test_splitting_counts():
    truth = torch.eye(4).double()
    W = torch.stack([truth[0], truth[0] + 0.5 * truth[3], truth[1], -truth[2]])
    assert splitting(W, truth).tolist() == [2, 1, 0, 0]


def test_22_hedging():
    """Two orthogonal features, the second only with the first, P = q: the best single latent, two ways."""
    q, d = 0.2, 10
    truth = torch.linalg.qr(normal(d, 2))[0].T
    rows = torch.tensor([[0.0, 0]] * 15 + [[1, 0]] * 4 + [[1, 1]]).double()  # p = .25, q = .2, exactly
    x, on, pair = rows @ truth, rows[:, :1], torch.tensor([[0, 1]])
    constant = torch.linalg.lstsq(on, x).solution
    assert cosines(constant, truth).flatten().tolist() == pytest.approx([0.981, 0.196], abs=5e-4)
    assert hedging(constant, truth, pair) == pytest.approx(q / (1 + q * q) ** 0.5)
    assert hedging(-constant, truth, pair) == pytest.approx(q / (1 + q * q) ** 0.5)  # a sign is no leaning
    free = torch.linalg.svd(x).Vh[:1]
    assert hedging(free, truth, pair) == pytest.approx(0.230, abs=5e-4)
    assert hedging(free, truth, pair).abs() == pytest.approx(
        float(torch.linalg.eigh(torch.tensor([[1, q], [q, q]]).double()).eigenvectors[1, 1].abs())
    )


def test_hedging_is_0_for_the_truth_and_at_chance_for_noise():
    truth = normal(6, 4)  # far from orthogonal
    pairs = torch.tensor([[0, 1], [3, 5], [2, 4]])
    torch.testing.assert_close(hedging(-2 * truth, truth, pairs), torch.zeros(3).double(), atol=1e-9, rtol=0)
    lean = truth + 0.4 * truth.roll(-1, 0)
    assert (hedging(lean, truth, pairs[:1]) > 0.1).all()
    axes = torch.eye(20)
    values = hedging(random_dictionaries(500, 4, 20, rng()), axes, torch.tensor([[0, 1]])).flatten()
    assert abs(values.mean()) < 4 * 20**-0.5 / 500**0.5
    assert values.std() == pytest.approx(20**-0.5, rel=0.15)
    with pytest.raises(UserError, match="parallel"):
        hedging(truth, torch.cat([truth, truth[:1]]), torch.tensor([[0, 6]]))


def test_stability():
    W = F.normalize(normal(7, 10), dim=1)
    other = W[torch.randperm(7, generator=rng(1))]
    noise = random_dictionaries(1, 7, 10, rng(2))[0].double()
    found = stability(torch.stack([W, other, noise]))
    torch.testing.assert_close(found, found.T)
    assert found[0, 1] == pytest.approx(1)
    assert found.diagonal().tolist() == pytest.approx([1, 1, 1])
    mean, std = chance(lambda V: match(V.double(), W, False).cosine.mean(-1), 7, 10, rng(3), 50)
    assert abs(found[0, 2] - mean) < 4 * std
    assert found[0, 2] < 0.7


# --- firing -----------------------------------------------------------------------------------------------------------


def test_scores_are_scikit_learns_and_pieces_add_up():
    c, acts = planted(), normal(4000, 5, seed=1).relu() * (normal(4000, 5, seed=2) > 1)
    acts[:, 4] = 0  # dead
    counts = firing(acts[:1500], c[:1500]) + firing(acts[1500:], c[1500:])
    table = f1_table(counts)
    for i, j in itertools.product(range(5), range(6)):
        assert table[i, j] == pytest.approx(f1_score(c[:, j] > 0, acts[:, i] > 0, zero_division=0))
    feature = torch.tensor([3, 0, 1, 1, 2])
    scores = latent_scores(counts, feature)
    torch.testing.assert_close(scores.f1, table[torch.arange(5), feature])
    right = ((acts > 0) == (c[:, feature] > 0)).double().mean(0)
    torch.testing.assert_close(scores.accuracy, right)
    assert (scores.f1[4], scores.precision[4], scores.recall[4], scores.chance[4]) == (0, 0, 0, 0)


def test_scores_of_the_truth_and_their_chance():
    c = planted()
    scores = latent_scores(firing(c, c), torch.arange(6))
    for part in (scores.f1, scores.precision, scores.recall, scores.accuracy):
        torch.testing.assert_close(part, torch.ones(6).double())
    # Rows permuted, many times: the formula for chance is the expectation.
    acts = torch.stack([c[torch.randperm(len(c), generator=rng(s))] for s in range(40)])
    shuffled = latent_scores(firing(acts, c), torch.arange(6).expand(40, 6))
    stderr = shuffled.f1.std(0) / 40**0.5
    assert ((shuffled.f1.mean(0) - shuffled.chance[0]).abs() < 4 * stderr).all()
    assert shuffled.chance[0].mean() == pytest.approx(0.3, abs=0.02)  # 2 p p / (p + p)


def test_soft_threshold_oracle():
    """Orthonormal features, f = max(c - t, 0), c uniform: error t^2 - 2t^3/3 per active feature, recall 1 - t,
    L0 = n p (1 - t), slope 1 - 3t/2 + t^3/2, EV = 1 - (t^2 - 2t^3/3)/(1/3 - p/4); each within 4 standard errors."""
    t, p, n, k = 0.2, 0.3, 40_000, 6
    c, truth = planted(n, k, p), rotation(8)[:k]
    x, acts = c @ truth, (c - t).relu()
    found, counts = reconstruction(x, acts @ truth, acts), firing(acts, c)
    active = n * k * p  # about so many samples of everything
    per_active = t**2 - 2 * t**3 / 3
    assert found.mse == pytest.approx(k * p * per_active, rel=4 * (2 / active) ** 0.5)
    assert found.l0 == pytest.approx(k * p * (1 - t), rel=4 * (1 / active) ** 0.5)
    assert found.explained_variance == pytest.approx(1 - per_active / (1 / 3 - p / 4), abs=0.003)
    scores = latent_scores(counts, best_feature(truth, truth))
    assert scores.recall.mean() == pytest.approx(1 - t, abs=4 * (t * (1 - t) / active) ** 0.5)
    assert scores.precision.min() == 1
    slope = shrinkage(counts, truth, truth).value
    assert slope.mean() == pytest.approx(1 - 1.5 * t + t**3 / 2, abs=0.005)
    doubled = shrinkage(firing(acts / 2, c), 2 * truth, truth).value  # only the product of f and w matters
    torch.testing.assert_close(doubled, slope)


def test_shrinkage_of_the_truth_and_its_chance():
    c, truth = planted(), 3 * normal(6, 9)
    assert shrinkage(firing(c, c), truth, truth).value.tolist() == pytest.approx([1] * 6)
    mixed = c[torch.randperm(len(c), generator=rng(1))]
    null = shrinkage(firing(mixed, c), truth, truth)
    assert null.value.mean() == pytest.approx(float(null.chance.mean()), abs=0.02)
    assert null.chance.mean() == pytest.approx(0.15**2 / 0.1, abs=0.01)  # (E c)^2 / E c^2, p = .3
    never = c.clone()
    never[:, 2] = 0
    assert shrinkage(firing(c, never), truth, truth).value[2].isnan()


def test_the_scorer_knows_the_truth_and_is_its_parts():
    c, truth = planted(), normal(6, 9)
    exact = beside_truth(c, c, truth, truth)
    assert exact.mmcs.item() == pytest.approx(1)
    assert (exact.latents.f1 == 1).all()
    assert exact.shrinkage.value.tolist() == pytest.approx([1] * 6)
    acts, W = planted(seed=3), normal(6, 9, seed=4)
    null = beside_truth(acts, c, W, truth)
    assert null.latents.f1.mean() == pytest.approx(float(null.latents.chance.mean()), abs=0.03)
    assert abs(null.mmcs.item() - chance_mmcs(9, 6)) < 0.2
    order = torch.randperm(6, generator=rng(5))
    permuted = beside_truth(acts[:, order], c, W[order], truth)
    assert permuted.mmcs.item() == pytest.approx(null.mmcs.item())
    torch.testing.assert_close(permuted.latents.f1, null.latents.f1[order])
    torch.testing.assert_close(permuted.shrinkage.value, null.shrinkage.value)


def tree_rows(n=3000, seed=0):
    """Parent at .5, child at .4 given it; sizes 1; a third feature on its own."""
    u = torch.rand(n, 3, generator=rng(seed), dtype=torch.double)
    parent = u[:, 0] < 0.5
    return torch.stack([parent, parent & (u[:, 1] < 0.4), u[:, 2] < 0.3], 1).double()


def test_20_absorption():
    """A hand-built absorbing dictionary has gap 1, the faithful one 0, and half of each one half."""
    c, truth, edges = tree_rows(), torch.eye(3, 5).double(), torch.tensor([[0, 1]])
    absorbing_W = torch.stack([truth[0], truth[0] + truth[1], truth[2]])
    absorbing = torch.stack([c[:, 0] - c[:, 1], c[:, 1], c[:, 2]], 1)
    torch.testing.assert_close(absorbing @ absorbing_W, c @ truth)  # both are perfect reconstructions...
    assert (absorbing > 0).sum() < (c > 0).sum()  # ...and the absorbing one is sparser: why it is preferred
    faithful = absorption(firing(c, c), edges, best_latent(truth, truth))
    absorbed = absorption(firing(absorbing, c), edges, best_latent(absorbing_W, truth))
    assert (faithful.gap.item(), absorbed.gap.item(), absorbed.stderr.item()) == (0, 1, 0)
    assert absorbed.latent.tolist() == [0]
    assert (absorbed.n_child, absorbed.n_alone) == (c[:, 1].sum(), (c[:, 0] - c[:, 1]).sum())
    halves = firing(absorbing[:1000], c[:1000]) + firing(c[1000:2000], c[1000:2000])
    half = absorption(halves, edges, best_latent(truth, truth))
    assert half.gap == pytest.approx(0.5, abs=4 * half.stderr.item())


def test_absorption_null_and_bad_edges():
    """A latent that fires with the parent, independently of the child: gap 0, and stderr is its spread."""
    gaps, stderr = [], []
    for seed in range(60):
        c = tree_rows(400, seed)
        fires = (torch.rand(400, 1, generator=rng(seed + 100), dtype=torch.double) < 0.7) * c[:, :1]
        found = absorption(firing(fires, c), torch.tensor([[0, 1]]), torch.zeros(3).long())
        gaps.append(found.gap.item())
        stderr.append(found.stderr.item())
    gaps, typical = torch.tensor(gaps), sum(stderr) / 60
    assert abs(gaps.mean()) < 4 * typical / 60**0.5
    assert gaps.std() == pytest.approx(typical, rel=0.35)
    with pytest.raises(UserError, match="children fire without their parents"):
        absorption(firing(c, c), torch.tensor([[1, 0]]), torch.arange(3))


def test_auroc_is_scikit_learns_with_ties_and_ignores_monotone_maps():
    c = planted(300)
    acts = (normal(300, 7, seed=1) + c.repeat(1, 2)[:, :7]).mul(3).round().div(3).relu()  # many ties
    acts[:, 6] = 0
    table = latent_auroc(acts, c > 0)
    for i, j in itertools.product(range(7), range(6)):
        assert table[i, j] == pytest.approx(roc_auc_score(c[:, j] > 0, acts[:, i]))
    assert (table[6] == 0.5).all()
    torch.testing.assert_close(latent_auroc(acts.exp() * 3, c > 0), table)
    torch.testing.assert_close(latent_auroc(-acts, c > 0), 1 - table)
    assert latent_auroc(acts, torch.ones(300, 1).bool()).isnan().all()


def test_best_latent_is_chosen_on_other_rows():
    c = planted(2000)
    acts = torch.cat([normal(2000, 20, seed=1).relu(), c.flip(1)], 1)
    found = best_latent_auroc(acts, c, rng(2))
    assert found.latent.tolist() == [25, 24, 23, 22, 21, 20]
    torch.testing.assert_close(found.auroc, torch.ones(6).double())
    rare = planted(600, 50, 0.03, seed=3)
    null = best_latent_auroc(normal(600, 300, seed=4), rare, rng(5))
    spread = null.stderr.nanmedian() / 50**0.5
    assert abs(null.auroc.nanmean() - 0.5) < 4 * spread  # on fresh rows: chance
    assert null.chosen_on.nanmean() > 0.7  # on the rows that chose: far above it
    rare[:, 7] = 0
    assert (best_latent_auroc(normal(600, 300, seed=4), rare, rng(5)).latent == -1).nonzero().flatten().tolist() == [7]


def test_sparse_probing_finds_what_was_planted():
    labels = planted(1500, 3, 0.3) > 0
    acts = torch.cat([normal(1500, 10, seed=1).relu(), labels.double()], 1)
    halves = torch.rand(1500, generator=rng(2)) < 0.5
    acts[:, 12] *= halves  # the third label is split over two latents
    acts = torch.cat([acts, (labels[:, 2] & ~halves).double()[:, None]], 1)
    found = sparse_probing(acts, labels, (1, 2, 3), rng(3))
    assert found.support[:2, 0].tolist() == [10, 11]
    assert set(found.support[2, :2].tolist()) == {12, 13}
    torch.testing.assert_close(found.f1[:, :2], torch.ones(3, 2).double())
    torch.testing.assert_close(found.f1[1:, 2], torch.ones(2).double())
    assert found.f1[0, 2] < 0.8
    torch.testing.assert_close(found.dense, torch.ones(3).double())
    assert found.split_features().tolist() == [1, 1, 2]
    rate = labels.double().mean(0)
    torch.testing.assert_close(found.constant, 2 * rate / (1 + rate), atol=0.08, rtol=0)
    assert (found.shuffled <= found.constant + 0.1).all()
    assert found.random.mean() < found.f1.mean() - 0.2
    with pytest.raises(UserError, match="1, 2, 3"):
        sparse_probing(acts, labels, (1, 4), rng(3)).split_features()


# --- boards -----------------------------------------------------------------------------------------------------------


def properties(n=1200, n_properties=5, seed=0):
    return torch.rand(n, n_properties, generator=rng(seed)) < torch.linspace(0.1, 0.6, n_properties)


def board(acts, labels, maxima=None):
    return boards.board_counts(acts, labels, acts.amax(0) if maxima is None else maxima)


def test_labels_themselves_cover_and_rebuild_the_board():
    labels = properties()
    acts = torch.cat([torch.zeros(1200, 2), labels.flip(1).double() * torch.arange(1.0, 6)], 1)  # two are dead
    counts = board(acts[:600], labels[:600], acts.amax(0)) + board(acts[600:], labels[600:], acts.amax(0))
    found = boards.coverage(counts)
    assert found.value == 1
    torch.testing.assert_close(found.chance, 2 * labels.double().mean(0) / (1 + labels.double().mean(0)))
    detectors = boards.detectors(counts)
    test = properties(seed=1)
    acts = torch.cat([torch.zeros(1200, 2), test.flip(1).double() * torch.arange(1.0, 6)], 1)
    first, second = (boards.reconstruct_boards(acts[s], test[s], counts.maxima, detectors) for s in ([0, 1], [2, 3, 4]))
    assert (first + second).value == 1


def test_shuffled_labels_are_at_chance():
    """Coverage stays below that of always saying yes; nothing is precise enough to rebuild a board."""
    labels, acts = properties(), properties(seed=1).double()
    counts = board(acts, labels)
    found = boards.coverage(counts, "per_property")
    assert (found.f1 <= found.chance + 0.05).all()
    # Independent events of rates r and s: F1 = 2rs / (r + s).
    r, s = labels.double().mean(0), acts.mean(0)
    torch.testing.assert_close(found.f1, (2 * r * s[:, None] / (r + s[:, None])).amax(0), atol=0.06, rtol=0)
    detectors = boards.detectors(counts)
    assert boards.reconstruct_boards(acts, labels, counts.maxima, detectors).value == 0


def test_thresholds():
    """A latent whose strong activations mean one property and whose weak ones mean nothing."""
    labels = properties(n_properties=2)
    acts = torch.rand(1200, 2, generator=rng(3)) * 0.55
    acts[labels[:, 0], 0] = 1.0  # told from 0.6 up
    acts[labels[:, 1], 1] = 1.0
    acts[:, 1] *= torch.where(acts[:, 1] < 1, 0.5, 1)  # told from 0.3 up
    counts = board(acts, labels)
    common, each = boards.coverage(counts), boards.coverage(counts, "per_property")
    assert common.value == each.value == 1
    assert common.threshold.unique().item() == pytest.approx(0.6)
    assert each.threshold.tolist() == pytest.approx([0.6, 0.3])
    lone = boards.detectors(counts)
    assert lone[6:, 0, 0].all()
    assert not lone[:5, 0, 0].any()
    assert lone[3:, 1, 1].all()
    assert not boards.detectors(counts, least=1201).any()


def test_board_counts_against_loops():
    labels, acts = properties(80, 3), planted(80, 4)
    counts = board(acts, labels)
    for t, i, j in itertools.product(range(10), range(4), range(3)):
        fires = acts[:, i] > t / 10 * acts[:, i].max()
        assert counts.both[t, i, j] == (fires & labels[:, j]).sum()
    best = max(
        sum(max(f1_score(labels[:, j], acts[:, i] > t / 10 * acts[:, i].max()) for i in range(4)) for j in range(3)) / 3
        for t in range(10)
    )
    assert boards.coverage(counts).value == pytest.approx(best)
    with pytest.raises(UserError, match="below 0"):
        board(-acts, labels)
