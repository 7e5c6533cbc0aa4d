"""MIU strings as tasks: is it a theorem, which residue so far, what comes next, is this a step, go on deriving.

Two examples by hand, bodies of up to 4 symbols. "classify": MIIU has two I's, so it is a theorem; its tokens are
[PAD, BOS, M, I, I, U, ?], answered with class 1 at the last position. "prefix": [BOS, M, I, I, U, PAD], answered with
#I mod 3 = 1, 2, 2 after the three symbols. No published study of transformers on MIU is known: here nobody shows
the model the number 3.

`MIUStrings` asks about one string: whether it is a theorem (classify), the residue after every symbol (prefix), or the
next symbol of a uniformly drawn theorem (language). `MIUSteps` asks about derivations: which rule leads from s to t
(validity), or what comes next in s0 > s1 > s2 (derivation). All know the truth at every position.

MU and all MU^k (k >= 1) are in no table and no draw: P(theorem | MU) stays a question.

Came from: miu_system.py (the rules). Read next: measures/residues.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import one_of, require
from toylab.tasks.miu_system import (
    NOTHING,
    I,
    U,
    bodies,
    check,
    choices,
    draw,
    length,
    n_ones,
    next_symbol,
    random_successor,
    rule_between,
    to_symbols,
)

TOKENS = ("U", "I", "M", "BOS", "?", ">", "EOS", "PAD")
M, BOS, ASK, THEN, EOS, PAD = range(2, 8)
MAX_LENGTH = 16  # of bodies that are listed: 131,071 of them
FORMATS = ("classify", "prefix", "language")
STEP_FORMATS = ("validity", "derivation")


def symbol_latents(inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
    """The true variables of the string that a position lies in, counted from its M up to and including the position.

    count     #I so far            residue   #I mod 3              position  symbols since the M
    last      the last symbol      theorem   whether the string so far is one
    doubling  parity of the number of R2's in any derivation of it: residue 2^d mod 3, so even for 1, odd for 2
    -1 on PAD, and where there is no such thing (last before any symbol, doubling of a non-theorem).
    """
    longest = inputs.shape[1]
    is_symbol, start = inputs <= I, inputs == M
    # Both running sums never fall, so the value at the last M is the largest value at any M.
    count, position = (
        total - torch.where(start, total, 0).cummax(1).values
        for total in ((inputs == I).cumsum(1), is_symbol.cumsum(1))
    )
    at = torch.where(is_symbol, torch.arange(longest), -1).cummax(1).values
    last = torch.where(position > 0, inputs.gather(1, at.clamp(min=0)), -1)
    residue = count % 3
    columns = {
        "count": (count, tuple(map(str, range(longest + 1)))),
        "residue": (residue, ("0", "1", "2")),
        "position": (position, tuple(map(str, range(longest + 1)))),
        "last": (last, ("U", "I")),
        "theorem": ((residue != 0).long(), ("no", "yes")),
        "doubling": (residue - 1, ("even", "odd")),
    }
    return {
        name: Latent(torch.where(inputs == PAD, -1, values), classes) for name, (values, classes) in columns.items()
    }


def flip_to(
    symbols: Int[Tensor, "body longest"], change: Int[Tensor, " body"], generator: torch.Generator
) -> Int[Tensor, "body longest"]:
    """Twins: #I mod 3 changed by 1 or 2 (mod 3) by flipping one symbol, or two where one cannot do it.

    +1: a U becomes an I, or two I's become U's. +2: an I becomes a U, or two U's become I's. Places are drawn.
    """
    flipped = torch.where(change == 1, U, I)  # what shall be flipped; -1 = 2 mod 3
    other = (symbols == flipped[:, None]).sum(1) == 0
    flipped = torch.where(other, 1 - flipped, flipped)
    score = torch.rand(symbols.shape, generator=generator).masked_fill(symbols != flipped[:, None], -1)
    order = score.argsort(1, descending=True)
    new = symbols.clone()
    rows = torch.arange(len(symbols))
    new[rows, order[:, 0]] = 1 - flipped
    twice = rows[other]
    new[twice, order[twice, 1]] = 1 - flipped[twice]
    return new


def render_tokens(inputs: Int[Tensor, "batch pos"]) -> list[str]:
    words = ("U", "I", "M", "", " ?", " > ", " EOS", "")
    return ["".join(words[token] for token in row) for row in inputs.tolist()]


@dataclass(frozen=True)
class MIUStrings:
    """One string: M and a body.

    format:     classify  PAD.. BOS M b ?   theorem (1) or not (0), at the last position
                prefix    BOS M b PAD..     #I mod 3 after every symbol of the body
                language  BOS M b PAD..     the next token (or EOS) from M on; theorems only
    lengths:    shortest and longest body in the table, at most 16.
    longest:    longest body that fits into the context; more than lengths[1] leaves room for longer questions.
    frac_train: share trained on, of every length and every label alike; the split is drawn from the run's seed.
    balanced:   as many theorems as non-theorems of every length, drawn once for all seeds; False: every string, of
                which two thirds are theorems. Only for classify and prefix.
    per_length: at most this many strings of a length (drawn in the same way); None: all.
    labels:     "shuffled" permutes the answers of classify over the table: a control with nothing to find.
    """

    format: str
    lengths: tuple[int, int]
    longest: int
    frac_train: float
    balanced: bool
    per_length: int | None = None
    labels: str = "true"

    def __post_init__(self):
        one_of("format", self.format, FORMATS)
        one_of("labels", self.labels, ("true", "shuffled"))
        low, high = self.lengths
        require(1 <= low <= high <= MAX_LENGTH, f"lengths={self.lengths}: shortest and longest, from 1 to {MAX_LENGTH}")
        require(self.longest >= high, f"longest={self.longest}: the context must hold lengths up to {high}")
        require(0 < self.frac_train < 1, f"frac_train={self.frac_train} is outside (0, 1); 0.8 holds out 20 %")
        require(
            not self.balanced or (low >= 3 and self.format != "language"),
            f"balanced with lengths={self.lengths}, format={self.format}: non-theorems other than MU^k begin at "
            "length 3, and the language has none; take lengths from 3 on, or balanced=false",
        )
        require(
            self.labels == "true" or self.format == "classify",
            f"labels=shuffled with format={self.format}: only the answers of classify can be shuffled",
        )
        require(self.per_length is None or self.per_length >= 2, f"per_length={self.per_length}: at least 2, or null")
        sizes = [min(len(rows), round(self.frac_train * len(rows))) for rows in self._groups(self.table())]
        require(
            0 < sum(sizes) < len(self.table()),
            f"frac_train={self.frac_train} of {len(self.table())} strings leaves the train or the test set empty",
        )

    # --- sizes ------------------------------------------------------------------------------------------------------

    d_vocab = len(TOKENS)

    @property
    def n_ctx(self) -> int:
        return self.longest + (3 if self.format == "classify" else 2)

    @property
    def d_out(self) -> int:
        return {"classify": 2, "prefix": 3, "language": len(TOKENS)}[self.format]

    @property
    def read(self) -> tuple[int, ...] | None:
        return (-1,) if self.format == "classify" else None

    # --- strings and tokens -----------------------------------------------------------------------------------------

    def encode(self, symbols: Int[Tensor, "body longest"]) -> Int[Tensor, "body pos"]:
        """Tokens of these bodies in the task's format."""
        n, size = len(symbols), length(symbols)
        body = torch.where(symbols == NOTHING, PAD, symbols)
        head = torch.tensor([BOS, M]).expand(n, -1)
        tokens = torch.cat([head, body, torch.full((n, self.longest - body.shape[1]), PAD)], 1)
        if self.format != "classify":
            return tokens
        # Turn every row until its padding stands at the left: the question is then always last.
        shift = size[:, None] + 2 + torch.arange(self.longest + 2)
        shift = torch.where(shift < self.longest + 2, shift, shift - (self.longest + 2))
        return torch.cat([tokens.gather(1, shift), torch.full((n, 1), ASK)], 1)

    def decode(self, inputs: Int[Tensor, "row pos"]) -> Int[Tensor, "row longest"]:
        """The bodies again, from their first symbol on."""
        start = (inputs == M).int().argmax(1, keepdim=True) + 1
        padded = torch.cat([inputs, torch.full((len(inputs), self.longest), PAD)], 1)
        body = padded.gather(1, start + torch.arange(self.longest))
        return torch.where(body <= I, body, NOTHING)

    def answers(self, inputs: Int[Tensor, "row pos"]) -> Int[Tensor, "row read"]:
        """The true answers; where nothing is asked, 0."""
        if self.format == "language":
            following = torch.cat([inputs[:, 1:], torch.full_like(inputs[:, :1], PAD)], 1)
            end = (inputs != PAD) & (following == PAD)
            return torch.where(self._asked(inputs), torch.where(end, EOS, following), 0)
        if self.format == "prefix":
            return torch.where(self._asked(inputs), (inputs == I).cumsum(1) % 3, 0)
        start = F.pad(inputs[:, :-1], (1, 0), value=PAD) == BOS
        well_formed = ((inputs == M) == start).all(1)  # M right behind BOS and nowhere else
        return (((inputs == I).sum(1) % 3 != 0) & well_formed).long()[:, None]

    def _asked(self, inputs: Tensor) -> Tensor:
        """Which read positions have a question: [row, read]."""
        if self.format == "classify":
            return torch.ones(len(inputs), 1, dtype=torch.bool)
        return (inputs <= I) | ((inputs == M) & (self.format == "language"))

    def _batch(self, inputs: Tensor) -> Batch:
        targets = self.answers(inputs)
        weight = None if self.format == "classify" else self._asked(inputs).float()
        example = ""
        if len(inputs):
            answer = targets[0].tolist() if weight is None else targets[0][weight[0] > 0].tolist()
            words = {"classify": ("not a theorem", "a theorem"), "prefix": ("0", "1", "2"), "language": TOKENS}
            example = f"{render_tokens(inputs[:1])[0]} -> {' '.join(words[self.format][a] for a in answer)}"
        return Batch(inputs, targets, weight, self.read, example)

    def ask(self, strings: Sequence[str]) -> Batch:
        """A batch of these strings ("MU", "MIIU"), with their true answers.

        Raises UserError on foreign symbols, on strings that do not begin with M, and on longer ones than fit.
        """
        for string in strings:
            check(string)
            require(string.startswith("M"), f"{string!r} does not begin with M; this task asks about M and a body")
        return self._batch(self.encode(to_symbols([string[1:] for string in strings], self.longest)))

    # --- data -------------------------------------------------------------------------------------------------------

    def table(self) -> Int[Tensor, "body longest"]:
        """Every body of the world, shorter ones first, padded to `longest`; the same for every seed."""
        rows = []
        for n in range(self.lengths[0], self.lengths[1] + 1):
            body = bodies(n)[1:]  # the first is U...U
            theorem = n_ones(body) % 3 != 0
            limit = len(body) if self.per_length is None else self.per_length
            kept = [theorem] if self.format == "language" else [theorem, ~theorem] if self.balanced else [theorem >= 0]
            size = min(limit // len(kept), *(int(k.sum()) for k in kept))
            order = torch.rand(len(body), generator=generator(0, f"miu table {n}"))
            chosen = torch.zeros(len(body), dtype=torch.bool)
            for k in kept:
                chosen[order.masked_fill(~k, 2).argsort()[:size]] = True
            rows.append(F.pad(body[chosen], (0, self.longest - n), value=NOTHING))
        return torch.cat(rows)

    def _groups(self, table: Tensor) -> list[Tensor]:
        """Row numbers of every length and label."""
        key = 2 * length(table) + (n_ones(table) % 3 != 0).long()
        return [(key == k).nonzero().squeeze(1) for k in key.unique().tolist()]

    def split(self, seed: int) -> Split:
        """Of every length and label round(frac_train * its number) strings at random are trained on, the rest held out.

        Of prefix and language whole strings are held out; short prefixes of theirs occur in training all the same.
        """
        table, g = self.table(), generator(seed, "split")
        train = torch.zeros(len(table), dtype=torch.bool)
        for rows in self._groups(table):
            train[rows[torch.randperm(len(rows), generator=g)[: round(self.frac_train * len(rows))]]] = True
        batch = self._batch(self.encode(table))
        if self.labels == "shuffled":
            order = torch.randperm(len(table), generator=generator(0, "labels"))
            batch = Batch(batch.inputs, batch.targets[order], batch.weight, batch.read)
        return Split(batch, train.nonzero().squeeze(1), (~train).nonzero().squeeze(1))

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n strings with true answers: a length of `lengths` alike, then, if balanced, a fair coin for the label.

        Not balanced: symbols alike. Language: theorems. Strings come by rejection and so alike given length and label.
        """
        low, high = self.lengths
        sizes = torch.randint(low, high + 1, (n,), generator=generator)
        theorem = None
        if self.format == "language":
            theorem = torch.ones(n, dtype=torch.bool)
        elif self.balanced:
            theorem = torch.randint(2, (n,), generator=generator).bool()
        return self._batch(self.encode(draw(sizes, self.longest, generator, theorem)))

    def slices(self, n: int, generator: torch.Generator) -> dict[str, Batch]:
        """Questions beyond the table, about n each: what a model that found the invariant answers all the same.

        "MU^k": every M U...U of the context. "longer": bodies beyond lengths[1], lengths alike. "P(I)=0.1", 0.5, 0.9:
        lengths of the table, other shares of I. "malformed" (classify): a second M, or none at the start; these are
        easy to tell and would inflate any other accuracy.
        """
        low, high = self.lengths
        k = torch.arange(1, self.longest + 1)
        theorem = torch.ones(n, dtype=torch.bool) if self.format == "language" else None
        found = {}
        if self.format != "language":
            found["MU^k"] = torch.where(torch.arange(self.longest) < k[:, None], U, NOTHING)
        if self.longest > high:
            sizes = torch.randint(high + 1, self.longest + 1, (n,), generator=generator)
            found["longer"] = draw(sizes, self.longest, generator, theorem)
        for p in (0.1, 0.5, 0.9):
            sizes = torch.randint(low, high + 1, (n,), generator=generator)
            found[f"P(I)={p}"] = draw(sizes, self.longest, generator, theorem, p)
        batches = {name: self._batch(self.encode(symbols)) for name, symbols in found.items()}
        if self.format == "classify":
            sizes = torch.randint(max(low, 2), high + 1, (n,), generator=generator)
            inputs = self.encode(draw(sizes, self.longest, generator))
            second = torch.rand(n, generator=generator) < 0.5
            start = (inputs == M).int().argmax(1)
            place = start + 1 + (torch.rand(n, generator=generator) * sizes).long()
            rows = torch.arange(n)
            inputs[rows, torch.where(second, place, start)] = torch.where(second, M, I)
            batches["malformed"] = self._batch(inputs)
        return batches

    # --- the truth --------------------------------------------------------------------------------------------------

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """count, residue, position, last, theorem, doubling: see symbol_latents."""
        return symbol_latents(inputs)

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Twins that differ in one symbol (two where one cannot do it), with the answers of the new strings.

        residue or count: a symbol drawn from all is flipped (language: such that the string stays a theorem).
        theorem: a flip that changes the label; of residue 1 an I, of residue 2 a U, of residue 0 any.
        last: the last symbol is flipped. #U + #I, the length, is always held. The twin of a string with one I may be
        an MU^k.
        """
        names = ("residue", "count") if self.format == "language" else ("residue", "count", "theorem", "last")
        one_of("latent", latent, names)
        symbols = self.decode(batch.inputs)
        size, residue = length(symbols), n_ones(symbols) % 3
        if self.format == "language":
            require(bool((size > 1).all()), "MI has no twin that is a theorem of the same length")
            return self._batch(self.encode(flip_to(symbols, residue, generator)))  # 1 -> 2, 2 -> 4 = 1
        if latent == "theorem":
            either = torch.randint(1, 3, (len(symbols),), generator=generator)
            # A body without I's can gain one, never lose one.
            either = torch.where(n_ones(symbols) == 0, 1, either)
            return self._batch(self.encode(flip_to(symbols, torch.where(residue == 0, either, 3 - residue), generator)))
        place = size - 1
        if latent != "last":
            place = (torch.rand(len(symbols), generator=generator) * size).long()
        rows = torch.arange(len(symbols))
        new = symbols.clone()
        new[rows, place] = 1 - symbols[rows, place]
        return self._batch(self.encode(new))

    def belief(self, logits: Float[Tensor, "row read d_out"], inputs: Int[Tensor, "row pos"]) -> Float[Tensor, " row"]:
        """P(theorem | string) as the model says it, from its logits at the read positions.

        classify: the probability of class 1. prefix: 1 - P(residue 0) after the last symbol. language:
        P(body, EOS | M), the probability of the whole string, which sums to 1 over all strings.
        """
        log_probs = logits.double().log_softmax(-1)
        if self.format == "classify":
            return log_probs[:, 0, 1].exp()
        if self.format == "prefix":
            last = (inputs != PAD).sum(1) - 1
            return 1 - log_probs[torch.arange(len(inputs)), last, 0].exp()
        tokens = log_probs.gather(-1, self.answers(inputs)[..., None]).squeeze(-1)
        return (tokens * self._asked(inputs)).sum(1).exp()

    def law(self) -> Float[Tensor, "pos residue symbol"]:
        """The exact next-token law of the language: P(U), P(I), P(EOS) after so many symbols, from this residue.

        Of a string drawn from the whole table, trained on or not; see next_symbol. The loss of a perfect model is
        the entropy of the draw, log of the number of strings, spread over its tokens.
        """
        require(self.format == "language", f"format={self.format} has no next-token law; language has")
        sizes = length(self.table()).bincount()
        return next_symbol({n: count for n, count in enumerate(sizes.tolist()) if count})

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "MIIU ?" """
        return render_tokens(inputs)


@dataclass(frozen=True)
class MIUSteps:
    """Steps between strings; training data are streamed.

    format:  validity    PAD.. BOS s > t ?           0: t does not follow from s; 1..4: by this rule; last position
             derivation  BOS s0 > s1 > ... PAD..     the next token, from the first ">" on, EOS at the end
    lengths: shortest and longest body of s (validity; any string) or of s0 (derivation; theorems).
    longest: bodies never grow beyond this: rules that would are not used.
    steps:   rules in a row (derivation; 1 for validity).
    n_test:  rows of the fixed held-out draw.

    validity: half of the pairs are steps, by a rule drawn from those that apply and then a place; the others are such
    steps with one symbol of t flipped, so lengths say nothing. derivation: every successor that fits alike, EOS
    after the last step or a dead end, so the exact floor of the loss is `entropy`.
    """

    format: str
    lengths: tuple[int, int]
    longest: int
    steps: int = 1
    n_test: int = 1024

    d_vocab = len(TOKENS)

    def __post_init__(self):
        one_of("format", self.format, STEP_FORMATS)
        low, high = self.lengths
        require(1 <= low <= high, f"lengths={self.lengths}: shortest and longest, from 1 on")
        require(
            self.longest >= high + 1, f"longest={self.longest}: at least {high + 1}, or R1 has no room after {high}"
        )
        require(self.steps >= 1, f"steps={self.steps}: at least 1")
        require(self.format == "derivation" or self.steps == 1, f"steps={self.steps}: validity asks about one step")
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    @property
    def n_ctx(self) -> int:
        return (self.steps + 1) * (self.longest + 2) + (1 if self.format == "validity" else 0)

    @property
    def d_out(self) -> int:
        return 5 if self.format == "validity" else len(TOKENS)

    # --- data -------------------------------------------------------------------------------------------------------

    def encode(self, strings: Int[Tensor, "row string longest"]) -> Int[Tensor, "row pos"]:
        """BOS s0 > s1 > ..., with the padding between strings moved to one side; empty bodies are no strings."""
        n, k, _ = strings.shape
        marks = torch.tensor([THEN, M]).repeat(n, k, 1)
        marks[:, 0, 0] = BOS
        marks[(strings == NOTHING).all(2)] = PAD
        body = torch.where(strings == NOTHING, PAD, strings)
        tokens = torch.cat([marks, body], 2).flatten(1)
        if self.format == "validity":
            tokens = torch.cat([tokens, torch.full((n, 1), ASK)], 1)
        side = (tokens == PAD) if self.format == "derivation" else (tokens != PAD)
        return tokens.gather(1, side.long().argsort(dim=1, stable=True))

    def decode(self, inputs: Int[Tensor, "row pos"]) -> Int[Tensor, "row string longest"]:
        """The bodies of the strings again."""
        at = symbol_latents(inputs)["position"].values
        string = (inputs == THEN).cumsum(1)
        strings = torch.full((len(inputs), self.steps + 1, self.longest), NOTHING)
        fits = (inputs <= I) & (string <= self.steps) & (at <= self.longest)
        row, pos = fits.nonzero(as_tuple=True)
        strings[row, string[row, pos], at[row, pos] - 1] = inputs[row, pos]
        return strings

    def answers(self, inputs: Int[Tensor, "row pos"]) -> Int[Tensor, "row read"]:
        if self.format == "validity":
            old, new = self.decode(inputs).unbind(1)
            return rule_between(old, new)[:, None]
        following = torch.cat([inputs[:, 1:], torch.full_like(inputs[:, :1], PAD)], 1)
        return torch.where(self._asked(inputs), torch.where(following == PAD, EOS, following), 0)

    def _asked(self, inputs: Tensor) -> Tensor:
        if self.format == "validity":
            return torch.ones(len(inputs), 1, dtype=torch.bool)
        return ((inputs == THEN).cumsum(1) > 0) & (inputs != PAD)

    def _batch(self, strings: Tensor) -> Batch:
        inputs = self.encode(strings)
        targets = self.answers(inputs)
        validity = self.format == "validity"
        example = ""
        if len(inputs):
            rule = f" -> {'no step' if targets[0, 0] == 0 else f'R{targets[0, 0]}'}" if validity else ""
            example = render_tokens(inputs[:1])[0] + rule
        weight = None if validity else self._asked(inputs).float()
        return Batch(inputs, targets, weight, (-1,) if validity else None, example)

    def _pairs(self, valid: Tensor, generator: torch.Generator) -> Tensor:
        """[row, 2, longest]: random s and a t that follows from it or, where not `valid`, no longer does."""
        low, high = self.lengths
        pairs = torch.empty(len(valid), 2, self.longest, dtype=torch.long)
        todo = torch.arange(len(valid))
        while len(todo):  # s that nothing follows from, and flips that give another step, are drawn again
            sizes = torch.randint(low, high + 1, todo.shape, generator=generator)
            old = draw(sizes, self.longest, generator)
            new, rule = random_successor(old, generator, by_rule=True)
            flipped = self._flip_one(new, generator)
            new = torch.where(valid[todo, None], new, flipped)
            pairs[todo] = torch.stack([old, new], 1)
            right = (rule > 0) & (valid[todo] | (rule_between(old, flipped) == 0))
            todo = todo[~right]
        return pairs

    def _flip_one(self, symbols: Tensor, generator: torch.Generator) -> Tensor:
        place = (torch.rand(len(symbols), generator=generator) * length(symbols)).long()
        rows = torch.arange(len(symbols))
        new = symbols.clone()
        new[rows, place] = 1 - symbols[rows, place]
        return new

    def _derivations(self, start: Tensor, generator: torch.Generator) -> Tensor:
        """[row, steps + 1, longest] from these first strings; nothing stands after a dead end.

        A dead end is a string after which nothing fits into `longest`: it ends in U, has no III and no UU and is long.
        """
        strings = torch.full((len(start), self.steps + 1, self.longest), NOTHING)
        strings[:, 0] = start
        todo = torch.arange(len(start))
        for i in range(self.steps):
            new, rule = random_successor(strings[todo, i], generator)
            todo, new = todo[rule > 0], new[rule > 0]
            strings[todo, i + 1] = new
        return strings

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh pairs or derivations."""
        if self.format == "validity":
            return self._batch(self._pairs(torch.randint(2, (n,), generator=generator).bool(), generator))
        sizes = torch.randint(self.lengths[0], self.lengths[1] + 1, (n,), generator=generator)
        start = draw(sizes, self.longest, generator, torch.ones(n, dtype=torch.bool))
        return self._batch(self._derivations(start, generator))

    def split(self, seed: int) -> Split:
        """n_test held-out rows; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    # --- the truth --------------------------------------------------------------------------------------------------

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """count, residue, position, last, theorem, doubling of the string that a position is in: see symbol_latents.

        rule: at every ">" and "?" behind a second or later string, the number of the rule that led to it, 0 for none;
        -1 elsewhere. (The last string of a derivation has no such position.)
        """
        strings = self.decode(inputs)
        old, new = strings[:, :-1].flatten(0, 1), strings[:, 1:].flatten(0, 1)
        rule = rule_between(old, new).view(len(inputs), -1)
        # A ">" still belongs to the string before it.
        string = ((inputs == THEN).cumsum(1) - (inputs == THEN).long()).clamp(max=self.steps)
        ended = ((inputs == THEN) | (inputs == ASK)) & (string > 0)
        values = torch.where(ended, rule.gather(1, (string - 1).clamp(min=0)), -1)
        return symbol_latents(inputs) | {"rule": Latent(values, ("none", "R1", "R2", "R3", "R4"))}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """rule (validity): a step loses its rule by one flip of t, a pair that was none gets a t that follows.

        residue (derivation): s0 gets a twin with the other residue, and steps of its own.
        """
        one_of("latent", latent, ("rule",) if self.format == "validity" else ("residue",))
        strings = self.decode(batch.inputs)
        if latent == "residue":
            start = flip_to(strings[:, 0], n_ones(strings[:, 0]) % 3, generator)
            return self._batch(self._derivations(start, generator))
        old, new = strings.unbind(1)
        valid = rule_between(old, new) > 0
        follows, _ = random_successor(old, generator)
        new = torch.where(valid[:, None], new, follows)
        todo = valid.nonzero().squeeze(1)
        while len(todo):
            flipped = self._flip_one(strings[todo, 1], generator)
            new[todo] = flipped
            todo = todo[rule_between(old[todo], flipped) > 0]
        return self._batch(torch.stack([old, new], 1))

    def entropy(self, inputs: Int[Tensor, "row pos"]) -> Float[Tensor, " row"]:
        """-log P(steps | s0) in nats of these derivations: the sum of log(number of successors that fit)."""
        require(self.format == "derivation", f"format={self.format} has no entropy of steps; derivation has")
        strings = self.decode(inputs)
        return choices(strings[:, :-1].flatten(0, 1)).sum(1).clamp(min=1).double().log().view(len(inputs), -1).sum(1)

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "MI > MII > MIIU" """
        return render_tokens(inputs)
