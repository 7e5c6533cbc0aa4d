"""One full-batch training step at p = 113: toylab against a plain transformer, and against TransformerLens 4.

    python tests/bench/bench_step.py [--rounds 15] [--threads N]

1 layer, 4 heads, d_model 128, 512 ReLU neurons, 3,830 rows, cross-entropy in float64, AdamW lr 1e-3, weight decay 1.
    toylab             Trainer.advance: read position only, tables over (position, token), fused AdamW
    plain PyTorch      the same function as one would write it first, below; torch.optim.AdamW as it comes
    TransformerLens 4  TransformerBridge.boot_native on the same weights, torch.optim.AdamW (where it is installed)
All start from the same weights. First their losses over 100 steps are compared in float64, where the same function must
give the same numbers (float32 rounding grows under AdamW, to about 1e-4 within 40 steps: that is shown, not judged).
Then they take turns in float32, one step each.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from toylab.experiment import Experiment, TrainSpec
from toylab.models.interop import to_transformer_lens
from toylab.models.transformer import Transformer, TransformerSpec
from toylab.optim import OptimSpec
from toylab.tasks.modular import ModularArithmetic
from toylab.train import Trainer

OPTIM = OptimSpec("adamw", lr=1e-3, weight_decay=1.0, warmup=0)
EXPERIMENT = Experiment(
    name="bench",
    seed=0,
    task=ModularArithmetic(113, "x+y", 0.3),
    model=TransformerSpec(n_layers=1, n_heads=4, d_model=128, d_head=32, d_mlp=512),
    optim=OPTIM,
    loss="cross_entropy",
    train=TrainSpec(steps=1000, checkpoints=("log:2",)),
)
Step = Callable[[], float]


class Plain(nn.Module):
    """A one-layer transformer with every position computed and nothing rearranged."""

    def __init__(self, model: Transformer):
        super().__init__()
        for name, p in model.named_parameters():
            setattr(self, name, nn.Parameter(p.detach().clone().squeeze(0) if p.shape[0] == 1 else p.detach().clone()))
        self.register_buffer("mask", torch.ones(model.n_ctx, model.n_ctx, dtype=torch.bool).triu(1))

    def forward(self, tokens):
        x = self.W_E[tokens] + self.W_pos
        q, k, v = (torch.einsum("bpd,hde->bphe", x, W) for W in (self.W_Q, self.W_K, self.W_V))
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5
        pattern = scores.masked_fill(self.mask, -torch.inf).softmax(-1)
        z = torch.einsum("bhqk,bkhe->bqhe", pattern, v)
        x = x + torch.einsum("bqhe,hed->bqd", z, self.W_O)
        x = x + torch.relu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out
        return x @ self.W_U


def steps_of(model: nn.Module, trained: list[nn.Parameter], tokens, answers) -> Step:
    optimiser = torch.optim.AdamW(trained, lr=OPTIM.lr, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay)

    def step() -> float:
        loss = F.cross_entropy(model(tokens)[:, -1].double(), answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def bridge(model: Transformer) -> tuple[nn.Module, list[nn.Parameter]]:
    """The same weights as a TransformerBridge; what it has beyond them (further biases, at zero) is not trained."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    s = model.spec
    config = TransformerBridgeConfig(
        architecture="TransformerLensNative",
        d_model=s.d_model, d_head=s.d_head, n_heads=s.n_heads, n_layers=s.n_layers, d_mlp=s.d_mlp,
        n_ctx=model.n_ctx, d_vocab=model.d_vocab, d_vocab_out=model.d_out, act_fn=s.act,
        normalization_type=None, positional_embedding_type="standard", attention_dir=s.attention,
    )  # fmt: skip
    made = TransformerBridge.boot_native(config).to(model.W_E.dtype)
    made.load_state_dict(convert_tl_checkpoint(to_transformer_lens(model), config), strict=True)
    ours = [n for n, _ in made.named_parameters() if not n.endswith(("bias", "b_Q", "b_K", "b_V", "b_O", "b_U"))]
    ours += [n for n, _ in made.named_parameters() if "mlp" in n and n not in ours]
    trained = []
    for name, p in made.named_parameters():
        p.requires_grad_(name in ours)
        trained += [p] if name in ours else []
    assert sum(p.numel() for p in trained) == model.n_params(), [n for n, _ in made.named_parameters()]
    return made.train(), trained


def contestants(dtype: str = "float32") -> dict[str, Step]:
    experiment = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(EXPERIMENT.model, dtype=dtype))
    trainer, start = Trainer(experiment), Trainer(experiment).model
    batch = trainer.split.train_batch
    data = (batch.inputs, batch.targets[:, 0])
    plain = Plain(start)
    found: dict[str, Step] = {
        "toylab": trainer.advance,
        "plain PyTorch": steps_of(plain, list(plain.parameters()), *data),
    }
    try:
        import transformer_lens  # noqa: F401
    except ImportError:
        return found
    return found | {"TransformerLens 4": steps_of(*bridge(start), *data)}


def losses_apart(steps: int, dtype: str) -> dict[str, float]:
    """Largest relative difference of each contestant's losses from toylab's over this many steps."""
    curves = {name: [step() for _ in range(steps)] for name, step in contestants(dtype).items()}
    ours = curves.pop("toylab")
    return {n: max(abs(a - b) / abs(a) for a, b in zip(ours, c, strict=True)) for n, c in curves.items()}


def gflops(rows: int, inner: int, columns: int, repeats: int = 20) -> float:
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2e-9 * rows * inner * columns / min(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--check", type=int, default=100, help="steps over which losses are compared")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    rows = len(Trainer(EXPERIMENT).split.train_batch)
    peak = {f"{rows} x {i} x {o}": gflops(rows, i, o) for i, o in [(128, 128), (128, 512), (512, 128), (128, 113)]}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; matmul GFLOP/s in float32:")
    print("  " + ", ".join(f"{shape}: {value:.0f}" for shape, value in peak.items()))

    apart = losses_apart(args.check, "float64")
    single = losses_apart(args.check, "float32")
    for name, value in apart.items():
        print(
            f"losses of {name} over {args.check} steps, relative to toylab's: within {value:.1e} in float64, "
            f"{single[name]:.1e} in float32"
        )
        assert value <= 1e-5, f"{name} does not train the same function"
    if "TransformerLens 4" not in apart:
        print("TransformerLens is not installed here")

    found = contestants()
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(args.rounds + 2):
        for name, step in found.items():
            start = time.perf_counter()
            step()
            if turn >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    ms = {name: 1e3 * median(values) for name, values in times.items()}
    print("\n| training step, p = 113 | toylab | " + " | ".join(n for n in ms if n != "toylab") + " | ratios |")
    others = [name for name in ms if name != "toylab"]
    ratios = ", ".join(f"{ms[name] / ms['toylab']:.1f}x" for name in others)
    print(f"| full batch, {rows} rows | {ms['toylab']:.1f} ms | " + " | ".join(f"{ms[n]:.1f} ms" for n in others)
          + f" | {ratios} |")  # fmt: skip


if __name__ == "__main__":
    main()
