"""RASP: a small language of sequence operations, and its plain interpreter (Weiss et al. 2021, arXiv 2106.06981).

A sequence operation (s-op) turns a row of n tokens into n values.

1. `tokens` and `indices` (0..n-1) are the inputs.
2. `Map(f, x)` and `SequenceMap(f, x, y)` act position by position; `LinearSequenceMap(x, y, a, b)` is a x + b y.
3. `Select(keys, queries, predicate)` marks, for every query position, the key positions with predicate(key, query):
   the key comes first. Selectors combine with & | ~.
4. `Aggregate(selector, x)` is, at every query position, the mean of the selected numbers or the one selected value;
   `SelectorWidth(selector)` is how many are selected.

An s-op is categorical (one of finitely many values, None = no value) or numerical (a number, kept as a Fraction, so
that a mean of thirds is exact). None passes through maps, is never selected and never marks a key. The causal
interpreter intersects every selector with key position <= query position.

Came from: data.py. Read next: values.py (what each s-op can be), compiler.py (the same programs as weights).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from weakref import WeakKeyDictionary

from toylab.errors import UserError, require

Value = Any  # a token, number, bool, tuple, ...; None where there is no value
Predicate = Callable[[Value, Value], bool]

EQ, NEQ, LT, LEQ, GT, GEQ = operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge


def TRUE(key: Value, query: Value) -> bool:
    """Selects every key that has a value."""
    return True


# --- Selectors -------------------------------------------------------------------------------------------------------


class Selector:
    """For every query position, a set of key positions."""

    def __and__(self, other: Selector) -> Combined:
        return Combined("and", self, other)

    def __or__(self, other: Selector) -> Combined:
        return Combined("or", self, other)

    def __invert__(self) -> Combined:
        return Combined("not", self, self)


@dataclass(frozen=True, eq=False)
class Select(Selector):
    """Key positions k with predicate(keys[k], queries[q]); where either is None, none."""

    keys: SOp
    queries: SOp
    predicate: Predicate


@dataclass(frozen=True, eq=False)
class Combined(Selector):
    """ "and", "or" of two selectors; "not" of one (given twice)."""

    how: str
    left: Selector
    right: Selector


# --- S-ops -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class SOp:
    """name: what tables and truths call it; "" gets a name when compiled. numerical: a number, not a category."""

    name: str = ""
    numerical: bool = False

    def named(self, name: str) -> SOp:
        return dataclasses.replace(self, name=name)


@dataclass(frozen=True, eq=False)
class Tokens(SOp):
    """The row itself."""


@dataclass(frozen=True, eq=False)
class Indices(SOp):
    """0..n-1."""


@dataclass(frozen=True, eq=False)
class Map(SOp):
    """f(x) at every position. `none` stands where there would be no value: x or f(x) is None, or f divides by 0.

    Map(lambda v: v, x, none="?") fills gaps. A numerical Map has numbers in all positions, so it may need `none`.
    """

    f: Callable[[Value], Value]
    x: SOp
    none: Value = None


@dataclass(frozen=True, eq=False)
class SequenceMap(SOp):
    """f(x, y) at every position; None where x or y is None."""

    f: Callable[[Value, Value], Value]
    x: SOp
    y: SOp


@dataclass(frozen=True, eq=False)
class LinearSequenceMap(SOp):
    """a x + b y of two numerical s-ops."""

    x: SOp
    y: SOp
    a: int | float | Fraction
    b: int | float | Fraction
    numerical: bool = dataclasses.field(default=True, kw_only=True)


@dataclass(frozen=True, eq=False)
class Aggregate(SOp):
    """Numerical x: the mean of the selected numbers, `default` (None = 0) where none is selected.

    Categorical x: the selected value, `default` where none is selected; several selected positions must agree.
    """

    selector: Selector
    x: SOp
    default: Value = None

    def __post_init__(self):
        object.__setattr__(self, "numerical", self.x.numerical)


@dataclass(frozen=True, eq=False)
class SelectorWidth(SOp):
    """How many keys each query selects; categorical, 0..n."""

    selector: Selector


@dataclass(frozen=True, eq=False)
class Share(SOp):
    """1 / (1 + width), a number: what one attention head can measure. The compiler makes SelectorWidth from it."""

    selector: Selector
    numerical: bool = dataclasses.field(default=True, kw_only=True)


tokens = Tokens(name="tokens")
indices = Indices(name="indices")


# --- The graph -------------------------------------------------------------------------------------------------------


def inputs_of(x: SOp | Selector) -> tuple[SOp | Selector, ...]:
    """What x is made from, in the order in which it is written."""
    kinds = (SOp, Selector)
    return tuple(v for f in dataclasses.fields(x) if isinstance(v := getattr(x, f.name), kinds))  # type: ignore


def walk(program: SOp | Selector) -> list[SOp | Selector]:
    """Every expression of the program once, each after its inputs."""
    if program not in _WALKS:
        order: dict[int, SOp | Selector] = {}
        stack = [program]
        while stack:
            waiting = [y for y in inputs_of(stack[-1]) if id(y) not in order]
            if waiting:
                stack.append(waiting[0])
            else:
                done = stack.pop()
                order.setdefault(id(done), done)
        # Without the program itself, which would keep its own entry alive.
        _WALKS[program] = list(order.values())[:-1]
    return [*_WALKS[program], program]


_WALKS: WeakKeyDictionary[SOp | Selector, list[SOp | Selector]] = WeakKeyDictionary()


def names_of(program: SOp) -> dict[int, str]:
    """id of every s-op -> its name; those without one are called by kind and order: map_1, aggregate_2."""
    sops = [x for x in walk(program) if isinstance(x, SOp)]
    return {id(x): x.name or f"{type(x).__name__.lower()}_{i}" for i, x in enumerate(sops)}


# --- The interpreter -------------------------------------------------------------------------------------------------


def evaluate(program: SOp, row: Sequence[Value], causal: bool = False) -> list[Value]:
    """The n values of the program on a row of n tokens.

    Raises UserError, naming the s-op and the position, where a categorical Aggregate selects different values.
    """
    return _run(program, row, causal)[id(program)]


def trace(program: SOp, row: Sequence[Value], causal: bool = False) -> dict[str, list[Value]]:
    """The values of every s-op that has a name of its own, and of the program itself (names_of says its name)."""
    memo = _run(program, row, causal)
    names = names_of(program)
    return {names[id(x)]: memo[id(x)] for x in walk(program) if isinstance(x, SOp) and (x.name or x is program)}


# Results of every function on every value met so far: programs are finite, so soon nothing is computed twice.
_TABLES: WeakKeyDictionary[Map | SequenceMap | Select, dict] = WeakKeyDictionary()


def _table(x: Map | SequenceMap | Select, f: Callable, arguments: list[tuple]) -> list:
    """[f(x, *a) for a in arguments], each distinct one once."""
    table = _TABLES.setdefault(x, {})
    for a in set(arguments) - table.keys():
        table[a] = f(x, *a)
    return [table[a] for a in arguments]


def _run(program: SOp, row: Sequence[Value], causal: bool) -> dict[int, list]:
    memo: dict[int, list] = {}
    for x in walk(program):
        memo[id(x)] = _step(x, row, causal, memo)
    return memo


def _step(x: SOp | Selector, row: Sequence[Value], causal: bool, memo: dict[int, list]) -> list:
    n = len(row)
    match x:
        case Tokens():
            return list(row)
        case Indices():
            return list(range(n))
        case Map():
            return _table(x, apply, [(v,) for v in memo[id(x.x)]])
        case SequenceMap():
            return _table(x, apply, list(zip(memo[id(x.x)], memo[id(x.y)], strict=True)))
        case LinearSequenceMap():
            a, b = number(x.a), number(x.b)
            return [a * v + b * w for v, w in zip(memo[id(x.x)], memo[id(x.y)], strict=True)]
        case Select():
            marks = _table(x, selects, [(k, q) for q in memo[id(x.queries)] for k in memo[id(x.keys)]])
            by_query = [marks[i * n : (i + 1) * n] for i in range(n)]
            return [m[: i + 1] + [False] * (n - i - 1) for i, m in enumerate(by_query)] if causal else by_query
        case Combined(how="not"):
            return [[not s and not (causal and j > i) for j, s in enumerate(r)] for i, r in enumerate(memo[id(x.left)])]
        case Combined():
            join = operator.and_ if x.how == "and" else operator.or_
            return [list(map(join, r, s)) for r, s in zip(memo[id(x.left)], memo[id(x.right)], strict=True)]
        case SelectorWidth():
            return [sum(marks) for marks in memo[id(x.selector)]]
        case Share():
            return [Fraction(1, 1 + sum(marks)) for marks in memo[id(x.selector)]]
        case Aggregate():
            selected = [[v for v, s in zip(memo[id(x.x)], marks, strict=True) if s] for marks in memo[id(x.selector)]]
            return [_aggregate(x, values, position) for position, values in enumerate(selected)]
    raise UserError(f"{type(x).__name__} is not part of the language; see language.py for what is")


def _aggregate(x: Aggregate, values: list[Value], position: int) -> Value:
    if x.numerical:
        if all(v.denominator == 1 for v in values):  # the usual case, and much the cheapest
            return Fraction(sum(v.numerator for v in values), len(values)) if values else number(x.default or 0)
        return sum(values, Fraction(0)) / len(values)
    different = list(dict.fromkeys(values))
    require(
        len(different) <= 1,
        f"aggregate {x.name!r} selects the values {', '.join(map(str, different))} at position {position}; "
        "a categorical aggregate needs one value: make x numerical for a mean, or narrow the selector",
    )
    return different[0] if different else x.default


def apply(x: Map | SequenceMap, *values: Value) -> Value:
    """What a Map or SequenceMap makes of these values."""
    result = None
    if all(v is not None for v in values):
        try:
            result = x.f(*values)
        except ArithmeticError:
            result = None
    if result is None and isinstance(x, Map):
        result = x.none
    return number(result) if x.numerical and result is not None else result


def selects(x: Select, key: Value, query: Value) -> bool:
    return key is not None and query is not None and bool(x.predicate(key, query))


def number(value: int | float | Fraction) -> Fraction:
    """A number as a Fraction; floats are taken as the fraction they were meant to be (0.1 -> 1/10)."""
    return Fraction(value) if isinstance(value, int | Fraction) else Fraction(float(value)).limit_denominator(10**6)
