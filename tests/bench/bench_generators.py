"""Tokens per second: what the generators of formal tasks make, and what the matching training job consumes.

    python tests/bench/bench_generators.py [--rounds 20] [--threads N]

One batch of each experiment is drawn, and one training step taken (drawing included), in turns; medians. The claim is
that drawing is at least 10 times as fast as training.
"""

import argparse
import time
from functools import partial
from statistics import median

import torch

from toylab.cli.compose import compose
from toylab.cli.train import split_config
from toylab.data import generator
from toylab.train import Trainer

JOBS = {
    "gridworld 4, 2 layers": ("experiment=liu2022_states",),
    "A5, 4 layers": ("experiment=liu2022_states", "task.automaton='alternating 5'", "model.n_layers=4"),
    "A5, 1 layer": ("experiment=liu2022_states", "task.automaton='alternating 5'", "model.n_layers=1"),
    "accepted words of tomita 3": ("experiment=liu2022_states", "task.automaton='tomita 3'", "task.positive=0.5"),
    "nested brackets": ("experiment=liu2022_states", "task=dyck"),
    "flip-flop language": ("experiment=flipflop_language",),
    "Mess3": ("experiment=mess3",),
    "RRXOR": ("experiment=rrxor",),
    "in-context Markov chains": ("experiment=icl_markov",),
}


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    print(
        f"{torch.get_num_threads()} threads\n\n| job | drawn, tokens/s | trained, tokens/s | ratio |\n|---|---|---|---|"
    )
    for name, overrides in JOBS.items():
        settings = [o for o in overrides if not o.startswith("experiment=")]
        if "task=dyck" in settings:
            experiment, _, _ = split_config(compose(["task=dyck", "model=one_layer", "train.batch_size=64"]))
        else:
            experiment, _, _ = split_config(compose(list(overrides)))
        trainer, g = Trainer(experiment), generator(0, "bench")
        size = experiment.train.batch_size
        tokens = trainer.experiment.task.sample(size, g).inputs.numel()
        task, times = experiment.task, []
        for _ in range(args.rounds):
            times.append((seconds(partial(task.sample, size, g)), seconds(trainer.advance)))
        drawn, trained = (tokens / median(column) for column in zip(*times[2:], strict=True))
        print(f"| {name} | {drawn:,.0f} | {trained:,.0f} | {drawn / trained:.0f}x |", flush=True)


if __name__ == "__main__":
    main()
