"""The library of programs, each also a task whose latents are the program's named variables.

A program is a function of the vocabulary and the longest row, listed in PROGRAMS with the vocabulary it is shown with.
`ProgramTask` turns one into data: start token, up to max_len tokens, padding; a target at every token.

One example by hand: hist on abac. tokens a b a c, every token counts its equals: 2 1 2 1. Inputs are
[bos, a, b, a, c, pad, pad], the target ids are those of the counts (classes 0..6), weight 0 at bos and pad.

Came from: compiler.py. Read next: known/programs.py (these as known models, with their circuits).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, one_of, require
from toylab.rasp.compiler import Compiled, compile_program, encode
from toylab.rasp.language import (
    EQ,
    LEQ,
    LT,
    TRUE,
    Aggregate,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    SOp,
    Value,
    indices,
    tokens,
    trace,
    walk,
)
from toylab.rasp.values import value_sets

MAX_ROWS = 20_000  # a world of up to this many rows is finite: every row once

# --- Pieces ----------------------------------------------------------------------------------------------------------


def everywhere(x: SOp = tokens):
    return Select(x, x, TRUE)


def length() -> SOp:
    return SelectorWidth(everywhere(), name="length")


def is_token(token: Value, numerical: bool = True) -> SOp:
    """1 where the token is this one, else 0."""
    return Map(lambda t: int(t == token), tokens, numerical=numerical, name=f"is {token}")


def frac_prevs(number: SOp, name: str) -> SOp:
    """The mean of a number over the positions up to and including this one."""
    return Aggregate(Select(indices, indices, LEQ), number, name=name)


def pair_balance(opening: Value, closing: Value) -> SOp:
    """Share of opening minus share of closing tokens so far: depth / (position + 1)."""
    opened, closed = (frac_prevs(is_token(t), f"share of {t}") for t in (opening, closing))
    return LinearSequenceMap(opened, closed, 1, -1, name=f"balance {opening}{closing}")


def sign(balance: SOp) -> SOp:
    return Map(lambda x: (x > 0) - (x < 0), balance, name=f"sign of {balance.name}")


def at_rank(rank: SOp, value: SOp, name: str) -> SOp:
    """Puts every value at the position that its rank says."""
    return Aggregate(Select(rank, indices, EQ), value, name=name)


def rank_of(keys: SOp) -> SOp:
    """How many keys are smaller."""
    return SelectorWidth(Select(keys, keys, LT), name="rank")


def with_index(x: SOp, name: str) -> SOp:
    """(value, position): distinct, and ordered by value first."""
    return SequenceMap(lambda v, i: (v, i), x, indices, name=name)


def histogram() -> SOp:
    return SelectorWidth(Select(tokens, tokens, EQ), name="hist")


def shift_by(offset: int, x: SOp) -> SOp:
    """The value `offset` positions earlier; None at the first ones."""
    return Aggregate(Select(indices, indices, lambda k, q: q == k + offset), x, name=f"{x.name} {offset} before")


def any_earlier(flag: SOp, name: str) -> SOp:
    """Whether a 0/1 category was 1 here or before."""
    seen = frac_prevs(Map(lambda v: v, flag, numerical=True, none=0), f"share of {flag.name}")
    return Map(lambda share: int(share > 0), seen, name=name)


# --- Programs (vocabulary, longest row) -> s-op ----------------------------------------------------------------------


def _reverse(vocab, n) -> SOp:
    opposite = SequenceMap(lambda i, n: n - 1 - i if i < n else None, indices, length(), name="opposite")
    return Aggregate(Select(indices, opposite, EQ), tokens, name="reverse")


def _sort_unique(vocab, n) -> SOp:
    return at_rank(rank_of(tokens), tokens, "sort_unique")


def _sort(vocab, n) -> SOp:
    return at_rank(rank_of(with_index(tokens, "key")), tokens, "sort")


def _sort_freq(vocab, n) -> SOp:
    return at_rank(rank_of(with_index(Map(lambda c: -c, histogram(), name="minus hist"), "key")), tokens, "sort_freq")


def _most_frequent(vocab, n) -> SOp:
    """Distinct tokens, the most frequent first; those first seen earlier win ties."""
    before = Select(tokens, tokens, EQ) & Select(indices, indices, LT)
    first = Map(lambda c: int(c == 0), SelectorWidth(before), name="first")
    # Repeats come last: their key is 1, those of first occurrences are negative.
    order = SequenceMap(lambda c, f: -c if f else 1, histogram(), first, name="order")
    token = SequenceMap(lambda t, f: t if f else None, tokens, first, name="token if first")
    return at_rank(rank_of(with_index(order, "key")), token, "most_frequent")


def _dyck1(vocab, n) -> SOp:
    """After each prefix: T balanced, P not yet, F never again."""
    depth = sign(pair_balance("(", ")"))
    failed = any_earlier(Map(lambda s: int(s < 0), depth, name="below zero"), "failed")
    return SequenceMap(lambda f, s: "F" if f else "T" if s == 0 else "P", failed, depth, name="dyck1")


def _shuffle_dyck(pairs: Sequence[str]) -> Callable[..., SOp]:
    """1 everywhere if every kind of bracket balances by itself, else 0."""

    def build(vocab, n) -> SOp:
        last = Map(lambda n: n - 1, length(), name="last")
        verdict: SOp | None = None
        for pair in pairs:
            s = sign(pair_balance(*pair))
            below = Map(lambda v: int(v < 0), s, numerical=True, name=f"{pair} below zero")
            ever = Map(lambda x: int(x > 0), Aggregate(everywhere(), below), name=f"{pair} ever below")
            final = Aggregate(Select(indices, last, EQ), s, name=f"{pair} at the end")
            good = SequenceMap(lambda e, f: int(e == 0 and f == 0), ever, final, name=f"{pair} good")
            verdict = good if verdict is None else SequenceMap(min, verdict, good, name="all good")
        assert verdict is not None
        return verdict

    return build


def _detect_pattern(pattern: str) -> Callable[..., SOp]:
    """Whether the last len(pattern) tokens are the pattern; None where there are not as many."""

    def build(vocab, n) -> SOp:
        found: SOp | None = None
        for back, wanted in enumerate(reversed(pattern)):
            there = shift_by(back, tokens) if back else tokens
            match = Map(lambda t, w=wanted: t == w, there, name=f"{wanted} {back} back")
            found = match if found is None else SequenceMap(lambda a, b: a and b, found, match, name=f"last {back + 1}")
        assert found is not None
        return found

    return build


def _induction(vocab, n) -> SOp:
    """The token after the earlier occurrence of this token; None without one."""
    match = Select(shift_by(1, tokens), tokens, EQ) & Select(indices, indices, LEQ)
    return Aggregate(match, tokens, name="induction")


def _palindrome(vocab, n) -> SOp:
    same = SequenceMap(lambda a, b: int(a == b), tokens, _reverse(vocab, n), name="mirrored")
    share = Aggregate(everywhere(), Map(lambda v: v, same, numerical=True, none=0), name="share mirrored")
    return Map(lambda x: int(x == 1), share, name="palindrome")


def _count(token: Value) -> Callable[..., SOp]:
    return lambda vocab, n: SelectorWidth(Select(tokens, tokens, lambda k, q: k == token), name="count")


def _signed_mean(vocab, n) -> SOp:
    """The mean so far of tokens worth -1, 0, 2, ...: negative numbers from a category."""
    worth = {t: (-1, 0, 2, -3)[i % 4] for i, t in enumerate(vocab)}
    return frac_prevs(Map(worth.__getitem__, tokens, numerical=True, name="worth"), "signed_mean")


@dataclass(frozen=True)
class Program:
    """build(vocab, max_len) -> s-op; the vocabulary and length it is shown with; about: one line for tables.

    domain(row): whether the program means something there (sort_unique: distinct tokens). None = every row.
    """

    build: Callable[..., SOp]
    vocab: tuple[Value, ...]
    about: str
    max_len: int = 6
    causal: bool = False
    domain: Callable[[Sequence[Value]], bool] | None = None


def _distinct(row: Sequence[Value]) -> bool:
    return len(set(row)) == len(row)


def _at_most_twice(row: Sequence[Value]) -> bool:
    return max(Counter(row).values()) <= 2


ABC = ("a", "b", "c")
DIGITS = (1, 2, 3, 4)
PROGRAMS: dict[str, Program] = {
    "length": Program(lambda vocab, n: length(), ABC, "the number of tokens, everywhere"),
    "reverse": Program(_reverse, ABC, "the row backwards"),
    "frac_prevs": Program(
        lambda vocab, n: frac_prevs(is_token("x"), "frac_prevs"), ("x", "y", "z"), "share of x so far"
    ),
    "pair_balance": Program(
        lambda vocab, n: pair_balance("(", ")"), ("(", ")", "a"), "share of ( minus share of ) so far"
    ),
    "shuffle_dyck1": Program(_shuffle_dyck(["()"]), ("(", ")", "a"), "1 if the brackets balance"),
    "shuffle_dyck2": Program(_shuffle_dyck(["()", "{}"]), ("(", ")", "{", "}"), "1 if both kinds of brackets balance"),
    "dyck1": Program(_dyck1, ("(", ")"), "T balanced, P can still be, F failed"),
    "hist": Program(lambda vocab, n: histogram(), ABC, "how often this token occurs"),
    "hist_causal": Program(lambda vocab, n: histogram(), ABC, "how often this token occurred so far", causal=True),
    "sort_unique": Program(_sort_unique, DIGITS, "distinct tokens in order", domain=_distinct),
    "sort": Program(_sort, DIGITS, "the row in order", max_len=5),
    "sort_freq": Program(_sort_freq, DIGITS, "the row by falling frequency, ties in place", max_len=5),
    "most_frequent": Program(_most_frequent, ABC, "distinct tokens by falling frequency", max_len=5),
    "shift": Program(lambda vocab, n: shift_by(2, tokens), ABC, "the token two before"),
    "detect_pattern": Program(_detect_pattern("abc"), ABC, "whether the last three tokens are abc"),
    "count": Program(_count("a"), ABC, "how often a occurs, everywhere"),
    "count_less_freq": Program(
        lambda vocab, n: SelectorWidth(Select(h := histogram(), h, lambda k, q: k <= 2), name="count_less_freq"),
        ABC,
        "tokens that occur at most twice",
    ),
    "induction": Program(
        _induction, ABC, "the token after the last occurrence of this one", causal=True, domain=_at_most_twice
    ),
    "first": Program(
        lambda vocab, n: Aggregate(Select(indices, indices, lambda k, q: k == 0), tokens, name="first"),
        ABC,
        "the first token, everywhere",
        causal=True,
    ),
    "is_unique": Program(
        lambda vocab, n: Map(lambda c: c == 1, histogram(), name="is_unique"), ABC, "whether this token occurs once"
    ),
    "parity": Program(
        lambda vocab, n: Map(lambda c: c % 2, _count("1")(vocab, n), name="parity"),
        ("0", "1"),
        "the number of 1s mod 2",
    ),
    "parity_causal": Program(
        lambda vocab, n: Map(lambda c: c % 2, _count("1")(vocab, n), name="parity"),
        ("0", "1"),
        "the number of 1s so far, mod 2",
        causal=True,
    ),
    "majority": Program(
        lambda vocab, n: Map(lambda x: int(x > 0.5), Aggregate(everywhere(), is_token("1")), name="majority"),
        ("0", "1"),
        "1 if more than half are 1",
    ),
    "palindrome": Program(_palindrome, ABC, "1 if the row reads the same backwards"),
    "signed_mean": Program(_signed_mean, ABC, "mean so far of a = -1, b = 0, c = 2"),
}


@lru_cache(maxsize=256)
def expression(name: str, vocab: tuple[Value, ...], max_len: int) -> SOp:
    """The program of this name, named as in the table."""
    one_of("program", name, PROGRAMS)
    return PROGRAMS[name].build(vocab, max_len).named(name)


# --- As a task -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProgramTask:
    """One program of PROGRAMS on rows of min_len..max_len tokens.

    vocab:      the tokens; a longer vocabulary makes a harder task of the same program.
    frac_train: share of the rows that is trained on, when there are at most 20,000 of them (a finite world);
                otherwise training data are streamed and n_test rows are held out.
    min_len:    equal to max_len it hides length and all that depends on it from every resampling method.
    Numerical programs are classified too: their classes are the numbers the program can give.
    """

    program: str
    vocab: tuple[Value, ...]
    max_len: int
    frac_train: float
    min_len: int = 1
    n_test: int = 1024

    def __post_init__(self):
        one_of("program", self.program, PROGRAMS)
        object.__setattr__(self, "vocab", tuple(self.vocab))  # configs have lists
        require(
            1 <= self.min_len <= self.max_len,
            f"min_len={self.min_len}, max_len={self.max_len}: 1 <= min_len <= max_len",
        )
        require(0 < self.frac_train < 1, f"frac_train={self.frac_train} is outside (0, 1)")
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    @property
    def expression(self) -> SOp:
        return expression(self.program, self.vocab, self.max_len)

    @property
    def causal(self) -> bool:
        return PROGRAMS[self.program].causal

    @property
    def classes(self) -> tuple[Value, ...]:
        return self._values[self.program]

    @property
    def _values(self) -> dict[str, tuple[Value, ...]]:
        return _named_values(self.program, self.vocab, self.max_len)

    @property
    def d_vocab(self) -> int:
        return len(self.vocab) + 2  # the start token and the padding

    @property
    def n_ctx(self) -> int:
        return self.max_len + 1

    @property
    def d_out(self) -> int:
        return len(self.classes)

    def compile(self, dtype: str = "float64") -> Compiled:
        """The transformer that computes this task without having learned it."""
        return compile_program(self.expression, self.vocab, self.max_len, self.causal, dtype)

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def finite(self) -> bool:
        return sum(len(self.vocab) ** n for n in self._lengths) <= MAX_ROWS

    @property
    def _lengths(self) -> range:
        return range(self.min_len, self.max_len + 1)

    def allowed(self, row: Sequence[Value]) -> bool:
        """Whether the program means something on this row."""
        domain = PROGRAMS[self.program].domain
        return domain is None or domain(row)

    def rows(self) -> list[tuple[Value, ...]]:
        """Every row of the world, short ones first."""
        return [r for n in self._lengths for r in itertools.product(self.vocab, repeat=n) if self.allowed(r)]

    def encode(self, rows: Sequence[Sequence[Value]]) -> Int[Tensor, "row pos"]:
        return encode(rows, self.vocab, self.max_len)

    def decode(self, inputs: Int[Tensor, "row pos"]) -> list[tuple[Value, ...]]:
        return [tuple(self.vocab[t] for t in row if t < len(self.vocab)) for row in inputs.tolist()]

    def _trace(self, row: tuple[Value, ...]) -> dict[str, list[Value]]:
        return _trace(self.program, self.vocab, self.max_len, row)

    def batch_of(self, rows: Sequence[tuple[Value, ...]]) -> Batch:
        """These rows with the interpreter's answers; weight 0 at the start, at padding and where the answer is None."""
        inputs = self.encode(rows)
        answers = self._ids(self.program, rows)
        example = ""
        if len(rows):
            shown = [str(v) for v in self._trace(rows[0])[self.program]]
            example = f"{self.render(inputs[:1])[0]} -> {' '.join(shown)}"
        return Batch(inputs, answers.clamp(min=0), weight=(answers >= 0).float(), example=example)

    def _ids(self, name: str, rows: Sequence[tuple[Value, ...]]) -> Int[Tensor, "row pos"]:
        """Class numbers of one variable, -1 for None, the start token and padding."""
        index = {v: i for i, v in enumerate(self._values[name])}
        filled = [
            [-1, *(-1 if v is None else index[v] for v in self._trace(r)[name]), *[-1] * (self.max_len - len(r))]
            for r in rows
        ]
        return torch.tensor(filled, dtype=torch.long).view(-1, self.n_ctx)

    def split(self, seed: int) -> Split:
        """A permutation of the finite world, or n_test held-out rows beside a stream."""
        if not self.finite:
            return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))
        batch = self.batch_of(self.rows())
        order = torch.randperm(len(batch), generator=generator(seed, "split"))
        train, test = order.tensor_split([max(1, int(self.frac_train * len(batch)))])
        return Split(batch, train, test)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n rows: of the finite world with replacement, otherwise a uniform length and uniform tokens."""
        if self.finite:
            rows = self.rows()
            return self.batch_of([rows[i] for i in torch.randint(len(rows), (n,), generator=generator).tolist()])
        rows = []
        for _ in range(1000 * n):
            if len(rows) == n:
                break
            length = int(torch.randint(self.min_len, self.max_len + 1, (1,), generator=generator))
            row = tuple(self.vocab[i] for i in torch.randint(len(self.vocab), (length,), generator=generator).tolist())
            rows += [row] * self.allowed(row)
        require(len(rows) == n, f"{self.program} allows too few random rows of {self.vocab}; take a smaller max_len")
        return self.batch_of(rows)

    # --- the truth --------------------------------------------------------------------------------------------------

    def latents(self, inputs: Int[Tensor, "row pos"]) -> dict[str, Latent]:
        """Every named variable of the program, also numerical ones (their classes are numbers).

        -1 at the start token, at padding and where the variable is None. Variables of a program that is not causal
        depend on the whole row, as its bidirectional model does.
        """
        rows = self.decode(inputs)
        return {name: Latent(self._ids(name, rows), tuple(map(str, values))) for name, values in self._values.items()}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Rows of the same length, one token changed, such that this variable changes at one position or more.

        Among all single changes that do, one of those that change the fewest other variables. Where no single token
        is enough, random rows of the same length are tried.
        """
        changeable = [name for name in self._values if name != "indices"]
        one_of("latent", latent, changeable)
        rows = []
        for row in self.decode(batch.inputs):
            rows.append(self._changed(row, latent, generator))
        return self.batch_of(rows)

    def _changed(self, row: tuple[Value, ...], latent: str, generator: torch.Generator) -> tuple[Value, ...]:
        before = self._trace(row)
        options = [(*row[:i], t, *row[i + 1 :]) for i in range(len(row)) for t in self.vocab if t != row[i]]
        for attempt in range(2):
            order = torch.randperm(len(options), generator=generator).tolist()
            best: tuple[int, tuple[Value, ...]] | None = None
            for option in (options[i] for i in order):
                if not self.allowed(option):
                    continue
                after = self._trace(option)
                if after[latent] != before[latent]:
                    others = sum(after[name] != values for name, values in before.items())
                    if best is None or others < best[0]:
                        best = others, option
            if best is not None:
                return best[1]
            if attempt == 0:
                draws = torch.randint(len(self.vocab), (200, len(row)), generator=generator).tolist()
                options = [tuple(self.vocab[i] for i in draw) for draw in draws]
        raise UserError(
            f"{latent!r} of {self.program} is the same on every row of {len(row)} tokens, "
            f"as on {' '.join(map(str, row))}; "
            "take longer rows (min_len) or another latent"
        )

    def render(self, inputs: Int[Tensor, "row pos"]) -> list[str]:
        """ "a b a c" """
        return [" ".join(map(str, row)) for row in self.decode(inputs)]


@lru_cache(maxsize=256)
def _named_values(program: str, vocab: tuple[Value, ...], max_len: int) -> dict[str, tuple[Value, ...]]:
    """Name -> value set, of the variables that have a name."""
    x = expression(program, vocab, max_len)
    sets = value_sets(x, vocab, max_len)
    return {sets.names[id(y)]: sets.of[id(y)] for y in walk(x) if isinstance(y, SOp) and (y.name or y is x)}


@lru_cache(maxsize=65536)
def _trace(program: str, vocab: tuple[Value, ...], max_len: int, row: tuple[Value, ...]) -> dict[str, list[Value]]:
    return trace(expression(program, vocab, max_len), row, PROGRAMS[program].causal)
