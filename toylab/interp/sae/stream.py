"""Where activations come from: any sites of any checkpoints, a tensor, or a function that makes more.

    Stream.of_snapshot(run.final, ("resid_post", 0))           an autoencoder's: out what came in
    Stream.of_snapshot(snap, "ln2_normalized0", "mlp_out0")    a transcoder's: another site of the same pass
    Stream.of_sources([(run.snapshot(s), "hidden") for s in run.pick("log:8")])        a crosscoder's: side by side
    Stream.of_tensor(x), Stream.of_function(lambda n, generator: ...)                  synthetic features

A finite world's activations are computed once, then visited in a fresh random order again and again; a streaming world
makes new examples for every block. Rows are shuffled within a block, so that positions of one example do not travel
together. A stream's place is a generator and a count (`state`), so training can go on from it to the same bits.

Each source is scaled so that E|x| = sqrt(d) (what the published coefficients mean) unless told otherwise; training.py
folds the scale into the weights at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toylab.data import generator
from toylab.errors import UserError, one_of, require
from toylab.taps import SITES, act_name, site_of

NORMALISE = ("sqrt_d", "unit", "none")
FORWARD = 4096  # examples in one forward pass

SiteName = str | tuple
Draw = Callable[[torch.Generator], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Origin:
    """What a dictionary belongs to: the full names of the sites it reads and (transcoders) of those it is asked for,
    and the hash of the checkpoint behind each of the sites it reads."""

    sites: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def check(self, snapshot: Any, site: SiteName | None = None) -> None:
        """Raise UserError unless the snapshot is one that these dictionaries were trained on, and the site too."""
        require(bool(self.sites), "this dictionary was trained on no model's activations, so it fits no snapshot")
        have = checkpoint_hash(snapshot)
        require(
            have in self.checkpoints,
            f"this dictionary belongs to checkpoint {self.checkpoints[0][:12]}..., not to {have[:12]}... (step "
            f"{snapshot.step}): its directions mean nothing in another model; load the one, or train on the other",
        )
        if site is not None:
            full = act_name(*((site,) if isinstance(site, str) else site))
            here = [s for s, c in zip(self.sites, self.checkpoints, strict=True) if c == have]
            require(
                full in (*here, *self.targets),
                f"this dictionary reads {', '.join(dict.fromkeys(here))}, not {full}; train one there",
            )


def checkpoint_hash(snapshot: Any) -> str:
    """The hash of the snapshot's checkpoint file; of its weights when it has none (a live or hand-built model)."""
    if snapshot.sha256:
        return snapshot.sha256
    digest = hashlib.sha256()
    for name, tensor in snapshot.model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"weights:{digest.hexdigest()}"


class Stream:
    """Batches (x [n, d_in], y [n, d_out]) for ever; y is x unless something else is asked for.

    draw(generator) gives a block of rows (and targets, or None). finite: it is always the same block, drawn once.
    sources: how many equal parts x is made of. scale_in [d_in], scale_out [d_out] multiply what comes out.
    Raises UserError for activations that are not finite or all zero, saying where they came from.
    """

    def __init__(
        self, draw: Draw, origin: Origin, *, finite: bool, seed: int = 0, normalise: str = "sqrt_d", sources: int = 1
    ):
        one_of("normalise", normalise, NORMALISE)
        self.draw, self.origin, self.finite, self.sources, self.normalise = draw, origin, finite, sources, normalise
        self.generator = generator(seed, "sae stream")
        self.block: tuple[Tensor, Tensor | None] | None = None
        self._begin_block()
        self.autoencodes = self._drawn[1] is None
        x, y = self._rows(slice(None))
        self.d_in, self.d_out = x.shape[1], y.shape[1]
        self.scale_in = _scale(x, sources, normalise)
        self.scale_out = self.scale_in if self.autoencodes else _scale(y, 1, normalise)

    @classmethod
    def of_tensor(cls, x: Tensor, y: Tensor | None = None, origin: Origin | None = None, **settings: Any) -> Stream:
        """Rows of a tensor, shuffled; y [rows, d_out] is what a transcoder is asked for."""
        require(x.ndim == 2 and len(x) > 0, f"activations of shape {tuple(x.shape)} arrived; expected [rows, d]")
        require(
            y is None or (y.ndim == 2 and len(y) == len(x)),
            f"targets of shape {None if y is None else tuple(y.shape)} for {len(x)} rows; expected [{len(x)}, d_out]",
        )
        return cls(lambda _: (x, y), origin or Origin(), finite=True, **settings)

    @classmethod
    def of_function(
        cls, sample: Callable[[int, torch.Generator], Tensor], rows: int = 1 << 16, **settings: Any
    ) -> Stream:
        """Blocks of `rows` fresh rows from sample(n, generator) -> [n, d]."""
        return cls(lambda g: (sample(rows, g), None), Origin(), finite=False, **settings)

    @classmethod
    def of_snapshot(cls, snapshot: Any, site: SiteName, target: SiteName | None = None, **settings: Any) -> Stream:
        """Activations of one site; with a target, what a transcoder between the two sees. See of_sources."""
        return cls.of_sources([(snapshot, site)], target, **settings)

    @classmethod
    def of_sources(
        cls,
        sources: Sequence[tuple[Any, SiteName]],
        target: SiteName | None = None,
        *,
        positions: Sequence[int] | None = None,
        rows: int = 1 << 16,
        **settings: Any,
    ) -> Stream:
        """Several (snapshot, site) side by side, on the same inputs: x [rows, sources * d].

        positions: None = those the task asks about. target: a site of the first snapshot. Positions whose weight is 0
        (padding) are left out. A streaming task makes about `rows` rows per block.
        """
        require(len(sources) > 0, "a stream needs at least one (snapshot, site)")
        pairs = [(snapshot, _full(snapshot, site)) for snapshot, site in sources]
        wanted = pairs if target is None else [*pairs, (pairs[0][0], _full(pairs[0][0], target))]
        first = pairs[0][0]
        split, read = first.split, first.batch.read
        chosen = positions if positions is not None else read

        def activations(batch: Any) -> tuple[Tensor, Tensor | None]:
            parts = [_activations(snapshot, site, batch, chosen, positions is None) for snapshot, site in wanted]
            x = torch.cat(parts[: len(pairs)], dim=1)
            return x, None if target is None else parts[-1]

        if split.train is not None:
            whole = activations(split.all)
            draw: Draw = lambda _: whole  # noqa: E731
        else:
            examples = max(1, -(-rows // max(1, len(activations(split.all[:1])[0]))))
            draw = lambda g: activations(first.task.sample(examples, g))  # noqa: E731
        widths = {draw_width(s) for s in pairs}
        require(len(widths) == 1, f"the sources have widths {sorted(widths)}; a crosscoder needs equal ones")
        origin = Origin(
            tuple(site for _, site in pairs),
            tuple(checkpoint_hash(snapshot) for snapshot, _ in pairs),
            () if target is None else (wanted[-1][1],),
        )
        return cls(draw, origin, finite=split.train is not None, sources=len(pairs), **settings)

    def next(self, n: int) -> tuple[Tensor, Tensor]:
        """n rows, scaled; no row twice before all of its block were seen."""
        parts = []
        while n:
            if self.at == len(self.order):
                self._begin_block()
            taken = self.order[self.at : self.at + n]
            parts.append(self._rows(taken))
            self.at += len(taken)
            n -= len(taken)
        x, y = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        scaled = x * self.scale_in
        return scaled, scaled if self.autoencodes else y * self.scale_out

    def _rows(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        x, y = self._drawn
        return x[rows], x[rows] if y is None else y[rows]

    @property
    def _drawn(self) -> tuple[Tensor, Tensor | None]:
        assert self.block is not None
        return self.block

    def _begin_block(self) -> None:
        """A new block unless the world is finite, and a new order of its rows."""
        self.block_state = self.generator.get_state()
        if self.block is None or not self.finite:
            x, y = self.draw(self.generator)
            self.block = (x.detach(), None if y is None else y.detach())
            for t in self.block:
                self._check(t)
        self.order, self.at = torch.randperm(len(self._drawn[0]), generator=self.generator), 0

    def _check(self, x: Tensor | None) -> None:
        if x is None:
            return
        where = f" of {', '.join(self.origin.sites)}" if self.origin.sites else ""
        bad = (~x.isfinite()).sum().item()
        require(not bad, f"{bad} of {x.numel()} activations{where} are NaN or infinite; look at the model's own loss")
        require(bool((x != 0).any()), f"all {x.numel()} activations{where} are 0: there is nothing to learn there")

    def state(self) -> dict[str, Tensor]:
        """Its place, as tensors."""
        return {"generator": self.block_state, "at": torch.tensor(self.at)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self._begin_block()
        self.at = int(state["at"])

    def __repr__(self) -> str:
        kind = "finite" if self.finite else "fresh"
        return f"Stream({kind}, [{self.d_in}] -> [{self.d_out}], {', '.join(self.origin.sites) or 'no model'})"


def rows_of(snapshot: Any, site: SiteName) -> Tensor:
    """[rows, d]: what a stream of this site is made of, for the snapshot's own examples."""
    return _activations(snapshot, _full(snapshot, site), snapshot.batch, snapshot.batch.read, True)


def _scale(x: Tensor, sources: int, normalise: str) -> Tensor:
    """[d]: for each source, sqrt(d) / E|x| or 1 / sqrt(E|x|^2) or 1, repeated over its d entries."""
    parts = x.unflatten(1, (sources, -1))
    norms, d = parts.norm(dim=2), parts.shape[2]
    if normalise == "none":
        scale = norms.new_ones(sources)
    elif normalise == "sqrt_d":
        scale = d**0.5 / norms.mean(0)
    else:
        scale = 1 / norms.square().mean(0).sqrt()
    require(bool(scale.isfinite().all()), "one of the sources is all zeros: there is nothing to learn there")
    return scale.repeat_interleave(d)


def _full(snapshot: Any, site: SiteName) -> str:
    (full,) = snapshot.model.find_sites(site)
    axes = SITES[site_of(full)[0]].axes.split()
    if axes[-1] in ("key", "one"):
        raise UserError(f"{full} is [{' '.join(axes)}]: a dictionary needs a site whose last axis is a space")
    return full


@torch.no_grad()
def _activations(snapshot: Any, site: str, batch: Any, positions: Sequence[int] | None, asked: bool) -> Tensor:
    """[rows, d] of one site: heads side by side, positions one below the other, unasked ones (weight 0) left out."""
    parts = [snapshot.model.run_with_cache(inputs, site)[1][site] for inputs in batch.inputs.split(FORWARD)]
    value = torch.cat(parts)
    axes = SITES[site_of(site)[0]].axes.split()
    if axes[1] != "pos":
        return value
    value = value.flatten(2) if "head" in axes else value
    value = value if positions is None else value[:, list(positions)]
    rows = value.flatten(0, 1)
    weight = batch.weight
    return rows[weight.flatten() > 0] if asked and weight is not None and weight.shape == value.shape[:2] else rows


@torch.no_grad()
def draw_width(pair: tuple[Any, str]) -> int:
    """Entries of one row of a (snapshot, site)."""
    snapshot, site = pair
    value = snapshot.model.run_with_cache(snapshot.model.example_input(), site)[1][site]
    return value.flatten(2).shape[2] if value.ndim == 4 else value.shape[-1]
