"""train_ensemble(): many members of one experiment as one stacked tensor program.

1. Every member is an ordinary Trainer with its own generators: it starts from its solo twin's exact bits.
2. Stack them: one row of weights and optimiser state per member; the trainers' tensors become views of their rows.
3. Advance: torch.func.vmap over the gradient of the member loss, then one optimiser update of all rows. A model whose
   forward pass takes a leading member axis as it is (`broadcasts`) is differentiated without vmap, which costs more
   than the arithmetic of a small one, or by its own formula (`squared_error`); a task that can draw for many members at
   once (`sample_stack`) does.
4. Each member is evaluated, saved and finished by its own Session, as in train.py; finished and diverged rows leave.

How close to the solo twin. Members compute what their twins compute, but a batched matrix product may add floats in
another order, padding adds zeros to sums, and the optimiser rounds elsewhere. Largest difference of a weight, relative
to the largest weight of its tensor, over three members with different lr and weight decay (p = 31 transformer and MLP,
toy superposition), after 1, 10, 100 steps: float64 2e-16, 1e-15, 6e-13 (losses 4e-16); float32 1e-7, 3e-6, 3e-2 in the
worst case and 1e-5 in most (losses 1e-9 after 10 steps, up to 7e-4 after 100: AdamW divides gradients by their own
size, so rounding grows once they are small). Weights that the function ignores, such as key biases, have a gradient
of nothing but rounding and go their own way at once; losses do not feel it. On one thread and without padding, who
else is in the stack has changed no bit.

Came from: train.py. It pays for small models, and on accelerators; tests/bench/bench_ensemble.py measures it.
Letters: row = member.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from tqdm import tqdm

from toylab.config import flatten
from toylab.data import Batch
from toylab.durable import Interrupted, signals_caught
from toylab.errors import UserError, require
from toylab.experiment import Experiment
from toylab.losses import batch_loss, loss_named
from toylab.optim import OptimSpec
from toylab.rundir import RunDir, provenance
from toylab.runs import RunGroup
from toylab.train import Diverged, Session, Trainer, begin, in_precision, resumed_threads

SLICE = 2**20  # numbers: inputs of this many stay in the caches through a forward and backward pass

# What changes only the numbers of a member, never the program that all of them share.
FREE = (
    "name", "seed", "optim.lr", "optim.weight_decay", "optim.betas", "optim.eps",
    "model.init", "model.init_scale", "model.init_std",
)  # fmt: skip


def train_ensemble(
    experiments: Sequence[Experiment],
    paths: Sequence[str | Path],
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> RunGroup:
    """Train every experiment into its path, all as one program, and return the runs.

    Members may differ in seed, name, learning rate, weight decay, betas, eps, initialisation (scheme and scale), and
    in every task setting that keeps the shapes, the train fraction among them (shorter training sets are padded with
    weight 0; each member's loss is averaged over its own count). A member that meets the stop condition, or whose
    loss is no longer finite (status "diverged" in its run.json), leaves; the others go on. Finished and diverged runs
    found at their paths are left alone, unless overwrite. Interrupted ones go on from their latest common state;
    members that are behind, such as newly added ones, go first until they meet the rest.

    Raises UserError naming the settings that differ and may not, and as train() does. Raises Interrupted after SIGINT
    or SIGTERM, with every member saved.
    """
    experiments, directories = list(experiments), [RunDir(path) for path in paths]
    _check_members(experiments, directories)
    with ExitStack() as stack:
        for directory in directories:
            stack.enter_context(directory.lock())
        stack.enter_context(resumed_threads(experiments[0], directories[0], overwrite))
        received = stack.enter_context(signals_caught())
        sessions = _sessions(experiments, directories, overwrite)
        try:
            _loop(sessions, received, progress)
        finally:
            for session in sessions:
                session.close()
    return RunGroup([directory.path for directory in directories])


def _check_members(experiments: list[Experiment], directories: list[RunDir]) -> None:
    require(len(experiments) > 0, "an ensemble needs at least one experiment")
    require(
        len(experiments) == len(directories), f"{len(experiments)} experiments for {len(directories)} paths; one each"
    )
    seen = [directory.path.resolve() for directory in directories]
    twice = next((path for path in seen if seen.count(path) > 1), None)
    require(twice is None, f"two members would be written to {twice}; give them different names")
    for key, values in differing(experiments).items():
        if key not in FREE and (key == "task._target_" or not key.startswith("task.")):
            raise UserError(
                f"{key} differs between members ({_shown(values)}), which makes them different programs; an ensemble "
                f"may differ in {', '.join(FREE)} and in task settings that keep the shapes: use a sweep (-m) instead"
            )


def differing(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """The settings in which the experiments differ, by dotted name -> the value of each."""
    flat = [flatten(e.to_config()) for e in experiments]
    columns = {key: [f.get(key) for f in flat] for key in dict.fromkeys(key for f in flat for key in f)}
    return {key: column for key, column in columns.items() if any(value != column[0] for value in column)}


def _shown(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _sessions(experiments: list[Experiment], directories: list[RunDir], overwrite: bool) -> list[Session]:
    """A session for every member that has steps left, at the state it goes on from."""
    status = [None if overwrite or not d.exists() else d.info()["status"] for d in directories]
    todo = [i for i, s in enumerate(status) if s not in ("finished", "diverged")]
    saved = [set(directories[i].state_files()) for i in todo if status[i] is not None]
    common = set.intersection(*[steps for steps in saved if steps]) if any(saved) else set()
    started = [begin(experiments[i], directories[i], overwrite, max(common, default=None)) for i in todo]
    _check_shapes([trainer for trainer, _ in started])
    sessions = []
    for i, (trainer, record) in zip(todo, started, strict=True):
        e, directory = experiments[i], directories[i]
        directory.write_info(
            status="running", **provenance(), steps=e.train.steps, ensemble={"member": i, "members": len(experiments)}
        )
        sessions.append(Session(e, directory, trainer, record, progress=False, sinks=()))
    return sessions


def _loop(sessions: list[Session], received: list[int], progress: bool) -> None:
    live, stack = list(sessions), None
    if not live:
        return
    spec, first = live[0].experiment.train, min(s.trainer.step for s in live)
    disable = None if progress else True
    with tqdm(total=spec.steps, initial=first, desc=f"{len(live)} members", unit="step", disable=disable) as bar:
        while live:
            behind = min(s.trainer.step for s in live)
            active = [s for s in live if s.trainer.step == behind]
            left = [s for s in active if _leaves(s)]
            live, active = ([s for s in group if s not in left] for group in (live, active))
            if received and live:
                _suspend(live, received[0])
            if not active:
                continue
            if stack is None or stack.trainers != [s.trainer for s in active]:
                stack = Stacked([s.trainer for s in active])
            start = time.perf_counter()
            losses = stack.advance()
            share = (time.perf_counter() - start) / len(active)
            for session, loss in zip(active, losses, strict=True):
                session.seconds["train"] += share
                if not _took(session, loss):
                    live.remove(session)
            bar.set_postfix(members=len(live), refresh=False)
            bar.update(behind + 1 - bar.n)


def _leaves(session: Session) -> bool:
    """Do what is due for this member; True when it has finished or diverged."""
    try:
        return session.visit()
    except Diverged:
        return True


def _took(session: Session, loss: float) -> bool:
    """False when the update diverged, which the session has then recorded."""
    try:
        session.took(loss)
    except Diverged:
        return False
    return True


def seconds_per_step(experiments: Sequence[Experiment], steps: int = 3) -> float:
    """Of all members together, measured on throwaway trainers, for the estimate that is printed before a run."""
    stack = Stacked([Trainer(e) for e in experiments])
    stack.advance()
    start = time.perf_counter()
    for _ in range(steps):
        stack.advance()
    return (time.perf_counter() - start) / steps


def _suspend(live: list[Session], number: int) -> None:
    for session in live:
        session.suspend()
    raise Interrupted(
        f"stopped by {signal.Signals(number).name} at step {min(s.trainer.step for s in live):,}; {len(live)} members "
        f"are saved, {live[0].directory.path} and so on: give the same command again to go on",
        number,
    )


# --- the stacked program ---------------------------------------------------------------------------------------------


class Stacked:
    """Trainers of one shape at one step, as a matrix of weights [member, parameters] and its optimiser's state.

    The trainers' own parameters and optimiser tensors become views of their rows, so saving, evaluating and loading
    them needs nothing special. Known exactly: a stack of one equals its solo Trainer up to rounding.
    """

    def __init__(self, trainers: list[Trainer]):
        self.trainers, first = trainers, trainers[0]
        self.experiment, self.model, self.read = first.experiment, first.model, first.split.all.read
        self.shapes = {name: p.shape for name, p in first.model.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.weights = torch.stack([_row(list(t.model.parameters())) for t in trainers])
        self.optimiser = StackedOptimiser([t.experiment.optim for t in trainers], self.weights)
        self.optimiser.share([t.optimiser for t in trainers], self.sizes)
        for i, trainer in enumerate(trainers):
            for p, row in zip(trainer.model.parameters(), self.weights[i].split(self.sizes), strict=True):
                p.data = row.view(p.shape)
        self._full = None if first._full is None else stack_batches([t.next_batch() for t in trainers])
        streams = first.split.train is None
        self._draws_together = streams and hasattr(first.experiment.task, "sample_stack")
        self._broadcasts = getattr(first.model, "broadcasts", False)
        exact = first.experiment.loss == "mse" and first.experiment.train.precision == "float32"
        self._closed_form = exact and hasattr(first.model, "squared_error")
        if self._broadcasts:
            inputs = first.split.all[:1].inputs
            batch_loss(self.experiment.loss, first.model(inputs), first.split.all[:1])  # refuses a loss that cannot be
            self._slice = max(1, SLICE // (inputs.numel() * self._batch_rows()))
        self._gradient = vmap(grad_and_value(self._member_loss), in_dims=(0, 0, 0, 0))
        self._gradient_unweighted = vmap(grad_and_value(self._member_loss), in_dims=(0, 0, 0, None))

    def _batch_rows(self) -> int:
        return self._full.inputs.shape[1] if self._full is not None else self.experiment.train.batch_size or 1

    def _member_loss(self, weights: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of one member, from its row of weights [parameters]."""
        parts = weights.split(self.sizes)
        params = {name: x.view(shape) for (name, shape), x in zip(self.shapes.items(), parts, strict=True)}
        batch = Batch(inputs, targets, weight, self.read)
        outputs = in_precision(
            self.experiment.train, lambda: functional_call(self.model, params, (inputs,), {"read": self.read})
        )
        return batch_loss(self.experiment.loss, outputs, batch)

    def advance(self) -> list[float]:
        """One update of every member. Returns their losses before it."""
        grads, losses = self._gradient_by_slices() if self._broadcasts else self._gradient_by_vmap()
        step = self.trainers[0].step
        self.optimiser.update(grads, step, self.experiment.optim.lr_factor(step, self.experiment.train.steps))
        for trainer in self.trainers:
            trainer.step += 1
        return losses.tolist()

    def _next_batch(self, members: slice = slice(None)) -> Batch:
        """[member, rows, ...]: what each trainer's next_batch() gives."""
        if self._full is not None:
            return self._full[members]
        trainers = self.trainers[members]
        if not self._draws_together:
            return stack_batches([t.next_batch() for t in trainers])
        tasks, size = [t.experiment.task for t in trainers], self.experiment.train.batch_size
        return tasks[0].sample_stack(tasks, size, [t.batches for t in trainers]).to(self.experiment.train.device)

    def _gradient_by_vmap(self) -> tuple[Tensor, Tensor]:
        """(gradients [member, parameters], losses [member])"""
        batch = self._next_batch()
        gradient = self._gradient_unweighted if batch.weight is None else self._gradient
        return gradient(self.weights, batch.inputs, batch.targets, batch.weight)

    def _gradient_by_slices(self) -> tuple[Tensor, Tensor]:
        """The same, a few members at a time. The sum of their losses has the gradient of each in its own row."""
        found = [self._slice_gradient(slice(i, i + self._slice)) for i in range(0, len(self.trainers), self._slice)]
        return torch.cat([grads for grads, _ in found]), torch.cat([losses for _, losses in found])

    def _slice_gradient(self, members: slice) -> tuple[Tensor, Tensor]:
        batch, rows = self._next_batch(members), self.weights[members]
        parts = [x.view(-1, *shape) for x, shape in zip(rows.split(self.sizes, 1), self.shapes.values(), strict=True)]
        if self._closed_form and (weight := feature_weights(batch)) is not None:
            params = dict(zip(self.shapes, parts, strict=True))
            found, losses = self.model.squared_error(params, batch.inputs, batch.targets, weight.to(rows))
            return torch.cat([found[name].flatten(1) for name in self.shapes], 1), losses
        leaves = [x.detach().requires_grad_() for x in parts]
        params = dict(zip(self.shapes, leaves, strict=True))
        outputs = in_precision(self.experiment.train, lambda: functional_call(self.model, params, (batch.inputs,)))
        losses = member_losses(self.experiment.loss, outputs, batch)
        grads = torch.autograd.grad(losses.sum(), leaves)
        return torch.cat([g.flatten(1) for g in grads], 1), losses.detach()


def feature_weights(batch: Batch) -> Float[Tensor, "member n_features"] | None:
    """What each squared error counts in its member's mean, where that is the same for all rows of it; else None."""
    weight = batch.weight
    if weight is None:
        members, rows, n = batch.targets.shape
        return torch.full((members, n), 1 / (rows * n), dtype=torch.double)
    if weight.stride(1) != 0:
        return None
    one = weight[:, 0].double()
    return one / (weight.shape[1] * (one > 0).sum(1, keepdim=True))


def member_losses(name: str, outputs: Tensor, batch: Batch) -> Tensor:
    """[member]: batch_loss of each member's rows of outputs [member, rows, ...]."""
    if name == "mse" and outputs.dtype == batch.targets.dtype:
        values = F.mse_loss(outputs, batch.targets, reduction="none")  # the same, in one pass each way
    else:
        values = loss_named(name)(outputs, batch.targets)
    weight = batch.weight
    if weight is None:
        return values.flatten(1).mean(1)
    if weight.stride(1) == 0:  # one weight for all rows, so that these can be averaged first
        values, weight = values.mean(1, keepdim=True), weight[:, :1]
    return (weight * values).flatten(1).sum(1) / (weight > 0).flatten(1).sum(1)


def _row(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def stack_batches(batches: list[Batch]) -> Batch:
    """[member, rows, ...]. Shorter batches repeat their first row with weight 0, so every mean is over its own rows."""
    sizes = [len(b) for b in batches]
    longest, first = max(sizes), batches[0]
    if min(sizes) == longest:
        weight = None if first.weight is None else torch.stack([b.weight for b in batches])  # type: ignore[misc]
    else:
        weight = torch.stack([_padded(_weight(b), longest, 0.0) for b in batches])
    inputs, targets = (torch.stack([_padded(getattr(b, n), longest) for b in batches]) for n in ("inputs", "targets"))
    return Batch(inputs, targets, weight, first.read, first.example)


def _weight(batch: Batch) -> Tensor:
    return torch.ones(batch.targets.shape, device=batch.targets.device) if batch.weight is None else batch.weight


def _padded(x: Tensor, rows: int, factor: float = 1.0) -> Tensor:
    """x with its first row, times factor, repeated at the end up to this many rows."""
    missing = rows - len(x)
    return x if not missing else torch.cat([x, (x[:1] * factor).to(x.dtype).expand(missing, *x.shape[1:])])


def _check_shapes(trainers: list[Trainer]) -> None:
    """Refuse members whose tensors do not stack, naming the task settings in which they differ."""

    def shapes(trainer: Trainer) -> dict[str, Any]:
        batch, example = trainer.split.all, trainer.model
        return {
            "parameters": [(name, tuple(p.shape), p.dtype) for name, p in example.named_parameters()],
            "inputs": (batch.inputs.shape[1:], batch.inputs.dtype),
            "targets": (batch.targets.shape[1:], batch.targets.dtype, batch.read, batch.weight is None),
            "operands": getattr(trainer.experiment.task, "operand_positions", None),
            "streams": trainer.split.train is None,
        }

    for trainer in trainers[1:]:
        one, other = shapes(trainers[0]), shapes(trainer)
        wrong = [key for key in one if one[key] != other[key]]
        if wrong:
            task = differing([trainers[0].experiment, trainer.experiment])
            named = {k: v for k, v in task.items() if k.startswith("task.")}
            settings = "; ".join(f"{key} ({_shown(values)})" for key, values in named.items())
            raise UserError(
                f"members whose {' and '.join(wrong)} have different shapes cannot be stacked; they differ in "
                f"{settings}: keep those equal, or use a sweep (-m) instead"
            )


# --- the optimisers --------------------------------------------------------------------------------------------------


class StackedOptimiser:
    """torch's AdamW, Adam and SGD on the rows of a matrix, each row with its own hyperparameters.

    Adam (Kingma and Ba 2015, algorithm 1), t counted from 1, every line for all rows at once:
        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        theta -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
    AdamW first shrinks theta by 1 - lr * weight_decay (Loshchilov and Hutter 2019); Adam and SGD add
    weight_decay * theta to g. SGD: buffer = momentum * buffer + g; theta -= lr * buffer.
    """

    def __init__(self, specs: list[OptimSpec], weights: Tensor):
        self.kind, self.momentum, self.weights = specs[0].kind, specs[0].momentum, weights
        slots = {"sgd": ("momentum_buffer",) if self.momentum else ()}.get(self.kind, ("exp_avg", "exp_avg_sq"))
        self.slots = {name: torch.zeros_like(weights) for name in slots}

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=weights.device)[:, None]

        self.lr, self.weight_decay = column([s.lr for s in specs]), column([s.weight_decay for s in specs])
        self.beta1, self.beta2 = column([s.betas[0] for s in specs]), column([s.betas[1] for s in specs])
        self.eps = column([s.eps for s in specs]).to(weights.dtype)
        self.counts: list[Tensor] = []  # torch's own count of steps, one tensor per member and parameter

    def share(self, optimisers: list[torch.optim.Optimizer], sizes: list[int]) -> None:
        """Take over the state of each row's torch optimiser (none before its first step), then view it in the row"""
        for i, optimiser in enumerate(optimisers):
            rows = {name: slot[i].split(sizes) for name, slot in self.slots.items()}
            for j, p in enumerate(optimiser.param_groups[0]["params"]):
                old, views = optimiser.state[p], {name: row[j].view(p.shape) for name, row in rows.items()}
                for name, view in views.items():
                    if name in old:
                        view.copy_(old[name])
                if self.kind != "sgd":
                    views["step"] = old.get("step", torch.zeros((), device=p.device))
                    self.counts.append(views["step"])
                optimiser.state[p] = views

    @torch.no_grad()
    def update(self, grads: Tensor, step: int, factor: float) -> None:
        """One step, from gradients [member, parameters]; `step` updates came before, lr is multiplied by factor."""
        theta, lr = self.weights, self.lr * factor
        if self.kind == "adamw":
            theta.mul_(self._cast(1 - lr * self.weight_decay))
        else:
            grads = grads + self._cast(self.weight_decay) * theta
        if self.kind == "sgd":
            if self.momentum:
                grads = self.slots["momentum_buffer"].mul_(self.momentum).add_(grads)
            theta.sub_(self._cast(lr) * grads)
            return
        m, v, t = self.slots["exp_avg"], self.slots["exp_avg_sq"], step + 1
        m.lerp_(grads, self._cast(1 - self.beta1))
        v.mul_(self._cast(self.beta2)).add_(self._cast(1 - self.beta2) * grads * grads)
        root = (v.sqrt() / self._cast((1 - self.beta2**t).sqrt())).add_(self.eps)
        theta.add_(self._cast(-lr / (1 - self.beta1**t)) * m / root)
        torch._foreach_add_(self.counts, 1.0)

    def _cast(self, column: Tensor) -> Tensor:
        return column.to(self.weights.dtype)
