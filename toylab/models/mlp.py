"""An embedding MLP for tuples of tokens: the other model that groks modular and group arithmetic.

    x = [W_E[a], W_E[b]]   h = act(x @ W_in + b_in)   logits = h @ W_U + b_U

Chughtai et al. 2023 (arXiv 2302.03025, appendix C): d_embed 256, embed separate, combine concat, d_mlp 128, relu, no
biases. Gromov 2023 (arXiv 2301.02679): d_embed 0, so that the tokens enter as one-hot vectors, d_mlp 500, quadratic,
no biases. It answers once per tuple, so its outputs have one position: [batch, 1, d_out], and read=(-1,) fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toylab.errors import one_of, require
from toylab.models.transformer import ACTIVATIONS, DTYPES, affine
from toylab.taps import Tap, Tapped, no_tap

EMBEDS = ("shared", "separate")
COMBINES = ("concat", "sum")
BIASES = ("in", "U")


@dataclass(frozen=True)
class MLPSpec:
    """Everything about the MLP except the sizes that come from its task (d_vocab, n_ctx, d_out, operand_positions).

    d_embed: 0 = no embedding: the tokens are one-hot, W_in holds one table [d_vocab, d_mlp] per operand.
    embed:   one table W_E for all operands (shared), or one each (separate). Without meaning when d_embed is 0.
    combine: the operands' vectors side by side (concat), or added (sum: with a shared table the order is lost).
    biases:  which of in, U exist (zero at the start).
    init:    fan_in: N(0, 1/rows) for W_in and W_U, N(0, 1/d_embed) for W_E. Times init_scale.
    """

    d_embed: int
    d_mlp: int
    act: str
    embed: str = "shared"
    combine: str = "concat"
    biases: tuple[str, ...] = ()
    init: Literal["fan_in"] = "fan_in"
    init_scale: float = 1.0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self):
        require(self.d_embed >= 0, f"d_embed={self.d_embed}: 0 (one-hot tokens) or more")
        require(self.d_mlp >= 1, f"d_mlp={self.d_mlp}: at least 1 is needed")
        one_of("act", self.act, ACTIVATIONS)
        one_of("embed", self.embed, EMBEDS)
        one_of("combine", self.combine, COMBINES)
        one_of("init", self.init, ("fan_in",))
        one_of("dtype", self.dtype, DTYPES)
        for bias in self.biases:
            one_of("biases", bias, BIASES)
        require(self.init_scale >= 0, f"init_scale={self.init_scale}: 0 or more")

    def build(self, task, generator: torch.Generator) -> MLP:
        """A freshly initialised model that reads the task's `operand_positions`, or every position if it names none."""
        require(
            hasattr(task, "d_vocab"),
            f"{type(task).__name__} has no tokens (no d_vocab): this MLP needs a token task; "
            "vector tasks go with a model made for them",
        )
        read = task.sample(1, torch.Generator()).read
        require(
            read is not None and len(read) == 1,
            f"{type(task).__name__} asks for answers at {'every position' if read is None else len(read)}"
            f"{'' if read is None else ' positions'}; this MLP gives one per row: use a transformer",
        )
        positions = list(getattr(task, "operand_positions", range(task.n_ctx)))
        model = MLP(self, d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_out=task.d_out, positions=positions)
        model.initialise(generator)
        return model


class MLP(Tapped):
    """The model an MLPSpec describes; weights are zero until `initialise` or `load_state_dict`.

    W_E [d_vocab, d_embed], or [operand, d_vocab, d_embed] when separate. W_in [layer=1, operand * width, d_mlp] with
    width = d_embed or d_vocab (one block of `width` rows when combined by sum), b_in [layer=1, d_mlp]. W_U, b_U.
    """

    n_layers = 1
    W_E: Tensor  # None when d_embed is 0
    W_in: Tensor
    b_in: Tensor | None
    W_U: Tensor
    b_U: Tensor | None

    def __init__(self, spec: MLPSpec, d_vocab: int, n_ctx: int, d_out: int, positions: list[int]):
        super().__init__()
        self.spec, self.d_vocab, self.n_ctx, self.d_out, self.positions = spec, d_vocab, n_ctx, d_out, positions
        self.d_model, self.d_mlp = spec.d_embed, spec.d_mlp
        rows = (spec.d_embed or d_vocab) * (len(positions) if spec.combine == "concat" else 1)
        shapes: dict[str, tuple[int, ...]] = {}
        if spec.d_embed:
            tables = (len(positions),) if spec.embed == "separate" else ()
            shapes["W_E"] = (*tables, d_vocab, spec.d_embed)
        shapes |= {"W_in": (1, rows, spec.d_mlp), "W_U": (spec.d_mlp, d_out)}
        bias_shapes = {"in": (1, spec.d_mlp), "U": (d_out,)}
        shapes |= {f"b_{name}": bias_shapes[name] for name in BIASES if name in spec.biases}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=DTYPES[spec.dtype])))
        for name in ("W_E", "b_in", "b_U"):
            if name not in shapes:
                setattr(self, name, None)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every W_ in the order of `parameters()`; biases 0."""
        for name, p in self.named_parameters():
            if name.startswith("W_"):
                fan_in = p.shape[-1] if name == "W_E" else p.shape[-2]
                # Drawn in float32 whatever the dtype, so that a float64 model starts from the same numbers.
                p.copy_(torch.randn(p.shape, generator=generator) * (fan_in**-0.5 * self.spec.init_scale))

    def forward(self, tokens: Int[Tensor, "batch pos"], tap: Tap = no_tap) -> Float[Tensor, "batch 1 d_out"]:
        """Logits of each tuple, as one position."""
        require(
            tokens.shape[1] == self.n_ctx,
            f"{tokens.shape[1]} positions arrived; this model reads tuples of {self.n_ctx}",
        )
        operands = tokens[:, self.positions]
        pre = self._hidden(operands, tap) if self.W_E is not None else self._hidden_of_one_hot(operands)
        if self.b_in is not None:
            pre = pre + self.b_in[0]
        post = tap("post", 0, ACTIVATIONS[self.spec.act](tap("pre", 0, pre.unsqueeze(1))))
        return affine(post, self.W_U, self.b_U)

    def _hidden(self, operands: Tensor, tap: Tap) -> Tensor:
        """Embedded operands times W_in: [batch, d_mlp]."""
        if self.spec.embed == "separate":
            embed = self.W_E[torch.arange(operands.shape[1], device=operands.device), operands]
        else:
            embed = self.W_E[operands]
        embed = tap("embed", None, embed)
        return (embed.flatten(1) if self.spec.combine == "concat" else embed.sum(1)) @ self.W_in[0]

    def _hidden_of_one_hot(self, operands: Tensor) -> Tensor:
        """One-hot operands times W_in, by looking up the rows they select: [batch, d_mlp]."""
        if self.spec.combine == "concat":
            operands = operands + self.d_vocab * torch.arange(operands.shape[1], device=operands.device)
        return self.W_in[0][operands].sum(1)

    def example_input(self) -> Tensor:
        return torch.zeros(1, self.n_ctx, dtype=torch.long, device=self.W_in.device)

    def __repr__(self) -> str:
        s = self.spec
        embed = f"{s.embed} embedding {s.d_embed}" if s.d_embed else "one-hot tokens"
        return (
            f"MLP({embed}, {s.combine} of positions {', '.join(map(str, self.positions))}, d_mlp {s.d_mlp} {s.act}; "
            f"d_vocab {self.d_vocab}, n_ctx {self.n_ctx}, d_out {self.d_out}; {self.n_params():,} parameters)"
        )
