"""The matrix: every tool on a tiny trained run of every task, at its first, middle and last checkpoint, by `run.map`.

A new task joins by its row in cases/tasks.py, a new tool by a line of TOOLS: a function of a Snapshot that knows no
task. What does not fit fails here. The numbers mean nothing after six steps; known models and the exam grade them.
"""

import functools

import numpy as np
import pytest
import torch
from cases.tasks import TASKS

from toylab.data import generator
from toylab.errors import UserError
from toylab.experiment import Experiment, TrainSpec
from toylab.interp import (
    attention,
    attribution,
    edges,
    erasure,
    lens,
    neurons,
    patching,
    probe_scores,
    probes,
    residual,
    sparse_probes,
    steering,
    weights,
)
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining
from toylab.measures.dictionaries import Dictionaries
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.snapshot import Labelled
from toylab.taps import act_name
from toylab.train import train

ROWS = 12


def rng():
    return generator(0, "matrix")


def batch_of(snap):
    return snap.batch[:ROWS]


def is_vector(snap):
    return hasattr(snap.task, "n_features")


def stream(snap):
    """(site, its activations [batch, pos, d]) on all examples: the widest thing there is to read."""
    site = "hidden" if is_vector(snap) else "resid_post0"
    value = snap.run_with_cache(act_name(site))[1][site]
    return site, value[:, None] if is_vector(snap) else value


def pairs_of(snap):
    """A batch with the first latent changed that this task can change."""
    batch = batch_of(snap)
    for latent in snap.task.latents(batch.inputs):
        try:
            return patching.Pairs.of(batch, snap.task.counterfactual(batch, latent, rng()))
        except UserError:
            continue
    raise AssertionError(f"{snap.task} can change none of its latents")


def rows_of(snap):
    """Activations, labels and sequence numbers of the first latent with two classes, as rows."""
    for latent in snap.task.latents(snap.batch.inputs).values():
        _, x = stream(snap)
        values = latent.values[:, None] if is_vector(snap) else latent.values
        x, y, group = probe_scores.as_rows(x, values)
        y = y[:, :1]
        rows = y[:, 0] >= 0 if latent.classes else torch.ones(len(y), dtype=torch.bool)
        if len(y[rows].unique()) > 1:
            return x[rows].double(), y[rows], group[rows]
    raise AssertionError(f"no latent of {snap.task} varies")


def error(outputs, answers):
    """A metric for any task: squared error for vectors, cross-entropy for classes."""
    if answers.right.is_floating_point():
        return (outputs - answers.right).square().flatten(-1).mean(-1)
    return patching.loss(outputs, answers)


# --- Tools: reads ----------------------------------------------------------------------------------------------------


def logit_lens(snap):
    return lens.logit_lens(snap.model, snap.run_with_cache()[1])[0][:, :ROWS].abs().mean((1, 2, 3))


def attribution_to_logits(snap):
    _, cache = snap.run_with_cache()
    return residual.direct_logits(snap.model, cache, 0, by="neuron").values.mean((1, 2))


def decomposition(snap):
    _, cache = snap.run_with_cache()
    parts = residual.get_full_resid_decomposition(snap.model, cache)
    total = residual.residual_at(snap.model, cache)
    torch.testing.assert_close(parts.values.sum(0), total, atol=1e-5, rtol=1e-4)
    return residual.accumulated_resid(snap.model, cache).values.norm(dim=-1).mean((1, 2))


def head_scores(snap):
    """The kinds that every task has queries for."""
    tokens = snap.batch.inputs
    scores = attention.head_scores(attention.stack_patterns(snap.run_with_cache()[1]), tokens)
    return {kind: scores[kind] for kind in ("previous", "first", "diagonal", "entropy")}


def detected(snap):
    pattern = attention.stack_patterns(snap.run_with_cache()[1])
    return attention.detect_head(pattern, snap.batch.inputs, "previous_token_head")


def circuits_of_weights(snap):
    layer_head = ("layer", "head")
    kinds = torch.stack([weights.composition_scores(snap.model, kind) for kind in "QKV"]).nan_to_num()
    return {
        "copying": Labelled(weights.copying_scores(snap.model), layer_head),
        "composition": Labelled(kinds, ("kind", *layer_head, "later_layer", "later_head")),
        "OV": Labelled(weights.OV(snap.model).norm(), layer_head),
        "QK": Labelled(weights.QK(snap.model).S, (*layer_head, "rank")),
    }


def top_inputs(snap):
    return neurons.top_inputs(snap.run_with_cache()[1]["post", 1], 3).value


def neuron_concepts(snap):
    _, cache = snap.run_with_cache()
    post, latents = cache["post", 0], snap.task.latents(snap.batch.inputs)
    concepts = neurons.concepts_of({name: latent for name, latent in latents.items() if latent.classes})
    scores = neurons.score_concepts(post.flatten(0, 1), concepts, rng(), n_permutations=19, alpha=0.1)
    return scores.correlation.abs().amax(1)


# --- Tools: fits -----------------------------------------------------------------------------------------------------


def probe(snap, kind):
    x, y, group = rows_of(snap)
    if y.is_floating_point() and kind != "ridge":
        y = (y > y.mean()).long()
    return next(iter(probe_scores.evaluate(probes.fit(x, y, kind, PENALTY[kind]), x, y, group).values())).value


PENALTY = {"ridge": 1e-2, "lda": 1e-2, "mass_mean": 0.0, "logistic": 1e-2}


def sparse_probe(snap, select="f_statistic"):
    x, y, group = rows_of(snap)
    found = sparse_probes.fit_sparse(x, y, 1, select, 1e-2)
    return probe_scores.evaluate(found, x, y, group)["accuracy"].value


def mlp_probe(snap):
    x, y, group = rows_of(snap)
    return probe_scores.evaluate(probes.fit_mlp(x, y, 4, 3, rng()), x, y, group)["accuracy"].value


def ladder(snap):
    x, y, group = rows_of(snap)
    fit = functools.partial(probes.fit, kind="ridge", penalty=1e-2)
    return probe_scores.ladder({"input": x, "here": x}, y, group, fit, rng()).rungs["here"].value


def eraser(snap):
    """After LEACE no covariance is left."""
    x, y, _ = rows_of(snap)
    after = erasure.fit(x, y)(x)
    one_hot = (y == y.unique()).double()
    left = (after - after.mean(0)).T @ (one_hot - one_hot.mean(0)) / len(y)
    assert left.abs().max() < 1e-6 * x.abs().max()
    return left.abs().max()


def dictionaries(snap):
    spec, training = TopK(d_sae=6, k=2, lr=1e-2), SAETraining(steps=3, batch_size=8)
    return Dictionaries(stream(snap)[0], spec, training)(snap)


def tuned_lens(snap):
    return lens.fit_tuned_lens(snap.model, batch_of(snap).inputs, 2).kl[-1]


# --- Tools: edits ----------------------------------------------------------------------------------------------------


def patch(snap):
    site, axes = ("hidden", "d_hidden") if is_vector(snap) else ("resid_pre", "layer pos")
    return patching.patch(snap.model, pairs_of(snap), site, axes, error, "noise").mean


def patch_heads(snap):
    return patching.patch(snap.model, pairs_of(snap), "z", "layer head", error).mean


def ablate(snap):
    batch = batch_of(snap)
    site, axes = ("hidden", "d_hidden") if is_vector(snap) else ("pattern", "layer head")
    answers = patching.Answers(batch.targets, None, None if is_vector(snap) else batch.weight)
    return patching.ablate(snap.model, batch.inputs, answers, site, axes, error, "mean", batch.read).effect


def attribute(snap):
    site, axes = ("hidden", "d_hidden") if is_vector(snap) else ("post", "layer d_mlp")
    return attribution.attribute(snap.model, pairs_of(snap), site, axes, error, "noise", steps=2).effect


def attribute_star(snap):
    return attribution.attribute_star(snap.model, pairs_of(snap), "k", "layer head pos", error, "noise").effect


def edge_effects(snap):
    return edges.edge_effects(snap.model, pairs_of(snap), error).flat


def edges_by_position(snap):
    return edges.edge_effects(snap.model, pairs_of(snap), error, by_position=True).flat


def eap(snap):
    return edges.eap(snap.model, pairs_of(snap), error).flat


def eap_along_activations(snap):
    return edges.eap(snap.model, pairs_of(snap), error, steps=2, along="activations").flat


def path_patch(snap):
    return edges.path_patch(snap.model, pairs_of(snap), "a0.1", ["a1.0.v", "out"], error).mean()


def masked_run(snap):
    """The whole graph is the model."""
    graph, inputs = edges.EdgeGraph.of(snap.model), batch_of(snap).inputs
    with torch.no_grad():
        outputs = edges.masked_outputs(
            snap.model, inputs, graph, graph.keep(), edges.replacement(snap.model, graph, inputs)
        )
        torch.testing.assert_close(outputs, snap.model(inputs), atol=1e-5, rtol=1e-4)
    return outputs.mean()


def neuron_ablation(snap):
    return neurons.ablation_effects(snap.model, batch_of(snap).inputs, 0, lambda out: out.square().flatten(1).mean(1))


def steer(snap):
    site, x = stream(snap)
    edit = steering.add(site, steering.difference_in_means(*x.flatten(0, 1).chunk(2)[:2]) + 1)
    with torch.no_grad():
        return (snap.model(batch_of(snap).inputs, edit) - snap.model(batch_of(snap).inputs)).abs().max()


def rank_one(snap):
    post = snap.run_with_cache()[1]["post", 0].flatten(0, 1)
    value = torch.ones(snap.model.d_model)
    edit = steering.rank_one_edit(snap.model, 0, post[0] + 0.1, value, steering.key_covariance(post, 0.1).to(post))
    return edit.changes(post).mean()


def amnesic(snap):
    batch, (site, x) = batch_of(snap), stream(snap)
    found = erasure.fit(x.flatten(0, 1), torch.arange(x.shape[0] * x.shape[1]) % 2)
    test = erasure.amnesic_test(snap.model, batch.inputs, site, found, lambda out: out.square().mean(), rng(), 2)
    return torch.tensor([test.clean, test.erased])


# Those of the first table ask for activations alone; the others for a residual stream, heads and neurons.
ANY_MODEL = {
    **{f"probe, {kind}": functools.partial(probe, kind=kind) for kind in PENALTY},
    **{tool.__name__: tool for tool in (sparse_probe, mlp_probe, ladder, eraser, dictionaries)},
    "sparse_probe, l1": functools.partial(sparse_probe, select="l1"),
    **{tool.__name__: tool for tool in (patch, ablate, attribute, steer, amnesic)},
}
TRANSFORMERS = (
    logit_lens,
    attribution_to_logits,
    decomposition,
    head_scores,
    detected,
    circuits_of_weights,
    top_inputs,
    neuron_concepts,
    tuned_lens,
    patch_heads,
    attribute_star,
    edge_effects,
    edges_by_position,
    eap,
    eap_along_activations,
    path_patch,
    masked_run,
    neuron_ablation,
    rank_one,
)
TOOLS = {**ANY_MODEL, **{tool.__name__: tool for tool in TRANSFORMERS}}

TRANSFORMER = TransformerSpec(n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=6, norm="LN")


def experiment(task) -> Experiment:
    vector = hasattr(task, "n_features")
    kind = "absolute" if getattr(task, "target", "") == "abs" else "relu_out"
    model = SuperpositionSpec(kind, 3) if vector else TRANSFORMER
    steps = TrainSpec(steps=6, checkpoints=("every:3",), eval_every=6, batch_size=4, threads=1)
    return Experiment(
        "matrix", 0, task, model, OptimSpec("adam", 1e-2, 0.0), "mse" if vector else "cross_entropy", steps
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run per task, trained when first asked for."""
    made = {}

    def run_of(name, task):
        if name not in made:
            made[name] = train(experiment(task), tmp_path_factory.mktemp("runs") / "run", progress=False)
        return made[name]

    return run_of


CELLS = [
    pytest.param(case.id, case.values[0], tool, id=f"{tool}-{case.id}")
    for case in TASKS
    for tool in (ANY_MODEL if hasattr(case.values[0], "n_features") else TOOLS)
]


@pytest.mark.filterwarnings("ignore:.*cache")
@pytest.mark.parametrize(("case", "task", "tool"), CELLS)
def test_every_tool_fits_every_task_at_every_checkpoint(case, task, tool, runs):
    run = runs(case, task)
    assert run.steps == [0, 3, 6]
    table = run.map(TOOLS[tool])
    assert table.step.values.tolist() == [0, 3, 6]
    for name, values in (table.data_vars if hasattr(table, "data_vars") else {tool: table}).items():
        assert values.dims[0] == "step"
        assert np.isfinite(values.values).all(), f"{tool} says {values.values} of {name}"


def test_a_tool_that_does_not_fit_fails_here(runs):
    """Superposition models have no residual stream, and say so."""
    case = next(case for case in TASKS if hasattr(case.values[0], "n_features"))
    with pytest.raises(UserError):
        runs(case.id, case.values[0]).map(edge_effects)
