"""Lenses: what the model would answer if the residual stream went to the unembedding from where it stands.

1. `logit_lens`: final norm and unembedding of the stream before each block and at the end. Each stream is normed by its
   own statistics (the last row therefore is the model's output); attribution, which splits one stream, uses the final
   ones (residual.py).
2. `fit_tuned_lens`: an affine translator per layer, h -> h + h A + b, before the final norm, so that the lens's answer
   is as near as possible to the model's, KL(model || lens). Starts at the identity (the logit lens), then takes the
   least-squares map to the final stream if that is nearer, then full-batch L-BFGS steps: a few dozen on a toy, no
   learning rate, and the KL never goes up.

Sources: nostalgebraist 2020 (logit lens); Belrose et al. 2023 (arXiv 2303.08112, tuned lens). Came from: residual.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.errors import require
from toylab.interp.residual import Stack, accumulated_resid
from toylab.taps import Cache


def lens_logits(model, stack: Stack) -> Float[Tensor, "component batch pos d_out"]:
    """Final norm (each row's own statistics), W_U and b_U of every row of a stack of streams."""
    return model.unembed(stack.values.flatten(0, 1)).unflatten(0, stack.values.shape[:2])


@torch.no_grad()
def logit_lens(model, cache: Cache, incl_mid: bool = False) -> tuple[Float[Tensor, "layer batch pos d_out"], tuple]:
    """(logits, labels "0_pre", ..., "final_post"): the last row is the model's output, exactly."""
    stack = accumulated_resid(model, cache, incl_mid=incl_mid)
    return lens_logits(model, stack), stack.labels


def kl_to(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax(logits)) in nats along the last axis."""
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators fitted on one model: h -> h + h A[layer] + b[layer] for the stream before block `layer`.

    kl: [step, layer], mean KL(model || lens) in nats on the data of the fit; row 0 is the logit lens, no later row is
    larger.
    """

    A: Float[Tensor, "layer d_model d_model"]
    b: Float[Tensor, "layer d_model"]
    kl: Float[Tensor, "step layer"]

    def translate(self, layer: int, h: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return h + h @ self.A[layer] + self.b[layer]

    @torch.no_grad()
    def __call__(self, model, cache: Cache) -> tuple[Float[Tensor, "layer batch pos d_out"], tuple]:
        """(logits, labels): each layer's answer, and the model's own as the last row, which has no translator."""
        stack = accumulated_resid(model, cache)
        rows = [self.translate(layer, h) for layer, h in enumerate(stack.values[:-1])]
        return lens_logits(model, Stack(torch.stack([*rows, stack.values[-1]]), stack.labels)), stack.labels

    def __repr__(self) -> str:
        shown = ", ".join(f"{a:.3g} -> {b:.3g}" for a, b in zip(self.kl[0].tolist(), self.kl[-1].tolist(), strict=True))
        return f"TunedLens({len(self.A)} layers, {len(self.kl) - 1} steps; KL {shown} nats)"


def fit_tuned_lens(
    model, tokens: Int[Tensor, "batch pos"], steps: int, positions: tuple[int, ...] | None = None
) -> TunedLens:
    """A TunedLens for the stream before every block: minimises the mean KL(model || lens) over these tokens.

    steps: the first is the closed form, the others are L-BFGS iterations; 0 is the logit lens. positions: which count;
    None = all. Model weights stay as they are. Raises UserError for a model without a residual stream.
    """
    require(steps >= 0, f"steps={steps}: 0 (the logit lens) or more")
    with torch.no_grad():
        outputs, cache = model.run_with_cache(tokens)
        streams = accumulated_resid(model, cache).values
        at = slice(None) if positions is None else list(positions)
        log_p = outputs[:, at].log_softmax(-1)
    fits = [_fit_layer(model, h[:, at], streams[-1][:, at], log_p, steps) for h in streams[:-1]]
    A, b, kl = (torch.stack(parts, -1 if i == 2 else 0) for i, parts in enumerate(zip(*fits, strict=True)))
    return TunedLens(A, b, kl)


def _fit_layer(model, h: Tensor, final: Tensor, log_p: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(A, b, mean KL after 0..steps iterations) for one layer."""
    d = h.shape[-1]
    A, b = h.new_zeros(d, d).requires_grad_(), h.new_zeros(d).requires_grad_()

    def loss() -> Tensor:
        return kl_to(log_p, model.unembed(h + h @ A + b)).mean()

    optimiser = torch.optim.LBFGS([A, b], max_iter=1, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        A.grad, b.grad = torch.autograd.grad(value, [A, b])
        return value

    with torch.enable_grad():
        kl = [loss().detach()]
        best = A.detach().clone(), b.detach().clone()
        for step in range(steps):
            if step == 0:
                _least_squares(A, b, h, final)
            else:
                optimiser.step(closure)
            value = loss().detach()
            if step == 0 and not value <= kl[0]:
                with torch.no_grad():
                    A.zero_(), b.zero_()
                value = kl[0]
            # The line search can fail at the last digits; a worse (or non-finite) point is not kept.
            if not value <= kl[-1]:
                kl += [kl[-1]] * (steps + 1 - len(kl))
                break
            best = A.detach().clone(), b.detach().clone()
            kl.append(value)
    return *best, torch.stack(kl)


@torch.no_grad()
def _least_squares(A: Tensor, b: Tensor, h: Tensor, final: Tensor) -> None:
    """Writes into A and b the smallest affine map with h + h A + b nearest to the final stream in squares."""
    flat, rest = h.flatten(0, -2), (final - h).flatten(0, -2)
    A.copy_(torch.linalg.pinv(flat - flat.mean(0)) @ (rest - rest.mean(0)))
    b.copy_(rest.mean(0) - flat.mean(0) @ A)
