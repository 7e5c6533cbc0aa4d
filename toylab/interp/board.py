"""Board states in a network: edit the board that it seems to hold, and score what it then plays.

1. Directions. From a linear probe with classes empty, mine, theirs, per square: mine_dir = W_mine - W_theirs and
   empty_dir = W_empty - (W_mine + W_theirs) / 2. A softmax sees nothing else of the weights.
2. Four ways to make the network believe that one square is something else, all at one position (`EditAt`):
     gradient  steps down the probe's cross-entropy to the edited board, layer after layer (Li et al. 2023)
     add       x + scale * step * direction, at every layer from the first on (Nanda et al. 2023, section 4)
     attn      the same vector of ONE probe, added to attention outputs (what their code does)
     reflect   x - (1 + s)(x . v) v at one layer, v = mine_dir / |mine_dir| (the blog post before the paper)
3. Scores: the papers' top-N error, and how often the squares whose legality changed are treated as they should be.

Sources: arXiv 2210.13382 (section 4), 2309.00941. Knows tensors, probes and taps. Whether single features stand for
squares is asked in sae/boards.py. Squares may be numbered in any way; probes have one target per square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import one_of, require
from toylab.interp.probes import MLPProbe, Probe
from toylab.taps import Tap, site_name

EMPTY, MINE, THEIRS = range(3)
OPERATORS = ("gradient", "add", "attn", "reflect")


# --- Scores ----------------------------------------------------------------------------------------------------------


def top_n(logits: Float[Tensor, "*case move"], legal: Bool[Tensor, "*case move"]) -> Bool[Tensor, "*case move"]:
    """The N best moves of each case, N being the number of its legal ones."""
    rank = logits.argsort(-1, descending=True).argsort(-1)
    return rank < legal.sum(-1, keepdim=True)


def top_n_error(logits: Float[Tensor, "*case move"], legal: Bool[Tensor, "*case move"]) -> Float[Tensor, "*case"]:
    """|T \\ B| + |B \\ T| for the legal set B and the |B| best moves T: 0 right, even, at most 2 |B|.

    Li et al. 2023, section 4.1. Ties are broken by the sort, so add noise to logits that have them. Read it against
    the error of the same network without the edit: legal sets before and after share most of their squares.
    """
    return (top_n(logits, legal) ^ legal).sum(-1).float()


def changed_score(
    logits: Float[Tensor, "case move"], before: Bool[Tensor, "case move"], after: Bool[Tensor, "case move"]
) -> Float[Tensor, " case"]:
    """Of the moves whose legality the edit changed, the share that is (not) among the |after| best as it should be.

    1 for a perfect edit. A network without the edit scores about 0, for it calls legal what was legal.
    """
    changed = before ^ after
    require(bool(changed.any(-1).all()), "cases arrived in which the edit changes no legal move; leave them out")
    return ((top_n(logits, after) == after) & changed).sum(-1) / changed.sum(-1)


def kl_to_uniform(
    logits: Float[Tensor, "case move"], legal: Bool[Tensor, "case move"], floor: float = 1e-12
) -> Float[Tensor, " case"]:
    """KL(prediction || uniform on the legal moves) in nats; illegal moves count as probability `floor`."""
    log_p = logits.double().log_softmax(-1)
    log_q = torch.where(legal, -legal.sum(-1, keepdim=True).double().log(), torch.tensor(floor).double().log())
    return (log_p.exp() * (log_p - log_q)).sum(-1).float()


# --- Edits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EditAt(Tap):
    """Puts change(layer, x [case, d]) in place of one site at position at[case] of each row, in these layers."""

    site: str
    layers: Collection[int]
    at: Int[Tensor, " case"]
    change: Callable[[int, Tensor], Tensor]

    def __call__(self, name: str, layer: int | None, value: Tensor) -> Tensor:
        if name != self.site or layer is None or layer not in self.layers:
            return value
        require(
            len(value) == len(self.at),
            f"{len(value)} rows at {site_name(name, layer)}; the edit is for {len(self.at)}",
        )
        rows, after = torch.arange(len(value)), value.clone()
        after[rows, self.at] = self.change(layer, value[rows, self.at]).to(value)
        return after


def mine_directions(probe: Probe) -> Float[Tensor, "*layer square d"]:
    """W_mine - W_theirs of every square."""
    return probe.weight[..., MINE, :] - probe.weight[..., THEIRS, :]


def empty_directions(probe: Probe) -> Float[Tensor, "*layer square d"]:
    """W_empty - (W_mine + W_theirs) / 2 of every square."""
    return probe.weight[..., EMPTY, :] - probe.weight[..., [MINE, THEIRS], :].mean(-2)


@dataclass(frozen=True, eq=False)
class Steps:
    """How far to go along a direction: what carries the mean of one class to that of another.

    unit:  [layer, square, class, class, d], the direction from one class to another, of length 1; 0 on the diagonal.
    means: [layer, square, class, class, 2], mean coordinate of the first and of the second class along it.
    """

    unit: Float[Tensor, "layer square c c d"]
    means: Float[Tensor, "layer square c c two"]

    def vector(self, square: Tensor, before: Tensor, after: Tensor) -> Float[Tensor, "layer case d"]:
        """The step from class before[case] to after[case] of square[case], at every layer."""
        means = self.means[:, square, before, after]
        return self.unit[:, square, before, after] * (means[..., 1] - means[..., 0])[..., None]


def class_steps(probe: Probe, x: Float[Tensor, "layer n d"], y: Int[Tensor, "n square"]) -> Steps:
    """Unit directions W_after - W_before of a linear probe, and where the classes of these rows lie along them."""
    require(isinstance(probe, Probe), "directions need a linear probe")
    towards = probe.weight[:, :, None, :] - probe.weight[:, :, :, None]  # [l, s, before, after, d]
    unit = F.normalize(towards, dim=-1)
    one_hot = (y[..., None] == torch.arange(probe.weight.shape[2])).to(x)  # [n, s, c]
    count = one_hot.sum(0).clamp_min(1)
    centre = torch.einsum("lnd,nsc->lscd", x, one_hot) / count[..., None]
    first = torch.einsum("lsabd,lsad->lsab", unit, centre)
    second = torch.einsum("lsabd,lsbd->lsab", unit, centre)
    return Steps(unit, torch.stack([first, second], -1))


def gradient_change(
    probe: Probe | MLPProbe, after: Int[Tensor, "case square"], square: Int[Tensor, " case"], steps: int, lr: float
) -> Callable[[int, Tensor], Tensor]:
    """change(layer, x): `steps` of Adam on CE(edited square) + 0.2 mean CE(other squares) of the probe's reading of x.

    The other squares' targets are what the probe reads before the edit, as in the code of Li et al. lr is in units of
    the root mean square of x, so that one number serves networks of any scale.
    """

    def change(layer: int, x: Tensor) -> Tensor:
        one = _at_layer(probe, layer)
        rows, n = torch.arange(len(x)), after.shape[1]
        with torch.enable_grad():
            target = one.predict(x.detach())
            target[rows, square] = after[rows, square]
            weight = torch.full(target.shape, 0.2 / (n - 1)).to(x)
            weight[rows, square] = 1.0
            edited = x.detach().clone().requires_grad_()
            optimiser = torch.optim.Adam([edited], lr=lr * float(x.detach().pow(2).mean().sqrt()))
            for _ in range(steps):
                # A class that a square never showed has score -inf and is never a target.
                scores = one.scores(edited)
                losses = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
                (edited.grad,) = torch.autograd.grad((losses * weight).nan_to_num(0, 0, 0).sum(), [edited])
                optimiser.step()
        return edited.detach()

    return change


def _at_layer(probe: Probe | MLPProbe, layer: int) -> Probe | MLPProbe:
    """The probe of one layer alone."""
    shared = ("n_classes", "kind")
    return dataclasses.replace(
        probe, **{k: v[layer] for k, v in vars(probe).items() if k not in shared and v is not None}
    )


def board_edit(
    operator: str,
    probe: Probe | MLPProbe,
    steps: Steps,
    at: Int[Tensor, " case"],
    square: Int[Tensor, " case"],
    before: Int[Tensor, "case square"],
    after: Int[Tensor, "case square"],
    first_layer: int,
    scale: float,
) -> EditAt:
    """The edit that makes `square` look like its class in `after`, by one of OPERATORS, from block `first_layer` on.

    scale: gradient: 60 Adam steps of size 0.03 scale; add, attn: multiples of the step between class means (add counts
    it in full at every layer, attn divides it over the blocks); reflect: s.
    """
    one_of("operator", operator, OPERATORS)
    n_layers = len(steps.unit)
    require(0 <= first_layer < n_layers, f"first_layer={first_layer}: this probe has layers 0 to {n_layers - 1}")
    rows = torch.arange(len(at))
    old, new = before[rows, square], after[rows, square]
    layers = range(first_layer, n_layers)
    if operator == "gradient":
        return EditAt("resid_post", layers, at, gradient_change(probe, after, square, 60, 0.03 * scale))
    step = steps.vector(square, old, new)
    if operator == "add":
        return EditAt("resid_post", layers, at, lambda layer, x: x + scale * step[layer])
    if operator == "attn":
        one = step[(first_layer + n_layers) // 2] * (scale / len(layers))
        return EditAt("attn_out", layers, at, lambda layer, x: x + one)
    unit = steps.unit[first_layer, square, old, new]
    return EditAt(
        "resid_post", (first_layer,), at, lambda layer, x: x - (1 + scale) * (x * unit).sum(-1, keepdim=True) * unit
    )
