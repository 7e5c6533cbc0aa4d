"""What a dictionary does to activations: how well it rebuilds them, how sparsely, and what the model loses by it.

1. `reconstruction(x, recon, acts)` -> `Reconstruction`: sums over one batch. Sums of pieces add up (a + b), so data may
   come in a stream; every ratio is taken once, of the totals. The mean of per-batch ratios is another number.
2. `evaluate(dictionary, batches)`: those sums over a stream.
3. `loss_recovered(model, ...)` -> `LossRecovered`: the reconstruction put in the activation's place.

Letters: n rows, d width, d_sae latents; `*sae` is any number of leading axes (a stack of dictionaries, checkpoints,
seeds) on one shared x. W_dec [*sae, d_sae, d] holds one direction per row, as in SAELens.
None of this needs to know the truth. Read next: recovery.py (directions against the truth), agreement.py (firing).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import one_of, require
from toylab.interp.steering import Steer
from toylab.taps import Tapped

ABLATIONS = ("zero", "mean")


@runtime_checkable
class Dictionary(Protocol):
    """What the metrics ask of a trained dictionary. `encode` is the one used after training (BatchTopK: threshold)."""

    @property
    def W_dec(self) -> Tensor: ...

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, acts: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Sums over n rows, in float64; x^ is the reconstruction and f the latents' activations. a + b is both pieces.

    mean [d], spread: of x, spread = sum |x - mean|^2.  error: sum |x - x^|^2.  energy, overlap: sums of |x^|^2, x . x^.
    n_long: rows with |x| >= 1e-6.  cosines, ratios: sums over those of cos(x, x^) and |x^| / |x|.
    fired [*sae, d_sae]: rows where a latent is above 0.
    """

    n: int
    mean: Float[Tensor, " d"]
    spread: Float[Tensor, ""]
    error: Float[Tensor, "*sae"]
    energy: Float[Tensor, "*sae"]
    overlap: Float[Tensor, "*sae"]
    n_long: int
    cosines: Float[Tensor, "*sae"]
    ratios: Float[Tensor, "*sae"]
    fired: Float[Tensor, "*sae d_sae"]

    def __add__(self, other: Reconstruction) -> Reconstruction:
        n, step = self.n + other.n, other.mean - self.mean
        return Reconstruction(
            n=n,
            mean=self.mean + step * (other.n / n),
            spread=self.spread + other.spread + step.pow(2).sum() * (self.n * other.n / n),
            error=self.error + other.error,
            energy=self.energy + other.energy,
            overlap=self.overlap + other.overlap,
            n_long=self.n_long + other.n_long,
            cosines=self.cosines + other.cosines,
            ratios=self.ratios + other.ratios,
            fired=self.fired + other.fired,
        )

    @property
    def l0(self) -> Float[Tensor, "*sae"]:
        """Mean number of latents above 0 per row."""
        return self.fired.sum(-1) / self.n

    @property
    def mse(self) -> Float[Tensor, "*sae"]:
        """Mean of |x - x^|^2, summed over d."""
        return self.error / self.n

    @property
    def fvu(self) -> Float[Tensor, "*sae"]:
        """E|x - x^|^2 / E|x - E x|^2. Raises where x does not vary.

        Exactly 1 for x^ = E x, 0 for x^ = x, the same for c x + v with c x^ + v. Chance: a dictionary that knows only
        the mean has 1; one that says something unrelated has more.
        """
        require(
            bool(self.spread > 1e-12 * self.n * self.mean.pow(2).sum()) and bool(self.spread > 0),
            f"all {self.n} rows of x are the same: there is no variance to explain",
        )
        return self.error / self.spread

    @property
    def explained_variance(self) -> Float[Tensor, "*sae"]:
        """1 - fvu."""
        return 1 - self.fvu

    @property
    def cosine(self) -> Float[Tensor, "*sae"]:
        """Mean cosine of x and x^ (0 where x^ = 0), over rows with |x| >= 1e-6. Depends on the origin, unlike fvu."""
        return self.cosines / max(1, self.n_long)

    @property
    def shrinkage(self) -> Float[Tensor, "*sae"]:
        """Mean of |x^| / |x| over rows with |x| >= 1e-6: below 1 the dictionary says less than it sees.

        Confounded with a large mean or b_dec; agreement.shrinkage compares with true coefficients instead.
        """
        return self.ratios / max(1, self.n_long)

    @property
    def relative_bias(self) -> Float[Tensor, "*sae"]:
        """gamma = E|x^|^2 / E[x . x^]; x^ / gamma is the rescaled reconstruction with the least error."""
        return self.energy / self.overlap

    @property
    def density(self) -> Float[Tensor, "*sae d_sae"]:
        """Share of the n rows on which each latent fires."""
        return self.fired / self.n

    @property
    def dead(self) -> Float[Tensor, "*sae"]:
        """Share of the latents that never fired in these n rows. (Papers take n = 10 million tokens: state yours.)"""
        return (self.fired == 0).double().mean(-1)

    def dense(self, above: float = 0.1) -> Float[Tensor, "*sae"]:
        """Share of the latents that fire on more than this share of the rows."""
        return (self.density > above).double().mean(-1)


def reconstruction(
    x: Float[Tensor, "n d"], recon: Float[Tensor, "*sae n d"], acts: Float[Tensor, "*sae n d_sae"]
) -> Reconstruction:
    """The sums for these rows. x and recon on one scale: undo any normalisation of the inputs first. Raises on NaN."""
    require(len(x) > 0, "no rows arrived")
    x, recon = x.double(), recon.double()
    mean = x.mean(0)
    error = (x - recon).pow(2).sum((-2, -1))
    require(bool(error.isfinite().all()), "the activations or their reconstruction hold NaN or infinity")
    length, recon_length = x.norm(dim=-1), recon.norm(dim=-1)
    inner, long = (x * recon).sum(-1), length >= 1e-6
    ratio = torch.where(long, recon_length / length.clamp_min(1e-6), 0)
    both = long & (recon_length > 0)
    cosine = torch.where(both, inner / torch.where(both, length * recon_length, 1), 0)
    return Reconstruction(
        n=len(x),
        mean=mean,
        spread=(x - mean).pow(2).sum(),
        error=error,
        energy=recon_length.pow(2).sum(-1),
        overlap=inner.sum(-1),
        n_long=int(long.sum()),
        cosines=cosine.sum(-1),
        ratios=ratio.sum(-1),
        fired=(acts > 0).sum(-2).double(),
    )


@torch.no_grad()
def evaluate(dictionary: Dictionary, batches: Iterable[Float[Tensor, "n d"]]) -> Reconstruction:
    """The sums over a stream of batches, one in memory at a time."""

    def one(x: Tensor) -> Reconstruction:
        acts = dictionary.encode(x)
        return reconstruction(x, dictionary.decode(acts), acts)

    parts = iter(batches)
    first = next(parts, None)
    require(first is not None, "the stream of batches is empty")
    assert first is not None
    return reduce(operator.add, (one(x) for x in parts), one(first))


# --- In the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossRecovered:
    """Mean losses over `n` targets with the activation intact, replaced by its reconstruction, and ablated.

    ablation names what `ablated` is: the score means nothing without it. a + b is the losses over both batches.
    """

    ablation: str
    n: int
    clean: float
    replaced: float
    ablated: float

    def __post_init__(self):
        one_of("ablation", self.ablation, ABLATIONS)

    def __add__(self, other: LossRecovered) -> LossRecovered:
        assert self.ablation == other.ablation, f"{self.ablation} + {other.ablation}"
        n = self.n + other.n
        pairs = ((getattr(self, key), getattr(other, key)) for key in ("clean", "replaced", "ablated"))
        return LossRecovered(self.ablation, n, *((a * self.n + b * other.n) / n for a, b in pairs))

    @property
    def value(self) -> float:
        """(ablated - replaced) / (ablated - clean): 1 for the identity, 0 for the ablation itself; may leave [0, 1].

        With KL divergences from the clean outputs in place of losses (clean = 0) this is the KL recovered.
        """
        require(
            self.ablated != self.clean,
            f"{self.ablation} ablation leaves the loss at {self.clean}: this site does not matter here",
        )
        return (self.ablated - self.replaced) / (self.ablated - self.clean)


@torch.no_grad()
def loss_recovered(
    model: Tapped,
    inputs: Tensor,
    losses: Callable[[Tensor], Tensor],
    site: str,
    reconstruct: Callable[[Tensor], Tensor],
    ablation: str,
    mean: Float[Tensor, " d"] | None = None,
) -> LossRecovered:
    """Three passes: intact, the site replaced by reconstruct(x), the site ablated.

    losses:      outputs -> one loss per target, for instance lambda out: cross_entropy(out[:, -1:], batch.targets).
    reconstruct: x [batch, ..., d] -> the same shape; called on what the site holds at every position.
    ablation:    "zero" or "mean". mean [d]: that of the site over all data; needed for "mean", and the same for every
                 batch that will be added up. Null: reconstruct = the ablation gives 0, the identity gives 1, exactly.
    """
    one_of("ablation", ablation, ABLATIONS)
    require((ablation == "mean") == (mean is not None), "give mean= with ablation='mean', and only then")
    constant = torch.zeros(()) if mean is None else mean
    clean, replaced, ablated = (
        losses(model(inputs) if change is None else model(inputs, Steer(site, change))).double()
        for change in (None, reconstruct, lambda x: constant.to(x).expand_as(x))
    )
    return LossRecovered(ablation, clean.numel(), float(clean.mean()), float(replaced.mean()), float(ablated.mean()))
