"""Edits through a dictionary's latents, as values: each is a hook and a tap like those of steering.py.

    model.run_with_hooks(x, [clamp(sae, {17: 0.0}).hook])      model(x, ablate(sae, [17, 40]))

Every edit but `splice` keeps what the dictionary does not explain: with f the latents and f' the edited ones,

    x' = x + (f' - f) W_dec          so that x' - decode(f') = x - decode(f), the same error as before.

Known exactly: f' = f changes nothing, whatever the dictionary's error. Replacing x by its reconstruction (`splice`) is
for measuring what the reconstruction costs, and for nothing else. A transcoder reads one site and writes another:
`Transcoded` is the tap for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import UserError, require
from toylab.interp.sae.dictionary import SAE
from toylab.interp.steering import Steer
from toylab.taps import Tap, site_name

Positions = Sequence[int] | None


def edit(
    sae: SAE, change: Callable[[Float[Tensor, "*batch d_sae"]], Tensor], positions: Positions = None
) -> Steer:  # fmt: skip
    """x + (change(f) - f) W_dec at the dictionary's site; change gets f [..., d_sae] and may not alter it in place."""

    def at(x: Tensor) -> Tensor:
        f = sae.encode(x)
        return x + ((change(f) - f) @ sae.W_dec).to(x)

    return Steer(_site(sae), _on_rows(sae, at), positions)


def clamp(sae: SAE, values: Mapping[int, float], positions: Positions = None) -> Steer:
    """These latents at these values, whatever they were: x + sum_i (c_i - f_i) W_dec,i."""
    latents = _latents(sae, list(values))
    targets = torch.tensor(list(values.values()), dtype=sae.W_dec.dtype)
    return edit(sae, lambda f: f.index_copy(-1, latents, targets.expand(*f.shape[:-1], -1)), positions)


def ablate(sae: SAE, latents: Sequence[int], positions: Positions = None) -> Steer:
    """These latents at 0."""
    return clamp(sae, dict.fromkeys(latents, 0.0), positions)


def steer(sae: SAE, latent: int, scale: float, positions: Positions = None) -> Steer:
    """x + scale * W_dec,i / |W_dec,i|, whatever the latent was: scale is a length in the space of the site."""
    direction = sae.W_dec[_latents(sae, [latent])[0]]
    require(bool(direction.norm() > 0), f"latent {latent} has a decoder row of zeros: it points nowhere")
    return Steer(_site(sae), _on_rows(sae, lambda x: x + (scale * direction / direction.norm()).to(x)), positions)


def splice(sae: SAE, positions: Positions = None) -> Steer:
    """The reconstruction in place of x: the error is gone."""
    return Steer(_site(sae), _on_rows(sae, lambda x: sae(x).to(x)), positions)


@dataclass
class Transcoded(Tap):
    """A transcoder in the model: its output in place of the target site's value, or with `change` the edit
    y + (change(f) - f) W_dec, which keeps its error. A tap: model(x, Transcoded(sae))."""

    sae: SAE
    change: Callable[[Tensor], Tensor] | None = None
    x: Tensor | None = field(default=None, repr=False)

    def __post_init__(self):
        origin = self.sae.origin
        require(len(origin.targets) == 1, f"{self.sae!r} is no transcoder between sites of a model; see edit, splice")

    def __call__(self, name: str, layer: int | None, value: Tensor) -> Tensor:
        full = site_name(name, layer)
        if full == self.sae.origin.targets[0]:
            x, self.x = self.x, None
            if x is None:
                raise UserError(f"{full} comes before {self.sae.origin.sites[0]} in this model")
            if self.change is None:
                return self.sae(x).to(value)
            f = self.sae.encode(x)
            return value + ((self.change(f) - f) @ self.sae.W_dec).to(value)
        if full == self.sae.origin.sites[0]:
            self.x = value
        return value

    def wants(self, name: str, layer: int | None) -> bool:
        return site_name(name, layer) in (*self.sae.origin.sites, *self.sae.origin.targets)


def _site(sae: SAE) -> str:
    origin = sae.origin
    require(len(origin.sites) == 1, f"{sae!r} reads {len(origin.sites)} sites; an edit needs a dictionary of one")
    require(not origin.targets, f"{sae!r} writes another site than it reads: use Transcoded(sae)")
    return origin.sites[0]


def _latents(sae: SAE, latents: list[int]) -> Tensor:
    for i in latents:
        require(-sae.spec.d_sae <= i < sae.spec.d_sae, f"there is no latent {i} among {sae.spec.d_sae}")
    return torch.tensor(latents, dtype=torch.int64) % sae.spec.d_sae


def _on_rows(sae: SAE, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """change for sites with a head axis too: their heads stand side by side in the dictionary's rows."""
    d = len(sae.W_enc)

    def at(x: Tensor) -> Tensor:
        return change(x) if x.shape[-1] == d else change(x.flatten(-2)).view(x.shape)

    return at
