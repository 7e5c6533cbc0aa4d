"""Folded models give the same log-probabilities for every norm and shape, and nothing else changes unannounced."""

import dataclasses

import pytest
import torch
from cases.models import ALL_BIASES, REPEATED, TRANSFORMERS, scrambled, spec

from toylab.models.folding import folded, largest_change

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
specs = pytest.mark.parametrize(("spec", "task"), TRANSFORMERS)
STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
RICH = spec(n_layers=2, norm="LN", biases=ALL_BIASES, act="gelu")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@specs
def test_log_probabilities_stay(spec, task):
    """In float64 to 1e-10, in float32 below 1e-5, all steps together and each alone; the original is not touched."""
    x = task.sample(20, rng()).inputs
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
        model = scrambled(dataclasses.replace(spec, dtype=dtype), task)
        with torch.no_grad():  # logits of ordinary size: rounding is relative to the largest
            for p in model.parameters():
                p *= 0.5
        before = {name: p.clone() for name, p in model.named_parameters()}
        assert largest_change(model, folded(model), x) < tolerance
        for step in STEPS:
            only = folded(model, **{other: other == step for other in STEPS})
            assert largest_change(model, only, x) < tolerance, step
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@specs
def test_logits_stay_too_unless_the_unembedding_is_centred(spec, task):
    model, x = scrambled(spec, task), task.sample(20, rng()).inputs
    torch.testing.assert_close(folded(model, center_unembed=False)(x), model(x), rtol=0, atol=1e-10)
    shift = folded(model)(x) - model(x)
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), rtol=0, atol=1e-10)
    assert folded(model)(x).mean(-1).abs().max() < 1e-10


@specs
def test_what_else_stays(spec, task):
    """Patterns, neurons, q and k; not the residual stream, which loses its mean where a LayerNorm ignores it."""
    model, x = scrambled(spec, task), task.sample(6, rng()).inputs
    before, after = model.run_with_cache(x)[1], folded(model).run_with_cache(x)[1]
    for layer in range(spec.n_layers):
        for name in ("pattern", "q", "k") + (("pre", "post") if spec.d_mlp else ()):
            torch.testing.assert_close(after[name, layer], before[name, layer], rtol=0, atol=1e-9, msg=name)
        stream = before["resid_post", layer]
        centred = stream - stream.mean(-1, keepdim=True) if spec.norm.startswith("LN") else stream
        torch.testing.assert_close(after["resid_post", layer], centred, rtol=0, atol=1e-9)


def test_the_weights_are_simple_afterwards():
    model = folded(scrambled(RICH, REPEATED))
    assert model.spec.norm == "LNPre"
    for name in ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out"):
        assert getattr(model, name).mean(-1).abs().max() < 1e-12, name
    assert model.W_U.mean(1).abs().max() < 1e-12
    assert not model.b_V.any()


def test_rms_keeps_its_mean_and_half_constant_attention_its_value_biases():
    rms = scrambled(spec(norm="RMS", biases=ALL_BIASES), REPEATED)
    assert torch.equal(folded(rms).W_E, rms.W_E)
    assert folded(rms).spec.norm == "RMSPre"
    constant = scrambled(spec(attention_rate=0.5, biases=ALL_BIASES), REPEATED)
    assert torch.equal(folded(constant).b_V, constant.b_V)


def test_a_folded_model_is_a_fixed_point():
    once = folded(scrambled(RICH, REPEATED))
    twice = folded(once)
    assert twice.spec == once.spec
    for name, p in twice.named_parameters():
        torch.testing.assert_close(p, once.get_parameter(name), rtol=0, atol=1e-12)
