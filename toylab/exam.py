"""The exam: every tool on every known model it applies to, marked against what was planted.

1. A `Question` is a tool, the fields of `truth` it needs, what is planted there (a set of names), and what the tool
   finds on a model (a set of names of the same kind).
2. `mark` compares them: found, missed and falsely found; score = found / (found + missed + falsely found), in [0, 1],
   and 1 when nothing is there and nothing was found.
3. The null is the score, against the same truth, of what the tool says of the random-weight control: the same
   architecture and task with nothing planted. A score is worth what it has above it.
4. `sit` asks all of them. A question that cannot be asked of a model, and an error, are rows that say why.

A new tool is a line of QUESTIONS; a new known model joins by standing in CIRCUITS, PROGRAMS, ADDERS or DICTIONARIES.
A low score is not a broken tool: a first-order method is blind to what saturates, a probe sees what nobody reads. Which
method is fooled by which model is what the table is for.
Came from: known/ (the answer keys), interp/ (the tools). Read next: cli/exam.py, figures/exam.py.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toylab.data import Batch, Latent, generator
from toylab.errors import UserError, require
from toylab.interp import attention, erasure, probe_scores, probes, sparse_probes, steering, weights
from toylab.interp.attribution import attribute, attribute_star
from toylab.interp.edges import EdgeGraph, eap, edge_effects, mask_gradient, path_patch, replacement, sender_outputs
from toylab.interp.fourier import key_frequencies, power_by_frequency
from toylab.interp.group_addition import key_logit_frequencies, neuron_frequencies
from toylab.interp.lens import fit_tuned_lens, logit_lens
from toylab.interp.neurons import ablation_effects, concepts_of, score_concepts
from toylab.interp.patching import Answers, Pairs, ablate, at_read, logit_diff, patch
from toylab.interp.residual import direct_logits
from toylab.interp.sae import recovery
from toylab.interp.sae.leaderboard import lineup
from toylab.interp.sae.stream import Stream, rows_of
from toylab.interp.sae.training import SAETraining, train_sae
from toylab.known import KnownModel
from toylab.known.adders import ADDERS, AdderTruth, random_adder
from toylab.known.circuits import CIRCUITS, random_weights
from toylab.known.dictionaries import DICTIONARIES, DictionaryTruth, other_directions
from toylab.known.programs import compiled_program
from toylab.known.truth import ABLATIONS, CircuitTruth, Variable, n_trials
from toylab.measures.fourier import ClockPizza
from toylab.rasp.programs import PROGRAMS
from toylab.snapshot import Snapshot

Names = frozenset[str]
MAX_ROWS = 32  # of a circuit's world: the searched truth and every tool speak of these rows
FIT_POSITIONS = 1200  # what probes are fitted and scored on: so many positions, in whole rows
MAX_LAYERS = 2  # of a compiled program; deeper ones are searched for minutes
EFFECT = 1e-6  # of a logit, as in known/truth.py; exact tools see planted effects of .01 and more, rounding of 1e-12
READABLE = 0.95  # AUROC from which a variable counts as read: planted ones have 1, shuffled ones about .5
RELIES = 0.05  # of accuracy lost, beyond two standard deviations of random subspaces
PAIRINGS = 3  # of rows, for tools that approximate
FOUND = 0.9  # cosine of a latent with the feature that it is; random directions in 12 to 20 dimensions have .5 to .6
SAE_TRAINING = SAETraining(steps=800, batch_size=192, lr_warmup=20, sparsity_warmup=50, dead_after=50)


@dataclass(frozen=True)
class Question:
    """find(known, model) -> names, on `known.model` and on its control; planted(known) -> the names that are right.

    needs: fields of the truth that must be there. empty_is_fair: also asked where nothing is planted (the right answer
    is then "nothing"); otherwise such a model is not asked.
    """

    tool: str
    needs: tuple[str, ...]
    planted: Callable[[KnownModel], Names]
    find: Callable[[KnownModel, Any], Names]
    empty_is_fair: bool = False


@dataclass(frozen=True)
class Row:
    """One cell of the table. found, missed, false: names. note: why there is no score; "" if there is one."""

    tool: str
    model: str
    found: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    false: tuple[str, ...] = ()
    score: float = nan
    null: float = nan
    seconds: float = 0.0
    note: str = ""

    @property
    def asked(self) -> bool:
        return not self.note.startswith("not asked")

    @property
    def failed(self) -> bool:
        """The tool raised instead of answering."""
        return self.note.startswith("error")


def mark(planted: Names, said: Names) -> tuple[Names, Names, Names, float]:
    """(found, missed, falsely found, score)."""
    found, missed, false = planted & said, planted - said, said - planted
    n = len(planted | said)
    return found, missed, false, len(found) / n if n else 1.0


def ask(question: Question, known: KnownModel, control: KnownModel) -> Row:
    """One question put to one model and to its control; whatever goes wrong becomes the row's note."""
    lacking = [name for name in question.needs if not hasattr(known.truth, name)]
    if lacking:
        return Row(question.tool, known.name, note=f"not asked: the truth has no {', '.join(lacking)}")
    start = time.perf_counter()
    try:
        planted = question.planted(known)
        if not planted and not question.empty_is_fair:
            return Row(question.tool, known.name, note="not asked: nothing of the kind is planted")
        start = time.perf_counter()  # the search for the truth is not the tool's
        found, missed, false, score = mark(planted, question.find(known, known.model))
        seconds = time.perf_counter() - start
        *_, null = mark(planted, question.find(known, control.model))
    except Exception as error:
        seconds = time.perf_counter() - start
        return Row(question.tool, known.name, seconds=seconds, note=f"error: {type(error).__name__}: {error}")
    right, left, wrong = (tuple(sorted(names)) for names in (found, missed, false))
    return Row(question.tool, known.name, right, left, wrong, score, null, seconds)


def sit(
    questions: Sequence[Question] | None = None,
    models: Mapping[str, Callable[[], KnownModel]] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> list[Row]:
    """Every question to every model, in that order of models; None = all there are. `say` hears of each model."""
    questions = QUESTIONS if questions is None else questions
    rows = []
    for name, build in (zoo() if models is None else models).items():
        say(name)
        try:
            known = dataclasses.replace(bounded(build()), name=name)
            control = control_of(known)
        except UserError as error:
            rows += [Row(question.tool, name, note=f"error: cannot be built: {error}") for question in questions]
            continue
        rows += [ask(question, known, control) for question in questions]
    return rows


# --- The table -------------------------------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """What was asked, as text: counts of found, missed and falsely found, score, null and seconds."""
    rows = list(rows)
    asked = [row for row in rows if row.asked]
    wide = max((len(row.model) for row in asked), default=5)
    tool = max((len(row.tool) for row in asked), default=4)
    lines = [f"{'tool':<{tool}}  {'model':<{wide}}  found missed false  score   null  seconds"]
    for row in asked:
        start = f"{row.tool:<{tool}}  {row.model:<{wide}}  "
        counts = f"{len(row.found):5} {len(row.missed):6} {len(row.false):5}"
        numbers = f"{row.score:6.2f} {row.null:6.2f} {row.seconds:8.3f}"
        lines.append(start + (row.note if row.note else f"{counts} {numbers}"))
    n_failed = sum(row.failed for row in rows)
    n_false = sum(bool(row.false) for row in rows)
    seconds = sum(row.seconds for row in rows)
    lines.append(
        f"{len(asked)} questions asked, {len(rows) - len(asked)} do not apply, {n_failed} failed; "
        f"{n_false} with something falsely found; the tools took {seconds:.1f} s"
    )
    return "\n".join(lines)


def to_json(rows: Iterable[Row]) -> str:
    """Every row, also those not asked, with the names; a missing number is null."""
    plain = [
        {name: None if value != value else value for name, value in dataclasses.asdict(row).items()} for row in rows
    ]
    return json.dumps(plain, indent=1) + "\n"


def from_json(text: str) -> list[Row]:
    """What `to_json` wrote."""
    rows: list[dict[str, Any]] = json.loads(text)
    for row in rows:
        row |= {name: tuple(row[name]) for name in ("found", "missed", "false")}
        row |= {name: nan for name in ("score", "null") if row[name] is None}
    return [Row(**row) for row in rows]


def to_csv(rows: Iterable[Row]) -> str:
    """One line per row with counts and names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["tool", "model", "found", "missed", "false", "score", "null", "seconds", "note", "which"])
    for r in rows:
        which = "; ".join([*(f"-{name}" for name in r.missed), *(f"+{name}" for name in r.false)])
        counts = [len(r.found), len(r.missed), len(r.false)]
        writer.writerow([r.tool, r.model, *counts, r.score, r.null, round(r.seconds, 4), r.note, which])
    return text.getvalue()


def save(rows: Sequence[Row], folder: Path) -> tuple[Path, Path]:
    """exam.json and exam.csv in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exam.json").write_text(to_json(rows), encoding="utf-8")
    (folder / "exam.csv").write_text(to_csv(rows), encoding="utf-8")
    return folder / "exam.json", folder / "exam.csv"


# --- The models ------------------------------------------------------------------------------------------------------


def zoo() -> dict[str, Callable[[], KnownModel]]:
    """Every known model at the size of the exam: adders, circuits, programs of few layers on rows of up to 3 tokens,
    toy models with known features."""
    programs: dict[str, Callable[[], KnownModel]] = {
        f"program {name}": partial(compiled_program, name, vocab=program.vocab[:3], max_len=3)
        for name, program in PROGRAMS.items()
    }
    small = {name: build for name, build in programs.items() if build().model.n_layers <= MAX_LAYERS}  # type: ignore[attr-defined]
    return {**ADDERS, **CIRCUITS, **small, **DICTIONARIES}


def bounded(known: KnownModel) -> KnownModel:
    """The same known model; a circuit's truth speaks of at most MAX_ROWS rows, so that its search takes a second."""
    truth = known.truth
    if not isinstance(truth, CircuitTruth):
        return known
    batch, old = truth.batch, truth.unrotated
    if batch.weight is not None:  # a row that asks for nothing cannot be part of a pair
        batch = batch[batch.weight.sum(1) > 0]
    if len(batch) > MAX_ROWS:
        batch = batch[torch.randperm(len(batch), generator=generator(0, "exam"))[:MAX_ROWS]]
    if old is not None:
        old = dataclasses.replace(old, batch=batch)
    return dataclasses.replace(known, truth=dataclasses.replace(truth, batch=batch, unrotated=old))


def control_of(known: KnownModel) -> KnownModel:
    """The random-weight twin: the same task, nothing planted."""
    if isinstance(known.truth, AdderTruth):
        return random_adder(known.truth.p, 32, 64, seed=0)
    if isinstance(known.truth, DictionaryTruth):
        return other_directions(known, seed=0)
    return random_weights(known, seed=0)


# --- Adders: frequencies ---------------------------------------------------------------------------------------------


def _freqs(freqs: Iterable[int]) -> Names:
    return frozenset(f"k={k}" for k in freqs if k)


def _all_pairs(known: KnownModel, model: Any, site: str = "") -> Tensor:
    """Logits, or a site of layer 0, at the last position of every pair a, b in the order of the control's task."""
    fmt = "a b" if model.n_ctx == 2 else "a b ="
    inputs = dataclasses.replace(known.task, format=fmt).split(0).all.inputs  # type: ignore[type-var]
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs)
    return (cache[site, 0] if site else logits)[:, -1]


def logit_frequencies(known: KnownModel, model: Any) -> Names:
    return _freqs(key_logit_frequencies(_all_pairs(known, model), (_p(known),)).freqs)


def embedded_frequencies(known: KnownModel, model: Any) -> Names:
    table = model.W_E[: _p(known)].detach()
    power = power_by_frequency(table, (_p(known),), 0).sum(-1)
    return _freqs(key_frequencies(power, (_p(known),), dof=2 * table.shape[1]).freqs)


def frequencies_of_neurons(known: KnownModel, model: Any) -> Names:
    """Those of neurons explained by one frequency to at least 3/4: planted squares have .8, planted ReLUs .96."""
    neurons = neuron_frequencies(_all_pairs(known, model, "post"), (_p(known),))
    return _freqs(set(neurons.freq[neurons.frac > 0.75].tolist()))


def working_neurons(known: KnownModel, model: Any) -> Names:
    """Neurons whose ablation changes a logit of the pairs."""
    fmt = "a b" if model.n_ctx == 2 else "a b ="
    inputs = dataclasses.replace(known.task, format=fmt).split(0).all.inputs[::7]  # type: ignore[type-var]
    with torch.no_grad():
        clean = model(inputs, read=(-1,))

    def change(outputs: Tensor) -> Tensor:
        return (outputs - clean).abs().flatten(1).amax(1)

    effects = ablation_effects(model, inputs, 0, change, read=(-1,))
    return frozenset(f"n{m}" for m in (effects > EFFECT).nonzero().flatten().tolist())


def algorithm(known: KnownModel, model: Any) -> Names:
    """Zhong et al.'s three numbers; circularity .995 is their condition for reading the others."""
    fmt = "a b" if model.n_ctx == 2 else "a b ="
    task: Any = dataclasses.replace(known.task, format=fmt)  # type: ignore[type-var]
    numbers: Any = ClockPizza(n_triples=100, seed=0)(Snapshot(0, model, task, task.split(0)))
    if float(numbers["circularity"]) < 0.995:
        return frozenset()
    return frozenset({"pizza" if float(numbers["gradient_symmetricity"]) > 0.9 else "clock"})


def _p(known: KnownModel) -> int:
    return known.task.p  # type: ignore[attr-defined]


def _planted_neurons(known: KnownModel) -> Names:
    t: Any = known.truth
    works = [m for m, k in enumerate(t.neuron_freq.tolist()) if k and k not in t.neuron_decoys]
    return frozenset(f"n{m}" for m in works)


# --- Circuits: edges and components ----------------------------------------------------------------------------------


def _graph(model: Any) -> EdgeGraph:
    return EdgeGraph.of(model, split_embed="hook_pos_embed" in model.site_names)


def _truth(known: KnownModel) -> CircuitTruth:
    assert isinstance(known.truth, CircuitTruth)
    return known.truth


def _shuffled_pairs(known: KnownModel, pairings: int) -> Pairs:
    """The rows of the truth against others, in the first pairings of its own resampling; no wrong answers are named."""
    batch, g = _truth(known).batch, generator(0, "pairings")
    others = torch.cat([torch.randperm(len(batch), generator=g) for _ in range(pairings)])
    rows = torch.arange(len(batch)).repeat(pairings)
    weight = None if batch.weight is None else batch.weight[rows]
    return Pairs(batch.inputs[rows], batch.inputs[others], Answers(batch.targets[rows], None, weight), batch.read)


def _change_from(model: Any, inputs: Tensor, read: tuple[int, ...] | None) -> Callable[[Tensor, Answers], Tensor]:
    """The metric: largest change of a logit from the untouched run, at scored positions."""
    with torch.no_grad():
        clean = at_read(model(inputs), read)
    return lambda outputs, answers: _largest((outputs - clean).abs().amax(-1), answers)


def _largest(values: Tensor, answers: Answers) -> Tensor:
    return (values if answers.weight is None else values * (answers.weight > 0)).amax(-1)


def _edge_names(graph: EdgeGraph, effects: Tensor) -> Names:
    """Edges with any effect over [receiver, sender, ..., batch]."""
    any_effect = effects.nan_to_num().abs().flatten(2).amax(-1) > EFFECT
    return frozenset(f"{u} -> {v}" for u, v in graph.edges() if any_effect[graph.receiver(v), graph.sender(u)])


def _named(edge: tuple[str, str], positions: bool) -> str:
    u, v = edge
    return f"{u if positions or u != 'tok' else 'embed'} -> {v}"


def edges_that_matter(known: KnownModel, ablation: str) -> Names:
    positions = "hook_pos_embed" in known.model.site_names
    return frozenset(_named(edge, positions) for edge in _truth(known).circuit[ablation].matters)


def exact_edges(known: KnownModel, model: Any, ablation: str, by_position: bool = False) -> Names:
    """Edges that change a scored logit of some row (by_position: when exchanged at some single position)."""
    graph, pairs = _graph(model), _shuffled_pairs(known, PAIRINGS if by_position else n_trials(ablation))
    if ablation == "resample":
        instead = sender_outputs(model, pairs.corrupted, graph)
    else:
        instead = replacement(model, graph, pairs.clean, ablation)
    metric = _change_from(model, pairs.clean, pairs.read)
    effects = edge_effects(model, pairs, metric, replacement=instead, graph=graph, by_position=by_position)
    return _edge_names(graph, effects.values)


def first_order_edges(known: KnownModel, model: Any, method: Callable[..., Any]) -> Names:
    graph = _graph(model)
    return _edge_names(graph, method(model, _shuffled_pairs(known, PAIRINGS), graph=graph).values)


def resampled_writers(known: KnownModel) -> Names:
    """Senders whose edge to the output matters under resampling, which tokens alone can change: "tok" is "embed"."""
    names = (name.split(" ")[0] for name in _RESAMPLED(known) if name.endswith(" -> out"))
    return frozenset("embed" if name == "tok" else name for name in names)


def path_patched_writers(known: KnownModel, model: Any) -> Names:
    """Senders that change a scored logit by their path to the output alone."""
    pairs = _shuffled_pairs(known, n_trials("resample"))
    metric = _change_from(model, pairs.clean, pairs.read)
    senders = [u for u, v in EdgeGraph.of(model).edges() if v == "out"]
    effects = (path_patch(model, pairs, u, ["out"], metric, freeze_mlps=True) for u in senders)
    return frozenset(u for u, effect in zip(senders, effects, strict=True) if effect.abs().amax() > EFFECT)


def components_that_matter(known: KnownModel) -> Names:
    """Heads and MLPs that send along an edge of the resampling circuit."""
    circuit = _truth(known).circuit["resample"]
    return frozenset(u for u, _ in circuit.matters | circuit.minimal if u not in ("tok", "pos"))


def _components(model: Any, sweep: Callable[[str, str], Tensor]) -> Names:
    """Heads and MLPs with any effect; sweep(site, axes) -> [*axes, batch]."""
    heads = sweep("z", "layer head").abs().amax(-1) > EFFECT
    found = {f"a{layer}.{head}" for layer, head in heads.nonzero().tolist()}
    if model.d_mlp:
        mlps = sweep("mlp_out", "layer").abs().amax(-1) > EFFECT
        found |= {f"m{layer}" for layer in mlps.nonzero().flatten().tolist()}
    return frozenset(found)


def ablated_components(known: KnownModel, model: Any) -> Names:
    batch, g = _truth(known).batch, generator(0, "exam")
    answers, metric = Answers(batch.targets, None, batch.weight), _change_from(model, batch.inputs, batch.read)

    def sweep(site: str, axes: str) -> Tensor:
        drawn = [
            ablate(model, batch.inputs, answers, site, axes, metric, "resample", batch.read, generator=g).values
            for _ in range(n_trials("resample"))
        ]
        return torch.cat(drawn, -1)

    return _components(model, sweep)


def attributed_components(known: KnownModel, model: Any, method: Callable[..., Any]) -> Names:
    pairs = _shuffled_pairs(known, PAIRINGS)

    def sweep(site: str, axes: str) -> Tensor:
        result = method(model, pairs, site, axes, direction="noise")
        return result.values - result.base

    return _components(model, sweep)


def star(model: Any, *args: Any, **kwargs: Any) -> Any:
    """AtP*, whose GradDrop needs a second layer."""
    return attribute_star(model, *args, drop=model.n_layers > 1, **kwargs)


def direct_writers(known: KnownModel) -> Names:
    """Senders whose edge to the output matters when set to zero."""
    positions = "hook_pos_embed" in known.model.site_names
    edges = _truth(known).circuit["zero"].matters
    return frozenset(_named(edge, positions).split(" ")[0] for edge in edges if edge[1] == "out")


def attributed_writers(known: KnownModel, model: Any) -> Names:
    """Rows of the direct logit attribution that are not 0 for some logit at a scored position."""
    batch, tok = _truth(known).batch, "tok" if "hook_pos_embed" in model.site_names else "embed"
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.inputs)
        parts = [direct_logits(model, cache, c, by="head") for c in range(model.W_U.shape[1])]
    scored = _scored_positions(batch)
    size = torch.stack([part.values[:, scored].abs().amax(-1) for part in parts]).amax(0)
    named = {"embed": tok, "pos_embed": "pos"}
    rewrite = [(r"L(\d+)H(\d+)", r"a\1.\2"), (r"(\d+)_mlp_out", r"m\1")]
    names = [named.get(label, label) for label in parts[0].labels]
    for pattern, new in rewrite:
        names = [re.sub(pattern, new, name) for name in names]
    return frozenset(name for name, s in zip(names, size.tolist(), strict=True) if s > EFFECT and name != "bias")


def _scored_positions(batch: Batch) -> Tensor:
    """[batch, pos], True where an answer is asked."""
    n, n_pos = batch.inputs.shape
    mask = torch.zeros(n, n_pos, dtype=torch.bool)
    read = list(range(n_pos)) if batch.read is None else list(batch.read)
    mask[:, read] = True if batch.weight is None else batch.weight > 0
    return mask


# --- Lenses ----------------------------------------------------------------------------------------------------------


def answer_from(known: KnownModel) -> Names:
    """The streams, by the lens's labels, in which the variable that is the answer stands; "" for no such variable."""
    truth = _truth(known)
    batch, latents = truth.batch, known.task.latents(truth.batch.inputs)
    asked = _scored_positions(batch)
    targets = torch.full(batch.inputs.shape, -1)
    targets[:, list(range(targets.shape[1])) if batch.read is None else list(batch.read)] = batch.targets
    model: Any = known.model
    for v in truth.variables.values():
        values = latents[v.latent].values if v.latent in latents else None
        is_answer = values is not None and values.shape == targets.shape and torch.equal(values[asked], targets[asked])
        if is_answer and (match := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", v.site)):
            layers = range(int(match[1]) + 1, model.n_layers)
            return frozenset({*(f"{layer}_pre" for layer in layers), "final_post"})
    return frozenset()


def lens_answers(known: KnownModel, model: Any, tuned: bool) -> Names:
    """The streams from which the lens answers everything right."""
    batch = _truth(known).batch
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.inputs)
    if tuned:
        logits, labels = fit_tuned_lens(model, batch.inputs, steps=3, positions=batch.read)(model, cache)
    else:
        logits, labels = logit_lens(model, cache)
    chosen = logits.argmax(-1)
    chosen = chosen if batch.read is None else chosen[:, :, list(batch.read)]
    wrong = (chosen != batch.targets) & (torch.ones(1) if batch.weight is None else batch.weight).gt(0)
    return frozenset(label for label, bad in zip(labels, wrong.flatten(1).any(1).tolist(), strict=True) if not bad)


# --- Attention and weights -------------------------------------------------------------------------------------------

KINDS = {"previous token": "previous", "induction": "induction"}  # nodes of the truth -> kinds of attention.head_scores
DETECTED = {"previous token": "previous_token_head", "induction": "induction_head"}
SAME = {"tokens 1 before": "previous token"}  # what compiled programs call it


def head_kinds(known: KnownModel) -> Names:
    nodes = {node: SAME.get(what, what) for node, what in _truth(known).nodes.items()}
    return frozenset(f"{node}: {what}" for node, what in nodes.items() if what in KINDS and node.startswith("a"))


def _heads(scores: Tensor, cut: float, what: str) -> Names:
    return frozenset(f"a{layer}.{head}: {what}" for layer, head in (scores > cut).nonzero().tolist())


def attending_heads(known: KnownModel, model: Any) -> Names:
    """Olsson et al.'s cut: half of the attention on the keys of that kind."""
    tokens = _truth(known).batch.inputs
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    scores = attention.head_scores(attention.stack_patterns(cache), tokens)
    return frozenset().union(*(_heads(scores[kind], 0.5, what) for what, kind in KINDS.items()))


def detected_heads(known: KnownModel, model: Any) -> Names:
    """TransformerLens's detector; .4, its share cannot reach 1 where half of the queries have no such key."""
    tokens = _truth(known).batch.inputs
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    pattern = attention.stack_patterns(cache)
    found = (_heads(attention.detect_head(pattern, tokens, kind), 0.4, what) for what, kind in DETECTED.items())
    return frozenset().union(*found)


def copying_heads(known: KnownModel, model: Any) -> Names:
    return _heads(weights.copying_scores(model), 0.5, "induction")


def compositions(known: KnownModel) -> Names:
    """Edges from head to head of the zeroing circuit; empty for a single layer."""
    edges = _truth(known).circuit["zero"].matters
    return frozenset(f"{u} -> {v}" for u, v in edges if u.startswith("a") and v.startswith("a"))


def composing_heads(known: KnownModel, model: Any) -> Names:
    """Composition four standard deviations above random heads of the same sizes."""
    found: set[str] = set()
    for kind in "QKV":
        z = weights.composition_z(model, kind, generator(0, "exam")).nan_to_num()
        strong = (z > 4).nonzero().tolist()
        found |= {f"a{l1}.{h1} -> a{l2}.{h2}.{kind.lower()}" for l1, h1, l2, h2 in strong}
    return frozenset(found)


# --- Variables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Labelled:
    """A variable of the truth with its latent: value [row] as it is, y [row] classes (above the mean, for a number)."""

    variable: Variable
    value: Tensor
    y: Tensor
    rows: Tensor  # [batch, pos], where it is defined


def _world(known: KnownModel) -> Tensor:
    """Inputs to fit on: the table of a finite world (repeated if it has but a few rows), or a fixed draw."""
    inputs = known.task.split(0).all.inputs
    inputs = inputs[: FIT_POSITIONS // inputs.shape[1]]
    return inputs.repeat(-(-128 // len(inputs)), 1)


def labelled(known: KnownModel, inputs: Tensor) -> dict[str, Labelled]:
    """The variables that a latent of the task names and that vary; those that no latent names have no label."""
    latents, found = known.task.latents(inputs), {}
    for name, v in _truth(known).variables.items():
        if v.latent in latents:
            rows, value, y = _labels(v, latents[v.latent])
            if len(y) and (y != y[0]).any():
                found[name] = Labelled(v, value, y, rows)
    return found


def _labels(v: Variable, latent: Latent) -> tuple[Tensor, Tensor, Tensor]:
    values = latent.values
    rows = values >= 0 if latent.classes else torch.isfinite(values)
    if v.positions is not None:
        rows = rows & torch.zeros_like(rows).index_fill(1, torch.tensor(v.positions) % rows.shape[1], True)
    value = values[rows]
    if v.numerical or not latent.classes:
        return rows, value, (value > value.double().mean()).long()
    return rows, value, value


def variables(known: KnownModel) -> Names:
    return frozenset(labelled(known, _world(known)))


def variables_read(known: KnownModel) -> Names:
    """Those that a later component reads: probes see the others too, interventions must not."""
    return frozenset(name for name, x in labelled(known, _world(known)).items() if x.variable.read)


def _site(model: Any, inputs: Tensor, full: str) -> Tensor:
    with torch.no_grad():
        return model.run_with_cache(inputs, full)[1][full]


def _auroc(fit: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor, group: Tensor) -> float:
    """On sequences the probe has not seen; a world of a few rows is the same on both sides."""
    train, test = probe_scores.split_by_group(group, 0.6, generator(0, "split"))
    if len((y[train]).unique()) < len(y.unique()) or len(y[test].unique()) < 2:
        train = test = torch.arange(len(y))
    return float(probe_scores.evaluate(fit(x[train], y[train]), x[test], y[test])["auroc"].value.squeeze())


def probed(known: KnownModel, model: Any, fit: Callable[[Tensor, Tensor], Any]) -> Names:
    """Variables that the probe reads at their site, and labels shuffled over rows that it must not."""
    inputs, found = _world(known), set()
    for name, x in labelled(known, inputs).items():
        at = _site(model, inputs, x.variable.site)[x.rows]
        group = torch.arange(len(inputs))[:, None].expand_as(x.rows)[x.rows]
        shuffled = x.y[torch.randperm(len(x.y), generator=generator(0, "shuffle"))]
        found |= {name} if _auroc(fit, at, x.y, group) > READABLE else set()
        found |= {f"shuffled {name}"} if _auroc(fit, at, shuffled, group) > READABLE else set()
    return frozenset(found)


def linear(kind: str, x: Tensor, y: Tensor) -> probes.Probe:
    return probes.fit(x, y, kind, penalty=0.0 if kind == "mass_mean" else 1e-3)


def small_mlp(x: Tensor, y: Tensor) -> probes.MLPProbe:
    return probes.fit_mlp(x, y, 8, 30, generator(0, "fit"), lr=0.1, batch_size=256)


def _by_mlp(known: KnownModel) -> dict[str, tuple[int, Labelled]]:
    """Yes-or-no variables that an MLP writes -> its layer."""
    found, model = {}, known.model
    for name, x in labelled(known, _world(known)).items():
        match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", x.variable.site)
        layer = int(match[1]) if match else -1
        if match and f"m{layer}" in _truth(known).nodes and len(x.variable.values) == 2 and model.d_mlp:  # type: ignore[attr-defined]
            found[name] = (layer, x)
    return found


def concepts_planted(known: KnownModel) -> Names:
    return frozenset(f"m{layer}: {name}" for name, (layer, _) in _by_mlp(known).items())


def neuron_concepts(known: KnownModel, model: Any) -> Names:
    """Layers with a neuron that is the variable (|correlation| at least .99) beyond its permutation null."""
    inputs, found = _world(known), set()
    for name, (_, x) in _by_mlp(known).items():
        concept = concepts_of({name: Latent(x.y[:, None], ("no", "yes"))})
        for layer in range(model.n_layers):
            post = _site(model, inputs, f"blocks.{layer}.mlp.hook_post")[x.rows]
            scores = score_concepts(post, concept, generator(0, "exam"), n_permutations=99)
            strong = scores.found & (scores.correlation.abs() > 0.99)
            found |= {f"m{layer}: {name}"} if strong.any() else set()
    return frozenset(found)


def two_neurons(known: KnownModel, model: Any, select: str) -> Names:
    """Variables that a probe on two neurons of the layer that writes them reads, and shuffled ones."""
    inputs, found = _world(known), set()
    for name, (layer, x) in _by_mlp(known).items():
        post = _site(model, inputs, f"blocks.{layer}.mlp.hook_post")[x.rows]
        group = torch.arange(len(inputs))[:, None].expand_as(x.rows)[x.rows]
        fit = partial(sparse_probes.fit_sparse, k=min(2, post.shape[1]), select=select, penalty=1e-3)
        shuffled = x.y[torch.randperm(len(x.y), generator=generator(0, "shuffle"))]
        found |= {f"m{layer}: {name}"} if _auroc(fit, post, x.y, group) > READABLE else set()
        found |= {f"shuffled {name}"} if _auroc(fit, post, shuffled, group) > READABLE else set()
    return frozenset(found)


def erased(known: KnownModel, model: Any) -> Names:
    """Variables whose ridge probe, fitted after the erasure, says the same of every row; random subspaces must not."""
    inputs, found = _world(known), set()
    for name, x in labelled(known, inputs).items():
        at = _site(model, inputs, x.variable.site)[x.rows]
        leace = erasure.fit(at, x.value)
        random = erasure.random_eraser(leace.mean, leace.rank, generator(0, "random"))
        for label, eraser in ((name, leace), (f"random subspace, {name}", random)):
            after = eraser(at)
            scores = linear("ridge", after, x.y).scores(after)
            found |= {label} if (scores - scores.mean(0)).nan_to_num().abs().max() < 1e-3 else set()
    return frozenset(found)


def amnesic(known: KnownModel, model: Any) -> Names:
    """Variables whose erasure costs accuracy, more than erasing as many random directions."""
    batch, found = known.task.split(0).all, set()
    batch = batch[: FIT_POSITIONS // batch.inputs.shape[1]]
    weight = torch.ones(batch.targets.shape) if batch.weight is None else batch.weight.float()

    def accuracy(outputs: Tensor) -> Tensor:
        right = (at_read(outputs, batch.read).argmax(-1) == batch.targets).float()
        return (right * weight).sum() / weight.sum()

    for name, x in labelled(known, batch.inputs).items():
        v = x.variable
        eraser = erasure.fit(_site(model, batch.inputs, v.site)[x.rows], x.value)
        test = erasure.amnesic_test(
            model, batch.inputs, v.site, eraser, accuracy, generator(0, "exam"), n_random=8, positions=v.positions
        )
        found |= {name} if test.effect > RELIES and test.z > 2 else set()
    return frozenset(found)


def projected(known: KnownModel, model: Any) -> Names:
    """Variables along whose planted directions projecting the stream out changes a logit."""
    batch, found = _truth(known).batch, set()
    metric = _change_from(model, batch.inputs, batch.read)
    answers = Answers(batch.targets, None, batch.weight)
    for name in variables_read(known) | variables(known):
        v = _truth(known).variables[name]
        directions = v.directions[v.directions.norm(dim=1) > 0]
        edit = steering.project_out(v.site, directions, v.positions)
        with torch.no_grad():
            outputs = at_read(model(batch.inputs, edit), batch.read)
        found |= {name} if (metric(outputs, answers) > EFFECT).any() else set()
    return frozenset(found)


def fetching_heads(known: KnownModel) -> Names:
    """Heads that the truth says carry one variable, if some pair of inputs tells it apart from the others carried."""
    return frozenset(f"{node}: {what}" for node, what in _carried(known).items() if _twins(known, what) is not None)


def _carried(known: KnownModel) -> dict[str, str]:
    """Head -> the read variable, with a latent, that it alone computes."""
    truth = _truth(known)
    latents = known.task.latents(truth.batch.inputs)
    heads = {node: truth.variables.get(what) for node, what in truth.nodes.items() if node.startswith("a")}
    return {node: truth.nodes[node] for node, v in heads.items() if v is not None and v.read and v.latent in latents}


def _twins(known: KnownModel, what: str) -> Pairs | None:
    """Rows with others that differ in this variable and in the answer, and in no other variable that a head carries.

    `Task.counterfactual` holds the answer where it can, and then no patch changes anything.
    """
    truth, carried = _truth(known), set(_carried(known).values())
    latents = known.task.latents(truth.batch.inputs)
    wanted = torch.ones(len(truth.batch), len(truth.batch), dtype=torch.bool)
    for name in carried:
        v = truth.variables[name]
        values = latents[v.latent].values
        values = values if v.positions is None else values[:, list(v.positions)]
        differs = (values[:, None] != values[None]).flatten(2).any(-1)
        wanted &= differs if name == what else ~differs
    targets, weight = truth.batch.targets, truth.batch.weight
    both = torch.ones(()) if weight is None else weight[:, None] * weight[None]
    wanted &= ((targets[:, None] != targets[None]) & (both > 0)).any(-1)
    rows = wanted.any(1).nonzero().flatten()
    if not len(rows):
        return None
    return Pairs.of(truth.batch[rows], truth.batch[wanted[rows].int().argmax(1)])


def patched_heads(known: KnownModel, model: Any, direction: str) -> Names:
    """Heads of the layer that carries a variable through which changing it moves the right logit."""
    found: set[str] = set()
    for node, what in _carried(known).items():
        pairs, layer = _twins(known, what), int(node[1:].split(".")[0])
        if pairs is not None:
            sweep = patch(model, pairs, "z", "layer head", logit_diff, direction, layers=[layer])
            effect = (sweep.values - sweep.base).abs().amax(-1)[0]
            found |= {f"a{layer}.{head}: {what}" for head in (effect > EFFECT).nonzero().flatten().tolist()}
    return frozenset(found)


# --- Dictionaries ----------------------------------------------------------------------------------------------------


def features_among(known: KnownModel, directions: Tensor) -> Names:
    """The features that these directions are, at a cosine of FOUND or more; a direction that is none by its number."""
    features = _dictionary(known).features
    names, cos = list(features), recovery.cosines(directions, torch.stack([*features.values()]))
    best = zip(cos.amax(1).tolist(), cos.argmax(1).tolist(), strict=True)
    return frozenset(names[j] if c >= FOUND else f"no feature: latent {i}" for i, (c, j) in enumerate(best))


def own_weights(known: KnownModel, model: Any) -> Names:
    """The oracle: the embedding itself, which nobody has of a trained network."""
    return features_among(known, model.W.detach())


def random_directions(known: KnownModel, model: Any) -> Names:
    """Chance: as many as there are features."""
    n, d = model.W.shape
    return features_among(known, recovery.random_dictionaries(1, n, d, generator(0, "random directions"))[0])


def trained_latents(known: KnownModel, model: Any, kind: str) -> Names:
    """The latents that ever fire of one dictionary, trained on the hidden layer, with as many as there are features."""
    truth, task = _dictionary(known), known.task
    snap = Snapshot(0, model, task, task.split(0), "mse")
    spec = lineup(len(truth.features), truth.active)[kind]
    sae = train_sae([spec], Stream.of_snapshot(snap, "hidden", rows=1 << 14), SAE_TRAINING).saes[0]
    return features_among(known, sae.W_dec[(sae.encode(rows_of(snap, "hidden")) > 0).any(0)])


def _dictionary(known: KnownModel) -> DictionaryTruth:
    assert isinstance(known.truth, DictionaryTruth)
    return known.truth


# --- All questions ---------------------------------------------------------------------------------------------------

_WAVES, _CIRCUIT, _WHERE, _NODES = ("freqs",), ("circuit",), ("variables",), ("nodes", "variables")
_SPARSE: dict[str, Callable[[KnownModel, Any], Names]] = {
    "oracle": own_weights,
    "random directions": random_directions,
    **{kind: partial(trained_latents, kind=kind) for kind in lineup(2, 1.0)},
}


def _edge_question(ablation: str) -> Question:
    tool = f"edge effects, {ablation}"
    return Question(
        tool, _CIRCUIT, partial(edges_that_matter, ablation=ablation), partial(exact_edges, ablation=ablation)
    )


def _probe_question(name: str, fit: Callable[[Tensor, Tensor], Any]) -> Question:
    return Question(f"probe, {name}", _WHERE, variables, partial(probed, fit=fit))


_RESAMPLED = partial(edges_that_matter, ablation="resample")
QUESTIONS: tuple[Question, ...] = (
    Question("key frequencies of logits", _WAVES, lambda k: _freqs(k.truth.freqs), logit_frequencies, True),  # type: ignore[attr-defined]
    Question(
        "frequencies of the embedding",
        ("embedded",),
        lambda k: _freqs(k.truth.embedded),  # type: ignore[attr-defined]
        embedded_frequencies,
        True,
    ),
    Question(
        "frequencies of neurons",
        ("neuron_freq",),
        lambda k: _freqs(k.truth.neuron_freq.tolist()),  # type: ignore[attr-defined]
        frequencies_of_neurons,
        True,
    ),
    Question("neuron ablation", ("neuron_freq", "neuron_decoys"), _planted_neurons, working_neurons),
    Question(
        "clock or pizza",
        ("algorithm",),
        lambda k: frozenset({k.truth.algorithm} & {"clock", "pizza"}),  # type: ignore[attr-defined]
        algorithm,
        True,
    ),
    *(_edge_question(ablation) for ablation in ABLATIONS),
    Question(
        "edges by position, resample", _CIRCUIT, _RESAMPLED, partial(exact_edges, ablation="resample", by_position=True)
    ),
    *(
        Question(name, _CIRCUIT, _RESAMPLED, partial(first_order_edges, method=method))
        for name, method in (
            ("EAP", eap),
            ("EAP, 5 steps", partial(eap, steps=5)),
            ("EAP, 5 steps along activations", partial(eap, steps=5, along="activations")),
            ("mask gradient, 5 steps", partial(mask_gradient, steps=5)),
        )
    ),
    Question("path patching to the output", _CIRCUIT, resampled_writers, path_patched_writers),
    Question("ablation of components", _CIRCUIT, components_that_matter, ablated_components),
    *(
        Question(name, _CIRCUIT, components_that_matter, partial(attributed_components, method=method))
        for name, method in (
            ("attribution patching", attribute),
            ("attribution patching, 5 steps", partial(attribute, steps=5)),
            ("AtP*", star),
        )
    ),
    Question("patching of heads, noising", _NODES, fetching_heads, partial(patched_heads, direction="noise")),
    Question("patching of heads, denoising", _NODES, fetching_heads, partial(patched_heads, direction="denoise")),
    Question("direct logit attribution", _CIRCUIT, direct_writers, attributed_writers),
    Question("logit lens", _WHERE, answer_from, partial(lens_answers, tuned=False)),
    Question("tuned lens", _WHERE, answer_from, partial(lens_answers, tuned=True)),
    Question("attention scores", ("nodes",), head_kinds, attending_heads),
    Question("head detector", ("nodes",), head_kinds, detected_heads),
    Question(
        "copying score",
        ("nodes",),
        lambda k: frozenset(n for n in head_kinds(k) if n.endswith("induction")),
        copying_heads,
    ),
    Question("composition scores", _CIRCUIT, compositions, composing_heads),
    *(_probe_question(kind, partial(linear, kind)) for kind in ("ridge", "lda", "mass_mean", "logistic")),
    _probe_question("mlp", small_mlp),
    Question("probe on two neurons", _NODES, concepts_planted, partial(two_neurons, select="f_statistic")),
    Question("probe on two neurons, L1 path", _NODES, concepts_planted, partial(two_neurons, select="l1")),
    Question("neuron concepts", _NODES, concepts_planted, neuron_concepts),
    Question("erasure (LEACE)", _WHERE, variables, erased),
    Question("amnesic test", _WHERE, variables_read, amnesic),
    Question("projecting a variable out", _WHERE, variables_read, projected),
    *(
        Question(f"dictionary, {name}", ("features",), lambda k: frozenset(k.truth.features), find)  # type: ignore[attr-defined]
        for name, find in _SPARSE.items()
    ),
)


def chosen(tools: Sequence[str]) -> list[Question]:
    """The questions of these tools, by the start of their names; all if none is named."""
    for tool in tools:
        require(
            any(q.tool.startswith(tool) for q in QUESTIONS),
            f"no tool {tool!r}; there are {', '.join(q.tool for q in QUESTIONS)}",
        )
    return [q for q in QUESTIONS if not tools or any(q.tool.startswith(tool) for tool in tools)]
