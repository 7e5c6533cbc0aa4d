"""How far the best small change of an input pushes the outputs, of models y = f(x A + b) that should return x.

A [feature, output] is W W^T in a toy model of superposition (models/superposition.py), f the identity or ReLU. An
attack is a change of the input of a given Euclidean length.

1. `reach`: how far any attack moves the pre-activation of one output. Exact for both f, by Cauchy and Schwarz.
2. `linear_attack`: of f = identity, the attack of the largest total squared error. Exact: a quadratic on a sphere.
3. `relu_attack`: the same with ReLU, where outputs that are off hide from the gradient what lies beyond them. It
   starts from the exact attacks on single outputs, which use no gradient, and climbs from the best of them.
   `relu_bound`: no attack does better.

Source: Elhage et al. 2022, arXiv 2209.10652, on adversarial examples: the optimal attack is taken in closed form, as a
gradient attack is masked. Which closed form they took is not stated here; ours is of the squared error itself.
Letters: e the length, I the importances, r = y - x the error without an attack, z = x A + b.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toylab.errors import require

TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Attack:
    """change: what is added to each input; error: sum over outputs of I (y - x)^2 with it."""

    change: Float[Tensor, "example feature"]
    error: Float[Tensor, " example"]


def reach(A: Float[Tensor, "feature output"]) -> Float[Tensor, " output"]:
    """|A_i|: an attack of length e moves the pre-activation of output i by at most e |A_i|, by that along column i.

    For A = W W^T it is |W_i|^2 / sqrt(D_i), D_i the dimensionality (interp/superposition.py): a feature with a
    dimension to itself is moved by e, one of a digon by sqrt(2) e. Exact.
    """
    return torch.linalg.vector_norm(A, dim=0)


def linear_attack(
    A: Float[Tensor, "feature output"],
    residual: Float[Tensor, "example output"],
    size: float,
    importance: Float[Tensor, " output"],
) -> Attack:
    """The change d, |d| = size, that maximises sum_j I_j (r_j + (d A)_j)^2. Exact, also where f is not the identity
    but the attack leaves every output on its side of it.

    With H = A diag(I) A^T = V diag(l) V^T and g = A diag(I) r the optimum is d = (mu - H)^-1 g for the one mu >= max l
    at which |d| = size, found by bisection between max l + |g_top| / size and max l + |g| / size; where g has no part
    along the top eigenvector, what is missing of the length goes there. Computed in float64. Exact: without residual
    the error is size^2 max l, which is size^2 (n/m)^2 for n unit vectors that form a tight frame of m dimensions.
    """
    require(size > 0, f"size={size}: the length of an attack is more than 0")
    A, r, weight = A.double(), residual.double(), importance.double()
    values, V = torch.linalg.eigh((A * weight) @ A.T)
    g = (r * weight) @ A.T @ V  # [example, eigenvector], the last of them the top one
    top = values[-1]
    low, high = top + g[:, -1:].abs() / size, top + torch.linalg.vector_norm(g, dim=1, keepdim=True) / size
    for _ in range(80):
        mu = (low + high) / 2
        long = (g / (mu - values).clamp(min=TINY)).square().sum(1, keepdim=True) > size**2
        low, high = torch.where(long, mu, low), torch.where(long, high, mu)
    d = g / (high - values).clamp(min=TINY)
    missing = (size**2 - d.square().sum(1)).clamp(min=0).sqrt()
    d[:, -1] += torch.where(g[:, -1] < 0, -missing, missing)
    d = size * d / torch.linalg.vector_norm(d, dim=1, keepdim=True).clamp(min=TINY)
    change = d @ V.T
    return Attack(change, ((r + change @ A).square() * weight).sum(1))


def relu_attack(
    A: Float[Tensor, "feature output"],
    b: Float[Tensor, " output"],
    x: Float[Tensor, "example feature"],
    size: float,
    importance: Float[Tensor, " output"],
    starts: int = 8,
    steps: int = 20,
) -> Attack:
    """The best found change d, |d| <= size, for sum_j I_j (ReLU(z_j + (d A)_j) - x_j)^2.

    1. Every attack on one output is tried on every example: +- size A_j / |A_j|, and along -A_j just so far that output
       j is off, where the error has a kink. The best `starts` are kept.
    2. Each climbs `steps` times by d <- size grad / |grad|, which never lowers a convex error (at a kink it is not
       convex); the best of everything seen is returned.
    A lower bound of the worst case, `relu_bound` an upper one. Exact where the worst attack is on one output, and for
    digons: an antipodal pair of unit vectors with b = 0 has error 2 size^2. On triangles, pentagons and antiprisms with
    two features of five on, 20,000 random directions find 7 % more on one input of twelve at most, 2 % on average.
    """
    require(size > 0, f"size={size}: the length of an attack is more than 0")
    z = x @ A + b

    def error(moved: Tensor) -> Tensor:
        """[..., example], where an attack moves the pre-activations by this."""
        return (((z + moved).relu() - x).square() * importance).sum(-1)

    unit = A.T / reach(A).clamp(min=TINY)[:, None]
    off = z / reach(A).clamp(min=TINY)  # along -A_j: how far it is to where output j is just off
    lengths = torch.stack([torch.full_like(z, size), torch.full_like(z, -size), -off.clamp(0, size)])
    lengths = lengths.transpose(1, 2).flatten(0, 1)  # [attack, example]
    first = error(lengths[..., None] * (unit @ A).repeat(3, 1)[:, None])
    best = first.topk(min(starts, len(first)), dim=0).indices  # [start, example]
    length = lengths.gather(0, best)
    change = length[..., None] * unit[best % len(unit)]  # [start, example, feature]
    seen, found = error(change @ A), change
    for _ in range(steps):
        y = (z + change @ A).relu()
        grad = ((y > 0) * importance * (y - x)) @ A.T
        length = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
        change = torch.where(length > TINY, size * grad / length.clamp(min=TINY), change)
        now = error(change @ A)
        found = torch.where((now > seen)[..., None], change, found)
        seen = torch.maximum(seen, now)
    at = seen.argmax(0)
    example = torch.arange(len(x))
    return Attack(found[at, example], seen[at, example])


def relu_bound(
    A: Float[Tensor, "feature output"],
    b: Float[Tensor, " output"],
    x: Float[Tensor, "example feature"],
    size: float,
    importance: Float[Tensor, " output"],
) -> Float[Tensor, " example"]:
    """sum_j I_j max over |d| <= size of (ReLU(z_j + (d A)_j) - x_j)^2, each of the maxima exact: what an attacker could
    do who had another attack for every output. The ReLU is monotone, so each is at an end of its output's reach."""
    z, far = x @ A + b, size * reach(A)
    ends = torch.stack([((z + s * far).relu() - x).square() for s in (-1, 1)])
    return (ends.amax(0) * importance).sum(-1)
