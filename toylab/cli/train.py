"""toylab train: one run, or with -m a sweep on Hydra's engine."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from toylab.cli.compose import compose, shipped
from toylab.errors import UserError


def run(args: Namespace) -> int:
    if args.multirun:
        return sweep(args.overrides, args.config_dir)
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
    from toylab.train import Interrupted, train

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
    from toylab.experiment import scheduled_steps
    from toylab.rundir import RunDir
    from toylab.train import seconds_per_step

    directory = RunDir(path)
    if directory.exists() and not overwrite and directory.info()["status"] in ("finished", "diverged"):
        return  # train() says so
    spec = experiment.train
    each = seconds_per_step(experiment)
    model = experiment.model.build(experiment.task, __import__("torch").Generator())
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
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from toylab.rundir import RunDir

    def job(config: DictConfig) -> str:
        node: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        _, path, overwrite = split_config(dict(node))
        directory = RunDir(path)
        if directory.exists() and directory.info()["status"] == "finished" and not overwrite:
            print(f"{path} is finished; skipped")
            return str(path)
        try:
            status = train_config(node, "the same sweep")
        except UserError as error:
            print(f"toylab: {path}: {error}", file=sys.stderr)
            raise
        if status:
            raise SystemExit(status)
        return str(path)

    assert HydraConfig is not None
    arguments = [*overrides, "--multirun", *(["--config-dir", config_dir] if config_dir else [])]
    sys.argv = ["toylab train", *arguments]
    hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="train")(job)()
    return 0
