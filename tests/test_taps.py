"""Names, caches and hooks: the short forms people type, what a hook may do, and that nothing of it is left behind."""

import warnings

import pytest
import torch
from cases.models import ADDITION, FEATURES, REPEATED, rng, scrambled, spec

from toylab.errors import UserError
from toylab.models.superposition import SuperpositionSpec
from toylab.taps import SITES, Chain, HookWarning, Record, Replace, Tap, act_name, site_name, site_of

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

RICH = spec(n_layers=2, norm="LN", positions="rotary", biases=("Q", "K", "V", "O", "in", "out", "U"))
LEARNED = spec(n_layers=2, norm="LNPre")


def rich():
    return scrambled(RICH, REPEATED), REPEATED.sample(4, rng()).inputs


def every_site():
    """(spec, full name): every site of the rich model, and those that only the other one has."""
    rich, learned = ({name: s for name in s.build(REPEATED, rng()).site_names} for s in (RICH, LEARNED))
    return [pytest.param(s, name, id=name) for name, s in (learned | rich).items()]


# --- names ----------------------------------------------------------------------------------------------------------

SHORT_FORMS = [
    (("k", 6, "a"), "blocks.6.attn.hook_k"),
    (("k6",), "blocks.6.attn.hook_k"),
    (("k6a",), "blocks.6.attn.hook_k"),
    (("pre", 2), "blocks.2.mlp.hook_pre"),
    (("embed",), "hook_embed"),
    (("pos_embed",), "hook_pos_embed"),
    (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
    (("normalized27ln2",), "blocks.27.ln2.hook_normalized"),
    (("scale4ln1",), "blocks.4.ln1.hook_scale"),
    (("scale", None), "ln_final.hook_scale"),
    (("normalized",), "ln_final.hook_normalized"),
    (("attn", 1), "blocks.1.attn.hook_pattern"),
    (("attn_logits", 1), "blocks.1.attn.hook_attn_scores"),
    (("key", 0), "blocks.0.attn.hook_k"),
    (("query", 0), "blocks.0.attn.hook_q"),
    (("value", 0), "blocks.0.attn.hook_v"),
    (("mlp_pre", 3), "blocks.3.mlp.hook_pre"),
    (("mlp_post", 3), "blocks.3.mlp.hook_post"),
    (("resid_pre", 10), "blocks.10.hook_resid_pre"),
    (("resid_post12",), "blocks.12.hook_resid_post"),
    (("q", 0, "attn"), "blocks.0.attn.hook_q"),
    (("rot_q", 3), "blocks.3.attn.hook_rot_q"),
    (("rot_k3",), "blocks.3.attn.hook_rot_k"),
    (("result", 0), "blocks.0.attn.hook_result"),
    (("z0",), "blocks.0.attn.hook_z"),
    (("attn_out", 0), "blocks.0.hook_attn_out"),
    (("mlp_out", 0, "b"), "blocks.0.hook_mlp_out"),
    (("q_input", 0), "blocks.0.hook_q_input"),
    (("blocks.3.attn.hook_k",), "blocks.3.attn.hook_k"),
    (("ln_final.hook_scale",), "ln_final.hook_scale"),
]


@pytest.mark.parametrize(("asked", "full"), SHORT_FORMS)
def test_short_forms(asked, full):
    assert act_name(*asked) == full


@pytest.mark.parametrize("name", SITES)
def test_site_name_and_site_of_are_inverse(name):
    layer = 11 if "{}" in SITES[name].path else None
    assert site_of(site_name(name, layer)) == (name, layer)
    if not name.startswith("ln"):
        assert act_name(name, layer) == site_name(name, layer)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("patern", 0), r"no site \('patern', 0\).*did you mean \"pattern\"\?"),
        (("pattern",), r'needs a layer: \("pattern", 0\)'),
        (("resid_pst3",), 'did you mean "resid_p'),
        (("blocks.0.attn.hook_patern",), "no site"),
        (("scale", 0), "no site"),
    ],
)
def test_a_wrong_name_is_explained(asked, message):
    with pytest.raises(UserError, match=message):
        act_name(*asked)


def test_a_filter_or_hook_that_matches_nothing_raises():
    model, x = rich()
    for names in ("patern0", ("pattern", 7), "pos_embed", lambda name: "attention" in name, ["k0", "kk1"]):
        with pytest.raises(UserError, match="no site"):
            model.run_with_cache(x, names)
    for names in ("patern0", ("pattern", 7), lambda name: False):
        with pytest.raises(UserError, match="no site"):
            model.run_with_hooks(x, [(names, lambda v, hook: v)])
    with pytest.raises(UserError, match=r"this model has no site .*did you mean \"hook_embed\""):
        model.run_with_cache(x, "pos_embed")


# --- caches ---------------------------------------------------------------------------------------------------------


def test_cache_keys():
    model, x = rich()
    _, cache = model.run_with_cache(x)
    full = cache["blocks.1.attn.hook_k"]
    for key in (("k", 1), "k1", ("k", -1), ("k", 1, "attn"), ("key", 1), "k1a"):
        assert cache[key] is full
        assert key in cache
    assert cache["scale1ln2"] is cache["scale", -1, "ln2"] is cache["blocks.1.ln2.hook_scale"]
    assert cache["normalized"] is cache["ln_final.hook_normalized"]
    assert ("k", 5) not in cache
    assert "nonsense" not in cache
    assert "result0" not in cache
    assert len(cache) == len(list(cache)) == len(dict(cache))
    with pytest.raises(UserError, match="was not cached; this cache holds hook_embed"):
        cache["k", 5]
    assert "blocks.1.attn.hook_k" in repr(cache)
    assert "[batch pos head d_head]" in repr(cache)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("pattern0", ["blocks.0.attn.hook_pattern"]),
        (("pattern", -1), ["blocks.1.attn.hook_pattern"]),
        (("embed", "k0"), ["hook_embed", "blocks.0.attn.hook_k"]),
        (
            ["k0", ("q", 1), ("result", 0)],
            ["blocks.0.attn.hook_k", "blocks.0.attn.hook_result", "blocks.1.attn.hook_q"],
        ),
        (lambda name: name.endswith("resid_mid"), ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"]),
    ],
)
def test_names_filter(names, found):
    model, x = rich()
    out, cache = model.run_with_cache(x, names)
    assert list(cache) == found
    # Computing `result` sums the heads in another order: equal to rounding.
    torch.testing.assert_close(out, model(x), rtol=0, atol=1e-12)
    _, everything = model.run_with_cache(x, lambda name: True)
    for name in found:
        torch.testing.assert_close(cache[name], everything[name], rtol=0, atol=1e-12)


def test_gated_sites_are_computed_only_when_asked():
    model, x = rich()
    gated = [name for name, is_gated in model.site_names.items() if is_gated]
    assert {site_of(name)[0] for name in gated} == {"attn_in", "q_input", "k_input", "v_input", "result", "mlp_in"}
    passed = []

    class Watch(Tap):
        def __call__(self, name, layer, value):
            passed.append(site_name(name, layer))
            return value

    model(x, Watch())
    assert passed == [name for name, is_gated in model.site_names.items() if not is_gated]
    _, cache = model.run_with_cache(x)
    assert not set(gated) & set(cache)
    for name in gated:
        assert list(model.run_with_cache(x, name)[1]) == [name]


def test_results_add_up_to_attn_out():
    model, x = rich()
    _, cache = model.run_with_cache(x, ["result1", "attn_out1"])
    torch.testing.assert_close(cache["result", 1].sum(2) + model.b_O[1], cache["attn_out", 1], rtol=0, atol=1e-12)


def test_pos_slice_and_remove_batch_dim():
    model, x = rich()
    _, whole = model.run_with_cache(x, lambda name: True)
    _, part = model.run_with_cache(x, lambda name: True, pos_slice=slice(-2, None))
    for name, value in part.items():
        queries = "query" in SITES[site_of(name)[0]].axes
        assert torch.equal(value, whole[name][:, :, -2:] if queries else whole[name][:, -2:])
    _, one = model.run_with_cache(x[:1], remove_batch_dim=True)
    assert torch.equal(one["pattern", 0], model.run_with_cache(x[:1])[1]["pattern", 0][0])
    with pytest.raises(UserError, match="batch of 1; this one has 4"):
        model.run_with_cache(x, remove_batch_dim=True)


def test_a_cache_is_detached_and_moves():
    model, x = rich()
    out, cache = model.run_with_cache(x)
    assert out.requires_grad
    assert not any(value.requires_grad for value in cache.values())
    assert torch.equal(cache.to("cpu")["k0"], cache["k0"])
    record = Record(detach=False)
    model(x, record)
    assert all(value.requires_grad for value in record.tensors.values())


# --- hooks ----------------------------------------------------------------------------------------------------------


def boom(value, hook):
    raise RuntimeError(f"inside {hook.name}")


@pytest.mark.parametrize(("spec", "name"), every_site())
def test_an_exception_inside_a_hook_leaves_nothing_behind(spec, name):
    model, x = scrambled(spec, REPEATED), REPEATED.sample(4, rng()).inputs
    before, cached = model.run_with_cache(x)
    assert name in model.site_names
    state = dict(model.__dict__)
    with pytest.raises(RuntimeError, match=f"inside {name}"):
        model.run_with_hooks(x, [(name, boom)])
    with pytest.raises(RuntimeError, match="inside"), model.hooks([(name, boom)]):
        model.run_with_cache(x)
    with pytest.raises(ZeroDivisionError), model.hooks([(name, lambda v, hook: v * 2)]):
        raise ZeroDivisionError
    after, cache = model.run_with_cache(x)
    assert torch.equal(before, after)
    assert all(torch.equal(cached[key], cache[key]) for key in cached)
    assert not model.__dict__.get("_active", ())
    assert {k: v for k, v in model.__dict__.items() if k != "_active"} == state


@pytest.mark.parametrize(("spec", "name"), every_site())
def test_editing_in_place_is_editing_and_reaches_nothing_upstream(spec, name):
    """In place or by a returned tensor: the same outputs and the same cache; sites before it stay as they were."""
    model, x = scrambled(spec, REPEATED), REPEATED.sample(4, rng()).inputs
    everything = [name, *(n for n, gated in model.site_names.items() if not gated)]
    clean, untouched = model.run_with_cache(x, everything)

    def in_place(value, hook):
        value.mul_(1.5).add_(0.25)

    with model.hooks([(name, in_place)]):
        one, one_cache = model.run_with_cache(x, everything)
    with model.hooks([(name, lambda value, hook: value * 1.5 + 0.25)]):
        two, two_cache = model.run_with_cache(x, everything)
    assert torch.equal(one, two)
    order = list(model.site_names)
    for key in one_cache:
        assert torch.equal(one_cache[key], two_cache[key])
        if order.index(key) < order.index(name):
            assert torch.equal(one_cache[key], untouched[key]), key
    torch.testing.assert_close(one_cache[name], untouched[name] * 1.5 + 0.25, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x), clean, rtol=0, atol=1e-12)


def test_edits_that_do_nothing_are_reported():
    model, x = rich()
    with pytest.warns(HookWarning, match="blocks.0.attn.hook_k never fired"), model.hooks([("k0", lambda v, hook: v)]):
        pass
    with pytest.warns(HookWarning, match="fired 1x but changed nothing"):
        model.run_with_hooks(x, [("k0", lambda v, hook: v * 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run_with_hooks(x, [("k0", lambda v, hook: v * 2)])
        model.run_with_hooks(x, [("k0", lambda v, hook: None)])  # a look, no edit
        model.run_with_hooks(x, [(lambda name: name.endswith("hook_k"), lambda v, hook: v * (1 + hook.layer()))])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v, hook: v[:, :1], r"returned torch.float64 \(4, 1, 3, 4\); .*\[batch pos head d_head\]"),
        (lambda v, hook: v.float(), "returned torch.float32"),
        (lambda v, hook: v * float("nan"), "returned NaN"),
        (lambda v, hook: v.sum().item(), "returned float; return a tensor or None"),
        (lambda v, hook: v.fill_(float("nan")) and None, "returned NaN|ambiguous"),
    ],
)
def test_a_wrong_result_is_refused_with_the_name_of_the_site(edit, message):
    model, x = rich()
    with pytest.raises((UserError, RuntimeError), match=message):
        model.run_with_hooks(x, [("k0", edit)])


def test_a_predicate_hooks_every_site_it_accepts():
    model, x = rich()
    seen = []
    model.run_with_hooks(x, [(lambda name: name.endswith("hook_pattern"), lambda v, hook: seen.append(hook.layer()))])
    assert seen == [0, 1]


def test_hooks_stack_in_order_and_nest():
    model, x = rich()
    double, add = (("mlp_out", 0), lambda v, hook: v * 2), (("mlp_out", 0), lambda v, hook: v + 1)
    value = model.run_with_cache(x)[1]["mlp_out", 0]
    with model.hooks([double, add]):
        torch.testing.assert_close(model.run_with_cache(x)[1]["mlp_out", 0], value * 2 + 1)
    with model.hooks([double]):
        with model.hooks([add]):
            torch.testing.assert_close(model.run_with_cache(x)[1]["mlp_out", 0], value * 2 + 1)
        torch.testing.assert_close(model.run_with_cache(x)[1]["mlp_out", 0], value * 2)
    assert torch.equal(model.run_with_cache(x)[1]["mlp_out", 0], value)


@pytest.mark.parametrize(("spec", "name"), every_site())
def test_hooks_and_read_go_together(spec, name):
    """An edit anywhere upstream counts, whatever shortcut `read` may take."""
    model, x = scrambled(spec, REPEATED), REPEATED.sample(40, rng()).inputs
    hooks = [(name, lambda v, hook: v * 1.5 + 0.25)]
    assert torch.equal(model.run_with_hooks(x, hooks, read=(-1,)), model.run_with_hooks(x, hooks)[:, -1:])
    assert not torch.equal(model.run_with_hooks(x, hooks, read=(-1,)), model(x, read=(-1,)))


def test_replace_and_chain_are_edits_without_ceremony():
    model, x = rich()
    new = torch.randn(4, 6, 3, 4, generator=rng(), dtype=torch.float64)
    tap = Chain([Replace({"blocks.0.attn.hook_v": new}), record := Record()])
    out = model(x, tap)
    assert torch.equal(record.tensors["blocks.0.attn.hook_v"], new)
    assert torch.equal(out, model.run_with_hooks(x, [("v0", lambda v, hook: new)]))


@pytest.mark.parametrize(("spec", "name"), every_site())
def test_gradients_reach_a_hook_that_adds_zeros(spec, name):
    """Adding zeros changes no value, yet their gradient is the gradient at the site; detaching cuts it off."""
    model, x = scrambled(spec, REPEATED), REPEATED.sample(4, rng()).inputs
    held = {}

    def add_zeros(value, hook):
        held["zeros"] = torch.zeros_like(value, requires_grad=True)
        return value + held["zeros"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookWarning)
        model.run_with_hooks(x, [(name, add_zeros)])[:, -1].square().sum().backward()
        assert held["zeros"].grad.abs().sum() > 0
        if name == "hook_embed":
            model.zero_grad()
            model.run_with_hooks(x, [(name, lambda v, hook: v.detach())]).sum().backward()
            assert model.W_E.grad is None or not model.W_E.grad.any()


@pytest.mark.parametrize("name", ["attn_in", "q_input", "k_input", "v_input"])
@pytest.mark.parametrize("site", [("scale", 0, "ln1"), ("normalized", 0, "ln1"), ("resid_pre", 0)])
def test_reading_a_gated_site_does_not_undo_an_edit_before_it(name, site):
    model, x = rich()
    with model.hooks([(site, lambda v, hook: v * 1.5 + 0.25)]):
        plain = model(x)
        read, _ = model.run_with_cache(x, (name, 0))
    torch.testing.assert_close(plain, read, rtol=0, atol=1e-10)


def test_a_hook_has_a_scratch_dict_of_its_own():
    model, x = rich()
    counts = []

    def count(value, hook):
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
        counts.append((hook.name, hook.ctx["calls"]))

    with model.hooks([(lambda name: name.endswith("hook_z"), count)]):
        model(x)
        model(x)
    z0, z1 = "blocks.0.attn.hook_z", "blocks.1.attn.hook_z"
    assert counts == [(z0, 1), (z1, 1), (z0, 2), (z1, 2)]


def test_vector_models_have_hooks_too():
    model = scrambled(SuperpositionSpec("relu_hidden", 3, dtype="float64"), FEATURES)
    x = FEATURES.sample(5, rng()).inputs
    assert list(model.site_names) == ["hook_hidden_pre", "hook_hidden", "hook_features_pre"]
    out = model.run_with_hooks(x, [("hidden", lambda v, hook: torch.zeros_like(v))])
    assert torch.equal(out, model.b.relu().expand(5, -1))


def test_one_layer_reads_through_the_table_and_still_obeys_hooks():
    """25 rows of 6 tokens: `read` takes the lookup path, unless a hook is there."""
    model, x = scrambled(spec(), ADDITION), ADDITION.split(0).all.inputs
    kill = [("k0", lambda v, hook: torch.zeros_like(v))]
    pattern = model.run_with_hooks(x, [*kill, ("pattern0", lambda v, hook: None)], read=(-1,))
    assert torch.equal(pattern, model.run_with_hooks(x, kill)[:, -1:])
    assert not torch.equal(pattern, model(x, read=(-1,)))
