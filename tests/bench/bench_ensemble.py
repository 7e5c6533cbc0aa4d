"""Members per second: one stacked program against a loop over solo trainers, for the same members.

    python tests/bench/bench_ensemble.py [--members 1 4 16 64] [--seconds 3]

Small sizes are where the loop spends its time outside arithmetic. Both sides do the same work: every member takes
the same number of updates on its own data; evaluation and saving are left out. On CPU, and on CUDA where there is one.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import torch

from toylab.ensemble import Stacked
from toylab.experiment import Experiment, TrainSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures
from toylab.train import Trainer

STEPS = TrainSpec(steps=10**6, checkpoints=())
ADAMW, ADAM = OptimSpec("adamw", 1e-3, 1.0), OptimSpec("adam", 1e-3, 0.0)
CASES = {
    "superposition, 5 features, batch 1024": Experiment(
        "toy", 0, SparseFeatures(5, 0.9, 0.9), SuperpositionSpec("relu_out", 2), ADAM, "mse",
        dataclasses.replace(STEPS, batch_size=1024),
    ),
    "p = 31, d_model 32, full batch": Experiment(
        "small", 0, ModularArithmetic(31, "x+y", 0.4), TransformerSpec(1, 4, 32, 8, 128), ADAMW, "cross_entropy", STEPS
    ),
    "p = 113, d_model 128, full batch": Experiment(
        "main", 0, ModularArithmetic(113, "x+y", 0.3), TransformerSpec(1, 4, 128, 32, 512), ADAMW, "cross_entropy",
        STEPS,
    ),
}  # fmt: skip


def seconds_per_round(advance: Callable[[], object], device: str, least: float) -> float:
    """Mean over as many rounds as fit into `least` seconds, after two to warm up."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        advance()
    wait()
    start, rounds = time.perf_counter(), 0
    while not rounds or time.perf_counter() - start < least:
        advance()
        rounds += 1
    wait()
    return (time.perf_counter() - start) / rounds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of each cell")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cases", nargs="+", default=[""], help="only cases whose name contains one of these")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    name = {"cpu": f"{torch.get_num_threads()} threads"}
    if "cuda" in devices:
        name["cuda"] = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}; member-steps per second")
    print("| ensemble | device | members | stacked | solo loop | ratio |\n|---|---|---|---|---|---|")
    for device in devices:
        for case, e in CASES.items():
            if not any(part in case for part in args.cases):
                continue
            for n in args.members:
                spec = dataclasses.replace(e.train, device=device)
                members = [dataclasses.replace(e, seed=seed, train=spec) for seed in range(n)]
                stacked = Stacked([Trainer(m) for m in members])
                together = seconds_per_round(stacked.advance, device, args.seconds)
                del stacked
                solo = [Trainer(m) for m in members]
                alone = seconds_per_round(lambda solo=solo: [t.advance() for t in solo], device, args.seconds)
                row = (case, name[device], n, f"{n / together:,.0f}", f"{n / alone:,.0f}", f"{alone / together:.2f}x")
                print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
