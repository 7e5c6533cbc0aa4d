"""The transformer against a second one, written independently: reading and writing every site of every spec.

`reference` below is slow and plain: Python loops over heads, queries and keys, complex numbers for rotations, full
site names spelled out. It shares no code with toylab. It takes overrides, so it also says what replacing a value means.
"""

import cmath
import math

import pytest
import torch
from cases.models import ADDITION, REPEATED, TRANSFORMERS, rng, scrambled, spec

from toylab.errors import UserError
from toylab.models.interop import from_transformer_lens, to_transformer_lens
from toylab.models.transformer import ACTIVATIONS, BIASES, TransformerSpec
from toylab.taps import Record, Replace
from toylab.tasks.modular import ModularArithmetic

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
specs = pytest.mark.parametrize(("spec", "task"), TRANSFORMERS)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- the independent forward pass -----------------------------------------------------------------------------------


def activation(name, x):
    return {
        "relu": lambda: torch.where(x > 0, x, 0.0),
        "gelu": lambda: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "silu": lambda: x / (1 + torch.exp(-x)),
        "solu": lambda: x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        "quadratic": lambda: x**2,
        "identity": lambda: x,
    }[name]()


def turned(vector, pos, base):
    """[batch, e] at a position: the pairs (i, i + e/2) as complex numbers times e^(i pos / base^(2i/e))."""
    half = vector.shape[-1] // 2
    z = torch.complex(vector[:, :half], vector[:, half:])
    z = z * torch.tensor([cmath.exp(1j * pos * base ** (-i / half)) for i in range(half)], dtype=torch.complex128)
    return torch.cat([z.real, z.imag], -1)


def reference(model, tokens, overrides=None):
    """(logits, every site by full name). overrides: full name -> the value that stands there instead."""
    s, w = model.spec, {name: p.detach() for name, p in model.named_parameters()}
    overrides, sites = overrides or {}, {}
    n_pos, heads = tokens.shape[1], range(s.n_heads)

    def site(name, value):
        sites[name] = overrides.get(name, value)
        return sites[name]

    def bias(name, *at):
        return w[f"b_{name}"][at] if f"b_{name}" in w else 0.0

    def norm(name, x, at, quiet=False):
        """quiet: the per-head copies, which have no sites of their own."""
        if s.norm == "none":
            return x
        if s.norm in ("LN", "LNPre"):
            x = x - x.sum(-1, keepdim=True) / x.shape[-1]
        scale = torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + s.eps)
        x = x / (scale if quiet else site(f"{name}.hook_scale", scale))
        x = x if quiet else site(f"{name}.hook_normalized", x)
        key = name.split(".")[-1]
        if f"{key}_w" in w:
            x = x * (w[f"{key}_w"] if at is None else w[f"{key}_w"][at])
        if f"{key}_b" in w:
            x = x + (w[f"{key}_b"] if at is None else w[f"{key}_b"][at])
        return x

    x = site("hook_embed", torch.stack([w["W_E"][tokens[:, p]] for p in range(n_pos)], 1))
    if s.positions == "learned":
        x = x + site("hook_pos_embed", torch.stack([w["W_pos"][p].repeat(len(tokens), 1) for p in range(n_pos)], 1))
    if s.positions == "sinusoidal":
        table = torch.zeros(n_pos, s.d_model, dtype=x.dtype)
        for p in range(n_pos):
            for d in range(s.d_model):
                angle = p / 10000 ** (2 * (d // 2) / s.d_model)
                table[p, d] = math.cos(angle) if d % 2 else math.sin(angle)
        x = x + site("hook_pos_embed", table.repeat(len(tokens), 1, 1))

    for L in range(s.n_layers):
        block = f"blocks.{L}"
        x = site(f"{block}.hook_resid_pre", x)
        normed = norm(f"{block}.ln1", x, L)
        copies = torch.stack([x for _ in heads], 2)
        attn_in = site(f"{block}.hook_attn_in", copies)
        reads = {}
        for which in "qkv":
            edited = site(f"{block}.hook_{which}_input", attn_in)
            fresh = f"{block}.hook_attn_in" in overrides or f"{block}.hook_{which}_input" in overrides
            reads[which] = [norm(f"{block}.ln1", edited[:, :, h], L, quiet=True) if fresh else normed for h in heads]
        q, k, v = (
            site(
                f"{block}.attn.hook_{which}",
                torch.stack(
                    [reads[which][h] @ w[f"W_{which.upper()}"][L, h] + bias(which.upper(), L, h) for h in heads], 2
                ),
            )
            for which in "qkv"
        )
        if s.positions == "rotary":
            q, k = (
                site(
                    f"{block}.attn.hook_rot_{which}",
                    torch.stack(
                        [torch.stack([turned(t[:, p, h], p, s.rotary_base) for h in heads], 1) for p in range(n_pos)], 1
                    ),
                )
                for which, t in (("q", q), ("k", k))
            )
        scale = math.sqrt(s.d_head) if s.attn_scale is None else s.attn_scale
        scores = torch.full((len(tokens), s.n_heads, n_pos, n_pos), -math.inf, dtype=x.dtype)
        for h in heads:
            for i in range(n_pos):
                for j in range(i + 1 if s.attention == "causal" else n_pos):
                    scores[:, h, i, j] = (q[:, i, h] * k[:, j, h]).sum(-1) / scale
        scores = site(f"{block}.attn.hook_attn_scores", scores)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        pattern = s.attention_rate * (weights / weights.sum(-1, keepdim=True)) + 1 - s.attention_rate
        pattern = site(f"{block}.attn.hook_pattern", pattern)
        z = torch.zeros_like(v)
        for h in heads:
            for i in range(n_pos):
                z[:, i, h] = sum(pattern[:, h, i, j, None] * v[:, j, h] for j in range(n_pos))
        z = site(f"{block}.attn.hook_z", z)
        result = site(f"{block}.attn.hook_result", torch.stack([z[:, :, h] @ w["W_O"][L, h] for h in heads], 2))
        x = x + site(f"{block}.hook_attn_out", sum(result[:, :, h] for h in heads) + bias("O", L))
        if s.d_mlp:
            x = site(f"{block}.hook_resid_mid", x)
            mlp_in = norm(f"{block}.ln2", site(f"{block}.hook_mlp_in", x), L)
            pre = site(f"{block}.mlp.hook_pre", mlp_in @ w["W_in"][L] + bias("in", L))
            post = site(f"{block}.mlp.hook_post", activation(s.act, pre))
            x = x + site(f"{block}.hook_mlp_out", post @ w["W_out"][L] + bias("out", L))
        x = site(f"{block}.hook_resid_post", x)
    x = norm("ln_final", x, None)
    W_U = w["W_E"][: model.d_out].transpose(0, 1) if s.tied else w["W_U"]
    return x @ W_U + bias("U"), sites


# --- reading and writing --------------------------------------------------------------------------------------------


@specs
@torch.no_grad()
def test_reading_every_site(spec, task):
    model, x = scrambled(spec, task), task.sample(4, rng()).inputs
    logits, cache = model.run_with_cache(x, lambda name: True)
    expected, sites = reference(model, x)
    assert set(cache) == set(sites)
    close(logits, expected)
    for name in sites:
        close(cache[name], sites[name])
    close(model(x), expected)


@specs
@torch.no_grad()
def test_writing_every_site(spec, task):
    """Replacing one value changes exactly what the equations say, at every later site and in the logits."""
    model, x = scrambled(spec, task), task.sample(3, rng()).inputs
    _, sites = reference(model, x)
    plain = [name for name, gated in model.site_names.items() if not gated]
    for name, value in sites.items():
        new = value * 0.7 + 0.3 * torch.randn(value.shape, generator=rng(5), dtype=value.dtype)
        expected, expected_sites = reference(model, x, {name: new})
        with model.hooks([(name, lambda v, hook, new=new: new)]):
            logits, cache = model.run_with_cache(x, plain)
        close(logits, expected)
        for key in cache:
            close(cache[key], expected_sites[key])
        close(model(x, Replace({name: new})), expected)
        # The residual stream and what it is made of always reach the logits: these writes were not ignored.
        if name.endswith(("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")):
            assert (logits - reference(model, x)[0]).abs().max() > 1e-3


@specs
@torch.no_grad()
def test_writing_two_sites_at_once(spec, task):
    model, x = scrambled(spec, task), task.sample(3, rng()).inputs
    _, sites = reference(model, x)
    names = ["blocks.0.attn.hook_v", "blocks.0.attn.hook_pattern", f"blocks.{spec.n_layers - 1}.hook_resid_post"]
    new = {name: sites[name] * 1.3 + 0.1 for name in names}
    for chosen in (names[:2], names[1:], names):
        overrides = {name: new[name] for name in chosen}
        hooks = [(name, lambda v, hook, overrides=overrides: overrides[hook.name]) for name in chosen]
        close(model.run_with_hooks(x, hooks), reference(model, x, overrides)[0])


# --- the fast path --------------------------------------------------------------------------------------------------


@specs
@pytest.mark.parametrize("read", [(-1,), (0,), (1,), (-1, 0), (2, 1, -1)])
@pytest.mark.parametrize("n", [3, 40])
def test_forward_at_is_forward_at_those_positions(spec, task, read, n):
    """Values and gradients; 40 rows are enough for the lookup path of a one-layer model, 3 are not."""
    model, x = scrambled(spec, task), task.sample(n, rng()).inputs
    slow, fast = model.forward(x)[:, list(read)], model.forward_at(x, read)
    close(fast, slow)
    direction = torch.randn(slow.shape, generator=rng(2), dtype=slow.dtype)
    names, params = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad((slow * direction).sum(), params, allow_unused=True)
    got = torch.autograd.grad((fast * direction).sum(), params, allow_unused=True)
    for name, p, a, b in zip(names, params, wanted, got, strict=True):
        zero = torch.zeros_like(p)
        torch.testing.assert_close(zero if b is None else b, zero if a is None else a, rtol=1e-9, atol=1e-9, msg=name)


@specs
def test_forward_from_continues_any_stream(spec, task):
    """From every layer, at every position or a few, and (causal) from a later position on, keys given."""
    model, tokens = scrambled(spec, task), task.sample(5, rng()).inputs
    logits, cache = model.run_with_cache(tokens)
    keys = "rot_k" if spec.positions == "rotary" else "k"
    for layer in range(spec.n_layers + 1):
        resid = cache["resid_post", spec.n_layers - 1] if layer == spec.n_layers else cache["resid_pre", layer]
        close(model.forward_from(layer, resid), logits)
        close(model.forward_from(layer, resid, read=(-1, 0)), logits[:, [-1, 0]])
        if spec.attention == "causal":
            past = [(cache[keys, at][:, :1], cache["v", at][:, :1]) for at in range(spec.n_layers)]
            close(model.forward_from(layer, resid[:, 1:], past=past), logits[:, 1:])
            close(model.forward_from(layer, resid[:, 1:], read=(0, -1), past=past), logits[:, [1, -1]])


@pytest.mark.parametrize("at", [0, 1, -1])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"biases": BIASES},
        {"biases": ()},
        {"tied": True},
        {"attention": "bidirectional"},
        {"act": "gelu"},
        {"positions": "none"},
        {"positions": "sinusoidal", "attn_scale": 3.0},
    ],
    ids=str,
)
def test_one_token_asking_in_every_row_is_the_same_function(at, changed):
    """Values and gradients of `_joined`, which must also be the path that is taken."""
    model, x = scrambled(spec(**changed), ADDITION), ADDITION.sample(40, rng()).inputs.clone()
    x[:, at] = 3
    joined, taken = model._joined, []
    model._joined = lambda *a: taken.append(a) or joined(*a)
    slow, fast = model.forward(x)[:, [at]], model.forward_at(x, (at,))
    assert taken
    close(fast, slow)
    direction = torch.randn(slow.shape, generator=rng(2), dtype=slow.dtype)
    params = list(model.parameters())
    wanted = torch.autograd.grad((slow * direction).sum(), params, allow_unused=True, materialize_grads=True)
    got = torch.autograd.grad((fast * direction).sum(), params, allow_unused=True, materialize_grads=True)
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "changed", "same", "path"),
    [
        (1, {}, True, "_attend"),  # 2 d_vocab rows or fewer: tables would not pay
        (2, {}, True, "_joined"),
        (2, {}, False, "_attend_by_lookup"),  # rows that ask from different tokens
        (2, {"norm": "LN"}, True, "_attend_by_lookup"),
        (2, {"attention_rate": 0.5}, True, "_attend_by_lookup"),
        (2, {"d_mlp": 0}, True, "_attend_by_lookup"),
        (2, {"positions": "rotary"}, True, "_attend"),
        (2, {"n_layers": 2}, True, "_attend"),
    ],
)
def test_which_fast_path_is_taken(rows, changed, same, path, monkeypatch):
    model, calls = scrambled(spec(**changed), ADDITION), []
    for name in ("_attend", "_attend_by_lookup", "_joined"):
        inner = getattr(model, name)
        monkeypatch.setattr(model, name, lambda *a, name=name, inner=inner: calls.append(name) or inner(*a))
    x = ADDITION.sample(rows * ADDITION.d_vocab + rows - 1, rng()).inputs.clone()
    if not same:
        x[0, -1] = 0
    model(x, read=(-1,))
    assert calls == [path]


@specs
def test_a_shorter_input_is_read_as_the_start_of_a_longer_one(spec, task):
    model, x = scrambled(spec, task), task.sample(40, rng()).inputs[:, :2]
    close(model(x), reference(model, x)[0])
    close(model(x, read=(-1,)), model(x)[:, -1:])
    for read in ((2,), (-3,)):
        with pytest.raises(UserError, match=f"no position {read[0]} among 2"):
            model(x, read=read)


def test_solu_of_two_large_and_two_small_values():
    """x softmax(x): 4 e^4 / (2 e^4 + 2 e) and e / (2 e^4 + 2 e), by hand 1.9051 and .0237."""
    e4, e1 = math.exp(4), math.exp(1)
    expected = torch.tensor([4 * e4, e1, 4 * e4, e1], dtype=torch.float64) / (2 * e4 + 2 * e1)
    found = ACTIVATIONS["solu"](torch.tensor([4.0, 1.0, 4.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[:2], torch.tensor([1.9051, 0.0237], dtype=torch.float64), rtol=0, atol=5e-5)


# --- identities -----------------------------------------------------------------------------------------------------


@specs
@torch.no_grad()
def test_the_residual_stream_adds_up(spec, task):
    model = scrambled(spec, task)
    _, cache = model.run_with_cache(task.sample(4, rng()).inputs)
    for L in range(spec.n_layers):
        mlp_out = cache["mlp_out", L] if spec.d_mlp else 0
        close(cache["resid_post", L], cache["resid_pre", L] + cache["attn_out", L] + mlp_out)
        rows = 1 if spec.attention_rate == 1 else spec.attention_rate + (1 - spec.attention_rate) * task.n_ctx
        close(cache["pattern", L].sum(-1), torch.full_like(cache["pattern", L][..., 0], rows))


@specs
@torch.no_grad()
def test_causal_models_cannot_see_the_future(spec, task):
    model, x = scrambled(spec, task), task.sample(40, rng()).inputs
    before = model(x)
    moved = 0.0
    for t in range(1, task.n_ctx):
        later = x.clone()
        later[:, t] = (x[:, t] + 1) % task.d_vocab
        moved = max(moved, (model(later)[:, :t] - before[:, :t]).abs().max().item())
        assert (model(later)[:, t] - before[:, t]).abs().max() > 1e-3
    # A pattern that is partly constant looks everywhere, masked or not (Zhong et al. 2023).
    sees = spec.attention == "bidirectional" or spec.attention_rate < 1
    assert (moved > 1e-3) == sees


@torch.no_grad()
def test_rotary_scores_depend_on_the_difference_of_positions_alone():
    model = scrambled(spec(positions="rotary", norm="none", biases=("Q", "K")), REPEATED)
    same_token = torch.full((1, REPEATED.n_ctx), 2)
    scores = model.run_with_cache(same_token, "attn_scores0")[1]["attn_scores", 0][0]
    for back in range(REPEATED.n_ctx):
        diagonal = scores.diagonal(-back, -2, -1)
        close(diagonal, diagonal[:, :1].expand_as(diagonal))
    assert (scores[:, 1:, 0].diff(dim=1).abs() > 1e-3).all()


@torch.no_grad()
def test_rotation_keeps_lengths():
    model = scrambled(spec(positions="rotary"), REPEATED)
    _, cache = model.run_with_cache(REPEATED.sample(4, rng()).inputs)
    close(cache["rot_q", 0].norm(dim=-1), cache["q", 0].norm(dim=-1))
    close(cache["rot_q", 0][:, 0], cache["q", 0][:, 0])


@torch.no_grad()
def test_tied_unembedding_is_the_embedding():
    model = scrambled(spec(tied=True), ADDITION)
    assert not hasattr(model, "W_U")
    logits, cache = model.run_with_cache(ADDITION.sample(4, rng()).inputs)
    close(logits, cache["resid_post", 0] @ model.W_E[: ADDITION.d_out].T)


@torch.no_grad()
def test_without_positions_the_order_of_earlier_tokens_is_lost():
    model, x = scrambled(spec(positions="none"), ADDITION), ADDITION.sample(20, rng()).inputs
    close(model(x)[:, -1], model(x[:, [1, 0, 2]])[:, -1])
    learned = scrambled(spec(), ADDITION)
    assert (learned(x)[:, -1] - learned(x[:, [1, 0, 2]])[:, -1]).abs().max() > 1e-3


@torch.no_grad()
def test_gpt_style_layer_norm_is_torchs():
    model = scrambled(spec(norm="LN"), ADDITION)
    x = torch.randn(5, 8, generator=rng(), dtype=torch.float64)
    expected = torch.nn.functional.layer_norm(x, (8,), model.ln1_w[0], model.ln1_b[0], model.spec.eps)
    close(model.norm("ln1", 0, x), expected)


# --- initialisation -------------------------------------------------------------------------------------------------

BIG = {"n_layers": 2, "n_heads": 3, "d_model": 60, "d_head": 16, "d_mlp": 90}
D_VOCAB, FAN_O = 98, 48


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("init", "variances"),
    [
        ("fan_in", {"W_E": 1 / 60, "W_Q": 1 / 60, "W_O": 1 / FAN_O, "W_in": 1 / 60, "W_out": 1 / 90, "W_U": 1 / 60}),
        ("nanda", {"W_E": 1 / 60, "W_Q": 1 / 60, "W_O": 1 / 60, "W_in": 1 / 60, "W_out": 1 / 60, "W_U": 1 / D_VOCAB}),
        ("gpt2", dict.fromkeys(("W_E", "W_pos", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U"), 0.64 / 60)),
    ],
)
def test_weights_start_with_the_stated_variance(init, variances, scale):
    task = ModularArithmetic(p=97, operation="x+y", frac_train=0.3)
    model = TransformerSpec(**BIG, norm="LN", init=init, init_scale=scale, biases=("Q", "O", "in", "U")).build(
        task, rng()
    )
    for name, variance in variances.items():
        w, std = getattr(model, name).detach().flatten(), scale * variance**0.5
        # A standard deviation from n normal numbers has relative standard error 1 / sqrt(2n), the mean 1 / sqrt(n).
        assert abs(w.std() / std - 1) < 5 / (2 * len(w)) ** 0.5, name
        assert abs(w.mean() / std) < 5 / len(w) ** 0.5, name
    for name, p in model.named_parameters():
        if not name.startswith("W_"):
            assert torch.equal(p, torch.ones_like(p) if name.endswith("_w") else torch.zeros_like(p)), name


@specs
def test_logits_do_not_depend_on_how_the_batch_is_cut(spec, task):
    model, x = scrambled(spec, task), task.sample(40, rng()).inputs
    whole = model(x, read=(-1,))
    close(torch.cat([model(x[:7], read=(-1,)), model(x[7:], read=(-1,))]), whole)


# --- as a function of its parameters --------------------------------------------------------------------------------


@specs
@pytest.mark.parametrize("read", [None, (-1,)])
def test_stacked_models_under_vmap_equal_a_loop(spec, task, read):
    """Outputs, gradients, recorded and replaced activations of three models at once."""
    members, x = [scrambled(spec, task, seed=10 * i) for i in range(3)], task.sample(40, rng()).inputs
    params, buffers = torch.func.stack_module_state(members)
    skeleton = members[0]

    def run(params, buffers):
        outputs = torch.func.functional_call(skeleton, (params, buffers), (x,), {"read": read})
        return outputs.square().sum(), outputs

    grads, outputs = torch.func.vmap(torch.func.grad(run, has_aux=True))(params, buffers)
    for i, member in enumerate(members):
        loss, expected = run(dict(member.named_parameters()), dict(member.named_buffers()))
        close(outputs[i], expected)
        names, leaves = zip(*member.named_parameters(), strict=True)
        for name, grad in zip(names, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            grad = torch.zeros_like(grads[name][i]) if grad is None else grad
            torch.testing.assert_close(grads[name][i], grad, rtol=1e-9, atol=1e-9)


def test_taps_work_inside_vmap():
    members, x = [scrambled(spec(), ADDITION, seed=10 * i) for i in range(3)], ADDITION.sample(5, rng()).inputs
    params, buffers = torch.func.stack_module_state(members)
    zero = {"blocks.0.hook_mlp_out": torch.zeros(5, 3, 8, dtype=torch.float64)}

    def patterns(params, buffers):
        record = Record(lambda name: name.endswith("pattern"), detach=False)
        torch.func.functional_call(members[0], (params, buffers), (x, record))
        return record.tensors["blocks.0.attn.hook_pattern"]

    def ablated(params, buffers):
        return torch.func.functional_call(members[0], (params, buffers), (x, Replace(zero)))

    seen, without = (torch.func.vmap(f)(params, buffers) for f in (patterns, ablated))
    for i, member in enumerate(members):
        close(seen[i], member.run_with_cache(x)[1]["pattern", 0])
        close(without[i], member.run_with_hooks(x, [("mlp_out0", lambda v, hook: 0 * v)]))


# --- TransformerLens names ------------------------------------------------------------------------------------------


def writable(spec):
    return spec.attention_rate == 1


@specs
@torch.no_grad()
def test_transformer_lens_names_there_and_back(spec, task):
    model, x = scrambled(spec, task), task.sample(4, rng()).inputs
    if not writable(spec):
        with pytest.raises(UserError, match="attention_rate"):
            to_transformer_lens(model)
        return
    state = to_transformer_lens(model)
    assert state["blocks.0.attn.W_Q"].shape == (spec.n_heads, spec.d_model, spec.d_head)
    assert state["blocks.0.attn.b_K"].shape == (spec.n_heads, spec.d_head)
    assert state["unembed.W_U"].shape == (spec.d_model, task.d_out)
    assert ("blocks.0.mlp.b_in" in state) == bool(spec.d_mlp)
    buffers = {"blocks.0.attn.mask": torch.ones(2, 2), "blocks.0.attn.IGNORE": torch.tensor(-1e5)}
    rotary = {"blocks.0.attn.rotary_sin": torch.ones(2), "blocks.0.attn.rotary_cos": torch.ones(2)}
    back = from_transformer_lens(state | buffers | rotary, spec, n_ctx=task.n_ctx)
    assert {k: v.tolist() for k, v in back.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    assert torch.equal(back(x), model(x))
    # Written files are copies: changing them changes no model.
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(back(x), model(x))


def test_reading_transformer_lens_weights_is_strict():
    model = scrambled(spec(biases=("in",)), ADDITION)
    state = to_transformer_lens(model)
    cases = [
        ({"blocks.0.attn.W_Q": None}, "lacks blocks.0.attn.W_Q"),
        ({"blocks.0.mlp.b_in": None}, "lacks blocks.0.mlp.b_in"),
        ({"blocks.0.mlp.W_gate": torch.zeros(8, 10)}, "has blocks.0.mlp.W_gate"),
        ({"blocks.1.attn.W_Q": state["blocks.0.attn.W_Q"]}, "has blocks.1.attn.W_Q"),
        ({"blocks.0.attn.b_Q": torch.ones(3, 4)}, "blocks.0.attn.b_Q holds values"),
        ({"blocks.0.attn.W_Q": torch.zeros(3, 4, 8)}, r"shape \(3, 4, 8\).*needs \(3, 8, 4\)"),
        ({"embed.W_E": None}, "no embed.W_E"),
        ({"pos_embed.W_pos": None}, "pass n_ctx"),
    ]
    for change, message in cases:
        broken = {name: t for name, t in (state | change).items() if t is not None}
        with pytest.raises(UserError, match=message):
            from_transformer_lens(broken, model.spec)
    # A bias that is absent and would be zero is no loss.
    del state["blocks.0.attn.b_Q"]
    assert torch.equal(from_transformer_lens(state, model.spec).W_Q, model.W_Q)
    untied = to_transformer_lens(scrambled(spec(), ADDITION))
    with pytest.raises(UserError, match=r"unembed\.W_U holds values"):
        from_transformer_lens(untied, spec(tied=True))
