"""The files of one run: what is written, in which order, and how it is read back without trusting it.

    config.yaml               the experiment, resolved
    run.json                  format, status, seeds, versions, threads, timings
    manifest.jsonl            one line per checkpoint: step, file, bytes, sha256
    stamps.jsonl              size and time of each checkpoint as it was written: see `read_checkpoint`
    checkpoints/step_*.safetensors    weights only
    states/step_*.<hash>.safetensors  weights, optimiser, generators: where training can go on from
    metrics.jsonl             one line per evaluation
    derived/                  results of run.map

Every file is written beside its place, flushed to disk, and renamed; a checkpoint counts once its manifest line is
complete. So a kill at any instant leaves a directory that the last state continues from. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor
from yaml import YAMLError

from toylab.durable import cannot_write, write_atomic
from toylab.errors import UserError

FORMAT = 1


def append_line(path: Path, record: dict[str, Any], sync: bool = False) -> None:
    """One JSON line, flushed (and synced to disk when asked)."""
    line = json.dumps({k: _plain(v) for k, v in record.items()}) + "\n"
    try:
        with open(path, "a") as file:
            file.write(line)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, len(line), error) from error


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a file; a torn last line is ignored, as its write never finished."""
    if not path.exists():
        return []
    records = []
    lines = path.read_text(errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                break
            raise UserError(f"{path} line {number} is not JSON; the file was damaged or edited") from None
    return records


def tensors_to_bytes(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """A safetensors file; `about` is one entry of its header, because several would be written in random order."""
    header = {"toylab": json.dumps({"format": FORMAT} | about)}
    return save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, header)


def about(data: bytes) -> dict[str, Any]:
    """What tensors_to_bytes was told; nothing when it did not write this. The header of a safetensors file is its
    length (8 bytes), then JSON."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return dict(json.loads(header["__metadata__"]["toylab"]))
    except (ValueError, TypeError, KeyError):
        return {}


def _stat(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


class RunDir:
    """Reading and writing one run directory. Paths only; what the tensors mean is the caller's business."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest_path = self.path / "manifest.jsonl"
        self.metrics_path = self.path / "metrics.jsonl"
        self.stamps_path = self.path / "stamps.jsonl"
        self.checkpoints, self.states = self.path / "checkpoints", self.path / "states"

    # --- the record of the run --------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return (self.path / "run.json").exists()

    def info(self) -> dict[str, Any]:
        """run.json; raises UserError for a directory that is no run, or of another format."""
        file = self.path / "run.json"
        if not file.exists():
            inside = sorted(p.parent for p in self.path.glob("**/run.json"))[:3] if self.path.is_dir() else []
            hint = (
                f"; there are runs inside it: {', '.join(map(str, inside))}" if inside else "; see `toylab list runs`"
            )
            raise UserError(f"{self.path} is not a run directory (no run.json){hint}")
        try:
            info = json.loads(file.read_text(errors="replace"))
        except json.JSONDecodeError:
            raise UserError(f"{file} is not valid JSON; the file was damaged or edited") from None
        if not isinstance(info, dict) or (info.get("format") == FORMAT and "status" not in info):
            raise UserError(f"{file} does not describe a run; the file was damaged or edited")
        if info.get("format") != FORMAT:
            raise UserError(
                f"{self.path} has run format {info.get('format')!r}; this toylab reads format {FORMAT}: "
                "open it with the version that made it, or train it again"
            )
        return info

    def write_info(self, **fields: Any) -> None:
        """Update run.json with these fields."""
        info = self.info() if self.exists() else {"format": FORMAT}
        text = json.dumps({k: _plain(v) for k, v in (info | fields).items()}, indent=1)
        write_atomic(self.path / "run.json", text.encode())

    def config(self) -> dict[str, Any]:
        file = self.path / "config.yaml"
        if not file.exists():
            raise UserError(f"{self.path} has no config.yaml; it is not a complete run directory")
        # OmegaConf reads 1e-3 as a number (plain YAML reads text) and, like safe YAML, builds no objects.
        try:
            node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}; it was damaged or edited") from None
        if not isinstance(node, dict):
            raise UserError(f"{file} holds no settings; it was damaged or edited")
        return node  # type: ignore[return-value]

    def write_config(self, node: dict[str, Any]) -> None:
        write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(node)).encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while writing. The operating system drops it when the process ends, however it ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            opened = open(self.path / ".lock", "a+")  # noqa: SIM115 (closed by the with below)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; choose another runs=... or name=..."
            ) from None
        with opened as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows: no flock; two writers are then not detected
                pass
            except OSError:
                file.seek(0)
                raise UserError(
                    f"{self.path} is being written by another process (pid {file.read().strip() or 'unknown'}); "
                    "wait for it, or choose another name"
                ) from None
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def manifest(self) -> dict[int, dict[str, Any]]:
        """step -> its line."""
        lines = read_lines(self.manifest_path)
        for line in lines:
            if not (isinstance(line, dict) and line.keys() >= {"step", "file", "bytes", "sha256"}):
                raise UserError(f"{self.manifest_path} has the line {line}, which lists no checkpoint; it was edited")
        return {line["step"]: line for line in lines}

    def write_checkpoint(self, step: int, weights: dict[str, Tensor]) -> None:
        data = tensors_to_bytes(weights, {"step": step})
        name = f"step_{step:08d}.safetensors"
        write_atomic(self.checkpoints / name, data)
        digest = hashlib.sha256(data).hexdigest()
        append_line(self.manifest_path, {"step": step, "file": name, "bytes": len(data), "sha256": digest}, sync=True)
        append_line(self.stamps_path, {"file": name, "sha256": digest, "stat": _stat(self.checkpoints / name)})

    def stamps(self) -> dict[str, dict[str, Any]]:
        """file name -> what was written there (sha256) and the file's size and time just after."""
        return {line["file"]: line for line in read_lines(self.stamps_path) if "file" in line}

    def read_checkpoint(
        self,
        step: int,
        manifest: dict[int, dict[str, Any]] | None = None,
        stamps: dict[str, dict[str, Any]] | None = None,
    ) -> dict[str, Tensor]:
        """The weights at this step, after checking size and hash. Raises UserError when they are not what was saved.

        stamps: a file that nobody has written to since toylab did (same size and time, to the nanosecond) is not hashed
        again, which would cost more than reading it. Copied and changed files are; `toylab verify` hashes everything.
        """
        line = (manifest or {}).get(step)
        try:
            if line is not None and stamps and self._untouched(line, stamps):
                return load_file(self.checkpoints / Path(str(line["file"])).name)
            return load(self.checkpoint_bytes(step, manifest))
        except SafetensorError as error:
            raise UserError(f"the checkpoint of step {step} in {self.path} holds no weights ({error})") from None

    def _untouched(self, line: dict[str, Any], stamps: dict[str, dict[str, Any]]) -> bool:
        stamp, file = stamps.get(line["file"], {}), self.checkpoints / Path(str(line["file"])).name
        same = stamp.get("sha256") == line["sha256"] and file.exists() and stamp.get("stat") == _stat(file)
        return same and file.name == f"step_{line['step']:08d}.safetensors"

    def checkpoint_bytes(self, step: int, manifest: dict[int, dict[str, Any]] | None = None) -> bytes:
        manifest = self.manifest() if manifest is None else manifest
        if step not in manifest:
            nearest = sorted(manifest, key=lambda s: abs(s - step))[:3]
            raise UserError(f"{self.path} has no checkpoint at step {step}; nearest are {nearest}")
        line = manifest[step]
        file = self.checkpoints / Path(str(line["file"])).name
        if not file.exists():
            raise UserError(f"{file} is listed in the manifest but missing; restore it or train again (overwrite=true)")
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if len(data) != line["bytes"]:
            problem = f"has {len(data):,} bytes and should have {line['bytes']:,}: it was truncated or replaced"
        elif digest != line["sha256"]:
            problem = f"was changed: sha256 is {digest[:12]}... and should be {line['sha256'][:12]}..."
        elif about(data).get("step") != step:
            problem = f"says it is step {about(data).get('step')}, the manifest says {step}"
        else:
            return data
        raise UserError(f"{file} {problem}; `toylab verify {self.path}` checks the whole run")

    # --- states -----------------------------------------------------------------------------------------------------

    def state_files(self) -> dict[int, Path]:
        """step -> file, oldest first."""
        files = sorted(self.states.glob("step_*.*.safetensors"))
        return {int(f.name[5:13]): f for f in files}

    def write_state(self, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        data = tensors_to_bytes(tensors, {"step": step, "record": record})
        digest = hashlib.sha256(data).hexdigest()[:16]
        file = self.states / f"step_{step:08d}.{digest}.safetensors"
        write_atomic(file, data)
        for older in self.states.glob(f"step_{step:08d}.*.safetensors"):  # the same step, saved before a resume
            if older != file:
                older.unlink(missing_ok=True)

    def read_state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, record) of one state; raises UserError when its bytes do not match the hash in its name."""
        file = self.state_files()[step]
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != file.name.split(".")[1]:
            raise UserError(f"{file} was truncated or changed")
        try:
            return load(data), about(data)["record"]
        except (SafetensorError, KeyError, json.JSONDecodeError):
            raise UserError(f"{file} is not a state of this format") from None

    def prune_states(self, keep: set[int]) -> None:
        """Remove all but the latest two and those to keep."""
        files = self.state_files()
        for step in list(files)[:-2]:
            if step not in keep:
                files[step].unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Forget what a run resumed at this step will write again, to the same bits: later checkpoints and states,
        and the metrics from this step on."""
        for path, last in ((self.manifest_path, step), (self.metrics_path, step - 1)):
            kept = [line for line in read_lines(path) if line["step"] <= last]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        listed = {line["file"] for line in self.manifest().values()}
        for file in self.checkpoints.glob("*"):
            if file.name not in listed:
                file.unlink()
        for later, file in self.state_files().items():
            if later > step:
                file.unlink()
        for folder in (self.path, self.states):  # left by a kill during a write
            for file in folder.glob(".*.tmp"):
                file.unlink()

    # --- metrics ----------------------------------------------------------------------------------------------------

    def append_metrics(self, step: int, values: dict[str, float]) -> None:
        append_line(self.metrics_path, {"step": step} | values)

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per evaluation; non-finite numbers are floats again."""
        numbers = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
        return [
            {k: numbers.get(v, v) if isinstance(v, str) else v for k, v in line.items()}
            for line in read_lines(self.metrics_path)
        ]


def provenance() -> dict[str, Any]:
    """What the bits depend on besides the config: versions, platform, threads."""
    import platform
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "numpy", "scipy", "safetensors", "xarray")}
    return {
        "toylab": toylab_version(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def toylab_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("toylab")
    except PackageNotFoundError:
        return "uninstalled"
