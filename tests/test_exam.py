"""The exam marks right answers right and wrong ones wrong, whoever gives them; its quick part passes."""

import dataclasses
import math

import pytest
import torch

from toylab import exam
from toylab.cli import main
from toylab.errors import UserError
from toylab.exam import Question, Row, ask, mark
from toylab.known.circuits import CIRCUITS
from toylab.known.dictionaries import DICTIONARIES

QUICK = ("clock", "pizza, 3 frequencies, decoys", "random adder", "or gate", "and gate", "parity", "switch")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The quick part; slow tools are left to `toylab exam`."""
    questions = [q for q in exam.QUESTIONS if q.tool not in ("probe, mlp", "tuned lens")]
    return exam.sit(questions, {name: build for name, build in exam.zoo().items() if name in QUICK})


def score(rows, tool, model) -> Row:
    (row,) = [row for row in rows if (row.tool, row.model) == (tool, model)]
    return row


def test_marks_by_hand():
    """{a, b} planted and {b, c, d} said: b found, a missed, c and d false, 1 of 4 names right."""
    found, missed, false, points = mark(frozenset("ab"), frozenset("bcd"))
    assert (found, missed, false, points) == (frozenset("b"), frozenset("a"), frozenset("cd"), 0.25)
    assert mark(frozenset(), frozenset())[-1] == 1
    assert mark(frozenset(), frozenset("a"))[-1] == 0
    assert mark(frozenset("a"), frozenset())[-1] == 0


def planted_edges(known):
    return exam.edges_that_matter(known, "resample")


def every_edge(known, model):
    return frozenset(f"{u} -> {v}" for u, v in exam._graph(model).edges())


def broken(known, model):
    raise ZeroDivisionError("no metric")


@pytest.mark.parametrize(
    ("find", "check"),
    [
        pytest.param(
            lambda known, model: planted_edges(known), lambda r: r.score == 1 and not r.false + r.missed, id="oracle"
        ),
        pytest.param(
            lambda known, model: frozenset(), lambda r: r.score == 0 and len(r.missed) == 5, id="finds nothing"
        ),
        pytest.param(
            every_edge, lambda r: len(r.found) == 5 and len(r.false) > 5 and r.score < 0.5, id="finds everything"
        ),
        pytest.param(broken, lambda r: r.failed and "no metric" in r.note and math.isnan(r.score), id="raises"),
    ],
)
def test_planted_tools_get_what_they_deserve(find, check):
    known = exam.bounded(CIRCUITS["or gate"]())
    row = ask(Question("planted", ("circuit",), planted_edges, find), known, exam.control_of(known))
    assert check(row), row
    assert row.asked
    assert row.seconds >= 0


def test_what_does_not_care_for_the_weights_is_no_better_than_its_null():
    known = exam.bounded(CIRCUITS["or gate"]())
    row = ask(Question("all", ("circuit",), planted_edges, every_edge), known, exam.control_of(known))
    assert row.null == row.score
    assert row.null > 0


def test_nothing_is_skipped_silently(rows):
    tools = {row.tool for row in rows}
    assert {(row.tool, row.model) for row in rows} == {(tool, model) for tool in tools for model in QUICK}
    assert {row.model for row in rows if row.asked} == set(QUICK)
    assert not [row for row in rows if row.failed]
    assert all(row.note for row in rows if not row.asked)

    def unbuildable():
        raise UserError("too long")

    (row,) = exam.sit(exam.QUESTIONS[:1], {"broken": unbuildable})
    assert row.failed
    assert "too long" in row.note


EXACT = ("edge effects, zero", "edge effects, mean", "edge effects, resample", "ablation of components")
EXACT += ("direct logit attribution", "projecting a variable out", "erasure (LEACE)", "logit lens")
WAVES = ("key frequencies of logits", "frequencies of the embedding", "frequencies of neurons", "neuron ablation")


@pytest.mark.parametrize("tool", [*EXACT, *WAVES, "probe, ridge", "probe, lda", "probe, logistic"])
def test_exact_tools_find_what_is_planted_and_nothing_else(rows, tool):
    asked = [row for row in rows if row.tool == tool and row.asked]
    assert asked
    for row in asked:
        assert row.score == 1, row


def test_nulls_of_what_reads_weights_are_low(rows):
    """Random weights have no key frequency, and almost every edge of theirs matters."""
    for row in rows:
        if row.asked and row.tool in WAVES[:3] and row.model != "random adder":
            assert row.null == 0, row
        if row.asked and row.tool == "edge effects, resample":
            assert row.null < 1, row


def test_who_is_fooled_by_which_model(rows):
    """A method blind by construction is marked so: parity in two neurons, circles of equal size, the decoy's double."""
    assert score(rows, "probe on two neurons", "parity").missed == ("m0: answer",)
    assert score(rows, "clock or pizza", "clock").score == 1
    assert score(rows, "clock or pizza", "pizza, 3 frequencies, decoys").missed == ("pizza",)
    assert "decoy" in score(rows, "probe, lda", "switch").found  # read by nothing, and readable
    assert "decoy" in score(rows, "amnesic test", "switch").false  # erasing b erases its copy
    assert not score(rows, "projecting a variable out", "switch").false  # the copy's own directions: no effect
    assert not score(rows, "patching of heads, noising", "switch").false


def test_dictionaries_are_marked_between_oracle_and_chance():
    """Independent features are found; a penalty on firing costs the children, whose latents are parent + child."""
    questions = exam.chosen(["dictionary, oracle", "dictionary, random", "dictionary, April", "dictionary, TopK"])
    rows = exam.sit(questions, DICTIONARIES)
    for model in DICTIONARIES:
        assert (score(rows, "dictionary, oracle", model).score, score(rows, "dictionary, oracle", model).null) == (1, 0)
        assert score(rows, "dictionary, random directions", model).score == 0
    for tool in ("dictionary, April 2024", "dictionary, TopK"):
        assert score(rows, tool, "sparse features").score > 0.7
        assert score(rows, tool, "sparse features").null < 0.1
    assert len(score(rows, "dictionary, April 2024", "feature trees").missed) >= 9
    known = DICTIONARIES["feature trees"]()
    inputs = known.task.split(0).all.inputs
    hidden = known.model.run_with_cache(inputs, "hidden")[1]["hidden"]
    assert torch.allclose(hidden, inputs @ torch.stack([*known.truth.features.values()]), atol=1e-6)
    assert (inputs > 0).sum(1).double().mean() == pytest.approx(known.truth.active, abs=0.1)


def test_saved_and_read_again(rows, tmp_path):
    exam.save(rows, tmp_path)
    again = exam.from_json((tmp_path / "exam.json").read_text())
    assert exam.to_json(again) == exam.to_json(rows)
    assert [dataclasses.replace(row, score=0.0, null=0.0) for row in again] == [
        dataclasses.replace(row, score=0.0, null=0.0) for row in rows
    ]
    lines = (tmp_path / "exam.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    text = exam.table(rows)
    assert text.count("or gate") == sum(row.asked for row in rows if row.model == "or gate")


def test_the_command_prints_saves_and_draws(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["exam", "--tools", "key frequencies", "EAP", "--models", "clock", "or gate", "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["exam.csv", "exam.json", "exam.png"]
    printed = capsys.readouterr().out
    assert "key frequencies of logits" in printed
    assert "questions asked" in printed
    assert main(["exam", "--models", "or gat", "--out", str(out)]) == 1
    assert 'did you mean "or gate"' in capsys.readouterr().err
    assert main(["exam", "--tools", "edge affects", "--out", str(out)]) == 1
    assert main(["figure", "exam"]) == 1
    assert "`toylab exam`" in capsys.readouterr().err
