"""What attention heads look at: scores from patterns and tokens, for all layers and heads at once.

1. `stack_patterns(cache)`: the patterns of all layers, [layer, batch, head, query, key].
2. `key_mask(kind, tokens)`: which keys a head of that kind looks at, [batch, query, key].
3. `attention_scores`: the attention that goes there, averaged over the queries that have such a key; `uniform_scores`
   says what a head that looks everywhere alike would get. `head_scores` gives all kinds in one call.
4. `copying_scores`: does the head raise the logit of what it looks at? `attention_entropy`: how spread it is.
5. `detect_head`: TransformerLens's detector, with its names and error measures.

An induction head has prefix-matching >= .5 and copying > 0 on random repeated tokens (Olsson et al. 2022, arXiv
2209.11895). Patterns say where a head looks; `weights.py` what it would write. Knows tensors and caches only.
Read next: weights.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import UserError, one_of, require
from toylab.taps import Cache

KINDS = ("previous", "duplicate", "first", "diagonal", "induction")


def stack_patterns(cache: Cache) -> Float[Tensor, "layer batch head query key"]:
    """The `pattern` of every layer of a cache, as `run_with_cache` gives it."""
    return torch.stack([cache["pattern", layer] for layer in range(cache.n_layers)])


def key_mask(kind: str, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """True at the keys a head of this kind attends to from each query; rows without any are not asked.

    previous   the key one before                duplicate  earlier keys with the query's token
    first      position 0 (from queries after)   diagonal   the query itself
    induction  keys right after an earlier occurrence of the query's token (prefix matching)
    """
    one_of("kind", kind, KINDS)
    require(tokens.ndim == 2, f"tokens of shape {tuple(tokens.shape)} arrived; expected [batch, pos]")
    n = tokens.shape[1]
    query, key = torch.arange(n, device=tokens.device)[:, None], torch.arange(n, device=tokens.device)
    same = (tokens[:, :, None] == tokens[:, None, :]) & (key < query)
    if kind == "duplicate":
        return same
    if kind == "induction":
        # The key after an earlier occurrence, at most the query itself (a token twice in a row).
        return torch.nn.functional.pad(same, (1, 0))[:, :, :-1]
    fixed = {"previous": key == query - 1, "first": (key == 0) & (query > 0), "diagonal": key == query}[kind]
    return fixed.expand(len(tokens), n, n)


def attention_scores(
    pattern: Float[Tensor, "*layer batch head query key"], mask: Bool[Tensor, "sequence query key"]
) -> Float[Tensor, "*layer head"]:
    """Attention on the masked keys (all of them together), averaged over queries that have one, in [0, 1].

    Known exactly: 1 for a head that always looks there, `uniform_scores` for one that looks everywhere alike.
    """
    _check(pattern, mask)
    asked = mask.any(-1).sum()
    require(int(asked) > 0, "no query has a key of this kind: these tokens never repeat, or there is one position")
    return torch.einsum("...bhqk,bqk->...h", pattern, mask.to(pattern)) / asked


def uniform_scores(mask: Bool[Tensor, "batch query key"], causal: bool = True) -> float:
    """attention_scores of a head that spreads its attention evenly over the keys it can see."""
    n = mask.shape[-1]
    visible = torch.arange(1, n + 1).double() if causal else torch.full((n,), float(n), dtype=torch.double)
    pattern = (torch.ones(n, n).tril() if causal else torch.ones(n, n)).double() / visible[:, None]
    return float(attention_scores(pattern.expand(len(mask), 1, n, n), mask))


def head_scores(
    pattern: Float[Tensor, "*layer batch head query key"], tokens: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, "*layer head"]]:
    """previous, duplicate, first, diagonal, induction and entropy of every head; kinds no query allows are left out."""
    masks = {kind: key_mask(kind, tokens) for kind in KINDS}
    scores = {kind: attention_scores(pattern, mask) for kind, mask in masks.items() if bool(mask.any())}
    return scores | {"entropy": attention_entropy(pattern)}


def attention_entropy(pattern: Float[Tensor, "*layer batch head query key"]) -> Float[Tensor, "*layer head"]:
    """-sum a log a over keys in nats, averaged over batch and queries: 0 for one key, log n for n alike."""
    return -torch.special.xlogy(pattern, pattern).sum(-1).mean((-3, -1))


def copying_scores(
    pattern: Float[Tensor, "*layer batch head query key"],
    head_logits: Float[Tensor, "*layer batch query head v"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "*layer head"]:
    """How many standard deviations above its mean logit a head puts the tokens it attends to.

        mean over b, q of  sum_k A[q, k] (L[q, t_k] - mean_v L[q]) / sd_v L[q]

    head_logits: the head's output through the unembedding, cache["result", l] @ W_U, without the bias. Tokens without
    a logit (BOS) are left out of the sum and the attention to the others scaled up to 1; a query that attends to them
    alone does not count. Known exactly: a head that copies one-hot tokens over v classes and looks at one key has
    sqrt(v - 1), one that suppresses them the negative, and a head that writes nothing has 0.
    """
    n_out = head_logits.shape[-1]
    centred = head_logits - head_logits.mean(-1, keepdim=True)
    size = centred.square().mean(-1, keepdim=True).sqrt()
    standard = torch.where(size > 0, centred / torch.where(size > 0, size, 1), 0).transpose(-3, -2)  # [..., b, h, q, v]
    has_logit = tokens < n_out
    index = tokens.clamp_max(n_out - 1)[:, None, None, :].expand(pattern.shape)
    weight = pattern * has_logit[:, None, None, :]
    attended = weight.sum(-1)
    counts = attended > 1e-6
    gain = (weight * standard.gather(-1, index)).sum(-1) / torch.where(counts, attended, 1)
    return (gain * counts).sum((-3, -1)) / counts.sum((-3, -1)).clamp_min(1)


# --- TransformerLens's detector --------------------------------------------------------------------------------------

HEAD_NAMES = {"previous_token_head": "previous", "duplicate_token_head": "duplicate", "induction_head": "induction"}


def detect_head(
    pattern: Float[Tensor, "*layer batch head query key"],
    tokens: Int[Tensor, "batch pos"],
    detection_pattern: str | Float[Tensor, "query key"],
    error_measure: str = "mul",
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
) -> Float[Tensor, "*layer head"]:
    """How well each head matches a named pattern or a matrix [query, key]: TransformerLens's `detect_head`, batched.

    detection_pattern: previous_token_head, duplicate_token_head, induction_head, or a lower triangular matrix.
    error_measure: "mul": sum(A * D) / sum(A), the share of all attention on the pattern. It cannot reach 1 where
    queries have no such key; `attention_scores` asks those that do. "abs": 1 - sum |A - D| / queries, in [-1, 1].
    Each sequence is scored by itself, then averaged. exclude_bos and exclude_current_token leave those keys out.
    """
    one_of("error_measure", error_measure, ("mul", "abs"))
    if isinstance(detection_pattern, str):
        one_of("detection_pattern", detection_pattern, HEAD_NAMES)
        wanted = key_mask(HEAD_NAMES[detection_pattern], tokens).to(pattern)
    else:
        n = pattern.shape[-1]
        if detection_pattern.shape != (n, n) or bool(detection_pattern.triu(1).any()):
            raise UserError(
                f"a detection pattern of shape {tuple(detection_pattern.shape)} arrived; expected [{n}, {n}], lower "
                "triangular (a query cannot see later keys)"
            )
        wanted = detection_pattern.to(pattern).expand(len(tokens), n, n)
    _check(pattern, wanted)
    keep = torch.ones_like(wanted[0], dtype=torch.bool)
    keep[:, 0] &= not exclude_bos
    if exclude_current_token:
        keep.fill_diagonal_(False)
    seen, wanted = pattern * keep, wanted[:, None]
    if error_measure == "mul":
        return ((seen * wanted).sum((-2, -1)) / seen.sum((-2, -1))).mean(-2)
    return (1 - ((pattern - wanted).abs() * keep).sum((-2, -1)) / pattern.shape[-2]).mean(-2)


def _check(pattern: Tensor, mask: Tensor) -> None:
    require(
        pattern.ndim >= 4 and mask.shape == (pattern.shape[-4], *pattern.shape[-2:]),
        f"patterns of shape {tuple(pattern.shape)} arrived with keys for {tuple(mask.shape)}; expected "
        "[..., batch, head, query, key] and tokens [batch, pos] of the same sizes",
    )
