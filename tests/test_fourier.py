"""Fourier tools on tables whose spectrum is written down, against definitions spelt out one vector at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from toylab.errors import UserError
from toylab.interp.clock_pizza import circularity, distance_irrelevance, gradient_symmetricity
from toylab.interp.fourier import (
    effective_dof,
    fourier_basis,
    fourier_gini,
    freq_mask,
    frequencies,
    frequency_name,
    gini,
    group_differences,
    group_sums,
    key_frequencies,
    null_ratio,
    power_2d,
    power_by_frequency,
    transform,
    transform_2d,
)
from toylab.interp.group_addition import (
    attention_wave,
    direction_fve,
    excluded_logits,
    exclusion_losses,
    key_logit_frequencies,
    neuron_clusters,
    neuron_frequencies,
    neuron_logit_map,
    restricted_logits,
    split_by_directions,
    sum_components,
    trig_fit,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

GROUPS = [(7,), (8,), (113,), (3, 5), (2, 3), (4, 6), (2, 2, 3)]
SMALL = [(7,), (8,), (3, 5), (2, 3), (4, 2)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(k, p):
    """2 pi k x / p for x = 0..p-1."""
    return 2 * math.pi * k * torch.arange(p, dtype=torch.float64) / p


def trig_logits(p, amplitudes):
    """sum_k amplitude_k cos w_k(a + b - c), [p*p, p], from the formula itself."""
    a, b, c = torch.cartesian_prod(*[torch.arange(p, dtype=torch.float64)] * 3).unbind(1)
    table = sum(x * torch.cos(2 * math.pi * k * (a + b - c) / p) for k, x in amplitudes.items())
    return table.reshape(p * p, p)


def sum_targets(group):
    return group_sums(group).flatten()


def folded(k, p):
    return min(k % p, -k % p)


# --- Bases and transforms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_the_basis_is_orthonormal(group):
    matrix = fourier_basis(group).matrix
    n = math.prod(group)
    assert matrix.shape == (n, n)
    assert (matrix @ matrix.T - torch.eye(n)).abs().max() < 1e-12


@pytest.mark.parametrize("group", GROUPS)
def test_each_frequency_is_carried_into_itself_by_a_shift(group):
    """What makes rows a frequency: translating the group mixes its two rows with each other and with no others."""
    basis = fourier_basis(group)
    for shift in range(1, math.prod(group)):
        mixing = basis.matrix @ basis.matrix[:, group_sums(group)[shift]].T
        foreign = basis.freq_index[:, None] != basis.freq_index
        assert mixing[foreign].abs().max() < 1e-12


def test_rows_of_cyclic_groups_are_where_the_papers_have_them():
    odd, even = fourier_basis((113,)), fourier_basis((8,))
    for k in (1, 14, 56):
        torch.testing.assert_close(odd.matrix[2 * k - 1], angles(k, 113).cos() * math.sqrt(2 / 113))
        torch.testing.assert_close(odd.matrix[2 * k], angles(k, 113).sin() * math.sqrt(2 / 113))
    assert odd.labels[:3] == ("const", "cos 1", "sin 1")
    assert odd.labels[-1] == "sin 56"
    torch.testing.assert_close(even.matrix[-1], torch.tensor([1.0, -1.0] * 4).double() / math.sqrt(8))
    assert frequencies((8,)) == (0, 1, 2, 3, 4)
    assert even.labels[-1] == "cos 4"
    assert frequencies((113,))[-1] == 56
    assert frequency_name(7, (3, 5)) == "(1, 2)"
    assert len(frequencies((2, 2, 3))) == 1 + 3 + (12 - 4) // 2


@pytest.mark.parametrize("group", GROUPS)
def test_parseval(group):
    n = math.prod(group)
    x, table = randn(2, n, 3), randn(n, n, 2)
    torch.testing.assert_close(power_by_frequency(x, group, 1).sum(1), (x**2).sum(1))
    torch.testing.assert_close(power_2d(table, group).sum((0, 1)), (table**2).sum((0, 1)))
    torch.testing.assert_close(transform_2d(table, group).norm(), table.norm())


@pytest.mark.parametrize("group", GROUPS)
def test_power_is_the_folded_power_of_the_fast_fourier_transform(group):
    n = math.prod(group)
    x = randn(n)
    power = torch.fft.fftn(x.reshape(group)).abs().flatten() ** 2 / n
    negative = group_differences(group)[0]
    expected = [power[k] + (power[negative[k]] if negative[k] != k else 0) for k in frequencies(group)]
    torch.testing.assert_close(power_by_frequency(x, group, 0), torch.stack(expected))


def test_errors_say_what_is_accepted():
    with pytest.raises(UserError, match="45"):
        freq_mask([68], (113,))
    with pytest.raises(UserError, match="repeats"):
        freq_mask([3, 3], (113,))
    with pytest.raises(UserError, match=r"0\.\.56 of Z_113"):
        freq_mask([400], (113,))
    with pytest.raises(UserError, match="drop"):
        transform(randn(114, 5), (113,), 0)
    with pytest.raises(UserError, match="drop"):
        trig_fit(randn(49, 8), (7,))
    with pytest.raises(UserError, match="orders"):
        fourier_basis((1,))
    with pytest.raises(UserError, match="49 pairs"):
        sum_components(randn(48, 7), (7,))
    with pytest.raises(UserError, match="bias_correction"):
        restricted_logits(randn(49, 7), [0, 1], (7,))


# --- Key frequencies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_freqs", "dof"), [(56, 2), (15, 2), (6, 2), (56, 256), (11, 40)])
def test_the_null_ratio_has_the_stated_false_find_rate(n_freqs, dof):
    """Chi-squared spectra: the share whose largest/median passes is alpha within four standard errors."""
    g = torch.Generator().manual_seed(0)
    trials = 4000 if dof > 2 else 20000
    power = torch.zeros(trials, n_freqs, dtype=torch.float64)
    for _ in range(dof):
        power += torch.randn(trials, n_freqs, generator=g) ** 2
    ratio = power.amax(1) / power.median(1).values
    for alpha in (0.05, 0.01):
        rate = (ratio > null_ratio(n_freqs, float(dof), alpha)).double().mean()
        assert abs(rate - alpha) < 4 * math.sqrt(alpha / trials)


def test_key_frequencies_of_gaussian_embeddings_and_of_plants():
    group, d = (113,), 16
    null = randn(500, 113, d)
    found = key_frequencies(power_by_frequency(null, group, 1).sum(-1), group, dof=2 * d, alpha=0.05)
    rate = found.mask.any(-1).double().mean()
    assert 0.02 < rate < 0.08  # .05 +- 3 standard errors of 500 draws
    # Any number of plants is found: they do not hide each other, as they would in a test on shares of the total.
    for planted in [(3,), (14, 35, 41, 42, 52), tuple(range(1, 21))]:
        # Each plant adds five times the noise power, which is 2d degrees of freedom of size 1.
        size = math.sqrt(5 * 2 * d * 2 / 113)
        waves = sum(angles(k, 113).cos()[:, None] * size * F.normalize(randn(d, seed=k), dim=0) for k in planted)
        power = power_by_frequency(randn(113, d, seed=99) + waves, group, 0).sum(-1)
        assert key_frequencies(power, group, dof=2 * d).freqs == planted


def test_key_frequencies_ignore_scale_constant_and_flat_spectra():
    group = (31,)
    power = power_by_frequency(randn(31, 8), group, 0).sum(-1)
    power[5] *= 20
    found = key_frequencies(power, group, dof=16)
    assert found.freqs == key_frequencies(1e6 * power, group, dof=16).freqs == (5,)
    louder = power.clone()
    louder[0] = 1e9
    assert key_frequencies(louder, group, dof=16).freqs == (5,)
    torch.testing.assert_close(found.share.sum(), torch.ones(()).double())
    assert key_frequencies(torch.ones(16), group, dof=2).freqs == ()
    assert key_frequencies(torch.zeros(16), group, dof=2).freqs == ()
    # Rounding noise beside a plant is not a frequency, however unequal it is.
    noise = 1e-28 * 10 ** randn(16)
    noise[[2, 9]] = 1.0
    assert key_frequencies(noise, group, dof=2).freqs == (2, 9)
    stacked = key_frequencies(torch.stack([power, torch.ones(16)]), group, dof=16)
    assert stacked.mask.sum(-1).tolist() == [1, 0]
    with pytest.raises(UserError, match="2 entries"):
        key_frequencies(torch.ones(2), group, dof=2)
    with pytest.raises(UserError, match="alpha"):
        key_frequencies(torch.ones(16), group, dof=2, alpha=0.0)


def test_effective_dof():
    assert effective_dof(torch.eye(7).double()) == pytest.approx(14)
    assert effective_dof(torch.ones(5, 3)) == pytest.approx(2)
    # W_L = W_out W_U with a Gaussian W_U: false finds stay near alpha.
    finds = 0
    for seed in range(200):
        W_out, W_U = randn(24, 16, seed=seed), randn(16, 31, seed=1000 + seed)
        power = power_by_frequency(W_out @ W_U, (31,), 1).sum(0)
        finds += key_frequencies(power, (31,), effective_dof(W_out), alpha=0.05).mask.any().item()
    assert 1 <= finds <= 20


# --- Gini ------------------------------------------------------------------------------------------------------------


def test_gini_exact():
    for n, m in [(113, 10), (8, 1), (5, 5)]:
        x = torch.zeros(n).double()
        x[-m:] = 3.0
        assert gini(x) == pytest.approx((n - m) / n, abs=1e-12)
    assert gini(torch.zeros(4)) == 0
    assert gini(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(2 / 9)  # sum (2i - 4) x_i = 4; n sum x = 18
    x = randn(50).abs()
    mean_difference = (x[:, None] - x).abs().mean() / (2 * x.mean())
    assert gini(x) == pytest.approx(mean_difference.item(), abs=1e-12)


def test_fourier_gini_of_waves_and_of_noise():
    p, freqs = 113, (14, 35, 41, 42, 52)
    embedding = torch.stack([f(angles(k, p)) for k in freqs for f in (torch.cos, torch.sin)], 1)
    assert fourier_gini(embedding, (p,)) == pytest.approx((p - 2 * len(freqs)) / p, abs=1e-9)
    noise = fourier_gini(randn(20, p, 128), (p,)).mean()
    assert noise == pytest.approx(1 / math.sqrt(2 * math.pi * 128), rel=0.05)


# --- Logits ----------------------------------------------------------------------------------------------------------


def sum_vectors(group):
    """Unit vectors over pairs that depend on a + b alone, by frequency: the definition, with complex characters."""
    n = math.prod(group)
    s = sum_targets(group)
    index = torch.cartesian_prod(*map(torch.arange, group)).reshape(n, -1)
    vectors = {}
    for k in frequencies(group):
        angle = 2 * math.pi * (index[k] * index / torch.tensor(group).double()).sum(1)[s]
        pair = [v for v in (angle.cos(), angle.sin()) if v.norm() > 1e-6]
        vectors[k] = [v / v.norm() for v in pair]
    return vectors


def project(table, vectors):
    return sum((torch.outer(v, v @ table) for v in vectors), torch.zeros_like(table))


@pytest.mark.parametrize("group", SMALL)
def test_restricted_and_excluded_are_projections_that_add_up(group):
    n = math.prod(group)
    logits, vectors = randn(n * n, n), sum_vectors(group)
    freqs = frequencies(group)[1::2]
    expected = project(logits, [v for k in freqs for v in vectors[k]])
    torch.testing.assert_close(restricted_logits(logits, freqs, group, bias_correction=False), expected)
    torch.testing.assert_close(excluded_logits(logits, freqs, group), logits - expected)
    # The paper's bias correction: add each output's mean over inputs of what is missing.
    with_bias = expected + (logits - expected).mean(0)
    torch.testing.assert_close(restricted_logits(logits, freqs, group), with_bias)
    everything = restricted_logits(logits, frequencies(group)[1:], group)
    means = torch.stack([logits[sum_targets(group) == s].mean(0) for s in range(n)])
    torch.testing.assert_close(everything, means[sum_targets(group)])


@pytest.mark.parametrize("group", SMALL)
@pytest.mark.parametrize("scale", [1.0, 2000.0])
def test_exclusion_losses_together_equal_one_ablation_per_frequency(group, scale):
    n = math.prod(group)
    logits = scale * randn(n * n, n)
    targets = torch.randint(n, (n * n,), generator=torch.Generator().manual_seed(1))
    weight = (randn(n * n, seed=2) > 0).double()
    expected = []
    for vectors in sum_vectors(group).values():
        losses = F.cross_entropy(logits - project(logits, vectors), targets, reduction="none")
        expected.append(losses[weight > 0].mean())
    joint = exclusion_losses(logits, targets, group, weight)
    torch.testing.assert_close(joint, torch.stack(expected), rtol=1e-10, atol=1e-10)
    stacked = exclusion_losses(torch.stack([logits, 2 * logits]), targets, group, weight)
    torch.testing.assert_close(stacked[0], joint)
    torch.testing.assert_close(stacked[1], exclusion_losses(2 * logits, targets, group, weight))


def test_trig_logits():
    """The target of the whole analysis: fit 1, its coefficients back, nothing left when its frequencies go."""
    p, amplitudes = 29, {2: 3.0, 5: -1.5, 14: 4.0}
    group, logits = (p,), trig_logits(p, amplitudes)
    fit = trig_fit(logits, group)
    expected = torch.zeros(15).double()
    for k, x in amplitudes.items():
        expected[k] = x
    torch.testing.assert_close(fit.cos, expected)
    assert fit.sin.abs().max() < 1e-12
    assert fit.fve == pytest.approx(1, abs=1e-12)
    assert fit.alignment[[2, 5, 14]].sub(1).abs().max() < 1e-12
    torch.testing.assert_close(fit.energy[1:].sum(), fit.total)
    assert fit.fve_of(freq_mask([2], group)) == pytest.approx(9 / (9 + 2.25 + 16), abs=1e-12)
    assert key_logit_frequencies(logits, group).freqs == tuple(amplitudes)
    torch.testing.assert_close(restricted_logits(logits, amplitudes, group), logits)
    targets = sum_targets(group)
    excluded = excluded_logits(logits, amplitudes, group)
    assert F.cross_entropy(excluded, targets) == pytest.approx(math.log(p), abs=1e-9)
    losses = exclusion_losses(logits, targets, group)
    full = F.cross_entropy(logits, targets)
    others = [k for k in range(15) if k not in amplitudes]
    torch.testing.assert_close(losses[others], full.expand(len(others)))
    # Removing a helpful frequency hurts, removing the one planted with the wrong sign helps.
    assert losses[2] > full
    assert losses[14] > full
    assert losses[5] < full


@pytest.mark.parametrize("group", SMALL)
def test_trig_fit_is_the_projection_on_the_cube(group):
    n = math.prod(group)
    logits = randn(2, n * n, n)
    fit = trig_fit(logits, group)
    cube = group_differences(group)[sum_targets(group)]  # a + b - c
    for i, k in enumerate(frequencies(group)):
        rows = fourier_basis(group).rows[i]
        waves = fourier_basis(group).matrix[rows][:, cube]  # cos and sin of a + b - c, up to length
        u = waves[0] / waves[0].norm()
        torch.testing.assert_close(fit.cos[:, i] * waves[0].norm() / waves[0].max(), (logits * u).sum((1, 2)))
        if fourier_basis(group).has_sine[i]:
            v = waves[1] / waves[1].norm()
            both = (logits * u).sum((1, 2)) ** 2 + (logits * v).sum((1, 2)) ** 2
            torch.testing.assert_close(fit.energy[:, i], both)
        assert k == fourier_basis(group).freqs[i]


def test_a_sine_in_the_logits_is_reported_with_its_sign():
    p = 11
    a, b, c = torch.cartesian_prod(*[torch.arange(p).double()] * 3).unbind(1)
    logits = (2 * torch.sin(2 * math.pi * 3 * (a + b - c) / p)).reshape(p * p, p)
    fit = trig_fit(logits, (p,))
    assert fit.sin[3] == pytest.approx(2, abs=1e-12)
    assert fit.fve == pytest.approx(0, abs=1e-12)


def relabelled(logits, p, move):
    """L'[a, b, c] = L[move a, move b, move c]."""
    at = move(torch.arange(p)) % p
    return logits.reshape(p, p, p)[at][:, at][:, :, at].reshape(p * p, p)


def test_relabelling_permutes_frequencies_and_shifting_changes_phases_only():
    p, u = 13, 5
    group, targets = (p,), sum_targets((p,))
    logits = trig_logits(p, {2: 3.0, 4: 1.0}) + 0.3 * randn(p * p, p)
    permuted = [folded(u * k, p) for k in range(7)]
    fit, moved = trig_fit(logits, group), trig_fit(relabelled(logits, p, lambda x: u * x), group)
    torch.testing.assert_close(moved.cos[permuted], fit.cos)
    torch.testing.assert_close(moved.fve, fit.fve)
    losses = exclusion_losses(logits, targets, group)
    moved_losses = exclusion_losses(relabelled(logits, p, lambda x: u * x), targets, group)
    torch.testing.assert_close(moved_losses[permuted], losses)
    assert key_logit_frequencies(relabelled(logits, p, lambda x: u * x), group).freqs == tuple(
        sorted(folded(u * k, p) for k in key_logit_frequencies(logits, group).freqs)
    )
    # a -> a + 1, b -> b + 1, c -> c + 1 turns a + b - c by one step.
    shifted = trig_fit(relabelled(logits, p, lambda x: x + 1), group)
    torch.testing.assert_close(shifted.energy, fit.energy)
    turn = 2 * math.pi * torch.arange(7).double() / p
    torch.testing.assert_close(shifted.cos, fit.cos * turn.cos() + fit.sin * turn.sin())
    embedding = randn(p, 6)
    power = power_by_frequency(embedding, group, 0)
    torch.testing.assert_close(power_by_frequency(embedding.roll(3, 0), group, 0), power)
    torch.testing.assert_close(power_by_frequency(embedding[u * torch.arange(p) % p], group, 0)[permuted], power)
    # Losses do not see what a softmax does not see.
    offset = randn(p * p, 1, seed=7)
    torch.testing.assert_close(exclusion_losses(logits + offset, targets, group), losses)


def test_logits_of_random_readouts_have_no_key_frequency():
    """Gaussian logits, and a random low-rank readout of features of unequal power: false finds at most alpha."""
    p, n_nulls = 23, 300
    finds = 0
    for seed in range(n_nulls):
        features = randn(p * p, 12, seed=seed)
        logits = features @ randn(12, p, seed=5000 + seed) if seed % 2 else randn(p * p, p, seed=seed)
        finds += key_logit_frequencies(logits, (p,), alpha=0.05).mask.any().item()
    assert finds <= 0.05 * n_nulls + 3 * math.sqrt(0.05 * n_nulls)
    assert finds > 0  # the rule is not vacuous


def test_a_weak_planted_frequency_is_found_in_noise():
    p = 23
    logits = randn(p * p, p) + trig_logits(p, {4: 0.2, 9: 0.2})
    assert trig_fit(logits, (p,)).fve < 0.1
    assert key_logit_frequencies(logits, (p,)).freqs == (4, 9)


# --- Neurons ---------------------------------------------------------------------------------------------------------


def neuron(p, k, act, phi_a=0.0, phi_b=0.0, bias=0.0):
    pre = (angles(k, p) + phi_a).cos()[:, None] + (angles(k, p) + phi_b).cos() + bias
    return act(pre).reshape(p * p, 1)


# [derived] in the reference sheet; computed again here by the plain two-dimensional transform.
IDEAL = {-1: (0.705, 0.424, 0.141), -0.5: (0.886, 0.595, 0.145), 0: (0.962, 0.745, 0.109)}
IDEAL |= {0.5: (0.967, 0.884, 0.042), 1: (0.981, 0.963, 0.009)}


@pytest.mark.parametrize("bias", IDEAL)
@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_the_ideal_relu_neuron(bias, phi):
    p, k = 113, 14
    post = neuron(p, k, torch.relu, phi, phi, bias)
    found = neuron_frequencies(post, (p,))
    nine, linear, of_sum = IDEAL[bias]
    assert found.freq.item() == k
    assert [found.frac.item(), found.linear.item(), found.sum.item(), found.diff.item()] == pytest.approx(
        [nine, linear, of_sum, of_sum], abs=1e-3
    )
    assert found.frac_sum.item() == pytest.approx(nine - of_sum, abs=1e-3)
    rows = [0, 2 * k - 1, 2 * k]
    spectrum = transform_2d((post - post.mean()).reshape(p, p), (p,)) ** 2
    assert found.frac.item() == pytest.approx((spectrum[rows][:, rows].sum() / spectrum.sum()).item(), abs=1e-10)
    # relu has harmonics that wrap around mod p, so phases are exact to O(p^-3) only.
    assert found.phase_sum.item() == pytest.approx(2 * phi, abs=1e-4)
    assert found.phase_a.item() == pytest.approx(phi, abs=1e-4)
    assert found.phase_diff.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("group", SMALL)
def test_four_sums_equal_the_nine_products_of_the_2d_transform(group):
    n, basis = math.prod(group), fourier_basis(group)
    post = randn(2, n * n, 5)
    found = neuron_frequencies(post, group)
    spectrum = transform_2d((post - post.mean(1, keepdim=True)).reshape(2, n, n, 5), group, (1, 2)) ** 2
    for i in range(1, len(basis.freqs)):
        rows = [0, *(basis.freq_index == i).nonzero().squeeze(1).tolist()]
        share = spectrum[:, rows][:, :, rows].sum((1, 2)) / spectrum.sum((1, 2))
        torch.testing.assert_close(found.by_freq[:, i], share)
    torch.testing.assert_close(found.by_freq.amax(1), found.frac)
    torch.testing.assert_close(found.linear + found.sum + found.diff, found.frac)


def test_a_quadratic_neuron_has_exact_shares_and_phases():
    """(cos(wa + x) + cos(wb + y))^2: 1/2 each on a + b and a - b, 1/8 each on 2a and 2b."""
    x, y = 0.9, -0.4
    found = neuron_frequencies(neuron(31, 6, torch.square, x, y), (31,))
    expected = [6, 0.8, 0.4, 0.0, 0.4, 0.4, x + y, x - y]
    fields = ("freq", "frac", "frac_sum", "linear", "sum", "diff", "phase_sum", "phase_diff")
    assert [getattr(found, name).item() for name in fields] == pytest.approx(expected, abs=1e-12)


def test_constant_neurons_and_random_neurons():
    p = 31
    dead = torch.zeros(p * p, 2)
    dead[:, 1] = 0.1
    found = neuron_frequencies(dead, (p,))
    assert found.freq.tolist() == [0, 0]
    assert found.frac.tolist() == [0.0, 0.0]
    assert neuron_clusters(found) == {}
    random = torch.relu(randn(p, 1, 100) + randn(1, p, 100, seed=1)).reshape(p * p, 100)
    null = neuron_frequencies(random, (p,))
    assert null.frac.max() < 0.5
    assert neuron_clusters(null) == {}


def test_clusters_need_five_clear_neurons():
    p = 31
    post = torch.cat(
        [neuron(p, 3, torch.relu, phi / 9, phi / 9) for phi in range(5)]
        + [neuron(p, 8, torch.relu, phi / 9, phi / 9) for phi in range(4)]
        + [neuron(p, 11, torch.square, phi / 9) for phi in range(6)],
        1,
    )
    clusters = neuron_clusters(neuron_frequencies(post, (p,)))
    assert {k: v.tolist() for k, v in clusters.items()} == {3: [0, 1, 2, 3, 4]}


# --- Neuron-logit map, attention -------------------------------------------------------------------------------------


def test_the_neuron_logit_map_of_a_planted_low_rank_map():
    p, k = 17, 4
    u, v = randn(9, seed=1), randn(9, seed=2)
    waves = fourier_basis((p,)).matrix[[2 * k - 1, 2 * k]]
    W_L = torch.outer(u, waves[0]) + torch.outer(v, waves[1])
    found = neuron_logit_map(W_L, [k], (p,))
    torch.testing.assert_close(found.directions, torch.stack([u, v]))
    assert found.labels == ("cos 4", "sin 4")
    assert found.residual == pytest.approx(0, abs=1e-12)
    assert found.rank_energy == pytest.approx(1, abs=1e-12)
    noisy = neuron_logit_map(W_L + fourier_basis((p,)).matrix[1] * 3, [k], (p,))
    rest = 9 * 9 / (9 * 9 + u @ u + v @ v)
    assert noisy.residual == pytest.approx(rest.item(), abs=1e-12)
    # Neurons whose reading along u is cos w(a+b) and along v half that, half something else.
    sums = 2 * math.pi * k * torch.arange(p)[:, None].add(torch.arange(p)).flatten().double() / p
    dual = torch.linalg.pinv(torch.stack([u, v], 1)).double()
    other = (sums * 2).cos()
    post = torch.outer(sums.cos(), dual[0]) + torch.outer((sums.sin() + other), dual[1])
    torch.testing.assert_close(direction_fve(post, W_L, [k], (p,)), torch.tensor([1.0, 0.5]).double())
    assert direction_fve(post, W_L, [], (p,)).shape == (0,)
    inside, outside = split_by_directions(post, found.directions)
    torch.testing.assert_close(inside + outside, post)
    assert (outside @ found.directions.T).abs().max() < 1e-10


def test_attention_wave():
    p = 19
    scores = 0.7 * (angles(5, p) + 0.3).cos() + 0.1 * angles(2, p).sin()
    log_odds = (scores[:, None] - randn(p)).flatten()
    freq, share = attention_wave(torch.stack([log_odds, log_odds + 4]), (p,))
    assert freq.tolist() == [5, 5]
    assert share.tolist() == pytest.approx([0.49 / 0.5] * 2, abs=1e-12)


# --- Clock and pizza -------------------------------------------------------------------------------------------------


def test_distance_irrelevance_on_the_formulas():
    p, group = 59, (59,)
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).double().unbind(1)
    pizza = torch.cos(math.pi * 7 * (a - b) / p).abs()
    assert distance_irrelevance(pizza, group) == pytest.approx(0, abs=1e-10)
    assert distance_irrelevance(torch.full((p * p,), 2.5), group).isnan()
    depends_on_sum_only = torch.cos(2 * math.pi * 7 * (a + b) / p)
    assert distance_irrelevance(depends_on_sum_only, group) == pytest.approx(1, abs=1e-10)
    both = distance_irrelevance(pizza + depends_on_sum_only, group)
    spread = math.sqrt(0.5 / (0.5 + pizza.var(correction=0).item()))
    assert both == pytest.approx(spread, abs=1e-10)
    even = torch.cartesian_prod(torch.arange(8), torch.arange(8)).double()
    assert distance_irrelevance((even[:, 0] - even[:, 1]) % 8, (8,)) == pytest.approx(0, abs=1e-10)


def test_circularity():
    p, group = 59, (59,)
    radii = {4: 3.0, 9: 2.0}
    waves = [r * f(angles(k, p)) for k, r in radii.items() for f in (torch.cos, torch.sin)]
    rotation = torch.linalg.qr(randn(16, 16)).Q
    circles = torch.stack(waves, 1) @ rotation[:4]
    assert circularity(circles + 5.0, group) == pytest.approx(1, abs=1e-10)
    one_circle = torch.stack(waves[:2], 1) @ rotation[:2]
    assert circularity(one_circle, group) == pytest.approx(1, abs=1e-10)
    assert circularity(randn(p, 16), group) < 0.4
    assert circularity(torch.ones(p, 3), group).isnan()


def circle_products(p, k, kind):
    """Logits from embedded operands on one circle: the clock's products, or the pizza's |.| of the sum."""
    c = angles(k, p)

    def clock(x):
        (xa, ya), (xb, yb) = x[:, 0].unbind(1), x[:, 1].unbind(1)
        return torch.outer(xa * xb - ya * yb, c.cos()) + torch.outer(xa * yb + ya * xb, c.sin())

    def pizza(x):
        x, y = x.sum(1).unbind(1)
        return torch.outer((x**2 - y**2), c.cos()) + torch.outer(2 * x * y, c.sin())

    return {"clock": clock, "pizza": pizza}[kind]


def test_gradient_symmetricity_on_the_formulas():
    p, k = 31, 3
    circle = torch.stack([angles(k, p).cos(), angles(k, p).sin()], 1)
    triples = torch.cartesian_prod(torch.arange(p), torch.arange(p), torch.tensor([0, 5]))
    assert gradient_symmetricity(circle_products(p, k, "pizza"), circle, triples) == pytest.approx(1, abs=1e-10)
    assert gradient_symmetricity(circle_products(p, k, "clock"), circle, triples) == pytest.approx(0, abs=1e-10)
    # A clock's two gradients make the angle w(a - b), whatever c is.
    apart = triples[(triples[:, 0] - triples[:, 1]) % p == 2]
    found = gradient_symmetricity(circle_products(p, k, "clock"), circle, apart)
    assert found == pytest.approx(math.cos(2 * math.pi * k * 2 / p), abs=1e-10)
    flat = gradient_symmetricity(lambda x: 0 * x.sum((1, 2))[:, None].expand(-1, p), circle, apart)
    assert flat.isnan()


def test_leading_axes_are_batches():
    group = (7,)
    stack = randn(2, 3, 49, 7)
    fit, one = trig_fit(stack, group), trig_fit(stack[1, 2], group)
    torch.testing.assert_close(fit.cos[1, 2], one.cos)
    torch.testing.assert_close(fit.fve[1, 2], one.fve)
    assert torch.equal(key_logit_frequencies(stack, group).mask[1, 2], key_logit_frequencies(stack[1, 2], group).mask)
    torch.testing.assert_close(restricted_logits(stack, [2], group)[1, 2], restricted_logits(stack[1, 2], [2], group))
    neurons, single = neuron_frequencies(stack, group), neuron_frequencies(stack[1, 2], group)
    for name in ("freq", "frac", "phase_sum", "by_freq"):
        torch.testing.assert_close(getattr(neurons, name)[1, 2], getattr(single, name))
    torch.testing.assert_close(
        neuron_logit_map(stack, [1], group).residual[1, 2], neuron_logit_map(stack[1, 2], [1], group).residual
    )
    torch.testing.assert_close(fourier_gini(stack[..., :7, :], group)[0, 1], fourier_gini(stack[0, 1, :7], group))
    assert trig_fit(stack.float(), group).cos.dtype == torch.float32


def test_a_weak_key_frequency_is_found_and_a_faint_harmonic_is_not():
    """Shares as in trained networks: .8 % for the weakest frequency in use, .01 % for a second harmonic."""
    p = 31
    total = group_sums((p,)).flatten()[:, None] - torch.arange(p)
    wave = lambda k, size: size**0.5 * torch.cos(2 * torch.pi * k * total.double() / p)  # noqa: E731
    logits = wave(3, 0.9919) + wave(11, 0.008) + wave(6, 0.0001)
    found = key_logit_frequencies(logits, (p,))
    assert found.freqs == (3, 11)
    assert key_logit_frequencies(logits, (p,), min_share=0.01).freqs == (3,)
    torch.testing.assert_close(found.share[11], torch.tensor(0.008, dtype=torch.float64))
