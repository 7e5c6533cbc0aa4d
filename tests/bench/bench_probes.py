"""Probes of many targets and layers in one call, beside scikit-learn one at a time.

    python tests/bench/bench_probes.py [--threads 2] [--cpu]

[20,000, 128] float32 activations of 8 layers, 64 binary targets planted along random directions. scikit-learn runs on
one layer, and on 8 targets where it takes them one at a time; its time is multiplied up. Both sides run in this
process, one after the other, the best of a few. --cpu counts processor seconds instead of those on the clock: with
--threads 1 a busy machine then gives the same answer as a quiet one. Agreement is measured against scikit-learn in
float64: the largest relative difference in coefficients (ridge, LDA), or the objective in excess of the lower one.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from toylab.interp.erasure import fit as fit_eraser
from toylab.interp.probe_scores import evaluate
from toylab.interp.probes import fit
from toylab.interp.sparse_probes import SELECTIONS, fit_sparse

N, D, TARGETS, LAYERS, PENALTY = 20_000, 128, 64, 8, 1.0
SINGLES = 8  # targets given to scikit-learn one at a time


def planted():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (N, TARGETS), generator=g)
    directions = torch.randn(LAYERS, TARGETS, D, generator=g) / 8
    return torch.randn(LAYERS, N, D, generator=g) + (y.float() - 0.5) @ directions, y


clock = time.perf_counter


def best(run, repeats):
    """(seconds, result) of the fastest of a few runs."""
    times = []
    for _ in range(repeats):
        start = clock()
        result = run()
        times.append(clock() - start)
    return min(times), result


def relative(ours, theirs):
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def objective(weight, bias, x, y):
    z = x.double() @ torch.as_tensor(weight).double().T + torch.as_tensor(bias).double()
    loss = F.binary_cross_entropy_with_logits(z, y.double(), reduction="none").sum(0)
    return loss + PENALTY / 2 * torch.as_tensor(weight).double().pow(2).sum(1)


def main():
    global clock
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    with threadpool_limits(options.threads):
        compare()


def compare():
    x, y = planted()
    one, labels = x[0].numpy(), y.numpy()
    single = range(SINGLES)

    def row(name, ours, peer, theirs, agreement):
        print(f"| {name} | {ours:.3f} s | {peer} | {theirs:.2f} s | {theirs / ours:.0f}x | {agreement} |", flush=True)

    print(
        f"| {N:,} x {D}, {TARGETS} targets x {LAYERS} layers | toylab | scikit-learn | its time | ratio | agreement |"
    )
    print("|:--|--:|:--|--:|--:|:--|")

    ours, probe = best(lambda: fit(x, y, "ridge", PENALTY), 7)
    theirs, judge = best(lambda: Ridge(PENALTY).fit(one, labels.astype(np.float32)), 5)
    exact = Ridge(PENALTY).fit(one.astype(np.float64), labels)
    agreement = f"{relative(probe.weight[0, :, 1], exact.coef_):.0e} (theirs {relative(judge.coef_, exact.coef_):.0e})"
    row("ridge", ours, "Ridge, all targets at once", theirs * LAYERS, agreement)
    theirs, _ = best(lambda: [Ridge(PENALTY).fit(one, labels[:, t]) for t in single], 2)
    row("ridge", ours, "Ridge, one by one", theirs * LAYERS * TARGETS / SINGLES, agreement)

    ours, probe = best(lambda: fit(x, y, "lda"), 7)

    def lda(x):
        return [LinearDiscriminantAnalysis(solver="lsqr").fit(x, labels[:, t]).coef_[0] for t in single]

    theirs, _ = best(lambda: lda(one), 2)
    difference = relative(
        (probe.weight[0, :, 1] - probe.weight[0, :, 0])[:SINGLES], np.stack(lda(one.astype(np.float64)))
    )
    row("LDA", ours, "LinearDiscriminantAnalysis(lsqr)", theirs * LAYERS * TARGETS / SINGLES, f"{difference:.0e}")

    ours, _ = best(lambda: fit(x, y, "mass_mean"), 7)
    print(f"| mass-mean | {ours:.3f} s | | | | |")

    ours, probe = best(lambda: fit(x, y, "logistic", PENALTY), 2)
    theirs, judges = best(lambda: [LogisticRegression(C=1 / PENALTY).fit(one, labels[:, t]) for t in single], 2)
    mine = objective(probe.weight[0, :SINGLES, 1], probe.bias[0, :SINGLES, 1], x[0], y[:, :SINGLES])
    coef, intercept = (np.concatenate(parts) for parts in ([j.coef_ for j in judges], [j.intercept_ for j in judges]))
    others = objective(coef, intercept, x[0], y[:, :SINGLES])
    least = torch.minimum(mine, others)
    agreement = f"{((mine - least) / least).max():.0e} (theirs {((others - least) / least).max():.0e})"
    row("logistic", ours, "LogisticRegression", theirs * LAYERS * TARGETS / SINGLES, agreement)

    for select in SELECTIONS[:-1]:
        ours, _ = best(lambda select=select: fit_sparse(x, y, 8, select, penalty=1e-3), 2)
        print(f"| 8 columns by {select} | {ours:.3f} s | | | | |")
    ours, _ = best(lambda: fit_eraser(x, y[:, 0]), 3)
    print(f"| LEACE, one target | {ours:.3f} s | | | | |")
    ours, _ = best(lambda: evaluate(probe, x[:, :4000], y[:4000]), 2)
    print(f"| accuracy, balanced accuracy, AUROC of 4,000 rows | {ours:.3f} s | | | | |")


if __name__ == "__main__":
    main()
