"""Does a network know the rules of MIU? Steps it accepts, steps it takes, and whether a step of its own leads to MU.

1. `StepChecks`: asked which rule leads from s to t (format validity): accuracy for every rule, and for no step.
2. `NextSteps`: asked to go on deriving (format derivation): are its own steps legal, are they theorems, how far is its
   loss from the exact floor, and how probable is MU as the next string.

Rules say nothing about remainders: one can follow them for ever without seeing that MU is out of reach (Hofstadter
1979, pages 33 to 41). Came from: tasks/miu.py. Read next: measures/residues.py, which looks for the invariant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.data import generator
from toylab.errors import UserError, require
from toylab.snapshot import Labelled, Snapshot
from toylab.tasks.miu import EOS, PAD, THEN, I, M, MIUSteps, U
from toylab.tasks.miu_system import (
    NOTHING,
    RULES,
    check,
    choices,
    length,
    n_ones,
    rule_between,
    successors,
    to_symbols,
)

ANSWERS = ("none", *RULES)


@dataclass(frozen=True)
class StepChecks:
    """Accuracy on held-out pairs "s > t" by the true answer, for tasks.miu.MIUSteps with format validity.

    rule_accuracy [answer]  share answered right among the pairs of each answer: none, R1, R2, R3, R4; nan where none is
    rule_share [answer]     share of the pairs that have this answer
    step_accuracy           share of pairs rightly taken for a step or for none, whatever the rule
    Exact: a table of answers has 1 everywhere; who always says "none" has 1, 0, 0, 0, 0 and about 1/2, the share of
    pairs that are no step.
    """

    def __call__(self, snap: Snapshot) -> dict[str, float | Labelled]:
        _steps(snap, "validity", self)
        test = snap.split.test
        truth, said = snap.batch.targets[test, 0], snap.logits[test, 0].argmax(-1)
        of = torch.nn.functional.one_hot(truth, len(ANSWERS)).double()
        right = (of * (said == truth)[:, None]).sum(0) / of.sum(0)
        coords = {"answer": list(ANSWERS)}
        return {
            "rule_accuracy": Labelled(right, ("answer",), coords),
            "rule_share": Labelled(of.mean(0), ("answer",), coords),
            "step_accuracy": ((said > 0) == (truth > 0)).double().mean().item(),
        }


@dataclass(frozen=True)
class NextSteps:
    """One step of its own from held-out theorems, for tasks.miu.MIUSteps with format derivation.

    From "BOS s >" the network draws tokens until ">" or EOS, or one more than the longest string has; n theorems s that
    have successors, the same generator at every checkpoint.

    well_formed    share of drawn strings that are M and a body of I's and U's
    legal          share that follow from s by one of the four rules
    theorem        share that are theorems, legal or not
    excess_loss    loss on held-out derivations minus its exact floor (`MIUSteps.entropy`), nats per token
    p_mu [string]  P(MU, then ">" or EOS | BOS string >): MU as the next string
    mu_law [string]  the same in the law that is trained on: 1 / number of successors that fit where MU is one of them,
                   and 0 elsewhere, so 0 after every theorem. MIII, from which R3 leads to MU, is no theorem

    Exact: the law itself has legal = theorem = well_formed = 1, excess_loss 0 and p_mu = mu_law. Null: of strings
    drawn from coins two thirds are theorems, so `theorem` says something above 2/3 only.
    """

    strings: tuple[str, ...] = ("MI", "MII", "MIU", "MUI", "MIII")
    n: int = 300

    def __post_init__(self):
        for string in self.strings:
            check(string)
            require(string.startswith("M"), f"{string!r} does not begin with M")

    def __call__(self, snap: Snapshot) -> dict[str, float | Labelled]:
        task = _steps(snap, "derivation", self)
        test = snap.split.test
        start = task.decode(snap.batch.inputs[test])[:, 0]
        start = start[choices(start).any(1)][: self.n]
        drawn, whole = _strings(_continue(snap, task, start), task.longest)
        legal = whole & (rule_between(start, drawn) > 0)
        floor = task.entropy(snap.batch.inputs[test]).sum() / (snap.batch.weight[test] > 0).sum()  # type: ignore[index]
        labels = {"string": list(self.strings)}
        return {
            "well_formed": whole.double().mean().item(),
            "legal": legal.double().mean().item(),
            "theorem": (whole & (n_ones(drawn) % 3 != 0)).double().mean().item(),
            "excess_loss": snap.mean(snap.losses, "test") - floor.item(),
            "p_mu": Labelled(_p_mu(snap, task, self.strings), ("string",), labels),
            "mu_law": Labelled(torch.tensor([_mu_law(s, task.longest) for s in self.strings]), ("string",), labels),
        }


def _steps(snap: Snapshot, form: str, measure: object) -> MIUSteps:
    task = snap.task
    if not isinstance(task, MIUSteps) or task.format != form:
        raise UserError(f"{measure!r} is for MIUSteps with format={form}; this run's task is {task!r}")
    return task


def _prompts(task: MIUSteps, bodies: Int[Tensor, "row longest"]) -> tuple[Int[Tensor, "row pos"], Int[Tensor, " row"]]:
    """BOS M body ">" PAD.., with room for one more string, and the position behind each ">"."""
    only = torch.full((len(bodies), task.steps + 1, task.longest), NOTHING)
    only[:, 0] = bodies
    inputs, end = task.encode(only)[:, : 2 * task.longest + 5], 2 + length(bodies)
    inputs[torch.arange(len(bodies)), end] = THEN
    return inputs, end + 1


@torch.no_grad()
def _continue(snap: Snapshot, task: MIUSteps, bodies: Int[Tensor, "row longest"]) -> Int[Tensor, "row drawn"]:
    """Up to longest + 2 tokens drawn after "BOS M body >", PAD behind the first ">" or EOS.

    Rows end at different positions, so tokens are written into place: a causal model ignores what stands behind.
    """
    g, rows = generator(0, "steps of its own"), torch.arange(len(bodies))
    inputs, at = _prompts(task, bodies)
    drawn, going = torch.full((len(bodies), task.longest + 2), PAD), torch.ones(len(bodies), dtype=torch.bool)
    for i in range(drawn.shape[1]):
        chances = snap.model(inputs)[rows, at - 1].double().softmax(-1)
        token = torch.where(going, torch.multinomial(chances, 1, generator=g)[:, 0], PAD)
        drawn[:, i] = inputs[rows, at] = token
        going = going & (token != THEN) & (token != EOS)
        at = at + going.long()
    return drawn


def _strings(drawn: Int[Tensor, "row drawn"], longest: int) -> tuple[Int[Tensor, "row longest"], Bool[Tensor, " row"]]:
    """Bodies of the drawn tokens, and whether they are M, a body of 1 to `longest` symbols, and an end."""
    ends = (drawn == THEN) | (drawn == EOS)
    size = torch.where(ends.any(1), ends.int().argmax(1), 0) - 1  # symbols between the M and the end
    inside = torch.arange(drawn.shape[1] - 1) < size[:, None]
    rest = drawn[:, 1:]
    symbol = (rest == U) | (rest == I)
    whole = (drawn[:, 0] == M) & (size >= 1) & (symbol | ~inside).all(1)
    return torch.where(inside & symbol, rest, NOTHING)[:, :longest], whole


@torch.no_grad()
def _p_mu(snap: Snapshot, task: MIUSteps, strings: tuple[str, ...]) -> Float[Tensor, " string"]:
    """P(M) P(U | M) (P(">" | MU) + P(EOS | MU)) after each string."""
    inputs, at = _prompts(task, to_symbols([s[1:] for s in strings], task.longest))
    rows = torch.arange(len(strings))
    inputs[rows, at], inputs[rows, at + 1] = M, U
    p = snap.model(inputs).double().softmax(-1)
    ends = p[rows, at + 1, THEN] + p[rows, at + 1, EOS]
    return p[rows, at - 1, M] * p[rows, at, U] * ends


def _mu_law(string: str, longest: int) -> float:
    """P(MU | string) when a derivation goes on with every way to apply a rule that fits alike."""
    fits = [t for t in successors(string) if len(t) - 1 <= longest]
    return fits.count("MU") / len(fits) if fits else 0.0
