"""A wheel built from the tree and unpacked elsewhere is complete: conf/ and figures/ travel inside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def toylab(site, cwd, *args):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "toylab", *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_lists_trains_and_draws(unpacked, tmp_path):
    for inside in ("conf/train.yaml", "figures/progress.py", "py.typed", "paper_repro/README.md"):
        assert (unpacked / "toylab" / inside).exists(), inside
    assert not list(unpacked.glob("tests*"))
    listed = toylab(unpacked, tmp_path, "list")
    assert "nanda2023" in listed
    assert "progress" in listed
    small = ["task.p=11", "task.frac_train=0.5", "model.d_model=16", "model.d_head=4", "model.d_mlp=32"]
    toylab(unpacked, tmp_path, "train", "experiment=demo", *small, "train.steps=10")
    toylab(unpacked, tmp_path, "figure", "progress", "runs/demo")
    assert (tmp_path / "runs/demo/progress.png").read_bytes()[:4] == b"\x89PNG"
