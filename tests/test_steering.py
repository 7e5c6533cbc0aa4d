"""Steering and editing: what an edit does exactly, where it does not reach, and ROME's closed forms."""

import pytest
import torch
from cases.models import REPEATED, rng, scrambled, spec

from toylab.errors import UserError
from toylab.interp.steering import (
    Steer,
    add,
    difference_in_means,
    key_covariance,
    project_out,
    rank_one_edit,
    set_along,
)
from toylab.taps import HookWarning

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def setup(**changes):
    model = scrambled(spec(n_layers=2, biases=("in", "out"), **changes), REPEATED)
    return model, REPEATED.sample(5, rng()).inputs


def random(*shape, seed=4):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.double)


def edits():
    return [
        add("resid_post0", random(8), 2.0),
        add("z1", random(3, 4), positions=(-1,)),
        project_out("resid_mid1", random(2, 8), positions=(0, 2)),
        set_along("mlp_out0", random(8), 1.5),
        Steer("resid_pre1", lambda x: 2 * x, (1,)),
    ]


@pytest.mark.parametrize("edit", edits(), ids=lambda e: e.site)
def test_a_hook_and_a_tap_are_the_same_edit(edit):
    model, inputs = setup()
    with torch.no_grad():
        as_tap, as_hook = model(inputs, edit), model.run_with_hooks(inputs, [edit.hook])
        assert torch.equal(as_tap, as_hook)
        assert not torch.allclose(as_tap, model(inputs))


def test_adding_reaches_the_logits_by_the_unembedding_alone():
    model, inputs = setup()
    v = random(8)
    with torch.no_grad():
        shift = model(inputs, add("resid_post1", v, 0.7, positions=(1, -1))) - model(inputs)
    expected = torch.zeros_like(shift)
    expected[:, [1, -1]] = 0.7 * v @ model.W_U.detach()
    torch.testing.assert_close(shift, expected)
    with torch.no_grad():  # earlier positions never see a later edit
        early = model(inputs, add("resid_pre0", v, positions=(3,)))[:, :3]
        torch.testing.assert_close(early, model(inputs)[:, :3])


def test_projections():
    x, V = random(4, 3, 8, seed=1), random(2, 8)
    out = project_out("resid_post0", V)
    assert (out.change(x) @ V.T).abs().max() < 1e-12
    torch.testing.assert_close(out.change(out.change(x)), out.change(x))
    scaled = project_out("resid_post0", V * torch.tensor([[3.0], [-0.1]]))
    torch.testing.assert_close(scaled.change(x), out.change(x))
    mean = random(8, seed=2)
    about = project_out("resid_post0", V, mean=mean).change(x)
    torch.testing.assert_close(about @ V.T, (mean @ V.T).expand(4, 3, 2))


def test_set_along_is_an_interchange_of_one_coordinate():
    x, other, v = random(4, 3, 8, seed=1), random(4, 3, 8, seed=2), random(8)
    u = v / v.norm()
    donated = (other @ u)[:, 0]
    after = set_along("resid_post0", v, donated).change(x)
    torch.testing.assert_close(after @ u, donated[:, None].expand(4, 3))
    rest = torch.eye(8, dtype=torch.double) - torch.outer(u, u)
    torch.testing.assert_close(after @ rest, x @ rest)
    torch.testing.assert_close(set_along("resid_post0", v, 0.0).change(x), project_out("resid_post0", v).change(x))


def test_difference_in_means_finds_the_planted_direction():
    """Section 10.4: cosine >= .95 with the true direction when the other variables are balanced."""
    g = rng()
    on, other = torch.randint(2, (400,), generator=g), torch.randint(2, (400,), generator=g)
    e, f = random(2, 16)
    x = on[:, None] * e + other[:, None] * f + 0.1 * torch.randn(400, 16, generator=g)
    v = difference_in_means(x[on == 1], x[on == 0])
    assert torch.cosine_similarity(v, e, dim=0) > 0.95
    torch.testing.assert_close((x[on == 0] + v).mean(0), x[on == 1].mean(0))


# --- rank-one edits --------------------------------------------------------------------------------------------------


def test_row_l2_rome():
    """Row L2: W'k = v* to 1e-8; the change of every other key is the closed form."""
    model, inputs = setup()
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    keys = cache["post", 1].flatten(0, 1)
    C = key_covariance(keys, ridge=0.01)
    key, value = keys[3], random(8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    edit = rank_one_edit(model, 1, key, value, C)
    W, W_new, b = model.W_out[1].detach(), edit.model.W_out[1].detach(), model.b_out[1].detach()
    assert (key @ W_new + b - value).abs().max() < 1e-8
    moved = (keys @ W_new - keys @ W).norm(dim=1)
    torch.testing.assert_close(edit.changes(keys), moved, atol=1e-8, rtol=1e-8)
    inverse = torch.linalg.inv(C)
    closed = (keys @ inverse @ key) / (key @ inverse @ key)
    torch.testing.assert_close(moved, closed.abs() * (value - b - key @ W).norm(), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(edit.specificity(keys), 1 - closed.abs())
    assert abs(edit.specificity(key[None]).item()) < 1e-12
    # A new model; nothing else in it, and nothing at all in the old one, has changed.
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        if name != "W_out":
            assert torch.equal(edit.model.get_parameter(name), p)
    assert torch.equal(edit.model.W_out[0], model.W_out[0])
    assert torch.linalg.matrix_rank(W_new - W) == 1


def test_rome_is_the_least_change_in_the_metric_of_the_keys():
    model, _ = setup()
    C = key_covariance(random(50, 10, seed=7), ridge=0.0)
    key, value = random(10, seed=8), random(8)
    edit = rank_one_edit(model, 0, key, value, C)
    delta = edit.model.W_out[0].detach() - model.W_out[0].detach()
    root = torch.linalg.cholesky(C)
    for seed in range(5):  # any other solution differs by something that maps the key to 0
        other = random(10, 8, seed=20 + seed)
        other = other - torch.outer(key, key @ other) / (key @ key)
        assert (root.T @ (delta + 0.1 * other)).norm() > (root.T @ delta).norm()


def test_orthogonal_keys_are_untouched_and_memory_is_edited_exactly():
    """An associative memory W = sum k v^T over orthonormal keys: one fact changes, all others stay."""
    model, _ = setup()
    keys = torch.linalg.qr(random(10, 10)).Q
    edit = rank_one_edit(model, 1, keys[2], random(8), key_covariance(keys, ridge=1e-3))
    expected = torch.ones(10, dtype=torch.double)
    expected[2] = 0
    torch.testing.assert_close(edit.specificity(keys), expected)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: add("resid_pots0", random(8)), "resid_post"),
        (lambda: add("pattern0", random(6), positions=(1,)), "no positions"),
        (lambda: add("resid_post0", torch.zeros(8)), "zero"),
        (lambda: add("resid_post0", torch.full((8,), torch.nan)), "NaN"),
        (lambda: project_out("resid_post0", torch.ones(2, 8)), "dependent"),
        (lambda: setup()[0](setup()[1], add("resid_post0", random(8), positions=(6,))), "no position 6"),
        (lambda: difference_in_means(random(0, 8), random(3, 8)), "both sets"),
        (lambda: rank_one_edit(setup()[0], 0, random(8), random(8), torch.eye(8)), "takes 10 -> 8"),
        (
            lambda: rank_one_edit(setup()[0], 0, random(10), random(8), torch.zeros(10, 10)),
            "not positive definite",
        ),
    ],
)
def test_mistakes_say_what_to_do(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_an_edit_without_effect_is_reported():
    model, inputs = setup()
    with pytest.warns(HookWarning, match="changed nothing"):
        model.run_with_hooks(inputs, [add("resid_post0", random(8), 0.0).hook])
