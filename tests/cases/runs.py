"""Small experiments that train in a fraction of a second, and the files a run leaves, for every test of runs."""

import dataclasses
import hashlib
import json
from pathlib import Path

from toylab.experiment import Experiment, Tracked, TrainSpec
from toylab.measures.basic import LogitStats, Loss, WeightNorms
from toylab.models.superposition import SuperpositionSpec
from toylab.models.transformer import TransformerSpec
from toylab.optim import OptimSpec
from toylab.tasks.induction import RepeatedTokens
from toylab.tasks.modular import ModularArithmetic
from toylab.tasks.superposition import SparseFeatures

ADDITION = ModularArithmetic(p=7, operation="x+y", frac_train=0.5)
MODEL = TransformerSpec(n_layers=1, n_heads=2, d_model=16, d_head=8, d_mlp=32)
ADAMW = OptimSpec("adamw", lr=1e-2, weight_decay=1.0)
STEPS = TrainSpec(steps=60, checkpoints=("every:10", 5), eval_every=5, keep_states=2, threads=1)
MEASURES = {"norms": Tracked(WeightNorms(), 10), "logits": Tracked(LogitStats(), 15), "loss": Tracked(Loss(), 20)}

FULL_BATCH = Experiment("tiny", 0, ADDITION, MODEL, ADAMW, "cross_entropy", STEPS, MEASURES)
MINIBATCH = dataclasses.replace(FULL_BATCH, name="mini", train=dataclasses.replace(STEPS, batch_size=8))
STREAMING = dataclasses.replace(
    MINIBATCH, name="stream", task=RepeatedTokens(d_tokens=6, length=3, n_test=32), loss="stablemax"
)
VECTORS = dataclasses.replace(
    MINIBATCH,
    name="vectors",
    task=SparseFeatures(n_features=5, sparsity=0.5, importance_decay=0.9, n_test=32),
    model=SuperpositionSpec("relu_out", 2),
    optim=OptimSpec("adam", lr=1e-2, weight_decay=0.0),
    loss="mse",
)


def with_train(experiment: Experiment, **changes) -> Experiment:
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))


BFLOAT16 = with_train(STREAMING, precision="bfloat16")
KINDS = {
    "full batch": FULL_BATCH,
    "minibatch": MINIBATCH,
    "streaming": STREAMING,
    "vectors": VECTORS,
    "bfloat16": BFLOAT16,
}


# About a second of work that saves every few steps, so that a random moment is often within a write.
LONG = with_train(FULL_BATCH, steps=300, checkpoints=("every:3",), eval_every=7)


def overrides(runs: Path, *more: str) -> list[str]:
    """FULL_BATCH, without its measures, as the command line says it."""
    return [
        "task.p=7",
        "task.frac_train=0.5",
        "model.n_heads=2",
        "model.d_model=16",
        "model.d_head=8",
        "model.d_mlp=32",
        "optim.lr=1e-2",
        "train.steps=60",
        "train.eval_every=5",
        "train.checkpoints=['every:10',5]",
        "train.keep_states=2",
        "train.threads=1",
        "name=tiny",
        f"runs={runs}",
        *more,
    ]


def bits(path: Path) -> dict[str, str]:
    """Hash of everything that a resumed run must share with an uninterrupted one: checkpoints, manifest, metrics."""
    files = [*sorted((path / "checkpoints").iterdir()), path / "manifest.jsonl", path / "metrics.jsonl"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def edit_manifest(path: Path, change) -> None:
    """Pass every line of a run's manifest, as a dictionary, through `change`; None drops it."""
    file = path / "manifest.jsonl"
    lines = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def flip_bit(file: Path, byte: int = -10) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(bytes(data))
