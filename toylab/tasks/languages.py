"""Languages and counts beyond finite automata, with the exact answer at every position.

    Dyck                 ( [ ] ( ) : which bracket may close next? nested, or shuffled (kinds that ignore each other)
    Counter              a a a b b b c c c end: how many are still due?
    Majority             0 1 1: more 0s, a tie, more 1s
    Histogram            3 5 3: how often does this number occur, up to here or in the whole row?
    AssociativeRecall    k1 v1 k2 v2 ... k: the value that came with k
    FlipFlopLanguage     w 1 i 0 r 1: instruction, bit, ...; after r the bit last written

What may come next is a set of symbols (Bhattamishra et al. 2020, "character prediction"); here the set is one class: a
stack with "(" on top allows every opening and ")", whatever lies below.

Sources: Bhattamishra, Ahuja, Goyal 2020 (arXiv 2009.11264) for Dyck, shuffled Dyck and counters; Weiss, Goldberg, Yahav
2021 (arXiv 2106.06981) for histograms; Liu et al. 2023 (arXiv 2306.00946) for the flip-flop language.
Came from: automata.py (what finite automata can do; Dyck of bounded depth is one). Read next: hmm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, one_of, require


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A task whose rows are drawn afresh. Subclasses give `draw`, `batch_of`, `latents`, `counterfactual`, `render`.

    n_test: rows of the fixed held-out draw.
    """

    n_test: int = 1024

    def __post_init__(self):
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        raise NotImplementedError

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh rows."""
        return self.batch_of(self.draw(n, generator))

    def split(self, seed: int) -> Split:
        """n_test held-out rows; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))


def check_context(length: int, max_length: int | None) -> None:
    """Raise unless rows of this length fit into the context."""
    require(length >= 1, f"length={length}: at least 1")
    require(
        max_length is None or length <= max_length, f"length={length} is beyond the context, max_length={max_length}"
    )


def _words(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))


# --- Brackets --------------------------------------------------------------------------------------------------------

OPENING, CLOSING = "([{<abcd", ")]}>ABCD"


@dataclass(frozen=True)
class Dyck(Streamed):
    """Prefixes of well-formed brackets of k kinds; at every position: what may close now.

    shuffled:  False: properly nested; the answer is the kind on top of the stack (class 0: none is open).
               True: each kind is balanced by itself and ignores the others; the answer is the set of kinds that are
               open, as a number with bit i for kind i (class 0: none).
    p_open:    chance to open where both are possible; which kind opens (or, shuffled, closes) is drawn evenly.
    max_depth: brackets open at once, all kinds together; None = length, which bounds nothing.
    Tokens: 2 i opens kind i, 2 i + 1 closes it. The word may end exactly where the class is 0.
    """

    k: int
    length: int
    shuffled: bool
    p_open: float
    max_depth: int | None = None
    max_length: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.k <= len(OPENING), f"k={self.k}: 1 to {len(OPENING)} kinds of brackets")
        check_context(self.length, self.max_length)
        require(0 < self.p_open < 1, f"p_open={self.p_open} is outside (0, 1)")
        require(self.max_depth is None or self.max_depth >= 1, f"max_depth={self.max_depth}: at least 1, or null")

    @property
    def d_vocab(self) -> int:
        return 2 * self.k

    @property
    def n_ctx(self) -> int:
        return self.max_length or self.length

    @property
    def d_out(self) -> int:
        return 2**self.k if self.shuffled else self.k + 1

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        deepest = min(self.max_depth or self.length, self.length)
        chosen = torch.rand(self.length, n, generator=generator) < self.p_open
        depth, rows = torch.zeros(n, dtype=torch.long), []
        for choice in chosen:
            opening = (choice | (depth == 0)) & (depth < deepest)
            depth = depth + 2 * opening - 1
            rows.append(opening)
        opening = torch.stack(rows, 1)
        kinds = torch.randint(self.k, (n, self.length), generator=generator)
        if self.shuffled:
            return self._close_any(opening, kinds, generator)
        # As one kind they are nested already; a closing bracket then takes the kind of its partner.
        kinds = kinds.gather(1, self.partners((~opening).long()))
        return 2 * kinds + (~opening).long()

    def _close_any(self, opening: Tensor, kinds: Tensor, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        """Each closing bracket closes one of the kinds that are open, drawn evenly."""
        ties = torch.rand(*kinds.shape, self.k, generator=generator)
        count, rows, tokens = torch.zeros(len(kinds), self.k, dtype=torch.long), torch.arange(len(kinds)), []
        for opens, kind, tie in zip(opening.unbind(1), kinds.unbind(1), ties.unbind(1), strict=True):
            which = torch.where(opens, kind, torch.where(count > 0, tie, -1).argmax(1))
            count[rows, which] += 2 * opens - 1
            tokens.append(2 * which + (~opens).long())
        return torch.stack(tokens, 1)

    def _levels(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(which brackets a token is nested among [batch, pos], how many of them are open after it, is it an opening).

        All brackets are nested among each other, or, shuffled, only those of one kind. Raises UserError for a closing
        bracket that has nothing to close.
        """
        counts, opening = self._counts(inputs), inputs % 2 == 0
        kind = inputs // 2 if self.shuffled else torch.zeros_like(inputs)
        depth = counts.gather(2, kind[..., None])[..., 0] if self.shuffled else counts.sum(2)
        if bool((depth < 0).any()):
            at = int((depth < 0).any(0).long().argmax())
            raise UserError(f"a bracket at position {at} closes what was never opened")
        return kind, depth, opening

    def _last_opening(self, inputs: Tensor, level: Tensor) -> Int[Tensor, "batch pos"]:
        """The last opening bracket up to each position that made the depth `level`; -1: none.

        A walk by steps of one comes to a level from below by an opening, and the last such one is still open.
        """
        kind, depth, opening = self._levels(inputs)
        at = torch.arange(inputs.shape[1])
        found = (depth[:, None] == level[:, :, None]) & (kind[:, None] == kind[:, :, None]) & opening[:, None]
        return torch.where(found & (at <= at[:, None]), at, -1).amax(2)  # [batch, pos, opening] -> [batch, pos]

    def partners(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """The position of the opening bracket that each token closes; an opening one is its own."""
        _, depth, opening = self._levels(inputs)
        return self._last_opening(inputs, depth + (~opening).long())

    def answers(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """Which brackets may close after each position, as a class."""
        _, depth, _ = self._levels(inputs)
        if self.shuffled:
            return ((self._counts(inputs) > 0).long() << torch.arange(self.k)).sum(-1)
        top = inputs.gather(1, self._last_opening(inputs, depth).clamp_min(0)) // 2 + 1
        return torch.where(depth == 0, 0, top)

    def _counts(self, inputs: Tensor) -> Int[Tensor, "batch pos kind"]:
        """How many of each kind are open."""
        step = (inputs[..., None] // 2 == torch.arange(self.k)).long() * (1 - 2 * (inputs % 2))[..., None]
        return step.cumsum(1)

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        """These rows with their answers."""
        answers, classes = self.answers(inputs), self._classes()
        shown = f"{self.render(inputs[:1])[0]} may close {classes[int(answers[0, -1])]}" if len(inputs) else ""
        return Batch(inputs, answers, example=shown)

    def _classes(self) -> tuple[str, ...]:
        if not self.shuffled:
            return ("none", *OPENING[: self.k])
        return tuple("".join(OPENING[i] for i in range(self.k) if c >> i & 1) or "none" for c in range(2**self.k))

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`depth`, brackets open after each position; `open`, what may close; shuffled also the depth of each kind."""
        counts, depths = self._counts(inputs), _words(inputs.shape[1] + 1)
        found = {"depth": Latent(counts.sum(-1), depths), "open": Latent(self.answers(inputs), self._classes())}
        each = {f"depth {OPENING[i]}": Latent(counts[..., i], depths) for i in range(self.k)} if self.shuffled else {}
        return found | each

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One bracket and its partner become another kind: `open` changes between them, `depth` nowhere.

        With shuffled brackets only such as change `open` somewhere are chosen (another of the kind may be open too).
        """
        one_of("latent", latent, ("open",))
        require(self.k > 1, "with one kind of bracket there is no other to change to; take k >= 2")
        inputs, partner = batch.inputs, self.partners(batch.inputs)
        before, new, left = self.answers(inputs), inputs.clone(), torch.arange(len(inputs))
        for _ in range(200):
            opening = (inputs[left] % 2 == 0).double()
            chosen = torch.multinomial(opening, 1, generator=generator)
            shift = torch.randint(1, self.k, (len(left), 1), generator=generator)
            old = inputs[left]
            other = (old // 2 + shift) % self.k * 2 + old % 2
            new[left] = torch.where(partner[left] == chosen, other, old)
            left = left[(self.answers(new[left]) == before[left]).all(1)]
            if not len(left):
                return self.batch_of(new)
        raise UserError(f"no exchange of kinds changes {latent!r} in {len(left)} rows")

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "([]" """
        return ["".join((OPENING, CLOSING)[t % 2][t // 2] for t in row) for row in inputs.tolist()]


# --- Counters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counter(Streamed):
    """a^n b^n, a^n b^n c^n, ...: n of each of k letters, n drawn evenly from n_min..n_max; predict the next symbol.

    The row is filled up with "end" to a context of k * n_context. weight is 1 from the first b on, where everything is
    determined, up to where the first "end" is predicted; 0 elsewhere. n_context >= n_max leaves room for longer words.
    """

    k: int
    n_min: int
    n_max: int
    n_context: int

    def __post_init__(self):
        super().__post_init__()
        require(2 <= self.k <= 8, f"k={self.k}: 2 to 8 letters")
        require(1 <= self.n_min <= self.n_max, f"n_min={self.n_min}, n_max={self.n_max}: 1 or more, in this order")
        require(self.n_max <= self.n_context, f"n_max={self.n_max} is beyond the context, n_context={self.n_context}")

    @property
    def d_vocab(self) -> int:
        return self.k + 1

    @property
    def n_ctx(self) -> int:
        return self.k * self.n_context

    @property
    def d_out(self) -> int:
        return self.k + 1

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        counts = torch.randint(self.n_min, self.n_max + 1, (n, 1), generator=generator)
        return self.words(counts)

    def words(self, counts: Int[Tensor, "n one"]) -> Int[Tensor, "n pos"]:
        """The row of each n."""
        return (torch.arange(self.n_ctx) // counts).clamp_max(self.k)

    def _count(self, inputs: Tensor) -> Int[Tensor, "batch one"]:
        """n, the length of the first run."""
        return (inputs == 0).long().cumprod(1).sum(1, keepdim=True)

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        n, at = self._count(inputs), torch.arange(self.n_ctx)
        targets = ((at + 1) // n).clamp_max(self.k)
        weight = ((at >= n) & (at < self.k * n)).float()
        return Batch(inputs, targets, weight, example=self.render(inputs[:1])[0] if len(inputs) else "")

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`letter`, the letter at hand; `so far`, how many of it; `left`, how many are due, from the first b on."""
        n, at = self._count(inputs), torch.arange(self.n_ctx)
        so_far = torch.where(inputs < self.k, at - inputs * n + 1, 0)
        left = torch.where(at >= n, torch.where(inputs < self.k, n - so_far, 0), -1)
        return {
            "letter": Latent(inputs, (*OPENING[4:][: self.k], "end") if self.k <= 4 else (*_words(self.k), "end")),
            "so far": Latent(so_far, _words(self.n_context + 1)),
            "left": Latent(left, _words(self.n_context)),
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another n, drawn evenly from the others."""
        one_of("latent", latent, ("left",))
        choices = self.n_max - self.n_min + 1
        require(choices > 1, f"n_min = n_max = {self.n_min}: there is no other n")
        shift = torch.randint(1, choices, (len(batch), 1), generator=generator)
        return self.batch_of(self.words(self.n_min + (self._count(batch.inputs) - self.n_min + shift) % choices))

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "aaabbb" """
        return ["".join("abcdefgh"[t] for t in row if t < self.k) for row in inputs.tolist()]


# --- Counts of tokens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Majority(Streamed):
    """Bits; at every position: more 0s so far (0), as many (1), more 1s (2). p_one: chance of a 1."""

    length: int
    p_one: float
    max_length: int | None = None

    d_vocab, d_out = 2, 3

    def __post_init__(self):
        super().__post_init__()
        check_context(self.length, self.max_length)
        require(0 < self.p_one < 1, f"p_one={self.p_one} is outside (0, 1)")

    @property
    def n_ctx(self) -> int:
        return self.max_length or self.length

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        return (torch.rand(n, self.length, generator=generator) < self.p_one).long()

    def _lead(self, inputs: Tensor) -> Tensor:
        return (2 * inputs - 1).cumsum(1)

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        answers = self._lead(inputs).sign() + 1
        words = ("more 0s", "a tie", "more 1s")
        shown = f"{self.render(inputs[:1])[0]} -> {words[int(answers[0, -1])]}" if len(inputs) else ""
        return Batch(inputs, answers, example=shown)

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`lead`, how many more 1s than 0s (class c stands for c - length), and `majority`."""
        lead, n = self._lead(inputs), inputs.shape[1]
        return {
            "lead": Latent(lead + n, tuple(map(str, range(-n, n + 1)))),
            "majority": Latent(lead.sign() + 1, ("more 0s", "tie", "more 1s")),
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One bit flipped, drawn evenly from those whose flip changes this latent somewhere."""
        one_of("latent", latent, ("lead", "majority"))
        inputs, length = batch.inputs, batch.inputs.shape[1]
        lead = self._lead(inputs)
        # Flipping bit s moves the lead by -2 or +2 from s on: [batch, s, pos].
        moved = lead[:, None] + (2 - 4 * inputs)[:, :, None] * (torch.arange(length) >= torch.arange(length)[:, None])
        changes = (moved.sign() != lead.sign()[:, None]).any(2) if latent == "majority" else torch.ones_like(inputs)
        place = torch.multinomial(changes.double(), 1, generator=generator)
        return self.batch_of(inputs.scatter(1, place, 1 - inputs.gather(1, place)))

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "0110" """
        return ["".join(map(str, row)) for row in inputs.tolist()]


@dataclass(frozen=True)
class Histogram(Streamed):
    """Numbers below n_values; at every position how often its number occurs: class c stands for c + 1 times.

    causal: True: up to here. False: in the whole row, which needs a bidirectional model.
    """

    n_values: int
    length: int
    causal: bool

    def __post_init__(self):
        super().__post_init__()
        check_context(self.length, None)
        require(self.n_values >= 2, f"n_values={self.n_values}: at least 2")

    @property
    def d_vocab(self) -> int:
        return self.n_values

    @property
    def n_ctx(self) -> int:
        return self.length

    @property
    def d_out(self) -> int:
        return self.length

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        return torch.randint(self.n_values, (n, self.length), generator=generator)

    def _counts(self, inputs: Tensor, causal: bool) -> Tensor:
        same = inputs[:, :, None] == inputs[:, None]
        return (same.tril() if causal else same).sum(2)

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        counts = self._counts(inputs, self.causal)
        shown = f"{self.render(inputs[:1])[0]} -> {' '.join(map(str, counts[0].tolist()))}" if len(inputs) else ""
        return Batch(inputs, counts - 1, example=shown)

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`so far`: occurrences up to here; `in all`: in the whole row, so -1 before its last position."""
        counts = tuple(map(str, range(1, self.length + 1)))
        last = torch.arange(inputs.shape[1]) == self.length - 1
        return {
            "so far": Latent(self._counts(inputs, True) - 1, counts),
            "in all": Latent(torch.where(last, self._counts(inputs, False) - 1, -1), counts),
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another number at one place before the last, so that this latent changes somewhere; the rest is held."""
        one_of("latent", latent, ("so far", "in all"))
        before, new = self.latents(batch.inputs)[latent].values, batch.inputs.clone()
        left = torch.arange(len(new))
        for _ in range(400):
            place = torch.randint(self.length, (len(left), 1), generator=generator)
            shift = torch.randint(1, self.n_values, (len(left), 1), generator=generator)
            old = batch.inputs[left]
            new[left] = old.scatter(1, place, (old.gather(1, place) + shift) % self.n_values)
            left = left[(self.latents(new[left])[latent].values == before[left]).all(1)]
            if not len(left):
                return self.batch_of(new)
        raise UserError(f"no exchange of one number changes {latent!r} in {len(left)} rows; take a longer row")

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "3 5 3" """
        return [" ".join(map(str, row)) for row in inputs.tolist()]


# --- Memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AssociativeRecall(Streamed):
    """k1 v1 ... kn vn, then queries, each one of the keys: the answer at a query is the value that came with it.

    Keys are distinct, tokens 0 .. n_keys - 1; values are tokens n_keys + v and need not be distinct. Chance
    is 1/n_values.
    """

    n_keys: int
    n_values: int
    n_pairs: int
    n_queries: int

    def __post_init__(self):
        super().__post_init__()
        require(self.n_values >= 2, f"n_values={self.n_values}: at least 2")
        require(
            1 <= self.n_pairs <= self.n_keys, f"n_pairs={self.n_pairs}: 1 to n_keys={self.n_keys}, as keys are distinct"
        )
        require(self.n_queries >= 1, f"n_queries={self.n_queries}: at least 1")

    @property
    def d_vocab(self) -> int:
        return self.n_keys + self.n_values

    @property
    def n_ctx(self) -> int:
        return 2 * self.n_pairs + self.n_queries

    @property
    def d_out(self) -> int:
        return self.n_values

    @property
    def read(self) -> tuple[int, ...]:
        return tuple(range(-self.n_queries, 0))

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos"]:
        keys = torch.rand(n, self.n_keys, generator=generator).argsort(1)[:, : self.n_pairs]
        values = self.n_keys + torch.randint(self.n_values, (n, self.n_pairs), generator=generator)
        asked = keys.gather(1, torch.randint(self.n_pairs, (n, self.n_queries), generator=generator))
        return torch.cat([torch.stack([keys, values], 2).flatten(1), asked], 1)

    def answers(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch read"]:
        """The value that came with each asked key."""
        keys, values = inputs[:, : 2 * self.n_pairs].unflatten(1, (-1, 2)).unbind(2)
        at = (inputs[:, 2 * self.n_pairs :, None] == keys[:, None]).long().argmax(2)
        return values.gather(1, at) - self.n_keys

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        answers = self.answers(inputs)
        shown = (
            f"{self.render(inputs[:1])[0]} -> {' '.join(f'v{v}' for v in answers[0].tolist())}" if len(inputs) else ""
        )
        return Batch(inputs, answers, read=self.read, example=shown)

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`answer` at the queries; `key`, the key at hand or the one that came right before this value."""
        n = 2 * self.n_pairs
        none = torch.full_like(inputs[:, :n], -1)
        key = torch.cat([inputs[:, :n:2].repeat_interleave(2, 1), inputs[:, n:]], 1)
        return {
            "answer": Latent(torch.cat([none, self.answers(inputs)], 1), _words(self.n_values)),
            "key": Latent(key, _words(self.n_keys)),
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another value with the key that is asked first; keys and queries are held."""
        one_of("latent", latent, ("answer",))
        inputs, n = batch.inputs.clone(), 2 * self.n_pairs
        at = 2 * (inputs[:, n : n + 1] == inputs[:, :n:2]).long().argmax(1, keepdim=True) + 1
        shift = torch.randint(1, self.n_values, at.shape, generator=generator)
        value = (inputs.gather(1, at) - self.n_keys + shift) % self.n_values
        return self.batch_of(inputs.scatter(1, at, self.n_keys + value))

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "k3 v0 k1 v2 | k3" """
        n = 2 * self.n_pairs
        words = [[f"k{t}" if t < self.n_keys else f"v{t - self.n_keys}" for t in row] for row in inputs.tolist()]
        return [f"{' '.join(row[:n])} | {' '.join(row[n:])}" for row in words]


@dataclass(frozen=True)
class FlipFlopLanguage(Streamed):
    """w 1 i 0 r 1 ...: an instruction and a bit in turn; starts with a write, ends with a read and its bit.

    After w (write) the bit is random and stored, after i (ignore) random and of no account, after r (read) it is the
    stored one. p_ignore: share of i among the inner instructions; w and r share the rest evenly. Tokens: w 0, r 1, i 2,
    bits 3 and 4. `length` counts both and is even; the model sees all but the last token and predicts the next one.
    weight is 1 after r, where the answer is determined, 0 elsewhere ("clean" mode). The exact floor there is 0.
    Rare long gaps: train at p_ignore .8, evaluate at .98 (long gaps) and .1 (many writes).
    Source: Liu et al. 2023, "Exposing Attention Glitches", section 3: FFL(p_i).
    """

    length: int
    p_ignore: float

    d_vocab, d_out = 5, 5
    WORDS: ClassVar[tuple[str, ...]] = ("w", "r", "i", "0", "1")

    def __post_init__(self):
        super().__post_init__()
        require(
            self.length >= 4 and self.length % 2 == 0,
            f"length={self.length}: even and at least 4, a write and a read with their bits",
        )
        require(0 <= self.p_ignore <= 1, f"p_ignore={self.p_ignore} is outside [0, 1]")

    @property
    def n_ctx(self) -> int:
        return self.length - 1

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, "n pos_and_one"]:
        """Whole words; the model's inputs are all but the last token."""
        shape = (n, self.length // 2)
        u = torch.rand(shape, generator=generator)
        instruction = torch.where(u < self.p_ignore, 2, (u < (1 + self.p_ignore) / 2).long())
        instruction[:, 0], instruction[:, -1] = 0, 1
        bits = torch.randint(2, shape, generator=generator)
        stored = bits.gather(1, self._last_write(instruction))
        bits = torch.where(instruction == 1, stored, bits)
        return torch.stack([instruction, 3 + bits], 2).flatten(1)

    @staticmethod
    def _last_write(instruction: Tensor) -> Tensor:
        """Index of the last w up to each instruction."""
        return torch.where(instruction == 0, torch.arange(instruction.shape[1]), 0).cummax(1).values

    def batch_of(self, inputs: Int[Tensor, "batch pos_and_one"]) -> Batch:
        """From whole words."""
        example = self.render(inputs[:1])[0] if len(inputs) else ""
        return Batch(inputs[:, :-1], inputs[:, 1:], (inputs[:, :-1] == 1).float(), example=example)

    def gaps(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """Instructions since the last write, at every position: 0 at the write itself and its bit."""
        instruction = inputs[:, ::2]
        gap = torch.arange(instruction.shape[1]) - self._last_write(instruction)
        return gap.repeat_interleave(2, 1)[:, : inputs.shape[1]]

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`state`: the stored bit, -1 at position 0, the old one at w itself. `instruction`: the last one."""
        instruction, n = inputs[:, ::2], inputs.shape[1]
        # One more bit where the row ends with an instruction: nothing reads it.
        bits = (torch.cat([inputs, inputs[:, :1]], 1) if n % 2 else inputs)[:, 1::2] - 3
        last = self._last_write(instruction)
        at_bit = bits.gather(1, last)
        before = torch.cat([torch.full_like(at_bit[:, :1], -1), at_bit[:, :-1]], 1)
        at_instruction = torch.where(instruction == 0, before, at_bit)
        state = torch.stack([at_instruction, at_bit], 2).flatten(1)[:, :n]
        return {
            "state": Latent(state, ("0", "1")),
            "instruction": Latent(instruction.repeat_interleave(2, 1)[:, :n], ("w", "r", "i")),
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """The other bit written at the last write before the end, and at the reads after it; ignored bits are held."""
        one_of("latent", latent, ("state",))
        word = torch.cat([batch.inputs, batch.targets[:, -1:]], 1)
        instruction = word[:, ::2]
        last = self._last_write(instruction)
        flipped = (last == last[:, -1:]) & (instruction < 2)
        bits = torch.where(flipped, 7 - word[:, 1::2], word[:, 1::2])
        return self.batch_of(torch.stack([instruction, bits], 2).flatten(1))

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "w1 i0 r1" """
        words = ["".join(self.WORDS[t] for t in row) for row in inputs.tolist()]
        return [" ".join(word[i : i + 2] for i in range(0, len(word), 2)) for word in words]
