"""MIU: the formal system against brute force, the tasks against plain Python, the recogniser and the residue measures
against planted truth. Checklist rows A12, A13."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases.models import rng, spec

from toylab.data import Task
from toylab.errors import UserError
from toylab.interp.attention import attention_entropy
from toylab.known.circuits import bit_function, random_weights, rotated
from toylab.known.miu import miu_recogniser
from toylab.measures.residues import (
    CountingHeads,
    ResidueCode,
    ResidueLosses,
    ResidueSteering,
    TheoremBelief,
    TwinSensitivity,
    period_shares,
    triangle,
)
from toylab.snapshot import Snapshot
from toylab.tasks.miu import PAD, TOKENS, MIUSteps, MIUStrings, symbol_latents
from toylab.tasks.miu_system import (
    NOTHING,
    apply_choice,
    bodies,
    breadth_first,
    choices,
    derive,
    draw,
    is_theorem,
    n_completions,
    n_theorems,
    next_symbol,
    predecessors,
    random_successor,
    rule_between,
    rules_of,
    shortest_derivation,
    successors,
    to_symbols,
    to_text,
    why_not,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def texts(n):
    return ["M" + "".join(body) for body in itertools.product("UI", repeat=n)]


# --- A12: the system ------------------------------------------------------------------------------------------------


def test_a12_distinct_theorems_by_steps():
    """A331536, its first ten terms; and the new ones of every step."""
    distance = breadth_first(9)
    new = [list(distance.values()).count(step) for step in range(10)]
    assert list(itertools.accumulate(new)) == [1, 3, 6, 11, 25, 69, 282, 1730, 15885, 210105]
    assert all(is_theorem(string) for string in itertools.islice(distance, 20000))


def test_a12_counts_of_theorems():
    """T(n) = (2^(n+1) - 2 cos(n pi/3))/3 against the invariant on every body, and N_m(r) against every completion."""
    counts = [sum(is_theorem(string) for string in texts(n)) for n in range(11)]
    assert [n_theorems(n) for n in range(11)] == counts
    assert [n_theorems(n) for n in range(14)] == [
        round((2 ** (n + 1) - 2 * math.cos(n * math.pi / 3)) / 3) for n in range(14)
    ]
    for m, r in itertools.product(range(9), range(3)):
        assert n_completions(m, r) == sum((r + s.count("I")) % 3 != 0 for s in texts(m))


def test_a12_every_theorem_has_the_derivation_that_the_proof_constructs():
    """All bodies of length 8 or less: each step legal, the stated number of steps, which starts and ends right."""
    for n in range(1, 9):
        for string in filter(is_theorem, texts(n)):
            path = derive(string)
            assert (path[0], path[-1]) == ("MI", string)
            rules = rules_of(path)
            u = string.count("U")
            e = rules.count("R3") - u
            assert len(rules) == rules.count("R2") + e % 2 + e + -(-e // 2) + u
            assert rules.count("R2") % 2 == (string.count("I") % 3 == 2)  # the doubling parity


# Exact shortest derivations, from searches without a bound (reference sheet, section 6.2).
SHORTEST = {
    0: "MI", 1: "MII MIU", 2: "MIIU MIIII MIUIU", 3: "MUI MIIIIU", 4: "MIUU MUIU MUIUI",
    5: "MIIUU MIUUI MUIIU MUUII MUIUIU", 6: "MIIIII MIIUUU MIUIUU MIUUIU MUIIUU MUUIIU", 7: "MIUI MUII",
    8: "MIUUU MUIUU MUUIU MUUUI", 9: "MIUUUU MUUIUU MUUUIU", 10: "MUUI",
}  # fmt: skip


def test_a12_shortest_derivations():
    for steps, strings in SHORTEST.items():
        for string in strings.split():
            path = shortest_derivation(string)
            assert len(rules_of(path)) == steps, string
            assert (path[0], path[-1]) == ("MI", string)
    for string, distance in itertools.islice(breadth_first(6).items(), 200):
        assert len(shortest_derivation(string)) == distance + 1


def test_predecessors_undo_successors():
    for string in itertools.chain(*(texts(n) for n in range(1, 7))):
        assert all(string in predecessors(new) for new in successors(string))
        assert all(string in successors(old) for old in predecessors(string))


def test_the_invariant_decides_all_that_can_be_reached():
    """Up to 3 symbols, what 9 steps reach is what the invariant accepts, but for MUUI, which takes 10."""
    reached = set(breadth_first(9))
    short = {string for n in range(4) for string in texts(n)}
    assert {s for s in short if is_theorem(s)} - {"MUUI"} == reached & short
    assert not is_theorem("IM")
    assert not is_theorem("MIMI")
    assert not is_theorem("M")


@pytest.mark.parametrize("n", range(1, 8))
def test_the_tensor_rules_are_the_text_rules(n):
    symbols = to_symbols((s[1:] for s in texts(n)), 11)
    has = choices(symbols)
    row, choice = has.nonzero(as_tuple=True)
    results = to_text(apply_choice(symbols[row], choice))
    for i, string in enumerate(texts(n)):
        found = ["M" + text for text, r in zip(results, row.tolist(), strict=True) if r == i]
        assert len(found) == len(set(found))
        assert set(found) == {new for new in successors(string) if len(new) <= 12}


def test_rules_between_all_short_pairs():
    symbols = torch.cat([torch.nn.functional.pad(bodies(n), (0, 4 - n), value=NOTHING) for n in range(1, 5)])
    old, new = torch.cartesian_prod(torch.arange(30), torch.arange(30)).T
    names = ["M" + text for text in to_text(symbols)]
    found = rule_between(symbols[old], symbols[new]).tolist()
    for i, j, rule in zip(old.tolist(), new.tolist(), found, strict=True):
        assert successors(names[i]).get(names[j]) == (f"R{rule}" if rule else None)


def test_a_random_successor_is_uniform():
    """MIIIIUUU has four successors: R2, R3 at two places, R4 once for its run of U's."""
    symbols = to_symbols(["IIIIUUU"], 14).expand(4000, -1)
    new, rule = random_successor(symbols, rng())
    found = {text: to_text(new).count(text) for text in set(to_text(new))}
    assert {"M" + text for text in found} == set(successors("MIIIIUUU"))
    assert set(rule.tolist()) == {2, 3, 4}
    # 4000 draws: 1000 each, standard deviation 27; by rule first 4000/3 each, standard deviation 30.
    assert all(abs(count - 1000) < 5 * 27.4 for count in found.values())
    _, rule = random_successor(symbols, rng(), by_rule=True)
    assert all(abs(count - 4000 / 3) < 5 * 30 for count in rule.bincount()[2:].tolist())
    stuck, rule = random_successor(to_symbols(["IUIU"], 5), rng())
    assert (to_text(stuck), rule.tolist()) == (["IUIU"], [0])


# --- A13: the law of the language -----------------------------------------------------------------------------------


def test_a13_next_symbols_of_theorems_of_one_length():
    """P(I | r, m) = N_(m-1)(r+1)/N_m(r), against counting all theorems of length 6 with each prefix; its entropies."""
    law = next_symbol({6: 1.0})
    theorems = [string[1:] for string in texts(6) if is_theorem(string)]
    for j in range(6):
        for prefix in {t[:j] for t in theorems}:
            ahead = [t[j] for t in theorems if t.startswith(prefix)]
            assert law[j, prefix.count("I") % 3, 1] == pytest.approx(ahead.count("I") / len(ahead), abs=1e-14)
    for m, r in itertools.product(range(1, 7), range(3)):
        assert law[6 - m, r, 1] == pytest.approx(n_completions(m - 1, (r + 1) % 3) / n_completions(m, r), abs=1e-14)
    # Reference sheet 6.7, n = 8: per-position entropies; their sum is log T(8).
    law, reach, entropies = next_symbol({8: 1.0}), torch.tensor([1.0, 0, 0]).double(), []
    for j in range(8):
        p = law[j].nan_to_num(0)
        entropies.append(float(-(reach[:, None] * torch.special.xlogy(p, p)).sum()))
        reach = reach * p[:, 0] + (reach * p[:, 1]).roll(1)
    assert entropies == pytest.approx(
        [0.69313, 0.69311, 0.69294, 0.69245, 0.69022, 0.68078, 0.65042, 0.34860], abs=1e-5
    )
    assert sum(entropies) == pytest.approx(math.log(n_theorems(8)), abs=1e-12)


def test_a13_the_law_of_the_whole_table():
    """Mixed lengths: the product of the law along every string of the table is 1 over their number."""
    task = MIUStrings("language", (2, 6), 7, 0.5, balanced=False)
    inputs, law = task.split(0).all.inputs, task.law()
    latents = symbol_latents(inputs)
    answers, asked = task.answers(inputs), task._asked(inputs)
    symbol = torch.where(answers == TOKENS.index("EOS"), 2, answers)
    at = law[latents["position"].values.clamp(min=0).clamp(max=6), latents["residue"].values.clamp(min=0), symbol]
    total = torch.where(asked, at, 1.0).prod(1)
    assert total.tolist() == pytest.approx([1 / len(inputs)] * len(inputs), abs=1e-14)
    assert len(inputs) == sum(n_theorems(n) for n in range(2, 7))


# --- The tasks ------------------------------------------------------------------------------------------------------

CLASSIFY = MIUStrings("classify", (3, 7), 9, 0.6, balanced=True)
PREFIX = MIUStrings("prefix", (1, 6), 8, 0.6, balanced=False)
LANGUAGE = MIUStrings("language", (2, 6), 7, 0.6, balanced=False)
VALIDITY = MIUSteps("validity", (2, 6), 9, n_test=200)
DERIVATION = MIUSteps("derivation", (2, 5), 8, steps=3, n_test=200)
STRINGS = {"classify": CLASSIFY, "prefix": PREFIX, "language": LANGUAGE}
ALL = STRINGS | {"validity": VALIDITY, "derivation": DERIVATION}


def by_hand(task, text):
    """The answers to one rendered row where something is asked, from plain strings."""
    if task.format == "validity":
        old, new = text.removesuffix(" ?").split(" > ")
        return [int(successors(old).get(new, "R0")[1])]
    if task.format == "derivation":
        strings = text.split(" > ")
        rest = " > ".join(["", *strings[1:]]).replace(" > ", ">")[1:] if len(strings) > 1 else None
        return [] if rest is None else [TOKENS.index(s) for s in rest] + [TOKENS.index("EOS")]
    if task.format == "classify":
        return [int(is_theorem(text.removesuffix(" ?")))]
    if task.format == "prefix":
        return [text[: i + 1].count("I") % 3 for i in range(1, len(text))]
    return [TOKENS.index(symbol) for symbol in [*text[1:], "EOS"]]


@pytest.mark.parametrize("name", ALL)
def test_answers_are_those_of_plain_strings(name):
    task = ALL[name]
    batches = [task.split(0).all, task.sample(100, rng())]
    batches += list(task.slices(60, rng()).values()) if name in STRINGS else []
    for batch in batches:
        asked = torch.ones_like(batch.targets) if batch.weight is None else batch.weight
        for text, targets, weight in zip(task.render(batch.inputs), batch.targets, asked, strict=True):
            assert targets[weight > 0].tolist() == by_hand(task, text), text


@pytest.mark.parametrize("name", ALL)
def test_the_task_protocol(name):
    task = ALL[name]
    assert isinstance(task, Task)
    batch = task.sample(60, rng())
    assert batch.inputs.shape == (60, task.n_ctx)
    assert batch.inputs.max() < task.d_vocab
    assert batch.targets.max() < task.d_out
    assert batch.example.split(" ->")[0] in batch.example
    assert torch.equal(task.encode(task.decode(batch.inputs)), batch.inputs)
    assert torch.equal(task.sample(60, rng(3)).inputs, task.sample(60, rng(3)).inputs)
    assert not torch.equal(task.split(3).test_batch.inputs, task.split(4).test_batch.inputs)
    other = task.sample(60, rng(1)).inputs
    for latent in task.latents(batch.inputs):
        values = task.latents(batch.inputs)[latent].values
        assert values.min() >= -1
        assert values.max() < len(task.latents(batch.inputs)[latent].classes)
        for t in range(task.n_ctx):
            mixed = torch.cat([batch.inputs[:, : t + 1], other[:, t + 1 :]], 1)
            assert torch.equal(task.latents(mixed)[latent].values[:, : t + 1], values[:, : t + 1])
    with pytest.raises(UserError, match="accepted are"):
        task.counterfactual(batch, "residu", rng())


def test_splits_hold_out_the_same_share_of_every_length_and_label():
    for task in STRINGS.values():
        split = task.split(1)
        assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(len(split.all)))
        assert len(split.all.inputs.unique(dim=0)) == len(split.all)
        table = task.table()
        size, theorem = (table != NOTHING).sum(1), (table == 1).sum(1) % 3 != 0
        for n, label in itertools.product(range(task.lengths[0], task.lengths[1] + 1), (True, False)):
            rows = (size == n) & (theorem == label)
            if rows.any():
                assert rows[split.train].sum() == round(0.6 * int(rows.sum()))
            if task.balanced:
                assert rows.sum() == 2**n - n_theorems(n) - 1  # all non-theorems but U...U, and as many theorems


def test_no_string_without_an_i_is_ever_shown():
    for task in STRINGS.values():
        for batch in (task.split(0).all, task.sample(500, rng())):
            assert ((batch.inputs == 1).sum(1) > 0).all()
    capped = MIUStrings("classify", (3, 12), 12, 0.5, balanced=True, per_length=40)
    sizes = (capped.table() != NOTHING).sum(1).bincount()
    assert sizes[6:].tolist() == [40] * 7


def test_sampling_has_the_stated_marginals():
    """Lengths alike, a fair coin for the label, and within a label every string alike."""
    batch = CLASSIFY.sample(20000, rng())
    size = symbol_latents(batch.inputs)["position"].values[:, -1]
    # 5 lengths of 20,000: 4000 each, standard deviation 57; the coin 10,000 with 71.
    assert ((size.bincount()[3:] - 4000).abs() < 5 * 57).all()
    assert abs(int(batch.targets.sum()) - 10000) < 5 * 71
    four = batch.inputs[(size == 4) & (batch.targets[:, 0] == 1)]
    _, counts = four.unique(dim=0, return_counts=True)
    assert len(counts) == n_theorems(4)
    assert ((counts - len(four) / 11).abs() < 5 * (len(four) / 11) ** 0.5).all()


def test_latents_by_hand():
    (row,) = CLASSIFY.ask(["MIIUI"]).inputs
    found = {name: latent.values[0].tolist() for name, latent in CLASSIFY.latents(row[None]).items()}
    assert row.tolist() == [PAD] * 5 + [3, 2, 1, 1, 0, 1, 4]
    pad = [-1] * 5
    assert found["count"] == [*pad, 0, 0, 1, 2, 2, 3, 3]
    assert found["residue"] == [*pad, 0, 0, 1, 2, 2, 0, 0]
    assert found["position"] == [*pad, 0, 0, 1, 2, 3, 4, 4]
    assert found["last"] == [*pad, -1, -1, 1, 1, 0, 1, 1]
    assert found["theorem"] == [*pad, 0, 0, 1, 1, 1, 0, 0]
    assert found["doubling"] == [*pad, -1, -1, 0, 1, 1, -1, -1]
    parity = {s: rules_of(derive(s)).count("R2") % 2 for s in texts(5) if is_theorem(s)}
    for string, odd in parity.items():
        batch = CLASSIFY.ask([string])
        assert CLASSIFY.latents(batch.inputs)["doubling"].values[0, -1] == odd


@pytest.mark.parametrize("latent", ["residue", "count", "theorem", "last"])
def test_twins_differ_in_one_symbol_and_have_exact_answers(latent):
    for task in (CLASSIFY, PREFIX):
        batch = task.sample(400, rng())
        twin = task.counterfactual(batch, latent, rng(1))
        before, after = (task.latents(b.inputs)[latent].values for b in (batch, twin))
        end = batch.inputs.shape[1] - 1 if task is CLASSIFY else (batch.inputs != PAD).sum(1) - 1
        rows = torch.arange(400)
        assert (before[rows, end] != after[rows, end]).all()
        changed = (batch.inputs != twin.inputs).sum(1)
        assert (changed <= 2).all()
        assert (changed == 1).float().mean() > 0.8  # two only where there is no symbol to flip
        if latent != "theorem":
            assert (changed == 1).all()
        assert torch.equal(twin.targets, task.answers(twin.inputs))
        if latent == "theorem" and task is CLASSIFY:
            assert torch.equal(twin.targets, 1 - batch.targets)


def test_twins_of_theorems_are_theorems():
    batch = LANGUAGE.sample(300, rng())
    twin = LANGUAGE.counterfactual(batch, "residue", rng(1))
    assert all(is_theorem(text) for text in LANGUAGE.render(twin.inputs))
    assert all(
        a.count("I") % 3 != b.count("I") % 3
        for a, b in zip(LANGUAGE.render(batch.inputs), LANGUAGE.render(twin.inputs), strict=True)
    )


def test_counterfactual_steps():
    batch = VALIDITY.sample(300, rng())
    other = VALIDITY.counterfactual(batch, "rule", rng(1))
    assert torch.equal(other.targets > 0, batch.targets == 0)
    assert other.targets.tolist() == [by_hand(VALIDITY, text) for text in VALIDITY.render(other.inputs)]
    assert torch.equal(VALIDITY.latents(batch.inputs)["rule"].values[:, -1], batch.targets[:, 0])
    # Half are steps: 150, standard deviation 8.7; all four rules occur.
    assert abs(int((batch.targets > 0).sum()) - 150) < 5 * 8.7
    assert set(batch.targets.flatten().tolist()) == {0, 1, 2, 3, 4}
    batch = DERIVATION.sample(200, rng())
    rules = DERIVATION.latents(batch.inputs)["rule"].values
    for text, row in zip(DERIVATION.render(batch.inputs), rules.tolist(), strict=True):
        assert [r for r in row if r >= 0] == [int(r[1]) for r in rules_of(text.split(" > "))[:-1]]
    old = DERIVATION.decode(batch.inputs)[:, 0]
    new = DERIVATION.decode(DERIVATION.counterfactual(batch, "residue", rng(1)).inputs)[:, 0]
    assert ((old == 1).sum(1) % 3 + (new == 1).sum(1) % 3 == 3).all()


def test_the_entropy_of_derivations_is_the_log_of_the_choices():
    batch = DERIVATION.sample(100, rng())
    for text, entropy in zip(DERIVATION.render(batch.inputs), DERIVATION.entropy(batch.inputs).tolist(), strict=True):
        choices = [len([n for n in successors(s) if len(n) <= 9]) for s in text.split(" > ")[: DERIVATION.steps]]
        assert entropy == pytest.approx(sum(math.log(max(c, 1)) for c in choices), abs=1e-12)


def test_shuffled_labels_keep_their_number():
    shuffled = MIUStrings("classify", (3, 7), 9, 0.6, balanced=True, labels="shuffled")
    a, b = CLASSIFY.split(0).all, shuffled.split(5).all
    assert torch.equal(a.inputs, b.inputs)
    assert a.targets.sum() == b.targets.sum()
    # Balanced labels agree on half of the 144 rows by chance, standard deviation 6.
    assert abs(int((a.targets == b.targets).sum()) - len(a) / 2) < 5 * 6


# --- Bad input ------------------------------------------------------------------------------------------------------


def test_a_proof_of_mu_is_impossible_and_says_why():
    for prove in (derive, shortest_derivation):
        with pytest.raises(UserError, match=r"no derivation of MU, and there cannot be one.*0 I's.*never 0"):
            prove("MU")
        with pytest.raises(UserError, match=r"MIII.*3 I's.*doubles it \(R2\)"):
            prove("MIII")
        with pytest.raises(UserError, match="not M followed"):
            prove("IM")
    assert why_not("MIIU") == ""
    with pytest.raises(UserError, match="more than 4 rules"):
        shortest_derivation("MUUI", max_steps=4)
    with pytest.raises(UserError, match="MU does not follow from MI"):
        rules_of(["MI", "MU"])


def test_foreign_symbols_and_long_strings_are_told():
    for ask in (is_theorem, derive, lambda s: CLASSIFY.ask([s])):
        with pytest.raises(UserError, match="'X' at place 2: accepted symbols are M, I, U"):
            ask("MIXU")
    with pytest.raises(UserError, match="has 10 symbols after the M; this context holds 9"):
        CLASSIFY.ask(["M" + "I" * 10])
    with pytest.raises(UserError, match="does not begin with M"):
        CLASSIFY.ask(["IM"])
    with pytest.raises(UserError, match="without an M"):
        CLASSIFY.ask(["MIM"])


MISTAKES = [
    ({"format": "clasify"}, 'did you mean "classify"'),
    ({"lengths": (3, 17), "longest": 17}, "from 1 to 16"),
    ({"lengths": (5, 3)}, "shortest and longest"),
    ({"longest": 6}, "must hold lengths up to 7"),
    ({"frac_train": 1.0}, r"outside \(0, 1\)"),
    ({"frac_train": 0.0001}, "leaves the train or the test set empty"),
    ({"lengths": (2, 7)}, "take lengths from 3 on"),
    ({"format": "language"}, "the language has none"),
    ({"format": "prefix", "labels": "shuffled"}, "only the answers of classify"),
    ({"per_length": 1}, "per_length=1"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_wrong_setting_is_explained(change, message):
    settings = {"format": "classify", "lengths": (3, 7), "longest": 9, "frac_train": 0.6, "balanced": True}
    with pytest.raises(UserError, match=message):
        MIUStrings(**(settings | change))


def test_wrong_settings_of_steps_are_explained():
    with pytest.raises(UserError, match="R1 has no room after 6"):
        MIUSteps("validity", (2, 6), 6)
    with pytest.raises(UserError, match="validity asks about one step"):
        MIUSteps("validity", (2, 6), 9, steps=2)
    with pytest.raises(UserError, match="has no next-token law"):
        CLASSIFY.law()
    with pytest.raises(UserError, match="non-theorems need at least 3"):
        draw(torch.tensor([2]), 4, rng(), torch.tensor([False]))


# --- The recogniser -------------------------------------------------------------------------------------------------

KNOWN = {"classify": miu_recogniser(CLASSIFY), "prefix": miu_recogniser(PREFIX)}


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
def test_the_recogniser_is_exact_on_everything_that_fits(name):
    known, task = KNOWN[name], STRINGS[name]
    every = to_symbols([s[1:] for n in range(1, 10 if name == "classify" else 9) for s in texts(n)], task.longest)
    inputs = task.encode(every)
    logits, right = known.model(inputs, read=task.read), task.answers(inputs)
    asked = task._asked(inputs)
    exact = torch.nn.functional.one_hot(right, task.d_out).double()
    assert (logits - exact)[asked].abs().max() < 1e-12
    assert len(every) == 2 ** (task.longest + 1) - 2
    _, cache = known.model.run_with_cache(inputs)
    for variable, v in known.truth.variables.items():
        values = task.latents(inputs)[v.latent].values
        at = (slice(None), list(v.positions)) if v.positions else (inputs <= 1)
        expected = values[at] if v.numerical else torch.nn.functional.one_hot(values[at], len(v.values))
        coefficients = v.coefficients(cache[v.site])[at]
        if variable == "count":
            coefficients, expected = coefficients[..., 0], values[at]
        assert (coefficients - expected).abs().max() < 1e-12


def test_the_circuit_of_the_recogniser_is_count_then_read():
    circuit = KNOWN["classify"].truth.circuit
    path = {("tok", "a0.0.v"), ("a0.0", "m0"), ("m0", "out")}
    assert all(c.matters == c.minimal == path for c in circuit.values())
    with pytest.raises(UserError, match="classify and prefix"):
        miu_recogniser(LANGUAGE)


# --- The measures ---------------------------------------------------------------------------------------------------


def snap(model, task):
    return Snapshot(0, model, task, task.split(0))


def values(labelled):
    return labelled.values.tolist()


@pytest.mark.parametrize("name", KNOWN)
def test_the_planted_code_is_found(name):
    s = snap(KNOWN[name].model, STRINGS[name])
    code = ResidueCode(3, site="mlp_out")(s)
    for number in ("residue_share", "count_share", "polygon", "probe_accuracy"):
        assert code[number] == pytest.approx(1, abs=1e-9), number
    assert code["code_r2"] > 0.9999
    for shares in ("period_share", "logit_period_share"):
        period = dict(zip((2, 3, 4, 5, 6, 7), values(code[shares]), strict=True))
        assert period.pop(3) == pytest.approx(1, abs=1e-9)
        assert max(period.values()) < 0.8
    # By tokens alone a line in each I cannot tell the residue much better than its commonest value.
    assert code["input_accuracy"] < code["majority"] + 0.15
    # Few counts mean that residues mod 4 are nearly counts; they are told apart less well all the same.
    wrong = ResidueCode(4, site="mlp_out")(s)
    assert wrong["residue_share"] < 0.9
    assert wrong["code_r2"] < 0.9
    steering = ResidueSteering(3)(s)
    assert steering["turned_accuracy"] == 1
    assert steering["turned_accuracy"] > steering["unturned_accuracy"] + 0.5
    belief = TheoremBelief()(s)
    assert (belief["slice_accuracy"].values[:-1] == 1).all() if name == "classify" else True
    p = belief["p_theorem"].values
    assert p[:4].max() < 0.5 < p[4:].min()
    assert np.nanmin(belief["length_accuracy"].values) == 1
    twins = TwinSensitivity(50)(s)
    assert (twins["twin_accuracy"].values == 1).all()


def test_the_losses_of_the_planted_code():
    """Logits 1 and 0: restricted = full loss log(1 + 1/e); excluded that of the mean logits, balanced labels: log 2."""
    s = snap(KNOWN["classify"].model, CLASSIFY)
    losses = ResidueLosses(3)(s)
    full = math.log(1 + math.exp(-1))
    assert losses["restricted_loss"] == pytest.approx(full, abs=1e-12)
    assert losses["restricted_test_loss"] == pytest.approx(full, abs=1e-12)
    assert losses["excluded_loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert losses["shuffled_excluded_loss"] < full + 0.02
    assert ResidueLosses(4)(s)["restricted_loss"] > full + 0.05


def test_a_table_of_the_training_strings_is_not_a_code():
    """Logits right on the training strings and coins elsewhere: excluded loss stays low, restricted near log 2."""
    task = MIUStrings("classify", (8, 8), 8, 0.1, balanced=True)
    s = snap(KNOWN["classify"].model, task)
    targets = s.batch.targets[:, 0]
    guess = torch.where(torch.randint(2, targets.shape, generator=rng()).bool(), 1, -1).double()
    guess[s.split.train] = (2 * targets - 1)[s.split.train].double()
    s.__dict__["logits"] = torch.stack([-3 * guess, 3 * guess], 1)[:, None] / 2
    losses = ResidueLosses(3)(s)
    assert losses["excluded_loss"] < 0.2
    assert losses["restricted_test_loss"] > 0.5


@pytest.mark.parametrize("name", KNOWN)
def test_measures_do_not_see_a_rotation(name):
    plain, turned = (snap(k.model, STRINGS[name]) for k in (KNOWN[name], rotated(KNOWN[name], 0)))
    for measure in (ResidueCode(3), ResidueLosses(3), CountingHeads(), TheoremBelief(n=20)):
        a, b = measure(plain), measure(turned)
        for key, value in a.items():
            if key == "plane":  # only the signs of its axes are arbitrary
                assert np.allclose(abs(value.values), abs(b[key].values), atol=1e-6, equal_nan=True)
            elif isinstance(value, float):
                assert value == pytest.approx(b[key], abs=1e-6), key
            else:
                assert np.allclose(value.values, b[key].values, atol=1e-6, equal_nan=True)


def test_untrained_weights_have_no_code():
    for seed in range(3):
        s = snap(random_weights(KNOWN["classify"], seed).model, CLASSIFY)
        code = ResidueCode(3)(s)
        assert code["code_r2"] < 0.2
        assert code["residue_share"] < 0.2
        losses = ResidueLosses(3)(s)
        assert abs(losses["excluded_loss"] - losses["shuffled_excluded_loss"]) < 0.02
        steering = ResidueSteering(3)(s)
        assert steering["turned_accuracy"] < 0.9


def test_any_counter_and_any_modulus():
    """Parity of bits is a code at p = 2 and none at p = 3; a polygon of two points has one side."""
    known = bit_function(8, "parity")
    s = snap(known.model, known.task)
    code = ResidueCode(2, site="mlp_out")(s)
    assert code["residue_share"] == pytest.approx(1)
    assert values(code["period_share"])[0] == pytest.approx(1)
    assert ResidueCode(3, site="mlp_out")(s)["residue_share"] < 0.3
    assert ResidueSteering(2)(s)["turned_accuracy"] == 1


def test_period_shares_of_planted_waves():
    c = torch.arange(12).double()
    for q in (2, 3, 4, 5, 6, 7):
        means = torch.stack([(2 * math.pi * c / q + 0.3).cos() + 5 * c, 2 * c - 1], 1)
        shares = period_shares(means, torch.ones(12).double())
        assert shares[q - 2] == pytest.approx(1, abs=1e-9)
        assert shares.argmax() == q - 2
    assert period_shares(torch.stack([c, -c], 1), torch.ones(12).double()).isnan().all()  # nothing but a line


def test_triangles():
    angle = 2 * math.pi * torch.arange(3).double() / 3
    assert triangle(torch.stack([angle.cos(), angle.sin()], 1)) == pytest.approx(1)
    assert triangle(torch.tensor([[0.0, 0], [1, 0], [2, 0]])) == pytest.approx(0.5)
    assert math.isnan(triangle(torch.ones(3, 2)))


def test_counting_heads_by_hand():
    """Even attention has evenness 1; one that looks at a single symbol 0. Entropies as in interp/attention.py."""
    s = snap(KNOWN["classify"].model, CLASSIFY)
    found = CountingHeads()(s)
    assert values(found["evenness"]) == [[pytest.approx(1)]]
    assert values(found["copies_count"]) == [[pytest.approx(1)]]
    share = (symbol_latents(s.batch.inputs)["position"].values[:, -1].double() / CLASSIFY.n_ctx).mean()
    assert values(found["on_symbols"]) == [[pytest.approx(float(share))]]
    pattern = s.site("pattern", 0)
    assert attention_entropy(pattern).item() == pytest.approx(math.log(CLASSIFY.n_ctx))


def test_measures_say_what_they_need():
    s = snap(KNOWN["classify"].model, CLASSIFY)
    with pytest.raises(UserError, match="it has count, residue"):
        ResidueCode(3, count="cuont")(s)
    with pytest.raises(UserError, match="accepted are resid_post, mlp_out"):
        ResidueCode(3, site="mlp")
    with pytest.raises(UserError, match="at least 2"):
        ResidueLosses(1)
    with pytest.raises(UserError, match="says nothing mod p"):
        ResidueCode(9)(s)
    parity = bit_function(6, "parity")
    with pytest.raises(UserError, match="MIUStrings does"):
        TheoremBelief()(snap(parity.model, parity.task))
    with pytest.raises(UserError, match="layer=3"):
        ResidueSteering(3, layer=3)(s)


def test_measures_fit_trained_and_two_layer_models():
    model = spec(n_layers=2, dtype="float32").build(PREFIX, rng())
    s = snap(model, PREFIX)
    assert ResidueSteering(3, layer=0)(s).keys() == ResidueSteering(3)(s).keys()
    assert CountingHeads()(s)["evenness"].values.shape == (2, 3)
    assert ResidueCode(3)(s)["plane"].values.shape[1] == 2
