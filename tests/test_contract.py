"""What every registered mechanism promises."""

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.segment import NO_DOCUMENT
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import memory_bytes, reported_gates
from infini_jax.memory.declared import check_declared
from infini_jax.memory.neighborhood import neighborhood_bytes
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import decode, forward_segments, init_carry, init_decoder, init_params
from infini_jax.model.transformer import memory_parameters
from tests.support import streams
from tests.support.streams import BATCH, SEGMENTS, tiny

pytestmark = pytest.mark.parametrize("name", MECHANISMS)


def test_no_output_depends_on_a_later_token(name):
    """By gradient, exactly zero: also where a mechanism would write a segment before it reads."""
    inputs, length = streams.free_inputs(name), streams.length_of(tiny(name))
    for t in (0, length // 2, length, 2 * length + 3):
        for array in streams.slope(name)(inputs, t):
            assert not np.any(np.asarray(array)[:, t + 1 :]), (
                f"{name}: token {t} reads later ones; `attend` may read earlier segments only"
            )


def test_what_must_be_declared_is_declared(name):
    check_declared(MECHANISMS[name])


def test_a_later_segment_trains_what_is_declared_of_an_earlier_one(name):
    """Through the memory, by gradient; a memory that works on the residual stream has inputs only."""
    inputs, length = streams.free_inputs(name), streams.length_of(tiny(name))
    slopes = streams.slope(name)(inputs, length + 3)  # x, q, k, v; nothing of a query is written
    reached = [bool(np.any(np.asarray(array)[:, :length])) for array in slopes]
    found = tuple(part for part, one in zip(("inputs", "queries", "keys", "values"), reached, strict=False) if one)
    declared = MECHANISMS[name].learns
    if MECHANISMS[name].works_on_stream():
        declared = ("inputs",) if declared else ()
    assert set(found) == set(declared), (
        f"{MECHANISMS[name].__name__} declares learns = {declared}, and gradients reach {found}: declare those, "
        "or stop gradients where the paper does"
    )


def test_split_calls_equal_one_call(name):
    model, params = tiny(name), streams.parameters(name)
    tokens = streams.tokens_of(model)
    run, carry, found = streams.scorer(model), init_carry(model, BATCH), []
    for part in np.split(tokens, SEGMENTS, axis=1):
        carry, logits = run(params, carry, part, np.zeros_like(part))
        found.append(logits)
    whole = streams.logits_of(name, tokens)
    # the same products in another program: XLA may fuse differently, so float32 rounding only
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=2e-5)


@pytest.mark.parametrize("place", [0.5, 1.0, 1.4])
def test_second_packed_document_is_not_affected_by_the_first(name, place):
    """Exactly, for a document that begins within a segment, at its edge, and within a later one."""
    _, params, stream = streams.layer(name)
    edge = round(place * streams.length_of(tiny(name)))
    documents, inputs = streams.documents_of(name, (edge,)), streams.free_inputs(name)
    other = tuple(np.concatenate([array[::-1, :edge] * 1.5 + 0.1, array[:, edge:]], axis=1) for array in inputs)
    first, second = (np.asarray(stream(params, given, documents)) for given in (inputs, other))
    np.testing.assert_array_equal(first[:, edge:], second[:, edge:])
    assert np.abs(first[:, :edge] - second[:, :edge]).max() > 1e-3


def test_memory_of_earlier_segments_changes_the_output(name):
    """Of the same document, read from what the segment before wrote and from an empty memory."""
    model, params = tiny(name), streams.parameters(name)
    first, second = np.split(streams.tokens_of(model, segments=2), 2, axis=1)
    run, documents = streams.scorer(model), np.zeros_like(first)
    written, _ = run(params, init_carry(model, BATCH), first, documents)
    empty = dataclasses.replace(written, memory=init_carry(model, BATCH).memory)
    with_memory, without = (np.asarray(run(params, carry, second, documents)[1]) for carry in (written, empty))
    assert np.abs(with_memory - without).max() > 1e-3


def test_a_document_begins_with_the_same_memory_in_a_new_stream_and_behind_another(name):
    """And its memory has the shapes of an empty one, whatever parameters it begins from."""
    model, params = tiny(name), streams.parameters(name)
    tokens, size = streams.tokens_of(model), model.segment
    documents = np.broadcast_to(np.arange(tokens.shape[1]) >= size, tokens.shape).astype(np.int32)
    behind, new = streams.logits_of(name, tokens, documents), streams.logits_of(name, np.roll(tokens, -size, axis=1))
    # other masks of the same length: float32 rounding only
    np.testing.assert_allclose(np.asarray(behind)[:, size:], np.asarray(new)[:, :-size], atol=2e-5)
    module = memory_of(model.memory, model.dims)
    own = {"params": jax.tree.map(lambda leaf: leaf[0], params["groups_0"]["memory"])}
    shapes = jax.eval_shape(lambda: (module.apply(own, BATCH, method="initial"), module.init_memory(BATCH)))
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes[0])] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes[1])
    ]


def test_attending_does_not_depend_on_what_the_segment_will_write(name):
    """Decoding token by token, which writes only full segments, equals the segments at once."""
    model, params = tiny(name), streams.parameters(name)
    tokens = streams.tokens_of(model)[:, : model.segment + 5]
    whole = np.asarray(streams.logits_of(name, streams.tokens_of(model)))[:, : tokens.shape[1]]
    np.testing.assert_allclose(streams.decoded(model, params, tokens), whole, atol=5e-5)  # float32 products of other shapes


def test_a_memory_that_reads_its_own_segment_reads_the_same_wherever_segments_end(name):
    """Where gates leave nothing of local attention, and in no other memory that is a matrix behind a gate."""
    mechanism, model, rows = MECHANISMS[name], tiny(name), streams.documents_of(name, (21,))
    if not mechanism.reads_own and not (mechanism.gates and mechanism.holds == "matrix"):
        pytest.skip("its gates do not part what it reads from local attention")
    _, params, stream = streams.layer(name)

    def all_memory(path, leaf):
        return jnp.full_like(leaf, 40.0) if streams.names_of(path)[1:] in mechanism.gates else leaf  # a sigmoid of one

    params, inputs = jax.tree_util.tree_map_with_path(all_memory, params), streams.free_inputs(name)
    shorter = dataclasses.replace(model, segment=model.segment // 2)
    module = memory_of(shorter.memory, shorter.dims)

    @jax.jit
    def in_shorter_segments(params, inputs, documents):
        memory, before, outputs = module.init_memory(BATCH), jnp.full(BATCH, NO_DOCUMENT), []
        for number in range(2 * SEGMENTS):
            segment = streams.cut(inputs, documents, number, shorter.dims.segment, before)
            (y, _), memory = module.apply(params, memory, segment, method=streams.both)
            before = segment.bounds.key_documents[:, -1]
            outputs.append(y)
        return jnp.concatenate(outputs, axis=1)

    whole, cut = (np.asarray(run(params, inputs, rows)) for run in (stream, in_shorter_segments))
    first = slice(0, shorter.segment)  # in both the beginning of the first segment
    if mechanism.reads_own:
        alike = first if "reads_alike_in_any_segments" in mechanism.exempt else slice(None)
        np.testing.assert_allclose(cut[:, alike], whole[:, alike], atol=2e-5)  # the same sums in another order
        assert np.abs(whole[:, first]).max() > 1e-3, "it reads earlier segments alone: do not declare `reads_own`"
    else:
        assert np.abs(cut - whole).max() > 1e-3, "declare `reads_own`"


def test_bytes_are_those_of_the_arrays(name):
    model = tiny(name)
    module = memory_of(model.memory, model.dims)
    real = sum(leaf.nbytes for leaf in jax.tree.leaves(module.init_memory(1)))
    assert memory_bytes(module) + neighborhood_bytes(module) == real > 0, "let `init_memory` make every array that is carried"
    assert model.memory_bytes == model.memory_layers * memory_bytes(module) > 0
    assert model.neighborhood_bytes == model.layers * neighborhood_bytes(module)
    assert (model.neighborhood_bytes > 0) == (model.memory.neighbors(model.dims.segment)[0] > 0)


def test_logical_axes_name_every_axis_and_begin_with_the_batch(name):
    module = memory_of(tiny(name).memory, tiny(name).dims)
    memory, axes = module.init_memory(BATCH), module.logical_axes()
    named = jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
    arrays = jax.tree.leaves(memory)
    told = f"let `logical_axes` name every axis of {[array.shape for array in arrays]}, the first batch: {named}"
    assert [len(names) for names in named] == [array.ndim for array in arrays], told
    assert all(names[0] == "batch" and array.shape[0] == BATCH for names, array in zip(named, arrays, strict=True)), told


def test_counted_flops_equal_those_of_the_program(name):
    """The walker sees the forward pass of one segment; masks of a few entries count as products in neither."""
    told = "let `cost` count every product of `attend`, `write`, `enter` and `leave` per token, and none that is not made"
    assert streams.walked_flops(tiny(name)) == pytest.approx(model_cost(tiny(name)).flops, rel=1e-6), told


def with_every_choice(name) -> Iterator[ModelConfig]:
    """The tiny model, and one more for each value of a setting that has named values."""
    model, main = tiny(name), tiny(name).memory.main
    yield model
    for field, kind in typing.get_type_hints(type(main)).items():
        for choice in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ():
            try:
                memory = model.memory.with_main(dataclasses.replace(main, **{field: choice}))
                yield dataclasses.replace(model, memory=memory)
            except ConfigError:
                continue  # it does not go with the other settings


def test_what_is_declared_of_parameters_exists_and_is_declared_once(name):
    mechanism, found = MECHANISMS[name], set()
    for model in with_every_choice(name):
        params = jax.eval_shape(lambda model=model: nn.unbox(streams.block_variables(model)))["params"]
        found |= {streams.names_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params["memory"])}
    declared = [*mechanism.gates, *mechanism.no_decay]
    assert len(declared) == len(set(declared)), "declare a path in `gates` or in `no_decay`, once"
    missing = {*declared, *mechanism.parameter_axes} - found
    assert not missing, f"no setting makes the parameters {missing}: declare them by path below the memory, among {found}"


def test_gates_are_reported_and_follow_from_the_parameters_declared_as_gates_alone(name):
    """As weights: in (0, 1); whatever was read, exactly."""
    model, params = tiny(name), streams.parameters(name)
    first, second = np.split(streams.tokens_of(model, segments=2), 2, axis=1)

    @jax.jit
    def gates(params, carry, tokens):
        carry, _, (metrics, *_) = forward_segments(model, params, carry, tokens, jnp.zeros_like(tokens))
        return reported_gates(metrics), carry

    shapes, _ = jax.eval_shape(gates, params, carry := init_carry(model, BATCH), first)
    told = "declare the gates' parameters in `gates`, and let `attend` report them in its metrics under GATE"
    assert (shapes is None) == (not MECHANISMS[name].gates), told
    if shapes is not None:
        found, carry = gates(params, carry, first)
        assert np.all((found > 0) & (found < 1))
        np.testing.assert_array_equal(found, gates(params, carry, second)[0])
        slopes = jax.grad(lambda params: gates(params, carry, second)[0].sum())(params)
        moved = {streams.names_of(path) for path, slope in jax.tree_util.tree_leaves_with_path(slopes) if np.any(slope)}
        assert moved == memory_parameters(model, "gates")


def test_every_parameter_gets_a_finite_gradient(name):
    """Of the loss that training minimises: some parameters learn from a mechanism's auxiliary loss only."""
    slopes = streams.slopes_of(tiny(name), streams.parameters(name))
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf), f"nothing trains {path}: leave it out, or give it an auxiliary loss"


def test_bf16_compute_is_close_to_float32_and_keeps_a_float32_memory(name):
    model = dataclasses.replace(tiny(name), compute="bfloat16")
    tokens = streams.tokens_of(model)
    logits, exact = (np.asarray(streams.logits_of(name, tokens, model=one)) for one in (model, None))
    # bf16 has 8 bits: two layers of products of order one are off by a few 2^-8
    assert np.sqrt(np.mean((logits - exact) ** 2)) < 0.05 * np.std(exact)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(init_carry(model, 1).memory) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype("float32")}


def test_rows_do_not_affect_each_other(name):
    tokens = streams.tokens_of(tiny(name))
    other = np.stack([tokens[0], (tokens[1] + 7) % tiny(name).vocab])
    first, second = (np.asarray(streams.logits_of(name, given)) for given in (tokens, other))
    np.testing.assert_array_equal(first[0], second[0])
    assert np.any(first[1] != second[1])


def test_streams_of_any_length_keep_a_memory_of_one_shape(name):
    model = tiny(name)
    shapes = jax.eval_shape(lambda: init_carry(model, BATCH))
    params = streams.parameters(name)
    tokens = jax.ShapeDtypeStruct((BATCH, SEGMENTS * model.segment), jnp.int32)
    after, _ = jax.eval_shape(streams.scorer(model), params, shapes, tokens, tokens)
    assert jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, after, shapes) == jax.tree.map(
        lambda _: True, shapes
    )
    assert math.prod(after.open_document.shape) == BATCH


def test_reading_a_token_copies_no_memory(name):
    """In the program of a donated decoder: a copy of what is carried, at every token, would cost more than the reading."""
    kept_from_it = MECHANISMS[name].exempt.get("reads_without_a_copy")
    if kept_from_it:
        pytest.skip(kept_from_it)
    model = tiny(name, layers=1)
    model = model.at_bytes(max(2**16, model.memory_bytes))
    shapes = jax.eval_shape(lambda: (init_params(model, jax.random.key(0)), init_decoder(model, init_carry(model, 1))))
    token = jax.ShapeDtypeStruct((1,), jnp.int32)
    program = jax.jit(functools.partial(decode, model), donate_argnums=1).lower(*shapes, token, token).compile().as_text()
    entry = program[program.index("ENTRY") :]
    for leaf in jax.tree.leaves(shapes[1].carry.memory):
        if leaf.size >= 4096:
            shape = ",".join(str(size) for size in leaf.shape)
            assert f"f32[{shape}]" in entry
            told = f"a token copies f32[{shape}]: mend `attend`, or declare `reads_without_a_copy` in `exempt` with the reason"
            assert not re.findall(rf"= f32\[{shape}\]\S* copy\(", entry), told
