"""What dictionaries cost as a measure of one checkpoint, beside the same dictionaries trained one by one.

    python tests/bench/bench_dictionaries.py [--threads 1] [--rounds 3] [--steps 300] [--seeds 2]

measure      the call that `run.map` makes: all seeds as one stack, then every score
training     its stack alone; the rest of the measure is scores
one by one   each seed trained by a call of its own, and of the scores only the unexplained variance
Both sides train the same dictionaries on the same rows: their unexplained variance must agree. They take turns, and the
best round of each counts, in processor seconds. The last row is a sweep over penalties, kinds and widths, by itself.
"""

import argparse
import time

import torch

from toylab.data import generator
from toylab.interp.sae.metrics import reconstruction
from toylab.interp.sae.stream import Stream, rows_of
from toylab.interp.sae.through import train_alike
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining
from toylab.measures.dictionaries import Dictionaries, DictionaryWaves, RecoveredFeatures
from toylab.measures.sweeps import SparsitySweep
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.snapshot import Snapshot
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures


def snapshot(task, spec, loss):
    """An untrained network: what training a dictionary costs does not depend on what there is to find."""
    return Snapshot(0, spec.build(task, generator(0, "init")), task, task.split(0), loss)


def fresh(snap):
    """The same network, with nothing computed yet."""
    return Snapshot(0, snap.model, snap.task, snap.split, snap.loss)


def one_by_one(snap, measure):
    """The unexplained variance of every seed's dictionary, each trained alone."""
    found = []
    for seed in measure.seeds:
        stream = Stream.of_snapshot(snap, measure.site)
        (sae,) = train_alike(measure.spec, (seed,), stream, measure.training)
        x = rows_of(snap, measure.site)
        found.append(reconstruction(x, sae(x), sae.encode(x)).fvu.item())
    return found


def seconds(run):
    start = time.process_time()
    value = run()
    return time.process_time() - start, value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    toy = snapshot(SparseFeatures(80, 0.97, 1.0, n_test=4096), SuperpositionSpec("relu_out", 20), "mse")
    adder = snapshot(ModularArithmetic(59, "x+y", 0.3), TransformerSpec(1, 4, 64, 16, 256), "cross_entropy")
    training = SAETraining(steps=options.steps, batch_size=1024, lr_warmup=20, dead_after=100)
    narrow, wide, seeds = TopK(d_sae=80, k=3, lr=3e-3), TopK(d_sae=128, k=16, lr=2e-3), tuple(range(options.seeds))
    suite = (
        (toy, Dictionaries("hidden", narrow, training, seeds)),
        (toy, RecoveredFeatures("hidden", narrow, training, seeds)),
        (adder, DictionaryWaves("post0", wide, training, seeds)),
    )
    print(f"{options.threads} threads, torch {torch.__version__}; {options.steps} steps of 1,024 rows, best of")
    print(f"{options.rounds}; processor seconds for one checkpoint\n")
    print(
        "| measure | dictionaries | measure, s | of it training, s | one by one, s | ratio |\n|:--|--:|--:|--:|--:|--:|"
    )
    for snap, measure in suite:
        row(f"{type(measure).__name__}, {measure.spec.d_sae} latents", snap, measure, options.rounds)
    sweep = SparsitySweep((0.03, 0.1, 0.3), (40, 80), 0.1, 3, options.seeds, options.steps, 512, 1e-3)
    spent = min(seconds(lambda: sweep(fresh(toy)))[0] for _ in range(options.rounds))
    count = (len(sweep.l1) + len(sweep.d_sae) + 3) * sweep.seeds
    print(f"| SparsitySweep, batches of {sweep.batch_size} | {count} | {spent:.2f} | | | |")


def row(name, snap, measure, rounds):
    calls = {
        "measure": lambda: measure(fresh(snap))["fvu"].values.tolist(),
        "training": lambda: measure.trained(fresh(snap)),
        "one by one": lambda: one_by_one(fresh(snap), measure),
    }
    best, value = dict.fromkeys(calls, float("inf")), {}
    for _ in range(rounds):
        for side, call in calls.items():
            spent, value[side] = seconds(call)
            best[side] = min(best[side], spent)
    apart = max(abs(a / b - 1) for a, b in zip(value["measure"], value["one by one"], strict=True))
    assert apart < 0.02, f"{name}: unexplained variance {value['measure']} together, {value['one by one']} one by one"
    print(
        f"| {name} | {len(measure.seeds)} | {best['measure']:.2f} | {best['training']:.2f} | "
        f"{best['one by one']:.2f} | {best['one by one'] / best['measure']:.2f}x |",
        flush=True,
    )


if __name__ == "__main__":
    main()
