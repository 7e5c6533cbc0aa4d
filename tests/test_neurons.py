"""Neurons: direct effects add up, ablations equal the serial loop, concept scores find what is planted and no more."""

import pytest
import torch
from cases.models import ADDITION, REPEATED, rng, scrambled, spec
from sklearn.metrics import roc_auc_score

from toylab.data import Latent
from toylab.errors import UserError
from toylab.interp.neurons import (
    Concepts,
    ablation_effects,
    concepts_of,
    correlation,
    direct_effects,
    score_concepts,
    top_inputs,
)
from toylab.models.mlp import MLPSpec

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def setup(**changes):
    model = scrambled(spec(n_layers=2, **changes), REPEATED)
    return model, REPEATED.sample(7, rng()).inputs


# --- which inputs, which neurons -------------------------------------------------------------------------------------


def test_top_inputs_by_hand_and_by_sorting():
    post = torch.tensor([[[1.0, 0.0], [5.0, 2.0]], [[3.0, 2.0], [-1.0, 9.0]]])
    top = top_inputs(post, 2)
    assert top.value.tolist() == [[5, 9], [3, 2]]
    assert top.example.tolist() == [[0, 1], [1, 0]]  # the tie at 2 goes to the first
    assert top.position.tolist() == [[1, 1], [0, 1]]
    only_first = top_inputs(post, 1, weight=torch.tensor([[1, 0], [1, 0]]))
    assert only_first.value.tolist() == [[3, 2]]
    with pytest.raises(UserError, match="1 to 2"):
        top_inputs(post, 3, weight=torch.tensor([[1, 0], [1, 0]]))


def test_direct_effects_add_up_to_what_the_mlp_says():
    model, inputs = setup()
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, ["post1", "mlp_out1"])
    W_out, direction = model.W_out[1].detach(), model.W_U[:, 2].detach() - model.W_U[:, 0].detach()
    effects = direct_effects(cache["post", 1], W_out, direction)
    total = effects.sum(-1) + model.b_out[1].detach() @ direction
    torch.testing.assert_close(total, cache["mlp_out", 1] @ direction)
    per_row = direct_effects(cache["post", 1], W_out, direction.expand(7, 6, -1))
    torch.testing.assert_close(per_row, effects)
    level = cache["post", 1].flatten(0, 1).mean(0)
    assert direct_effects(cache["post", 1], W_out, direction, level).flatten(0, 1).mean(0).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore::toylab.taps.HookWarning")  # a neuron that is off already
@pytest.mark.parametrize("norm", ["none", "LN"])
@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_ablations_are_the_serial_loop(norm, layer, baseline):
    """Batched over neurons, in the last layer through the unembedding alone: equal to one hooked run per neuron."""
    model, inputs = setup(norm=norm)

    def metric(out):
        return out[..., 1].logsumexp((-1, -2))

    found = ablation_effects(model, inputs, layer, metric, baseline, read=(-1, 2), max_rows=21)
    with torch.no_grad():
        clean, cache = model.run_with_cache(inputs)
        level = cache["post", layer].flatten(0, 1).mean(0) if baseline == "mean" else torch.zeros(10)
        for m in range(10):

            def hold(value, hook, m=m):
                value[..., m] = level[m]
                return value

            held = model.run_with_hooks(inputs, [(("post", layer), hold)])
            expected = metric(held[None][:, :, [-1, 2]]) - metric(clean[None][:, :, [-1, 2]])
            torch.testing.assert_close(found[m : m + 1], expected)
    some = ablation_effects(model, inputs, layer, metric, baseline, neurons=[4, 1], read=(-1, 2))
    torch.testing.assert_close(some, found[[4, 1]])


def test_last_layer_ablation_is_minus_the_direct_effect():
    model, inputs = setup()
    direction = model.W_U[:, 3].detach()
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, ["post1"])
    direct = direct_effects(cache["post", 1], model.W_out[1].detach(), direction).mean((0, 1))
    ablated = ablation_effects(model, inputs, 1, lambda out: out[..., 3].mean((-1, -2)))
    torch.testing.assert_close(ablated, -direct)


def test_a_neuron_that_writes_nothing_has_no_effect_and_other_models_work():
    model, inputs = setup()
    with torch.no_grad():
        model.W_out[0, 3] = 0
    effects = ablation_effects(model, inputs, 0, lambda out: out.square().mean((-1, -2, -3)))
    assert effects[3] == 0
    assert effects.count_nonzero() == 9
    mlp = scrambled(MLPSpec(8, 10, "relu", embed="separate", dtype="float64"), ADDITION)
    pairs = ADDITION.split(0).all.inputs
    assert ablation_effects(mlp, pairs, 0, lambda out: out.square().flatten(1).mean(1)).shape == (10,)


# --- concepts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("V", "value"), [(4, 0.447), (10, 0.3015)])
def test_row_i1_single_atom_on_an_and_unit(V, value):
    """Row I1: the unit [x = i and y = j] on all V^2 inputs correlates 1/sqrt(V + 1) with [x = i], 1 with itself."""
    x, y = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T
    unit = ((x == 1) & (y == 2)).double()
    concepts = Concepts(("x = 1", "both"), torch.stack([(x == 1).long(), unit.long()], 1))
    scores = score_concepts(unit[:, None], concepts, rng(), n_permutations=99)
    assert scores.correlation[0, 0].item() == pytest.approx((V + 1) ** -0.5, abs=1e-12)
    assert scores.correlation[0, 0].item() == pytest.approx(value, abs=5e-4)
    assert scores.correlation[0, 1].item() == pytest.approx(1)
    assert scores.auroc[0, 1] == 1


def test_row_i2_worked_correlation():
    """Row I2: true (0, 1, 0, 3), simulated (0, 10, 0, 10): .8165."""
    found = correlation(torch.tensor([0.0, 1, 0, 3]), torch.tensor([0.0, 10, 0, 10]))
    assert found.item() == pytest.approx(0.8165, abs=1e-4)
    assert correlation(torch.ones(4), torch.arange(4.0)) == 0


def planted(seed=0, n=2000):
    """Ten neurons: 0 fires for class 2 of one variable, 1 against class 0 of another, the rest are noise."""
    g = rng(seed)
    colour, side = torch.randint(4, (n // 4, 4), generator=g), torch.randint(2, (n // 4, 4), generator=g)
    latents = {
        "colour": Latent(colour, ("red", "green", "blue", "white")),
        "side": Latent(torch.where(torch.arange(4) == 0, -1, side), ("left", "right")),
        "height": Latent(torch.randn(n // 4, 4, generator=g)),
    }
    post = torch.randn(n // 4, 4, 10, generator=g, dtype=torch.double)
    post[..., 0] += 2 * (colour == 2)
    post[..., 1] -= 2 * (side == 0)
    return post.flatten(0, 1), concepts_of(latents)


def test_planted_concepts_are_found_and_nothing_else():
    post, concepts = planted()
    assert concepts.names == (
        "colour = red",
        "colour = green",
        "colour = blue",
        "colour = white",
        "side = left",
        "side = right",
    )
    scores = score_concepts(post, concepts, rng(1))
    best = {neuron: name for neuron, name, _ in scores.best()}
    assert best == {0: "colour = blue", 1: "side = left"}
    assert scores.found[2:].sum() == 0
    assert scores.correlation[1, 4] < 0 < scores.correlation[1, 5]
    assert ((scores.auroc - 0.5).abs() > scores.auroc_threshold).nonzero()[:, 0].unique().tolist() == [0, 1]


def test_scores_are_those_of_the_defined_rows():
    post, concepts = planted()
    post = post.round(decimals=1)  # ties
    scores = score_concepts(post, concepts, rng(1), n_permutations=99)
    for c in range(6):
        known = concepts.value[:, c] >= 0
        for m in (0, 1, 5):
            x, y = post[known, m], concepts.value[known, c]
            assert scores.correlation[m, c].item() == pytest.approx(correlation(x, y.double()).item(), abs=1e-12)
            assert scores.auroc[m, c].item() == pytest.approx(roc_auc_score(y, x), abs=1e-12)


def test_null_the_threshold_is_passed_at_its_rate():
    """Noise neurons, dependent concepts: some false find in about alpha of 100 worlds (binomial, 4 sigma)."""
    hits, alpha = 0, 0.1
    for seed in range(100):
        g = rng(seed)
        variable = torch.randint(3, (60,), generator=g)
        concepts = Concepts(("0", "1", "2"), torch.stack([(variable == c).long() for c in range(3)], 1))
        post = torch.randn(60, 5, generator=g)
        hits += bool(score_concepts(post, concepts, g, n_permutations=19, alpha=alpha).found.any())
    assert abs(hits / 100 - alpha) < 4 * (alpha * (1 - alpha) / 100) ** 0.5


def test_null_of_sequences_needs_groups():
    """Neuron and concept constant within a sequence: permuting rows finds chance relations, whole sequences none."""
    row_wise = by_sequence = 0
    for seed in range(20):
        g = rng(seed)
        post = torch.randn(12, 1, 4, generator=g).expand(12, 25, 4).flatten(0, 1)
        holds = (torch.arange(12) < 6).long()[torch.randperm(12, generator=g)].repeat_interleave(25)[:, None]
        group = torch.arange(12).repeat_interleave(25)
        concept = Concepts(("it",), holds)
        row_wise += bool(score_concepts(post, concept, g, 19, 0.05).found.any())
        by_sequence += bool(score_concepts(post, concept, g, 19, 0.05, group).found.any())
    assert row_wise > 13
    assert by_sequence <= 5


def test_scale_and_shift_of_a_neuron_change_nothing():
    post, concepts = planted()
    plain = score_concepts(post, concepts, rng(1), n_permutations=99)
    scaled = score_concepts(post * torch.arange(1, 11) + 1000, concepts, rng(1), n_permutations=99)
    torch.testing.assert_close(plain.correlation, scaled.correlation)
    torch.testing.assert_close(plain.auroc, scaled.auroc)
    assert plain.threshold == pytest.approx(scaled.threshold)
    dead = score_concepts(torch.full((2000, 1), 0.1), concepts, rng(1), n_permutations=99)
    assert (dead.correlation == 0).all()
    assert (dead.auroc == 0.5).all()
    assert not dead.best()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ablation_effects(*setup(), 0, lambda out: out.mean()), "must return \\[copy\\]"),
        (lambda: ablation_effects(*setup(), 0, lambda out: out[..., 0, 0].mean(-1), "means"), 'did you mean "mean"'),
        (
            lambda: ablation_effects(*setup(), 0, lambda out: out[..., 0, 0].mean(-1), torch.zeros(3)),
            "one value per neuron",
        ),
        (lambda: ablation_effects(*setup(), 5, lambda out: out[..., 0, 0].mean(-1)), "no site"),
        (lambda: ablation_effects(*setup(d_mlp=0), 0, lambda out: out[..., 0, 0].mean(-1)), "no site"),
        (lambda: score_concepts(planted()[0][:5], planted()[1], rng()), "5 rows"),
        (lambda: score_concepts(planted()[0] * torch.nan, planted()[1], rng()), "NaN"),
        (lambda: score_concepts(*planted(), rng(), n_permutations=20), "cannot resolve"),
        (lambda: score_concepts(*planted(), rng(), group=torch.arange(2000) // 7), "same size"),
        (lambda: concepts_of({"one": Latent(torch.zeros(3, 4, dtype=torch.long), ("a", "b"))}), "two classes"),
    ],
)
def test_mistakes_say_what_to_do(act, message):
    with pytest.raises(UserError, match=message):
        act()
