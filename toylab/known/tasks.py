"""The small worlds of the hand-built circuits: gates, bit counts, brackets, equalities, a switch, a flip-flop.

Most are finite and tiny, so that a known model can be checked on every input. A finite one states its table, its
answers and its true variables; `FiniteTask` makes the Task protocol of those. Tokens are small integers; the last
position of tasks with one answer holds "=".

Came from: data.py. Read next: circuits.py (a model with known weights for each).
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, one_of, require
from toylab.tasks.induction import RepeatedTokens

MAX_ROWS = 2**16


@dataclass(frozen=True, kw_only=True)
class FiniteTask:
    """A task that is its own table of all inputs. Subclasses give `table`, `answers`, `latents`, `read` and `render`.

    frac_train: share of the table trained on, if something is trained.
    """

    frac_train: float = 0.5

    read: ClassVar[tuple[int, ...] | None] = (-1,)

    def table(self) -> Int[Tensor, "row pos"]:
        raise NotImplementedError

    def answers(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch read"]:
        raise NotImplementedError

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        raise NotImplementedError

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        raise NotImplementedError

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        """These inputs with their answers."""
        answers = self.answers(inputs)
        example = f"{self.render(inputs[:1])[0]} -> {' '.join(map(str, answers[0].tolist()))}" if len(inputs) else ""
        return Batch(inputs, answers, read=self.read, example=example)

    def split(self, seed: int) -> Split:
        """A permutation of the table; both parts get at least one row."""
        batch = self.batch_of(self.table())
        order = torch.randperm(len(batch), generator=generator(seed, "split"))
        n = min(max(1, int(self.frac_train * len(batch))), len(batch) - 1)
        return Split(batch, order[:n], order[n:])

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n rows of the table, with replacement."""
        table = self.table()
        return self.batch_of(table[torch.randint(len(table), (n,), generator=generator)])

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """For each row another row of the table on which this latent differs.

        Among those, one on which the fewest other latents differ, then the fewest tokens; ties are drawn.
        """
        table = self.table()
        before, after = self.latents(batch.inputs), self.latents(table)
        one_of("latent", latent, before)
        differs = {
            name: (before[name].values[:, None] != after[name].values[None]).flatten(2).any(-1) for name in before
        }
        tokens = (batch.inputs[:, None] != table[None]).sum(-1)
        cost = sum(d.double() for d in differs.values()) * table.shape[1] + tokens
        cost = cost + 0.5 * torch.rand(cost.shape, generator=generator)
        cost[~differs[latent]] = torch.inf
        best, at = cost.min(1)
        if best.isinf().any():
            raise UserError(f"{latent!r} is the same in every row of this world, so it cannot be changed")
        return self.batch_of(table[at])

    def __post_init__(self):
        require(0 < self.frac_train < 1, f"frac_train={self.frac_train} is outside (0, 1)")
        if len(self.table()) > MAX_ROWS:
            raise UserError(f"{self}: {len(self.table()):,} rows; at most {MAX_ROWS:,}, take a smaller size")


def _from(position: int, column: Tensor, n_pos: int) -> Tensor:
    """One value per row -> [row, pos], -1 before the position where it is first determined."""
    return torch.where(torch.arange(n_pos) >= position, column[:, None], -1)


def _words(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))


def _with_equals(columns: Tensor, equals: int) -> Int[Tensor, "row pos"]:
    return torch.cat([columns, torch.full((len(columns), 1), equals)], 1)


@dataclass(frozen=True)
class Gate(FiniteTask):
    """a b = (a or b), (a and b): four rows, tokens 0, 1 and "=" (2)."""

    operation: str

    d_vocab, n_ctx, d_out = 3, 3, 2

    def __post_init__(self):
        one_of("operation", self.operation, ("or", "and"))
        super().__post_init__()

    def table(self):
        return _with_equals(torch.cartesian_prod(torch.arange(2), torch.arange(2)), 2)

    def answers(self, inputs):
        bits = inputs[:, :2].bool()
        return (bits.any(1) if self.operation == "or" else bits.all(1)).long()[:, None]

    def latents(self, inputs):
        columns = {"a": (0, inputs[:, 0]), "b": (1, inputs[:, 1]), "answer": (1, self.answers(inputs)[:, 0])}
        return {name: Latent(_from(at, column, 3), ("0", "1")) for name, (at, column) in columns.items()}

    def render(self, inputs):
        return [f"{a} {self.operation} {b}" for a, b in inputs[:, :2].tolist()]


BIT_FUNCTIONS = {
    "parity": lambda count, n: count % 2,
    "majority": lambda count, n: (2 * count > n).long(),
    "count": lambda count, n: count,
}


@dataclass(frozen=True)
class BitFunction(FiniteTask):
    """n bits and "=" (2); the answer is a function of how many are 1: parity, majority (more than half), count."""

    n_bits: int
    function: str

    d_vocab = 3

    def __post_init__(self):
        one_of("function", self.function, BIT_FUNCTIONS)
        require(1 <= self.n_bits <= 12, f"n_bits={self.n_bits}: 1 to 12 (the table has 2^n rows)")
        super().__post_init__()

    @property
    def n_ctx(self) -> int:
        return self.n_bits + 1

    @property
    def d_out(self) -> int:
        return self.n_bits + 1 if self.function == "count" else 2

    def table(self):
        bits = torch.arange(2**self.n_bits)[:, None] >> torch.arange(self.n_bits - 1, -1, -1) & 1
        return _with_equals(bits, 2)

    def answers(self, inputs):
        return BIT_FUNCTIONS[self.function](inputs[:, :-1].sum(1), self.n_bits)[:, None]

    def latents(self, inputs):
        last = self.n_bits - 1
        count = Latent(_from(last, inputs[:, :-1].sum(1), self.n_ctx), _words(self.n_bits + 1))
        return {
            "count": count,
            "answer": Latent(_from(last, self.answers(inputs)[:, 0], self.n_ctx), _words(self.d_out)),
        }

    def render(self, inputs):
        return [f"{self.function} of {''.join(map(str, row[:-1]))}" for row in inputs.tolist()]


@dataclass(frozen=True)
class DyckPrefix(FiniteTask):
    """n brackets, ( is 0 and ) is 1; at every position: 0 balanced (T), 1 not yet (P), 2 failed before or here (F)."""

    n: int

    d_vocab, d_out = 2, 3
    read: ClassVar[tuple[int, ...] | None] = None

    def __post_init__(self):
        require(1 <= self.n <= 12, f"n={self.n}: 1 to 12 (the table has 2^n rows)")
        super().__post_init__()

    @property
    def n_ctx(self) -> int:
        return self.n

    def table(self):
        return torch.arange(2**self.n)[:, None] >> torch.arange(self.n - 1, -1, -1) & 1

    def _depth(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        depth = (1 - 2 * inputs).cumsum(1)
        return depth, (depth < 0).long().cummax(1).values

    def answers(self, inputs):
        depth, failed = self._depth(inputs)
        return torch.where(failed > 0, 2, (depth != 0).long())

    def latents(self, inputs):
        """`depth` (class d stands for depth d - n) and `failed` at every position, and the answer."""
        depth, failed = self._depth(inputs)
        depths = tuple(map(str, range(-self.n, self.n + 1)))
        return {
            "depth": Latent(depth + self.n, depths),
            "failed": Latent(failed, ("no", "yes")),
            "answer": Latent(self.answers(inputs), ("T", "P", "F")),
        }

    def render(self, inputs):
        return ["".join("()"[t] for t in row) for row in inputs.tolist()]


@dataclass(frozen=True)
class HierarchicalEquality(FiniteTask):
    """a b c d = [a = b] == [c = d], every a, b, c, d below n_values (Geiger et al.); "=" is token n_values."""

    n_values: int

    n_ctx, d_out = 5, 2

    def __post_init__(self):
        require(2 <= self.n_values <= 8, f"n_values={self.n_values}: 2 to 8 (the table has n^4 rows)")
        super().__post_init__()

    @property
    def d_vocab(self) -> int:
        return self.n_values + 1

    def table(self):
        return _with_equals(torch.cartesian_prod(*[torch.arange(self.n_values)] * 4), self.n_values)

    def _equal(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return (inputs[:, 0] == inputs[:, 1]).long(), (inputs[:, 2] == inputs[:, 3]).long()

    def answers(self, inputs):
        left, right = self._equal(inputs)
        return (left == right).long()[:, None]

    def latents(self, inputs):
        """The operands, `a=b` from b on, `c=d` and the answer from d on."""
        left, right = self._equal(inputs)
        operands = {ascii_lowercase[i]: Latent(_from(i, inputs[:, i], 5), _words(self.n_values)) for i in range(4)}
        equal = {"a=b": (1, left), "c=d": (3, right), "answer": (3, self.answers(inputs)[:, 0])}
        return operands | {name: Latent(_from(at, x, 5), ("no", "yes")) for name, (at, x) in equal.items()}

    def render(self, inputs):
        return [f"({a} = {b}) = ({c} = {d})" for a, b, c, d in inputs[:, :4].tolist()]


@dataclass(frozen=True)
class Switch(FiniteTask):
    """f a b = a if f is 0 else b. Half of the rows need one half of the circuit, half the other.

    Tokens: values 0..n-1, flags n and n+1, "=" n+2.
    """

    n_values: int

    n_ctx = 4

    def __post_init__(self):
        require(2 <= self.n_values <= 32, f"n_values={self.n_values}: 2 to 32")
        super().__post_init__()

    @property
    def d_vocab(self) -> int:
        return self.n_values + 3

    @property
    def d_out(self) -> int:
        return self.n_values

    def table(self):
        values = torch.arange(self.n_values)
        return _with_equals(torch.cartesian_prod(self.n_values + torch.arange(2), values, values), self.n_values + 2)

    def answers(self, inputs):
        return torch.where(inputs[:, :1] == self.n_values, inputs[:, 1:2], inputs[:, 2:3])

    def latents(self, inputs):
        values = _words(self.n_values)
        return {
            "flag": Latent(_from(0, inputs[:, 0] - self.n_values, 4), ("a", "b")),
            "a": Latent(_from(1, inputs[:, 1], 4), values),
            "b": Latent(_from(2, inputs[:, 2], 4), values),
            "answer": Latent(_from(2, self.answers(inputs)[:, 0], 4), values),
        }

    def render(self, inputs):
        return [f"{'ab'[f - self.n_values]} of a={a}, b={b}" for f, a, b in inputs[:, :3].tolist()]


@dataclass(frozen=True)
class RepeatedWithoutBos:
    """RepeatedTokens without its first token: `length` distinct tokens, the same again without the last.

    What an induction head without a start token is asked: position 0 has no token before it to look at.
    """

    d_tokens: int
    length: int
    n_test: int = 1024

    def __post_init__(self):
        _ = self._with_bos

    @property
    def _with_bos(self) -> RepeatedTokens:
        return RepeatedTokens(self.d_tokens, self.length, self.n_test)

    @property
    def d_vocab(self) -> int:
        return self.d_tokens

    @property
    def n_ctx(self) -> int:
        return 2 * self.length - 1

    @property
    def d_out(self) -> int:
        return self.d_tokens

    def _without(self, batch: Batch) -> Batch:
        assert batch.weight is not None
        return Batch(batch.inputs[:, 1:], batch.targets[:, 1:], batch.weight[:, 1:], example=batch.example)

    def _back(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.full_like(inputs[:, :1], self.d_tokens), inputs], 1)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return self._without(self._with_bos.sample(n, generator))

    def split(self, seed: int) -> Split:
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`next` in the second copy; `previous`, which is -1 at position 0."""
        found = {name: latent.values[:, 1:] for name, latent in self._with_bos.latents(self._back(inputs)).items()}
        found["previous"] = torch.where(torch.arange(inputs.shape[1]) == 0, -1, found["previous"])
        return {name: Latent(values, _words(self.d_tokens)) for name, values in found.items()}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """As RepeatedTokens does."""
        full = Batch(self._back(batch.inputs), self._with_bos.answers(self._back(batch.inputs)))
        return self._without(self._with_bos.counterfactual(full, latent, generator))

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        return self._with_bos.render(self._back(inputs))


@dataclass(frozen=True)
class FlipFlop:
    """Write 0, write 1, ignore 0, ignore 1 (tokens 0..3); at every position: the bit last written (Liu et al. 2023).

    The first token is a write. p_write: share of writes among the others. Rows that a random draw hardly ever shows,
    two opposite writes and then nothing but ignores with the other bit, are `worst_case()`.
    """

    n: int
    p_write: float
    n_test: int = 1024

    d_vocab, d_out = 4, 2

    def __post_init__(self):
        require(self.n >= 3, f"n={self.n}: at least 3, two writes and one to ignore")
        require(0 < self.p_write < 1, f"p_write={self.p_write} is outside (0, 1)")

    @property
    def n_ctx(self) -> int:
        return self.n

    def state(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """The bit of the last write up to here."""
        at = torch.where(inputs < 2, torch.arange(inputs.shape[1]), 0).cummax(1).values
        return inputs.gather(1, at) % 2

    def batch_of(self, inputs: Int[Tensor, "batch pos"]) -> Batch:
        example = f"{self.render(inputs[:1])[0]} -> {self.state(inputs)[0, -1].item()}" if len(inputs) else ""
        return Batch(inputs, self.state(inputs), example=example)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        bits = torch.randint(2, (n, self.n), generator=generator)
        ignored = torch.rand(n, self.n, generator=generator) >= self.p_write
        ignored[:, 0] = False
        return self.batch_of(bits + 2 * ignored)

    def worst_case(self) -> Batch:
        """Write one bit, write the other, then ignore the first bit to the end: the longest gap there can be."""
        first = torch.arange(2)[:, None]
        return self.batch_of(torch.cat([first, 1 - first, (2 + first).expand(-1, self.n - 2)], 1))

    def split(self, seed: int) -> Split:
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        return {"state": Latent(self.state(inputs), ("0", "1"))}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """The other final state: the last write of each row is flipped, nothing else."""
        one_of("latent", latent, ("state",))
        inputs = batch.inputs.clone()
        last = torch.where(inputs < 2, torch.arange(inputs.shape[1]), -1).amax(1, keepdim=True)
        inputs.scatter_(1, last, 1 - inputs.gather(1, last))
        return self.batch_of(inputs)

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "w1 i0 i0" """
        return [" ".join(("w0", "w1", "i0", "i1")[t] for t in row) for row in inputs.tolist()]
