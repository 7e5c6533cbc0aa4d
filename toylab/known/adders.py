"""Modular adders with exact weights: the quadratic adder, a clock, a pizza, and decoys.

All are one-layer, one-head `Transformer`s without norm or positions. The residual stream has three parts:

    embed   cos w_k x and sin w_k x of the token (w_k = 2 pi k / p); the token "=" has zeros
    sum     written by the head: W_Q = W_K = 0, so attention is uniform, and the sum over the operands of `embed`
    out     written by the MLP: for each frequency the coordinates of (cos w_k(a+b), sin w_k(a+b)); W_U reads it on
            (cos w_k c, sin w_k c)

1. A neuron of frequency k computes act(cos(w a + phi_a) + cos(w b + phi_b)) and writes on cos(w c + phi_a + phi_b).
2. Squares, phases such that everything but cos w(a + b - c) cancels: `quadratic_adder` (6 neurons per frequency,
   after Gromov 2023, arXiv 2301.02679) and `clock_adder` (8: each product of two waves as a difference of squares).
   They need a and b apart, so the format is "a b": at the last position b is `embed` and a is `sum` - `embed`.
3. ReLU, phi_a = phi_b: `pizza_adder` (Zhong et al. 2023, arXiv 2306.17844), which needs the sum only: format "a b =".
4. Decoys: frequencies embedded but not read, frequencies in neurons that write nothing, each neuron twice,
   random weights, and a table that memorises its training pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import pi
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toylab.data import generator
from toylab.errors import require
from toylab.known import KnownModel
from toylab.models.transformer import ACTIVATIONS, DTYPES, Transformer, TransformerSpec
from toylab.tasks.modular import ModularArithmetic

Dtype = Literal["float32", "float64"]


@dataclass(frozen=True, eq=False)
class AdderTruth:
    """What is planted in an adder mod p.

    freqs:        the key frequencies: those in the logits. Empty for random weights and for a memorising table.
    amplitudes:   freq -> coefficient of cos w(a + b - c - phase) in the logits, averaged over a - b; exact.
    phases:       freq -> that phase (0: the answer is a + b).
    algorithm:    "clock" (logits do not depend on a - b), "pizza" (they do, as |cos w(a - b)/2|), "table" or "random".
    embedded:     every frequency in W_E, decoys too. All have unit amplitude.
    embedding_decoys: in W_E, read by nothing.
    neuron_decoys: in W_E and in neurons, whose output weights are zero.
    neuron_freq:  [d_mlp] frequency of each neuron; 0 = none.
    neuron_phase: [d_mlp, 2] phi_a and phi_b of cos(w a + phi_a) + cos(w b + phi_b).
    copy_of:      [d_mlp] the neuron that this one duplicates, itself if none.
    memorised:    [train] row numbers a*p + b that a table answers; every other pair gets equal logits.
    """

    p: int
    freqs: tuple[int, ...]
    amplitudes: dict[int, float]
    phases: dict[int, float]
    algorithm: str
    embedded: tuple[int, ...] = ()
    embedding_decoys: tuple[int, ...] = ()
    neuron_decoys: tuple[int, ...] = ()
    neuron_freq: Int[Tensor, " m"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    neuron_phase: Float[Tensor, "m 2"] = field(default_factory=lambda: torch.zeros(0, 2))
    copy_of: Int[Tensor, " m"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    memorised: Int[Tensor, " train"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


@dataclass(frozen=True)
class AdderDecoys:
    """What to add to an adder without changing one logit.

    embedding: frequencies that are embedded and read by nothing.
    neurons:   frequencies that get neurons like the others, whose output is zero.
    copies:    every neuron this many times, each copy with its share of the output.
    """

    embedding: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    copies: int = 1


NO_DECOYS = AdderDecoys()


def quadratic_adder(
    p: int,
    freqs: Sequence[int],
    amplitudes: Sequence[float] | None = None,
    phase: float = 0.0,
    decoys: AdderDecoys = NO_DECOYS,
    dtype: Dtype = "float64",
) -> KnownModel:
    """logits = sum_k amplitude_k cos w_k(a + b - c), exactly, with 6 squares per frequency.

    phi_a = 2 pi j/6 + phase and phi_b = -4 pi j/6 + phase, j = 0..5 (phase shifts all of them alike). Every other
    product has a phase that turns a whole number of times over j and cancels. amplitudes: 1 each if None.
    """
    turn = 2 * pi * torch.arange(6).double() / 6
    phases = torch.stack([turn + phase, -2 * turn + phase], 1)
    about = "logits are a sum of cosines of a + b - c, with 6 squared neurons per frequency; no dependence on a - b"
    return _squares("quadratic adder", p, freqs, amplitudes, phases, decoys, dtype, about)


def clock_adder(
    p: int,
    freqs: Sequence[int],
    amplitudes: Sequence[float] | None = None,
    decoys: AdderDecoys = NO_DECOYS,
    dtype: Dtype = "float64",
) -> KnownModel:
    """The clock written as in Nanda et al. 2023: cos w(a+b) = cos cos - sin sin, sin w(a+b) = sin cos + cos sin.

    Each product x y is ((x + y)^2 - (x - y)^2) / 4, so 8 neurons per frequency, and
    logits = sum_k amplitude_k cos w_k(a + b - c) exactly.
    """
    # cos(x + 0) and cos(x - pi/2) = sin x for a; the same and their negatives for b.
    phases = -pi / 2 * torch.cartesian_prod(torch.arange(2), torch.tensor([0, 2, 1, -1])).double()
    about = "multiplies the waves of a and b by differences of squares, 8 neurons per frequency; a clock"
    return _squares("clock", p, freqs, amplitudes, phases, decoys, dtype, about)


def pizza_adder(
    p: int,
    freqs: Sequence[int],
    amplitudes: Sequence[float] | None = None,
    n_angles: int = 8,
    decoys: AdderDecoys = NO_DECOYS,
    dtype: Dtype = "float64",
) -> KnownModel:
    """logits = sum_k |cos w_k(a - b)/2| cos w_k(a + b - c) up to a factor, with 2 n_angles ReLUs per frequency.

    The head's sum is 2 cos(w(a - b)/2) times the unit vector at angle w(a + b)/2. Neurons are its parts along the
    angles theta_g = pi g/n_angles and their opposites, so pairs of them give |.|, and
        sum_g |cos(theta_g - x)| cos(2 theta_g - w c) = (2 n_angles / 3 pi) cos(2x - w c) + aliases ~ n_angles^-2.
    amplitudes: of cos w_k(a + b - c) averaged over a - b, 1 each if None. Accuracy 1 from n_angles = 5 on.
    p must be odd: with a - b = p/2 the sum is zero and nothing can be said about a + b.
    """
    require(p % 2 == 1, f"p={p} is even: a pizza gives equal logits where a - b = p/2; take an odd modulus")
    require(n_angles >= 3, f"n_angles={n_angles}: at least 3 directions are needed; 5 and more are always right")
    theta = pi * torch.arange(n_angles).double() / n_angles
    phi = -torch.cat([theta, theta + pi])
    about = (
        f"averages a and b, takes |.| along {n_angles} directions; logits weaken where a and b are opposite; a pizza"
    )
    return _adder(
        "pizza", p, freqs, amplitudes, torch.stack([phi, phi], 1), "relu", "a b =", decoys, dtype, about, "pizza"
    )


def random_adder(p: int, d_model: int, d_mlp: int, seed: int, dtype: Dtype = "float64") -> KnownModel:
    """An untrained transformer of the usual kind: the null every tool must stay near."""
    spec = TransformerSpec(1, 4, d_model, max(1, d_model // 4), d_mlp, init="nanda", dtype=dtype)
    task = _task(p, "a b =")
    model = spec.build(task, generator(seed, "init"))
    truth = AdderTruth(p, (), {}, {}, "random")
    return KnownModel(f"random mod {p}", model, task, truth, "random weights: no key frequency, no circuit")


def memoriser(task: ModularArithmetic, seed: int, scale: float = 20.0, dtype: Dtype = "float64") -> KnownModel:
    """A lookup table: one ReLU neuron per training pair of split(seed), 1 on that pair and 0 on every other.

    Tokens are embedded one-hot; neuron (x, y) is relu(1[a = x] + 1[b = y] - 1) and writes `scale` on the answer the
    task gives, shuffled or noisy ones too. Training accuracy 1; on any other pair all logits are 0, so the loss there
    is exactly ln p. The sums it memorises have equal power at every frequency: structure-like, and nothing to find.
    """
    require(
        task.format == "a b", f'format={task.format!r}: the table is built for "a b", where a and b can be told apart'
    )
    split, p = task.split(seed), task.p
    rows = split.train
    assert rows is not None
    a, b = task.decode(split.all.inputs[rows]).unbind(1)
    spec = TransformerSpec(
        1,
        1,
        3 * p,
        p,
        len(rows),
        positions="none",
        biases=("in",),
        dtype=dtype,
    )
    one_hot = torch.eye(p, dtype=DTYPES[dtype])
    in_a, in_b, out = one_hot[a].T, one_hot[b].T, scale * one_hot[split.all.targets[rows, 0]]
    model = _wire(spec, task, one_hot, in_a, in_b, out, one_hot, bias=-1.0)
    truth = AdderTruth(p, (), {}, {}, "table", memorised=rows)
    about = f"a table of {len(rows):,} pairs, right on those and uniform elsewhere; no frequency is key"
    return KnownModel(f"memoriser mod {p}", model, task, truth, about)


# --- Assembly --------------------------------------------------------------------------------------------------------


def _squares(name, p, freqs, amplitudes, phases, decoys, dtype, about) -> KnownModel:
    return _adder(name, p, freqs, amplitudes, phases, "quadratic", "a b", decoys, dtype, about, "clock")


def _adder(
    name: str,
    p: int,
    freqs: Sequence[int],
    amplitudes: Sequence[float] | None,
    phases: Float[Tensor, "j 2"],
    act: str,
    format: str,
    decoys: AdderDecoys,
    dtype: Dtype,
    about: str,
    algorithm: str,
) -> KnownModel:
    """Neurons with these phases for every frequency, each writing on cos(w c + phi_a + phi_b) of its own."""
    amplitudes = [1.0] * len(freqs) if amplitudes is None else list(amplitudes)
    _check(p, freqs, amplitudes, decoys)
    with_neurons = [*freqs, *decoys.neurons]
    embedded = [*with_neurons, *decoys.embedding]
    n_phases, copies = len(phases), decoys.copies

    # Neurons in the order copy, frequency, phase.
    slot = torch.arange(len(with_neurons)).repeat_interleave(n_phases).repeat(copies)
    phase = phases.repeat(len(with_neurons) * copies, 1)
    gains = [_gain(p, k, phases, act) for k in with_neurons]
    wanted = torch.tensor([*amplitudes, *[0.0] * len(decoys.neurons)], dtype=torch.float64)
    size = wanted / torch.tensor(gains, dtype=torch.float64) / copies
    in_a, in_b, out = (torch.zeros(len(slot), 2 * len(embedded)).double() for _ in range(3))
    neuron = torch.arange(len(slot))
    for x, angle in ((in_a, phase[:, 0]), (in_b, phase[:, 1]), (out, phase.sum(1))):
        # cos(w x + phi) = cos phi cos w x - sin phi sin w x
        x[neuron, 2 * slot], x[neuron, 2 * slot + 1] = angle.cos(), -angle.sin()
    out *= size[slot, None]

    waves = torch.stack([f(_angles(p, k)) for k in embedded for f in (torch.cos, torch.sin)], 1)
    task = _task(p, format)
    spec = _spec(waves.shape[1], len(slot), act, (), dtype)
    model = _wire(spec, task, waves, in_a.T, in_b.T, out, waves.T)
    truth = AdderTruth(
        p=p,
        freqs=tuple(sorted(freqs)),
        amplitudes=dict(zip(freqs, amplitudes, strict=True)),
        phases=dict.fromkeys(freqs, 0.0),
        algorithm=algorithm,
        embedded=tuple(sorted(embedded)),
        embedding_decoys=tuple(decoys.embedding),
        neuron_decoys=tuple(decoys.neurons),
        neuron_freq=torch.tensor(with_neurons)[slot],
        neuron_phase=phase,
        copy_of=neuron % (len(with_neurons) * n_phases),
    )
    return KnownModel(f"{name} mod {p}", model, task, truth, about)


def _gain(p: int, k: int, phases: Float[Tensor, "j 2"], act: str) -> float:
    """Amplitude of cos w(a + b - c) that these neurons give when each writes 1 on cos(w c + phi_a + phi_b).

    Neuron j's part on that wave is the mean over pairs of N_j cos(w(a + b) + phi_a + phi_b), here taken over the table.
    Squares: n_phases/2, as their cross term 2 cos cos = cos(sum) + cos(difference) has coefficient 1.
    ReLUs of a pizza with G angles: (4G/3 pi) * mean |cos w d/2| up to harmonics that wrap around mod p, and that
    mean over d is 1/(p sin(pi/2p)).
    """
    x = _angles(p, k)
    phi_a, phi_b = phases.unbind(1)
    post = ACTIVATIONS[act]((x[:, None] + phi_a).cos()[:, None] + (x[:, None] + phi_b).cos())  # [a, b, j]
    wave = (x[:, None, None] + x[:, None] + phi_a + phi_b).cos()
    return float((post * wave).sum(-1).mean())


def _angles(p: int, k: int) -> Float[Tensor, " p"]:
    """2 pi k x / p; k x is reduced mod p in integers first, so that the waves are right to the last digits."""
    return 2 * pi * (k * torch.arange(p) % p).double() / p


def _spec(d: int, d_mlp: int, act: str, biases: tuple[str, ...], dtype: Dtype) -> TransformerSpec:
    return TransformerSpec(
        n_layers=1,
        n_heads=1,
        d_model=3 * d,
        d_head=d,
        d_mlp=d_mlp,
        act=act,
        positions="none",
        biases=biases,
        dtype=dtype,
    )


def _wire(
    spec: TransformerSpec,
    task: ModularArithmetic,
    embed: Float[Tensor, "p d"],
    in_a: Float[Tensor, "d m"],
    in_b: Float[Tensor, "d m"],
    out: Float[Tensor, "m d"],
    unembed: Float[Tensor, "d p"],
    bias: float | None = None,
) -> Transformer:
    """Neurons act(in_a . embed(a) + in_b . embed(b) + bias), read at the last position, writing `out` for `unembed`."""
    model = Transformer(spec, d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_out=task.d_out)
    weights = model.state_dict()  # shares memory with the parameters, which are zero
    d = embed.shape[1]
    weights["W_E"][: task.p, :d] = embed
    weights["W_V"][0, 0, :d] = torch.eye(d)
    # Uniform attention averages over all n_ctx positions ("=" adds zeros); this turns the mean into the sum.
    weights["W_O"][0, 0, :, d : 2 * d] = task.n_ctx * torch.eye(d)
    if task.format == "a b":
        weights["W_in"][0, :d] = in_b - in_a
    else:
        assert torch.equal(in_a, in_b), "at '=' only the sum of the two embeddings can be read"
    weights["W_in"][0, d : 2 * d] = in_a
    weights["W_out"][0, :, 2 * d :] = out
    weights["W_U"][2 * d :] = unembed
    if bias is not None:
        weights["b_in"].fill_(bias)
    return model


def _task(p: int, format: str) -> ModularArithmetic:
    return ModularArithmetic(p=p, operation="x+y", frac_train=0.3, format=format)


def _check(p: int, freqs: Sequence[int], amplitudes: Sequence[float], decoys: AdderDecoys) -> None:
    every = [*freqs, *decoys.neurons, *decoys.embedding]
    require(len(freqs) > 0, "freqs is empty: name at least one key frequency, such as (14, 35, 41, 42, 52) for p = 113")
    for k in every:
        require(1 <= k <= (p - 1) // 2, f"frequency {k} is outside 1..{(p - 1) // 2} for p={p} (k and p - k are one)")
    require(len(set(every)) == len(every), f"frequencies {every} (keys, neuron and embedding decoys) repeat one")
    require(
        len(amplitudes) == len(freqs), f"{len(amplitudes)} amplitudes for {len(freqs)} frequencies; give one for each"
    )
    require(decoys.copies >= 1, f"copies={decoys.copies}: 1 (no duplicate) or more")


# Every adder at the size it is shown and tested with, mod 31. An exam runs over all of them.
ADDERS: dict[str, Callable[[], KnownModel]] = {
    "clock": lambda: clock_adder(31, (5,)),
    "clock, 3 frequencies, decoys": lambda: clock_adder(31, (3, 7, 11), (1.0, 2.0, 1.5), AdderDecoys((2,), (9,))),
    "quadratic adder, copies": lambda: quadratic_adder(31, (4, 13), decoys=AdderDecoys((6,), (10,), copies=2)),
    "pizza": lambda: pizza_adder(31, (5,)),
    "pizza, 3 frequencies, decoys": lambda: pizza_adder(
        31, (3, 7, 11), (1.0, 2.0, 1.5), decoys=AdderDecoys((2,), (9,))
    ),
    "memoriser": lambda: memoriser(clock_adder(31, (5,)).task, 0),  # type: ignore[arg-type]
    "random adder": lambda: random_adder(31, 32, 64, seed=1),
}
