"""Beliefs in activations: is what an ideal observer believes an affine map of the residual stream, and is that news?

1. Activations of every layer, and of all layers side by side, at every position of the held-out rows.
2. Least squares onto the belief, cross-validated by prefix: every prefix (the tokens up to a position) is predicted by
   a map that was fitted without it, whichever rows it occurs in. Prefixes count as often as they occur, which is by
   their probability.
3. The same regression from what needs no network: the tokens themselves (input-linear), the last token, the true law of
   the next token; and onto shuffled beliefs. On Mess3 these already give R^2 = .97, .83 and 1: little is proved there.

Source: Shai et al. 2024 (arXiv 2405.15943), section 4; the controls are ours. `Strategies` follows Edelman et al. 2024
(arXiv 2402.11004), figure 1. Came from: tasks/hmm.py, interp/probes.py.
Letters: s sites, n rows (one for each row of the batch and position), d activations, y components of the belief.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toylab.data import generator
from toylab.errors import UserError, require
from toylab.interp.probes import Probe, fit
from toylab.snapshot import Labelled, Snapshot
from toylab.tasks.hmm import HMM


def prefix_numbers(inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Equal numbers exactly where the tokens up to and including this position are equal."""
    number, columns, so_far = torch.zeros_like(inputs[:, 0]), [], 0
    for token in inputs.unbind(1):
        number = (number * (int(inputs.max()) + 1) + token).unique(return_inverse=True)[1]
        columns.append(number + so_far)
        so_far += int(number.max()) + 1
    return torch.stack(columns, 1)


def tokens_by_lag(inputs: Int[Tensor, "batch pos"], d_vocab: int) -> Float[Tensor, "batch pos feature"]:
    """What the input gives away linearly: the token of every lag, one-hot (none before the row), and the position."""
    n, length = inputs.shape
    lag = torch.arange(length)[:, None] - torch.arange(length)  # [pos, lag] -> the position that lag looks at
    seen = torch.where(lag >= 0, inputs[:, lag.clamp_min(0)], d_vocab)
    one_hot = F.one_hot(seen, d_vocab + 1)[..., :d_vocab].flatten(2)
    return torch.cat([one_hot, torch.eye(length).expand(n, -1, -1)], 2).float()


def joint_r2(predicted: Float[Tensor, "*s n y"], y: Float[Tensor, "n y"]) -> Float[Tensor, "*s"]:
    """1 - squared error / squared distance from the mean, both summed over components: 1 perfect, 0 the mean."""
    return 1 - (predicted - y).square().sum((-2, -1)) / (y - y.mean(0)).square().sum()


def distance_r2(a: Float[Tensor, "n x"], b: Float[Tensor, "n y"], n_pairs: int, generator: torch.Generator) -> float:
    """Squared correlation of the distances within a and within b, over random pairs of rows; nan if one is constant."""
    i, j = torch.randint(len(a), (2, n_pairs), generator=generator)
    distances = torch.stack([(a[i] - a[j]).norm(dim=1).double(), (b[i] - b[j]).norm(dim=1).double()])
    return float(torch.corrcoef(distances)[0, 1].square())


@dataclass(frozen=True)
class BeliefRegression:
    """How well an affine map of the activations gives a real latent of the task, cross-validated by prefix.

    latent:  which, for instance "belief" [batch, pos, component].
    folds:   the prefixes are dealt into so many parts; each is predicted from the others. seed: of the dealing.
    penalty: of the ridge, as a share of the sum of squares of an average activation.
    n_pairs: pairs of rows for the distances.

    r2 [site], mse [site] (per component), shuffled_r2 [site] (beliefs permuted over rows): sites are the embedding,
    every resid_post, and "all" side by side. fitted_r2 [site]: fitted and judged on all rows, near what Shai et al. do,
    who hold out rows and so meet every prefix on both sides; to be read beside an untrained network's.
    input_linear_r2, last_token_r2, and <name>_r2 for every other real latent of the task (the true next-token law):
    what needs no network, fitted on all rows too, so at its best. distance_r2: of distances between the beliefs that
    "all" predicts with distances between true beliefs; <name>_distance_r2 with those of the other latents.
    Known exactly: activations that hold the belief have r2 = 1, and Mess3's next_token_r2 is 1 (its belief is an affine
    function of the next token's law). A fit needs more prefixes than activations: with fewer, r2 falls far below 0.
    """

    latent: str
    folds: int
    penalty: float = 0.01
    n_pairs: int = 20_000
    seed: int = 0

    def __post_init__(self):
        require(self.folds >= 2, f"folds={self.folds}: at least 2, one to fit on and one to predict")

    def __call__(self, snap: Snapshot) -> dict[str, float | Labelled]:
        inputs = snap.batch.inputs
        real = {k: v.values.float() for k, v in snap.task.latents(inputs).items() if not v.classes}
        if self.latent not in real:
            raise UserError(f"{type(snap.task).__name__} has no real latent {self.latent!r}; it has {', '.join(real)}")
        y = real.pop(self.latent).flatten(0, 1)
        sites = ["embed", *(f"resid_post{layer}" for layer in range(snap.model.n_layers))]
        cache = snap.run_with_cache(["resid_pre0", *sites[1:]])[1]
        layers = torch.stack([cache[name].flatten(0, 1) for name in ("resid_pre0", *sites[1:])]).float()
        prefix = prefix_numbers(inputs).flatten()
        n_prefixes = int(prefix.max()) + 1
        require(n_prefixes >= self.folds, f"folds={self.folds} of only {n_prefixes} prefixes; take more rows")
        fold = (torch.randperm(n_prefixes, generator=self._generator("folds")) % self.folds)[prefix]
        mixed = y[torch.randperm(len(y), generator=self._generator("shuffle"))]

        def held_out(x: Tensor, labels: Tensor) -> Tensor:
            predicted = x.new_empty(*x.shape[:-1], labels.shape[1])
            for k in range(self.folds):
                probe = self._fit(x[..., fold != k, :], labels[fold != k])
                predicted[..., fold == k, :] = probe.predict(x[..., fold == k, :])
            return predicted

        side_by_side = layers.movedim(0, 1).flatten(1)
        predicted = torch.cat([held_out(layers, y), held_out(side_by_side, y)[None]])
        shuffled = torch.cat([held_out(layers, mixed), held_out(side_by_side, mixed)[None]])
        fitted = [joint_r2(fit(x, y, "ridge").predict(x), y) for x in (*layers, side_by_side)]
        names = {"site": [*sites, "all"]}
        found: dict[str, float | Labelled] = {
            "r2": Labelled(joint_r2(predicted, y), ("site",), names),
            "fitted_r2": Labelled(torch.stack(fitted), ("site",), names),
            "mse": Labelled((predicted - y).square().mean((1, 2)), ("site",), names),
            "shuffled_r2": Labelled(joint_r2(shuffled, mixed), ("site",), names),
        }
        controls = {
            "input_linear": tokens_by_lag(inputs, snap.task.d_vocab).flatten(0, 1),
            "last_token": F.one_hot(inputs, snap.task.d_vocab).float().flatten(0, 1),
        } | {name: value.flatten(0, 1) for name, value in real.items()}
        # Fitted and judged on the same rows: the most that a control can do. Few prefixes would flatter the network.
        found |= {f"{name}_r2": joint_r2(fit(x, y, "ridge").predict(x), y).item() for name, x in controls.items()}
        truths = {"": y} | {f"{name}_": value.flatten(0, 1) for name, value in real.items()}
        for name, truth in truths.items():
            apart = distance_r2(predicted[-1], truth, self.n_pairs, self._generator("pairs"))
            found[f"{name}distance_r2"] = apart
        return found

    def _fit(self, x: Float[Tensor, "*s n d"], y: Float[Tensor, "n y"]) -> Probe:
        spread = (x - x.mean(-2, keepdim=True)).square().sum(-2).mean()
        return fit(x, y, "ridge", self.penalty * spread.item())

    def _generator(self, name: str) -> torch.Generator:
        return generator(self.seed, name)


def exact_controls(process: HMM, depth: int) -> dict[str, float]:
    """R^2 of the belief from input_linear, last_token and next_token over all words of 1..depth tokens, by probability.

    Fitted and judged on the same words: what an affine map can do at most. Mess3 x = .05, a = .85 at depth 10: .966,
    .828, 1; RRXOR: .149, .149, .246.
    """
    words, probs = process.prefixes(depth)
    tokens = F.one_hot(words + 1, len(process.tokens) + 1)[..., 1:].double()
    position = F.one_hot((words >= 0).sum(1) - 1, depth).double()
    beliefs = torch.empty(len(words), len(process.states), dtype=torch.float64)
    for length in range(1, depth + 1):
        rows = (words >= 0).sum(1) == length
        beliefs[rows] = process.beliefs(words[rows, depth - length :])[:, -1]
    weight = probs.sqrt()[:, None]
    centred = beliefs - (probs @ beliefs)

    def r2(x: Tensor) -> float:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1) * weight
        solution = torch.linalg.lstsq(x.T @ x, x.T @ (beliefs * weight), driver="gelsd").solution
        return 1 - ((x @ solution - beliefs * weight).square().sum() / (centred * weight).square().sum()).item()

    return {
        "input_linear": r2(torch.cat([tokens.flatten(1), position], 1)),
        "last_token": r2(tokens[:, -1]),
        "next_token": r2(process.next_token(beliefs)),
    }


@dataclass(frozen=True)
class LossByPosition:
    """loss [pos] and accuracy [pos] over the rows where something is asked; excess [pos] above the task's own floor.

    excess only for tasks that know the floor (`floor()`, tasks/hmm.py); it is that of the expectation, so the sampled
    loss may lie below it by about its standard error, loss_se [pos]. Positions are those of `read`.
    """

    def __call__(self, snap: Snapshot) -> dict[str, Labelled]:
        batch = snap.batch
        asked = torch.ones_like(snap.losses) if batch.weight is None else (batch.weight > 0).to(snap.losses)
        count = asked.sum(0)
        loss = (snap.losses * asked).sum(0) / count
        spread = ((snap.losses - loss).square() * asked).sum(0) / count
        right = ((snap.logits.argmax(-1) == batch.targets) * asked).sum(0) / count
        read = range(batch.inputs.shape[1]) if batch.read is None else batch.read
        coords = {"pos": [r % batch.inputs.shape[1] for r in read]}
        found = {"loss": loss, "loss_se": (spread / count).sqrt(), "accuracy": right}
        if hasattr(snap.task, "floor"):
            found["excess"] = loss - snap.shared(("floor", snap.task), snap.task.floor).to(loss)
        return {name: Labelled(value, ("pos",), coords) for name, value in found.items()}


@dataclass(frozen=True)
class Strategies:
    """KL(strategy || model) in nats, mean over positions and rows, for every strategy that the task knows.

    kl_uniform, kl_unigram, kl_bigram for in-context Markov chains. 0 exactly when the model is that strategy.
    """

    def __call__(self, snap: Snapshot) -> dict[str, float]:
        require(
            hasattr(snap.task, "strategies"),
            f"{type(snap.task).__name__} knows no strategies; in-context Markov chains do (tasks/hmm.py)",
        )
        laws = snap.shared(("strategies", snap.task), lambda: snap.task.strategies(snap.batch.inputs))
        log_model = snap.logits.double().log_softmax(-1)
        return {
            f"kl_{name}": (torch.xlogy(law, law) - law * log_model).sum(-1).mean().item() for name, law in laws.items()
        }
