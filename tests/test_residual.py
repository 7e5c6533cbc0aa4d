"""Parts of the residual stream add up to it, attributions to the logits, and the labels say which is which."""

import pytest
import torch
from cases.models import ADDITION, ALL_BIASES, REPEATED, TRANSFORMERS, rng, scrambled, spec

from toylab.errors import UserError
from toylab.interp.residual import (
    BY,
    accumulated_resid,
    apply_ln_to_stack,
    decompose_resid,
    direct_logits,
    get_full_resid_decomposition,
    logit_attrs,
    logit_constant,
    residual_at,
    stack_head_results,
    stack_neuron_results,
)
from toylab.models.mlp import MLPSpec
from toylab.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
specs = pytest.mark.parametrize(("spec", "task"), TRANSFORMERS)
RICH = spec(n_layers=2, norm="LN", biases=ALL_BIASES, act="gelu")


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def run(spec, task, n=5):
    model = scrambled(spec, task)
    outputs, cache = model.run_with_cache(task.sample(n, rng()).inputs)
    return model, outputs.detach(), cache


# --- decompositions --------------------------------------------------------------------------------------------------


@specs
def test_every_decomposition_adds_up_at_every_point(spec, task):
    model, _, cache = run(spec, task)
    for layer in [*range(spec.n_layers + 1), None]:
        for mlp_input in {False, bool(spec.d_mlp and layer not in (None, spec.n_layers))}:
            stream = residual_at(model, cache, layer, mlp_input)
            for stack in (
                decompose_resid(model, cache, layer, mlp_input),
                get_full_resid_decomposition(model, cache, layer, mlp_input),
                get_full_resid_decomposition(model, cache, layer, mlp_input, expand_neurons=False),
            ):
                close(stack.values.sum(0), stream)
                assert len(set(stack.labels)) == len(stack.labels)
        stream = residual_at(model, cache, layer)
        close(stack_head_results(model, cache, layer, incl_remainder=True).values.sum(0), stream)
        if spec.d_mlp:
            close(stack_neuron_results(model, cache, layer, incl_remainder=True).values.sum(0), stream)


def test_labels_and_rows():
    model, _, cache = run(RICH, REPEATED)
    stack = decompose_resid(model, cache)
    assert stack.labels == ("embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out")
    close(stack["1_attn_out"], cache["attn_out", 1])
    assert decompose_resid(model, cache, 1, mlp_input=True).labels[2:] == ("0_attn_out", "0_mlp_out", "1_attn_out")
    assert decompose_resid(model, cache, mode="mlp", incl_embeds=False).labels == ("0_mlp_out", "1_mlp_out")
    streams = accumulated_resid(model, cache, incl_mid=True)
    assert streams.labels == ("0_pre", "0_mid", "1_pre", "1_mid", "final_post")
    close(streams["1_mid"], cache["resid_mid", 1])
    assert accumulated_resid(model, cache, 1).labels == ("0_pre", "1_pre")
    assert accumulated_resid(model, cache, 1, mlp_input=True).labels == ("0_pre", "1_pre", "1_mid")
    heads = stack_head_results(model, cache, incl_remainder=True)
    assert heads.labels == ("L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2", "remainder")
    results = model.run_with_cache(REPEATED.sample(5, rng()).inputs, ("result", 1))[1]
    close(heads["L1H2"], results["result", 1][:, :, 2])
    full = get_full_resid_decomposition(model, cache)
    assert full.labels[:7] == (*heads.labels[:-1], "L0N0")
    assert full.labels[-3:] == ("embed", "pos_embed", "bias")
    close(full["L1N3"], cache["post", 1][..., 3:4] * model.W_out[1, 3].detach())


@specs
def test_parts_add_up_through_every_norm(spec, task):
    """With the scale of the actual stream, normed parts add up to the normed stream without its bias."""
    model, _, cache = run(spec, task)
    for layer in range(spec.n_layers + 1):
        parts = apply_ln_to_stack(model, cache, get_full_resid_decomposition(model, cache, layer), layer)
        which, number = ("ln_final", None) if layer == spec.n_layers else ("ln1", layer)
        whole = model.norm(which, number, residual_at(model, cache, layer)).detach()
        if spec.norm == "LN":
            whole = whole - getattr(model, f"{which}_b")[slice(None) if number is None else number].detach()
        close(parts.values.sum(0), whole)


def test_streams_can_be_normed_by_their_own_scale():
    model, _, cache = run(RICH, REPEATED)
    stack = accumulated_resid(model, cache)
    own = apply_ln_to_stack(model, cache, stack, recompute_ln=True)
    close(own["1_pre"], model.norm("ln_final", None, cache["resid_pre", 1]).detach())
    final = apply_ln_to_stack(model, cache, stack)
    with pytest.raises(AssertionError):
        close(own["1_pre"], final["1_pre"] + model.ln_final_b.detach())
    close(own["final_post"], final["final_post"] + model.ln_final_b.detach())


# --- attribution -----------------------------------------------------------------------------------------------------


@specs
@pytest.mark.parametrize("by", BY)
def test_l1_direct_attributions_add_up_to_the_logit(spec, task, by):
    """Row L1: with the bias row, for one logit and for a difference, batch and position sizes mixed up on purpose."""
    model, outputs, cache = run(spec, task, n=task.n_ctx)  # batch == pos: a broadcast along the wrong axis must show
    right = outputs.argmax(-1)
    wrong = (right + 1) % model.d_out
    logit = outputs.gather(-1, right.unsqueeze(-1)).squeeze(-1)
    other = outputs.gather(-1, wrong.unsqueeze(-1)).squeeze(-1)
    close(direct_logits(model, cache, right, by=by).total, logit)
    close(direct_logits(model, cache, right, wrong, by).total, logit - other)
    per_example = right[:, -1:]
    picked = outputs.gather(-1, per_example.expand_as(right).unsqueeze(-1)).squeeze(-1)
    close(direct_logits(model, cache, per_example, by=by).total, picked)
    close(direct_logits(model, cache, 1, by=by).total, outputs[..., 1])


def test_neurons_by_way_of_the_unembedding_equal_neurons_by_way_of_the_stream():
    model, outputs, cache = run(RICH, REPEATED)
    right = outputs.argmax(-1)
    stack = apply_ln_to_stack(model, cache, stack_neuron_results(model, cache))
    fast = direct_logits(model, cache, right, by="neuron")
    for label, row in zip(stack.labels, logit_attrs(model, stack, right), strict=True):
        close(fast[label], row)


def test_the_attribution_of_a_model_known_by_heart():
    """One head that copies 2 x the current token to the logits, an embedding that adds 1 to its own: 2, 1 and b_U."""
    sizes = {"n_layers": 1, "n_heads": 1, "d_model": 4, "d_head": 2, "d_mlp": 0, "positions": "none", "biases": ("U",)}
    model = Transformer(spec(**sizes), d_vocab=2, n_ctx=1, d_out=2)
    eye = torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        model.W_E[:, :2] = eye
        model.W_V[0, 0, :2] = eye
        model.W_O[0, 0, :, 2:] = 2 * eye
        model.W_U[:2], model.W_U[2:] = eye, eye
        model.b_U[:] = torch.tensor([0.25, 0.5])
    cache = model.run_with_cache(torch.tensor([[0], [1]]))[1]
    rows = direct_logits(model, cache, 1, by="head")
    assert {label: rows[label].flatten().tolist() for label in rows.labels} == {
        "L0H0": [0.0, 2.0],
        "embed": [0.0, 1.0],
        "bias": [0.5, 0.5],
    }
    assert direct_logits(model, cache, 1, 0)["bias"].flatten().tolist() == [0.25, 0.25]
    assert logit_constant(model, 1).tolist() == [[0.5]]


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_mistakes_are_explained():
    model, outputs, cache = run(RICH, REPEATED)
    right = outputs.argmax(-1)
    with pytest.raises(UserError, match=r"tokens of shape \(5,\) arrived; expected one number or \[batch, pos\]"):
        direct_logits(model, cache, right[:, -1])
    with pytest.raises(UserError, match="tokens for"):
        direct_logits(model, cache, right[:3])
    with pytest.raises(UserError, match=r"answers of this model are 0\.\.5"):
        direct_logits(model, cache, 6)
    with pytest.raises(UserError, match=r'did you mean "head"'):
        direct_logits(model, cache, right, by="heads")
    with pytest.raises(UserError, match="layer=3"):
        decompose_resid(model, cache, 3)
    with pytest.raises(UserError, match="has no MLP"):
        decompose_resid(model, cache, 2, mlp_input=True)
    with pytest.raises(UserError, match="no mlp output comes before layer 0"):
        decompose_resid(model, cache, 0, mode="mlp", incl_embeds=False)
    mlp = scrambled(MLPSpec(4, 10, "relu", dtype="float64"), ADDITION)
    with pytest.raises(UserError, match="no residual stream"):
        decompose_resid(mlp, mlp.run_with_cache(ADDITION.sample(2, rng()).inputs)[1])
