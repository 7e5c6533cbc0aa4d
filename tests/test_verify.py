"""verify: a sound run passes, and every corruption that is planted is found and named."""

import json
import re
import shutil

import pytest
import torch
from cases.runs import FULL_BATCH, KINDS, edit_manifest, flip_bit, with_train

from toylab.errors import UserError
from toylab.rundir import RunDir
from toylab.train import train
from toylab.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return train(FULL_BATCH, tmp_path_factory.mktemp("sound") / "run", progress=False).path


@pytest.fixture
def path(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def checkpoint(path, step):
    return path / "checkpoints" / f"step_{step:08d}.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_run_is_verified(kind, tmp_path):
    run = train(with_train(KINDS[kind], steps=20), tmp_path / "run", progress=False)
    report = verify(run.path, replays=10)
    assert report.ok, str(report)
    text = str(report)
    assert "verified" in text
    assert "4 of 4 checkpoints match" in text  # 0, 5, 10, 20
    assert "no gap up to step 20" in text
    assert text.count("gives the same bits") == len(run.dir.state_files()) - 1  # from all but the last


def test_an_interrupted_run_is_verified_as_far_as_it_goes(tmp_path):
    def crash(step, values):
        if step == 45:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        train(FULL_BATCH, tmp_path / "run", progress=False, sinks=(crash,))
    assert verify(tmp_path / "run").ok


def swap(path):
    a, b = checkpoint(path, 20), checkpoint(path, 40)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def swap_with_manifest(path):
    """The two files and their lines agree again; only the step inside the files tells."""
    swap(path)
    lines = RunDir(path).manifest()
    other = {20: 40, 40: 20}

    def change(line):
        return lines[other[line["step"]]] | {k: line[k] for k in ("step", "file")} if line["step"] in other else line

    edit_manifest(path, change)


def repeat(path, honest_header=True):
    """The checkpoint of step 20 once more as step 40, with a manifest line that fits."""
    if honest_header:
        data = checkpoint(path, 20).read_bytes()
        checkpoint(path, 40).write_bytes(data)
        line20 = RunDir(path).manifest()[20]
        edit_manifest(path, lambda line: line | {"sha256": line20["sha256"]} if line["step"] == 40 else line)
        return
    directory = RunDir(path)
    directory.write_checkpoint(40, directory.read_checkpoint(20))  # appends a second line for step 40
    last = directory.manifest()[40]
    seen = []

    def once(line):
        if line["step"] != 40:
            return line
        seen.append(line)
        return last if len(seen) == 1 else None

    edit_manifest(path, once)


def other_weights(path):
    """A checkpoint replaced by another of the same kind, with header, hash and manifest as they should be."""
    directory = RunDir(path)
    weights = directory.read_checkpoint(20)
    weights["W_U"][0, 0] += 1e-7
    seen = []
    directory.write_checkpoint(20, weights)
    last = directory.manifest()[20]
    edit_manifest(
        path, lambda line: line if line["step"] != 20 else seen.append(1) or (last if len(seen) == 1 else None)
    )


def other_seed(path):
    file = path / "config.yaml"
    text = file.read_text()
    assert "seed: 0" in text
    file.write_text(text.replace("seed: 0", "seed: 1"))


def other_rate(path):
    file = path / "config.yaml"
    text = file.read_text()
    assert "lr: 0.01" in text
    file.write_text(text.replace("lr: 0.01", "lr: 0.011"))


def all_states(change):
    def apply(path):
        for file in (path / "states").iterdir():
            change(file)

    return apply


CORRUPTIONS = {
    "bit flip": (lambda path: flip_bit(checkpoint(path, 20)), "step_00000020.* was changed: sha256 is"),
    "truncation": (
        lambda path: checkpoint(path, 20).write_bytes(checkpoint(path, 20).read_bytes()[:-100]),
        "step_00000020.* was truncated",
    ),
    "missing file": (lambda path: checkpoint(path, 20).unlink(), "step_00000020.*listed in the manifest but missing"),
    "two files swapped": (swap, "step_00000020.* was changed"),
    "two files and their hashes swapped": (swap_with_manifest, "says it is step 40, the manifest says 20"),
    "a checkpoint repeated": (repeat, "says it is step 20, the manifest says 40"),
    "a checkpoint repeated with its header": (
        lambda path: repeat(path, honest_header=False),
        "steps 20 and 40 hold the same weights",
    ),
    "a line listed twice": (
        lambda path: (path / "manifest.jsonl").write_text(2 * (path / "manifest.jsonl").read_text()),
        "8 checkpoints are listed more than once",
    ),
    "a gap in the manifest": (
        lambda path: edit_manifest(path, lambda line: None if line["step"] == 20 else line),
        "1 scheduled checkpoint is missing, the first at step 20",
    ),
    "the end cut off": (
        lambda path: edit_manifest(path, lambda line: None if line["step"] == 60 else line),
        "finished at step 60, the last checkpoint is 50",
    ),
    "one weight nudged": (other_weights, "gives other weights|hold different weights"),
    "another seed": (other_seed, "gives other weights"),
    "another learning rate": (other_rate, "gives other weights"),
    "a corrupted state": (all_states(flip_bit), "states/step_.* was truncated or changed"),
    "a truncated state": (
        all_states(lambda file: file.write_bytes(file.read_bytes()[:-5])),
        "states/step_.* was truncated or changed",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_found_and_named(path, name):
    corrupt, said = CORRUPTIONS[name]
    corrupt(path)
    report = verify(path, replays=10)
    assert not report.ok
    assert any(re.search(said, problem) for problem in report.problems), str(report)
    assert "WRONG" in str(report)


def test_a_manifest_that_lists_no_checkpoint_is_refused(path):
    with open(path / "manifest.jsonl", "a") as file:
        file.write(json.dumps({"stap": 7}) + "\n")
    with pytest.raises(UserError, match=r"lists no checkpoint"):
        verify(path)


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a run directory"):
        verify(tmp_path)


def test_a_corrupted_latest_state_costs_steps_but_no_bits(tmp_path):
    """Resuming goes back to the latest state that is whole."""

    def crash(step, values):
        if step == 45:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        train(FULL_BATCH, tmp_path / "run", progress=False, sinks=(crash,))
    directory = RunDir(tmp_path / "run")
    latest = max(directory.state_files())
    flip_bit(directory.state_files()[latest])
    resumed = train(FULL_BATCH, tmp_path / "run", progress=False)
    whole = train(FULL_BATCH, tmp_path / "whole", progress=False)
    assert torch.equal(resumed.final.logits, whole.final.logits)
    assert resumed.manifest == whole.manifest
    assert verify(resumed.path, replays=10).ok


def test_the_seed_chooses_what_is_replayed(path):
    texts = {str(verify(path, replays=1, seed=seed)) for seed in range(6)}
    assert len(texts) > 1
    assert str(verify(path, replays=1, seed=0)) == str(verify(path, replays=1, seed=0))
