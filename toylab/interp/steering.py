"""Steering and editing: push activations along a direction, and change one association in a weight matrix.

1. `add`, `project_out`, `set_along`, `Steer(site, change)`: edits as values. One edit is a hook,
   `model.run_with_hooks(x, [edit.hook])`, and a tap, `model(x, edit)`.
2. `difference_in_means`: the direction that separates two sets of activations (Rimsky et al. 2023, arXiv 2312.06681).
3. `rank_one_edit`: ROME (Meng et al. 2022, arXiv 2202.05262): the MLP of one layer shall answer `value` to `key`, and
   other keys as before as far as one rank allows. A new model comes back; `specificity` says what else moved.

Knows tensors and taps; a model only as something with W_out. Read next: erasure.py (the same, fitted to a variable).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import require
from toylab.taps import SITES, Tap, act_name, site_name, site_of


@dataclass(frozen=True)
class Steer(Tap):
    """Puts change(value) in place of what passes at one site, at these positions (None = all; negative from the end).

    site: any form `act_name` takes, "resid_post0" for instance. change: [..., d] -> [..., d], the last axis being that
    of the site; at sites with a head axis it sees [batch, position, head, d_head].
    """

    site: str
    change: Callable[[Tensor], Tensor]
    positions: Sequence[int] | None = None

    def __post_init__(self):
        object.__setattr__(self, "site", act_name(self.site))
        axes = SITES[site_of(self.site)[0]].axes
        require(
            self.positions is None or axes.split()[1] == "pos",
            f"positions={self.positions}: {self.site} is [{axes}], which has no positions to choose from",
        )

    def __call__(self, name: str, layer: int | None, value: Tensor) -> Tensor:
        return self.edit(value) if site_name(name, layer) == self.site else value

    def wants(self, name: str, layer: int | None) -> bool:
        return site_name(name, layer) == self.site

    def edit(self, value: Tensor) -> Tensor:
        """The value with the change made at the positions."""
        if self.positions is None:
            return self.change(value)
        at, n = list(self.positions), value.shape[1]
        for p in at:
            require(-n <= p < n, f"positions={at}: there is no position {p} among {n} at {self.site}")
        after = value.clone()
        after[:, at] = self.change(value[:, at])
        return after

    @property
    def hook(self) -> tuple[str, Callable[..., Tensor]]:
        """(site, function) for run_with_hooks, which also says when the edit never fired or changed nothing."""
        return self.site, lambda value, hook: self.edit(value)


def add(site: str, direction: Float[Tensor, "*head d"], scale: float = 1.0, positions=None) -> Steer:
    """x + scale * direction. Adding -scale afterwards undoes it."""
    _check(direction)
    return Steer(site, lambda x: x + scale * direction.to(x), positions)


def project_out(site: str, directions: Tensor, positions=None, mean: Float[Tensor, " d"] | None = None) -> Steer:
    """x without its part in the span of the directions ([d] or [k, d], any lengths), measured from `mean` (default 0).

    Applying it twice is applying it once. Raises UserError when the directions are linearly dependent.
    """
    basis = _orthonormal(directions)

    def change(x: Tensor) -> Tensor:
        centred = x if mean is None else x - mean.to(x)
        return x - (centred @ basis.to(x).T) @ basis.to(x)

    return Steer(site, change, positions)


def set_along(site: str, direction: Float[Tensor, " d"], value: Tensor | float, positions=None) -> Steer:
    """x with its coordinate along direction / |direction| replaced by `value`: a number, or one per example [batch].

    Everything orthogonal stays. This is the interchange of one coordinate when `value` comes from another input.
    """
    _check(direction)
    unit = direction / direction.norm()

    def change(x: Tensor) -> Tensor:
        u = unit.to(x)
        target = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        target = target.reshape(-1, *[1] * (x.ndim - 2)) if target.ndim else target
        return x + (target - x @ u)[..., None] * u

    return Steer(site, change, positions)


def difference_in_means(positive: Float[Tensor, "n d"], negative: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """mean(positive) - mean(negative): added once, it carries the mean of one set to that of the other."""
    require(len(positive) > 0 and len(negative) > 0, f"{len(positive)} and {len(negative)} rows: both sets need some")
    return positive.mean(0) - negative.mean(0)


def _check(direction: Tensor) -> None:
    require(bool(direction.isfinite().all()), "the direction holds NaN or infinity")
    require(bool(direction.norm() > 0), "the direction is zero: it points nowhere")


def _orthonormal(directions: Tensor) -> Float[Tensor, "k d"]:
    directions = directions[None] if directions.ndim == 1 else directions
    _check(directions)
    Q, R = torch.linalg.qr((directions / directions.norm(dim=1, keepdim=True)).double().T)
    smallest = float(R.diagonal().abs().min())
    require(
        smallest > 1e-6, f"the {len(directions)} directions are linearly dependent (or one is zero); leave some out"
    )
    return Q.T


# --- Rank-one edits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RankOneEdit:
    """W_out' = W_out + outer(read, write), the edited model, and what it was made from.

    model: a copy of the model with W_out[layer] changed. read: [d_mlp], C^-1 k / (k^T C^-1 k), so k . read = 1.
    write: [d_model], the wanted answer to the key minus the one it had.
    """

    model: Any
    layer: int
    read: Float[Tensor, " m"]
    write: Float[Tensor, " d"]

    def changes(self, keys: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """|change of the answer to each key|, in closed form: |k_j^T C^-1 k| / (k^T C^-1 k) * |write|."""
        return (keys @ self.read.to(keys)).abs() * self.write.norm().to(keys)

    def specificity(self, keys: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """1 - |change of the answer to a key| / |change at the edited key|: 1 untouched, 0 moved as far as the key.

        Below 0 a key moves more than the edited one. Known exactly: keys with k_j^T C^-1 k = 0 have 1.
        """
        return 1 - (keys @ self.read.to(keys)).abs()


def key_covariance(keys: Float[Tensor, "... m"], ridge: float) -> Float[Tensor, "m m"]:
    """E[k k^T] + ridge I, uncentred, in float64: which keys the edit should leave alone."""
    flat = keys.flatten(0, -2).double()
    return flat.T @ flat / len(flat) + ridge * torch.eye(flat.shape[1], dtype=torch.double)


def rank_one_edit(
    model: Any,
    layer: int,
    key: Float[Tensor, " m"],
    value: Float[Tensor, " d"],
    covariance: Float[Tensor, "m m"],
) -> RankOneEdit:
    """A copy of the model whose MLP in this layer gives `value` (bias included) when its `post` is `key`.

    Of all W' with key W' + b = value it is the one with the least mean change ||C^1/2 (W' - W)|| over keys of second
    moment C (Meng et al. 2022, appendix A). Use the same key (averaged over contexts) that `value` was found with: a
    different one is a known way to break a model (Gupta et al. 2024, arXiv 2403.07175).
    Raises UserError for a covariance that is not positive definite; add a ridge (`key_covariance`).
    """
    W = model.W_out[layer].detach()
    require(
        key.shape == W.shape[:1] and value.shape == W.shape[1:] and covariance.shape == (len(W), len(W)),
        f"key {tuple(key.shape)}, value {tuple(value.shape)}, covariance {tuple(covariance.shape)} arrived; W_out of "
        f"this model takes {len(W)} -> {W.shape[1]}",
    )
    _check(key)
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    require(not bool(failed), "the covariance is not positive definite; add a ridge (key_covariance(keys, ridge))")
    whitened = torch.cholesky_solve(key.double()[:, None], factor)[:, 0]
    read = whitened / (key.double() @ whitened)
    bias = 0 if getattr(model, "b_out", None) is None else model.b_out[layer].detach().double()
    write = value.double() - bias - key.double() @ W.double()
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edited.W_out[layer] += torch.outer(read, write).to(W)
    return RankOneEdit(edited, layer, read, write)
