"""Measures of MIU steps: on the law itself, on answers planted wrong, and on models that know nothing."""

import math

import pytest
import torch

from toylab.cli.figure import figure_module
from toylab.data import generator
from toylab.errors import UserError
from toylab.experiment import Experiment, TrainSpec
from toylab.measures.derivations import ANSWERS, NextSteps, StepChecks
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.runs import RunGroup
from toylab.snapshot import Snapshot
from toylab.taps import Tapped, no_tap
from toylab.tasks.miu import EOS, THEN, TOKENS, MIUSteps
from toylab.tasks.miu_system import successors
from toylab.train import train

VALIDITY = MIUSteps("validity", (2, 6), 9, n_test=400)
DERIVATION = MIUSteps("derivation", (2, 5), 7, steps=2, n_test=60)
STRINGS = ("MI", "MIU", "MIII", "MUUU", "MUUUU")


class Law(Tapped):
    """Logits of the exact law of derivations: every successor that fits alike, then ">", or EOS at the end."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, inputs, tap=no_tap):
        rows = inputs.tolist()
        return torch.tensor([[self.at(row[: pos + 1]) for pos in range(len(row))] for row in rows]).double().log()

    def fitting(self, string):
        return [t for t in successors(string) if len(t) - 1 <= self.task.longest]

    def at(self, prefix):
        *done, current = "".join({0: "U", 1: "I", 2: "M", THEN: ">"}.get(t, "") for t in prefix).split(">")
        counts = [1e-12] * len(TOKENS)
        if done:
            for t in self.fitting(done[-1]):
                over = len(done) == self.task.steps or not self.fitting(t)
                word = [TOKENS.index(c) for c in t] + [EOS if over else THEN]
                if t.startswith(current):
                    counts[word[len(current)]] += 1
        return [c / sum(counts) for c in counts]


class Says(Tapped):
    """The same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits, dtype=torch.double)

    def forward(self, inputs, tap=no_tap):
        return self.logits.expand(*inputs.shape, -1)


def snap(model, task):
    s = Snapshot(0, model, task, task.split(0), "cross_entropy")
    s.__dict__["logits"] = model(s.batch.inputs)
    return s


def test_the_law_itself_takes_legal_steps_at_the_floor():
    found = NextSteps(STRINGS, n=50)(snap(Law(DERIVATION), DERIVATION))
    for name in ("well_formed", "legal", "theorem"):
        assert found[name] == 1, name
    assert found["excess_loss"] == pytest.approx(0, abs=1e-9)
    # MIII: MIIIU, MIIIIII, MU. MUUU: MUUUUUU, MU (R4 at either place). The others never lead to MU.
    assert found["mu_law"].values.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2, 0])
    assert found["p_mu"].values.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2, 0], abs=1e-9)


def test_coins_take_hardly_a_legal_step_and_two_theorems_in_three():
    """Tokens U, I, M and ends alike: the null of every number. `theorem` needs a well-formed string first."""
    coins = snap(Says([0, 0, 0, -30, -30, 0, -30, -30]), DERIVATION)
    found = NextSteps(STRINGS, n=60)(coins)
    assert found["legal"] < 0.1
    assert found["well_formed"] < 0.3
    assert found["excess_loss"] > 1
    # P(M) P(U) (P(">") + P(EOS)) = 1/4^3
    assert found["p_mu"].values.tolist() == pytest.approx([4**-3] * 5, rel=1e-6)


def test_a_network_that_always_derives_mu():
    """MU is well formed, follows from no theorem, and is none."""

    class AlwaysMU(Tapped):
        def forward(self, inputs, tap=no_tap):
            # After ">" comes M, after M comes U, after U comes the end.
            following = {THEN: 2, 2: 0}
            target = torch.tensor([[following.get(t, EOS) for t in row] for row in inputs.tolist()])
            return 40.0 * torch.nn.functional.one_hot(target, len(TOKENS)).double()

    found = NextSteps(STRINGS, n=40)(snap(AlwaysMU(), DERIVATION))
    assert (found["well_formed"], found["legal"], found["theorem"]) == (1, 0, 0)
    assert found["p_mu"].values.min() > 0.999


def test_answers_by_rule():
    """The truth, its answers with one rule taken for no step, and a constant."""
    truth = snap(Says([0.0] * 5), VALIDITY)
    right = torch.nn.functional.one_hot(truth.batch.targets, 5).double()
    truth.__dict__["logits"] = right
    found = StepChecks()(truth)
    assert found["rule_accuracy"].values.tolist() == [1.0] * 5
    assert found["step_accuracy"] == 1
    share = dict(zip(ANSWERS, found["rule_share"].values.tolist(), strict=True))
    assert sum(share.values()) == pytest.approx(1)
    assert share["none"] == pytest.approx(0.5, abs=0.1)

    blind = right.clone()
    blind[(truth.batch.targets == 3)[:, 0]] = torch.tensor([1.0, 0, 0, 0, 0]).double()
    truth.__dict__["logits"] = blind
    found = StepChecks()(truth)
    assert found["rule_accuracy"].values.tolist() == [1, 1, 1, 0, 1]
    assert found["step_accuracy"] == pytest.approx(1 - share["R3"])

    truth.__dict__["logits"] = right.roll(1, -1)  # none is called R1, R4 none: steps are still told from others but R4
    found = StepChecks()(truth)
    assert found["rule_accuracy"].values.tolist() == [0.0] * 5
    assert found["step_accuracy"] == pytest.approx(share["R1"] + share["R2"] + share["R3"])

    truth.__dict__["logits"] = torch.tensor([1.0, 0, 0, 0, 0]).double().expand_as(right)
    found = StepChecks()(truth)
    assert found["rule_accuracy"].values.tolist() == [1, 0, 0, 0, 0]
    assert found["step_accuracy"] == pytest.approx(share["none"])


def test_an_untrained_transformer_knows_no_step():
    spec = TransformerSpec(2, 2, 16, 8, 32, norm="LN")
    s = Snapshot(0, spec.build(DERIVATION, generator(0, "init")), DERIVATION, DERIVATION.split(0), "cross_entropy")
    found = NextSteps(STRINGS, n=40)(s)
    assert found["legal"] < 0.1
    assert found["excess_loss"] > 0.5
    again = NextSteps(STRINGS, n=40)(s)
    assert found["well_formed"] == again["well_formed"], "the same draws at every call"
    s = Snapshot(0, spec.build(VALIDITY, generator(0, "init")), VALIDITY, VALIDITY.split(0), "cross_entropy")
    assert StepChecks()(s)["rule_accuracy"].values.min() < 0.5
    assert not math.isnan(StepChecks()(s)["step_accuracy"])


def test_measures_say_which_task_they_are_for():
    with pytest.raises(
        UserError, match=r"MIUSteps with format=validity; this run's task is MIUSteps\(format='derivation'"
    ):
        StepChecks()(snap(Says([0.0] * 8), DERIVATION))
    with pytest.raises(UserError, match="MIUSteps with format=derivation"):
        NextSteps()(snap(Says([0.0] * 5), VALIDITY))
    with pytest.raises(UserError, match="'MA' has 'A'"):
        NextSteps(strings=("MA",))
    with pytest.raises(UserError, match="'IU' does not begin with M"):
        NextSteps(strings=("IU",))


def test_the_figure_shows_both_formats(tmp_path):
    """From two tiny runs; every line of both formats is drawn from finite numbers."""
    tiny = TransformerSpec(1, 2, 8, 4, 16)
    optim, spec = OptimSpec("adamw", 1e-3, 0.0), TrainSpec(4, ("every:2",), batch_size=8)
    paths = []
    for task in (MIUSteps("validity", (2, 5), 7, n_test=60), DERIVATION):
        e = Experiment(f"miu_{task.format}", 0, task, tiny, optim, "cross_entropy", spec)
        paths.append(train(e, tmp_path / task.format, progress=False).path)
    module = figure_module("mu_steps")
    table = module.compute(RunGroup(paths))
    assert table.rule_accuracy.dims == ("seed", "step", "answer")
    assert table[["legal", "theorem", "p_mu"]].notnull().all()
    checks, steps, mu = module.draw(table).axes
    assert [len(ax.get_legend().get_texts()) for ax in (checks, steps, mu)] == [5, 2, 2]
