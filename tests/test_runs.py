"""Run and RunGroup: what is opened is what was saved, and `map` equals the loop one would write by hand."""

import dataclasses
import json
import shutil
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from cases.runs import ADDITION, FULL_BATCH, STREAMING, VECTORS, flip_bit, with_train

from toylab import Labelled, Run, RunGroup
from toylab.errors import UserError
from toylab.measures.basic import LogitStats, Loss, WeightNorms
from toylab.runs import describe_tool
from toylab.train import train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(FULL_BATCH, tmp_path_factory.mktemp("runs") / "tiny" / "seed=0", progress=False).path


@pytest.fixture
def run(trained, tmp_path):
    """A fresh copy without results, so that every test starts with an empty cache."""
    shutil.copytree(trained, tmp_path / "seed=0")
    return Run.open(tmp_path / "seed=0")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    path = tmp_path_factory.mktemp("group")
    for seed in (2, 0, 1):
        train(dataclasses.replace(FULL_BATCH, seed=seed), path / f"seed={seed}", progress=False)
    return path


def test_untouched_checkpoints_are_not_hashed_again_and_touched_ones_are(run, monkeypatch):
    """map reads whole runs: a file as training left it is taken as it is, any other is checked against its hash."""
    hashed, read = [], type(run.dir).checkpoint_bytes
    monkeypatch.setattr(
        type(run.dir), "checkpoint_bytes", lambda d, step, m=None: hashed.append(step) or read(d, step, m)
    )
    table = run.map(Loss(), run.steps[:3])
    assert not hashed
    file = run.path / "checkpoints" / f"step_{run.steps[1]:08d}.safetensors"
    file.write_bytes(file.read_bytes())  # the same bytes, written again
    shutil.rmtree(run.path / "derived")
    assert Run.open(run.path).map(Loss(), run.steps[:3]).equals(table)
    assert hashed == [run.steps[1]]
    flip_bit(file)
    shutil.rmtree(run.path / "derived")
    with pytest.raises(UserError, match="was changed: sha256"):
        Run.open(run.path).map(Loss(), run.steps[:3])
    (run.path / "stamps.jsonl").unlink()  # without stamps everything is hashed
    shutil.rmtree(run.path / "derived")
    hashed.clear()
    assert Run.open(run.path).map(Loss(), run.steps[:1]).equals(table.isel(step=slice(0, 1)))
    assert hashed == run.steps[:1]


def test_a_manifest_that_points_elsewhere_reads_the_run_s_own_file(run, tmp_path):
    """Manifest and stamps of a stranger's run may name any path; only its own checkpoints are read."""
    table = run.map(WeightNorms())
    (tmp_path / "elsewhere").mkdir()
    step = run.steps[0]
    name = f"step_{step:08d}.safetensors"
    shutil.copy2(run.path / "checkpoints" / f"step_{run.steps[-1]:08d}.safetensors", tmp_path / "elsewhere" / name)
    for file in (run.dir.manifest_path, run.dir.stamps_path):
        file.write_text(file.read_text().replace(name, f"../../elsewhere/{name}"))
    shutil.rmtree(run.path / "derived")
    assert Run.open(run.path).map(WeightNorms()).equals(table)


# Tools for map. They count their calls in a module-level list only where the test says so.


@dataclass(frozen=True)
class Corner:
    """A measure of the user's own, defined outside toylab."""

    size: int

    def __call__(self, snap):
        return Labelled(
            snap.model.W_E[: self.size, : self.size], ("token", "dim"), {"token": list("abcdefgh")[: self.size]}
        )


def mean_logit(snap):
    return snap.logits.mean(0)


def counting(calls, stop_at=None):
    """A tool that notes the steps it is called at; it claims to be a plain function of toylab-independent code."""

    class Counting:
        def __call__(self, snap):
            if snap.step == stop_at:
                raise KeyboardInterrupt
            calls.append(snap.step)
            return {"step_squared": float(snap.step**2), "logits": snap.logits[0, 0]}

    return Counting()


@pytest.fixture
def cacheable(monkeypatch):
    """Gives any object a fixed identity, so that caching can be watched through tools that hold a counter."""
    import toylab.runs

    monkeypatch.setattr(toylab.runs, "describe_tool", lambda tool: ("counted", "one identity"))


# --- Opening -------------------------------------------------------------------------------------------------------


def test_opening_gives_back_the_experiment_and_its_files(run):
    assert run.experiment == FULL_BATCH
    assert run.task == ADDITION
    assert run.finished
    assert run.steps == [0, 5, 10, 20, 30, 40, 50, 60]
    assert run.info["steps"] == run.info["step"] == 60


def test_a_snapshot_is_the_live_model_of_that_step(run):
    from toylab.train import Trainer

    trainer = Trainer(FULL_BATCH)
    for step in (0, 5, 10):
        while trainer.step < step:
            trainer.advance()
        saved = run.snapshot(step)
        assert saved.step == step
        for name, weight in trainer.weights().items():
            assert torch.equal(saved.model.state_dict()[name], weight), f"{name} at step {step}"
        assert torch.equal(saved.logits, trainer.snapshot().logits)
    assert torch.equal(run.split.train, trainer.split.train)
    assert run.snapshot(np.int64(10)).step == 10


def test_two_snapshots_of_a_step_are_equal_and_independent(run):
    first, again = run.final, run.snapshot(60)
    assert torch.equal(first.logits, again.logits)
    with torch.no_grad():
        first.model.W_E.zero_()
    assert torch.equal(run.final.model.W_E, again.model.W_E)
    assert run.first.step == 0
    assert [s.step for s in run.snapshots("every:20")] == [0, 20, 40, 60]
    assert run.snapshot(5, reference=run.reference()).reference.step == 60


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, [0, 5, 10, 20, 30, 40, 50, 60]),
        (10, [10]),
        (np.int64(10), [10]),
        ([30, 5, 30], [5, 30]),
        (np.array([60, 0]), [0, 60]),
        (range(0, 60, 20), [0, 20, 40]),
        (slice(6, 30), [10, 20, 30]),
        (slice(None, None, 3), [0, 20, 50]),
        (slice(20), [0, 5, 10, 20]),
        ("every:20", [0, 20, 40, 60]),
        ("log:4", [0, 5, 10, 60]),  # 1, 4, 15, 60 and 0: the nearest saved ones
    ],
)
def test_pick(run, asked, found):
    assert run.pick(asked) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [(7, "nearest are \\[5, 10\\]"), ("lin:3", "lin:3"), (slice(51, 59), "from 51 to 59"), ([0, 61], "61")],
)
def test_pick_refuses_what_is_not_there(run, asked, said):
    with pytest.raises(UserError, match=said):
        run.pick(asked)


def test_stack_holds_every_checkpoint(run):
    stack = run.stack("every:20")
    assert stack.steps == (0, 20, 40, 60)
    for i, step in enumerate(stack.steps):
        for name, weight in run.snapshot(step).model.state_dict().items():
            assert torch.equal(stack.params[name][i], weight)


def test_only_a_finished_run_is_a_reference(run):
    run.dir.write_info(status="interrupted")
    with pytest.raises(UserError, match=r"interrupted at step 60 of 60.*finish it"):
        Run.open(run.path).reference()


# --- map -------------------------------------------------------------------------------------------------------------


def by_hand(run, tool):
    return [tool(run.snapshot(step)) for step in run.steps]


@pytest.mark.parametrize("tool", [Loss(), LogitStats()], ids=repr)
def test_map_equals_the_loop_bit_for_bit(run, tool):
    table, rows = run.map(tool), by_hand(run, tool)
    assert table.step.values.tolist() == run.steps
    assert set(table.data_vars) == set(rows[0])
    for name in rows[0]:
        assert table[name].values.tolist() == [row[name] for row in rows], name


def test_map_of_arrays_equals_the_loop_bit_for_bit(run):
    plain, labelled = run.map(mean_logit), run.map(Corner(3))
    assert (plain.dims, plain.name) == (("step", "axis0", "axis1"), "mean_logit")
    assert np.array_equal(plain.values, torch.stack(by_hand(run, mean_logit)).numpy())
    assert labelled.dims == ("step", "token", "dim")
    for i, snap in enumerate(run.snapshots()):
        assert np.array_equal(labelled.values[i], snap.model.W_E[:3, :3].detach().numpy())
    assert np.array_equal(labelled.sel(token="b", step=60), run.final.model.W_E[1, :3].detach())


def test_a_stacked_tool_equals_the_same_tool_one_by_one(run, monkeypatch):
    calls = []
    original = WeightNorms.stack
    monkeypatch.setattr(WeightNorms, "stack", lambda self, stack: calls.append(stack.steps) or original(self, stack))
    monkeypatch.setattr("toylab.runs.STACK_BYTES", 3 * run.manifest[0]["bytes"])
    table = run.map(WeightNorms())
    assert calls == [(0, 5, 10), (20, 30, 40), (50, 60)]
    for i, row in enumerate(by_hand(run, WeightNorms())):
        assert table["sum_sq_weights"].values[i] == row["sum_sq_weights"]
        assert np.array_equal(table["weight_norm"].values[i], row["weight_norm"].values)
    assert table["param"].values.tolist() == [name for name, _ in run.final.model.named_parameters()]


def test_a_second_map_computes_nothing(run, cacheable):
    calls = []
    first = run.map(counting(calls))
    assert calls == run.steps
    again = Run.open(run.path).map(counting(calls))
    assert calls == run.steps
    assert again.identical(first)


def test_fewer_or_more_steps_share_one_cache(run, cacheable):
    calls = []
    run.map(counting(calls), steps=[10, 30])
    run.map(counting(calls), steps=[30, 60])
    assert calls == [10, 30, 60]
    assert run.map(counting(calls), steps=10)["step_squared"].values.tolist() == [100.0]
    assert calls == [10, 30, 60]


def test_an_interrupted_map_goes_on_where_it_stopped(run, cacheable):
    whole = run.map(counting([]))
    shutil.rmtree(run.path / "derived")
    calls = []
    with pytest.raises(KeyboardInterrupt):
        run.map(counting(calls, stop_at=30))
    assert calls == [0, 5, 10, 20]
    table = Run.open(run.path).map(counting(calls))
    assert calls == run.steps
    assert table.identical(whole)


def test_a_changed_checkpoint_is_computed_again(run, cacheable, monkeypatch):
    calls = []
    run.map(counting(calls))
    calls.clear()
    weights = run.dir.read_checkpoint(20)
    weights["W_E"] += 1
    run.dir.write_checkpoint(20, weights)
    changed = Run.open(run.path)
    table = changed.map(counting(calls))
    assert calls == [20]
    assert np.array_equal(table["logits"].sel(step=20), changed.snapshot(20).logits[0, 0])


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(f.read_bytes()[:200]), lambda f: f.write_bytes(b"")])
def test_a_damaged_cache_is_computed_again(run, cacheable, damage):
    calls = []
    whole = run.map(counting(calls))
    (file,) = (run.path / "derived").glob("*.nc")
    damage(file)
    assert Run.open(run.path).map(counting(calls)).identical(whole)
    assert calls == 2 * run.steps


def test_other_toylab_code_is_computed_again(run, cacheable, monkeypatch):
    calls = []
    run.map(counting(calls))
    monkeypatch.setattr("toylab.runs.code_hash", lambda: "another formula")
    run.map(counting(calls))
    assert calls == 2 * run.steps


def test_hindsight_has_its_own_results(run, cacheable):
    calls = []
    run.map(counting(calls), steps=10)
    run.map(counting(calls), steps=10, reference=run.final)
    run.map(counting(calls), steps=10, reference=run.final)
    run.map(counting(calls), steps=10, reference=run.snapshot(20))
    assert calls == [10, 10, 10]
    built = dataclasses.replace(run.final, sha256="")  # a reference built by hand cannot be told from another
    run.map(counting(calls), steps=10, reference=built)
    run.map(counting(calls), steps=10, reference=built)
    assert calls == 5 * [10]


# --- What a tool's identity is ---------------------------------------------------------------------------------------

SCALE = 2.0


def helper(snap):
    return snap.step * SCALE


def uses_helper(snap):
    return helper(snap)


def keyword(snap, *, power=1):
    return snap.step**power


def key(tool):
    return describe_tool(tool)[1]


def test_a_tool_is_known_by_its_settings():
    @dataclass(frozen=True)
    class Fitted:
        weights: torch.Tensor

        def __call__(self, snap): ...

    assert key(Corner(2)) == key(Corner(2)) != key(Corner(3))
    assert key(partial(keyword, power=2)) == key(partial(keyword, power=2)) != key(partial(keyword, power=3))
    # Large enough that printing them leaves out the middle, where they differ.
    one, other = torch.zeros(2000), torch.zeros(2000)
    other[1000] = 1
    assert key(Fitted(one)) == key(Fitted(one.clone())) != key(Fitted(other))
    first, second = lambda snap: 1.0, lambda snap: 2.0
    assert key(first) != key(second)
    assert len({key(lambda snap, n=n: n) for n in range(3)}) == 3


def test_a_tool_is_known_by_its_code_and_what_that_reads(monkeypatch):
    before = key(uses_helper)
    assert before == key(uses_helper)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    constant = key(uses_helper)
    monkeypatch.setitem(globals(), "helper", lambda snap: snap.step)
    assert len({before, constant, key(uses_helper)}) == 3
    before = key(Corner(2))
    monkeypatch.setattr(Corner, "__call__", lambda self, snap: self.size)
    assert key(Corner(2)) != before


def test_a_closure_over_an_object_warns_and_is_not_cached(run):
    class Opaque:
        value = 1.0

    held, calls = Opaque(), []

    def tool(snap):
        calls.append(snap.step)
        return held.value

    for _ in range(2):
        with pytest.warns(UserWarning, match="tool are not cached.*frozen dataclass"):
            assert run.map(tool, steps=[0, 5]).values.tolist() == [1.0, 1.0]
    assert calls == [0, 5, 0, 5]
    assert not list((run.path / "derived").glob("*.nc"))


def test_a_closure_over_plain_values_is_cached(run):
    def scaled(factor):
        def tool(snap):
            return snap.step * factor

        return tool

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (2, 3):
            assert run.map(scaled(factor), steps=[5]).values.tolist() == [5 * factor]
    assert len(list((run.path / "derived").glob("*.nc"))) == 2


# --- What survives the round trip through netCDF ---------------------------------------------------------------------

RESULTS = {
    "float": 0.1,
    "integer": 7,
    "beyond 32 bits": 2**40 + 1,
    "truth": True,
    "words": "abc",
    "unsigned": np.uint8(200),
    "half": torch.tensor([0.5, 3.0]).half(),
    "complex": torch.tensor([1 + 2j, 3 - 1j]),
    "not a number": torch.tensor([float("nan"), float("inf")]),
    "text coordinates": Labelled(torch.arange(3), ("freq",), {"freq": ["a", "bb", ""]}),
    "integer coordinates": Labelled(torch.eye(2), ("row", "col"), {"row": [3, 5], "col": np.array([7, 9])}),
    "truth coordinates": Labelled(torch.tensor([True, False]), ("on",), {"on": [True, False]}),
    "real coordinates": Labelled(torch.zeros(2), ("x",), {"x": [0.1, 0.2]}),
    "several": {"a": 1, "b": Labelled(torch.zeros(2), ("x",), {"x": ["p", "q"]}), "c": torch.ones(3)},
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_come_back_as_they_were(run, cacheable, name):
    fresh = run.map(lambda snap: RESULTS[name], steps=[0, 60])
    loaded = Run.open(run.path).map(lambda snap: pytest.fail("was not cached"), steps=[0, 60])
    assert loaded.identical(fresh)
    fresh, loaded = (t if isinstance(t, xr.Dataset) else t.to_dataset(name="value") for t in (fresh, loaded))
    assert {k: v.dtype for k, v in loaded.variables.items()} == {k: v.dtype for k, v in fresh.variables.items()}
    labelled = RESULTS[name]
    if isinstance(labelled, Labelled):
        assert loaded["value"].dims == ("step", *labelled.dims)
        for dim, values in labelled.coords.items():
            assert loaded[dim].values.tolist() == list(values)


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (lambda snap: torch.zeros(snap.step + 1), "different shapes at different steps"),
        (lambda snap: {"a": 1.0} if snap.step else {"b": 1.0}, "same names at every step"),
        (lambda snap: {"a": torch.zeros(3), "b": torch.zeros(4)}, "axis0.*Labelled"),
        (lambda snap: {"a": {"b": 1.0}}, "dictionary of dictionaries"),
        (lambda snap: None, "returned NoneType"),
        (lambda snap: snap, "returned Snapshot"),
        (lambda snap: 2**62 + snap.step, "2\\^53"),
    ],
)
def test_results_that_are_no_table_are_refused(run, tool, said):
    with pytest.raises(UserError, match=said):
        run.map(tool)


# --- Online equals offline -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [FULL_BATCH, STREAMING, VECTORS], ids=["full batch", "streaming", "vectors"])
def test_what_training_logged_is_what_map_gives(experiment, tmp_path):
    run = train(with_train(experiment, steps=30), tmp_path / "run", progress=False)
    offline = [run.map(measure) for measure in (Loss(), WeightNorms(), LogitStats())]
    compared = 0
    for line in run.dir.metrics():
        step = line.pop("step")
        if step not in run.manifest:
            continue
        for name, value in line.items():
            (table,) = [t for t in offline if name in t]
            assert table[name].sel(step=step).item() == value, f"{name} at step {step}"
            compared += 1
    # All five checkpoints are evaluations; norms are due at 0, 10, 20 and 30, logits at 0 and 30 (15 is not saved).
    assert compared >= 5 * len(offline[0]) + 4 * 1 + 2 * len(offline[2])
    metrics = run.metrics()
    assert metrics["sum_sq_weights"].sel(step=10).item() == offline[1]["sum_sq_weights"].sel(step=10).item()
    assert metrics["sum_sq_weights"].sel(step=5).isnull()


# --- Groups ----------------------------------------------------------------------------------------------------------


def test_seeds_become_an_axis(group):
    runs = RunGroup(group)
    table = runs.map(Loss())
    assert list(runs.differing) == ["seed"]
    assert [r.experiment.seed for r in runs] == table.seed.values.tolist() == [0, 1, 2]
    assert dict(table.sizes) == {"seed": 3, "step": 8}
    for seed in range(3):
        alone = Run.open(group / f"seed={seed}").map(Loss())
        assert table.sel(seed=seed).drop_vars("seed").identical(alone)
    assert table.sel(seed=0)["test_loss"].values[0] != table.sel(seed=1)["test_loss"].values[0]
    arrays = runs.map(Corner(3))
    assert arrays.dims == ("seed", "step", "token", "dim")
    assert runs.metrics()["train_loss"].dims == ("seed", "step")


def test_other_settings_become_coordinates_of_a_run_axis(group, tmp_path):
    paths = [group / "seed=0"]
    for decay in (0.0, 3.0):
        changed = dataclasses.replace(FULL_BATCH, optim=dataclasses.replace(FULL_BATCH.optim, weight_decay=decay))
        changed = with_train(changed, checkpoints=("every:30", 7))
        paths.append(train(changed, tmp_path / f"wd={decay}", progress=False).path)
    runs = RunGroup(paths)
    table = runs.map(Loss())
    assert table["test_loss"].dims == ("run", "step")
    decays = dict(zip(table.run.values, table.weight_decay.values, strict=True))
    assert decays == {str(p): d for p, d in zip(paths, (1.0, 0.0, 3.0), strict=True)}
    # Steps are joined on their union: NaN just where a run has no checkpoint.
    assert table.step.values.tolist() == [0, 5, 7, 10, 20, 30, 40, 50, 60]
    for run in runs:
        here = table.sel(run=str(run.path))["test_loss"].dropna("step")
        assert here.step.values.tolist() == run.steps
        assert here.values.tolist() == run.map(Loss())["test_loss"].values.tolist()


def test_settings_with_the_same_last_word_keep_their_full_names(trained, tmp_path):
    other = train(with_train(VECTORS, steps=60), tmp_path / "vectors", progress=False)
    table = RunGroup([trained, other.path]).map(lambda snap: float(snap.step))
    assert table["task._target_"].values[0] != table["task._target_"].values[1]
    assert table["model._target_"].values[0] != table["model._target_"].values[1]


def test_group_with_hindsight_looks_from_each_runs_own_end(group):
    table = RunGroup(group).map(lambda snap: (snap.reference.logits - snap.logits).abs().max(), hindsight=True)
    assert (table.sel(step=60) == 0).all()
    assert (table.sel(step=0) > 0).all()


def test_an_empty_group_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no run below"):
        RunGroup(tmp_path)


# --- Trust and looks -------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_noticed_on_reading_and_nothing_else_is_lost(run):
    flip_bit(run.dir.checkpoints / "step_00000020.safetensors")
    with pytest.raises(UserError, match=r"step_00000020.*was changed.*toylab verify"):
        run.snapshot(20)
    with pytest.raises(UserError, match=r"was changed"):
        run.stack()
    assert run.snapshot(30).step == 30


def test_printing_tells_sizes_names_steps_and_an_example(run, group):
    text = repr(run)
    for part in (str(run.path), "finished", "8 checkpoints, steps 0..60", "p=7", "0 + 0 mod 7 = 0", "1 layer", "2,384"):
        assert part in text, part
    text = repr(RunGroup(group))
    assert "RunGroup of 3, differing in seed" in text
    assert text.count("finished") == 3
    text = repr(run.final)
    assert "step 60" in text
    assert "d_model 16" in text
    assert "p=7" in text
    assert "8 checkpoints, steps 0..60" in repr(run.stack())


def test_metrics_is_a_table_with_numbers_where_json_has_words(run):
    with open(run.dir.metrics_path, "a") as file:
        file.write(json.dumps({"step": 70, "test_loss": "nan", "all_loss": "inf"}) + "\n")
    table = run.metrics()
    assert table["all_loss"].sel(step=70).item() == float("inf")
    assert np.isnan(table["test_loss"].sel(step=70).item())
