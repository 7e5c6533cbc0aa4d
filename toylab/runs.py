"""Run: a directory that can rebuild its task and model at any saved step. RunGroup: several of them.

    run = Run.open("runs/demo/seed=0")
    run.final.logits                       # the finished network on every example
    run.map(WeightNorms())                 # any measure or tool, every checkpoint -> xarray, cached on disk
    RunGroup("runs/demo").map(Loss())      # ... and every seed: dims seed, step

Came from: train.py, which writes the directory. rundir.py knows its files.
"""

from __future__ import annotations

import copy
import dataclasses
import dis
import functools
import hashlib
import json
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from toylab.config import flatten
from toylab.data import Split, generator
from toylab.durable import write_atomic
from toylab.errors import UserError, require
from toylab.experiment import Experiment, scheduled_steps
from toylab.rundir import RunDir
from toylab.snapshot import Labelled, Snapshot, Stack

if TYPE_CHECKING:
    import xarray as xr

Steps = None | str | int | np.integer | slice | Sequence[int] | np.ndarray
STACK_BYTES = 16e6  # more at once only overflows the caches
FLUSH_SECONDS = 5.0
GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__")  # by dataclass
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class Run:
    """One finished, running or interrupted run. Opening reads; only training writes."""

    def __init__(self, path: str | Path):
        self.dir = RunDir(path)
        self.path = self.dir.path
        self.info = self.dir.info()

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises UserError with what is wrong when the directory is not a run of this format."""
        return cls(path)

    # --- what it was ------------------------------------------------------------------------------------------------

    @cached_property
    def experiment(self) -> Experiment:
        return Experiment.from_config(self.dir.config())

    @property
    def task(self) -> Any:
        return self.experiment.task

    @cached_property
    def split(self) -> Split:
        return self.task.split(self.experiment.seed)

    @property
    def finished(self) -> bool:
        return self.info["status"] == "finished"

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @cached_property
    def manifest(self) -> dict[int, dict[str, Any]]:
        return self.dir.manifest()

    @cached_property
    def stamps(self) -> dict[str, dict[str, Any]]:
        return self.dir.stamps()

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, sorted."""
        return sorted(self.manifest)

    def pick(self, steps: Steps = None) -> list[int]:
        """Some of `steps`: all (None), one, a list, a slice by step number, or a schedule such as "log:50"."""
        have = np.array(self.steps)
        require(len(have) > 0, f"{self.path} has no checkpoint yet")
        if steps is None:
            return self.steps
        if isinstance(steps, str):
            wanted = np.array(scheduled_steps((steps,), int(have[-1])))
            nearest = have[np.abs(have[:, None] - wanted).argmin(0)]
            return sorted(set(nearest.tolist()))
        if isinstance(steps, slice):
            low, high = steps.start or 0, have[-1] if steps.stop is None else steps.stop
            found = [s for s in self.steps if low <= s <= high][:: steps.step]
            require(
                bool(found), f"{self.path} has no checkpoint from {low} to {high}; it has {self.steps[0]}..{have[-1]}"
            )
            return found
        wanted_list = sorted({int(step) for step in np.atleast_1d(np.asarray(steps, dtype=int))})
        for step in wanted_list:
            if step not in self.manifest:
                near = have[np.abs(have - step).argsort()[:2]].tolist()
                raise UserError(f"{self.path} has no checkpoint at step {step}; nearest are {near}")
        return wanted_list

    @cached_property
    def _empty_model(self) -> Any:
        return self.experiment.model.build(self.task, generator(0, "init"))

    def snapshot(self, step: int | np.integer, reference: Snapshot | None = None) -> Snapshot:
        """The model at one saved step, after checking the checkpoint's hash."""
        (step,) = self.pick(step)
        return self._snapshot(step, self.dir.read_checkpoint(step, self.manifest), reference)

    def _snapshot(self, step: int, weights: dict[str, Tensor], reference: Snapshot | None) -> Snapshot:
        model = copy.deepcopy(self._empty_model)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the weights of step {step} do not fit the model of {self.path}/config.yaml: {reason}"
            ) from None
        digest = self.manifest[step]["sha256"]
        return Snapshot(step, model, self.task, self.split, self.experiment.loss, reference, digest)

    def snapshots(self, steps: Steps = None, reference: Snapshot | None = None) -> Iterator[Snapshot]:
        """Lazily, one model in memory at a time."""
        return (self.snapshot(step, reference) for step in self.pick(steps))

    @property
    def first(self) -> Snapshot:
        return self.snapshot(self.steps[0])

    @property
    def final(self) -> Snapshot:
        """The last checkpoint, of a finished run or not; see `reference` for the one hindsight may look from."""
        require(bool(self.steps), f"{self.path} has no checkpoint yet")
        return self.snapshot(self.steps[-1])

    def reference(self) -> Snapshot:
        """The final snapshot, for hindsight measures. Raises UserError while the run is unfinished."""
        if not self.finished:
            last = self.steps[-1] if self.steps else 0
            raise UserError(
                f"{self.path} is {self.info['status']} at step {last} of {self.experiment.train.steps}: "
                "only a finished run can be a reference; finish it with the same `toylab train` command"
            )
        return self.final

    def stack(self, steps: Steps = None) -> Stack:
        """The weights of several checkpoints with a leading step axis, for torch.func.vmap and batched algebra."""
        chosen = self.pick(steps)
        return self._stacked(chosen, [self.dir.read_checkpoint(step, self.manifest, self.stamps) for step in chosen])

    def _stacked(self, steps: list[int], weights: list[dict[str, Tensor]]) -> Stack:
        model = self._empty_model
        params = {name: torch.stack([w[name] for w in weights]) for name in model.state_dict()}
        return Stack(tuple(steps), params, model, self.task, self.split)

    # --- results ----------------------------------------------------------------------------------------------------

    def metrics(self) -> xr.Dataset:
        """What training logged: one variable per number, along `step` (NaN where it was not measured)."""
        return _metrics_table(self.dir.metrics())

    def map(
        self,
        tool: Callable[[Snapshot], Any],
        steps: Steps = None,
        reference: Snapshot | None = None,
        progress: bool = False,
    ) -> xr.Dataset | xr.DataArray:
        """tool(snapshot) at every chosen checkpoint, as one labelled array with a `step` axis.

        A tool that returns a dictionary gives a Dataset, any other result a DataArray. Tensors without labels get
        axes axis0, axis1, ...; `Labelled` names them. A tool with a `stack(Stack)` method is given many checkpoints
        at once. Results are cached in derived/ by the tool's settings, toylab's code and each checkpoint's hash, and
        saved every few seconds: an interrupted map goes on where it stopped. Functions that close over anything but
        plain values run uncached, with a warning.
        """
        chosen = self.pick(steps)
        store = _Store(self, tool, reference)
        todo = [step for step in chosen if not store.has(step)]
        last_flush = time.monotonic()
        bar = tqdm(total=len(todo), desc=store.name, unit="ckpt", disable=None if progress else True, leave=False)
        try:
            for chunk in self._chunks(todo, tool):
                weights = [self.dir.read_checkpoint(step, self.manifest, self.stamps) for step in chunk]
                if hasattr(tool, "stack"):
                    results = _unstack(tool.stack(self._stacked(chunk, weights)), len(chunk))
                else:
                    results = [tool(self._snapshot(chunk[0], weights[0], reference))]
                for step, result in zip(chunk, results, strict=True):
                    store.add(step, result)
                bar.update(len(chunk))
                if time.monotonic() - last_flush > FLUSH_SECONDS:
                    store.save()
                    last_flush = time.monotonic()
        finally:
            bar.close()
            store.save()
        return store.table(chosen)

    def _chunks(self, steps: list[int], tool: Any) -> list[list[int]]:
        size = 1
        if hasattr(tool, "stack") and steps:
            size = max(1, int(STACK_BYTES // max(self.manifest[steps[0]]["bytes"], 1)))
        return [steps[i : i + size] for i in range(0, len(steps), size)]

    def __repr__(self) -> str:
        e, steps = self.experiment, self.steps
        saved = f"{len(steps)} checkpoints, steps {steps[0]:,}..{steps[-1]:,}" if steps else "no checkpoint yet"
        return (
            f"Run({self.path}, {self.info['status']}: {saved})\n"
            f"  task   {e.task!r}\n         {self.split.all.example}\n  model  {self._empty_model!r}\n"
            f"  optim  {e.optim.kind}, lr {e.optim.lr:g}, weight decay {e.optim.weight_decay:g}; loss {e.loss}"
        )


class RunGroup:
    """All runs below a directory: the seeds of one experiment, or the cells of a sweep."""

    def __init__(self, path: str | Path | Iterable[str | Path]):
        if isinstance(path, str | Path):
            found = [p.parent for p in sorted(Path(path).glob("**/run.json"))]
            require(bool(found), f"there is no run below {path}; see `toylab list runs`")
        else:
            found = [Path(p) for p in path]
        self.runs = sorted((Run.open(p) for p in found), key=lambda run: (run.experiment.name, run.experiment.seed))

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @cached_property
    def differing(self) -> dict[str, list[Any]]:
        """The settings in which the runs differ -> their value in each run."""
        flat = [flatten(run.experiment.to_config()) for run in self.runs]
        keys = sorted(set().union(*flat) - {"name"})
        columns = {key: [_scalar(f.get(key)) for f in flat] for key in keys}
        return {key: column for key, column in columns.items() if len(set(map(str, column))) > 1}

    def join(self, tables: list[Any]) -> Any:
        """One table from one per run: along `seed` when only seeds differ, else along `run` with their settings.

        Runs saved at different steps are joined on the union of steps, with NaN where one has none.
        """
        import xarray as xr

        seeds = [run.experiment.seed for run in self.runs]
        if set(self.differing) <= {"seed"} and len(set(seeds)) == len(seeds):
            return xr.concat(tables, xr.Variable("seed", seeds), join="outer")
        last = [key.split(".")[-1] for key in self.differing]
        names = {key: short if last.count(short) == 1 else key for key, short in zip(self.differing, last, strict=True)}
        coords = {names[key]: ("run", column) for key, column in self.differing.items()}
        table = xr.concat(tables, xr.Variable("run", [str(r.path) for r in self.runs]), join="outer")
        return table.assign_coords(coords)

    def map(self, tool: Callable[[Snapshot], Any], steps: Steps = None, hindsight: bool = False, progress=False) -> Any:
        """run.map on every run, joined. hindsight: each run's finished network is the reference."""
        return self.join([run.map(tool, steps, run.reference() if hindsight else None, progress) for run in self.runs])

    def metrics(self) -> Any:
        return self.join([run.metrics() for run in self.runs])

    def __repr__(self) -> str:
        lines = [f"  {run.path}  {run.info['status']}" for run in self.runs]
        return "\n".join([f"RunGroup of {len(self)}, differing in {', '.join(self.differing) or 'nothing'}", *lines])


# --- results on disk -------------------------------------------------------------------------------------------------


class _Store:
    """Results of one tool on one run, by step: loaded from and saved to derived/<name>-<key>.nc."""

    def __init__(self, run: Run, tool: Any, reference: Snapshot | None):
        self.run = run
        self.name, key = describe_tool(tool)
        self.rows: dict[int, dict[str, Labelled]] = {}
        self.dirty = False
        self.path: Path | None = None
        if key is not None and (reference is None or reference.sha256):  # a hand-built reference has no identity
            looking_from = reference.sha256 if reference else ""
            digest = hashlib.sha256(f"{key}\n{code_hash()}\n{looking_from}".encode()).hexdigest()[:16]
            self.path = run.path / "derived" / f"{self.name}-{digest}.nc"
            self._load()

    def has(self, step: int) -> bool:
        return step in self.rows

    def add(self, step: int, result: Any) -> None:
        self.rows[step] = as_labelled(result)
        self.dirty = True

    def table(self, steps: list[int]) -> Any:
        """The rows of these steps as a Dataset, or as a DataArray for tools with a single unnamed result."""
        import xarray as xr

        first = self.rows[steps[0]]
        variables, coords = {}, {"step": steps}
        for step in steps:
            if self.rows[step].keys() != first.keys():
                raise UserError(
                    f"{self.name} returned {', '.join(first)} at step {steps[0]} and {', '.join(self.rows[step])} at "
                    f"step {step}; return the same names at every step (NaN where there is nothing to say)"
                )
        for name, labelled in first.items():
            rows = [self.rows[step][name].values for step in steps]
            shapes = {row.shape for row in rows}
            if len(shapes) > 1:
                raise UserError(
                    f"{self.name} returned {name} with different shapes at different steps ({shapes}); "
                    "return an array of one size (a mask instead of a list)"
                )
            variables[name] = (("step", *labelled.dims), np.stack(rows))
            coords |= labelled.coords
        try:
            table = xr.Dataset(variables, coords)
        except ValueError as error:
            raise UserError(
                f"the results of {self.name} do not fit together ({error}); name their axes with Labelled"
            ) from None
        return table["value"].rename(self.name) if list(first) == ["value"] else table

    def save(self) -> None:
        """Everything so far, atomically. netCDF-3 by scipy."""
        if self.path is None or not self.dirty:
            return
        import xarray as xr

        steps = sorted(self.rows)
        table = self.table(steps)
        dataset = table.rename("value").to_dataset() if isinstance(table, xr.DataArray) else table
        dataset.attrs["sha256"] = json.dumps([self.run.manifest[s]["sha256"] for s in steps])
        write_atomic(self.path, bytes(_encoded(dataset).to_netcdf(engine="scipy")))  # type: ignore[arg-type]
        self.dirty = False

    def _load(self) -> None:
        if self.path is None or not self.path.exists():
            return
        import xarray as xr

        try:
            with xr.open_dataset(self.path, engine="scipy") as opened:
                dataset = _decoded(opened.load())
            digests = json.loads(dataset.attrs["sha256"])
            steps = dataset["step"].values.tolist()
        except Exception:  # whatever the reader makes of a damaged file: it is computed again
            return
        arrays = {str(name): variable for name, variable in dataset.items()}
        for i, (step, digest) in enumerate(zip(steps, digests, strict=False)):
            if self.run.manifest.get(step, {}).get("sha256") == digest:
                self.rows[step] = {
                    name: Labelled(a.values[i], tuple(map(str, a.dims[1:])), _coords(a)) for name, a in arrays.items()
                }


def _encoded(dataset: Any) -> Any:
    """The dataset in what netCDF-3 can hold: small signed integers, float32, float64, text. `was` names the dtype."""
    out = dataset.copy()
    for name, variable in dataset.variables.items():
        values, dims, dtype = variable.values, variable.dims, variable.dtype
        if dtype.kind in "bSUO" or dtype in (np.int8, np.int16, np.int32, np.float32, np.float64):
            continue
        if dtype.kind == "c":
            values, dims = np.stack([values.real, values.imag], -1), (*dims, "real_imag")
        else:
            small = values.astype(np.int32) if dtype.kind in "iu" else values.astype(np.float32)
            values = small if np.array_equal(small, values, equal_nan=dtype.kind == "f") else values.astype(np.float64)
            require(
                dtype.kind == "f" or np.array_equal(values.astype(dtype), variable.values),
                f"{name} holds integers beyond 2^53, which a result file cannot",
            )
        out[name] = (dims, values, {"was": str(dtype)})
    return out


def _decoded(dataset: Any) -> Any:
    """The inverse of _encoded."""
    out = dataset.copy()
    for name, variable in dataset.variables.items():
        values, dims, was = variable.values, variable.dims, variable.attrs.get("was")
        if dims[-1:] == ("real_imag",) and was:
            out[name] = (dims[:-1], (values[..., 0] + 1j * values[..., 1]).astype(was))
        elif was or values.dtype == object:
            out[name] = (dims, values.astype(was or str))
    return out


def _coords(array: Any) -> dict[str, Any]:
    return {str(d): array.coords[d].values for d in array.dims[1:] if d in array.coords}


def as_labelled(result: Any) -> dict[str, Labelled]:
    """Whatever a tool returned, as named arrays with named axes."""
    if isinstance(result, Mapping):
        if any(isinstance(value, Mapping) for value in result.values()):
            raise UserError("a tool returned a dictionary of dictionaries; return one dictionary of named results")
        return {str(name): as_labelled(value)["value"] for name, value in result.items()}
    if isinstance(result, Labelled):
        return {"value": result}
    array = result.detach().cpu().numpy() if isinstance(result, Tensor) else np.asarray(result)
    if array.dtype == object:
        raise UserError(
            f"a tool returned {type(result).__name__}; return numbers, tensors, Labelled, or a dict of them"
        )
    return {"value": Labelled(array, tuple(f"axis{i}" for i in range(array.ndim)))}


def _unstack(results: Mapping[str, Labelled] | Labelled, n: int) -> list[Any]:
    """One result per checkpoint from a tool's stacked result (every array leads with "step")."""
    if isinstance(results, Labelled):
        assert results.dims[0] == "step", f"{results.dims} must lead with step"
        return [Labelled(results.values[i], results.dims[1:], results.coords) for i in range(n)]
    columns = {name: _unstack(value, n) for name, value in results.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def describe_tool(tool: Any) -> tuple[str, str | None]:
    """(short name, text that identifies its code and settings); None when it holds something that cannot be compared.

    Code of toylab itself is left to code_hash; what a function of somebody else reads (defaults, closure, globals)
    belongs to its identity, so that a changed constant or helper never meets a result of the old one.
    """
    func = tool.func if isinstance(tool, functools.partial) else tool
    name = getattr(func, "__name__", type(func).__name__).strip("<>")
    key = _identity(tool)
    if key is None:
        warnings.warn(
            f"results of {name} are not cached: it holds values that cannot be compared; "
            "use a frozen dataclass, or a function of plain arguments",
            stacklevel=4,
        )
    return name, key


def _identity(value: Any, seen: frozenset[int] = frozenset()) -> str | None:
    """Text that is the same for two values just when they compute the same; None when that cannot be told."""
    if value is None or isinstance(value, str | int | float | bool | complex | torch.dtype | np.generic):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return None if array.dtype == object else f"{array.dtype}{array.shape}{digest}"
    if isinstance(value, ModuleType) or id(value) in seen:
        return getattr(value, "__name__", "")
    seen = seen | {id(value)}
    parts: list[Any]
    if isinstance(value, tuple | list):
        head, parts = type(value).__name__, list(value)
    elif isinstance(value, dict):
        head, parts = "dict", [part for item in value.items() for part in item]
    elif isinstance(value, functools.partial):
        head, parts = "partial", [value.func, value.args, value.keywords]
    elif isinstance(value, MethodType):
        head, parts = value.__name__, [value.__func__, value.__self__]
    elif isinstance(value, type | FunctionType | BuiltinFunctionType) and _is_installed(value):
        return f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, FunctionType):
        head, parts = f"{value.__module__}.{value.__qualname__}", _function_parts(value)
    elif isinstance(value, type):
        head = f"{value.__module__}.{value.__qualname__}"
        members = {n: v for n, v in vars(value).items() if not (dataclasses.is_dataclass(value) and n in GENERATED)}
        # Of properties, cached properties, class and static methods the function inside.
        inner = [
            getattr(v, "fget", None) or getattr(v, "func", None) or getattr(v, "__func__", v) for v in members.values()
        ]
        parts = [*value.__bases__, *(f for f in inner if isinstance(f, FunctionType))]
    elif dataclasses.is_dataclass(value):
        head, parts = "", [type(value), *(getattr(value, f.name) for f in dataclasses.fields(value))]
    else:
        return None
    texts = [_identity(part, seen) for part in parts]
    return None if any(text is None for text in texts) else f"{head}({', '.join(map(str, texts))})"


def _is_installed(value: Any) -> bool:
    """Whether a class or function comes from toylab or an installed package rather than from the user's own files."""
    root = sys.modules.get((value.__module__ or "builtins").partition(".")[0])
    file = getattr(root, "__file__", None) or ""
    own = getattr(root, "__name__", "") == "toylab"
    return own or (root is not None and root.__name__ != "__main__" and (not file or file.startswith(LIBRARIES)))


def _function_parts(function: FunctionType) -> list[Any]:
    """Everything a function computes with: its code, defaults, closure and the globals that the code reads."""
    codes: list[CodeType] = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    constants = [str(c) for code in codes for c in code.co_consts if not isinstance(c, CodeType)]
    read = {i.argval for code in codes for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return [
        "".join(code.co_code.hex() + ",".join(code.co_names) for code in codes),
        constants,
        list(function.__defaults__ or ()),
        function.__kwdefaults__ or {},
        [cell.cell_contents for cell in function.__closure__ or ()],
        {name: function.__globals__[name] for name in sorted(read) if name in function.__globals__},
    ]


@functools.cache
def code_hash() -> str:
    """Hash of toylab's sources: a changed formula never meets a result of the old one."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] not in ("cli", "figures", "paper_repro"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _metrics_table(records: list[dict[str, Any]]) -> Any:
    import xarray as xr

    by_step: dict[int, dict[str, float]] = {}
    for record in records:
        by_step.setdefault(record["step"], {}).update(record)
    steps = sorted(by_step)
    names = dict.fromkeys(name for row in by_step.values() for name in row if name != "step")
    columns = {name: ("step", [by_step[s].get(name, np.nan) for s in steps]) for name in names}
    return xr.Dataset(columns, {"step": steps})


def _scalar(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)
