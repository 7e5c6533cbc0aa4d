"""Hand-built circuits: gates, induction, flip-flops, counters, brackets, hierarchical equality, and their controls.

All are ordinary `Transformer`s whose residual stream is a row of named parts (`Parts`); weights are written by name.

1. `gate`: two heads fetch two bits, one neuron joins them. The smallest model on which methods disagree.
2. `induction`: a head that copies the previous token, a head that looks for it; without a start token it has one flaw.
3. `flip_flop`: one head scores C [write] + epsilon position to find the last write; random data hide a wrong C.
4. `bit_function`, `dyck`: uniform attention counts, the MLP reads the count.
5. `hierarchical_equality`: a tree of three MLPs, [a = b] == [c = d].
6. Controls: `switch` (two circuits, half of the data each, and a head nobody reads), `rotated` (the same function, no
   variable on an axis), `random_weights` (nothing to find).

Sources: reference of each builder. Came from: tasks.py (their worlds), truth.py (what is promised of them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.data import Task, generator
from toylab.errors import require
from toylab.known import KnownModel
from toylab.known.tasks import (
    BitFunction,
    DyckPrefix,
    FlipFlop,
    Gate,
    HierarchicalEquality,
    RepeatedWithoutBos,
    Switch,
)
from toylab.known.truth import CircuitTruth, Variable
from toylab.models.transformer import Transformer, TransformerSpec
from toylab.tasks.induction import RepeatedTokens

SHARP = 100.0  # of attention scores: what is not looked at keeps e^-100


@dataclass(frozen=True)
class Parts:
    """Named parts of the residual stream: Parts.of(tok=5, prev=5) -> columns 0..4 and 5..9."""

    columns: dict[str, range]

    @classmethod
    def of(cls, **sizes: int) -> Parts:
        ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
        return cls({name: range(end - n, end) for (name, n), end in zip(sizes.items(), ends, strict=True)})

    @property
    def d_model(self) -> int:
        return max(r.stop for r in self.columns.values())

    def __getitem__(self, name: str) -> slice:
        return slice(self.columns[name].start, self.columns[name].stop)

    def directions(self, name: str) -> Float[Tensor, "value d_model"]:
        return torch.eye(self.d_model, dtype=torch.float64)[self[name]]


def _empty(task, parts: Parts, **spec: Any) -> tuple[Transformer, dict[str, Tensor]]:
    """A float64 model of zeros and its weights, which share memory with it."""
    sizes: dict[str, Any] = {
        "n_layers": 1,
        "n_heads": 1,
        "d_head": 1,
        "d_mlp": 0,
        "biases": (),
        "attn_scale": 1.0,
        "dtype": "float64",
    }
    model = Transformer(
        TransformerSpec(d_model=parts.d_model, **(sizes | spec)),
        d_vocab=task.d_vocab,
        n_ctx=task.n_ctx,
        d_out=task.d_out,
    )
    return model, model.state_dict()


def _fetch(w: dict[str, Tensor], parts: Parts, head: int, position: int, what: str, into: str) -> None:
    """Head of layer 0: from "=", look at one position and copy one part of it into another."""
    w["W_Q"][0, head, parts["eq"], 0] = SHARP
    w["W_K"][0, head, parts.columns["pos"][position], 0] = 1
    size = len(parts.columns[what])
    w["W_V"][0, head, parts[what], :size] = torch.eye(size).double()
    w["W_O"][0, head, :size, parts[into]] = torch.eye(size).double()


def _one(parts: Parts, name: str, site: str, values: tuple, latent: str = "", **more) -> Variable:
    """A variable that fills one part of the stream; one column for several values makes it numerical."""
    directions = parts.directions(name)
    numerical = len(directions) == 1 and len(values) != 1
    return Variable(site, directions, values, numerical, latent, **more)


AT_END = (-1,)


# --- Gates -----------------------------------------------------------------------------------------------------------


def gate(operation: str) -> KnownModel:
    """OR: y = 1 - ReLU(1 - (a + b)); AND: y = 2 ReLU((a + b)/2 - 1/2). Logits at "=": 1/2 for 0 and y for 1.

    Heads a0.0 and a0.1 fetch a and b, neuron 0 joins them. On (1, 1) against (0, 0): noising one input of OR changes
    nothing, denoising one input of AND restores nothing.
    """
    task = Gate(operation)
    parts = Parts.of(bit=1, eq=1, pos=3, a=1, b=1, y=1)
    model, w = _empty(task, parts, n_heads=2, d_mlp=1, biases=("in", "out", "U"))
    w["W_E"][1, parts["bit"]] = 1
    w["W_E"][2, parts["eq"]] = 1
    w["W_pos"][:, parts["pos"]] = torch.eye(3).double()
    _fetch(w, parts, 0, 0, "bit", "a")
    _fetch(w, parts, 1, 1, "bit", "b")
    slope, bias, out, constant = (-1.0, 1.0, -1.0, 1.0) if operation == "or" else (0.5, -0.5, 2.0, 0.0)
    w["W_in"][0, parts["a"]], w["W_in"][0, parts["b"]], w["b_in"][0] = slope, slope, bias
    w["W_out"][0, 0, parts["y"]] = out
    w["b_out"][0, parts["y"]] = constant
    w["W_U"][parts["y"], 1] = 1
    w["b_U"][0] = 0.5
    variables = {x: _one(parts, x, "blocks.0.hook_resid_mid", (0, 1), x, positions=AT_END) for x in "ab"}
    variables["answer"] = _one(parts, "y", "blocks.0.hook_resid_post", (0, 1), "answer", positions=AT_END)
    nodes = {"a0.0": "a", "a0.1": "b", "m0": f"a {operation} b"}
    blind = "noising one input alone" if operation == "or" else "denoising one input alone"
    about = f"y = a {operation} b from two heads and one neuron; {blind} finds nothing"
    return _known(f"{operation} gate", model, task, variables, nodes, about)


# --- Induction -------------------------------------------------------------------------------------------------------


def induction(d_tokens: int, length: int, bos: bool, sharpness: float = 30.0, scale: float = 20.0) -> KnownModel:
    """Two layers, one head each, no MLP: residual = tok, prev, pos, out.

    Layer 0: score sharpness between position i and i - 1; copies tok into prev. Layer 1: score sharpness <tok of query,
    prev of key>; copies tok of the key, times scale, into out. With bos accuracy is 1.
    Without: position 0 can only look at itself and writes its own token into prev, so the first repeat of that token
    has two matches of the same score and attends half to each. Accuracy (length - 2)/(length - 1). The right one of
    the two loses: its prev is 1 - e^-sharpness.
    K-composition of the two heads is 1/sqrt(size of tok), Q- and V-composition 0 (reference sheet 7.3 and 8.3).
    """
    task: RepeatedTokens | RepeatedWithoutBos
    task = RepeatedTokens(d_tokens, length) if bos else RepeatedWithoutBos(d_tokens, length)
    n_tok, n_pos = task.d_vocab, task.n_ctx
    parts = Parts.of(tok=n_tok, prev=n_tok, pos=n_pos, out=d_tokens)
    model, w = _empty(task, parts, n_layers=2, d_head=max(n_tok, n_pos))
    tokens = torch.eye(n_tok).double()
    w["W_E"][:, parts["tok"]] = tokens
    w["W_pos"][:, parts["pos"]] = torch.eye(n_pos).double()
    # q of position i and k of position i - 1 are the same unit vector; position 0 has no q and only itself to see.
    w["W_Q"][0, 0, parts["pos"], :n_pos] = sharpness * torch.diag(torch.ones(n_pos - 1).double(), -1)
    w["W_K"][0, 0, parts["pos"], :n_pos] = torch.eye(n_pos).double()
    w["W_V"][0, 0, parts["tok"], :n_tok] = tokens
    w["W_O"][0, 0, :n_tok, parts["prev"]] = tokens
    w["W_Q"][1, 0, parts["tok"], :n_tok] = sharpness * tokens
    w["W_K"][1, 0, parts["prev"], :n_tok] = tokens
    w["W_V"][1, 0, parts["tok"], :d_tokens] = tokens[:, :d_tokens]
    w["W_O"][1, 0, :d_tokens, parts["out"]] = scale * torch.eye(d_tokens).double()
    w["W_U"][parts["out"]] = torch.eye(d_tokens).double()
    words = tuple(range(d_tokens))
    variables = {
        "token": _one(parts, "tok", "blocks.0.hook_resid_pre", words + (("BOS",) if bos else ())),
        "previous": _one(parts, "prev", "blocks.0.hook_resid_post", words + (("BOS",) if bos else ()), "previous"),
    }
    if bos:
        out = dataclasses.replace(_one(parts, "out", "blocks.1.hook_resid_post", words, "next"), scale=scale)
        variables["next"] = out
    nodes = {"a0.0": "previous token", "a1.0": "induction"}
    with_bos = "with a start token" if bos else "without a start token: wrong on the first repeat"
    about = f"finds the previous occurrence of a token and copies what followed, {with_bos}"
    return _known(f"induction, {'bos' if bos else 'no bos'}", model, task, variables, nodes, about)


# --- Flip-flop -------------------------------------------------------------------------------------------------------


def flip_flop(n: int, write_score: float, recency: float, p_write: float = 0.2) -> KnownModel:
    """One head with score write_score [write] + recency position, copying bits into out; logit = attention on that bit.

    An older write leaks e^-recency; after g ignored positions they outweigh the write by e^(recency g - write_score).
    So it is right always iff write_score > recency n with some margin, and right on random data long before.
    n = 64: (340, 5) errs by 6.7e-3 at worst, (680, 10) by 4.5e-5; (200, 5) and (400, 10) look the same on random data
    and are wrong, by 1.0, on `task.worst_case()` (reference sheet 7.4; Liu et al. 2023, arXiv 2306.00946).
    """
    task = FlipFlop(n, p_write)
    parts = Parts.of(write=1, bit=2, pos=1, out=2)
    model, w = _empty(task, parts, d_head=2, biases=("Q",))
    w["W_E"][:2, parts["write"]] = 1
    w["W_E"][:, parts["bit"]] = torch.eye(2).double().repeat(2, 1)
    w["W_pos"][:, parts.columns["pos"][0]] = torch.arange(n).double()
    w["b_Q"][0, 0] = 1
    w["W_K"][0, 0, parts["write"], 0] = write_score
    w["W_K"][0, 0, parts["pos"], 1] = recency
    w["W_V"][0, 0, parts["bit"]] = torch.eye(2).double()
    w["W_O"][0, 0, :, parts["out"]] = torch.eye(2).double()
    w["W_U"][parts["out"]] = torch.eye(2).double()
    good = write_score > recency * n
    # At the trap's long gaps the state is not there; at short ones it is, as in the good one, up to e^-recency.
    variables = {"state": _one(parts, "out", "blocks.0.hook_resid_post", (0, 1), "state")} if good else {}
    kind = "right at every gap" if good else f"a trap: wrong after {int(write_score / recency)} ignored positions"
    about = f"one head finds the last write; {kind}"
    return _known(f"flip-flop, {'good' if good else 'trap'}", model, task, variables, {"a0.0": "last write"}, about)


# --- Counters --------------------------------------------------------------------------------------------------------


def bit_function(n_bits: int, function: str) -> KnownModel:
    """Parity, majority or count of n bits: a uniform head counts, n neurons ReLU(count - k) draw the answer's polygon.

    A function f of the integers 0..n is, between them, the polygon f(0) + sum_k a_k ReLU(c - k), a_k the changes of
    slope: exact at integers with one neuron per corner. Logits are the one-hot answer.
    """
    task = BitFunction(n_bits, function)
    parts = Parts.of(bit=1, count=1, answer=task.d_out)
    model, w = _empty(task, parts, d_mlp=n_bits, biases=("in", "out"), positions="none")
    w["W_E"][1, parts["bit"]] = 1
    w["W_V"][0, 0, parts["bit"], 0] = 1
    w["W_O"][0, 0, 0, parts["count"]] = task.n_ctx  # the mean over n_ctx positions, times n_ctx
    w["W_in"][0, parts["count"]] = 1
    w["b_in"][0] = -torch.arange(n_bits).double()
    every = torch.cat([torch.arange(n_bits + 1) > i for i in range(n_bits + 1)]).view(n_bits + 1, -1).long()
    counts = torch.cat([every, torch.full((n_bits + 1, 1), 2)], 1)[:, 1:]  # a row of bits with each count, falling
    f = torch.eye(task.d_out).double()[task.answers(counts)[:, 0]].flip(0)  # [count, class]
    slopes = f.diff(dim=0)
    w["W_out"][0, :, parts["answer"]] = slopes.diff(dim=0, prepend=torch.zeros(1, task.d_out).double())
    w["b_out"][0, parts["answer"]] = f[0]
    w["W_U"][parts["answer"]] = torch.eye(task.d_out).double()
    variables = {
        "count": _one(parts, "count", "blocks.0.hook_resid_mid", tuple(range(n_bits + 1)), "count", positions=AT_END),
        "answer": _one(
            parts, "answer", "blocks.0.hook_resid_post", tuple(range(task.d_out)), "answer", positions=AT_END
        ),
    }
    about = f"{function} of {n_bits} bits: one uniform head counts, the MLP reads the count"
    return _known(f"{function} of bits", model, task, variables, {"a0.0": "count", "m0": function}, about)


def dyck(n: int) -> KnownModel:
    """Dyck-1 prefixes: uniform causal means, twice.

    1. Head a0.0: mean of +1 and -1 so far, depth/(i + 1): 0 or at least 1/n in size, so its sign is all that counts.
    2. m0: negative = clip(-2n mean, 0, 1) and positive = clip(2n mean, 0, 1), each as ReLU(x) - ReLU(x - 1).
    3. Head a1.0: mean of `negative` so far. m1: failed = clip(2n mean, 0, 1).
    4. Logits: T 1 - positive - negative, P positive, F 2 failed.
    """
    task = DyckPrefix(n)
    parts = Parts.of(step=1, mean=1, negative=1, positive=1, below=1, failed=1)
    model, w = _empty(task, parts, n_layers=2, d_mlp=4, biases=("in", "U"), positions="none")
    w["W_E"][:, parts.columns["step"][0]] = torch.tensor([1.0, -1.0]).double()
    for layer, source, into in ((0, "step", "mean"), (1, "negative", "below")):
        w["W_V"][layer, 0, parts[source], 0] = 1
        w["W_O"][layer, 0, 0, parts[into]] = 1
    for layer, first, source, gain, into in (
        (0, 0, "mean", -2.0 * n, "negative"),
        (0, 2, "mean", 2.0 * n, "positive"),
        (1, 0, "below", 2.0 * n, "failed"),
    ):
        w["W_in"][layer, parts[source], first : first + 2] = gain
        w["b_in"][layer, first + 1] = -1
        w["W_out"][layer, first, parts[into]] = 1
        w["W_out"][layer, first + 1, parts[into]] = -1
    w["b_U"][0] = 1
    for part, answer, weight in (
        ("positive", 0, -1.0),
        ("negative", 0, -1.0),
        ("positive", 1, 1.0),
        ("failed", 2, 2.0),
    ):
        w["W_U"][parts[part], answer] = weight
    variables = {
        "negative": _one(parts, "negative", "blocks.0.hook_resid_post", (0, 1)),
        "positive": _one(parts, "positive", "blocks.0.hook_resid_post", (0, 1)),
        "failed": _one(parts, "failed", "blocks.1.hook_resid_post", (0, 1), "failed"),
    }
    nodes = {"a0.0": "mean depth", "m0": "sign of depth", "a1.0": "share of negative", "m1": "failed"}
    about = "balanced, not yet, or failed, at every prefix; only the sign of the depth is represented, not the depth"
    return _known("dyck-1", model, task, variables, nodes, about)


# --- Hierarchical equality -------------------------------------------------------------------------------------------


def hierarchical_equality(n_values: int) -> KnownModel:
    """[a = b] == [c = d] from integers, in three MLPs (reference sheet 4.5).

    m0: s1 = ReLU(a - b) + ReLU(b - a) = |a - b|, s2 = |c - d|. m1: e1 = ReLU(1 - s1), e2 = ReLU(1 - s2).
    m2: y = 1 - ReLU(e1 - e2) - ReLU(e2 - e1). Logits: 1/2 for no, y for yes.
    Exchanging e1 between inputs changes the answer exactly as exchanging [a = b] does.
    """
    task = HierarchicalEquality(n_values)
    parts = Parts.of(value=1, eq=1, pos=5, a=1, b=1, c=1, d=1, s1=1, s2=1, e1=1, e2=1, y=1)
    model, w = _empty(task, parts, n_layers=3, n_heads=4, d_mlp=4, biases=("in", "out", "U"))
    w["W_E"][:n_values, parts.columns["value"][0]] = torch.arange(n_values).double()
    w["W_E"][n_values, parts["eq"]] = 1
    w["W_pos"][:, parts["pos"]] = torch.eye(5).double()
    for i, name in enumerate("abcd"):
        _fetch(w, parts, i, i, "value", name)

    def neuron(layer: int, m: int, reads: dict[str, float], bias: float, into: str, weight: float) -> None:
        for name, x in reads.items():
            w["W_in"][layer, parts[name], m] = x
        w["b_in"][layer, m] = bias
        w["W_out"][layer, m, parts[into]] = weight

    for m, (x, y, into) in enumerate([("a", "b", "s1"), ("b", "a", "s1"), ("c", "d", "s2"), ("d", "c", "s2")]):
        neuron(0, m, {x: 1.0, y: -1.0}, 0.0, into, 1.0)
    for m, (x, into) in enumerate([("s1", "e1"), ("s2", "e2")]):
        neuron(1, m, {x: -1.0}, 1.0, into, 1.0)
    for m, (x, y) in enumerate([("e1", "e2"), ("e2", "e1")]):
        neuron(2, m, {x: 1.0, y: -1.0}, 0.0, "y", -1.0)
    w["b_out"][2, parts["y"]] = 1
    w["W_U"][parts["y"], 1] = 1
    w["b_U"][0] = 0.5
    # m1 writes e = ReLU(1) = 1 wherever |a - b| is 0, also at other positions; only "=" means anything.
    where = {"e1": "a=b", "e2": "c=d"}
    variables = {
        name: _one(parts, part, "blocks.1.hook_resid_post", (0, 1), name, positions=AT_END)
        for part, name in where.items()
    }
    for x in "abcd":
        values = tuple(range(n_values))
        variables[x] = _one(parts, x, "blocks.0.hook_resid_mid", values, x, positions=AT_END)
    variables["answer"] = _one(parts, "y", "blocks.2.hook_resid_post", (0, 1), "answer", positions=AT_END)
    nodes = {"m0": "|a - b|, |c - d|", "m1": "a=b, c=d", "m2": "answer"} | {f"a0.{i}": x for i, x in enumerate("abcd")}
    about = "[a = b] == [c = d] in a tree of three MLPs; both equalities live in one neuron each of m1"
    return _known("hierarchical equality", model, task, variables, nodes, about)


# --- Controls --------------------------------------------------------------------------------------------------------


def switch(n_values: int) -> KnownModel:
    """f a b = a or b, as f says: neurons ReLU(a_v + [f = a] - 1) and ReLU(b_v + [f = b] - 1). Head a0.3 is a decoy.

    Each half of the neurons works on half of the rows: a method that averages over all rows sees half of each effect.
    The decoy copies b where nobody reads it: a probe finds b there, perfectly, and no intervention does anything.
    """
    task = Switch(n_values)
    parts = Parts.of(value=n_values, flag=2, eq=1, pos=4, f=2, a=n_values, b=n_values, decoy=n_values, out=n_values)
    model, w = _empty(task, parts, n_heads=4, d_head=max(n_values, 2), d_mlp=2 * n_values, biases=("in",))
    one_hot = torch.eye(n_values).double()
    w["W_E"][:n_values, parts["value"]] = one_hot
    w["W_E"][n_values : n_values + 2, parts["flag"]] = torch.eye(2).double()
    w["W_E"][n_values + 2, parts["eq"]] = 1
    w["W_pos"][:, parts["pos"]] = torch.eye(4).double()
    for head, (position, what, into) in enumerate(
        [(0, "flag", "f"), (1, "value", "a"), (2, "value", "b"), (2, "value", "decoy")]
    ):
        _fetch(w, parts, head, position, what, into)
    for half, name in enumerate("ab"):
        neurons = slice(half * n_values, (half + 1) * n_values)
        w["W_in"][0, parts[name], neurons] = one_hot
        w["W_in"][0, parts.columns["f"][half], neurons] = 1
        w["W_out"][0, neurons, parts["out"]] = one_hot
    w["b_in"][0] = -1
    w["W_U"][parts["out"]] = one_hot
    values = tuple(range(n_values))
    mid = "blocks.0.hook_resid_mid"
    variables = {
        "flag": _one(parts, "f", mid, ("a", "b"), "flag", positions=AT_END),
        "a": _one(parts, "a", mid, values, "a", positions=AT_END),
        "b": _one(parts, "b", mid, values, "b", positions=AT_END),
        "decoy": _one(parts, "decoy", mid, values, "b", positions=AT_END, read=False),
        "answer": _one(parts, "out", "blocks.0.hook_resid_post", values, "answer", positions=AT_END),
    }
    nodes = {"a0.0": "flag", "a0.1": "a", "a0.2": "b", "a0.3": "decoy: b, read by nothing", "m0": "answer"}
    about = "two circuits with half of the data each, and a head that copies b where nobody reads it"
    return _known("switch with a decoy", model, task, variables, nodes, about)


def rotated(known: KnownModel, seed: int) -> KnownModel:
    """The same function with its residual stream turned by a random rotation R: x -> x R.

    Readers are multiplied by R^T, writers by R, so every logit stays as it was (to rounding) and no variable
    lies along an axis: what looks at single coordinates fails, what looks for directions must not.
    """
    truth = known.truth
    require(isinstance(truth, CircuitTruth), f"{known.name}: only circuits can be rotated")
    assert isinstance(truth, CircuitTruth)
    old = truth.model
    require(old.spec.norm == "none", f"{known.name} has norm {old.spec.norm}, which a rotation does not leave alone")
    g = generator(seed, "rotation")
    R = torch.linalg.qr(torch.randn(old.d_model, old.d_model, generator=g, dtype=torch.float64)).Q
    model = Transformer(old.spec, old.d_vocab, old.n_ctx, old.d_out)
    R = R.to(old.W_E.dtype)
    turned = {}
    for name, p in old.state_dict().items():
        if name in ("W_E", "W_pos", "W_O", "W_out", "b_O", "b_out"):
            turned[name] = p @ R
        elif name in ("W_Q", "W_K", "W_V", "W_in", "W_U"):
            turned[name] = R.T @ p
        else:
            turned[name] = p
    model.load_state_dict(turned)
    variables = {
        name: dataclasses.replace(v, directions=v.directions @ R.to(v.directions.dtype))
        for name, v in truth.variables.items()
    }
    # An edge between zeros is now one between orthogonal directions: the truth stays that of the unrotated model.
    new = dataclasses.replace(truth, model=model, variables=variables, unrotated=truth)
    return KnownModel(f"{known.name}, rotated", model, known.task, new, f"{known.about}; no variable on an axis")


def random_weights(known: KnownModel, seed: int) -> KnownModel:
    """The same architecture and task, freshly initialised: whatever a tool reports here, it reports about nothing."""
    model = known.model
    require(isinstance(model, Transformer), f"{known.name} is no Transformer")
    assert isinstance(model, Transformer)
    spec = dataclasses.replace(model.spec, init="fan_in", init_scale=1.0)
    new = spec.build(known.task, generator(seed, "init"))
    batch = known.task.split(0).all
    truth = CircuitTruth(new, batch, {})
    return KnownModel(f"{known.name}, random weights", new, known.task, truth, "untrained: there is nothing to find")


def _known(
    name: str, model: Transformer, task: Task, variables: dict[str, Variable], nodes: dict[str, str], about: str
) -> KnownModel:
    truth = CircuitTruth(model, task.split(0).all[:256], variables, nodes)  # all rows of the finite worlds
    return KnownModel(name, model, task, truth, about)


# Every circuit at the size it is shown and tested with. An exam runs over all of them.
CIRCUITS: dict[str, Callable[[], KnownModel]] = {
    "or gate": lambda: gate("or"),
    "and gate": lambda: gate("and"),
    "induction": lambda: induction(11, 10, bos=True),
    "induction without bos": lambda: induction(11, 10, bos=False),
    "flip-flop": lambda: flip_flop(64, 340.0, 5.0),
    "flip-flop trap": lambda: flip_flop(64, 200.0, 5.0),
    "parity": lambda: bit_function(6, "parity"),
    "majority": lambda: bit_function(6, "majority"),
    "count": lambda: bit_function(6, "count"),
    "dyck-1": lambda: dyck(8),
    "hierarchical equality": lambda: hierarchical_equality(4),
    "hierarchical equality, rotated": lambda: rotated(hierarchical_equality(4), 0),
    "switch": lambda: switch(5),
    "random weights": lambda: random_weights(switch(5), 0),
}
