"""Shape suffixes in the package say the truth: all that a mechanism traces is compared with its names. Nothing compiles."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.codes import learning, random_codes
from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import ModelConfig
from infini_jax.data.batch import Batch
from infini_jax.layers import attention
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.armt import ARMTConfig
from infini_jax.memory.base import Memory
from infini_jax.memory.beside import BesideConfig
from infini_jax.memory.block_recurrent import BlockRecurrentConfig
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.gated_delta2 import GatedDelta2Config
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig
from infini_jax.memory.kimi_delta import KimiDeltaConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.landmark.softmax import grouped_softmax
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.log_linear import LogLinearConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.memory_caching import MemoryCachingConfig
from infini_jax.memory.rmt import RMTConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.model.generate import draw, read_segment
from infini_jax.model.stream import forward_segments, init_carry, init_params, logits_of, scan_segments
from infini_jax.training.gradient import auxiliary_loss, score_tokens
from tests.support import extra_mechanisms, shape_suffixes, streams

# No two letters have one size, so that a name cannot be right by accident: S 24, D 22, H 6, G 2, K 8, V 10, F 34.
SIZES = {
    "vocab": 33,
    "layers": 1,
    "d_model": 22,
    "heads": 6,
    "kv_heads": 2,
    "key_dim": 8,
    "value_dim": 10,
    "mlp_dim": 34,
    "segment": 24,
    "key_taps": 3,
}
ROWS, SEGMENTS = 5, 4
LANDMARKS = LandmarkConfig(block=6, blocks=7, retrieved=3)
FORMER = InfiniteFormerConfig(basis=26, samples=19)
SETTINGS = {
    "local": [LocalConfig(window=13)],
    "full": [FullConfig(slots=37)],
    "transformer_xl": [TransformerXLConfig(slots=13, positions=kind) for kind in ("rotary", "relative", "t5")],
    "compressive": [
        *(CompressiveConfig(slots=13, compressed=7, positions=kind) for kind in ("rotary", "relative")),
        CompressiveConfig(slots=0, compressed=7, local="cache"),
    ],
    "infini": [
        InfiniConfig(),
        InfiniConfig(update="delta"),
        InfiniConfig(feature_map="dpfp"),
        InfiniConfig(reads="plain"),
        InfiniConfig(local="cache"),
    ],
    "gated_delta": [GatedDeltaConfig(), GatedDeltaConfig(decay="none")],
    "kimi_delta": [KimiDeltaConfig()],
    "gated_delta2": [GatedDelta2Config()],
    "log_linear": [LogLinearConfig(longest=99)],
    "memory_caching": [MemoryCachingConfig(slots=7), MemoryCachingConfig(slots=7, selected=3, begins="empty")],
    "memorizing": [
        MemorizingConfig(slots=17, top_k=3, cached=13),
        MemorizingConfig(slots=17, top_k=3, local="window"),
        MemorizingConfig(slots=17, top_k=3, search="approximate"),
        MemorizingConfig(slots=17, top_k=3, held="host"),
        MemorizingConfig(slots=2**21, top_k=3),  # searched in groups: nothing of it is computed
    ],
    "landmark": [
        LANDMARKS,
        dataclasses.replace(LANDMARKS, selection="heads"),
        dataclasses.replace(LANDMARKS, selection="tokens"),
        dataclasses.replace(LANDMARKS, blocks=1000),  # each pair of query and block has its own copy
        dataclasses.replace(LANDMARKS, blocks=0),
        dataclasses.replace(LANDMARKS, local="cache"),
        dataclasses.replace(LANDMARKS, block=9),  # segments are no whole blocks
        dataclasses.replace(LANDMARKS, block=9, blocks=0),
    ],
    "infinite_former": [
        FORMER,
        dataclasses.replace(FORMER, samples=9, cached=13),
        dataclasses.replace(FORMER, sampling="sticky"),
        dataclasses.replace(FORMER, sampling="sticky_uniform"),
    ],
    "rmt": [RMTConfig(tokens=7)],
    "armt": [ARMTConfig(tokens=7, key_size=13)],
    "block_recurrent": [BlockRecurrentConfig(states=13), BlockRecurrentConfig(states=13, gate="lstm")],
}
CASES = [pytest.param(name, memory, id=f"{name}{i}") for name in MECHANISMS for i, memory in enumerate(SETTINGS[name])]


def check(found: shape_suffixes.Checked) -> None:
    assert found.names
    assert not found.wrong, "\n".join(found.wrong.values())


def params_of(model: ModelConfig) -> dict:
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def tokens_of(model: ModelConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((ROWS, SEGMENTS * model.segment), jnp.int32)


def trace_segments(model: ModelConfig) -> None:
    """The gradient of several segments of each stream, which every layer takes before the next one does."""

    def loss(params, tokens):
        _, features, _ = forward_segments(model, params, init_carry(model, ROWS), tokens, tokens)
        return logits_of(model, params, features).sum()

    jax.eval_shape(jax.grad(loss), params_of(model), tokens_of(model))


def trace_training(model: ModelConfig) -> None:
    """The gradient of the training loss, segment after segment."""

    def loss(params, tokens):
        batch = Batch(tokens, tokens, jnp.ones(tokens.shape), tokens)
        _, scores, metrics = scan_segments(model, params, init_carry(model, ROWS), batch, score_tokens)
        return scores.loss.sum() + auxiliary_loss(metrics)

    jax.eval_shape(jax.grad(loss), params_of(model), tokens_of(model))


def trace_decoding(model: ModelConfig) -> None:
    """Of a few tokens; what closes a full segment is a part of the program."""
    jax.eval_shape(functools.partial(streams.decoded, model), params_of(model), jax.ShapeDtypeStruct((ROWS, 3), jnp.int32))


def trace_layer(model: ModelConfig, together: int) -> None:
    """The gradient of one layer that takes so many segments of each stream at once."""
    module, d = memory_of(model.memory, model.dims), model.dims
    sizes = [(d.d_model,), (d.heads, d.key_dim), (d.kv_heads, d.key_dim), (d.kv_heads, d.value_dim)]

    def arrays(rows: int) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((rows, d.segment, *size), d.dtype) for size in sizes]

    def segments(arrays) -> Segment:
        rows = arrays[0].shape[0]
        phase = jnp.zeros(rows, jnp.int32) if model.has_phase else None
        return Segment(*arrays, whole(jnp.zeros((rows, d.segment), jnp.int32), jnp.zeros(rows, jnp.int32), phase))

    def created(arrays):
        return module.init(jax.random.key(0), module.init_memory(ROWS), segments(arrays), method=streams.both)

    def loss(params, arrays):
        y, memory, _ = module.apply(params, module.init_memory(ROWS), segments(arrays), method="advance")
        leaves = [leaf for leaf in jax.tree.leaves(memory) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(leaf.sum() for leaf in (y, *leaves))

    params = jax.eval_shape(created, arrays(ROWS))
    jax.eval_shape(jax.grad(loss, argnums=(0, 1)), params, arrays(ROWS * together))


@pytest.mark.parametrize(("name", "memory"), CASES)
def test_of_a_layer_in_tiles(name, memory):
    model = streams.tiny(name, **SIZES, memory=memory)
    with shape_suffixes.checked() as found, attention.form("blockwise"):
        trace_layer(model, SEGMENTS if MECHANISMS[name].advance is not Memory.advance else 1)  # in a form of its own
    check(found)


@pytest.mark.parametrize(("name", "segment"), [("local", 257), ("landmark", 258)])
def test_of_tiles_in_several_bands(name, segment):
    """Segments that are no whole tiles, of which later ones meet more keys."""
    model = streams.tiny(name, **SIZES | {"segment": segment}, memory=SETTINGS[name][0])
    with shape_suffixes.checked() as found, attention.form("blockwise"):
        trace_layer(model, 1)
    check(found)


@pytest.mark.parametrize("name", MECHANISMS)
def test_of_a_model_that_learns_and_decodes(name):
    with shape_suffixes.checked() as found:
        model = streams.tiny(name, **SIZES, memory=SETTINGS[name][-1])
        (trace_training if MECHANISMS[name].works_on_stream() else trace_segments)(model)
        trace_decoding(model)
    check(found)


def test_of_memory_tokens():
    with extra_mechanisms.registered(), shape_suffixes.checked() as found:
        model = streams.tiny("recurrent", **SIZES, memory=extra_mechanisms.RecurrentConfig(tokens=7))
        trace_training(model)
        trace_decoding(model)
    check(found)


@pytest.mark.parametrize("block", [LANDMARKS.block, 9])
def test_of_a_memory_beside_attention(block):
    memory = BesideConfig(native=LocalConfig(window=11), added=dataclasses.replace(LANDMARKS, block=block))
    with shape_suffixes.checked() as found:
        model = streams.tiny("landmark", **SIZES, memory=memory)
        trace_training(model)
        trace_decoding(model)
    check(found)


def test_of_the_codes_of_a_layer_alone():
    run = CapacityRun(memory=LANDMARKS, symbols=33, heads=6, key_dim=8, value_dim=10, segment=24, pairs=(1, 31), batch=5)
    with shape_suffixes.checked() as found:
        pairs = learning.draw(run, np.random.default_rng(0), 2 * run.segment, np.full(5, 31), np.full(5, 17))
        params = jax.eval_shape(functools.partial(learning.init_layer, run), jax.random.key(0))
        jax.eval_shape(jax.grad(functools.partial(learning.loss, run), has_aux=True), params, pairs)
    check(found)


def test_of_random_codes():
    with shape_suffixes.checked() as found:
        random_codes.measure(random_codes.RandomCodesRun(key_dim=8, value_dim=10, symbols=33, pairs=(4, 16), questions=64))
    check(found)


def test_of_a_prompt_and_of_sampling():
    model = streams.tiny("infini", **SIZES)
    params, carry = jax.eval_shape(lambda: (init_params(model, jax.random.key(0)), init_carry(model, 1)))
    with shape_suffixes.checked() as found:
        _, logits = jax.eval_shape(functools.partial(read_segment, model), params, carry, jnp.zeros((1, 24), jnp.int32))
        jax.eval_shape(draw, jax.random.key(0), logits, 1.0, 0.5)
    check(found)


def test_of_what_no_mechanism_calls():
    """The dense form of attention with grouped heads, and the readable reference of landmark attention."""
    q, k, v = jnp.zeros((5, 24, 6, 8)), jnp.zeros((5, 24, 2, 8)), jnp.zeros((5, 24, 2, 10))
    bounds = whole(jnp.zeros((5, 24), jnp.int32), jnp.zeros(5, jnp.int32))

    def dense():
        return attention.dense(q, k, v, bounds.local_BxSxT)

    def weights():
        return grouped_softmax(jnp.zeros((5, 6, 24, 24)), jnp.zeros((5, 24), bool), bounds.local_BxSxT)

    with shape_suffixes.checked() as found:
        jax.eval_shape(lambda: (dense(), weights()))
    check(found)


def planted(q_BxSxK, w_Kx2K, few_BxT, gate_Bx1, top_k):
    y_BxSx2K = q_BxSxK @ w_Kx2K
    row_SxK = jax.vmap(lambda x_BxK: x_BxK + 1)(q_BxSxK)
    pair_BxS = (q_BxSxK, q_BxSxK)
    sums = sum(part_S.sum() + top_k.sum() for part_S in pair_BxS)  # from Python 3.12 on, a list's has no frame of its own
    return sums, y_BxSx2K, few_BxT, gate_Bx1, row_SxK, mean_B(q_BxSxK)


def mean_B(x_BxSx):
    return x_BxSx.mean(axis=1)


def test_a_planted_lie_is_told_in_one_line():
    """Of variables, of functions inside a function, of comprehensions and of what a function is named for."""
    code, shapes = planted.__code__, [(5, 3, 4), (4, 8), (6, 3), (5, 2), (2, 2, 2)]
    with shape_suffixes.checked(Path(__file__)) as found:
        planted(*map(jnp.zeros, shapes))
    file = "tests/test_shape_suffixes.py: "
    assert set(found.wrong.values()) == {
        file + "planted.<locals>.<genexpr>: part_S is (5, 3, 4), 1 axes are named",
        file + "mean_B: mean_B is (5, 4), 1 axes are named",
        file + "planted: few_BxT is (6, 3), B is 5 elsewhere in the function",
        file + "planted: gate_Bx1 is (5, 2), the axis 1 is of size 2",
        file + "planted: row_SxK is (5, 3, 4), 2 axes are named",
    }
    assert planted.__code__ is code
