"""SAELens's files, cfg.json and sae_weights.safetensors, written and read (version 6; older ones as far as told).

SAELens computes f = ReLU(z) 1[z > threshold] for `jumprelu`, which is what a finished BatchTopK or Matryoshka is too,
so those go out as jumprelu, and what comes in is JumpReLU. What training used (lr, penalties) is not in these files:
an imported spec has lr = 1 and penalty 0, and is good for everything but training on. The site and the checkpoint's
hash travel in the metadata, which SAELens keeps and ignores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from toylab.durable import write_atomic
from toylab.errors import UserError, one_of, require
from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.dictionary import SAE, read_json, read_tensors
from toylab.interp.sae.gated import Gated
from toylab.interp.sae.jumprelu import JumpReLU
from toylab.interp.sae.spec import SAESpec
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Origin
from toylab.interp.sae.topk import TopK

# Gated first: it is a Standard too.
KINDS: dict[str, type[SAESpec]] = {"gated": Gated, "standard": Standard, "topk": TopK, "jumprelu": JumpReLU}
TRANSCODERS = {"transcoder": Standard, "skip_transcoder": Standard, "jumprelu_transcoder": JumpReLU}


def export(sae: SAE, path: str | Path) -> Path:
    """Write cfg.json and sae_weights.safetensors into the directory `path`.

    Raises UserError for what SAELens has no name for: crosscoders, and transcoders of other kinds than its own.
    """
    path, d_in, d_out = Path(path), len(sae.W_enc), sae.W_dec.shape[1]
    require(sae.sources == 1, "SAELens has no crosscoders: this dictionary has several sources")
    kind, tensors = _kind(sae)
    cfg: dict[str, Any] = {
        "architecture": kind,
        "d_in": d_in,
        "d_sae": sae.spec.d_sae,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.spec.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "hook_name": next(iter(sae.origin.sites), None),
            "toylab": {"checkpoints": sae.origin.checkpoints, "targets": sae.origin.targets},
        },
    }
    if kind == "topk":
        cfg |= {"k": int(sae.spec.k), "rescale_acts_by_decoder_norm": False}  # type: ignore[attr-defined]
    if kind in TRANSCODERS:
        cfg |= {"d_out": d_out}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomic(path / "sae_weights.safetensors", safetensors.torch.save(tensors))
    write_atomic(path / "cfg.json", json.dumps(cfg, indent=1).encode())
    return path


def _kind(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """(architecture, tensors)."""
    tensors = dict(sae.params)
    kind = next((name for name, cls in KINDS.items() if isinstance(sae.spec, cls)), "jumprelu")
    if isinstance(sae.spec, BatchTopK):
        tensors["threshold"] = tensors["threshold"].expand(sae.spec.d_sae)
    if sae.spec.skip or sae.origin.targets or len(sae.W_enc) != sae.W_dec.shape[1]:
        require(
            kind in ("standard", "jumprelu") and not (sae.spec.skip and kind == "jumprelu"),
            f"SAELens has no {'skip ' * sae.spec.skip}transcoder of the kind {type(sae.spec).__name__}",
        )
        kind = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}[kind]
        kind = f"skip_{kind}" if sae.spec.skip else kind
    if sae.spec.skip:
        tensors["W_skip"] = tensors["W_skip"].T  # SAELens: x W_skip^T
    return kind, tensors


def load(path: str | Path) -> SAE:
    """What SAELens (or `export`) wrote. Raises UserError for other architectures and for shapes that do not fit."""
    path = Path(path)
    cfg, tensors = read_json(path / "cfg.json"), read_tensors(path / "sae_weights.safetensors")
    kind = cfg.get("architecture", "standard")
    one_of("architecture", kind, (*KINDS, *TRANSCODERS))
    scaling = cfg.get("normalize_activations", "none")
    if scaling != "none":
        raise UserError(f'normalize_activations={scaling!r}: only "none" is read; fold the scale in SAELens first')
    if "log_threshold" in tensors:  # before SAELens 6.48
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "threshold" in tensors:  # ReLU(z) 1[z > t] with t below 0 is that with t = 0
        tensors["threshold"].clamp_(min=0)
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    cls = (KINDS | TRANSCODERS)[kind]
    penalties: dict[Any, dict[str, Any]] = {
        Standard: {"l1": 0.0},
        Gated: {"l1": 0.0},
        JumpReLU: {"l0": 0.0},
        TopK: {"k": cfg.get("k")},
    }
    applied = bool(cfg.get("apply_b_dec_to_input", kind not in ("jumprelu", *TRANSCODERS)))
    skip = "W_skip" in tensors
    spec = cls(d_sae=cfg["d_sae"], lr=1.0, apply_b_dec_to_input=applied and not skip, skip=skip, **penalties[cls])
    metadata = cfg.get("metadata") or {}
    site, ours = metadata.get("hook_name", cfg.get("hook_name")), metadata.get("toylab", {})
    origin = Origin()
    if site and ours.get("checkpoints"):
        origin = Origin((str(site),), tuple(ours["checkpoints"]), tuple(ours["targets"]))
    return SAE(spec, _renormed(tensors) if cfg.get("rescale_acts_by_decoder_norm") else tensors, origin)


def _renormed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same TopK with W_dec of norm 1: SAELens ranks (and reports) z |W_dec,i| when told to rescale."""
    norms = tensors["W_dec"].norm(dim=1)
    changed = {"W_enc": tensors["W_enc"] * norms, "W_dec": tensors["W_dec"] / norms[:, None]}
    if "b_enc" in tensors:
        changed["b_enc"] = tensors["b_enc"] * norms
    assert torch.isfinite(changed["W_dec"]).all(), "a decoder row is zero"
    return tensors | changed
