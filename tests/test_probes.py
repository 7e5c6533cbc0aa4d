"""Probes: closed forms against scikit-learn, planted truth, what no probe may find, and invariance."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases.models import rng
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, lars_path
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from toylab.errors import UserError
from toylab.interp import probes
from toylab.interp.probe_scores import (
    accuracy,
    as_rows,
    auroc,
    balanced_accuracy,
    control_labels,
    evaluate,
    ladder,
    r2,
    split_by_group,
)
from toylab.interp.probes import Probe, class_moments, fit, fit_mlp, moments
from toylab.interp.sparse_probes import SELECTIONS, fit_sparse

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

LINEAR = [("ridge", 2.0), ("lda", 0.0), ("lda", 0.3), ("mass_mean", 0.0), ("logistic", 0.5)]


def gaussian_classes(n_layers=2, n=400, d=6, classes=(3, 2, 2), separation=0.8, seed=0):
    """x [layer, n, d] with a mean per class and one tilted covariance, y [n, target]."""
    g = rng(seed)
    y = torch.stack([torch.randint(c, (n,), generator=g) for c in classes], 1)
    mix = torch.randn(n_layers, d, d, generator=g, dtype=torch.double)
    x = torch.randn(n_layers, n, d, generator=g, dtype=torch.double) @ mix + 3.0
    for t, c in enumerate(classes):
        centres = torch.randn(n_layers, c, d, generator=g, dtype=torch.double) * separation
        x = x + centres[:, y[:, t]]
    return x, y


# --- closed forms = scikit-learn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 0.7, 50.0])
def test_ridge_is_scikit_learns(penalty):
    x, y = gaussian_classes()
    reals = torch.randn(len(y), 2, generator=rng(1), dtype=torch.double) + x[0, :, :2]
    of_reals, of_classes = fit(x, reals, "ridge", penalty), fit(x, y, "ridge", penalty)
    for layer in range(2):
        judge = Ridge(penalty).fit(x[layer], reals)
        np.testing.assert_allclose(of_reals.weight[layer, :, 0], judge.coef_, atol=1e-8)
        np.testing.assert_allclose(of_reals.bias[layer, :, 0], judge.intercept_, atol=1e-8)
        judge = Ridge(penalty).fit(x[layer], F.one_hot(y[:, 0]).double())
        np.testing.assert_allclose(of_classes.weight[layer, 0], judge.coef_, atol=1e-8)
        np.testing.assert_allclose(of_classes.bias[layer, 0], judge.intercept_, atol=1e-8)


@pytest.mark.parametrize("solver", ["svd", "lsqr"])
def test_lda_is_scikit_learns(solver):
    x, y = gaussian_classes()
    scores = fit(x, y, "lda").scores(x)
    for layer in range(2):
        for t, c in enumerate((3, 2, 2)):
            judge = LinearDiscriminantAnalysis(solver=solver).fit(x[layer], y[:, t])
            ours = scores[layer, :, t, :c]
            theirs = torch.as_tensor(judge.decision_function(x[layer])).reshape(len(y), -1)
            ours = ours[:, 1:] - ours[:, :1] if c == 2 else ours
            ours, theirs = (v - (v.mean(1, keepdim=True) if c > 2 else 0) for v in (ours, theirs))
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_lda_penalty_is_added_to_the_within_class_covariance():
    x, y = gaussian_classes(n_layers=1, classes=(3,))
    probe = fit(x, y, "lda", 0.3)
    means = torch.stack([x[0][y[:, 0] == c].mean(0) for c in range(3)])
    within = x[0] - means[y[:, 0]]
    S = within.T @ within / len(y) + 0.3 * torch.eye(6, dtype=torch.double)
    expected = torch.linalg.solve(S, (means - x[0].mean(0)).T).T
    torch.testing.assert_close(probe.weight[0, 0], expected)


@pytest.mark.parametrize("penalty", [0.1, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_reaches_scikit_learns_objective(penalty, dtype):
    x, y = gaussian_classes(separation=1.5)
    x = x.to(dtype)
    probe = fit(x, y, "logistic", penalty)
    for layer in range(2):
        for t, c in enumerate((3, 2, 2)):
            judge = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=500, solver="newton-cg").fit(
                x[layer].double(), y[:, t]
            )

            def objective(weight, bias, layer=layer, t=t, c=c):
                z = x[layer].double() @ torch.as_tensor(weight).double().T + torch.as_tensor(bias).double()
                z = F.pad(z, (1, 0)) if c == 2 else z
                return F.cross_entropy(z, y[:, t], reduction="sum") + penalty / 2 * (weight**2).sum()

            first = 1 if c == 2 else 0
            ours = objective(probe.weight[layer, t, first:c].double(), probe.bias[layer, t, first:c])
            theirs = objective(judge.coef_, judge.intercept_)
            assert abs(ours - theirs) / theirs < 1e-6
            if dtype == torch.float64:
                np.testing.assert_allclose(probe.weight[layer, t, first:c], judge.coef_, atol=1e-4)


def test_metrics_are_scikit_learns():
    g = rng(3)
    y = torch.randint(3, (300, 1), generator=g)
    scores = torch.randn(300, 1, 3, generator=g).round(decimals=1) + F.one_hot(y)  # rounding makes ties
    predicted = scores.argmax(-1)
    assert accuracy(predicted, y).value.item() == pytest.approx((predicted == y).double().mean().item())
    assert balanced_accuracy(predicted, y).value.item() == pytest.approx(
        balanced_accuracy_score(y[:, 0], predicted[:, 0])
    )
    area = np.mean([roc_auc_score(y[:, 0] == c, scores[:, 0, c]) for c in range(3)])
    assert auroc(scores, y).value.item() == pytest.approx(area, abs=1e-12)
    reals = torch.randn(300, 2, generator=g)
    guess = reals + torch.randn(300, 2, generator=g)
    np.testing.assert_allclose(r2(guess, reals).value, r2_score(reals, guess, multioutput="raw_values"), atol=1e-6)


# --- planted truth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "penalty"), [("lda", 0.0), ("logistic", 1e-3), ("ridge", 1e-3)])
def test_gaussian_classes_give_the_bayes_accuracy(kind, penalty):
    """Two equal classes with one covariance: Phi(Mahalanobis distance / 2)."""
    g, n = rng(), 40_000
    mix = torch.randn(5, 5, generator=g, dtype=torch.double)
    step = torch.randn(5, generator=g, dtype=torch.double)
    step *= 1.6 / (step @ torch.linalg.solve(mix.T @ mix, step)).sqrt()
    y = torch.randint(2, (n,), generator=g)
    x = torch.randn(n, 5, generator=g, dtype=torch.double) @ mix + y[:, None] * step
    probe = fit(x[: n // 2], y[: n // 2], kind, penalty)
    found = evaluate(probe, x[n // 2 :], y[n // 2 :])["accuracy"]
    assert abs(found.value.item() - norm.cdf(0.8)) < 4 * found.stderr.item()
    direction = torch.linalg.solve(mix.T @ mix, step)
    assert torch.cosine_similarity(probe.directions[0, 1], direction, dim=0) > 0.999


def test_mass_mean_is_the_difference_of_means_and_misses_what_whitening_finds():
    g = rng()
    y = torch.randint(2, (4000,), generator=g)
    noise = torch.randn(4000, 2, generator=g, dtype=torch.double) * torch.tensor([10.0, 0.1])
    x = noise + (y[:, None] - 0.5) * torch.tensor([1.0, 1.0])
    mean, white = fit(x, y, "mass_mean"), fit(x, y, "lda")
    expected = x[y == 1].mean(0) - x[y == 0].mean(0)
    torch.testing.assert_close(mean.weight[0, 1] - mean.weight[0, 0], expected)
    assert evaluate(white, x, y)["accuracy"].value > 0.99
    assert evaluate(mean, x, y)["accuracy"].value < 0.9


def test_superposed_code_gives_the_dual_basis():
    """x = D b + noise with random unit columns: the direction of bit i is D (D^T D)^-1 e_i (the sheet's 5.3, c)."""
    g = rng()
    D = F.normalize(torch.randn(8, 16, generator=g, dtype=torch.double), dim=1)
    bits = torch.randint(2, (20_000, 8), generator=g)
    x = bits.double() @ D + 0.01 * torch.randn(20_000, 16, generator=g, dtype=torch.double)
    dual = torch.linalg.solve(D @ D.T, D)
    for kind, penalty in (("ridge", 0.0), ("lda", 0.0)):
        probe = fit(x, bits, kind, penalty)
        assert torch.cosine_similarity(probe.directions[:, 1], dual, dim=-1).min() > 0.99
        assert evaluate(probe, x, bits)["accuracy"].value.min() == 1


def test_undefined_rows_are_left_out():
    """A target with -1 equals the same target fitted on its defined rows alone, whatever its neighbours."""
    x, y = gaussian_classes()
    holes = y.clone()
    holes[::3, 0], holes[::7, 2] = -1, -1
    for kind, penalty in LINEAR:
        together = fit(x, holes, kind, penalty)
        for t in range(3):
            rows = holes[:, t] >= 0
            alone = fit(x[:, rows], y[rows, t], kind, penalty)
            c = int(y[:, t].max()) + 1
            torch.testing.assert_close(together.weight[:, t, :c], alone.weight[:, 0], atol=1e-5, rtol=1e-5)
    scores = evaluate(together, x, holes)
    assert scores["accuracy"].n.tolist() == [(holes[:, t] >= 0).sum() for t in range(3)]


@pytest.mark.parametrize(("kind", "penalty"), LINEAR)
def test_a_class_without_rows_is_never_predicted(kind, penalty):
    x, y = gaussian_classes(classes=(3,))
    y = torch.where(y == 1, 3, y)  # classes 0, 2, 3
    probe = fit(x, y, kind, penalty)
    assert probe.bias[:, 0, 1].isneginf().all()
    assert probe.weight.isfinite().all()
    assert set(probe.predict(x).unique().tolist()) <= {0, 2, 3}


@pytest.mark.parametrize("select", [s for s in SELECTIONS if s != "random"])
def test_sparse_probes_recover_the_planted_columns(select):
    """The support recovery benchmark of Gurnee et al.'s code: shifted Gaussian columns through a GELU."""
    g = rng()
    x, y = torch.randn(2, 4000, 60, generator=g), torch.randint(2, (4000, 3), generator=g)
    planted = torch.rand(2, 3, 60, generator=g).topk(4).indices
    for layer in range(2):
        for t in range(3):
            x[layer, :, planted[layer, t]] += 0.7 * y[:, t, None]
    probe = fit_sparse(F.gelu(x), y, 4, select)
    for layer in range(2):
        for t in range(3):
            assert set(probe.support[layer, t].tolist()) == set(planted[layer, t].tolist())
    used = torch.zeros_like(probe.weight, dtype=torch.bool).scatter_(
        -1, probe.support[:, :, None].expand(-1, -1, 2, -1), True
    )
    assert (probe.weight[~used] == 0).all()
    dense = fit(F.gelu(x)[0][:, probe.support[0, 1]], y[:, 1], "lda")
    torch.testing.assert_close(probe.weight[0, 1, :, probe.support[0, 1]], dense.weight[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(probe.bias[0, 1], dense.bias[0], atol=1e-4, rtol=1e-3)


def test_random_columns_find_nothing():
    g = rng()
    x, y = torch.randn(2000, 50, generator=g), torch.randint(2, (2000,), generator=g)
    x[:, 7] += 3 * y
    probe = fit_sparse(x, y, 1, "random", generator=rng(1))
    assert probe.support.item() != 7
    assert abs(evaluate(probe, x, y)["auroc"].value.item() - 0.5) < 0.05


def test_the_l1_path_lets_columns_in_in_the_order_of_lars():
    """scikit-learn's exact lasso path on strongly correlated columns, several targets and layers in one call."""
    g = rng(4)
    mix = torch.randn(2, 12, 12, generator=g, dtype=torch.double) / 3 + torch.eye(12, dtype=torch.double)
    x = torch.randn(2, 600, 12, generator=g, dtype=torch.double) @ mix
    y = (x[0] @ torch.randn(12, 5, generator=g, dtype=torch.double) > 0).long()
    found = fit_sparse(x, y, 5, "l1").support
    for layer in range(2):
        standard = (x[layer] - x[layer].mean(0)) / x[layer].std(0, correction=0)
        for t in range(5):
            target = y[:, t].double() - y[:, t].double().mean()
            coefficients = lars_path(standard.numpy(), target.numpy(), method="lasso")[2]  # [column, knot]
            order = (coefficients != 0).argmax(1) + 100 * (coefficients == 0).all(1)
            assert found[layer, t].tolist() == np.argsort(order)[:5].tolist()


def test_the_l1_path_passes_over_echoes():
    """Columns 1, 2 echo column 0 and beat column 3 one by one, but only 3 adds anything. Three classes, two layers."""
    g = rng()
    y = torch.randint(3, (4000, 2), generator=g)
    x = torch.randn(2, 4000, 8, generator=g, dtype=torch.double)
    x[:, :, 0] += 2.0 * (y[:, 0] == 0)
    x[:, :, 1:3] = x[:, :, :1] + 0.3 * torch.randn(2, 4000, 2, generator=g, dtype=torch.double)
    x[:, :, 3] += 1.0 * (y[:, 0] == 1)
    x[:, :, 6:8] += 1.0 * (y[:, 1:] == 2)
    l1, means = (fit_sparse(x, y, 2, select).support for select in ("l1", "mean_difference"))
    assert [set(s.tolist()) for s in l1.flatten(0, 1)] == [{0, 3}, {6, 7}] * 2
    assert all(3 not in means[layer, 0].tolist() for layer in range(2))


def test_the_l1_path_finds_nothing_in_noise():
    """Null: on rows it has not seen; and k = d gives every column, also those the path never lets in."""
    g = rng()
    x, y = torch.randn(4000, 40, generator=g), torch.randint(2, (4000, 1), generator=g)
    probe = fit_sparse(x[:2000], y[:2000], 3, "l1")
    found = evaluate(probe, x[2000:], y[2000:])["auroc"]
    assert abs(found.value.item() - 0.5) < 4 * found.stderr.item()
    x[:, 5:] = x[:, :1]
    assert sorted(fit_sparse(x, y, 40, "l1", 1e-3).support[0].tolist()) == list(range(40))


def test_forward_selection_skips_a_copy_and_matches_exhaustive_search():
    g = rng()
    x, y = torch.randn(3000, 6, generator=g, dtype=torch.double), torch.randint(2, (3000,), generator=g)
    x[:, 1] += 1.0 * y
    x[:, 2] = x[:, 1]  # a copy
    x[:, 4] += 0.5 * y
    assert set(fit_sparse(x, y, 2, "mean_difference").support[0].tolist()) == {1, 2}
    found = fit_sparse(x, y, 2, "forward").support[0].tolist()
    assert found[0] in (1, 2)
    assert found[1] == 4
    # k = 1: the best single column, by trying all.
    errors = [1 - np.corrcoef(x[:, j], y)[0, 1] ** 2 for j in range(6)]
    assert fit_sparse(x, y, 1, "forward").support.item() in np.flatnonzero(np.isclose(errors, min(errors)))


def test_forward_selection_is_greedy_least_squares():
    """On strongly correlated columns: the same supports as refitting with every candidate at every step."""
    g = rng()
    for _ in range(10):
        x = torch.randn(200, 8, generator=g, dtype=torch.double) @ torch.randn(8, 8, generator=g, dtype=torch.double)
        y = (x @ torch.randn(8, generator=g, dtype=torch.double) > 0).long()
        chosen = []
        for _ in range(4):
            left = [j for j in range(8) if j not in chosen]
            scores = [Ridge(0).fit(x[:, [*chosen, j]], y).score(x[:, [*chosen, j]], y) for j in left]
            chosen.append(left[int(np.argmax(scores))])
        assert fit_sparse(x, y, 4, "forward").support[0].tolist() == chosen


def test_mlp_reads_a_parity_that_linear_probes_cannot():
    g = rng()
    bits = torch.randint(2, (2000, 2), generator=g)
    x = torch.cat([bits * 2.0 - 1, torch.randn(2000, 3, generator=g)], 1)
    x = x + 0.1 * torch.randn(2000, 5, generator=g)
    y = torch.stack([bits.sum(1) % 2, bits[:, 0]], 1)
    probe = fit_mlp(x[None], y, hidden=16, steps=150, generator=rng(1))
    right = evaluate(probe, x[None], y)["accuracy"].value[0]
    assert right.min() > 0.98
    linear = evaluate(fit(x, y, "logistic", 1.0), x, y)["accuracy"].value
    assert linear[0] < 0.6
    assert linear[1] > 0.98
    few = [fit_mlp(x[None], y, hidden=4, steps=5, generator=rng(1)) for _ in range(2)]
    assert torch.equal(few[0].W_in, few[1].W_in)
    smooth = (x[:, :1] * x[:, 1:2]) + x[:, 2:3]
    fitted = fit_mlp(x, smooth, hidden=32, steps=200, generator=rng(2))
    assert evaluate(fitted, x, smooth)["r2"].value > 0.9


# --- invariance and nulls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "penalty"), LINEAR)
def test_rotating_the_activations_changes_no_answer(kind, penalty):
    x, y = gaussian_classes()
    Q = torch.linalg.qr(torch.randn(6, 6, generator=rng(9), dtype=torch.double)).Q
    plain, turned = fit(x, y, kind, penalty), fit(x @ Q, y, kind, penalty)
    torch.testing.assert_close(turned.weight @ Q.T, plain.weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(plain.predict(x), turned.predict(x @ Q))


@pytest.mark.parametrize("kind", ["ridge", "lda", "logistic", "mass_mean"])
def test_layers_and_targets_together_are_one_at_a_time(kind):
    x, y = gaussian_classes()
    penalty = {"ridge": 1.0, "logistic": 1.0}.get(kind, 0.0)
    together = fit(x, y, kind, penalty)
    for layer in range(2):
        for t in range(3):
            alone = fit(x[layer], y[:, t], kind, penalty)
            c = alone.weight.shape[1]
            torch.testing.assert_close(together.weight[layer, t, :c], alone.weight[0], atol=1e-5, rtol=1e-5)


def test_moments_of_pieces_add_up_and_survive_a_large_mean():
    x, y = gaussian_classes()
    whole = class_moments(x, y[:, :1], 3)
    parts = [class_moments(x[:, rows], y[rows, :1], 3) for rows in torch.arange(400).split([100, 7, 293])]
    total = parts[0] + parts[1] + parts[2]
    for name in ("mean", "scatter", "y_mean", "cross"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name))
    # float32 with a mean of 1000 standard deviations: the naive sum of squares would have no digits left.
    far = (x + 3000).float()
    torch.testing.assert_close(
        moments(far, y.float()).scatter, moments(far.double(), y.double()).scatter, rtol=1e-3, atol=0.5
    )


def test_singular_activations_are_fine():
    """Repeated and constant columns: the pseudo-inverse gives the answer of the columns that are there."""
    x, y = gaussian_classes(n_layers=1)
    doubled = torch.cat([x, x[..., :2], torch.ones_like(x[..., :1])], -1)
    for kind in ("ridge", "lda"):
        torch.testing.assert_close(
            fit(doubled, y, kind).scores(doubled), fit(x, y, kind).scores(x), atol=1e-6, rtol=1e-6
        )


def test_standard_errors_cover():
    """The spread of each metric over repeated draws is what it says, also when rows of a group repeat each other."""
    g = rng()
    values, errors = [], []
    for _ in range(300):
        y = torch.randint(3, (60, 1), generator=g).repeat_interleave(4, 0)
        scores = (torch.randn(60, 1, 3, generator=g)).repeat_interleave(4, 0) + F.one_hot(y)
        group = torch.arange(60).repeat_interleave(4)
        reals, guess = scores[..., 0], scores[..., 1] * 0.3
        found = [
            accuracy(scores.argmax(-1), y, group),
            balanced_accuracy(scores.argmax(-1), y, group),
            auroc(scores, y, group),
            r2(guess, reals, group),
        ]
        values.append([m.value.item() for m in found])
        errors.append([m.stderr.item() for m in found])
    spread, stated = np.std(values, axis=0), np.mean(errors, axis=0)
    np.testing.assert_allclose(stated / spread, 1, atol=0.15)


def test_ladder_tells_what_the_network_adds():
    """Parity of two tokens: the input does not show it linearly, the trained network does, the untrained does not."""
    g = rng()
    bits = torch.randint(2, (300, 10, 2), generator=g)
    parity = bits.sum(-1) % 2
    tokens = bits.double() * 2 - 1 + 0 * torch.randn(300, 10, 2, generator=g)
    trained = torch.cat([tokens, parity[..., None] + 0.1 * torch.randn(300, 10, 1, generator=g).double()], -1)
    untrained = tokens @ torch.randn(2, 3, generator=g).double()
    x, y, group = as_rows(trained, parity)
    types = (bits[..., 0] * 2 + bits[..., 1]).flatten()
    names = {"input": tokens.flatten(0, 1), "untrained": untrained.flatten(0, 1), "trained": x}
    result = ladder(names, y, group, lambda a, b: fit(a, b, "lda"), rng(5), types=types)
    assert result.rungs["trained"].value.item() > 0.99
    assert result.gain["trained"].item() > 0.3
    assert abs(result.gain["untrained"].item()) < 0.1
    for name in names:
        assert (
            abs(result.shuffled[name].value - result.rungs["majority"].value) < 4 * result.shuffled[name].stderr + 0.03
        )
    assert set(result.selectivity) == set(names)
    same = ladder(names, y, group, lambda a, b: fit(a, b, "lda"), rng(5), metric="auroc")
    assert same.rungs["majority"].value.item() == 0.5
    assert not same.control


def test_a_memoriser_is_not_selective():
    """One-hot types: control labels are as easy as real ones. A smooth code of the type: they are not."""
    g = rng()
    types = torch.randint(40, (4000,), generator=g)
    y = (types >= 20).long()[:, None]
    names = {"input": F.one_hot(types).double(), "code": types.double()[:, None]}
    result = ladder(names, y, torch.arange(4000), lambda a, b: fit(a, b, "ridge", 1e-3), rng(1), types=types)
    assert abs(result.selectivity["input"].item()) < 0.02
    assert result.selectivity["code"].item() > 0.2
    control = control_labels(types, y, rng(2))
    assert all(len(control[types == k].unique()) == 1 for k in range(40))


def test_splits_keep_groups_whole():
    group = torch.tensor([5, 5, 2, 2, 2, 9, 7, 7, 1, 1])
    train, test = split_by_group(group, 0.6, rng())
    assert not set(group[train].tolist()) & set(group[test].tolist())
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(10))
    assert len(group[train].unique()) == 3
    # Splitting by position finds a variable that is a random label of the sequence; splitting by sequence does not.
    g = rng()
    x = torch.randn(100, 1, 60, generator=g).expand(100, 20, 60)
    x, y, group = as_rows(
        x + 0.1 * torch.randn(100, 20, 60, generator=g), torch.randint(2, (100, 1), generator=g).expand(100, 20)
    )
    scores = []
    for by in (torch.arange(2000), group):
        train, test = split_by_group(by, 0.7, rng(1))
        scores.append(evaluate(fit(x[train], y[train], "lda"), x[test], y[test])["accuracy"].value.item())
    assert scores[0] > 0.85
    assert scores[1] < 0.75


def test_as_rows_keeps_places():
    x, values = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float(), torch.arange(3 * 4 * 6).reshape(3, 4, 2, 3)
    rows, y, group = as_rows(x, values)
    assert rows.shape == (2, 12, 5)
    assert torch.equal(rows[1, 4 + 2], x[1, 1, 2])
    assert torch.equal(y[4 + 2], values[1, 2].flatten())
    assert group[4 + 2] == 1


# --- bad input -------------------------------------------------------------------------------------------------------


def nan(x):
    return x.clone().index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan))


X, Y = torch.randn(20, 3, generator=rng()), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: fit(X, torch.ones(20, dtype=torch.long), "lda"),
            r"target 0 has one class \(1\) in its 20 defined rows",
        ),
        (lambda: fit(X, torch.where(Y == 1, -1, Y), "lda"), "has one class"),
        (lambda: fit(X, torch.full((20,), -1), "lda"), "undefined"),
        (lambda: fit(X, Y - 2, "lda"), "class of -2"),
        (lambda: fit(nan(X), Y, "ridge", 1.0), "NaN"),
        (lambda: fit(X, nan(X), "ridge", 1.0), "NaN"),
        (lambda: fit(X, torch.ones(20), "ridge", 1.0), "same value"),
        (lambda: fit(X, X[:, 0], "lda"), "ridge"),
        (lambda: fit(X, Y[:5], "lda"), "20 rows"),
        (lambda: fit(X, Y, "ldaa"), 'did you mean "lda"'),
        (lambda: fit(X, Y, "logistic"), "penalty > 0"),
        (lambda: fit(X, Y, "mass_mean", 1.0), "nothing to penalise"),
        (lambda: fit(X, Y, "lda", -1.0), "penalty=-1.0"),
        (lambda: fit_sparse(X, Y, 4, "forward"), "k=4"),
        (lambda: fit_sparse(X, Y, 1, "random"), "generator"),
        (lambda: fit_mlp(nan(X), Y, 4, 10, rng()), "NaN"),
        (lambda: fit(X, Y, "lda").scores(X[:, :2]), "fitted on"),
        (lambda: evaluate(fit(X, Y, "lda"), X, Y[:3]), "expected"),
        (lambda: split_by_group(torch.zeros(5, dtype=torch.long), 0.5, rng()), "leaves one side empty"),
        (lambda: as_rows(X[None], Y), "expected"),
        (lambda: ladder({"trained": X}, Y, torch.arange(20), lambda a, b: fit(a, b, "lda"), rng()), "input"),
    ],
)
def test_mistakes_say_what_to_do(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_probe_is_a_small_value():
    probe = fit(X, Y, "lda")
    assert isinstance(probe, Probe)
    assert probe.weight.shape == (1, 2, 3)
    assert not probe.weight.requires_grad
    assert probes.FAMILIES.keys() == {"ridge", "lda", "mass_mean", "logistic"}
