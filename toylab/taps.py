"""How a model offers its activations: named sites, taps, caches and hooks.

A model's forward pass hands every named activation to a `tap` and goes on with what the tap gives back:

    pattern = tap("pattern", layer, attn_scores.softmax(-1))

A tap is a function (name, layer, value) -> value. Nothing is stored in the model, so nothing can be left behind.
On top of that stand the calls the field knows (TransformerLens's names, letter for letter): `run_with_cache`,
`run_with_hooks`, `with model.hooks(...)`, `cache["pattern", 0]`, `cache["blocks.0.attn.hook_pattern"]`.

Sites marked `gated` below cost memory (one copy of the residual stream per head): a model computes them only when the
tap says it `wants` them, so the call decides and never a config flag.

Read next: models/transformer.py, whose forward pass uses nothing but `tap`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toylab.errors import UserError, did_you_mean


class Site(NamedTuple):
    path: str  # full name; {} is the layer
    axes: str
    gated: bool = False


SITES: dict[str, Site] = {
    "embed": Site("hook_embed", "batch pos d_model"),
    "pos_embed": Site("hook_pos_embed", "batch pos d_model"),
    "resid_pre": Site("blocks.{}.hook_resid_pre", "batch pos d_model"),
    "attn_in": Site("blocks.{}.hook_attn_in", "batch pos head d_model", True),
    "q_input": Site("blocks.{}.hook_q_input", "batch pos head d_model", True),
    "k_input": Site("blocks.{}.hook_k_input", "batch pos head d_model", True),
    "v_input": Site("blocks.{}.hook_v_input", "batch pos head d_model", True),
    "ln1_scale": Site("blocks.{}.ln1.hook_scale", "batch pos one"),
    "ln1_normalized": Site("blocks.{}.ln1.hook_normalized", "batch pos d_model"),
    "q": Site("blocks.{}.attn.hook_q", "batch pos head d_head"),
    "k": Site("blocks.{}.attn.hook_k", "batch pos head d_head"),
    "v": Site("blocks.{}.attn.hook_v", "batch pos head d_head"),
    "rot_q": Site("blocks.{}.attn.hook_rot_q", "batch pos head d_head"),
    "rot_k": Site("blocks.{}.attn.hook_rot_k", "batch pos head d_head"),
    "attn_scores": Site("blocks.{}.attn.hook_attn_scores", "batch head query key"),
    "pattern": Site("blocks.{}.attn.hook_pattern", "batch head query key"),
    "z": Site("blocks.{}.attn.hook_z", "batch pos head d_head"),
    "result": Site("blocks.{}.attn.hook_result", "batch pos head d_model", True),
    "attn_out": Site("blocks.{}.hook_attn_out", "batch pos d_model"),
    "resid_mid": Site("blocks.{}.hook_resid_mid", "batch pos d_model"),
    "mlp_in": Site("blocks.{}.hook_mlp_in", "batch pos d_model", True),
    "ln2_scale": Site("blocks.{}.ln2.hook_scale", "batch pos one"),
    "ln2_normalized": Site("blocks.{}.ln2.hook_normalized", "batch pos d_model"),
    "pre": Site("blocks.{}.mlp.hook_pre", "batch pos d_mlp"),
    "post": Site("blocks.{}.mlp.hook_post", "batch pos d_mlp"),
    "mlp_out": Site("blocks.{}.hook_mlp_out", "batch pos d_model"),
    "resid_post": Site("blocks.{}.hook_resid_post", "batch pos d_model"),
    "ln_final_scale": Site("ln_final.hook_scale", "batch pos one"),
    "ln_final_normalized": Site("ln_final.hook_normalized", "batch pos d_model"),
    # Vector models (toy superposition): no positions.
    "hidden": Site("hook_hidden", "batch d_hidden"),
    "hidden_pre": Site("hook_hidden_pre", "batch d_hidden"),
    "features_pre": Site("hook_features_pre", "batch n_features"),
}

# What people also type. Layer types ("a", "m", "ln1") and these aliases are TransformerLens's get_act_name.
_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
_PATTERNS = {key: re.compile(re.escape(site.path).replace(r"\{\}", r"(\d+)")) for key, site in SITES.items()}


def site_name(name: str, layer: int | None) -> str:
    """Full name of a site: site_name("pattern", 0) -> "blocks.0.attn.hook_pattern"."""
    return SITES[name].path.format(layer)


def site_of(full_name: str) -> tuple[str, int | None]:
    """The inverse of site_name: "blocks.0.attn.hook_pattern" -> ("pattern", 0)."""
    for key, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(full_name):
            return key, int(match[1]) if match.groups() else None
    raise UserError(f"no site {full_name!r}{did_you_mean(full_name, [s.path for s in SITES.values()])}")


def act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full site name for the short forms people type (TransformerLens's get_act_name).

    ("pattern", 0), ("k", 6, "a"), "k6", "scale4ln1", ("scale", 0, "ln2"), ("normalized",) for the final norm, and
    full names, which come back unchanged. Raises UserError with the nearest name.
    """
    if any(pattern.fullmatch(name) for pattern in _PATTERNS.values()):
        return name
    if layer is None and (match := re.fullmatch(r"([a-z_]+?)(\d+)(ln1|ln2|attn|mlp|[abm])?", name)):
        name, layer, layer_type = match[1], int(match[2]), match[3]
    if name in ("scale", "normalized"):
        name = f"{layer_type if layer is not None else 'ln_final'}_{name}"
    name = _ALIASES.get(name, name)
    if name not in SITES:
        asked = (name,) if layer is None else (name, layer)
        raise UserError(f"no site {asked}; known are {', '.join(SITES)}{did_you_mean(name, SITES)}")
    if "{}" in SITES[name].path and layer is None:
        raise UserError(f'site "{name}" needs a layer: ("{name}", 0)')
    return site_name(name, layer)


# --- Taps ----------------------------------------------------------------------------------------------------------


class Tap:
    """The tap that does nothing; others override `__call__`, and `wants` for gated sites."""

    def __call__(self, name: str, layer: int | None, value: Tensor) -> Tensor:
        return value

    def wants(self, name: str, layer: int | None) -> bool:
        """Whether a gated (costly) site should be computed."""
        return False


no_tap = Tap()


@dataclass
class Record(Tap):
    """Keeps what passes; `keep` decides by full name, None keeps everything that is not gated."""

    keep: Callable[[str], bool] | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    detach: bool = True

    def __call__(self, name, layer, value):
        full = site_name(name, layer)
        if self.keep is None or self.keep(full):
            self.tensors[full] = value.detach() if self.detach else value
        return value

    def wants(self, name, layer):
        return self.keep is not None and self.keep(site_name(name, layer))


@dataclass
class Replace(Tap):
    """Puts values[full name] in place of what passes. The edit under vmap and autograd: no checks, no counting."""

    values: Mapping[str, Tensor]

    def __call__(self, name, layer, value):
        return self.values.get(site_name(name, layer), value)

    def wants(self, name, layer):
        return site_name(name, layer) in self.values


@dataclass
class Chain(Tap):
    """Several taps, first to last."""

    taps: Sequence[Tap]

    def __call__(self, name, layer, value):
        for tap in self.taps:
            value = tap(name, layer, value)
        return value

    def wants(self, name, layer):
        return any(tap.wants(name, layer) for tap in self.taps)


class HookWarning(UserWarning):
    """An edit that never fired, or that changed nothing."""


@dataclass
class HookPoint:
    """What a hook function is told about where it stands: hook.name, hook.layer(); hook.ctx is its own scratch dict."""

    name: str
    ctx: dict[str, Any] = field(default_factory=dict)

    def layer(self) -> int | None:
        return site_of(self.name)[1]


@dataclass
class Edit(Tap):
    """Calls fn(value, hook=HookPoint) at the named sites; a returned tensor replaces the value.

    Every call is counted. A result of another shape or dtype, or with NaN where there was none, is an error that
    names the site. `report()` warns about an edit that never fired or never changed anything.
    """

    names: frozenset[str]
    fn: Callable[..., Tensor | None]
    fired: int = 0
    returned: int = 0
    changed: int = 0
    points: dict[str, HookPoint] = field(default_factory=dict)

    def __call__(self, name, layer, value):
        full = site_name(name, layer)
        if full not in self.names:
            return value
        self.fired += 1
        # The hook gets its own copy: an in-place edit may not reach tensors that other sites share.
        given = value.clone()
        result = self.fn(given, hook=self.points.setdefault(full, HookPoint(full)))
        self.returned += result is not None
        result = given if result is None else result
        self._check(full, value, result)
        equal = torch.equal(result, value)
        self.changed += not equal
        # A returned tensor that is merely equal still matters to autograd: added zeros, or a detached copy.
        return value if equal and result is given else result

    def wants(self, name, layer):
        return site_name(name, layer) in self.names

    def _check(self, full: str, before: Tensor, after: object) -> None:
        if not isinstance(after, Tensor):
            raise UserError(f"the hook at {full} returned {type(after).__name__}; return a tensor or None")
        if after.shape != before.shape or after.dtype != before.dtype:
            raise UserError(
                f"the hook at {full} returned {after.dtype} {tuple(after.shape)}; "
                f"that site holds {before.dtype} {tuple(before.shape)} [{SITES[site_of(full)[0]].axes}]"
            )
        if after.isnan().any() and not before.isnan().any():
            raise UserError(f"the hook at {full} returned NaN")

    def report(self) -> None:
        """Warn when the edit did nothing; a hook that only looks (returns None) is not an edit."""
        names = ", ".join(sorted(self.names))
        if not self.fired:
            warnings.warn(HookWarning(f"the hook at {names} never fired"), stacklevel=4)
        elif self.returned and not self.changed:
            warnings.warn(HookWarning(f"the hook at {names} fired {self.fired}x but changed nothing"), stacklevel=4)


# --- Caches --------------------------------------------------------------------------------------------------------


class Cache(Mapping[str, Tensor]):
    """Activations by name: cache["pattern", 0], cache["k0"], cache["blocks.0.attn.hook_k"]; layers may be negative."""

    def __init__(self, tensors: dict[str, Tensor], n_layers: int = 0):
        self.tensors = tensors
        self.n_layers = n_layers

    def _full(self, key: str | tuple) -> str:
        name, layer, kind = (*((key,) if isinstance(key, str) else key), None, None)[:3]
        if layer is not None and layer < 0:
            layer += self.n_layers
        return act_name(name, layer, kind)

    def __getitem__(self, key: str | tuple) -> Tensor:
        full = self._full(key)
        if full not in self.tensors:
            raise UserError(
                f"{full} was not cached; this cache holds {', '.join(self.tensors)}{did_you_mean(full, self.tensors)}"
            )
        return self.tensors[full]

    def __contains__(self, key: object) -> bool:
        try:
            return self._full(key) in self.tensors  # type: ignore[arg-type]
        except UserError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def to(self, device: str | torch.device) -> Cache:
        return Cache({name: t.to(device) for name, t in self.tensors.items()}, self.n_layers)

    def __repr__(self) -> str:
        size = sum(t.numel() * t.element_size() for t in self.tensors.values())
        lines = [
            f"  {name:32} {tuple(t.shape)!s:20} [{SITES[site_of(name)[0]].axes}]" for name, t in self.tensors.items()
        ]
        return "\n".join([f"Cache of {len(self)} sites, {size / 1e6:.1f} MB", *lines])


# --- What every model shares -----------------------------------------------------------------------------------------

Hook = tuple[str | tuple | Callable[[str], bool], Callable[..., Tensor | None]]
NamesFilter = str | tuple | Sequence[str | tuple] | Callable[[str], bool] | None


class Tapped(nn.Module):
    """A model whose `forward(inputs, tap)` names its activations.

    Subclasses define `forward` (the definition), `example_input()` (the smallest valid input), and may define
    `forward_at` (a faster way to the outputs at a few positions).
    """

    n_layers: int = 0

    def forward(self, inputs: Tensor, tap: Tap = no_tap) -> Tensor:
        raise NotImplementedError

    def example_input(self) -> Tensor:
        raise NotImplementedError

    def forward_at(self, inputs: Tensor, read: tuple[int, ...], tap: Tap = no_tap) -> Tensor:
        """forward(inputs)[:, read]. Overridden where an exact rearrangement makes it cheaper."""
        return self.forward(inputs, tap)[:, list(read)]

    def __call__(self, inputs: Tensor, tap: Tap = no_tap, read: tuple[int, ...] | None = None) -> Tensor:
        """Outputs at every position, or (`read`) at those positions only, by `forward_at`."""
        if active := self.__dict__.get("_active", ()):
            tap = Chain([*active, tap])
            # Edits may stand anywhere upstream, and only `forward` passes every site.
            return self.forward(inputs, tap) if read is None else self.forward(inputs, tap)[:, list(read)]
        return self.forward(inputs, tap) if read is None else self.forward_at(inputs, read, tap)

    @cached_property
    def site_names(self) -> dict[str, bool]:
        """Full names of all sites of this model in forward order -> whether the site is gated."""
        seen: dict[str, bool] = {}

        class Look(Tap):
            def __call__(self, name, layer, value):
                seen[site_name(name, layer)] = SITES[name].gated
                return value

            def wants(self, name, layer):
                return True

        with torch.no_grad():
            self.forward(self.example_input(), Look())
        return seen

    def find_sites(self, names: str | tuple | Callable[[str], bool]) -> list[str]:
        """Full names for one name, short form or predicate; raises UserError when it matches nothing here."""
        if callable(names):
            found = [name for name in self.site_names if names(name)]
            if not found:
                raise UserError(f"the filter matches no site; this model has {', '.join(self.site_names)}")
            return found
        parts = (names,) if isinstance(names, str) else tuple(names)
        if len(parts) > 1 and isinstance(parts[1], int) and parts[1] < 0:
            parts = (parts[0], parts[1] + self.n_layers, *parts[2:])
        full = act_name(*parts)
        if full not in self.site_names:
            raise UserError(
                f"this model has no site {full}; it has {', '.join(self.site_names)}"
                f"{did_you_mean(full, self.site_names)}"
            )
        return [full]

    def _filter(self, names: NamesFilter) -> Callable[[str], bool] | None:
        if names is None:
            return None
        if callable(names):
            wanted = set(self.find_sites(names))
        else:
            # A tuple is a list of names unless it reads as one site: ("pattern", 0).
            one = isinstance(names, str) or (len(names) > 1 and isinstance(names[1], int))
            wanted = {full for name in ([names] if one else names) for full in self.find_sites(name)}  # type: ignore
        return wanted.__contains__

    def run_with_cache(
        self,
        inputs: Tensor,
        names_filter: NamesFilter = None,
        device: str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: slice | None = None,
    ) -> tuple[Tensor, Cache]:
        """(outputs, Cache of detached activations).

        names_filter: a name, a list of names or short forms, or a predicate on full names; None = every site that
        is not gated. Gated sites (result, q_input, ...) are computed when named. A filter that matches nothing
        raises. pos_slice keeps those positions (queries, for attention scores and patterns).
        """
        record = Record(self._filter(names_filter))
        outputs = self(inputs, record)
        tensors = record.tensors
        if pos_slice is not None:
            tensors = {
                name: t[:, :, pos_slice] if site_of(name)[0] in ("attn_scores", "pattern") else t[:, pos_slice]
                for name, t in tensors.items()
            }
        if remove_batch_dim:
            if len(inputs) != 1:
                raise UserError(f"remove_batch_dim needs a batch of 1; this one has {len(inputs)}")
            tensors = {name: t[0] for name, t in tensors.items()}
        if device is not None:
            tensors = {name: t.to(device) for name, t in tensors.items()}
        return outputs, Cache(tensors, self.n_layers)

    def run_with_hooks(
        self, inputs: Tensor, fwd_hooks: Sequence[Hook] = (), read: tuple[int, ...] | None = None
    ) -> Tensor:
        """Outputs with fn(value, hook) called at the named sites: None leaves the value, a tensor replaces it."""
        with self.hooks(fwd_hooks):
            return self(inputs, read=read)

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[Hook] = ()) -> Iterator[Tapped]:
        """Within the block every call runs these hooks; leaving it, also by an exception, removes them."""
        edits = [Edit(frozenset(self.find_sites(names)), fn) for names, fn in fwd_hooks]
        before = self.__dict__.get("_active", ())
        self.__dict__["_active"] = (*before, *edits)
        try:
            yield self
        finally:
            self.__dict__["_active"] = before
        for edit in edits:
            edit.report()

    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters())
