"""Othello on 6 x 6: what a training step costs, what bfloat16 would give, and all probes at once beside scikit-learn.

    python tests/bench/bench_othello_training.py [--threads 1] [--bf16-steps 300]

1. Training step of `experiment=othello_6x6` in float32 at four sizes: tokens per second, the share of the time that
   drawing games takes, and the share of matmul peak: 6 x parameters x tokens operations (the usual count, attention
   left out) over what the same threads reach in a product of the feed-forward layer's shape, forward and backward.
2. The same network with train.precision=bfloat16, as the experiment has it: time of a step, and the loss after some
   hundred steps from the same weights on the same games, beside how far two float32 seeds of batches are apart.
3. Ridge probes of every square in every frame at every layer: one call, beside scikit-learn's Ridge square by square.

Times are processor seconds, the least of a few, so that a busy machine gives nearly the same answer as a quiet one.
"""

import argparse
import dataclasses
import time

import numpy as np
import torch
from sklearn.linear_model import Ridge

from toylab.cli.compose import compose
from toylab.cli.train import split_config
from toylab.data import generator
from toylab.interp.probes import fit
from toylab.losses import batch_loss
from toylab.measures.board import positions, streams
from toylab.tasks.othello import FRAMES
from toylab.train import Trainer

SIZES = ((4, 192), (3, 128), (2, 64), (1, 64))
PENALTY = 0.1


def seconds(run, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def trainer(layers=4, width=192, precision="float32"):
    shape = (f"model.n_layers={layers}", f"model.d_model={width}", f"model.n_heads={width // 32}")
    fixed = (f"train.precision={precision}", "train.threads=1")
    overrides = ["experiment=othello_6x6", *shape, f"model.d_mlp={4 * width}", *fixed]
    return Trainer(split_config(compose(overrides))[0])


def matmul_peak(rows, width):
    """Operations per second of x W and of the two products of its gradient."""
    x, W = torch.randn(rows, width), torch.randn(width, 4 * width)
    g = x @ W
    return 24 * rows * width**2 / seconds(lambda: (x @ W, x.T @ g, g @ W.T), 20)


def steps():
    print("| layers x width | parameters | step | drawing | tokens per second | of matmul peak |")
    print("|:--|--:|--:|--:|--:|--:|")
    for layers, width in SIZES:
        one = trainer(layers, width)
        batch, n = one.next_batch(), one.model.n_params()
        one.advance()
        step, draw = seconds(one.advance, 12), seconds(one.next_batch, 12)
        tokens = batch.inputs.numel()
        peak = matmul_peak(tokens, width)
        print(
            f"| {layers} x {width} | {n:,} | {1e3 * step:.0f} ms | {draw / step:.1%} | {tokens / step:,.0f} | "
            f"{6 * n * tokens / step / peak:.0%} of {peak / 1e9:.0f} GFLOP/s |",
            flush=True,
        )


def bfloat16(n_steps):
    """Losses from the same weights: float32, bfloat16 on the same games, float32 on other games."""
    half, single, other = trainer(precision="bfloat16"), trainer(), trainer()
    other.batches.manual_seed(1)
    times = {name: seconds(t.advance, 3) for name, t in (("float32", single), ("bfloat16", half))}
    for _ in range(3):
        other.advance()
    print(f"\nbfloat16 takes {times['bfloat16'] / times['float32']:.2f} of the time of a float32 step")
    curves = {t: [t.advance() for _ in range(n_steps)] for t in (single, half, other)}
    last = {t: np.mean(curve[-50:]) for t, curve in curves.items()}
    held_out = [held_out_loss(t) for t in (single, half, other)]
    print(
        f"mean loss of the last 50 of {n_steps} steps: float32 {last[single]:.4f}, bfloat16 {last[half]:.4f}, "
        f"float32 on other games {last[other]:.4f}; on held-out games {', '.join(f'{v:.4f}' for v in held_out)}"
    )


@torch.no_grad()
def held_out_loss(one):
    batch = one.split.all
    return batch_loss(one.experiment.loss, one.model(batch.inputs), batch).item()


def probes():
    one = trainer()
    task = dataclasses.replace(one.experiment.task, n_test=10)
    data = positions(task, 500, 0)
    x = streams(one.model, data)[:, ~data.test]
    y = torch.cat([data.labels[frame] for frame in FRAMES], 1)[~data.test]
    n_layers, n_targets = len(x), y.shape[1]
    ours = seconds(lambda: fit(x, y, "ridge", PENALTY), 3)
    cases = f"{n_targets} targets x {n_layers} layers of {x.shape[1]:,} x {x.shape[2]}"
    probe = fit(x, y, "ridge", PENALTY)
    one_hot = (y[..., None] == torch.arange(3)).double().numpy()
    some = torch.randperm(n_targets, generator=generator(0, "some"))[:12].tolist()
    judge = Ridge(PENALTY)
    single = x[0].numpy()
    theirs = seconds(lambda: [judge.fit(single, one_hot[:, t].astype(np.float32)) for t in some], 2) / len(some)
    exact = np.stack([Ridge(PENALTY).fit(single.astype(np.float64), one_hot[:, t]).coef_ for t in some])
    apart = np.abs(probe.weight[0, some].numpy() - exact).max() / np.abs(exact).max()
    one_by_one = theirs * n_targets * n_layers
    print(
        f"\nridge probes, {cases}: one call {ours:.2f} s, scikit-learn one by one {one_by_one:.1f} s "
        f"({one_by_one / ours:.0f}x); coefficients within {apart:.0e}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16-steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps()
    probes()
    bfloat16(options.bf16_steps)


if __name__ == "__main__":
    main()
