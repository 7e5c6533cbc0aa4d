"""What the README prints is what happens."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest

from toylab.cli import main, parser
from toylab.cli.compose import compose

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"`toylab ([a-z][^`]*)`", TEXT)))


@pytest.mark.filterwarnings("ignore:results of .* are not cached")
def test_the_tour_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["task.p=11", "task.frac_train=0.5", "model.d_model=16", "model.d_head=4", "model.d_mlp=32"]
    assert main(["train", "experiment=demo", *small, "train.steps=20"]) == 0
    (tour,) = PYTHON
    assert len([line for line in tour.splitlines() if line.strip()]) <= 15
    scope = {}
    exec(tour, scope)
    assert scope["norms"].dims == ("step", "param")
    assert scope["seeds"].test_loss.dims == ("seed", "step")
    matplotlib.use("Agg")
    scope["losses"].test_loss.plot()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    """Parses, and for `train` composes and builds: the long work itself is tested elsewhere."""
    args = parser().parse_args(shlex.split(command.split(" |")[0]))
    if args.command == "train" and not (args.multirun or getattr(args, "ensemble", False)):
        from toylab.cli.train import split_config

        split_config(compose([o for o in args.overrides if "..." not in o]))


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (README.parent / target).exists(), target
