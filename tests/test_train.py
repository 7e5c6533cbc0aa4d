"""Training: same seed, same bits, however often it is killed; schedules, optimisers and losses are what they say."""

import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases.runs import ADAMW, ADDITION, FULL_BATCH, KINDS, LONG, MINIBATCH, STREAMING, VECTORS, bits, with_train

from toylab import Run
from toylab.data import Batch
from toylab.errors import UserError
from toylab.experiment import Stop, scheduled_steps
from toylab.losses import LOSSES, batch_loss, weighted_mean
from toylab.measures.basic import Loss
from toylab.optim import KINDS as OPTIMISERS
from toylab.optim import SCHEDULES, OptimSpec
from toylab.rundir import RunDir
from toylab.train import Fresh, Trainer, train

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def fit(experiment, path, **kwargs) -> Run:
    return train(experiment, path, progress=False, **kwargs)


# --- Same seed, same bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits(kind, tmp_path):
    a, b = (fit(KINDS[kind], tmp_path / name) for name in "ab")
    assert bits(a.path) == bits(b.path)
    other = fit(dataclasses.replace(KINDS[kind], seed=1), tmp_path / "c")
    assert not torch.equal(a.final.logits, other.final.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_every_kind_of_step_and_resumed_to_the_same_bits(kind, tmp_path):
    """A sink that raises stands for a crash: at an evaluation with and without a checkpoint, early and late."""
    whole = fit(KINDS[kind], tmp_path / "whole")
    crashes = {0, 15, 20, 45, 60}

    def crash(step, values):
        if step in crashes:
            crashes.remove(step)
            raise ConnectionError

    for left in (4, 3, 2, 1, 0):
        with pytest.raises(ConnectionError):
            fit(KINDS[kind], tmp_path / "crashed", sinks=(crash,))
        assert len(crashes) == left
    assert bits(fit(KINDS[kind], tmp_path / "crashed", sinks=(crash,)).path) == bits(whole.path)


NURSERY = """
import os, sys, torch
from cases.runs import LONG
from toylab.durable import Interrupted
from toylab.train import Trainer, train
torch.set_num_threads(1)
Trainer(LONG).advance()  # torch imports more at the first update
for path in sys.stdin:
    path = path.strip()
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    try:
        train(LONG, path, progress=False)
        os._exit(0)
    except Interrupted as stopped:
        open(path + ".message", "w").write(str(stopped))
        os._exit(128 + stopped.signal)
"""


class Nursery:
    """A process that has done its imports and forks a fresh training process for every path it is given."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, path) -> int:
        """Start training in this directory; returns the process number."""
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """Exit status of the one started last; the negative signal number when it died of a signal."""
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(10)
    nursery.process.stdout.close()


@pytest.fixture(scope="module")
def uninterrupted(nursery, tmp_path_factory):
    """(bits of LONG, how many seconds it takes)."""
    path = tmp_path_factory.mktemp("long") / "run"
    nursery.start(path)
    begun = time.perf_counter()
    assert nursery.status() == 0
    return bits(path), time.perf_counter() - begun


def progress_of(path) -> int:
    return max(RunDir(path).manifest(), default=0)


def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(nursery, uninterrupted, tmp_path):
    """SIGKILL leaves no time to tidy up: some of these land within a write."""
    whole, length = uninterrupted
    path, clock, died_at = tmp_path / "killed", random.Random(0), []
    for _ in range(10):
        child = nursery.start(path)
        time.sleep(clock.uniform(0.03, 0.2) * length)
        os.kill(child, signal.SIGKILL)
        assert nursery.status() in (-signal.SIGKILL, 0)
        died_at.append(progress_of(path))
    middle = [step for step in died_at if 0 < step < LONG.train.steps]
    assert len(set(middle)) >= 4, f"too few kills landed inside training: {died_at}"
    assert died_at == sorted(died_at), f"progress was lost: {died_at}"
    if not Run.open(path).finished:
        nursery.start(path)
        assert nursery.status() == 0
    assert bits(path) == whole
    assert Run.open(path).finished
    assert not list(path.rglob(".*.tmp")), "a torn write was left behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_says_how_and_resumes_to_the_same_bits(number, nursery, uninterrupted, tmp_path):
    path = tmp_path / "run"
    child = nursery.start(path)
    while progress_of(path) < 30:
        time.sleep(0.005)
    os.kill(child, number)
    assert nursery.status() == 128 + number
    message = (tmp_path / "run.message").read_text()
    assert f"stopped by {number.name} at step" in message
    assert "give the same command again" in message
    stopped = Run.open(path)
    assert stopped.info["status"] == "interrupted"
    assert 30 <= stopped.info["step"] < LONG.train.steps
    assert stopped.info["step"] == max(stopped.dir.state_files()), "the state of that very step was not kept"
    nursery.start(path)
    assert nursery.status() == 0
    assert bits(path) == uninterrupted[0]


def test_states_of_a_step_do_not_pile_up(tmp_path):
    """Resumed at a checkpoint step, the state there is written again with other timings inside."""

    def crash(step, values):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(FULL_BATCH, tmp_path / "run", sinks=(lambda step, values: crash(step, values) if step == 30 else None,))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            fit(FULL_BATCH, tmp_path / "run", sinks=(lambda s, v: crash(s, v) if s == 25 else None,))
    files = [file.name[:13] for file in (tmp_path / "run" / "states").iterdir()]
    assert len(files) == len(set(files)), files


# --- Optimisers and schedules ----------------------------------------------------------------------------------------


def lr_by_hand(spec: OptimSpec, t: int, steps: int) -> float:
    warm = 1.0 if spec.warmup == 0 or t + 1 >= spec.warmup else (t + 1) / spec.warmup
    way = 0.0 if t <= spec.warmup else (t - spec.warmup) / (steps - spec.warmup)
    end = spec.final_lr * spec.lr
    shapes = {
        "constant": spec.lr,
        "linear": spec.lr + way * (end - spec.lr),
        "cosine": end + (spec.lr - end) * (1 + math.cos(math.pi * way)) / 2,
    }
    return warm * shapes[spec.schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_every_optimiser_with_every_schedule_runs_at_the_stated_rates(kind, schedule, tmp_path):
    for warmup, final_lr in ((0, 0.0), (6, 0.25)):
        spec = OptimSpec(
            kind, 1e-2, 0.1, momentum=0.9 * (kind == "sgd"), warmup=warmup, schedule=schedule, final_lr=final_lr
        )
        experiment = dataclasses.replace(FULL_BATCH, optim=spec)
        trainer = Trainer(with_train(experiment, steps=20, checkpoints=()))
        before = trainer.advance()
        rates = [trainer.optimiser.param_groups[0]["lr"]]
        for _ in range(19):
            after = trainer.advance()
            rates.append(trainer.optimiser.param_groups[0]["lr"])
        assert rates == pytest.approx([lr_by_hand(spec, t, 20) for t in range(20)], rel=1e-12)
        assert after < before
    if warmup:
        assert rates[0] == pytest.approx(1e-2 / 6)
        assert rates[5] == pytest.approx(1e-2)  # the full rate is first reached at step warmup - 1


def gradients(trainer) -> list[torch.Tensor]:
    batch = trainer.next_batch()
    loss = batch_loss(trainer.experiment.loss, trainer.model(batch.inputs, read=batch.read), batch)
    return list(torch.autograd.grad(loss, list(trainer.model.parameters())))


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_updates_are_the_published_formulas(kind):
    """Adam and AdamW (Loshchilov & Hutter 2019, algorithm 2), SGD with momentum; in float64, to 1e-6."""
    lr, decay, betas, eps, momentum = 3e-3, 0.7, (0.9, 0.98), 1e-8, 0.8
    spec = OptimSpec(kind, lr, decay, betas, eps, momentum, warmup=0)
    model = dataclasses.replace(FULL_BATCH.model, dtype="float64")
    trainer = Trainer(dataclasses.replace(FULL_BATCH, model=model, optim=spec))
    theta = [p.detach().clone() for p in trainer.model.parameters()]
    m, v = ([torch.zeros_like(p) for p in theta] for _ in range(2))
    for t in range(1, 31):
        g = gradients(trainer)
        if kind != "adamw":
            g = [gi + decay * p for gi, p in zip(g, theta, strict=True)]
        if kind == "sgd":
            m = [gi if t == 1 else momentum * mi + gi for gi, mi in zip(g, m, strict=True)]
            theta = [p - lr * mi for p, mi in zip(theta, m, strict=True)]
        else:
            m = [betas[0] * mi + (1 - betas[0]) * gi for mi, gi in zip(m, g, strict=True)]
            v = [betas[1] * vi + (1 - betas[1]) * gi**2 for vi, gi in zip(v, g, strict=True)]
            step = [
                (mi / (1 - betas[0] ** t)) / ((vi / (1 - betas[1] ** t)).sqrt() + eps)
                for mi, vi in zip(m, v, strict=True)
            ]
            shrink = 1 - lr * decay * (kind == "adamw")
            theta = [shrink * p - lr * s for p, s in zip(theta, step, strict=True)]
        trainer.advance()
        for p, by_hand in zip(trainer.model.parameters(), theta, strict=True):
            assert torch.allclose(p, by_hand, rtol=1e-6, atol=1e-9), f"update {t}"


def test_a_full_batch_is_every_training_row_and_a_minibatch_some_of_them():
    trainer = Trainer(FULL_BATCH)
    assert torch.equal(trainer.next_batch().inputs, trainer.split.train_batch.inputs)
    trainer = Trainer(MINIBATCH)
    allowed = set(map(tuple, trainer.split.train_batch.inputs.tolist()))
    drawn = [set(map(tuple, trainer.next_batch().inputs.tolist())) for _ in range(20)]
    assert all(len(rows) == 8 and rows <= allowed for rows in drawn)
    assert set().union(*drawn) == allowed
    stream = Trainer(STREAMING)
    assert not torch.equal(stream.next_batch().inputs, stream.next_batch().inputs)


def test_batches_drawn_ahead_are_the_same_and_leave_no_trace():
    """Weights and states are those without the thread; what was drawn and not used is drawn again."""
    plain, ahead, resumed = (Trainer(STREAMING) for _ in range(3))
    for trainer in (ahead, resumed):
        trainer.fresh = Fresh(trainer.fresh.draw, trainer.batches, ahead=True)
    for step in range(8):
        plain.advance(), ahead.advance()
        assert all(torch.equal(t, ahead.state()[name]) for name, t in plain.state().items())
        if step in (2, 5):  # into a trainer that has a batch waiting already
            resumed.load_state(ahead.step, {name: t.clone() for name, t in ahead.state().items()})
        resumed.advance()
    plain.advance()  # the resumed one is a step further
    assert all(torch.equal(t, resumed.state()[name]) for name, t in plain.state().items())


def test_an_error_in_drawing_ahead_is_told_when_the_batch_is_asked_for():
    asked = iter([1, 0])
    fresh = Fresh(lambda g: STREAMING.task.sample(8 // next(asked), g), torch.Generator(), ahead=True)
    assert len(fresh.next()) == 8
    with pytest.raises(ZeroDivisionError):
        fresh.next()


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ((), [0, 100]),
        (("every:40",), [0, 40, 80, 100]),
        (("log:3",), [0, 1, 10, 100]),
        (("log:3", "every:50", 7, "8"), [0, 1, 7, 8, 10, 50, 100]),
        (("log:1",), [0, 1, 100]),
    ],
)
def test_checkpoint_schedules(schedule, steps):
    assert scheduled_steps(schedule, 100) == steps


# --- Stopping --------------------------------------------------------------------------------------------------------


def test_stops_once_the_condition_has_held(tmp_path):
    """The first evaluation at or below the bound, then `hold` more steps of staying there."""
    free = fit(FULL_BATCH, tmp_path / "free").metrics()["train_loss"].dropna("step")
    bound = float(free.sel(step=25))
    first = int(free.step[free <= bound][0])
    held = with_train(FULL_BATCH, stop=Stop("train_loss", at_most=bound, hold=20))
    run = fit(held, tmp_path / "held")
    assert (free.sel(step=slice(first, first + 20)) <= bound).all(), "the loss falls here, so that it does hold"
    assert run.info["step"] == run.steps[-1] == first + 20
    assert run.info["reason"] == "stop condition held"
    assert fit(with_train(held, stop=Stop("train_loss", at_most=bound)), tmp_path / "none").info["step"] == first


def test_a_condition_that_breaks_starts_counting_again(tmp_path, monkeypatch):
    """Accuracy by script: reached at 5 and 10, lost at 15, reached again from 20 on; hold 10 means step 30."""
    scripted = {5: 1.0, 10: 1.0, 15: 0.0}
    original = Loss.__call__
    monkeypatch.setattr(
        Loss,
        "__call__",
        lambda self, snap: original(self, snap) | {"test_accuracy": scripted.get(snap.step, float(snap.step > 0))},
    )
    run = fit(with_train(FULL_BATCH, stop=Stop("test_accuracy", at_least=1.0, hold=10)), tmp_path / "run")
    assert run.info["step"] == 30


def test_how_long_it_has_held_survives_a_resume(tmp_path):
    bound = with_train(FULL_BATCH, stop=Stop("train_loss", at_most=100.0, hold=40))
    crashes = {25, 35}

    def crash(step, values):
        if step in crashes:
            crashes.remove(step)
            raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            fit(bound, tmp_path / "run", sinks=(crash,))
    run = fit(bound, tmp_path / "run", sinks=(crash,))
    assert run.info["step"] == 40  # true from step 0 on
    assert bits(run.path) == bits(fit(bound, tmp_path / "whole").path)


def test_a_stop_condition_on_nothing_evaluated_costs_no_directory(tmp_path):
    with pytest.raises(UserError, match=r'train.stop.measure.*"test_accuracy"'):
        fit(with_train(FULL_BATCH, stop=Stop("test_acuracy", at_least=1.0)), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": OptimSpec("sgd", lr=1e30, weight_decay=0.0, warmup=0), "loss": "mse"},
        {"optim": OptimSpec("sgd", lr=1e3, weight_decay=1.0, warmup=30), "loss": "cross_entropy_float32"},
    ],
    ids=["at once", "later"],
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(changes, tmp_path):
    experiment = dataclasses.replace(FULL_BATCH, **changes)
    with pytest.raises(UserError, match=r"not finite at step .*last good state is step .*smaller optim.lr"):
        fit(experiment, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.info["status"] == "diverged"
    trainer = Trainer(experiment)
    while math.isfinite(trainer.advance()):
        pass
    assert run.info["step"] == trainer.step - 1, "it went on past the first loss that is not finite"
    last = max(run.dir.state_files())
    assert last <= run.info["step"] < 60
    for snap in run.snapshots():
        assert all(p.isfinite().all() for p in snap.model.parameters())
    tensors, _ = run.dir.read_state(last)
    assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model/"))
    with pytest.raises(UserError, match=r"diverged at step.*another name.*overwrite=true"):
        fit(experiment, tmp_path / "run")


# --- Losses against their definitions --------------------------------------------------------------------------------

LOGITS = [[2.0, -1.0, 0.0], [0.5, -3.0, 1.0]]
TARGETS = [1, 2]


def loss_by_hand(name, row, target):
    if name == "mse":
        return sum((x - (i == target)) ** 2 for i, x in enumerate(row)) / len(row)
    s = {"cross_entropy": math.exp, "stablemax": lambda x: x + 1 if x >= 0 else 1 / (1 - x)}[
        name.removesuffix("_float32")
    ]
    return -math.log(s(row[target]) / sum(map(s, row)))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_classes_equal_their_definitions(name):
    outputs = torch.tensor(LOGITS)[:, None]
    targets = torch.tensor(TARGETS)[:, None]
    result = LOSSES[name](outputs, targets)
    assert result.shape == targets.shape
    assert result.dtype == (torch.float64 if name in ("cross_entropy", "stablemax") else torch.float32)
    by_hand = [loss_by_hand(name, row, target) for row, target in zip(LOGITS, TARGETS, strict=True)]
    assert result[:, 0].tolist() == pytest.approx(by_hand, rel=1e-6)


def test_squared_error_of_reals_is_per_feature():
    outputs, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    assert LOSSES["mse"](outputs, targets).tolist() == [[0.25, 4.0]]


def test_losses_keep_what_float32_loses():
    """A margin of 30: float32 cross-entropy is exactly 0, in float64 e^-30 remains."""
    outputs, targets = torch.tensor([[[30.0, 0.0]]]), torch.tensor([[0]])
    assert LOSSES["cross_entropy_float32"](outputs, targets).item() == 0
    assert LOSSES["cross_entropy"](outputs, targets).item() == pytest.approx(math.exp(-30), rel=1e-3)


def test_stablemax_has_finite_gradients_where_a_branch_is_not_taken():
    outputs = torch.tensor([[1.0, -1.0, 50.0, 0.0]], requires_grad=True)
    LOSSES["stablemax_float32"](outputs[:, None], torch.tensor([[0]])).sum().backward()
    # d/dx of -log s(x_t) + log sum s: s' = 1 for x >= 0, 1 / (1 - x)^2 below; sum s = 2 + 1/2 + 51 + 1.
    assert outputs.grad[0].tolist() == pytest.approx([1 / 54.5 - 1 / 2, 0.25 / 54.5, 1 / 54.5, 1 / 54.5])


def test_weights_count_what_is_asked():
    values = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    assert weighted_mean(values, None).item() == 4
    assert weighted_mean(values, torch.tensor([[1.0, 1.0], [1.0, 0.0]])).item() == 2  # padding leaves a plain mean
    assert weighted_mean(values, torch.tensor([[1.0, 0.5], [1.0, 0.5]])).item() == 2.5  # importance is not divided out


def test_real_targets_need_a_loss_of_reals():
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"use loss=mse"):
        batch_loss("cross_entropy", torch.zeros(2, 3), batch)
    with pytest.raises(UserError, match=r"use loss=mse"):
        Trainer(dataclasses.replace(VECTORS, loss="cross_entropy")).advance()


# --- Asking for what cannot be ---------------------------------------------------------------------------------------


def test_a_batch_must_fit_the_task():
    with pytest.raises(UserError, match=r"streams.*set train.batch_size"):
        Trainer(with_train(STREAMING, batch_size=None))
    with pytest.raises(UserError, match=r"exceeds the 24 training rows"):
        Trainer(with_train(MINIBATCH, batch_size=25))


def test_starting_over_with_settings_that_cannot_be_costs_nothing(tmp_path):
    """overwrite is only carried out once the new experiment stands."""
    run = fit(FULL_BATCH, tmp_path / "run")
    before = bits(run.path)
    for wrong in (with_train(FULL_BATCH, device="nowhere"), with_train(FULL_BATCH, batch_size=1000)):
        with pytest.raises(UserError, match=r"train\."):
            fit(wrong, run.path, overwrite=True)
    assert bits(run.path) == before
    assert Run.open(run.path).finished
    again = fit(dataclasses.replace(FULL_BATCH, optim=dataclasses.replace(ADAMW, lr=1e-3)), run.path, overwrite=True)
    assert again.experiment.optim.lr == 1e-3
    assert bits(again.path) != before


def test_starting_over_keeps_what_is_not_the_runs_own(tmp_path):
    run = fit(FULL_BATCH, tmp_path / "run")
    run.map(lambda snap: float(snap.step))
    (run.path / "notes.txt").write_text("mine")
    again = fit(FULL_BATCH, run.path, overwrite=True)
    assert (run.path / "notes.txt").read_text() == "mine"
    assert not (run.path / "derived").exists()
    assert again.finished
    assert again.task == ADDITION


def test_tensorboard_is_a_sink(tmp_path):
    pytest.importorskip("tensorboard")
    run = fit(with_train(FULL_BATCH, steps=10, tensorboard=True), tmp_path / "run")
    assert list((run.path / "tensorboard").glob("events.*"))


def test_settings_that_do_not_change_bits_may_change_on_resuming(tmp_path):
    def crash(step, values):
        if step == 30:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(FULL_BATCH, tmp_path / "run", sinks=(crash,))
    assert fit(with_train(FULL_BATCH, threads=None), tmp_path / "run").info["threads"] == 1


def test_runs_from_before_a_setting_existed_go_on_with_its_default(tmp_path):
    """A stored config that lacks a setting means the default; another value than that is still another run."""

    def crash(step, values):
        if step == 30:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(FULL_BATCH, tmp_path / "run", sinks=(crash,))
    directory = RunDir(tmp_path / "run")
    config = directory.config()
    del config["train"]["precision"]
    directory.write_config(config)
    with pytest.raises(UserError, match=r"train\.precision was float32 and is now bfloat16"):
        fit(with_train(FULL_BATCH, precision="bfloat16"), tmp_path / "run")
    assert fit(FULL_BATCH, tmp_path / "run").info["status"] == "finished"


# --- precision -------------------------------------------------------------------------------------------------------


def relative_change(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b, strict=True))


def test_bfloat16_products_change_gradients_by_their_rounding_and_weights_stay_float32(monkeypatch):
    """Outputs round at 2^-9 = .002 per product: outputs move by that order, no more; everything stored is float32."""
    seen = []
    monkeypatch.setattr(
        "toylab.train.batch_loss", lambda name, out, batch: seen.append(out) or batch_loss(name, out, batch)
    )
    half, single = (Trainer(with_train(STREAMING, precision=p)) for p in ("bfloat16", "float32"))
    for _ in range(3):
        half.advance(), single.advance()
    assert all(out.dtype == torch.float32 for out in seen)
    assert 1e-4 < relative_change(seen[:1], seen[1:2]) < 0.03, "the first outputs, from the same weights"
    assert all(t.dtype == torch.float32 for name, t in half.state().items() if not name.startswith("rng"))
    assert half.snapshot().logits.dtype == torch.float32


def test_precision_is_checked():
    with pytest.raises(UserError, match=r"train\.precision=.bf16..*bfloat16"):
        with_train(FULL_BATCH, precision="bf16")
    double = dataclasses.replace(FULL_BATCH.model, dtype="float64")
    with pytest.raises(
        UserError, match=r"train\.precision=bfloat16 is for float32 weights; this model.s are torch\.float64"
    ):
        Trainer(dataclasses.replace(with_train(FULL_BATCH, precision="bfloat16"), model=double))
