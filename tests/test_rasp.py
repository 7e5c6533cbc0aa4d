"""Compiled programs equal the interpreter on every input, their variables are where they are said to be, and everything
that cannot be compiled is refused in one message. Rows T1 to T4 of the reference sheet's checklist are named."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch

from toylab.data import Task, generator
from toylab.errors import UserError
from toylab.models.transformer import Transformer
from toylab.rasp.compiler import compile_program
from toylab.rasp.language import (
    EQ,
    GT,
    LEQ,
    TRUE,
    Aggregate,
    LinearSequenceMap,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    evaluate,
    indices,
    tokens,
    walk,
)
from toylab.rasp.programs import PROGRAMS, ProgramTask, everywhere, histogram, is_token, shift_by
from toylab.rasp.values import all_means, value_sets

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def task_of(name, vocab=None, max_len=None, **more) -> ProgramTask:
    shown = PROGRAMS[name]
    return ProgramTask(name, tuple(vocab or shown.vocab), max_len or shown.max_len, 0.5, **more)


def random_rows(vocab, n, max_len, seed=0, min_len=1):
    g = generator(seed, "rows")
    lengths = torch.randint(min_len, max_len + 1, (n,), generator=g).tolist()
    return [tuple(vocab[i] for i in torch.randint(len(vocab), (length,), generator=g).tolist()) for length in lengths]


# --- T1: the library's outputs ---------------------------------------------------------------------------------------

F = Fraction
OUTPUTS = [
    ("length", "abcd", "abca", [4, 4, 4, 4]),
    ("reverse", "Helo", "Hello", list("olleH")),
    ("frac_prevs", "yx", "yyxxy", [0, 0, F(1, 3), F(1, 2), F(2, 5)]),
    ("pair_balance", "()abc", "a()b(c))", [0, F(1, 2), 0, 0, F(1, 5), F(1, 6), 0, F(-1, 8)]),
    ("shuffle_dyck2", "(){}", "({)}", [1, 1, 1, 1]),
    ("shuffle_dyck2", "(){}", "(){)}", [0] * 5),
    ("shuffle_dyck1", "()", "())(", [0] * 4),
    ("dyck1", "()", "(())", list("PPPT")),
    ("dyck1", "()", "())(()", list("PTFFFF")),
    ("hist", "abc", "abac", [2, 1, 2, 1]),
    ("hist_causal", "abc", "abac", [1, 1, 2, 1]),
    ("sort_unique", (1, 2, 3, 4), (2, 4, 3, 1), [1, 2, 3, 4]),
    ("sort", (1, 2, 3, 4), (2, 4, 1, 2), [1, 2, 2, 4]),
    ("sort_freq", (1, 2, 3, 4), (2, 4, 2, 1), [2, 2, 4, 1]),
    ("most_frequent", "abc", "cbbac", ["c", "b", "a", None, None]),
    ("shift", "abc", "abca", [None, None, "a", "b"]),
    ("detect_pattern", "abc", "abcabc", [None, None, True, False, False, True]),
    ("count", "abc", "aaabbc", [3] * 6),
    ("count_less_freq", "abc", "aaabbc", [3] * 6),
    ("count_less_freq", "abc", "aacbbc", [6] * 6),
    ("induction", "abcd", "abcab", [None, None, None, "b", "c"]),
    ("first", "abc", "cab", ["c", "c", "c"]),
    ("is_unique", "abc", "aba", [False, True, False]),
    ("parity", "01", "10110", [1] * 5),
    ("parity_causal", "01", "10110", [1, 1, 0, 1, 1]),
    ("majority", "01", "0110", [0] * 4),
    ("majority", "01", "0111", [1] * 4),
    ("palindrome", "abc", "abcba", [1] * 5),
    ("palindrome", "abc", "abca", [0] * 4),
    ("signed_mean", "abc", "acb", [-1, F(1, 2), F(1, 3)]),
]


@pytest.mark.parametrize(("name", "vocab", "row", "expected"), OUTPUTS)
def test_T1_library_outputs_interpreted_and_compiled(name, vocab, row, expected):
    task = task_of(name, vocab, max(len(row), 2))
    assert evaluate(task.expression, row, task.causal) == expected
    assert task.compile().run([row]) == [expected]


def test_every_program_has_an_output_by_hand():
    assert {name for name, *_ in OUTPUTS} == set(PROGRAMS)


def smaller(name):
    """Rows up to 5 tokens, up to 4 of a vocabulary of 4: 340 to 363 rows; bench_rasp.py --all goes to 6 (5,460)."""
    return task_of(name, max_len=4 if len(PROGRAMS[name].vocab) == 4 else 5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_T1_compiled_equals_interpreted_on_every_input(name):
    """float64: every logit of every row. None has logits 0, so it is checked too."""
    task = smaller(name)
    assert task.compile().error(task.rows()) < 1e-10


@pytest.mark.parametrize("name", PROGRAMS)
def test_T1_float32(name):
    task = task_of(name)
    rows = task.rows()
    few = [rows[i] for i in torch.randperm(len(rows), generator=generator(0, "rows"))[:60].tolist()]
    compiled = task.compile("float32")
    # A numerical logit is 2 c x - c^2, so its rounding grows with the largest class.
    size = max([1.0, *(float(c) ** 2 for c in compiled.classes)]) if compiled.program.numerical else 1.0
    assert compiled.error(few) < 1e-5 * size


# --- T2: the start token takes nothing -------------------------------------------------------------------------------


def with_scale(compiled, scale):
    """The same weights with scores divided by `scale`."""
    model = Transformer(
        dataclasses.replace(compiled.model.spec, attn_scale=scale),
        compiled.model.d_vocab,
        compiled.model.n_ctx,
        compiled.model.d_out,
    )
    model.load_state_dict(compiled.model.state_dict())
    return model


@pytest.mark.parametrize("d_head", [16, 40, 64, 100, 256, 1024])
def test_T2_leak_to_the_start_token(d_head):
    """1/(1 + e^(50/sqrt d_head)) if scores were divided by sqrt(d_head); nothing as compiled."""
    compiled = task_of("first").compile()
    row = [("b",)]
    right = compiled.classes.index("b")
    with torch.no_grad():
        leak = 1 - with_scale(compiled, math.sqrt(d_head))(compiled.encode(row))[0, 1, right]
        none = 1 - compiled.model(compiled.encode(row))[0, 1, right]
    assert leak.item() == pytest.approx(1 / (1 + math.exp(50 / math.sqrt(d_head))), rel=1e-6)
    assert abs(none.item()) < 1e-12


# --- T3: complete value sets, steep enough steps ---------------------------------------------------------------------


@pytest.mark.parametrize(("max_len", "size"), [(5, 11), (8, 23), (10, 33)])
def test_T3_means_of_zeros_and_ones_are_the_farey_sequence(max_len, size):
    means = all_means((Fraction(0), Fraction(1)), max_len)
    assert len(means) == size
    assert means == {Fraction(j, n) for n in range(1, max_len + 1) for j in range(n + 1)}


@pytest.mark.parametrize("N", [5, 6, 10, 20])
def test_T3_counting_needs_slopes_of_2N_N_plus_1(N):
    compiled = compile_program(histogram(), ("a", "b"), N)
    assert compiled.model.W_in.max() >= 2 * N * (N + 1)
    rows = [("a",) * i + ("b",) * (N - i) for i in range(N + 1)]
    assert compiled.error(rows) < 1e-10


@pytest.mark.parametrize(("x", "y", "value"), [(2, 5, F(2, 5)), (3, 5, F(3, 5)), (2, 3, F(2, 3))])
def test_T3_a_map_of_a_mean_hits_the_right_neighbour(x, y, value):
    """With a value set of v/l alone, an identity Map sent .4 to .333 and .6 to .5."""
    program = Map(lambda v: v, Aggregate(everywhere(), is_token("x")))
    compiled = compile_program(program, ("x", "o"), 5)
    row = ("x",) * x + ("o",) * (y - x)
    assert compiled.run([row])[0] == [value] * y


# --- T4: negative numbers, causal widths, long rows ------------------------------------------------------------------


def test_T4_negative_numbers_from_a_category():
    task = task_of("signed_mean")
    assert min(task.classes) == -1
    assert task.compile().error(task.rows()) < 1e-10


@pytest.mark.parametrize("name", ["hist_causal", "parity_causal"])
def test_T4_widths_are_causal_in_causal_programs(name):
    task = task_of(name)
    row = task.vocab[-1:] * 4
    compiled = task.compile()
    assert compiled.model.spec.attention == "causal"
    expected = {"hist_causal": [1, 2, 3, 4], "parity_causal": [1, 0, 1, 0]}[name]
    assert compiled.run([row]) == [expected]


@pytest.mark.parametrize("name", ["length", "hist", "count", "reverse", "shift", "frac_prevs", "parity", "majority"])
def test_T4_long_rows(name):
    task = task_of(name, max_len=32)
    assert task.compile().error(random_rows(task.vocab, 12, 32, min_len=20)) < 1e-8


def test_T4_a_causal_stack_of_brackets_at_length_20():
    task = task_of("dyck1", max_len=20)
    assert task.compile().error([*random_rows("()", 15, 20), ("(",) * 10 + (")",) * 10]) < 1e-9


# --- The language ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["sort_freq", "most_frequent", "detect_pattern", "palindrome", "shuffle_dyck1"])
def test_lowering_changes_no_value(name, causal):
    task = task_of(name)
    compiled = compile_program(task.expression, task.vocab, task.max_len, causal)
    for row in random_rows(task.vocab, 20, task.max_len):
        assert evaluate(compiled.lowered, row, causal) == evaluate(task.expression, row, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_selectors_combine(causal):
    same, before = Select(tokens, tokens, EQ), Select(indices, indices, LEQ)
    for selector in (same & before, same | before, ~same, ~(same & before), same & ~before, ~~same):
        compiled = compile_program(SelectorWidth(selector), "ab", 3, causal)
        assert compiled.error(task_of("hist", "ab", 3).rows()) < 1e-10


def test_none_is_never_selected_and_can_be_filled():
    before = shift_by(1, tokens)
    programs = {
        "b": Map(lambda t: t, before, none="b"),  # a gap filled
        "0": SelectorWidth(Select(before, tokens, EQ)),  # keys that may be missing
        "default": Aggregate(Select(indices, indices, lambda k, q: q == k + 2), tokens, default="a"),
        "division": Map(lambda i: 6 // i, indices, none=-1),
        "number": Map(lambda t: 2, before, none=-3, numerical=True),
    }
    expected = {"b": list("ba"), "0": [1, 0], "default": list("aa"), "division": [-1, 6], "number": [-3, 2]}
    for name, program in programs.items():
        assert evaluate(program, "ab") == expected[name]
        assert compile_program(program, "ab", 3).error(task_of("hist", "ab", 3).rows()) < 1e-10


def test_the_interpreter_refuses_to_average_categories():
    with pytest.raises(UserError, match=r"selects the values a, b at position 0.*needs one value"):
        evaluate(Aggregate(everywhere(), tokens, name="both"), "ab")
    assert evaluate(Aggregate(everywhere(), tokens), "aa") == ["a", "a"]


def test_predicates_take_the_key_first():
    assert evaluate(SelectorWidth(Select(indices, indices, GT)), "abc") == [2, 1, 0]


def test_value_sets_hold_every_value_that_occurs():
    for name in PROGRAMS:
        task = task_of(name)
        sets = value_sets(task.expression, task.vocab, task.max_len)
        for row in random_rows(task.vocab, 10, task.max_len):
            if task.allowed(row):
                for key, values in task._trace(row).items():
                    known = {n: sets.of[i] for i, n in sets.names.items()}[key]
                    assert set(values) <= {*known, None}


# --- Refusals --------------------------------------------------------------------------------------------------------

share = Aggregate(everywhere(), is_token("a"), name="share")
maybe = shift_by(1, tokens)
REFUSED = [
    (SelectorWidth(Select(share, indices, EQ)), "the keys 'share' are numbers"),
    (SelectorWidth(Select(indices, share, EQ)), "the queries 'share' are numbers"),
    (SequenceMap(max, share, is_token("b")), "a SequenceMap of numbers is not linear"),
    (LinearSequenceMap(tokens, share, 1, 1), "a LinearSequenceMap adds numbers"),
    (Map(lambda t: None, tokens, numerical=True), "a number cannot be None"),
    (Aggregate(everywhere(), is_token("a"), default=1), "the default of a numerical aggregate is 0"),
    (Aggregate(everywhere(), maybe, default="a"), "cannot be told apart"),
    (SelectorWidth(~Select(maybe, tokens, EQ)), "may be None; fill it"),
    (SelectorWidth(everywhere(), numerical=True), "a width is categorical"),
    (Map(lambda t: t + 1, tokens, name="plus"), "Map 'plus' (of tokens) fails: TypeError"),
    (Map(lambda t: 1, Map(lambda t: 0, tokens, name="x"), name="x"), "2 different expressions are called 'x'"),
    (Aggregate(everywhere(), Map(lambda i: 7.3**i, indices, numerical=True)), "more than 4,096"),
]


@pytest.mark.parametrize(("program", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(program, message):
    with pytest.raises(UserError) as error:
        compile_program(program, "ab", 12)
    assert message in str(error.value)


def test_everything_unsupported_is_listed_at_once():
    wrong = SequenceMap(
        lambda a, b: a,
        SelectorWidth(Select(share, indices, EQ), name="first wrong"),
        Map(lambda v: 1 / v, LinearSequenceMap(tokens, share, 1, 1, name="second wrong"), name="third"),
        name="top",
    )
    with pytest.raises(UserError) as error:
        compile_program(wrong, "ab", 4)
    assert str(error.value).startswith("this program cannot be compiled:")
    assert str(error.value).count("\n  - ") == 2


def test_float32_refuses_what_it_cannot_tell_apart():
    """Balances around 0 are 1/N(N-1) apart: 2.6e-6 at 620, less than float32 can tell at slopes that steep."""
    near = Map(lambda v: int(v > Fraction(1, 2)), Map(lambda t: {"a": F(1, 2), "b": F(1, 2) + F(1, 10**6)}[t], tokens,
               numerical=True, name="near"), name="tell")  # fmt: skip
    with pytest.raises(UserError, match=r"must tell 1/2 from 500001/1000000: too near for float32"):
        compile_program(near, "ab", 2, dtype="float32")
    assert compile_program(near, "ab", 2).run(["ab"]) == [[0, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("abd", "unseen token 'd'; the vocabulary is a, b, c"),
        ("abcabca", "a row of 7 tokens"),
        ("", "a row of 0 tokens"),
    ],
)
def test_inputs_outside_the_stated_size(row, message):
    with pytest.raises(UserError, match=message):
        task_of("hist").compile().run([row])


@pytest.mark.parametrize(
    ("vocab", "max_len", "message"),
    [("aa", 3, "distinct"), ("", 3, "one or more"), ("a", 0, "at least 1"), ([None], 2, "None")],
)
def test_sizes_that_make_no_sense(vocab, max_len, message):
    with pytest.raises(UserError, match=message):
        compile_program(histogram(), vocab, max_len)


# --- The model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", PROGRAMS)
def test_variables_are_where_they_are_said_to_be(name):
    """At the stated site and every later one: one-hot of the value, the number, and zero for None."""
    task = task_of(name)
    compiled = task.compile()
    rows = [r for r in random_rows(task.vocab, 20, task.max_len) if task.allowed(r)]
    batch = task.batch_of(rows)
    _, cache = compiled.model.run_with_cache(batch.inputs)
    streams = [site for site in cache if "resid" in site]
    latents = task.latents(batch.inputs)
    for variable, latent in latents.items():
        written = compiled.written[variable]
        real = (torch.arange(task.n_ctx) > 0) & (batch.inputs < len(task.vocab))
        for site in streams[streams.index(written.site) :]:
            found = cache[site][..., list(written.columns)][real]
            known = latent.values[real]
            if written.numerical:
                numbers = torch.tensor([float(v) for v in written.values], dtype=torch.float64)
                expected = numbers[known][:, None]
            else:
                expected = (known[:, None] == torch.arange(len(written.values))).double()
            assert (found - expected).abs().max() < 1e-10, (variable, site)
        before = streams[: streams.index(written.site)]
        assert all(cache[site][..., list(written.columns)].abs().max() == 0 for site in before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["reverse", "most_frequent", "dyck1", "palindrome"])
def test_padding_and_batching_change_nothing(name):
    task = task_of(name)
    compiled = task.compile()
    row = task.vocab[:1] * 2 + task.vocab[1:2]
    if name == "dyck1":
        row = ("(", ")", "(")
    padded = compiled.encode([row])
    together = compiled.model(padded)[0, : len(row) + 1]
    assert (together - compiled.model(padded[:, : len(row) + 1])[0]).abs().max() < 1e-12
    stacked = compiled.model(compiled.encode([task.vocab[:1], row]))[1, : len(row) + 1]
    assert (together - stacked).abs().max() < 1e-12


def test_the_spec_says_what_was_compiled():
    compiled = task_of("most_frequent").compile()
    spec = compiled.model.spec
    assert (spec.attn_scale, spec.norm, spec.act) == (1.0, "none", "relu")
    assert len(compiled.labels) == spec.d_model == len(set(compiled.labels))
    assert {w.by[0] for w in compiled.written.values()} == {"e", "p", "a", "m"}
    sops = [x for x in walk(compiled.lowered) if isinstance(x, type(tokens).__mro__[1])]
    assert len(compiled.written) == len(sops)


def test_a_program_of_tokens_alone_is_an_idle_layer():
    assert compile_program(tokens, "ab", 2).run(["ab"]) == [["a", "b"]]
    assert compile_program(Map(str.upper, tokens), "ab", 2).run(["ab"]) == [["A", "B"]]


def test_true_selects_everything():
    assert evaluate(SelectorWidth(Select(tokens, tokens, TRUE)), "abc") == [3, 3, 3]


# --- Programs as tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_tasks(name):
    task = task_of(name, max_len=4)
    assert isinstance(task, Task)
    batch = task.sample(8, generator(0, "batch"))
    assert batch.inputs.shape == batch.targets.shape == batch.weight.shape == (8, task.n_ctx)
    assert batch.targets.min() >= 0
    assert batch.targets.max() < task.d_out
    assert batch.inputs.max() < task.d_vocab
    assert (batch.weight[:, 0] == 0).all()
    split = task.split(0)
    assert torch.equal(torch.cat([split.train, split.test]).sort().values, torch.arange(len(split.all)))
    with torch.no_grad():
        right = task.compile().model(split.all.inputs).argmax(-1) == split.all.targets
    assert right[split.all.weight > 0].all()
    assert "->" in batch.example
    assert len(task.render(batch.inputs)) == 8


@pytest.mark.parametrize(
    ("name", "latent"), [("reverse", "length"), ("hist", "tokens"), ("dyck1", "failed"), ("sort", "rank")]
)
def test_counterfactual_changes_the_variable(name, latent):
    task = task_of(name, max_len=5, min_len=5)
    batch = task.sample(10, generator(1, "batch"))
    if latent == "length":
        with pytest.raises(UserError, match="is the same on every row of 5 tokens"):
            task.counterfactual(batch, latent, generator(0, "cf"))
        return
    changed = task.counterfactual(batch, latent, generator(0, "cf"))
    before, after = task.latents(batch.inputs)[latent].values, task.latents(changed.inputs)[latent].values
    assert (before != after).any(1).all()
    assert torch.equal(changed.targets, task.batch_of(task.decode(changed.inputs)).targets)
    assert ((batch.inputs != changed.inputs).sum(1) >= 1).all()


def test_tasks_refuse_what_they_cannot_do():
    with pytest.raises(UserError, match="did you mean"):
        task_of("hist").counterfactual(task_of("hist").sample(2, generator(0, "b")), "tokns", generator(0, "cf"))
    with pytest.raises(UserError, match='did you mean "reverse"'):
        ProgramTask("revers", ("a",), 3, 0.5)
    with pytest.raises(UserError, match="min_len"):
        ProgramTask("hist", ("a",), 3, 0.5, min_len=4)


def test_large_worlds_stream():
    task = task_of("hist", max_len=12)
    assert not task.finite
    assert task.split(0).train is None
    assert len(task.split(0).all) == task.n_test
