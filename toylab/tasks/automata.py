"""Automata: a sequence of letters, and after each one the state of a finite automaton (Liu et al. 2023).

One example by hand, parity: the letters 1 1 0 1 lead from state 0 (even) through 1 0 0 1, and these are the answers,
one at every position. Any automaton will do: a name of the catalogue with its sizes ("cyclic 5", "dyck 2 3"), a regular
expression between slashes ("/(10)*/"), or a table.

Everything about these worlds is known: the state after every letter, the map that any stretch of letters makes
(`prefix_maps`), the law of the state at every position (`state_law`), and how hard the automaton is (monoid.py).

Source: Liu, Ash, Goel, Krishnamurthy, Zhang 2023, "Transformers Learn Shortcuts to Automata" (arXiv 2210.10749), whose
automata are in the catalogue; Tomita 1982; Bhattamishra et al. 2020 (arXiv 2009.11264).
Came from: data.py, monoid.py. Read next: languages.py (what no finite automaton can do).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, did_you_mean, one_of, require
from toylab.tasks.monoid import Algebra, analyse, minimise
from toylab.tasks.regex import compile_regex


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton, total: every state knows where every letter leads.

    table:     [state][letter] -> next state.
    accepting: the states in which a word is accepted; empty for an automaton that only tracks its state.
    labels:    further questions one can ask: name -> the answer in every state, as words.
    probs:     how often each letter is drawn where the task does not say; empty = all alike.
    """

    letters: tuple[str, ...]
    states: tuple[str, ...]
    start: int
    table: tuple[tuple[int | None, ...], ...]
    accepting: tuple[int, ...] = ()
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    probs: tuple[float, ...] = ()

    def __post_init__(self):
        n = len(self.states)
        require(n >= 1 and len(self.letters) >= 1, "an automaton needs at least one state and one letter")
        require(
            len(self.table) == n,
            f"the table has {len(self.table)} rows for {n} states ({', '.join(self.states[:6])}); one row per state",
        )
        for state, row in zip(self.states, self.table, strict=True):
            require(
                len(row) <= len(self.letters),
                f"row {state!r} of the table has {len(row)} entries for {len(self.letters)} letters",
            )
            for letter, to in zip(self.letters, (*row, *[None] * len(self.letters)), strict=False):
                require(
                    to is not None and 0 <= to < n,
                    f"the table is not total: state {state!r}, letter {letter!r} leads to {to}; give a state from 0 to "
                    f"{n - 1} (where there is no way on, a sink that leads to itself)",
                )
        for name, values in (("start", (self.start,)), ("accepting", self.accepting)):
            wrong = [q for q in values if not 0 <= q < n]
            require(not wrong, f"{name}={wrong and wrong[0]}: states are 0 to {n - 1}")
        for name, words in self.labels.items():
            require(len(words) == n, f"labels.{name} has {len(words)} words for {n} states")
            require(name not in ("state", "accept"), f"labels.{name}: this name is taken by the automaton itself")
        if self.probs:
            check_probs(self.probs, self.letters)

    @cached_property
    def delta(self) -> Int[Tensor, "state letter"]:
        return torch.tensor(self.table)

    @cached_property
    def answers(self) -> dict[str, tuple[Int[Tensor, " state"], tuple[str, ...]]]:
        """Every question -> (its answer in each state, what the answers mean): state, the labels, accept."""
        found = {"state": (torch.arange(len(self.states)), self.states)}
        for name, words in self.labels.items():
            classes = tuple(dict.fromkeys(words))
            found[name] = (torch.tensor([classes.index(word) for word in words]), classes)
        if self.accepting:
            found["accept"] = (self.accepts, ("no", "yes"))
        return found

    @cached_property
    def accepts(self) -> Int[Tensor, " state"]:
        """1 in accepting states, 0 in others."""
        return torch.zeros(len(self.states), dtype=torch.long).index_fill(0, torch.tensor(self.accepting).long(), 1)

    def run(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """The state after each letter."""
        flat, n_letters = self.delta.flatten().to(inputs.device), len(self.letters)
        state = torch.full_like(inputs[:, 0], self.start)
        states = []
        for letter in inputs.unbind(1):
            state = flat.take(state * n_letters + letter)
            states.append(state)
        return torch.stack(states, 1)

    def prefix_maps(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos state"]:
        """Where every state is led by letters 0..pos, in log2(pos) rounds of pairwise composition.

        The shortcut of Liu et al., theorem 1: after round r position t holds the map of the last 2^r letters. `run` is
        its column `start`.
        """
        maps, reach = self.delta.T[inputs], 1
        while reach < inputs.shape[1]:
            joined = maps[:, reach:].gather(2, maps[:, :-reach])  # the earlier map first
            maps, reach = torch.cat([maps[:, :reach], joined], 1), 2 * reach
        return maps

    def algebra(self) -> Algebra:
        """Of this table as it stands; `minimal()` first for the language's own."""
        return analyse(self.delta)

    def minimal(self) -> Automaton:
        """The smallest automaton that accepts the same words (without accepting states: has the same states)."""
        outputs = self.accepts if self.accepting else torch.arange(len(self.states))
        table, start, outputs = minimise(self.delta, self.start, outputs)
        states = tuple(map(str, range(len(table)))) if self.accepting else tuple(self.states[q] for q in outputs)
        accepting = tuple(outputs.nonzero().squeeze(1).tolist()) if self.accepting else ()
        return Automaton(self.letters, states, start, tuple(map(tuple, table.tolist())), accepting, {}, self.probs)


def check_probs(probs: tuple[float, ...], letters: tuple[str, ...]) -> None:
    """Raise unless these are probabilities, one for each letter."""
    require(
        len(probs) == len(letters) and min(probs) >= 0 and abs(sum(probs) - 1) < 1e-6,
        f"probs={list(probs)}: expected {len(letters)} numbers of 0 or more that add up to 1 (they add up to "
        f"{sum(probs):g}), for the letters {', '.join(letters[:8])}",
    )


# --- The catalogue ---------------------------------------------------------------------------------------------------


def automaton(
    letters: tuple[str, ...],
    states: list,
    step: Callable,
    start=None,
    accept: Callable | None = None,
    labels: dict[str, Callable] | None = None,
    probs: tuple[float, ...] = (),
) -> Automaton:
    """From any hashable states and step(state, letter number) -> state; start = the first state unless given."""
    number = {q: i for i, q in enumerate(states)}
    return Automaton(
        letters,
        tuple(map(_word, states)),
        number[states[0] if start is None else start],
        tuple(tuple(number[step(q, a)] for a in range(len(letters))) for q in states),
        tuple(i for q, i in number.items() if accept(q)) if accept else (),
        {name: tuple(str(f(q)) for q in states) for name, f in (labels or {}).items()},
        probs,
    )


def _word(state) -> str:
    return "".join(map(str, state)) if isinstance(state, tuple) else str(state)


BITS = ("0", "1")
FAIL = "fail"


def parity() -> Automaton:
    """q + bit mod 2."""
    return automaton(BITS, [0, 1], lambda q, a: (q + a) % 2)


def cyclic(n: int) -> Automaton:
    """q + a mod n, letters 0..n-1."""
    return automaton(tuple(map(str, range(n))), list(range(n)), lambda q, a: (q + a) % n)


def cycle(n: int) -> Automaton:
    """Cycle navigation: letters -1, 0, +1 on n places (Deletang et al. 2023, n = 5)."""
    return automaton(("-1", "0", "+1"), list(range(n)), lambda q, a: (q + a - 1) % n)


def miu() -> Automaton:
    """The number of I's mod 3 in the body of a MIU string: I adds one, U leaves it."""
    return automaton(("I", "U"), [0, 1, 2], lambda q, a: (q + (a == 0)) % 3)


def gridworld(n: int) -> Automaton:
    """n places in a row with walls: L one down, R one up."""
    edge = {0: "left wall", n - 1: "right wall"}
    labels = {"parity": lambda q: ("even", "odd")[q % 2], "boundary": lambda q: edge.get(q, "inside")}
    return automaton(("L", "R"), list(range(n)), lambda q, a: min(max(q + 2 * a - 1, 0), n - 1), labels=labels)


def flip_flop(n: int) -> Automaton:
    """Letter 0 keeps (half of the time), letter i writes i; state 0 before anything is written."""
    probs = (0.5, *[0.5 / n] * n)
    return automaton(tuple(map(str, range(n + 1))), list(range(n + 1)), lambda q, a: a or q, probs=probs)


def abab() -> Automaton:
    """(0101)*: 3 -0-> 0 -1-> 1 -0-> 2 -1-> 3, all else leads to the sink 4."""
    ways = {(3, 0): 0, (0, 1): 1, (1, 0): 2, (2, 1): 3}
    return automaton(BITS, list(range(5)), lambda q, a: ways.get((q, a), 4), 3, lambda q: q == 3)


def adder(k: int) -> Automaton:
    """Binary addition of k numbers, lowest digits first: a letter is k bits, a state is (digit, carry)."""

    def step(q, a):
        total = a.bit_count() + q[1]
        return total % 2, total // 2

    letters = tuple(format(a, f"0{k}b") for a in range(2**k))
    labels = {"digit": lambda q: q[0], "carry": lambda q: q[1]}
    return automaton(letters, list(product(range(2), range(k))), step, labels=labels)


def dihedral(n: int) -> Automaton:
    """A car on a ring of n places: 0 turns it round, 1 drives it one place on. The dihedral group of 2n elements."""

    def step(q, a):
        return (q[0], (q[1] + 1 - 2 * q[0]) % n) if a else (1 - q[0], q[1])

    labels = {"toggle": lambda q: "+-"[q[0]], "position": lambda q: q[1]}
    return automaton(BITS, list(product(range(2), range(n))), step, labels=labels)


def quaternion() -> Automaton:
    """Right multiplication by 1, i, j, k; the states are +-1, +-i, +-j, +-k."""
    units = "1ijk"
    # Row times column: i j = k and cyclically, squares are -1.
    times = (("+1", "+i", "+j", "+k"), ("+i", "-1", "+k", "-j"), ("+j", "-k", "-1", "+i"), ("+k", "+j", "-i", "-1"))

    def step(q, a):
        made = times[units.index(q[1])][a]
        return ("+" if made[0] == q[0] else "-") + made[1]

    return automaton(tuple(units), [s + u for s in "+-" for u in units], step)


def symmetric(n: int) -> Automaton:
    """n objects in a row: 0 leaves them, 1 moves the first to the end, 2 swaps the first two. States: all orders."""
    return automaton(("e", "shift", "swap"), list(permutations(range(1, n + 1))), _shuffle, labels=_FIRST)


def alternating(n: int) -> Automaton:
    """The even orders: e leaves them, letter x turns the places 1 -> 2 -> x -> 1."""

    def step(q, a):
        if a == 0:
            return q
        row, x = list(q), a + 1
        row[1], row[x], row[0] = q[0], q[1], q[x]
        return tuple(row)

    even = [q for q in permutations(range(1, n + 1)) if not sum(x > y for i, x in enumerate(q) for y in q[i:]) % 2]
    return automaton(("e", *(f"12{x}" for x in range(3, n + 1))), even, step, labels=_FIRST)


def permutation_reset(n: int) -> Automaton:
    """The letters of `symmetric` (three in four draws) and one for every order, which sets it."""
    orders = list(permutations(range(1, n + 1)))
    probs = (*[0.25] * 3, *[0.25 / len(orders)] * len(orders))
    letters = ("e", "shift", "swap", *(f"={_word(q)}" for q in orders))
    return automaton(
        letters, orders, lambda q, a: _shuffle(q, a) if a < 3 else orders[a - 3], labels=_FIRST, probs=probs
    )


_FIRST = {"first": lambda q: q[0]}


def _shuffle(q, a):
    return (q, (*q[1:], q[0]), (q[1], q[0], *q[2:]))[a]


def even_pairs() -> Automaton:
    """As many 01 as 10: the first bit equals the last. States: nothing yet, or (first, last)."""
    states: list = ["start", *product(range(2), range(2))]
    return automaton(
        BITS,
        states,
        lambda q, a: (a, a) if q == "start" else (q[0], a),
        accept=lambda q: q == "start" or q[0] == q[1],
    )


def tomita(n: int) -> Automaton:
    """Tomita's seven languages over 0 and 1 (1982), with the dead state where there is one.

    1: 1*. 2: (10)*. 3: no odd run of 1s right before an odd run of 0s. 4: no 000. 5: even numbers of 0s and of 1s.
    6: #0 - #1 divisible by 3. 7: 0*1*0*1*. Minimal sizes 2, 3, 5, 4, 4, 3, 5.
    """
    require(1 <= n <= 7, f"tomita {n}: Tomita's languages are 1 to 7")

    def no_odd_after_odd(q, a):
        # even, odd: 1s of the last run (even also before any); odd0, even0: 0s after an odd run of 1s.
        ways = {"even": ("even", "odd"), "odd": ("odd0", "even"), "odd0": ("even0", FAIL), "even0": ("odd0", "odd")}
        return ways.get(q, (FAIL, FAIL))[a]

    if n == 1:
        return automaton(BITS, ["ok", FAIL], lambda q, a: "ok" if q == "ok" and a else FAIL, accept=_not_failed)
    if n == 2:
        ways = {("0", 1): "1", ("1", 0): "0"}
        return automaton(BITS, ["0", "1", FAIL], lambda q, a: ways.get((q, a), FAIL), accept=lambda q: q == "0")
    if n == 3:
        states = ["even", "odd", "odd0", "even0", FAIL]
        return automaton(BITS, states, no_odd_after_odd, accept=lambda q: q not in ("odd0", FAIL))
    if n == 4:
        below: list = [0, 1, 2, FAIL]
        return automaton(
            BITS, below, lambda q, a: FAIL if q == FAIL or (q == 2 and not a) else (0 if a else q + 1), 0, _not_failed
        )
    if n == 5:
        return automaton(
            BITS,
            list(product(range(2), range(2))),
            lambda q, a: (q[0] ^ (a == 0), q[1] ^ a),
            (0, 0),
            lambda q: not any(q),
        )
    if n == 6:
        return automaton(BITS, [0, 1, 2], lambda q, a: (q + 1 - 2 * a) % 3, accept=lambda q: q == 0)
    # 7: blocks 0 1 0 1, counted by how many letters have changed; a leading 1 skips the first block.
    blocks: list = [0, 1, 2, 3, FAIL]
    return automaton(
        BITS, blocks, lambda q, a: q if q == FAIL or q % 2 == a else (q + 1 if q < 3 else FAIL), 0, _not_failed
    )


def _not_failed(q) -> bool:
    return q != FAIL


def dyck(k: int, depth: int) -> Automaton:
    """k kinds of brackets, nested at most `depth` deep: the state is the stack of open ones; a wrong letter fails.

    `top` is the bracket that may close next, which decides what is legal: every opening below the depth, this closing.
    """
    n_states = sum(k**d for d in range(depth + 1)) + 1
    require(1 <= k <= 4, f"dyck {k} {depth}: 1 to 4 kinds of brackets")
    require(n_states <= 2000, f"dyck {k} {depth} has {n_states:,} stacks; at most 2,000: take a smaller depth")
    opening, closing = "([{<"[:k], ")]}>"[:k]

    def step(q, a):
        if q == FAIL:
            return FAIL
        if a % 2 == 0:
            return (*q, opening[a // 2]) if len(q) < depth else FAIL
        return q[:-1] if q and q[-1] == opening[a // 2] else FAIL

    stacks = [stack for d in range(depth + 1) for stack in product(opening, repeat=d)]
    labels = {
        "depth": lambda q: FAIL if q == FAIL else len(q),
        "top": lambda q: FAIL if q == FAIL else (q[-1] if q else "empty"),
    }
    letters = tuple(c for pair in zip(opening, closing, strict=True) for c in pair)
    return automaton(letters, [*stacks, FAIL], step, accept=lambda q: q == (), labels=labels)


# name -> (builder, the sizes it is usually shown with).
CATALOGUE: dict[str, tuple[Callable[..., Automaton], tuple[int, ...]]] = {
    "parity": (parity, ()),
    "cyclic": (cyclic, (5,)),
    "cycle": (cycle, (5,)),
    "miu": (miu, ()),
    "gridworld": (gridworld, (9,)),
    "flip-flop": (flip_flop, (2,)),
    "abab": (abab, ()),
    "adder": (adder, (2,)),
    "dihedral": (dihedral, (4,)),
    "quaternion": (quaternion, ()),
    "symmetric": (symmetric, (5,)),
    "alternating": (alternating, (5,)),
    "permutation-reset": (permutation_reset, (4,)),
    "even-pairs": (even_pairs, ()),
    "tomita": (tomita, (3,)),
    "dyck": (dyck, (2, 3)),
}
MAX_STATES = 5000


def named(text: str) -> Automaton:
    """The automaton of a catalogue name with its sizes ("cyclic 5") or of a regular expression ("/(10)*/")."""
    if text.startswith("/"):
        require(len(text) > 2 and text.endswith("/"), f"automaton={text!r}: a regular expression ends with / too")
        letters, table, start, accepting = compile_regex(text[1:-1])
        return Automaton(letters, tuple(map(str, range(len(table)))), start, table, accepting)
    name, *sizes = text.split() or [""]
    if name not in CATALOGUE:
        raise UserError(
            f"automaton={text!r}: known are {', '.join(CATALOGUE)}, each with its sizes, /a regular expression/ and "
            f"tables{did_you_mean(name, CATALOGUE)}"
        )
    builder, usual = CATALOGUE[name]
    example = " ".join([name, *map(str, usual)])
    right = len(sizes) == len(usual) and all(s.isdigit() and int(s) >= 1 for s in sizes)
    require(right, f"automaton={text!r}: {name} takes {len(usual)} sizes of 1 or more, as in {example!r}")
    require(
        name not in ("symmetric", "alternating", "permutation-reset") or 2 <= int(sizes[0]) <= 6,
        f"automaton={text!r}: 2 to 6 objects (6 have 720 orders)",
    )
    require(all(int(s) <= MAX_STATES for s in sizes), f"automaton={text!r}: at most {MAX_STATES:,} states")
    return builder(*map(int, sizes))


# --- The task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateTracking:
    """Random letters; at every position the state of the automaton after it, or another answer that the state gives.

    automaton:  a name with sizes, /a regular expression/, or a table (see Automaton).
    length:     letters in a row.
    target:     "state", "accept", or one of the automaton's labels.
    probs:      how often each letter is drawn; None = the automaton's own (most: all alike).
    positive:   share of the rows that are drawn among the accepted words of this length (letters as likely as `probs`
                makes them, given that the word is accepted); the others are drawn letter by letter.
    max_length: context of the model, for evaluation on longer rows than it is trained on; None = length.
    n_test:     rows of the fixed held-out draw.
    """

    automaton: str | Automaton
    length: int
    target: str = "state"
    probs: tuple[float, ...] | None = None
    positive: float = 0.0
    max_length: int | None = None
    n_test: int = 1024

    def __post_init__(self):
        require(self.length >= 1, f"length={self.length}: at least 1")
        require(
            self.max_length is None or self.length <= self.max_length,
            f"length={self.length} is beyond the context, max_length={self.max_length}",
        )
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")
        one_of("target", self.target, self.machine.answers)
        if self.probs is not None:
            check_probs(self.probs, self.machine.letters)
        require(0 <= self.positive <= 1, f"positive={self.positive} is outside [0, 1]")
        if self.positive:
            _ = self._chances

    @cached_property
    def machine(self) -> Automaton:
        return named(self.automaton) if isinstance(self.automaton, str) else self.automaton

    @property
    def d_vocab(self) -> int:
        return len(self.machine.letters)

    @property
    def n_ctx(self) -> int:
        return self.max_length or self.length

    @property
    def d_out(self) -> int:
        return len(self.machine.answers[self.target][1])

    # --- data -------------------------------------------------------------------------------------------------------

    @cached_property
    def letter_probs(self) -> Float[Tensor, " letter"]:
        given = self.machine.probs if self.probs is None else self.probs
        return torch.tensor(given or [1 / self.d_vocab] * self.d_vocab, dtype=torch.float64)

    def answers(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """What the target says after each letter."""
        return self.machine.answers[self.target][0][self.machine.run(inputs)]

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        """These rows with their answers."""
        answers = self.answers(inputs)
        words = self.machine.answers[self.target][1]
        shown = " ".join(words[a] for a in answers[0].tolist()) if len(inputs) else ""
        return Batch(inputs, answers, example=f"{self.render(inputs[:1])[0]} -> {shown}" if len(inputs) else "")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh rows of `length` letters."""
        drawn = torch.multinomial(self.letter_probs, n * self.length, replacement=True, generator=generator)
        inputs = drawn.view(n, self.length)
        if self.positive:
            chosen = torch.rand(n, 1, generator=generator) < self.positive
            inputs = torch.where(chosen, self.accepted_words(n, generator), inputs)
        return self.batch_of(inputs)

    @cached_property
    def _chances(self) -> Float[Tensor, "left state"]:
        """P(a random word of `left` letters is accepted from this state), each row up to a factor.

        Raises UserError when no word of this length is accepted, with the nearest lengths that are.
        """
        machine, n_more = self.machine, len(self.machine.states)
        require(bool(machine.accepting), f"positive={self.positive}: this automaton has no accepting states")
        rows = [machine.accepts.double()]
        for _ in range(self.length + n_more):
            row = (rows[-1][machine.delta] * self.letter_probs).sum(1)
            rows.append(row / row.max().clamp_min(1e-300))  # only ratios within a row matter; products would underflow
        if rows[self.length][machine.start] == 0:
            possible = [left for left, row in enumerate(rows) if left and row[machine.start] > 0]
            near = sorted(sorted(possible, key=lambda left: abs(left - self.length))[:3])
            raise UserError(
                f"{self.automaton} accepts no word of length {self.length}; "
                + (
                    f"it does of {', '.join(map(str, near))}"
                    if near
                    else "its language is empty, or only the empty word"
                )
            )
        return torch.stack(rows[: self.length + 1])

    def accepted_words(self, n: int, generator: torch.Generator) -> Int[Tensor, "n length"]:
        """Words drawn letter by letter, given that they end in acceptance: uniform among all accepted, if probs is."""
        machine, chances = self.machine, self._chances
        uniform = torch.rand(self.length, n, 1, generator=generator, dtype=torch.float64)
        state = torch.full((n,), machine.start)
        letters = []
        for at in range(self.length):
            following = machine.delta[state]
            reach = (chances[self.length - 1 - at][following] * self.letter_probs).cumsum(1)
            # Where rounding puts the draw at the very end, the last letter that can still be accepted is meant.
            letter = (reach <= uniform[at] * reach[:, -1:]).sum(1, keepdim=True)
            letters.append(letter.clamp_max(self.d_vocab - 1))
            state = following.gather(1, letters[-1]).squeeze(1)
        return torch.cat(letters, 1)

    def split(self, seed: int) -> Split:
        """n_test held-out rows; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    # --- the truth --------------------------------------------------------------------------------------------------

    def state_law(self) -> Float[Tensor, "pos state"]:
        """P(state after letter t) of rows drawn letter by letter, exactly."""
        move = torch.zeros(len(self.machine.states), len(self.machine.states), dtype=torch.float64)
        move.scatter_add_(1, self.machine.delta, self.letter_probs.expand(len(move), -1))
        law, rows = torch.eye(len(move), dtype=torch.float64)[self.machine.start], []
        for _ in range(self.length):
            law = law @ move
            rows.append(law)
        return torch.stack(rows)

    def baselines(self) -> dict[str, float]:
        """Accuracy, exactly, of the best constant answer at each position and of the best guess from the last letter.

        For parity both are 1/2, but for the first position, where the last letter is all there is. Means over
        positions, for rows drawn letter by letter.
        """
        label = torch.eye(self.d_out, dtype=torch.float64)[self.machine.answers[self.target][0]]  # [state, class]
        law = self.state_law()
        start = torch.eye(len(label), dtype=torch.float64)[[self.machine.start]]
        before = torch.cat([start, law[:-1]])
        # P(class, letter) at every position.
        joint = torch.einsum("tq,qac,a->tac", before, label[self.machine.delta], self.letter_probs)
        return {
            "majority": (law @ label).amax(1).mean().item(),
            "last letter": joint.amax(2).sum(1).mean().item(),
        }

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`state`, every label and, where some states accept, `accept`, after each letter."""
        states = self.machine.run(inputs)
        return {name: Latent(value[states], words) for name, (value, words) in self.machine.answers.items()}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One letter of each row is exchanged, so that this latent differs right after it; the rest of the row is held.

        Place and letter are drawn evenly from all that do this. What follows changes as the automaton says; before
        that place nothing does, and weight is 1 from there on. Raises UserError where no exchange in a row can do it.
        """
        one_of("latent", latent, self.machine.answers)
        value = self.machine.answers[latent][0]
        inputs, states = batch.inputs, self.machine.run(batch.inputs)
        before = torch.cat([torch.full_like(states[:, :1], self.machine.start), states[:, :-1]], 1)
        differs = value[self.machine.delta[before]] != value[states][..., None]  # [batch, pos, letter]
        stuck = (~differs.flatten(1).any(1)).nonzero().flatten().tolist()
        require(not stuck, f"no exchange of one letter changes {latent!r} in row {stuck and stuck[0]}")
        choice = torch.multinomial(differs.flatten(1).double(), 1, generator=generator)
        place = choice // self.d_vocab
        new = self.batch_of(inputs.scatter(1, place, choice % self.d_vocab))
        weight = (torch.arange(inputs.shape[1]) >= place).float()
        return Batch(new.inputs, new.targets, weight, example=new.example)

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "1 1 0 1" """
        return [" ".join(self.machine.letters[a] for a in row) for row in inputs.tolist()]
