"""Modular arithmetic: a b = answer, on residues mod p (Power et al. 2022; Nanda et al. 2023).

One example by hand, p = 113 and x+y: the tokens are [50, 70, 113], where 113 is "="; the answer, read at the last
position, is (50 + 70) mod 113 = 7. The world is finite: all p^k tuples fit in memory, so a split is a permutation
of the whole table and every measure can use all of it.

Came from: data.py. Read next: models/transformer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from toylab.data import Batch, GroupLabels, Latent, Split, generator
from toylab.errors import UserError, one_of, require

MAX_ROWS = 2**24


def inverses(p: int) -> Tensor:
    """inverse[y] * y = 1 mod p for y = 1..p-1 (p prime; y^(p-2) by Fermat); inverse[0] = 0."""
    return torch.tensor([pow(y, p - 2, p) if y else 0 for y in range(p)])


# Every operation of Power et al. 2022 on residues (appendix A.1.1), x*y from their figure 2, and the further
# operators of their code. All take x, y and p, and are reduced mod p afterwards.
OPERATIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "x+y": lambda x, y, p: x + y,
    "x-y": lambda x, y, p: x - y,
    "x*y": lambda x, y, p: x * y,
    "x/y": lambda x, y, p: x * inverses(p)[y],
    "x/y if y odd else x-y": lambda x, y, p: torch.where(y % 2 == 1, x * inverses(p)[y], x - y),
    "x^2+y^2": lambda x, y, p: x**2 + y**2,
    "x^2+xy+y^2": lambda x, y, p: x**2 + x * y + y**2,
    "x^2+xy+y^2+x": lambda x, y, p: x**2 + x * y + y**2 + x,
    "x^3+xy": lambda x, y, p: x**3 + x * y,
    "x^3+xy^2+y": lambda x, y, p: x**3 + x * y**2 + y,
    "x^2+y": lambda x, y, p: x**2 + y,
    "x^3+y": lambda x, y, p: x**3 + y,
    "x+y if x even else x*y": lambda x, y, p: torch.where(x % 2 == 0, x + y, x * y),
    "x+y if x even else x-y": lambda x, y, p: torch.where(x % 2 == 0, x + y, x - y),
}
FOLDABLE = ("x+y", "x-y", "x*y")  # these extend to k operands from left to right
DIVISIONS = ("x/y", "x/y if y odd else x-y")
FORMATS = {"a b =": 1, "a b": 0, "a o b =": 2}  # -> special tokens: "=" is p, the operator p + 1


def is_prime(n: int) -> bool:
    return n >= 2 and all(n % d for d in range(2, int(n**0.5) + 1))


def powers_of_root(p: int) -> Int[Tensor, " i"]:
    """g^i mod p for i = 0..p-2, g the smallest primitive root of the prime p: every residue but 0, once."""
    for g in range(1, p):
        powers = [pow(g, i, p) for i in range(p - 1)]
        if len(set(powers)) == p - 1:
            return torch.tensor(powers)
    raise AssertionError(f"{p} is not prime")


@dataclass(frozen=True)
class ModularArithmetic:
    """x o y mod p, every tuple of residues once.

    operation:  one of OPERATIONS. Divisions need a prime modulus and leave out y = 0.
    n_operands: k >= 2; more than 2 for x+y, x-y, x*y (taken from left to right).
    frac_train: share of the table that is trained on; the split is drawn from the run's seed.
    format:     "a b =" (Nanda), "a b" (Zhong, no "=" token), "a o b =" (with an operator token between operands).
    labels:     "shuffled" permutes the answers over the whole table, once and for all seeds: a control with the
                same marginals and nothing to find.
    label_noise: share of the training rows whose answer is replaced by another residue (drawn from the seed).
    """

    p: int
    operation: str
    frac_train: float
    n_operands: int = 2
    format: str = "a b ="
    labels: Literal["true", "shuffled"] = "true"
    label_noise: float = 0.0

    def __post_init__(self):
        require(self.p >= 2, f"p={self.p}: the modulus must be at least 2; the paper's is 113")
        one_of("operation", self.operation, OPERATIONS)
        one_of("format", self.format, FORMATS)
        one_of("labels", self.labels, ("true", "shuffled"))
        require(0 < self.frac_train < 1, f"frac_train={self.frac_train} is outside (0, 1); the paper's is 0.3")
        require(0 <= self.label_noise < 1, f"label_noise={self.label_noise} is outside [0, 1)")
        require(self.n_operands >= 2, f"n_operands={self.n_operands}: at least 2")
        if self.n_operands > 2 and self.operation not in FOLDABLE:
            raise UserError(
                f"{self.operation} takes 2 operands, not {self.n_operands}; {', '.join(FOLDABLE)} take more"
            )
        if self.operation in DIVISIONS and not is_prime(self.p):
            near = next(q for d in range(self.p) for q in (self.p + d, self.p - d) if is_prime(q))
            raise UserError(f"{self.operation} needs a prime modulus and p={self.p} is composite; try p={near}")
        require(
            self.p**self.n_operands <= MAX_ROWS,
            f"p^k = {self.p}^{self.n_operands} is more than {MAX_ROWS:,} rows; take a smaller p or fewer operands",
        )
        require(
            0 < int(self.frac_train * len(self.operands())) < len(self.operands()),
            f"frac_train={self.frac_train} of {len(self.operands())} rows leaves the train or the test set empty",
        )

    # --- sizes ------------------------------------------------------------------------------------------------------

    @property
    def d_vocab(self) -> int:
        return self.p + FORMATS[self.format]

    @property
    def n_ctx(self) -> int:
        return {"a b =": self.n_operands + 1, "a b": self.n_operands, "a o b =": 2 * self.n_operands}[self.format]

    @property
    def d_out(self) -> int:
        return self.p

    @property
    def operand_positions(self) -> list[int]:
        return [i * (2 if self.format == "a o b =" else 1) for i in range(self.n_operands)]

    # --- data -------------------------------------------------------------------------------------------------------

    def operands(self) -> Int[Tensor, "row operand"]:
        """Every tuple once, the last operand fastest: row a*p + b (rows with b = 0 left out for divisions)."""
        values = [torch.arange(self.p)] * self.n_operands
        if self.operation in DIVISIONS:
            values[-1] = torch.arange(1, self.p)
        return torch.cartesian_prod(*values)

    def row_of(self, operands: Int[Tensor, "row operand"]) -> Int[Tensor, " row"]:
        """Row numbers of these operands in `operands()`, which are those in `split(seed).all`."""
        lowest = int(self.operation in DIVISIONS)
        require(not (operands[:, -1] < lowest).any(), f"{self.operation} has no row for y = 0")
        rows = operands[:, 0]
        for x in operands[:, 1:-1].unbind(1):
            rows = rows * self.p + x
        return rows * (self.p - lowest) + operands[:, -1] - lowest

    def true_answer(self, operands: Int[Tensor, "row operand"]) -> Int[Tensor, " row"]:
        """The operation itself, whatever the labels."""
        result = operands[:, 0]
        for y in operands[:, 1:].unbind(1):
            result = OPERATIONS[self.operation](result, y, self.p) % self.p
        return result

    def answer(self, operands: Int[Tensor, "row operand"]) -> Int[Tensor, " row"]:
        """What the labels say: the true answer, or the shuffled table's."""
        if self.labels == "true":
            return self.true_answer(operands)
        table = self.operands()
        shuffled = self.true_answer(table)[torch.randperm(len(table), generator=generator(0, "labels"))]
        return shuffled[self.row_of(operands)]

    def encode(self, operands: Int[Tensor, "row operand"]) -> Int[Tensor, "row pos"]:
        """Tokens of these operands in the task's format."""
        tokens = torch.full((len(operands), self.n_ctx), self.p)
        if self.format == "a o b =":
            tokens[:, 1:-1:2] = self.p + 1
        tokens[:, self.operand_positions] = operands
        return tokens

    def decode(self, inputs: Int[Tensor, "row pos"]) -> Int[Tensor, "row operand"]:
        return inputs[:, self.operand_positions]

    def _batch(self, operands: Tensor) -> Batch:
        inputs = self.encode(operands)
        example = f"{self.render(inputs[:1])[0]} = {self.answer(operands[:1]).item()}" if len(inputs) else ""
        return Batch(inputs, self.answer(operands)[:, None], read=(-1,), example=example)

    def split(self, seed: int) -> Split:
        """A permutation of the whole table: the first int(frac_train * rows) are trained on."""
        batch = self._batch(self.operands())
        order = torch.randperm(len(batch), generator=generator(seed, "split"))
        train, test = order.tensor_split([int(self.frac_train * len(batch))])
        if self.label_noise:
            batch = dataclasses.replace(batch, targets=self._with_noise(batch.targets, train, seed))
        return Split(batch, train, test)

    def _with_noise(self, targets: Tensor, train: Tensor, seed: int) -> Tensor:
        g = generator(seed, "label_noise")
        wrong = train[torch.randperm(len(train), generator=g)[: round(self.label_noise * len(train))]]
        targets = targets.clone()
        # Adding 1..p-1 mod p: uniform over the residues that are not the answer.
        targets[wrong, 0] = (targets[wrong, 0] + torch.randint(1, self.p, wrong.shape, generator=g)) % self.p
        return targets

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n rows of the whole table, with replacement."""
        table = self.operands()
        return self._batch(table[torch.randint(len(table), (n,), generator=generator)])

    # --- the truth --------------------------------------------------------------------------------------------------

    def as_group(self) -> GroupLabels | None:
        """Tokens and classes as elements of the abelian group in which the answer is a sum; None where there is none.

        x+y and x-y: Z_p for any p, with -y in the place of y. x*y and x/y, p an odd prime, on residues other than 0:
        x = g^i is element i of Z_(p-1), g the smallest primitive root, with 1/y in the place of y. None for every
        other operation and for more than two operands. Shuffled and noisy labels keep the group of the operation.
        """
        added, multiplied = self.operation in ("x+y", "x-y"), self.operation in ("x*y", "x/y")
        if self.n_operands != 2 or not (added or (multiplied and self.p > 2 and is_prime(self.p))):
            return None
        tokens = torch.arange(self.p) if added else powers_of_root(self.p)
        negative = -torch.arange(len(tokens)) % len(tokens)
        right = tokens[negative] if self.operation in ("x-y", "x/y") else tokens
        return GroupLabels((len(tokens),), left=tokens, right=right, out=tokens)

    def latents(self, inputs: Int[Tensor, "row pos"]) -> dict[str, Latent]:
        """The operands a, b, ... from the position where each is seen, and `answer` from the last operand on."""
        operands = self.decode(inputs)
        classes = tuple(map(str, range(self.p)))
        columns = dict(zip(ascii_lowercase, operands.unbind(1), strict=False)) | {"answer": self.answer(operands)}
        seen = [*self.operand_positions, self.operand_positions[-1]]
        position = torch.arange(inputs.shape[1])
        return {
            name: Latent(torch.where(position >= first, column[:, None], -1), classes)
            for (name, column), first in zip(columns.items(), seen, strict=True)
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another value of one operand, the others held; or another answer, by changing the last operand.

        Where no value of the last operand changes the answer (0 * y), the first operand is redrawn as well.
        """
        names = [*ascii_lowercase[: self.n_operands], "answer"]
        one_of("latent", latent, names)
        old = self.decode(batch.inputs)
        new = old.clone()
        n, low = len(old), self.operation in DIVISIONS
        if latent != "answer":
            i = names.index(latent)
            lowest = int(low and i == self.n_operands - 1)
            shift = torch.randint(1, self.p - lowest, (n,), generator=generator)
            new[:, i] = lowest + (old[:, i] - lowest + shift) % (self.p - lowest)
            return self._batch(new)
        before = self.answer(old)
        for attempt in range(400):
            same = (self.answer(new) == before).nonzero().squeeze(1)
            if not len(same):
                return self._batch(new)
            new[same, -1] = torch.randint(int(low), self.p, same.shape, generator=generator)
            if attempt >= 20:
                new[same, 0] = torch.randint(self.p, same.shape, generator=generator)
        raise UserError(f"{self.operation} mod {self.p} has too few answers to change one in every row")

    def render(self, inputs: Int[Tensor, "row pos"]) -> list[str]:
        """ "50 + 70 mod 113" """
        rows = self.decode(inputs).tolist()
        if self.operation in FOLDABLE:
            return [f" {self.operation[1]} ".join(map(str, row)) + f" mod {self.p}" for row in rows]
        return [f"{self.operation} at x={x}, y={y}, mod {self.p}" for x, y in rows]
