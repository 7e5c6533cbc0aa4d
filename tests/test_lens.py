"""Lenses: the last row is the model, the tuned lens starts as the logit lens and finds a planted translation."""

import pytest
import torch
from cases.models import ADDITION, ALL_BIASES, REPEATED, TRANSFORMERS, rng, scrambled, spec

from toylab.errors import UserError
from toylab.interp.lens import fit_tuned_lens, kl_to, logit_lens
from toylab.models.mlp import MLPSpec

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
specs = pytest.mark.parametrize(("spec", "task"), TRANSFORMERS)
RICH = spec(n_layers=2, norm="LN", biases=ALL_BIASES, act="gelu")


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@specs
def test_l1_the_last_row_of_the_logit_lens_is_the_model(spec, task):
    """Row L1; every other row is the model cut short: norm by the statistics of its own stream."""
    model = scrambled(spec, task)
    outputs, cache = model.run_with_cache(task.sample(5, rng()).inputs)
    logits, labels = logit_lens(model, cache)
    assert labels == (*(f"{layer}_pre" for layer in range(spec.n_layers)), "final_post")
    close(logits[-1], outputs.detach(), 1e-12)
    for layer in range(spec.n_layers):
        close(logits[layer], model.unembed(cache["resid_pre", layer]).detach(), 1e-12)


def test_l1_the_tuned_lens_starts_as_the_logit_lens_and_never_gets_worse():
    """Row L1: zero steps is the logit lens; KL falls at every step; the kept lens has the KL it reports."""
    model, x = scrambled(RICH, REPEATED), REPEATED.sample(60, rng()).inputs
    outputs, cache = model.run_with_cache(x)
    start = fit_tuned_lens(model, x, steps=0)
    close(start(model, cache)[0], logit_lens(model, cache)[0], 1e-12)
    log_p = outputs.detach().log_softmax(-1)
    close(start.kl[0], kl_to(log_p, logit_lens(model, cache)[0][:-1]).mean((1, 2)), 1e-12)
    lens = fit_tuned_lens(model, x, steps=15)
    assert (lens.kl.diff(dim=0) <= 0).all()
    assert (lens.kl[-1] < 0.5 * lens.kl[0]).all()
    logits, labels = lens(model, cache)
    close(kl_to(log_p, logits[:-1]).mean((1, 2)), lens.kl[-1], 1e-12)
    close(logits[-1], outputs.detach(), 1e-12)  # the model's own answer, KL 0
    assert labels[-1] == "final_post"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_planted_affine_map_is_found():
    """Truth: heads write nothing and the MLP is affine, so one translation of the embedding is the model: KL 0.

    Null: with the heads back, the last stream holds what the embedding cannot know, and some KL must remain.
    """
    model, x = scrambled(spec(act="identity"), REPEATED), REPEATED.sample(60, rng()).inputs
    with torch.no_grad():
        heads = model.W_O.clone()
        model.W_O.zero_()
    found = fit_tuned_lens(model, x, steps=1).kl
    assert float(found[-1]) < 1e-12
    assert float(found[0]) > 0.01
    with torch.no_grad():
        model.W_O.copy_(heads)
    assert float(fit_tuned_lens(model, x, steps=20).kl[-1]) > 0.01


def test_positions_can_be_chosen():
    model, x = scrambled(RICH, REPEATED), REPEATED.sample(40, rng()).inputs
    everywhere, last = fit_tuned_lens(model, x, 10), fit_tuned_lens(model, x, 10, positions=(-1,))
    outputs, cache = model.run_with_cache(x)
    log_p = outputs.detach()[:, [-1]].log_softmax(-1)
    at_last = [kl_to(log_p, lens(model, cache)[0][:-1, :, [-1]]).mean((1, 2)) for lens in (everywhere, last)]
    assert (at_last[1] < at_last[0]).all()


def test_mistakes_are_explained():
    model = scrambled(MLPSpec(4, 10, "relu", dtype="float64"), ADDITION)
    with pytest.raises(UserError, match="no residual stream"):
        fit_tuned_lens(model, ADDITION.sample(2, rng()).inputs, 1)
    with pytest.raises(UserError, match="steps=-1"):
        fit_tuned_lens(scrambled(RICH, REPEATED), REPEATED.sample(2, rng()).inputs, -1)
