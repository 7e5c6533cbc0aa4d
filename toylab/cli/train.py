"""toylab train: one run, with -m a sweep on Hydra's engine, with --ensemble one stacked program."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from toylab.cli.compose import REFUSALS, compose, refusal, shipped
from toylab.errors import UserError


def run(args: Namespace) -> int:
    if args.multirun:
        return sweep(args.overrides, args.config_dir)
    if args.ensemble:
        return ensemble(args.overrides, args.config_dir)
    return train_config(compose(args.overrides, args.config_dir), f"toylab train {' '.join(args.overrides)}")


def split_config(config: dict[str, Any]) -> tuple[Any, Path, bool]:
    """(experiment, run directory, overwrite) of a composed config."""
    from toylab.config import convert
    from toylab.experiment import Experiment

    runs = Path(convert(config.pop("runs"), str, "runs"))
    overwrite = convert(config.pop("overwrite"), bool, "overwrite")
    experiment = Experiment.from_config(config)
    return experiment, runs / experiment.name / f"seed={experiment.seed}", overwrite


def train_config(config: dict[str, Any], command: str, next_steps: bool = True) -> int:
    from toylab.durable import Interrupted
    from toylab.train import train

    experiment, path, overwrite = split_config(config)
    announce(experiment, path, overwrite)
    try:
        done = train(experiment, path, overwrite=overwrite)
    except Interrupted as stopped:
        print(f"toylab: {stopped}\n  {command}", file=sys.stderr)
        return 128 + stopped.signal
    print(summary(done))
    if next_steps:
        print(f"next:  toylab measure {path}   |   toylab figure progress {path}   |   toylab verify {path}")
    return 0


def announce(experiment: Any, path: Path, overwrite: bool) -> None:
    """What will run and how long it will take at most, measured on a few steps."""
    import torch

    from toylab.experiment import scheduled_steps
    from toylab.rundir import RunDir
    from toylab.train import seconds_per_step

    directory = RunDir(path)
    if directory.exists() and not overwrite and directory.info()["status"] in ("finished", "diverged"):
        return  # train() says so
    spec = experiment.train
    each = seconds_per_step(experiment)
    model = experiment.model.build(experiment.task, torch.Generator())
    n = len(scheduled_steps(spec.checkpoints, spec.steps))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{experiment.name}, seed {experiment.seed}: {experiment.task!r}\n  {model!r}")
    print(
        f"  {'at most ' if spec.stop else ''}{spec.steps:,} steps at {1000 * each:.1f} ms: "
        f"{'at most ' if spec.stop else ''}about {duration(each * spec.steps)}; "
        f"{'up to ' if spec.stop else ''}{n} checkpoints of {size / 1e6:.1f} MB in {path}",
        flush=True,
    )


def duration(seconds: float) -> str:
    """ "40 s", "3 min", "1.5 h" """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(done: Any) -> str:
    info = done.info
    numbers = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in info["final"].items() if not k.startswith("all"))
    return f"finished at step {info['step']:,} ({info['reason']}): {numbers}\nrun:   {done.path}"


def sweep(overrides: list[str], config_dir: str | None) -> int:
    """Hand the line to Hydra: its sweeper makes the cells, its launcher runs them. Finished cells are skipped."""
    import os

    import hydra
    from omegaconf import DictConfig, OmegaConf

    from toylab.rundir import RunDir

    def job(config: DictConfig) -> str:
        node: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        try:
            _, path, overwrite = split_config(dict(node))
            directory = RunDir(path)
            if directory.exists() and not overwrite and directory.info()["status"] == "finished":
                print(f"{path} is finished; skipped")
                return str(path)
            status = train_config(node, "the same sweep")
        except UserError as error:
            print(
                f"toylab: {node.get('name')}, seed {node.get('seed')}: {' '.join(str(error).split())}", file=sys.stderr
            )
            raise
        if status:
            raise SystemExit(status)
        return str(path)

    arguments = [*overrides, "--multirun", *(["--config-dir", config_dir] if config_dir else [])]
    sys.argv = ["toylab train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here, instead of being printed as a traceback
    try:
        hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="train")(job)()
    except UserError:  # told when it happened; the other cells have run
        return 1
    except REFUSALS as error:
        raise refusal(error, overrides) from None
    return 0


def ensemble(overrides: list[str], config_dir: str | None) -> int:
    """Every cell of the same comma syntax, trained as one program. Exit status 1 if a member diverged."""
    from toylab.durable import Interrupted
    from toylab.ensemble import train_ensemble

    configs = [compose(cell, config_dir) for cell in cells(overrides)]
    members = [split_config(config) for config in name_apart(configs)]
    experiments, paths = [e for e, _, _ in members], [path for _, path, _ in members]
    print(f"{len(members)} members as one program: {experiments[0].task!r}\n  {paths[0]} ... {paths[-1]}", flush=True)
    try:
        group = train_ensemble(experiments, paths, overwrite=members[0][2])
    except Interrupted as stopped:
        print(f"toylab: {stopped}\n  toylab train --ensemble {' '.join(overrides)}", file=sys.stderr)
        return 128 + stopped.signal
    for done in group:
        final = {k: v for k, v in done.info.get("final", {}).items() if not k.startswith("all")}
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in final.items())
        print(f"{done.path}  {done.info['status']} at step {done.info['step']:,}  {numbers}")
    return 0 if all(done.finished for done in group) else 1


def cells(overrides: list[str]) -> list[list[str]]:
    """The overrides of every cell: seed=0,1 optim.lr=1e-3,2e-3 are four. Lists, choice(..), range(..) as with -m."""
    from itertools import product

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(" ".join(str(error).split("\n")[:2])) from None
    choices = []
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override():
            if not override.is_discrete_sweep() and not override.is_range_sweep():
                raise UserError(f"{override.input_line}: only lists, choice(...) and range(...) name separate cells")
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([f"{key}={override.get_value_element_as_str()}"])
    return [list(cell) for cell in product(*choices)]


def name_apart(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells that would share a directory get the settings in which they differ, the seed apart, in their name."""
    from toylab.config import flatten

    if len({(config["name"], config["seed"]) for config in configs}) == len(configs):
        return configs
    flat = [flatten(config) for config in configs]
    keys = [key for key in flat[0] if key not in ("name", "seed") and any(f.get(key) != flat[0][key] for f in flat)]
    for config, values in zip(configs, flat, strict=True):
        config["name"] += "/" + ",".join(f"{key}={values[key]}" for key in keys)
    return configs
