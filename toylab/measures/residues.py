"""Whether a network counts modulo p: its code for #I mod 3 as numbers along training. For MIU strings, and any counter.

The first four need only a latent that counts, and a modulus: `count` of the MIU tasks with p = 3, `count` of bits with
p = 2. A modulus that means nothing to the task (p = 4, 5) is the built-in null. All look at the positions where
something is asked, of the last block unless another is named.

1. `ResidueCode`: how much of it is a function of the count mod p; the polygon of its means; a probe, and the same probe
   on the input tokens.
2. `ResidueLosses`: restricted and excluded loss: logits with only, or without, their part that depends on the residue.
3. `ResidueSteering`: does adding the difference of two residues' means turn the answer into the other's?
4. `CountingHeads`: how evenly heads attend to the counted symbols, and how much else they look at.
5. `TwinSensitivity`: flip one symbol: is the twin answered right, at every place alike?
6. `TheoremBelief`: P(theorem | MU) and relatives; accuracy by length and on questions beyond the table.

Sources: Hofstadter 1979 for the puzzle; Nanda et al. 2023 (arXiv 2301.05217, section 5.1) for restricted and excluded
loss, of which these are the analogues for one counted variable. Came from: tasks/miu.py, known/miu.py (a model on which
every answer is known). Letters: n rows, d d_model, c counts, r residues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.data import Batch, generator
from toylab.errors import UserError, one_of, require
from toylab.interp.probes import fit
from toylab.losses import loss_named
from toylab.snapshot import Labelled, Snapshot

Numbers = dict[str, float | Labelled]
PERIODS = (2, 3, 4, 5, 6, 7)
PROBE_PENALTY = 1e-2  # of ridge on activations; only against directions without variance


@dataclass(frozen=True, eq=False)
class _Rows:
    """The asked (example, read position) pairs as rows: the count, whether it is trained on, and both numbers."""

    count: Int[Tensor, " n"]
    train: Bool[Tensor, " n"]
    example: Int[Tensor, " n"]
    read: Int[Tensor, " n"]


def _rows(snap: Snapshot, count: str) -> _Rows:
    return snap.shared(("residues: rows", count), lambda: _collect(snap, count))


def _collect(snap: Snapshot, count: str) -> _Rows:
    batch = snap.batch
    latents = snap.task.latents(batch.inputs)
    require(
        count in latents and bool(latents[count].classes),
        f"count={count!r}: {type(snap.task).__name__} has no such whole-number latent; it has "
        f"{', '.join(name for name, latent in latents.items() if latent.classes)}",
    )
    values = latents[count].values
    require(values.ndim == 2, f"count={count!r}: one number for each position is needed")
    read = list(range(batch.inputs.shape[1])) if batch.read is None else [r % values.shape[1] for r in batch.read]
    values = values[:, read]
    asked = values >= 0
    if batch.weight is not None:
        asked &= batch.weight > 0
    example, at = asked.nonzero(as_tuple=True)
    in_train = torch.zeros(len(batch), dtype=torch.bool)
    if snap.split.train is not None:
        in_train[snap.split.train] = True
    return _Rows(values[example, at], in_train[example], example, at)


def _activations(snap: Snapshot, rows: _Rows, site: str) -> Float[Tensor, "n d"]:
    """What stands at this site of the last block where something is asked, in float64."""
    last = getattr(snap.model, "n_layers", 0) - 1
    require(last >= 0, f"{type(snap.model).__name__} has no blocks; a transformer has")
    return snap.site(site, last)[rows.example, rows.read].double()


def class_means(x: Float[Tensor, "n d"], label: Int[Tensor, " n"], k: int) -> tuple[Tensor, Tensor]:
    """Mean of x for each label 0..k-1 (0 where it does not occur) and the number of its rows."""
    size = torch.bincount(label, minlength=k).to(x)
    total = torch.zeros(k, x.shape[1], dtype=x.dtype).index_add_(0, label, x)
    return total / size.clamp(min=1)[:, None], size


def explained(x: Float[Tensor, "n d"], label: Int[Tensor, " n"], k: int) -> float:
    """Share of the variance of x that lies between labels: sum_k n_k |m_k - m|^2 / sum |x - m|^2; nan without any."""
    means, size = class_means(x, label, k)
    mean = x.mean(0)
    total = (x - mean).square().sum()
    return ((size[:, None] * (means - mean) ** 2).sum() / total).item() if total > 0 else math.nan


def period_shares(
    means: Float[Tensor, "c d"], weight: Float[Tensor, " c"], periods: tuple[int, ...] = PERIODS
) -> Float[Tensor, " period"]:
    """Share of what a straight line in c leaves of m_c, c = 0, 1, ..., that cos and sin of 2 pi c / q explain, per q.

    (SS of 1, c, cos, sin - SS of 1, c) / (total SS - SS of 1, c), least squares, counts weighted by their rows: Fourier
    power at frequency 1/q for any range of counts. The line is left out because a head that counts writes it, and
    because over few counts a slow wave looks like it. Known exactly: 1 at q for a line plus a wave of period q. nan
    where fewer than 5 counts occur or nothing is left.
    """
    root = weight.sqrt()[:, None]
    c = torch.arange(len(means)).double()
    line = [torch.ones_like(c), c]

    def left(columns: list[Tensor]) -> Tensor:
        basis = root * torch.stack(columns, 1)
        return root * means - basis @ torch.linalg.lstsq(basis, root * means, driver="gelsd").solution

    spread = left(line).square().sum()
    if int((weight > 0).sum()) < 5 or spread <= 1e-20 * (root * means).square().sum():
        return torch.full((len(periods),), math.nan, dtype=torch.double)
    waves = [[*line, (2 * math.pi * c / q).cos(), (2 * math.pi * c / q).sin()] for q in periods]
    return torch.stack([1 - left(columns).square().sum() / spread for columns in waves])


def triangle(means: Float[Tensor, "r d"]) -> float:
    """Shortest side over longest of the polygon of these means, in their order, closed: 1 for a regular one."""
    sides = (means - means.roll(-1, 0)).norm(dim=1)
    return (sides.min() / sides.max()).item() if sides.max() > 0 else math.nan


@dataclass(frozen=True)
class ResidueCode:
    """The code for count mod p in the activations x of the last block, where something is asked.

    residue_share       share of the variance of x between residues, sum_r n_r |m_r - m|^2 / sum |x - m|^2
    count_share         the same between counts
    period_share [period]        Fourier power of the means of x by count, at 1/2 ... 1/7 (`period_shares`)
    logit_period_share [period]  the same of the logits
    polygon             shortest over longest side of the polygon of the residues' means; 1 for an equilateral triangle
    plane [count, axis] means by count in the two first principal axes of the residues' means, signs arbitrary
    seen [count]        questions with this count
    code_r2             R^2 on held-out questions of (cos, sin)(2 pi count/p), by ridge on x of the training ones
    probe_accuracy      of a linear residue probe (LDA) on x, fitted on training questions, tested on held-out ones
    input_accuracy      the same on the one-hot input tokens: what is there without any network
    majority            share of the commonest residue among the held-out questions

    site: resid_post, or mlp_out, which lacks the count itself that heads may have left in the stream.
    Probes of streaming tasks, which have no training rows, use the first half of the examples instead.
    Domain: transformers. Exact: the recogniser of known/miu.py has period_share 1 at 3 and probe_accuracy = code_r2 = 1
    at both sites, at mlp_out also residue_share = polygon = 1. Invariant under rotation and scaling of the residual
    stream (probes up to their penalty). Null: p = 4 or 5; the other periods; untrained weights.
    """

    p: int
    count: str = "count"
    site: str = "resid_post"

    def __post_init__(self):
        require(self.p >= 2, f"p={self.p}: the modulus must be at least 2; 3 is that of MIU")
        one_of("site", self.site, ("resid_post", "mlp_out"))

    def __call__(self, snap: Snapshot) -> Numbers:
        rows = _rows(snap, self.count)
        x, residue = _activations(snap, rows, self.site), rows.count % self.p
        n_counts = int(rows.count.max()) + 1
        require(n_counts > self.p, f"p={self.p}: the counts only go up to {n_counts - 1}, which says nothing mod p")
        by_count, seen = class_means(x, rows.count, n_counts)
        by_residue, _ = class_means(x, residue, self.p)
        middle = by_residue.mean(0)
        axes = torch.linalg.svd(by_residue - middle, full_matrices=False).Vh[:2]
        plane = torch.where(seen[:, None] > 0, (by_count - middle) @ axes.T, torch.nan)
        logits, _ = class_means(snap.logits[rows.example, rows.read].double(), rows.count, n_counts)
        counts, periods = {"count": list(range(n_counts))}, {"period": list(PERIODS)}
        found: Numbers = {
            "residue_share": explained(x, residue, self.p),
            "count_share": explained(x, rows.count, n_counts),
            "period_share": Labelled(period_shares(by_count, seen), ("period",), periods),
            "logit_period_share": Labelled(period_shares(logits, seen), ("period",), periods),
            "polygon": triangle(by_residue),
            "plane": Labelled(F.pad(plane, (0, 2 - plane.shape[1])), ("count", "axis"), counts),
            "seen": Labelled(seen, ("count",), counts),
        }
        return found | self._probes(snap, rows, x)

    def _probes(self, snap: Snapshot, rows: _Rows, x: Tensor) -> Numbers:
        """Probes fitted on training examples, tested on the others."""
        train, residue = _fitted_on(snap, rows), rows.count % self.p
        angle = 2 * math.pi * residue.double() / self.p
        waves = torch.stack([angle.cos(), angle.sin()][: 2 if self.p > 2 else 1], 1)
        fitted = fit(x[train], waves[train], "ridge", PROBE_PENALTY).scores(x[~train])[..., 0]
        error = (fitted - waves[~train]).square().sum() / (waves[~train] - waves[~train].mean(0)).square().sum()
        return {
            "code_r2": 1 - error.item(),
            "probe_accuracy": _probe_accuracy(x, residue, train),
            "input_accuracy": _probe_accuracy(_tokens_seen(snap, rows), residue, train),
            "majority": (torch.bincount(residue[~train]).amax() / (~train).sum()).item(),
        }


def _fitted_on(snap: Snapshot, rows: _Rows) -> Bool[Tensor, " n"]:
    """The questions that means and probes may be fitted on; the others test them."""
    return rows.train if snap.split.train is not None else rows.example < len(snap.batch) // 2


def _tokens_seen(snap: Snapshot, rows: _Rows) -> Float[Tensor, "n pos_token"]:
    """One-hot tokens up to and including the position that is asked, one row for each question; 0 after it."""
    inputs = snap.batch.inputs
    pos = inputs.shape[1]
    where = torch.arange(pos) if snap.batch.read is None else torch.tensor([r % pos for r in snap.batch.read])
    tokens = F.one_hot(inputs[rows.example], int(inputs.max()) + 1).double()
    return (tokens * (torch.arange(pos) <= where[rows.read][:, None])[..., None]).flatten(1)


def _probe_accuracy(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], train: Bool[Tensor, " n"]) -> float:
    probe = fit(x[train], y[train], "lda", PROBE_PENALTY)
    return (probe.predict(x[~train])[:, 0] == y[~train]).double().mean().item()


@dataclass(frozen=True)
class ResidueLosses:
    """Loss with only, and without, the part of the logits that depends on count mod p and on nothing else.

    L(x) the logits of a question x, P L(x) their mean over all questions with the residue of x (the projection on 1,
    cos and sin of 2 pi k count/p as functions of x), m their mean over all questions.

    restricted_loss        of P L, all questions;  restricted_test_loss  on held-out questions
    excluded_loss          of L - P L + m, TRAINING questions
    shuffled_excluded_loss as excluded_loss, after the residues were dealt out anew: what removing means costs anyway

    The loss is the one trained with, in nats for cross-entropies, averaged over questions. Exact: the recogniser has
    restricted = full loss and excluded_loss that of its mean logits. A network that keeps a table of its training
    strings has excluded_loss near its training loss and restricted_loss near chance.
    Nanda et al. 2023 project on the key frequencies of a + b in the same way. Null: shuffled_excluded_loss = the
    training loss, to sampling noise; and p = 4, 5. Streaming tasks: excluded_loss is that of the held-out draw.
    """

    p: int
    count: str = "count"

    def __post_init__(self):
        require(self.p >= 2, f"p={self.p}: the modulus must be at least 2; 3 is that of MIU")

    def __call__(self, snap: Snapshot) -> Numbers:
        rows = _rows(snap, self.count)
        logits = snap.logits[rows.example, rows.read].double()
        targets = snap.batch.targets[rows.example, rows.read]
        residue = rows.count % self.p
        everything, test = torch.ones_like(rows.train), ~rows.train
        train = everything if snap.split.train is None else rows.train
        shuffled = residue[torch.randperm(len(residue), generator=generator(0, "shuffled residues"))]

        def part(label: Tensor) -> Tensor:
            return class_means(logits, label, self.p)[0][label]

        def loss(outputs: Tensor, which: Tensor) -> float:
            return loss_named(snap.loss)(outputs[which], targets[which]).mean().item()

        kept, mean = part(residue), logits.mean(0)
        return {
            "restricted_loss": loss(kept, everything),
            "restricted_test_loss": loss(kept, test),
            "excluded_loss": loss(logits - kept + mean, train),
            "shuffled_excluded_loss": loss(logits - part(shuffled) + mean, train),
        }


@dataclass(frozen=True)
class ResidueSteering:
    """Turn the residue: add m_(r+1) - m_r to the stream after block `layer` where r is asked; what is answered then?

    turned_accuracy   share of held-out questions answered as residue r + 1 is to be answered, m_r fitted on the others
    random_accuracy   the same after a step of the same length in a random direction (drawn once): the null. Where two
                      residues share an answer (classify), always giving that one makes it high by itself
    unturned_accuracy agreement with that answer before anything was added

    The answer right for residue r is the commonest answer among the questions of residue r, so this needs a task whose
    answer the residue decides. Exact: the recogniser has turned_accuracy 1. layer: None for the last, from which only
    the unembedding follows; an earlier one says that later blocks read the code.
    """

    p: int
    count: str = "count"
    layer: int | None = None

    def __call__(self, snap: Snapshot) -> Numbers:
        rows = _rows(snap, self.count)
        model: Any = snap.model
        layers = model.n_layers
        layer = layers - 1 if self.layer is None else self.layer
        require(0 <= layer < layers, f"layer={self.layer}: this model has 0 to {layers - 1}")
        residue = rows.count % self.p
        targets = snap.batch.targets[rows.example, rows.read]
        train = _fitted_on(snap, rows)
        where = (
            rows.read
            if snap.batch.read is None
            else torch.tensor(snap.batch.read)[rows.read] % snap.batch.inputs.shape[1]
        )
        cache = snap.run_with_cache(f"blocks.{layer}.hook_resid_post")[1]
        stream = cache["resid_post", layer]
        x = stream[rows.example, where]
        means, _ = class_means(x[train], residue[train], self.p)
        answer = torch.stack([torch.bincount(targets[residue == r], minlength=1).argmax() for r in range(self.p)])
        step = means.roll(-1, 0)[residue] - means[residue]
        noise = F.normalize(torch.randn(x.shape[1], generator=generator(0, "steering")).to(x), dim=0)
        wanted = answer[(residue + 1) % self.p]

        def accuracy(added: Tensor) -> float:
            new = stream.clone()
            new[rows.example, where] += added
            with torch.no_grad():
                outputs = model.forward_from(layer + 1, new)[rows.example, where]
            return (outputs.argmax(-1) == wanted)[~train].double().mean().item()

        return {
            "turned_accuracy": accuracy(step),
            "random_accuracy": accuracy(step.norm(dim=1, keepdim=True) * noise),
            "unturned_accuracy": accuracy(torch.zeros_like(step)),
        }


@dataclass(frozen=True)
class CountingHeads:
    """Do heads count by even attention? At the asked positions, over the keys that are symbols of the string.

    evenness [layer, head]      entropy of the attention among the n >= 2 symbols, over log n, mean over questions
    on_symbols [layer, head]    attention on symbols altogether
    copies_count [layer, head]  squared correlation, over questions, of the count with the attention on counted symbols:
                                1 when the head's attention alone carries the count linearly

    position: the latent that says how many symbols there were, so the symbols are the keys where it grows. Both run
    along the string (MIU, automata), unlike a count that is known at the end only. Exact: the
    recogniser (classify) has evenness 1 and copies_count 1. Null: untrained weights attend almost evenly too, so
    evenness alone proves nothing.
    """

    count: str = "count"
    position: str = "position"

    def __call__(self, snap: Snapshot) -> Numbers:
        rows = _rows(snap, self.count)
        latents = snap.task.latents(snap.batch.inputs)
        symbol, counted = (_grows(latents[name].values) for name in (self.position, self.count))
        evenness, on_symbols, carried = [], [], []
        model: Any = snap.model
        for layer in range(model.n_layers):
            pattern = snap.site("pattern", layer).transpose(1, 2)[rows.example, rows.read].double()  # [n, head, key]
            keys = symbol[rows.example][:, None]
            total = (pattern * keys).sum(-1)
            among = pattern * keys / total.clamp(min=1e-12)[..., None]
            visible = ((pattern > 0) & keys).sum(-1)
            entropy = -torch.special.xlogy(among, among).sum(-1)
            many = visible >= 2
            evenness.append((entropy / visible.clamp(min=2).double().log() * many).sum(0) / many.sum(0))
            on_symbols.append(total.mean(0))
            ones = (pattern * counted[rows.example][:, None]).sum(-1)
            carried.append(_r2(ones, rows.count.double()))
        dims = ("layer", "head")
        columns = {"evenness": evenness, "on_symbols": on_symbols, "copies_count": carried}
        return {name: Labelled(torch.stack(values), dims) for name, values in columns.items()}


def _grows(values: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
    return (values > before.clamp(min=0)) & (values > 0)


def _r2(x: Float[Tensor, "n head"], y: Float[Tensor, " n"]) -> Float[Tensor, " head"]:
    """Squared correlation of every column with y."""
    x, y = x - x.mean(0), y - y.mean()
    return (x * y[:, None]).sum(0).square() / (x.square().sum(0) * y.square().sum()).clamp(min=1e-300)


@dataclass(frozen=True)
class TwinSensitivity:
    """Flip one symbol of a random string of the longest trained length, at every place in turn.

    twin_accuracy [place]  share of the twins answered right (their answers are known exactly)
    twin_change [place]    mean |change of P(theorem)|: flat over places for a counter, steep for one that reads the end
    n: strings, the same ones at every checkpoint. Only tasks with `ask`, `belief` and `lengths` (tasks/miu.py).
    Exact: the recogniser has twin_accuracy 1 everywhere, and twin_change flat to the sampling of strings.
    """

    n: int = 200

    def __call__(self, snap: Snapshot) -> Numbers:
        task = _asked_task(snap, self)
        size, g = task.lengths[1], generator(0, "twins")
        bodies = torch.randint(2, (self.n, size), generator=g)
        twins = torch.where(torch.eye(size, dtype=torch.bool)[:, None], 1 - bodies, bodies).flatten(0, 1)
        texts = ["M" + "".join("UI"[s] for s in row) for row in torch.cat([bodies, twins]).tolist()]
        batch = task.ask(texts)
        belief, right = _answered(snap, batch)
        before, after = belief[: self.n], belief[self.n :].view(size, self.n)
        place = {"place": list(range(size))}
        return {
            "twin_accuracy": Labelled(right[self.n :].view(size, self.n).mean(1), ("place",), place),
            "twin_change": Labelled((after - before).abs().mean(1), ("place",), place),
        }


@dataclass(frozen=True)
class TheoremBelief:
    """MU and its relatives: what a network that was never shown a string without I's says of them.

    p_theorem [string]        P(theorem | string), the task's `belief`: for the language the probability of the string
    slice_accuracy [slice]    accuracy on questions beyond the table (`task.slices`): MU^k, longer strings, other shares
                              of I, malformed strings; mean over asked positions
    length_accuracy [length]  accuracy on held-out strings of every trained length
    strings: asked by name. n: strings of each slice, the same ones at every checkpoint.
    Exact: the recogniser has P(Y) = e/(1 + e) on theorems and 1/(1 + e) on the others (logits 1 and 0), accuracy 1
    on every slice but malformed strings. A network that answers by the prior says 1/2 (balanced) or 2/3.
    """

    strings: tuple[str, ...] = ("MU", "MUU", "MUUU", "MIII", "MI", "MII")
    n: int = 400

    def __call__(self, snap: Snapshot) -> Numbers:
        task = _asked_task(snap, self)
        belief, _ = _answered(snap, task.ask(self.strings))
        slices = task.slices(self.n, generator(0, "slices"))
        accuracy = torch.stack([_answered(snap, batch)[1].mean() for batch in slices.values()])
        return {
            "p_theorem": Labelled(belief, ("string",), {"string": list(self.strings)}),
            "slice_accuracy": Labelled(accuracy, ("slice",), {"slice": list(slices)}),
            "length_accuracy": self._by_length(snap, task),
        }

    def _by_length(self, snap: Snapshot, task: Any) -> Labelled:
        low, high = task.lengths
        lengths = torch.arange(low, high + 1)
        test = snap.split.test
        right, counts = _right(snap.logits, snap.batch)
        size = task.latents(snap.batch.inputs)["position"].values.amax(1)
        of = (size[test, None] == lengths).double()
        accuracy = (right[test] @ of) / (counts[test] @ of)
        return Labelled(accuracy, ("length",), {"length": lengths.tolist()})


def _asked_task(snap: Snapshot, measure: object) -> Any:
    if not (hasattr(snap.task, "ask") and hasattr(snap.task, "belief")):
        raise UserError(f"{measure!r} asks a task about strings, and {snap.task!r} takes none; MIUStrings does")
    return snap.task


def _right(logits: Tensor, batch: Batch) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Right answers, and questions, of every row."""
    asked = torch.ones(batch.targets.shape) if batch.weight is None else (batch.weight > 0)
    right = (logits.argmax(-1) == batch.targets) * asked
    return right.double().sum(1), asked.double().sum(1)


def _answered(snap: Snapshot, batch: Batch) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """P(theorem) and the share of right answers of every row."""
    with torch.no_grad():
        logits = snap.model(batch.inputs, read=batch.read)
    right, asked = _right(logits, batch)
    return snap.task.belief(logits, batch.inputs), right / asked
