"""What every dictionary shares: its settings, its parameters, and how they start.

Names and shapes are SAELens's: x [batch, d_in], f [batch, d_sae], W_enc [d_in, d_sae], W_dec [d_sae, d_out] (rows are
directions), b_enc [d_sae], b_dec [d_out]. A stack of dictionaries has one more axis in front of everything:
W_enc [sae, d_in, d_sae]. An autoencoder is asked for its own input, a transcoder for another site's activation, and a
crosscoder for the concatenation of its sources; nothing below knows which of the three it is.

The losses are sums over d_out and means over the batch; peers who average over d_out have coefficients d_out times
smaller. Read next: standard.py (the shortest variant), dense.py (its gradients), training.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from toylab.data import generator
from toylab.errors import require

Params = dict[str, Tensor]
Knobs = dict[str, Tensor]  # the numbers of a spec that may differ between stacked members, each [sae, 1, 1]


@dataclass(frozen=True, kw_only=True)
class SAESpec:
    """Settings that every variant has.

    d_sae: number of latents. lr: Adam's. seed: of the initialisation and of resampling.
    apply_b_dec_to_input: encode x - b_dec instead of x (never for a transcoder: b_dec lives in the output there).
    skip: add x W_skip to the output (skip transcoders; Paulo et al. 2025, arXiv 2501.18823).
    """

    d_sae: int
    lr: float
    seed: int = 0
    apply_b_dec_to_input: bool = True
    skip: bool = False

    KNOBS: ClassVar[tuple[str, ...]] = ()  # fields that may differ between stacked members, besides lr, seed, d_sae
    WARMED: ClassVar[tuple[str, ...]] = ()  # those of them that the sparsity warm-up multiplies
    UNIT_DECODER: ClassVar[bool] = True  # rows of W_dec are kept at norm 1
    BIASES: ClassVar[tuple[str, ...]] = ("b_enc",)

    def __post_init__(self):
        require(self.d_sae >= 1, f"d_sae={self.d_sae}: at least one latent")
        require(self.lr > 0 and math.isfinite(self.lr), f"lr={self.lr}: more than 0; 3e-4 is a usual start")
        require(
            not (self.skip and self.apply_b_dec_to_input),
            "skip=true belongs to transcoders, whose b_dec lives in the output: set apply_b_dec_to_input=false",
        )

    # --- what a variant says of itself -------------------------------------------------------------------------------

    def start(self, params: Params, x: Tensor) -> None:
        """Parameters beyond the shared ones, into `params` (one member, no stack axis)."""

    def threshold(self, params: Params, z: Tensor) -> Tensor:
        """f from pre-activations z [..., batch, d_sae], as the finished dictionary computes it."""
        raise NotImplementedError

    def gradients(self, params: Params, x: Tensor, y: Tensor, knobs: Knobs, state: State) -> tuple[Params, Stats]:
        """Gradients of the training loss, summed over the stack so that each member has its own."""
        raise NotImplementedError

    def before_step(self, params: Params, x: Tensor, knobs: Knobs, state: State) -> None:
        """Schedules that need a look at the data; changes `state.extra`."""

    def after_step(self, params: Params) -> None:
        """Constraints on the variant's own parameters, in place."""


@dataclass
class Stats:
    """What one step saw of each member: summed squared error [sae], sums of every latent's activation over the batch
    [sae, d_sae], and the count of active latents [sae]."""

    squared_error: Tensor
    sum_f: Tensor
    active: Tensor


@dataclass
class State:
    """What a step may depend on besides the parameters: the step, their total, dead latents [sae, d_sae], the
    variant's own running values ([sae] each, saved and resumed), and whether to count the active latents, which costs a
    dense dictionary as much as a matrix product."""

    step: int
    steps: int
    dead: Tensor
    extra: dict[str, Tensor]
    count: bool = True


def initialise(spec: SAESpec, x: Tensor, y: Tensor, b_dec: Tensor, autoencodes: bool, norm: float = 1.0) -> Params:
    """Fresh parameters of one dictionary for inputs like x [rows, d_in] and targets like y [rows, d_out].

    Rows of W_dec are random directions; W_enc is its transpose for an autoencoder (the most useful single measure
    against dead latents), else random directions of its own. Drawn in float32 whatever the dtype.
    """
    # Not the models' "init": of equal shape and seed, a toy model's W would be where its dictionary starts.
    draw = generator(spec.seed, "sae init")

    def directions(width: int) -> Tensor:
        rows = torch.randn(spec.d_sae, width, generator=draw)
        return (norm * rows / rows.norm(dim=1, keepdim=True)).to(x)

    W_dec = directions(y.shape[1])
    W_enc = W_dec.T.clone() if autoencodes else directions(x.shape[1]).T.contiguous()
    params = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec.to(x)}
    params |= {name: x.new_zeros(spec.d_sae) for name in spec.BIASES}
    if spec.skip:
        params["W_skip"] = x.new_zeros(x.shape[1], y.shape[1])
    spec.start(params, x)
    return params


def pre_bias(spec: SAESpec, params: Params) -> Tensor:
    """What is added to x W_enc before the activation, [..., 1, d_sae].

    (x - b_dec) W_enc + b_enc = x W_enc + (b_enc - b_dec W_enc): the subtraction leaves the batch, and so does one of
    six matrix products from the gradient, which nobody needs with respect to x.
    """
    bias = params["b_enc"][..., None, :] if "b_enc" in params else 0 * params["W_enc"][..., :1, :]
    if spec.apply_b_dec_to_input:
        bias = bias - params["b_dec"][..., None, :] @ params["W_enc"]
    return bias


def add_bias_gradients(spec: SAESpec, params: Params, grads: Params, sum_dz: Tensor) -> None:
    """What pre_bias passes on of sum_dz [sae, d_sae], the gradient of the pre-activations summed over the batch.

    With x W_enc counted elsewhere: W_enc's gradient is (x - b_dec)^T dz, of which - b_dec^T sum_dz belongs here.
    """
    if "b_enc" in params:
        grads["b_enc"] += sum_dz
    if spec.apply_b_dec_to_input:
        grads["b_dec"] -= torch.einsum("sm,sdm->sd", sum_dz, params["W_enc"])
        grads["W_enc"] -= params["b_dec"][:, :, None] * sum_dz[:, None]


def decoder_norms(W_dec: Tensor, sources: int = 1) -> Tensor:
    """Sum over sources of |W_dec,i^source|, [..., d_sae]: the L1 of norms that crosscoders are penalised with."""
    return W_dec.unflatten(-1, (sources, -1)).norm(dim=-1).sum(-1)


def geometric_median(x: Tensor, steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point of least summed distance to the rows of x (Weiszfeld's iteration, from the mean).

    Known exactly: of points symmetric about a centre it is the centre; an outlier moves it less than the mean.
    """
    centre = x.mean(0)
    for _ in range(steps):
        # A row that the centre sits on would weigh infinitely much.
        weight = 1 / (x - centre).norm(dim=1).clamp(min=1e-12)
        before, centre = centre, (weight[:, None] * x).sum(0) / weight.sum()
        if (centre - before).norm() <= tolerance * centre.norm():
            break
    return centre


def remove_parallel(grad: Tensor, W_dec: Tensor) -> Tensor:
    """The gradient without its part along each unit row of W_dec: only that part would change the norms."""
    return grad - (grad * W_dec).sum(-1, keepdim=True) * W_dec


def knob_table(specs: list[Any], like: Tensor) -> Knobs:
    """Every knob of every member, [sae, 1, 1]."""
    return {
        name: torch.tensor([float(getattr(s, name)) for s in specs], dtype=like.dtype)[:, None, None]
        for name in specs[0].KNOBS
    }
