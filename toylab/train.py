"""train(): one loop, read top to bottom. Trainer: the state it advances, which can be saved, loaded and replayed.

1. Build task, split, model, optimiser from an Experiment, each from its own named generator.
2. At every step: evaluate if due, save a checkpoint if due, stop if the condition holds, then take one update.
3. Killed anywhere, the same call goes on from the last state and ends with the same bits.

Came from: models/transformer.py. Read next: runs.py, then interp/fourier.py.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from toylab.config import flatten
from toylab.data import Batch, Split, generator
from toylab.durable import Interrupted, signals_caught
from toylab.errors import UserError, one_of, require
from toylab.experiment import Experiment, TrainSpec, scheduled_steps
from toylab.losses import batch_loss
from toylab.measures.basic import Loss
from toylab.rundir import RunDir, provenance
from toylab.runs import Run
from toylab.snapshot import Labelled, Snapshot

Sink = Callable[[int, dict[str, float]], None]


class Diverged(UserError):
    """The loss or the weights are no longer finite; what was saved before is whole."""


class Fresh:
    """Batches of a streaming task, in the order in which the generator gives them.

    ahead: the next one is drawn by a thread while this one is in use. It pays where the step runs on another device; on
    a CPU both want the same cores. Its state is the generator's before the batch that comes next: what was drawn and
    not used is drawn again, so a state does not tell whether anything was drawn ahead.
    """

    def __init__(self, draw: Callable[[torch.Generator], Batch], generator: torch.Generator, ahead: bool):
        self.draw, self.generator = draw, generator
        self.pool = ThreadPoolExecutor(1) if ahead else None
        self.waiting: tuple[Tensor, Future[Batch]] | None = None

    def next(self) -> Batch:
        batch = self.waiting[1].result() if self.waiting else self.draw(self.generator)
        if self.pool:
            self.waiting = self.generator.get_state(), self.pool.submit(self.draw, self.generator)
        return batch

    def get_state(self) -> Tensor:
        return self.waiting[0] if self.waiting else self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        if self.waiting:
            wait([self.waiting[1]])
        self.waiting = None
        self.generator.set_state(state)


class Trainer:
    """Model, optimiser and generators of one experiment at one step."""

    def __init__(self, experiment: Experiment):
        e = experiment
        self.experiment = e
        self.split = _on_device(e.task.split(e.seed), e.train.device)
        self.model = e.model.build(e.task, generator(e.seed, "init")).to(e.train.device)
        dtypes = {p.dtype for p in self.model.parameters()}
        require(
            e.train.precision == "float32" or dtypes == {torch.float32},
            f"train.precision={e.train.precision} is for float32 weights; this model's are "
            f"{', '.join(sorted(map(str, dtypes)))}",
        )
        self.optimiser = e.optim.build(self.model)
        self.batches = generator(e.seed, "batch")
        self.fresh = Fresh(lambda g: e.task.sample(e.train.batch_size, g), self.batches, e.train.device != "cpu")
        self.step = 0
        require(
            self.split.train is not None or e.train.batch_size is not None,
            f"{type(e.task).__name__} streams its training data: set train.batch_size",
        )
        n_train = None if self.split.train is None else len(self.split.train)
        require(
            n_train is None or e.train.batch_size is None or e.train.batch_size <= n_train,
            f"train.batch_size={e.train.batch_size} exceeds the {n_train} training rows; null means all of them",
        )
        self._full = self.split.train_batch if n_train is not None and e.train.batch_size is None else None

    def next_batch(self) -> Batch:
        """The whole training set, a random subset of it, or fresh examples."""
        if self._full is not None:
            return self._full
        size, split = self.experiment.train.batch_size, self.split
        if split.train is None:
            return self.fresh.next().to(self.experiment.train.device)
        return split.all[split.train[torch.randperm(len(split.train), generator=self.batches)[:size]]]

    def advance(self) -> float:
        """One update. Returns the loss before it."""
        e, batch = self.experiment, self.next_batch()
        factor = e.optim.lr_factor(self.step, e.train.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = e.optim.lr * factor
        outputs = in_precision(e.train, lambda: self.model(batch.inputs, read=batch.read))
        loss = batch_loss(e.loss, outputs, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def snapshot(self) -> Snapshot:
        """The live model as measures see it; it expires at the next update."""
        return Snapshot(self.step, self.model, self.experiment.task, self.split, self.experiment.loss)

    def state(self) -> dict[str, Tensor]:
        """Everything the next update depends on, as tensors with flat names."""
        names = [name for name, _ in self.model.named_parameters()]
        optim = self.optimiser.state_dict()["state"]
        return (
            {f"model/{name}": t for name, t in self.weights().items()}
            | {f"optim/{names[i]}/{k}": torch.as_tensor(t) for i, entry in optim.items() for k, t in entry.items()
               if t is not None}
            | {"rng/batch": self.fresh.get_state()}
        )  # fmt: skip

    def load_state(self, step: int, tensors: dict[str, Tensor]) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        model = {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}
        self.model.load_state_dict(model)
        optim: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optim/"):
                _, name, slot = key.split("/")
                optim.setdefault(names.index(name), {})[slot] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": optim, "param_groups": groups})
        self.fresh.set_state(tensors["rng/batch"])
        self.step = step


def in_precision(spec: TrainSpec, forward: Callable[[], Tensor]) -> Tensor:
    """forward() with its matrix products in the precision that training asks for; the result is never bfloat16."""
    if spec.precision == "float32":
        return forward()
    with torch.autocast(torch.device(spec.device).type, torch.bfloat16):
        outputs = forward()
    return outputs.float()


def train(
    experiment: Experiment,
    path: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    sinks: tuple[Sink, ...] = (),
) -> Run:
    """Train into the directory `path` and return its Run; an interrupted run there goes on.

    Raises UserError when the directory holds a finished run (unless overwrite), a run of other settings, or is being
    written by somebody else; when the loss is no longer finite; when the disk is full. Raises Interrupted after
    SIGINT or SIGTERM. In every case what was saved stays whole.
    """
    directory = RunDir(path)
    with directory.lock(), resumed_threads(experiment, directory, overwrite), signals_caught() as received:
        trainer, record = begin(experiment, directory, overwrite)
        session = Session(experiment, directory, trainer, record, progress, sinks)
        directory.write_info(status="running", **provenance(), steps=experiment.train.steps)
        try:
            session.loop(received)
        finally:
            session.close()
    return Run.open(path)


class Session:
    """The loop and what it shares: files, progress, the stop condition, the clock."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDir,
        trainer: Trainer,
        record: dict[str, Any],
        progress: bool,
        sinks: tuple[Sink, ...],
    ):
        self.experiment, self.directory, self.trainer = experiment, directory, trainer
        spec = experiment.train
        self.checkpoints = scheduled_steps(spec.checkpoints, spec.steps)
        self.kept = set(self.checkpoints[:: spec.keep_states])
        self.held_since: int | None = record.get("held_since")
        self.seconds: dict[str, float] = record.get("seconds", {"train": 0.0, "measure": 0.0, "save": 0.0})
        self.sinks = (*sinks, *([tensorboard(directory.path)] if spec.tensorboard else []))
        self.loss = math.nan
        self.latest: dict[str, float] = {}
        self.bar = tqdm(
            total=spec.steps,
            initial=trainer.step,
            desc=experiment.name,
            unit="step",
            disable=None if progress else True,
            mininterval=0.5,
        )

    def loop(self, received: list[int]) -> None:
        while not self.visit():
            if received:
                self.stop_early(received[0])
            with self.clock("train"):
                loss = self.trainer.advance()
            self.took(loss)

    def visit(self) -> bool:
        """Whatever is due at this step: evaluation, measures, checkpoint. True when the run is finished."""
        step = self.trainer.step
        done = step == self.experiment.train.steps
        if step % self.experiment.train.eval_every == 0 or done:
            done = self.evaluate() or done
        self.measure()
        if step in self.checkpoints or done:
            self.save(done)
        if done:
            self.finish()
        return done

    def took(self, loss: float) -> None:
        """One update was taken, from weights with this loss. Raises Diverged unless it is finite."""
        self.loss = loss
        if not math.isfinite(loss):
            self.diverged(self.trainer.step - 1)
        self.bar.update()

    def evaluate(self) -> bool:
        """Losses and accuracies on the fixed splits; True when the stop condition has held long enough."""
        with self.clock("measure"):
            self.snap = self.trainer.snapshot()
            values = Loss()(self.snap)
        self.latest = values
        self.log(values)
        shown = {k: f"{values[k]:.3g}" for k in ("train_loss", "test_loss", "test_accuracy") if k in values}
        self.bar.set_postfix({k.replace("_", " "): v for k, v in shown.items()})
        stop = self.experiment.train.stop
        if stop is None:
            return False
        if not stop.met(values[stop.measure]):
            self.held_since = None
            return False
        if self.held_since is None:
            self.held_since = self.trainer.step
        return self.trainer.step - self.held_since >= stop.hold

    def measure(self) -> None:
        """The experiment's measures that are due. Numbers go to the log; arrays are for run.map."""
        step = self.trainer.step
        due: list[Any] = [tracked.measure for tracked in self.experiment.measure.values() if step % tracked.every == 0]
        if not due:
            return
        with self.clock("measure"):
            snap = getattr(self, "snap", None)
            if snap is None or snap.step != step:
                self.snap = snap = self.trainer.snapshot()
            values = {k: v for m in due for k, v in m(snap).items() if not isinstance(v, Labelled | Tensor)}
        self.log(values)

    def log(self, values: dict[str, float]) -> None:
        self.directory.append_metrics(self.trainer.step, values)
        for sink in self.sinks:
            sink(self.trainer.step, values)

    def save(self, done: bool) -> None:
        step = self.trainer.step
        with self.clock("save"):
            weights = self.trainer.weights()
            if not all(torch.isfinite(t).all() for t in weights.values()):
                self.diverged(step)
            if step not in self.directory.manifest():
                self.directory.write_checkpoint(step, weights)
            self.save_state()
            if done:
                self.kept.add(step)
            self.directory.prune_states(self.kept)

    def save_state(self) -> None:
        record = {"held_since": self.held_since, "seconds": self.seconds}
        self.directory.write_state(self.trainer.step, self.trainer.state(), record)

    def finish(self) -> None:
        why = "all steps taken" if self.trainer.step == self.experiment.train.steps else "stop condition held"
        self.directory.write_info(
            status="finished",
            step=self.trainer.step,
            reason=why,
            seconds={k: round(v, 3) for k, v in self.seconds.items()},
            final=self.latest,
        )

    def suspend(self) -> None:
        """Save, and record that the run can go on from here."""
        self.save_state()
        self.directory.write_info(status="interrupted", step=self.trainer.step)

    def stop_early(self, number: int) -> None:
        """Asked to stop: save, record, and say how to go on."""
        self.suspend()
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} at step {self.trainer.step:,} of "
            f"{self.experiment.train.steps:,}; {self.directory.path} is saved: give the same command again to go on",
            number,
        )

    def diverged(self, step: int) -> None:
        good = max(self.directory.state_files(), default=None)
        self.directory.write_info(status="diverged", step=step)
        raise Diverged(
            f"the loss ({self.loss:g}) or a weight is not finite at step {step:,}; the last good state is step {good} "
            f"in {self.directory.states}: try a smaller optim.lr, loss=cross_entropy (float64), or another name"
        )

    @contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - start

    def close(self) -> None:
        self.bar.close()


def begin(
    experiment: Experiment, directory: RunDir, overwrite: bool, latest: int | None = None
) -> tuple[Trainer, dict[str, Any]]:
    """A fresh trainer in an empty directory, or the trainer at the last state of an unfinished run (up to `latest`)."""
    if overwrite or not directory.exists():
        trainer = Trainer(experiment)  # before anything is touched: a config that cannot be built costs no run
        _check_stop(experiment, trainer)
        _clear(directory)
        directory.write_config(experiment.to_config())
        directory.rewind(-1)
        return trainer, {}
    info = directory.info()
    _same_settings(experiment, directory)
    if info["status"] == "finished":
        raise UserError(
            f"{directory.path} is finished ({info['step']} steps); choose another name or pass overwrite=true"
        )
    if info["status"] == "diverged":
        raise UserError(
            f"{directory.path} diverged at step {info['step']}; change the settings under another name, "
            "or start over with overwrite=true"
        )
    trainer = Trainer(experiment)
    problems = []
    for step in sorted(directory.state_files(), reverse=True):
        if latest is not None and step > latest:
            continue
        try:
            tensors, record = directory.read_state(step)
        except UserError as error:
            problems.append(str(error))
            continue
        directory.rewind(step)
        trainer.load_state(step, tensors)
        return trainer, record
    if problems:
        raise UserError(f"no state of {directory.path} can be read: {problems[0]}; start over with overwrite=true")
    directory.rewind(-1)
    return trainer, {}


def _check_stop(experiment: Experiment, trainer: Trainer) -> None:
    """Refuse a stop condition on something that no evaluation gives."""
    if experiment.train.stop is not None:
        one_of("train.stop.measure", experiment.train.stop.measure, Loss()(trainer.snapshot()))


def _clear(directory: RunDir) -> None:
    """Remove a run's own files, and nothing else that may lie beside them."""
    import shutil

    for name in (
        "run.json",
        "config.yaml",
        "manifest.jsonl",
        "metrics.jsonl",
        "stamps.jsonl",
    ):  # run.json first: no run from here on
        (directory.path / name).unlink(missing_ok=True)
    for name in ("checkpoints", "states", "derived"):
        shutil.rmtree(directory.path / name, ignore_errors=True)


def _same_settings(experiment: Experiment, directory: RunDir) -> None:
    """Refuse to go on under other settings than the run was started with (threads and sinks may change)."""
    free = {"train.threads", "train.tensorboard"}
    stored = Experiment.from_config(directory.config())  # what it does not name, as in older runs, is at its default
    old, new = flatten(stored.to_config()), flatten(experiment.to_config())
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in free]
    if changed:
        shown = "; ".join(f"{k} was {old.get(k)} and is now {new.get(k)}" for k in changed[:3])
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
            f"{directory.path} was started with other settings: {shown}{more}; "
            "choose another name=..., or pass overwrite=true to start over"
        )


@contextmanager
def resumed_threads(experiment: Experiment, directory: RunDir, fresh: bool = False) -> Iterator[None]:
    """The stated number of torch threads, or on resuming the number the run was started with; restored after."""
    before = torch.get_num_threads()
    wanted = experiment.train.threads
    if wanted is None and directory.exists() and not fresh:
        wanted = directory.info().get("threads")
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_device(split: Split, device: str) -> Split:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device={device!r} cannot be used here ({reason}); cpu always can") from None
    if device == "cpu":
        return split
    train = None if split.train is None else split.train.to(device)
    return Split(split.all.to(device), train, split.test.to(device))


def tensorboard(path: Path) -> Sink:
    """A sink that writes TensorBoard events beside the metrics."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError('train.tensorboard=true needs TensorBoard: pip install "toylab[track]"') from None
    writer = SummaryWriter(str(path / "tensorboard"))

    def sink(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return sink


def seconds_per_step(experiment: Experiment, steps: int = 4) -> float:
    """Measured on a throwaway trainer, for the estimate that is printed before a run."""
    trainer = Trainer(experiment)
    trainer.advance()
    start = time.perf_counter()
    for _ in range(steps):
        trainer.advance()
    return (time.perf_counter() - start) / steps
