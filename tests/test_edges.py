"""The edge graph: its counts, the masked run's identities, and an induction head whose working edges are known."""

import pytest
import torch
from cases.models import ALL_BIASES, REPEATED, rng, scrambled, spec

from toylab.errors import UserError
from toylab.interp import edges, patching
from toylab.interp.edges import (
    EdgeGraph,
    eap,
    edge_effects,
    edge_effects_serial,
    mask_gradient,
    masked_outputs,
    n_edges,
    path_patch,
    replacement,
    sender_outputs,
)
from toylab.interp.patching import Answers, Pairs, logit_diff
from toylab.known.circuits import gate
from toylab.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

# Small, but every kind of node: norms, biases, rotary positions, no MLP, and (LINEAR) a model affine throughout.
LN = spec(n_layers=2, n_heads=2, norm="LN", biases=ALL_BIASES, act="gelu")
ROTARY = spec(n_layers=2, n_heads=2, norm="RMS", positions="rotary", attention="bidirectional", biases=("O", "V"))
ATTENTION_ONLY = spec(n_layers=2, n_heads=2, d_mlp=0)
LINEAR = spec(n_layers=2, n_heads=2, act="identity", attention_rate=0.0, biases=ALL_BIASES)
MODELS = [pytest.param(s, id=name) for name, s in (("LN", LN), ("rotary", ROTARY), ("attention only", ATTENTION_ONLY))]


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)


def pairs_for(n=4, read=(-1, 3)):
    g = rng(2)
    clean, corrupted = (REPEATED.sample(n, g).inputs for _ in range(2))
    n_read = clean.shape[1] if read is None else len(read)
    right = torch.randint(REPEATED.d_out, (n, n_read), generator=g)
    return Pairs(clean, corrupted, Answers(right, (right + 1) % REPEATED.d_out), read)


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "heads", "mlp", "direct", "count"),
    [
        (12, 12, True, False, 32491),
        (12, 12, True, True, 32923),
        (4, 8, False, False, 1281),
        (4, 8, False, True, 1377),
        (2, 8, False, False, 257),
        (2, 4, True, False, 110),
        (1, 4, True, False, 23),
    ],
)
def test_g1_edge_counts(layers, heads, mlp, direct, count):
    """Row G1: GPT-2 small as counted by EAP and ACDC, the docstring model, and three toys; formula = enumeration."""
    graph = EdgeGraph(layers, heads, mlp)
    assert n_edges(layers, heads, mlp, direct=direct) == graph.n_edges(direct) == count
    assert len(graph.edges()) == int(graph.exists.sum()) == count - direct * 3 * layers * heads
    assert len(graph.senders) == 1 + layers * (heads + mlp)
    assert len(graph.receivers) == layers * (3 * heads + mlp) + 1


def test_the_order_of_nodes():
    graph = EdgeGraph(2, 2, True, split_embed=True)
    assert graph.senders == ("tok", "pos", "a0.0", "a0.1", "m0", "a1.0", "a1.1", "m1")
    assert graph.receivers[:7] == ("a0.0.q", "a0.1.q", "a0.0.k", "a0.1.k", "a0.0.v", "a0.1.v", "m0")
    assert ("a1.0", "m1") in graph.edges()
    assert ("a0.0", "a0.1.q") not in graph.edges()
    assert ("m0", "m0") not in graph.edges()
    assert graph.n_edges() == len(graph.edges())


# --- the masked run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MODELS)
@pytest.mark.parametrize("split", [False, True])
def test_g2_1_all_edges_kept_is_the_clean_run_and_none_the_other(spec, split):
    model, pairs = scrambled(spec, REPEATED), pairs_for()
    if split and spec.positions == "rotary":
        with pytest.raises(UserError, match="adds no position embedding"):
            EdgeGraph.of(model, split_embed=True)
        return
    graph = EdgeGraph.of(model, split)
    values = sender_outputs(model, pairs.corrupted, graph)
    both = torch.stack([graph.keep(), graph.keep([])])
    outputs = masked_outputs(model, pairs.clean, graph, both, values)
    close(outputs[0], model(pairs.clean))
    close(outputs[1], model(pairs.corrupted))
    with pytest.raises(AssertionError):
        close(outputs[0], outputs[1])


@pytest.mark.parametrize("spec", MODELS)
def test_g2_2_edges_turned_off_one_at_a_time_add_up(spec):
    """In any order; and the run between is neither end, so the sum is not empty of content."""
    model, pairs = scrambled(spec, REPEATED), pairs_for()
    graph = EdgeGraph.of(model)
    values, all_edges = sender_outputs(model, pairs.corrupted, graph), graph.edges()
    keep = [graph.keep()]
    for i in torch.randperm(len(all_edges), generator=rng(7)).tolist():
        keep.append(keep[-1].clone())
        u, v = all_edges[i]
        keep[-1][graph.receiver(v), graph.sender(u)] = 0
    metric = logit_diff(masked_outputs(model, pairs.clean, graph, torch.stack(keep), values, pairs.read), pairs.answers)
    ends = [logit_diff(model(x)[:, list(pairs.read)], pairs.answers) for x in (pairs.clean, pairs.corrupted)]
    close(metric.diff(dim=0).sum(0), ends[1] - ends[0])
    assert (metric.diff(dim=0).abs().amax(1) > 1e-9).sum() > len(all_edges) // 2


def test_g2_3_attribution_is_exact_in_an_affine_model():
    """Also 1.6 (a): EAP equals the exact effect of every edge."""
    model, pairs = scrambled(LINEAR, REPEATED), pairs_for()
    close(eap(model, pairs).values, edge_effects(model, pairs).values)
    assert edge_effects(model, pairs).flat.abs().max() > 0.1
    with pytest.raises(AssertionError):  # and only there
        close(eap(scrambled(LN, REPEATED), pairs).values, edge_effects(scrambled(LN, REPEATED), pairs).values)


@pytest.mark.parametrize("spec", MODELS)
def test_g2_4_and_p4_eap_is_minus_the_mask_gradient(spec):
    """Against autograd through the masks, and against a finite difference."""
    model, pairs = scrambled(spec, REPEATED), pairs_for()
    graph = EdgeGraph.of(model)
    scores = eap(model, pairs)
    close(scores.mean, mask_gradient(model, pairs).mean)
    values = sender_outputs(model, pairs.corrupted, graph)
    for u, v in graph.edges()[::7]:
        keep = graph.keep()
        keep[graph.receiver(v), graph.sender(u)] -= 1e-6
        moved = logit_diff(masked_outputs(model, pairs.clean, graph, keep, values, pairs.read), pairs.answers)
        assert abs(float((moved - scores.base).mean().detach()) / 1e-6 - scores[u, v]) < 1e-4


@pytest.mark.parametrize("spec", MODELS)
def test_p4_integrated_mask_gradients_add_up(spec):
    """Row P4: all edges together, 1 % at m = 50; fractional masks are what they integrate over."""
    model, pairs = scrambled(spec, REPEATED), pairs_for(8)
    scores = mask_gradient(model, pairs, steps=50)
    gap = float((scores.target - scores.base).mean())
    assert abs(float(scores.flat.sum()) - gap) < 0.01 * abs(gap)


@pytest.mark.parametrize("spec", MODELS)
def test_g2_5_permuting_examples_permutes_their_effects(spec):
    model, pairs, order = scrambled(spec, REPEATED), pairs_for(), torch.tensor([2, 0, 3, 1])
    answers = Answers(pairs.answers.right[order], pairs.answers.wrong[order])
    moved = Pairs(pairs.clean[order], pairs.corrupted[order], answers, pairs.read)
    close(edge_effects(model, moved).values, edge_effects(model, pairs).values[..., order])
    close(eap(model, moved).values, eap(model, pairs).values[..., order])


# --- every single edge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MODELS)
@pytest.mark.parametrize("read", [None, (-1, 3)])
def test_exact_effects_equal_one_masked_run_per_edge(spec, read):
    model, pairs = scrambled(spec, REPEATED), pairs_for(read=read)
    direction = "noise" if read else "denoise"
    fast, slow = (f(model, pairs, direction=direction) for f in (edge_effects, edge_effects_serial))
    close(fast.values, slow.values)
    close(fast.base, slow.base)
    close(fast.target, slow.target)
    assert int(fast.values[..., 0].isfinite().sum()) == fast.graph.n_edges()


def test_exact_effects_under_ablation_and_with_split_embeddings(monkeypatch):
    model, pairs = scrambled(LN, REPEATED), pairs_for()
    graph = EdgeGraph.of(model, split_embed=True)
    for kind in ("mean", "noise"):
        values = replacement(model, graph, pairs.clean, kind, rng(4))
        fast, slow = (f(model, pairs, replacement=values, graph=graph) for f in (edge_effects, edge_effects_serial))
        close(fast.values, slow.values)
        assert fast.target.isnan().all()
    monkeypatch.setattr(edges, "CHUNK", 1)
    close(edge_effects(model, pairs, replacement=values, graph=graph).values, fast.values)


def test_replacing_an_input_by_itself_does_nothing():
    """Null: with the run's own values every mask, edge and path is the clean run."""
    model, pairs = scrambled(LN, REPEATED), pairs_for()
    graph = EdgeGraph.of(model)
    own = sender_outputs(model, pairs.clean, graph)
    scores = edge_effects(model, pairs, replacement=own)
    close(scores.flat, torch.zeros(graph.n_edges()).double(), 1e-12)
    close(eap(model, pairs, replacement=own).flat, torch.zeros(graph.n_edges()).double(), 1e-12)
    close(masked_outputs(model, pairs.clean, graph, graph.keep([]), own), model(pairs.clean), 1e-12)


def test_eap_is_blind_with_kl_at_the_clean_point():
    """Section 1.6 (e): the first derivative of KL(clean || .) at clean is 0; the exact effects are not."""
    model, pairs = scrambled(LN, REPEATED), pairs_for()
    metric = patching.kl_from(model(pairs.clean)[:, list(pairs.read)])
    close(eap(model, pairs, metric).flat, torch.zeros(EdgeGraph.of(model).n_edges()).double(), 1e-12)
    assert edge_effects(model, pairs, metric).flat.max() > 1e-3


def test_integrated_inputs_reach_further_than_the_end_point():
    """EAP-IG-inputs on the edges of the embedding in a one-layer model without norm: nearer to completeness."""
    model, pairs = scrambled(spec(act="gelu", n_heads=2), REPEATED), pairs_for(16)
    graph = EdgeGraph.of(model)
    of_embed = (graph.exists & (torch.arange(len(graph.senders)) == 0)).nonzero()[:, 0]
    exact = eap(model, pairs, steps=0).target - eap(model, pairs, steps=0).base
    errors = [
        float((eap(model, pairs, steps=steps).values[of_embed, 0].sum(0) - exact).abs().mean()) for steps in (0, 20)
    ]
    assert errors[1] < 0.1 * errors[0]


# --- gradients along a line ------------------------------------------------------------------------------------------


def group_sums(scores):
    """[group, batch], the sum of the scores of all edges out of the embedding, each attention layer and each MLP."""
    graph = scores.graph
    out_of = scores.values.nansum(0)
    groups = [out_of[: graph.n_before(0)].sum(0)]
    for layer in range(graph.n_layers):
        n = graph.n_before(layer)
        groups.append(out_of[n : n + graph.n_heads].sum(0))
        groups += out_of[n + graph.n_heads : n + graph.n_heads + graph.mlp]
    return torch.stack(groups)


def group_effects(model, pairs):
    """The exact effect of patching the embedding, each attn_out and each mlp_out, [group, batch]."""
    sweeps = [patching.patch(model, pairs, "resid_pre", "layer", direction="noise", layers=[0])]
    for layer in range(model.n_layers):
        sites = ["attn_out", "mlp_out"] if model.d_mlp else ["attn_out"]
        sweeps += [patching.patch(model, pairs, site, "layer", direction="noise", layers=[layer]) for site in sites]
    return torch.cat([sweep.values - sweep.base for sweep in sweeps])


@pytest.mark.parametrize("spec", MODELS)
def test_p4_scores_integrated_over_activations_add_up_to_the_effect_of_their_senders(spec):
    """Row P4 for EAP-IG-activations, 1 % at 50 steps, every group apart; plain EAP and EAP-IG-inputs do not."""
    model, pairs = scrambled(spec, REPEATED), pairs_for(3)
    exact = group_effects(model, pairs).mean(1)
    found = {
        name: group_sums(eap(model, pairs, **options)).mean(1)
        for name, options in (
            ("activations", {"steps": 50, "along": "activations"}),
            ("inputs", {"steps": 50}),
            ("plain", {}),
        )
    }
    bound = 0.01 * exact.abs().max()
    assert ((found["activations"] - exact).abs() < bound).all()
    for other in ("inputs", "plain"):
        assert ((found[other] - exact).abs() > bound).any(), other


@pytest.mark.parametrize("split", [False, True])
def test_one_midpoint_is_exact_where_the_metric_is_quadratic(split):
    """Section 1.6 (d): constant attention, one layer of squares; and an ablation is a line like any other."""
    quadratic = spec(n_heads=2, act="quadratic", attention_rate=0.0, biases=ALL_BIASES)
    model, pairs = scrambled(quadratic, REPEATED), pairs_for()
    graph = EdgeGraph.of(model, split_embed=split)
    one = eap(model, pairs, graph=graph, steps=1, along="activations")
    close(group_sums(one), group_effects(model, pairs))
    with pytest.raises(AssertionError):
        close(group_sums(eap(model, pairs, graph=graph)), group_effects(model, pairs))
    close(
        eap(model, pairs, graph=graph, replacement=sender_outputs(model, pairs.corrupted, graph)).values,
        eap(model, pairs, graph=graph).values,
    )


@pytest.mark.parametrize("along", ["inputs", "activations"])
def test_lines_change_nothing_in_an_affine_model_and_nothing_without_a_change(along):
    model, pairs = scrambled(LINEAR, REPEATED), pairs_for()
    close(eap(model, pairs, steps=3, along=along).values, eap(model, pairs).values)
    own = sender_outputs(model, pairs.clean, EdgeGraph.of(model))
    assert not eap(model, pairs, replacement=own, steps=3, along=along).flat.any()


def test_an_or_gate_is_seen_along_activations():
    """Table 1.2: the clean point is saturated, so EAP sees no head; along its line each has half the effect."""
    known = gate("or")
    zero = torch.zeros(1, 1, dtype=torch.long)
    pairs = Pairs(torch.tensor([[1, 1, 2]]), torch.tensor([[0, 0, 2]]), Answers(zero, zero + 1), (2,))
    heads = [("a0.0", "m0"), ("a0.1", "m0")]
    plain, line = eap(known.model, pairs), eap(known.model, pairs, steps=10, along="activations")
    gap = float(line.target - line.base)
    for edge in heads:
        assert abs(plain[edge]) < 1e-12
        assert line[edge] == pytest.approx(0.5 * gap, rel=1e-6)
    assert gap != 0


# --- edges by position -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MODELS)
def test_effects_by_position_equal_replacing_the_edge_there_alone(spec, monkeypatch):
    """The definition: a masked run per edge whose replacement is the other run at one position, this one elsewhere."""
    model, pairs = scrambled(spec, REPEATED), pairs_for(2)
    graph = EdgeGraph.of(model)
    own, other = (sender_outputs(model, x, graph) for x in (pairs.clean, pairs.corrupted))
    found = edge_effects(model, pairs, by_position=True)
    assert found.axes == ("receiver", "sender", "pos")
    for pos in (1, 4):
        there = own.clone()
        there[:, :, pos] = other[:, :, pos]
        close(found.values[:, :, pos], edge_effects_serial(model, pairs, replacement=there).values)
    if model.d_mlp:
        monkeypatch.setattr(edges, "CHUNK", 1)
        close(edge_effects(model, pairs, by_position=True).values, found.values)


def test_attribution_by_position_adds_up_and_is_exact_in_an_affine_model():
    for model_spec in (LN, LINEAR):
        model, pairs = scrambled(model_spec, REPEATED), pairs_for()
        for options in ({}, {"steps": 2, "along": "activations"}):
            close(eap(model, pairs, by_position=True, **options).values.sum(2), eap(model, pairs, **options).values)
    close(eap(model, pairs, by_position=True).values, edge_effects(model, pairs, by_position=True).values)


def test_positions_of_the_induction_circuit():
    """Each edge works where the circuit says: the query and the output at the end, key and value at the answer."""
    model, pairs = induction(), induction_pairs()
    found = edge_effects(model, pairs, graph=EdgeGraph.of(model, split_embed=True), by_position=True)
    whole = edge_effects(model, pairs, graph=found.graph)
    for edge in (("a1.0", "out"), ("tok", "a1.0.q"), ("tok", "a1.0.v")):
        by_place = torch.tensor([found[(*edge, pos)] for pos in range(CTX)])
        expected = torch.zeros(CTX)
        expected[LENGTH if edge[1] == "a1.0.v" else CTX - 1] = whole[edge]
        close(by_place, expected, 1e-5)
        assert abs(whole[edge]) > 1
    keys = torch.tensor([found["a0.0", "a1.0.k", pos] for pos in range(CTX)])
    assert keys.abs().argmax() == LENGTH  # elsewhere a corrupted key may match the query by chance
    assert {edge[:2] for edge in found.top(2)} <= {("a1.0", "out"), ("tok", "a1.0.q"), ("tok", "a1.0.v")}


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MODELS)
def test_p2_path_patching_with_everything_frozen_is_edge_noising(spec):
    """Row P2, for every single edge and for several receivers at once."""
    model, pairs = scrambled(spec, REPEATED), pairs_for()
    graph, scores = EdgeGraph.of(model), edge_effects(model, pairs)
    for u, v in graph.edges():
        path = path_patch(model, pairs, u, [v], freeze_mlps=True) - scores.base
        close(path, scores.values[graph.receiver(v), graph.sender(u)])
    receivers = ["a1.0.q", "a1.1.q", "a1.0.v", "out"]
    values = sender_outputs(model, pairs.corrupted, graph)
    cut = graph.keep(drop=[("a0.1", v) for v in receivers])
    outputs = masked_outputs(model, pairs.clean, graph, cut, values, pairs.read)
    close(path_patch(model, pairs, "a0.1", receivers, freeze_mlps=True), logit_diff(outputs, pairs.answers))


def test_p2_with_mlps_recomputed_paths_through_them_count():
    """a0.0 -> a1.0.k also by way of m0: the edge, and m0's answer to a0.0 alone."""
    model, pairs = scrambled(LN, REPEATED), pairs_for()
    graph = EdgeGraph.of(model)
    values = sender_outputs(model, pairs.corrupted, graph)
    # m0 as it would be if only a0.0 were exchanged in what it reads: a masked run says so.
    record = edges.Record({"blocks.0.hook_mlp_out"}.__contains__)
    sub = edges.Subgraph(graph, graph.keep(drop=[("a0.0", "m0")]), values)
    model.forward(pairs.clean, edges.Chain([sub, record]))
    values[graph.sender("m0")] = record.tensors["blocks.0.hook_mlp_out"]
    cut = graph.keep(drop=[("a0.0", "a1.0.k"), ("m0", "a1.0.k")])
    outputs = masked_outputs(model, pairs.clean, graph, cut, values, pairs.read)
    path = path_patch(model, pairs, "a0.0", ["a1.0.k"])
    close(path, logit_diff(outputs, pairs.answers))
    assert (path - path_patch(model, pairs, "a0.0", ["a1.0.k"], freeze_mlps=True)).abs().max() > 1e-6


# --- planted truth: the hand-wired induction head --------------------------------------------------------------------

N_TOKENS, LENGTH = 8, 4
VOCAB, CTX = N_TOKENS + 1, 2 * LENGTH


def induction() -> Transformer:
    """Stream = token | previous token | position | answer. a0.0 copies the token one back; a1.0 looks where the
    previous token is this one and copies the token there into the answer (section 7.3, with BOS)."""
    sizes = {"n_layers": 2, "n_heads": 1, "d_model": 3 * VOCAB + CTX, "d_head": VOCAB, "d_mlp": 0, "biases": ()}
    model = Transformer(spec(**sizes, attn_scale=1.0), d_vocab=VOCAB, n_ctx=CTX, d_out=VOCAB)
    tok, prev = slice(0, VOCAB), slice(VOCAB, 2 * VOCAB)
    pos, out = slice(2 * VOCAB, 2 * VOCAB + CTX), slice(2 * VOCAB + CTX, None)
    eye, beta = torch.eye(VOCAB, dtype=torch.float64), 30.0
    with torch.no_grad():
        model.W_E[:, tok] = eye
        model.W_pos[:, pos] = torch.eye(CTX, dtype=torch.float64)
        model.W_Q[0, 0, pos, :CTX] = beta * torch.eye(CTX, dtype=torch.float64).roll(-1, 1)  # position i asks for i - 1
        model.W_K[0, 0, pos, :CTX] = torch.eye(CTX, dtype=torch.float64)
        model.W_V[0, 0, tok] = eye
        model.W_O[0, 0, :, prev] = eye
        model.W_Q[1, 0, tok] = beta * eye
        model.W_K[1, 0, prev] = eye
        model.W_V[1, 0, tok] = eye
        model.W_O[1, 0, :, out] = eye
        model.W_U[out] = 20 * eye
    return model


def induction_pairs(n=16):
    """Two unrelated repeated sequences per pair, asked at the last position."""
    g = rng(3)
    rows = []
    for _ in range(2):
        copy = torch.rand(n, N_TOKENS, generator=g).argsort(1)[:, :LENGTH]
        rows.append(torch.cat([torch.full((n, 1), N_TOKENS), copy, copy[:, :-1]], 1))
    right = [x[:, LENGTH : LENGTH + 1] for x in rows]
    keep = (right[0] != right[1]).squeeze(1)
    return Pairs(rows[0][keep], rows[1][keep], Answers(right[0][keep], right[1][keep]), (-1,))


def test_h3_only_the_edges_of_the_induction_circuit_have_an_effect():
    """Rows H3 and 7.3: tok -> a0.v, pos -> a0.q, k; a0 -> a1.k; tok -> a1.q, v; a1 -> out. Exactly zero elsewhere."""
    model, pairs = induction(), induction_pairs()
    assert (model(pairs.clean)[:, -1].argmax(-1) == pairs.answers.right[:, 0]).all()
    graph = EdgeGraph.of(model, split_embed=True)
    of_tokens = {("tok", "a0.0.v"), ("a0.0", "a1.0.k"), ("tok", "a1.0.q"), ("tok", "a1.0.v"), ("a1.0", "out")}
    of_positions = {("pos", "a0.0.q"), ("pos", "a0.0.k")}
    values = replacement(model, graph, pairs.clean, "zero")
    for found, truth in (
        (edge_effects(model, pairs, graph=graph), of_tokens),  # positions are the same on both inputs
        (edge_effects(model, pairs, graph=graph, replacement=values), of_tokens | of_positions),
    ):
        assert {e for e in graph.edges() if abs(found[e]) > 1e-12} == truth
        assert set(found.top(len(truth))) == truth
    whole, base = EdgeGraph.of(model), edge_effects(model, pairs).base
    for u, v in whole.edges():
        path = path_patch(model, pairs, u, [v]) - base
        assert (path.abs().max() > 1e-12) == ((u.replace("embed", "tok"), v) in of_tokens), (u, v)


def test_h3_the_circuit_alone_is_enough():
    """Keeping only the seven edges, everything else zero, gives the same answers."""
    model, pairs = induction(), induction_pairs()
    graph = EdgeGraph.of(model, split_embed=True)
    circuit = [("tok", "a0.0.v"), ("pos", "a0.0.q"), ("pos", "a0.0.k"), ("a0.0", "a1.0.k"), ("tok", "a1.0.q")]
    circuit += [("tok", "a1.0.v"), ("a1.0", "out")]
    zero = replacement(model, graph, pairs.clean, "zero")
    close(masked_outputs(model, pairs.clean, graph, graph.keep(circuit), zero), model(pairs.clean), 1e-9)


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_mistakes_are_explained():
    model, pairs = scrambled(LN, REPEATED), pairs_for()
    graph = EdgeGraph.of(model)
    with pytest.raises(UserError, match=r'did you mean "a0.1"'):
        graph.sender("a0.l")
    with pytest.raises(UserError, match=r"a1.0 -> a0.0.q is no edge"):
        graph.keep([("a1.0", "a0.0.q")])
    with pytest.raises(UserError, match=r"a1.0 -> a1.1.q is no edge"):
        path_patch(model, pairs, "a1.0", ["a1.1.q"])
    with pytest.raises(UserError, match="receivers x 7 senders"):
        masked_outputs(model, pairs.clean, graph, torch.ones(3, 3), torch.zeros(7, 4, 6, 8))
    with pytest.raises(UserError, match="replacement of shape"):
        masked_outputs(model, pairs.clean, graph, graph.keep(), torch.zeros(7, 4, 5, 8))
    with pytest.raises(UserError, match="no gradient"):
        eap(model, pairs, patching.accuracy)
    with pytest.raises(UserError, match='did you mean "activations"'):
        eap(model, pairs, steps=2, along="activation")
    with pytest.raises(UserError, match=r"asked for by \(sender, receiver, position\)"):
        eap(model, pairs, by_position=True)["embed", "out"]
    assert "6 positions" in repr(eap(model, pairs, by_position=True))
