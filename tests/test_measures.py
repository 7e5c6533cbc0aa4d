"""Loss, WeightNorms, LogitStats: exact on planted outputs, unmoved by what they must not see, small on nothing."""

import dataclasses
import math

import pytest
import torch
from cases.runs import ADDITION, MODEL, VECTORS

from toylab.data import Batch, Split
from toylab.measures.basic import LogitStats, Loss, WeightNorms
from toylab.snapshot import Snapshot, Stack
from toylab.taps import Tapped
from toylab.tasks.induction import RepeatedTokens

P = ADDITION.p


class Says(Tapped):
    """A model that gives these outputs whatever it is asked."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs, tap=None):
        return self.outputs


def snapshot(outputs, task=ADDITION, loss="cross_entropy") -> Snapshot:
    outputs = outputs[:, None] if task is ADDITION else outputs  # [example, read=1, d_out]
    return Snapshot(0, Says(outputs), task, task.split(0), loss)


def answers() -> torch.Tensor:
    return ADDITION.split(0).all.targets[:, 0]


def live(seed=0, task=ADDITION, model=MODEL) -> Snapshot:
    return Snapshot(0, model.build(task, torch.Generator().manual_seed(seed)), task, task.split(seed))


# --- Loss ------------------------------------------------------------------------------------------------------------


def test_uniform_answers_have_the_loss_of_guessing():
    result = Loss()(snapshot(torch.full((P * P, P), 3.0)))
    for subset in ("train", "test", "all"):
        assert result[f"{subset}_loss"] == pytest.approx(math.log(P), rel=1e-12)
    # argmax of equal outputs is class 0, which is the right answer for one pair in p.
    assert result["all_accuracy"] == pytest.approx(1 / P)


def test_planted_accuracy_and_loss_on_each_subset():
    """Right on the training rows and wrong by one elsewhere; logit s on what it says, 0 on the rest."""
    split, s = ADDITION.split(0), 5.0
    said = (answers() + 1) % P
    said[split.train] = answers()[split.train]
    result = Loss()(snapshot(s * torch.nn.functional.one_hot(said, P).double()))
    total = math.log(math.exp(s) + P - 1)
    share = len(split.train) / P**2
    assert (result["train_accuracy"], result["test_accuracy"]) == (1.0, 0.0)
    assert result["all_accuracy"] == pytest.approx(share)
    assert result["train_loss"] == pytest.approx(total - s, rel=1e-12)
    assert result["test_loss"] == pytest.approx(total, rel=1e-12)
    assert result["all_loss"] == pytest.approx(share * (total - s) + (1 - share) * total, rel=1e-12)


def test_cross_entropy_ignores_what_softmax_ignores_and_the_order_of_rows():
    outputs = torch.randn(P * P, P, generator=torch.Generator().manual_seed(0)).double()
    shift = torch.randn(P * P, 1, generator=torch.Generator().manual_seed(1)).double()
    base = Loss()(snapshot(outputs))
    assert Loss()(snapshot(outputs + shift)) == pytest.approx(base, rel=1e-12)
    snap = snapshot(outputs)
    shuffled = Split(snap.split.all, snap.split.train.flip(0), snap.split.test.flip(0))
    assert Loss()(dataclasses.replace(snap, split=shuffled, memo={})) == pytest.approx(base, rel=1e-12)


def test_only_asked_positions_count():
    task = RepeatedTokens(d_tokens=6, length=3, n_test=40)
    batch = task.split(0).all
    right = 30.0 * torch.nn.functional.one_hot(batch.targets, 6).double()
    noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(0)).double()
    outputs = torch.where((batch.weight > 0)[..., None], right, noise)
    result = Loss()(snapshot(outputs, task))
    assert set(result) == {"test_loss", "test_accuracy"}
    assert result["test_accuracy"] == 1
    assert result["test_loss"] < 1e-11


def test_vector_tasks_weigh_features_by_importance_and_have_no_accuracy():
    task = VECTORS.task
    batch = task.split(0).all
    result = Loss()(snapshot(batch.targets + 0.5, task, "mse"))
    importance = [0.9**i for i in range(5)]
    assert result == pytest.approx({"test_loss": 0.25 * sum(importance) / 5}, rel=1e-6)


def test_an_untrained_network_is_near_guessing():
    """Null: outputs of an untrained network carry nothing about the answer."""
    results = [Loss()(live(seed)) for seed in range(20)]
    accuracy = sum(r["all_accuracy"] for r in results) / 20
    # 20 draws of 49 answers, each right with probability 1/7: four standard errors are 0.045.
    assert abs(accuracy - 1 / P) < 4 * math.sqrt((1 / P) * (1 - 1 / P) / (20 * P * P))
    assert all(abs(r["all_loss"] - math.log(P)) < 1.0 for r in results)
    assert min(r["all_loss"] for r in results) > math.log(P) - 0.1


# --- WeightNorms -----------------------------------------------------------------------------------------------------


def test_norms_of_planted_weights():
    """Every entry c: the norm of n entries is c sqrt(n)."""
    snap = live()
    with torch.no_grad():
        for parameter in snap.model.parameters():
            parameter.fill_(0.5)
    result = WeightNorms()(snap)
    assert result["sum_sq_weights"] == pytest.approx(0.25 * snap.model.n_params(), rel=1e-12)
    names = result["weight_norm"].coords["param"]
    for name, norm in zip(names, result["weight_norm"].values, strict=True):
        assert norm == pytest.approx(0.5 * math.sqrt(snap.model.get_parameter(name).numel()), rel=1e-12)
    assert (result["weight_norm"].values ** 2).sum() == pytest.approx(result["sum_sq_weights"], rel=1e-12)


def test_norms_do_not_see_a_change_of_basis_of_the_residual_stream():
    """W x R for an orthogonal R on every d_model axis: the function and all norms stay."""
    model = dataclasses.replace(MODEL, dtype="float64")
    plain, turned = live(model=model), live(model=model)
    R, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    with torch.no_grad():
        m = turned.model
        for W in (m.W_E, m.W_pos, m.W_O, m.W_out, m.b_out):  # these write to the stream
            W.copy_(W @ R)
        for W in (m.W_Q, m.W_K, m.W_V, m.W_in, m.W_U):  # these read from it
            W.copy_(R.T @ W)
    assert torch.allclose(plain.logits, turned.logits, atol=1e-10)
    a, b = WeightNorms()(plain), WeightNorms()(turned)
    assert not torch.allclose(plain.model.W_E, turned.model.W_E)
    assert b["weight_norm"].values == pytest.approx(a["weight_norm"].values, rel=1e-12)
    assert b["sum_sq_weights"] == pytest.approx(a["sum_sq_weights"], rel=1e-12)


def test_norms_of_fresh_weights_are_their_expectation():
    """N(0, 1/d) weights of n entries have n/d squares in expectation, with standard deviation sqrt(2 n)/d."""
    snap = live(model=dataclasses.replace(MODEL, d_model=64, d_mlp=256))
    result = WeightNorms()(snap)
    norms = dict(zip(result["weight_norm"].coords["param"], result["weight_norm"].values, strict=True))
    for name, d in (("W_in", 64), ("W_out", 256), ("W_E", 64)):
        n = snap.model.get_parameter(name).numel()
        assert abs(norms[name] ** 2 - n / d) < 4 * math.sqrt(2 * n) / d, name
    assert norms["b_in"] == 0


def test_one_by_one_and_stacked_norms_are_the_same_bits():
    snaps = [live(seed) for seed in range(3)]
    params = {n: torch.stack([s.model.state_dict()[n] for s in snaps]) for n in snaps[0].model.state_dict()}
    stacked = WeightNorms().stack(Stack((0, 1, 2), params, snaps[0].model, ADDITION, snaps[0].split))
    for i, snap in enumerate(snaps):
        alone = WeightNorms()(snap)
        assert alone["sum_sq_weights"] == stacked["sum_sq_weights"].values[i]
        assert alone["weight_norm"].values.tolist() == stacked["weight_norm"].values[i].tolist()


# --- LogitStats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1.0, 7.0])
def test_planted_logits(s):
    """0 except s on the answer, n classes: margin s, rms s sqrt(n - 1) / n, largest s (n - 1) / n."""
    result = LogitStats()(snapshot(s * torch.nn.functional.one_hot(answers(), P).double()))
    assert result == pytest.approx(
        {"logit_rms": s * math.sqrt(P - 1) / P, "logit_max": s * (P - 1) / P, "train_margin": s, "test_margin": s},
        rel=1e-12,
    )


def test_the_margin_looks_at_the_largest_other_and_keeps_its_sign():
    outputs = torch.nn.functional.one_hot((answers() + 1) % P, P).double() * 3
    outputs += torch.nn.functional.one_hot(answers(), P).double()
    result = LogitStats()(snapshot(outputs))
    assert result["test_margin"] == pytest.approx(-2.0)


def test_logit_statistics_scale_and_do_not_see_shifts():
    g = torch.Generator().manual_seed(0)
    outputs, shift = torch.randn(P * P, P, generator=g).double(), torch.randn(P * P, 1, generator=g).double()
    base = LogitStats()(snapshot(outputs))
    assert LogitStats()(snapshot(outputs + 10 * shift)) == pytest.approx(base, rel=1e-9)
    assert LogitStats()(snapshot(3 * outputs)) == pytest.approx({k: 3 * v for k, v in base.items()}, rel=1e-12)


def test_random_logits_have_no_margin_to_speak_of():
    """Null: the answer among exchangeable logits is as often the largest as any other, so the margin is negative."""
    outputs = torch.randn(P * P, P, generator=torch.Generator().manual_seed(0)).double()
    result = LogitStats()(snapshot(outputs))
    assert result["test_margin"] < 0
    assert result["logit_rms"] == pytest.approx(math.sqrt((P - 1) / P), rel=0.1)


def test_vector_tasks_have_no_margin():
    assert set(LogitStats()(live(task=VECTORS.task, model=VECTORS.model))) == {"logit_rms", "logit_max"}


def test_measures_leave_the_network_as_it_was():
    snap = live()
    before = {name: p.clone() for name, p in snap.model.state_dict().items()}
    for measure in (Loss(), WeightNorms(), LogitStats()):
        measure(snap)
    assert all(torch.equal(before[name], p) for name, p in snap.model.state_dict().items())
    assert all(p.grad is None for p in snap.model.parameters())
    assert isinstance(snap.batch, Batch)
