"""The same weights in TransformerLens 4 give the same logits; run where that library is installed."""

import dataclasses
from importlib.metadata import version

import pytest
import torch
from cases.models import ADDITION, ALL_BIASES, REPEATED, rng, scrambled, spec

from toylab.models.interop import to_transformer_lens

pytest.importorskip("transformer_lens")
# The module states no version of its own.
old = int(version("transformer-lens").split(".")[0]) < 4
pytestmark = [pytest.mark.interop, pytest.mark.skipif(old, reason="needs TransformerLens 4 or later")]

# Its native models rotate other pairs of coordinates, so rotary positions are not among these.
CASES = [
    pytest.param(spec(), ADDITION, id="one layer, no norm"),
    pytest.param(spec(n_layers=2, norm="LN", biases=ALL_BIASES, act="gelu"), REPEATED, id="2 layers, LN"),
    pytest.param(spec(n_layers=2, norm="LNPre", biases=ALL_BIASES, act="silu"), REPEATED, id="2 layers, LNPre"),
    pytest.param(spec(n_layers=2, norm="RMS", act="solu"), REPEATED, id="2 layers, RMS"),
    pytest.param(spec(norm="RMSPre", attention="bidirectional"), ADDITION, id="RMSPre, bidirectional"),
    pytest.param(spec(n_layers=2, d_mlp=0, biases=()), REPEATED, id="attention only"),
    pytest.param(spec(tied=True, attn_scale=1.5), ADDITION, id="tied, own scale"),
    pytest.param(spec(positions="sinusoidal"), REPEATED, id="sinusoidal"),
    pytest.param(spec(positions="none"), REPEATED, id="no positions"),
]


def in_transformer_lens(model):
    """The model as a TransformerBridge with the same weights."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    s = model.spec
    config = TransformerBridgeConfig(
        architecture="TransformerLensNative",
        d_model=s.d_model,
        d_head=s.d_head,
        n_heads=s.n_heads,
        n_layers=s.n_layers,
        n_ctx=model.n_ctx,
        d_vocab=model.d_vocab,
        d_vocab_out=model.d_out,
        d_mlp=s.d_mlp or 1,
        attn_only=not s.d_mlp,
        act_fn=s.act,
        normalization_type=None if s.norm == "none" else s.norm,
        eps=s.eps,
        positional_embedding_type="standard",
        attention_dir=s.attention,
        attn_scale=-1.0 if s.attn_scale is None else s.attn_scale,
    )
    bridge = TransformerBridge.boot_native(config)
    bridge.load_state_dict(convert_tl_checkpoint(to_transformer_lens(model), config), strict=True)
    return bridge.eval()


@pytest.mark.parametrize(("spec", "task"), CASES)
@torch.no_grad()
def test_same_weights_same_logits_and_activations(spec, task):
    """In float32, to 1e-5 of the largest value: rounding follows the size of what is added up."""
    model = scrambled(dataclasses.replace(spec, dtype="float32"), task)
    x = task.sample(20, rng()).inputs
    logits, cache = model.run_with_cache(x)
    bridge = in_transformer_lens(model)
    theirs, their_cache = bridge.run_with_cache(x)
    torch.testing.assert_close(logits, theirs, rtol=0, atol=1e-5 * logits.abs().max().item())
    # Its native attention hands out the pattern again under the name of the scores.
    common = [name for name in cache if name in their_cache.cache_dict and not name.endswith("attn_scores")]
    assert {"blocks.0.attn.hook_pattern", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_q"} <= set(common)
    for name in common:
        value = cache[name]
        scale = value[value.isfinite()].abs().max().item()
        torch.testing.assert_close(value, their_cache[name], rtol=0, atol=1e-5 * max(scale, 1.0))
