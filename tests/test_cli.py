"""The command line: every command from its help to its files, in a small world."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases.runs import flip_bit, overrides

from toylab import Run
from toylab.cli import COMMANDS, main
from toylab.cli.demo import events
from toylab.cli.train import duration

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def command(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *overrides(folder)]) == 0
    return folder


@pytest.fixture
def path(runs):
    return runs / "tiny" / "seed=0"


# --- Help ------------------------------------------------------------------------------------------------------------


def test_help_says_what_each_command_does_and_imports_nothing_heavy():
    done = command("-X", "importtime", "-m", "toylab", "--help")
    assert done.returncode == 0
    for name, (about, _) in COMMANDS.items():
        assert name in done.stdout
        assert about in " ".join(done.stdout.split())
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "toylab" in imported
    assert not imported & {"torch", "numpy", "hydra", "omegaconf", "matplotlib", "xarray"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_shows_how_to_call_it(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.count(f"toylab {name}") >= 3  # the usage line and at least two examples
    assert len(text.splitlines()) > 8


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train", "--sweep"], ["list", "nothing"], ["verify"]])
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: toylab" in capsys.readouterr().err


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_everything_with_a_line_about_it(runs, capsys):
    assert main(["list", "--runs", str(runs)]) == 0
    text = capsys.readouterr().out
    for group, plural in (
        ("task", "tasks"),
        ("model", "models"),
        ("measure", "measures"),
        ("experiment", "experiments"),
    ):
        assert f"{plural}:" in text
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert any(line.split()[:1] == [file.stem] and len(line.split()) > 3 for line in text.splitlines()), file
    assert "progress" in text
    assert f"{runs}/tiny/seed=0  finished, step 60 of 60, test accuracy" in text


def test_list_of_runs_alone_survives_a_broken_one(tmp_path, capsys):
    assert main(["list", "runs", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "runs: none\n"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_bytes(b"\xff{")
    assert main(["list", "runs", "--runs", str(tmp_path)]) == 0
    assert "unreadable run.json" in capsys.readouterr().out


# --- train, measure, figure, verify ----------------------------------------------------------------------------------


def test_train_says_what_will_run_how_long_and_where(tmp_path, capsys):
    assert (
        main(["train", *overrides(tmp_path), "seed=3", "train.stop={measure: train_loss, at_most: 100, hold: 10}"]) == 0
    )
    text = capsys.readouterr().out
    path = tmp_path / "tiny" / "seed=3"
    for part in ("tiny, seed 3", "p=7", "2,384 parameters", "at most 60 steps", "up to 8 checkpoints", str(path)):
        assert part in text, part
    assert "finished at step 10 (stop condition held): train loss" in text
    assert f"next:  toylab measure {path}" in text
    assert Run.open(path).experiment.seed == 3


def test_overwrite_starts_over(tmp_path):
    assert main(["train", *overrides(tmp_path)]) == 0
    path = tmp_path / "tiny" / "seed=0"
    (path / "derived").mkdir()
    assert main(["train", *overrides(tmp_path), "optim.lr=2e-2", "overwrite=true"]) == 0
    assert Run.open(path).experiment.optim.lr == 2e-2
    assert not (path / "derived").exists()


def test_measure_prints_numbers_that_are_the_runs_own(path, capsys):
    assert main(["measure", str(path), "loss", "norms", "--steps", "every:30"]) == 0
    text = capsys.readouterr().out
    (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["train_loss"]]
    from toylab.measures.basic import Loss

    expected = Run.open(path).map(Loss(), "every:30")["train_loss"].values
    assert [float(x) for x in row[1:]] == pytest.approx(expected.tolist(), rel=1e-3)
    assert "sum_sq_weights" in text
    assert "weight_norm" in text
    assert list((path / "derived").glob("Loss-*.nc"))


def test_figure_draws_and_keeps_its_table(path, tmp_path, capsys):
    assert main(["figure", "progress", str(path), "--out", str(tmp_path / "a" / "x.png")]) == 0
    assert (tmp_path / "a" / "x.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a" / "x.nc").exists()
    assert str(tmp_path / "a" / "x.png") in capsys.readouterr().out
    assert main(["figure", "progress", str(path), "--out", str(tmp_path / "y.png")]) == 0
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / "a" / "x.png").read_bytes()


def test_verify_proves_and_refutes(path, tmp_path, capsys):
    import shutil

    assert main(["verify", str(path), "--replays", "2", "--seed", "0"]) == 0
    text = capsys.readouterr().out
    assert "verified" in text
    assert text.count("gives the same bits") == 2
    shutil.copytree(path, tmp_path / "run")
    flip_bit(tmp_path / "run" / "checkpoints" / "step_00000030.safetensors")
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m toylab list | head -1", shell=True, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout == "tasks:\n"
    assert "Traceback" not in done.stderr


# --- Sweeps ----------------------------------------------------------------------------------------------------------


def test_a_sweep_makes_every_cell_and_skips_what_is_finished(tmp_path):
    line = ["-m", "toylab", "train", "-m", *overrides(tmp_path), "train.steps=20", "seed=0,1"]
    done = command(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        run = Run.open(tmp_path / "tiny" / f"seed={seed}")
        assert run.finished
        assert run.experiment.seed == seed
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "tiny").rglob("*.safetensors")}
    again = command(*line[:-1], "seed=0,1,2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished; skipped") == 2
    assert Run.open(tmp_path / "tiny" / "seed=2").finished
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert not [p for p in tmp_path.iterdir() if p.name in ("outputs", "multirun")]


# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo_trains_measures_draws_and_the_second_time_only_redraws(tmp_path, monkeypatch, capsys):
    """The demo with its own code and a small network in the place of the real one."""
    import toylab.cli.demo as demo

    real, small = demo.compose, overrides(tmp_path)[:-2]  # all but name and runs
    monkeypatch.setattr(demo, "compose", lambda asked: real([*asked, *small, "train.stop=null"]))
    path = tmp_path / "demo" / "seed=1"
    assert main(["demo", "--runs", str(tmp_path), "--seed", "1"]) == 0
    text = capsys.readouterr().out
    for part in ("finished at step 60", f"run:   {path}", "figure:", "look at:", f"toylab verify {path}", "next:"):
        assert part in text, part
    assert (path / "progress.png").exists()
    assert len(list((path / "derived").glob("*.nc"))) == 3
    before = (path / "manifest.jsonl").stat().st_mtime_ns
    (path / "progress.png").unlink()
    assert main(["demo", "--runs", str(tmp_path), "--seed", "1"]) == 0
    assert "already there (--fresh starts over)" in capsys.readouterr().out
    assert (path / "progress.png").exists()
    assert (path / "manifest.jsonl").stat().st_mtime_ns == before
    assert main(["demo", "--runs", str(tmp_path), "--seed", "1", "--fresh"]) == 0
    assert "already there" not in capsys.readouterr().out
    assert (path / "manifest.jsonl").stat().st_mtime_ns > before
    run = Run.open(path)
    assert events(run)[1] is None, "sixty steps do not grok"


def test_durations_read_as_one_would_say_them():
    assert [duration(s) for s in (42.0, 180.0, 5400.0)] == ["42 s", "3 min", "1.5 h"]


def test_a_signal_within_a_measure_that_trains_ends_the_command_in_one_line(monkeypatch, capsys):
    from toylab.durable import Interrupted

    def stopped(args):
        raise Interrupted("stopped at step 3 of 6; it had no path to save to", 15)

    monkeypatch.setattr("toylab.cli.list.run", stopped)
    assert main(["list"]) == 143
    assert capsys.readouterr().err == "toylab: stopped at step 3 of 6; it had no path to save to\n"
