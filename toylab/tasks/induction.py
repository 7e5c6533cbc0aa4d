"""Repeated tokens: the task that induction heads solve (Elhage et al. 2021; Olsson et al. 2022).

One example by hand, length 3 and d_tokens 10: the sequence is BOS 4 9 2 4 9 2. The inputs are all but its last token,
BOS 4 9 2 4 9, and the target at each position is the token after it. In the first copy nothing can be known; from the
first token of the second copy on, the answer is what followed the same token before: 4 -> 9, 9 -> 2.

Tokens of one copy are distinct (drawn without replacement), so the copy always determines the answer: the exact
floor of the loss is 0 on the positions that count, and log(d_tokens) for a model that knows nothing.

Came from: data.py. Read next: models/transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import one_of, require


@dataclass(frozen=True)
class RepeatedTokens:
    """BOS, `length` distinct tokens of `d_tokens`, the same tokens again; predict the next token.

    Position 0 is BOS (token d_tokens), positions 1..length the first copy, length+1..2 length - 1 the second without
    its last token. weight is 1 on the second copy, 0 before. d_tokens must exceed length, so that every row leaves
    a token over that its counterfactual can use. n_test: rows of the fixed held-out draw.
    """

    d_tokens: int
    length: int
    n_test: int = 1024

    def __post_init__(self):
        require(self.length >= 2, f"length={self.length}: at least 2, or the copy has nothing to predict")
        require(
            self.d_tokens > self.length,
            f"d_tokens={self.d_tokens} with length={self.length}: the tokens of a copy are distinct and one more is "
            f"needed for counterfactuals; take d_tokens >= {self.length + 1}",
        )
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    @property
    def d_vocab(self) -> int:
        return self.d_tokens + 1

    @property
    def n_ctx(self) -> int:
        return 2 * self.length

    @property
    def d_out(self) -> int:
        return self.d_tokens

    # --- data -------------------------------------------------------------------------------------------------------

    def answers(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """The next token at every position; in the second copy, what the first copy says it is."""
        return torch.cat([inputs[:, 1 : self.length + 2], inputs[:, 2 : self.length + 1]], 1)

    def _batch(self, inputs: Tensor, weight: Tensor) -> Batch:
        example = f"{self.render(inputs[:1])[0]} -> {self.answers(inputs[:1])[0, -1].item()}" if len(inputs) else ""
        return Batch(inputs, self.answers(inputs), weight=weight.float().expand_as(inputs), example=example)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh sequences."""
        # The order of d_tokens random numbers is a uniform permutation (ties, 2^-24 apart, favour no token much).
        copy = torch.rand(n, self.d_tokens, generator=generator).argsort(1)[:, : self.length]
        bos = torch.full((n, 1), self.d_tokens)
        return self._batch(torch.cat([bos, copy, copy[:, :-1]], 1), torch.arange(self.n_ctx) > self.length)

    def split(self, seed: int) -> Split:
        """n_test held-out sequences; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    # --- the truth --------------------------------------------------------------------------------------------------

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """`next`: what the first copy says comes next (-1 before the second copy). `previous`: the token before.

        `previous` is -1 at BOS and may be BOS itself.
        """
        tokens = tuple(map(str, range(self.d_tokens)))
        known = torch.arange(inputs.shape[1]) > self.length
        previous = torch.cat([torch.full_like(inputs[:, :1], -1), inputs[:, :-1]], 1)
        return {
            "next": Latent(torch.where(known, self.answers(inputs), -1), tokens),
            "previous": Latent(previous, (*tokens, "BOS")),
        }

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another `next` at one position per row: the token at place j = 2..length of the first copy is exchanged.

        The new token is one that the row does not contain. Everything else is held, the second copy too, so just one
        answer changes, at the position of token j - 1 in the second copy, and weight is 1 there alone. (After that
        position the row still continues with the old token: a causal model asked there cannot see it.) `previous`
        changes at place j + 1 of the first copy, which cannot be helped.
        """
        one_of("latent", latent, ("next",))
        inputs, n = batch.inputs.clone(), len(batch.inputs)
        rows = torch.arange(n)
        place = torch.randint(2, self.length + 1, (n,), generator=generator)
        # A random order of the tokens, those in the row last: the first is uniform over the absent ones.
        order = torch.rand(n, self.d_vocab, generator=generator)
        order[:, self.d_tokens] = 2
        order.scatter_(1, inputs, 2.0)
        inputs[rows, place] = order.argmin(1)
        asked = (place + self.length - 1)[:, None]
        return self._batch(inputs, torch.arange(self.n_ctx) == asked)

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "4 9 2 | 4 9" """
        words = [["BOS" if t == self.d_tokens else str(t) for t in row] for row in inputs.tolist()]
        return [f"{' '.join(row[1 : self.length + 1])} | {' '.join(row[self.length + 1 :])}" for row in words]
