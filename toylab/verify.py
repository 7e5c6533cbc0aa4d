"""Proof that a run directory is what training wrote.

1. Every checkpoint in the manifest is there, whole, of the right step, with the right hash.
2. No scheduled step is missing up to the last one, and no two steps hold the same weights.
3. From randomly chosen saved states, training again to the next checkpoint gives its exact bits. (Members of an
   ensemble are replayed alone. Bits then depend on who else was in the stack, so other bits pass when the network
   computes the same: outputs on all examples within MEMBER_TOLERANCE, root mean square, relative.)
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from toylab.ensemble import Stacked
from toylab.errors import UserError
from toylab.experiment import scheduled_steps
from toylab.rundir import read_lines
from toylab.runs import Run
from toylab.train import Trainer, resumed_threads

MEMBER_TOLERANCE = 1e-3


@dataclass
class Report:
    """problems: empty when everything held. checked: what was looked at, in words."""

    path: Path
    problems: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        verdict = "verified" if self.ok else f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}"
        lines = [f"  ok    {line}" for line in self.checked] + [f"  WRONG {line}" for line in self.problems]
        return "\n".join([f"{self.path}: {verdict}", *lines])


def verify(path: str | Path, replays: int = 2, seed: int = 0, progress: bool = False) -> Report:
    """Check the directory and replay `replays` stretches chosen by `seed`. Raises UserError if it is no run at all."""
    run = Run.open(path)
    report = Report(run.path)
    sound = _check_files(run, report)
    _check_steps(run, report)
    _replay(run, report, sound, replays, seed, progress)
    return report


def _check_files(run: Run, report: Report) -> set[int]:
    sound = set()
    weights: dict[int, int] = {}
    for step in run.steps:
        try:
            data = run.dir.checkpoint_bytes(step, run.manifest)
        except UserError as error:
            report.problems.append(str(error))
            continue
        sound.add(step)
        body = hash(data[8 + int.from_bytes(data[:8], "little") :])  # the tensors without the header
        if body in weights:
            report.problems.append(f"steps {weights[body]} and {step} hold the same weights")
        weights[body] = step
    report.checked.append(f"{len(sound)} of {len(run.steps)} checkpoints match the manifest")
    return sound


def _check_steps(run: Run, report: Report) -> None:
    last = run.steps[-1] if run.steps else 0
    spec = run.experiment.train
    lines = [line["step"] for line in read_lines(run.dir.manifest_path)]
    if len(lines) != len(run.steps):
        report.problems.append(f"{len(lines) - len(run.steps)} checkpoints are listed more than once in the manifest")
    missing = [s for s in scheduled_steps(spec.checkpoints, spec.steps) if s <= last and s not in run.manifest]
    if missing:
        are = "checkpoint is" if len(missing) == 1 else "checkpoints are"
        report.problems.append(f"{len(missing)} scheduled {are} missing, the first at step {missing[0]}")
    else:
        report.checked.append(f"no gap up to step {last}")
    if run.finished and run.info.get("step") != last:
        report.problems.append(f"the run finished at step {run.info.get('step')}, the last checkpoint is {last}")


def _replay(run: Run, report: Report, sound: set[int], replays: int, seed: int, progress: bool) -> None:
    following = dict(zip(run.steps, run.steps[1:], strict=False))
    starts = [s for s in run.dir.state_files() if s in following and following[s] in sound]
    chosen = random.Random(seed).sample(starts, min(replays, len(starts)))
    if not chosen:
        report.checked.append("no saved state to replay from")
    trainer = Trainer(run.experiment)
    with resumed_threads(run.experiment, run.dir):
        for step in tqdm(sorted(chosen), desc="replay", disable=None if progress else True, leave=False):
            try:
                trainer.load_state(step, run.dir.read_state(step)[0])
            except (UserError, RuntimeError) as error:
                report.problems.append(" ".join(str(error).split())[:300])
                continue
            if step in sound:
                saved = run.dir.read_checkpoint(step, run.manifest)
                if not all(torch.equal(saved[k], v) for k, v in trainer.weights().items()):
                    report.problems.append(f"the state at step {step} and its checkpoint hold different weights")
                    continue
            target = following[step]
            advance = Stacked([trainer]).advance if "ensemble" in run.info else trainer.advance
            while trainer.step < target:
                advance()
            saved = run.dir.read_checkpoint(target, run.manifest)
            wrong = [k for k, v in trainer.weights().items() if not torch.equal(saved[k], v)]
            if wrong and "ensemble" in run.info and (apart := _outputs_apart(run, trainer, saved)) <= MEMBER_TOLERANCE:
                report.checked.append(
                    f"replaying {step} -> {target} gives the outputs within {apart:.0e} (ensemble member)"
                )
            elif wrong:
                report.problems.append(f"replaying {step} -> {target} gives other weights ({', '.join(wrong)})")
            else:
                report.checked.append(f"replaying {step} -> {target} gives the same bits")


def _outputs_apart(run: Run, trainer: Trainer, saved: dict[str, torch.Tensor]) -> float:
    """Root mean square difference of the outputs of trainer and saved weights, relative to the outputs themselves."""
    replayed = trainer.snapshot().logits
    trainer.model.load_state_dict(saved)
    expected = trainer.snapshot().logits
    return ((replayed - expected).norm() / expected.norm()).item()
