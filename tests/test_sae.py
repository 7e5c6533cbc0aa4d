"""Dictionaries: hand-written gradients against autograd, stacks against members, planted features, files, edits."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from cases.models import ADDITION, REPEATED, rng, scrambled, spec
from cases.runs import VECTORS
from torch import Tensor

from toylab.data import generator
from toylab.durable import Interrupted
from toylab.errors import UserError
from toylab.interp.sae import saelens
from toylab.interp.sae.april import April
from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.crosscoder import birth, death, exclusive, relative_norm, rotation, source_norms
from toylab.interp.sae.dictionary import SAE, load, save
from toylab.interp.sae.edits import Transcoded, ablate, clamp, edit, splice, steer
from toylab.interp.sae.gated import Gated
from toylab.interp.sae.jumprelu import JumpReLU
from toylab.interp.sae.matryoshka import Matryoshka
from toylab.interp.sae.p_anneal import PAnneal
from toylab.interp.sae.sparse import per_batch, per_row
from toylab.interp.sae.spec import State, decoder_norms, geometric_median, knob_table, remove_parallel
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Stream
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETrainer, SAETraining, resample, train_sae
from toylab.interp.sae.transcoder import attribution, connections, from_tokens
from toylab.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

BASE = {"d_sae": 12, "lr": 3e-3}
VARIANTS = {
    "standard": Standard(l1=0.3, **BASE),
    "april": April(l1=0.3, **BASE),
    "gated": Gated(l1=0.3, **BASE),
    "topk": TopK(k=3, **BASE),
    "batch topk": BatchTopK(k=2.5, **BASE),
    "matryoshka": Matryoshka(k=2.5, widths=(3, 7, 12), **BASE),
    "jumprelu": JumpReLU(l0=0.2, bandwidth=0.4, initial_threshold=0.3, **BASE),
    "p-anneal": PAnneal(l1=0.3, anneal_start=0.2, **BASE),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def random(*shape, seed=4, dtype=torch.double):
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def stacked_params(variant, members=2, d_in=6, d_out=6):
    """Random parameters [sae, ...] of everything the variant has, decoder rows of norm 1."""
    M = variant.d_sae
    params = {"W_enc": random(members, d_in, M, seed=1), "W_dec": random(members, M, d_out, seed=2)}
    params["W_dec"] /= params["W_dec"].norm(dim=2, keepdim=True)
    params["b_dec"] = random(members, d_out, seed=3)
    params |= {name: 0.3 * random(members, M, seed=5 + i) for i, name in enumerate(variant.BIASES)}
    if variant.skip:
        params["W_skip"] = random(members, d_in, d_out, seed=8)
    one: dict[str, Tensor] = {}
    variant.start(one, params["b_dec"])
    return params | {name: t.expand(members, *t.shape).clone() for name, t in one.items()}


# --- the losses, as their definitions say, one member at a time, by autograd -----------------------------------------


class Jump(torch.autograd.Function):
    """z 1[z > t] and 1[z > t] with the paper's estimates for t and the step."""

    @staticmethod
    def forward(ctx, z, t, e):
        ctx.save_for_backward(z, t, e)
        return z * (z > t), (z > t).to(z)

    @staticmethod
    def backward(ctx, df, dstep):
        z, t, e = ctx.saved_tensors
        near = ((z - t).abs() <= e / 2) / e
        return df * (z > t), -(df * t * near + dstep * near).sum(0), None


def top(z, k):
    best = z.flatten().topk(k) if z.ndim == 1 else z.topk(k, dim=1)
    return torch.zeros_like(z).scatter(-1, best.indices, best.values.relu())


def reference(variant, p, x, y, knobs, state):
    """The training loss of one member."""
    n = len(x)
    u = (x - p["b_dec"] if variant.apply_b_dec_to_input else x) @ p["W_enc"]
    z = u + p.get("b_enc", 0)
    out = p["b_dec"] + (x @ p["W_skip"] if variant.skip else 0)
    penalty = 0.0
    if isinstance(variant, JumpReLU):
        f, on = Jump.apply(z, p["threshold"], knobs["bandwidth"])
        penalty = knobs["l0"] * on.sum() / n
    elif isinstance(variant, Gated):
        pi = u + p["b_gate"]
        f = (pi > 0) * (u * p["r_mag"].exp() + p["b_mag"]).relu()
        frozen = pi.relu() @ p["W_dec"].detach() + out.detach()
        penalty = knobs["l1"] * pi.relu().sum() / n + (frozen - y).square().sum() / n
    elif isinstance(variant, TopK):
        f = top(z, int(knobs["k"]))
    elif isinstance(variant, BatchTopK):
        f = top(z.flatten(), round(float(knobs["k"]) * n)).view(z.shape)
    else:
        f = z.relu()
        weight = decoder_norms(p["W_dec"], variant.sources) if isinstance(variant, April) else 1
        power = variant.p(state.step, state.steps) if isinstance(variant, PAnneal) else 1
        # The clamp keeps the infinite slope at 0 from latents that are off.
        penalty = knobs["l1"] * (torch.where(f > 0, f.clamp(min=1e-30) ** power, 0) * weight).sum() / n
    widths = variant.widths if isinstance(variant, Matryoshka) else (variant.d_sae,)
    error = sum((f[:, :m] @ p["W_dec"][:m] + out - y).square().sum() for m in widths) / n
    return error + penalty


def gradients(variant, params, x, y, dead=None, step=50):
    M = params["W_enc"].shape[2]
    S = len(params["W_enc"])
    changed = [{name: getattr(variant, name) * (i + 1) for name in variant.KNOBS} for i in range(S)]
    knobs = knob_table([dataclasses.replace(variant, **c) for c in changed], x)
    dead = torch.zeros(S, M, dtype=torch.bool) if dead is None else dead
    state = State(step, 100, dead, {"penalty_scale": x.new_ones(S)})
    return variant.gradients(params, x, y, knobs, state), knobs, state


CASES = [
    *[pytest.param(v, id=name) for name, v in VARIANTS.items()],
    pytest.param(April(l1=0.3, sources=2, **BASE), id="crosscoder"),
    *[
        pytest.param(dataclasses.replace(VARIANTS[name], apply_b_dec_to_input=False, skip=True), id=f"skip {name}")
        for name in ("standard", "gated", "topk", "matryoshka", "jumprelu")
    ],
]


@pytest.mark.parametrize("variant", CASES)
def test_hand_written_gradients_are_those_of_autograd(variant, monkeypatch):
    monkeypatch.setattr("toylab.interp.sae.dense.TILE_ROWS", 7)  # so that tiles are uneven, in rows and members
    monkeypatch.setattr("toylab.interp.sae.dense.TILE_BYTES", 7 * 12 * 8)
    params, x = stacked_params(variant), random(40, 6, seed=9)
    y = random(40, 6, seed=10) if variant.skip else x
    (grads, stats), knobs, state = gradients(variant, params, x, y)
    for s in range(2):
        leaf = {name: p[s].clone().requires_grad_() for name, p in params.items()}
        reference(variant, leaf, x, y, {name: k[s, 0, 0] for name, k in knobs.items()}, state).backward()
        for name, p in leaf.items():
            if name == "threshold" and not isinstance(variant, JumpReLU):
                assert not grads[name].any()
            else:
                torch.testing.assert_close(
                    grads[name][s], p.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
                )
    assert stats.active.min() > 0


def test_15_auxk_teaches_dead_latents_and_no_other():
    variant, n = TopK(k=2, aux=0.5, k_aux=2, **BASE), 40
    params, x = stacked_params(variant), random(n, 6, seed=9)
    dead = torch.zeros(2, 12, dtype=torch.bool)
    dead[0, [1, 5, 7]], dead[1, 4] = True, True
    params["b_enc"][dead] += 0.5  # more of them positive
    (plain, _), _, _ = gradients(dataclasses.replace(variant, aux=0.0), params, x, x, dead)
    (grads, _), knobs, _ = gradients(variant, params, x, x, dead)
    (none_dead, _), _, _ = gradients(variant, params, x, x)
    assert all(torch.equal(none_dead[name], plain[name]) for name in plain)
    for s in range(2):
        leaf = {name: p[s].clone().requires_grad_() for name, p in params.items()}
        z = (x - leaf["b_dec"]) @ leaf["W_enc"] + leaf["b_enc"]
        e = (x - top(z, int(knobs["k"][s])) @ leaf["W_dec"] - leaf["b_dec"]).detach()
        m = int(dead[s].sum())
        e_hat = top(z[:, dead[s]], min(2, m)) @ leaf["W_dec"][dead[s]]
        loss = 0.5 * min(m / 2, 1) * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
        loss.backward()
        for name, p in leaf.items():
            torch.testing.assert_close(grads[name][s] - plain[name][s], p.grad, rtol=1e-6, atol=1e-9)
        assert not (grads["W_dec"] - plain["W_dec"])[s, ~dead[s]].any()
        assert not (grads["W_enc"] - plain["W_enc"])[s][:, ~dead[s]].any()


def test_13_jumprelu_threshold_gradient_is_the_derivative_of_the_expected_count():
    n = 400_000  # a normal variable's quantiles
    z = torch.special.ndtri((torch.arange(n).double()[:, None] + 0.5) / n)
    variant = JumpReLU(d_sae=1, lr=1.0, l0=1.0, bandwidth=0.2, initial_threshold=0.5)
    params = {"W_enc": z.new_ones(1, 1, 1), "W_dec": z.new_zeros(1, 1, 1), "b_dec": z.new_zeros(1, 1)}
    params |= {"b_enc": z.new_zeros(1, 1), "threshold": z.new_full((1, 1), 0.5)}
    knobs = {"l0": z.new_ones(1, 1, 1), "bandwidth": z.new_full((1, 1, 1), 0.2)}
    grads, _ = variant.gradients(params, z, z, knobs, State(0, 1, torch.zeros(1, 1, dtype=torch.bool), {}))
    exact = (torch.special.ndtr(torch.tensor(0.6)) - torch.special.ndtr(torch.tensor(0.4))) / 0.2  # 0.35163
    assert grads["threshold"].item() == pytest.approx(-exact.item(), abs=1e-4)
    assert abs(exact - 0.35207) < 1e-3  # phi(0.5), which it tends to


# --- selection -------------------------------------------------------------------------------------------------------


def test_14_topk_keeps_exactly_k_and_breaks_ties():
    z = random(50, 20, seed=3).abs().numpy()
    z[:20] = z[:20].round(0) + 1  # many ties
    z[0] = 1
    k = torch.randint(1, 20, (50,), generator=rng(1)).numpy()
    rows = per_row(z, k) // 20
    assert (torch.bincount(torch.from_numpy(rows), minlength=50).numpy() == k).all()
    chosen = torch.zeros(50, 20, dtype=torch.bool)
    chosen.view(-1)[torch.from_numpy(per_row(z, k))] = True
    for row in range(50):  # nothing left out is larger than something kept
        kept = torch.from_numpy(z[row])[chosen[row]].min()
        assert not (torch.from_numpy(z[row])[~chosen[row]] > kept).any()
    assert len(per_batch(z, 137)) == 137
    assert len(per_batch(z.round(), 137)) == 137
    assert len(per_row(-z, k)) == 0 == len(per_batch(-z, 9))  # only what is positive


def test_14_finished_topk_and_batch_topk():
    stream = Stream.of_tensor(random(2000, 6, dtype=torch.float32))
    x = random(2000, 6, dtype=torch.float32, seed=5)
    training = SAETraining(steps=200, batch_size=128)
    topk, batch = (train_sae([v], stream, training).saes[0] for v in (TopK(k=3, **BASE), BatchTopK(k=2.5, **BASE)))
    assert (topk.encode(x) > 0).sum(1).max() <= 3
    assert abs(float((batch.encode(x) > 0).sum(1).double().mean()) - 2.5) < 0.25
    torch.testing.assert_close(batch.encode(x)[:1], batch.encode(x[:1]))  # nobody else in the batch matters


# --- training --------------------------------------------------------------------------------------------------------


class Planted:
    """n sparse features in d dimensions, as in section 5.14 of the field's practice: U[0, 1] sizes, l0 of them on."""

    def __init__(self, n=24, d=20, l0=1.5):
        G = torch.randn(n, d, generator=generator(0, "planted"))
        self.G, self.p = G / G.norm(dim=1, keepdim=True), l0 / n

    def __call__(self, rows, g):
        shape = (rows, len(self.G))
        return (torch.rand(shape, generator=g) * (torch.rand(shape, generator=g) < self.p)) @ self.G


def mmcs(W_dec, G):
    W = W_dec / W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (G @ W.T).max(1).values.mean().item()


SCALED = {"d_sae": 32, "lr": 5e-3}
LEARNERS = {
    "standard": Standard(l1=2.0, **SCALED),
    "april": April(l1=1.5, **SCALED),
    "gated": Gated(l1=4.0, **SCALED),
    "topk": TopK(k=2, **SCALED),
    "batch topk": BatchTopK(k=1.8, **SCALED),
    "matryoshka": Matryoshka(k=1.8, widths=(24, 32), **SCALED),
    "jumprelu": JumpReLU(l0=2.5, bandwidth=1.5, initial_threshold=0.8, **SCALED),
    "p-anneal": PAnneal(l1=1.5, p_end=0.5, **SCALED),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_planted_features_are_found_and_noise_has_none(name):
    planted, variant = Planted(), LEARNERS[name]
    training = SAETraining(steps=350, batch_size=192, sparsity_warmup=50, lr_warmup=20, dead_after=50)
    chance = mmcs(random(32, 20, dtype=torch.float32), planted.G)
    found = mmcs(train_sae([variant], Stream.of_function(planted, rows=1 << 14), training).saes[0].W_dec, planted.G)
    assert found > 0.8 > chance + 0.3
    noise = Stream.of_function(lambda n, g: torch.randn(n, 20, generator=g), rows=1 << 13)
    quick = dataclasses.replace(training, steps=60)
    a, b = (
        sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
        for sae in train_sae([variant, dataclasses.replace(variant, seed=1)], noise, quick).saes
    )
    assert mmcs(a, planted.G) < chance + 0.1
    assert mmcs(a, b) < chance + 0.15  # seeds do not agree on what is not there


def streams(d=6, rows=100):
    return Stream.of_tensor(random(rows, d))


@every_variant
def test_7_a_member_of_a_stack_is_the_same_alone(variant):
    other = dataclasses.replace(
        variant, seed=1, lr=1e-3, **{k: getattr(variant, k) * 1.6 // 1 or 0.1 for k in variant.KNOBS}
    )
    if not isinstance(variant, Matryoshka):
        other = dataclasses.replace(other, d_sae=9)  # padded to 12
    training = SAETraining(
        steps=30, batch_size=32, clip=1.0, dead_after=4, resample_every=10, sparsity_warmup=5, lr_warmup=3
    )
    together = train_sae([variant, other], streams(), training)
    for i, member in enumerate((variant, other)):
        alone = train_sae([member], streams(), training)
        for name, p in alone.saes[0].params.items():
            torch.testing.assert_close(together.saes[i].params[name], p, rtol=1e-7, atol=1e-9)
        for name in ("fvu", "l0", "dead"):
            torch.testing.assert_close(together.history[name][:, i], alone.history[name][:, 0])


class Killed(Stream):
    """A stream during whose batch number `at` the process is asked to stop."""

    kill_at, seen = -1, 0

    def next(self, n):
        self.seen += 1
        if self.seen == self.kill_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().next(n)


@pytest.mark.parametrize(
    ("variant", "finite"), [*[(v, True) for v in VARIANTS.values()], (VARIANTS["standard"], False)]
)
def test_resumed_is_uninterrupted_to_the_bit(variant, finite, tmp_path):
    training = SAETraining(steps=24, batch_size=32, log_every=5, save_every=10, dead_after=3, resample_every=7)
    specs = [variant, dataclasses.replace(variant, seed=1)]

    def stream(kill_at=-1):
        draw = (lambda g: (random(90, 6), None)) if finite else (lambda g: (torch.randn(90, 6, generator=g), None))
        made = Killed(draw, Stream.of_tensor(random(2, 6)).origin, finite=finite)
        made.kill_at = kill_at
        return made

    whole = train_sae(specs, stream(), training)
    for kill_at in (14, 17):
        with pytest.raises(Interrupted, match=r"step 1. of 24.*same call"):
            train_sae(specs, stream(kill_at if kill_at == 14 else 3), training, tmp_path)
    done = train_sae(specs, stream(), training, tmp_path)
    again = train_sae(specs, stream(), training, tmp_path)  # finished: read, not trained
    for other in (done, again):
        assert all(torch.equal(whole.history[k], other.history[k]) for k in whole.history)
        for a, b in zip(whole.saes, other.saes, strict=True):
            assert a.params.keys() == b.params.keys()
            assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)
    with pytest.raises(UserError, match="other training: steps was"):
        train_sae(specs, stream(), dataclasses.replace(training, steps=30), tmp_path)
    with pytest.raises(UserError, match="other specs"):
        train_sae(specs[:1], stream(), training, tmp_path)


@every_variant
def test_a_state_holds_everything(variant):
    training = SAETraining(steps=40, batch_size=32, log_every=3, dead_after=3)
    one, other = (SAETrainer([variant] * 2, streams(), training) for _ in range(2))
    for _ in range(10):
        one.advance()
    one.silent[:, ::2] += 3
    other.load_state(one.state())
    for name, tensor in one.state().items():
        assert torch.equal(other.state()[name], tensor), name
    assert torch.equal(other.silent, one.silent)
    assert other.dead.any()


def test_annealing_p_leaves_the_penalty_continuous():
    variant, x = VARIANTS["p-anneal"], random(40, 6, seed=9)
    params = stacked_params(variant)
    f = ((x - params["b_dec"][:, None]) @ params["W_enc"] + params["b_enc"][:, None]).relu()
    state = State(0, 100, torch.zeros(2, 12, dtype=torch.bool), {})
    exponents = [variant.p(step, 100) for step in range(100)]
    assert exponents[19] == 1
    assert exponents[-1] == pytest.approx(0.2)
    assert len(set(exponents)) == 11
    for state.step in range(100):
        variant.before_step(params, x, {}, state)
        penalty = state.extra["penalty_scale"] * torch.where(f > 0, f ** variant.p(state.step, 100), 0).sum((1, 2))
        torch.testing.assert_close(penalty, f.sum((1, 2)))


def test_16_the_gate_learns_from_its_own_terms_and_the_decoder_from_the_first_alone():
    variant = VARIANTS["gated"]
    params, x = stacked_params(variant), random(40, 6, seed=9)
    (grads, _), knobs, _ = gradients(variant, params, x, x)
    for s in range(2):
        p = {name: t[s].clone().requires_grad_() for name, t in params.items()}
        u = (x - p["b_dec"].detach()) @ p["W_enc"]
        pi, f = u + p["b_gate"], (u * p["r_mag"].exp() + p["b_mag"]).relu()
        main = (((pi > 0) * f) @ p["W_dec"] + p["b_dec"].detach() - x).square().sum() / len(x)
        frozen = (pi.relu() @ p["W_dec"].detach() + p["b_dec"].detach() - x).square().sum() / len(x)
        gate = frozen + knobs["l1"][s, 0, 0] * pi.relu().sum() / len(x)
        of_gate, nothing = torch.autograd.grad(gate, (p["b_gate"], p["b_mag"]), retain_graph=True, allow_unused=True)
        none, of_decoder = torch.autograd.grad(main, (p["b_gate"], p["W_dec"]), allow_unused=True)
        assert nothing is None
        assert none is None  # the step passes no gradient
        torch.testing.assert_close(grads["b_gate"][s], of_gate)
        torch.testing.assert_close(grads["W_dec"][s], of_decoder)


def test_17_resampling_changes_dead_latents_their_moments_and_nothing_else():
    trainer = SAETrainer([VARIANTS["standard"]] * 2, streams(), SAETraining(steps=9, batch_size=64, dead_after=3))
    for _ in range(3):
        trainer.advance()
    trainer.silent[:] = 0
    trainer.silent[0, [2, 6]] = 5
    before = {k: t.clone() for k, t in trainer.state().items() if k.startswith(("params", "moment"))}
    x, y = trainer.stream.next(64)
    resample(trainer, x, y)
    dead = torch.zeros(2, 12, dtype=torch.bool)
    dead[0, [2, 6]] = True
    for key, old in before.items():
        new, name = trainer.state()[key], key.partition("/")[2]
        new, old = (t.mT if name == "W_enc" else t for t in (new, old))
        if name == "b_dec":
            assert torch.equal(new, old)
            continue
        assert torch.equal(new[~dead], old[~dead])
        if key.startswith("moment") or name == "b_enc":
            assert not new[dead].any()
        else:
            assert not torch.isclose(new[dead], old[dead]).any()
    alive = trainer.params["W_enc"][0][:, ~dead[0]].norm(dim=0).mean()
    torch.testing.assert_close(trainer.params["W_enc"][0][:, 2].norm(), 0.2 * alive)
    assert trainer.params["W_dec"][dead].norm(dim=1) == pytest.approx(1)
    assert not trainer.silent[0, [2, 6]].any()


def test_18_parallel_gradient_and_norms():
    W = random(2, 5, 4)
    W /= W.norm(dim=2, keepdim=True)
    assert (remove_parallel(random(2, 5, 4, seed=1), W) * W).sum(2).abs().max() < 1e-12
    for variant in VARIANTS.values():
        if variant.UNIT_DECODER:
            trainer = SAETrainer([variant], streams(), SAETraining(steps=5, batch_size=20))
            trainer.advance()
            assert (trainer.params["W_dec"].norm(dim=2) - 1).abs().max() < 1e-6


def test_19_matryoshka_with_one_level_is_batch_topk():
    training = SAETraining(steps=20, batch_size=32, dead_after=4)
    one = train_sae([Matryoshka(k=2.5, widths=(12,), **BASE)], streams(), training).saes[0]
    other = train_sae([BatchTopK(k=2.5, **BASE)], streams(), training).saes[0]
    assert all(torch.equal(one.params[name], other.params[name]) for name in other.params)


def test_l1_shrinks_a_large_latent_by_half_of_itself():
    """On one direction that is always on, the best activation is a - l1 / 2."""
    x = torch.linspace(3, 5, 200, dtype=torch.double)[:, None] * torch.tensor([0.6, 0.8], dtype=torch.double)
    stream = Stream.of_tensor(x, normalise="none")
    training = SAETraining(steps=600, batch_size=200, b_dec="zero", lr_decay=0.7)
    spec = Standard(d_sae=1, lr=5e-2, l1=1.0, seed=2, apply_b_dec_to_input=False)
    trainer = SAETrainer([spec], stream, training)
    with torch.no_grad():  # the direction itself is not the question, nor is b_dec, which could do without the latent
        trainer.params["W_dec"][0, 0] = trainer.params["W_enc"][0, :, 0] = torch.tensor([0.6, 0.8]).double()
    update = trainer.update
    trainer.update = lambda grads: update(grads | {"b_dec": torch.zeros_like(grads["b_dec"])})
    for _ in range(training.steps):
        trainer.advance()
    f = trainer.dictionaries()[0].encode(x)[:, 0]
    torch.testing.assert_close(f, x.norm(dim=1) - 0.5, rtol=0, atol=2e-3)


def test_geometric_median():
    x = random(50, 3)
    symmetric = torch.cat([x, -x]) + 2
    torch.testing.assert_close(geometric_median(symmetric), torch.full((3,), 2.0).double(), atol=1e-4, rtol=0)
    outlier = torch.cat([symmetric, torch.full((1, 3), 1e4).double()])
    assert (geometric_median(outlier) - 2).norm() < 0.1 < (outlier.mean(0) - 2).norm()


def finished(variant, d=6, **changes):
    params = {name: p[0] for name, p in stacked_params(variant, d_in=d, d_out=d).items()}
    if "threshold" in params and params["threshold"].ndim == 0:
        params["threshold"] = params["threshold"] + 0.4
    return SAE(variant, params, **changes)


@every_variant
def test_10_folds_leave_the_function_alone(variant):
    sae, x = finished(variant), random(30, 6)
    c = torch.full((6,), 2.5).double()
    folded = sae.fold_input_scale(c, c)
    torch.testing.assert_close(folded(x), sae(x * c) / c)
    torch.testing.assert_close(folded.encode(x), sae.encode(x * c))
    if isinstance(variant, TopK | BatchTopK):
        return
    uneven = dataclasses.replace(sae, params=sae.params | {"W_dec": sae.W_dec * (1 + torch.arange(12.0))[:, None]})
    unit = uneven.fold_decoder_norm()
    torch.testing.assert_close(unit(x), uneven(x))
    torch.testing.assert_close(unit.encode(x), uneven.encode(x) * (1 + torch.arange(12.0).double()))
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(12).double())


# --- streams and what dictionaries belong to -------------------------------------------------------------------------


def snapshots(task=ADDITION, seed=3, sha="a" * 64, step=7, **changes):
    model = scrambled(spec(n_layers=2, **changes), task, seed)
    return Snapshot(step, model, task, task.split(0), sha256=sha)


def test_streams_of_finite_and_streaming_worlds():
    snap = snapshots()
    stream = Stream.of_snapshot(snap, ("z", 1), normalise="none")
    expected = snap.site("z", 1)[:, 0].flatten(1)
    x, y = stream.next(len(expected))
    assert x is y
    assert not torch.equal(x, expected)
    torch.testing.assert_close(x.unique(dim=0), expected.unique(dim=0))  # every row
    torch.testing.assert_close(x.sum(0), expected.sum(0))  # and once
    scaled = Stream.of_snapshot(snap, ("z", 1)).next(len(expected))[0]
    assert scaled.norm(dim=1).mean().item() == pytest.approx(scaled.shape[1] ** 0.5)
    assert Stream.of_snapshot(snap, "resid_post0", positions=(0, 1)).next(4)[0].shape == (4, 8)

    fresh = snapshots(REPEATED)
    a, b = (Stream.of_snapshot(fresh, ("mlp_out", 1), rows=500, seed=5) for _ in range(2))
    for _ in range(4):
        a.next(200)
    b.load_state(a.state())
    assert torch.equal(a.next(300)[0], b.next(300)[0])
    with pytest.raises(UserError, match="last axis is a space"):
        Stream.of_snapshot(snap, ("pattern", 0))
    with pytest.raises(UserError, match="did you mean"):
        Stream.of_snapshot(snap, "resid_pots0")


def test_a_dictionary_belongs_to_its_checkpoint_and_site(tmp_path):
    snap = snapshots()
    training = SAETraining(steps=3, batch_size=16)
    sae = train_sae([TopK(k=2, **BASE)], Stream.of_snapshot(snap, "resid_post0"), training).saes[0]
    save(sae, tmp_path / "a")
    back = load(tmp_path / "a", snap, ("resid_post", 0))
    assert back.spec == sae.spec
    assert back.origin == sae.origin
    assert all(torch.equal(back.params[name], p) for name, p in sae.params.items())
    with pytest.raises(UserError, match="belongs to checkpoint aaaaaaaaaaaa"):
        load(tmp_path / "a", snapshots(sha="b" * 64))
    with pytest.raises(UserError, match="belongs to checkpoint"):
        load(tmp_path / "a", snapshots(sha=""))  # the same weights, but live ones
    with pytest.raises(UserError, match=r"reads blocks\.0\.hook_resid_post, not blocks\.1"):
        load(tmp_path / "a", snap, "resid_post1")
    about = json.loads((tmp_path / "a" / "sae.json").read_text())
    (tmp_path / "a" / "sae.json").write_text(json.dumps(about | {"shapes": about["shapes"] | {"W_enc": [6, 99]}}))
    with pytest.raises(UserError, match=r"W_enc is \[8, 12\] and should be \[6, 99\]"):
        load(tmp_path / "a")
    data = (tmp_path / "a" / "sae.safetensors").read_bytes()
    (tmp_path / "a" / "sae.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="truncated"):
        load(tmp_path / "a")
    with pytest.raises(UserError, match="is missing"):
        load(tmp_path / "b")
    live = Stream.of_snapshot(snapshots(sha=""), "resid_post0").origin
    live.check(snapshots(sha=""))
    with pytest.raises(UserError, match="belongs to checkpoint"):
        live.check(snapshots(sha="", seed=8))


def test_crosscoder_across_checkpoints_sees_births():
    """Two features; the second exists in the last two of three sources only, the first everywhere."""
    g, e = rng(1), torch.eye(4)
    c = torch.rand(4000, 2, generator=g) * (torch.rand(4000, 2, generator=g) < 0.3)
    first, second = c[:, :1] * e[0], c[:, 1:] * e[1]
    x = torch.cat([first, first + second, c[:, :1] * e[2] + second], 1)  # and the first turns in the last
    stream = Stream(lambda _: (x, None), Stream.of_tensor(x).origin, finite=True, sources=3)
    training = SAETraining(steps=800, batch_size=128, b_dec="zero")
    sae = train_sae([April(d_sae=2, lr=1e-2, l1=0.3, sources=3, seed=1)], stream, training).saes[0]
    norms = source_norms(sae)
    everywhere = int(norms[0].argmax())
    assert birth(norms)[everywhere] == 0
    assert birth(norms)[1 - everywhere] == 1
    assert (death(norms) == 2).all()
    shares = exclusive(relative_norm(norms, 0, 1))
    assert shares["b"].tolist() == [i != everywhere for i in range(2)]
    assert shares["shared"].tolist() == [i == everywhere for i in range(2)]
    turned = rotation(sae)[:, everywhere]
    assert turned[0] > 0.95
    assert abs(turned[1]) < 0.1
    with pytest.raises(UserError, match="sources=1 in the spec"):
        train_sae([April(d_sae=2, lr=1e-2, l1=0.3)], stream, training)
    with pytest.raises(UserError, match="one source"):
        source_norms(finished(VARIANTS["standard"]))


def test_crosscoder_of_a_run_reads_the_same_inputs():
    task = VECTORS.task
    snaps = [
        Snapshot(i, VECTORS.model.build(task, rng(i)), task, task.split(0), "mse", sha256=f"{i}" * 64) for i in (1, 2)
    ]
    stream = Stream.of_sources([(s, "hidden") for s in snaps], rows=300, normalise="none")
    assert stream.origin.checkpoints == ("1" * 64, "2" * 64)
    x, _ = stream.next(100)
    one, two = (s.model.W.detach() for s in snaps)
    features = torch.linalg.lstsq(torch.cat([one, two], 1).T.double(), x.T.double()).residuals
    assert (features < 1e-8).all()  # h = (x W_1, x W_2) of the same x


# --- transcoders -----------------------------------------------------------------------------------------------------


def absolute(n):
    """The transcoder of |x|: latents ReLU(x_i) and ReLU(-x_i), both writing e_i."""
    eye = torch.eye(n).double()
    params = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, eye]), "b_dec": torch.zeros(n).double()}
    params["b_enc"] = torch.zeros(2 * n).double()
    return SAE(Standard(d_sae=2 * n, lr=1.0, l1=0.0, apply_b_dec_to_input=False), params)


def test_transcoders():
    x, tc = random(20, 4), absolute(4)
    torch.testing.assert_close(tc(x), x.abs())
    W = connections(tc, tc)
    assert torch.equal(W[:4, :4], torch.eye(4).double())
    z = tc(x) @ tc.W_enc + tc.params["b_enc"]
    torch.testing.assert_close(attribution(tc, tc, x, 2).sum(1), z[:, 2])
    assert torch.equal(from_tokens(tc, x), x @ tc.W_enc)
    linear = random(4, 4, seed=8)
    stream = Stream.of_tensor(x.repeat(10, 1), (x @ linear).repeat(10, 1), normalise="none")
    skip = Standard(d_sae=2, lr=2e-2, l1=5.0, skip=True, apply_b_dec_to_input=False)
    learnt = train_sae([skip], stream, SAETraining(steps=500, batch_size=100)).saes[0]
    torch.testing.assert_close(learnt(x), x @ linear, atol=5e-2, rtol=0)
    with pytest.raises(UserError, match="cannot be subtracted"):
        train_sae([Standard(d_sae=2, lr=1e-2, l1=1.0)], stream, SAETraining(steps=1, batch_size=2))
    with pytest.raises(UserError, match="belongs to transcoders"):
        Standard(d_sae=2, lr=1e-2, l1=1.0, skip=True)


def test_transcoder_in_the_model():
    snap = snapshots()
    x = snap.batch.inputs[:9]
    stream = Stream.of_snapshot(snap, ("resid_mid", 0), target=("mlp_out", 0))
    assert stream.origin.targets == ("blocks.0.hook_mlp_out",)
    tc_spec = Standard(d_sae=12, lr=1e-3, l1=0.1, apply_b_dec_to_input=False)
    tc = train_sae([tc_spec], stream, SAETraining(steps=3, batch_size=16)).saes[0]
    with torch.no_grad():
        plain, cache = snap.model.run_with_cache(x, ["resid_mid0", "mlp_out0"])
        torch.testing.assert_close(snap.model(x, Transcoded(tc, change=lambda f: f)), plain)
        put = snap.model.run_with_hooks(x, [("mlp_out0", lambda value, hook: tc(cache["resid_mid", 0]))])
        torch.testing.assert_close(snap.model(x, Transcoded(tc)), put)
        assert not torch.allclose(put, plain)
    with pytest.raises(UserError, match="use Transcoded"):
        clamp(tc, {0: 1.0})


# --- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [("resid_post", 0), ("z", 1)])
def test_edits_keep_the_error(site):
    snap = snapshots()
    x = snap.batch.inputs[:9]
    stream = Stream.of_snapshot(snap, site)
    sae = train_sae([Standard(d_sae=12, lr=1e-3, l1=0.1)], stream, SAETraining(steps=30, batch_size=16)).saes[0]
    full = sae.origin.sites[0]
    with torch.no_grad():
        plain, cache = snap.model.run_with_cache(x, full)
        value = cache[full].flatten(2)
        f = sae.encode(value)
        torch.testing.assert_close(snap.model(x, edit(sae, lambda f: f)), plain)
        assert not torch.allclose(snap.model(x, splice(sae)), plain)
        i = int(f.sum((0, 1)).argmax())

        def after(change):
            return snap.model.run_with_hooks(x, [change.hook]), change.edit(cache[full]).flatten(2)

        _, moved = after(clamp(sae, {i: 2.0}))
        torch.testing.assert_close(moved, value + (2.0 - f[..., i])[..., None] * sae.W_dec[i])
        _, moved = after(ablate(sae, [i, -1]))
        torch.testing.assert_close(moved, value - f[..., [i, 11]] @ sae.W_dec[[i, 11]])
        _, moved = after(steer(sae, i, 3.0))
        torch.testing.assert_close((moved - value).norm(dim=2), torch.full(value.shape[:2], 3.0, dtype=value.dtype))
        torch.testing.assert_close(splice(sae).edit(cache[full]).flatten(2), sae(value))
        logits, _ = after(clamp(sae, {i: 2.0}, positions=(-1,)))
        assert not torch.allclose(logits[:, -1], plain[:, -1])
        torch.testing.assert_close(logits[:, :-1], plain[:, :-1])
    with pytest.raises(UserError, match="no latent 99 among 12"):
        ablate(sae, [99])


def test_steering_a_feature_of_a_toy_model_moves_the_output_by_its_row():
    """Section 8.1: pushing h along W_i by delta moves the pre-activations by delta W_i W^T exactly."""
    task = VECTORS.task
    snap = Snapshot(0, VECTORS.model.build(task, rng(2)), task, task.split(0), "mse", sha256="c" * 64)
    W = snap.model.W.detach()
    params = {"W_enc": W.T.clone(), "W_dec": W.clone(), "b_dec": torch.zeros(2), "b_enc": torch.zeros(5)}
    truth = SAE(Standard(d_sae=5, lr=1.0, l1=0.0), params, Stream.of_snapshot(snap, "hidden").origin)
    x = snap.batch.inputs[:8]
    with torch.no_grad():
        before = snap.model.run_with_cache(x, "features_pre")[1]["features_pre"]
        with snap.model.hooks([steer(truth, 3, 0.7).hook]):
            after = snap.model.run_with_cache(x, "features_pre")[1]["features_pre"]
    torch.testing.assert_close(after - before, (0.7 * W[3] / W[3].norm() @ W.T).expand(8, 5), atol=1e-6, rtol=1e-5)


# --- SAELens's files -------------------------------------------------------------------------------------------------


@every_variant
def test_saelens_layout(variant, tmp_path):
    sae, x = finished(variant), random(40, 6)
    saelens.export(sae, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["d_in"] == 6
    assert cfg["d_sae"] == 12
    assert cfg["apply_b_dec_to_input"] is variant.apply_b_dec_to_input
    kind = {"batch topk": "jumprelu", "matryoshka": "jumprelu", "april": "standard", "p-anneal": "standard"}
    name = next(n for n, v in VARIANTS.items() if v is variant)
    assert cfg["architecture"] == kind.get(name, name)
    back = saelens.load(tmp_path)
    torch.testing.assert_close(back.encode(x), sae.encode(x))
    torch.testing.assert_close(back(x), sae(x))


def test_saelens_oddities(tmp_path):
    sae, x = finished(JumpReLU(l0=0.1, **BASE)), random(40, 6)
    from safetensors.torch import load_file, save_file

    saelens.export(sae, tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    old = {k: v for k, v in tensors.items() if k != "threshold"} | {"log_threshold": tensors["threshold"].log()}
    save_file(old, tmp_path / "sae_weights.safetensors")
    torch.testing.assert_close(saelens.load(tmp_path)(x), sae(x))
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"normalize_activations": "layer_norm"}))
    with pytest.raises(UserError, match='only "none"'):
        saelens.load(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"architecture": "jumprellu"}))
    with pytest.raises(UserError, match="did you mean"):
        saelens.load(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"d_sae": 13}))
    with pytest.raises(UserError, match=r"needs \(6, 13\)"):
        saelens.load(tmp_path)
    skip = dataclasses.replace(VARIANTS["standard"], skip=True, apply_b_dec_to_input=False)
    saelens.export(finished(skip), tmp_path / "skip")
    torch.testing.assert_close(saelens.load(tmp_path / "skip")(x), finished(skip)(x))
    assert json.loads((tmp_path / "skip" / "cfg.json").read_text())["architecture"] == "skip_transcoder"
    rescaled = finished(TopK(k=3, **BASE))
    long = dataclasses.replace(
        rescaled, params=rescaled.params | {"W_dec": rescaled.W_dec * torch.arange(1.0, 13)[:, None]}
    )
    saelens.export(long, tmp_path / "topk")
    cfg = json.loads((tmp_path / "topk" / "cfg.json").read_text()) | {"rescale_acts_by_decoder_norm": True}
    (tmp_path / "topk" / "cfg.json").write_text(json.dumps(cfg))
    z = ((x - long.b_dec) @ long.W_enc + long.params["b_enc"]) * long.W_dec.norm(dim=1)  # SAELens's rule, written out
    torch.testing.assert_close(saelens.load(tmp_path / "topk").encode(x), top(z, 3))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(d_sae=8, lr=1e-3, k=9), "k=9 latents of d_sae=8"),
        (lambda: TopK(d_sae=8, lr=1e-3, k=2.5), "BatchTopK takes fractions"),
        (lambda: Standard(d_sae=0, lr=1e-3, l1=1.0), "at least one latent"),
        (lambda: Standard(d_sae=8, lr=-1.0, l1=1.0), "lr=-1.0"),
        (lambda: Standard(d_sae=8, lr=1e-3, l1=-1.0), "l1=-1.0"),
        (lambda: JumpReLU(d_sae=8, lr=1e-3, l0=1.0, bandwidth=0.0), "bandwidth=0.0"),
        (lambda: Matryoshka(d_sae=8, lr=1e-3, k=2, widths=(4, 3, 8)), "nested widths rise"),
        (lambda: Matryoshka(d_sae=8, lr=1e-3, k=2, widths=(2, 4)), "end with d_sae=8"),
        (lambda: PAnneal(d_sae=8, lr=1e-3, l1=1.0, p_end=0.0), "outside"),
        (lambda: Stream.of_tensor(torch.zeros(50, 4)), "all 200 activations are 0"),
        (lambda: Stream.of_tensor(torch.full((50, 4), torch.nan)), "200 of 200 activations are NaN"),
        (lambda: Stream.of_tensor(torch.ones(50)), r"expected \[rows, d\]"),
        (lambda: SAETraining(steps=0, batch_size=4), "steps=0"),
        (lambda: SAETraining(steps=4, batch_size=4, b_dec="media"), 'did you mean "mean"|accepted are'),
        (lambda: train_sae([], streams(), SAETraining(steps=1, batch_size=4)), "at least one spec"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_bad_stacks_and_sizes():
    training = SAETraining(steps=2, batch_size=4)
    with pytest.raises(UserError, match=r"GiB to train, and .* GiB are free"):
        train_sae([Standard(d_sae=10**10, lr=1e-3, l1=1.0)], streams(), training)
    with pytest.raises(UserError, match="different programs"):
        train_sae([VARIANTS["standard"], VARIANTS["topk"]], streams(), training)
    with pytest.raises(UserError, match="p_end differs within the stack"):
        train_sae([PAnneal(l1=1.0, **BASE), PAnneal(l1=1.0, p_end=0.5, **BASE)], streams(), training)
    with pytest.raises(UserError, match="is not finite at step"):
        train_sae([Standard(d_sae=12, lr=1e200, l1=1.0)], streams(), dataclasses.replace(training, steps=50))
    with pytest.raises(UserError, match="5 entries arrived; this dictionary reads 6"):
        finished(VARIANTS["standard"]).encode(random(3, 5))
    sae = finished(VARIANTS["topk"])
    uneven = dataclasses.replace(sae, params=sae.params | {"W_dec": sae.W_dec * torch.arange(1, 13)[:, None]})
    with pytest.raises(UserError, match="ranks latents"):
        uneven.fold_decoder_norm()

    def turns_bad(g):  # a stream that goes bad later says so then
        turns_bad.calls += 1
        return (torch.randn(20, 6, generator=g) * (torch.nan if turns_bad.calls > 1 else 1), None)

    turns_bad.calls = 0
    stream = Stream(turns_bad, Stream.of_tensor(random(2, 6)).origin, finite=False)
    with pytest.raises(UserError, match="activations are NaN or infinite"):
        train_sae([VARIANTS["standard"]], stream, dataclasses.replace(training, steps=20))
