"""Activation patching: put one activation of one run into another run, and see what becomes of the answer.

1. `Pairs`: a clean and a corrupted input of the same length, with the answer that is right on each.
2. Denoising runs the corrupted input and restores one site from the clean run: is the site enough? Noising runs the
   clean input and takes one site from the corrupted run: is it needed? Neither sees everything: denoising one input
   of an AND finds nothing, noising one input of an OR finds nothing.
3. `patch`, `ablate`: a sweep. `axes` says what one cell is: "layer pos" patches one position of one layer at a time,
   "layer head" one head at all positions, "layer head query" one row of its pattern, "layer d_mlp" one neuron.
4. `get_act_patch_*`: the sweeps under the names, arguments and axes of TransformerLens.

All cells of a layer ride along the batch axis. Five facts save work, each exact: (a) nothing before the patched
layer changes; (b) a change at one query position stays at that position until the next block's attention, so that one
run with the site patched everywhere gives the streams after the block for all positions; (c) the last block is needed
at the read positions only; (d) in a causal model a patch at one position reaches no earlier one, whose keys and values
are reused; (e) in the block that follows one changed position reaches another by its key and value alone: one column of
the scores and one summand of z. `patch_serial` is the same sweep with one plain forward per cell.

Sources: Meng et al. 2022 (arXiv 2202.05262), Heimersheim and Nanda 2024 (arXiv 2404.15255). Knows tensors, models and
taps only. Read next: attribution.py (the same to first order), edges.py (where the unit is one edge of the graph).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toylab.data import Batch
from toylab.errors import UserError, one_of, require
from toylab.taps import SITES, Cache, HookWarning, Tap, Tapped, site_name, site_of

DIRECTIONS = ("denoise", "noise")
ABLATIONS = ("zero", "mean", "resample", "noise")
# Activations of one chunk of cells: small enough to stay in a processor's cache, large enough to hide the overhead.
CHUNK = 2**20
# The axis of a site along which a change stays where it is until the next block's attention mixes positions.
QUERY_AXIS = {
    **dict.fromkeys(("q_input", "q", "rot_q", "z", "result", "attn_out", "resid_mid", "mlp_in", "ln2_scale"), "pos"),
    **dict.fromkeys(("ln2_normalized", "pre", "post", "mlp_out", "resid_post"), "pos"),
    **dict.fromkeys(("attn_scores", "pattern"), "query"),
}
# Sites that belong to one block; those not above reach other positions at once.
IN_BLOCK = (*QUERY_AXIS, "resid_pre", "attn_in", "k_input", "v_input", "ln1_scale", "ln1_normalized", "k", "v", "rot_k")


# --- Inputs, answers and metrics -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Answers:
    """What a metric compares the outputs with.

    right:  class ids [batch, read] (or targets of any shape, for a metric of your own). wrong: the answers to the other
            input of the pair; None = every other class.
    weight: [batch, read], which of the read positions count in each example; None = all alike.
    """

    right: Tensor
    wrong: Tensor | None = None
    weight: Tensor | None = None

    def average(self, values: Float[Tensor, "*cells batch read"]) -> Float[Tensor, "*cells batch"]:
        """Mean over the read positions that count."""
        if self.weight is None:
            return values.mean(-1)
        weight = self.weight.to(values)
        return (values * weight).sum(-1) / weight.sum(-1)


Metric = Callable[[Tensor, Answers], Tensor]  # outputs [*cells, batch, read, d_out], answers -> [*cells, batch]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean inputs and their corrupted twins: [batch, pos] each, aligned position by position.

    answers: right on the clean input, wrong = right on the corrupted one. read: the positions asked; None = all.
    """

    clean: Tensor
    corrupted: Tensor
    answers: Answers
    read: tuple[int, ...] | None = None

    def __post_init__(self):
        require(
            self.clean.shape == self.corrupted.shape,
            f"clean inputs {tuple(self.clean.shape)} and corrupted inputs {tuple(self.corrupted.shape)}: patching "
            "needs pairs of the same length, aligned position by position",
        )
        require(
            len(self.clean) == len(self.answers.right),
            f"{len(self.clean)} pairs arrived with {len(self.answers.right)} answers",
        )
        if self.answers.weight is not None:
            empty = (self.answers.weight.sum(-1) <= 0).nonzero().flatten().tolist()
            require(not empty, f"pairs {empty[:5]} ask for nothing: their weight is 0 at every position")

    @classmethod
    def of(cls, clean: Batch, corrupted: Batch) -> Pairs:
        """From a batch and its `task.counterfactual(batch, latent, generator)`, counted where both ask."""
        weight = clean.weight if corrupted.weight is None else corrupted.weight
        if clean.weight is not None and corrupted.weight is not None:
            weight = clean.weight * corrupted.weight
        return cls(clean.inputs, corrupted.inputs, Answers(clean.targets, corrupted.targets, weight), clean.read)

    def runs(self, direction: str) -> tuple[Tensor, Tensor]:
        """(the inputs that are run, the inputs whose activations are put in)."""
        one_of("direction", direction, DIRECTIONS)
        return (self.corrupted, self.clean) if direction == "denoise" else (self.clean, self.corrupted)

    def __repr__(self) -> str:
        return f"Pairs({len(self.clean):,} x {self.clean.shape[1:].numel()} tokens, read {self.read or 'everywhere'})"


def _pick(values: Tensor, ids: Tensor) -> Tensor:
    """values [*cells, batch, read, d_out] at ids [batch, read]."""
    return values.gather(-1, ids.expand(values.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def logit_diff(outputs: Float[Tensor, "*cells batch read d_out"], answers: Answers) -> Float[Tensor, "*cells batch"]:
    """Logit of the right answer minus that of the wrong one; without a wrong answer, minus the mean of all others."""
    right = _pick(outputs, answers.right)
    if answers.wrong is not None:
        return answers.average(right - _pick(outputs, answers.wrong))
    return answers.average(right - (outputs.sum(-1) - right) / (outputs.shape[-1] - 1))


def probability(outputs: Float[Tensor, "*cells batch read d_out"], answers: Answers) -> Float[Tensor, "*cells batch"]:
    """Probability of the right answer."""
    return answers.average(_pick(outputs.softmax(-1), answers.right))


def loss(outputs: Float[Tensor, "*cells batch read d_out"], answers: Answers) -> Float[Tensor, "*cells batch"]:
    """Cross-entropy of the right answer, in nats."""
    return answers.average(-_pick(outputs.log_softmax(-1), answers.right))


def accuracy(outputs: Float[Tensor, "*cells batch read d_out"], answers: Answers) -> Float[Tensor, "*cells batch"]:
    """Share of the asked positions where the right answer has the largest output. Not differentiable."""
    return answers.average((outputs.argmax(-1) == answers.right).to(outputs.dtype))


def kl_from(reference: Float[Tensor, "batch read d_out"]) -> Metric:
    """The metric KL(reference || outputs) in nats. Its first derivative at the reference is 0: not for `attribute`."""
    base = reference.detach().log_softmax(-1)

    def kl(outputs: Tensor, answers: Answers) -> Tensor:
        return answers.average((base.exp() * (base - outputs.log_softmax(-1))).sum(-1))

    return kl


def scored(metric: Metric, answers: Answers) -> Callable[[Tensor], Tensor]:
    """The metric with its answers filled in: outputs -> values."""
    return lambda outputs: metric(outputs, answers)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The metric after each patch.

    values: [*axes, batch], the metric of every cell and example.
    axes:   what a cell is, for instance ("layer", "pos"). layers: the numbers along the layer axis.
    base:   [batch], the unpatched run. target: [batch], the run the values came from; None for an ablation.
    kind:   denoise, noise, or the ablation.
    """

    values: Float[Tensor, "*cells batch"]
    axes: tuple[str, ...]
    base: Float[Tensor, " batch"]
    target: Float[Tensor, " batch"] | None
    kind: str
    layers: tuple[int, ...] = field(default=())

    @property
    def mean(self) -> Tensor:
        """[*axes], the metric averaged over examples."""
        return self.values.mean(-1)

    @property
    def effect(self) -> Tensor:
        """[*axes], mean change from the unpatched run."""
        return (self.values - self.base).mean(-1)

    @property
    def stderr(self) -> Tensor:
        """[*axes], standard error of `effect` over examples."""
        return (self.values - self.base).std(-1) / self.values.shape[-1] ** 0.5

    @property
    def normalized(self) -> Tensor:
        """[*axes], effect / (target - base), a ratio of means: 0 = no effect, 1 = as if all was patched."""
        gap = self._gap().mean()
        require(
            float(gap.abs()) > 1e-9 * max(1.0, float(self.base.abs().mean())),
            f"on average the metric is the same on both runs ({float(self.base.mean()):.4g}): no effect can be "
            "expressed as a share of their difference; use effect, or pairs whose answers differ",
        )
        return self.effect / gap

    @property
    def mean_of_ratios(self) -> Tensor:
        """[*axes], the mean over examples of effect / gap; differs from `normalized`, greatly where a gap is small."""
        return ((self.values - self.base) / self._gap()).mean(-1)

    def _gap(self) -> Tensor:
        if self.target is None:
            raise UserError(f"an ablation ({self.kind}) has no second run to normalise by; use effect")
        return self.target - self.base

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {n}" for name, n in zip(self.axes, self.values.shape, strict=False))
        return f"Sweep({self.kind}; {sizes}; {len(self.base):,} examples, unpatched {float(self.base.mean()):.4g})"


# --- Sweeps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a sweep over pairs starts from: the metric of both runs, and the other run's values at the site.

    names: layer -> full name of the site. base, target: [batch], the unpatched run and the one the values come from.
    """

    names: dict[int | None, str]
    source: Mapping[str, Tensor]
    score: Callable[[Tensor], Tensor]  # outputs at the read positions -> [*cells, batch]
    base: Float[Tensor, " batch"]
    target: Float[Tensor, " batch"]
    axes: str
    direction: str

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        names: dict[int | None, str],
        source: Mapping[str, Tensor],
        outputs: tuple[Tensor, Tensor],
        axes: str,
        metric: Metric,
        direction: str,
    ) -> Comparison:
        """outputs: at the read positions, of the run that is patched and of the one that the values come from.

        Raises UserError where they score the same on every pair.
        """
        score = scored(metric, pairs.answers)
        base, target = (score(x.detach()) for x in outputs)
        rounding = 64 * torch.finfo(base.dtype).eps  # of the two ways in which both runs are computed
        if base.numel() and torch.allclose(base, target, rtol=rounding, atol=rounding):
            raise UserError(
                f"the metric is the same on the clean and the corrupted input of every pair ({float(base.mean()):.4g} "
                "on average), so no patch can change it: use pairs whose answers differ, or another metric"
            )
        return cls(names, source, score, base, target, axes, direction)

    def sweep(self, values: Float[Tensor, "*cells batch"]) -> Sweep:
        """The result, from the metric of every cell."""
        return Sweep(values, tuple(self.axes.split()), self.base, self.target, self.direction, _numbers(self.names))


Chunk = tuple[Tensor, Tensor]  # numbers of some cells, their outputs [cell, batch, read, d_out]


@torch.no_grad()
def patch(
    model: Tapped,
    pairs: Pairs,
    site: str,
    axes: str,
    metric: Metric = logit_diff,
    direction: str = "denoise",
    layers: Sequence[int] | None = None,
) -> Sweep:
    """The metric after putting each cell of a site from the one run of a pair into the other.

    site:   resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, result, attn_scores, pattern, pre, post,
            or any other name of taps.SITES. axes: "layer" and axes of that site, in the order wanted.
    metric: (outputs [*cells, batch, read, d_out], Answers) -> [*cells, batch].
    Exact checks: denoising resid_post at all positions ("layer") gives the clean metric, noising the corrupted one.
    Raises UserError for an unknown site or axis, and for a metric that is the same on both inputs of every pair.
    """
    names, inputs = sites_of(model, site, layers), pairs.runs(direction)
    if site == "resid_pre" and hasattr(model, "block"):  # which a run keeps anyhow: both in one
        both = Run.of(model, torch.cat(inputs), pairs.read)
        run, other = both.rows(slice(len(pairs.clean))), both.rows(slice(len(pairs.clean), None))
        source: Mapping[str, Tensor] = {full: other.resid[layer] for layer, full in names.items() if layer is not None}
        outputs = other.outputs
    else:
        run = Run.of(model, inputs[0], pairs.read)
        outputs, source = outputs_and_values(model, inputs[1], pairs.read, names.values())
    between = Comparison.of(pairs, names, source, (run.outputs, outputs), axes, metric, direction)
    values = _sweep(model, run, between.source, site, axes, between.names, pairs.read, between.score)
    return between.sweep(values)


@torch.no_grad()
def ablate(
    model: Tapped,
    inputs: Tensor,
    answers: Answers,
    site: str,
    axes: str,
    metric: Metric = loss,
    kind: str = "mean",
    read: tuple[int, ...] | None = None,
    layers: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    noise: float = 3.0,
) -> Sweep:
    """The metric after removing each cell of a site from the run on `inputs`.

    kind: zero; mean over the batch, per position; resample, the value on another row (a permutation that moves every
    row); noise, plus N(0, (noise x the site's standard deviation)^2). The last two draw from `generator`.
    """
    names = sites_of(model, site, layers)
    cache = model.run_with_cache(inputs, list(names.values()))[1]
    source = {full: ablated(cache[full], kind, generator, noise) for full in names.values()}
    score, run = scored(metric, answers), Run.of(model, inputs, read)
    values = _sweep(model, run, source, site, axes, names, read, score)
    return Sweep(values, tuple(axes.split()), score(run.outputs), None, kind, _numbers(names))


def ablated(
    value: Float[Tensor, "batch ..."], kind: str, generator: torch.Generator | None = None, noise: float = 3.0
) -> Float[Tensor, "batch ..."]:
    """What stands in place of an activation under an ablation; entries that are -inf (masked scores) stay."""
    one_of("kind", kind, ABLATIONS)
    require(
        kind in ("zero", "mean") or generator is not None, f"a {kind} ablation draws at random: pass a torch.Generator"
    )
    if kind == "zero":
        new = torch.zeros_like(value)
    elif kind == "mean":
        new = value.mean(0, keepdim=True).expand_as(value)
    elif kind == "resample":
        require(len(value) > 1, "a resample ablation needs at least two examples")
        order = torch.randperm(len(value), generator=generator)
        # Each row takes the value of the row after it on one random cycle, so that none keeps its own.
        new = torch.empty_like(value).index_copy_(0, order, value[order.roll(1)])
    else:
        sigma = value[value.isfinite()].std()
        new = value + noise * sigma * torch.randn(value.shape, generator=generator).to(value)
    return torch.where(value.isfinite(), new, value)


@torch.no_grad()
def patch_serial(
    model: Tapped,
    pairs: Pairs,
    site: str,
    axes: str,
    metric: Metric = logit_diff,
    direction: str = "denoise",
    layers: Sequence[int] | None = None,
) -> Sweep:
    """`patch` with one forward and one hook per cell: the definition, and what the fast sweep is tested against."""
    (tokens, other), names = pairs.runs(direction), sites_of(model, site, layers)
    outputs, source = outputs_and_values(model, other, pairs.read, names.values())
    unpatched = model(tokens, read=pairs.read)
    between = Comparison.of(pairs, names, source, (unpatched, outputs), axes, metric, direction)
    values = []
    for full in between.names.values():
        masks, sizes = _cells(between.source[full].shape[1:], site, axes)
        for mask in masks:
            hook = _where(mask, between.source[full])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HookWarning)  # equal values on both runs are no mistake here
                outputs = model.run_with_hooks(tokens, [(full, hook)], pairs.read)
            values.append(between.score(outputs))
    return between.sweep(with_layer_axis(torch.stack(values).unflatten(0, (-1, *sizes)), axes))


def _where(mask: Tensor, source: Tensor) -> Callable[..., Tensor]:
    return lambda value, hook: torch.where(mask, source, value)


@dataclass
class Put(Tap):
    """Replaces the part of one site that a mask says. Under vmap the mask is one cell's."""

    full: str
    mask: Tensor
    source: Tensor

    def __call__(self, name, layer, value):
        return torch.where(self.mask, self.source, value) if site_name(name, layer) == self.full else value

    def wants(self, name, layer):
        return site_name(name, layer) == self.full


def sites_of(model: Tapped, site: str, layers: Sequence[int] | None) -> dict[int | None, str]:
    """Layer -> full name of a site; raises UserError for a site or layer the model does not have."""
    if site not in SITES:
        one_of("site", site, SITES)
    if "{}" not in SITES[site].path:
        return {None: model.find_sites(site)[0]}
    numbers = range(model.n_layers) if layers is None else layers
    return {layer % model.n_layers: model.find_sites((site, layer))[0] for layer in numbers}


@torch.no_grad()
def outputs_and_values(
    model: Tapped, inputs: Tensor, read: tuple[int, ...] | None, names: Iterable[str]
) -> tuple[Tensor, Cache]:
    """Outputs at the read positions, and what stands at these sites."""
    outputs, cache = model.run_with_cache(inputs, list(names))
    return at_read(outputs, read), cache


def _numbers(names: Mapping[int | None, str]) -> tuple[int, ...]:
    return tuple(layer for layer in names if layer is not None)


def at_read(outputs: Tensor, read: tuple[int, ...] | None) -> Tensor:
    """Outputs [batch, pos, d_out] at the read positions; None = all of them."""
    return outputs if read is None else outputs[:, list(read)]


def _cells(shape: Sequence[int], site: str, axes: str) -> tuple[Bool[Tensor, "cell ..."], tuple[int, ...]]:
    """(masks [cell, *site axes without batch], sizes of the cell axes) for "layer" and axes of this site.

    A site axis that is no cell axis has size 1 in the mask: the whole of it is patched.
    """
    check_axes(site, axes)
    own = SITES[site].axes.split()[1:]
    wanted = [name for name in axes.split() if name != "layer"]
    sizes = tuple(shape[own.index(name)] for name in wanted)
    mask = torch.ones(*sizes, *[1] * len(own), dtype=torch.bool)
    for i, (name, n) in enumerate(zip(wanted, sizes, strict=True)):
        eye = [1] * mask.ndim
        eye[i], eye[len(wanted) + own.index(name)] = n, n
        mask = mask & torch.eye(n, dtype=torch.bool).reshape(eye)
    return mask.reshape(-1, *mask.shape[len(wanted) :]), sizes


def check_axes(site: str, axes: str) -> None:
    """Raises UserError unless `axes` are "layer" and axes of this site, each once."""
    layered = "{}" in SITES[site].path
    for name in axes.split():
        one_of(f"axes={axes!r} of {site}", name, ["layer"] * layered + SITES[site].axes.split()[1:])
    require(len(set(axes.split())) == len(axes.split()), f"axes={axes!r} names an axis twice")
    require("layer" in axes.split() or not layered, f'axes={axes!r}: {site} exists per layer, so start with "layer"')


def with_layer_axis(values: Tensor, axes: str) -> Tensor:
    """values [layer, *other cell axes, batch] with the layer axis where `axes` has it (or dropped)."""
    order = axes.split()
    return values.movedim(0, order.index("layer")) if "layer" in order else values[0]


def sum_to_cells(x: Tensor, site: str, axes: str) -> Tensor:
    """x [batch, *site axes] summed over what is no cell axis: [*cell axes, batch]."""
    check_axes(site, axes)
    own = SITES[site].axes.split()
    wanted = [name for name in axes.split() if name != "layer"]
    drop = [i for i, name in enumerate(own) if i > 0 and name not in wanted]
    x = x.sum(drop) if drop else x
    kept = [name for name in own if name == "batch" or name in wanted]
    return x.permute([*(kept.index(name) for name in wanted), 0])


def _sweep(
    model: Tapped,
    run: Run,
    source: Mapping[str, Tensor],
    site: str,
    axes: str,
    names: Mapping[int | None, str],
    read: tuple[int, ...] | None,
    score: Callable[[Tensor], Tensor],
) -> Tensor:
    """score(outputs [cells, batch, read, d_out]) of every cell: [*axes, batch] if it scores each example."""
    per_layer = []
    for layer, full in names.items():
        if layer is None or not run.resid or site not in IN_BLOCK:
            chunks = _by_whole_forward(model, run.inputs, source[full], full, axes, read)
        else:
            chunks = _by_block(model, run, source[full], site, layer, axes, read)
        numbers, scores = zip(*((cells, score(outputs)) for cells, outputs in chunks), strict=True)
        values = torch.cat(scores)[torch.cat(numbers).argsort()]
        sizes = _cells(source[full].shape[1:], site, axes)[1]
        per_layer.append(values.unflatten(0, sizes) if sizes else values[0])
    return with_layer_axis(torch.stack(per_layer), axes)


def _by_whole_forward(
    model: Tapped, tokens: Tensor, source: Tensor, full: str, axes: str, read: tuple[int, ...] | None
) -> Iterator[Chunk]:
    """Chunk by chunk, for any model. vmap runs what precedes the patch once."""
    masks = _cells(source.shape[1:], site_of(full)[0], axes)[0].to(source.device)

    def one(mask: Tensor) -> Tensor:
        return at_read(model.forward(tokens, Put(full, mask, source)), read)

    for cells in torch.arange(len(masks)).split(max(1, CHUNK // max(1, source.numel()))):
        yield cells, torch.vmap(one)(masks[cells])


@dataclass(frozen=True, eq=False)
class Run:
    """One unpatched run. outputs: at the read positions. resid: the streams before every block, [batch, pos, d_model]
    each; empty for a model without blocks."""

    model: Any
    inputs: Tensor
    outputs: Tensor
    resid: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, model, inputs: Tensor, read: tuple[int, ...] | None) -> Run:
        if not hasattr(model, "block"):
            return cls(model, inputs, at_read(model(inputs), read))
        resid = [model.embed(inputs)]
        for layer in range(model.n_layers - 1):
            resid.append(model.block(layer, resid[-1]))
        return cls(model, inputs, model.forward_from(model.n_layers - 1, resid[-1], read=read), tuple(resid))

    def rows(self, some: slice) -> Run:
        """The same of some of the inputs."""
        return Run(self.model, self.inputs[some], self.outputs[some], tuple(resid[some] for resid in self.resid))

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one. A constant part of the pattern is not masked."""
        spec = self.model.spec
        return spec.attention == "causal" and spec.attention_rate == 1

    @cached_property
    def past(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys (after rotation) and values of every layer."""
        return tuple(self.model.queries_keys_values(i, resid, [])[1:] for i, resid in enumerate(self.resid))


def _by_block(
    model, run: Run, source: Tensor, site: str, layer: int, axes: str, read: tuple[int, ...] | None
) -> Iterator[Chunk]:
    """Chunk by chunk, in a model with blocks, by facts (a) to (e) above.

    1. One cell per combination of the cell axes other than the query axis: streams after the block, by vmap.
    2. If the query axis is a cell axis, a stream per position: the unpatched stream with that position exchanged.
    3. That position through the next block (`OnePosition`), and the rest of the model.
    """
    before, full = run.resid[layer], site_name(site, layer)
    cell_axes = [name for name in axes.split() if name != "layer"]
    query = "pos" if site == "resid_pre" else QUERY_AXIS.get(site, "")
    others = [name for name in cell_axes if name != query]
    masks, sizes = _cells(source.shape[1:], site, " ".join(["layer", *others]))
    masks = masks.to(source.device)
    at_once = max(1, CHUNK // (before[..., 0].numel() * max(model.d_model, model.d_mlp)))

    def streams(chunk: Tensor) -> Tensor:
        return torch.vmap(lambda mask: model.block(layer, before, Put(full, mask, source)))(chunk)

    if query not in cell_axes:
        for cells in torch.arange(len(masks)).split(at_once):
            if site == "resid_pre":
                chunk = torch.where(masks[cells].unsqueeze(1), source, before)
                yield cells, _finish(model, run, layer, chunk, read)
            else:
                yield cells, _finish(model, run, layer + 1, streams(masks[cells]), read)
        return
    # Row p of `everywhere` [other cells, batch, pos, d_model] is right for the patch at p.
    n_pos, resume = before.shape[1], layer if site == "resid_pre" else layer + 1
    if site == "resid_pre":
        everywhere = torch.where(masks.unsqueeze(1), source, before)
    else:
        everywhere = torch.cat([streams(chunk) for chunk in masks.split(at_once)])
    place = cell_axes.index(query)
    grid = torch.cartesian_prod(torch.arange(len(masks)), torch.arange(n_pos)).reshape(*sizes, n_pos, 2)
    grid = grid.movedim(len(sizes), place).reshape(-1, 2)  # (other cell, position) of every cell, in the order of axes
    if resume == model.n_layers:
        yield from _at_the_end(model, everywhere, run, grid, read, at_once)
        return
    swapped, last = OnePosition.of(model, resume, everywhere, run.resid[resume]), resume == model.n_layers - 1
    wanted = list(range(n_pos)) if read is None or not last else sorted({r % n_pos for r in read})
    if len(wanted) < n_pos:  # the attention of few queries is no longer the smaller part of a cell
        at_once = max(1, CHUNK // (len(before) * len(wanted) * max(model.d_model, model.d_mlp, model.n_heads * n_pos)))
    for cells in grid[:, 1].argsort(stable=True).split(at_once):  # cells of near positions share their first one
        cell, pos = grid[cells].to(before.device).unbind(1)
        at = [r for r in wanted if r >= int(pos.min())] if run.causal else wanted
        chunk = swapped.streams(cell, pos, at) if at else before.new_empty(len(cells), len(before), 0, model.d_model)
        yield cells, _finish(model, run, resume + 1, chunk, read, at)


def _finish(
    model, run: Run, layer: int, streams: Tensor, read: tuple[int, ...] | None, held: list[int] | None = None
) -> Float[Tensor, "cell batch read d_out"]:
    """Outputs from streams [cell, batch, held, d_model] before block `layer`.

    held: the positions that the streams have: all from some position on, or after the last block any. None: all.
    Elsewhere they are those of the unpatched run, and so are keys, values and outputs.
    """
    n_cells, n_pos = len(streams), run.resid[0].shape[1]
    held = list(range(n_pos)) if held is None else held
    asked = list(range(n_pos)) if read is None else [r % n_pos for r in read]
    later = [held.index(r) for r in asked if r in held]
    outputs = run.outputs.expand(n_cells, -1, -1, -1)
    if not later:
        return outputs
    past = None
    if held[0] and layer < model.n_layers:
        past = [tuple(t[:, : held[0]] for t in kv) for kv in run.past]
    every = later == list(range(streams.shape[2]))
    new = model.forward_from(layer, streams.flatten(0, 1), read=None if every else tuple(later), past=past)
    new = new.unflatten(0, streams.shape[:2])
    if len(later) == len(asked):
        return new
    rows = torch.tensor([i for i, r in enumerate(asked) if r in held], device=new.device)
    return outputs.clone().index_copy_(2, rows, new)


@dataclass(frozen=True, eq=False)
class OnePosition:
    """One position of the stream before a block exchanged, and the block after it: fact (e).

    base [batch, pos, d_model] is the stream without, everywhere [other, batch, pos, d_model] what is put in. Their
    queries, keys and values [..., batch, head, pos, d_head], and the scores of base among themselves, serve all cells.
    """

    model: Any  # one with blocks
    layer: int
    everywhere: Tensor
    base: Tensor
    old: tuple[Tensor, Tensor, Tensor]
    new: tuple[Tensor, Tensor, Tensor]
    scores: Float[Tensor, "batch head q k"]

    @classmethod
    def of(cls, model, layer: int, everywhere: Tensor, base: Tensor) -> OnePosition:
        every = list(range(base.shape[1]))
        both = torch.cat([base[None], everywhere]).flatten(0, 1)
        parts = [x.transpose(1, 2).unflatten(0, (-1, len(base))) for x in model.queries_keys_values(layer, both, every)]
        old, new = tuple(x[0] for x in parts), tuple(x[1:] for x in parts)
        return cls(model, layer, everywhere, base, old, new, old[0] @ old[1].transpose(-1, -2))

    def streams(self, cell: Tensor, pos: Tensor, at: list[int]) -> Float[Tensor, "cell batch at d_model"]:
        """After the block, at the positions `at`, of cells that take `pos` [cell] of everywhere[cell]."""
        (q, k, v), n = self.old, len(cell)
        # At the exchanged position: [batch, head, cell, d_head].
        new_q, new_k, new_v = (x[cell, :, :, pos].permute(1, 2, 0, 3) for x in self.new)
        here = torch.tensor(at, device=pos.device) == pos[:, None]  # [cell, at]
        # Scores [batch, head, cell, at, key]: where the query was exchanged its row is another, then one column is.
        row = (new_q @ k.transpose(-1, -2))[..., None, :]
        scores = torch.where(here[..., None], row, self.scores[:, :, None, at])
        old_column = q[:, :, at] @ new_k.transpose(-1, -2)  # [batch, head, at, cell]
        column = torch.where(here, (new_q * new_k).sum(-1, keepdim=True), old_column.transpose(-1, -2))[..., None]
        where = pos[:, None, None].expand(column.shape)
        pattern = self.model.pattern_at(self.layer, scores.scatter_(-1, where, column) / self.model.attn_scale, at)
        z = (pattern.flatten(2, 3) @ v).unflatten(2, (n, len(at)))
        z = z + pattern.gather(-1, where) * (new_v - v[:, :, pos])[..., None, :]
        resid = torch.where(here[:, None, :, None], self.everywhere[:, :, at][cell], self.base[:, at])
        after = self.model.finish_block(self.layer, resid.flatten(0, 1), z.permute(2, 0, 3, 1, 4).flatten(0, 1))
        return after.unflatten(0, (n, -1))


def _at_the_end(model, everywhere: Tensor, run: Run, grid: Tensor, read, at_once: int) -> Iterator[Chunk]:
    """After the last block no position sees another: the outputs themselves are exchanged, one position per cell."""
    chunks = everywhere.split(at_once)
    patched = torch.cat([_finish(model, run, model.n_layers, chunk, read) for chunk in chunks])
    untouched = run.outputs
    here = torch.arange(everywhere.shape[2])
    at = here if read is None else here[list(read)]
    for cells in torch.arange(len(grid)).split(max(1, CHUNK // untouched.numel())):
        cell, pos = grid[cells].unbind(1)
        exchanged = (at == pos[:, None]).to(patched.device)[:, None, :, None]
        yield cells, torch.where(exchanged, patched[cell.to(patched.device)], untouched)


# --- The names of TransformerLens ------------------------------------------------------------------------------------


@torch.no_grad()
def get_act_patch(
    site: str,
    axes: str,
    model: Tapped,
    corrupted_tokens: Tensor,
    clean_cache: Cache,
    patching_metric: Callable[[Tensor], Tensor],
) -> Tensor:
    """[*axes]: patching_metric(logits [batch, pos, d_vocab]) -> number, of the corrupted run with each cell clean."""
    names = sites_of(model, site, None)
    source = {full: clean_cache[full] for full in names.values()}

    def score(outputs: Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(patching_metric(logits)) for logits in outputs])

    return _sweep(model, Run.of(model, corrupted_tokens, None), source, site, axes, names, None, score)


# Each is called as f(model, corrupted_tokens, clean_cache, patching_metric). "out" of a head is its z, as there.
get_act_patch_resid_pre = partial(get_act_patch, "resid_pre", "layer pos")
get_act_patch_resid_mid = partial(get_act_patch, "resid_mid", "layer pos")
get_act_patch_attn_out = partial(get_act_patch, "attn_out", "layer pos")
get_act_patch_mlp_out = partial(get_act_patch, "mlp_out", "layer pos")
get_act_patch_attn_head_out_by_pos = partial(get_act_patch, "z", "layer pos head")
get_act_patch_attn_head_q_by_pos = partial(get_act_patch, "q", "layer pos head")
get_act_patch_attn_head_k_by_pos = partial(get_act_patch, "k", "layer pos head")
get_act_patch_attn_head_v_by_pos = partial(get_act_patch, "v", "layer pos head")
get_act_patch_attn_head_pattern_by_pos = partial(get_act_patch, "pattern", "layer head query")
get_act_patch_attn_head_pattern_dest_src_pos = partial(get_act_patch, "pattern", "layer head query key")
get_act_patch_attn_head_out_all_pos = partial(get_act_patch, "z", "layer head")
get_act_patch_attn_head_q_all_pos = partial(get_act_patch, "q", "layer head")
get_act_patch_attn_head_k_all_pos = partial(get_act_patch, "k", "layer head")
get_act_patch_attn_head_v_all_pos = partial(get_act_patch, "v", "layer head")
get_act_patch_attn_head_pattern_all_pos = partial(get_act_patch, "pattern", "layer head")


def get_act_patch_attn_head_all_pos_every(model, corrupted_tokens, clean_cache, patching_metric) -> Tensor:
    """[5, layer, head]: z, q, k, v, pattern."""
    sites = ("z", "q", "k", "v", "pattern")
    return torch.stack(
        [get_act_patch(s, "layer head", model, corrupted_tokens, clean_cache, patching_metric) for s in sites]
    )


def get_act_patch_attn_head_by_pos_every(model, corrupted_tokens, clean_cache, patching_metric) -> Tensor:
    """[5, layer, pos, head]: z, q, k, v, and the pattern by query."""
    axes = {**dict.fromkeys(("z", "q", "k", "v"), "layer pos head"), "pattern": "layer query head"}
    return torch.stack(
        [get_act_patch(s, a, model, corrupted_tokens, clean_cache, patching_metric) for s, a in axes.items()]
    )


def get_act_patch_block_every(model, corrupted_tokens, clean_cache, patching_metric) -> Tensor:
    """[3, layer, pos]: resid_pre, attn_out, mlp_out."""
    sites = ("resid_pre", "attn_out", "mlp_out")
    return torch.stack(
        [get_act_patch(s, "layer pos", model, corrupted_tokens, clean_cache, patching_metric) for s in sites]
    )
