"""Heads and neurons of a compiled program.

Columns of the residual stream are one-hot over the values of a categorical s-op (all 0 for None), or hold one number.

1. Aggregate and Share: one head. score(q, k) = 100 predicate(key, query) on real tokens; 50 on the start token (100 for
   Share); -200 more on padding. Selected keys share the attention equally; with none selected the start token has it
   all, and its value is zero. What leaks is e^-50 = 2e-22 of a value, less than rounding in float64.
2. Map of a category: one neuron per distinct result, the sum of the columns of the values that give it. The function
   stands in the *second* matrix: in the first, the ReLU would clip negative results.
3. SequenceMap: one neuron ReLU(x_i + y_j - 1) per pair of values.
4. Map of a number: a step ReLU(s x - t + 1/2) - ReLU(s x - t - 1/2) halfway between neighbouring values with different
   results. Its ramp is 1/s wide, s >= 2/gap, so it covers at most the middle half of the gap: exact, with a quarter of
   the gap to spare on both sides. For counts up to N the gap is 1/(N(N+1)), so s >= 2N(N+1): not a fixed 100.
5. LinearSequenceMap: a x + b y through ReLU(x) - ReLU(-x).

All neurons are silent at the start token: its column enters every neuron with a weight that outweighs the largest value
it could have there, so it never shows a later head a key, by induction. Padding may hold anything: no head looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from toylab.models.transformer import Transformer, TransformerSpec
from toylab.rasp.language import (
    Aggregate,
    Indices,
    LinearSequenceMap,
    Map,
    SequenceMap,
    Share,
    SOp,
    Tokens,
    Value,
    apply,
    number,
    selects,
    walk,
)
from toylab.rasp.values import Values

COLDNESS = 100.0
GRID = 2.0**10  # thresholds are multiples of 1/GRID: sums with a power of two times x then round the least


@dataclass(frozen=True)
class Layout:
    """columns and sublayer of every s-op by id; labels of all columns; the columns of the start and padding tokens."""

    columns: dict[int, tuple[int, ...]]
    sublayer: dict[int, int]
    labels: tuple[str, ...]
    bos: int
    pad: int


@dataclass
class Neurons:
    """Rows for the two matrices of an MLP, one neuron at a time."""

    layout: Layout
    reads: list[dict[int, float]]
    bias: list[float]
    writes: list[dict[int, float]]

    def add(self, reads: dict[int, float], bias: float, writes: dict[int, float], largest: float = 1.0) -> None:
        """ReLU(reads . resid + bias) -> writes. largest: what it could reach at the start token."""
        silent = -(max(largest, bias) + 1)
        self.reads.append({**reads, self.layout.bos: silent})
        self.bias.append(bias)
        self.writes.append(writes)


def assemble(
    program: SOp, sets: Values, layout: Layout, vocab: tuple[Value, ...], max_len: int, causal: bool, dtype: str
) -> tuple[Transformer, dict[int, str]]:
    """The model, and which component writes each s-op."""
    sops = [x for x in walk(program) if isinstance(x, SOp)]
    heads: dict[int, list[Aggregate | Share]] = {}
    neurons: dict[int, Neurons] = {}
    writers: dict[int, str] = {}
    for x in sops:
        layer = max(layout.sublayer[id(x)], 0) // 2
        if isinstance(x, Aggregate | Share):
            heads.setdefault(layer, []).append(x)
            writers[id(x)] = f"a{layer}.{len(heads[layer]) - 1}"
        elif isinstance(x, Tokens | Indices):
            writers[id(x)] = "embed" if isinstance(x, Tokens) else "pos_embed"
        else:
            _add_neurons(x, sets, neurons.setdefault(layer, Neurons(layout, [], [], [])))
            writers[id(x)] = f"m{layer}"

    every_head = [x for layer in heads.values() for x in layer]
    d_head = max([_head_size(x, sets) for x in every_head], default=1)
    spec = TransformerSpec(
        n_layers=1 + max([max(s, 0) for s in layout.sublayer.values()]) // 2,
        n_heads=max([len(x) for x in heads.values()], default=1),
        d_model=len(layout.labels),
        d_head=d_head,
        d_mlp=max([len(n.bias) for n in neurons.values()], default=0),
        act="relu",
        norm="none",
        positions="learned",
        attention="causal" if causal else "bidirectional",
        biases=("Q", "in", "U") if neurons else ("Q", "U"),
        attn_scale=1.0,
        dtype=dtype,  # type: ignore
    )
    model = Transformer(spec, d_vocab=len(vocab) + 2, n_ctx=max_len + 1, d_out=max(1, len(sets.of[id(program)])))
    weights = model.state_dict()  # shares memory with the parameters, which are zero
    _embed(weights, sops, sets, layout, vocab, max_len)
    for layer, group in heads.items():
        for h, x in enumerate(group):
            _wire_head(weights, layer, h, x, sets, layout)
    for layer, unit in neurons.items():
        _wire_neurons(weights, layer, unit)
    _unembed(weights, program, sets, layout)
    return model, writers


def _embed(weights, sops: Iterable[SOp], sets: Values, layout: Layout, vocab: tuple[Value, ...], max_len: int) -> None:
    weights["W_E"][len(vocab), layout.bos] = 1
    weights["W_E"][len(vocab) + 1, layout.pad] = 1
    for x in sops:
        if isinstance(x, Tokens):
            for value, column in zip(sets.of[id(x)], layout.columns[id(x)], strict=True):
                weights["W_E"][vocab.index(value), column] = 1
        elif isinstance(x, Indices):
            position = torch.arange(max_len)
            weights["W_pos"][1 + position, torch.tensor(layout.columns[id(x)])] = 1


def _head_size(x: Aggregate | Share, sets: Values) -> int:
    keys = len(sets.of[id(x.selector.keys)]) + 2  # type: ignore
    return keys if isinstance(x, Share) else max(keys, 1 if x.numerical else len(sets.of[id(x)]))


def _wire_head(weights, layer: int, h: int, x: Aggregate | Share, sets: Values, layout: Layout) -> None:
    select = x.selector
    keys, queries = sets.of[id(select.keys)], sets.of[id(select.queries)]  # type: ignore
    key_columns, query_columns = layout.columns[id(select.keys)], layout.columns[id(select.queries)]  # type: ignore
    bos, pad = len(keys), len(keys) + 1  # the coordinates of q and k after those of the key values
    W_Q, W_K, W_V, W_O = (weights[f"W_{name}"][layer, h] for name in "QKVO")
    for q, column in zip(queries, query_columns, strict=True):
        for i, k in enumerate(keys):
            W_Q[column, i] = COLDNESS * selects(select, k, q)  # type: ignore
    for i, column in enumerate(key_columns):
        W_K[column, i] = 1
    W_K[layout.bos, bos] = 1
    W_K[layout.pad, pad] = 1
    weights["b_Q"][layer, h, bos] = COLDNESS if isinstance(x, Share) else COLDNESS / 2
    weights["b_Q"][layer, h, pad] = -2 * COLDNESS
    out = layout.columns[id(x)]
    if isinstance(x, Share):
        W_V[layout.bos, 0] = 1
    else:
        # The output has the values of x in the same order: both are sorted, and x has no others.
        for i, column in enumerate(layout.columns[id(x.x)]):
            W_V[column, i] = 1
    for i, column in enumerate(out):
        W_O[i, column] = 1


def _wire_neurons(weights, layer: int, unit: Neurons) -> None:
    W_in, W_out = weights["W_in"][layer], weights["W_out"][layer]
    for m, (reads, writes) in enumerate(zip(unit.reads, unit.writes, strict=True)):
        W_in[list(reads), m] = torch.tensor(list(reads.values()), dtype=W_in.dtype)
        W_out[m, list(writes)] = torch.tensor(list(writes.values()), dtype=W_out.dtype)
    weights["b_in"][layer, : len(unit.bias)] = torch.tensor(unit.bias, dtype=W_in.dtype)


def _unembed(weights, program: SOp, sets: Values, layout: Layout) -> None:
    out, values = layout.columns[id(program)], sets.of[id(program)]
    if program.numerical:
        c = torch.tensor([float(v) for v in values], dtype=torch.float64)
        weights["W_U"][out[0]] = 2 * c
        weights["b_U"][:] = -(c**2)
    else:
        for i, column in enumerate(out):
            weights["W_U"][column, i] = 1


# --- Neurons ---------------------------------------------------------------------------------------------------------


def _add_neurons(x: SOp, sets: Values, unit: Neurons) -> None:
    match x:
        case Map() if x.x.numerical:
            _steps(x, sets, unit)
        case Map():
            _lookup(x, sets, unit)
        case SequenceMap():
            _pairs(x, sets, unit)
        case LinearSequenceMap():
            _linear(x, sets, unit)
        case _:
            raise AssertionError(f"{type(x).__name__} should have been refused or lowered")


def _says(x: SOp, value: Value, sets: Values, layout: Layout, sign: float = 1.0) -> dict[int, float]:
    """What to write for this value of x: its column, or its number; nothing for None."""
    if value is None:
        return {}
    columns = layout.columns[id(x)]
    return {columns[0]: sign * float(value)} if x.numerical else {columns[sets.of[id(x)].index(value)]: sign}


def _lookup(x: Map, sets: Values, unit: Neurons) -> None:
    columns = dict(zip(sets.of[id(x.x)], unit.layout.columns[id(x.x)], strict=True))
    by_result: dict[Value, dict[int, float]] = {}
    for value, column in columns.items():
        by_result.setdefault(apply(x, value), {})[column] = 1.0
    for result, reads in by_result.items():
        if result is not None:
            unit.add(reads, 0.0, _says(x, result, sets, unit.layout))
    if x.none is not None and id(x.x) in sets.maybe_none:
        # 1 where all columns are 0: the one place where a missing value can be seen.
        unit.add({c: -1.0 for c in columns.values()}, 1.0, _says(x, apply(x, None), sets, unit.layout))


def _pairs(x: SequenceMap, sets: Values, unit: Neurons) -> None:
    left = list(zip(sets.of[id(x.x)], unit.layout.columns[id(x.x)], strict=True))
    right = list(zip(sets.of[id(x.y)], unit.layout.columns[id(x.y)], strict=True))
    for i, (v, a) in enumerate(left):
        for j, (w, b) in enumerate(right):
            result = None if x.x is x.y and i != j else apply(x, v, w)
            if result is not None:
                reads = {a: 1.0} if a == b else {a: 1.0, b: 1.0}
                unit.add(reads, 1.0 - len(reads), _says(x, result, sets, unit.layout))


def _steps(x: Map, sets: Values, unit: Neurons) -> None:
    """out = f(v_0) + sum over neighbours with different results of (f(v_k) - f(v_{k-1})) [x > halfway]."""
    values, (column,) = sets.of[id(x.x)], unit.layout.columns[id(x.x)]
    results = [apply(x, v) for v in values]
    unit.add({}, 1.0, _says(x, results[0], sets, unit.layout))
    largest = max(abs(float(values[0])), abs(float(values[-1])), 1.0)
    for low, high, before, after in zip(values, values[1:], results, results[1:], strict=False):
        if before == after:
            continue
        # A power of two, so that s x is exact; t on a grid, so that s x - t mostly is.
        slope = 2.0 ** math.ceil(math.log2(2 / (high - low)))
        threshold = round(slope * float(low + high) / 2 * GRID) / GRID
        change = _sum(_says(x, before, sets, unit.layout, -1.0), _says(x, after, sets, unit.layout))
        bound = slope * largest + abs(threshold) + 1
        unit.add({column: slope}, 0.5 - threshold, change, bound)
        unit.add({column: slope}, -0.5 - threshold, {c: -w for c, w in change.items()}, bound)


def _sum(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    return {c: a.get(c, 0.0) + b.get(c, 0.0) for c in {**a, **b}}


def _linear(x: LinearSequenceMap, sets: Values, unit: Neurons) -> None:
    out = unit.layout.columns[id(x)][0]
    for y, coefficient in ((x.x, x.a), (x.y, x.b)):
        (column,) = unit.layout.columns[id(y)]
        largest = max([1.0, *(abs(float(v)) for v in sets.of[id(y)])])
        for sign in (1.0, -1.0):
            unit.add({column: sign}, 0.0, {out: sign * float(number(coefficient))}, largest)
