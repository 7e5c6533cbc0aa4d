"""A decoder transformer in one readable forward pass.

Weights are stacked over layers and named as in TransformerLens: W_Q [layer, head, d_model, d_head], row vectors,
x @ W. `Transformer.forward` is the definition. `Transformer.forward_at` is the fast path beside it: the same
outputs at a few positions, by exact rearrangement.

Came from: tasks/modular.py (what the tokens are). Read next: train.py.
Letters: b batch, p q k positions, h head, d d_model, e d_head, m d_mlp, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from toylab.errors import one_of, require
from toylab.taps import Tap, Tapped, no_tap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "solu": lambda x: x * x.softmax(-1),  # Elhage et al. 2022, Softmax Linear Units; without their extra LayerNorm
    "quadratic": lambda x: x * x,
    "identity": lambda x: x,
}
NORMS = ("none", "LN", "LNPre", "RMS", "RMSPre")
POSITIONS = ("learned", "sinusoidal", "rotary", "none")
ATTENTION = ("causal", "bidirectional")
BIASES = ("Q", "K", "V", "O", "in", "out", "U")
INITS = ("fan_in", "nanda", "gpt2")
Past = Sequence[tuple[Tensor, Tensor] | None]  # per layer: keys and values [batch, earlier pos, head, d_head]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class TransformerSpec:
    """Everything about a transformer except the sizes that come from its task (d_vocab, n_ctx, d_out).

    d_mlp:          0 = attention only.
    norm:           none; LN or RMS with learned weights (LN also biases); LNPre, RMSPre without.
    biases:         which of Q, K, V, O, in, out, U exist (zero at the start).
    tied:           unembed with the transpose of W_E (its first d_out rows).
    init:           fan_in: N(0, 1/fan-in), the embeddings N(0, 1/d_model). nanda: N(0, 1/d_model), W_U N(0, 1/d_vocab).
                    gpt2: N(0, 0.64/d_model), TransformerLens's default. All times init_scale.
    attn_scale:     scores are divided by it; None = sqrt(d_head).
    attention_rate: the pattern is rate * softmax + (1 - rate); 0 = constant attention (Zhong et al. 2023, section 4).
                    The constant part is not masked: below 1 a causal model sees later positions too.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    act: str = "relu"
    norm: str = "none"
    positions: str = "learned"
    attention: str = "causal"
    biases: tuple[str, ...] = ("in", "out")
    tied: bool = False
    init: str = "fan_in"
    init_scale: float = 1.0
    attn_scale: float | None = None
    attention_rate: float = 1.0
    rotary_base: float = 10000.0
    eps: float = 1e-5
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self):
        for name in ("n_layers", "n_heads", "d_model", "d_head"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1 is needed")
        require(self.d_mlp >= 0, f"d_mlp={self.d_mlp}: 0 (attention only) or more")
        one_of("act", self.act, ACTIVATIONS)
        one_of("norm", self.norm, NORMS)
        one_of("positions", self.positions, POSITIONS)
        one_of("attention", self.attention, ATTENTION)
        one_of("init", self.init, INITS)
        one_of("dtype", self.dtype, DTYPES)
        for bias in self.biases:
            one_of("biases", bias, BIASES)
        require(self.init_scale >= 0, f"init_scale={self.init_scale}: 0 or more")
        require(0 <= self.attention_rate <= 1, f"attention_rate={self.attention_rate} is outside [0, 1]")
        require(
            self.positions != "rotary" or self.d_head % 2 == 0,
            f"rotary needs an even d_head, not {self.d_head}",
        )

    def build(self, task, generator: torch.Generator) -> Transformer:
        """A freshly initialised model with the sizes of this task. Same generator state, same bits."""
        require(
            hasattr(task, "d_vocab"),
            f"{type(task).__name__} has no tokens (no d_vocab): a transformer needs a token task; "
            "vector tasks go with a model made for them",
        )
        model = Transformer(self, d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_out=task.d_out)
        model.initialise(generator)
        return model


class Transformer(Tapped):
    """The model a TransformerSpec describes; weights are zero until `initialise` or `load_state_dict`."""

    # Present if the spec says so: W_pos, W_in, W_out, W_U. The biases are None where it says no.
    W_E: Tensor
    W_pos: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    W_in: Tensor
    W_out: Tensor
    W_U: Tensor
    b_O: Tensor | None
    b_U: Tensor | None

    def __init__(self, spec: TransformerSpec, d_vocab: int, n_ctx: int, d_out: int):
        super().__init__()
        self.spec, self.d_vocab, self.n_ctx, self.d_out = spec, d_vocab, n_ctx, d_out
        self.n_layers, self.n_heads, self.d_model = spec.n_layers, spec.n_heads, spec.d_model
        self.d_head, self.d_mlp = spec.d_head, spec.d_mlp
        require(not spec.tied or d_out <= d_vocab, f"tied unembedding: d_out={d_out} exceeds d_vocab={d_vocab}")

        L, H, D, E, M = spec.n_layers, spec.n_heads, spec.d_model, spec.d_head, spec.d_mlp
        shapes: dict[str, tuple[int, ...]] = {"W_E": (d_vocab, D)}
        if spec.positions == "learned":
            shapes["W_pos"] = (n_ctx, D)
        shapes |= {"W_Q": (L, H, D, E), "W_K": (L, H, D, E), "W_V": (L, H, D, E), "W_O": (L, H, E, D)}
        bias_shapes = {"Q": (L, H, E), "K": (L, H, E), "V": (L, H, E), "O": (L, D), "U": (d_out,)}
        if M:
            shapes |= {"W_in": (L, D, M), "W_out": (L, M, D)}
            bias_shapes |= {"in": (L, M), "out": (L, D)}
        if not spec.tied:
            shapes["W_U"] = (D, d_out)
        shapes |= {f"b_{name}": bias_shapes[name] for name in BIASES if name in spec.biases and name in bias_shapes}
        if spec.norm in ("LN", "RMS"):
            for norm in ("ln1", "ln2", "ln_final") if M else ("ln1", "ln_final"):
                size = (D,) if norm == "ln_final" else (L, D)
                shapes |= {f"{norm}_w": size} | ({f"{norm}_b": size} if spec.norm == "LN" else {})
        for name, shape in shapes.items():
            fill = torch.ones if name.endswith("_w") else torch.zeros
            setattr(self, name, nn.Parameter(fill(shape, dtype=DTYPES[spec.dtype])))
        for name in BIASES:
            if f"b_{name}" not in shapes:
                setattr(self, f"b_{name}", None)
        if spec.positions == "sinusoidal":
            self.register_buffer("W_pos", sinusoids(n_ctx, D, DTYPES[spec.dtype]), persistent=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every W_ in the order of `parameters()`; biases 0, norm weights 1."""
        spec = self.spec
        D = spec.d_model
        fan_in = {"W_O": spec.n_heads * spec.d_head, "W_out": spec.d_mlp}
        for name, p in self.named_parameters():
            if not name.startswith("W_"):
                continue
            std = {
                "fan_in": fan_in.get(name, D) ** -0.5,
                "nanda": (self.d_vocab if name == "W_U" else D) ** -0.5,
                "gpt2": 0.8 * D**-0.5,
            }[spec.init]
            # Drawn in float32 whatever the dtype, so that a float64 model starts from the same numbers.
            p.copy_(torch.randn(p.shape, generator=generator) * (std * spec.init_scale))

    # --- the definition ---------------------------------------------------------------------------------------------

    def forward(self, tokens: Int[Tensor, "batch pos"], tap: Tap = no_tap) -> Float[Tensor, "batch pos d_out"]:
        """Logits at every position."""
        self._check_tokens(tokens)
        return self.forward_from(0, self.embed(tokens, tap), tap)

    def forward_from(
        self,
        layer: int,
        resid: Float[Tensor, "batch pos d_model"],
        tap: Tap = no_tap,
        read: tuple[int, ...] | None = None,
        past: Past | None = None,
    ) -> Float[Tensor, "batch read d_out"]:
        """Logits from the residual stream before block `layer`; layer = n_layers is before the final norm.

        read: only these positions, for which the last block needs no other queries (as in `forward_at`).
        past: keys (after rotation) and values of every layer at the positions before those of `resid`, which in a
        causal model do not depend on it. `read` then counts from the first position of `resid`. With fewer rows than
        `resid` they serve its rows in turn.
        """
        past = past or [None] * self.n_layers
        if read is None:
            for at in range(layer, self.n_layers):
                resid = self.block(at, resid, tap, past[at])
            return self.unembed(resid, tap)
        at_read = self._read(read, resid.shape[1])
        if layer == self.n_layers:
            return self.unembed(resid[:, at_read], tap)
        for at in range(layer, self.n_layers - 1):
            resid = self.block(at, resid, tap, past[at])
        start = 0 if past[-1] is None else past[-1][0].shape[1]
        return self._last_block(*self._attend(resid, at_read, past[-1]), [start + r for r in at_read], tap)

    def block(self, layer: int, resid: Tensor, tap: Tap = no_tap, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The residual stream after one block, from the one before it: [batch, pos, d_model]."""
        resid = tap("resid_pre", layer, resid)
        resid = resid + tap("attn_out", layer, self.attention(layer, resid, tap, past))
        if self.d_mlp:
            resid = tap("resid_mid", layer, resid)
            resid = resid + tap("mlp_out", layer, self.mlp(layer, resid, tap))
        return tap("resid_post", layer, resid)

    def attention(
        self, layer: int, resid: Tensor, tap: Tap = no_tap, past: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Output of the attention of one layer: [batch, pos, d_model]. past: keys and values of earlier positions."""
        q_input, k_input, v_input = self._attention_inputs(layer, resid, tap)
        q = tap("q", layer, per_head(q_input, self.W_Q[layer], self._bias("Q", layer)))
        k = tap("k", layer, per_head(k_input, self.W_K[layer], self._bias("K", layer)))
        v = tap("v", layer, per_head(v_input, self.W_V[layer], self._bias("V", layer)))
        if self.spec.positions == "rotary":
            start = 0 if past is None else past[0].shape[1]
            q = tap("rot_q", layer, rotate(q, self.spec.rotary_base, start))
            k = tap("rot_k", layer, rotate(k, self.spec.rotary_base, start))
        if past is not None:
            k, v = behind(past[0], k), behind(past[1], v)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / self.attn_scale
        if self.spec.attention == "causal":
            scores = scores.masked_fill(causal_mask(k.shape[1], q.device)[-q.shape[1] :], -torch.inf)
        pattern = self._pattern(layer, scores, tap)
        z = tap("z", layer, torch.einsum("bhqk,bkhe->bqhe", pattern, v))
        if tap.wants("result", layer):
            attn_out = tap("result", layer, torch.einsum("bqhe,hed->bqhd", z, self.W_O[layer])).sum(2)
        else:
            attn_out = affine(z.flatten(2), self.W_O[layer].flatten(0, 1), None)
        return attn_out if self.b_O is None else attn_out + self.b_O[layer]

    def embed(self, tokens: Tensor, tap: Tap = no_tap) -> Tensor:
        """The residual stream before the first block: [batch, pos, d_model]."""
        resid = tap("embed", None, self.W_E[tokens])
        if self.spec.positions in ("learned", "sinusoidal"):
            pos_embed = self.W_pos[: tokens.shape[1]].expand(len(tokens), -1, -1)
            resid = resid + tap("pos_embed", None, pos_embed)
        return resid

    def _pattern(self, layer: int, scores: Tensor, tap: Tap) -> Tensor:
        """Masked scores [batch, head, query, key] -> where each query looks."""
        pattern = softmax(tap("attn_scores", layer, scores))
        if self.spec.attention_rate < 1:
            pattern = self.spec.attention_rate * pattern + (1 - self.spec.attention_rate)
        return tap("pattern", layer, pattern)

    def mlp(self, layer: int, resid: Tensor, tap: Tap = no_tap) -> Tensor:
        """Output of the MLP of one layer: [batch, pos, d_model]."""
        if tap.wants("mlp_in", layer):
            resid = tap("mlp_in", layer, resid)
        x = self.norm("ln2", layer, resid, tap)
        W, b = self.W_in[layer], self._bias("in", layer)
        if tap is no_tap:
            post = affine(x, W, b, self._act)
        else:
            post = tap("post", layer, ACTIVATIONS[self.spec.act](tap("pre", layer, affine(x, W, b))))
        return affine(post, self.W_out[layer], self._bias("out", layer))

    def unembed(self, resid: Tensor, tap: Tap = no_tap) -> Tensor:
        """Logits of a final residual stream [..., d_model]: the final norm, then W_U and b_U."""
        x = self.norm("ln_final", None, resid, tap)
        W_U = self.W_E[: self.d_out].T if self.spec.tied else self.W_U
        return affine(x, W_U, self.b_U)

    def norm(self, which: str, layer: int | None, x: Tensor, tap: Tap = no_tap) -> Tensor:
        """LayerNorm or RMSNorm of x; x itself when the spec says none. `normalized` is tapped before w and b."""
        if self.spec.norm == "none":
            return x
        at = slice(None) if layer is None else layer
        if tap is no_tap and self.spec.norm.startswith("LN"):  # the same in one pass, when nobody looks
            w, b = (None, None) if self.spec.norm == "LNPre" else (getattr(self, f"{which}_{p}")[at] for p in "wb")
            return F.layer_norm(x, x.shape[-1:], w, b, self.spec.eps)
        if self.spec.norm.startswith("LN"):
            x = x - x.mean(-1, keepdim=True)
        scale = tap(f"{which}_scale", layer, (x.pow(2).mean(-1, keepdim=True) + self.spec.eps).sqrt())
        x = tap(f"{which}_normalized", layer, x / scale)
        if self.spec.norm.endswith("Pre"):
            return x
        x = x * getattr(self, f"{which}_w")[at]
        return x + getattr(self, f"{which}_b")[at] if self.spec.norm == "LN" else x

    def _attention_inputs(self, layer: int, resid: Tensor, tap: Tap) -> list[Tensor]:
        """What queries, keys and values read: the normed residual stream, or one copy per head when a tap wants it.

        As in TransformerLens the per-head copies are what the norm reads. Copies that a tap changed are normed afresh,
        each by itself; the others keep the shared norm, so that looking at them undoes no edit of its sites.
        """
        names = ("q_input", "k_input", "v_input")
        normed = self.norm("ln1", layer, resid, tap)
        if not any(tap.wants(name, layer) for name in ("attn_in", *names)):
            return [normed] * 3
        copies = resid.unsqueeze(2).expand(-1, -1, self.n_heads, -1)
        attn_in = tap("attn_in", layer, copies) if tap.wants("attn_in", layer) else copies
        inputs = [tap(name, layer, attn_in) if tap.wants(name, layer) else attn_in for name in names]
        return [normed if x is copies else self.norm("ln1", layer, x) for x in inputs]

    # --- the fast path ----------------------------------------------------------------------------------------------

    def forward_at(
        self, tokens: Int[Tensor, "batch pos"], read: tuple[int, ...], tap: Tap = no_tap
    ) -> Float[Tensor, "batch read d_out"]:
        """forward(tokens)[:, read], faster, by three exact rearrangements.

        1. In the last block only the read positions need queries, an MLP and the unembedding.
        2. In a one-layer model queries, keys and values depend on (token, position) alone. When there are fewer such
           pairs than tokens in the batch, they are computed once per pair and looked up (`_attend_by_lookup`).
        3. When moreover every row asks from the same token ("=") and there are no norms, what that token adds is the
           same in every row, and matrices that follow each other can be multiplied first (`_joined`).

        Taps see the last block's sites from attn_scores on, at the read positions; `forward` offers every site.
        """
        self._check_tokens(tokens)
        at = self._read(read, tokens.shape[1])
        one_layer = self.n_layers == 1 and len(at) == 1 and self.spec.positions != "rotary"
        if one_layer and 2 * self.d_vocab < len(tokens):
            plain = self.spec.norm == "none" and self.spec.attention_rate == 1 and self.d_mlp > 0
            if plain and tap is no_tap and all_equal(tokens[:, at[0]]):
                return self._joined(tokens, at[0])
            return self._last_block(*self._attend_by_lookup(tokens, at[0]), at, tap)
        resid = self.embed(tokens)
        for layer in range(self.n_layers - 1):
            resid = self.block(layer, resid)
        return self._last_block(*self._attend(resid, at), at, tap)

    def _last_block(self, resid: Tensor, scores: Tensor, v: Tensor, at: list[int], tap: Tap) -> Tensor:
        """Logits at the positions `at` from what `_attend` gives: [batch, read, d_out]."""
        last = self.n_layers - 1
        pattern = self.pattern_at(last, scores, at, tap)
        if len(at) == 1:  # multiplying and summing beats a tiny matrix product per example and head
            z = (pattern.squeeze(2).transpose(1, 2).unsqueeze(-1) * v).sum(1, keepdim=True)
        else:
            z = torch.einsum("bhqk,bkhe->bqhe", pattern, v)
        return self.unembed(self.finish_block(last, resid, tap("z", last, z), tap), tap)

    def pattern_at(self, layer: int, scores: Float[Tensor, "*batch q k"], at: list[int], tap: Tap = no_tap) -> Tensor:
        """Where the queries at the positions `at` look, from their scores."""
        if self.spec.attention == "causal" and min(at) < scores.shape[-1] - 1:  # the last position sees every key
            scores = scores.masked_fill(causal_mask(scores.shape[-1], scores.device)[at], -torch.inf)
        return self._pattern(layer, scores, tap)

    def finish_block(
        self, layer: int, resid: Tensor, z: Float[Tensor, "batch q head d_head"], tap: Tap = no_tap
    ) -> Tensor:
        """The residual stream after a block, from z and the residual stream before it, at the same positions."""
        attn_out = affine(z.flatten(2), self.W_O[layer].flatten(0, 1), self._bias("O", layer))
        resid = resid + tap("attn_out", layer, attn_out)
        if self.d_mlp:
            resid = tap("resid_mid", layer, resid)
            resid = resid + tap("mlp_out", layer, self.mlp(layer, resid, tap))
        return tap("resid_post", layer, resid)

    def _attend(
        self, resid: Tensor, at: list[int], past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last attention: residual stream [b, q, d] and scores [b, h, q, k] at the read positions, and values."""
        q, k, v = self.queries_keys_values(self.n_layers - 1, resid, at, past)
        return resid[:, at], torch.einsum("bqhe,bkhe->bhqk", q, k) / self.attn_scale, v

    def queries_keys_values(
        self,
        layer: int,
        resid: Float[Tensor, "batch pos d_model"],
        at: list[int],
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, at, head, d_head] of a block at the positions `at`, and keys and values of all positions."""
        x = self.norm("ln1", layer, resid)
        k = per_head(x, self.W_K[layer], self._bias("K", layer))
        v = per_head(x, self.W_V[layer], self._bias("V", layer))
        if self.spec.positions == "rotary":
            start = 0 if past is None else past[0].shape[1]
            q = rotate(per_head(x, self.W_Q[layer], self._bias("Q", layer)), self.spec.rotary_base, start)[:, at]
            k = rotate(k, self.spec.rotary_base, start)
        else:
            q = per_head(x[:, at], self.W_Q[layer], self._bias("Q", layer))
        return (q, k, v) if past is None else (q, behind(past[0], k), behind(past[1], v))

    def _attend_by_lookup(self, tokens: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same three for a one-layer model and one read position, from tables over (position, token).

        The score of every query token against every (position, token) is one small matrix product; each example
        then looks up its scores and values.
        """
        n_pos = tokens.shape[1]
        every = torch.arange(self.d_vocab, device=tokens.device).expand(n_pos, -1)
        resid = self.embed(every.T).transpose(0, 1)  # [pos, token, d_model]
        x = self.norm("ln1", 0, resid)
        q = per_head(x[at : at + 1], self.W_Q[0], self._bias("Q", 0))[0]  # [token, head, d_head]
        k = per_head(x, self.W_K[0], self._bias("K", 0)).flatten(0, 1)  # [(pos token), head, d_head]
        v = per_head(x, self.W_V[0], self._bias("V", 0)).flatten(0, 1)
        scores = torch.einsum("qhe,khe->qkh", q, k) / self.attn_scale
        # Memory order [key, b, ...]: the softmax and the sum over keys then run along whole rows, at twice the speed.
        keys = tokens.T + self.d_vocab * torch.arange(n_pos, device=tokens.device)[:, None]  # row of (pos, token)
        pairs = tokens[:, at] * len(k) + keys
        return (
            F.embedding(tokens[:, [at]], resid[at]),
            F.embedding(pairs, scores.flatten(0, 1)).permute(1, 2, 0).unsqueeze(2),
            F.embedding(keys, v.flatten(1)).unflatten(-1, (self.n_heads, self.d_head)).transpose(0, 1),
        )

    def _joined(self, tokens: Int[Tensor, "batch pos"], at: int) -> Float[Tensor, "batch 1 d_out"]:
        """Logits of a one-layer model without norms at a position that holds the same token in every row.

        A pattern adds up to 1, so z = v_own + sum over other keys of pattern * (v_key - v_own), where v_own is the
        value of that token itself, which goes with its residual stream into the biases. With z for the rest,
            pre = bias + z (W_O W_in),    logits = bias + z (W_O W_U) + post (W_out W_U):
        three products per row instead of four, and the residual stream between them is never written down.
        """
        n_pos, token = tokens.shape[1], tokens[0, at]
        resid = self.embed(torch.arange(self.d_vocab, device=tokens.device)[:, None].expand(-1, n_pos))
        k = per_head(resid, self.W_K[0], self._bias("K", 0)).transpose(0, 1)  # [pos, token, head, d_head]
        v = per_head(resid, self.W_V[0], self._bias("V", 0)).transpose(0, 1)
        q = per_head(resid[token, at][None, None], self.W_Q[0], self._bias("Q", 0))[0, 0]
        scores = torch.einsum("he,pthe->pth", q, k) / self.attn_scale

        others = [p for p in range(n_pos) if p < at or (p > at and self.spec.attention == "bidirectional")]
        rows = tokens[:, others].T + self.d_vocab * torch.arange(len(others), device=tokens.device)[:, None]
        relative = F.embedding(rows, (scores[others] - scores[at, token]).flatten(0, 1))  # [key, batch, head]
        pattern = torch.cat([relative, torch.zeros_like(relative[:1])]).softmax(0)[:-1]
        values = F.embedding(rows, (v[others] - v[at, token]).flatten(0, 1).flatten(1)).unflatten(-1, q.shape)
        z = (pattern.unsqueeze(-1) * values).sum(0).flatten(1)

        W_O, W_in, W_out = self.W_O[0].flatten(0, 1), self.W_in[0], self.W_out[0]
        W_U = self.W_E[: self.d_out].T if self.spec.tied else self.W_U
        attn_out = affine(v[at, token].flatten()[None], W_O, self._bias("O", 0))
        own = resid[token, at] + attn_out  # [1, d_model]
        b_out = self._bias("out", 0)
        post = self._act(torch.addmm(affine(own, W_in, self._bias("in", 0)), z, W_O @ W_in))
        direct = torch.addmm(affine(own if b_out is None else own + b_out, W_U, self.b_U), z, W_O @ W_U)
        return torch.addmm(direct, post, W_out @ W_U).unsqueeze(1)

    # --- small things -----------------------------------------------------------------------------------------------

    @property
    def attn_scale(self) -> float:
        """What scores are divided by."""
        return math.sqrt(self.d_head) if self.spec.attn_scale is None else self.spec.attn_scale

    def _act(self, pre: Tensor) -> Tensor:
        """The activation of a tensor that nobody else holds: ReLU in place saves a pass over the widest one."""
        return pre.relu_() if self.spec.act == "relu" else ACTIVATIONS[self.spec.act](pre)

    def _bias(self, name: str, layer: int) -> Tensor | None:
        b = getattr(self, f"b_{name}")
        return None if b is None else b[layer]

    def _read(self, read: tuple[int, ...], n_pos: int) -> list[int]:
        """The read positions counted from the start; raises UserError for one that is not there."""
        for r in read:
            require(-n_pos <= r < n_pos, f"read={read}: there is no position {r} among {n_pos}")
        return [r % n_pos for r in read]

    def _check_tokens(self, tokens: Tensor) -> None:
        require(
            tokens.ndim == 2 and not tokens.is_floating_point(),
            f"tokens of shape {tuple(tokens.shape)} and {tokens.dtype} arrived; expected integers [batch, pos]",
        )
        require(
            tokens.shape[1] <= self.n_ctx,
            f"{tokens.shape[1]} positions arrived; this model was made for n_ctx={self.n_ctx}",
        )

    def example_input(self) -> Tensor:
        return torch.zeros(1, self.n_ctx, dtype=torch.long, device=self.W_E.device)

    def __repr__(self) -> str:
        s = self.spec
        mlp = f"d_mlp {s.d_mlp} {s.act}" if s.d_mlp else "attention only"
        return (
            f"Transformer({s.n_layers} layer{'s' * (s.n_layers > 1)}, {s.n_heads} heads x {s.d_head}, "
            f"d_model {s.d_model}, {mlp}, norm {s.norm}, {s.positions} positions, {s.attention}; "
            f"d_vocab {self.d_vocab}, n_ctx {self.n_ctx}, d_out {self.d_out}; {self.n_params():,} parameters)"
        )


def affine(x: Tensor, W: Tensor, b: Tensor | None, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """then(x @ W + b) for x [..., in]. Flattened to one matrix product: torch batches it over leading axes otherwise.

    `then` may work in place: it gets the product itself. In place on a view, autograd would copy the base twice.
    """
    flat = x.flatten(0, -2)
    out = flat @ W if b is None else torch.addmm(b, flat, W)
    return (out if then is None else then(out)).unflatten(0, x.shape[:-1])


def per_head(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """x [batch, pos, d_model], or one copy per head, times W [head, d_model, d_head] -> [batch, pos, head, d_head]."""
    if x.ndim == 4:
        out = torch.einsum("bphd,hde->bphe", x, W)
        return out if b is None else out + b
    joined = affine(x, W.transpose(0, 1).flatten(1), None if b is None else b.flatten())
    return joined.unflatten(-1, (W.shape[0], W.shape[2]))


def behind(past: Float[Tensor, "some pos head d_head"], new: Float[Tensor, "batch q head d_head"]) -> Tensor:
    """Keys or values of all positions [batch, pos + q, head, d_head]; row i of the past serves rows i, i + some, ..."""
    each = new.unflatten(0, (-1, len(past)))
    return torch.cat([past.expand(len(each), -1, -1, -1, -1), each], 2).flatten(0, 1)


def softmax(scores: Tensor) -> Tensor:
    """scores.softmax(-1) in the memory order they come in; torch would copy them to make the last axis adjacent."""
    return scores.softmax(-1) if scores.stride(-1) == 1 else scores.movedim(-1, 0).softmax(0).movedim(0, -1)


def all_equal(x: Tensor) -> bool:
    """Whether all elements are the same. False under vmap, where no value can be asked for."""
    try:
        return bool((x == x[0]).all())
    except RuntimeError:
        return False


def causal_mask(n: int, device=None) -> Tensor:
    """[query, key], True where the key is later than the query."""
    return torch.ones(n, n, dtype=torch.bool, device=device).triu(1)


def sinusoids(n_ctx: int, d_model: int, dtype: torch.dtype) -> Tensor:
    """Vaswani et al. 2017, section 3.5: even columns sin(pos / 10000^(i/d)), odd columns cos. [n_ctx, d_model]."""
    angle = torch.arange(n_ctx).double()[:, None] / 10000 ** (torch.arange(0, d_model, 2).double() / d_model)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :d_model].to(dtype)


def rotate(x: Tensor, base: float, start: int = 0) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 34), halves paired: (x_i, x_{i+e/2}) turns by pos / base^(2i/e).

    x [batch, pos, head, d_head] from position `start` on. Scores then depend on the difference of positions alone.
    """
    pos, half = x.shape[1], x.shape[-1] // 2
    theta = torch.arange(start, start + pos, device=x.device).double()[:, None] / base ** (
        torch.arange(half, device=x.device).double() / half
    )
    cos, sin = theta.cos().to(x.dtype)[:, None], theta.sin().to(x.dtype)[:, None]  # [pos, 1, half]
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
