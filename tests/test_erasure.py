"""Erasure: the theorem (no linear classifier beats a constant afterwards), pieces = whole, and amnesic controls."""

import pytest
import torch
import torch.nn.functional as F
from cases.models import REPEATED, rng, scrambled, spec
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from toylab.errors import UserError
from toylab.interp.erasure import Amnesia, amnesic_test, fit, fit_moments, label_moments, random_eraser
from toylab.interp.probe_scores import evaluate
from toylab.interp.probes import fit as fit_probe
from toylab.interp.probes import fit_mlp

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def labelled(n=3000, d=8, classes=3, seed=0):
    g = rng(seed)
    y = torch.multinomial(0.6 ** torch.arange(classes), n, replacement=True, generator=g)
    mix = torch.randn(d, d, generator=g, dtype=torch.double)
    centres = torch.randn(classes, d, generator=g, dtype=torch.double) * 2
    return torch.randn(n, d, generator=g, dtype=torch.double) @ mix + centres[y] + 5, y


def test_row_a11_no_linear_classifier_beats_a_constant():
    """Row A11: class means equal to 1e-6, logistic regression = the constant predictor (majority accuracy +- 1e-3)."""
    x, y = labelled()
    before = evaluate(fit_probe(x, y, "lda"), x, y)["accuracy"].value.item()
    majority = torch.bincount(y).max().item() / len(y)
    eraser = fit(x, y)
    erased = eraser(x)
    assert before > majority + 0.2
    assert eraser.rank == 2
    means = torch.stack([erased[y == c].mean(0) for c in range(3)])
    assert (means - erased.mean(0)).abs().max() < 1e-6
    covariance = (erased - erased.mean(0)).T @ F.one_hot(y).double() / len(y)
    assert covariance.abs().max() < 1e-6
    judge = LogisticRegression(C=1e6, tol=1e-10, max_iter=5000).fit(erased, y)
    constant = -(torch.bincount(y) / len(y)).double().log()[y].mean()
    assert constant - log_loss(y, judge.predict_proba(erased)) < 1e-6
    assert abs(judge.score(erased, y) - majority) < 1e-3
    for kind, penalty in (("ridge", 0.0), ("lda", 0.0), ("logistic", 1.0)):
        found = evaluate(fit_probe(erased, y, kind, penalty), erased, y)["accuracy"].value.item()
        assert found <= majority + 1e-3


def test_nothing_nearer_has_no_covariance():
    """Theorem 4.3: other affine maps that keep Cov = 0, the orthogonal projection among them, move x further."""
    x, y = labelled()
    eraser = fit(x, y)
    centred = x - x.mean(0)
    cost = (eraser(x) - x).pow(2).sum()
    cross = torch.linalg.qr(centred.T @ F.one_hot(y).double()[:, :2]).Q
    orthogonal = centred - centred @ cross @ cross.T
    assert (orthogonal.T @ F.one_hot(y).double()).abs().max() < 1e-6
    assert cost < 0.9 * (orthogonal - centred).pow(2).sum()
    for seed in range(5):  # x (1 - read write) M keeps the covariance at 0 for any M
        step = 0.05 * torch.randn(8, 8, generator=rng(seed), dtype=torch.double)
        other = x.mean(0) + (eraser(x) - x.mean(0)) @ (torch.eye(8, dtype=torch.double) + step)
        assert (other - x).pow(2).sum() > cost


def test_erasing_twice_is_once_and_other_layers_are_apart():
    x, y = labelled()
    other, _ = labelled(seed=1)
    both = fit(torch.stack([x, other]), y)
    alone = fit(x, y)
    torch.testing.assert_close(alone(alone(x)), alone(x))
    torch.testing.assert_close(both(torch.stack([x, other]))[0], alone(x))
    assert torch.allclose(alone.write @ alone.read, torch.eye(2, dtype=torch.double))


def test_pieces_are_the_whole():
    x, y = labelled()
    total = (
        label_moments(x[:10], y[:10], 3)
        + label_moments(x[10:1500], y[10:1500], 3)
        + label_moments(x[1500:], y[1500:], 3)
    )
    torch.testing.assert_close(fit_moments(total)(x), fit(x, y)(x))


def test_other_variables_survive_and_nonlinear_readers_may_not_be_fooled():
    """Independent bits: erasing one leaves the other. A parity has no covariance with its bits: nothing is erased."""
    g = rng()
    bits = torch.randint(2, (4000, 2), generator=g)
    x = (bits.double() * 2 - 1) @ torch.randn(2, 6, generator=g, dtype=torch.double)
    x = x + 0.1 * torch.randn(4000, 6, generator=g, dtype=torch.double)
    erased = fit(x, bits[:, 0])(x)
    assert evaluate(fit_probe(erased, bits[:, 1], "lda"), erased, bits[:, 1])["accuracy"].value > 0.99
    assert evaluate(fit_probe(erased, bits[:, 0], "lda"), erased, bits[:, 0])["accuracy"].value < 0.55
    both = fit(x, bits)
    assert both.rank == 2
    for t in range(2):
        assert evaluate(fit_probe(both(x), bits[:, t], "lda"), both(x), bits[:, t])["accuracy"].value < 0.55
    parity = bits.sum(1) % 2
    erased = fit(x, parity)(x).float()
    probe = fit_mlp(erased, parity, hidden=16, steps=150, generator=rng(1))
    assert evaluate(probe, erased, parity)["accuracy"].value > 0.95


def test_real_variables_and_undefined_rows():
    x, y = labelled()
    level = x[:, :2] @ torch.tensor([[1.0], [2.0]], dtype=torch.double) + torch.randn(3000, 1, generator=rng(3))
    erased = fit(x, level)(x)
    assert ((erased - erased.mean(0)).T @ (level - level.mean(0))).abs().max() / len(x) < 1e-6
    holes = y.clone()
    holes[::5] = -1
    known = holes >= 0
    torch.testing.assert_close(fit(x, holes)(x), fit(x[known], y[known])(x))
    constant = torch.cat([x, torch.ones(3000, 2, dtype=torch.double)], 1)  # directions without variance
    torch.testing.assert_close(fit(constant, y)(constant)[:, :8], fit(x, y)(x))


def test_rotation_invariance():
    x, y = labelled()
    Q = torch.linalg.qr(torch.randn(8, 8, generator=rng(2), dtype=torch.double)).Q
    torch.testing.assert_close(fit(x @ Q, y)(x @ Q) @ Q.T, fit(x, y)(x))


def test_amnesia_of_what_the_output_reads_and_of_what_it_does_not():
    """W_U reads one direction of the residual stream: erasing what lies there matters, erasing elsewhere does not."""
    model = scrambled(spec(n_layers=2), REPEATED)
    inputs = REPEATED.sample(200, rng()).inputs
    u, v = torch.linalg.qr(torch.randn(8, 2, generator=rng(1), dtype=torch.double)).Q.T
    with torch.no_grad():
        model.W_U.copy_(torch.outer(u, torch.randn(6, generator=rng(2), dtype=torch.double)))
        outputs, cache = model.run_with_cache(inputs, ["resid_post1"])
    x = cache["resid_post", 1].flatten(0, 1)
    values = outputs[..., 0].flatten().sort().values
    quarter = len(values) // 4  # in the widest gap of the middle half, so that rounding moves no value across
    at = quarter + values.diff()[quarter:-quarter].argmax()
    middle = (values[at] + values[at + 1]) / 2
    sign = (outputs[..., 0] > middle).flatten().long()

    def agreement(now):
        return ((now[..., 0] > middle).flatten() == sign).double().mean()

    # An eraser that takes away exactly u, made from a variable that lies along it (orthogonal to everything else).
    only_u = random_eraser(x.mean(0), 1, rng())
    along = type(only_u)(x.mean(0), u[:, None], u[None])
    across = type(only_u)(x.mean(0), v[:, None], v[None])
    used = amnesic_test(model, inputs, "resid_post1", along, agreement, rng(3))
    unused = amnesic_test(model, inputs, "resid_post1", across, agreement, rng(3))
    assert used.clean == unused.clean == unused.erased == 1
    assert used.erased in (sign.double().mean().item(), 1 - sign.double().mean().item())  # a constant answer
    assert used.erased < used.random.mean()
    assert used.effect > 0.1
    assert unused.effect <= 0
    learned = amnesic_test(model, inputs, "resid_post1", fit(x, sign), agreement, rng(3), n_random=5)
    assert learned.erased < 0.8


def test_mistakes_say_what_to_do():
    x, y = labelled()
    with pytest.raises(UserError, match="one class"):
        fit(x, torch.zeros(3000, dtype=torch.long))
    with pytest.raises(UserError, match="undefined"):
        label_moments(x, torch.where(y == 0, -1, y))
    with pytest.raises(UserError, match="NaN"):
        fit(x * torch.nan, y)
    with pytest.raises(UserError, match="rank=9"):
        random_eraser(x.mean(0), 9, rng())
    model = scrambled(spec(), REPEATED)
    both = fit(torch.stack([x, x]), y)
    with pytest.raises(UserError, match="index one first"):
        amnesic_test(model, REPEATED.sample(2, rng()).inputs, "resid_post0", both, lambda out: out.mean(), rng())


def test_z_when_the_random_erasers_do_not_vary():
    still = torch.full((5,), 0.5)
    assert Amnesia(clean=1.0, erased=0.2, random=still).z == float("inf")
    assert Amnesia(clean=1.0, erased=0.5, random=still).z == 0
