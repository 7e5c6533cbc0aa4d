"""Weights: factored = multiplied out, planted circuits, chance levels, and the symmetries scores must respect."""

import pytest
import torch
from cases.models import REPEATED, rng, scrambled, spec

from toylab.errors import UserError
from toylab.interp.weights import (
    OV,
    QK,
    FactoredMatrix,
    composition,
    composition_baseline,
    composition_scores,
    composition_z,
    copying_scores,
    eigenvalue_score,
    full_OV,
    full_QK,
    virtual_heads,
    virtual_mlp_weights,
)
from toylab.models.transformer import Transformer, TransformerSpec

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def factored(*lead, left=7, mid=3, right=5, seed=0):
    g = rng(seed)
    A = torch.randn(*lead, left, mid, generator=g, dtype=torch.double)
    return FactoredMatrix(A, torch.randn(*lead, mid, right, generator=g, dtype=torch.double))


def hand_wired_induction(V: int = 10, T: int = 12) -> Transformer:
    """The sheet's 7.3: residual = token (V), previous token (V), position (T); layer 0 shifts, layer 1 matches."""
    d = 2 * V + T
    model = Transformer(TransformerSpec(2, 1, d, max(V, T), 0, biases=(), attn_scale=1.0, dtype="float64"), V, T, V)
    token, previous = torch.eye(d)[:, :V], torch.eye(d)[:, V : 2 * V]
    pos = torch.eye(d)[:, 2 * V :]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.W_E.copy_(token.T)
        model.W_pos.copy_(pos.T)
        model.W_U.copy_(20 * token)
        model.W_Q[0, 0, :, :T] = 30 * pos @ torch.diag(torch.ones(T - 1), 1).T  # position i asks for i - 1
        model.W_K[0, 0, :, :T] = pos
        model.W_V[0, 0, :, :V], model.W_O[0, 0, :V] = token, previous.T
        model.W_Q[1, 0, :, :V], model.W_K[1, 0, :, :V] = 30 * token, previous
        # Twice, so that what the head copies outweighs the query's own token, which W_U reads too.
        model.W_V[1, 0, :, :V], model.W_O[1, 0, :V] = token, 2 * token.T
    return model


# --- FactoredMatrix --------------------------------------------------------------------------------------------------


def test_everything_equals_the_product():
    M = factored(2, 4)
    AB = M.A @ M.B
    assert M.shape == AB.shape
    assert (M.ndim, M.ldim, M.mdim, M.rdim) == (4, 7, 3, 5)
    torch.testing.assert_close(M.AB, AB)
    torch.testing.assert_close(M.T.AB, AB.mT)
    torch.testing.assert_close((2.5 * M).AB, (M * 2.5).AB)
    torch.testing.assert_close((2.5 * M).AB, 2.5 * AB)
    torch.testing.assert_close(M.norm(), AB.flatten(-2).norm(dim=-1))
    torch.testing.assert_close(M.unsqueeze(1).AB, AB.unsqueeze(1))
    torch.testing.assert_close(M.get_corner(2), AB[0, 0, :2, :2])
    U, S, V = M.svd()
    torch.testing.assert_close(U @ torch.diag_embed(S) @ V.mT, AB)
    torch.testing.assert_close(U.mT @ U, torch.eye(3, dtype=torch.double).expand(2, 4, 3, 3))
    torch.testing.assert_close(S, torch.linalg.svdvals(AB)[..., :3])
    even = M.make_even()
    torch.testing.assert_close(even.AB, AB)
    torch.testing.assert_close(even.A.norm(dim=-2), even.B.norm(dim=-1))
    torch.testing.assert_close(M.collapse_l().mT @ M.collapse_l(), AB.mT @ AB)
    torch.testing.assert_close(M.collapse_r() @ M.collapse_r().mT, AB @ AB.mT)


def test_products_stay_factored():
    g = rng(3)
    M, N = factored(4), factored(4, left=5, mid=2, right=6, seed=1)
    W, w = torch.randn(5, 9, generator=g, dtype=torch.double), torch.randn(5, generator=g, dtype=torch.double)
    torch.testing.assert_close((M @ N).AB, M.AB @ N.AB)
    assert (M @ N).mdim == 2
    assert (M @ W).mdim == 3
    torch.testing.assert_close((M @ W).AB, M.AB @ W)
    assert (N @ factored(4, left=6, right=5, seed=2)).mdim == 2
    torch.testing.assert_close((M @ W[:, :2]).AB, M.AB @ W[:, :2])
    torch.testing.assert_close(M @ w, M.AB @ w)
    L, v = torch.randn(9, 7, generator=g, dtype=torch.double), torch.randn(7, generator=g, dtype=torch.double)
    torch.testing.assert_close((L @ M).AB, L @ M.AB)
    torch.testing.assert_close((L[:2] @ M).AB, L[:2] @ M.AB)
    torch.testing.assert_close(v @ M, v @ M.AB)


@pytest.mark.parametrize(
    "index",
    [0, (1, 2), (slice(None), 1), (1, 2, slice(2, 4)), (1, 2, slice(None), slice(1, 3)), (..., slice(0, 2)), (..., 3)],
)
def test_indexing_is_that_of_the_product(index):
    M = factored(2, 4)
    expected = M.AB[index].unsqueeze(-1) if index == (..., 3) else M.AB[index]  # integer columns stay as an axis
    torch.testing.assert_close(M[index].AB, expected)


def test_eigenvalues():
    M = factored(left=6, right=6)
    ours = sorted(M.eigenvalues.abs().tolist())
    theirs = sorted(torch.linalg.eigvals(M.AB).abs().tolist())[-3:]
    assert ours == pytest.approx(theirs)
    with pytest.raises(UserError, match="square"):
        _ = factored().eigenvalues
    with pytest.raises(UserError, match="must match"):
        FactoredMatrix(torch.zeros(3, 4), torch.zeros(3, 4))


# --- circuits --------------------------------------------------------------------------------------------------------


def test_qk_and_ov_are_what_the_forward_pass_uses():
    """Scores and outputs of a model without biases, positions and norm follow from QK and OV alone."""
    model = scrambled(spec(n_layers=1, d_mlp=0, biases=(), positions="none"), REPEATED)
    inputs = REPEATED.sample(4, rng()).inputs
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, ["attn_scores0", "pattern0", "result0"])
    x = model.W_E[inputs].detach()
    seen = torch.ones(6, 6).tril().bool()
    scores = torch.einsum("bqd,hde,bke->bhqk", x, QK(model).AB[0], x) / 2
    torch.testing.assert_close(scores[..., seen], cache["attn_scores", 0][..., seen])
    tables = full_QK(model).AB[0][:, inputs[:, :, None], inputs[:, None, :]].transpose(0, 1) / 2
    torch.testing.assert_close(tables, scores)
    written = torch.einsum("bhqk,bkd,hde->bqhe", cache["pattern", 0], x, OV(model).AB[0])
    torch.testing.assert_close(written, cache["result", 0])
    logits = torch.einsum("bhqk,hbkv->bqhv", cache["pattern", 0], full_OV(model).AB[0][:, inputs])
    torch.testing.assert_close(logits, cache["result", 0] @ model.W_U.detach())


@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS"])
def test_norms_are_folded_into_what_is_read(norm):
    """With the per-position scale divided out, QK reads the raw residual stream as the forward pass does."""
    model = scrambled(spec(norm=norm, biases=(), positions="none"), REPEATED)
    if norm == "LN":
        with torch.no_grad():
            model.ln1_b.zero_()
    inputs = REPEATED.sample(4, rng()).inputs
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    x = cache["resid_pre", 0] / cache["ln1_scale", 0]
    seen = torch.ones(6, 6).tril().bool()
    scores = torch.einsum("bqd,hde,bke->bhqk", x, QK(model).AB[0], x) / 2
    torch.testing.assert_close(scores[..., seen], cache["attn_scores", 0][..., seen])


def test_row_m1_copying_is_one_for_an_identity_copy():
    """Row M1: eigenvalue score 1 for a one-hot copy head, -1 for its negative, near 0 (sd .19, d_head 8) at random."""
    model = hand_wired_induction()
    assert copying_scores(model)[1, 0].item() == pytest.approx(1)
    with torch.no_grad():
        model.W_O[1] *= -1
    assert copying_scores(model)[1, 0].item() == pytest.approx(-1)
    assert copying_scores(model)[0, 0] == 0  # writes where W_U does not read
    random = eigenvalue_score(factored(4000, left=64, mid=8, right=64))
    assert abs(random.mean()) < 4 * 0.19 / 4000**0.5
    assert random.std().item() == pytest.approx(0.19, abs=0.02)  # the sheet's checked value


# --- composition -----------------------------------------------------------------------------------------------------


def test_row_h3_k_composition_of_the_hand_wired_induction_head():
    """Row H3: K-composition 1/sqrt(V) (.316 for V = 10), Q and V composition exactly 0."""
    for V in (4, 10):
        model = hand_wired_induction(V=V)
        scores = {kind: composition_scores(model, kind)[0, 0, 1, 0].item() for kind in "QKV"}
        assert scores["K"] == pytest.approx(V**-0.5, abs=1e-12)
        assert scores["Q"] == scores["V"] == 0


def test_scores_are_the_quotients_of_full_matrices():
    model = scrambled(spec(n_layers=3), REPEATED)
    ov, qk = OV(model).AB, QK(model).AB
    for kind, second in (("Q", qk), ("K", qk.mT), ("V", ov)):
        scores = composition_scores(model, kind)
        for a in range(3):
            for b in range(3):
                if a >= b:
                    assert scores[a, :, b].isnan().all()
                    continue
                for h in range(3):
                    for k in range(3):
                        first, other = ov[a, h], second[b, k]
                        expected = (first @ other).norm() / first.norm() / other.norm()
                        torch.testing.assert_close(scores[a, h, b, k], expected)


def test_row_m1_random_baseline():
    """Row M1: independent Gaussian factors score 1/sqrt(d_model), whatever their rank, to 3%."""
    for d, e in ((64, 8), (64, 16), (128, 4)):
        first, second = (factored(1, 60, left=d, mid=e, right=d, seed=s) for s in (0, 1))
        mean = composition(first, second).mean().item()
        assert mean == pytest.approx(composition_baseline(d), rel=0.03)
    model = scrambled(TransformerSpec(2, 8, 64, 8, 0, dtype="float64"), REPEATED)
    for kind in "QKV":
        z = composition_z(model, kind, rng(2))[0, :, 1]
        assert abs(z.mean()) < 1
        assert z.std() < 2
    planted = hand_wired_induction()
    assert composition_z(planted, "K", rng(2))[0, 0, 1, 0] > 5


def test_symmetries_change_no_score():
    """Any basis inside a head, and any rotation of the residual stream, gives the same function and the same scores."""
    model, g = scrambled(spec(n_layers=2, biases=()), REPEATED), rng(8)
    before = {kind: composition_scores(model, kind) for kind in "QKV"} | {"copy": copying_scores(model)}
    inputs = REPEATED.sample(3, rng()).inputs
    outputs = model(inputs).detach()
    with torch.no_grad():
        R, S = (torch.randn(2, 3, 4, 4, generator=g, dtype=torch.double) for _ in range(2))
        model.W_Q.copy_(model.W_Q @ R)
        model.W_K.copy_(model.W_K @ torch.linalg.inv(R).mT)
        model.W_V.copy_(model.W_V @ S)
        model.W_O.copy_(torch.linalg.inv(S) @ model.W_O)
        Q = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.double)).Q
        for name in ("W_E", "W_pos", "W_O", "W_out"):
            model.get_parameter(name).copy_(model.get_parameter(name) @ Q)
        for name in ("W_Q", "W_K", "W_V", "W_in", "W_U"):
            model.get_parameter(name).copy_(Q.T @ model.get_parameter(name))
    torch.testing.assert_close(model(inputs).detach(), outputs)
    after = {kind: composition_scores(model, kind) for kind in "QKV"} | {"copy": copying_scores(model)}
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, equal_nan=True)


def test_virtual_weights():
    model = scrambled(spec(n_layers=2), REPEATED)
    ov = OV(model).AB
    torch.testing.assert_close(virtual_heads(model)[0, 1, 1, 2].AB, ov[0, 1] @ ov[1, 2])
    torch.testing.assert_close(virtual_mlp_weights(model)[0, 1].AB, (model.W_out[0] @ model.W_in[1]).detach())
    with pytest.raises(UserError, match="no MLP"):
        virtual_mlp_weights(hand_wired_induction())
    with pytest.raises(UserError, match="accepted are Q, K, V"):
        composition_scores(model, "O")
