"""Configs: every yaml composes and builds, what is built writes itself back, and nothing foreign is ever built."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cases.runs import KINDS
from omegaconf import OmegaConf

from toylab.cli.compose import compose, header
from toylab.cli.measure import named_measure
from toylab.cli.train import split_config
from toylab.config import build, convert, find_target, flatten, to_node
from toylab.data import Task
from toylab.errors import UserError
from toylab.experiment import Experiment, Stop, TrainSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.snapshot import Snapshot
from toylab.taps import Tapped
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.othello import Othello
from toylab.tasks.superposition import SparseFeatures

CONF = Path(__file__).parent.parent / "conf"


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def node_of(group: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))


def spec_of(group: str, name: str) -> Any:
    return build(node_of(group, name), group, OptimSpec if group == "optim" else None)


# --- Everything under conf/ ------------------------------------------------------------------------------------------

FILES = [(group, name) for group in ("task", "model", "optim") for name in names(group)]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_yaml_builds_lists_every_field_and_says_what_it_is(group, name):
    node, spec = node_of(group, name), spec_of(group, name)
    listed = set(node) - {"_target_"}
    assert listed == {field.name for field in dataclasses.fields(spec)}, (
        "a setting that is not listed needs + to be set"
    )
    assert build(to_node(spec), group) == spec
    assert len(header(CONF / group / f"{name}.yaml")) > 20
    composed = compose([f"{group}={name}"])[group]
    assert build(composed, group, OptimSpec if group == "optim" else None) == spec


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_builds_and_writes_itself_back(name):
    config = compose([f"experiment={name}"])
    experiment, path, overwrite = split_config(config)
    assert path == Path("runs") / experiment.name / "seed=0"
    assert not overwrite
    assert Experiment.from_config(experiment.to_config()) == experiment
    stored = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(experiment.to_config()))))
    assert Experiment.from_config(stored) == experiment
    model = experiment.model.build(experiment.task, torch.Generator())
    assert isinstance(model, Tapped)
    assert len(header(CONF / "experiment" / f"{name}.yaml")) > 20


def test_the_root_lists_every_setting_there_is():
    config = compose([])
    assert {field.name for field in dataclasses.fields(Experiment)} == set(config) - {"runs", "overwrite"}
    assert {field.name for field in dataclasses.fields(TrainSpec)} == set(config["train"])
    experiment, _, _ = split_config(config)
    assert experiment.task.p == 113


def test_an_experiment_wins_over_the_root_and_the_command_line_over_both():
    assert compose(["experiment=demo"])["optim"]["lr"] == 2e-3
    assert compose(["experiment=demo", "optim.lr=5e-3"])["optim"]["lr"] == 5e-3
    assert compose([])["optim"]["lr"] == 1e-3


@pytest.mark.parametrize("name", names("measure"))
def test_every_measure_builds_and_measures(name):
    (entry,) = node_of("measure", name).values()
    assert entry["every"] >= 1
    measure = named_measure(name)
    assert build(to_node(measure), "measure") == measure
    assert name in compose([f"measure=[{name}]"])["measure"]
    if "p" in dataclasses.asdict(measure) or getattr(measure, "hindsight", False):
        return
    if hasattr(measure, "steps"):  # it trains something: a few steps show that it runs
        measure = dataclasses.replace(measure, steps=20)
    assert any(measures(measure, task, model) for task, model in WORLDS)


# One world of every kind that a measure may ask for.
TINY = TransformerSpec(n_layers=2, n_heads=2, d_model=16, d_head=8, d_mlp=32)
WORLDS = (
    (ModularArithmetic(p=7, operation="x+y", frac_train=0.5), spec_of("model", "one_layer")),
    ("hidden_markov", TINY),
    ("in_context_markov", TINY),
    ("sparse_features", spec_of("model", "superposition")),
    (SparseFeatures(6, 0.7, 0.8, target="abs", n_test=50), SuperpositionSpec("absolute", 10)),
    ("fixed_samples", spec_of("model", "superposition")),
    (Othello(n=4, sampling="moves", n_test=40, held_out=0.2, held_out_plies=6), TINY),
    ("miu_prefix", TINY),
)


def measures(measure, task, model) -> bool:
    """It gives something here; False where it refuses this world, in its own words."""
    world = spec_of("task", task) if isinstance(task, str) else task
    loss = "mse" if hasattr(world, "n_features") else "cross_entropy"
    built = model.build(world, torch.Generator().manual_seed(0))
    try:
        return bool(measure(Snapshot(0, built, world, world.split(0), loss)))
    except UserError:
        return False


@pytest.mark.parametrize("task", names("task"))
@pytest.mark.parametrize("model", names("model"))
def test_every_model_meets_every_task_or_says_why_not(task, model):
    task_spec, model_spec = spec_of("task", task), spec_of("model", model)
    assert isinstance(task_spec, Task)
    vectors = (hasattr(task_spec, "n_features"), model == "superposition")
    read = task_spec.sample(1, torch.Generator()).read
    one_answer = read is not None and len(read) == 1
    if vectors[0] != vectors[1] or (model == "pair_mlp" and not one_answer):
        with pytest.raises(UserError, match=type(task_spec).__name__):
            model_spec.build(task_spec, torch.Generator())
        return
    built = model_spec.build(task_spec, torch.Generator().manual_seed(0))
    batch = task_spec.sample(3, torch.Generator().manual_seed(0))
    assert built(batch.inputs, read=batch.read).isfinite().all()


# --- build, convert, to_node -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    anything: object
    pair: tuple[float, float]
    names: tuple[str, ...]
    mixed: tuple[str | int, ...]
    kind: Literal["a", "b"]
    maybe: int | None = None
    on: bool = False
    table: dict[str, int] = dataclasses.field(default_factory=dict)


GIVEN: dict[str, Any] = {
    "inner": {"size": 3},
    "anything": {"_target_": "toylab.measures.basic.Loss"},
    "pair": [1, 2.5],
    "names": ["x"],
    "mixed": ["log:5", 7],
    "kind": "b",
    "table": {"k": 1},
}


def test_a_nested_spec_is_built_with_the_types_it_states():
    from toylab.measures.basic import Loss

    spec = build(GIVEN, "outer", Outer)
    assert spec == Outer(Inner(3, 0.5), Loss(), (1.0, 2.5), ("x",), ("log:5", 7), "b", None, False, {"k": 1})
    assert isinstance(spec.pair[0], float)
    written = to_node(spec)
    assert written["pair"] == [1.0, 2.5]
    assert written["anything"] == {"_target_": "toylab.measures.basic.Loss"}
    del written["_target_"], written["inner"]["_target_"]
    assert build(written, "outer", Outer) == spec


WRONG = [
    ({"inner": {"size": "3"}}, r"outer.inner.size='3': expected a whole number, not str"),
    ({"inner": {"size": True}}, r"outer.inner.size=True: expected a whole number, not bool"),
    (
        {"inner": {"size": 3, "sise": 1}},
        r'outer.inner.sise: no such setting; Inner has size, rate; did you mean "size"',
    ),
    ({"inner": {}}, r"outer.inner lacks size"),
    ({"inner": 3}, r"outer.inner=3"),
    ({"pair": [1]}, r"outer.pair=\[1\]: expected 2 values"),
    ({"pair": [1, "x"]}, r"outer.pair\[1\]='x': expected a number"),
    ({"names": "x"}, r"outer.names='x': expected a list"),
    ({"names": [1]}, r"outer.names\[0\]=1: expected text"),
    ({"mixed": [1.5]}, r"outer.mixed\[0\]=1.5"),
    ({"kind": "c"}, r"outer.kind='c': accepted are a, b"),
    ({"maybe": "x"}, r"outer.maybe='x': expected a whole number"),
    ({"on": 1}, r"outer.on=1: expected true or false"),
    ({"table": {"k": "x"}}, r"outer.table.k='x'"),
    ({"anything": {"size": 3}}, r"outer.anything has no _target_"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_wrong_types_are_named_with_their_place(change, said):
    with pytest.raises(UserError, match=said):
        build(GIVEN | change, "outer", Outer)


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (3, float, 3.0),
        (3.0, int, 3),
        (None, int | None, None),
        ("a", str | int, "a"),
        (2, str | int, 2),
        ([], tuple[int, ...], ()),
    ],
)
def test_conversions_that_lose_nothing(value, kind, result):
    found = convert(value, kind, "x")
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("os.system", "only toylab's own"),
        ("subprocess.Popen", "only toylab's own"),
        ("toylabx.evil.Spec", "only toylab's own"),
        ("builtins.eval", "only toylab's own"),
        ("toylab.cli.main", "only toylab's own"),
        ("toylab.__main__.Spec", "only toylab's own"),
        ("toylab..Spec", "only toylab's own"),
        ("toylab.train.Trainer.advance", "only toylab's own"),
        ("toylab.config.OmegaConf", "has no spec"),
        ("toylab.runs.Run", "has no spec Run"),
        ("toylab.runs.Snapshot", "has no spec Snapshot"),  # imported there, defined elsewhere
        ("toylab.snapshot.Snapshot", "not a frozen spec"),
        ("toylab.verify.Report", "not a frozen spec"),
        ("toylab.optim.OptimSpek", 'did you mean "OptimSpec"'),
        ("toylab.nowhere.Spec", "no module toylab.nowhere"),
        (3, "only toylab's own"),
        (None, "only toylab's own"),
        (["toylab.optim.OptimSpec"], "only toylab's own"),
    ],
)
def test_only_frozen_specs_of_toylab_are_found(target, said):
    with pytest.raises(UserError, match=said):
        find_target(target, "task")


def test_a_group_that_was_not_selected_is_caught():
    """Setting a value under a group nobody chose makes a dictionary without _target_, and Hydra does not complain."""
    with pytest.raises(UserError, match=r"task has no _target_: choose one of the files in conf/task/"):
        build({"p": 7}, "task")


@pytest.mark.parametrize("kind", KINDS)
def test_experiments_survive_being_written_and_read(kind):
    experiment = dataclasses.replace(
        KINDS[kind], train=dataclasses.replace(KINDS[kind].train, stop=Stop("test_loss", at_most=1e-3, hold=5))
    )
    text = OmegaConf.to_yaml(OmegaConf.create(experiment.to_config()))
    assert Experiment.from_config(OmegaConf.to_container(OmegaConf.create(text))) == experiment
    changed = dataclasses.replace(experiment, seed=1)
    assert Experiment.from_config(changed.to_config()) != experiment


def test_small_numbers_survive_the_file(tmp_path):
    """Plain YAML would read 1e-3 as text."""
    file = tmp_path / "x.yaml"
    file.write_text("lr: 1e-3\n")
    assert OmegaConf.load(file).lr == 1e-3


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


def test_every_field_of_every_spec_has_a_type_that_convert_knows():
    """An annotation that convert cannot check would let anything through."""
    known = {int, float, str, bool, object, type(None), Any}

    def check(kind, where):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Literal or kind in known or kind is Ellipsis:
            return
        if dataclasses.is_dataclass(kind):
            for name, inner in typing.get_type_hints(kind).items():
                check(inner, f"{where}.{name}")
            return
        assert arguments, f"{where}: {kind}"
        for inner in arguments:
            check(inner, where)

    for group, name in FILES:
        check(type(spec_of(group, name)), f"{group}={name}")
    check(TrainSpec, "train")
