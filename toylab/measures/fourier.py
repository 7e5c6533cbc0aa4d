"""How a network adds in an abelian group, as numbers along training: Nanda et al. 2023, Zhong et al. 2023.

The group, its tokens and its classes come from `task.as_group()`, so x+y mod p, x-y, and x*y and x/y through discrete
logarithms are one code path, for prime and composite p. "All pairs" are the n^2 pairs of group elements: the whole
table for x+y; for x*y those without 0, and losses over the n classes that are elements.

1. `Spectra`: weights only; which frequencies W_E and W_L = W_out W_U hold.
2. `LogitFourier`: which frequencies the logits answer with, and the loss with these kept or removed.
3. `Neurons`, `Attention`: what happens on the way.
4. `ClockPizza`: by which of two algorithms.

The algebra is in interp/fourier.py, interp/group_addition.py and interp/clock_pizza.py; what two measures need is
computed once per snapshot. Losses are cross-entropies in nats, in float64. All of them raise UserError, with the name
of the measure, on a task without pairs of a group and on a model without the weights they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan, prod
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toylab.data import GroupLabels, generator
from toylab.errors import UserError, one_of, require
from toylab.interp.clock_pizza import circularity, distance_irrelevance, gradient_symmetricity
from toylab.interp.fourier import (
    Group,
    KeyFrequencies,
    fourier_basis,
    fourier_gini,
    frequencies,
    group_name,
    group_sums,
    key_frequencies,
    power_by_frequency,
    transform,
)
from toylab.interp.group_addition import (
    NeuronFrequencies,
    TrigFit,
    attention_wave,
    direction_fve,
    exclusion_losses,
    key_logit_frequencies,
    neuron_frequencies,
    neuron_logit_map,
    sum_components,
    sum_part,
    trig_fit,
)
from toylab.snapshot import Labelled, Snapshot, Stack
from toylab.taps import Replace, Tapped

Numbers = dict[str, float | Labelled]
CLEAR = 0.85  # a neuron is explained by its frequency from here on (Nanda et al. 2023, section 4.1)


@dataclass(frozen=True)
class Spectra:
    """Fourier spectra of the embedding and of the neuron-logit map W_L = W_out W_U. Weights only.

    embed_power, W_L_power [freq]  share of |W_E|^2, |W_L|^2 at this frequency, the constant left out (0 at freq 0)
    embed_norm, W_L_norm [row]     |sum_x basis[row, x] W_E[x]|, and the same along the outputs of W_L
    embed_gini, W_L_gini           Gini coefficient of these norms
    n_embed_freqs                  frequencies of W_E above a flat random spectrum (`key_frequencies`, dof 2 d_model)

    Source: Nanda et al. 2023, figures 3 and 7. Variants in the wild: Gini of amplitudes (here) or of energies; over
    all n basis rows with the constant (here) or over folded frequencies; of the 2-D spectrum of the logits. They give
    other numbers: never compare across. `n_embed_freqs` counts what is represented, used or not.
    Domain: transformers with an MLP; of several layers W_L is the last one's. Norm layers are not folded in.
    Exact: planted adders with m embedded frequencies of equal size have embed_gini (n - 2m)/n, embed_power 1/m each.
    Invariant under rotation and scaling of the residual stream; relabelling x -> cx permutes frequencies.
    Null (12 untrained networks, p = 113, d_model 128): embed_gini .034-.039, W_L_gini .036-.043, embed_power and
    W_L_power up to .024; n_embed_freqs is 0 in 99 of 100 by its calibration.
    Cost: tests/bench/bench_measures.py. Given a Stack it saves building the models.
    """

    def __call__(self, snap: Snapshot) -> Numbers:
        labels = _labels(snap.task, self)
        return self._spectra({name: p.detach() for name, p in snap.model.named_parameters()}, snap.model, labels)

    def stack(self, stack: Stack) -> dict[str, Labelled]:
        labels = _labels(stack.task, self)
        # One checkpoint after another: a batched product may round differently, and online must equal offline.
        rows = [
            self._spectra({name: p[i].clone() for name, p in stack.params.items()}, stack.model, labels)
            for i in range(len(stack.steps))
        ]
        return {name: _stacked([row[name] for row in rows]) for name in rows[0]}

    def _spectra(self, weights: Mapping[str, Tensor], model: Tapped, labels: GroupLabels) -> Numbers:
        W_E, W_L = _embedding(weights, labels, model, self), _neuron_logit_map(weights, labels, model, self)
        group = labels.group
        found: Numbers = {}
        for name, table in (("embed", W_E), ("W_L", W_L.T)):
            power = power_by_frequency(table, group, 0).sum(-1)
            norms = transform(table, group, 0).norm(dim=-1)
            found |= {
                f"{name}_power": _by_freq(_without_constant(power), group),
                f"{name}_norm": Labelled(norms, ("row",), {"row": [*fourier_basis(group).labels]}),
                f"{name}_gini": fourier_gini(table, group).item(),
            }
            if name == "embed":  # not of W_L: its columns come through W_out and are not independent
                found["n_embed_freqs"] = float(key_frequencies(power, group, dof=2 * table.shape[1]).mask.sum())
        return found


@dataclass(frozen=True)
class LogitFourier:
    """What of the logits is made of key frequencies of a + b, and the losses that this gives: the progress measures.

    L is the table of logits [a, b, c], K the key frequencies, P_K the projection on cos w_k(a+b) and sin w_k(a+b) for
    k in K, and m the mean over pairs of each output.

    n_key_freqs, key_freqs [freq]   how many there are, and 1 where (`key_logit_frequencies`; no number fixed before)
    logit_cos [freq]                coefficient of cos w_k(a + b - c) in L, in logits; at 0 the mean of L
    logit_fve                       share of L (centred over c) in the cosines of K
    restricted_loss                 of P_K L + m, all pairs;  restricted_test_loss  the same on the test pairs
    restricted_loss_uncorrected     of P_K L, without the bias correction m; all pairs
    excluded_loss                   of L - P_K L, no bias correction, TRAINING pairs
    excluded_loss_by_freq [freq]    of L - P_k L for each k alone, training pairs; at 0 that of L - m
    nonkey_removed_loss             of L - P_k L for all k > 0 not in K together, all pairs
    trig_loss                       of sum_K logit_cos cos w_k(a + b - c) in the place of L, all pairs

    freqs: "final" takes K from the finished network, `snap.reference` (hindsight: offline only). "current" takes it
    from this snapshot, and every name ends in `_current`: another number, as K is empty early on and then changes.
    With K empty: restricted and trig loss are near ln n, excluded_loss is the training loss, logit_fve 0.
    Source: Nanda et al. 2023, sections 4.2 and 5.1, figures 6 and 7. Variants in the wild: "excluded loss" as test
    minus training loss, or on test pairs, which says nothing; restricted loss on test pairs; no bias correction;
    projections on all products of cos and sin of a and b at k, not those of a + b alone; ablating K one by one.
    Domain: any model; logits of shuffled or noisy labels too (the labels are the answers), but for pairs whose label
    is no element of the group, which are left out.
    Exact: a quadratic adder or clock has restricted = nonkey-removed = trig = full loss, excluded_loss ln n,
    logit_fve 1, logit_cos its amplitudes, whatever decoys its embedding and neurons hold.
    Invariant under a constant added to each row of logits (except logit_cos at 0); relabelling permutes frequencies.
    Null: n_key_freqs is 0 in 99 of 100 by its calibration, hence the values for an empty K. 12 untrained networks,
    p = 113: none had one; logit_cos within .05 of 0, every loss 4.72-4.78 (ln 113 = 4.727).
    Raises UserError for "final" without a reference; `Run.reference` refuses unfinished runs.
    Cost: tests/bench/bench_measures.py; about half is excluded_loss_by_freq, shared between "final" and "current",
    and so is all else where both name the same K.
    """

    freqs: Literal["current", "final"]

    def __post_init__(self):
        one_of("freqs", self.freqs, ("current", "final"))

    @property
    def hindsight(self) -> bool:
        """Whether it needs the finished network as reference."""
        return self.freqs == "final"

    def __call__(self, snap: Snapshot) -> Numbers:
        pairs, keys = _pairs(snap, self), self._keys(snap)
        if keys.group != pairs.group:
            raise UserError(
                f"{self!r}: the reference adds in {group_name(keys.group)} and this snapshot in "
                f"{group_name(pairs.group)}; look back from the end of the same run"
            )
        # Late in training the current frequencies are the final ones, and so are the numbers.
        found = snap.shared(("fourier: kept and removed", keys.freqs), lambda: self._numbers(snap, pairs, keys))
        return found if self.hindsight else {f"{name}_current": value for name, value in found.items()}

    def _numbers(self, snap: Snapshot, pairs: _Pairs, keys: KeyFrequencies) -> Numbers:
        group, freqs, mask = pairs.group, keys.freqs, keys.mask
        logits, components, fit = _logits(snap, self), _components(snap, self), _trig_fit(snap, self)
        others = [k for k in frequencies(group)[1:] if k not in freqs]
        restricted = sum_part(components, [0, *freqs], group)
        return {
            "n_key_freqs": float(len(freqs)),
            "key_freqs": _by_freq(mask.int(), group),
            "logit_cos": _by_freq(fit.cos, group),
            "logit_fve": fit.fve_of(mask).item(),
            "restricted_loss": pairs.loss_of_sum(restricted),
            "restricted_test_loss": pairs.loss_of_sum(restricted, "test"),
            "restricted_loss_uncorrected": pairs.loss_of_sum(sum_part(components, freqs, group)),
            "excluded_loss": pairs.loss_without(logits, sum_part(components, freqs, group), "train"),
            "excluded_loss_by_freq": _by_freq(_exclusion_losses(snap, self), group),
            "nonkey_removed_loss": pairs.loss_without(logits, sum_part(components, others, group), "all"),
            "trig_loss": pairs.loss_of_sum(_cosines(fit, mask, group)),
        }

    def _keys(self, snap: Snapshot) -> KeyFrequencies:
        if not self.hindsight:
            return _key_frequencies(snap, self)
        if snap.reference is None:
            raise UserError(
                f"{self!r} looks back from the finished network, and this snapshot has no reference: use "
                'run.map(measure, reference=run.reference()), or freqs="current" during training'
            )
        return _key_frequencies(snap.reference, self)


@dataclass(frozen=True)
class Neurons:
    """What the last layer's neurons compute at the read position, and how the logits read them.

    neuron_freq, neuron_frac [neuron]   the frequency with the largest share of the neuron's variance over pairs (0 for
                                        a constant neuron), and that share: all products of 1, cos, sin of w_k a, w_k b
    neurons_explained                   share with neuron_frac >= .85 of the neurons that are not constant
    neuron_sum_share, neuron_diff_share mean over these of the share in w_k(a + b), in w_k(a - b), of its frequency
    direction_fve                       mean over the key directions u_k, v_k of W_L: the share of the variance of the
                                        neurons read along it that is cos w_k(a + b), sin w_k(a + b)
    W_L_residual                        share of |W_L|^2 outside the key directions
    W_L_rank_energy                     share of |W_L|^2 in its largest singular values, as many as key directions

    Key frequencies are this snapshot's. nan where there is no neuron or no direction to average over; without key
    frequencies W_L_residual is 1 and W_L_rank_energy 0.
    Source: Nanda et al. 2023, sections 4.1 and 4.2 (433 of 512 neurons explained, residual < .55%, FVE 93-98%).
    Variants in the wild: key frequencies as those of some neuron; the 7-term fit without a - b (`neuron_frequencies`
    has it); neurons not centred, which inflates every share.
    Domain: transformers with an MLP. Exact: ReLU(cos wa + cos wb) has share .962 = .745 + .109 (sum) + .109 (diff),
    a square .8 = .4 + .4; a clock has direction_fve 1, a pizza 8/pi^2 in the limit of many angles.
    Invariant under scaling and permuting neurons (with their outputs); relabelling permutes frequencies.
    Null (12 untrained networks, p = 113, 512 neurons): neurons_explained 0, neuron_frac up to .18, neuron_sum_share
    and neuron_diff_share .0004-.0006, and no key direction.
    Cost: tests/bench/bench_measures.py; a forward pass that keeps the neurons, and four sums over their table.
    """

    def __call__(self, snap: Snapshot) -> Numbers:
        pairs = _pairs(snap, self)
        group = pairs.group
        W_L = _neuron_logit_map(dict(snap.model.named_parameters()), pairs.labels, snap.model, self).detach()
        post = pairs.table(snap.site("post", _last_layer(snap.model))[:, -1])
        neurons, freqs = _neurons(snap, post, group), _key_frequencies(snap, self).freqs
        alive = neurons.freq > 0
        read = neuron_logit_map(W_L, freqs, group)
        return {
            "neuron_freq": Labelled(neurons.freq, ("neuron",)),
            "neuron_frac": Labelled(neurons.frac, ("neuron",)),
            "neurons_explained": _mean((neurons.frac >= CLEAR).double()[alive]),
            "neuron_sum_share": _mean(neurons.sum[alive]),
            "neuron_diff_share": _mean(neurons.diff[alive]),
            "direction_fve": _mean(direction_fve(post, W_L, freqs, group)) if freqs else nan,
            "W_L_residual": read.residual.item(),
            "W_L_rank_energy": read.rank_energy.item(),
        }


@dataclass(frozen=True)
class Attention:
    """Whether each head of the last layer looks at a or b by a wave of the operand.

    attn_freq, attn_share [head]  the frequency of s(a) in the score difference score(a) - score(b) = s(a) - s'(b) at
                                  the read position, and its share of the variance of s; 0 where s is constant
    attn_to_operands [head]       mean over pairs of the pattern's weight on a and on b together

    Source: Nanda et al. 2023, section 4.1. Variants in the wild: the spectrum of the pattern itself, which the softmax
    bends, so that harmonics appear. Domain: transformers; of several layers the last.
    Exact: constant attention has attn_share 0, and the format "a b" has attn_to_operands 1.
    Invariant under a constant added to the scores; relabelling permutes frequencies.
    Null (12 untrained networks, p = 113): attn_share .04-.16; attn_to_operands 2/3 within .01.
    Cost: tests/bench/bench_measures.py; shares the forward pass of Neurons.
    """

    def __call__(self, snap: Snapshot) -> Numbers:
        pairs = _pairs(snap, self)
        _need(snap.model, ("W_Q", "W_K"), "transformers", self)
        layer, (at_a, at_b) = _last_layer(snap.model), snap.task.operand_positions
        scores, pattern = (pairs.table(snap.site(name, layer)[:, :, -1]) for name in ("attn_scores", "pattern"))
        freq, share = attention_wave((scores[..., at_a] - scores[..., at_b]).T.contiguous(), pairs.group)
        return {
            "attn_freq": Labelled(torch.where(share > 0, freq, 0), ("head",)),
            "attn_share": Labelled(share, ("head",)),
            "attn_to_operands": Labelled((pattern[..., at_a] + pattern[..., at_b]).mean(0), ("head",)),
        }


@dataclass(frozen=True)
class ClockPizza:
    """Clock or pizza: by which of two algorithms the network adds.

    gradient_symmetricity  mean cosine between the gradients of logit c by the embedded a and by the embedded b, over
                           n_triples random (a, b, c), drawn from `seed`: near 1 pizza, lower clock
    distance_irrelevance   mean over d = a - b of the spread of the right logit at fixed d, over its spread on all
                           pairs: near 0 pizza, near 1 clock; nan where the right logit is constant
    circularity            how nearly the first four principal components of the embedding are single waves; Zhong et
                           al. read the other two only from .995 on

    Source: Zhong et al. 2023 (arXiv 2306.17844), section 4: a pizza has .994, .17, .998, a clock .334, .85, .999.
    Variants in the wild: distance irrelevance of the largest *wrong* logits (their training log); here the logit of
    a + b (their notebook), whatever the labels say. Gradients are by whole embedding vectors.
    Domain: transformers. Symmetricity is of x+y and x*y: in x-y and x/y the second operand is embedded as its negative,
    and a pizza's gradients are mirror images. Circles of equal size share their principal components, which may then
    mix frequencies: circularity is not defined there (it is of trained networks, whose circles differ).
    Exact: a planted pizza has symmetricity 1; a planted clock of one frequency and amplitude 1
    the mean of cos w(a - b) / sqrt(3) over the triples (the residual stream beside the embedding adds the root) and
    distance irrelevance nan; both have circularity 1.
    Invariant under relabelling (but for the triples) and under rotating the residual stream.
    Null (12 untrained networks, p = 113): symmetricity .999 (uniform attention treats a and b alike: it looks like a
    pizza), irrelevance .999 (like a clock), circularity .06-.10: read circularity first.
    Cost: tests/bench/bench_measures.py; the logits are shared.
    """

    n_triples: int
    seed: int

    def __post_init__(self):
        require(self.n_triples >= 1, f"n_triples={self.n_triples}: at least 1; the paper takes 100")

    def triples(self, group: Group) -> Int[Tensor, "triple three"]:
        """The elements a, b, c."""
        return torch.randint(prod(group), (self.n_triples, 3), generator=generator(self.seed, "triples"))

    def __call__(self, snap: Snapshot) -> Numbers:
        pairs = _pairs(snap, self)
        _need(snap.model, ("W_E", "W_Q"), "transformers", self)
        labels, group = pairs.labels, pairs.group
        logits, sums = _logits(snap, self), group_sums(group).flatten().to(pairs.target.device)
        weights = {name: p.detach() for name, p in snap.model.named_parameters()}
        return {
            "gradient_symmetricity": self._symmetricity(snap, pairs),
            "distance_irrelevance": distance_irrelevance(logits.gather(1, sums[:, None])[:, 0].double(), group).item(),
            "circularity": circularity(_embedding(weights, labels, snap.model, self), group).item(),
        }

    def _symmetricity(self, snap: Snapshot, pairs: _Pairs) -> float:
        n, labels = prod(pairs.group), pairs.labels
        a, b, c = self.triples(pairs.group).unbind(1)
        tokens = snap.batch.inputs[pairs.rows[a * n + b]]
        W_E, at = snap.model.get_parameter("W_E").detach(), snap.task.operand_positions

        def logits_of(operands: Tensor) -> Tensor:
            embedded = W_E[tokens].clone()
            embedded[:, at] = operands
            return snap.model.forward(tokens, Replace({"hook_embed": embedded}))[:, -1]

        chosen = torch.stack([labels.left[a], labels.right[b], labels.out[c]], 1).to(W_E.device)
        return gradient_symmetricity(logits_of, W_E, chosen).item()


# --- The table of pairs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pairs:
    """All pairs of group elements, in the order that interp/group_addition.py takes them: row i * n + j.

    rows:   [pair], the row of split.all.
    target: [pair], the element that the label names; 0, and weight 0, where it names none.
    weight: subset -> [pair], 1.0 where the pair counts.
    """

    labels: GroupLabels
    rows: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]
    weight: dict[str, Float[Tensor, " pair"]]

    @property
    def group(self) -> Group:
        return self.labels.group

    def table(self, values: Float[Tensor, "example ..."]) -> Float[Tensor, "pair ..."]:
        """The rows of the pairs, without a copy where every example is one, in this order."""
        in_order = len(values) == len(self.rows) and torch.equal(self.rows, torch.arange(len(values)).to(self.rows))
        return values if in_order else values[self.rows]

    def loss_of_sum(self, table: Float[Tensor, "s c"], subset: str = "all") -> float:
        """Mean loss of logits that are a function of s = a + b."""
        nats = -table.double().log_softmax(-1)
        each = nats[group_sums(self.group).flatten().to(nats.device), self.target]
        return ((each * self.weight[subset]).sum() / self.weight[subset].sum()).item()

    def loss_without(self, logits: Float[Tensor, "pair c"], removed: Float[Tensor, "s c"], subset: str) -> float:
        """Mean loss after subtracting a function of s = a + b."""
        sums, target, weight = group_sums(self.group).flatten().to(logits.device), self.target, self.weight[subset]
        if not weight.all():
            chosen = weight.nonzero().squeeze(1)
            logits, sums, target = logits[chosen], sums[chosen], target[chosen]
        left = removed.double()[sums]
        return F.cross_entropy(torch.sub(logits, left, out=left), target).item()


def _labels(task: Any, measure: object) -> GroupLabels:
    labels = task.as_group() if hasattr(task, "as_group") else None
    if labels is None:
        raise UserError(
            f"{measure!r} is defined for tasks whose answer is the sum of two operands in an abelian group, and "
            f"{task!r} is none: accepted are x+y and x-y for any p, x*y and x/y for an odd prime p, with n_operands=2"
        )
    return labels


def _pairs(snap: Snapshot, measure: object) -> _Pairs:
    def compute() -> _Pairs:
        labels = _labels(snap.task, measure)
        targets = snap.batch.targets[:, 0]
        rows = snap.task.row_of(torch.cartesian_prod(labels.left, labels.right)).to(targets.device)
        element = torch.full((snap.task.d_out,), -1)
        element[labels.out] = torch.arange(len(labels.out))
        target = element.to(targets.device)[targets[rows]]
        asked = (target >= 0).double()
        weight = {"all": asked}
        for name in ("train", "test"):
            chosen = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
            chosen[snap.rows(name)] = 1
            weight[name] = chosen[rows] * asked
        return _Pairs(labels, rows, target.clamp_min(0), weight)

    return snap.shared("fourier: pairs", compute)


# --- What measures share: each is computed once per snapshot ---------------------------------------------------------


def _logits(snap: Snapshot, measure: object) -> Float[Tensor, "pair c"]:
    def compute() -> Tensor:
        pairs = _pairs(snap, measure)
        logits, out = pairs.table(snap.logits[:, -1]), pairs.labels.out
        whole = torch.equal(out, torch.arange(logits.shape[1]))
        return logits if whole else logits[:, out.to(logits.device)].contiguous()

    return snap.shared("fourier: logits", compute)


def _components(snap: Snapshot, measure: object) -> Float[Tensor, "row c"]:
    return snap.shared("fourier: sums", lambda: sum_components(_logits(snap, measure), _pairs(snap, measure).group))


def _trig_fit(snap: Snapshot, measure: object) -> TrigFit:
    return snap.shared("fourier: trig fit", lambda: trig_fit(_logits(snap, measure), _pairs(snap, measure).group))


def _key_frequencies(snap: Snapshot, measure: object) -> KeyFrequencies:
    return snap.shared(
        "fourier: key frequencies", lambda: key_logit_frequencies(_logits(snap, measure), _pairs(snap, measure).group)
    )


def _exclusion_losses(snap: Snapshot, measure: object) -> Float[Tensor, " freq"]:
    def compute() -> Tensor:
        pairs = _pairs(snap, measure)
        return exclusion_losses(_logits(snap, measure), pairs.target, pairs.group, pairs.weight["train"])

    return snap.shared("fourier: exclusion losses", compute)


def _neurons(snap: Snapshot, post: Tensor, group: Group) -> NeuronFrequencies:
    return snap.shared("fourier: neurons", lambda: neuron_frequencies(post, group))


# --- Weights and labels ----------------------------------------------------------------------------------------------


def _need(model: Tapped, names: tuple[str, ...], accepted: str, measure: object) -> None:
    missing = [name for name in names if getattr(model, name, None) is None]
    require(
        not missing,
        f"{measure!r} reads {', '.join(names)}, and {model!r} has no {', '.join(missing)}; it accepts {accepted}",
    )


def _embedding(
    weights: Mapping[str, Tensor], labels: GroupLabels, model: Tapped, measure: object
) -> Float[Tensor, "n d_model"]:
    """The rows of W_E that are group elements, in their order. The right operand's are the same rows."""
    _need(model, ("W_E",), "transformers", measure)
    return weights["W_E"][labels.left.to(weights["W_E"].device)]


def _neuron_logit_map(
    weights: Mapping[str, Tensor], labels: GroupLabels, model: Tapped, measure: object
) -> Float[Tensor, "d_mlp n"]:
    """W_L = W_out W_U of the last layer, the columns that are group elements."""
    _need(model, ("W_E", "W_out"), "transformers with an MLP (d_mlp > 0)", measure)
    # A tied model unembeds with the transpose of W_E.
    W_U = weights["W_U"] if "W_U" in weights else weights["W_E"].T
    return weights["W_out"][-1] @ W_U[:, labels.out.to(W_U.device)]


def _last_layer(model: Tapped) -> int:
    return int(model.n_layers) - 1


def _cosines(fit: TrigFit, mask: Tensor, group: Group) -> Float[Tensor, "s c"]:
    """sum over these frequencies of cos_k cos w_k(s - c), as cos cos + sin sin."""
    basis = fourier_basis(group)
    size = torch.zeros(len(basis.labels), dtype=torch.float64)
    kept = (fit.cos * mask).double().cpu()[basis.freq_index]
    # A unit row is sqrt(2/n) cos, or sqrt(1/n) where there is no sine.
    size += kept * torch.where(basis.has_sine[basis.freq_index], prod(group) / 2, prod(group))
    return torch.einsum("rs,r,rc->sc", basis.matrix, size, basis.matrix).to(fit.cos.device)


def _by_freq(values: Tensor, group: Group) -> Labelled:
    return Labelled(values, ("freq",), {"freq": [*frequencies(group)]})


def _without_constant(power: Float[Tensor, " freq"]) -> Float[Tensor, " freq"]:
    """Shares of the power at frequencies other than 0."""
    rest = power.clone()
    rest[0] = 0
    return rest / rest.sum().clamp_min(torch.finfo(rest.dtype).tiny)


def _mean(values: Tensor) -> float:
    """nan of nothing."""
    return values.double().mean().item()


def _stacked(values: list[float | Labelled]) -> Labelled:
    first = values[0]
    if isinstance(first, Labelled):
        arrays = [v.values for v in values if isinstance(v, Labelled)]
        return Labelled(np.stack(arrays), ("step", *first.dims), first.coords)
    return Labelled(np.array(values), ("step",))
