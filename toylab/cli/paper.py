"""toylab paper: train what a paper's claims need, measure, draw, judge every claim, and write it all down.

paper_repro/<paper>/claims.py offers a docstring, RUNS and QUICK (tuples of RunSet), CLAIMS, FIGURES (figure name ->
keys of the run sets it is drawn from), and measure(key, runs) -> the table of one run set.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from toylab.claims import RunSet, judge, markdown, results, tally
from toylab.cli.compose import compose, shipped
from toylab.cli.figure import draw_figure
from toylab.cli.train import duration, split_config
from toylab.durable import Interrupted, write_atomic
from toylab.errors import one_of, require
from toylab.experiment import Experiment
from toylab.rundir import RunDir


@dataclass(frozen=True)
class Planned:
    """One run that a paper needs. status: finished, diverged, unfinished or missing; left: steps still to take."""

    key: str
    cell: int
    experiment: Experiment
    path: Path
    status: str = "missing"
    left: int = 0


def run(args: Namespace) -> int:
    started = time.perf_counter()
    module = paper_module(args.name)
    require(args.seeds is None or args.seeds >= 1, f"--seeds {args.seeds}: at least 1")
    sets = run_sets(module, args.quick, args.seeds)
    command = f"toylab paper {args.name}" + (" --quick" if args.quick else "")
    command += f" --seeds {args.seeds}" if args.seeds else ""
    out = Path(args.out) if args.out else Path("paper_repro") / args.name / ("quick" if args.quick else "")
    planned = plan(sets, args.runs)
    announce(command, sets, planned)
    if args.plan:
        return 0
    if not args.no_train:
        status = train_missing(sets, planned, command)
        if status:
            return status
        planned = [seen(p) for p in planned]
    return report(module, args.name, sets, planned, out, command, started)


def paper_module(name: str) -> ModuleType:
    """paper_repro/<name>/claims.py of this installation, by name only."""
    folder = shipped("paper_repro")
    one_of("paper", name, sorted(file.parent.name for file in folder.glob("*/claims.py")))
    return load_paper(folder / name / "claims.py")


def load_paper(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"toylab_papers.{file.parent.name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_sets(module: ModuleType, quick: bool, seeds: int | None) -> list[RunSet]:
    """The run sets to train; `seeds` replaces the number of those that are repeated."""
    sets = module.QUICK if quick else module.RUNS
    return [dataclasses.replace(s, seeds=seeds) if seeds and s.seeds > 1 else s for s in sets]


# --- What there is and what is missing --------------------------------------------------------------------------------


def plan(sets: list[RunSet], runs: str) -> list[Planned]:
    """Every run, in order. Raises UserError when a finished run at its place was trained with other settings."""
    planned = []
    for s in sets:
        for i, overrides in enumerate(s.cells):
            experiment, _, _ = split_config(compose([*overrides, f"runs={runs}"]))
            for seed in range(s.seeds):
                one = dataclasses.replace(experiment, seed=seed)
                planned.append(seen(Planned(s.key, i, one, Path(runs) / one.name / f"seed={seed}")))
    paths = [p.path for p in planned]
    assert len(set(paths)) == len(paths), "two runs of a paper share a directory: give their cells different names"
    return planned


def seen(p: Planned) -> Planned:
    """The same run with its status and the steps left, as they are on disk now."""
    directory, steps = RunDir(p.path), p.experiment.train.steps
    if not directory.exists():
        return dataclasses.replace(p, status="missing", left=steps)
    there = Experiment.from_config(directory.config())
    require(
        settings(there) == settings(p.experiment),
        f"{p.path} was trained with other settings than this paper asks for; move it away, or give another --runs",
    )
    status = directory.info()["status"]
    if status in ("finished", "diverged"):
        return dataclasses.replace(p, status=status, left=0)
    left = steps - max(directory.state_files(), default=0)
    return dataclasses.replace(p, status="unfinished", left=max(left, 1))


def settings(experiment: Experiment) -> dict[str, Any]:
    """All that decides a result: neither threads, nor what is logged on the way."""
    config = experiment.to_config()
    del config["measure"]
    config["train"] = {k: v for k, v in config["train"].items() if k not in ("threads", "tensorboard")}
    return config


def announce(command: str, sets: list[RunSet], planned: list[Planned]) -> None:
    """Each run set, how much of it is there, and how long the rest takes on this machine, measured on a few steps."""
    print(f"{command}: {len(planned)} runs")
    total, stops = 0.0, False
    width = max(len(s.key) for s in sets)
    for s in sets:
        mine = [p for p in planned if p.key == s.key]
        left, stop = time_left(mine, s.stacked)
        total, stops = total + left, stops or stop
        done = sum(p.status == "finished" for p in mine)
        diverged = sum(p.status == "diverged" for p in mine)
        state = f"{done} of {len(mine)} there" + (f", {diverged} diverged" if diverged else "")
        rest = f"{'at most ' if stop else ''}about {duration(left)} to train" if left else ""
        print(f"  {s.key:{width}}  {state:16} {rest:32} {s.about}", flush=True)
    if total:
        print(f"  in all {'at most ' if stops else ''}about {duration(total)} to train, then the measures", flush=True)


def time_left(planned: list[Planned], stacked: bool) -> tuple[float, bool]:
    """(seconds of training left, whether some of it may stop early); a step is timed once per cell, or per stack."""
    from toylab import ensemble
    from toylab.train import seconds_per_step

    todo = [p for p in planned if p.left]
    stops = any(p.experiment.train.stop is not None for p in todo)
    if stacked and todo:
        return ensemble.seconds_per_step([p.experiment for p in todo]) * max(p.left for p in todo), stops
    # The less disturbed of two timings.
    each = {p.cell: min(seconds_per_step(p.experiment) for _ in range(2)) for p in {p.cell: p for p in todo}.values()}
    return sum((each[p.cell] * p.left for p in todo), 0.0), stops


def train_missing(sets: list[RunSet], planned: list[Planned], command: str) -> int:
    """Train what is missing, one run or stack after another. Exit status of a stopped one; diverged ones are passed
    over."""
    from toylab.ensemble import train_ensemble
    from toylab.train import Diverged, train

    stacked = {s.key: s.stacked for s in sets}
    jobs: dict[Any, list[Planned]] = {}
    for p in planned:
        if p.left:
            jobs.setdefault(p.key if stacked[p.key] else p.path, []).append(p)
    for i, job in enumerate(jobs.values(), 1):
        members = f" and {len(job) - 1} more" if len(job) > 1 else ""
        print(f"[{i}/{len(jobs)}] {job[0].key}: {job[0].path}{members}", flush=True)
        try:
            if stacked[job[0].key]:
                train_ensemble([p.experiment for p in job], [p.path for p in job])
            else:
                train(job[0].experiment, job[0].path)
        except Interrupted as stopped:
            print(f"toylab: {stopped}\n  {command}", file=sys.stderr)
            return 128 + stopped.signal
        except Diverged as error:
            print(f"toylab: {job[0].path}: {error}", file=sys.stderr)
    return 0


# --- Measure, judge, draw ---------------------------------------------------------------------------------------------


def report(
    module: ModuleType, name: str, sets: list[RunSet], planned: list[Planned], out: Path, command: str, started: float
) -> int:
    from toylab.runs import RunGroup

    paths = {s.key: complete(s, planned) for s in sets}
    tables: dict[str, Any] = {}
    for key, found in paths.items():
        if found:
            print(f"measuring {key}: {len(found)} runs", flush=True)
            tables[key] = module.measure(key, RunGroup(found))
    findings = [judge(claim, tables, paths) for claim in module.CLAIMS]
    title = (module.__doc__ or name).strip().split("\n")[0].rstrip(".")
    about = {"title": title} | circumstances(planned, command, time.perf_counter() - started)
    text = markdown(findings, about)
    write_atomic(out / "results.json", (json.dumps(results(findings, about), indent=1) + "\n").encode())
    write_atomic(out / "results.md", text.encode())
    for figure, keys in module.FIGURES.items():
        if all(key in tables for key in keys):
            print(draw_figure(figure, [p for key in keys for p in paths[key]], out / f"{figure}.png"), flush=True)
        else:
            print(f"not drawn: {figure} needs {', '.join(k for k in keys if k not in tables)}")
    print(f"\n{text}\n{tally(findings)}: {out / 'results.md'}, {out / 'results.json'}")
    return 0


def complete(s: RunSet, planned: list[Planned]) -> list[Path]:
    """The finished runs of those seeds that have finished in every cell: a sweep with holes is not measured."""
    mine = [p for p in planned if p.key == s.key]
    seeds = {p.experiment.seed for p in mine} - {p.experiment.seed for p in mine if p.status != "finished"}
    return [p.path for p in mine if p.experiment.seed in seeds]


def circumstances(planned: list[Planned], command: str, seconds: float) -> dict[str, Any]:
    """How these results were made, without saying where."""
    import torch

    from toylab.rundir import toylab_version

    infos = [RunDir(p.path).info() if p.status == "finished" else {} for p in planned]
    trained = sum((sum(info.get("seconds", {}).values()) for info in infos), 0.0)
    threads = sorted({info["threads"] for info in infos if info})
    done = sum(map(bool, infos))
    return {
        "command": f"`{command}`",
        "runs finished": f"{done} of {len(planned)}",
        "time": f"training took {duration(trained)} in this and earlier calls, this call {duration(seconds)}",
        "machine": f"{os.cpu_count()} cores, runs trained with {' or '.join(map(str, threads)) or 'no'} threads, "
        f"torch {torch.__version__}, toylab {toylab_version()}",
        "runs": [
            {
                "set": p.key,
                "run": f"{p.experiment.name}/seed={p.experiment.seed}",
                "status": p.status,
                "steps": info.get("step"),
                "seconds": round(sum(info.get("seconds", {}).values())) if info else None,
            }
            for p, info in zip(planned, infos, strict=True)
        ],
    }
