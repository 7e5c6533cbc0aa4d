"""Small models with the task each one is built for: every choice of every spec occurs at least once."""

import pytest
import torch

from toylab.models.mlp import MLPSpec
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.tasks.induction import RepeatedTokens
from toylab.tasks.miu import MIUStrings
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures

ADDITION = ModularArithmetic(p=5, operation="x+y", frac_train=0.3)
SUM_OF_THREE = ModularArithmetic(p=3, operation="x+y", frac_train=0.3, n_operands=3, format="a o b =")
STRINGS = MIUStrings(format="classify", lengths=(1, 4), longest=6, frac_train=0.5, balanced=False)
REPEATED = RepeatedTokens(d_tokens=6, length=3)
FEATURES = SparseFeatures(n_features=5, sparsity=0.5, importance_decay=0.9)
ABSOLUTE = SparseFeatures(n_features=5, sparsity=0.5, importance_decay=0.9, target="abs")


def spec(**changes) -> TransformerSpec:
    """A tiny transformer, exact enough for equality tests; sizes differ, so that a mixed-up axis cannot hide."""
    sizes = {"n_layers": 1, "n_heads": 3, "d_model": 8, "d_head": 4, "d_mlp": 10, "dtype": "float64"}
    return TransformerSpec(**(sizes | changes))


ALL_BIASES = ("Q", "K", "V", "O", "in", "out", "U")
ATTENTION_BIASES = ("Q", "K", "V", "O")

TRANSFORMERS = [
    pytest.param(spec(), ADDITION, id="one layer, no norm"),
    pytest.param(
        spec(norm="LN", biases=ALL_BIASES, act="gelu", attention="bidirectional"), ADDITION, id="LN, bidirectional"
    ),
    pytest.param(
        spec(n_layers=2, norm="LN", positions="rotary", biases=ALL_BIASES, act="silu"), REPEATED, id="2 layers, rotary"
    ),
    pytest.param(
        spec(n_layers=2, norm="LNPre", positions="sinusoidal", act="solu", d_model=7, init="gpt2"),
        REPEATED,
        id="2 layers, LNPre, sinusoids of odd width",
    ),
    pytest.param(
        spec(n_layers=2, norm="RMS", positions="none", biases=("O", "U"), act="quadratic"), REPEATED, id="2 layers, RMS"
    ),
    pytest.param(
        spec(norm="RMSPre", positions="rotary", attention="bidirectional", biases=("Q", "out"), act="identity"),
        SUM_OF_THREE,
        id="RMSPre, rotary, bidirectional",
    ),
    pytest.param(spec(d_mlp=0, biases=(), init="nanda", norm="none"), ADDITION, id="attention only"),
    pytest.param(
        spec(n_layers=2, d_mlp=0, norm="LN", biases=ATTENTION_BIASES, positions="sinusoidal"),
        REPEATED,
        id="2 layers, attention only, LN",
    ),
    pytest.param(
        spec(n_layers=3, tied=True, norm="RMSPre", attn_scale=1.5, biases=("K", "V", "in")),
        REPEATED,
        id="3 layers, tied",
    ),
    pytest.param(
        spec(tied=True, attention_rate=0.4, n_heads=1, biases=("in", "U")), ADDITION, id="tied, half constant"
    ),
    pytest.param(
        spec(positions="sinusoidal", attention_rate=0.0, norm="RMS", attention="bidirectional", biases=ALL_BIASES),
        SUM_OF_THREE,
        id="constant attention",
    ),
    pytest.param(spec(positions="none", norm="LNPre", attention="bidirectional"), ADDITION, id="no positions"),
]

MLPS = [
    pytest.param(MLPSpec(8, 10, "relu", embed="separate", dtype="float64"), ADDITION, id="mlp of Chughtai et al."),
    pytest.param(MLPSpec(0, 10, "quadratic", dtype="float64"), ADDITION, id="mlp of Gromov"),
    pytest.param(
        MLPSpec(8, 10, "gelu", combine="sum", biases=("in", "U"), dtype="float64"), SUM_OF_THREE, id="mlp of a sum"
    ),
    pytest.param(
        MLPSpec(8, 10, "silu", embed="separate", combine="sum", biases=("U",), dtype="float64"),
        SUM_OF_THREE,
        id="mlp of a sum of separate tables",
    ),
    pytest.param(MLPSpec(0, 10, "relu", combine="sum", biases=("in",), dtype="float64"), STRINGS, id="bag of tokens"),
    pytest.param(MLPSpec(4, 10, "relu", dtype="float64"), STRINGS, id="mlp of every position"),
]

SUPERPOSITIONS = [
    pytest.param(SuperpositionSpec("linear", 2, dtype="float64"), FEATURES, id="linear"),
    pytest.param(SuperpositionSpec("relu_out", 2, dtype="float64"), FEATURES, id="relu_out"),
    pytest.param(SuperpositionSpec("relu_hidden", 3, init_std=0.5, dtype="float64"), FEATURES, id="relu_hidden"),
    pytest.param(SuperpositionSpec("absolute", 7, dtype="float64"), ABSOLUTE, id="absolute"),
]

MODELS = [*TRANSFORMERS, *MLPS, *SUPERPOSITIONS]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scrambled(spec, task, seed: int = 0):
    """A built model with every parameter random, also those that start at 0 or 1, so that none can be ignored."""
    model = spec.build(task, rng(seed))
    g = rng(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.6)
    return model
