"""The edge graph of a transformer: run any subgraph of it, and know the exact effect of every single edge.

1. Senders write to the residual stream: the embedding ("embed", or "tok" and "pos" apart), every head ("a0.1" is
   head 1 of layer 0), every MLP ("m0"). Receivers read it: each head three times ("a1.0.q", "a1.0.k", "a1.0.v"), each
   MLP once ("m1"), and the unembedding ("out").
2. An edge goes from each sender to each receiver that comes later. What a receiver reads is the sum of its senders
   (norms come after the sum, for each receiver apart).
3. `masked_outputs` runs a subgraph: receiver v reads  sum_u [ m_vu y_u + (1 - m_vu) r_u ],  y_u what the sender gives
   in this very run, r_u its cached replacement (another input, a mean, 0). Fractional m have gradients.
4. `edge_effects`: the metric after replacing one edge, for every edge, or at every position of it apart. `eap`: the
   same to first order, from one backward pass, or with gradients along a line; `mask_gradient`: the same through m.
5. `path_patch`: the direct path from one sender to chosen receivers, with everything between them frozen.

Biases: an MLP's b_out belongs to the MLP. b_O belongs to no head; it is a constant of the stream and never replaced.
Sources: Wang et al. 2022 (arXiv 2211.00593), Syed et al. 2023 (arXiv 2310.10348, EAP), Hanna et al. 2024 (arXiv
2403.17806, EAP-IG). Knows tensors, models and taps only. Came from: patching.py (pairs and metrics).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toylab.errors import one_of, require
from toylab.interp.attribution import gradients, midpoints
from toylab.interp.patching import CHUNK, Metric, Pairs, ablated, at_read, logit_diff, scored
from toylab.taps import Chain, Record, Replace, Tap, Tapped, site_name

QKV = ("q", "k", "v")


def n_edges(n_layers: int, n_heads: int, mlp: bool = True, n_embed: int = 1, direct: bool = False) -> int:
    """How many edges the graph has: sum_l [3 H S_l + mlp (S_l + H)] + S_L with S_l = n_embed + l (H + mlp).

    direct: also count the 3 L H edges from a head's q, k, v input to its q, k, v, as ACDC does. GPT-2 small (12, 12):
    32,491, or 32,923 with them.
    """
    earlier = [n_embed + layer * (n_heads + mlp) for layer in range(n_layers + 1)]
    inside = sum(3 * n_heads * s + mlp * (s + n_heads) for s in earlier[:-1])
    return inside + earlier[-1] + direct * 3 * n_layers * n_heads


@dataclass(frozen=True)
class EdgeGraph:
    """Senders, receivers, and which of their pairs are edges. split_embed: token and position embedding apart."""

    n_layers: int
    n_heads: int
    mlp: bool
    split_embed: bool = False

    @classmethod
    def of(cls, model, split_embed: bool = False) -> EdgeGraph:
        """The graph of a transformer."""
        require(hasattr(model, "block"), f"{type(model).__name__} has no residual stream, so it has no edge graph")
        require(
            not split_embed or "hook_pos_embed" in model.site_names,
            "split_embed: this model adds no position embedding",
        )
        return cls(model.n_layers, model.n_heads, bool(model.d_mlp), split_embed)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """In forward order."""
        nodes = ["tok", "pos"] if self.split_embed else ["embed"]
        for layer in range(self.n_layers):
            nodes += [f"a{layer}.{head}" for head in range(self.n_heads)] + [f"m{layer}"] * self.mlp
        return tuple(nodes)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """In forward order; within a layer all q, then all k, then all v, then the MLP. The last is "out"."""
        nodes = []
        for layer in range(self.n_layers):
            nodes += [f"a{layer}.{head}.{which}" for which in QKV for head in range(self.n_heads)]
            nodes += [f"m{layer}"] * self.mlp
        return (*nodes, "out")

    @cached_property
    def exists(self) -> Bool[Tensor, "receiver sender"]:
        """True where there is an edge: the sender comes strictly earlier."""
        rows = []
        for node in self.receivers:
            layer = self.n_layers if node == "out" else layer_of(node)
            n = self.n_before(layer) + (self.n_heads if node.startswith("m") else 0)
            rows.append(torch.arange(len(self.senders)) < n)
        return torch.stack(rows)

    def n_before(self, layer: int) -> int:
        """How many senders come before the attention of a layer."""
        return 1 + self.split_embed + layer * (self.n_heads + self.mlp)

    def n_edges(self, direct: bool = False) -> int:
        return n_edges(self.n_layers, self.n_heads, self.mlp, 1 + self.split_embed, direct)

    def edges(self) -> list[tuple[str, str]]:
        """(sender, receiver) of every edge, receivers in forward order."""
        return [(self.senders[u], self.receivers[v]) for v, u in self.exists.nonzero().tolist()]

    def sender(self, node: str) -> int:
        one_of("sender", node, self.senders)
        return self.senders.index(node)

    def receiver(self, node: str) -> int:
        one_of("receiver", node, self.receivers)
        return self.receivers.index(node)

    def keep(
        self, edges: Sequence[tuple[str, str]] | None = None, drop: Sequence[tuple[str, str]] = ()
    ) -> Float[Tensor, "receiver sender"]:
        """A mask of 1 on these edges and 0 elsewhere (None: 1 on every edge), then 0 on those of `drop`.

        Raises UserError for a pair that is no edge.
        """
        mask = torch.zeros(self.exists.shape, dtype=torch.float64)
        if edges is None:
            mask[self.exists] = 1
        for value, pairs in ((1, edges or ()), (0, drop)):
            for u, v in pairs:
                at = self.receiver(v), self.sender(u)
                require(bool(self.exists[at]), f"{u} -> {v} is no edge: {u} does not come before {v}")
                mask[at] = value
        return mask

    def rows(self, which: str, layer: int) -> slice:
        """The receivers of one layer: "q", "k", "v" (one row per head) or "m"."""
        start = layer * (3 * self.n_heads + self.mlp) + ("q", "k", "v", "m").index(which) * self.n_heads
        return slice(start, start + (1 if which == "m" else self.n_heads))


def layer_of(node: str) -> int:
    """ "a1.0.q" -> 1, "m0" -> 0"""
    return int(node[1:].split(".")[0])


# --- Running a subgraph ----------------------------------------------------------------------------------------------


def sender_outputs(model: Tapped, tokens: Tensor, graph: EdgeGraph) -> Float[Tensor, "sender batch pos d_model"]:
    """What every sender writes on these inputs."""
    return run_senders(model, tokens, graph)[1]


def run_senders(model: Tapped, tokens: Tensor, graph: EdgeGraph) -> tuple[Tensor, Tensor]:
    """(outputs [batch, pos, d_out], what every sender writes) from one forward."""
    sites = ["hook_embed"] + ["hook_pos_embed"] * ("hook_pos_embed" in model.site_names)
    for layer in range(graph.n_layers):
        sites += [site_name("result", layer)] + [site_name("mlp_out", layer)] * graph.mlp
    with torch.no_grad():
        result, cache = model.run_with_cache(tokens, sites)
    embed = [cache[name] for name in sites if name.startswith("hook_")]
    outputs = embed if graph.split_embed else [torch.stack(embed).sum(0)]
    for layer in range(graph.n_layers):
        outputs += [*cache["result", layer].unbind(2)] + ([cache["mlp_out", layer]] if graph.mlp else [])
    return result, torch.stack(outputs)


def replacement(
    model: Tapped,
    graph: EdgeGraph,
    inputs: Tensor,
    kind: str = "zero",
    generator: torch.Generator | None = None,
    noise: float = 3.0,
) -> Float[Tensor, "sender batch pos d_model"]:
    """Replacement values of every sender: zero, mean, resample or noise (see `patching.ablated`).

    To exchange inputs instead, take `sender_outputs` of the other inputs.
    """
    values = sender_outputs(model, inputs, graph)
    # One permutation for all senders: a resampled row is another example, not a mixture of several.
    return ablated(values.transpose(0, 1), kind, generator, noise).transpose(0, 1)


@dataclass
class Subgraph(Tap):
    """Adds sum_u (1 - keep_vu) (r_u - y_u) to what every receiver v reads; y_u are the senders of this very run."""

    graph: EdgeGraph
    keep: Tensor  # [receiver, sender]
    replacement: Tensor  # [sender, batch, pos, d_model]
    differences: list[Tensor] = field(default_factory=list)

    def __call__(self, name, layer, value):
        n = len(self.differences)
        if name == "embed":
            self.differences = [self.replacement[0] - value]
        elif name == "pos_embed" and self.graph.split_embed:
            self.differences.append(self.replacement[1] - value)
        elif name == "pos_embed":
            self.differences[0] = self.differences[0] - value
        elif name == "result":
            self.differences += [self.replacement[n + head] - value[:, :, head] for head in range(value.shape[2])]
        elif name == "mlp_out":
            self.differences.append(self.replacement[n] - value)
        elif name in ("q_input", "k_input", "v_input"):
            cut = 1 - self.keep[self.graph.rows(name[0], layer), :n]
            return value + torch.einsum("hs,sbpd->bphd", cut, torch.stack(self.differences))
        elif name == "mlp_in":
            return value + self._removed(self.graph.rows("m", layer).start)
        elif name == "resid_post" and layer == self.graph.n_layers - 1:
            return value + self._removed(-1)
        return value

    def _removed(self, row: int) -> Tensor:
        cut = 1 - self.keep[row, : len(self.differences)]
        return torch.einsum("s,sbpd->bpd", cut, torch.stack(self.differences))

    def wants(self, name, layer):
        return name in ("q_input", "k_input", "v_input", "mlp_in", "result")


def masked_outputs(
    model: Tapped,
    tokens: Tensor,
    graph: EdgeGraph,
    keep: Float[Tensor, "*masks _ _"],
    replacement: Float[Tensor, "sender batch pos d_model"],
    read: tuple[int, ...] | None = None,
) -> Float[Tensor, "*masks batch read d_out"]:
    """Outputs of the subgraph `keep` (1 = the edge carries this run, 0 = its replacement, between = a mixture).

    keep: [*masks, receiver, sender]; only entries where the graph has an edge matter. Leading axes are many subgraphs
    in one batched forward (all at once: cut them if memory is short). Differentiable in `keep`.
    """
    require(
        tuple(keep.shape[-2:]) == tuple(graph.exists.shape),
        f"keep of shape {tuple(keep.shape)}; this graph has {len(graph.receivers)} receivers x {len(graph.senders)} "
        "senders",
    )
    require(
        tuple(replacement.shape[:3]) == (len(graph.senders), *tokens.shape),
        f"replacement of shape {tuple(replacement.shape)}; needed is [sender={len(graph.senders)}, "
        f"batch={tokens.shape[0]}, pos={tokens.shape[1]}, d_model]",
    )
    keep = keep.to(replacement)

    def one(mask: Tensor) -> Tensor:
        return at_read(model.forward(tokens, Subgraph(graph, mask, replacement)), read)

    if keep.ndim == 2:
        return one(keep)
    return torch.vmap(one)(keep.flatten(0, -3)).unflatten(0, keep.shape[:-2])


# --- Every single edge -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """One number per edge and example: values [receiver, sender, batch], NaN where there is no edge.

    Resolved by position they are [receiver, sender, pos, batch], pos where the receiver reads.
    base, target: [batch], the metric of the untouched run and of the run the replacements come from (NaN if none).
    """

    graph: EdgeGraph
    values: Float[Tensor, "receiver sender *pos batch"]
    base: Float[Tensor, " batch"]
    target: Float[Tensor, " batch"]

    @property
    def axes(self) -> tuple[str, ...]:
        return ("receiver", "sender", "pos")[: self.values.ndim - 1]

    @property
    def mean(self) -> Float[Tensor, "receiver sender *pos"]:
        return self.values.mean(-1)

    @property
    def flat(self) -> Float[Tensor, " edge *pos"]:
        """Means in the order of `graph.edges()`."""
        return self.mean[self.graph.exists.to(self.values.device)]

    def __getitem__(self, edge: tuple[str, str] | tuple[str, str, int]) -> float:
        """scores["embed", "a0.0.q"]: the mean of one edge; with positions scores["embed", "a0.0.q", 3]."""
        wanted = ("sender", "receiver", "position")[: len(self.axes)]
        require(len(edge) == len(wanted), f"{edge} arrived; these scores are asked for by ({', '.join(wanted)})")
        u, v, *pos = edge
        return float(self.mean[(self.graph.receiver(v), self.graph.sender(u), *pos)])  # type: ignore[arg-type]

    def top(self, n: int) -> list[tuple]:
        """The n edges of largest magnitude, largest first; with positions (sender, receiver, position)."""
        order = self.flat.abs().flatten().argsort(descending=True)[:n]
        edges, (number, *pos) = self.graph.edges(), torch.unravel_index(order, self.flat.shape)
        return [(*edges[i], *p) for i, *p in zip(number.tolist(), *(at.tolist() for at in pos), strict=True)]

    def __repr__(self) -> str:
        shown = ", ".join(f"{' -> '.join(map(str, edge))} {self[edge]:.3g}" for edge in self.top(3))
        positions = f" x {self.values.shape[2]} positions" if "pos" in self.axes else ""
        return f"EdgeScores({len(self.flat)} edges{positions}, {len(self.base):,} examples; largest: {shown}, ...)"


@dataclass(frozen=True, eq=False)
class Exchange:
    """What every question about single edges starts from: this run, and what may stand in for its senders.

    own, other: [sender, batch, pos, d_model], what every sender writes in this run and what replaces it.
    base, target: [batch], the metric of this run and of the run that `other` comes from (NaN if it is given).
    """

    graph: EdgeGraph
    tokens: Tensor
    own: Tensor
    other: Tensor
    score: Callable[[Tensor], Tensor]  # outputs at the read positions -> [*cells, batch]
    base: Tensor
    target: Tensor

    @classmethod
    def of(
        cls,
        model,
        pairs: Pairs,
        metric: Metric,
        direction: str,
        replacement: Tensor | None = None,
        graph: EdgeGraph | None = None,
    ) -> Exchange:
        graph = EdgeGraph.of(model) if graph is None else graph
        (tokens, others), score = pairs.runs(direction), scored(metric, pairs.answers)
        outputs, own = run_senders(model, tokens, graph)
        base = score(at_read(outputs, pairs.read)).detach()
        target = torch.full_like(base, torch.nan)
        if replacement is None:
            outputs, replacement = run_senders(model, others, graph)
            target = score(at_read(outputs, pairs.read)).detach()
        return cls(graph, tokens, own, replacement, score, base, target)

    def scores(self, values: Tensor) -> EdgeScores:
        """The result: values [receiver, sender, ...], which count where there is an edge."""
        exists = self.graph.exists.to(values.device)[(..., *[None] * (values.ndim - 2))]
        return EdgeScores(self.graph, torch.where(exists, values, torch.nan), self.base, self.target)


@torch.no_grad()
def edge_effects(
    model,
    pairs: Pairs,
    metric: Metric = logit_diff,
    direction: str = "noise",
    replacement: Tensor | None = None,
    graph: EdgeGraph | None = None,
    by_position: bool = False,
) -> EdgeScores:
    """Exact effect of every single edge: metric with that edge replaced minus metric of the untouched run.

    replacement: [sender, batch, pos, d_model]; None = the other run of each pair (noise: the clean run gets corrupted
    edges; denoise: the reverse). Equals one masked run per edge (`edge_effects_serial`), from a few batched forwards:
    - what precedes the receiver is the untouched run, so every stream it reads is that run's plus r_u - y_u;
    - heads do not see each other within a layer: one attention with all its queries (or keys, or values) reading the
      changed stream gives the changed result of every head, and each edge takes one of them.
    by_position: replace the edge at one position at a time, where the receiver reads; pos times the cells.
    """
    exchange = Exchange.of(model, pairs, metric, direction, replacement, graph)
    graph, own, score = exchange.graph, exchange.own, exchange.score
    resid, changes = _streams(model, exchange.tokens), exchange.other - own
    places = own.shape[2:3] if by_position else ()
    if by_position:  # a cell is a sender at one position: its change there, and 0 elsewhere
        only = torch.eye(*places, dtype=torch.bool, device=own.device)[:, None, :, None]
        changes = torch.where(only, changes[:, None], 0).flatten(0, 1)
    each = len(changes) // len(own)
    values = exchange.base.new_full((*graph.exists.shape, *places, len(exchange.base)), torch.nan)
    for layer in range(graph.n_layers):
        n = graph.n_before(layer)
        middle = resid[layer] + own[n : n + graph.n_heads].sum(0)
        middle = middle if model.b_O is None else middle + model.b_O[layer]
        after = partial(_after_attention, model, layer, middle, pairs.read)
        for which in QKV:
            cells = changes[: n * each].split(max(1, 16 * CHUNK // (graph.n_heads * own[0].numel())))
            deltas = (_head_changes(model, resid[layer], layer, which, some).flatten(0, 1) for some in cells)
            scores = torch.cat([_scores(after, some, score) for some in deltas])  # [(sender pos head), batch]
            values[graph.rows(which, layer), :n] = scores.unflatten(0, (n, *places, graph.n_heads)).movedim(-2, 0)
        if graph.mlp:
            n += graph.n_heads
            other_input = partial(_with_other_mlp_input, model, layer, middle, pairs.read)
            scores = _scores(other_input, changes[: n * each], score)
            values[graph.rows("m", layer).start, :n] = scores.unflatten(0, (n, *places))
    final = partial(_at_the_end, model, resid[-1], pairs.read)
    values[-1] = _scores(final, changes, score).unflatten(0, (len(own), *places))
    return exchange.scores(values - exchange.base)


def _streams(model, tokens: Tensor) -> list[Float[Tensor, "batch pos d_model"]]:
    """The residual stream before every block and after the last."""
    names = [("resid_pre", layer) for layer in range(model.n_layers)] + [("resid_post", model.n_layers - 1)]
    cache = model.run_with_cache(tokens, names)[1]
    return [cache[name] for name in names]


def _scores(run: Callable[[Tensor], Tensor], cells: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """score(run(chunk)) over chunks of cells [cell, batch, pos, d_model]: [cell, batch]."""
    at_once = max(1, CHUNK // (4 * cells[0].numel()))
    return torch.cat([score(run(chunk)) for chunk in cells.split(at_once)])


def _head_changes(model, resid: Tensor, layer: int, which: str, changes: Tensor) -> Tensor:
    """[sender, head, batch, pos, d_model]: the change of each head's result when its q (k, v) input changes.

    It changes by each of `changes` [sender, batch, pos, d_model] in turn.
    """
    copies = resid.unsqueeze(2).expand(-1, -1, model.n_heads, -1)

    def result(change: Tensor) -> Tensor:
        put = Replace({site_name(f"{which}_input", layer): copies + change.unsqueeze(2)})
        record = Record({site_name("result", layer)}.__contains__)
        model.attention(layer, resid, Chain([put, record]))
        return record.tensors[site_name("result", layer)]

    untouched = result(torch.zeros_like(resid))
    return (torch.vmap(result)(changes) - untouched).permute(0, 3, 1, 2, 4)


def _after_attention(model, layer: int, middle: Tensor, read: tuple[int, ...] | None, changes: Tensor) -> Tensor:
    """Outputs [cell, batch, read, d_out] when the stream after a layer's attention is middle + change."""
    last, middle = layer == model.n_layers - 1, middle + changes
    if last and read is not None:  # after the last attention no position sees another
        middle = middle[:, :, list(read)]
    flat = middle.flatten(0, 1)
    resid = flat + model.mlp(layer, flat) if model.d_mlp else flat
    return _resume(model, layer + 1, resid.unflatten(0, middle.shape[:2]), None if last else read)


def _with_other_mlp_input(model, layer: int, middle: Tensor, read: tuple[int, ...] | None, changes: Tensor) -> Tensor:
    """Outputs when the MLP of a layer, and nothing else, reads middle + change: [cell, batch, read, d_out]."""
    last = layer == model.n_layers - 1
    if last and read is not None:
        middle, changes = middle[:, list(read)], changes[:, :, list(read)]
    changed = (middle + changes).flatten(0, 1)
    resid = middle + model.mlp(layer, changed).unflatten(0, changes.shape[:2])
    return _resume(model, layer + 1, resid, None if last else read)


def _at_the_end(model, last: Tensor, read: tuple[int, ...] | None, changes: Tensor) -> Tensor:
    """Outputs [cell, batch, read, d_out] when the unembedding reads last + change."""
    return _resume(model, model.n_layers, last + changes, read)


def _resume(model, layer: int, streams: Tensor, read: tuple[int, ...] | None) -> Tensor:
    return model.forward_from(layer, streams.flatten(0, 1), read=read).unflatten(0, streams.shape[:2])


@torch.no_grad()
def edge_effects_serial(
    model,
    pairs: Pairs,
    metric: Metric = logit_diff,
    direction: str = "noise",
    replacement: Tensor | None = None,
    graph: EdgeGraph | None = None,
) -> EdgeScores:
    """`edge_effects` with one masked run per edge: the definition, and what the fast one is tested against."""
    exchange = Exchange.of(model, pairs, metric, direction, replacement, graph)
    graph = exchange.graph
    effects = torch.full((*graph.exists.shape, len(exchange.base)), torch.nan, dtype=exchange.base.dtype)
    for u, v in graph.edges():
        keep = graph.keep(drop=[(u, v)])
        outputs = masked_outputs(model, exchange.tokens, graph, keep, exchange.other, pairs.read)
        effects[graph.receiver(v), graph.sender(u)] = exchange.score(outputs) - exchange.base
    return exchange.scores(effects)


# --- To first order --------------------------------------------------------------------------------------------------


def eap(
    model,
    pairs: Pairs,
    metric: Metric = logit_diff,
    direction: str = "noise",
    replacement: Tensor | None = None,
    graph: EdgeGraph | None = None,
    steps: int = 0,
    along: str = "inputs",
    by_position: bool = False,
) -> EdgeScores:
    """Edge attribution patching: EAP(u -> v) = <r_u - y_u, d metric / d input_v>, summed over positions and d_model.

    One backward pass for all edges; it estimates `edge_effects` and equals it where the model is affine after the edge.
    steps > 0 (EAP-IG): the mean gradient at `steps` midpoints of a line.
    along = "inputs": from this run's token embeddings to the other run's, one line for all edges.
    along = "activations": for the edges of the embedding, of each attention layer and of each MLP, the line from what
    these senders write to what replaces it, all else computed: 2 layers + 1 times the cost. Their scores then add up to
    the effect of patching that embedding, attn_out or mlp_out, in the limit of many steps (exactly by one step where
    the metric is quadratic along the line); with "inputs" that holds of the embedding's edges alone.
    by_position: the terms of the sum over positions, which estimate `edge_effects(by_position=True)`.
    Exact check: EAP = -d metric / d m at m = 1 (`mask_gradient`). With a KL from the run itself it is 0.
    """
    require(steps >= 0, f"steps={steps}: 0 (gradient of the run itself) or more")
    one_of("along", along, tuple(LINES))
    exchange = Exchange.of(model, pairs, metric, direction, replacement, graph)
    with torch.no_grad():
        lines = LINES[along](model, exchange, pairs.runs(direction)[1]) if steps else [(slice(None), {})]
    parts = []
    for senders, shift in lines:
        taps: Sequence[Tap | None] = [Shift(shift, t) for t in midpoints(steps)] or [None]
        grad = sum(_receiver_gradients(model, exchange, pairs.read, tap) for tap in taps) / len(taps)
        changes = exchange.other[senders] - exchange.own[senders]
        parts.append(torch.einsum(f"rbpd,sbpd->rs{'p' * by_position}b", grad, changes))
    return exchange.scores(torch.cat(parts, 1))


@dataclass
class Shift(Tap):
    """Adds t times by[full name] to the named sites."""

    by: Mapping[str, Tensor]
    t: float

    def __call__(self, name, layer, value):
        full = site_name(name, layer)
        return value + self.t * self.by[full] if full in self.by else value


Lines = list[tuple[slice, dict[str, Tensor]]]  # senders, and what is added to which sites at the end of their line


def _line_of_inputs(model, exchange: Exchange, others: Tensor) -> Lines:
    return [(slice(None), {"hook_embed": model.W_E[others] - model.W_E[exchange.tokens]})]


def _lines_of_activations(model, exchange: Exchange, others: Tensor) -> Lines:
    graph, changes = exchange.graph, exchange.other - exchange.own
    sites = ["hook_embed", "hook_pos_embed"][: graph.n_before(0)]
    lines: Lines = [(slice(len(sites)), dict(zip(sites, changes, strict=False)))]
    for layer in range(graph.n_layers):
        start, end = graph.n_before(layer), graph.n_before(layer) + graph.n_heads
        lines.append((slice(start, end), {site_name("attn_out", layer): changes[start:end].sum(0)}))
        if graph.mlp:
            lines.append((slice(end, end + 1), {site_name("mlp_out", layer): changes[end]}))
    return lines


LINES = {"inputs": _line_of_inputs, "activations": _lines_of_activations}


def _receiver_gradients(
    model, exchange: Exchange, read, tap: Tap | None
) -> Float[Tensor, "receiver batch pos d_model"]:
    """d metric / d what each receiver reads, in the order of `graph.receivers`."""
    graph = exchange.graph
    names = [site_name("resid_post", graph.n_layers - 1)]
    for layer in range(graph.n_layers):
        names += [site_name(f"{which}_input", layer) for which in QKV] + [site_name("mlp_in", layer)] * graph.mlp
    grads = gradients(model, exchange.tokens, names, exchange.score, read, tap)
    rows: list[Tensor] = []
    for layer in range(graph.n_layers):
        for which in QKV:
            rows += grads[site_name(f"{which}_input", layer)].unbind(2)
        rows += [grads[site_name("mlp_in", layer)]] if graph.mlp else []
    return torch.stack([*rows, grads[names[0]]])


def mask_gradient(
    model,
    pairs: Pairs,
    metric: Metric = logit_diff,
    direction: str = "noise",
    replacement: Tensor | None = None,
    graph: EdgeGraph | None = None,
    steps: int = 0,
) -> EdgeScores:
    """-d metric / d m of the masked run, averaged over the examples: values [receiver, sender, 1].

    steps = 0: at m = 1, where it equals EAP. steps > 0: the mean at `steps` midpoints of the straight path m = 1 -> 0
    of all edges together, whose sum over edges is metric(all replaced) - metric(untouched) in the limit of many steps.
    """
    require(steps >= 0, f"steps={steps}: 0 (at m = 1) or more")
    exchange = Exchange.of(model, pairs, metric, direction, replacement, graph)
    every = exchange.graph.exists.to(exchange.own)
    total = torch.zeros_like(every)
    for t in midpoints(steps) or [0.0]:
        with torch.enable_grad():
            keep = ((1 - t) * every).requires_grad_()
            outputs = masked_outputs(model, exchange.tokens, exchange.graph, keep, exchange.other, pairs.read)
            (grad,) = torch.autograd.grad(exchange.score(outputs).mean(), keep)
        total = total - grad / max(1, steps)
    base, target = exchange.base.mean()[None], exchange.target.mean()[None]
    return replace(exchange, base=base, target=target).scores(total.unsqueeze(-1))


# --- Paths -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def path_patch(
    model,
    pairs: Pairs,
    sender: str,
    receivers: Sequence[str],
    metric: Metric = logit_diff,
    direction: str = "noise",
    freeze_mlps: bool = False,
) -> Float[Tensor, " batch"]:
    """Metric of the run when only the path sender -> receivers carries the other input; minus `base` is its effect.

    A. Run the other input, keep what the sender writes. B. Run this input, keep everything. C. Run it again with the
    sender exchanged and every other head frozen at B (MLPs recomputed, or frozen too); keep what the receivers read.
    D. Run it with the receivers reading that (as a change). With freeze_mlps it equals cutting exactly the edges
    sender -> receivers; else the paths through MLPs between them count too. Source: Wang et al. 2022, section 3.1.
    Raises UserError for unknown nodes and for a receiver that does not come after the sender.
    """
    graph = EdgeGraph.of(model)
    u = graph.sender(sender)
    require(len(receivers) > 0, "receivers is empty: name at least one")
    for v in receivers:
        require(
            bool(graph.exists[graph.receiver(v), u]), f"{sender} -> {v} is no edge: {sender} does not come before {v}"
        )
    tokens, others = pairs.runs(direction)
    own, other = (sender_outputs(model, x, graph) for x in (tokens, others))
    before, after = (FrozenPath(graph, own, x, u, freeze_mlps) for x in (own, other))
    for run in (before, after):
        model.forward(tokens, run)
    change = {full: after.reads[full] - before.reads[full] for full in before.reads}
    reads = ReadMore(graph, frozenset(receivers), change)
    return metric(at_read(model.forward(tokens, reads), pairs.read), pairs.answers)


@dataclass
class FrozenPath(Tap):
    """Step C: one sender exchanged, heads (and MLPs, if asked) frozen; keeps what everything reads, by full name."""

    graph: EdgeGraph
    own: Tensor
    other: Tensor
    sender: int
    freeze_mlps: bool
    reads: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name, layer, value):
        g = self.graph
        if name in ("q_input", "k_input", "v_input", "mlp_in") or (name, layer) == ("resid_post", g.n_layers - 1):
            self.reads[site_name(name, layer)] = value
        if name == "embed" and g.senders[self.sender] == "embed":
            return value + self.other[0] - self.own[0]
        if name == "result":
            start = g.n_before(layer)
            frozen = self.own[start : start + g.n_heads].clone()
            if start <= self.sender < start + g.n_heads:
                frozen[self.sender - start] = self.other[self.sender]
            return frozen.permute(1, 2, 0, 3)
        if name == "mlp_out":
            at = g.n_before(layer) + g.n_heads
            return self.other[at] if at == self.sender else self.own[at] if self.freeze_mlps else value
        return value

    def wants(self, name, layer):
        return name in ("q_input", "k_input", "v_input", "mlp_in", "result")


@dataclass
class ReadMore(Tap):
    """Step D: the receivers read the run itself plus the change of step C, everything else the run itself.

    For one receiver that is the value of step C. Where one receiver comes after another, its own input moves too.
    """

    graph: EdgeGraph
    receivers: frozenset[str]
    change: Mapping[str, Tensor]

    def __call__(self, name, layer, value):
        full = site_name(name, layer)
        if name in ("q_input", "k_input", "v_input"):
            heads = [h for h in range(value.shape[2]) if f"a{layer}.{h}.{name[0]}" in self.receivers]
            if heads:
                value = value.clone()
                value[:, :, heads] += self.change[full][:, :, heads]
            return value
        node = {"mlp_in": f"m{layer}"}.get(name)
        if (name, layer) == ("resid_post", self.graph.n_layers - 1):
            node = "out"
        return value + self.change[full] if node in self.receivers else value

    def wants(self, name, layer):
        return name in ("q_input", "k_input", "v_input", "mlp_in")
