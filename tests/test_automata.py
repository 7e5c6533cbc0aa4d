"""Automata against plain Python, their monoids against theory, and languages against rules written another way."""

import dataclasses
import math
import re
from itertools import permutations, product

import pytest
import torch
from cases.models import rng

from toylab.data import Task
from toylab.errors import UserError
from toylab.tasks.automata import CATALOGUE, Automaton, StateTracking, named
from toylab.tasks.languages import (
    AssociativeRecall,
    Counter,
    Dyck,
    FlipFlopLanguage,
    Histogram,
    Majority,
)
from toylab.tasks.monoid import analyse, minimise, transition_monoid
from toylab.tasks.regex import compile_regex

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


# --- every automaton of the catalogue, by a rule that shares nothing with its table -----------------------------------


def shuffled_row(n, word):
    row = list(range(1, n + 1))
    for a in word:
        row = {"e": row, "shift": row[1:] + row[:1], "swap": row[1::-1] + row[2:]}[a]
    return "".join(map(str, row))


def three_cycles(n, word):
    row = list(range(1, n + 1))
    for a in word:
        if a != "e":
            x = int(a[2:]) - 1
            row[0], row[1], row[x] = row[x], row[0], row[1]
    return "".join(map(str, row))


def walls(n, word):
    place = 0
    for a in word:
        place += 1 if a == "R" else -1
        place = 0 if place < 0 else n - 1 if place == n else place
    return str(place)


def reset_row(n, word):
    for i in range(len(word) - 1, -1, -1):
        if word[i][0] == "=":
            order, tail = [int(c) for c in word[i][1:]], word[i + 1 :]
            return "".join(str(order[int(c) - 1]) for c in shuffled_row(n, tail))
    return shuffled_row(n, word)


def added(k, word):
    """The digit and carry of the sum of k numbers whose binary digits, lowest first, are the letters."""
    total = sum(sum(map(int, letter)) << i for i, letter in enumerate(word))
    n = len(word)
    return f"{total >> (n - 1) & 1}{total >> n}" if n else "00"


def turned(n, word):
    """A rotation by i of a mirrored or unmirrored ring, as a matrix product of its steps."""
    place, direction = 0, 1
    for a in word:
        place, direction = (place, -direction) if a == "0" else (place + direction, direction)
    return f"{int(direction < 0)}{place % n}"


def quaternions(word):
    """By 2 x 2 complex matrices."""
    one, i, j = torch.eye(2).cfloat(), torch.tensor([[1j, 0], [0, -1j]]), torch.tensor([[0, 1], [-1, 0]]).cfloat()
    units = {"1": one, "i": i, "j": j, "k": i @ j}
    q = one
    for a in word:
        q = q @ units[a]
    return next(s + u for s in "+-" for u, m in units.items() if torch.allclose(q, m if s == "+" else -m))


def brackets(depth, word):
    """Remove pairs () [] from the word as long as there are any; every prefix must leave opening ones only."""
    for end in range(len(word) + 1):
        left, old = "".join(word[:end]), None
        while left != old:
            old, left = left, left.replace("()", "").replace("[]", "")
        if set(left) - set("([") or len(left) > depth:
            return "fail"
    return left


def accepted(pattern):
    return lambda word: re.fullmatch(pattern, "".join(word)) is not None


def no_odd_ones_before_odd_zeros(word):
    return all(len(a) % 2 == 0 or len(b) % 2 == 0 for a, b in re.findall(r"(?<!1)(1+)(0+)(?!0)", "".join(word)))


STATES = {
    "parity": lambda w: str(w.count("1") % 2),
    "cyclic 5": lambda w: str(sum(map(int, w)) % 5),
    "cycle 5": lambda w: str((w.count("+1") - w.count("-1")) % 5),
    "miu": lambda w: str(w.count("I") % 3),
    "gridworld 3": lambda w: walls(3, w),
    "gridworld 9": lambda w: walls(9, w),
    "flip-flop 2": lambda w: ([a for a in w if a != "0"] or ["0"])[-1],
    "adder 2": lambda w: added(2, w),
    "adder 3": lambda w: added(3, w),
    "dihedral 4": lambda w: turned(4, w),
    "quaternion": quaternions,
    "symmetric 3": lambda w: shuffled_row(3, w),
    "symmetric 5": lambda w: shuffled_row(5, w),
    "alternating 5": lambda w: three_cycles(5, w),
    "permutation-reset 3": lambda w: reset_row(3, w),
    "dyck 2 3": lambda w: brackets(3, w),
    "dyck 1 2": lambda w: brackets(2, w),
}
ACCEPTED = {
    "abab": accepted("(0101)*"),
    "even-pairs": lambda w: w.count("0") == 0 or w[0] == w[-1] if w else True,
    "tomita 1": accepted("1*"),
    "tomita 2": accepted("(10)*"),
    "tomita 3": no_odd_ones_before_odd_zeros,
    "tomita 4": lambda w: "000" not in "".join(w),
    "tomita 5": lambda w: w.count("0") % 2 == w.count("1") % 2 == 0,
    "tomita 6": lambda w: (w.count("0") - w.count("1")) % 3 == 0,
    "tomita 7": accepted("0*1*0*1*"),
    "dyck 2 3": lambda w: brackets(3, w) == "",
    "/(0101)*/": accepted("(0101)*"),
    "/(a|b)*abb?/": accepted("(a|b)*abb?"),
    "/a+(b|ca)*/": accepted("a+(b|ca)*"),
}


def words_of(machine, limit=2**12):
    """All words of the longest length up to 12 of which there are not too many, and 300 random ones of length 12."""
    n = len(machine.letters)
    length = min(12, int(math.log(limit, n)) if n > 1 else 12)
    every = torch.cartesian_prod(*[torch.arange(n)] * length).view(-1, length)
    return [every] + ([] if length == 12 else [torch.randint(n, (300, 12), generator=rng())])


def check_rule(name, rule, answer):
    """The rule on every prefix of every word (each distinct prefix once)."""
    machine = named(name)
    for words in words_of(machine):
        states = machine.run(words)
        for t in range(words.shape[1]):
            short, at = words[:, : t + 1].unique(dim=0, return_inverse=True)
            first = torch.full((len(short),), len(words)).scatter_reduce(0, at, torch.arange(len(words)), "amin")
            for word, q in zip(short.tolist(), states[first, t].tolist(), strict=True):
                assert answer(machine, q) == rule([machine.letters[a] for a in word]), (name, word)


@pytest.mark.parametrize("name", STATES)
def test_states_are_those_of_plain_python(name):
    check_rule(name, STATES[name], lambda machine, q: machine.states[q])


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_words_are_those_of_plain_python(name):
    check_rule(name, ACCEPTED[name], lambda machine, q: bool(machine.accepts[q]))
    assert bool(named(name).accepts[named(name).start]) == ACCEPTED[name]([])


def test_every_entry_of_the_catalogue_is_checked_by_a_rule():
    assert {name.split()[0] for name in [*STATES, *ACCEPTED] if name[0] != "/"} == set(CATALOGUE)


@pytest.mark.parametrize("name", ["parity", "gridworld 4", "dyck 2 2", "alternating 4", "flip-flop 3"])
def test_composing_maps_pairwise_gives_the_states_and_the_map_of_every_prefix(name):
    machine = named(name)
    inputs = torch.randint(len(machine.letters), (20, 13), generator=rng())
    maps = machine.prefix_maps(inputs)
    assert torch.equal(maps[..., machine.start], machine.run(inputs))
    for q in range(len(machine.states)):
        assert torch.equal(maps[..., q], dataclasses.replace(machine, start=q).run(inputs))


# --- algebra ---------------------------------------------------------------------------------------------------------

# (monoid size, group, aperiodic, solvable): reference sheet 7.1 and 7.4, computed there, and group theory.
ALGEBRA = {
    "parity": (2, True, False, True),
    "cyclic 3": (3, True, False, True),
    "cyclic 5": (5, True, False, True),
    "gridworld 3": (8, False, True, True),
    "gridworld 4": (18, False, True, True),
    "gridworld 5": (35, False, True, True),
    "gridworld 9": (213, False, True, True),
    "flip-flop 2": (3, False, True, True),
    "flip-flop 3": (4, False, True, True),
    "abab": (10, False, False, True),
    "adder 2": (8, False, True, True),
    "dihedral 3": (6, True, False, True),
    "dihedral 4": (8, True, False, True),
    "quaternion": (8, True, False, True),
    "symmetric 3": (6, True, False, True),
    "symmetric 4": (24, True, False, True),
    "symmetric 5": (120, True, False, False),
    "alternating 5": (60, True, False, False),
    "miu": (3, True, False, True),
    "tomita 1": (2, False, True, True),
    "tomita 2": (6, False, True, True),
    "tomita 3": (26, False, False, True),
    "tomita 4": (12, False, True, True),
    "tomita 5": (4, True, False, True),
    "tomita 6": (3, True, False, True),
    "tomita 7": (9, False, True, True),
    "dyck 1 1": (6, False, True, True),
    "dyck 1 2": (15, False, True, True),
    "dyck 1 3": (31, False, True, True),
    "dyck 1 5": (92, False, True, True),
    "/(aa)*/": (2, True, False, True),
    "/(ab)*/": (6, False, True, True),
    "/(abab)*/": (10, False, False, True),
}
MINIMAL = {"tomita 1": 2, "tomita 2": 3, "tomita 3": 5, "tomita 4": 4, "tomita 5": 4, "tomita 6": 3, "tomita 7": 5,
           "/(aa)*/": 2, "/(ab)*/": 3, "/(abab)*/": 5, "dyck 1 1": 3, "dyck 1 2": 4, "dyck 1 3": 5}  # fmt: skip


@pytest.mark.parametrize("name", ALGEBRA)
def test_a14_monoid_sizes_and_kinds(name):
    assert dataclasses.astuple(named(name).algebra()) == ALGEBRA[name]


@pytest.mark.parametrize("name", MINIMAL)
def test_a14_minimal_automata(name):
    machine = named(name).minimal()
    assert len(machine.states) == MINIMAL[name]
    words = torch.randint(len(machine.letters), (300, 11), generator=rng())
    assert torch.equal(machine.accepts[machine.run(words)], named(name).accepts[named(name).run(words)])


def test_a_group_of_permutations_beside_resets_is_found_in_the_monoid():
    """S5 and all constant maps: 240 elements, no group as a whole, not solvable because of the S5 inside."""
    assert dataclasses.astuple(named("permutation-reset 5").algebra()) == (240, False, False, False)


def test_the_monoid_by_brute_force():
    """All words up to a length from which nothing new appears."""
    table = named("tomita 3").delta
    maps = {tuple(range(5))}
    for length in range(1, 9):
        for word in product(range(2), repeat=length):
            states = list(range(5))
            for a in word:
                states = [int(table[q, a]) for q in states]
            maps.add(tuple(states))
    assert set(map(tuple, transition_monoid(table).tolist())) == maps


def test_minimising_drops_the_unreachable_and_merges_the_equivalent():
    table = torch.tensor([[1, 2], [0, 3], [3, 0], [2, 1], [4, 0]])  # parity twice over, and state 4 from nowhere
    small, start, outputs = minimise(table, 0, torch.tensor([1, 0, 0, 1, 1]))
    assert len(small) == 2
    assert outputs[start] == 1
    assert analyse(small).size == 2


def test_random_expressions_agree_with_the_standard_library():
    g = rng(5)
    pieces = ["a", "b", "(ab)", "(a|ba)", "a*", "(b|aa)+", "b?", "(a(ba)*|b)*"]
    words = ["".join(w) for n in range(7) for w in product("ab", repeat=n)]
    for _ in range(15):
        text = "ab?" + "".join(pieces[i] for i in torch.randint(len(pieces), (3,), generator=g).tolist())
        letters, table, start, accepting = compile_regex(text)
        for word in words:
            q = start
            for c in word:
                q = table[q][letters.index(c)]
            assert (q in accepting) == bool(re.fullmatch(text, word)), (text, word)


# --- the law of the rows ---------------------------------------------------------------------------------------------


def test_state_law_and_baselines_by_enumeration():
    task = StateTracking("gridworld 4", 6, target="parity", probs=(0.3, 0.7))
    words = torch.cartesian_prod(*[torch.arange(2)] * 6)
    chance = torch.tensor([0.3, 0.7]).double()[words].prod(1)
    states = task.machine.run(words)
    law = torch.stack([torch.zeros(4).double().index_add_(0, column, chance) for column in states.T])
    torch.testing.assert_close(task.state_law(), law)
    answers = task.answers(words)
    best = {"majority": 0.0, "last letter": 0.0}
    for t in range(6):
        one = [[chance[(answers[:, t] == c) & (words[:, t] == a)].sum() for c in range(2)] for a in range(2)]
        table = torch.tensor(one)
        best["majority"] += float(table.sum(0).max()) / 6
        best["last letter"] += float(table.max(1).values.sum()) / 6
    assert task.baselines() == pytest.approx(best)
    assert StateTracking("parity", 10).baselines() == pytest.approx({"majority": 0.5, "last letter": 0.55})


def test_letters_come_as_often_as_stated():
    task = StateTracking("flip-flop 3", 50)
    n = 1000 * 50
    found = task.sample(1000, rng()).inputs.flatten().bincount() / n
    expected = torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_accepted_words_are_accepted_and_all_alike():
    """Dyck words of length 6 and depth up to 2: ()()() ()(()) (())() (()()) and not ((())), a quarter each."""
    task = StateTracking("dyck 1 2", 6, target="accept", positive=1.0)
    batch = task.sample(4000, rng())
    assert (batch.targets[:, -1] == 1).all()
    counts = batch.inputs.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 5 * (4000 * 3 / 16) ** 0.5
    half = StateTracking("abab", 12, target="accept", positive=0.5).sample(2000, rng())
    assert abs(half.targets[:, -1].double().mean() - 0.5) < 5 * 0.5 / 2000**0.5 + 2**-9


def test_accepted_words_of_unequal_letters_follow_the_conditional_law():
    task = StateTracking("/(0|11)*/", 4, target="accept", positive=1.0, probs=(0.8, 0.2))
    found, counts = task.sample(6000, rng()).inputs.unique(dim=0, return_counts=True)
    chance = 0.8 ** (found == 0).sum(1) * 0.2 ** (found == 1).sum(1)
    expected = chance / chance.sum()
    assert len(found) == 5
    assert ((counts / 6000 - expected).abs() < 5 * (expected / 6000).sqrt()).all()


# --- the protocol, for automata and languages -------------------------------------------------------------------------


def same(a, b):
    weights = (a.weight is None) == (b.weight is None) and (a.weight is None or torch.equal(a.weight, b.weight))
    return weights and torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def by_states(task, row):
    q, out = task.machine.start, []
    for a in row:
        q = task.machine.table[q][a]
        out.append(task.machine.answers[task.target][0][q].item())
    return out


def by_stack(task, row):
    kinds, out, open_ = "([{<"[: task.k], [], []
    for token in row:
        kind, closes = divmod(token, 2)
        if closes:
            last = len(open_) - 1 - open_[::-1].index(kind) if task.shuffled else len(open_) - 1
            assert open_.pop(last) == kind
        else:
            open_.append(kind)
        assert len(open_) <= (task.max_depth or 99)
        out.append(sum(2**k for k in set(open_)) if task.shuffled else (open_[-1] + 1 if open_ else 0))
    assert kinds
    return out


def by_counting(task, row):
    n = row.index(1) if 1 in row else len(row)
    word = ([letter for letter in range(task.k) for _ in range(n)] + [task.k] * 99)[: len(row) + 1]
    assert row == word[:-1]
    return [word[t + 1] if n <= t < task.k * n else None for t in range(len(row))]


def by_majority(task, row):
    return [1 + (2 * sum(row[: t + 1]) > t + 1) - (2 * sum(row[: t + 1]) < t + 1) for t in range(len(row))]


def by_histogram(task, row):
    return [(row[: t + 1] if task.causal else row).count(x) - 1 for t, x in enumerate(row)]


def by_recall(task, row):
    n = 2 * task.n_pairs
    pairs = dict(zip(row[:n:2], row[1:n:2], strict=True))
    assert len(pairs) == task.n_pairs
    return [pairs[key] - task.n_keys for key in row[n:]]


def by_reading(task, row):
    bit, out = None, []
    for t, token in enumerate(row):
        if t % 2 and row[t - 1] == 0:
            bit = token
        assert not (t % 2 and row[t - 1] == 1 and token != bit)
        out.append(bit if token == 1 and t % 2 == 0 else None)
    return out


TASKS = [
    pytest.param(StateTracking("parity", 8, n_test=30), by_states, "state", id="parity"),
    pytest.param(StateTracking("gridworld 4", 8, "boundary", max_length=12, n_test=30), by_states, "parity", id="grid"),
    pytest.param(StateTracking("tomita 3", 9, "accept", positive=0.5, n_test=30), by_states, "state", id="tomita 3"),
    pytest.param(Dyck(3, 12, False, 0.5, n_test=30), by_stack, "open", id="dyck"),
    pytest.param(Dyck(2, 12, False, 0.6, max_depth=3, n_test=30), by_stack, "open", id="bounded dyck"),
    pytest.param(Dyck(3, 12, True, 0.5, n_test=30), by_stack, "open", id="shuffled dyck"),
    pytest.param(Counter(3, 1, 4, 5, n_test=30), by_counting, "left", id="a^n b^n c^n"),
    pytest.param(Majority(9, 0.4, n_test=30), by_majority, "majority", id="majority"),
    pytest.param(Histogram(4, 7, True, n_test=30), by_histogram, "so far", id="histogram so far"),
    pytest.param(Histogram(4, 7, False, n_test=30), by_histogram, "in all", id="histogram in all"),
    pytest.param(AssociativeRecall(6, 4, 3, 2, n_test=30), by_recall, "answer", id="associative recall"),
    pytest.param(FlipFlopLanguage(12, 0.5, n_test=30), by_reading, "state", id="flip-flop language"),
]
tasks = pytest.mark.parametrize(("task", "by_hand", "latent"), TASKS)


def check_targets(task, by_hand, batch):
    weight = torch.ones_like(batch.targets) if batch.weight is None else batch.weight
    for row, targets, weights in zip(batch.inputs.tolist(), batch.targets.tolist(), weight.tolist(), strict=True):
        for known, target, w in zip(by_hand(task, row), targets, weights, strict=True):
            assert w == 0 or known == target


@tasks
def test_shapes_targets_and_seeds(task, by_hand, latent):
    assert isinstance(task, Task)
    batch = task.sample(200, rng())
    assert batch.inputs.shape[1] <= task.n_ctx
    assert 0 <= batch.inputs.min() <= batch.inputs.max() < task.d_vocab
    assert 0 <= batch.targets.min() <= batch.targets.max() < task.d_out
    check_targets(task, by_hand, batch)
    asked = [[known is not None for known in by_hand(task, row)] for row in batch.inputs.tolist()]
    weight = torch.ones_like(batch.targets) if batch.weight is None else batch.weight
    assert torch.equal(weight > 0, torch.tensor(asked))
    split = task.split(3)
    assert (split.train, len(split.test)) == (None, task.n_test)
    assert same(split.all, task.split(3).all)
    assert not same(split.all, task.split(4).all)
    assert len(task.render(batch.inputs[:0])) == 0
    assert task.render(batch.inputs[:1])[0]
    assert batch.example


@tasks
def test_latents_have_their_classes_and_know_only_the_past(task, by_hand, latent):
    inputs = task.sample(100, rng()).inputs
    other = task.sample(100, rng(1)).inputs
    nested = isinstance(task, Dyck)  # a spliced row is not well formed; a prefix is
    for name, found in task.latents(inputs).items():
        assert found.values.shape == inputs.shape
        assert -1 <= found.values.min() <= found.values.max() < len(found.classes)
        for t in range(inputs.shape[1]):
            rows = inputs[:, : t + 1] if nested else torch.cat([inputs[:, : t + 1], other[:, t + 1 :]], 1)
            assert torch.equal(task.latents(rows)[name].values[:, : t + 1], found.values[:, : t + 1]), (name, t)


@tasks
def test_counterfactuals_change_the_latent_in_every_row_and_stay_in_the_world(task, by_hand, latent):
    batch = task.sample(200, rng())
    new = task.counterfactual(batch, latent, rng(1))
    changed = task.latents(batch.inputs)[latent].values != task.latents(new.inputs)[latent].values
    assert changed.any(1).all()
    check_targets(task, by_hand, new)
    assert same(new, task.counterfactual(batch, latent, rng(1)))
    if isinstance(task, StateTracking | Majority | Histogram | AssociativeRecall):
        assert ((batch.inputs != new.inputs).sum(1) == 1).all()
    with pytest.raises(UserError, match="accepted are"):
        task.counterfactual(batch, "wether", rng())


def test_flip_flops_come_as_stated_and_gaps_are_geometric():
    task = FlipFlopLanguage(400, 0.8)
    batch = task.sample(500, rng())
    inner = batch.inputs[:, ::2][:, 1:-1]
    share, n = inner.flatten().bincount() / inner.numel(), inner.numel()
    expected = torch.tensor([0.1, 0.1, 0.8])
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()
    # At the last instruction, far from the start: P(gap >= g) = .9^(g - 1), as the read itself is no write.
    gap = task.gaps(batch.inputs)[:, -1].double()
    assert (gap >= 1).all()
    assert abs(gap.mean() - 10) < 5 * 90**0.5 / 500**0.5
    assert same(batch, task.batch_of(torch.cat([batch.inputs, batch.targets[:, -1:]], 1)))


# --- bad input -------------------------------------------------------------------------------------------------------

MISTAKES = [
    (lambda: Automaton(("a", "b"), ("p", "q"), 0, ((0, 1), (1,))), "not total: state 'q', letter 'b' leads to None"),
    (lambda: Automaton(("a",), ("p", "q"), 0, ((1,), (2,))), "not total: state 'q', letter 'a' leads to 2"),
    (lambda: Automaton(("a",), ("p", "q"), 0, ((1,),)), "1 rows for 2 states"),
    (lambda: Automaton(("a",), ("p",), 1, ((0,),)), "start=1: states are 0 to 0"),
    (lambda: StateTracking("cyclc 5", 4), 'did you mean "cyclic"'),
    (lambda: StateTracking("cyclic", 4), "cyclic takes 1 sizes.*'cyclic 5'"),
    (lambda: StateTracking("tomita 8", 4), "1 to 7"),
    (lambda: StateTracking("symmetric 9", 4), "2 to 6 objects"),
    (lambda: StateTracking("/(ab/", 4), r'"\(" without "\)" at character 4'),
    (lambda: StateTracking("/a)b/", 4), r'"\)" without "\("'),
    (lambda: StateTracking("/|*a/", 4), r'nothing before "\*"'),
    (lambda: StateTracking("/()/", 4), "has no letters"),
    (lambda: StateTracking("abab", 22, positive=0.5), "no word of length 22; it does of 16, 20, 24"),
    (lambda: StateTracking(Automaton(("a",), ("p", "q"), 0, ((0,), (1,)), (1,)), 4, positive=0.5), "language is empty"),
    (lambda: StateTracking("parity", 4, positive=0.5), "no accepting states"),
    (lambda: StateTracking("parity", 20, max_length=10), "length=20 is beyond the context, max_length=10"),
    (lambda: StateTracking("parity", 4, probs=(0.5, 0.6)), "they add up to 1.1"),
    (lambda: StateTracking("gridworld 4", 4, target="accept"), "accepted are state, parity, boundary"),
    (lambda: Dyck(2, 20, False, 0.5, max_length=10), "beyond the context"),
    (lambda: Dyck(2, 4, False, 0.5).answers(torch.tensor([[0, 1, 1, 0]])), "position 2 closes what was never opened"),
    (lambda: Counter(3, 1, 9, 8), "n_max=9 is beyond the context, n_context=8"),
    (lambda: Majority(20, 0.5, max_length=10), "beyond the context"),
    (lambda: AssociativeRecall(3, 3, 4, 1), "n_pairs=4: 1 to n_keys=3"),
    (lambda: FlipFlopLanguage(7, 0.8), "length=7: even"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_mistake_is_explained(make, message):
    with pytest.raises(UserError, match=re.compile(message)):
        make()


def test_orders_of_the_alternating_automaton_are_the_even_ones():
    even = {p for p in permutations("12345") if sum(a > b for i, a in enumerate(p) for b in p[i:]) % 2 == 0}
    assert set(named("alternating 5").states) == {"".join(p) for p in even}
