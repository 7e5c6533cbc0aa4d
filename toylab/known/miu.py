"""The MIU recogniser by hand: a head that counts, and neurons that turn the count into a counter of three states.

1. Embedding: I carries 1 in `one`, every other token 0.
2. Head a0.0 attends evenly to all positions up to its own; times how many these are, its output is #I so far.
3. m0: the one-hot of #I mod 3 is a polygon in #I with a corner at every integer, drawn by neurons ReLU(#I - k)
   (as in circuits.bit_function).
4. Logits: of a theorem state 1 or 2, of none state 0; or the three states.

"classify" asks at the last position alone, where even attention is over all n_ctx positions: one neuron per count.
"prefix" asks everywhere, and the mean at position i is #I/(i+1): every position has neurons of its own, which a bias
of its own lets speak, ReLU((i+1) mean - k - CLOSED [not at i]).
It counts what it is built for and no more: strings with M elsewhere than at the start are not told apart.

Sources: reference of tasks/miu.py; uniform counting heads as in circuits.py. Read next: measures/residues.py.
"""

from __future__ import annotations

import torch

from toylab.errors import require
from toylab.known import KnownModel
from toylab.known.circuits import AT_END, Parts, _empty, _one
from toylab.known.truth import CircuitTruth
from toylab.tasks.miu import I, MIUStrings

N_SHOWN = 256  # rows of the truth's batch, spread over the table


def miu_recogniser(task: MIUStrings) -> KnownModel:
    """The three-state counter for `classify` or `prefix`, right on every string that fits into the context.

    Logits are exact: 1 for the answer and 0 for the others. Its truth: `count` (classify: #I, a number, after
    attention) and `residue` (one-hot, after the MLP), the answer's two planes.
    """
    require(
        task.format in ("classify", "prefix"),
        f"format={task.format}: the hand-built recogniser answers classify and prefix; the exact law of the language "
        "is task.law()",
    )
    classify = task.format == "classify"
    n, places = task.longest, [task.n_ctx - 1] if classify else list(range(2, task.n_ctx))
    parts = Parts.of(one=1, mean=1, **({} if classify else {"pos": task.n_ctx}), residue=3)
    model, w = _empty(
        task,
        parts,
        d_mlp=n * len(places),
        biases=("in", "out"),
        positions="none" if classify else "learned",
    )
    w["W_E"][I, parts["one"]] = 1
    w["W_V"][0, 0, parts["one"], 0] = 1
    w["W_O"][0, 0, 0, parts["mean"]] = task.n_ctx if classify else 1
    corner = torch.arange(n).double()
    states = torch.eye(3).double()[torch.arange(n + 1) % 3]  # [count, state]
    bend = states.diff(dim=0).diff(dim=0, prepend=torch.zeros(1, 3).double())
    closed = 2.0 * task.n_ctx
    for number, place in enumerate(places):
        neurons = slice(number * n, (number + 1) * n)
        w["W_in"][0, parts["mean"], neurons] = 1 if classify else place + 1
        w["b_in"][0, neurons] = -corner
        if not classify:
            w["W_in"][0, parts["pos"], neurons] = -closed * (torch.arange(task.n_ctx) != place).double()[:, None]
        w["W_out"][0, neurons, parts["residue"]] = bend
    if not classify:
        w["W_pos"][:, parts["pos"]] = torch.eye(task.n_ctx).double()
    w["b_out"][0, parts["residue"]] = states[0]
    w["W_U"][parts["residue"]] = torch.tensor([[1, 0], [0, 1], [0, 1]]).double() if classify else torch.eye(3).double()
    resid_post, states_of = "blocks.0.hook_resid_post", (0, 1, 2)
    where = AT_END if classify else None
    variables = {"residue": _one(parts, "residue", resid_post, states_of, "residue", positions=where)}
    if classify:
        counts = tuple(range(n + 1))
        variables["count"] = _one(parts, "mean", "blocks.0.hook_resid_mid", counts, "count", positions=where)
    every = task.split(0).all
    batch = every[torch.linspace(0, len(every) - 1, min(N_SHOWN, len(every))).long()]
    truth = CircuitTruth(model, batch, variables, {"a0.0": "#I by even attention", "m0": "#I mod 3"})
    about = "a head counts the I's, the MLP keeps the count mod 3 as one of three states; a theorem unless 0"
    return KnownModel(f"MIU recogniser, {task.format}", model, task, truth, about)
