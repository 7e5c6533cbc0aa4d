"""Patching sweeps against one plain forward per cell, on gates whose answers are printed, and on exact zeros."""

import dataclasses
import math

import pytest
import torch
from cases.models import ADDITION, ALL_BIASES, FEATURES, REPEATED, rng, scrambled, spec

from toylab.errors import UserError
from toylab.interp import patching
from toylab.interp.attribution import attribute, attribute_star, gradients
from toylab.interp.patching import Answers, Pairs, ablate, ablated, patch, patch_serial
from toylab.models.mlp import MLPSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

DEEP = spec(n_layers=3, n_heads=2, d_mlp=5, norm="LN", biases=ALL_BIASES, act="gelu")
ROTARY = spec(n_layers=2, n_heads=2, d_mlp=0, biases=("O",), norm="RMS", positions="rotary", attention="bidirectional")
LINEAR = spec(
    n_layers=2, act="identity", attention_rate=0.0, biases=ALL_BIASES
)  # constant attention: affine throughout


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def pairs_for(n=4, read=None):
    batch = REPEATED.sample(n, rng())
    pairs = Pairs.of(batch, REPEATED.counterfactual(batch, "next", rng(1)))
    if read is None:
        return pairs
    right = pairs.answers.right[:, list(read)]
    return Pairs(pairs.clean, pairs.corrupted, Answers(right, (right + 1) % REPEATED.d_out), read)


# --- fast = slow -----------------------------------------------------------------------------------------------------

SWEEPS = [
    ("resid_pre", "layer pos"),
    ("resid_pre", "layer"),
    ("resid_mid", "layer pos"),
    ("resid_post", "pos layer"),
    ("attn_out", "layer pos"),
    ("mlp_out", "layer pos"),
    ("mlp_out", "layer"),
    ("z", "layer pos head"),
    ("z", "layer head"),
    ("z", "layer head d_head"),
    ("result", "layer head pos"),
    ("q", "layer pos head"),
    ("k", "layer head pos"),
    ("v", "layer pos head"),
    ("pattern", "layer head query"),
    ("pattern", "layer head query key"),
    ("attn_scores", "layer head key"),
    ("post", "layer d_mlp"),
    ("pre", "layer pos d_mlp"),
    ("q_input", "layer head pos"),
    ("v_input", "layer head"),
    ("ln1_scale", "layer pos"),
    ("embed", "pos"),
    ("ln_final_normalized", "pos"),
]


@pytest.mark.parametrize(("site", "axes"), SWEEPS)
def test_batched_cells_equal_one_forward_per_cell(site, axes):
    """A causal model read everywhere, and a bidirectional one with rotary positions read at two places."""
    cases = [(DEEP, None, "noise"), (DEEP, (2, -1), "denoise"), (ROTARY, (2, -1), "noise")]
    if site in ("resid_mid", "mlp_out", "pre", "post"):
        cases = cases[:2]
    for model_spec, read, direction in cases[:1] if "query key" in axes or "pos d_mlp" in axes else cases:
        model = scrambled(model_spec, REPEATED)
        pairs = pairs_for(read=read)
        fast = patch(model, pairs, site, axes, direction=direction)
        slow = patch_serial(model, pairs, site, axes, direction=direction)
        assert fast.values.shape == slow.values.shape
        assert fast.axes == slow.axes == tuple(axes.split())
        close(fast.values, slow.values)
        close(fast.base, slow.base)
        assert fast.effect.abs().max() > 1e-4  # something happened, so equality means something


@pytest.mark.parametrize("site", ["resid_pre", "z", "k"])
def test_a_constant_part_of_the_pattern_shows_later_positions_even_to_a_causal_model(site, monkeypatch):
    """Below rate 1 nothing is unreachable: a patch at the last position changes what is read at the first."""
    monkeypatch.setattr(patching, "CHUNK", 1)  # one cell at a time, so that none rides with an earlier position
    model, pairs = scrambled(dataclasses.replace(DEEP, attention_rate=0.5), REPEATED), pairs_for(read=(0, 2))
    fast, slow = (f(model, pairs, site, "layer pos", direction="noise") for f in (patch, patch_serial))
    close(fast.values, slow.values)
    assert (fast.values[:-1, -1] - fast.base).abs().max() > 1e-6


def test_cells_do_not_depend_on_how_they_are_cut(monkeypatch):
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    whole = [patch(model, pairs, site, axes).values for site, axes in SWEEPS]
    monkeypatch.setattr(patching, "CHUNK", 1)
    for (site, axes), values in zip(SWEEPS, whole, strict=True):
        close(patch(model, pairs, site, axes).values, values)


def test_layers_can_be_chosen():
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    every, some = patch(model, pairs, "z", "layer head"), patch(model, pairs, "z", "layer head", layers=[2, 0])
    assert some.layers == (2, 0)
    close(some.values, every.values[[2, 0]])


def test_models_without_blocks_are_patched_too():
    mlp = scrambled(MLPSpec(4, 10, "relu", dtype="float64"), ADDITION)
    inputs = ADDITION.split(0).all.inputs
    answers = Answers(torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1, dtype=torch.long))
    pairs = Pairs(inputs[:4], inputs[-4:], answers)
    close(patch(mlp, pairs, "post", "layer d_mlp").values, patch_serial(mlp, pairs, "post", "layer d_mlp").values)
    model = scrambled(SuperpositionSpec("relu_out", 2, dtype="float64"), FEATURES)
    x, y = (FEATURES.sample(6, rng(seed)).inputs for seed in (0, 1))
    error = lambda outputs, answers: ((outputs - answers.right) ** 2).sum(-1)  # noqa: E731
    vectors = Pairs(x, y, Answers(x))
    sweep = patch(model, vectors, "hidden", "d_hidden", error)
    close(sweep.values, patch_serial(model, vectors, "hidden", "d_hidden", error).values)
    assert sweep.values.shape == (2, 6)


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post"])
def test_a_whole_stream_carries_everything(site):
    """Denoising one residual site at all positions restores the clean metric; noising it gives the corrupted one."""
    model, pairs = scrambled(DEEP, REPEATED), pairs_for(read=(-1, 3))
    for direction in patching.DIRECTIONS:
        sweep = patch(model, pairs, site, "layer", direction=direction)
        close(sweep.values, sweep.target.expand(3, -1), 1e-12)
        close(sweep.normalized, torch.ones(3, dtype=torch.float64), 1e-12)
        close(sweep.mean_of_ratios, torch.ones(3, dtype=torch.float64), 1e-12)


def test_causal_models_give_zero_where_nothing_can_have_changed():
    """Null: exactly no effect before the exchanged token, and none after the position that is read."""
    model = scrambled(DEEP, REPEATED)
    clean = REPEATED.sample(5, rng()).inputs
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 1) % REPEATED.d_tokens
    right = torch.zeros(5, 1, dtype=torch.long)
    pairs = Pairs(clean, corrupted, Answers(right, right + 1), (4,))
    for site in ("resid_pre", "attn_out", "mlp_out"):
        effect = patch(model, pairs, site, "layer pos").effect
        close(effect[:, [0, 1, 5]], torch.zeros(3, 3, dtype=torch.float64), 1e-12)
        assert (effect[:2, 2].abs() > 1e-6).all(), site
    assert (patch(model, pairs, "resid_pre", "layer pos").normalized[0, 2] - 1).abs() < 1e-12


def test_permuting_examples_permutes_their_effects():
    model, pairs, order = scrambled(DEEP, REPEATED), pairs_for(), torch.tensor([2, 0, 3, 1])
    a = pairs.answers
    moved = Pairs(
        pairs.clean[order], pairs.corrupted[order], Answers(a.right[order], a.wrong[order], a.weight[order]), pairs.read
    )
    values = patch(model, pairs, "z", "layer head").values
    close(patch(model, moved, "z", "layer head").values, values[..., order], 1e-12)


# --- gates whose every number is known -------------------------------------------------------------------------------


def gate(kind: str) -> Transformer:
    """Head 0 carries token a, head 1 token b to the last position; one neuron computes the gate there.

    OR: 1 - ReLU(1 - (a + b)). AND: 2 ReLU((a + b)/2 - 1/2). Stream: value, three positions, a, b, result.
    """
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 7, "d_head": 1, "d_mlp": 1, "attn_scale": 1.0}
    model = Transformer(spec(**sizes), d_vocab=3, n_ctx=3, d_out=2)
    with torch.no_grad():
        model.W_E[1, 0] = 1
        model.W_pos[:, 1:4] = torch.eye(3, dtype=torch.float64)
        model.W_Q[0, :, 3, 0] = 1
        for head in range(2):
            model.W_K[0, head, 1 + head, 0] = 80
            model.W_V[0, head, 0, 0] = 1
            model.W_O[0, head, 0, 4 + head] = 1
        model.W_in[0, 4:6, 0] = -1 if kind == "or" else 0.5
        model.b_in[0] = 1 if kind == "or" else -0.5
        model.W_out[0, 0, 6] = -1 if kind == "or" else 2
        model.b_out[0, 6] = 1 if kind == "or" else 0
        model.W_U[6, 0] = 1
    return model


@pytest.mark.parametrize(
    ("kind", "noise_one", "denoise_one", "gradient_clean", "gradient_corrupted"),
    [("or", 0, 1, 0, 1), ("and", 1, 0, 1, 0)],
)
def test_p1_the_or_and_table(kind, noise_one, denoise_one, gradient_clean, gradient_corrupted):
    """Row P1 (section 1.2): clean (1, 1), corrupted (0, 0); every cell as printed, for both inputs of the gate."""
    model = gate(kind)
    zero = torch.zeros(1, 1, dtype=torch.long)
    pairs = Pairs(torch.tensor([[1, 1, 2]]), torch.tensor([[0, 0, 2]]), Answers(zero, zero + 1), (2,))
    for p, q, expected in ((1, 1, 1), (1, 0, kind == "or"), (0, 1, kind == "or"), (0, 0, 0)):
        close(model(torch.tensor([[p, q, 2]]))[0, 2, 0], torch.tensor(float(expected)).double())

    def both(value):
        return torch.full((1, 2), float(value), dtype=torch.float64)

    close(patch(model, pairs, "z", "layer head", direction="noise").normalized, both(noise_one))
    close(patch(model, pairs, "z", "layer", direction="noise").normalized, both(1)[:, 0])
    close(patch(model, pairs, "z", "layer head", direction="denoise").normalized, both(denoise_one))
    close(attribute(model, pairs, "z", "layer head", direction="noise").normalized, both(gradient_clean))
    close(attribute(model, pairs, "z", "layer head", direction="denoise").normalized, both(gradient_corrupted))
    for direction in patching.DIRECTIONS:
        share = attribute(model, pairs, "z", "layer head", direction=direction, steps=10)
        close(share.normalized, both(0.5))


# --- attribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "axes"),
    [("resid_pre", "layer pos"), ("z", "layer head pos"), ("post", "layer d_mlp"), ("v", "layer head")],
)
def test_attribution_is_exact_in_an_affine_model(site, axes):
    """Section 0.3, consequence 3."""
    model, pairs = scrambled(LINEAR, REPEATED), pairs_for()
    for direction in patching.DIRECTIONS:
        exact = patch(model, pairs, site, axes, direction=direction)
        close(attribute(model, pairs, site, axes, direction=direction).values, exact.values)
        close(attribute(model, pairs, site, axes, direction=direction, steps=3).values, exact.values)


def test_p3_the_error_of_attribution_is_of_second_order():
    """Row P3: slope 2 +- 0.2 on log-log axes as the corruption shrinks."""
    model = scrambled(spec(n_layers=2, norm="LN", biases=ALL_BIASES, act="gelu"), REPEATED)
    clean = REPEATED.sample(8, rng()).inputs
    corrupted = clean.clone()
    corrupted[:, 1] = REPEATED.d_tokens  # BOS again, which becomes a neighbour of token 0
    clean[:, 1] = 0
    right = torch.full((8, 1), 2)
    pairs = Pairs(clean, corrupted, Answers(right, right + 1), (-1,))
    direction = torch.randn(model.d_model, generator=rng(5), dtype=torch.float64)
    scales, errors = [0.1, 0.05, 0.025, 0.0125], []
    for scale in scales:
        with torch.no_grad():
            model.W_E[REPEATED.d_tokens] = model.W_E[0] + scale * direction
        exact = patch(model, pairs, "resid_pre", "layer pos", direction="noise")
        estimate = attribute(model, pairs, "resid_pre", "layer pos", direction="noise")
        errors.append((exact.values - estimate.values)[:, 1].abs().mean())
    slope = (errors[0] / errors[-1]).log() / math.log(scales[0] / scales[-1])
    assert abs(slope - 2) < 0.2
    assert errors[0] > 1e-6


def test_p4_integrated_scores_of_a_site_add_up_to_its_effect():
    """Row P4, for activations: 1 % at 50 steps; the plain gradient of the first layer misses by more."""
    model, pairs = scrambled(spec(n_layers=2, norm="LN", act="gelu", biases=ALL_BIASES), REPEATED), pairs_for(8)
    whole = patch(model, pairs, "z", "layer", direction="noise").effect
    parts = attribute(model, pairs, "z", "layer head pos", direction="noise", steps=50).effect.sum((1, 2))
    plain = attribute(model, pairs, "z", "layer head pos", direction="noise").effect.sum((1, 2))
    assert ((parts - whole).abs() < 0.01 * whole.abs()).all()
    assert ((plain - whole).abs() > 0.01 * whole.abs())[0]


def test_gradients_need_no_weights_that_want_them_and_leave_none_behind():
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    wanted = attribute(model, pairs, "z", "layer head").values
    assert all(p.grad is None for p in model.parameters())
    frozen = scrambled(DEEP, REPEATED).requires_grad_(False)
    with torch.no_grad():
        close(attribute(frozen, pairs, "z", "layer head").values, wanted, 1e-12)
    with pytest.raises(UserError, match="no gradient"):
        gradients(frozen, pairs.clean, ["blocks.0.attn.hook_z"], lambda out: out.argmax(-1).double().sum(-1))


# --- AtP* ------------------------------------------------------------------------------------------------------------

QK_SWEEPS = [
    ("q", "layer head pos"),
    ("q", "layer"),
    ("k", "layer head pos"),
    ("k", "pos layer"),
    ("k", "layer head"),
    ("k_input", "layer head pos"),
    ("attn_scores", "layer head query"),
    ("attn_scores", "layer head query key"),
    ("attn_scores", "layer key"),
]


@pytest.mark.parametrize(("site", "axes"), QK_SWEEPS)
def test_the_qk_fix_is_exact_where_all_after_the_pattern_is_affine(site, axes):
    """One layer of attention alone; also with a constant part in the pattern, and rotated queries and keys."""
    attention = {"d_mlp": 0, "biases": ALL_BIASES[:4]}
    models = [spec(**attention), spec(**attention, attention="bidirectional", attention_rate=0.4)]
    if site in ("q", "k"):
        models.append(spec(**attention, positions="rotary"))
    for model_spec in models:
        model, pairs = scrambled(model_spec, REPEATED), pairs_for(read=(-1, 2))
        for at in (site, f"rot_{site}") if model_spec.positions == "rotary" else (site,):
            exact = patch(model, pairs, at, axes)
            close(attribute_star(model, pairs, at, axes, drop=False).values, exact.values)
            assert (attribute(model, pairs, at, axes).values - exact.values).abs().max() > 1e-3


def lookup_head() -> Transformer:
    """Tokens 0, 1 ask for a key, tokens 2 + 2 key + value hold one; the saturated head answers with the value."""
    sizes = {"n_layers": 1, "n_heads": 1, "d_model": 8, "d_head": 2, "d_mlp": 0, "attn_scale": 1.0, "biases": ()}
    model = Transformer(spec(**sizes, positions="none"), d_vocab=6, n_ctx=3, d_out=2)
    eye = torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        model.W_E[:, :6] = torch.eye(6, dtype=torch.float64)
        model.W_Q[0, 0, :2] = 200 * eye
        model.W_K[0, 0, 2:6] = eye.repeat_interleave(2, 0)
        model.W_V[0, 0, 2:6] = eye.repeat(2, 1)
        model.W_O[0, 0, :, 6:] = eye
        model.W_U[6:] = eye
    return model


def test_a_saturated_softmax_hides_from_the_gradient_and_not_from_the_qk_fix():
    model, zero = lookup_head(), torch.zeros(1, 1, dtype=torch.long)
    queries = Pairs(torch.tensor([[2, 5, 0]]), torch.tensor([[2, 5, 1]]), Answers(zero, zero + 1), (2,))
    keys = Pairs(torch.tensor([[2, 5, 0]]), torch.tensor([[4, 3, 0]]), Answers(zero, zero + 1), (2,))
    for site, pairs in (("q", queries), ("k", keys)):
        for direction in patching.DIRECTIONS:
            exact = patch(model, pairs, site, "layer pos", direction=direction)
            plain = attribute(model, pairs, site, "layer pos", direction=direction)
            fixed = attribute_star(model, pairs, site, "layer pos", direction=direction, drop=False)
            close(fixed.values, exact.values)
            assert exact.effect.abs().max() > 0.3
            assert plain.effect.abs().max() < 1e-12
    close(
        patch(model, queries, "q", "layer pos").normalized,
        attribute_star(model, queries, "q", "layer pos", drop=False).normalized,
    )
    close(attribute_star(model, queries, "q", "layer pos", drop=False).normalized[0, 2], torch.tensor(1.0).double())


def cancelling(n_layers: int) -> Transformer:
    """m0 writes x = +-1 on the answer, m1 takes ReLU(x) off it again: at x = 1 the two slopes cancel exactly."""
    sizes = {"n_layers": n_layers, "n_heads": 1, "d_model": 2, "d_head": 1, "d_mlp": 2, "biases": ()}
    model = Transformer(spec(**sizes, positions="none"), d_vocab=2, n_ctx=1, d_out=2)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    with torch.no_grad():
        model.W_E[:, 0] = -sign
        model.W_in[0, 0] = model.W_out[0, :, 1] = sign
        model.W_in[1, 1, 0], model.W_out[1, 0, 1] = 1, -1
        model.W_U[1, 0] = 1
    return model


@pytest.mark.parametrize("n_layers", [2, 3])
def test_cancelling_paths_hide_from_the_gradient_and_not_from_graddrop(n_layers):
    """Clean x = 1, corrupted -1. Without m1 the slope is 1 and the estimate |-2|; an idle third layer leaves the 0."""
    model, zero = cancelling(n_layers), torch.zeros(1, 1, dtype=torch.long)
    pairs = Pairs(torch.tensor([[1]]), torch.tensor([[0]]), Answers(zero, zero + 1))
    of_m0 = {
        f.__name__: f(model, pairs, "mlp_out", "layer", direction="noise").effect[0]
        for f in (patch, attribute, attribute_star)
    }
    assert of_m0["patch"] == -1
    assert of_m0["attribute"] == 0
    close(of_m0["attribute_star"], torch.tensor(2.0 / (n_layers - 1)).double())
    # m1 has one path, so nothing can cancel: its true effect, and exactly nothing for the idle layer.
    others = attribute_star(model, pairs, "mlp_out", "layer", direction="noise").effect[1:]
    close(others, torch.tensor([1.0, 0.0][: n_layers - 1]).double())


@pytest.mark.parametrize(
    ("site", "axes"), [("z", "layer head pos"), ("post", "layer d_mlp"), ("resid_mid", "layer pos")]
)
def test_graddrop_is_the_magnitude_of_attribution_where_no_layer_is_between(site, axes):
    """Layer 0 of a model whose later layers write nothing; and without GradDrop these sites have no correction."""
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    close(
        attribute_star(model, pairs, site, axes, drop=False).values, attribute(model, pairs, site, axes).values, 1e-12
    )
    with torch.no_grad():
        for weights in (model.W_O, model.b_O, model.W_out, model.b_out):
            weights[1:] = 0
    star, plain = (f(model, pairs, site, axes, layers=[0]) for f in (attribute_star, attribute))
    if site != "resid_mid":  # the stream passes its own layer by, and the part through its MLP can be left out
        close(star.values - star.base, (plain.values - plain.base).abs())
    assert (star.values >= star.base).all()
    assert star.effect.abs().max() > 1e-3


def test_atp_star_gives_zero_where_nothing_can_have_changed():
    """Null: exactly no effect at the positions before the exchanged token."""
    model, clean = scrambled(DEEP, REPEATED), REPEATED.sample(5, rng()).inputs
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 1) % REPEATED.d_tokens
    right = torch.zeros(5, 1, dtype=torch.long)
    pairs = Pairs(clean, corrupted, Answers(right, right + 1), (4,))
    for site in ("resid_pre", "mlp_out", "q", "k"):
        effect = attribute_star(model, pairs, site, "layer pos").effect
        close(effect[:, :2], torch.zeros(3, 2, dtype=torch.float64), 1e-12)
        assert (effect[:2, 2] > 1e-6).all(), site


def test_mistakes_with_atp_star_are_explained():
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    with pytest.raises(UserError, match="a softmax belongs to a whole q vector"):
        attribute_star(model, pairs, "q", "layer head d_head")
    with pytest.raises(UserError, match="this model has 1: take drop=False"):
        attribute_star(scrambled(spec(), REPEATED), pairs, "z", "layer head")
    with pytest.raises(UserError, match="no layers of attention: take attribute"):
        attribute_star(scrambled(MLPSpec(4, 10, "relu"), ADDITION), pairs, "post", "layer d_mlp")
    with pytest.raises(UserError, match='did you mean "pos"'):
        attribute_star(model, pairs, "k", "layer head poss")


# --- ablations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", patching.ABLATIONS)
def test_ablation_is_a_hook_with_the_ablated_value(kind):
    model, batch = scrambled(DEEP, REPEATED), REPEATED.sample(6, rng())
    answers = Answers(batch.targets)
    sweep = ablate(model, batch.inputs, answers, "z", "layer head", patching.loss, kind, generator=rng(3))
    g = rng(3)
    cache = model.run_with_cache(batch.inputs)[1]
    for layer in range(3):
        new = ablated(cache["z", layer], kind, g)
        for head in range(2):

            def hook(value, hook, new=new, head=head):
                value[:, :, head] = new[:, :, head]
                return value

            outputs = model.run_with_hooks(batch.inputs, [(("z", layer), hook)])
            close(sweep.values[layer, head], patching.loss(outputs, answers))


def test_what_an_ablation_puts_in():
    x = torch.randn(50, 3, 4, generator=rng(), dtype=torch.float64)
    assert not ablated(x, "zero").any()
    close(ablated(x, "mean"), x.mean(0).expand(50, 3, 4))
    moved = ablated(x, "resample", rng(1))
    assert sorted(moved[:, 0, 0].tolist()) == sorted(x[:, 0, 0].tolist())
    assert (moved != x).flatten(1).all(1).all()  # no row keeps its own value
    added = ablated(x, "noise", rng(1), noise=2.0) - x
    assert abs(added.std() / x.std() - 2) < 0.2
    scores = x.masked_fill(torch.arange(4) > 2, -torch.inf)
    for kind in patching.ABLATIONS:
        assert torch.equal(ablated(scores, kind, rng(1)) == -torch.inf, scores == -torch.inf), kind


def test_ablating_what_is_constant_changes_nothing():
    """Null: replacing a site by its mean does nothing when every example is the same."""
    model, batch = scrambled(DEEP, REPEATED), REPEATED.sample(6, rng())
    inputs = batch.inputs[:1].expand(6, -1)
    for kind in ("mean", "resample"):
        sweep = ablate(
            model, inputs, Answers(batch.targets[:1].expand(6, -1)), "mlp_out", "layer pos", kind=kind, generator=rng()
        )
        close(sweep.effect, torch.zeros(3, 6, dtype=torch.float64))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    logits = torch.tensor([[[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]]).double()
    answers = Answers(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))
    z = math.e + math.e**3 + math.e**2
    expected = {
        patching.logit_diff: (2 + 0) / 2,
        patching.probability: (math.e**3 / z + 1 / 3) / 2,
        patching.loss: (math.log(z) - 3 + math.log(3)) / 2,
        patching.accuracy: 0.5,
    }
    for metric, value in expected.items():
        close(metric(logits, answers), torch.tensor([value], dtype=torch.float64))
        close(metric(logits.expand(5, 4, 1, 2, 3), answers), torch.full((5, 4, 1), value, dtype=torch.float64))
    first = Answers(answers.right, None, torch.tensor([[2.0, 0.0]]))
    close(patching.logit_diff(logits, first), torch.tensor([3 - 1.5]).double())
    uniform = torch.zeros_like(logits)
    p = torch.tensor([math.e / z, math.e**3 / z, math.e**2 / z], dtype=torch.float64)
    close(patching.kl_from(logits)(uniform, answers), (p * (p * 3).log()).sum()[None] / 2)
    close(patching.kl_from(logits)(logits, answers), torch.zeros(1).double())


# --- the names of TransformerLens ------------------------------------------------------------------------------------


def test_act_patch_names_and_axes():
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    cache = model.run_with_cache(pairs.clean)[1]
    metric = lambda logits: patching.logit_diff(logits, pairs.answers).mean()  # noqa: E731
    call = (model, pairs.corrupted, cache, metric)
    same = {
        "resid_pre": ("resid_pre", "layer pos"),
        "resid_mid": ("resid_mid", "layer pos"),
        "attn_out": ("attn_out", "layer pos"),
        "mlp_out": ("mlp_out", "layer pos"),
        "attn_head_out_by_pos": ("z", "layer pos head"),
        "attn_head_k_by_pos": ("k", "layer pos head"),
        "attn_head_v_all_pos": ("v", "layer head"),
        "attn_head_pattern_by_pos": ("pattern", "layer head query"),
        "attn_head_pattern_dest_src_pos": ("pattern", "layer head query key"),
    }
    for name, (site, axes) in same.items():
        values = getattr(patching, f"get_act_patch_{name}")(*call)
        close(values, patch(model, pairs, site, axes).mean)
    assert patching.get_act_patch_attn_head_all_pos_every(*call).shape == (5, 3, 2)
    by_pos = patching.get_act_patch_attn_head_by_pos_every(*call)
    assert by_pos.shape == (5, 3, 6, 2)
    close(by_pos[4], patch(model, pairs, "pattern", "layer query head").mean)
    assert patching.get_act_patch_block_every(*call).shape == (3, 3, 6)


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_mistakes_are_explained():
    model, pairs = scrambled(DEEP, REPEATED), pairs_for()
    with pytest.raises(UserError, match="same length"):
        Pairs(pairs.clean, pairs.corrupted[:, :-1], pairs.answers)
    with pytest.raises(UserError, match="3 pairs arrived with 4 answers"):
        Pairs(pairs.clean[:3], pairs.corrupted[:3], pairs.answers)
    with pytest.raises(UserError, match=r"ask for nothing"):
        Pairs(pairs.clean, pairs.corrupted, Answers(pairs.answers.right, None, torch.zeros(4, 6)))
    with pytest.raises(UserError, match="the metric is the same on the clean and the corrupted input"):
        patch(model, Pairs(pairs.clean, pairs.clean, pairs.answers), "z", "layer head")
    with pytest.raises(UserError, match='did you mean "pattern"'):
        patch(model, pairs, "patern", "layer head")
    with pytest.raises(UserError, match=r"this model has no site blocks.0.mlp.hook_post"):
        patch(scrambled(spec(d_mlp=0), REPEATED), pairs, "post", "layer d_mlp")
    with pytest.raises(UserError, match=r"accepted are layer, pos, head, d_head"):
        patch(model, pairs, "z", "layer heads")
    with pytest.raises(UserError, match="names an axis twice"):
        patch(model, pairs, "z", "layer head head")
    with pytest.raises(UserError, match='start with "layer"'):
        patch(model, pairs, "z", "head")
    with pytest.raises(UserError, match='accepted are denoise, noise; did you mean "denoise"'):
        patch(model, pairs, "z", "layer head", direction="denoising")
    with pytest.raises(UserError, match=r"pass a torch.Generator"):
        ablate(model, pairs.clean, pairs.answers, "z", "layer head", kind="resample")
    sweep = ablate(model, pairs.clean, pairs.answers, "z", "layer head", kind="zero")
    with pytest.raises(UserError, match="has no second run"):
        _ = sweep.normalized
    swapped = Pairs(
        torch.cat([pairs.clean, pairs.corrupted]), torch.cat([pairs.corrupted, pairs.clean]), double(pairs.answers)
    )
    with pytest.raises(UserError, match="same on both runs"):
        _ = patch(model, swapped, "z", "layer head").normalized


def double(answers: Answers) -> Answers:
    return Answers(answers.right.repeat(2, 1), answers.wrong.repeat(2, 1), answers.weight.repeat(2, 1))
