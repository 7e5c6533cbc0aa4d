"""Dictionaries through training: one that appears is dated, noise stays at chance, a checkpoint matches itself."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from cases.models import rng
from cases.runs import FULL_BATCH, VECTORS

from toylab.cli.figure import figure_module
from toylab.data import generator
from toylab.errors import UserError
from toylab.interp.sae import recovery
from toylab.interp.sae.agreement import firing, latent_scores, shrinkage
from toylab.interp.sae.dictionary import SAE
from toylab.interp.sae.spec import initialise
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Stream, rows_of
from toylab.interp.sae.through import (
    appeared,
    chance_partners,
    directions,
    follow,
    mixtures,
    other_seeds,
    partners,
    train_alike,
)
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining
from toylab.measures import sweeps
from toylab.measures.dictionaries import Dictionaries, DictionaryWaves, RecoveredFeatures
from toylab.models.superposition import SuperpositionSpec
from toylab.plotting import house_style, save
from toylab.runs import RunGroup
from toylab.snapshot import Snapshot
from toylab.taps import Tap, Tapped
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures
from toylab.train import train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

N, D = 24, 16
SPEC = TopK(d_sae=N, k=2, lr=1e-2)
TRAINING = SAETraining(steps=400, batch_size=192, lr_warmup=20, dead_after=50)
WORLD = SparseFeatures(n_features=N, sparsity=0.94, importance_decay=1.0, n_test=2048)


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=rng(seed)), dim=-1)


def trained_on(x):
    return directions(train_alike(SPEC, (0, 1), Stream.of_tensor(x), TRAINING))


@pytest.fixture(scope="module")
def planted():
    """[step, sae, d_sae, d] on six "checkpoints": another dictionary up to the third, then the one that stays."""
    old, new = unit(N, D, seed=0), unit(N, D, seed=1)
    c = WORLD.sample(4096, rng(2)).inputs
    before, after = trained_on(c @ old), trained_on(c @ new)
    return torch.stack([before] * 3 + [after] * 3), new


@pytest.fixture(scope="module")
def noise():
    """The same on three checkpoints of independent Gaussian noise: there is nothing to find."""
    return torch.stack([trained_on(torch.randn(4096, D, generator=rng(10 + i))) for i in range(3)])


# --- Following -------------------------------------------------------------------------------------------------------


def test_a_dictionary_that_appears_is_dated(planted):
    W, new = planted
    found = other_seeds(follow(W).to_final)
    born = appeared(found, above=0.9)
    agreed = found[-1] >= 0.9  # a latent on which the seeds disagree has no birth
    assert agreed.double().mean() > 0.7
    assert (born[agreed] == 3).all()
    assert (born[~agreed] == -1).all()
    assert (recovery.mcc(W[:, 0], new) > 0.9).tolist() == [False] * 3 + [True] * 3


def test_the_step_to_the_next_checkpoint_is_small_but_where_the_dictionary_changes(planted):
    same = follow(planted[0]).to_next.diagonal(dim1=1, dim2=2).mean((1, 2))
    assert same[[0, 1, 3, 4]].tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert same[2] < 0.8


def test_on_noise_nothing_is_followed_and_nothing_appears(noise):
    to_final = other_seeds(follow(noise).to_final)
    for step, W in enumerate(noise):
        chance = other_seeds(chance_partners(W, noise[-1], rng(0), 10)[..., None]).mean()
        assert to_final[step].mean() < chance + 0.05
    assert (appeared(to_final, above=0.9) == -1).double().mean() > 0.9


def test_the_same_seed_agrees_with_itself_on_noise_where_others_do_not(noise):
    """Why other seeds are asked: the start is shared, and on noise little more is learned."""
    found = follow(noise).to_final[0]
    assert found.diagonal().mean() > other_seeds(found).mean() + 0.15


def test_order_of_latents_changes_nothing():
    W = unit(3, N, D, seed=3)
    order = torch.randperm(N, generator=rng(4))
    assert partners(W, W[:, order]).diagonal().T.flatten().tolist() == pytest.approx([1] * 3 * N, abs=1e-5)
    torch.testing.assert_close(partners(W[:, order], W), partners(W, W), atol=1e-6, rtol=0)
    torch.testing.assert_close(partners(W, W[:, order]), partners(W, W)[..., order], atol=1e-6, rtol=0)


def test_partners_are_those_of_stability():
    W = unit(3, N, D, seed=3)
    torch.testing.assert_close(partners(W, W).mean(2), recovery.stability(W), atol=1e-6, rtol=0)


def test_other_seeds_and_births_by_hand():
    cosines = torch.tensor([[1.0, 0.2, 0.4], [0.6, 1.0, 0.8], [0.0, 0.5, 1.0]])[..., None]
    torch.testing.assert_close(other_seeds(cosines)[:, 0], torch.tensor([0.3, 0.35, 0.6]))
    found = torch.tensor([[0.95, 0.9, 0.1, 0.5], [0.2, 0.9, 0.1, 0.9], [0.95, 0.9, 0.1, 0.95], [0.91, 0.9, 1.0, 0.8]])
    assert appeared(found[:, None], above=0.9).tolist() == [[2, 0, 3, -1]]  # a dip starts the count again


def test_mixtures_keep_the_space_and_nothing_else():
    """The chance of uniform directions where W fills its space evenly, more where it does not."""
    even = unit(200, 8, seed=5)
    flat = F.pad(unit(200, 2, seed=6), (0, 6))
    mixed = mixtures(flat, 3, rng(7))
    assert mixed.shape == (3, 200, 8)
    assert (mixed[..., 2:] == 0).all()
    assert recovery.mmcs(mixtures(even, 20, rng(8)), even).mean() == pytest.approx(
        recovery.chance_mmcs(8, 200), abs=0.02
    )
    other = F.pad(unit(200, 2, seed=9), (0, 6))
    assert chance_partners(flat[None], other[None], rng(0)) > chance_partners(even[None], even[None], rng(0)) + 0.05


def test_what_cannot_be_followed():
    W = unit(2, 1, N, D, seed=3)
    with pytest.raises(UserError, match="two"):
        follow(W[:1])
    with pytest.raises(UserError, match="differ in their sizes"):
        partners(W[0], unit(1, N + 1, D, seed=0))
    with pytest.raises(UserError, match="needs two"):
        other_seeds(partners(W[0], W[1]))


# --- The measures ----------------------------------------------------------------------------------------------------


class Says(Tapped):
    """A model whose site "hidden" is a function of its inputs."""

    def __init__(self, hidden, inputs):
        super().__init__()
        self.hidden, self.inputs = hidden, inputs

    def forward(self, inputs, tap=None, read=None):
        return (tap or Tap())("hidden", None, self.hidden(inputs))

    def example_input(self):
        return self.inputs[:1]


def snapshot(hidden, task=WORLD, step=0):
    split = task.split(0)
    return Snapshot(step, Says(hidden, split.all.inputs), task, split, "mse")


def embedded(W):
    return snapshot(lambda c: c @ W)


def scrambled(c):
    """Noise to a linear eye: the inputs decide it, but far too fast to be followed."""
    return torch.cos(1000 * (c + 0.1) @ torch.randn(N, D, generator=rng(11)))


RECOVERED = RecoveredFeatures("hidden", SPEC, TRAINING)


def test_planted_features_are_recovered_far_above_chance():
    W = unit(N, D, seed=1)
    found = RECOVERED(embedded(W))
    torch.testing.assert_close(torch.from_numpy(found["feature_direction"].values), W, atol=1e-5, rtol=0)
    assert found["mcc"].values.min() > 0.8 > found["chance_mcc"] + 0.3
    assert found["mmcs"].values.min() >= found["mcc"].values.min() - 1e-6
    assert found["mmcs"].values.min() > found["chance_mmcs"] + 0.2
    assert found["f1"].values.min() > found["chance_f1"].values.max() + 0.5
    assert found["seed_cosine"] > found["seed_chance"] + 0.3
    assert found["feature_cosine"].values.mean(1) == pytest.approx(found["mcc"].values, abs=1e-6)
    assert found["fvu"].values.max() < 0.3


def test_a_sweep_says_the_same_of_the_same_dictionary():
    """The two measures and the leaderboard have one scorer; here the numbers are also those of its parts."""
    task = dataclasses.replace(WORLD, n_test=500)
    model = SuperpositionSpec("linear", D, init_std=D**-0.5).build(task, rng(1))
    snap = Snapshot(0, model, task, task.split(0), "mse")
    measure = RecoveredFeatures("hidden", SPEC, SHORT)
    found = measure(snap)
    features, x, c = sweeps._world(snap, measure)
    for i, sae in enumerate(measure.trained(snap)):
        swept = sweeps._scores(sae, features, x, c)
        assert swept["mmcs"] == pytest.approx(found["mmcs"].values[i], abs=1e-5)
        assert swept["f1"] == pytest.approx(found["f1"].values[i], abs=1e-9)
        with torch.no_grad():
            counts = firing(sae.encode(x), c)
        by_hand = latent_scores(counts, recovery.best_feature(sae.W_dec, features)).f1.mean()
        assert swept["f1"] == by_hand.item()
        assert swept["mmcs"] == recovery.mmcs(sae.W_dec, features).item()
        assert swept["kept"] == shrinkage(counts, sae.W_dec, features).value.nanmean().item()


def test_on_noise_recovery_is_at_chance():
    dense = dataclasses.replace(WORLD, sparsity=0.5)  # no two rows alike: else what they share is found
    found = RECOVERED(snapshot(scrambled, dense))
    assert found["mcc"].values == pytest.approx([found["chance_mcc"]] * 2, abs=0.06)
    assert found["f1"].values == pytest.approx(found["chance_f1"].values, abs=0.06)
    assert found["seed_cosine"] < found["seed_chance"] + 0.06


def test_feature_directions_are_exact_where_the_site_is_affine():
    c, W = torch.rand(50, 6, generator=rng(0)), unit(6, 4, seed=1)
    torch.testing.assert_close(recovery.feature_directions(c @ W + 3, c), W, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="more rows"):
        recovery.feature_directions(c[:6] @ W, c[:6])


def test_a_seed_of_a_dictionary_is_not_a_seed_of_the_model():
    """Equal seeds and shapes: were the draws shared, the dictionary would start at the answer."""
    model = SuperpositionSpec("linear", D).build(WORLD, generator(0, "init"))
    start = initialise(SPEC, torch.zeros(2, D), torch.zeros(2, D), torch.zeros(D), True)["W_dec"]
    chance, spread = recovery.chance(lambda R: recovery.mcc(R, model.W.detach()), N, D, rng(0))
    assert recovery.mcc(start, model.W.detach()) < chance + 5 * spread


@dataclasses.dataclass(frozen=True)
class ByHand(DictionaryWaves):
    """Latents that are the entries of the site."""

    def trained(self, snap):
        d = rows_of(snap, self.site).shape[1]
        params = {"W_enc": torch.eye(d), "W_dec": torch.eye(d), "b_enc": torch.zeros(d), "b_dec": torch.zeros(d)}
        return (SAE(Standard(d_sae=d, lr=1.0, l1=0.0), params),) * 2


def test_waves_are_told_from_tables_and_noise():
    """Three clipped waves of k = 2, one latent for "a is 4", one of noise, one never on."""
    p = 13
    task = ModularArithmetic(p=p, operation="x+y", frac_train=0.5)

    def hidden(inputs):
        a, b = inputs[:, 0], inputs[:, 1]
        waves = [torch.cos(2 * math.pi * (2 * (a + b) + shift) / p) for shift in (0, 4, 9)]
        return torch.stack([*waves, (a == 4).float(), torch.rand(len(a), generator=rng(0)), -1 - a.float()], 1).relu()

    found = ByHand("hidden", SPEC, TRAINING)(snapshot(hidden, task))
    assert found["latent_freq"].values[0, :3].tolist() == [2, 2, 2]
    assert found["latent_frac"].values[0, :3] == pytest.approx([0.84] * 3, abs=0.03)
    assert found["latent_frac"].values[0, 3] == pytest.approx(2 / (p - 1), abs=1e-5)  # one of six pairs, all alike
    assert found["latent_frac"].values[0, 5] == 0
    assert found["one_frequency"].values == pytest.approx([3 / 5] * 2)
    assert found["chance_frac"].values.max() < 0.2
    assert found["dead"].values == pytest.approx([1 / 6] * 2)
    assert found["fvu"].values == pytest.approx([0, 0], abs=1e-9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(VECTORS, tmp_path_factory.mktemp("runs") / "vectors", progress=False)


SHORT = SAETraining(steps=20, batch_size=32)


def test_every_checkpoint_in_one_call(run):
    measure = RecoveredFeatures("hidden", TopK(d_sae=5, k=1, lr=1e-2), SHORT, hindsight=True)
    table = run.map(measure, reference=run.reference())
    assert table.step.values.tolist() == run.steps
    assert table.W_dec.dims == ("step", "sae", "latent", "d")
    assert table.sae.values.tolist() == [0, 1]
    last = table.isel(step=-1)
    assert last.final_cosine.item() == pytest.approx(last.seed_cosine.item(), abs=1e-6)
    W = torch.from_numpy(table.W_dec.values)
    torch.testing.assert_close(
        other_seeds(follow(W).to_final).mean((1, 2)).double(),
        torch.from_numpy(table.final_cosine.values),
        atol=1e-6,
        rtol=0,
    )
    assert run.map(measure, reference=run.reference()).equals(table)


def test_the_same_checkpoint_gives_the_same_dictionaries(run):
    measure = Dictionaries("hidden", TopK(d_sae=5, k=1, lr=1e-2), SHORT)
    one, again = (directions(measure.trained(run.snapshot(run.steps[1]))) for _ in range(2))
    assert torch.equal(one, again)
    assert partners(one, again).diagonal().T.flatten().tolist() == pytest.approx([1] * 10, abs=1e-6)


def test_one_seed_has_nobody_to_agree_with(run):
    found = Dictionaries("hidden", TopK(d_sae=5, k=1, lr=1e-2), SHORT, seeds=(3,))(run.final)
    assert math.isnan(found["seed_cosine"])
    assert found["fvu"].values.shape == (1,)


@pytest.mark.parametrize(("name", "experiment"), [("sae_addition", FULL_BATCH), ("sae_superposition", VECTORS)])
def test_figures_are_computed_and_drawn(name, experiment, tmp_path):
    figure = figure_module(name)
    figure.MEASURE = dataclasses.replace(figure.MEASURE, spec=TopK(d_sae=6, k=2, lr=1e-2), training=SHORT)
    path = train(experiment, tmp_path / "run", progress=False).path
    table = figure.compute(RunGroup([path]))
    assert {"seed_cosine", "final_cosine", "final_chance"} <= set(table.data_vars)
    assert "W_dec" not in table
    with house_style():
        save(figure.draw(table), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_what_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="a dictionary of toylab"):
        Dictionaries("hidden", "TopK", SHORT)
    with pytest.raises(UserError, match="different ones"):
        Dictionaries("hidden", SPEC, SHORT, seeds=(0, 0))
    with pytest.raises(UserError, match="no reference"):
        Dictionaries("hidden", SPEC, SHORT, hindsight=True)(run.final)
    with pytest.raises(UserError, match="abelian group"):
        DictionaryWaves("hidden", SPEC, SHORT)(run.final)
    addition = train(FULL_BATCH, tmp_path / "addition", progress=False).final
    with pytest.raises(UserError, match="has no numerical latent 'value'"):
        RecoveredFeatures("post0", SPEC, SHORT)(addition)
    assert DictionaryWaves("post0", SPEC, SHORT)(addition)["latent_freq"].values.shape == (2, N)
