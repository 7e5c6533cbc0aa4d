"""The residual stream as a sum of parts, and what each part adds to a logit (direct logit attribution).

1. `decompose_resid`, `stack_head_results`, `stack_neuron_results`, `get_full_resid_decomposition`: a stream as a stack
   of labelled parts that add up to it. `accumulated_resid`: the stream after 0, 1, 2, ... blocks.
2. `apply_ln_to_stack`: each part as the norm that reads the stream passes it on. A norm is x -> (x - mean x)/s * w + b;
   with s the scale of the actual stream held fixed, it is linear but for b. So each part goes through
   (part - mean part)/s * w, and b joins the constants.
3. `logit_attrs`: normed parts against the unembedding. `logit_constant`: the row of constants, b W_U + b_U, which no
   part owns. With that row the attributions add up to the logit exactly; `direct_logits` returns them together.

Names, labels and meanings are those of TransformerLens's ActivationCache; there they are methods of the cache, here
functions f(model, cache, ...). Two differences: rows come with their constants (there b_U is silently left out), and
answer tokens need an explicit position axis (there [batch] could be taken for positions).

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits). Knows tensors, models and caches only.
Came from: taps.py (caches). Read next: lens.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import one_of, require
from toylab.taps import Cache

BY = ("component", "head", "neuron")


@dataclass(frozen=True, eq=False)
class Stack:
    """Parts of a residual stream: values [component, batch, pos, d_model] and what each is: "embed", "0_attn_out"."""

    values: Float[Tensor, "component batch pos d_model"]
    labels: tuple[str, ...]

    def __post_init__(self):
        assert len(self.labels) == len(self.values), f"{len(self.labels)} labels for {tuple(self.values.shape)}"

    def __getitem__(self, label: str) -> Float[Tensor, "batch pos d_model"]:
        """stack["embed"]"""
        one_of("label", label, self.labels)
        return self.values[self.labels.index(label)]

    def __add__(self, other: Stack) -> Stack:
        return Stack(torch.cat([self.values, other.values]), self.labels + other.labels)

    def __repr__(self) -> str:
        return (
            f"Stack({', '.join(self.labels[:6])}{', ...' if len(self.labels) > 6 else ''}; {tuple(self.values.shape)})"
        )


def _layer(model, layer: int | None, mlp_input: bool = False) -> int:
    """The number of blocks before the point meant: None and -1 are the end, as n_layers is."""
    require(hasattr(model, "block"), f"{type(model).__name__} has no residual stream to take apart")
    layer = model.n_layers if layer is None or layer == -1 else layer
    require(0 <= layer <= model.n_layers, f"layer={layer}: 0..{model.n_layers} (the end), or None for the end")
    require(not mlp_input or (layer < model.n_layers and model.d_mlp > 0), f"mlp_input: layer {layer} has no MLP")
    return layer


def residual_at(model, cache: Cache, layer: int | None = None, mlp_input: bool = False) -> Tensor:
    """The stream before block `layer` (or before its MLP); None is the end, before the final norm."""
    layer = _layer(model, layer, mlp_input)
    if mlp_input:
        return cache["resid_mid", layer]
    return cache["resid_post", model.n_layers - 1] if layer == model.n_layers else cache["resid_pre", layer]


def accumulated_resid(
    model, cache: Cache, layer: int | None = None, incl_mid: bool = False, mlp_input: bool = False
) -> Stack:
    """The stream before each block up to `layer`: labels "0_pre", ("0_mid",) "1_pre", ..., and "final_post" at the end.

    mlp_input: one more, the stream before the MLP of `layer`.
    """
    end = _layer(model, layer, mlp_input)
    found = {}
    for number in range(min(end + 1, model.n_layers)):
        found[f"{number}_pre"] = cache["resid_pre", number]
        if model.d_mlp and ((incl_mid and number < end) or (mlp_input and number == end)):
            found[f"{number}_mid"] = cache["resid_mid", number]
    if end == model.n_layers:
        found["final_post"] = cache["resid_post", model.n_layers - 1]
    return Stack(torch.stack(list(found.values())), tuple(found))


def decompose_resid(
    model, cache: Cache, layer: int | None = None, mlp_input: bool = False, mode: str = "all", incl_embeds: bool = True
) -> Stack:
    """Parts "embed", "pos_embed", "0_attn_out", "0_mlp_out", ... of the stream before block `layer`; they add up to it.

    mode: "all", or only "attn" or "mlp" outputs. mlp_input: up to the MLP of `layer`. Biases are in the outputs.
    """
    one_of("mode", mode, ("all", "attn", "mlp"))
    end = _layer(model, layer, mlp_input)
    found = _embeds(cache) if incl_embeds else {}
    for number in range(end + mlp_input):
        if mode != "mlp":
            found[f"{number}_attn_out"] = cache["attn_out", number]
        if mode != "attn" and model.d_mlp and number < end:
            found[f"{number}_mlp_out"] = cache["mlp_out", number]
    require(len(found) > 0, f"no {mode} output comes before layer {end}: nothing to stack")
    return Stack(torch.stack(list(found.values())), tuple(found))


def _embeds(cache: Cache) -> dict[str, Tensor]:
    return {name: cache[name] for name in ("embed", "pos_embed") if name in cache}


def stack_head_results(model, cache: Cache, layer: int | None = None, incl_remainder: bool = False) -> Stack:
    """What every head of the first `layer` blocks writes, z W_O without b_O: labels "L0H0", "L0H1", ...

    incl_remainder: one more row, "remainder", so that the rows add up to the stream before block `layer`.
    """
    end = _layer(model, layer)
    like = residual_at(model, cache, end)
    rows = [torch.einsum("bphe,hed->hbpd", cache["z", n], model.W_O[n]) for n in range(end)]
    values = torch.cat(rows) if rows else like.new_zeros(0, *like.shape)
    stack = Stack(values.detach(), tuple(f"L{n}H{h}" for n in range(end) for h in range(model.n_heads)))
    return stack + Stack((like - values.sum(0)).detach()[None], ("remainder",)) if incl_remainder else stack


def stack_neuron_results(model, cache: Cache, layer: int | None = None, incl_remainder: bool = False) -> Stack:
    """What every neuron of the first `layer` blocks writes, post * W_out without b_out: labels "L0N0", "L0N1", ...

    Costs d_mlp copies of the stream per layer; `direct_logits(by="neuron")` needs none.
    """
    end = _layer(model, layer)
    require(model.d_mlp > 0, "this model has no MLP, so it has no neurons")
    like = residual_at(model, cache, end)
    rows = [torch.einsum("bpm,md->mbpd", cache["post", n], model.W_out[n]) for n in range(end)]
    values = torch.cat(rows) if rows else like.new_zeros(0, *like.shape)
    stack = Stack(values.detach(), tuple(f"L{n}N{m}" for n in range(end) for m in range(model.d_mlp)))
    return stack + Stack((like - values.sum(0)).detach()[None], ("remainder",)) if incl_remainder else stack


def get_full_resid_decomposition(
    model, cache: Cache, layer: int | None = None, mlp_input: bool = False, expand_neurons: bool = True
) -> Stack:
    """The finest decomposition: heads, neurons (or MLP outputs), "embed", "pos_embed", "bias"; adds up exactly.

    bias: all b_O (and, where neurons are apart, b_out) so far.
    """
    end = _layer(model, layer, mlp_input)
    stack = stack_head_results(model, cache, end + mlp_input)
    bias = torch.zeros_like(residual_at(model, cache, layer, mlp_input))
    if model.b_O is not None:
        bias = bias + model.b_O[: end + mlp_input].sum(0)
    if model.d_mlp and expand_neurons:
        stack = stack + stack_neuron_results(model, cache, end)
        bias = bias if model.b_out is None else bias + model.b_out[:end].sum(0)
    elif model.d_mlp and end:
        stack = stack + decompose_resid(model, cache, end, mode="mlp", incl_embeds=False)
    embeds = _embeds(cache)
    rest = torch.stack([*embeds.values(), bias]).detach()
    return stack + Stack(rest, (*embeds, "bias"))


# --- Through the norm, to the logits ---------------------------------------------------------------------------------


def apply_ln_to_stack(
    model, cache: Cache, stack: Stack, layer: int | None = None, mlp_input: bool = False, recompute_ln: bool = False
) -> Stack:
    """Each part as the norm before block `layer` (its MLP; the final norm) passes it on: (x - mean x)/s * w, without b.

    s is the scale of the actual stream, so parts that add up to it still add up, to the normed stream minus b.
    recompute_ln: each row is a stream of its own, normed by its own scale and with b (for `accumulated_resid`).
    """
    end = _layer(model, layer, mlp_input)
    which, number = ("ln_final", None) if end == model.n_layers else ("ln2" if mlp_input else "ln1", end)
    if model.spec.norm == "none":
        return stack
    if recompute_ln:
        flat = model.norm(which, number, stack.values.flatten(0, 1))
        return Stack(flat.unflatten(0, stack.values.shape[:2]).detach(), stack.labels)
    x = stack.values
    if model.spec.norm.startswith("LN"):
        x = x - x.mean(-1, keepdim=True)
    x = x / cache["scale", number, which]
    if not model.spec.norm.endswith("Pre"):
        x = x * getattr(model, f"{which}_w")[slice(None) if number is None else number]
    return Stack(x.detach(), stack.labels)


def unembedding(model) -> Float[Tensor, "d_model d_out"]:
    """W_U, also where it is tied to the embedding."""
    return (model.W_E[: model.d_out].T if model.spec.tied else model.W_U).detach()


def logit_directions(
    model, tokens: Tensor | int, incorrect_tokens: Tensor | int | None = None
) -> Float[Tensor, "... d_model"]:
    """W_U[:, token] (minus W_U[:, incorrect]): [batch, pos, d_model] for tokens [batch, pos]; sizes 1 broadcast."""
    W_U = unembedding(model).T
    directions = W_U[_ids(model, tokens, W_U.device)]
    return directions if incorrect_tokens is None else directions - W_U[_ids(model, incorrect_tokens, W_U.device)]


def _ids(model, tokens: Tensor | int, device: torch.device) -> Tensor:
    ids = torch.as_tensor(tokens, device=device)
    ids = ids.reshape(1, 1) if ids.ndim == 0 else ids
    require(
        ids.ndim == 2,
        f"tokens of shape {tuple(ids.shape)} arrived; expected one number or [batch, pos]. One answer per example is "
        "tokens[:, None], one per position tokens[None]",
    )
    require(
        bool((ids >= 0).all() and (ids < model.d_out).all()),
        f"tokens {int(ids.min())}..{int(ids.max())}: answers of this model are 0..{model.d_out - 1}",
    )
    return ids


def logit_attrs(
    model, stack: Stack, tokens: Tensor | int, incorrect_tokens: Tensor | int | None = None
) -> Float[Tensor, "component batch pos"]:
    """What each row adds to the logit of `tokens` (minus that of `incorrect_tokens`): row . W_U[:, token].

    stack: parts that have been through `apply_ln_to_stack`. The rows miss `logit_constant`, which belongs to no part.
    """
    directions = logit_directions(model, tokens, incorrect_tokens)
    sizes = stack.values.shape[1:3]
    require(
        all(a in (1, b) for a, b in zip(directions.shape[:2], sizes, strict=True)),
        f"tokens for [batch, pos] = {tuple(directions.shape[:2])} arrived for a stack of [batch, pos] = {tuple(sizes)}",
    )
    return torch.einsum("cbpd,bpd->cbp", stack.values, directions.expand(*sizes, -1))


def logit_constant(model, tokens: Tensor | int, incorrect_tokens: Tensor | int | None = None) -> Float[Tensor, "..."]:
    """b W_U + b_U at the tokens (minus at the incorrect ones), b the bias of the final norm: the row of constants."""
    constant = torch.zeros_like(unembedding(model)[0])
    if model.spec.norm == "LN":
        constant = constant + model.ln_final_b @ unembedding(model)
    if model.b_U is not None:
        constant = constant + model.b_U
    constant = constant.detach()
    right = constant[_ids(model, tokens, constant.device)]
    return right if incorrect_tokens is None else right - constant[_ids(model, incorrect_tokens, constant.device)]


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """values [component, batch, pos]: rows add up to the logit (difference). The last row is "bias"."""

    values: Float[Tensor, "component batch pos"]
    labels: tuple[str, ...]

    def __getitem__(self, label: str) -> Float[Tensor, "batch pos"]:
        one_of("label", label, self.labels)
        return self.values[self.labels.index(label)]

    @property
    def total(self) -> Float[Tensor, "batch pos"]:
        return self.values.sum(0)


@torch.no_grad()
def direct_logits(
    model,
    cache: Cache,
    tokens: Tensor | int,
    incorrect_tokens: Tensor | int | None = None,
    by: str = "component",
) -> LogitAttribution:
    """What each component adds directly to the logit of `tokens` (minus that of `incorrect_tokens`).

    by: component (embeddings, attention and MLP outputs), head, or neuron (heads and neurons apart). The row "bias"
    holds everything that does not depend on the input: b_U, the final norm's b and, where heads (neurons) are apart,
    the b_O (b_out) that none of them owns. tokens: one number, or [batch, pos] with sizes of 1 broadcast.
    Exact: the rows add up to the logit. Source: Elhage et al. 2021; with the scale of the actual final stream.
    """
    one_of("by", by, BY)
    if by == "component":
        stack = decompose_resid(model, cache)
    else:
        stack = get_full_resid_decomposition(model, cache, expand_neurons=False)
    rows = logit_attrs(model, apply_ln_to_stack(model, cache, stack), tokens, incorrect_tokens)
    attribution = dict(zip(stack.labels, rows, strict=True))
    constant = logit_constant(model, tokens, incorrect_tokens).expand(rows.shape[1:])
    if by == "neuron" and model.d_mlp:
        for layer in range(model.n_layers):
            values, bias = _neuron_logits(model, cache, layer, tokens, incorrect_tokens)
            del attribution[f"{layer}_mlp_out"]
            attribution |= {f"L{layer}N{m}": values[m] for m in range(model.d_mlp)}
            constant = constant + bias
    constant = constant + attribution.pop("bias", torch.zeros_like(constant))
    return LogitAttribution(torch.stack([*attribution.values(), constant]), (*attribution, "bias"))


def _neuron_logits(model, cache, layer, tokens, incorrect_tokens) -> tuple[Tensor, Tensor]:
    """([neuron, batch, pos], share of b_out [batch, pos]) without a stream per neuron: W_out goes to the logits first.

    The direction that a token reads from the final stream depends on (batch, pos) through the scale alone.
    """
    directions = logit_directions(model, tokens, incorrect_tokens)
    if model.spec.norm in ("LN", "RMS"):
        directions = directions * model.ln_final_w
    if model.spec.norm.startswith("LN"):
        directions = directions - directions.mean(-1, keepdim=True)
    scale = cache["scale"] if model.spec.norm != "none" else torch.ones_like(cache["post", layer][..., :1])
    weights = torch.einsum("md,bpd->mbp", model.W_out[layer], directions)
    values = weights * cache["post", layer].permute(2, 0, 1) / scale.squeeze(-1)
    bias = directions.sum(-1) * 0 if model.b_out is None else directions @ model.b_out[layer]
    return values, bias / scale.squeeze(-1)
