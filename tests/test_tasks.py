"""Every task keeps the protocol, and its answers are those of plain Python."""

import dataclasses
import re

import pytest
import torch
from cases.models import rng
from cases.tasks import OPERATIONS_BY_HAND, TASKS, modular

from toylab.data import Task
from toylab.errors import UserError
from toylab.tasks.induction import RepeatedTokens
from toylab.tasks.modular import FORMATS, OPERATIONS, ModularArithmetic
from toylab.tasks.superposition import SparseFeatures

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
tasks = pytest.mark.parametrize(("task", "by_hand", "changes"), TASKS)


def is_token(task):
    return hasattr(task, "d_vocab")


def same(a, b):
    """Equality of two batches, bit for bit."""
    weights = (a.weight is None) == (b.weight is None) and (a.weight is None or torch.equal(a.weight, b.weight))
    return weights and torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and a.read == b.read


# --- the protocol, for every task -----------------------------------------------------------------------------------


@tasks
def test_shapes_and_ranges(task, by_hand, changes):
    assert isinstance(task, Task)
    assert dataclasses.is_dataclass(task)
    batch = task.sample(20, rng())
    read = len(batch.read) if batch.read else batch.inputs.shape[1]
    assert len(batch) == 20
    assert batch.targets.shape == (20, read)
    assert batch.weight is None or batch.weight.shape == batch.targets.shape
    assert batch.example
    if is_token(task):
        assert batch.inputs.shape == (20, task.n_ctx)
        assert batch.inputs.min() >= 0
        assert batch.inputs.max() < task.d_vocab
        assert batch.targets.min() >= 0
        assert batch.targets.max() < task.d_out
    else:
        assert batch.inputs.shape == (20, task.n_features)


@tasks
def test_targets_are_those_worked_out_by_hand(task, by_hand, changes):
    """...and weight is above 0 exactly where something can be known."""
    for batch in (task.split(0).all, task.sample(50, rng())):
        weight = torch.ones_like(batch.targets) if batch.weight is None else batch.weight
        for row, targets, weights in zip(batch.inputs.tolist(), batch.targets.tolist(), weight.tolist(), strict=True):
            for known, target, w in zip(by_hand(task, row), targets, weights, strict=True):
                assert (w > 0) == (known is not None)
                assert known is None or known == target


@tasks
def test_split_is_disjoint_and_covers(task, by_hand, changes):
    split = task.split(0)
    if split.train is None:
        assert split.test.tolist() == list(range(task.n_test))
        with pytest.raises(UserError, match="sample"):
            _ = split.train_batch
    else:
        assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(len(split.all)))
        assert len(split.train) == int(0.3 * len(split.all))
        assert len(split.all.inputs.unique(dim=0)) == len(split.all)


@tasks
def test_same_seed_same_bits_other_seed_other_split(task, by_hand, changes):
    assert same(task.split(3).test_batch, task.split(3).test_batch)
    assert not same(task.split(3).test_batch, task.split(4).test_batch)
    assert same(task.sample(30, rng(3)), task.sample(30, rng(3)))
    assert not same(task.sample(30, rng(3)), task.sample(30, rng(4)))


@tasks
def test_latents_have_shape_classes_and_know_only_the_past(task, by_hand, changes):
    """Changing what comes after position t never changes a latent at t."""
    inputs = task.sample(40, rng()).inputs
    other = task.sample(40, rng(1)).inputs
    for name, latent in task.latents(inputs).items():
        assert latent.values.shape[: inputs.ndim] == inputs.shape
        if latent.classes:
            assert latent.values.min() >= -1
            assert latent.values.max() < len(latent.classes)
        for t in range(inputs.shape[1]) if is_token(task) else ():
            future = torch.cat([inputs[:, : t + 1], other[:, t + 1 :]], 1)
            assert torch.equal(task.latents(future)[name].values[:, : t + 1], latent.values[:, : t + 1])


@tasks
def test_counterfactual_changes_that_latent_in_every_row_and_holds_the_rest(task, by_hand, changes):
    batch = task.sample(200, rng())
    before = task.latents(batch.inputs)
    for latent, held in changes.items():
        new = task.counterfactual(batch, latent, rng(1))
        after = task.latents(new.inputs)
        assert (before[latent].values != after[latent].values).flatten(1).any(1).all()
        for name in held:
            assert torch.equal(before[name].values, after[name].values)
        assert same(new, task.counterfactual(batch, latent, rng(1)))
        assert not torch.equal(new.inputs, task.counterfactual(batch, latent, rng(2)).inputs)


@tasks
def test_counterfactual_targets_are_the_answers_to_the_new_inputs(task, by_hand, changes):
    batch = task.sample(100, rng())
    for latent in changes:
        new = task.counterfactual(batch, latent, rng(1))
        weight = torch.ones_like(new.targets) if new.weight is None else new.weight
        assert (weight > 0).any(1).all()
        for row, targets, weights in zip(new.inputs.tolist(), new.targets.tolist(), weight.tolist(), strict=True):
            for known, target, w in zip(by_hand(task, row), targets, weights, strict=True):
                assert w == 0 or known == target
        if latent in ("answer", "next"):
            assert ((new.targets != batch.targets) & (weight > 0)).any(1).all()


@tasks
def test_a_latent_that_cannot_be_changed_is_refused(task, by_hand, changes):
    with pytest.raises(UserError, match=f"accepted are.*{next(iter(changes))}"):
        task.counterfactual(task.sample(3, rng()), "wether", rng())


@tasks
def test_render_and_repr(task, by_hand, changes):
    batch = task.sample(8, rng())
    lines = task.render(batch.inputs)
    assert len(lines) == 8
    assert all(lines)
    assert lines[0] in repr(batch)
    assert len(task.render(batch.inputs[:0])) == 0


# --- modular arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [7, 13])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_against_plain_integers(operation, p):
    task = modular(p, operation)
    rows = task.operands().tolist()
    divides = "/" in operation
    assert rows == [[x, y] for x in range(p) for y in range(int(divides), p)]
    assert task.true_answer(task.operands()).tolist() == [OPERATIONS_BY_HAND[operation](x, y, p) % p for x, y in rows]


def test_every_operation_is_checked_by_hand():
    assert OPERATIONS.keys() == OPERATIONS_BY_HAND.keys()


def test_the_example_of_the_docstring():
    task = modular(113, "x+y")
    batch = task._batch(torch.tensor([[50, 70]]))
    assert batch.inputs.tolist() == [[50, 70, 113]]
    assert batch.targets.tolist() == [[7]]
    assert batch.example == "50 + 70 mod 113 = 7"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n_operands", [2, 3])
def test_encode_and_decode_are_inverse(format, n_operands):
    task = modular(4, "x-y", format=format, n_operands=n_operands)
    assert torch.equal(task.decode(task.encode(task.operands())), task.operands())
    assert len(task.encode(task.operands()).unique()) == task.d_vocab


def test_division_undoes_multiplication():
    task, times = modular(13, "x/y"), modular(13, "x*y")
    operands = task.operands()
    back = torch.stack([task.true_answer(operands), operands[:, 1]], 1)
    assert torch.equal(times.true_answer(back), operands[:, 0])


@pytest.mark.parametrize(("p", "root"), [(7, 3), (13, 2), (59, 2), (97, 5)])
def test_multiplication_is_addition_through_a_primitive_root(p, root):
    """g^i g^j = g^(i + j mod p - 1): the relabelled tables agree entry by entry."""
    add, times = modular(p - 1, "x+y"), modular(p, "x*y")
    power = torch.tensor([pow(root, i, p) for i in range(p - 1)])
    assert len(power.unique()) == p - 1
    exponents = add.operands()
    assert torch.equal(times.true_answer(power[exponents]), power[add.true_answer(exponents)])


def test_shuffled_labels_keep_the_marginal_and_lose_the_meaning():
    true, shuffled = modular(13, "x/y"), modular(13, "x/y", labels="shuffled")
    a, b = true.split(0).all.targets[:, 0], shuffled.split(0).all.targets[:, 0]
    assert torch.equal(a.bincount(), b.bincount())
    # Agreement by chance: 1/13 of 156 rows is 12, standard deviation 3.3.
    assert (a == b).sum() < 12 + 5 * 3.4
    assert torch.equal(b, shuffled.split(9).all.targets[:, 0])
    batch = shuffled.sample(50, rng())
    assert torch.equal(batch.targets[:, 0], shuffled.answer(shuffled.decode(batch.inputs)))
    assert torch.equal(shuffled.answer(shuffled.operands()), b)  # a table lookup finds every row's own label
    assert torch.equal(shuffled.true_answer(shuffled.operands()), a)


@pytest.mark.parametrize("noise", [0.1, 0.35, 0.99])
def test_label_noise_is_exact_and_only_in_train(noise):
    clean, noisy = modular(13, "x+y").split(5), modular(13, "x+y", label_noise=noise).split(5)
    assert torch.equal(clean.train, noisy.train)
    wrong = (clean.all.targets != noisy.all.targets).squeeze(1).nonzero().squeeze(1)
    assert len(wrong) == round(noise * len(clean.train))
    assert torch.isin(wrong, noisy.train).all()
    assert 0 <= noisy.all.targets.min() <= noisy.all.targets.max() < 13


def test_the_answer_is_known_from_the_last_operand_on():
    task = modular(5, "x+y", format="a o b =")
    latents = task.latents(task.encode(torch.tensor([[2, 4]])))
    assert latents["a"].values.tolist() == [[2, 2, 2, 2]]
    assert latents["b"].values.tolist() == [[-1, -1, 4, 4]]
    assert latents["answer"].values.tolist() == [[-1, -1, 1, 1]]


MISTAKES = [
    (ModularArithmetic, {"p": 12, "operation": "x/y", "frac_train": 0.3}, "prime.*p=12.*try p=(11|13)"),
    (ModularArithmetic, {"p": 12, "operation": "x/y if y odd else x-y", "frac_train": 0.3}, "prime"),
    (ModularArithmetic, {"p": 7, "operation": "x+y", "frac_train": 1.3}, r"frac_train=1.3 is outside \(0, 1\); .*0.3"),
    (ModularArithmetic, {"p": 7, "operation": "x+y", "frac_train": 0.001}, "leaves the train or the test set empty"),
    (ModularArithmetic, {"p": 7, "operation": "x + y", "frac_train": 0.3}, r'accepted are .*did you mean "x\+y"\?'),
    (ModularArithmetic, {"p": 7, "operation": "x/y", "frac_train": 0.3, "n_operands": 3}, "takes 2 operands, not 3"),
    (ModularArithmetic, {"p": 1, "operation": "x+y", "frac_train": 0.3}, "p=1"),
    (ModularArithmetic, {"p": 7, "operation": "x+y", "frac_train": 0.3, "label_noise": 1.0}, "label_noise=1.0"),
    (ModularArithmetic, {"p": 7, "operation": "x+y", "frac_train": 0.3, "format": "a b="}, 'did you mean "a b ="'),
    (
        ModularArithmetic,
        {"p": 999, "operation": "x+y", "frac_train": 0.3, "n_operands": 3},
        "more than 16,777,216 rows",
    ),
    (SparseFeatures, {"n_features": 5, "sparsity": 1.0, "importance_decay": 0.9}, r"sparsity=1.0 is outside \[0, 1\)"),
    (SparseFeatures, {"n_features": 5, "sparsity": 0.5, "importance_decay": 1.9}, "importance_decay=1.9"),
    (SparseFeatures, {"n_features": 0, "sparsity": 0.5, "importance_decay": 0.9}, "n_features=0"),
    (
        SparseFeatures,
        {"n_features": 5, "sparsity": 0.5, "importance_decay": 0.9, "target": "absolute"},
        "accepted are identity, abs",
    ),
    (RepeatedTokens, {"d_tokens": 4, "length": 4}, "take d_tokens >= 5"),
    (RepeatedTokens, {"d_tokens": 4, "length": 1}, "length=1"),
]


@pytest.mark.parametrize(("task", "settings", "message"), MISTAKES)
def test_a_wrong_setting_is_explained(task, settings, message):
    with pytest.raises(UserError, match=re.compile(message)):
        task(**settings)


# --- repeated tokens ------------------------------------------------------------------------------------------------


def test_tokens_of_a_copy_are_distinct_and_uniform():
    task = RepeatedTokens(d_tokens=7, length=4)
    inputs = task.sample(7000, rng()).inputs
    copy = inputs[:, 1:5]
    assert (inputs[:, 0] == 7).all()
    assert torch.equal(copy[:, :-1], inputs[:, 5:])
    assert (copy.sort(1).values.diff(dim=1) > 0).all()
    # 7000 draws at each place: 1000 per token, standard deviation 29.
    counts = torch.stack([column.bincount(minlength=7) for column in copy.unbind(1)])
    assert (counts - 1000).abs().max() < 5 * 29.3


def test_the_repeated_counterfactual_changes_one_token_and_asks_where_it_matters():
    task = RepeatedTokens(d_tokens=9, length=4)
    batch = task.sample(500, rng())
    new = task.counterfactual(batch, "next", rng(1))
    changed = batch.inputs != new.inputs
    assert (changed.sum(1) == 1).all()
    place = changed.int().argmax(1)
    assert set(place.tolist()) == {2, 3, 4}
    assert torch.equal(new.weight.argmax(1), place + 3)
    assert (new.weight.sum(1) == 1).all()
    # What the causal model sees up to the asked position is an ordinary row of the task, with the new token in it.
    for old_row, row, j, asked in zip(batch.inputs, new.inputs, place, new.weight.argmax(1), strict=True):
        assert row[j] not in old_row
        assert row[asked] == row[j - 1]
    next_changed = task.latents(batch.inputs)["next"].values != task.latents(new.inputs)["next"].values
    assert torch.equal(next_changed, new.weight.bool())


def test_previous_is_the_token_before():
    task = RepeatedTokens(d_tokens=9, length=3)
    latents = task.latents(torch.tensor([[9, 4, 8, 2, 4, 8]]))
    assert latents["previous"].values.tolist() == [[-1, 9, 4, 8, 2, 4]]
    assert latents["previous"].classes[9] == "BOS"
    assert latents["next"].values.tolist() == [[-1, -1, -1, -1, 8, 2]]
    assert task.render(torch.tensor([[9, 4, 8, 2, 4, 8]])) == ["4 8 2 | 4 8"]


# --- sparse features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["identity", "abs"])
def test_features_are_on_as_often_as_stated_and_uniform(target):
    task = SparseFeatures(n_features=4, sparsity=0.9, importance_decay=0.5, target=target)
    x = task.sample(40000, rng()).inputs
    on = x != 0
    # 40,000 draws per feature with probability 0.1: standard deviation 60.
    assert (on.sum(0) - 4000).abs().max() < 5 * 60
    low = -1 if target == "abs" else 0
    values = x[on].double()
    assert low <= values.min() < values.max() <= 1
    # Mean and mean square of the uniform distribution, 16,000 values: within 5 standard errors.
    assert abs(values.mean() - (1 + low) / 2) < 5 * (1 - low) / 12**0.5 / len(values) ** 0.5
    assert abs(values.square().mean() - 1 / 3) < 5 * 0.3 / len(values) ** 0.5
    # Independent: the correlations of the on-indicators are noise.
    assert (torch.corrcoef(on.T.double()) - torch.eye(4)).abs().max() < 5 / 40000**0.5


def test_importance_is_the_weight():
    batch = SparseFeatures(n_features=4, sparsity=0.5, importance_decay=0.5).sample(3, rng())
    assert batch.weight.tolist() == [[1, 0.5, 0.25, 0.125]] * 3


@pytest.mark.parametrize("target", ["identity", "abs"])
def test_the_on_counterfactual_flips_exactly_one_feature(target):
    task = SparseFeatures(n_features=4, sparsity=0.5, importance_decay=1.0, target=target)
    batch = task.sample(500, rng())
    new = task.counterfactual(batch, "on", rng(1))
    flipped = (batch.inputs != 0) != (new.inputs != 0)
    assert (flipped.sum(1) == 1).all()
    assert torch.equal(flipped, batch.inputs != new.inputs)
    assert set(flipped.int().argmax(1).tolist()) == {0, 1, 2, 3}


def test_sparsity_zero_leaves_every_feature_on():
    assert (SparseFeatures(n_features=4, sparsity=0.0, importance_decay=1.0).sample(1000, rng()).inputs != 0).all()
