"""Claims: a verdict follows from the numbers of the seeds and of the placebos, and nothing is hidden."""

import contextlib
import json
import math
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import xarray as xr

from toylab.claims import Claim, RunSet, first_step, judge, last, markdown, results, shown, tally
from toylab.cli.paper import paper_module
from toylab.errors import UserError


def claim(key="big", holds=lambda v: v > 1, needs=("main",), placebos=(), tag="seen", value=None):
    value = value or (lambda t: t[needs[0]])
    return Claim(key, f"it is {key}", "2", tag, "> 1", value, holds, needs, placebos)


GOOD, BAD = [2.0, 3.0, 2.5, 4.0, 2.2], [0.1]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (GOOD, "pass"),
        ([2.0] * 4 + [0.0], "pass"),  # four of five
        ([2.0] * 3 + [0.0] * 2, "fail"),
        ([2.0] * 4 + [math.nan], "pass"),
        ([2.0, math.nan], "fail"),  # nothing to measure is no agreement
        ([math.nan], "fail"),
        ([math.inf], "pass"),
        ([], "fail"),
    ],
)
def test_a_claim_must_hold_on_nearly_every_seed(values, verdict):
    assert judge(claim(), {"main": values}, ["main"]).verdict == verdict


def test_a_placebo_that_wrongly_passes_fails_the_claim():
    asked, one = ["main", "shuffled"], claim(placebos=("shuffled",))
    assert judge(one, {"main": GOOD, "shuffled": BAD}, asked).verdict == "pass"
    fooled = judge(one, {"main": GOOD, "shuffled": [0.0, 1.5]}, asked)
    assert (fooled.verdict, fooled.why) == ("fail", "also holds on shuffled")
    assert fooled.holding == len(GOOD)


def test_what_was_not_trained_is_not_run_whatever_the_rest_says():
    one = claim(placebos=("shuffled",))
    missing = judge(one, {"shuffled": BAD}, ["main", "shuffled"])
    assert (missing.verdict, missing.values, missing.why) == ("not run", (), "main not trained")
    pending = judge(one, {"main": GOOD}, ["main", "shuffled"])
    assert pending.verdict == "not run"
    assert "placebo shuffled is not trained" in pending.why
    # A quick reproduction without that placebo does not wait for it; a claim that fails already does not either.
    assert judge(one, {"main": GOOD}, ["main"]).verdict == "pass"
    assert judge(one, {"main": BAD}, ["main", "shuffled"]).verdict == "fail"


def test_a_placebo_stands_in_for_the_first_need_only():
    ratio = claim(needs=("main", "other"), placebos=("fake",), value=lambda t: np.divide(t["main"], t["other"]))
    found = judge(ratio, {"main": [4.0], "other": [2.0], "fake": [1.0]}, ["main", "other", "fake"])
    assert (found.values, found.placebos, found.verdict) == ((2.0,), {"fake": (0.5,)}, "pass")


def test_nothing_from_memory_is_a_gate():
    with pytest.raises(UserError, match="from memory"):
        claim(tag="from memory")
    with pytest.raises(UserError, match="accepted are seen"):
        claim(tag="sene")
    with pytest.raises(UserError, match="only shown"):
        claim(holds=None, placebos=("shuffled",))
    assert judge(claim(tag="from memory", holds=None), {"main": BAD}, ["main"]).verdict == "shown"
    with pytest.raises(UserError, match="at least 1"):
        RunSet("main", (("seed=0",),), seeds=0)


def test_failing_claims_stay_in_both_outputs():
    claims = [claim("big"), claim("huge", lambda v: v > 100), claim("a|b", needs=("sweep",)), claim("tiny", None)]
    findings = [judge(c, {"main": [2.0, math.inf, math.nan]}, ["main", "sweep"]) for c in claims]
    about = {"title": "Fake 2026", "command": "`toylab paper fake`", "runs": [{"run": "x"}]}
    assert tally(findings) == "2 fail, 1 not run, 1 shown"
    text = markdown(findings, about)
    rows = [line for line in text.splitlines() if line.startswith("| it is")]
    assert len(rows) == 4
    assert "🔴 fail: holds on 1 of 3" in rows[1]
    assert "⚪ not run: sweep not trained" in rows[2]
    assert "it is a\\|b" in rows[2]
    assert "command: `toylab paper fake`" in text
    record = json.loads(json.dumps(results(findings, about), allow_nan=False))
    assert [c["verdict"] for c in record["claims"]] == ["fail", "fail", "not run", "shown"]
    assert record["claims"][0]["values"] == [2.0, "inf", "nan"]
    assert record["claims"][2]["median"] is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([2.0, 1.0, 3.0], "2 (1 to 3)"),
        ([0.12345], "0.123"),
        ([8350.0, math.inf, 9000.0], "9,000 (8,350 to never)"),
        ([math.nan, 1.0], "1, 1 undefined"),
        ([math.nan], "undefined"),
        ([], "–"),
    ],
)
def test_numbers_as_a_reader_sees_them(values, text):
    assert shown(values) == text


def test_helpers_of_papers_respect_each_seeds_own_steps():
    nan = math.nan
    values = xr.DataArray([[1.0, 2.0, nan, nan], [1.0, nan, 3.0, 4.0]], {"seed": [0, 1], "step": [0, 5, 10, 20]})
    assert last(values).tolist() == [2.0, 4.0]
    assert first_step(values >= 2).tolist() == [5.0, 10.0]
    assert first_step(values.T >= 4).tolist() == [math.inf, 20.0]


PAPERS = sorted(path.parent.name for path in (Path(__file__).parent.parent / "paper_repro").glob("*/claims.py"))


@pytest.mark.parametrize("paper", PAPERS)
def test_claims_read_no_run_set_that_they_do_not_name(paper):
    """A formula that is given what its claim names, and stand-ins for the tables, misses none. And all names exist."""
    module = paper_module(paper)
    keys = {s.key for sets in (module.RUNS, module.QUICK) for s in sets}
    for claim in module.CLAIMS:
        assert {*claim.needs, *claim.placebos} <= keys, claim.key
        # What else a stand-in cannot do ends the formula, after the tables were asked for; a missing table fails here.
        with contextlib.suppress(TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
            list(claim.value({key: MagicMock() for key in claim.needs}))
