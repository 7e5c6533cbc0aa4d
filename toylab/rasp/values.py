"""What every s-op of a program can be, and everything in it that cannot be compiled, listed at once.

1. Walk the program from its inputs. tokens: the vocabulary. indices: 0..max_len-1. SelectorWidth: 0..max_len.
2. Maps: the image of the value set (of the product of two sets for SequenceMap).
3. Numerical Aggregate: every mean of up to max_len values, not only v/l: for 0 and 1 that is the Farey sequence of
   order max_len (11 values for max_len 5). A set that misses some sends a later Map to the wrong neighbour silently.
4. Each rule that fails adds a line to the list of problems; the walk goes on.

Sets may be too large (two variables that never meet are still combined), never too small: this is what makes compiled
steps, which stand halfway between neighbouring values, exact.
Came from: language.py. Read next: compiler.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from toylab.rasp.language import (
    Aggregate,
    Combined,
    Indices,
    LinearSequenceMap,
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
    inputs_of,
    names_of,
    number,
    walk,
)

MAX_VALUES = 4096  # of one s-op; a Map over more would need more than 8,000 neurons
MAX_NEURONS = 65536


@dataclass
class Values:
    """of[id] -> sorted values, without None; maybe_none: ids that can also be None; problems: why it cannot compile."""

    program: SOp
    names: dict[int, str]
    of: dict[int, tuple[Value, ...]] = field(default_factory=dict)
    maybe_none: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def value_sets(program: SOp, vocab: Sequence[Value], max_len: int) -> Values:
    """Value sets of every s-op, and the list of what is unsupported."""
    result = Values(program, names_of(program))
    _check_names(result)
    for x in walk(program):
        if isinstance(x, SOp):
            try:
                values = _values(x, tuple(vocab), max_len, result)
            except Exception as error:  # a function of the user's fails on a value that its input can take
                result.problems.append(f"{_called(x, result)} fails: {type(error).__name__}: {error}")
                values = ()
            result.of[id(x)] = values
        else:
            _check_selector(x, result)
    return result


def _values(x: SOp, vocab: tuple, max_len: int, sets: Values) -> tuple[Value, ...]:
    """Sorted values of one s-op whose inputs are known; notes problems and possible None."""
    match x:
        case Tokens():
            return ordered(vocab)
        case Indices():
            return tuple(range(max_len))
        case SelectorWidth():
            if x.numerical:
                sets.problems.append(f"{_called(x, sets)}: a width is categorical; make a number of it with a Map")
            return tuple(range(max_len + 1))
        case Share():
            return tuple(Fraction(1, w + 1) for w in reversed(range(max_len + 1)))
        case Map():
            images = [apply(x, v) for v in sets.of[id(x.x)]]
            return _image(x, images + [apply(x, None)] * (id(x.x) in sets.maybe_none), sets)
        case SequenceMap():
            if x.x.numerical or x.y.numerical:
                sets.problems.append(
                    f"{_called(x, sets)}: a SequenceMap of numbers is not linear; use LinearSequenceMap, or make them "
                    "categorical with a Map first"
                )
                return ()
            left, right = sets.of[id(x.x)], sets.of[id(x.y)]
            if len(left) * len(right) > MAX_NEURONS:
                sets.problems.append(
                    f"{_called(x, sets)} needs {len(left)} x {len(right)} neurons; {MAX_NEURONS:,} at most"
                )
                return ()
            pairs = [(v, v) for v in left] if x.x is x.y else [(v, w) for v in left for w in right]
            none = {id(x.x), id(x.y)} & sets.maybe_none
            return _image(x, [apply(x, v, w) for v, w in pairs] + [None] * bool(none), sets)
        case LinearSequenceMap():
            if not (x.x.numerical and x.y.numerical):
                sets.problems.append(
                    f"{_called(x, sets)}: a LinearSequenceMap adds numbers; make both inputs numerical"
                )
                return ()
            a, b = number(x.a), number(x.b)
            pairs = [(v, v) for v in sets.of[id(x.x)]] if x.x is x.y else [
                (v, w) for v in sets.of[id(x.x)] for w in sets.of[id(x.y)]
            ]  # fmt: skip
            return tuple(sorted({a * v + b * w for v, w in pairs}))
        case Aggregate():
            return _aggregated(x, max_len, sets)
    sets.problems.append(f"{_called(x, sets)}: {type(x).__name__} is not part of the language")
    return ()


def _image(x: SOp, images: list[Value], sets: Values) -> tuple[Value, ...]:
    """Distinct results, with None noted, or refused for numbers."""
    if None in images:
        if x.numerical:
            sets.problems.append(
                f"{_called(x, sets)}: a number cannot be None; say what stands there: Map(..., none=0)"
            )
        sets.maybe_none.add(id(x))
    return ordered({v for v in images if v is not None})


def _aggregated(x: Aggregate, max_len: int, sets: Values) -> tuple[Value, ...]:
    values = sets.of[id(x.x)]
    if x.numerical:
        if x.default not in (None, 0):
            sets.problems.append(f"{_called(x, sets)}: the default of a numerical aggregate is 0, not {x.default!r}")
        means = all_means(values, max_len)
        if means is None:
            sets.problems.append(
                f"{_called(x, sets)}: the means of {len(values)} values over up to {max_len} positions are more than "
                f"{MAX_VALUES:,}; take fewer values or a smaller max_len"
            )
            return ()
        return tuple(sorted({*means, Fraction(0)}))
    none = id(x.x) in sets.maybe_none
    if x.default is None or none:
        sets.maybe_none.add(id(x))
    if x.default is not None and none:
        sets.problems.append(
            f"{_called(x, sets)}: default={x.default!r} with values that may be None cannot be told apart; "
            "fill the values first: Map(lambda v: v, x, none=...)"
        )
    return ordered({*values, *([] if x.default is None else [x.default])})


def all_means(values: Sequence[Fraction], max_len: int) -> set[Fraction] | None:
    """Every mean of 1..max_len of these values, repeats allowed; None if there are more than MAX_VALUES.

    Sums of l values are sums of l-1 values plus one more, so the work is the number of distinct sums, not of multisets.
    """
    sums, means = {Fraction(0)}, set()
    for count in range(1, max_len + 1):
        sums = {s + v for s in sums for v in values}
        means |= {s / count for s in sums}
        if len(sums) > MAX_VALUES or len(means) > MAX_VALUES:
            return None
    return means


def ordered(values) -> tuple[Value, ...]:
    """Distinct values, sorted; of kinds that do not compare, by kind and text."""
    distinct = list(dict.fromkeys(values))
    try:
        return tuple(sorted(distinct))
    except TypeError:
        return tuple(sorted(distinct, key=lambda v: (type(v).__name__, str(v))))


def _check_names(sets: Values) -> None:
    names = list(sets.names.values())
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        sets.problems.append(f"{names.count(name)} different expressions are called {name!r}")


def _check_selector(x: Selector, sets: Values) -> None:
    if isinstance(x, Select):
        for role, y in (("keys", x.keys), ("queries", x.queries)):
            if y.numerical:
                sets.problems.append(
                    f"Select: the {role} {sets.names[id(y)]!r} are numbers; make them categorical with a Map"
                )
    elif isinstance(x, Combined) and x.how != "and":
        # Under "or" and "not" a missing value can still select, but a missing value is a zero vector to attention.
        for part in walk(x):
            if isinstance(part, Select):
                for side in (part.keys, part.queries):
                    if id(side) in sets.maybe_none:
                        name = sets.names[id(side)]
                        sets.problems.append(
                            f"selector with {x.how!r}: {name!r} may be None; fill it with Map(..., none=...)"
                        )


def _called(x: SOp, sets: Values) -> str:
    made_from = ", ".join(sets.names[id(y)] for y in inputs_of(x) if isinstance(y, SOp))
    return f"{type(x).__name__} {sets.names[id(x)]!r}" + (f" (of {made_from})" if made_from else "")
