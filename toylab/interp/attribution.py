"""Attribution patching: what `patch` would find, to first order, from one backward pass for all cells.

1. `attribute`: (source - base) . d metric / d site, with the gradient of the unpatched run, or integrated to the other.
2. `attribute_star` (AtP*): the softmax of patched queries and keys computed exactly, and one layer at a time kept out
   of the gradient, so that neither a saturated softmax nor two paths that cancel hide a cell.
`patch` is the judge of both: in models of this size it is cheap.

Sources: Nanda 2023 (attribution patching); Sundararajan et al. 2017 (arXiv 1703.01365, integrated gradients); Kramar et
al. 2024 (arXiv 2403.00745, AtP*). Knows tensors, models and taps only. Came from: patching.py. Read next: edges.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import require
from toylab.interp.patching import (
    IN_BLOCK,
    Comparison,
    Metric,
    Pairs,
    Sweep,
    at_read,
    check_axes,
    logit_diff,
    outputs_and_values,
    sites_of,
    sum_to_cells,
    with_layer_axis,
)
from toylab.taps import Cache, Chain, Record, Replace, Tap, Tapped, site_name

# Sites that act through the attention scores alone -> the axis of the scores along which their positions lie.
QK_SITES = {
    **dict.fromkeys(("q_input", "q", "rot_q"), "query"),
    **dict.fromkeys(("k_input", "k", "rot_k"), "key"),
    "attn_scores": "",
}


# --- Gradients -------------------------------------------------------------------------------------------------------


@dataclass
class AddZero(Tap):
    """Adds a zero that wants a gradient at the named sites; afterwards `zeros` holds them by full name."""

    names: frozenset[str]
    zeros: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name, layer, value):
        full = site_name(name, layer)
        if full not in self.names:
            return value
        self.zeros[full] = torch.zeros_like(value).requires_grad_()
        return value + self.zeros[full]

    def wants(self, name, layer):
        return site_name(name, layer) in self.names


def gradients(
    model: Tapped,
    tokens: Tensor,
    names: Sequence[str],
    score: Callable[[Tensor], Tensor],
    read: tuple[int, ...] | None = None,
    tap: Tap | None = None,
) -> dict[str, Tensor]:
    """d score / d site of every example, for all named sites by one backward pass; 0 where nothing depends on it.

    score: outputs -> [batch]. tap: edits that happen before the gradients are taken.
    """
    with torch.enable_grad():
        zero = AddZero(frozenset(names))
        outputs = model.forward(tokens, zero if tap is None else Chain([tap, zero]))
        total = score(at_read(outputs, read)).sum()
        require(
            total.requires_grad, "the metric has no gradient (accuracy, argmax): take logit_diff, loss or probability"
        )
        grads = torch.autograd.grad(total, list(zero.zeros.values()), allow_unused=True)
    return {
        full: torch.zeros_like(z) if g is None else g for (full, z), g in zip(zero.zeros.items(), grads, strict=True)
    }


def midpoints(steps: int) -> list[float]:
    """The middles of `steps` equal parts of [0, 1]: where a path integral is evaluated."""
    return [(i + 0.5) / steps for i in range(steps)]


# --- Sweeps ----------------------------------------------------------------------------------------------------------


def attribute(
    model: Tapped,
    pairs: Pairs,
    site: str,
    axes: str,
    metric: Metric = logit_diff,
    direction: str = "denoise",
    layers: Sequence[int] | None = None,
    steps: int = 0,
) -> Sweep:
    """Attribution patching: `patch` to first order, base + <source - base, d metric / d site>, for all cells at once.

    steps = 0: the gradient of the unpatched run (two forwards and one backward for every layer together). steps > 0:
    the mean gradient at that many midpoints of the straight line from base to source at this site (integrated
    gradients, one layer at a time); the scores of all cells of a layer then add up to the effect of patching all of
    it, in the limit of many steps. Exact where the rest of the model is affine; else the error is of second order.
    """
    require(steps >= 0, f"steps={steps}: 0 (plain gradient) or more")
    tokens = pairs.runs(direction)[0]
    between, here = _compare(model, pairs, site, axes, metric, direction, layers)
    names = list(between.names.values())
    grads = gradients(model, tokens, names, between.score, pairs.read) if steps == 0 else {}
    per_layer = []
    for full in names:
        delta = _difference(between.source[full], here[full])
        if steps:
            midway = (Replace({full: here[full] + t * delta}) for t in midpoints(steps))
            every = [gradients(model, tokens, [full], between.score, pairs.read, tap)[full] for tap in midway]
            grads[full] = torch.stack(every).mean(0)
        per_layer.append(sum_to_cells(delta * grads[full], site, axes))
    return between.sweep(between.base + with_layer_axis(torch.stack(per_layer), axes))


def attribute_star(
    model,
    pairs: Pairs,
    site: str,
    axes: str,
    metric: Metric = logit_diff,
    direction: str = "denoise",
    layers: Sequence[int] | None = None,
    drop: bool = True,
) -> Sweep:
    """AtP*: `attribute` with its two known blind spots repaired, for all cells at once; one backward per layer.

    QK fix: at queries, keys and scores (QK_SITES) each cell's pattern is computed exactly, in closed form, and only
    what follows is taken to first order: <pattern' - pattern, d metric / d pattern>. A saturated softmax has no slope.
    GradDrop: the mean of |estimate| over gradients that each leave out what one layer (not the cell's own) writes, so
    that a direct path and one through a later layer cannot cancel. The sign is lost: `effect` is a mean magnitude.
    drop=False: the QK fix alone, signed; equal to `attribute` at all other sites.
    Exact checks: where all after a pattern is affine, the QK fix equals `patch`. Null: 0 where `patch` is 0 because
    nothing changed. Raises UserError for GradDrop with no other layer, and for cells inside a query or key vector.
    """
    require(hasattr(model, "block"), f"{type(model).__name__} has no layers of attention: take attribute")
    inside = [name for name in axes.split() if site in QK_SITES and name in ("d_head", "d_model")]
    require(not inside, f"axes={axes!r}: a softmax belongs to a whole {site} vector, not to one entry of it")
    in_a_layer = site in IN_BLOCK and not site.startswith("resid")
    require(
        not drop or model.n_layers > in_a_layer,
        f"GradDrop leaves out one other layer at a time, and this model has {model.n_layers}: take drop=False",
    )
    between, here = _compare(model, pairs, site, axes, metric, direction, layers, ["resid_pre"])
    check_axes(site, axes)  # before they are translated to axes of the scores
    cells = {layer: _cells_of(model, site, axes, layer, between, here) for layer in between.names}
    # The embedding is named so that something wants a gradient where the only path from the sites is left out.
    names = [*dict.fromkeys([*(full for full, _ in cells.values()), "hook_embed"])]
    estimates: dict[int | None, list[Tensor]] = {layer: [] for layer in cells}
    for dropped in range(model.n_layers) if drop else [-1]:
        tap = Withheld(dropped)
        grads = gradients(model, pairs.runs(direction)[0], names, between.score, pairs.read, tap)
        for layer, (full, estimate) in cells.items():
            if not (in_a_layer and layer == dropped):
                estimates[layer].append(estimate(grads[full]))
    every = torch.stack([torch.stack(values) for values in estimates.values()])  # [layer, dropped, *cells, batch]
    found = every.abs().mean(1) if drop else every[:, 0]
    return between.sweep(between.base + with_layer_axis(found, axes))


@dataclass
class Withheld(Tap):
    """Keeps what one layer writes to the stream, and lets no gradient through it."""

    layer: int

    def __call__(self, name, layer, value):
        return value.detach() if layer == self.layer and name in ("attn_out", "mlp_out") else value


def _compare(
    model: Tapped,
    pairs: Pairs,
    site: str,
    axes: str,
    metric: Metric,
    direction: str,
    layers: Sequence[int] | None,
    also: Sequence[str] = (),
) -> tuple[Comparison, Cache]:
    """The comparison, and the unpatched run's own values at the site and at `also` of every layer."""
    names = sites_of(model, site, layers)
    wanted = [*names.values(), *(site_name(name, layer) for name in also for layer in range(model.n_layers))]
    inputs = pairs.runs(direction)
    unpatched, here = outputs_and_values(model, inputs[0], pairs.read, wanted)
    patched, source = outputs_and_values(model, inputs[1], pairs.read, names.values())
    return Comparison.of(pairs, names, source, (unpatched, patched), axes, metric, direction), here


def _difference(source: Tensor, here: Tensor) -> Tensor:
    """Masked scores are -inf in both runs: no difference."""
    return torch.where(here.isfinite(), source - here, 0)


def _cells_of(
    model, site: str, axes: str, layer: int | None, between: Comparison, here: Cache
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """(the site whose gradient is needed, that gradient -> estimated change of the metric [*cells, batch])."""
    full = between.names[layer]
    source = between.source[full]
    if site not in QK_SITES:
        change = _difference(source, here[full])
        return full, lambda grad: sum_to_cells(change * grad, site, axes)
    names = [site_name(name, layer) for name in ("attn_scores", "pattern")]
    seen = []
    for values in ({}, {full: source}):
        record = Record(set(names).__contains__)
        with torch.no_grad():
            model.attention(layer, here["resid_pre", layer], Chain([Replace(values), record]))
        seen.append([record.tensors[name] for name in names])
    (scores, pattern), (new_scores, new_pattern) = seen
    of_scores = " ".join(QK_SITES[site] if name == "pos" else name for name in axes.split())
    if "key" not in of_scores.split():  # rows of the pattern do not see each other
        return names[1], lambda grad: sum_to_cells((new_pattern - pattern) * grad, "attn_scores", of_scores)
    rate = model.spec.attention_rate
    return names[1], lambda grad: rate * sum_to_cells(_one_key(scores, new_scores, grad), "attn_scores", of_scores)


def _one_key(
    scores: Float[Tensor, "batch head query key"],
    new: Float[Tensor, "batch head query key"],
    gain: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """The change of sum_key softmax(scores) gain, for each entry of the row alone becoming `new`.

    The others keep their proportions, so it is (p' - p) (gain - mean gain of the others), p = softmax(scores) and
    p' = e^new / (e^new + sum of the others' e^score). To first order in new - score: the softmax's derivative.
    """
    p = scores.softmax(-1)
    top = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, scores.argmax(-1, keepdim=True), True)
    # What the others of the largest entry sum to is taken without it: 1 - p rounds to 0 where the softmax saturates.
    rest = scores.masked_fill(top, -torch.inf)
    below = torch.where(top, 0, p)  # at most 1/2
    mean_of_rest = (rest.softmax(-1).nan_to_num() * gain).sum(-1, keepdim=True)
    total = (p * gain).sum(-1, keepdim=True)
    others = torch.where(top, mean_of_rest, (total - below * gain) / (1 - below))
    log_others = torch.where(
        top, rest.logsumexp(-1, keepdim=True), scores.logsumexp(-1, keepdim=True) + (-below).log1p()
    )
    return ((new - log_others).sigmoid() - p) * (gain - others)
