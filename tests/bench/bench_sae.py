"""Training dictionaries, beside the same thing as a plain PyTorch module with autograd, topk and torch.optim.Adam.

    python tests/bench/bench_sae.py [--threads 2] [--cpu] [--steps 6] [--only standard topk] [--recovery 4000]

d = 128, 1,024 latents, batch 4,096, float32, k = 32; eight dictionaries (l1 or k and seed differ) as one stack; and the
toy size d = 64, 128 latents, batch 512. Tokens per second count every dictionary's tokens. "matmul limit" is the five
matrix products of a dense dictionary, alone, in the same run. Rounds alternate between the rivals, and the best round
of each counts. --cpu counts processor seconds: with --threads 1 a busy machine gives about the same answer.

bfloat16: `peer standard bf16` is the module under autocast. It pays where lscpu lists amx_bf16 or avx512_bf16; without
them it is slower. --recovery trains it in both precisions on 128 known features in 64 dimensions, and once more in
float32 on other data, and shows how much of the dictionary each finds (MMCS, with that of random directions).
The peer steps as SAELens does (forward, backward, parallel gradient removed, Adam, rows renormalised). Rows of
dictionary_learning's own trainers appear where that library is installed.
"""

import argparse
import time
from functools import partial

import torch
from torch import nn

from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.gated import Gated
from toylab.interp.sae.jumprelu import JumpReLU
from toylab.interp.sae.matryoshka import Matryoshka
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Stream
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETrainer, SAETraining


class Peer(nn.Module):
    """A standard (k = None) or TopK autoencoder as one would write it."""

    def __init__(self, d, M, k=None, bf16=False, l1=0.1, lr=3e-4):
        super().__init__()
        W = torch.randn(M, d, generator=torch.Generator().manual_seed(0))
        W /= W.norm(dim=1, keepdim=True)
        self.W_enc, self.W_dec = nn.Parameter(W.T.clone()), nn.Parameter(W)
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(M)), nn.Parameter(torch.zeros(d))
        self.k, self.bf16, self.l1 = k, bf16, l1
        self.optimiser = torch.optim.Adam(self.parameters(), lr=lr, fused=True)

    def code(self, x):
        z = (x - self.b_dec) @ self.W_enc + self.b_enc
        if self.k is None:
            return z.relu()
        top = z.topk(self.k, dim=1)
        return torch.zeros_like(z).scatter(1, top.indices, top.values.relu())

    @torch.no_grad()
    def forward(self, x):
        return self.code(x) @ self.W_dec + self.b_dec

    def step(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            f = self.code(x)
            y = f @ self.W_dec + self.b_dec
        loss = (x - y).square().sum(1).mean() + (self.l1 * f.sum(1).mean() if self.k is None else 0)
        self.optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            g, W = self.W_dec.grad, self.W_dec
            g -= (g * W).sum(1, keepdim=True) * W
            self.optimiser.step()
            W /= W.norm(dim=1, keepdim=True)


def library_trainers(d, M, k, steps=10**6):
    """name -> one update of a trainer of dictionary_learning on a batch; none where the library is absent."""
    try:
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer
    except ImportError:
        return {}
    shape = {"activation_dim": d, "dict_size": M, "layer": 0, "lm_name": "", "device": "cpu", "seed": 0}
    made = {"standard": StandardTrainer(steps, lr=3e-4, **shape), "topk": TopKTrainer(steps, k=k, **shape)}
    return {f"dictionary_learning {name}": partial(trainer.update, 1) for name, trainer in made.items()}


def limit(d, M, B):
    """Five matrix products of a dense dictionary, in tiles as dense.py has them: no less work is possible."""
    x, W, D = torch.randn(256, d), torch.randn(d, M), torch.randn(M, d)
    z, y, gW, gD = torch.empty(256, M), torch.empty(256, d), torch.zeros(d, M), torch.zeros(M, d)

    def run():
        for _ in range(B // 256):
            torch.mm(x, W, out=z)
            torch.mm(z, D, out=y)
            torch.mm(y, D.T, out=z)
            gD.addmm_(z.T, y)
            gW.addmm_(x.T, z)

    return run


def recovery(steps, d=64, M=128, B=512):
    """Mean over the true features of the largest cosine with a row of W_dec, after the same steps on the same data."""
    true = torch.nn.functional.normalize(torch.randn(M, d, generator=torch.Generator().manual_seed(1)), dim=1)

    def found(bf16, seed):
        g, peer = torch.Generator().manual_seed(seed), Peer(d, M, bf16=bf16, l1=0.3, lr=2e-3)
        for _ in range(steps):
            on = torch.rand(B, M, generator=g) < 4 / M
            x = (on * (0.5 + torch.rand(B, M, generator=g))) @ true
            peer.step(x)
        error = (peer(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        return mmcs(true, peer.W_dec.detach()), error.item()

    print(f"\n| {steps:,} steps | MMCS with the true features | unexplained on the last batch |\n|:--|--:|--:|")
    for name, run in {"float32": (False, 2), "bfloat16": (True, 2), "float32, other data": (False, 3)}.items():
        score, error = found(*run)
        print(f"| {name} | {score:.4f} | {error:.4f} |", flush=True)
    print(f"| random directions | {mmcs(true, torch.randn(M, d)):.4f} | |")


def mmcs(true, rows):
    return (true @ torch.nn.functional.normalize(rows, dim=1).T).amax(1).mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--recovery", type=int, default=0, help="steps to compare what both precisions find; 0 = not")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("| size | what | tokens/s | of the matmul limit |\n|:--|:--|--:|--:|")
    for d, M, B, k, steps in ((128, 1024, 4096, 32, options.steps), (64, 128, 512, 8, 20 * options.steps)):
        compare(d, M, B, k, steps, options)
    if options.recovery:
        recovery(options.recovery)


def compare(d, M, B, k, steps, options):
    clock = time.process_time if options.cpu else time.perf_counter
    G = torch.randn(2 * M, d)
    data = (torch.rand(4 * B, 2 * M) * (torch.rand(4 * B, 2 * M) < 8 / M)) @ G
    stream = Stream.of_tensor(data)
    c = {"d_sae": M, "lr": 3e-4}
    ours = {
        "standard": [Standard(l1=1.0, **c)],
        "topk": [TopK(k=k, **c)],
        "batch topk": [BatchTopK(k=k, **c)],
        "matryoshka": [Matryoshka(k=k, widths=(M // 16, M // 4, M), **c)],
        "jumprelu": [JumpReLU(l0=0.1, **c)],
        "gated": [Gated(l1=1.0, **c)],
        "8 x standard": [Standard(l1=0.5 + i, seed=i, **c) for i in range(8)],
        "8 x topk": [TopK(k=k - (i % 4), seed=i, **c) for i in range(8)],
    }
    # Nothing has fired before the first step of a peer either: no dead latents here.
    training = SAETraining(steps=10**6, batch_size=B, log_every=100)
    trainers = {name: SAETrainer(specs, stream, training) for name, specs in ours.items()}
    runs = {name: (t.advance, len(ours[name])) for name, t in trainers.items()}
    for name, peer in (("standard", Peer(d, M)), ("topk", Peer(d, M, k)), ("standard bf16", Peer(d, M, bf16=True))):
        runs[f"peer {name}"] = (lambda peer=peer: peer.step(stream.next(B)[0]), 1)
    for name, update in library_trainers(d, M, k).items():
        runs[name] = (lambda update=update: update(stream.next(B)[0]), 1)
    runs["matmul limit"] = (limit(d, M, max(B, 256)), 1)
    if options.only:
        runs = {name: run for name, run in runs.items() if name in (*options.only, "matmul limit")}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(options.rounds):
        for name, (step, members) in runs.items():
            step()
            start, n = clock(), max(2, steps // members)
            for _ in range(n):
                step()
            best[name] = min(best[name], (clock() - start) / n / members)
    for name, seconds in best.items():
        print(f"| d {d}, {M} latents, batch {B} | {name} | {B / seconds:,.0f} | {best['matmul limit'] / seconds:.2f} |")


if __name__ == "__main__":
    main()
