"""Toy models of superposition: steps per second of an ensemble against the usual notebook, side by side.

    python tests/bench/bench_tms.py [--rounds 10] [--threads N] [--check 4000]

T1 is 10 instances of 5 features in 2 dimensions, T3 is 20 of 200 in 20; batch 1024, AdamW lr 1e-3, weight decay .01.
    notebook   as published: stacked [instance, feature, hidden] einsums, autograd, torch.optim.AdamW, and at every step
               two uniform draws per feature, one for whether it is on, one for its value
    toylab     Stacked.advance: what train_ensemble() calls at every step, each instance with its own generator
Both make their data within the step. They take turns, in blocks of steps; the median block counts. Before that T1 is
trained on both sides from the same weights: the loss of each instance, averaged over the last steps, must agree up to
the noise of the data, which is checked where the optimum is unique (the dense instance) and shown for all.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from toylab.ensemble import Stacked
from toylab.experiment import Experiment, TrainSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.optim import OptimSpec
from toylab.tasks.superposition import SparseFeatures
from toylab.train import Trainer

BATCH = 1024
SIZES = {"T1": (10, 5, 2, 0.9), "T3": (20, 200, 20, 1.0)}  # instances, features, hidden, importance decay
Step = Callable[[], list[float]]


def densities(instances: int) -> list[float]:
    return [20 ** (-k / (instances - 1)) for k in range(instances)]


def notebook(start: list[nn.Module], decay: float) -> Step:
    """The published training loop, its step as a function, from copies of these models' weights."""
    g = torch.Generator().manual_seed(0)
    W = nn.Parameter(torch.stack([model.get_parameter("W").detach() for model in start]))
    b = nn.Parameter(torch.stack([model.get_parameter("b").detach() for model in start]))
    instances, n, _ = W.shape
    density = torch.tensor(densities(instances))[:, None]
    importance = decay ** torch.arange(n)
    optimiser = torch.optim.AdamW([W, b], lr=1e-3)

    def step() -> list[float]:
        optimiser.zero_grad(set_to_none=True)
        feature = torch.rand((BATCH, instances, n), generator=g)
        batch = torch.where(torch.rand((BATCH, instances, n), generator=g) <= density, feature, torch.zeros(()))
        hidden = torch.einsum("...if,ifh->...ih", batch, W)
        out = F.relu(torch.einsum("...ih,ifh->...if", hidden, W) + b)
        losses = (importance * (batch - out) ** 2).mean((0, 2))
        losses.sum().backward()
        optimiser.step()
        return losses.tolist()

    return step


def toylab(instances: int, n: int, m: int, decay: float) -> Stacked:
    spec = TrainSpec(steps=10**6, checkpoints=(), batch_size=BATCH)
    optim = OptimSpec("adamw", 1e-3, 0.01, betas=(0.9, 0.999), warmup=0)
    model = SuperpositionSpec("relu_out", m)
    first = Experiment("tms", 0, SparseFeatures(n, 0.0, decay), model, optim, "mse", spec)
    members = [
        dataclasses.replace(first, seed=i, task=dataclasses.replace(first.task, sparsity=1 - p))
        for i, p in enumerate(densities(instances))
    ]
    return Stacked([Trainer(e) for e in members])


def both(name: str) -> dict[str, Step]:
    """The two sides, from the same initial weights."""
    stack = toylab(*SIZES[name])
    return {"notebook": notebook([t.model for t in stack.trainers], SIZES[name][-1]), "toylab": stack.advance}


def compare_losses(steps: int) -> None:
    """Mean loss over the last tenth of the steps, per instance of T1."""
    ends = {}
    for side, step in both("T1").items():
        losses = torch.tensor([step() for _ in range(steps)])
        ends[side] = losses[-steps // 10 :].mean(0)
    print(f"T1, mean loss over steps {steps - steps // 10:,} to {steps:,}, dense to sparse:")
    for name, values in ends.items():
        print(f"  {name:9}" + " ".join(f"{v:.4f}" for v in values.tolist()))
    apart = abs(ends["notebook"][0] / ends["toylab"][0] - 1).item()
    print(f"  dense instance: {apart:.1%} apart, closed form 0.03658")
    assert apart < 0.03, "the two sides do not train the same function"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--check", type=int, default=4000, help="steps over which losses are compared; 0 = not")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.check:
        compare_losses(args.check)
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}; steps per second, median of {args.rounds}")
    print("| stack | notebook | toylab | ratio |\n|---|---|---|---|")
    for name, size in SIZES.items():
        sides = both(name)
        block = 100 if name == "T1" else 4
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(args.rounds + 1):
            for side, step in sides.items():
                start = time.perf_counter()
                for _ in range(block):
                    step()
                if turn:  # the first round warms up
                    seconds[side].append((time.perf_counter() - start) / block)
        rate = {side: 1 / median(times) for side, times in seconds.items()}
        instances, n, m, _ = size
        print(
            f"| {name}: {instances} x {n} x {m}, batch {BATCH} | {rate['notebook']:,.1f} | {rate['toylab']:,.1f} | "
            f"{rate['toylab'] / rate['notebook']:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
