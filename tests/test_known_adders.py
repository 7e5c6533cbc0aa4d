"""The planted adders compute what they promise, and every Fourier tool returns what was planted and not the decoys."""

import math

import pytest
import torch
import torch.nn.functional as F

from toylab.data import generator
from toylab.errors import UserError
from toylab.interp.clock_pizza import circularity, distance_irrelevance, gradient_symmetricity
from toylab.interp.fourier import fourier_gini, freq_mask, frequencies, key_frequencies, power_by_frequency
from toylab.interp.group_addition import (
    direction_fve,
    excluded_logits,
    exclusion_losses,
    key_logit_frequencies,
    neuron_clusters,
    neuron_frequencies,
    neuron_logit_map,
    restricted_logits,
    trig_fit,
)
from toylab.known import KnownModel
from toylab.known.adders import AdderDecoys, clock_adder, memoriser, pizza_adder, quadratic_adder, random_adder
from toylab.models.transformer import TransformerSpec
from toylab.taps import Replace
from toylab.tasks.modular import ModularArithmetic

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

P, FREQS, AMPLITUDES = 29, (2, 5, 11), (1.0, 2.0, 0.5)
DECOYS = AdderDecoys(embedding=(7,), neurons=(9,), copies=2)
PLANTED = {
    "quadratic": lambda **kw: quadratic_adder(P, FREQS, AMPLITUDES, phase=0.3, **kw),
    "clock": lambda **kw: clock_adder(P, FREQS, AMPLITUDES, **kw),
    "pizza": lambda **kw: pizza_adder(P, FREQS, AMPLITUDES, **kw),
}


@torch.no_grad()
def read(known: KnownModel):
    """(logits [p*p, p], neurons [p*p, d_mlp]) at the last position."""
    inputs = known.task.split(0).all.inputs
    logits, cache = known.model.run_with_cache(inputs, ["post0"])
    return logits[:, -1], cache["post", 0][:, -1]


def targets(p):
    return torch.arange(p)[:, None].add(torch.arange(p)).flatten() % p


def cosine_sum(p, amplitudes):
    a, b, c = torch.cartesian_prod(*[torch.arange(p).double()] * 3).unbind(1)
    return sum(x * (2 * math.pi * k * (a + b - c) / p).cos() for k, x in amplitudes.items()).reshape(p * p, p)


def same_angle(x, y):
    return (x - y + math.pi) % (2 * math.pi) - math.pi


# --- The constructions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratic", "clock"])
@pytest.mark.parametrize("decoys", [AdderDecoys(), DECOYS])
def test_clocks_are_exact_sums_of_cosines(name, decoys):
    known = PLANTED[name](decoys=decoys)
    logits, _ = read(known)
    assert (logits - cosine_sum(P, known.truth.amplitudes)).abs().max() < 1e-12
    assert (logits.argmax(-1) == targets(P)).all()


def test_the_paper_sized_quadratic_adder():
    """Margin 2.410 of the set {14, 35, 41, 42, 52}: derived in the reference sheet."""
    known = quadratic_adder(113, (14, 35, 41, 42, 52))
    logits, post = read(known)
    assert post.shape[1] == 30
    best = logits.topk(2, -1).values
    assert (best[:, 0] - best[:, 1]).min() == pytest.approx(2.410, abs=1e-3)
    assert (logits.argmax(-1) == targets(113)).all()


def test_the_pizza_follows_its_formula_up_to_aliases():
    worst = {}
    for n_angles in (5, 8, 32):
        known = pizza_adder(P, FREQS, AMPLITUDES, n_angles=n_angles)
        logits, _ = read(known)
        assert (logits.argmax(-1) == targets(P)).all()
        a, b, c = torch.cartesian_prod(*[torch.arange(P).double()] * 3).unbind(1)
        formula = sum(
            x * (math.pi * k * (a - b) / P).cos().abs() * (2 * math.pi * k * (a + b - c) / P).cos()
            for k, x in known.truth.amplitudes.items()
        ).reshape(P * P, P)
        formula *= P * math.sin(math.pi / (2 * P))  # mean of |cos| to 1
        worst[n_angles] = (logits - formula).abs().max().item()
    # Aliases shrink as 1/n_angles^2: (32/8)^2 = 16.
    assert worst[5] > worst[8] > 8 * worst[32]
    assert worst[32] < 0.02


def test_decoys_change_no_logit():
    for build in PLANTED.values():
        plain, with_decoys = read(build())[0], read(build(decoys=DECOYS))[0]
        assert (plain - with_decoys).abs().max() < 1e-12


def test_float32_models_and_ablating_one_frequency():
    known = quadratic_adder(P, FREQS, AMPLITUDES, dtype="float32")
    logits, _ = read(known)
    assert logits.dtype == torch.float32
    assert (logits - cosine_sum(P, known.truth.amplitudes)).abs().max() < 1e-5
    assert key_logit_frequencies(logits, (P,)).freqs == FREQS
    # Zeroing the neurons of one frequency takes its term away and nothing else.
    exact = quadratic_adder(P, FREQS, AMPLITUDES)
    keep = (exact.truth.neuron_freq != 5).double()
    inputs = exact.task.split(0).all.inputs
    with torch.no_grad():
        without = exact.model.run_with_hooks(inputs, [("post0", lambda post, hook: post * keep)])[:, -1]
    assert (without - cosine_sum(P, {2: 1.0, 11: 0.5})).abs().max() < 1e-12
    assert (without - excluded_logits(read(exact)[0], [5], (P,))).abs().max() < 1e-12


# --- Tools return the plant, and not the decoys ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_tools_return_what_was_planted(name):
    known = PLANTED[name](decoys=DECOYS)
    truth, group = known.truth, (P,)
    logits, post = read(known)

    assert key_logit_frequencies(logits, group).freqs == truth.freqs == FREQS
    fit = trig_fit(logits, group)
    for k, x in truth.amplitudes.items():
        assert fit.cos[k] == pytest.approx(x, abs=1e-10)
        assert math.atan2(fit.sin[k], fit.cos[k]) == pytest.approx(truth.phases[k], abs=1e-10)
    assert (fit.energy[~freq_mask([0, *FREQS], group)] < 1e-20 * fit.total).all()

    neurons = neuron_frequencies(post, group)
    assert torch.equal(neurons.freq, truth.neuron_freq)
    # ReLU harmonics wrap around mod p and turn phases a little: O(p^-3).
    tolerance = 1e-12 if name != "pizza" else 2e-3
    assert same_angle(neurons.phase_sum, truth.neuron_phase.sum(1)).abs().max() < tolerance
    difference = truth.neuron_phase[:, 0] - truth.neuron_phase[:, 1]
    assert same_angle(neurons.phase_diff, difference).abs().max() < tolerance
    if name == "pizza":
        assert same_angle(neurons.phase_a, truth.neuron_phase[:, 0]).abs().max() < tolerance
        sizes = {k: len(v) for k, v in neuron_clusters(neurons).items()}
        assert sizes == {k: 32 for k in (*FREQS, 9)}
    else:
        assert (neurons.frac - 0.8).abs().max() < 1e-12

    # What is represented is more than what is computed: the decoys are in the embedding.
    W_E = known.model.W_E.detach()[:P]
    represented = key_frequencies(power_by_frequency(W_E, group, 0).sum(-1), group, dof=2 * W_E.shape[1])
    assert represented.freqs == truth.embedded == (2, 5, 7, 9, 11)
    assert fourier_gini(W_E, group) == pytest.approx((P - 2 * 5) / P, abs=1e-12)


@pytest.mark.parametrize("name", PLANTED)
def test_ablations_know_keys_from_decoys(name):
    known = PLANTED[name](decoys=DECOYS)
    group, y = (P,), targets(P)
    logits, post = read(known)
    full = F.cross_entropy(logits, y)
    losses = exclusion_losses(logits, y, group)
    key = freq_mask(FREQS, group)
    assert (losses[key] > full + 0.01).all()
    assert (losses[~key] - full).abs().max() < (1e-12 if name != "pizza" else 0.01)
    if name != "pizza":
        torch.testing.assert_close(restricted_logits(logits, FREQS, group, False), logits, atol=1e-12, rtol=0)
        assert F.cross_entropy(excluded_logits(logits, FREQS, group), y) == pytest.approx(math.log(P), abs=1e-12)
        assert trig_fit(logits, group).fve == pytest.approx(1, abs=1e-12)

    W_L = (known.model.W_out[0] @ known.model.W_U).detach()
    found = neuron_logit_map(W_L, FREQS, group)
    assert found.residual == pytest.approx(0, abs=1e-12)
    assert found.rank_energy == pytest.approx(1, abs=1e-12)
    other_rows = [row for row in range(P) if row not in (3, 4, 9, 10, 21, 22)]
    assert found.norms[other_rows].max() < 1e-12
    # Which neuron each direction reads: those of its own frequency.
    reads = found.directions.unflatten(0, (3, 2)).norm(dim=1) > 1e-12  # [key frequency, neuron]
    assert torch.equal(reads, known.truth.neuron_freq == torch.tensor(FREQS)[:, None])
    fve = direction_fve(post, W_L, FREQS, group)
    if name == "pizza":  # (mean |cos|)^2 / mean cos^2 = 8/pi^2, less the aliases of 8 angles
        assert fve.sub(8 / math.pi**2).abs().max() < 0.01
    else:
        assert fve.sub(1).abs().max() < 1e-12


def test_redundant_copies_are_marked_and_really_redundant():
    known = quadratic_adder(P, FREQS, AMPLITUDES, decoys=AdderDecoys(copies=2))
    truth = known.truth
    logits, post = read(known)
    assert torch.equal(post, post[:, truth.copy_of])
    assert len(truth.copy_of.unique()) == post.shape[1] // 2
    first = (truth.copy_of == torch.arange(len(truth.copy_of))).double()
    inputs = known.task.split(0).all.inputs
    with torch.no_grad():
        half = known.model.run_with_hooks(inputs, [("post0", lambda post, hook: post * first)])[:, -1]
    torch.testing.assert_close(half, logits / 2)


def test_clock_and_pizza_are_told_apart():
    def symmetricity(known, triples):
        """In the coordinates that the embedding uses: the residual stream beside them is not part of the formula."""
        tokens = known.task.split(0).all.inputs[:1].expand(len(triples), -1)
        embedding = known.model.W_E.detach()
        d = 2 * len(known.truth.embedded)

        def logits_of(embedded):
            operands = F.pad(embedded, (0, embedding.shape[1] - d))
            rest = embedding[tokens[:, 2:]]  # "=" where the format has it
            tap = Replace({"hook_embed": torch.cat([operands, rest], 1)})
            return known.model.forward(tokens, tap)[:, -1]

        return gradient_symmetricity(logits_of, embedding[:, :d], triples)

    group = (P,)
    triples = torch.cartesian_prod(torch.arange(P), torch.arange(P), torch.tensor([0, 4]))
    pizza, clock, quadratic = pizza_adder(P, (3,)), clock_adder(P, (3,)), quadratic_adder(P, (3,), phase=0.2)
    assert symmetricity(pizza, triples) == pytest.approx(1, abs=1e-10)
    for exact in (clock, quadratic):
        assert symmetricity(exact, triples) == pytest.approx(0, abs=1e-10)
        apart = triples[(triples[:, 0] - triples[:, 1]) % P == 4]
        assert symmetricity(exact, apart) == pytest.approx(math.cos(2 * math.pi * 3 * 4 / P), abs=1e-10)
        correct = read(exact)[0].gather(1, targets(P)[:, None])[:, 0]
        assert distance_irrelevance(correct, group).isnan()
        assert circularity(exact.model.W_E.detach()[:P], group) == pytest.approx(1, abs=1e-10)
    coarse, fine = (
        distance_irrelevance(read(pizza_adder(P, (3,), n_angles=n))[0].gather(1, targets(P)[:, None])[:, 0], group)
        for n in (8, 64)
    )
    assert coarse < 0.1
    assert fine < 0.002


# --- Nulls -----------------------------------------------------------------------------------------------------------


def test_random_weights_stay_in_the_null_band():
    """Untrained transformers: false finds at most alpha = .05 in expectation, no explained logits or neurons."""
    finds, n_nulls = 0, 60
    for seed in range(n_nulls):
        known = random_adder(23, d_model=32, d_mlp=64, seed=seed)
        logits, post = read(known)
        finds += key_logit_frequencies(logits, (23,), alpha=0.05).mask.any().item()
        assert trig_fit(logits, (23,)).fve < 1e-3
        assert neuron_clusters(neuron_frequencies(post, (23,))) == {}
    assert finds <= 0.05 * n_nulls + 3 * math.sqrt(0.05 * n_nulls)
    assert known.truth.freqs == ()


@pytest.mark.parametrize("labels", ["true", "shuffled"])
def test_a_memorising_table_knows_its_pairs_and_nothing_else(labels):
    task = ModularArithmetic(23, "x+y", 0.4, format="a b", labels=labels)
    known = memoriser(task, seed=3)
    split = task.split(3)
    logits, post = read(known)
    y = split.all.targets[:, 0]
    assert (logits[split.train].argmax(-1) == y[split.train]).all()
    assert F.cross_entropy(logits[split.train], y[split.train]) < 1e-6
    assert F.cross_entropy(logits[split.test], y[split.test]) == pytest.approx(math.log(23), abs=1e-12)
    assert torch.equal(known.truth.memorised, split.train)
    assert torch.equal(post[split.train], torch.eye(len(split.train)).double())
    assert key_logit_frequencies(logits, (23,)).freqs == ()
    assert neuron_clusters(neuron_frequencies(post, (23,))) == {}
    fit = trig_fit(logits, (23,))
    if labels == "true":  # its answers turn with a + b equally at every frequency: aligned, but none stands out
        torch.testing.assert_close(fit.cos[1:], fit.cos[1].expand(11))
        assert F.cross_entropy(restricted_logits(logits, range(1, 12), (23,)), y) < math.log(23)
    else:
        restricted = restricted_logits(logits, range(1, 12), (23,))
        assert F.cross_entropy(restricted[split.test], y[split.test]) >= math.log(23)


def test_wrong_plants_are_refused():
    with pytest.raises(UserError, match="outside"):
        quadratic_adder(29, (15,))
    with pytest.raises(UserError, match="repeat"):
        clock_adder(29, (3,), decoys=AdderDecoys(embedding=(3,)))
    with pytest.raises(UserError, match="empty"):
        clock_adder(29, ())
    with pytest.raises(UserError, match="even"):
        pizza_adder(28, (3,))
    with pytest.raises(UserError, match="amplitudes"):
        quadratic_adder(29, (3, 4), (1.0,))
    with pytest.raises(UserError, match="told apart"):
        memoriser(ModularArithmetic(23, "x+y", 0.4), seed=0)


def test_planted_models_are_ordinary_models():
    """Sizes and sites of a model that the spec builds from scratch; the truth names frequencies of the group."""
    for build in PLANTED.values():
        known = build()
        assert isinstance(known.model.spec, TransformerSpec)
        fresh = known.model.spec.build(known.task, generator(0, "init"))
        assert {n: w.shape for n, w in fresh.state_dict().items()} == {
            n: w.shape for n, w in known.model.state_dict().items()
        }
        inputs = known.task.split(0).all.inputs
        with torch.no_grad():
            torch.testing.assert_close(known.model(inputs)[:, -1:], known.model(inputs, read=(-1,)))
        assert set(known.truth.freqs) <= set(frequencies((P,)))
        assert known.name in repr(known)
