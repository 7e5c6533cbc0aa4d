"""Neurons: which inputs drive one, which ones an output rests on, what happens without them, and what they stand for.

1. `top_inputs`: the largest activations of every neuron and where they occur.
2. `direct_effects`: activation times output weights, along a direction (of a logit): what each neuron says directly.
3. `ablation_effects`: what a metric loses when each neuron in turn is held at zero or at its mean.
4. `score_concepts`: correlation and AUROC of every neuron with every concept (a value of a task's latent), with a
   threshold that chance exceeds for any of them with probability alpha: automatic interpretation without a language
   model, on planted truth.

Sources: Bills et al. 2023 (correlation scoring); Westfall and Young 1993 (the family-wise permutation threshold).
Knows tensors, models and taps only. Read next: probes.py (readers of many neurons at once).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.data import Latent
from toylab.errors import one_of, require
from toylab.taps import Tap, Tapped, site_name

# --- Which inputs, which neurons -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TopInputs:
    """The k largest activations of each neuron, best first. value, example, position: [k, neuron]."""

    value: Float[Tensor, "k m"]
    example: Int[Tensor, "k m"]
    position: Int[Tensor, "k m"]


def top_inputs(post: Float[Tensor, "batch pos m"], k: int, weight: Tensor | None = None) -> TopInputs:
    """Where each neuron is most active; ties in order of appearance.

    weight: [batch, pos], 0 at positions to leave out (padding). Raises UserError when k exceeds what is left.
    """
    batch, pos, _ = post.shape
    flat = post.flatten(0, 1)
    allowed = torch.ones(batch * pos, dtype=torch.bool) if weight is None else weight.flatten() > 0
    require(1 <= k <= int(allowed.sum()), f"k={k}: 1 to {int(allowed.sum())}, the number of positions that count")
    order = torch.sort(torch.where(allowed[:, None], flat, -torch.inf), dim=0, descending=True, stable=True)
    rows = order.indices[:k]
    return TopInputs(order.values[:k], rows // pos, rows % pos)


def direct_effects(
    post: Float[Tensor, "*batch m"],
    W_out: Float[Tensor, "m d"],
    direction: Float[Tensor, "*batch d"] | Float[Tensor, " d"],
    baseline: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "*batch m"]:
    """(post - baseline) * (W_out . direction): how far each neuron moves the output along a direction, directly.

    direction: in the residual stream, one for all or one per row: W_U[:, right] - W_U[:, wrong], divided by the final
    norm's scale where there is one. Known exactly: summed over neurons, plus b_out . direction, it is mlp_out .
    direction; in the last layer of a model without a final norm minus it is the effect of ablating the neuron.
    """
    post = post if baseline is None else post - baseline
    return post * (direction @ W_out.T)


# --- Ablation --------------------------------------------------------------------------------------------------------


def ablation_effects(
    model: Any,
    inputs: Tensor,
    layer: int,
    metric: Callable[[Tensor], Tensor],
    baseline: str | Float[Tensor, " m"] = "zero",
    neurons: Sequence[int] | None = None,
    read: tuple[int, ...] | None = None,
    max_rows: int = 8192,
) -> Float[Tensor, " neuron"]:
    """metric(outputs with one neuron held at its baseline) - metric(outputs), for every neuron in turn.

    model: Tapped, with a `post` site. metric: outputs [copy, batch, ...] -> [copy], one number per ablated copy (use
    the trailing axes only).
    baseline: "zero", "mean" (over all inputs and positions), or a value per neuron. read: the positions of the outputs
    the metric gets; None = all. Neurons ride along the batch axis, `max_rows` examples at a time; in the last layer
    of a transformer only the unembedding is run again, since nothing else lies behind its neurons.
    """
    site = model.find_sites(("post", layer))[0]
    last = bool(model.n_layers) and layer % model.n_layers == model.n_layers - 1 and hasattr(model, "unembed")
    with torch.no_grad():
        outputs, cache = model.run_with_cache(inputs, [site, ("resid_post", -1)] if last else [site])
        post = cache[site]
        picked = torch.arange(post.shape[-1]) if neurons is None else torch.as_tensor(neurons)
        level = _baseline(post, baseline)
        at = slice(None) if read is None else list(read)
        clean = _per_copy(metric, outputs[None][:, :, at])
        effects = []
        for some in picked.split(max(1, max_rows // len(inputs))):
            if last:
                # Residual stream minus what the neuron wrote above its baseline: [copy, batch, read, d]
                excess = (post - level)[:, at][..., some].movedim(-1, 0)
                W_out = model.W_out[layer][some]
                without = cache["resid_post", -1][:, at] - excess[..., None] * W_out[:, None, None]
                changed = model.unembed(without)
            else:
                changed = _ablated(model, inputs, site, some, level)[:, :, at]
            effects.append(_per_copy(metric, changed) - clean)
    return torch.cat(effects)


def _ablated(model: Tapped, inputs: Tensor, site: str, some: Tensor, level: Tensor) -> Tensor:
    """Outputs [copy, batch, pos, v], copy i with neuron some[i] held."""

    def hold(value, hook):
        value = value.unflatten(0, (len(some), len(inputs)))  # a view of the hook's own copy
        for_copy = some[:, None, None, None].expand(-1, *value.shape[1:3], 1)
        value.scatter_(-1, for_copy, level[some][:, None, None, None].expand_as(for_copy))
        return value.flatten(0, 1)

    repeated = inputs.repeat(len(some), *[1] * (inputs.ndim - 1))
    tap = _Quiet(site, hold)
    return model(repeated, tap).unflatten(0, (len(some), len(inputs)))


class _Quiet(Tap):
    """One edit as a tap. A dead neuron held at zero changes nothing, which is an answer and no reason to warn."""

    def __init__(self, site: str, fn: Callable[..., Tensor]):
        self.site, self.fn = site, fn

    def __call__(self, name: str, layer: int | None, value: Tensor) -> Tensor:
        return self.fn(value.clone(), None) if site_name(name, layer) == self.site else value

    def wants(self, name: str, layer: int | None) -> bool:
        return False


def _baseline(post: Tensor, baseline: str | Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        require(
            baseline.shape == post.shape[-1:],
            f"a baseline of shape {tuple(baseline.shape)} arrived; expected [{post.shape[-1]}], one value per neuron",
        )
        return baseline.to(post)
    one_of("baseline", baseline, ("zero", "mean"))
    return post.flatten(0, -2).mean(0) if baseline == "mean" else post.new_zeros(post.shape[-1])


def _per_copy(metric: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    values = metric(outputs)
    require(
        isinstance(values, Tensor) and values.shape == outputs.shape[:1],
        f"the metric returned {tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__}; "
        f"it gets outputs [copy, batch, ...] = {tuple(outputs.shape)} and must return [copy]",
    )
    return values


# --- Concepts --------------------------------------------------------------------------------------------------------


def correlation(x: Float[Tensor, "n ..."], y: Float[Tensor, "n ..."]) -> Float[Tensor, "..."]:
    """Pearson's correlation along the first axis, over all rows together; 0 where either does not vary.

    Known exactly: (0, 1, 0, 3) with (0, 10, 0, 10) is .8165.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    size = x.norm(dim=0) * y.norm(dim=0)
    return torch.where(size > 0, (x * y).sum(0) / torch.where(size > 0, size, 1), 0)


@dataclass(frozen=True, eq=False)
class Concepts:
    """Yes-or-no variables to look for. value: [n, concept], 1, 0, or -1 where undefined. names: "square 3 = empty"."""

    names: tuple[str, ...]
    value: Int[Tensor, "n concept"]


def concepts_of(latents: Mapping[str, Latent]) -> Concepts:
    """One concept per class of each latent: "name = class" (and the index, where a latent has further axes).

    Rows are batch x pos, as in `probe_scores.as_rows`. A latent [batch, pos, ...] has at least two axes. Classes that
    never occur or always occur are left out; real-valued latents are not concepts and are left out too.
    """
    names, columns = [], []
    for name, latent in latents.items():
        if not latent.classes:
            continue
        values = latent.values.reshape(latent.values.shape[0] * latent.values.shape[1], -1)
        for i, column in enumerate(values.T):
            for c, label in enumerate(latent.classes):
                holds = torch.where(column < 0, -1, (column == c).long())
                if bool((holds == 1).any()) and bool((holds == 0).any()):
                    where = f"[{i}]" if values.shape[1] > 1 else ""
                    names.append(f"{name}{where} = {label}")
                    columns.append(holds)
    require(len(columns) > 0, "no latent has two classes in these rows: nothing to score neurons against")
    return Concepts(tuple(names), torch.stack(columns, 1))


@dataclass(frozen=True, eq=False)
class ConceptScores:
    """How well each concept describes each neuron, beside what chance gives the best of them all.

    correlation, auroc: [neuron, concept]; AUROC = P(active where it holds > where it does not) + half the ties.
    threshold:       the |correlation| that the largest of all neurons and concepts exceeds by chance with
                     probability alpha; auroc_threshold the same for |AUROC - 1/2|.
    """

    names: tuple[str, ...]
    correlation: Float[Tensor, "m concept"]
    auroc: Float[Tensor, "m concept"]
    threshold: float
    auroc_threshold: float
    alpha: float

    @property
    def found(self) -> Bool[Tensor, "m concept"]:
        """Correlations beyond the threshold. Under no relation any entry is True with probability alpha."""
        return self.correlation.abs() > self.threshold

    def best(self) -> list[tuple[int, str, float]]:
        """(neuron, concept, correlation) of every neuron with a concept found, its strongest one."""
        strongest = self.correlation.abs().argmax(1)
        return [
            (m, self.names[c], float(self.correlation[m, c]))
            for m, c in enumerate(strongest.tolist())
            if self.found[m, c]
        ]


def score_concepts(
    post: Float[Tensor, "n m"],
    concepts: Concepts,
    generator: torch.Generator,
    n_permutations: int = 200,
    alpha: float = 0.01,
    group: Int[Tensor, " n"] | None = None,
) -> ConceptScores:
    """Correlation and AUROC of all neurons with all concepts, and their permutation null.

    The null permutes the rows of the concepts, all concepts together, so that their dependence stays; with `group`
    whole sequences of equal length are exchanged, position by position, because positions of a sequence are not
    independent. The largest score over everything gives the threshold (family-wise: Westfall and Young 1993).
    Latents with undefined rows cost one more sort per permutation.
    Known exactly: the unit [x = i and y = j] on all V^2 inputs has correlation 1/sqrt(V + 1) with [x = i].
    """
    n = len(post)
    require(len(concepts.value) == n, f"{n} rows of activations arrived with {len(concepts.value)} rows of concepts")
    require(bool(post.isfinite().all()), "the activations hold NaN or infinity")
    require(0 < alpha < 1, f"alpha={alpha} is outside (0, 1)")
    require(
        n_permutations >= 1 / alpha - 1,
        f"n_permutations={n_permutations} cannot resolve alpha={alpha}; at least {round(1 / alpha - 1)} are needed",
    )
    ranks = _midranks(post.double())
    post = post.double()

    def scores(order: Tensor | None) -> tuple[Tensor, Tensor]:
        value = concepts.value if order is None else concepts.value[order]
        return _masked_correlation(post, value), _auroc(post, ranks, value)

    correlations, aurocs = scores(None)
    largest = []
    for _ in range(n_permutations):
        rho, area = scores(_shuffle(n, group, generator))
        largest.append(torch.stack([rho.abs().max(), (area - 0.5).abs().max()]))
    # The smallest of the largest that at most a share alpha reaches, the observed data counted among them.
    ordered = torch.stack(largest).sort(0, descending=True).values
    threshold, auroc_threshold = ordered[int(alpha * (n_permutations + 1)) - 1].tolist()
    return ConceptScores(concepts.names, correlations, aurocs, threshold, auroc_threshold, alpha)


def _shuffle(n: int, group: Tensor | None, generator: torch.Generator) -> Tensor:
    if group is None:
        return torch.randperm(n, generator=generator)
    _, member, counts = group.unique(return_inverse=True, return_counts=True)
    require(
        bool((counts == counts[0]).all()),
        f"groups of {int(counts.min())} to {int(counts.max())} rows arrived; whole groups can only be exchanged when "
        "all have the same size",
    )
    rows = member.argsort(stable=True).reshape(len(counts), -1)
    order = torch.empty(n, dtype=torch.long)
    order[rows.flatten()] = rows[torch.randperm(len(counts), generator=generator)].flatten()
    return order


def _masked_correlation(post: Tensor, value: Tensor) -> Tensor:
    """[m, concept] over the rows where the concept is defined, all from matrix products."""
    defined, holds = (value >= 0).double(), (value == 1).double()
    n, n1 = defined.sum(0), holds.sum(0)
    centred = post - post.mean(0)  # keeps the digits of the variances below
    sum_x, sum_xx, sum_xy = centred.T @ defined, (centred**2).T @ defined, centred.T @ holds
    cov = sum_xy - sum_x * (n1 / n)
    var_x, var_y = (sum_xx - sum_x**2 / n).clamp_min(0), n1 * (1 - n1 / n)
    # A constant neuron keeps a variance of rounding size.
    alive = var_x > n * (8 * torch.finfo(post.dtype).eps * post.abs().amax(0)[:, None]) ** 2
    size = (var_x * var_y).sqrt()
    return torch.where(alive & (size > 0), cov / torch.where(size > 0, size, 1), 0)


def _auroc(post: Tensor, ranks: Tensor, value: Tensor) -> Tensor:
    """(sum of ranks where it holds - n1 (n1 + 1) / 2) / (n1 n0), [m, concept]; ranks among the defined rows."""
    areas = post.new_zeros(post.shape[1], value.shape[1])
    defined = value >= 0
    masks, which = (
        defined.T.unique(dim=0, return_inverse=True) if not bool(defined.all()) else (defined[:, 0][None], None)
    )
    for i, mask in enumerate(masks):
        columns = slice(None) if which is None else (which == i).nonzero().squeeze(1)
        own, holds = (ranks if bool(mask.all()) else _midranks(post[mask])), (value[mask][:, columns] == 1).double()
        n1 = holds.sum(0)
        n0 = mask.sum() - n1
        areas[:, columns] = (own.T @ holds - n1 * (n1 + 1) / 2) / (n1 * n0).clamp_min(1)
    return areas


def _midranks(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Ranks 1..n down each column, ties sharing the mean of theirs."""
    columns = x.T.contiguous()
    ordered = columns.sort(-1).values.contiguous()
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    return ((below + up_to + 1) / 2).T.to(x.dtype)
