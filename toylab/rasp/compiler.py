"""RASP programs as weights of toylab's own Transformer, equal to the interpreter on every input (after Tracr).

1. Check (values.py): everything unsupported is listed in one error before anything is built.
2. Lower to what one head or one group of neurons can do: a SelectorWidth becomes the share of attention that the start
   token keeps, 1/(1 + width), and a Map of that number back to a count; & | ~ become one Select over pairs;
   a Map of an unnamed Map becomes one Map.
3. Place: every head in the first attention sublayer after its inputs, every group of neurons in the first such MLP.
4. Lay out the residual stream: one direction per value of a categorical s-op ("hist:2"), one per numerical s-op. None
   is the zero vector. Nothing is erased: a variable stays readable at every later site.
5. Wire heads and neurons (assemble.py).

The input is a start token, n tokens, and padding: bos a b c pad pad. The model has biases instead of Tracr's constant
direction, and attn_scale=1 instead of sqrt(d_head), which would let e^(50/sqrt(d_head)) leak to the start token.
Lindner et al. 2023, arXiv 2301.05062. Came from: values.py. Read next: assemble.py, programs.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.errors import UserError, did_you_mean, require
from toylab.models.transformer import DTYPES, Transformer
from toylab.rasp.assemble import Layout, assemble
from toylab.rasp.language import (
    Aggregate,
    Combined,
    Indices,
    Map,
    Select,
    Selector,
    SelectorWidth,
    SequenceMap,
    Share,
    SOp,
    Tokens,
    Value,
    apply,
    evaluate,
    inputs_of,
    names_of,
    walk,
)
from toylab.rasp.values import Values, value_sets


@dataclass(frozen=True)
class Written:
    """Where the model keeps one s-op: at `site` and every later residual site, in these columns of the residual stream.

    values: of a categorical s-op, column by column (one-hot; None is zero everywhere); of a numerical one, all that its
    single column can hold.
    by: the component that writes it: "embed", "pos_embed", "a0.1" (layer 0, head 1) or "m0".
    """

    site: str
    columns: tuple[int, ...]
    values: tuple[Value, ...]
    numerical: bool
    by: str


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program, the model that computes it, and where everything is.

    classes: values of the output. Logits of a categorical program are 1 for its value and 0 elsewhere, all 0 for None.
             Logits of a numerical x are 2 c x - c^2 = x^2 - (x - c)^2 for class c: the nearest value wins.
    written: name of an s-op -> Written. labels: name of each residual direction.
    """

    program: SOp
    lowered: SOp
    vocab: tuple[Value, ...]
    max_len: int
    causal: bool
    model: Transformer
    classes: tuple[Value, ...]
    written: dict[str, Written]
    labels: tuple[str, ...]

    def encode(self, rows: Sequence[Sequence[Value]]) -> Int[Tensor, "batch pos"]:
        """Token ids: start, the row, padding. Raises UserError on an unseen token or a wrong length."""
        return encode(rows, self.vocab, self.max_len)

    def run(self, rows: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """What the compiled model says, one value per token; None where no class is claimed."""
        with torch.no_grad():
            logits = self.model(self.encode(rows))
        best, at = logits.max(-1)
        silent = (best < 0.5) & (not self.program.numerical)
        picked = torch.where(silent, -1, at)[:, 1:].tolist()
        return [
            [None if c < 0 else self.classes[c] for c in p[: len(row)]] for p, row in zip(picked, rows, strict=True)
        ]

    def expected_logits(self, rows: Sequence[Sequence[Value]]) -> Float[Tensor, "batch pos classes"]:
        """The logits that the interpreter's values stand for; NaN at the start token and at padding."""
        numbers = map(float, self.classes) if self.program.numerical else range(len(self.classes))
        c = torch.tensor(list(numbers), dtype=torch.float64)
        logits = torch.full((len(rows), self.max_len + 1, len(c)), torch.nan, dtype=torch.float64)
        index = {v: i for i, v in enumerate(self.classes)}
        for i, row in enumerate(rows):
            values = evaluate(self.program, row, self.causal)
            if self.program.numerical:
                x = torch.tensor([float(v) for v in values], dtype=torch.float64)[:, None]
                logits[i, 1 : len(row) + 1] = 2 * c * x - c**2
            else:
                which = torch.tensor([-1 if v is None else index[v] for v in values])[:, None]
                logits[i, 1 : len(row) + 1] = (c == which).double()
        return logits

    def error(self, rows: Sequence[Sequence[Value]]) -> float:
        """Largest |logit - expected logit| over these rows."""
        with torch.no_grad():
            logits = self.model(self.encode(rows)).double()
        return float((logits - self.expected_logits(rows)).nan_to_num(0.0).abs().max())


def compile_program(
    program: SOp, vocab: Sequence[Value], max_len: int, causal: bool = False, dtype: str = "float64"
) -> Compiled:
    """A Transformer that computes the program on every row of 1..max_len tokens of the vocabulary.

    causal: causal attention, and the causal interpreter as its judge.
    dtype:  float64 is exact to about 1e-12; float32 to about 1e-5, and refuses values too near to be told apart.
    Exact means: rows on which the interpreter has an answer (a categorical Aggregate of different values has none).
    Raises UserError listing everything in the program that is unsupported.
    """
    vocab = tuple(vocab)
    require(len(vocab) > 0 and len(set(vocab)) == len(vocab), f"vocab={vocab}: one or more distinct tokens")
    require(None not in vocab, "None cannot be a token: it stands for no value")
    require(max_len >= 1, f"max_len={max_len}: at least 1")
    _raise_if(value_sets(program, vocab, max_len).problems)
    lowered = lower(program)
    sets = value_sets(lowered, vocab, max_len)
    _raise_if(sets.problems + too_near(sets, dtype))
    sublayer = place(lowered)
    layout = lay_out(lowered, sets, sublayer)
    model, writers = assemble(lowered, sets, layout, vocab, max_len, causal, dtype)
    return Compiled(
        program=program,
        lowered=lowered,
        vocab=vocab,
        max_len=max_len,
        causal=causal,
        model=model,
        classes=sets.of[id(lowered)],
        written=_written(lowered, sets, layout, model, writers),
        labels=layout.labels,
    )


def _raise_if(problems: list[str]) -> None:
    if problems:
        lines = "\n".join(f"  - {p}" for p in dict.fromkeys(problems))
        raise UserError(f"this program cannot be compiled:\n{lines}")


def encode(rows: Sequence[Sequence[Value]], vocab: tuple[Value, ...], max_len: int) -> Int[Tensor, "batch pos"]:
    """Rows of tokens as ids [batch, max_len + 1]: len(vocab) is the start token, len(vocab) + 1 the padding."""
    index = {v: i for i, v in enumerate(vocab)}
    ids = torch.full((len(rows), max_len + 1), len(vocab) + 1)
    ids[:, 0] = len(vocab)
    for i, row in enumerate(rows):
        require(1 <= len(row) <= max_len, f"a row of {len(row)} tokens; this program was compiled for 1 to {max_len}")
        for token in row:
            if token not in index:
                raise UserError(
                    f"unseen token {token!r}; the vocabulary is {', '.join(map(str, vocab))}"
                    f"{did_you_mean(str(token), map(str, vocab))}"
                )
        ids[i, 1 : len(row) + 1] = torch.tensor([index[t] for t in row])
    return ids


# --- Lowering --------------------------------------------------------------------------------------------------------


def lower(program: SOp) -> SOp:
    """The same program of Tokens, Indices, Map, SequenceMap, LinearSequenceMap, Aggregate and Share of one Select each.

    Names are kept; helpers are called after what they serve ("hist.share"). Every interpreted value stays the same.
    """
    names = names_of(program)
    uses: dict[int, int] = {}
    for x in walk(program):
        for y in inputs_of(x):
            uses[id(y)] = uses.get(id(y), 0) + 1
    done: dict[int, SOp | Selector] = {}
    pairs: dict[tuple[int, int], SOp] = {}
    for x in walk(program):
        helper = isinstance(x, Map) and not x.x.name and uses[id(x.x)] == 1
        done[id(x)] = _lowered(x, done, names.get(id(x), ""), pairs, helper)
    return done[id(program)]  # type: ignore


def _lowered(x: Any, done: dict, name: str, pairs: dict, helper: bool) -> SOp | Selector:
    if isinstance(x, Tokens | Indices):
        return x
    given = {f.name: done[id(getattr(x, f.name))] for f in dataclasses.fields(x) if id(getattr(x, f.name)) in done}
    if isinstance(x, Combined):
        return _combine(x.how, given["left"], given["right"], pairs)
    if isinstance(x, Select):
        return dataclasses.replace(x, **given)
    if isinstance(x, SelectorWidth):
        # One head gives the start token and every selected key the same score, so the start token keeps 1/(1 + w).
        share = Share(given["selector"], name=f"{name}.share")
        return Map(lambda s: round(1 / s) - 1, share, name=name)
    if isinstance(x, Aggregate) and not x.numerical and x.default is not None:
        found = Aggregate(given["selector"], given["x"], name=f"{name}.found")
        return Map(lambda v: v, found, none=x.default, name=name)
    x = dataclasses.replace(x, **given, name=name)
    if helper and isinstance(x.x, Map) and x.x.none is None:
        outer, inner = x, x.x
        return dataclasses.replace(x, f=lambda v: apply(outer, apply(inner, v)), x=inner.x)
    return x


def _combine(how: str, a: Select, b: Select, pairs: dict[tuple[int, int], SOp]) -> Select:
    """One Select that is a and b, a or b, or not a; over pairs of keys and of queries where those differ."""
    if how == "not":
        return Select(a.keys, a.queries, lambda k, q: not a.predicate(k, q))
    keys, left_key, right_key = _paired(a.keys, b.keys, pairs)
    queries, left_query, right_query = _paired(a.queries, b.queries, pairs)

    def predicate(k: Value, q: Value) -> bool:
        left = a.predicate(left_key(k), left_query(q))
        right = b.predicate(right_key(k), right_query(q))
        return (left and right) if how == "and" else (left or right)

    return Select(keys, queries, predicate)


def _paired(x: SOp, y: SOp, pairs: dict[tuple[int, int], SOp]):
    """(s-op holding both, how to get x from it, how to get y from it); the same two give the same pair."""
    if x is y:
        return x, lambda v: v, lambda v: v
    if (id(x), id(y)) not in pairs:
        pairs[id(x), id(y)] = SequenceMap(lambda v, w: (v, w), x, y, name=f"({x.name}, {y.name})")
    return pairs[id(x), id(y)], lambda v: v[0], lambda v: v[1]


# --- Where things go -------------------------------------------------------------------------------------------------


def place(lowered: SOp) -> dict[int, int]:
    """id -> sublayer: -1 the embedding, 0 the first attention, 1 the first MLP, 2 the second attention, ..."""
    sublayer: dict[int, int] = {}
    for x in walk(lowered):
        after = 1 + max((sublayer[id(y)] for y in inputs_of(x)), default=-2)
        if isinstance(x, Selector):
            sublayer[id(x)] = after - 1
        elif isinstance(x, Tokens | Indices):
            sublayer[id(x)] = -1
        else:
            head = isinstance(x, Aggregate | Share)
            sublayer[id(x)] = after + (after % 2 != 0) if head else after + (after % 2 == 0)
    return sublayer


def lay_out(lowered: SOp, sets: Values, sublayer: dict[int, int]) -> Layout:
    """Columns for the tokens (with start and padding), then for every s-op in the order in which it is written."""
    labels = [f"tokens:{v}" for v in sets.of.get(_id_of(lowered, Tokens), ())] + ["tokens:bos", "tokens:pad"]
    bos = len(labels) - 2
    columns: dict[int, tuple[int, ...]] = {}
    for x in walk(lowered):
        if isinstance(x, Tokens):
            columns[id(x)] = tuple(range(bos))
        elif isinstance(x, SOp):
            name = sets.names[id(x)]
            new = [name] if x.numerical else [f"{name}:{v}" for v in sets.of[id(x)]]
            columns[id(x)] = tuple(range(len(labels), len(labels) + len(new)))
            labels += new
    return Layout(columns, sublayer, tuple(labels), bos, bos + 1)


def _id_of(lowered: SOp, kind: type) -> int:
    return next((id(x) for x in walk(lowered) if isinstance(x, kind)), -1)


def too_near(sets: Values, dtype: str) -> list[str]:
    """Numerical Maps that must tell apart values nearer than rounding allows in this dtype."""
    eps = torch.finfo(DTYPES[dtype]).eps
    problems = []
    for x in walk(sets.program):
        if isinstance(x, Map) and x.x.numerical:
            values = sets.of[id(x.x)]
            for low, high in pairwise(values):
                near = high - low < 64 * eps * max(1, abs(values[0]), abs(values[-1]))
                if near and apply(x, low) != apply(x, high):
                    name = sets.names[id(x)]
                    problems.append(f"Map {name!r} must tell {low} from {high}: too near for {dtype}")
                    break
    return problems


def _written(
    lowered: SOp, sets: Values, layout: Layout, model: Transformer, writers: dict[int, str]
) -> dict[str, Written]:
    written = {}
    for x in walk(lowered):
        if isinstance(x, SOp):
            at = layout.sublayer[id(x)]
            if at < 0:
                site = "blocks.0.hook_resid_pre"
            else:
                after_mlp = at % 2 == 1 or not model.d_mlp
                site = f"blocks.{at // 2}.hook_resid_{'post' if after_mlp else 'mid'}"
            written[sets.names[id(x)]] = Written(
                site, layout.columns[id(x)], sets.of[id(x)], x.numerical, writers[id(x)]
            )
    return written
