"""toylab paper: plan, train, measure, judge and draw, on tiny primes; every shipped paper goes all the way through."""

import dataclasses
import json
import shutil

import pytest

from toylab.claims import VERDICTS
from toylab.cli import main, paper
from toylab.rundir import RunDir

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = (
    *("task.p=11", "train.steps=6", "train.checkpoints=[2]", "train.eval_every=2", "train.stop=null"),
    *("train.threads=1", "model.n_heads=2", "model.d_model=16", "model.d_head=8", "model.d_mlp=16"),
)
FAKE = '''"""Fake 2026, "A tiny prime".

More.
"""
from toylab.claims import Claim, RunSet, last
from toylab.measures.basic import Loss

TINY = {tiny}
RUNS = (
    RunSet("main", (("name=fake", *TINY),), 2, "the thing itself"),
    RunSet("no learning", (("name=fake_placebo", "optim.lr=0", *TINY),), about="placebo"),
    RunSet("sweep", tuple(("name='fake_wd=" + w + "'", "optim.weight_decay=" + w, *TINY) for w in ("1", "2")),
           stacked=True),
)
QUICK = RUNS[:1]
FIGURES = {{"nanda_losses": ("main",), "nanda_sensitivity": ("main", "sweep")}}


def measure(key, runs):
    return runs.map(Loss())


def drop(t):
    return t["main"].train_loss.sel(step=0).values - last(t["main"].train_loss)


CLAIMS = (
    Claim("learns", "Training loss falls", "it falls", "seen", "> 0", drop, lambda v: v > 0, placebos=("no learning",)),
    Claim("learns all", "Training loss vanishes", "0", "seen", "< 1e-9", lambda t: last(t["main"].train_loss),
          lambda v: v < 1e-9),
    Claim("swept", "There is a sweep", "2 runs", "seen", "2", lambda t: [t["sweep"].sizes["run"]], lambda v: v == 2,
          needs=("sweep",)),
)
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder of papers with one paper in it; returns a function that runs `toylab paper fake`."""
    folder = tmp_path / "papers" / "fake"
    folder.mkdir(parents=True)
    (folder / "claims.py").write_text(FAKE.format(tiny=TINY))
    shipped = paper.shipped
    monkeypatch.setattr(paper, "shipped", lambda name: tmp_path / "papers" if name == "paper_repro" else shipped(name))
    out = tmp_path / "out"
    return lambda *more: main(["paper", "fake", "--runs", str(tmp_path / "runs"), "--out", str(out), *more])


def verdicts(out):
    return {c["key"]: c["verdict"] for c in json.loads((out / "results.json").read_text())["claims"]}


def test_a_paper_from_nothing_to_its_table(fake, tmp_path, capsys):
    out = tmp_path / "out"
    assert fake("--plan") == 0
    said = capsys.readouterr().out
    assert "5 runs" in said
    assert "0 of 2 there" in said
    assert not (tmp_path / "runs").exists()
    assert fake("--no-train") == 0
    assert verdicts(out) == dict.fromkeys(("learns", "learns all", "swept"), "not run")
    capsys.readouterr()

    assert fake() == 0
    said = capsys.readouterr().out
    assert verdicts(out) == {"learns": "pass", "learns all": "fail", "swept": "pass"}
    assert "🔴 fail: holds on 0 of 2" in said
    assert "[4/4]" in said
    assert "and 1 more" in said
    record = json.loads((out / "results.json").read_text())
    assert (record["title"], record["command"]) == ('Fake 2026, "A tiny prime"', "`toylab paper fake`")
    assert [r["run"] for r in record["runs"]][:2] == ["fake/seed=0", "fake/seed=1"]
    assert str(tmp_path) not in (out / "results.json").read_text() + (out / "results.md").read_text()
    assert (out / "nanda_losses.png").exists()
    assert (out / "nanda_sensitivity.png").exists()

    assert fake() == 0  # nothing is trained twice
    said = capsys.readouterr().out
    assert "[1/" not in said
    assert "2 of 2 there" in said


def test_what_is_missing_is_trained_and_only_that(fake, tmp_path, capsys):
    assert fake("--seeds", "1", "--quick") == 0
    assert sorted(p.parent.name for p in (tmp_path / "runs").rglob("run.json")) == ["seed=0"]
    assert fake() == 0
    shutil.rmtree(tmp_path / "runs" / "fake_wd=2")
    capsys.readouterr()
    assert fake("--no-train") == 0
    assert verdicts(tmp_path / "out") == {"learns": "pass", "learns all": "fail", "swept": "not run"}
    assert "not drawn: nanda_sensitivity needs sweep" in capsys.readouterr().out
    RunDir(tmp_path / "runs" / "fake" / "seed=1").write_info(status="interrupted")
    assert fake() == 0
    said = capsys.readouterr().out
    assert "[2/2]" in said
    assert "fake_wd=2/seed=0" in said


def test_a_stopped_run_ends_the_command_with_its_status_and_says_how_to_go_on(fake, monkeypatch, capsys):
    import toylab.durable
    import toylab.train

    def stopped(experiment, path):
        raise toylab.durable.Interrupted("stopped by SIGINT at step 3 of 6", 2)

    monkeypatch.setattr(toylab.train, "train", stopped)
    assert fake() == 130
    assert "toylab paper fake" in capsys.readouterr().err


def test_runs_of_other_settings_are_refused(fake, tmp_path, capsys):
    assert fake() == 0
    (file,) = (tmp_path / "papers").rglob("claims.py")
    file.write_text(file.read_text().replace('"optim.lr=0"', '"optim.lr=1e-9"'))
    assert fake() == 1
    assert "other settings" in capsys.readouterr().err


def test_a_mistyped_paper_and_a_senseless_number_are_told(capsys):
    assert main(["paper", "nanda2032"]) == 1
    assert 'did you mean "nanda2023"?' in capsys.readouterr().err
    assert main(["paper", "nanda2023", "--seeds", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", ["nanda2023", "power2022", "zhong2023"])
def test_every_shipped_paper_goes_through_on_a_tiny_prime(name, quick, tmp_path, monkeypatch):
    """Its runs compose, its measures fit them, every claim gets a verdict, every figure is drawn. Nothing groks here:
    most claims must fail, and a placebo never passes for the thing."""
    load = paper.paper_module

    def some(s):  # of the shares of power2022 those that its claims name
        return [c for c in s.cells if len(s.cells) < 5 or "frac_train=0.4" in str(c) or "frac_train=0.8" in str(c)]

    def tiny(name):
        module = load(name)
        sets = {key: getattr(module, key) for key in ("RUNS", "QUICK")}
        for key, value in sets.items():
            monkeypatch.setattr(
                module,
                key,
                [dataclasses.replace(s, cells=tuple((*c, *TINY) for c in some(s)), seeds=1) for s in value],
            )
        return module

    monkeypatch.setattr(paper, "paper_module", tiny)
    monkeypatch.setattr("toylab.train.seconds_per_step", lambda experiment: 0.001)
    arguments = ["paper", name, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main([*arguments, *(["--quick"] if quick else [])]) == 0
    module = load(name)
    found = verdicts(tmp_path / "out")
    assert list(found) == [c.key for c in module.CLAIMS]
    asked = {s.key for s in (module.QUICK if quick else module.RUNS)}
    for claim in module.CLAIMS:
        assert found[claim.key] in VERDICTS
        assert (found[claim.key] == "not run") == (not asked >= set(claim.needs)), claim.key
    judged = [v for v in found.values() if v in ("pass", "fail")]
    assert judged.count("fail") > judged.count("pass")
    drawn = {figure for figure, keys in module.FIGURES.items() if asked >= set(keys)}
    assert {file.stem for file in (tmp_path / "out").glob("*.png")} == drawn
