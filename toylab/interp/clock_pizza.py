"""Clock or pizza: does the network multiply the waves of a and b, or fold their average?

A clock's logits are cos w(a + b - c); a pizza's are |cos w(a - b)/2| cos w(a + b - c), weak where a and b are opposite.

1. `circularity` first: the other two numbers are read only where the embedding is made of circles (>= .995).
2. `distance_irrelevance`: how the correct logit varies at fixed a - b, relative to all its variation.
3. `gradient_symmetricity`: whether moving the embedded a and the embedded b changes a logit alike.

Source: Zhong et al. 2023 (arXiv 2306.17844), section 4. Came from: group_addition.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.interp.fourier import Group, power_by_frequency
from toylab.interp.group_addition import pairs_by_difference


def distance_irrelevance(correct: Float[Tensor, "*batch pair"], group: Group) -> Float[Tensor, "*batch"]:
    """Mean over d = a - b of the spread of the correct logit at fixed d, over its spread on all pairs.

    Zhong et al. 2023, section 4.2, on the correct logits Q[a, b, a + b] (their notebook). 0: the logit depends on a - b
    alone (pizza); near 1: on anything else (clock). nan where the correct logit is constant, as in an exact clock.
    """
    by_difference = correct[..., pairs_by_difference(group).to(correct.device)]
    spread = correct.std(-1, correction=0)
    floor = 32 * torch.finfo(correct.dtype).eps * correct.abs().amax(-1)
    return torch.where(spread > floor, by_difference.std(-1, correction=0).mean(-1) / spread, torch.nan)


def circularity(embedding: Float[Tensor, "*batch n d"], group: Group, n_components: int = 4) -> Float[Tensor, "*batch"]:
    """How nearly the first principal components of an embedding are single waves over the group; 1 = circles.

    Mean over components v of max_k (2/n)|sum_t v_t chi_k(t)|^2 / |v|^2, the largest frequency's share. Zhong et al.
    2023 ask for .995 before the other two numbers are read. Components without variance are left out; nan if none is.
    """
    centred = embedding - embedding.mean(-2, keepdim=True)
    components, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    components, sizes = components[..., :n_components], sizes[..., :n_components]
    share = power_by_frequency(components, group, -2)[..., 1:, :].amax(-2)
    real = sizes > 1e-6 * sizes[..., :1]
    return (share * real).sum(-1) / real.sum(-1)


def gradient_symmetricity(
    logits_of: Callable[[Tensor], Tensor],
    embedding: Float[Tensor, "n d"],
    triples: Int[Tensor, "triple three"],
) -> Float[Tensor, ""]:
    """Mean cosine between the gradients of logit c with respect to the embedded a and the embedded b.

    logits_of takes embedded operands [triple, 2, d] and gives logits [triple, c]. Zhong et al. 2023, section 4.2, with
    100 random triples (a, b, c). 1: the network uses E_a + E_b only (pizza). An exact clock gives cos w(a - b) for
    one frequency: 0 on average. Triples where a gradient vanishes are left out; nan if none is left. Gradients are
    taken with respect to whole vectors: directions that no embedding uses count too, if the network reads them.
    """
    a, b, c = triples.unbind(1)
    inputs = embedding.detach()[torch.stack([a, b], 1)].requires_grad_()
    with torch.enable_grad():
        chosen = logits_of(inputs).gather(-1, c[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, inputs)
    of_a, of_b = gradient.unbind(1)
    sizes = of_a.norm(dim=-1) * of_b.norm(dim=-1)
    alive = sizes > 0
    return ((of_a * of_b).sum(-1)[alive] / sizes[alive]).mean()
