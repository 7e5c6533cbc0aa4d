"""Gradients of dictionaries whose latents may all be active: five matrix products, a tile of the batch at a time.

For every tile of rows, all members of the stack at once (S members, R rows):
1. z = x W_enc + bias                  [S, R, d_sae]
2. f = spec.activate(z)                elementwise
3. g = 2 (f W_dec + b_dec - y) / batch [S, R, d_out]
4. df = g W_dec^T                      [S, R, d_sae]
5. dz = spec.backward(df)              elementwise; adds the sparsity penalty's gradient
6. W_dec.grad += f^T g, W_enc.grad += x^T dz, and the column sums are the biases' gradients.

By hand because autograd keeps whole-batch copies of z, f and df and walks through them several times: a tile stays in
the cache between 1 and 6. tests/bench/bench_sae.py measures it; tests/test_sae.py compares it with autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from toylab.interp.sae.spec import Knobs, Params, SAESpec, State, Stats, add_bias_gradients, pre_bias

TILE_ROWS, TILE_BYTES = 256, 1 << 20
relu_backward = torch.ops.aten.threshold_backward.grad_input  # grad where the value is above 0, in one pass


@dataclass
class Tile:
    """Some rows and members between forward and backward. n: rows in the whole batch. grads: to be added to."""

    x: Tensor
    y: Tensor
    z: Tensor
    f: Tensor
    df: Tensor
    params: Params
    knobs: Knobs
    grads: Params
    n: int


class Dense(SAESpec):
    """A variant with `activate(z, params, knobs) -> f` and `backward(tile)`, which turns tile.df into dz in place."""

    def activate(self, z: Tensor, params: Params, knobs: Knobs) -> Tensor:
        raise NotImplementedError

    def backward(self, tile: Tile) -> None:
        raise NotImplementedError

    def prepare(self, params: Params, knobs: Knobs, state: State) -> Knobs:
        """What every tile needs and is computed once per step, besides the knobs."""
        return knobs

    def finish(self, params: Params, grads: Params, stats: Stats, knobs: Knobs, n: int) -> None:
        """Gradients of terms that need the whole batch's sums."""

    def gradients(self, params, x, y, knobs, state):
        knobs = self.prepare(params, knobs, state)
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        S, _, M = params["W_enc"].shape
        sum_dz, bias = x.new_zeros(S, M), pre_bias(self, params)
        buffers: dict[tuple, tuple[Tensor, Tensor]] = {}  # z and df of a tile, used again: fresh memory is slow
        stats = Stats(x.new_zeros(S), x.new_zeros(S, M), x.new_zeros(S))
        for members, rows in tiles(S, len(x), M * x.element_size()):
            p, k, g = ({name: t[members] for name, t in d.items()} for d in (params, knobs, grads))
            here, wanted = (t[rows].expand(len(p["W_enc"]), -1, -1) for t in (x, y))
            shape = (len(here), here.shape[1], M)
            z, df = buffers.get(shape) or buffers.setdefault(shape, (x.new_empty(shape), x.new_empty(shape)))
            torch.baddbmm(bias[members], here, p["W_enc"], out=z)
            tile = Tile(here, wanted, z, self.activate(z, p, k), df, p, k, g, len(x))
            self._error(tile, stats, members, state.count)
            self.backward(tile)
            g["W_enc"].baddbmm_(tile.x.mT, tile.df)
            sum_dz[members] += tile.df.sum(1)
        self.finish(params, grads, stats, knobs, len(x))
        add_bias_gradients(self, params, grads, sum_dz)
        return grads, stats

    def _error(self, tile: Tile, stats: Stats, members: slice, count: bool) -> None:
        """The reconstruction's error: its gradients, and tile.df."""
        p, grads, f = tile.params, tile.grads, tile.f
        error = torch.baddbmm(p["b_dec"][:, None], f, p["W_dec"]).sub_(tile.y)
        if self.skip:
            error.baddbmm_(tile.x, p["W_skip"])
        stats.squared_error[members] += error.flatten(1).square().sum(1)
        stats.sum_f[members] += f.sum(1)
        if count:
            stats.active[members] += torch.count_nonzero(f, dim=(1, 2))
        g = error.mul_(2 / tile.n)
        grads["W_dec"].baddbmm_(f.mT, g)
        grads["b_dec"] += g.sum(1)
        if self.skip:
            grads["W_skip"].baddbmm_(tile.x.mT, g)
        torch.bmm(g, p["W_dec"].mT, out=tile.df)


def tiles(members: int, rows: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """(members, rows) slices of about TILE_BYTES each: all rows of many small members, some rows of one large one."""
    at_once = max(1, min(rows, max(TILE_ROWS, TILE_BYTES // (members * row_bytes))))
    together = max(1, min(members, TILE_BYTES // (at_once * row_bytes)))
    for m in range(0, members, together):
        for r in range(0, rows, at_once):
            yield slice(m, m + together), slice(r, r + at_once)
