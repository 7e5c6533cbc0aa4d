"""What each measure costs on one p = 113 checkpoint, in training steps of the same process.

    python tests/bench/bench_measures.py [RUN]

RUN is a run directory, whose last checkpoint is measured; without it an untrained network of the paper's size. "alone"
is a fresh snapshot with its forward pass; "in the suite" is what a measure adds when all are taken of one snapshot in
this order, so that forward passes, spectra and fits are shared. One thread; CPU time of this process, medians of
several rounds in which steps and measures take turns. Printed as a markdown table.
"""

import statistics
import sys
import time

import torch

from toylab.data import generator
from toylab.experiment import Experiment, TrainSpec
from toylab.measures.basic import LogitStats, Loss, WeightNorms
from toylab.measures.fourier import Attention, ClockPizza, LogitFourier, Neurons, Spectra
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.runs import Run
from toylab.snapshot import Snapshot
from toylab.tasks.modular import ModularArithmetic
from toylab.train import Trainer

SUITE = [
    Neurons(),
    Attention(),
    Spectra(),
    LogitFourier("final"),
    LogitFourier("current"),
    ClockPizza(n_triples=100, seed=0),
    Loss(),
    WeightNorms(),
    LogitStats(),
]
ROUNDS = 9
PAPER = Experiment(
    name="bench",
    seed=0,
    task=ModularArithmetic(113, "x+y", 0.3),
    model=TransformerSpec(1, 4, 128, 32, 512, init="nanda"),
    optim=OptimSpec("adamw", lr=1e-3, weight_decay=1.0),
    loss="cross_entropy",
    train=TrainSpec(steps=1, checkpoints=("every:1",)),
)


def milliseconds(run):
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def subject(path):
    """(experiment, model): a run's last checkpoint, or an untrained network."""
    if path:
        run = Run.open(path)
        return run.experiment, run.final.model
    return PAPER, PAPER.model.build(PAPER.task, generator(0, "init"))


def main():
    torch.set_num_threads(1)
    experiment, model = subject(sys.argv[1] if len(sys.argv) > 1 else None)
    split = experiment.task.split(experiment.seed)
    trainer = Trainer(experiment)
    reference = Snapshot(0, model, experiment.task, split)
    LogitFourier("final")(Snapshot(0, model, experiment.task, split, reference=reference))  # its share, paid once

    def fresh():
        return Snapshot(0, model, experiment.task, split, experiment.loss, reference)

    def forward():
        with torch.no_grad():
            return model(split.all.inputs, read=split.all.read)

    trainer.advance()
    for measure in SUITE:  # fills caches: bases, null ratios
        measure(fresh())
    steps, passes, suites = [], [], []
    alone, shared = ({m: [] for m in SUITE} for _ in range(2))
    for _ in range(ROUNDS):
        steps.append(milliseconds(trainer.advance))
        passes.append(milliseconds(forward))
        snap = fresh()
        for measure in SUITE:
            shared[measure].append(milliseconds(lambda m=measure, s=snap: m(s)))
        suites.append(sum(shared[m][-1] for m in SUITE))
        steps.append(milliseconds(trainer.advance))
        for measure in SUITE:
            alone[measure].append(milliseconds(lambda m=measure: m(fresh())))

    step = statistics.median(steps)
    print(f"one training step ({len(split.train)} pairs): {step:.0f} ms, one thread, torch {torch.__version__}\n")
    print("| measure | in the suite, steps | alone, steps | alone, ms |")
    print("|---|---:|---:|---:|")
    for m in SUITE:
        only = statistics.median(alone[m])
        print(f"| {m!r} | {statistics.median(shared[m]) / step:.2f} | {only / step:.2f} | {only:.0f} |")
    whole, forwards = statistics.median(suites), statistics.median(passes)
    fourier = sum(statistics.median(shared[m]) for m in SUITE if type(m).__module__ == "toylab.measures.fourier")
    print(f"| **the Fourier measures** | **{fourier / step:.2f}** | | {fourier:.0f} |")
    print(f"| **the whole suite** | **{whole / step:.2f}** | | {whole:.0f} |")
    print(f"| a forward pass on all {len(split.all):,} pairs | {forwards / step:.2f} | | {forwards:.0f} |")


if __name__ == "__main__":
    main()
