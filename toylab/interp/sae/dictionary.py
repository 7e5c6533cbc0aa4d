"""SAE: one finished dictionary, the files it lives in, and what it may be used on.

    sae = train_sae([spec], stream, training).saes[0]
    f = sae.encode(x); y = sae.decode(f); error = x - sae(x)
    save(sae, "dictionaries/a"); load("dictionaries/a", snapshot, ("resid_post", 0))

`load` onto another checkpoint or site than it was trained on is refused. The files are sae.safetensors and sae.json;
nothing is unpickled, and the settings are rebuilt from toylab's own specs only. Read next: edits.py, crosscoder.py.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from toylab.config import build, to_node
from toylab.durable import write_atomic
from toylab.errors import UserError, require
from toylab.interp.sae.spec import Params, SAESpec, decoder_norms, pre_bias
from toylab.interp.sae.stream import Origin, SiteName

FORMAT = 1


@dataclass(frozen=True, eq=False)
class SAE:
    """spec: its settings. params: by SAELens's names, no stack axis. origin: the site and checkpoint it belongs to.

    It takes and gives activations as the model has them: the scale of the stream is folded into the weights.
    sources: how many equal parts its input is made of (crosscoders).
    """

    spec: SAESpec
    params: Params
    origin: Origin = field(default_factory=Origin)
    sources: int = 1

    def __post_init__(self):
        _check_shapes(self.spec, self.params)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.params["W_enc"]

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        return self.params["W_dec"]

    @property
    def b_dec(self) -> Float[Tensor, " d_out"]:
        return self.params["b_dec"]

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Activations of the latents, 0 or more."""
        require(
            x.shape[-1] == len(self.W_enc), f"{x.shape[-1]} entries arrived; this dictionary reads {len(self.W_enc)}"
        )
        z = x.reshape(-1, x.shape[-1]).to(self.W_enc) @ self.W_enc + pre_bias(self.spec, self.params)
        return self.spec.threshold(self.params, z).reshape(*x.shape[:-1], -1)

    @torch.no_grad()
    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_out"]:
        """f W_dec + b_dec. A skip transcoder's x W_skip is not a function of f: call the dictionary itself."""
        return f @ self.W_dec + self.b_dec

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of x (of the target, for a transcoder)."""
        y = self.decode(self.encode(x))
        return y + x.to(y) @ self.params["W_skip"] if self.spec.skip else y

    def fold_input_scale(self, scale_in: Tensor, scale_out: Tensor) -> SAE:
        """The same function of unscaled activations: new(x) scale_out = old(x scale_in), with the same f.

        Known exactly: x -> old(c x) / c for a number c. Thresholds stay, because pre-activations do.
        """
        p = self.params
        changed = {
            "W_enc": scale_in[:, None] * p["W_enc"],
            "W_dec": p["W_dec"] / scale_out,
            "b_dec": p["b_dec"] / scale_out,
        }
        if self.spec.skip:
            changed["W_skip"] = scale_in[:, None] * p["W_skip"] / scale_out
        return dataclasses.replace(self, params=p | changed)

    def fold_decoder_norm(self) -> SAE:
        """The same function with rows of W_dec of norm 1 and f in units of the activations: f_i |W_dec,i|.

        Raises UserError for TopK, whose ranking of latents would change.
        """
        p, norms = self.params, decoder_norms(self.W_dec).clamp(min=1e-12)
        equal = torch.allclose(norms, norms[:1].expand_as(norms))
        require(
            equal or "k" not in self.spec.KNOBS,
            f"{type(self.spec).__name__} ranks latents by activation: rescaling them one by one changes which win",
        )
        changed = {"W_enc": p["W_enc"] * norms, "W_dec": p["W_dec"] / norms[:, None]}
        # r_mag multiplies x W_enc, which has grown already.
        changed |= {name: p[name] * norms for name in ("b_enc", "b_gate", "b_mag") if name in p}
        if "threshold" in p:
            changed["threshold"] = p["threshold"] * (norms if p["threshold"].ndim else norms[0])
        return dataclasses.replace(self, params=p | changed)

    def check(self, snapshot: Any, site: SiteName | None = None) -> None:
        """Raise UserError unless it was trained on this checkpoint (and site)."""
        self.origin.check(snapshot, site)

    def __repr__(self) -> str:
        where = f" of {', '.join(self.origin.sites)}" if self.origin.sites else ""
        sizes = f"{len(self.W_enc)} -> {self.spec.d_sae} -> {self.W_dec.shape[1]}"
        return f"SAE({type(self.spec).__name__}, {sizes}{where})"


def save(sae: SAE, path: str | Path) -> Path:
    """Write sae.safetensors and sae.json into the directory `path`."""
    path = Path(path)
    about = {
        "format": FORMAT,
        "spec": to_node(sae.spec),
        "sources": sae.sources,
        "sites": sae.origin.sites,
        "checkpoints": sae.origin.checkpoints,
        "targets": sae.origin.targets,
        "shapes": {name: list(t.shape) for name, t in sae.params.items()},
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in sae.params.items()}
    write_atomic(path / "sae.safetensors", safetensors.torch.save(tensors))
    write_atomic(path / "sae.json", json.dumps(about, indent=1).encode())
    return path


def load(path: str | Path, snapshot: Any = None, site: SiteName | None = None) -> SAE:
    """What `save` wrote. With a snapshot (and site), raises UserError unless it was trained there."""
    path = Path(path)
    about = read_json(path / "sae.json")
    require(about.get("format") == FORMAT, f"{path / 'sae.json'} has format {about.get('format')!r}; expected {FORMAT}")
    tensors = read_tensors(path / "sae.safetensors")
    found = {name: list(t.shape) for name, t in tensors.items()}
    if found != about.get("shapes"):
        wrong = [n for n in {**found, **about.get("shapes", {})} if found.get(n) != about.get("shapes", {}).get(n)]
        raise UserError(
            f"{path}: sae.safetensors and sae.json do not belong together: "
            + "; ".join(f"{n} is {found.get(n)} and should be {about.get('shapes', {}).get(n)}" for n in wrong[:3])
        )
    origin = Origin(*(tuple(about[key]) for key in ("sites", "checkpoints", "targets")))
    sae = SAE(build(about["spec"], "spec"), tensors, origin, about["sources"])
    if snapshot is not None:
        sae.check(snapshot, site)
    return sae


def _check_shapes(spec: SAESpec, params: Params) -> None:
    require(
        {"W_enc", "W_dec", "b_dec", *spec.BIASES} <= params.keys(),
        f"{type(spec).__name__} needs W_enc, W_dec, b_dec, {', '.join(spec.BIASES)}; {', '.join(params)} arrived",
    )
    d_in, d_out, M = len(params["W_enc"]), params["W_dec"].shape[-1], spec.d_sae
    expected = {"W_enc": (d_in, M), "W_dec": (M, d_out), "b_dec": (d_out,)} | dict.fromkeys(spec.BIASES, (M,))
    for name, shape in expected.items():
        got = tuple(params[name].shape)
        require(got == shape, f"{name} is {got}; {type(spec).__name__} with d_sae={M} needs {shape}")


# --- files -----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing or is no JSON object."""
    require(path.exists(), f"{path.parent} holds no dictionary: {path.name} is missing")
    try:
        found = json.loads(path.read_text(errors="replace"))
    except json.JSONDecodeError:
        found = None
    require(isinstance(found, dict), f"{path} is not a JSON object; it was damaged or edited")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises UserError when the file is missing or holds no tensors."""
    require(path.exists(), f"{path.parent} holds no dictionary: {path.name} is missing")
    try:
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} holds no weights ({error}); it was truncated or replaced") from None
