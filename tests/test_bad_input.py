"""Whatever is wrong from outside: one line that says what arrived and what to try, no traceback, and nothing lost."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases.runs import bits, edit_manifest, flip_bit, overrides

from toylab import Run
from toylab.cli import main
from toylab.cli.compose import compose
from toylab.errors import UserError
from toylab.rundir import RunDir

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def one_line(text: str) -> str:
    """The single line on stderr."""
    assert "Traceback" not in text
    (line,) = text.strip().splitlines()
    assert line.startswith("toylab: ")
    return line


@pytest.fixture
def refused(capsys):
    """Run the command line; it must fail with status 1 and one line, which comes back."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 1
        return one_line(capsys.readouterr().err)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("finished")
    assert main(["train", *overrides(runs)]) == 0
    return runs / "tiny" / "seed=0"


@pytest.fixture
def path(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "tiny" / "seed=0")
    return tmp_path / "tiny" / "seed=0"


@pytest.fixture
def unfinished(path):
    RunDir(path).write_info(status="interrupted")
    return path


# --- Settings --------------------------------------------------------------------------------------------------------

WRONG_SETTINGS = {
    "unknown key": ("optim.lrr=1e-3", 'optim.lrr: no such setting; did you mean "optim.lr"'),
    "unknown group": ("optm.lr=1e-3", 'optm.lr: no such setting; did you mean "optim.lr"'),
    "unknown key, added by force": ("+optim.lrr=1e-3", "lr"),
    "unknown key at the top, added by force": ("+sed=1", 'sed: no such setting; accepted are .*did you mean "seed"'),
    "unknown choice": ("model=one_layr", 'model=one_layr: accepted are .*did you mean "one_layer"'),
    "unknown experiment": ("experiment=dmeo", 'experiment=dmeo: accepted are .*did you mean "demo"'),
    "no override": ("demo", "'demo' is not an override; write key=value"),
    "text for a number": ("task.p=abc", "task.p='abc': expected a whole number, not str"),
    "fraction for a whole number": ("task.p=7.5", "task.p=7.5: expected a whole number, not float"),
    "number for a flag": ("model.tied=2", "model.tied=2: expected true or false, not int"),
    "flag for a number": ("seed=true", "seed=True: expected a whole number, not bool"),
    "text for a seed": ("seed=abc", "seed='abc': expected a whole number, not str"),
    "a flag that is no flag": ("overwrite=yes", "overwrite='yes': expected true or false"),
    "number for a list": ("train.checkpoints=5", r"train.checkpoints=5: expected a list \[...\], not int"),
    "a list of the wrong length": ("optim.betas=[0.9]", "optim.betas=.*expected 2 values"),
    "a list of the wrong things": ("model.biases=[in,3]", r"model.biases\[1\]=3: expected text"),
    "a group for a number": ("optim.lr={a: 1}", "optim.lr"),
    "a number for a group": ("optim=3", "group override must be a string or a list. Got int"),
    "out of range": ("task.frac_train=1.3", r"frac_train=1.3 is outside \(0, 1\); the paper's is 0.3"),
    "negative seed": ("seed=-1", "seed=-1: 0 or more"),
    "negative rate": ("optim.lr=-1", "optim.lr=-1"),
    "rate that is no number": ("optim.lr=nan", "optim.lr=nan"),
    "negative momentum": ("optim.momentum=-0.5", "optim.momentum=-0.5"),
    "no steps": ("train.steps=0", "train.steps=0: at least 1"),
    "batch larger than the data": ("train.batch_size=1000", "train.batch_size=1000 exceeds the 24 training rows"),
    "composite modulus": ("task.p=8 task.operation=x/y", "x/y needs a prime modulus and p=8 is composite; try p=7"),
    "unknown operation": ("task.operation=x+z", 'operation=.x\\+z.: accepted are .*did you mean "x\\+y"'),
    "unknown optimiser": ("optim.kind=adamm", 'optim.kind=.adamm.: accepted are adamw.*did you mean "adam'),
    "unknown loss": ("loss=cross_entrpy", 'loss=.cross_entrpy.*did you mean "cross_entropy"'),
    "unknown schedule": ("train.checkpoints=['lin:5']", "checkpoints: 'lin:5' is not"),
    "checkpoint beyond the end": ("train.checkpoints=[61]", "step 61 is beyond the last step 60"),
    "unknown device": ("train.device=gpu0", "train.device='gpu0' cannot be used here.*cpu always can"),
    "a run outside the folder": ("name=../elsewhere", "name='../elsewhere'"),
    "two bounds": ("train.stop={measure: test_loss, at_least: 1, at_most: 2}", "exactly one of at_least and at_most"),
    "unknown stop": ("train.stop={measure: tset_loss, at_most: 2}", 'train.stop.measure.*did you mean "test_loss"'),
    "streaming without a batch": ("task=repeated_tokens", "task.p|frac_train"),
    "foreign target": ("task._target_=os.system", "task._target_='os.system': only toylab's own spec classes"),
    "a function of toylab": ("model._target_=toylab.train.train", "only toylab's own spec classes"),
    "a class that is no spec": ("model._target_=toylab.runs.Run", "toylab.runs has no spec Run"),
    "a module that is not there": ("model._target_=toylab.nowhere.Spec", "no module toylab.nowhere"),
    "the command line as a module": ("model._target_=toylab.__main__.Spec", "only toylab's own spec classes"),
    "a spec of another kind": ("model._target_=toylab.measures.basic.Loss", "model"),
    "a measure that is none": (
        "+measure.x={every: 5, measure: {_target_: toylab.optim.OptimSpec, kind: adam, lr: 1, weight_decay: 0}}",
        "not a measure",
    ),
    "a measure without a pace": (
        "+measure.x={measure: {_target_: toylab.measures.basic.Loss}}",
        "measure.x lacks every",
    ),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_wrong_settings_are_refused_before_anything_is_written(name, refused, tmp_path):
    import re

    wrong, said = WRONG_SETTINGS[name]
    parts = wrong.split(" task.") if wrong.startswith("task.p=8") else [wrong]
    parts = [parts[0], *("task." + p for p in parts[1:])]
    message = refused("train", *overrides(tmp_path), *parts)
    assert re.search(said, message), message
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lrr=1", 'did you mean "optim.lr"'),
        ("task.frac_train=1.3,0.5", "outside"),
        ("model=one_layr", "one_layer"),
    ],
)
def test_wrong_settings_in_a_sweep_are_told_without_a_traceback(override, said, tmp_path):
    """The other cells of the sweep run all the same."""
    done = command("train", "-m", *overrides(tmp_path), override)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("toylab: ")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.rglob("run.json"))) == ("," in override)


# --- Paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command_", ["measure", "verify"])
def test_what_is_not_there_is_named(command_, refused, tmp_path):
    assert str(tmp_path / "no") in refused(command_, str(tmp_path / "no"))


def test_unknown_measures_figures_and_steps(refused, path):
    assert 'did you mean "norms"' in refused("measure", str(path), "norm")
    assert 'did you mean "progress"' in refused("figure", "progres", str(path))
    assert "lin:3" in refused("measure", str(path), "loss", "--steps", "lin:3")
    assert "make it with: toylab demo" in refused("figure", "progress", "--runs", str(path / "nowhere"))


def test_a_folder_above_runs_names_them(refused, path):
    assert "there are runs inside it" in refused("verify", str(path.parent))


def test_runs_in_a_place_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another runs=" in refused("train", *overrides(tmp_path / "file"))


# --- Damaged checkpoints ---------------------------------------------------------------------------------------------


def checkpoint(path, step=20):
    return path / "checkpoints" / f"step_{step:08d}.safetensors"


DAMAGE = {
    "missing": (lambda file: file.unlink(), "listed in the manifest but missing"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:100]), "has 100 bytes and should have"),
    "empty": (lambda file: file.write_bytes(b""), "has 0 bytes and should have"),
    "a bit flipped": (flip_bit, "was changed: sha256 is"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoints_are_refused_by_name_and_the_rest_stays(name, refused, path):
    damage, said = DAMAGE[name]
    damage(checkpoint(path))
    message = refused("measure", str(path), "logits")
    assert said in message
    assert "step_00000020" in message
    with pytest.raises(UserError, match=said):
        Run.open(path).snapshot(20)
    assert Run.open(path).final.step == 60
    # What was measured before the damaged one is kept and the rest can still be measured.
    assert main(["measure", str(path), "logits", "--steps", "every:30"]) == 0


# --- Damaged or foreign run directories ------------------------------------------------------------------------------


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


FOREIGN = {
    "older format": (
        lambda p: edit(p / "run.json", '"format": 1', '"format": 0'),
        "run format 0; this toylab reads format 1",
    ),
    "no format": (lambda p: (p / "run.json").write_text("{}"), "run format None"),
    "run.json is a list": (lambda p: (p / "run.json").write_text("[]"), "does not describe a run"),
    "run.json is torn": (lambda p: (p / "run.json").write_text('{"form'), "not valid JSON"),
    "run.json is binary": (lambda p: (p / "run.json").write_bytes(b"\x80\xff"), "not valid JSON"),
    "no config": (lambda p: (p / "config.yaml").unlink(), "no config.yaml"),
    "config is torn": (lambda p: (p / "config.yaml").write_text("task: {p: 7"), "config.yaml cannot be read"),
    "config is a list": (lambda p: (p / "config.yaml").write_text("[1]"), "holds no settings"),
    "config with an unknown key": (lambda p: edit(p / "config.yaml", "seed:", "sede:"), "sede: no such setting"),
    "config lacks a key": (lambda p: edit(p / "config.yaml", "seed: 0\n", ""), "lacks seed"),
    "config of another model": (lambda p: edit(p / "config.yaml", "d_model: 16", "d_model: 8"), "do not fit the model"),
    "manifest is torn inside": (
        lambda p: edit(p / "manifest.jsonl", '{"step": 10', '{"st'),
        "manifest.jsonl line 3 is not JSON",
    ),
    "manifest is binary": (lambda p: (p / "manifest.jsonl").write_bytes(b"\xff\x00\n\xff\n"), "is not JSON"),
    "manifest lists nothing": (lambda p: (p / "manifest.jsonl").write_text('{"a": 1}\n'), "lists no checkpoint"),
    "manifest is empty": (lambda p: (p / "manifest.jsonl").write_text(""), "no checkpoint yet"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_damaged_and_foreign_directories_are_refused_in_one_line(name, refused, path):
    damage, said = FOREIGN[name]
    damage(path)
    before = {f: f.read_bytes() for f in path.rglob("*.safetensors")}
    assert said in refused("measure", str(path), "logits")
    assert {f: f.read_bytes() for f in path.rglob("*.safetensors")} == before


@pytest.mark.parametrize("name", ["older format", "run.json is torn", "no config", "config is torn"])
def test_a_damaged_directory_is_not_trained_into_but_can_be_started_over(name, refused, path):
    FOREIGN[name][0](path)
    again = [*overrides(path.parent.parent)]
    if name in ("older format", "run.json is torn"):
        assert FOREIGN[name][1] in refused("train", *again)
    else:
        refused("train", *again)
    assert main(["train", *again, "overwrite=true"]) == 0
    assert Run.open(path).finished


def test_a_stranger_cannot_make_opening_run_anything(refused, path, tmp_path):
    mark = tmp_path / "executed"
    config = path / "config.yaml"
    edit(config, "_target_: toylab.tasks.modular.ModularArithmetic", f"_target_: os.system\n  command: touch {mark}")
    assert "only toylab's own spec classes" in refused("measure", str(path), "norms")
    config.write_text(f'task: !!python/object/apply:os.system ["touch {mark}"]\n')
    assert "config.yaml cannot be read" in refused("verify", str(path))
    config.write_text("task: ${oc.env:HOME}\n")
    refused("verify", str(path))
    assert not mark.exists()


class Bomb:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_planted_pickle_is_never_loaded(refused, path, tmp_path):
    """In the place of a checkpoint, of a state and of a cached result, each with the hashes that belong to it."""
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    digest = hashlib.sha256(bomb).hexdigest()
    assert main(["measure", str(path), "norms"]) == 0
    for file in (path / "derived").glob("*.nc"):
        file.write_bytes(bomb)
    (path / "checkpoints" / "extra.pkl").write_bytes(bomb)
    assert main(["measure", str(path), "norms"]) == 0  # the broken result is made again
    checkpoint(path).write_bytes(bomb)
    change = {"bytes": len(bomb), "sha256": digest}
    edit_manifest(path, lambda line: line | change if line["step"] == 20 else line)
    assert "step_00000020" in refused("measure", str(path), "logits")
    for file in (path / "states").iterdir():
        file.rename(file.with_name(f"{file.name[:13]}.{digest[:16]}.safetensors"))
    for file in (path / "states").iterdir():
        file.write_bytes(bomb)
    assert main(["verify", str(path)]) == 1
    RunDir(path).write_info(status="interrupted")
    assert "is not a state of this format" in refused("train", *overrides(path.parent.parent))
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the bomb works, so not loading it is what kept it quiet"


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_refused_and_untouched(refused, path):
    before = bits(path)
    message = refused("train", *overrides(path.parent.parent))
    assert "is finished (60 steps); choose another name or pass overwrite=true" in message
    assert bits(path) == before


def test_other_settings_are_refused_and_named(refused, unfinished):
    before = bits(unfinished)
    message = refused("train", *overrides(unfinished.parent.parent), "optim.lr=2e-2", "task.frac_train=0.6")
    assert "optim.lr was 0.01 and is now 0.02" in message
    assert "task.frac_train was 0.5 and is now 0.6" in message
    assert "choose another name=" in message
    assert bits(unfinished) == before


def test_a_second_writer_is_refused(refused, unfinished):
    before = bits(unfinished)
    with RunDir(unfinished).lock():
        message = refused("train", *overrides(unfinished.parent.parent))
    assert f"is being written by another process (pid {os.getpid()})" in message
    assert bits(unfinished) == before
    assert main(["train", *overrides(unfinished.parent.parent)]) == 0


def test_a_loss_that_is_not_a_number_is_told_with_the_last_good_state(refused, tmp_path):
    wrong = ["optim=sgd", "optim.lr=1e30", "loss=mse", "name=hot"]
    message = refused("train", *overrides(tmp_path), *wrong)
    assert "not finite at step" in message
    assert "last good state is step" in message
    run = Run.open(tmp_path / "hot" / "seed=0")
    assert run.info["status"] == "diverged"
    assert run.first.logits.isfinite().all()


def command(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess:
    """The command line as its own process."""
    code = f"import sys; {before}; from toylab.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


# A checkpoint is 10 kB, a state with its momentum 20 kB, a line of metrics 0.2 kB.
@pytest.mark.parametrize("limit", [15_000, 36_000], ids=["at the first state", "in the middle of a line of metrics"])
def test_a_full_disk_stops_in_one_line_and_the_run_resumes(limit, tmp_path):
    """A real one: the operating system refuses to write files larger than `limit`."""
    long = ["optim=sgd", "train.steps=220", "train.eval_every=1", "train.checkpoints=['every:50']"]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = command("train", *overrides(tmp_path / "full"), *long, before=limited)
    assert done.returncode == 1
    message = one_line(done.stderr)
    assert "the disk is full; everything saved before is intact: make room and give the same command again" in message
    stopped = Run.open(tmp_path / "full" / "tiny" / "seed=0")
    assert not stopped.finished
    if limit == 36_000:
        assert 0 < stopped.steps[-1] < 220, "it was to fail in the middle"
        assert not stopped.dir.metrics_path.read_text().endswith("\n"), "the last line was to be torn"
        assert stopped.dir.metrics()[-1]["step"] > 100
    assert all(snap.logits.isfinite().all() for snap in stopped.snapshots())
    assert main(["train", *overrides(tmp_path / "full"), *long]) == 0
    assert main(["train", *overrides(tmp_path / "whole"), *long]) == 0
    assert bits(stopped.path) == bits(tmp_path / "whole" / "tiny" / "seed=0")


def test_the_process_ends_with_the_status_it_should(path):
    """In a real process: status and streams, not only return values."""
    done = command("train", *overrides(path.parent.parent))
    assert done.returncode == 1
    assert "is finished" in one_line(done.stderr)
    flip_bit(checkpoint(path))
    done = command("verify", str(path))
    assert done.returncode == 1
    assert "WRONG" in done.stdout
    assert "Traceback" not in done.stderr
    assert command("nonsense").returncode == 2


def test_composing_twice_in_one_process_starts_clean():
    assert compose(["task.p=7"])["task"]["p"] == 7
    with pytest.raises(UserError):
        compose(["nonsense=1"])
    assert compose([])["task"]["p"] == 113
