"""Small tasks, each with its answers worked out by hand; test_tasks.py runs the whole Task protocol over them.

A case is (task, by_hand, changes). by_hand(task, row) -> the right answer at each read position in plain Python, None
where nothing can be known. changes: latent that `counterfactual` can change -> the latents that stay as they were.
"""

from itertools import accumulate

import pytest

from toylab.tasks.automata import StateTracking
from toylab.tasks.dictionaries import SharkeyFeatures
from toylab.tasks.induction import RepeatedTokens
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures

# In Python integers and written out, so that they share nothing with the task.
OPERATIONS_BY_HAND = {
    "x+y": lambda x, y, p: x + y,
    "x-y": lambda x, y, p: x - y,
    "x*y": lambda x, y, p: x * y,
    "x/y": lambda x, y, p: next(c for c in range(p) if c * y % p == x),
    "x/y if y odd else x-y": lambda x, y, p: next(c for c in range(p) if c * y % p == x) if y & 1 else x - y,
    "x^2+y^2": lambda x, y, p: pow(x, 2) + pow(y, 2),
    "x^2+xy+y^2": lambda x, y, p: x * (x + y) + y * y,
    "x^2+xy+y^2+x": lambda x, y, p: x * (x + y + 1) + y * y,
    "x^3+xy": lambda x, y, p: x * (x * x + y),
    "x^3+xy^2+y": lambda x, y, p: x * (x * x + y * y) + y,
    "x^2+y": lambda x, y, p: x * x + y,
    "x^3+y": lambda x, y, p: x * x * x + y,
    "x+y if x even else x*y": lambda x, y, p: x * y if x & 1 else x + y,
    "x+y if x even else x-y": lambda x, y, p: x - y if x & 1 else x + y,
}


def modular_by_hand(task, row):
    numbers = [token for token in row if token < task.p]
    result = numbers[0]
    for y in numbers[1:]:
        result = OPERATIONS_BY_HAND[task.operation](result, y, task.p) % task.p
    return [result]


def repeated_by_hand(task, row):
    """Find the token earlier in the row; the answer is the token after it."""
    return [row[row.index(token) + 1] if token in row[:i] and i > task.length else None for i, token in enumerate(row)]


def features_by_hand(task, row):
    return [abs(x) if getattr(task, "target", "identity") == "abs" else x for x in row]


def parity_by_hand(task, row):
    return list(accumulate(row, lambda state, bit: state ^ bit))


def modular(p, operation, **changes):
    return ModularArithmetic(p=p, operation=operation, frac_train=0.3, **changes)


TASKS = [
    pytest.param(modular(7, "x+y"), modular_by_hand, {"a": ("b",), "b": ("a",), "answer": ("a",)}, id="addition mod 7"),
    pytest.param(
        modular(8, "x-y", format="a b"), modular_by_hand, {"a": ("b",), "answer": ("a",)}, id="x-y mod 8, a b"
    ),
    pytest.param(
        modular(5, "x*y", format="a o b ="), modular_by_hand, {"a": ("b",), "b": ("a",), "answer": ()}, id="x*y mod 5"
    ),
    pytest.param(modular(7, "x/y"), modular_by_hand, {"a": ("b",), "b": ("a",), "answer": ()}, id="division mod 7"),
    pytest.param(
        modular(7, "x/y if y odd else x-y"), modular_by_hand, {"b": ("a",), "answer": ()}, id="mixed branches mod 7"
    ),
    pytest.param(
        modular(4, "x+y", n_operands=3),
        modular_by_hand,
        {"a": ("b", "c"), "c": ("a", "b"), "answer": ("a", "b")},
        id="three operands mod 4",
    ),
    pytest.param(RepeatedTokens(d_tokens=9, length=4, n_test=50), repeated_by_hand, {"next": ()}, id="repeated tokens"),
    pytest.param(RepeatedTokens(d_tokens=4, length=2, n_test=50), repeated_by_hand, {"next": ()}, id="shortest copy"),
    pytest.param(SparseFeatures(6, 0.7, 0.9, n_test=50), features_by_hand, {"on": ()}, id="sparse features"),
    pytest.param(
        SparseFeatures(4, 0.5, 1.0, target="abs", n_test=50), features_by_hand, {"on": ()}, id="absolute values"
    ),
    pytest.param(
        SharkeyFeatures(d_hidden=4, n_features=6, mean_active=2.0, decay=0.9, n_test=50),
        features_by_hand,
        {"on": ()},
        id="features of falling frequency",
    ),
    pytest.param(StateTracking("parity", 6, n_test=50), parity_by_hand, {"state": ()}, id="parity"),
]
