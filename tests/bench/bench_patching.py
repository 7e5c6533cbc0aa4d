"""Patching sweeps and single-edge effects: batched cells against one forward per cell, and against TransformerLens 4.

    python tests/bench/bench_patching.py

2 layers x 4 heads, d_model 64, d_head 16, MLP 256, 16 positions, random weights; LayerNorm for the sweeps, none for
the edges. Times are the best of several runs. Values are compared before anything is timed. TransformerLens's columns
appear where that library is installed; its sweep is `transformer_lens.patching`, one hooked forward per cell.
"""

import time
from functools import partial

import torch

from toylab.interp import edges, patching
from toylab.interp.patching import Answers, Pairs
from toylab.models.interop import to_transformer_lens
from toylab.models.transformer import Transformer, TransformerSpec

N_POS, D_VOCAB = 16, 32
SWEEPS = [
    ("residual stream, layer x position", "resid_pre", "layer pos", "get_act_patch_resid_pre"),
    ("heads out, layer x position x head", "z", "layer pos head", "get_act_patch_attn_head_out_by_pos"),
    ("heads out, layer x head", "z", "layer head", "get_act_patch_attn_head_out_all_pos"),
]


def build(norm: str) -> Transformer:
    spec = TransformerSpec(2, 4, 64, 16, 256, act="gelu", norm=norm, biases=("Q", "K", "V", "O", "in", "out"))
    model = Transformer(spec, d_vocab=D_VOCAB, n_ctx=N_POS, d_out=D_VOCAB)
    model.initialise(torch.Generator().manual_seed(0))
    return model.requires_grad_(False)


def draw(n: int, read: tuple[int, ...] | None) -> Pairs:
    g = torch.Generator().manual_seed(1)
    clean = torch.randint(D_VOCAB, (n, N_POS), generator=g)
    corrupted = clean.clone()
    corrupted[:, 3] = (corrupted[:, 3] + 1 + torch.randint(D_VOCAB - 1, (n,), generator=g)) % D_VOCAB
    right = torch.randint(D_VOCAB, (n, 1), generator=g)
    return Pairs(clean, corrupted, Answers(right, (right + 1) % D_VOCAB), read)


def last_logit_diff(logits: torch.Tensor, answers: Answers) -> torch.Tensor:
    """The metric of a user of TransformerLens: from all logits to one number."""
    rows = torch.arange(len(logits))
    last = logits[:, -1]
    return (last[rows, answers.right[:, 0]] - last[rows, answers.wrong[:, 0]]).mean()


def best(run, repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def in_transformer_lens(model: Transformer):
    """The model as a TransformerBridge, or None where the library is absent."""
    try:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint
    except ImportError:
        return None
    s = model.spec
    config = TransformerBridgeConfig(
        architecture="TransformerLensNative",
        d_model=s.d_model,
        d_head=s.d_head,
        n_heads=s.n_heads,
        n_layers=s.n_layers,
        n_ctx=model.n_ctx,
        d_vocab=model.d_vocab,
        d_vocab_out=model.d_out,
        d_mlp=s.d_mlp,
        act_fn=s.act,
        normalization_type=s.norm,
        eps=s.eps,
        positional_embedding_type="standard",
        attention_dir=s.attention,
    )
    state = to_transformer_lens(model)
    bridge = TransformerBridge.boot_native(config)
    bridge.load_state_dict(convert_tl_checkpoint(state, config), strict=True)
    return bridge.eval()


def theirs(bridge, name: str, pairs: Pairs) -> torch.Tensor:
    from transformer_lens import patching as their_patching

    with torch.no_grad():
        cache = bridge.run_with_cache(pairs.clean)[1]
        return getattr(their_patching, name)(
            bridge, pairs.corrupted, cache, partial(last_logit_diff, answers=pairs.answers)
        )


def main():
    torch.set_num_threads(torch.get_num_threads())
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | pairs | toylab ms | one forward per cell ms | ratio | TransformerLens ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    model = build("LN")
    bridge = in_transformer_lens(model)
    for label, site, axes, their_name in SWEEPS:
        for n in (64, 4):
            pairs = draw(n, (-1,))
            fast = patching.patch(model, pairs, site, axes).mean
            torch.testing.assert_close(fast, patching.patch_serial(model, pairs, site, axes).mean, rtol=0, atol=1e-5)
            ours = best(lambda: patching.patch(model, pairs, site, axes))  # noqa: B023
            serial = best(lambda: patching.patch_serial(model, pairs, site, axes), 2)  # noqa: B023
            row = f"| {label} | {n} | {ours * 1e3:.1f} | {serial * 1e3:.1f} | {serial / ours:.1f} |"
            if bridge is None:
                print(f"{row} - | - |", flush=True)
                continue
            torch.testing.assert_close(fast, theirs(bridge, their_name, pairs).to(fast), rtol=0, atol=1e-5)
            other = best(lambda: theirs(bridge, their_name, pairs), 2)  # noqa: B023
            print(f"{row} {other * 1e3:.1f} | {other / ours:.1f} |", flush=True)
    plain = build("none")
    for read in ((-1,), None):
        pairs = draw(64, read)
        if read is None:
            pairs = Pairs(pairs.clean, pairs.corrupted, Answers(pairs.clean, pairs.clean.roll(1, 1)))
        ours = edges.edge_effects(plain, pairs)
        serial = edges.edge_effects_serial(plain, pairs)
        torch.testing.assert_close(ours.flat, serial.flat, rtol=0, atol=1e-5)
        a = best(lambda: edges.edge_effects(plain, pairs))  # noqa: B023
        b = best(lambda: edges.edge_effects_serial(plain, pairs), 2)  # noqa: B023
        what = f"{len(ours.flat)} single edges, {'last position' if read else 'all positions'} read"
        print(f"| {what} | 64 | {a * 1e3:.1f} | {b * 1e3:.1f} | {b / a:.1f} | - | - |")


if __name__ == "__main__":
    main()
