"""Sliding window, full attention and Transformer-XL, streamed in segments, against one long attention in float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.segment import Segment
from infini_jax.layers.segment import whole as whole_segment
from infini_jax.memory import positions, window
from infini_jax.memory.full import Full, FullConfig
from infini_jax.memory.local import Local, LocalConfig
from infini_jax.memory.transformer_xl import TransformerXL, TransformerXLConfig
from infini_jax.model.cost import model_cost
from infini_jax.model.form import Form
from infini_jax.model.stream import init_carry, scan_segments
from tests.golden import public_golden
from tests.reference import attention as reference
from tests.reference.attention import in_cache, in_window
from tests.support import ragged, streams


def transformer_xl(kind: str) -> TransformerXL:
    return TransformerXL(TransformerXLConfig(slots=8, positions=kind), ragged.DIMS)


# Windows shorter and longer than segments; a cache that forgets and one that holds everything. `held`: no gradient.
CASES = {
    "window of 1": (Local(LocalConfig(window=1), ragged.DIMS), in_window(1), False),
    "window of 4": (Local(LocalConfig(window=4), ragged.DIMS), in_window(4), False),
    "window of 9": (Local(LocalConfig(window=9), ragged.DIMS), in_window(9), False),
    "full, all of it": (Full(FullConfig(slots=19), ragged.DIMS), in_cache(19), False),
    "full, oldest dropped": (Full(FullConfig(slots=5), ragged.DIMS), in_cache(5), False),
    "transformer-xl, rotary": (transformer_xl("rotary"), in_cache(8), True),
    "transformer-xl, relative": (transformer_xl("relative"), in_cache(8), True),
    "transformer-xl, t5": (transformer_xl("t5"), in_cache(8), True),
    "window of 4, relative": (Local(LocalConfig(window=4, positions="relative"), ragged.DIMS), in_window(4), False),
    "full, none": (Full(FullConfig(slots=19, positions="none"), ragged.DIMS), in_cache(19), False),
}


def logit_of(params: dict, kind: str):
    """The reference's logits with the parameters that the module has."""
    if kind == "none":
        return reference.plain_logit
    learned = params.get("attention", {})
    if "w_r" in learned:
        return reference.relative_logit(learned["w_r"]["kernel"], learned["u"], learned["v"])
    return reference.t5_logit(learned["bias"]) if learned else reference.rotary_logit


def expected(params: dict, live, held, sees, kind: str) -> np.ndarray:
    """Outputs BxTxD of the reference."""
    logit = logit_of(params, kind)
    rows = [
        reference.stream([x[row] for x in live], [x[row] for x in held], documents, ragged.LENGTHS, sees, logit)
        for row, documents in enumerate(ragged.DOCUMENTS)
    ]
    return ragged.projected(params, rows)


def holds_the_newest(memory, arrays, slots: int) -> None:
    """The valid entries of a cache are the newest of the open document."""
    for row, documents in enumerate(ragged.DOCUMENTS):
        for kept, source in ((memory.keys, arrays[2]), (memory.values, arrays[3])):
            newest = reference.last_of_document(source[row], documents, slots) if slots else source[row][:0]
            assert memory.length[row] == len(newest)
            np.testing.assert_array_equal(kept[row][kept.shape[1] - len(newest) :], newest)


@pytest.mark.parametrize("case", CASES)
def test_outputs_memory_and_gradients_are_those_of_one_long_attention(case):
    module, sees, is_held = CASES[case]
    kind = module.config.positions
    params, arrays = point = ragged.parameters(module), ragged.inputs()
    weights, direction = ragged.like(arrays[0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, _) = ragged.streamed_with_gradient(module, *point, weights)
    np.testing.assert_allclose(outputs, expected(params, arrays[1:], arrays[1:], sees, kind), atol=ragged.EXACT)
    holds_the_newest(memory, arrays, module.slots)

    def loss(moved):
        live_params, live = moved
        return np.sum(weights * expected(live_params, live[1:], arrays[1:] if is_held else live[1:], sees, kind))

    # a query that sees one key takes its value, whatever both are
    idle = (ragged.INPUTS, "[1][1]", "[1][2]") if case == "window of 1" else (ragged.INPUTS,)
    ragged.assert_slope(gradient, loss, point, direction, idle)


@pytest.mark.parametrize("kind", ["relative", "t5"])
def test_every_kind_of_positions_is_paid_for_and_decodes_like_whole_segments(kind):
    """Contract tests see the registry's defaults only."""
    model = dataclasses.replace(streams.tiny("transformer_xl"), memory=TransformerXLConfig(slots=8, positions=kind))
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    assert streams.walked_flops(model, batch=1) == pytest.approx(model_cost(model).flops, rel=1e-6)
    _, whole = streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, jnp.zeros_like(tokens))
    few = tokens[:, : model.segment + 5]
    np.testing.assert_allclose(streams.decoded(model, params, few), whole[:, : few.shape[1]], atol=5e-5)


def test_relative_positions_are_those_of_the_authors_code():
    """Their layer caches inputs, projects them again and ends in a residual and a layer norm; inv_freq is float32 there."""
    a = public_golden("transformer_xl_kimiyoung_f64")
    x_WxBxTxD, (heads, key_dim) = a["X"].swapaxes(1, 2), a["u"].shape
    documents = np.zeros(x_WxBxTxD.shape[1:3], int)
    with jax.enable_x64(True):
        project = jnp.asarray(a["qkv_net_weight"]).reshape(3, heads, key_dim, -1)
        w_r = jnp.asarray(a["r_net_weight"]).reshape(heads, key_dim, -1)
        dims = dataclasses.replace(ragged.DIMS, heads=heads, kv_heads=heads, key_dim=key_dim, value_dim=key_dim)
        recent, before = window.empty(len(documents), documents.shape[1], dims), jnp.full(len(documents), -1)
        for x, golden in zip(jnp.asarray(x_WxBxTxD), a["O"].swapaxes(1, 2), strict=True):
            segment = Segment(x, *jnp.einsum("btd,nhkd->nbthk", x, project), whole_segment(jnp.asarray(documents), before))
            seen = window.view(segment, recent)
            r = jnp.einsum("jd,hkd->jhk", positions.sinusoids(positions.falling_distances(seen), x.shape[-1]), w_r)
            heard = positions.attend_relative(segment.queries, seen, r, a["u"], a["v"])
            y = x + heard.reshape(*x.shape[:2], -1) @ a["o_net_weight"].T
            y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
            np.testing.assert_allclose(y * a["layer_norm_weight"] + a["layer_norm_bias"], golden, atol=1e-7)
            recent, before = window.append(recent, segment), jnp.zeros(len(documents), int)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"^memory.slots: 0 slots remember nothing"):
        FullConfig(slots=0).check(ragged.DIMS)
    with pytest.raises(ConfigError, match=r"^memory.positions: 'absolute' is not known; choose rotary, relative, t5 or none"):
        TransformerXLConfig(positions="absolute").check(ragged.DIMS)


def test_a_window_of_one_token_keeps_nothing_and_takes_several_segments_at_once():
    model = dataclasses.replace(streams.tiny("local", layers=1), memory=LocalConfig(window=1))
    params, tokens = streams.parameters_of(model), streams.tokens_of(model, segments=2)
    sequence, carry = streams.Sequence(tokens, jnp.zeros_like(tokens)), init_carry(model, len(tokens))

    def logits(together: int) -> np.ndarray:
        _, found, _ = scan_segments(model, params, carry, sequence, lambda logits, part: logits, form=Form(together))
        return found.swapaxes(0, 1).reshape(*tokens.shape, -1)

    np.testing.assert_allclose(logits(2), logits(1), atol=2e-5)  # float32 products of other shapes
