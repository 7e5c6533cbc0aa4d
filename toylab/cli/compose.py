"""From the command line to a config: Hydra composes, and what it refuses is said in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from toylab.config import flatten
from toylab.errors import UserError, did_you_mean


def shipped(folder: str) -> Path:
    """conf/, figures/ or paper_repro/: inside the package (a wheel) or beside it (a checkout)."""
    here = Path(__file__).resolve().parent.parent
    marker = {"conf": "train.yaml"}.get(folder, ".")
    for candidate in (here / folder, here.parent / folder):
        if (candidate / marker).exists():
            return candidate
    raise FileNotFoundError(f"{folder} is neither inside nor beside the toylab package")


def compose(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """The resolved config as plain dictionaries. Raises UserError naming the override that cannot be."""
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
            config = hydra_compose("train", overrides + extra)
            return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except REFUSALS as error:
        raise refusal(error, overrides) from None


# What Hydra raises for a line it cannot compose; ValueError: a number for a group.
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


def refusal(error: Exception, overrides: list[str]) -> UserError:
    """Hydra's error in one line of our own."""
    if isinstance(error, MissingConfigException):
        return UserError(_missing_choice(error, overrides))
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        return UserError(_explain(error, overrides))


def _missing_choice(error: MissingConfigException, overrides: list[str]) -> str:
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    known = sorted(f.stem for f in (shipped("conf") / group).glob("*.yaml"))
    return f"{group}={choice}: accepted are {', '.join(known)}{did_you_mean(choice, known)}"


def _explain(error: Exception, overrides: list[str]) -> str:
    """For an unknown key the nearest known one; otherwise Hydra's own first line."""
    groups = [o for o in overrides if (shipped("conf") / o.partition("=")[0].lstrip("+~")).is_dir()]
    try:
        known = list(flatten(OmegaConf.to_container(hydra_compose("train", groups))))
    except REFUSALS:
        known = []
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if "=" not in override:
            return f"{override!r} is not an override; write key=value"
        parents = {k[: m.start()] for k in known for m in re.finditer(r"\.", k)}
        if known and override not in groups and key not in known and key not in parents:
            return f"{key}: no such setting{did_you_mean(key, known)}; conf/train.yaml and the files it names list all"
    return " ".join(str(error).split("\n")[:2])


def header(file: Path) -> str:
    """The comment that opens a yaml file: what it is, in a line or two."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment)
