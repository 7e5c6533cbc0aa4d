"""MIU: the search, the table of all theorems, and generators beside the training that eats what they make.

    python tests/bench/bench_miu.py [--threads 2]

Breadth-first search to 8 and 9 rules (15,885 and 210,105 strings); all bodies up to 16 symbols decided by the invariant
(131,070); tokens per second of `sample` and tokens per second that one training step of the matching experiment's model
takes, on batches of 512: one layer for questions about one string, two for steps between strings, which one layer
cannot compare. Both in this process, the best of a few.
"""

import argparse
import time

import torch

from toylab.data import generator
from toylab.losses import batch_loss
from toylab.models.transformer import TransformerSpec
from toylab.tasks.miu import MIUSteps, MIUStrings
from toylab.tasks.miu_system import bodies, breadth_first, n_ones, n_theorems

BATCH = 512
TASKS = {
    "classify": MIUStrings("classify", (3, 10), 13, 0.1, balanced=True),
    "prefix": MIUStrings("prefix", (1, 10), 13, 0.1, balanced=False),
    "language": MIUStrings("language", (2, 10), 10, 0.8, balanced=False),
    "validity": MIUSteps("validity", (2, 8), 12),
    "derivation": MIUSteps("derivation", (2, 8), 12, steps=3),
}


def best(run, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - start)
    return min(times), found


def decide(longest):
    return [int((n_ones(bodies(n)) % 3 != 0).sum()) for n in range(longest + 1)]


def training_step(task):
    layers = 2 if isinstance(task, MIUSteps) else 1
    spec = TransformerSpec(n_layers=layers, n_heads=4, d_model=64, d_head=16, d_mlp=256)
    model = spec.build(task, generator(0, "init"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = task.sample(BATCH, generator(0, "batch"))

    def step():
        loss = batch_loss("cross_entropy", model(batch.inputs, read=batch.read), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    for steps, size in ((8, 15_885), (9, 210_105)):
        seconds, found = best(lambda steps=steps: breadth_first(steps), 3)
        assert len(found) == size
        print(f"breadth-first search to {steps} rules: {size:,} strings in {seconds:.3f} s")
    seconds, counts = best(lambda: decide(16), 3)
    assert counts == [n_theorems(n) for n in range(17)]
    print(f"all bodies to 16 symbols: {2**17 - 1:,} decided in {seconds:.3f} s, {sum(counts):,} theorems\n")
    print("| format | generated, tokens/s | trained, tokens/s | ratio |\n|:--|--:|--:|--:|")
    for name, task in TASKS.items():
        g = generator(0, "batch")
        made, _ = best(lambda task=task, g=g: task.sample(16 * BATCH, g))
        used, _ = best(training_step(task), 10)
        made, used = 16 * BATCH * task.n_ctx / made, BATCH * task.n_ctx / used
        print(f"| {name} | {made:.2e} | {used:.2e} | {made / used:.0f}x |", flush=True)


if __name__ == "__main__":
    main()
