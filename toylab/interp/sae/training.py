"""train_sae(): several dictionaries of one kind as one stacked program on one stream of activations.

    stream = Stream.of_snapshot(run.final, ("resid_post", 0))
    specs = [Standard(d_sae=512, lr=1e-3, l1=l1, seed=seed) for l1 in (1, 3, 10) for seed in (0, 1)]
    saes = train_sae(specs, stream, SAETraining(steps=5000, batch_size=4096)).saes

1. Every member starts from its own seed; its parameters are a row of the stack.
2. At every step one batch serves all: gradients (dense.py, sparse.py), then for each member on its own: the decoder
   gradient's parallel part removed, clipping, Adam, rows of W_dec renormalised, in this order.
3. Latents that have not fired for `dead_after` steps are dead: AuxK teaches them (TopK and its kin), or they are
   resampled (`resample_every`; the others).
Members may differ in lr, seed, d_sae (narrow ones are padded with latents that never change) and their kind's own
numbers (l1, k, ...). Adam works on each number by itself, so a member is the same in a stack and alone.

With a path the state is saved every `save_every` steps and at an interrupt; the same call then goes on from it and ends
with the same bits. A finished path gives back what it holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from toylab.config import to_node
from toylab.data import generator
from toylab.durable import Interrupted, signals_caught, write_atomic
from toylab.errors import UserError, one_of, require
from toylab.interp.sae.dictionary import SAE, load, read_json, read_tensors, save
from toylab.interp.sae.spec import (
    Params,
    SAESpec,
    State,
    Stats,
    geometric_median,
    initialise,
    knob_table,
    pre_bias,
    remove_parallel,
)
from toylab.interp.sae.stream import Stream

B_DEC = ("geometric_median", "mean", "zero")
FIRST_ROWS = 4096  # from which the median is taken
WITHOUT_LATENTS = ("b_dec", "W_skip")


@dataclass(frozen=True, kw_only=True)
class SAETraining:
    """lr_warmup, sparsity_warmup: steps over which lr and the penalty rise linearly. lr_decay: the last share of the
    steps, over which lr falls to 0. clip: largest gradient norm of a member, None = none. b_dec: where it starts."""

    steps: int
    batch_size: int
    lr_warmup: int = 0
    lr_decay: float = 0.2
    sparsity_warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    dead_after: int = 1000
    resample_every: int | None = None
    b_dec: str = "geometric_median"
    log_every: int = 100
    save_every: int = 1000

    def __post_init__(self):
        for name in ("steps", "batch_size", "dead_after", "log_every", "save_every"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1")
        require(0 <= self.lr_decay <= 1, f"lr_decay={self.lr_decay} is outside [0, 1]: the last share of the steps")
        require(self.lr_warmup >= 0 and self.sparsity_warmup >= 0, "warm-ups are 0 or more steps")
        require(all(0 <= b < 1 for b in self.betas), f"betas={self.betas}: each in [0, 1)")
        require(self.clip is None or self.clip > 0, f"clip={self.clip}: more than 0, or None")
        require(self.resample_every is None or self.resample_every >= 1, f"resample_every={self.resample_every}: 1 up")
        one_of("b_dec", self.b_dec, B_DEC)

    def lr_factor(self, step: int) -> float:
        """What multiplies lr at this step, counted from 0."""
        warm = min((step + 1) / self.lr_warmup, 1.0) if self.lr_warmup else 1.0
        left = (self.steps - step) / (self.lr_decay * self.steps) if self.lr_decay else 1.0
        return min(warm, left)

    def sparsity_factor(self, step: int) -> float:
        return min((step + 1) / self.sparsity_warmup, 1.0) if self.sparsity_warmup else 1.0


@dataclass(frozen=True, eq=False)
class Trained:
    """saes: in the order of the specs. history: step [t]; fvu, l0, dead [t, sae] on the training batches of those
    steps, in the stream's scale."""

    saes: tuple[SAE, ...]
    history: dict[str, Tensor]


def train_sae(
    specs: Sequence[SAESpec],
    stream: Stream,
    training: SAETraining,
    path: str | Path | None = None,
    *,
    progress: bool = False,
) -> Trained:
    """Train all specs on the stream, as one program.

    Raises UserError when the specs cannot be stacked, would not fit into memory, when activations or losses are not
    finite, and when the path holds other settings or activations. Raises Interrupted after SIGINT or SIGTERM.
    """
    settings = _settings(specs, stream, training)
    if path is not None and (finished := _finished(Path(path), settings)):
        return finished
    trainer = SAETrainer(specs, stream, training)
    if path is not None:
        _resume(trainer, Path(path), settings)
    disable = None if progress else True
    with (
        signals_caught() as received,
        tqdm(total=training.steps, initial=trainer.step, unit="step", disable=disable) as bar,
    ):
        while trainer.step < training.steps:
            trainer.advance()
            bar.update()
            if path is not None and (received or trainer.step % training.save_every == 0):
                _save_state(trainer, Path(path))
            if received and trainer.step < training.steps:
                saved = f"{path} is saved: give the same call again to go on" if path else "it had no path to save to"
                raise Interrupted(f"stopped at step {trainer.step:,} of {training.steps:,}; {saved}", received[0])
    trained = Trained(trainer.dictionaries(), trainer.history())
    if path is not None:
        _finish(trained, Path(path), settings)
    return trained


class SAETrainer:
    """Stacked parameters [sae, ...], Adam's moments and the stream, at one step."""

    def __init__(self, specs: Sequence[SAESpec], stream: Stream, training: SAETraining):
        _check_stack(specs, stream)
        _check_memory(specs, stream, training)
        self.specs, self.stream, self.training = list(specs), stream, training
        self.spec = specs[0]  # of the stack: what may differ is in the knobs
        x, y = (
            t[:FIRST_ROWS] * c
            for t, c in zip(stream._rows(slice(None)), (stream.scale_in, stream.scale_out), strict=True)
        )
        b_dec = {"geometric_median": geometric_median, "mean": lambda y: y.mean(0), "zero": lambda y: 0 * y[0]}
        start = b_dec[training.b_dec](y)
        norm = 1.0 if self.spec.UNIT_DECODER else 0.1
        widest = max(s.d_sae for s in specs)
        members = [
            {n: _widen(n, p, widest) for n, p in initialise(s, x, y, start, stream.autoencodes, norm).items()}
            for s in specs
        ]
        self.params: Params = {name: torch.stack([m[name] for m in members]) for name in members[0]}
        self.moments = [{name: torch.zeros_like(p) for name, p in self.params.items()} for _ in range(2)]
        self.knobs = knob_table(self.specs, x)
        self.lr = torch.tensor([s.lr for s in specs], dtype=x.dtype)
        self.real = torch.arange(widest) < torch.tensor([s.d_sae for s in specs])[:, None]
        self.silent = torch.zeros(self.real.shape, dtype=torch.int64)
        self.extra: dict[str, Tensor] = {}
        self.resampling = [generator(s.seed, "resample") for s in specs]
        self.logged: list[Tensor] = []
        self.step = 0

    def advance(self) -> Stats:
        """One update of every member."""
        x, y = self.stream.next(self.training.batch_size)
        knobs = self._knobs()
        log = self.step % self.training.log_every == 0 or self.step == self.training.steps - 1
        state = State(self.step, self.training.steps, self.dead, self.extra, count=log)
        with torch.no_grad():
            self.spec.before_step(self.params, x, knobs, state)
            grads, stats = self.spec.gradients(self.params, x, y, knobs, state)
            self._check_finite(stats)
            if log:
                self._log(y, stats)
            self.update(grads)
        self.silent += 1
        self.silent[(stats.sum_f > 0) | ~self.real] = 0
        self.step += 1
        every = self.training.resample_every
        if every and self.step % every == 0:
            resample(self, x, y)
        return stats

    @property
    def dead(self) -> Tensor:
        """Latents that have not fired for `dead_after` steps [sae, d_sae]."""
        return self.silent >= self.training.dead_after

    def _knobs(self) -> dict[str, Tensor]:
        factor = self.training.sparsity_factor(self.step)
        return {name: v * factor if name in self.spec.WARMED else v for name, v in self.knobs.items()}

    @torch.no_grad()
    def update(self, grads: Params) -> None:
        """Constrain, clip, Adam, renormalise. Every line acts on each member by itself."""
        unit = self.spec.UNIT_DECODER
        if len({s.d_sae for s in self.specs}) > 1:
            grads = {name: _only_real(name, g, self.real) for name, g in grads.items()}
        if unit:
            grads["W_dec"] = remove_parallel(grads["W_dec"], self.params["W_dec"])
        if self.training.clip is not None:
            norms = torch.stack([g.flatten(1).norm(dim=1) if g.ndim > 1 else g.abs() for g in grads.values()]).norm(
                dim=0
            )
            shrink = (self.training.clip / norms.clamp(min=1e-12)).clamp(max=1)
            grads = {name: g * _column(shrink, g) for name, g in grads.items()}
        b1, b2 = self.training.betas
        lr = self.lr * self.training.lr_factor(self.step) / (1 - b1 ** (self.step + 1))
        root = math.sqrt(1 - b2 ** (self.step + 1))
        for name, p in self.params.items():
            g, m, v = grads[name], self.moments[0][name], self.moments[1][name]
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.addcdiv_(m * _column(-lr, p), v.sqrt().div_(root).add_(self.training.eps))
        if unit:
            self.params["W_dec"] /= self.params["W_dec"].norm(dim=-1, keepdim=True).clamp(min=1e-12)
        self.spec.after_step(self.params)

    def _check_finite(self, stats: Stats) -> None:
        bad = (~stats.squared_error.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"the loss of {[self.specs[i] for i in bad[:2]]} is not finite at step {self.step}: try a smaller lr"
            )

    def _log(self, y: Tensor, stats: Stats) -> None:
        spread = (y - y.mean(0)).square().sum()
        n = len(y)
        self.logged.append(
            torch.stack(
                [
                    torch.full_like(stats.active, self.step),
                    stats.squared_error / spread,
                    stats.active / n,
                    self.dead.sum(1).to(y),
                ]
            )
        )

    def history(self) -> dict[str, Tensor]:
        step, fvu, l0, dead = torch.stack(self.logged).unbind(1)
        return {"step": step[:, 0].long(), "fvu": fvu, "l0": l0, "dead": dead.long()}

    def dictionaries(self) -> tuple[SAE, ...]:
        """Every member by itself, cut to its width, for activations as the model has them."""
        stream = self.stream
        return tuple(
            SAE(
                spec,
                {name: _narrow(name, p[i], spec.d_sae).clone() for name, p in self.params.items()},
                stream.origin,
                stream.sources,
            ).fold_input_scale(stream.scale_in, stream.scale_out)
            for i, spec in enumerate(self.specs)
        )

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as tensors with flat names."""
        return (
            {f"params/{n}": t for n, t in self.params.items()}
            | {f"moment{i}/{n}": t for i, m in enumerate(self.moments) for n, t in m.items()}
            | {f"extra/{n}": t for n, t in self.extra.items()}
            | {f"stream/{n}": t for n, t in self.stream.state().items()}
            | {f"resample/{i}": g.get_state() for i, g in enumerate(self.resampling)}
            | {"silent": self.silent, "step": torch.tensor(self.step), "logged": torch.stack(self.logged)}
        )

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        def group(prefix: str) -> dict[str, Tensor]:
            return {k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(f"{prefix}/")}

        self.params, self.moments = group("params"), [group("moment0"), group("moment1")]
        self.extra, self.silent = group("extra"), tensors["silent"]
        self.stream.load_state(group("stream"))
        for i, g in enumerate(self.resampling):
            g.set_state(tensors[f"resample/{i}"])
        self.logged, self.step = list(tensors["logged"].unbind(0)), int(tensors["step"])


@torch.no_grad()
def resample(trainer: SAETrainer, x: Tensor, y: Tensor) -> None:
    """Give every dead latent of every member a new start (Bricken et al. 2023): an input drawn with probability
    proportional to its squared loss becomes its direction, read with 0.2 times the living latents' mean strength.

    Its moments start again too, and nothing of a living latent changes. The paper draws from 819,200 inputs; here they
    are those of the current batch.
    """
    dead = trainer.dead
    if not dead.any():
        return
    p, M = trainer.params, dead.shape[1]
    for s in dead.any(1).nonzero().flatten().tolist():
        one = {name: t[s] for name, t in p.items()}
        f = trainer.spec.threshold(one, x @ one["W_enc"] + pre_bias(trainer.spec, one))
        loss = (f @ one["W_dec"] + one["b_dec"] - y).square().sum(1)
        rows = torch.multinomial(loss.square().clamp(min=1e-30), M, replacement=True, generator=trainer.resampling[s])
        alive, here = trainer.real[s] & ~dead[s], dead[s]
        strength = 0.2 * (one["W_enc"].norm(dim=0)[alive].mean() if alive.any() else 1.0)
        out = _unit((y - one["b_dec"])[rows[here]])
        into = out if trainer.stream.autoencodes else _unit(x[rows[here]])
        one["W_enc"][:, here] = strength * into.T
        one["W_dec"][here] = out * (1.0 if trainer.spec.UNIT_DECODER else one["W_dec"].norm(dim=1)[alive].mean())
        for name in trainer.spec.BIASES:
            one[name][here] = 0
        for moments in trainer.moments:
            moments["W_enc"][s][:, here] = 0
            moments["W_dec"][s][here] = 0
            for name in trainer.spec.BIASES:
                moments[name][s][here] = 0
    trainer.silent[dead] = 0


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


# --- the stack -------------------------------------------------------------------------------------------------------


def _column(per_member: Tensor, like: Tensor) -> Tensor:
    return per_member.reshape(-1, *[1] * (like.ndim - 1))


def _latent_axis(name: str, ndim: int) -> int | None:
    """Which axis of one member's parameter counts latents."""
    if name in WITHOUT_LATENTS or ndim == 0:
        return None
    return 1 if name == "W_enc" else 0


def _widen(name: str, p: Tensor, width: int) -> Tensor:
    """p with zeros for the latents it lacks."""
    axis = _latent_axis(name, p.ndim)
    if axis is None or p.shape[axis] == width:
        return p
    wide = p.new_zeros(*p.shape[:axis], width, *p.shape[axis + 1 :])
    wide.narrow(axis, 0, p.shape[axis]).copy_(p)
    return wide


def _narrow(name: str, p: Tensor, width: int) -> Tensor:
    axis = _latent_axis(name, p.ndim)
    return p if axis is None else p.narrow(axis, 0, width)


def _only_real(name: str, grad: Tensor, real: Tensor) -> Tensor:
    """The gradient of a stacked parameter without that of latents which only pad."""
    axis = _latent_axis(name, grad.ndim - 1)
    if axis is None:
        return grad
    return grad * (real[:, None] if axis == 1 else real.reshape(*real.shape, *[1] * (grad.ndim - 2)))


def _check_stack(specs: Sequence[SAESpec], stream: Stream) -> None:
    require(len(specs) > 0, "train_sae needs at least one spec")
    first = specs[0]
    free = {"d_sae", "lr", "seed", *first.KNOBS}
    for other in specs[1:]:
        require(
            type(other) is type(first),
            f"{type(first).__name__} and {type(other).__name__} are different programs: train them one after the other",
        )
        for field in dataclasses.fields(first):
            one, two = getattr(first, field.name), getattr(other, field.name)
            if one != two and field.name not in free:
                raise UserError(
                    f"{field.name} differs within the stack ({one} and {two}); members may differ in "
                    f"{', '.join(sorted(free))}: train the others in a call of their own"
                )
    require(
        stream.autoencodes or not first.apply_b_dec_to_input,
        "a transcoder's b_dec lives in the output, so it cannot be subtracted from the input: "
        "set apply_b_dec_to_input=false",
    )
    sources = getattr(first, "sources", stream.sources)
    require(
        sources == stream.sources,
        f"sources={sources} in the spec, and the stream has {stream.sources}; set sources={stream.sources}",
    )


def memory_needed(specs: Sequence[SAESpec], stream: Stream, training: SAETraining) -> int:
    """Bytes: weights, gradients, two moments and a spare for each member, and one batch of activations."""
    width, size = max(s.d_sae for s in specs), stream.scale_in.element_size()
    weights = 5 * len(specs) * width * (stream.d_in + stream.d_out + 4)
    return size * (weights + training.batch_size * (stream.d_in + 3 * stream.d_out) + width * training.batch_size)


def _check_memory(specs: Sequence[SAESpec], stream: Stream, training: SAETraining) -> None:
    needed, have = memory_needed(specs, stream, training), _memory_available()
    require(
        needed <= have,
        f"{len(specs)} x {max(s.d_sae for s in specs):,} latents on {stream.d_in} -> {stream.d_out} would take "
        f"{needed / 2**30:,.1f} GiB to train, and {have / 2**30:,.1f} GiB are free: "
        "lower d_sae or batch_size, or train fewer at once",
    )


def _memory_available() -> float:
    """Bytes that could be had now (Linux), or all of the machine's, or infinity where neither is told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


# --- files -----------------------------------------------------------------------------------------------------------


def _settings(specs: Sequence[SAESpec], stream: Stream, training: SAETraining) -> dict[str, Any]:
    """What must be the same for training to go on, as JSON gives it back."""
    about = {
        "specs": [to_node(s) for s in specs],
        "training": to_node(training),
        "stream": {**to_node(stream.origin), "normalise": stream.normalise, "d_in": stream.d_in, "d_out": stream.d_out},
    }
    return json.loads(json.dumps(about))


def _check_settings(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What training.json says of a directory begun earlier, None for a new one; other settings are refused."""
    if not (path / "training.json").exists():
        return None
    about = read_json(path / "training.json")
    free = ("save_every",)
    for part in ("specs", "training", "stream"):
        old, new = about.get(part), settings[part]
        if part == "training":
            old, new = ({k: v for k, v in (d or {}).items() if k not in free} for d in (old, new))
        require(
            old == new,
            f"{path} was begun with other {part}: {_difference(old, new)}; choose another path",
        )
    return about


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        return "; ".join(f"{k} was {old.get(k)} and is now {new.get(k)}" for k in new if old.get(k) != new.get(k))
    return f"{old} then, {new} now"


def _finished(path: Path, settings: dict[str, Any]) -> Trained | None:
    about = _check_settings(path, settings)
    if about is None or not about.get("finished"):
        return None
    saes = tuple(load(path / f"sae={i}") for i in range(len(settings["specs"])))
    return Trained(saes, read_tensors(path / "history.safetensors"))


def _resume(trainer: SAETrainer, path: Path, settings: dict[str, Any]) -> None:
    write_atomic(path / "training.json", json.dumps(settings, indent=1).encode())
    if (path / "state.safetensors").exists():
        trainer.load_state(read_tensors(path / "state.safetensors"))


def _save_state(trainer: SAETrainer, path: Path) -> None:
    tensors = {name: t.contiguous() for name, t in trainer.state().items()}
    write_atomic(path / "state.safetensors", safetensors.torch.save(tensors))


def _finish(trained: Trained, path: Path, settings: dict[str, Any]) -> None:
    for i, sae in enumerate(trained.saes):
        save(sae, path / f"sae={i}")
    history = {name: t.contiguous() for name, t in trained.history.items()}
    write_atomic(path / "history.safetensors", safetensors.torch.save(history))
    write_atomic(path / "training.json", json.dumps(settings | {"finished": True}, indent=1).encode())
    (path / "state.safetensors").unlink(missing_ok=True)
