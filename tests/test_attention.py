"""Attention scores: hand-made patterns with known scores, uniform heads as the null, and TransformerLens's detector."""

import pytest
import torch
from cases.models import REPEATED, rng, scrambled, spec
from test_weights import hand_wired_induction

from toylab.errors import UserError
from toylab.interp.attention import (
    KINDS,
    attention_entropy,
    attention_scores,
    copying_scores,
    detect_head,
    head_scores,
    key_mask,
    stack_patterns,
    uniform_scores,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TOKENS = torch.tensor([[4, 1, 2, 3, 1, 2, 3, 1], [0, 2, 2, 1, 3, 4, 0, 2]])


def uniform(batch=2, n=8, heads=1):
    return (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]).double().expand(batch, heads, n, n)


def looking_at(kind, tokens):
    """A head that puts all its attention on the keys of this kind, evenly, and on position 0 where there are none."""
    mask = key_mask(kind, tokens).double()
    rest = torch.zeros_like(mask)
    rest[:, :, 0] = 1
    return torch.where(mask.any(-1, keepdim=True), mask / mask.sum(-1, keepdim=True).clamp_min(1), rest)[:, None]


def test_masks_by_hand():
    first = TOKENS[:1]
    at = {kind: [tuple(i) for i in key_mask(kind, first)[0].nonzero().tolist()] for kind in KINDS}
    assert at["previous"] == [(i, i - 1) for i in range(1, 8)]
    assert at["diagonal"] == [(i, i) for i in range(8)]
    assert at["first"] == [(i, 0) for i in range(1, 8)]
    assert at["duplicate"] == [(4, 1), (5, 2), (6, 3), (7, 1), (7, 4)]
    assert at["induction"] == [(4, 2), (5, 3), (6, 4), (7, 2), (7, 5)]
    twice = torch.tensor([[2, 2]])
    assert key_mask("induction", twice)[0].nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_each_kind_scores_one_and_no_other(kind):
    patterns = torch.stack([looking_at(k, TOKENS) for k in KINDS])  # as layers, one head each
    scores = head_scores(patterns, TOKENS)
    assert scores[kind][KINDS.index(kind), 0].item() == pytest.approx(1)
    assert scores[kind][KINDS.index("diagonal" if kind != "diagonal" else "previous"), 0] < 0.5
    assert scores[kind].shape == (5, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_null_a_uniform_head_is_at_chance(kind):
    mask = key_mask(kind, TOKENS)
    expected = torch.stack([mask[b, q].sum() / (q + 1) for b in range(2) for q in range(8) if mask[b, q].any()]).mean()
    assert uniform_scores(mask) == pytest.approx(expected.item())
    assert attention_scores(uniform(), mask).item() == pytest.approx(uniform_scores(mask))


def test_entropy():
    assert attention_entropy(looking_at("previous", TOKENS)).item() == 0
    assert attention_entropy(uniform()).item() == pytest.approx(torch.arange(1, 9).double().log().mean().item())


def test_scores_do_not_care_about_token_names_or_order_of_the_batch():
    pattern = torch.rand(3, 2, 4, 8, 8, generator=rng()).double().tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    renamed = torch.randperm(5, generator=rng(1))[TOKENS]
    base = head_scores(pattern, TOKENS)
    for name, value in head_scores(pattern, renamed).items():
        torch.testing.assert_close(value, base[name])
    for name, value in head_scores(pattern.flip(1), TOKENS.flip(0)).items():
        torch.testing.assert_close(value, base[name])


def test_row_h3_hand_wired_induction():
    """Row H3: with a unique first token (BOS) the heads are a previous-token and an induction head, scores 1.000.

    Without one, position 0 attends itself and pollutes one key: the query whose match it is splits 50/50, and
    (m - 2)/(m - 1) of the second copy is answered, .889 at m = 10.
    """
    m = 10
    model = hand_wired_induction(V=m + 1, T=2 * m + 1)
    words = torch.stack([torch.randperm(m, generator=rng(s)) for s in range(20)])
    with_bos = torch.cat([torch.full((20, 1), m), words, words[:, :-1]], 1)
    with torch.no_grad():
        logits, cache = model.run_with_cache(with_bos, lambda name: "pattern" in name or "result" in name)
    patterns = stack_patterns(cache)
    scores = head_scores(patterns, with_bos)
    assert scores["previous"][0, 0].item() == pytest.approx(1, abs=1e-6)
    assert scores["induction"][1, 0].item() == pytest.approx(1, abs=1e-6)
    assert scores["induction"][0, 0] < 0.1
    answers = torch.cat([words[:, 1:]], 1)
    assert (logits[:, m + 1 :].argmax(-1) == answers).all()
    results = torch.stack([cache["result", layer] @ model.W_U.detach() for layer in range(2)])
    asked = slice(m + 1, None)
    copying = copying_scores(patterns[..., asked, :], results[:, :, asked], with_bos)
    assert copying[1, 0].item() == pytest.approx(m**0.5, abs=1e-6)  # one-hot over m + 1 logits
    assert copying[0, 0] == 0  # writes where W_U does not read

    no_bos = torch.cat([words, words[:, :-1]], 1)
    with torch.no_grad():
        logits, cache = model.run_with_cache(no_bos, ["pattern1"])
    half = cache["pattern", 1][:, 0, m]  # asks for the successor of the first word
    torch.testing.assert_close(half[:, :2], torch.full((20, 2), 0.5, dtype=torch.double), atol=1e-6, rtol=0)
    sure = (logits[:, m:].softmax(-1).gather(-1, words[:, 1:, None])[..., 0] > 0.99).double().mean()
    assert sure.item() == pytest.approx((m - 2) / (m - 1))


def test_copying_signs_and_tokens_without_a_logit():
    tokens = TOKENS.clone()
    pattern = looking_at("previous", tokens)
    attended = torch.einsum("bhqk,bkv->bqhv", pattern, torch.nn.functional.one_hot(tokens, 5).double())
    score = copying_scores(pattern[:, :, 1:], attended[:, 1:], tokens).item()
    assert score == pytest.approx(2)  # sqrt(5 - 1)
    assert copying_scores(pattern[:, :, 1:], -attended[:, 1:], tokens).item() == pytest.approx(-2)
    # A constant added to all logits and their size do not matter.
    assert copying_scores(pattern[:, :, 1:], 3 * attended[:, 1:] + 7, tokens).item() == pytest.approx(2)
    g = rng(3)
    noise = torch.randn(2, 8, 1, 5, generator=g).double()
    assert abs(copying_scores(uniform(), noise, tokens).item()) < 0.3
    # Without a logit for token 4 (index 0 of row 0): queries that see only it do not count.
    fewer = copying_scores(pattern[:, :, 1:], attended[:, 1:, :, :4], tokens).item()
    assert fewer == pytest.approx(3**0.5)


def test_detector_is_transformer_lenss():
    """Sequence by sequence, as the reference computes it: sum(A * D)/sum(A), 1 - mean|A - D| * n."""
    model = scrambled(spec(n_layers=2), REPEATED)
    tokens = REPEATED.sample(4, rng()).inputs
    with torch.no_grad():
        patterns = stack_patterns(model.run_with_cache(tokens)[1])
    for name, kind in (
        ("previous_token_head", "previous"),
        ("duplicate_token_head", "duplicate"),
        ("induction_head", "induction"),
    ):
        for bos in (False, True):
            for current in (False, True):
                expected = torch.zeros(2, 2, 3, dtype=torch.double)
                for b in range(4):
                    D = key_mask(kind, tokens)[b].double()
                    A = patterns[:, b].clone()
                    error = (A - D).abs()
                    for M in (A, error):
                        if bos:
                            M[..., 0] = 0
                        if current:
                            M.diagonal(dim1=-2, dim2=-1).zero_()
                    expected[0] += (A * D).sum((-2, -1)) / A.sum((-2, -1)) / 4
                    expected[1] += (1 - error.mean((-2, -1)) * 6) / 4
                for i, measure in enumerate(("mul", "abs")):
                    found = detect_head(patterns, tokens, name, measure, exclude_bos=bos, exclude_current_token=current)
                    torch.testing.assert_close(found, expected[i])
    own = torch.eye(6).double()
    assert detect_head(own.expand(1, 4, 1, 6, 6), tokens, own, "abs").item() == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: key_mask("previuos", TOKENS), 'did you mean "previous"'),
        (lambda: attention_scores(uniform(), key_mask("first", TOKENS[:1])), "of the same sizes"),
        (lambda: attention_scores(uniform(1, 3), key_mask("duplicate", torch.tensor([[0, 1, 2]]))), "never repeat"),
        (lambda: detect_head(uniform(), TOKENS, "induction"), 'did you mean "induction_head"'),
        (lambda: detect_head(uniform(), TOKENS, torch.ones(8, 8).double()), "lower triangular"),
        (lambda: detect_head(uniform(), TOKENS, "induction_head", "sum"), "accepted are mul, abs"),
    ],
)
def test_mistakes_say_what_to_do(act, message):
    with pytest.raises(UserError, match=message):
        act()
