"""`folded(model)`: an equal model with simpler weights, as a copy. Loading never folds; this is where it is done.

Four rewritings, each exact, each applied only where it is exact:

1. fold_ln: the weights and biases of every norm move into what reads it: LN becomes LNPre, RMS becomes RMSPre.
2. center_writing_weights (LN models): what is written to the residual stream loses its mean over d_model, which every
   LayerNorm would subtract anyway. RMSNorm sees the mean, so those models are left alone.
3. center_unembed: W_U and b_U lose their mean over outputs: every logit of a row moves by the same amount.
4. fold_value_biases: rows of a pattern sum to 1, so b_V always adds b_V W_O to the output: it moves into b_O. Where
   attention_rate < 1 rows do not sum to 1, and b_V stays.

What it preserves: log-probabilities always; logits up to a constant per row (exactly, without 3); patterns and
attention scores; neurons. What it changes: the residual stream by its mean (2), z, v and result by their bias (4),
q, k, v and pre not at all. In exact arithmetic; in float32 to a few 1e-6.

Tied unembeddings become their own matrix and sinusoidal positions a learned table where a rewriting needs it. The
names are those of TransformerLens's `fold_layer_norm` and its neighbours.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from toylab.models.transformer import BIASES, Transformer


@torch.no_grad()
def folded(
    model: Transformer,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
) -> Transformer:
    """A copy with the same log-probabilities; see the head of the file for each step."""
    weights = _all_weights(model)
    if fold_ln and model.spec.norm in ("LN", "RMS"):
        _fold_ln(weights, with_bias=model.spec.norm == "LN")
    if center_writing_weights and model.spec.norm in ("LN", "LNPre"):
        _center_writing(weights)
    if center_unembed:
        weights["W_U"] = weights["W_U"] - weights["W_U"].mean(1, keepdim=True)
        weights["b_U"] = weights["b_U"] - weights["b_U"].mean()
    if fold_value_biases and model.spec.attention_rate == 1:
        weights["b_O"] = weights["b_O"] + torch.einsum("lhe,lhed->ld", weights["b_V"], weights["W_O"])
        weights["b_V"] = torch.zeros_like(weights["b_V"])
    return _build(model, weights, norm=model.spec.norm + "Pre" * (fold_ln and model.spec.norm in ("LN", "RMS")))


def largest_change(model: Transformer, other: Transformer, tokens: Tensor) -> float:
    """The largest change of any log-probability between two models on these tokens."""
    with torch.no_grad():
        return float((model(tokens).log_softmax(-1) - other(tokens).log_softmax(-1)).abs().max())


def _all_weights(model: Transformer) -> dict[str, Tensor]:
    """Every weight by name: copies, absent biases as zeros, W_U and W_pos as tables of their own."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights.setdefault("W_U", model.W_E[: model.d_out].T.clone())
    if model.spec.positions == "sinusoidal":
        weights["W_pos"] = model.W_pos.clone()
    like = {"Q": model.W_Q[:, :, 0], "K": model.W_K[:, :, 0], "V": model.W_V[:, :, 0], "O": model.W_O[:, 0, 0]}
    like["U"] = weights["W_U"][0]
    if model.d_mlp:
        like |= {"in": model.W_in[:, 0], "out": model.W_out[:, 0]}
    for name, shape in like.items():
        weights.setdefault(f"b_{name}", torch.zeros_like(shape))
    return weights


def _fold_ln(weights: dict[str, Tensor], with_bias: bool) -> None:
    """reader(x * w + b) = x (w * W) + (b W + bias): w scales the rows of W, b goes through W into its bias."""
    for name in "QKV":
        W, w = weights[f"W_{name}"], weights["ln1_w"]
        if with_bias:
            weights[f"b_{name}"] = weights[f"b_{name}"] + torch.einsum("ld,lhde->lhe", weights["ln1_b"], W)
        weights[f"W_{name}"] = w[:, None, :, None] * W
    if "W_in" in weights:
        if with_bias:
            weights["b_in"] = weights["b_in"] + torch.einsum("ld,ldm->lm", weights["ln2_b"], weights["W_in"])
        weights["W_in"] = weights["ln2_w"][:, :, None] * weights["W_in"]
    if with_bias:
        weights["b_U"] = weights["b_U"] + weights["ln_final_b"] @ weights["W_U"]
    weights["W_U"] = weights["ln_final_w"][:, None] * weights["W_U"]


def _center_writing(weights: dict[str, Tensor]) -> None:
    for name in ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out"):
        if name in weights:
            weights[name] = weights[name] - weights[name].mean(-1, keepdim=True)


def _build(model: Transformer, weights: dict[str, Tensor], norm: str) -> Transformer:
    """A model that holds these weights; biases that are zero throughout exist only if they did before."""
    spec = model.spec
    biases = tuple(
        name for name in BIASES if f"b_{name}" in weights and (name in spec.biases or bool(weights[f"b_{name}"].any()))
    )
    positions = spec.positions
    if positions == "sinusoidal" and not torch.equal(weights["W_pos"], model.W_pos):
        positions = "learned"
    tied = spec.tied and torch.equal(weights["W_U"], weights["W_E"][: model.d_out].T)
    new = Transformer(
        dataclasses.replace(spec, norm=norm, biases=biases, positions=positions, tied=tied),
        model.d_vocab,
        model.n_ctx,
        model.d_out,
    ).to(model.W_E.device)
    new.load_state_dict({name: weights[name] for name, _ in new.named_parameters()})
    return new
