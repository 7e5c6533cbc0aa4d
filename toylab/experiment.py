"""An Experiment: everything that decides a run, as one frozen value. A run directory stores exactly this."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from toylab.config import build, convert, to_node
from toylab.data import Task
from toylab.errors import UserError, did_you_mean, one_of, require
from toylab.losses import loss_named
from toylab.optim import OptimSpec

Schedule = tuple[str | int, ...]
PRECISIONS = ("float32", "bfloat16")


def scheduled_steps(schedule: Schedule, total: int) -> list[int]:
    """Sorted steps of a schedule such as ("log:60", "every:20", 5), with 0 and `total`.

    log:N is N log-spaced steps from 1 to total (fewer where they coincide), every:N the multiples of N.
    """
    steps = {0, total}
    for entry in schedule:
        kind, _, n = str(entry).partition(":")
        if re.fullmatch(r"\d+", kind) and not n:
            require(int(kind) <= total, f"checkpoints: step {kind} is beyond the last step {total}")
            steps.add(int(kind))
        elif kind in ("log", "every") and re.fullmatch(r"[1-9]\d*", n):
            if kind == "every":
                steps |= set(range(0, total + 1, int(n)))
            else:
                steps |= {round(total ** (i / max(int(n) - 1, 1))) for i in range(int(n))} if total else set()
        else:
            raise UserError(f'checkpoints: {entry!r} is not "log:N", "every:N" or a step')
    return sorted(steps)


@dataclass(frozen=True)
class Stop:
    """Stop before the last step once `measure` was at least (at most) this at every evaluation for `hold` steps."""

    measure: str
    at_least: float | None = None
    at_most: float | None = None
    hold: int = 0

    def __post_init__(self):
        require(
            (self.at_least is None) != (self.at_most is None), "train.stop needs exactly one of at_least and at_most"
        )

    def met(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= self.at_most  # type: ignore[operator]


@dataclass(frozen=True)
class TrainSpec:
    """steps:       updates; one full batch each, or one batch of `batch_size` (streaming tasks must say it).
    eval_every:  the progress line and the stop condition look at the test set this often.
    checkpoints: see scheduled_steps. keep_states: of every how many checkpoints the optimiser state is kept too, so
                 that `toylab verify` can replay from it (the latest two always are).
    threads:     torch CPU threads (null = torch's choice). Bits are the same for the same number of threads.
    precision:   bfloat16 computes the matrix products of an update in it (torch.autocast); weights, sums over the
                 residual stream, the loss and every measure stay float32. It pays where the processor has bfloat16
                 instructions (lscpu: avx512_bf16, amx_bf16) and on accelerators; without, it is slower.
    """

    steps: int
    checkpoints: Schedule
    eval_every: int = 50
    batch_size: int | None = None
    stop: Stop | None = None
    keep_states: int = 10
    threads: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    tensorboard: bool = False

    def __post_init__(self):
        for name in ("steps", "eval_every", "keep_states"):
            require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)}: at least 1")
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.{name}={value}: at least 1, or null")
        one_of("train.precision", self.precision, PRECISIONS)
        scheduled_steps(self.checkpoints, self.steps)


@dataclass(frozen=True)
class Tracked:
    """A measure and how often training takes it."""

    measure: object
    every: int

    def __post_init__(self):
        require(callable(self.measure), f"measure={self.measure!r} is not a measure; see `toylab list measures`")
        require(self.every >= 1, f"measure every={self.every}: at least 1")


@dataclass(frozen=True)
class Experiment:
    """task, model, measure.*: specs of toylab's own classes. The run's directory is runs/<name>/seed=<seed>."""

    name: str
    seed: int
    task: Any
    model: Any
    optim: OptimSpec
    loss: str
    train: TrainSpec
    measure: dict[str, Tracked] = field(default_factory=dict)

    def __post_init__(self):
        require(
            bool(re.fullmatch(r"[\w.=+,-]+(/[\w.=+,-]+)*", self.name)) and ".." not in self.name,
            f"name={self.name!r}: letters, digits and . = + , - _, with / between folders",
        )
        require(self.seed >= 0, f"seed={self.seed}: 0 or more")
        require(isinstance(self.task, Task), f"task={self.task!r} is not a task; see `toylab list tasks`")
        require(hasattr(self.model, "build"), f"model={self.model!r} is not a model; see `toylab list models`")
        loss_named(self.loss)

    @classmethod
    def from_config(cls, node: dict[str, Any]) -> Experiment:
        """From the plain nested dictionary that Hydra composes or a run stores; raises UserError on anything odd."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in node:
            require(
                key in known,
                f"{key}: no such setting; accepted are {', '.join(known)}{did_you_mean(key, known)}",
            )
        missing = [key for key in known if key not in node and key != "measure"]
        require(not missing, f"the config lacks {', '.join(missing)}")
        tracked = node.get("measure") or {}
        require(isinstance(tracked, dict), f"measure={tracked!r}: expected a group of measures")
        return cls(
            name=convert(node["name"], str, "name"),
            seed=convert(node["seed"], int, "seed"),
            task=build(node["task"], "task"),
            model=build(node["model"], "model"),
            optim=build(node["optim"], "optim", OptimSpec),
            loss=convert(node["loss"], str, "loss"),
            train=build(node["train"], "train", TrainSpec),
            measure={key: build(entry, f"measure.{key}", Tracked) for key, entry in tracked.items()},
        )

    def to_config(self) -> dict[str, Any]:
        """The inverse of from_config."""
        node = {f.name: to_node(getattr(self, f.name)) for f in dataclasses.fields(self)}
        for key in ("optim", "train"):
            node[key].pop("_target_")
            if isinstance(node[key].get("stop"), dict):
                node[key]["stop"].pop("_target_")
        for entry in node["measure"].values():
            entry.pop("_target_")
        return node
