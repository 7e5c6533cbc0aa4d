"""What the Fourier tools cost on one p = 113 checkpoint, and what computing all frequencies together buys.

    python tests/bench/bench_fourier.py

Tensors of the paper's size (12,769 x 113 logits, 12,769 x 512 neurons) from an untrained network; times do not
depend on what it has learned. "One by one" is the straightforward way: for every frequency build its two vectors over
pairs, project, subtract, and take the loss, and the 2-D transform of all neurons. Median of several runs, one thread.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from toylab.data import generator
from toylab.interp.clock_pizza import circularity, distance_irrelevance
from toylab.interp.fourier import fourier_basis, fourier_gini, group_sums, key_frequencies, power_by_frequency
from toylab.interp.group_addition import (
    direction_fve,
    excluded_logits,
    exclusion_losses,
    key_logit_frequencies,
    neuron_frequencies,
    neuron_logit_map,
    restricted_logits,
    trig_fit,
)
from toylab.models.transformer import TransformerSpec
from toylab.tasks.modular import ModularArithmetic

P, GROUP, KEYS = 113, (113,), (14, 35, 41, 42, 52)


def exclusions_one_by_one(logits, targets):
    logits = logits.double()
    losses = []
    s = group_sums(GROUP).flatten()
    for k in range(1, P // 2 + 1):
        angle = 2 * torch.pi * k * s.double() / P
        without = logits
        for wave in (angle.cos(), angle.sin()):
            wave = wave / wave.norm()
            without = without - torch.outer(wave, wave @ logits)
        losses.append(F.cross_entropy(without, targets))
    return torch.stack(losses)


def trig_one_by_one(logits):
    """Norms of the projections on cos w_k(a + b - c), each built over the p^3 cube."""
    centred = logits - logits.mean(-1, keepdim=True)
    cube = group_sums(GROUP).flatten()[:, None] - torch.arange(P)
    alphas = []
    for k in range(1, P // 2 + 1):
        wave = (2 * torch.pi * k * cube / P).cos()
        alphas.append((centred * wave).sum() / wave.norm())
    return torch.stack(alphas)


def neurons_one_by_one(post):
    basis = fourier_basis(GROUP).matrix.to(post)
    table = (post - post.mean(0)).reshape(P, P, -1)
    spectrum = torch.einsum("ra,abm,sb->rsm", basis, table, basis) ** 2
    total = spectrum.sum((0, 1))
    shares = []
    for k in range(1, P // 2 + 1):
        rows = [0, 2 * k - 1, 2 * k]
        shares.append(spectrum[rows][:, rows].sum((0, 1)) / total)
    return torch.stack(shares)


def milliseconds(run, repeats):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])  # the first run fills caches


def main():
    torch.set_num_threads(1)
    task = ModularArithmetic(P, "x+y", 0.3)
    split = task.split(0)
    model = TransformerSpec(1, 4, 128, 32, 512, init="nanda").build(task, generator(0, "init"))
    inputs, targets = split.all.inputs, split.all.targets[:, 0]
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, ["post0"])
    logits, post = logits[:, -1].clone(), cache["post", 0][:, -1].clone()
    W_E, W_L = model.W_E.detach()[:P], (model.W_out[0] @ model.W_U).detach()
    train = torch.zeros(P * P).index_fill_(0, split.train, 1.0)

    joint = {
        "all exclusion losses": lambda: exclusion_losses(logits, targets, GROUP, train),
        "trig fit": lambda: trig_fit(logits, GROUP),
        "neuron frequencies": lambda: neuron_frequencies(post, GROUP),
        "key frequencies": lambda: key_logit_frequencies(logits, GROUP),
        "restricted + excluded loss": lambda: (
            F.cross_entropy(restricted_logits(logits, KEYS, GROUP).double(), targets),
            F.cross_entropy(excluded_logits(logits, KEYS, GROUP)[split.train].double(), targets[split.train]),
        ),
        "embedding spectrum, Gini": lambda: (
            key_frequencies(power_by_frequency(W_E, GROUP, 0).sum(-1), GROUP, 256),
            fourier_gini(W_E, GROUP),
            fourier_gini(W_L.T, GROUP),
        ),
        "neuron-logit map, direction FVE": lambda: (
            neuron_logit_map(W_L, KEYS, GROUP),
            direction_fve(post, W_L, KEYS, GROUP),
        ),
        "distance irrelevance, circularity": lambda: (
            distance_irrelevance(logits.gather(1, targets[:, None])[:, 0], GROUP),
            circularity(W_E, GROUP),
        ),
    }
    one_by_one = {
        "all exclusion losses": lambda: exclusions_one_by_one(logits, targets),
        "trig fit": lambda: trig_one_by_one(logits),
        "neuron frequencies": lambda: neurons_one_by_one(post),
    }

    def step():
        model.zero_grad()
        train_logits = model(inputs[split.train], read=(-1,))[:, 0]
        F.cross_entropy(train_logits.double(), targets[split.train]).backward()

    print(f"{'':36}{'together':>12}{'one by one':>12}{'ratio':>8}")
    total = slow_total = both_total = 0.0
    for name, run in joint.items():
        fast = milliseconds(run, 7)
        total += fast
        if name in one_by_one:
            slow = milliseconds(one_by_one[name], 3)
            slow_total, both_total = slow_total + slow, both_total + fast
            print(f"{name:36}{fast:9.1f} ms{slow:9.0f} ms{slow / fast:7.0f}x")
        else:
            print(f"{name:36}{fast:9.1f} ms")
    print(f"{'these three':36}{both_total:9.1f} ms{slow_total:9.0f} ms{slow_total / both_total:7.0f}x")
    one_step = milliseconds(step, 5)
    print(f"{'the whole suite':36}{total:9.1f} ms = {total / one_step:.1f} training steps of {one_step:.0f} ms")


if __name__ == "__main__":
    main()
