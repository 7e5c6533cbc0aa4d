"""Many members as one program: the same starts, the same curves up to rounding, ordinary run directories."""

import dataclasses
import itertools
import os
import signal

import pytest
import torch

from toylab.cli import main
from toylab.cli.train import cells, name_apart
from toylab.durable import Interrupted
from toylab.ensemble import Stacked, StackedOptimiser, stack_batches, train_ensemble
from toylab.errors import UserError
from toylab.experiment import Experiment, Stop, Tracked, TrainSpec
from toylab.losses import mse
from toylab.measures.basic import Loss, WeightNorms
from toylab.models.mlp import MLPSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.rundir import RunDir
from toylab.runs import Run, RunGroup
from toylab.tasks.induction import RepeatedTokens
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures
from toylab.train import Trainer, train
from toylab.verify import verify

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

P11 = ModularArithmetic(11, "x+y", 0.5)
TINY = TransformerSpec(1, 2, 8, 4, 16, dtype="float64")
MLP = MLPSpec(6, 12, "relu", embed="separate", biases=("in", "U"), dtype="float64")
TOY = SuperpositionSpec("relu_out", 2, dtype="float64")
ADAMW = OptimSpec("adamw", 2e-3, 1.0)


def experiment(seed=0, task=P11, model=TINY, optim=ADAMW, loss="cross_entropy", measure=None, **spec):
    spec = {"steps": 50, "checkpoints": ("every:10",), "eval_every": 10} | spec
    return Experiment("x", seed, task, model, optim, loss, TrainSpec(**spec), measure or {})


def with_optim(e, **fields):
    return dataclasses.replace(e, optim=dataclasses.replace(e.optim, **fields))


SEEDS = [experiment(seed) for seed in range(3)]
MIXED = [
    with_optim(experiment(0), lr=1e-3, weight_decay=0.0),
    with_optim(experiment(1), lr=3e-3, betas=(0.8, 0.95), eps=1e-6),
    experiment(1, task=dataclasses.replace(P11, frac_train=0.7)),
    experiment(2, task=dataclasses.replace(P11, frac_train=0.3, operation="x*y")),
    experiment(2, model=dataclasses.replace(TINY, init_scale=2.0)),
]
SPARSITY = [
    experiment(s, dataclasses.replace(SparseFeatures(5, 0.5, 0.9), sparsity=p), TOY, loss="mse", batch_size=32)
    for s, p in [(0, 0.5), (1, 0.9)]
]
FAMILIES = {
    "seeds": SEEDS,
    "mixed": MIXED,
    "adam": [with_optim(e, kind="adam", weight_decay=0.1) for e in SEEDS],
    "sgd": [with_optim(e, kind="sgd", lr=lr, weight_decay=0.01) for e, lr in zip(SEEDS, (0.1, 0.3, 1.0), strict=True)],
    "momentum": [with_optim(e, kind="sgd", lr=0.1, momentum=0.9) for e in SEEDS],
    "cosine": [with_optim(e, schedule="cosine") for e in SEEDS],
    "minibatch": [experiment(s, batch_size=20) for s in range(2)],
    "two layers": [experiment(s, model=dataclasses.replace(TINY, n_layers=2, norm="LN")) for s in range(2)],
    "tokens": [experiment(s, RepeatedTokens(6, 3), TINY, batch_size=16) for s in range(2)],
    "mlp": [experiment(s, dataclasses.replace(P11, frac_train=f), MLP) for s, f in [(0, 0.4), (1, 0.6)]],
    "mlp mse": [experiment(s, model=MLP, loss="mse") for s in range(2)],
    "superposition": SPARSITY,
}


def float32(e):
    return dataclasses.replace(e, model=dataclasses.replace(e.model, dtype="float32"))


@pytest.mark.parametrize("members", FAMILIES.values(), ids=FAMILIES)
def test_members_start_as_their_solo_twins_bit_for_bit(members):
    stacked, solo = Stacked([Trainer(e) for e in members]), [Trainer(e) for e in members]
    for member, twin in zip(stacked.trainers, solo, strict=True):
        assert all(torch.equal(a, twin.weights()[k]) for k, a in member.weights().items())
        assert torch.equal(member.next_batch().inputs, twin.next_batch().inputs)


@pytest.mark.parametrize("members", FAMILIES.values(), ids=FAMILIES)
def test_members_stay_close_to_their_solo_twins(members):
    """50 steps in float64: 1e-10 in every weight, and in the losses."""
    stacked, solo = Stacked([Trainer(e) for e in members]), [Trainer(e) for e in members]
    for _ in range(50):
        assert stacked.advance() == pytest.approx([t.advance() for t in solo], rel=1e-10, abs=0)
    for member, twin in zip(stacked.trainers, solo, strict=True):
        assert member.step == twin.step == 50
        expected = twin.state()
        assert member.state().keys() == expected.keys()
        for name, tensor in member.state().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["transformer", "toy"])
def test_members_in_bfloat16_take_their_twins_first_step(family):
    """Products round at 2^-9 in both programs, so losses agree to a per cent."""
    members = {
        "transformer": [
            experiment(s, model=dataclasses.replace(TINY, dtype="float32"), precision="bfloat16") for s in (0, 1)
        ],
        "toy": [
            dataclasses.replace(
                e, model=SuperpositionSpec("relu_out", 2), train=dataclasses.replace(e.train, precision="bfloat16")
            )
            for e in SPARSITY
        ],
    }[family]
    single = [dataclasses.replace(e, train=dataclasses.replace(e.train, precision="float32")) for e in members]
    losses, solo, exact = (
        Stacked([Trainer(e) for e in members]).advance(),
        [Trainer(e).advance() for e in members],
        [Trainer(e).advance() for e in single],
    )
    assert losses == pytest.approx(solo, rel=1e-2)
    assert losses != pytest.approx(exact, rel=1e-6), "the products really are in bfloat16"


def test_float32_members_stay_as_close_as_the_docstring_says():
    stacked, solo = (Stacked([Trainer(float32(e)) for e in SEEDS]), [Trainer(float32(e)) for e in SEEDS])
    for steps, bound in [(1, 1e-6), (9, 1e-4)]:
        for _ in range(steps):
            stacked.advance()
            for twin in solo:
                twin.advance()
        for member, twin in zip(stacked.trainers, solo, strict=True):
            for a, b in zip(member.model.parameters(), twin.model.parameters(), strict=True):
                assert (a - b).abs().max() <= bound * b.abs().max()


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimiser_is_torchs_for_each_row(kind, momentum):
    """Random gradients, each row with its own hyperparameters, against torch.optim on that row."""
    g = torch.Generator().manual_seed(0)
    specs = [
        OptimSpec(kind, lr, wd, betas, eps, momentum, warmup=0)
        for lr, wd, betas, eps in [
            (0.1, 0.0, (0.9, 0.99), 1e-8),
            (0.01, 2.0, (0.5, 0.7), 1e-3),
            (0.0, 1.0, (0.0, 0.0), 1.0),
        ]
    ]
    start = torch.randn(3, 7, generator=g, dtype=torch.float64)
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    models = [torch.nn.ParameterList([row]) for row in rows]
    solo = [spec.build(model) for spec, model in zip(specs, models, strict=True)]
    stacked = StackedOptimiser(specs, start.clone())
    lent = [spec.build(torch.nn.ParameterList([row.clone()])) for spec, row in zip(specs, start, strict=True)]
    stacked.share(lent, [7])
    for step in range(20):
        grads = torch.randn(3, 7, generator=g, dtype=torch.float64)
        stacked.update(grads, step, 1.0)
        for row, grad, optimiser in zip(rows, grads, solo, strict=True):
            row.grad = grad
            optimiser.step()
    torch.testing.assert_close(stacked.weights, torch.stack([r.detach() for r in rows]), rtol=1e-12, atol=1e-12)
    for one, other in zip(lent, solo, strict=True):
        expected = {name: t for name, t in other.state_dict()["state"].get(0, {}).items() if t is not None}
        torch.testing.assert_close(one.state_dict()["state"][0], expected, rtol=1e-12, atol=1e-12)


def test_padding_counts_for_nothing():
    batches = [P11.split(s).all[torch.arange(n)] for s, n in [(0, 3), (1, 5)]]
    joined = stack_batches(batches)
    assert joined.inputs.shape == (2, 5, 3)
    assert joined.weight[:, :, 0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert stack_batches([batches[0], batches[0]]).weight is None


def test_every_member_is_an_ordinary_run(tmp_path):
    measure = {"norms": Tracked(WeightNorms(), 20)}
    members = [experiment(seed, measure=measure, keep_states=1) for seed in range(3)]
    group = train_ensemble(members, [tmp_path / f"seed={e.seed}" for e in members], progress=False)
    assert isinstance(group, RunGroup)
    for run, e in zip(group, members, strict=True):
        alone = train(e, tmp_path / "alone" / str(e.seed), progress=False)
        assert run.experiment == e
        assert run.finished
        assert run.info["ensemble"] == {"member": e.seed, "members": 3}
        assert run.steps == alone.steps
        assert set(run.dir.state_files()) == set(alone.dir.state_files())
        assert list(run.metrics()) == list(alone.metrics())
        assert set(run.info["seconds"]) == {"train", "measure", "save"}
        for name, column in alone.metrics().items():
            torch.testing.assert_close(
                torch.from_numpy(run.metrics()[name].values), torch.from_numpy(column.values), equal_nan=True
            )
        report = verify(run.path, replays=3)
        assert report.ok, report
        assert sum("same bits" in line or "outputs within" in line for line in report.checked) == 3
    assert dict(group.map(Loss()).sizes) == {"seed": 3, "step": 6}


def test_verify_notices_a_member_trained_otherwise(tmp_path):
    """The recorded learning rate is not the one it was trained with: a replay must not pass for rounding."""
    (run,) = train_ensemble([SEEDS[0]], [tmp_path], progress=False)
    run.dir.write_config(with_optim(SEEDS[0], lr=1e-3).to_config())
    assert any("gives other weights" in problem for problem in verify(tmp_path, replays=5).problems)


def state_of(path):
    run = Run.open(path)
    return {step: run.dir.read_checkpoint(step) for step in run.steps}, run.dir.metrics()


def assert_same(one, other):
    assert one[1] == other[1]
    assert list(one[0]) == list(other[0])
    for step in one[0]:
        assert all(torch.equal(one[0][step][k], t) for k, t in other[0][step].items()), f"step {step}"


def interrupt_after(n):
    """Send this process SIGINT when the stack has advanced n times."""
    count = itertools.count(1)
    advance = Stacked.advance

    def counting(self):
        if next(count) == n:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    return counting


def test_interrupted_ensembles_go_on_to_the_same_bits(tmp_path, monkeypatch):
    whole = [tmp_path / "whole" / str(e.seed) for e in SEEDS]
    train_ensemble(SEEDS, whole, progress=False)
    paths = [tmp_path / str(e.seed) for e in SEEDS]
    with monkeypatch.context() as patch:
        patch.setattr(Stacked, "advance", interrupt_after(23))
        with pytest.raises(Interrupted, match="step 23; 3 members are saved") as caught:
            train_ensemble(SEEDS, paths, progress=False)
    assert caught.value.signal == signal.SIGINT
    assert {Run.open(p).info["status"] for p in paths} == {"interrupted"}
    assert all(23 in Run.open(p).dir.state_files() for p in paths)
    train_ensemble(SEEDS, paths, progress=False)
    for path, other in zip(paths, whole, strict=True):
        assert_same(state_of(path), state_of(other))


def test_killed_ensembles_go_on_from_the_latest_common_state(tmp_path, monkeypatch):
    """Killed while saving: one member has step 30, the others 20."""
    whole = [tmp_path / "whole" / str(e.seed) for e in SEEDS]
    train_ensemble(SEEDS, whole, progress=False)
    paths = [tmp_path / str(e.seed) for e in SEEDS]

    class Killed(BaseException):
        pass

    write = RunDir.write_state

    def dying(self, step, tensors, record):
        if step == 30 and self.path == paths[1]:
            raise Killed
        write(self, step, tensors, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "write_state", dying)
        with pytest.raises(Killed):
            train_ensemble(SEEDS, paths, progress=False)
    assert [max(RunDir(p).state_files()) for p in paths] == [30, 20, 20]
    began = []
    with monkeypatch.context() as patch:
        advance = Stacked.advance
        patch.setattr(
            Stacked, "advance", lambda self: (began.append([t.step for t in self.trainers]), advance(self))[1]
        )
        train_ensemble(SEEDS, paths, progress=False)
    assert began[0] == [20, 20, 20]
    for path, other in zip(paths, whole, strict=True):
        assert_same(state_of(path), state_of(other))


def test_new_members_catch_up_and_finished_ones_are_left_alone(tmp_path, monkeypatch):
    paths = [tmp_path / str(e.seed) for e in SEEDS]
    with monkeypatch.context() as patch:
        patch.setattr(Stacked, "advance", interrupt_after(12))
        with pytest.raises(Interrupted):
            train_ensemble(SEEDS[:1], paths[:1], progress=False)
    train_ensemble(SEEDS[1:2], paths[1:2], progress=False)
    before = (paths[1] / "run.json").read_bytes()
    sizes = []
    with monkeypatch.context() as patch:
        advance = Stacked.advance
        patch.setattr(Stacked, "advance", lambda self: (sizes.append(len(self.trainers)), advance(self))[1])
        group = train_ensemble(SEEDS, paths, progress=False)
    assert sizes == [1] * 12 + [2] * 38
    assert (paths[1] / "run.json").read_bytes() == before
    assert all(run.finished for run in group)
    again = train_ensemble(SEEDS, paths, progress=False)
    assert [run.steps for run in again] == [run.steps for run in group]
    fresh = train_ensemble(SEEDS[:1], paths[:1], overwrite=True, progress=False)
    assert fresh.runs[0].finished


def test_a_member_that_meets_its_stop_condition_leaves(tmp_path):
    """Stop at a train loss of 2.0: the member with the larger learning rate gets there first, the other alone later."""
    stop = Stop("train_loss", at_most=2.0)
    members = [with_optim(experiment(0, stop=stop, steps=400), lr=lr, weight_decay=0.0) for lr in (1e-2, 2e-3)]
    fast, slow = train_ensemble(members, [tmp_path / "fast", tmp_path / "slow"], progress=False)
    assert {run.path.name: run for run in (fast, slow)}.keys() == {"fast", "slow"}
    by_name = {run.path.name: run for run in (fast, slow)}
    for name, e in zip(("fast", "slow"), members, strict=True):
        alone = train(e, tmp_path / "alone" / name, progress=False)
        assert by_name[name].info["reason"] == "stop condition held"
        assert by_name[name].steps == alone.steps
    assert by_name["fast"].steps[-1] < by_name["slow"].steps[-1] < 400


def test_a_member_that_diverges_leaves_and_the_others_go_on(tmp_path, monkeypatch):
    members = [
        with_optim(e, kind="sgd", lr=lr, weight_decay=0.0) for e, lr in zip(SEEDS, (0.1, 1e80, 0.1), strict=True)
    ]
    paths = [tmp_path / str(i) for i in range(3)]
    sizes = []
    with monkeypatch.context() as patch:
        advance = Stacked.advance
        patch.setattr(Stacked, "advance", lambda self: (sizes.append(len(self.trainers)), advance(self))[1])
        group = train_ensemble(members, paths, progress=False)
    assert sizes == [3, 3] + [2] * 48  # the first update makes the weights huge, the second sees the loss
    status = {run.path.name: run.info["status"] for run in group}
    assert status == {"0": "finished", "1": "diverged", "2": "finished"}
    kept = Run.open(paths[1])
    assert all(torch.isfinite(t).all() for step in kept.steps for t in kept.dir.read_checkpoint(step).values())
    solo = Trainer(members[0])
    while solo.step < 50:
        solo.advance()
    final = Run.open(paths[0]).final.model
    for a, b in zip(final.parameters(), solo.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert {r.info["status"] for r in train_ensemble(members, paths, progress=False)} == {"finished", "diverged"}


REFUSED = {
    "optim.kind": with_optim(experiment(1), kind="adam"),
    "optim.schedule": with_optim(experiment(1), schedule="cosine"),
    "optim.warmup": with_optim(experiment(1), warmup=3),
    "loss": experiment(1, loss="stablemax"),
    "train.steps": experiment(1, steps=60),
    "train.checkpoints": experiment(1, checkpoints=("every:5",)),
    "model.d_mlp": experiment(1, model=dataclasses.replace(TINY, d_mlp=8)),
    "model.act": experiment(1, model=dataclasses.replace(TINY, act="gelu")),
    "task.p": experiment(1, task=dataclasses.replace(P11, p=13)),
    "task.format": experiment(1, task=dataclasses.replace(P11, format="a b")),
    "task._target_": experiment(1, task=RepeatedTokens(6, 3), batch_size=4),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_would_be_another_program_is_refused_by_name(setting, tmp_path):
    with pytest.raises(UserError, match=setting.replace(".", r"\.")):
        train_ensemble([SEEDS[0], REFUSED[setting]], [tmp_path / "0", tmp_path / "1"], progress=False)
    assert not list(tmp_path.glob("*/run.json"))


def test_nonsense_is_refused(tmp_path):
    for experiments, paths, message in [
        ([], [], "at least one"),
        (SEEDS, [tmp_path], "3 experiments for 1 paths"),
        (SEEDS[:2], [tmp_path, tmp_path], "two members would be written to"),
    ]:
        with pytest.raises(UserError, match=message):
            train_ensemble(experiments, paths, progress=False)


def test_comma_syntax_names_every_cell():
    assert cells(["experiment=demo", "seed=0,1", "optim.lr=choice(1e-3,2e-3)"]) == [
        ["experiment=demo", f"seed={s}", f"optim.lr={lr}"] for s in (0, 1) for lr in ("0.001", "0.002")
    ]
    assert cells(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert cells(["train.checkpoints=[1,2]"]) == [["train.checkpoints=[1,2]"]]
    with pytest.raises(UserError, match="interval"):
        cells(["optim.lr=interval(0,1)"])
    named = name_apart([{"name": "x", "seed": s, "optim": {"lr": lr}} for s in (0, 1) for lr in (0.1, 0.2)])
    assert [n["name"] for n in named] == ["x/optim.lr=0.1", "x/optim.lr=0.2"] * 2
    assert [n["name"] for n in name_apart([{"name": "x", "seed": s} for s in (0, 1)])] == ["x", "x"]


def test_the_command_line_trains_every_cell(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["task.p=7", "model.d_model=8", "model.n_heads=2", "model.d_head=4", "model.d_mlp=8", "train.steps=4"]
    command = ["train", "--ensemble", *tiny, "name=e", "seed=0,1", "optim.lr=1e-3,2e-3"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 members as one program")
    assert sum("finished at step 4" in line for line in lines) == 4
    for lr, seed in itertools.product((0.001, 0.002), (0, 1)):
        run = Run.open(tmp_path / "runs" / "e" / f"optim.lr={lr}" / f"seed={seed}")
        assert run.finished
        assert (run.experiment.optim.lr, run.experiment.seed) == (lr, seed)
    assert main(command) == 0
    assert main(["train", "--ensemble", *tiny, "name=f", "optim.kind=adam,sgd"]) == 1
    assert "optim.kind differs" in capsys.readouterr().err


def test_mse_of_classes_is_the_one_hot_formula_and_runs_under_vmap():
    g = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(3, 4, 1, 5, generator=g), torch.randint(5, (3, 4, 1), generator=g)
    expected = ((outputs - torch.nn.functional.one_hot(targets, 5)) ** 2).mean(-1)
    assert torch.equal(torch.func.vmap(mse)(outputs, targets), expected)
