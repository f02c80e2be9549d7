"""∞-former over segments, against a slow float64 reference; its settings and its cost."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.attention import attend_segment
from infini_jax.layers.segment import Boundaries, Segment
from infini_jax.memory.base import AUXILIARY, Dims, memory_bytes
from infini_jax.memory.infinite_former.expectation import order_of
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig, InfiniteMemory
from tests.reference import infinite_former as reference
from tests.support.former import (
    CONFIG,
    DIMS,
    DOCUMENTS,
    GROUPED,
    compiled,
    parameters_of,
    plain,
    relative,
    segment_of,
    segments_of,
    setting,
)


@pytest.mark.parametrize(("tokens", "dims"), [(8, DIMS), (7, DIMS), (8, GROUPED), (1, GROUPED)])
def test_segments_equal_the_reference_with_documents_that_begin_anywhere(tokens, dims):
    with jax.enable_x64(True):
        module, variables, segments = setting(DOCUMENTS[:, :, 8 - tokens :], dims)
        attend, write = compiled(CONFIG, dims)
        memory, params = module.init_memory(3), plain(variables)
        rows = [None, None, None]
        for segment in segments:
            y, metrics = attend(variables, memory, segment)
            memory = write(variables, memory, segment)
            divergences = []
            for b in range(3):
                arrays = [np.asarray(x[b]) for x in (segment.queries, segment.keys, segment.values)]
                edges = (np.asarray(segment.bounds.key_documents[b]), int(segment.bounds.open_document[b]))
                expected, divergence = reference.attend_row(rows[b], *arrays, *edges, params, CONFIG)
                assert relative(y[b], expected) < 1e-12
                divergences.append(divergence)
                rows[b] = reference.write_row(rows[b], np.asarray(segment.inputs[b]), *edges, params, CONFIG)
                assert relative(memory.B[b], rows[b]) < 1e-11  # rounding times the regression's condition
            np.testing.assert_allclose(metrics[AUXILIARY + "kl"], CONFIG.kl_weight * np.mean(divergences), rtol=1e-12)
        assert (memory.writes > 0).all()


def test_a_memory_that_was_never_written_is_neither_read_nor_kept():
    """The flag decides, not the content; the row's document was open before, as after a reset in the middle of it."""
    with jax.enable_x64(True):
        module, variables, segments = setting()
        attend, write = compiled()
        segment, empty = segments[1], module.init_memory(3)
        unwritten = empty.replace(B=empty.B + 1.0)
        y, metrics = attend(variables, unwritten, segment)
        expected, _ = attend(variables, empty, segment)
        np.testing.assert_array_equal(y, expected)
        assert metrics[AUXILIARY + "kl"] == 0
        inputs = np.asarray(segment.inputs[0])
        first = reference.write_row(None, inputs, DOCUMENTS[0, 1], 0, plain(variables), CONFIG)
        assert relative(write(variables, unwritten, segment).B[0], first) < 1e-11


def test_earlier_documents_leave_no_trace():
    """Two streams that differ only before a document's beginning have the same memory and read the same."""
    with jax.enable_x64(True):
        _, variables, segments = setting()
        attend, write = compiled()
        documents = segments[1].bounds.key_documents
        before = documents == 0  # tokens of the first document; row 1 is cut after three of them
        other = segments[1].replace(inputs=jnp.where(before[..., None], 7.0, segments[1].inputs))
        full = InfiniteMemory(jnp.ones((3, CONFIG.basis, DIMS.d_model)), jnp.ones(3, jnp.int32), jnp.zeros(3), None)
        void = InfiniteMemory(jnp.zeros((3, CONFIG.basis, DIMS.d_model)), jnp.zeros(3, jnp.int32), jnp.zeros(3), None)
        ours, theirs = write(variables, full, segments[1]), write(variables, void, other)
        np.testing.assert_array_equal(ours.B[1], theirs.B[1])
        assert np.abs(ours.B[0] - theirs.B[0]).max() > 0.01
        y_full, _ = attend(variables, full, segments[1])
        y_void, _ = attend(variables, void, segments[1])
        np.testing.assert_array_equal(y_full[1, 3:], y_void[1, 3:])
        assert np.abs(y_full[1, :3] - y_void[1, :3]).max() > 0.01


def test_decoding_token_by_token_equals_the_whole_segment():
    sizes = (CONFIG.basis, CONFIG.widths, DIMS.d_model, DIMS.heads, DIMS.kv_heads, DIMS.value_dim, "float64")
    assert order_of(8, *sizes).values_first
    assert not order_of(1, *sizes).values_first
    with jax.enable_x64(True):
        module, variables, segments = setting()
        attend, write = compiled()
        memory = write(variables, module.init_memory(3), segments[0])
        segment = segments[1]
        expected, _ = attend(variables, memory, segment)
        documents = segment.bounds.key_documents
        for t in range(8):
            later = jnp.arange(8) > t  # the buffer's places that no token has filled yet
            bounds = Boundaries(
                documents[:, t : t + 1], jnp.where(later, 99, documents), segment.bounds.open_document, jnp.int32(t)
            )
            opened = Segment(
                inputs=jnp.where(later[:, None], 9.0, segment.inputs),
                queries=segment.queries[:, t : t + 1],
                keys=jnp.where(later[:, None, None], 9.0, segment.keys),
                values=jnp.where(later[:, None, None], 9.0, segment.values),
                bounds=bounds,
            )
            y, _ = attend(variables, memory, opened)
            np.testing.assert_allclose(y[:, 0], expected[:, t], atol=1e-13)  # another order of products


def test_bfloat16_activations_keep_a_float32_memory():
    dims = dataclasses.replace(DIMS, compute="bfloat16")
    module = InfiniteFormer(CONFIG, dims)
    rng = np.random.default_rng(0)
    segments = segments_of(rng, DOCUMENTS[:1], dims)
    variables = parameters_of(rng, module, segments[0])
    attend, write = compiled(CONFIG, dims)
    memory = write(variables, write(variables, module.init_memory(1), segments[0]), segments[1])
    y, metrics = attend(variables, memory, segments[2])
    assert memory.B.dtype == jnp.float32
    assert y.dtype == jnp.bfloat16
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    assert np.isfinite(np.asarray(y, np.float32)).all()


def test_the_context_is_small_at_the_start_of_training():
    """Unit inputs, default settings: training begins as short-term attention, with densities that cover the memory."""
    dims = Dims(d_model=32, heads=4, kv_heads=4, key_dim=8, value_dim=8, segment=64)
    module = InfiniteFormer(InfiniteFormerConfig(basis=128, samples=64), dims)
    documents = np.zeros((2, 3, 64), int)
    segments = segments_of(np.random.default_rng(0), documents, dims)
    init = jax.jit(functools.partial(module.init, method="attend"))
    variables = init(jax.random.key(0), module.init_memory(2), segments[0])
    attend, write = compiled(module.config, dims)
    memory = write(variables, write(variables, module.init_memory(2), segments[0]), segments[1])
    local, _ = attend(variables, module.init_memory(2), segments[2])
    y, metrics = attend(variables, memory, segments[2])
    long_term = float(jnp.sqrt(jnp.mean((y - local) ** 2)))
    assert 1e-4 < long_term < 0.3 * float(jnp.sqrt(jnp.mean(local**2)))
    assert 0.4 < metrics["mu"] < 0.6
    assert 0.5 < metrics["sigma_sq"] < 0.9


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"widths": ()}, "memory.widths"),
        ({"widths": (0.1, 0.0)}, "memory.widths"),
        ({"basis": 7}, "memory.basis"),
        ({"basis": 0}, "memory.basis"),
        ({"basis": 1}, "memory.basis"),
        ({"samples": 0}, "memory.samples"),
        ({"cached": -1}, "memory.cached"),
        ({"tau": 0.0}, "memory.tau"),
        ({"tau": 1.0}, "memory.tau"),
        ({"ridge": 0.0}, "memory.ridge"),
        ({"kl_sigma": 0.0}, "memory.kl_sigma"),
        ({"kl_weight": -1.0}, "memory.kl_weight"),
    ],
)
def test_settings_that_cannot_work_are_named_in_one_line(change, field):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(CONFIG, **change).check(DIMS)
    assert error.value.field == field
    assert "\n" not in str(error.value)


def test_default_settings_pass():
    InfiniteFormerConfig().check(DIMS)


@pytest.mark.parametrize(("size", "count"), [(1, 3), (3, 3), (8, 6), (9, 9)])
def test_resized_shares_the_functions_among_the_widths(size, count):
    config, dims = InfiniteFormer.resized(InfiniteFormerConfig(widths=(0.01, 0.02, 0.05)), DIMS, size)
    assert config.basis == count
    config.check(dims)


def test_at_bytes_fills_what_it_is_given():
    config, dims = InfiniteFormer.at_bytes(CONFIG, dataclasses.replace(DIMS, compute="float32"), 10_000)
    function = DIMS.d_model * 4
    assert 10_000 - 2 * function < memory_bytes(InfiniteFormer(config, dims)) <= 10_000


def test_logical_axes_fit_the_memory():
    module = InfiniteFormer(CONFIG, dataclasses.replace(DIMS, compute="float32"))
    memory, axes = module.init_memory(3), module.logical_axes()
    assert len(axes.B) == memory.B.ndim
    assert len(axes.writes) == memory.writes.ndim
    assert axes.B[0] == axes.writes[0] == "batch"


def counted_flops(jaxpr) -> float:
    """FLOPs of the matrix products and convolutions in a jaxpr without loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            _, inputs, *spatial = equation.params["dimension_numbers"].rhs_spec
            kernel = equation.invars[1].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * kernel[inputs] * math.prod(kernel[i] for i in spatial)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += counted_flops(inner)
    return total


@pytest.mark.parametrize(
    ("tokens", "change"),
    [
        (8, {"basis": 12}),
        (1, {"basis": 12}),
        (5, {"basis": 40}),  # more functions than two for a sample: sampled and refitted in two products
        (16, {"basis": 4, "cached": 5}),
        (16, {"basis": 1200}),  # read through fewer functions
        (8, {"sampling": "sticky"}),
    ],
)
def test_cost_equals_the_products_in_the_program(tokens, change):
    dims = dataclasses.replace(GROUPED, segment=tokens, compute="float32")
    module = InfiniteFormer(dataclasses.replace(CONFIG, **change), dims)
    segment = segment_of(np.random.default_rng(0), np.zeros((1, tokens), int), np.zeros(1, int), dims)
    memory = module.init_memory(1)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), memory, segment, method="attend"))

    def traced(method):
        program = jax.make_jaxpr(functools.partial(module.apply, method=method))(variables, memory, segment)
        return counted_flops(program.jaxpr) / tokens

    cost = module.cost(tokens)
    model_projection = 2.0 * dims.heads * dims.value_dim * dims.d_model  # `out`, which the model counts
    local = counted_flops(jax.make_jaxpr(attend_segment)(segment).jaxpr) / tokens
    assert cost.local == pytest.approx(local)
    assert cost.read == pytest.approx(traced("attend") - local - model_projection)
    assert cost.write == pytest.approx(traced("write"))
