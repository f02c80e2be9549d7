"""Gradients through a stream keep what segments push out of a cache, not every cache: the same gradients, linear memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.temporaries import temporaries
from infini_jax.config import ModelConfig
from infini_jax.memory.base import Memory
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.full import Full, FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.rewind import rewinding_scan
from infini_jax.model.form import Form
from infini_jax.model.stream import forward_segments, init_carry, parameter_shapes, scan_segments
from infini_jax.model.transformer import memories_of, over_layers
from infini_jax.training.gradient import auxiliary_loss
from tests.support import streams
from tests.support.marks import slow_but

EDGES = [20, 34, 41, 90]  # where documents of the first row begin; the second row has one document
SEGMENTS = 8
CACHES = {
    "full": FullConfig(slots=40),
    "compressive": CompressiveConfig(slots=24, compressed=10, ratio=3),
    "memorizing": MemorizingConfig(slots=40, top_k=4, cached=5),
    "landmark": LandmarkConfig(block=4, blocks=10, retrieved=2),
    "landmark that straddles": LandmarkConfig(block=5, blocks=10, retrieved=2),
    "memorizing, beside a cache": MemorizingConfig(slots=40, top_k=4, local="cache"),
    "infini, beside a window": InfiniConfig(local="window"),
    "compressive, beside a cache": CompressiveConfig(slots=0, compressed=10, ratio=3, local="cache"),
    "landmark, beside a cache": LandmarkConfig(block=4, blocks=10, retrieved=2, local="cache"),
    "smaller than a segment": MemorizingConfig(slots=9, top_k=4),
    "fewer blocks than a segment": LandmarkConfig(block=4, blocks=3, retrieved=2),
}
GRADIENTS = ("full", "compressive", "memorizing", "landmark that straddles", *(name for name in CACHES if "beside" in name))


def model_of(memory, **changes) -> ModelConfig:
    return dataclasses.replace(streams.MODEL, memory=memory, **changes)


def documents_of(tokens: jax.Array) -> jax.Array:
    return jnp.searchsorted(jnp.array(EDGES), jnp.arange(tokens.shape[1]), side="right") * jnp.array([[1], [0]])


def test_a_rewinding_scan_is_a_scan():
    """A shift register, whose steps have floats, integers and keys; some outputs are integers."""
    rng = np.random.default_rng(0)
    params, register = jnp.asarray(rng.normal(size=3)), (jnp.asarray(rng.normal(size=(7, 3))), jnp.int32(0))
    items = (jnp.asarray(rng.normal(size=(5, 2, 3))), jnp.arange(5), jax.random.split(jax.random.key(0), 5))

    def step(params, carry, item):
        rows, count = carry
        new, number, key = item
        read = jnp.tanh(rows @ params) @ rows * (1 + number) + jax.random.normal(key, (3,))
        written = jnp.concatenate([rows[2:], jnp.sin(new * params + read)])
        return (written, count + 1), {"read": read, "sign": jnp.sign(read).astype(int), "count": count}

    def lost(before, after, item):
        return before[0][:2], before[1]

    def restored(after, gone, item):
        return jnp.concatenate([gone[0], after[0][:-2]]), gone[1]

    def loss(scan, params, rows, new):
        (rows, count), out = scan(params, (rows, register[1]), (new, *items[1:]))
        return jnp.sum(jnp.cos(rows)) + jnp.sum(out["read"] ** 2 * out["sign"]), (rows, count, out)

    def plain(params, carry, items):
        return jax.lax.scan(lambda carry, item: step(params, carry, item), carry, items)

    def rewinding(params, carry, items):
        return rewinding_scan(jax.checkpoint(step), params, carry, items, lost, restored)

    arguments = (params, register[0], items[0])
    slopes = [jax.jit(jax.value_and_grad(lambda *a, s=s: loss(s, *a), (0, 1, 2), has_aux=True)) for s in (plain, rewinding)]
    # the same numbers, whose sums the compiler may order otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *(f(*arguments) for f in slopes))
    assert "f32[5,7,3]" in str(jax.make_jaxpr(slopes[0])(*arguments))
    assert "f32[5,7,3]" not in str(jax.make_jaxpr(slopes[1])(*arguments))


@pytest.mark.parametrize("together", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", slow_but(("memorizing", "landmark that straddles"), CACHES))
def test_the_memory_before_is_found_again_to_the_bit(case, together):
    """After every step of a stream whose documents begin inside segments, two in one of them."""
    model = model_of(CACHES[case], layers=1)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model, SEGMENTS)
    (memory,), before, length = memories_of(model), init_carry(model, len(tokens)), together * model.segment
    forward = jax.jit(lambda carry, tokens, documents: forward_segments(model, params, carry, tokens, documents)[0])
    back = jax.jit(lambda before, after: turned_back(memory, before, after, together))
    for first in range(0, tokens.shape[1], length):
        after = forward(before, tokens[:, first : first + length], documents_of(tokens)[:, first : first + length])
        jax.tree.map(np.testing.assert_array_equal, back(before, after), before.memory[0])
        before = after


def turned_back(memory: Memory, before, after, segments: int):
    """The memory before by way of what is kept of it."""
    phase = before.phase
    lost = over_layers(lambda b, a: memory.lost(b, a, segments, phase), before.memory[0], after.memory[0])
    return over_layers(lambda a, gone: memory.restored(a, gone, segments, phase), after.memory[0], lost)


def loss_of(model: ModelConfig, params: dict, tokens: jax.Array, bptt: int, form: Form) -> jax.Array:
    sequence, carry = streams.Sequence(tokens, documents_of(tokens)), init_carry(model, len(tokens))
    _, scores, metrics = scan_segments(
        model, params, carry, sequence, lambda logits, part: jnp.sum(jnp.sin(3 * logits)), bptt, form
    )
    return scores.sum() + auxiliary_loss(metrics)


@pytest.mark.parametrize(
    ("bptt", "form"),
    [(0, Form(1, "none")), pytest.param(0, Form(), marks=pytest.mark.slow), pytest.param(2, Form(2), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("case", slow_but(("memorizing", "infini, beside a window"), GRADIENTS))
def test_gradients_are_those_of_a_plain_scan(monkeypatch, case, bptt, form):
    model = model_of(CACHES[case], layers=1)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model, SEGMENTS)

    def gradient() -> dict:
        return jax.jit(jax.grad(lambda params: loss_of(model, params, tokens, bptt, form)))(params)

    found = gradient()
    for module in ("infini_jax.model.stream", "infini_jax.memory.base"):
        monkeypatch.setattr(
            f"{module}.rewinding_scan", lambda step, params, carry, items, *_: plain(step, params, carry, items)
        )
    # the same numbers, whose sums the compiler may order otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), found, gradient())


def plain(step, params, carry, items):
    return jax.lax.scan(lambda carry, item: step(params, carry, item), carry, items)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("full", FullConfig(slots=997)),
        ("memorizing", MemorizingConfig(slots=997, top_k=4)),
        ("landmark", LandmarkConfig(block=4, blocks=997, retrieved=2)),
        ("compressive", CompressiveConfig(slots=997, compressed=997)),
    ],
)
def test_no_cache_is_kept_for_every_segment(name, memory):
    model = model_of(memory)
    tokens = jax.ShapeDtypeStruct((2, SEGMENTS * model.segment), jnp.int32)
    program = jax.make_jaxpr(jax.grad(lambda params, tokens: loss_of(model, params, tokens, 0, Form())))
    text = str(program(parameter_shapes(model), tokens))
    assert "997" in text
    assert not re.search(rf"f32\[{SEGMENTS},(?:\d+,)*997,", text)


def test_a_mechanism_that_writes_otherwise_keeps_all_of_its_memory():
    """What it inherits says nothing of how it writes."""

    class Other(Full):
        def write(self, memory, segment):
            return jax.tree.map(lambda leaf: 2 * leaf, super().write(memory, segment))

    class Same(Full):
        summary = "reads otherwise at most"

    assert (Other.lost, Other.restored) == (Memory.lost, Memory.restored)
    assert (Same.lost, Same.restored) == (Full.lost, Full.restored)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["landmark", "memorizing", "full"])
def test_temporaries_grow_with_the_sequence_not_with_its_square(name):
    """4 times the tokens and slots take about 4 times the bytes; with all caches kept, landmark and full took 12 times."""
    assert temporaries(name, 16384) <= 4.5 * temporaries(name, 4096)
