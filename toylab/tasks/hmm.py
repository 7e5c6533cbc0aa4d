"""Hidden Markov worlds: predict the next token, knowing exactly what an ideal observer would believe at every position.

One example by hand, the even process (1s come in pairs): after 0 1 the observer knows that the pair is open, so the
belief is (0, 1) and the next token is 1 for certain; after 1 alone the belief is (1/2, 1/2): the pair may be half done.

1. A process is one matrix per token, T^x_ij = P(emit x and go to j | i), whose sum over x is a stochastic matrix.
2. Belief after a token: eta <- eta T^x / (eta T^x 1), from the stationary law on. Next token: P(x) = eta T^x 1.
3. The loss floor at position t is h_t, the mean entropy of that law over all prefixes: exact, by merging equal beliefs.

`HiddenMarkov` is the task for one process, `InContextMarkov` the one where every row is another Markov chain, which has
to be estimated from the row itself.

Sources: Shai et al. 2024 (arXiv 2405.15943) for the processes, Edelman et al. 2024 (arXiv 2402.11004) for the chains.
Came from: data.py. Read next: measures/beliefs.py.
Letters: b batch, p pos, i j states, x tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, did_you_mean, one_of, require

MAX_BELIEFS = 200_000
SAME = 1e-9  # beliefs closer than this are one: rational beliefs merge, those of a fractal do not


@dataclass(frozen=True)
class HMM:
    """A hidden Markov process.

    matrices: [token][from][to], P(emit the token and go | from); each row of their sum adds up to 1.
    start:    law of the first state; empty = the stationary law, which must then be the only one.
    """

    tokens: tuple[str, ...]
    states: tuple[str, ...]
    matrices: tuple[tuple[tuple[float, ...], ...], ...]
    start: tuple[float, ...] = ()

    def __post_init__(self):
        n = len(self.states)
        require(n >= 1 and len(self.tokens) >= 1, "a process needs at least one state and one token")
        require(
            len(self.matrices) == len(self.tokens),
            f"{len(self.matrices)} matrices for {len(self.tokens)} tokens; one each",
        )
        for token, matrix in zip(self.tokens, self.matrices, strict=True):
            shape = (len(matrix), *sorted({len(row) for row in matrix}))
            require(shape == (n, n), f"the matrix of token {token!r} is {shape[0]} x {shape[1:]}; expected {n} x {n}")
        T = self.T
        for i, state in enumerate(self.states):
            row = T[:, i]
            require(bool((row >= 0).all()), f"row {i} (state {state!r}) has the negative entry {row.min().item():g}")
            total = row.sum().item()
            require(
                abs(total - 1) < 1e-6,
                f"the matrices are not stochastic: row {i} (state {state!r}) adds up to {total:g} over all tokens and "
                "next states; it must be 1",
            )
        if self.start:
            require(
                len(self.start) == n and min(self.start) >= 0 and abs(sum(self.start) - 1) < 1e-6,
                f"start={list(self.start)}: expected {n} probabilities that add up to 1",
            )
        else:
            recurrent = torch.linalg.matrix_rank(T.sum(0) - torch.eye(n, dtype=torch.float64), rtol=1e-9).item()
            require(recurrent == n - 1, f"{n - recurrent} parts of this process never meet: say where it starts")

    @cached_property
    def T(self) -> Float[Tensor, "token from to"]:
        return torch.tensor(self.matrices, dtype=torch.float64)

    @cached_property
    def initial(self) -> Float[Tensor, " state"]:
        """The law of the first state: `start`, or the stationary law pi with pi sum_x T^x = pi."""
        if self.start:
            return torch.tensor(self.start, dtype=torch.float64)
        return stationary_law(self.T.sum(0))

    @cached_property
    def unifilar(self) -> bool:
        """Whether state and token determine the next state."""
        return bool(((self.T > 0).sum(2) <= 1).all())

    def beliefs(self, inputs: Int[Tensor, "b p"]) -> Float[Tensor, "b p state"]:
        """The law of the hidden state given tokens 0..p. Raises UserError for a row that the process cannot emit."""
        T, eta = self.T, self.initial.expand(len(inputs), -1)
        rows: list[Tensor] = []
        for token in inputs.unbind(1):
            eta = torch.einsum("bi,bij->bj", eta, T[token])
            total = eta.sum(1, keepdim=True)
            impossible = (total[:, 0] <= 0).nonzero().flatten().tolist()
            require(
                not impossible,
                f"row {impossible and impossible[0]}: token {len(rows)} is impossible after those before it",
            )
            eta = eta / total
            rows.append(eta)
        return torch.stack(rows, 1)

    def next_token(self, beliefs: Float[Tensor, "*b state"]) -> Float[Tensor, "*b token"]:
        """P(x) = eta T^x 1, a linear map of the belief."""
        return beliefs @ self.T.sum(2).T

    def belief_tree(self, depth: int) -> list[tuple[Float[Tensor, "m state"], Float[Tensor, " m"]]]:
        """For 0..depth tokens: the distinct beliefs and the probability of each.

        Raises UserError above MAX_BELIEFS: a process like Mess3 has a belief for every word.
        """
        levels = [(self.initial[None], torch.ones(1, dtype=torch.float64))]
        for _ in range(depth):
            beliefs, probs = levels[-1]
            require(
                len(beliefs) * len(self.tokens) <= MAX_BELIEFS,
                f"more than {MAX_BELIEFS:,} distinct beliefs after {len(levels)} tokens; take a smaller depth",
            )
            joint = torch.einsum("mi,xij->mxj", beliefs, self.T).flatten(0, 1)
            chance = joint.sum(1)
            possible = chance > 1e-15
            joint, weight = joint[possible], (probs[:, None].expand(-1, len(self.tokens)).flatten() * chance)[possible]
            beliefs = joint / chance[possible][:, None]
            same = (beliefs / SAME).round().unique(dim=0, return_inverse=True)[1]
            n = int(same.max()) + 1
            first = torch.full((n,), len(same)).scatter_reduce(0, same, torch.arange(len(same)), "amin")
            levels.append((beliefs[first], torch.zeros(n, dtype=torch.float64).index_add_(0, same, weight)))
        return levels

    def entropies(self, depth: int) -> Float[Tensor, " depth_and_one"]:
        """h_t = H(x_t | x_0 .. x_(t-1)) in nats, t = 0..depth: the lowest loss there is after t tokens.

        Known exactly: non-increasing from a stationary start, towards the entropy rate.
        """
        return torch.stack([probs @ entropy(self.next_token(eta)) for eta, probs in self.belief_tree(depth)])

    def entropy_rate(self) -> float:
        """The limit of h_t in nats: sum_i pi_i H(x | i), for processes in which state and token give the next state."""
        require(self.unifilar, "the entropy rate has no closed form here (not unifilar); `entropies` comes near it")
        return (stationary_law(self.T.sum(0)) @ entropy(self.T.sum(2).T)).item()

    def prefixes(self, depth: int) -> tuple[Int[Tensor, "m pos"], Float[Tensor, " m"]]:
        """Every word of 1..depth tokens that can occur, and its probability divided by depth (together 1).

        A word is right-aligned, with -1 in front of it: column -1 - lag holds the token `lag` steps back.
        """
        n_x = len(self.tokens)
        require(n_x**depth <= MAX_BELIEFS, f"{n_x}^{depth} words are more than {MAX_BELIEFS:,}; take a smaller depth")
        words, law = torch.empty(1, 0, dtype=torch.long), self.initial[None]
        rows, probs = [], []
        for at in range(depth):
            law = torch.einsum("mi,xij->mxj", law, self.T).flatten(0, 1)
            words = torch.cat([words.repeat_interleave(n_x, 0), torch.arange(n_x).repeat(len(words))[:, None]], 1)
            possible = law.sum(1) > 1e-15
            law, words = law[possible], words[possible]
            rows.append(torch.cat([torch.full((len(words), depth - at - 1), -1), words], 1))
            probs.append(law.sum(1) / depth)
        return torch.cat(rows), torch.cat(probs)

    def draw(self, state: Int[Tensor, " b"], length: int, generator: torch.Generator) -> Int[Tensor, "b length"]:
        """`length` tokens from each of these hidden states on."""
        n = len(self.states)
        cumulative = self.T.permute(1, 0, 2).flatten(1).cumsum(1)  # [from, (token to)]
        uniform = torch.rand(length, len(state), 1, generator=generator, dtype=torch.float64)
        tokens = []
        for u in uniform:
            reach = cumulative[state]
            # `reach[-1]` is 1 up to rounding; entries of probability 0 are never the first beyond u.
            choice = (reach <= u * reach[:, -1:]).sum(1).clamp_max(reach.shape[1] - 1)
            tokens.append(choice // n)
            state = choice % n
        return torch.stack(tokens, 1)


def stationary_law(P: Float[Tensor, "*b i j"]) -> Float[Tensor, "*b i"]:
    """pi with pi P = pi and sum 1, for stochastic matrices with one such law: least squares, exact up to rounding."""
    n = P.shape[-1]
    equations = torch.cat([P.mT - torch.eye(n, dtype=P.dtype), P.new_ones(*P.shape[:-2], 1, n)], -2)
    # The normal equations are n x n and regular: the null space of P^T - I is pi alone, and 1 pi is not 0.
    right = equations[..., -1, :, None]
    return torch.linalg.solve(equations.mT @ equations, right).squeeze(-1).clamp_min(0)


def entropy(p: Float[Tensor, "*b x"]) -> Float[Tensor, "*b"]:
    """- sum p log p in nats."""
    return -torch.xlogy(p, p).sum(-1)


# --- The processes of the papers -------------------------------------------------------------------------------------


def from_steps(tokens: str, states: str, steps: list[tuple[str, str, float, str]]) -> HMM:
    """A process from its steps (from, token, probability, to)."""
    T = torch.zeros(len(tokens), len(states), len(states), dtype=torch.float64)
    for i, x, p, j in steps:
        T[tokens.index(x), states.index(i), states.index(j)] += p
    return HMM(tuple(tokens), tuple(states), tuple(tuple(map(tuple, matrix)) for matrix in T.tolist()))


def mess3(x: float, a: float) -> HMM:
    """Three states that mostly stay, each mostly emitting its own token; no two words leave the same belief.

    T^x_ij = (move i -> j: 1 - 2x to stay, x to each other) * (emit x at j: a if x = j, else (1 - a)/2).
    Shai et al. show x = .05, a = .85; their blog and code x = .15, a = .6.
    """
    require(0 < x < 0.5 and 0 < a < 1, f"mess3 {x:g} {a:g}: x in (0, 1/2) and a in (0, 1)")
    eye = torch.eye(3, dtype=torch.float64)
    move, emit = x + (1 - 3 * x) * eye, (1 - a) / 2 + (3 * a - 1) / 2 * eye
    T = torch.einsum("ij,jx->xij", move, emit)
    return HMM(("A", "B", "C"), ("0", "1", "2"), tuple(tuple(map(tuple, matrix)) for matrix in T.tolist()))


def rrxor() -> HMM:
    """Random, random, their exclusive or, and again: 36 beliefs, of which the next token alone shows little."""
    steps = [("S", "0", 0.5, "0"), ("S", "1", 0.5, "1"), ("0", "0", 0.5, "F"), ("0", "1", 0.5, "T"),
             ("1", "0", 0.5, "T"), ("1", "1", 0.5, "F"), ("T", "1", 1.0, "S"), ("F", "0", 1.0, "S")]  # fmt: skip
    return from_steps("01", "S01TF", steps)


def z1r() -> HMM:
    """0, 1, random, and again."""
    return from_steps(
        "01", "01R", [("0", "0", 1.0, "1"), ("1", "1", 1.0, "R"), ("R", "0", 0.5, "0"), ("R", "1", 0.5, "0")]
    )


def even_process() -> HMM:
    """1s come in pairs."""
    return from_steps("01", "ab", [("a", "0", 0.5, "a"), ("a", "1", 0.5, "b"), ("b", "1", 1.0, "a")])


def golden_mean() -> HMM:
    """No two 1s in a row."""
    return from_steps("01", "ab", [("a", "0", 0.5, "a"), ("a", "1", 0.5, "b"), ("b", "0", 1.0, "a")])


# name -> (builder, the numbers it takes as in the paper).
PROCESSES: dict[str, tuple[Callable[..., HMM], tuple[float, ...]]] = {
    "mess3": (mess3, (0.05, 0.85)),
    "rrxor": (rrxor, ()),
    "z1r": (z1r, ()),
    "even": (even_process, ()),
    "golden-mean": (golden_mean, ()),
}


def named(text: str) -> HMM:
    """The process of a name with its numbers: "mess3 0.05 0.85", "rrxor"."""
    name, *numbers = text.split() or [""]
    if name not in PROCESSES:
        raise UserError(
            f"process={text!r}: known are {', '.join(PROCESSES)}, and matrices{did_you_mean(name, PROCESSES)}"
        )
    builder, usual = PROCESSES[name]
    example = " ".join([name, *map(str, usual)])
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    require(
        len(values) == len(numbers) == len(usual), f"process={text!r}: {name} takes {len(usual)} numbers: {example!r}"
    )
    return builder(*values)


# --- One process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HiddenMarkov:
    """Rows of one process; at every position predict the next token.

    process: a name with its numbers, or matrices (see HMM).
    length:  tokens that the model sees; the last target is the token after them.
    n_test:  rows of the fixed held-out draw.
    """

    process: str | HMM
    length: int
    n_test: int = 1024

    def __post_init__(self):
        require(self.length >= 1, f"length={self.length}: at least 1")
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")
        _ = self.hmm

    @cached_property
    def hmm(self) -> HMM:
        return named(self.process) if isinstance(self.process, str) else self.process

    @property
    def d_vocab(self) -> int:
        return len(self.hmm.tokens)

    @property
    def n_ctx(self) -> int:
        return self.length

    @property
    def d_out(self) -> int:
        return self.d_vocab

    def _batch(self, tokens: Int[Tensor, "b pos_and_one"]) -> Batch:
        example = f"{self.render(tokens[:1])[0]} (the last is the answer)" if len(tokens) else ""
        return Batch(tokens[:, :-1], tokens[:, 1:], example=example)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh rows from the initial law on."""
        state = torch.multinomial(self.hmm.initial, n, replacement=True, generator=generator)
        return self._batch(self.hmm.draw(state, self.length + 1, generator))

    def split(self, seed: int) -> Split:
        """n_test held-out rows; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    def floor(self) -> Float[Tensor, " pos"]:
        """The lowest expected loss at every position, h_1 .. h_length, in nats."""
        return self.hmm.entropies(self.length)[1:]

    def latents(self, inputs: Int[Tensor, "b p"]) -> dict[str, Latent]:
        """`belief` [b, p, state] and `next_token` [b, p, token]: the laws given the tokens up to here. Both real."""
        beliefs = self.hmm.beliefs(inputs)
        return {"belief": Latent(beliefs), "next_token": Latent(self.hmm.next_token(beliefs))}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another token at one place of each row, so that the belief there is another; what follows is drawn anew.

        Place and token are drawn evenly from all that the process allows there; the old continuation may have become
        impossible, so a new one comes from the process itself. weight is 1 from that place on.
        """
        one_of("latent", latent, ("belief",))
        tokens = torch.cat([batch.inputs, batch.targets[:, -1:]], 1)
        n, length = batch.inputs.shape
        after = self.hmm.beliefs(batch.inputs)
        before = torch.cat([self.hmm.initial.expand(n, 1, -1), after[:, :-1]], 1)
        joint = torch.einsum("bpi,xij->bpxj", before, self.hmm.T)
        chance = joint.sum(3, keepdim=True)
        new = torch.where(chance > 1e-15, joint / chance.clamp_min(1e-300), after[:, :, None])
        differs = ((new - after[:, :, None]).abs() > SAME).any(3)  # [b, p, x]; False where x is impossible
        stuck = (~differs.flatten(1).any(1)).nonzero().flatten().tolist()
        require(not stuck, f"no other token changes the belief in row {stuck and stuck[0]}")
        choice = torch.multinomial(differs.flatten(1).double(), 1, generator=generator)
        place = choice // self.d_vocab
        belief = new.flatten(1, 2)[torch.arange(n), choice[:, 0]]
        state = torch.multinomial(belief, 1, generator=generator)[:, 0]
        fresh = self.hmm.draw(state, length, generator)  # as much as the earliest place needs
        at = torch.arange(length + 1)
        continued = fresh.gather(1, (at - place - 1).clamp(0, length - 1))
        tokens = torch.where(at < place, tokens, torch.where(at == place, choice % self.d_vocab, continued))
        made = self._batch(tokens)
        return Batch(made.inputs, made.targets, (at[:-1] >= place).float(), example=made.example)

    def render(self, inputs: Int[Tensor, "b p"]) -> list[str]:
        """ "A A B" """
        return [" ".join(self.hmm.tokens[x] for x in row) for row in inputs.tolist()]


# --- Another chain in every row --------------------------------------------------------------------------------------

STARTS = ("stationary", "uniform")
ROWS = ("dirichlet", "doubly stochastic")


@dataclass(frozen=True)
class InContextMarkov:
    """Each row is a Markov chain of its own over k tokens; predict the next token from what the row shows.

    rows:   "dirichlet", each row of the chain's matrix uniform over all laws; or "doubly stochastic", columns too add
            up to 1 (by Sinkhorn's iteration), so that counting tokens without their order tells nothing.
    start:  the first token from the chain's own stationary law, or uniform.
    length: tokens that the model sees.
    Three strategies, from counts c of the row so far (t tokens): uniform 1/k; unigram (c_j + 1) / (t + k); bigram
    (c_ij + 1) / (c_i + k) with i the token at hand. With uniform start and dirichlet rows the bigram rule is Bayes
    optimal, exactly; a stationary start tells a little about the matrix, which it leaves unused.
    Source: Edelman et al. 2024, section 2. (For k < 5 their code starts uniformly; `start=uniform` does as it does.)
    """

    k: int
    length: int
    start: str = "stationary"
    rows: str = "dirichlet"
    n_test: int = 1024

    def __post_init__(self):
        require(2 <= self.k <= 64, f"k={self.k}: 2 to 64 tokens")
        require(self.length >= 1, f"length={self.length}: at least 1")
        one_of("start", self.start, STARTS)
        one_of("rows", self.rows, ROWS)
        require(self.n_test >= 1, f"n_test={self.n_test}: at least 1")

    @property
    def d_vocab(self) -> int:
        return self.k

    @property
    def n_ctx(self) -> int:
        return self.length

    @property
    def d_out(self) -> int:
        return self.k

    # --- data -------------------------------------------------------------------------------------------------------

    def chains(self, n: int, generator: torch.Generator) -> Float[Tensor, "n i j"]:
        """n transition matrices."""
        # Exponentials divided by their sum are uniform over the simplex. 1 - rand is never 0.
        P = -(1 - torch.rand(n, self.k, self.k, generator=generator, dtype=torch.float64)).log() + 1e-12
        for _ in range(60 if self.rows == "doubly stochastic" else 0):
            P = P / P.sum(1, keepdim=True)
            P = P / P.sum(2, keepdim=True)
        return P / P.sum(2, keepdim=True)

    def walk(self, P: Float[Tensor, "n i j"], generator: torch.Generator) -> Int[Tensor, "n pos_and_one"]:
        """length + 1 tokens of each chain."""
        first = stationary_law(P) if self.start == "stationary" else torch.full_like(P[:, 0], 1 / self.k)
        start = torch.multinomial(first, 1, generator=generator)
        uniform = torch.rand(self.length, len(P), 1, 1, generator=generator, dtype=torch.float64)
        # Where each token leads at each step, then (by doubling) in all steps up to it: [step, n, i].
        leads, done = (P.cumsum(2)[..., :-1] <= uniform).sum(-1), 1
        while done < self.length:
            leads = torch.cat([leads[:done], leads[done:].gather(2, leads[:-done])])
            done *= 2
        walked = leads.gather(2, start.expand(self.length, -1, -1))[..., 0]
        return torch.cat([start, walked.T], 1)

    def _batch(self, tokens: Int[Tensor, "b pos_and_one"]) -> Batch:
        example = f"{self.render(tokens[:1, -12:])[0]} (the last is the answer)" if len(tokens) else ""
        return Batch(tokens[:, :-1], tokens[:, 1:], example=example)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh chains, one row of each."""
        return self._batch(self.walk(self.chains(n, generator), generator))

    def split(self, seed: int) -> Split:
        """n_test held-out rows; training data are streamed."""
        return Split(self.sample(self.n_test, generator(seed, "split")), None, torch.arange(self.n_test))

    # --- the truth --------------------------------------------------------------------------------------------------

    def strategies(self, inputs: Int[Tensor, "b p"]) -> dict[str, Float[Tensor, "b p x"]]:
        """What each strategy predicts at every position: uniform, unigram, bigram."""
        seen = (inputs[..., None] == torch.arange(self.k)).double()
        pairs = torch.zeros(*inputs.shape, self.k, self.k, dtype=torch.float64)
        pairs[:, 1:] = seen[:, :-1, :, None] * seen[:, 1:, None, :]
        row = torch.einsum("bpi,bpij->bpj", seen, pairs.cumsum(1)) + 1
        counts = seen.cumsum(1) + 1
        return {
            "uniform": torch.full_like(counts, 1 / self.k),
            "unigram": counts / counts.sum(-1, keepdim=True),
            "bigram": row / row.sum(-1, keepdim=True),
        }

    def baselines(self, n: int, generator: torch.Generator) -> dict[str, tuple[float, float]]:
        """(expected loss per prediction in nats, its standard error) over n chains, for every strategy and two oracles.

        entropy rate: knows the matrix; stationary: knows how often each token comes. The expectation over the next
        token is taken exactly, so the error is that of chains and histories alone.
        """
        P = self.chains(n, generator)
        tokens = self.walk(P, generator)[:, :-1]
        truth = P[torch.arange(n)[:, None], tokens]
        laws = self.strategies(tokens) | {
            "stationary": stationary_law(P)[:, None].expand_as(truth),
            "entropy rate": truth,
        }
        losses = {name: -torch.xlogy(truth, law).sum(-1).mean(1) for name, law in laws.items()}
        return {name: (loss.mean().item(), loss.std().item() / n**0.5) for name, loss in losses.items()}

    def latents(self, inputs: Int[Tensor, "b p"]) -> dict[str, Latent]:
        """What the unigram and the bigram strategy predict at every position, [b, p, x] each."""
        return {name: Latent(law) for name, law in self.strategies(inputs).items() if name != "uniform"}

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """One token of each row exchanged, so that this strategy predicts otherwise somewhere; the rest is held.

        The targets are the tokens that then come next, the exchanged one included.
        """
        one_of("latent", latent, ("unigram", "bigram"))
        tokens = torch.cat([batch.inputs, batch.targets[:, -1:]], 1)
        before, n = self.strategies(batch.inputs)[latent], len(tokens)
        new, left = tokens.clone(), torch.arange(n)
        for _ in range(200):
            place = torch.randint(self.length, (len(left), 1), generator=generator)
            shift = torch.randint(1, self.k, (len(left), 1), generator=generator)
            old = tokens[left]
            new[left] = old.scatter(1, place, (old.gather(1, place) + shift) % self.k)
            after = self.strategies(new[left, :-1])[latent]
            left = left[(after == before[left]).flatten(1).all(1)]
            if not len(left):
                return self._batch(new)
        raise UserError(f"length={self.length}: no exchange of one token changes what the {latent} strategy predicts")

    def render(self, inputs: Int[Tensor, "b p"]) -> list[str]:
        """ "0 2 1" """
        return [" ".join(map(str, row)) for row in inputs.tolist()]
