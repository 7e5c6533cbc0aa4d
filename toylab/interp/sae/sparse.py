"""Gradients of dictionaries of which few latents are active: one dense matrix product, and the rest over the active.

1. z = x W_enc + bias, a tile at a time; the variant names which latents stay on (`keep`), all of them positive.
2. y = f W_dec + b_dec is a sum over bags: one bag of (latent, value) pairs per row, embedding_bag's own job.
3. df = g . W_dec,i for the active pairs only: the gradient of 2 with respect to the values.
4. W_dec.grad = f^T g and W_enc.grad = x^T df: the same pairs sorted by latent, so that each latent is a bag of rows.

With 32 of 1,024 latents on, 2 to 4 cost less than a third of one dense product, of which there would be four.
A stack is block-diagonal: latent i of member s is row s d_sae + i of one long W_dec, so nothing loops over members.
With nested prefixes (Matryoshka) a bag is a (row, block of latents), and a running sum over blocks gives each prefix's
reconstruction.

Selection is numpy's partition, vectorised on x86, which is four times faster than torch.topk here. CPU only.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from toylab.errors import require
from toylab.interp.sae.dense import tiles
from toylab.interp.sae.spec import Knobs, Params, SAESpec, State, Stats, add_bias_gradients, pre_bias

SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Active:
    """Active latents in row order: member, row and latent of each pair, and its value with a gradient to come."""

    member: np.ndarray
    row: np.ndarray
    latent: np.ndarray
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class Sparse(SAESpec):
    """A variant that keeps the largest pre-activations. k: how many of them (per row, on average).

    aux: weight of the auxiliary loss by which dead latents learn to explain what the living leave over (AuxK; 0 = off);
    k_aux: how many of them per row, None = d_in / 2.
    """

    k: int | float
    aux: float = 1 / 32
    k_aux: int | None = None

    KNOBS: ClassVar[tuple[str, ...]] = ("k",)

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.k <= self.d_sae, f"k={self.k} latents of d_sae={self.d_sae}: more than 0, at most d_sae")
        require(self.aux >= 0, f"aux={self.aux}: 0 or more; 1/32 is usual")
        require(self.k_aux is None or self.k_aux >= 1, f"k_aux={self.k_aux}: at least 1, or None for d_in / 2")

    def select(self, params: Params, x: Tensor, knobs: Knobs, state: State) -> Active:
        raise NotImplementedError

    def edges(self) -> tuple[int, ...]:
        """Where the prefixes end: one, of all latents, unless they are nested."""
        return (self.d_sae,)

    def gradients(self, params, x, y, knobs, state):
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        (S, d_in, M), n, edges = params["W_enc"].shape, len(x), np.array(self.edges())
        on, G = self.select(params, x, knobs, state), len(self.edges())
        bag = (on.member * n + on.row) * G + np.searchsorted(edges[:-1], on.latent, side="right")
        latent, bags = on.member * M + on.latent, S * n * G
        start = np.searchsorted(bag, np.arange(bags))  # pairs are in the order of their bags

        value = on.value.requires_grad_()
        with torch.enable_grad():
            parts = _bags(latent, start, value, params["W_dec"].flatten(0, 1))  # [bags, d_out]
        y_hat = parts.detach().view(S, n, G, -1).cumsum(2) if G > 1 else parts.detach().view(S, n, G, -1)
        error = y_hat + (params["b_dec"][:, None] - y)[:, :, None]
        if self.skip:
            error += (x @ params["W_skip"])[:, :, None]
        g = error * (2 / n)
        # A latent of block j is in the prefixes j and later: it meets the sum of their errors.
        g = g.flip(2).cumsum(2).flip(2) if G > 1 else g
        (df,) = torch.autograd.grad(parts, value, g.view(bags, -1))
        value = value.detach()

        by_latent = csr_array((np.arange(len(bag)), latent, np.append(start, len(bag))), shape=(bags, S * M)).tocsc()
        order, bag_of, first = torch.from_numpy(by_latent.data), by_latent.indices, by_latent.indptr[:-1]
        grads["W_dec"] += _bags(bag_of, first, value[order], g.view(bags, -1)).view(S, M, -1)
        grads["W_enc"] += _bags(bag_of // G % n, first, df[order], x).view(S, M, d_in).mT
        grads["b_dec"] += g[:, :, 0].sum(1)
        if self.skip:
            grads["W_skip"] += x.T @ g[:, :, 0]
        sums = x.new_zeros(2, S * M).index_add_(1, torch.from_numpy(latent), torch.stack([value, df]))
        sum_f, sum_dz = sums.view(2, S, M)
        if self.aux and bool(state.dead.any()):
            sum_dz = sum_dz + self._auxiliary(params, x, -error[:, :, -1], grads, state.dead)
        add_bias_gradients(self, params, grads, sum_dz)
        active = torch.from_numpy(np.bincount(on.member, minlength=S)).to(x)
        return grads, Stats(error[:, :, -1].square().sum((1, 2)), sum_f, active)

    def _auxiliary(self, params: Params, x: Tensor, residual: Tensor, grads: Params, dead: Tensor) -> Tensor:
        """Adds the gradients of aux s |e - e_hat|^2 / |e - mean e|^2, e the residual [sae, batch, d_out] (a constant),
        e_hat = the k_aux largest dead latents times W_dec, s = min(dead / k_aux, 1). Returns its sum of dz.
        """
        count = dead.sum(1)
        at = dead.int().topk(int(count.max()), dim=1).indices  # [sae, m]: its dead latents, then others
        real = torch.arange(at.shape[1]) < count[:, None]
        sae = torch.arange(len(at))[:, None]
        k_aux = min(self.k_aux or max(1, x.shape[1] // 2), at.shape[1])
        W_enc, W_dec = params["W_enc"].mT[sae, at], params["W_dec"][sae, at]
        z = torch.where(real[:, None], x @ W_enc.mT + pre_bias(self, params).gather(2, at[:, None]), 0)
        top = z.topk(k_aux, dim=2, sorted=False)
        f = torch.zeros_like(z).scatter_(2, top.indices, top.values.relu())
        variance = (residual - residual.mean(1, keepdim=True)).square().sum((1, 2)).clamp(min=1e-12)
        weight = self.aux * (count / (self.k_aux or max(1, x.shape[1] // 2))).clamp(max=1) / variance
        g = 2 * weight[:, None, None] * (f @ W_dec - residual)
        dz = (g @ W_dec.mT) * (f > 0)
        grads["W_dec"][sae, at] += f.mT @ g
        grads["W_enc"].mT[sae, at] += dz.mT @ x
        return torch.zeros_like(dead, dtype=x.dtype).scatter_add_(1, at, dz.sum(1))


def _bags(indices: np.ndarray, start: np.ndarray, weights: Tensor, table: Tensor) -> Tensor:
    """sum of weights * table[indices] over each bag; a bag goes from its start to the next."""
    return F.embedding_bag(
        torch.from_numpy(indices), table, torch.from_numpy(start), mode="sum", per_sample_weights=weights
    )  # fmt: skip


# --- selection -------------------------------------------------------------------------------------------------------


def pre_activations(spec: SAESpec, params: Params, x: Tensor):
    """(member slice, row slice, z [members, rows, d_sae]) of one tile after another, members outermost."""
    bias = pre_bias(spec, params)
    S, _, M = params["W_enc"].shape
    for members, rows in tiles(S, len(x), M * x.element_size()):
        W = params["W_enc"][members]
        yield members, rows, torch.baddbmm(bias[members], x[rows].expand(len(W), -1, -1), W)


def per_row(z: Float[np.ndarray, "row latent"], k: np.ndarray) -> np.ndarray:
    """Positions in z.ravel() of the k[row] largest entries of every row that are positive, ascending.

    Equal entries: the first ones win. Known exactly: without ties, and with k positive entries, k per row.
    """
    kth, M = int(k.max()), z.shape[1]
    if kth >= M:
        return np.flatnonzero(z > 0)
    top = np.partition(z, M - kth, axis=1)[:, M - kth :]
    if k.min() < kth:
        top.sort(axis=1)
        least = top[np.arange(len(z)), kth - k]
    else:
        least = top[:, 0]
    least = np.maximum(least, SMALLEST)[:, None]
    flat = np.flatnonzero(z >= least)
    row = flat // M
    count = np.bincount(row, minlength=len(z))
    if (count > k).any():
        surplus = np.maximum(count - k, 0)
        tied = z.ravel()[flat] == least[row, 0]
        from_last = np.cumsum(tied[::-1])[::-1]
        # Ties of later rows, which the running count from the end has seen too.
        after = np.append(from_last, 0)[np.cumsum(count)]
        flat = flat[~(tied & (from_last - after[row] <= surplus[row]))]
    return flat


def per_batch(z: Float[np.ndarray, "row latent"], k: int) -> np.ndarray:
    """Positions in z.ravel() of its k largest entries that are positive, ascending; of equal ones the first win."""
    values = z.ravel()
    if k >= z.size:
        return np.flatnonzero(values > 0)
    least = max(np.partition(values, z.size - k)[z.size - k], SMALLEST)
    flat = np.flatnonzero(values >= least)
    if len(flat) > k:
        tied = np.flatnonzero(values[flat] == least)
        flat = np.delete(flat, tied[len(tied) - (len(flat) - k) :])
    return flat


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def in_threads(select, parts: list) -> list[np.ndarray]:
    """select(*part) for every part, on as many threads as torch uses: numpy lets go of the interpreter meanwhile."""
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [select(*part) for part in parts]
    return list(_workers(threads).map(lambda part: select(*part), parts))
