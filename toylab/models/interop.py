"""The same weights under the names of TransformerLens: classic state dicts, read and written strictly.

`blocks.0.attn.W_Q [head, d_model, d_head]`, `unembed.W_U`, ... is what `HookedTransformer.state_dict()` held up to
version 3, and what version 4 reads through `convert_tl_checkpoint`. Nothing is folded or centred on the way.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from toylab.errors import UserError, require
from toylab.models.transformer import Transformer, TransformerSpec

# Buffers beside the weights in the files of TransformerLens 2 and 3; the model recomputes what they hold.
BUFFERS = (".mask", ".IGNORE", ".rotary_sin", ".rotary_cos")
_PARTS = {
    **{f"{kind}_{name}": "attn" for kind in "Wb" for name in "QKVO"},
    **{f"{kind}_{name}": "mlp" for kind in "Wb" for name in ("in", "out")},
}


def _classic_names(name: str, n_layers: int) -> list[str]:
    """The names of one of our tensors: one per layer if it is stacked, else one. "W_Q" -> ["blocks.0.attn.W_Q"]."""
    if name in _PARTS:
        return [f"blocks.{layer}.{_PARTS[name]}.{name}" for layer in range(n_layers)]
    if name.startswith(("ln1_", "ln2_")):
        return [f"blocks.{layer}.{name.replace('_', '.')}" for layer in range(n_layers)]
    part = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "W_U": "unembed.W_U", "b_U": "unembed.b_U"}
    return [part[name] if name in part else name.replace("ln_final_", "ln_final.")]


def _constants(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """What TransformerLens always stores and this model does not: biases it lacks, fixed positions, a tied W_U."""
    shapes = {"Q": model.W_Q[:, :, 0], "K": model.W_K[:, :, 0], "V": model.W_V[:, :, 0], "O": model.W_O[:, 0, 0]}
    if model.d_mlp:
        shapes |= {"in": model.W_in[:, 0], "out": model.W_out[:, 0]}
    for name, like in shapes.items():
        if getattr(model, f"b_{name}") is None:
            yield f"b_{name}", torch.zeros_like(like)
    if model.b_U is None:
        yield "b_U", model.W_E.new_zeros(model.d_out)
    if model.spec.tied:
        yield "W_U", model.W_E[: model.d_out].T
    if model.spec.positions == "sinusoidal":
        yield "W_pos", model.W_pos
    elif model.spec.positions == "none":
        yield "W_pos", model.W_E.new_zeros(model.n_ctx, model.d_model)


def to_transformer_lens(model: Transformer) -> dict[str, Tensor]:
    """The weights as a classic TransformerLens state dict: copies, every bias present (0 where the model has none).

    Sinusoidal positions are written as the table they are, no positions as a table of zeros, a tied unembedding as
    its own matrix. Raises UserError for attention_rate < 1, which that library cannot express.
    """
    require(
        model.spec.attention_rate == 1,
        f"attention_rate={model.spec.attention_rate}: TransformerLens has no such attention; only 1 can be written",
    )
    state: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *_constants(model)]:
        names = _classic_names(name, model.n_layers)
        stacked = names[0].startswith("blocks.")
        for layer, full in enumerate(names):
            state[full] = (tensor[layer] if stacked else tensor).detach().clone().contiguous()
    return state


def from_transformer_lens(
    state_dict: dict[str, Tensor], spec: TransformerSpec, n_ctx: int | None = None
) -> Transformer:
    """A model with the weights of a classic TransformerLens state dict; the sizes d_vocab, d_out come from it.

    n_ctx: needed only for rotary or no positions, where no tensor tells it. Strict: buffers are dropped, every other
    tensor must find its place with its shape, and what the spec says is fixed (an absent bias, a tied W_U, sinusoids)
    must be so in the file. Raises UserError with the names that do not fit.
    """
    found = {name: t for name, t in state_dict.items() if not name.endswith(BUFFERS)}
    for name in ("embed.W_E", "unembed.W_U"):
        require(name in found, f"no {name} among {', '.join(found) or 'no tensors'}: not a TransformerLens state dict")
    if n_ctx is None:
        require("pos_embed.W_pos" in found, "no pos_embed.W_pos, so the context length is unknown: pass n_ctx")
        n_ctx = len(found["pos_embed.W_pos"])
    model = Transformer(spec, d_vocab=len(found["embed.W_E"]), n_ctx=n_ctx, d_out=found["unembed.W_U"].shape[1])

    needed = {n for name, _ in model.named_parameters() for n in _classic_names(name, model.n_layers)}
    written = to_transformer_lens(model)  # still zeros: names and shapes
    missing, foreign = sorted(needed - found.keys()), sorted(found.keys() - written.keys())
    require(not missing, f"the state dict lacks {', '.join(missing)}, which {spec} has")
    require(not foreign, f"the state dict has {', '.join(foreign)}, which {spec} has no place for")
    for name, tensor in found.items():
        require(
            tensor.shape == written[name].shape,
            f"{name} has shape {tuple(tensor.shape)}; {spec} needs {tuple(written[name].shape)}",
        )
    with torch.no_grad():
        for name, p in model.named_parameters():
            names = _classic_names(name, model.n_layers)
            p.copy_(torch.stack([found[n] for n in names]).reshape(p.shape))
    for name, tensor in to_transformer_lens(model).items():
        if name not in needed and name in found and not torch.equal(tensor, found[name].to(tensor)):
            raise UserError(
                f"{name} holds values that {spec} cannot: it is fixed there; change biases, tied or positions"
            )
    return model
