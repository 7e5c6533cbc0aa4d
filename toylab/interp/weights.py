"""Reading weights: QK and OV circuits as factored matrices, copying and composition scores, virtual weights.

    OV = W_V W_O          what attending to a token writes           full_OV = W_E OV W_U      [v, v_out]
    QK = W_Q W_K^T        which key a query prefers                  full_QK = W_E QK W_E^T    [v, v]

Matrices of rank d_head are kept as products A B: every score below costs d_head x d_head work per head or pair of
heads, and all layers and heads go in one call. Row vectors: x @ W. What a layer reads passes its norm first, so
reading weights are taken with ln1's gain folded in (and centred, for LayerNorm); see `reading`.
Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits. Names as in TransformerLens.
A model here is anything with W_Q, W_K, W_V, W_O [layer, head, ...], W_E, W_U. Read next: attention.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from toylab.errors import one_of, require


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """The matrix A @ B without multiplying it out. A: [*lead, left, mid], B: [*lead, mid, right]; leads broadcast."""

    A: Float[Tensor, "... left mid"]
    B: Float[Tensor, "... same right"]

    def __post_init__(self):
        A, B = self.A, self.B
        require(
            A.ndim >= 2 and B.ndim >= 2 and A.shape[-1] == B.shape[-2],
            f"factors of shape {tuple(A.shape)} and {tuple(B.shape)} arrived; the last axis of A must match the "
            "second to last of B",
        )
        lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        object.__setattr__(self, "A", A.expand(*lead, *A.shape[-2:]))
        object.__setattr__(self, "B", B.expand(*lead, *B.shape[-2:]))

    # --- shape ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.A.shape[:-1], self.B.shape[-1]))

    @property
    def ndim(self) -> int:
        return self.A.ndim

    @property
    def ldim(self) -> int:
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        return self.B.shape[-1]

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    @property
    def T(self) -> FactoredMatrix:
        return FactoredMatrix(self.B.mT, self.A.mT)

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """A new axis of size 1 at k, counted from the front, among the leading axes."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Leading axes first, then rows, then columns; an integer row or column stays as an axis of size 1."""
        index = index if isinstance(index, tuple) else (index,)
        lead = self.ndim - 2
        if Ellipsis in [i for i in index if not isinstance(i, Tensor)]:
            at = next(n for n, i in enumerate(index) if i is Ellipsis)
            fill = (slice(None),) * (self.ndim - len(index) + 1)
            index = index[:at] + fill + index[at + 1 :]
        rows, columns = ((*index[lead:], slice(None), slice(None))[:2]) if len(index) > lead else (slice(None),) * 2
        rows, columns = (slice(i, i + 1 or None) if isinstance(i, int) else i for i in (rows, columns))
        A, B = self.A[index[:lead]], self.B[index[:lead]]
        return FactoredMatrix(A[..., rows, :], B[..., columns])

    # --- products ---------------------------------------------------------------------------------------------------

    @property
    def AB(self) -> Tensor:
        """The matrix itself, [*lead, left, right]."""
        return self.A @ self.B

    @property
    def BA(self) -> Tensor:
        """[*lead, mid, mid]; where left = right it has the same nonzero eigenvalues as AB."""
        return self.B @ self.A

    def __matmul__(self, other: Tensor | FactoredMatrix) -> Any:
        """A factored matrix again, through the smaller inner axis; times a vector [right] a tensor [*lead, left]."""
        if isinstance(other, FactoredMatrix):
            middle = self.B @ other.A
            if other.mdim < self.mdim:
                return FactoredMatrix(self.A @ middle, other.B)
            return FactoredMatrix(self.A, middle @ other.B)
        if other.ndim == 1:
            return (self.A @ (self.B @ other[:, None]))[..., 0]
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> Any:
        if other.ndim == 1:
            return ((other @ self.A).unsqueeze(-2) @ self.B)[..., 0, :]
        return FactoredMatrix(other @ self.A, self.B)

    def __mul__(self, scalar: float | Tensor) -> FactoredMatrix:
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    # --- spectrum ---------------------------------------------------------------------------------------------------

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        # A = Q_A R_A and B^T = Q_B R_B, so AB = Q_A (R_A R_B^T) Q_B^T and only the small middle needs an SVD.
        Q_A, R_A = torch.linalg.qr(self.A)
        Q_B, R_B = torch.linalg.qr(self.B.mT)
        U, S, Vh = torch.linalg.svd(R_A @ R_B.mT, full_matrices=False)
        return Q_A @ U, S, Q_B @ Vh.mT

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """(U, S, V) with AB = U diag(S) V^T. V, not its transpose; as many singular values as the smallest side."""
        return self._svd

    @property
    def U(self) -> Tensor:
        return self._svd[0]

    @property
    def S(self) -> Tensor:
        return self._svd[1]

    @property
    def V(self) -> Tensor:
        return self._svd[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "... mid"]:
        """Those of BA: the nonzero eigenvalues of AB, and zeros. For square matrices."""
        require(self.ldim == self.rdim, f"eigenvalues of a {self.ldim} x {self.rdim} matrix: it must be square")
        return torch.linalg.eigvals(self.BA)

    def norm(self) -> Tensor:
        """Frobenius norm [*lead], from the two small triangular factors."""
        R_A, R_B = (torch.linalg.qr(side, mode="r").R for side in (self.A, self.B.mT))
        return (R_A @ R_B.mT).flatten(-2).norm(dim=-1)

    def make_even(self) -> FactoredMatrix:
        """The same product with the singular values shared equally between the factors."""
        root = self.S.sqrt()
        return FactoredMatrix(self.U * root[..., None, :], root[..., :, None] * self.V.mT)

    def collapse_l(self) -> Tensor:
        """[*lead, mid, right] with the Gram matrix of AB's columns: S V^T (the left side rotated away)."""
        return self.S[..., :, None] * self.V.mT

    def collapse_r(self) -> Tensor:
        """[*lead, left, mid]: U S."""
        return self.U * self.S[..., None, :]

    def get_corner(self, k: int = 3) -> Tensor:
        """The first k rows and columns of the product, of the first matrix along every leading axis."""
        corner = self.A[..., :k, :] @ self.B[..., :, :k]
        return corner[(0,) * (corner.ndim - 2)]

    def __repr__(self) -> str:
        return f"FactoredMatrix({tuple(self.shape)}, through {self.mdim})"


# --- Circuits of a model ---------------------------------------------------------------------------------------------


def reading(model: Any, name: str) -> Float[Tensor, "layer head d e"]:
    """W_Q, W_K or W_V as the residual stream meets them: times the gain of ln1, centred over d_model for LayerNorm.

    What remains of the norm is one positive scale per position. Without a norm: the weights.
    """
    one_of("name", name, ("W_Q", "W_K", "W_V"))
    W = getattr(model, name).detach()
    norm = getattr(getattr(model, "spec", None), "norm", "none")
    if norm in ("LN", "RMS"):
        W = model.ln1_w.detach()[:, None, :, None] * W
    return W - W.mean(-2, keepdim=True) if norm.startswith("LN") else W


def QK(model: Any) -> FactoredMatrix:
    """W_Q W_K^T of every head, [layer, head, d_model, d_model]: the score is x_query QK x_key^T / scale.

    Biases and rotary positions are not in it (with rotary the score depends on the distance as well).
    """
    return FactoredMatrix(reading(model, "W_Q"), reading(model, "W_K").mT)


def OV(model: Any) -> FactoredMatrix:
    """W_V W_O of every head, [layer, head, d_model, d_model]: what a key's residual stream adds at the query."""
    return FactoredMatrix(reading(model, "W_V"), model.W_O.detach())


def full_OV(model: Any) -> FactoredMatrix:
    """W_E OV W_U, [layer, head, v, v_out]: what attending to token s adds to every logit, along the direct path."""
    return model.W_E.detach() @ OV(model) @ _unembedding(model)


def full_QK(model: Any) -> FactoredMatrix:
    """W_E QK W_E^T, [layer, head, v, v]: how much query token s prefers key token t, along the direct path."""
    return model.W_E.detach() @ QK(model) @ model.W_E.detach().T


def _unembedding(model: Any) -> Tensor:
    """W_U [d_model, v_out] with the gain of the final norm."""
    spec = getattr(model, "spec", None)
    W_U = model.W_E[: model.d_out].T if getattr(spec, "tied", False) else model.W_U
    norm = getattr(spec, "norm", "none")
    if norm in ("LN", "RMS"):
        W_U = model.ln_final_w[:, None] * W_U
    return (W_U - W_U.mean(0) if norm.startswith("LN") else W_U).detach()


def copying_scores(model: Any) -> Float[Tensor, "layer head"]:
    """sum of eigenvalues / sum of their sizes, of full_OV: 1 copies, -1 suppresses what it attends to, about 0 random.

    The eigenvalues are those of the d_head x d_head matrix W_O W_U W_E W_V; tokens without a logit of their own (BOS)
    are left out. Source: Elhage et al. 2021, "copying". Known exactly: a head that copies one-hot tokens has 1.
    A non-normal matrix can look odd, and the score says nothing of where the head attends.
    """
    return eigenvalue_score(_square(full_OV(model)))


def _square(M: FactoredMatrix) -> FactoredMatrix:
    n = min(M.ldim, M.rdim)
    return FactoredMatrix(M.A[..., :n, :], M.B[..., :, :n])


def eigenvalue_score(M: FactoredMatrix) -> Tensor:
    """Re(sum of eigenvalues) / sum |eigenvalue|, in [-1, 1]; 0 for a matrix without any."""
    values = M.eigenvalues
    size = values.abs().sum(-1)
    return torch.where(size > 0, values.real.sum(-1) / torch.where(size > 0, size, 1), 0)


# --- Composition -----------------------------------------------------------------------------------------------------

KINDS = ("Q", "K", "V")


def composition_scores(model: Any, kind: str) -> Float[Tensor, "layer head later_layer later_head"]:
    """How much of what one head writes a later head reads into its queries, keys or values, for all pairs of heads.

        Q  |OV_1 QK_2| / (|OV_1| |QK_2|)     K  |OV_1 QK_2^T| / (...)     V  |OV_1 OV_2| / (|OV_1| |OV_2|)

    Frobenius norms; in [0, 1]. NaN where the second head is not in a later layer, which reads nothing from the first.
    Chance is 1/sqrt(d_model), not 0: see `composition_baseline` and `composition_z`.
    Source: Elhage et al. 2021, "composition". Known exactly: unchanged by any invertible change of basis inside a head
    and by rotations of the residual stream; 0 when the second head reads nothing of what the first can write.
    """
    one_of("kind", kind, KINDS)
    written, read = OV(model), OV(model) if kind == "V" else QK(model)
    scores = composition(written, read.T if kind == "K" else read)
    layer = torch.arange(scores.shape[0])
    later = (layer[:, None] < layer)[:, None, :, None].expand_as(scores)
    return torch.where(later, scores, torch.nan)


def composition(first: FactoredMatrix, second: FactoredMatrix) -> Float[Tensor, "l1 h1 l2 h2"]:
    """|M_1 M_2| / (|M_1| |M_2|), M_1 in `first` [l1, h1, d, d] and M_2 in `second` [l2, h2, d, d]; 0 for zeros.

    M_1 = Q_1 R_1 W_1 and M_2 = L_2 T_2 Q_2^T with orthonormal Q: only d_head x d_head products remain.
    """
    left = torch.linalg.qr(first.A, mode="r").R @ first.B  # [l1, h1, e, d]
    right = second.A @ torch.linalg.qr(second.B.mT, mode="r").R.mT  # [l2, h2, d, e]
    product = torch.einsum("ahed,bkdf->ahbkef", left, right)
    size = first.norm()[:, :, None, None] * second.norm()
    return torch.where(size > 0, product.flatten(-2).norm(dim=-1) / torch.where(size > 0, size, 1), 0)


def composition_baseline(d_model: int) -> float:
    """1/sqrt(d_model): the score of two heads with independent Gaussian factors, whatever their rank.

    Exact in the root mean square for a fixed pair and a random rotation between them, which is what Gaussian factors
    give: |M_1 R M_2|^2 has mean |M_1|^2 |M_2|^2 / d_model.
    """
    return d_model**-0.5


def composition_z(model: Any, kind: str, generator: torch.Generator, n: int = 100) -> Tensor:
    """composition_scores in standard deviations from random heads of the same sizes (`n` pairs of Gaussian factors)."""
    one_of("kind", kind, KINDS)
    d, e = model.W_Q.shape[-2:]

    def heads() -> FactoredMatrix:
        A, B = torch.randn(2, n, d, e, generator=generator, dtype=torch.double)
        return FactoredMatrix(A, B.mT)

    first, second = heads(), heads()
    drawn = (first @ second).norm() / first.norm() / second.norm()
    return (composition_scores(model, kind) - drawn.mean()) / drawn.std()


def virtual_heads(model: Any) -> FactoredMatrix:
    """OV_1 OV_2, [layer, head, later_layer, later_head, d_model, d_model]: two heads in a row move information as one.

    Their joint pattern is A_2 A_1. Pairs that are not in order of layers are there too and mean nothing.
    """
    M = OV(model)
    first = FactoredMatrix(M.A[:, :, None, None], M.B[:, :, None, None])
    return first @ M


def virtual_mlp_weights(model: Any) -> FactoredMatrix:
    """W_out[l1] W_in[l2], [layer, later_layer, neuron, later_neuron]: how a neuron feeds one of a later layer directly.

    W_in with the gain of ln2 (and centred, for LayerNorm).
    """
    require(getattr(model, "d_mlp", 0) > 0, "this model has no MLP")
    W_in, norm = model.W_in.detach(), getattr(getattr(model, "spec", None), "norm", "none")
    if norm in ("LN", "RMS"):
        W_in = model.ln2_w.detach()[:, :, None] * W_in
    W_in = W_in - W_in.mean(-2, keepdim=True) if norm.startswith("LN") else W_in
    return FactoredMatrix(model.W_out.detach()[:, None], W_in[None])
