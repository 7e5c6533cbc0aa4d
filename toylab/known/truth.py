"""What is true of a known circuit: where its variables live, and which edges matter, worked out the slow clear way.

The edge graph. Senders: tok and pos (the embeddings), every head "a0.1", every MLP "m0". Receivers: the query, key and
value input of every head "a0.1.q", every MLP "m0", the unembedding "out". Each receiver reads the sum of all earlier
senders; ablating the edge (u, v) replaces what u sends to v alone.

1. What u sends instead: zero; its mean over the inputs, position by position; or what it sends on another input
   (resample: several fixed random pairings of all inputs).
2. An edge whose sender writes in directions that its receiver multiplies by zero has no effect: no run is needed.
3. `matters`: edges that change a scored logit on some input when ablated alone.
4. `minimal`: starting from all edges, from the output backwards, drop every edge whose ablation on top of the earlier
   ones changes no scored logit. What is left cannot lose one more edge. With two ways to the same answer (an OR) it
   keeps one of them, and depends on the order; `matters` then has neither or both.

A truth belongs to a model, an ablation and a distribution of inputs: rows of one fixed length make everything that
depends on length a constant, which resampling cannot see (reference: Miller et al. 2024, arXiv 2407.08734).
This file does not use interp/: the key may not be computed by the tools it grades.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.data import Batch, generator
from toylab.errors import one_of
from toylab.models.transformer import Transformer
from toylab.taps import Tap

Edge = tuple[str, str]
ABLATIONS = ("zero", "mean", "resample")
TOLERANCE = 1e-6  # of a logit; effects of planted edges are of order 0.01 to 100, rounding of order 1e-12
N_PAIRINGS = 6


@dataclass(frozen=True, eq=False)
class Variable:
    """Where one variable lives.

    site:       full name of the first site that shows it; residual directions stay readable at all later sites.
    directions: orthonormal rows. Categorical: row i has coefficient 1 where the variable is values[i], else 0.
                Numerical: one row, whose coefficient is the number.
    values:     what the variable can be.
    latent:     the task's latent it equals; "" if the task has none.
    positions:  where it stands; None: wherever the latent is determined.
    scale:      coefficients are this many times what they say.
    read:       whether any later component reads it; False for a decoy, which probes see and interventions do not.
    """

    site: str
    directions: Float[Tensor, "value d_model"]
    values: tuple[Any, ...]
    numerical: bool = False
    latent: str = ""
    positions: tuple[int, ...] | None = None
    scale: float = 1.0
    read: bool = True

    def coefficients(self, activations: Float[Tensor, "*at d_model"]) -> Float[Tensor, "*at value"]:
        """What the activations at `site` say: one-hot of the value, or the number."""
        return activations @ self.directions.T.to(activations.dtype) / self.scale


@dataclass(frozen=True)
class Circuit:
    """matters: edges with an effect of their own; minimal: one set that suffices and cannot lose an edge."""

    matters: frozenset[Edge]
    minimal: frozenset[Edge]


@dataclass(frozen=True, eq=False)
class CircuitTruth:
    """variables: name -> Variable. circuit: ablation -> Circuit, found by the search above when first asked for.

    nodes: component ("a0.1", "m0") -> what it computes. batch: the inputs that the circuit speaks of.
    unrotated: the truth of the same function before its residual stream was rotated, whose circuit it shares.
    """

    model: Transformer
    batch: Batch
    variables: dict[str, Variable]
    nodes: dict[str, str] = field(default_factory=dict)
    unrotated: CircuitTruth | None = None

    @cached_property
    def circuit(self) -> dict[str, Circuit]:
        if self.unrotated is not None:
            return self.unrotated.circuit
        return {ablation: find_circuit(self.model, self.batch, ablation) for ablation in ABLATIONS}


# --- The graph -------------------------------------------------------------------------------------------------------


def senders(model: Transformer) -> list[str]:
    """In forward order."""
    names = ["tok", "pos"] if model.spec.positions in ("learned", "sinusoidal") else ["tok"]
    for layer in range(model.n_layers):
        names += [f"a{layer}.{h}" for h in range(model.n_heads)] + ([f"m{layer}"] if model.d_mlp else [])
    return names


def edges(model: Transformer) -> list[Edge]:
    """Every edge, receivers in forward order. The count is that of the reference sheet, section 0.2."""
    earlier = senders(model)[: 1 + (model.spec.positions in ("learned", "sinusoidal"))]
    found: list[Edge] = []
    for layer in range(model.n_layers):
        heads = [f"a{layer}.{h}" for h in range(model.n_heads)]
        found += [(u, f"{head}.{x}") for head in heads for x in "qkv" for u in earlier]
        earlier = earlier + heads
        if model.d_mlp:
            found += [(u, f"m{layer}") for u in earlier]
            earlier = [*earlier, f"m{layer}"]
    return found + [(u, "out") for u in earlier]


@dataclass
class Rewired(Tap):
    """Adds replacement - online output of the sender to what the receiver of every ablated edge reads."""

    ablated: Collection[Edge]
    replacements: Mapping[str, Tensor]
    last_layer: int
    sent: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name, layer, value):
        if name in ("embed", "pos_embed"):
            self.sent["tok" if name == "embed" else "pos"] = value
        elif name in ("q_input", "k_input", "v_input"):
            receivers = [f"a{layer}.{h}.{name[0]}" for h in range(value.shape[2])]
            if any(v in receivers for _, v in self.ablated):
                return torch.stack([self._read(v, value[:, :, h]) for h, v in enumerate(receivers)], 2)
        elif name == "result":
            self.sent |= {f"a{layer}.{h}": value[:, :, h] for h in range(value.shape[2])}
        elif name == "mlp_in":
            return self._read(f"m{layer}", value)
        elif name == "mlp_out":
            self.sent[f"m{layer}"] = value
        elif name == "resid_post" and layer == self.last_layer:
            return self._read("out", value)
        return value

    def _read(self, receiver: str, resid: Tensor) -> Tensor:
        for u, v in self.ablated:
            if v == receiver:
                resid = resid + (self.replacements[u] - self.sent[u])
        return resid

    def wants(self, name, layer):
        return name in ("q_input", "k_input", "v_input", "result", "mlp_in")


@torch.no_grad()
def run_ablated(
    model: Transformer, inputs: Tensor, ablated: Collection[Edge], replacements: Mapping[str, Tensor]
) -> Float[Tensor, "batch pos d_out"]:
    """Logits with these edges carrying the replacement instead."""
    return model.forward(inputs, Rewired(ablated, replacements, model.n_layers - 1))


@torch.no_grad()
def sent_by(model: Transformer, inputs: Tensor) -> dict[str, Tensor]:
    """What every sender sends in the clean run, [batch, pos, d_model]."""
    tap = Rewired((), {}, model.n_layers - 1)
    model.forward(inputs, tap)
    return tap.sent


# --- The search ------------------------------------------------------------------------------------------------------


def n_trials(ablation: str) -> int:
    """How often every input is run: zero and mean are one value, resample pairs it with several others."""
    one_of("ablation", ablation, ABLATIONS)
    return N_PAIRINGS if ablation == "resample" else 1


def replacements(model: Transformer, inputs: Tensor, ablation: str) -> dict[str, Tensor]:
    """What every sender sends instead, [(trial batch), pos, d_model]: rows for the inputs repeated n_trials times."""
    trials, clean = n_trials(ablation), sent_by(model, inputs)
    if ablation == "zero":
        return {u: torch.zeros_like(y) for u, y in clean.items()}
    if ablation == "mean":
        return {u: y.mean(0, keepdim=True).expand_as(y) for u, y in clean.items()}
    g = generator(0, "pairings")
    others = torch.cat([torch.randperm(len(inputs), generator=g) for _ in range(trials)])
    return {u: y[others] for u, y in clean.items()}


def find_circuit(model: Transformer, batch: Batch, ablation: str) -> Circuit:
    """Both edge sets of one ablation over these inputs; see the head of this file."""
    instead = replacements(model, batch.inputs, ablation)
    trials = n_trials(ablation)
    inputs, scored = batch.inputs.repeat(trials, 1), _scored(batch).repeat(trials, 1)
    clean = run_ablated(model, inputs, [], {})[scored]

    def changed(ablated: Collection[Edge]) -> bool:
        logits = run_ablated(model, inputs, ablated, instead)[scored]
        return bool((logits - clean).abs().max() > TOLERANCE)

    linked = [edge for edge in edges(model) if _linked(model, edge)]
    matters = frozenset(edge for edge in linked if changed([edge]))
    unlinked = [edge for edge in edges(model) if edge not in linked]
    dropped: list[Edge] = []
    # From the output backwards; what feeds nothing that is kept falls by the same test.
    for edge in reversed(linked):
        if not changed([*dropped, edge]):
            dropped.append(edge)
    assert not changed([*dropped, *unlinked]), "an edge that meets only zeros had an effect"
    return Circuit(matters, frozenset(linked) - frozenset(dropped))


def _scored(batch: Batch) -> Tensor:
    """[batch, pos], True where the task asks for an answer."""
    n, n_pos = batch.inputs.shape
    weight = torch.ones(batch.targets.shape) if batch.weight is None else batch.weight
    mask = torch.zeros(n, n_pos, dtype=torch.bool)
    mask[:, list(batch.read) if batch.read is not None else slice(None)] = weight > 0
    return mask


def _linked(model: Transformer, edge: Edge) -> bool:
    """Whether anything the sender writes meets a nonzero weight of the receiver."""
    u, v = edge
    if u in ("tok", "pos"):
        written = model.W_E if u == "tok" else model.W_pos
    elif u.startswith("a"):
        layer, head = map(int, u[1:].split("."))
        written = model.W_O[layer, head]
    else:
        layer = int(u[1:])
        bias = [] if model.b_out is None else [torch.as_tensor(model.b_out)[layer][None]]
        written = torch.cat([model.W_out[layer], *bias])
    if v == "out":
        read = model.W_U
    elif v.startswith("m"):
        read = model.W_in[int(v[1:])]
    else:
        layer, head = map(int, v[1:-2].split("."))
        read = getattr(model, f"W_{v[-1].upper()}")[layer, head]
    return bool(((written != 0).any(0) & (read != 0).any(1)).any())
