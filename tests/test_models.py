"""Every model keeps what its sites promise; MLP and Superposition equal their formulas written out."""

import math

import pytest
import torch
from cases.models import ADDITION, FEATURES, MLPS, MODELS, REPEATED, SUM_OF_THREE, SUPERPOSITIONS, rng, scrambled, spec

from toylab.errors import UserError
from toylab.models.mlp import MLPSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.taps import SITES, site_of

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
models = pytest.mark.parametrize(("spec", "task"), MODELS)


@models
def test_site_shapes_match_their_axes(spec, task):
    """An axis has one size throughout a model, the size its name promises; queries, keys and positions agree."""
    model = scrambled(spec, task)
    batch = task.sample(6, rng())
    _, cache = model.run_with_cache(batch.inputs, lambda name: True)
    assert list(cache) == list(model.site_names)
    sizes = {"batch": 6, "one": 1}
    # An MLP reads several operands and answers once: its `pos` axis is the operands in `embed`, then one.
    several = isinstance(spec, MLPSpec)
    for full, value in cache.items():
        names = SITES[site_of(full)[0]].axes.split()
        assert len(names) == value.ndim, full
        for name, size in zip(names, value.shape, strict=True):
            if name == "pos" and several:
                assert size == (len(model.positions) if full == "hook_embed" else 1)
            else:
                name = "pos" if name in ("query", "key") else name
                assert sizes.setdefault(name, size) == size, (full, name)
    for name in ("d_model", "d_head", "d_mlp", "d_hidden", "n_features"):
        if name in sizes:
            assert sizes[name] == getattr(model, name)
    if "head" in sizes:
        assert (sizes["head"], sizes["pos"]) == (spec.n_heads, task.n_ctx)


@models
def test_outputs_fit_the_targets(spec, task):
    model, batch = scrambled(spec, task), task.sample(6, rng())
    outputs = model(batch.inputs, read=batch.read)
    if hasattr(task, "d_out"):
        positions = 1 if isinstance(spec, MLPSpec) else batch.targets.shape[1]
        assert outputs.shape == (6, positions, task.d_out)
    else:
        assert outputs.shape == batch.targets.shape
    assert outputs.dtype == torch.float64


@models
def test_same_generator_same_bits_and_float32_starts_from_the_same_numbers(spec, task):
    import dataclasses

    one, two, other = spec.build(task, rng(1)), spec.build(task, rng(1)), spec.build(task, rng(2))
    single = dataclasses.replace(spec, dtype="float32").build(task, rng(1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    for a, b in zip(one.parameters(), single.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a.float(), b)


@models
def test_repr_says_what_it_is(spec, task):
    model = spec.build(task, rng())
    assert repr(model).startswith(type(model).__name__ + "(")
    assert f"{model.n_params():,} parameters" in repr(model)
    assert model.n_params() == sum(p.numel() for p in model.parameters())
    assert model(model.example_input()).isfinite().all()


# --- MLP --------------------------------------------------------------------------------------------------------------


def mlp_by_hand(model, row):
    """Logits of one row, neuron by neuron, from one-hot vectors."""
    s, width = model.spec, model.spec.d_embed or model.d_vocab
    vectors = []
    for i, position in enumerate(model.positions):
        one_hot = torch.zeros(model.d_vocab, dtype=torch.float64)
        one_hot[row[position]] = 1
        if s.d_embed:
            one_hot = one_hot @ (model.W_E[i] if s.embed == "separate" else model.W_E)
        vectors.append(one_hot)
    logits = torch.zeros(model.d_out, dtype=torch.float64) if model.b_U is None else model.b_U.clone()
    for m in range(s.d_mlp):
        total = 0.0 if model.b_in is None else model.b_in[0, m]
        for i, vector in enumerate(vectors):
            rows = slice(i * width, (i + 1) * width) if s.combine == "concat" else slice(None)
            total = total + (vector * model.W_in[0, rows, m]).sum()
        logits = logits + activation_by_hand(s.act, total) * model.W_U[m]
    return logits


def activation_by_hand(act, x):
    if act == "gelu":
        return x * (1 + math.erf(x / math.sqrt(2))) / 2
    return {"relu": max(x, 0 * x), "quadratic": x**2, "silu": x / (1 + math.exp(-x))}[act]


@pytest.mark.parametrize(("spec", "task"), MLPS)
@torch.no_grad()
def test_mlp_equals_its_formula(spec, task):
    model, inputs = scrambled(spec, task), task.sample(5, rng()).inputs
    by_hand = torch.stack([mlp_by_hand(model, row) for row in inputs.tolist()])
    torch.testing.assert_close(model(inputs)[:, 0], by_hand, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(inputs, read=(-1,))[:, 0], by_hand, rtol=0, atol=1e-10)


def test_mlp_reads_the_operands_and_nothing_else():
    model = scrambled(MLPSpec(8, 10, "relu", dtype="float64"), SUM_OF_THREE)
    inputs = SUM_OF_THREE.sample(5, rng()).inputs
    assert model.positions == [0, 2, 4]
    moved = inputs.clone()
    moved[:, [1, 3, 5]] = 0
    assert torch.equal(model(inputs), model(moved))
    for position in model.positions:
        moved = inputs.clone()
        moved[:, position] = (moved[:, position] + 1) % 3
        assert not torch.equal(model(inputs), model(moved))


def test_only_a_sum_of_one_table_forgets_the_order():
    inputs = ADDITION.sample(20, rng()).inputs
    swapped = inputs[:, [1, 0, 2]]
    for d_embed in (0, 8):
        for embed in ("shared", "separate"):
            for combine in ("concat", "sum"):
                model = scrambled(MLPSpec(d_embed, 10, "relu", embed, combine, dtype="float64"), ADDITION)
                forgets = combine == "sum" and (embed == "shared" or d_embed == 0)
                assert torch.allclose(model(inputs), model(swapped), rtol=0, atol=1e-12) == forgets


def test_random_phases_solve_addition_exactly():
    """Gromov 2023, equation 9 with W_out summing the phases: squares of cosines add mod p, in our weights."""
    from toylab.tasks.modular import ModularArithmetic

    task, N = ModularArithmetic(p=23, operation="x+y", frac_train=0.5), 4000
    model = MLPSpec(0, N, "quadratic", dtype="float64").build(task, rng())
    g, p = rng(1), 23
    freq = torch.randint(1, 12, (N,), generator=g)
    phi, psi = 2 * math.pi * torch.rand(2, N, generator=g, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(p + 1, dtype=torch.float64)[:, None] * freq / p
    with torch.no_grad():
        model.W_in[0] = torch.cat([(angle + phi).cos(), (angle + psi).cos()])
        model.W_U.copy_((angle[:p] + phi + psi).cos().T)
    batch = task.split(0).all
    assert torch.equal(model(batch.inputs).argmax(-1), batch.targets)


@pytest.mark.parametrize("d_embed", [0, 300])
def test_mlp_init_is_fan_in(d_embed):
    from toylab.tasks.modular import ModularArithmetic

    task = ModularArithmetic(p=97, operation="x+y", frac_train=0.5)
    model = MLPSpec(d_embed, 400, "relu", biases=("in", "U"), init_scale=0.5).build(task, rng())
    rows = 2 * (d_embed or task.d_vocab)
    for name, fan_in in {"W_E": d_embed, "W_in": rows, "W_U": 400}.items():
        if fan_in:
            w = getattr(model, name)
            assert abs(w.std() * fan_in**0.5 / 0.5 - 1) < 5 / (2 * w.numel()) ** 0.5
            assert abs(w.mean() * fan_in**0.5 / 0.5) < 5 / w.numel() ** 0.5
    assert not model.b_in.any()
    assert not model.b_U.any()


# --- superposition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "task"), SUPERPOSITIONS)
@torch.no_grad()
def test_superposition_equals_its_formula(spec, task):
    model = scrambled(spec, task)
    x = task.sample(9, rng()).inputs
    out, cache = model.run_with_cache(x)
    x = x.double()

    def relu(v):
        return v * (v > 0)

    if spec.kind == "absolute":
        hidden = relu(torch.einsum("bn,nm->bm", x, model.W_1))
        pre = torch.einsum("bm,nm->bn", hidden, model.W_2) + model.b
    else:
        hidden = torch.einsum("bn,nm->bm", x, model.W)
        hidden = relu(hidden) if spec.kind == "relu_hidden" else hidden
        pre = torch.einsum("bm,nm->bn", hidden, model.W) + model.b
    torch.testing.assert_close(cache["hidden"], hidden, rtol=0, atol=1e-12)
    torch.testing.assert_close(out, pre if spec.kind == "linear" else relu(pre), rtol=0, atol=1e-12)
    if spec.kind != "linear":
        torch.testing.assert_close(cache["features_pre"], pre, rtol=0, atol=1e-12)
    assert ("hidden_pre" in cache) == (spec.kind in ("relu_hidden", "absolute"))
    assert (pre < 0).any()  # or the output ReLU would have gone untested


def test_two_features_in_one_dimension_can_be_antipodal():
    """W = (1, -1), b = 0: the ReLU separates the two features if one is on (Elhage et al. 2022, section 3)."""
    from toylab.tasks.superposition import SparseFeatures

    model = SuperpositionSpec("relu_out", 1).build(SparseFeatures(2, 0.9, 1.0), rng())
    with torch.no_grad():
        model.W.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([[0.3, 0.0], [0.0, 0.7], [0.0, 0.0]])
    assert torch.equal(model(x), x)


def test_absolute_values_are_exact_with_two_neurons_each():
    """|x| = ReLU(x) + ReLU(-x)."""
    model = SuperpositionSpec("absolute", 10, dtype="float64").build(FEATURES, rng())
    eye = torch.eye(5, dtype=torch.float64)
    with torch.no_grad():
        model.W_1.copy_(torch.cat([eye, -eye], 1))
        model.W_2.copy_(torch.cat([eye, eye], 1))
    x = 2 * torch.rand(20, 5, generator=rng(), dtype=torch.float64) - 1
    assert torch.equal(model(x), x.abs())


@pytest.mark.parametrize(("init_std", "std"), [(None, (2 / 320) ** 0.5), (0.3, 0.3)])
def test_superposition_init(init_std, std):
    from toylab.tasks.superposition import SparseFeatures

    model = SuperpositionSpec("relu_out", 20, init_std=init_std).build(SparseFeatures(300, 0.9, 1.0), rng())
    assert abs(model.W.std() / std - 1) < 5 / (2 * model.W.numel()) ** 0.5
    assert not model.b.any()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPSpec(8, 10, "rellu"), 'did you mean "relu"'),
        (lambda: MLPSpec(8, 10, "relu", biases=("out",)), "biases='out': accepted are in, U"),
        (lambda: MLPSpec(8, 0, "relu"), "d_mlp=0"),
        (lambda: MLPSpec(-1, 10, "relu"), "d_embed=-1"),
        (lambda: MLPSpec(8, 10, "relu", combine="cat"), 'did you mean "concat"'),
        (lambda: MLPSpec(8, 10, "relu").build(FEATURES, rng()), "SparseFeatures has no tokens"),
        (lambda: scrambled(MLPSpec(8, 10, "relu"), ADDITION)(torch.zeros(1, 2, dtype=torch.long)), "tuples of 3"),
        (lambda: SuperpositionSpec("relu", 2), 'did you mean "relu_out"'),
        (lambda: SuperpositionSpec("linear", 0), "d_hidden=0"),
        (lambda: SuperpositionSpec("linear", 2, init_std=-1.0), "init_std=-1.0"),
        (lambda: SuperpositionSpec("linear", 2).build(REPEATED, rng()), "RepeatedTokens has no n_features"),
        (lambda: scrambled(SuperpositionSpec("linear", 2), FEATURES)(torch.zeros(1, 2)), "made for n_features=5"),
        (lambda: spec().build(FEATURES, rng()), "SparseFeatures has no tokens"),
        (lambda: spec(act="rellu"), 'did you mean "relu"'),
        (lambda: spec(norm="LayerNorm"), "accepted are none, LN"),
        (lambda: spec(positions="rotary", d_head=3), "even d_head, not 3"),
        (lambda: spec(biases=("q",)), "biases='q'"),
        (lambda: spec(n_layers=0), "n_layers=0"),
        (lambda: spec(attention_rate=1.5), "attention_rate=1.5"),
        (lambda: scrambled(spec(), ADDITION)(torch.zeros(1, 4, dtype=torch.long)), "4 positions arrived"),
        (lambda: scrambled(spec(), ADDITION)(torch.zeros(3, dtype=torch.long)[None], read=(3,)), "position 3"),
    ],
)
def test_a_mistake_is_explained(build, message):
    with pytest.raises(UserError, match=message):
        build()
