"""The story of the whole project in a few seconds: a small prime is memorised, then understood."""

import dataclasses

import numpy as np
import pytest

from toylab import Experiment
from toylab.experiment import Stop, TrainSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.tasks.modular import ModularArithmetic
from toylab.train import train

P = 29
GROKS = Experiment(
    name="story",
    seed=0,
    task=ModularArithmetic(p=P, operation="x+y", frac_train=0.4),
    model=TransformerSpec(n_layers=1, n_heads=4, d_model=64, d_head=16, d_mlp=256),
    optim=OptimSpec("adamw", lr=5e-3, weight_decay=2.0),
    loss="cross_entropy",
    train=TrainSpec(
        steps=2000,
        checkpoints=("every:100",),
        eval_every=10,
        threads=1,
        stop=Stop("test_accuracy", at_least=0.99, hold=50),
    ),
)


def first(table, name, bound) -> float:
    """The first evaluation with at least this accuracy; infinity if there is none."""
    reached = table.step.values[table[name].values >= bound]
    return int(reached[0]) if len(reached) else float("inf")


@pytest.fixture(scope="module")
def grokked(tmp_path_factory):
    return train(GROKS, tmp_path_factory.mktemp("story") / "run", progress=False)


def test_it_memorises_first_and_understands_much_later(grokked):
    table = grokked.metrics()
    memorised, understood = first(table, "train_accuracy", 1.0), first(table, "test_accuracy", 0.99)
    assert understood < float("inf"), "it did not grok"
    assert understood >= 3 * memorised, f"no delay: train at {memorised}, test at {understood}"
    before = table.sel(step=slice(memorised, understood))
    assert table["test_accuracy"].sel(step=memorised) < 0.5
    # In between it is worse than guessing on the pairs it has not seen: confident and wrong.
    assert before["test_loss"].max() > np.log(P)
    assert table["test_loss"].values[-1] < 0.1 * before["test_loss"].max()
    assert grokked.info["reason"] == "stop condition held"


@pytest.mark.parametrize("control", ["no weight decay", "shuffled labels"])
def test_without_its_causes_it_does_not_happen(control, grokked, tmp_path):
    """As many steps as the real run took: memorised all the same, and nothing understood."""
    steps = grokked.info["step"]
    changed = dataclasses.replace(GROKS, train=dataclasses.replace(GROKS.train, steps=steps))
    if control == "no weight decay":
        changed = dataclasses.replace(changed, optim=dataclasses.replace(GROKS.optim, weight_decay=0.0))
    else:
        changed = dataclasses.replace(changed, task=dataclasses.replace(GROKS.task, labels="shuffled"))
    table = train(changed, tmp_path / "run", progress=False).metrics()
    if control == "no weight decay":
        assert first(table, "train_accuracy", 1.0) < steps
    assert table["test_accuracy"].max() < 0.6
    if control == "shuffled labels":
        # Nothing to find: held-out answers stay at chance, 1/29 of 505; five standard errors are 0.04.
        assert table["test_accuracy"].max() < 1 / P + 0.05
