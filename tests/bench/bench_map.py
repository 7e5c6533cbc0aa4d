"""run.map over every checkpoint against a loop by hand that loads each file and calls the function.

    python tests/bench/bench_map.py [--checkpoints 200] [--forward 40]

A run of the p = 113 model is made in a temporary directory: one checkpoint per step, weights as good as any for
timing. The loop by hand opens each safetensors file, fills one model, calls the function and keeps the numbers; run.map
does the same and also checks hashes, labels the result and saves it. Both results are compared. WeightNorms is given
many checkpoints at once (`stack`); Loss needs a forward pass over all 12,769 pairs.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file

from toylab.data import generator
from toylab.experiment import Experiment, TrainSpec
from toylab.measures.basic import Loss, WeightNorms
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.rundir import RunDir
from toylab.runs import Run
from toylab.snapshot import Snapshot
from toylab.tasks.modular import ModularArithmetic
from toylab.train import Trainer


def make_run(path: Path, checkpoints: int) -> Run:
    """A finished run whose steps differ by one random push each; training them would measure something else."""
    spec = TrainSpec(steps=checkpoints - 1, checkpoints=("every:1",))
    experiment = Experiment(
        "bench", 0, ModularArithmetic(113, "x+y", 0.3), TransformerSpec(1, 4, 128, 32, 512),
        OptimSpec("adamw", 1e-6, 0.0), "cross_entropy", spec,
    )  # fmt: skip
    trainer, directory, g = Trainer(experiment), RunDir(path), generator(0, "bench")
    directory.write_info(status="finished", step=checkpoints - 1, steps=checkpoints - 1)
    directory.write_config(experiment.to_config())
    for step in range(checkpoints):
        directory.write_checkpoint(step, trainer.weights())
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.add_(1e-3 * torch.randn(p.shape, generator=g))
    return Run.open(path)


def by_hand(run: Run, steps: list[int], tool) -> dict[str, np.ndarray]:
    task, split = run.task, run.task.split(run.experiment.seed)
    model = run.experiment.model.build(task, torch.Generator())
    rows: dict[str, list] = {}
    for step in steps:
        model.load_state_dict(load_file(run.path / "checkpoints" / f"step_{step:08d}.safetensors"))
        for name, value in tool(Snapshot(step, model, task, split, run.experiment.loss)).items():
            rows.setdefault(name, []).append(np.asarray(getattr(value, "values", value)))
    return {name: np.stack(values) for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=200)
    parser.add_argument("--forward", type=int, default=40, help="checkpoints for Loss, which needs forward passes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", args.checkpoints)
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {args.rounds} rounds")
        print("| measure | checkpoints | run.map | loop by hand | ratio | cached |\n|---|---|---|---|---|---|")
        for tool, steps in [(WeightNorms(), run.steps), (Loss(), run.steps[: args.forward])]:
            times: dict[str, list[float]] = {"map": [], "hand": [], "again": []}
            by_hand(run, steps, tool)  # warm: the files are in the page cache for both
            for _ in range(args.rounds):
                shutil.rmtree(run.path / "derived", ignore_errors=True)
                start = time.perf_counter()
                table = Run.open(run.path).map(tool, steps)
                mapped = time.perf_counter()
                expected = by_hand(run, steps, tool)
                looped = time.perf_counter()
                Run.open(run.path).map(tool, steps)
                cached = time.perf_counter()
                for kind, t in zip(times, (mapped - start, looped - mapped, cached - looped), strict=True):
                    times[kind].append(t)
                for name, values in expected.items():
                    np.testing.assert_allclose(table[name].values, values, rtol=1e-6)
            ours, hand, again = (median(t) for t in times.values())
            print(
                f"| {type(tool).__name__} | {len(steps)} | {ours:.2f} s | {hand:.2f} s | {hand / ours:.2f}x "
                f"| {again:.3f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
