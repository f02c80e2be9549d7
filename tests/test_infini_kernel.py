"""Infini-attention's kernels, interpreted, against the equations in float64 NumPy, forwards and backwards.

Gradients are compared along random directions: a step of 1e-30 i leaves the exact derivative in the imaginary part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.platforms import target
from infini_jax.layers.segment import NO_DOCUMENT, Segment, whole
from infini_jax.memory import infini_form
from infini_jax.memory.base import Dims
from infini_jax.memory.infini import Infini, InfiniConfig, InfiniMemory
from infini_jax.memory.infini_kernel import CHUNK, Cells, read, refuses, written
from tests.support import ragged

KEEPS = np.array([True, False, True])  # the second row's document began inside the segment
NAMES = ("M", "z", "q", "k", "v")
DIRECTIONS = 4


def arrays_of(tokens: int, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> list[np.ndarray]:
    """M, z, queries, keys and values of three rows, float64; the last row's memory is empty."""
    rng, rows = np.random.default_rng(0), len(KEEPS)
    M, z = rng.normal(size=(rows, kv_heads, key_dim, value_dim)), rng.uniform(1, 2, (rows, kv_heads, key_dim))
    M[-1], z[-1] = 0.0, 0.0
    shapes = (heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim)
    return [M, z, *(rng.normal(size=(rows, tokens, *shape)) for shape in shapes)]


def first_of(tokens: int) -> np.ndarray:
    """Place of the first token that is written in each row: of the second one inside a block."""
    return np.array([0, tokens // 2 + 3, 0])


def reference(arrays, update: str, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A_mem, M', z') by eq. 7 to 9, row by row and head by head; the arrays may be complex."""
    M, z, q, k, v = arrays
    kind = np.result_type(*arrays)
    A, after, total = (np.zeros(shape, kind) for shape in ((*q.shape[:3], v.shape[3]), M.shape, z.shape))

    def sigma(x):
        return np.where(x.real > 0, scale * x + 1, np.exp(scale * x))

    def asked(M, z, f):
        mass = (f @ z)[:, None]
        return np.where(mass.real > 0, f @ M / np.where(mass.real > 0, mass, 1), 0)

    for b, first in enumerate(first_of(q.shape[1])):
        for h in range(q.shape[2]):
            g = h // (q.shape[2] // k.shape[2])
            A[b, :, h] = asked(M[b, g], z[b, g], sigma(q[b, :, h]))
        for g in range(k.shape[2]):
            f, u, old = sigma(k[b, first:, g]), v[b, first:, g], (M[b, g] * KEEPS[b], z[b, g] * KEEPS[b])
            u = u - asked(*old, f) if update == "delta" else u
            after[b, g], total[b, g] = old[0] + f.T @ u, old[1] + f.sum(0)
    return A, after, total


def by_kernel(arrays, update: str, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same by the kernels."""
    M, z, q, k, v = arrays
    edges = jnp.asarray(KEEPS), jnp.asarray(first_of(q.shape[1]))
    return read(M, z, q, scale=scale, interpret=True), *written(M, z, k, v, *edges, update, scale=scale, interpret=True)


@functools.partial(jax.jit, static_argnames=("update", "scale"))
def with_gradients(arrays, slopes, update: str, scale: float):
    """(results, gradients) of the kernels."""
    results, pull = jax.vjp(lambda *arrays: by_kernel(arrays, update, scale), *arrays)
    return results, pull(tuple(x.astype(one.dtype) for x, one in zip(slopes, results, strict=True)))


def compare(arrays, found, update: str, scale: float, bounds: dict[str, float], slopes) -> None:
    """Compares results, and gradients along random directions, whose components other than one array's are zero."""
    results, gradients = found
    exact = [np.asarray(x, np.float64) for x in arrays]
    for name, ours, theirs in zip(("A", "M'", "z'"), results, reference(exact, update, scale), strict=True):
        np.testing.assert_allclose(np.float64(ours), theirs, atol=bounds[name] * np.abs(theirs).max(), err_msg=f"{name}")
    rng, step = np.random.default_rng(5), 1e-30
    for place, name in enumerate(NAMES):
        gradient = np.float64(gradients[place])
        for turn in range(DIRECTIONS):
            direction = rng.normal(size=gradient.shape) * (rng.uniform(size=gradient.shape) < 4.0**-turn)
            moved = [x + (1j * step * direction if number == place else 0) for number, x in enumerate(exact)]
            along = (
                sum((x * slope).sum().imag for x, slope in zip(reference(moved, update, scale), slopes, strict=True)) / step
            )
            size = np.sqrt((gradient**2).mean() * (direction**2).sum()) + 1e-30
            np.testing.assert_allclose((gradient * direction).sum(), along, atol=bounds["d"] * size, err_msg=f"d{name}")


def slopes_of(arrays) -> list[np.ndarray]:
    """Random gradients by A_mem, M' and z'."""
    rng, (M, z, q, _, v) = np.random.default_rng(9), arrays
    return [rng.normal(size=shape) for shape in ((*q.shape[:3], v.shape[3]), M.shape, z.shape)]


@pytest.mark.parametrize("update", ["linear", "delta"])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "key_dim", "value_dim", "scale"),
    [
        (2 * CHUNK, 2, 1, 32, 64, 1.0),
        pytest.param(3 * CHUNK, 8, 8, 32, 32, 0.5, marks=pytest.mark.slow),  # as many memories as queries
        pytest.param(17 * CHUNK, 3, 3, 32, 32, 1.0, marks=pytest.mark.slow),  # 17 blocks of one chunk
        pytest.param(20 * CHUNK, 2, 2, 128, 128, 1.0, marks=pytest.mark.slow),  # two blocks of ten chunks
    ],
)
def test_results_and_all_gradients_are_those_of_the_equations(update, tokens, heads, kv_heads, key_dim, value_dim, scale):
    arrays = arrays_of(tokens, heads, kv_heads, key_dim, value_dim)
    slopes = slopes_of(arrays)
    with jax.enable_x64(True):
        found = with_gradients([jnp.asarray(x) for x in arrays], [jnp.asarray(x) for x in slopes], update, scale)
    exact = 1e-11  # float64 rounding of some thousand terms
    compare(arrays, found, update, scale, dict.fromkeys(("A", "M'", "z'", "d"), exact), slopes)


@pytest.mark.parametrize("update", [pytest.param("linear", marks=pytest.mark.slow), "delta"])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [pytest.param(jnp.float32, 2**-23, marks=pytest.mark.slow), (jnp.bfloat16, 2**-8)]
)
def test_narrow_types_stay_near_the_equations_of_the_same_numbers(dtype, rounding, update):
    """Sums and the memory are float32 whatever queries, keys and values are; reads and gradients are rounded at the end."""
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays_of(CHUNK, 2, 1, 32, 32)]
    arrays = [*arrays[:2], *(x.astype(dtype) for x in arrays[2:])]
    slopes = [np.float64(jnp.asarray(x, dtype)) for x in slopes_of(arrays)]
    results, gradients = with_gradients(arrays, [jnp.asarray(x, jnp.float32) for x in slopes], update, 1.0)
    assert [x.dtype for x in results] == [dtype, jnp.float32, jnp.float32]
    assert [x.dtype for x in gradients] == [jnp.float32, jnp.float32, dtype, dtype, dtype]
    wide = 2e-5  # sums over hundreds of tokens in float32
    bounds = {"A": rounding + wide, "M'": wide, "z'": wide, "d": 2 * rounding + wide}
    compare(arrays, (results, gradients), update, 1.0, bounds, slopes)


def test_an_empty_memory_reads_zero_and_one_that_overflowed_is_not_taken_for_empty():
    M, z, q, *_ = (jnp.asarray(x, jnp.float32) for x in arrays_of(CHUNK, 2, 1, 32, 32))
    gradient = jax.grad(lambda *arrays: read(*arrays, interpret=True).sum(), argnums=(0, 1, 2))
    assert not np.any(read(0 * M, 0 * z, q, interpret=True))
    assert all(not np.any(x) for x in gradient(0 * M, 0 * z, q))
    assert np.all(np.isnan(read(M, z.at[0].set(jnp.inf), q, interpret=True)[0]))


@pytest.mark.parametrize("update", [pytest.param("linear", marks=pytest.mark.slow), "delta"])
def test_what_the_segment_does_not_keep_leaves_no_trace(update):
    """A memory of infinities behind the edge of a document changes neither the memory after nor any gradient."""
    M, z, _, k, v = (jnp.asarray(x, jnp.float32) for x in arrays_of(CHUNK, 1, 1, 32, 32))
    edges = jnp.zeros(3, bool), jnp.asarray(first_of(CHUNK))

    def loss(M, z, k, v):
        after, total = written(M, z, k, v, *edges, update, interpret=True)
        return jnp.sin(after).sum() + jnp.cos(total).sum()

    both = [jax.value_and_grad(loss, (0, 1, 2, 3))(fill + 0 * M, fill + 0 * z, k, v) for fill in (0.0, jnp.nan)]
    assert not np.any(both[1][1][0])
    assert not np.any(both[1][1][1])
    assert not np.any(both[1][1][2][1, : CHUNK // 2 + 3])  # keys that are not written
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.slow
def test_runs_are_mapped_side_by_side():
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays_of(CHUNK, 2, 1, 32, 32)]
    slopes = [jnp.asarray(x, jnp.float32) for x in slopes_of(arrays)]
    other = [jnp.flip(x, 1) for x in arrays]
    stacked = [jnp.stack(x) for x in zip(arrays, other, strict=True)]
    mapped = jax.vmap(lambda *arrays: with_gradients(arrays, slopes, "delta", 1.0))(*stacked)
    for number, alone in enumerate((arrays, other)):
        expected = with_gradients(alone, slopes, "delta", 1.0)
        for ours, theirs in zip(jax.tree.leaves(mapped), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours[number], theirs, rtol=1e-4, atol=1e-4)  # float32 sums in another order


# ---- where it is chosen --------------------------------------------------------------------------------------------------


def shapes_like(tokens: int = 2048, key_dim: int = 128, dtype=jnp.bfloat16, heads: int = 8, rows: int = 16):
    """A memory, and queries that are its keys and values too."""
    memory = InfiniMemory(
        jax.ShapeDtypeStruct((rows, heads, key_dim, key_dim), jnp.float32),
        jax.ShapeDtypeStruct((rows, heads, key_dim), jnp.float32),
    )
    return memory, jax.ShapeDtypeStruct((rows, tokens, heads, key_dim), dtype)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (shapes_like(100), "takes segments that 128 divides, not 100"),
        (shapes_like(1), "takes segments that 128 divides, not 1"),
        (shapes_like(key_dim=64), "takes dims that 128 divides, not 64 and 64"),
        (shapes_like(dtype=jnp.float16), "takes float32 and bfloat16 and a memory of float32, not float16 and float32"),
        (shapes_like(key_dim=1024), "MiB on the chip"),
    ],
)
def test_what_the_kernels_cannot_do_is_plain_and_refused_where_they_are_asked_for(case, reason):
    memory, tokens = case
    assert reason in refuses(memory.M, tokens)
    with target("tpu"):
        assert infini_form.chosen_form(memory, "elu_plus_one", "linear", tokens) == "plain"
    with infini_form.form("kernel"), pytest.raises(ConfigError, match=rf"^infini.form: the kernel .*{reason}"):
        infini_form.chosen_form(memory, "elu_plus_one", "linear", tokens)


@pytest.mark.parametrize(("feature_map", "z"), [("dpfp", True), ("elu_plus_one", False)])
def test_other_maps_and_reads_without_a_normalizer_are_plain(feature_map, z):
    memory, tokens = shapes_like()
    memory = memory if z else memory.replace(z=None)
    with target("tpu"):
        assert infini_form.chosen_form(memory, feature_map, "linear", tokens) == "plain"
    with infini_form.form("kernel"), pytest.raises(ConfigError, match=r"^infini.form: the kernel reads with sigma"):
        infini_form.chosen_form(memory, feature_map, "linear", tokens)


def test_a_tpu_takes_the_kernels_for_linear_updates_of_bfloat16_that_outgrow_the_chip_and_others_do_not():
    large, small = shapes_like(), shapes_like(256)
    assert infini_form.chosen_form(large[0], "elu_plus_one", "linear", large[1]) == "plain"
    with target("tpu"):
        assert infini_form.chosen_form(large[0], "elu_plus_one", "linear", large[1]) == "kernel"
        assert infini_form.chosen_form(small[0], "elu_plus_one", "linear", small[1]) == "plain"
        assert infini_form.chosen_form(large[0], "elu_plus_one", "delta", large[1]) == "plain"
        wide = shapes_like(dtype=jnp.float32)
        assert infini_form.chosen_form(wide[0], "elu_plus_one", "linear", wide[1]) == "plain"
        with infini_form.form("plain"):
            assert infini_form.chosen_form(large[0], "elu_plus_one", "linear", large[1]) == "plain"
        with infini_form.form("kernel"):
            assert infini_form.chosen_form(small[0], "elu_plus_one", "linear", small[1]) == "kernel"
    with infini_form.form("fast"), pytest.raises(ConfigError, match=r"^infini.form: 'fast' is no form; choose one"):
        infini_form.chosen_form(large[0], "elu_plus_one", "linear", large[1])


def test_as_many_chunks_are_in_a_block_as_divide_the_segment_and_find_room():
    found = {}
    for tokens, dim in ((2048, 128), (640, 128), (2176, 128), (2048, 512)):
        memory, queries = shapes_like(tokens, dim)
        cells = Cells.of(memory.M, queries)
        found[tokens, dim] = cells.chunks
        assert cells.bytes_on_chip(dim, dim) <= 12 * 2**20
    assert found == {(2048, 128): 16, (640, 128): 5, (2176, 128): 1, (2048, 512): 2}  # 2176 tokens are 17 chunks


def layer_case(update: str):
    """A layer with grouped heads of 128, its parameters, a memory and a segment of 128 tokens in which documents end."""
    module = Infini(InfiniConfig(update=update, feature_scale=0.7), Dims(16, 2, 1, 128, 128, CHUNK))
    rng, rows = np.random.default_rng(1), 3
    inputs = [rng.normal(size=(rows, CHUNK, *shape)).astype(np.float32) for shape in ragged.shapes(module.dims)]
    documents = np.searchsorted([40, 90], np.arange(CHUNK), side="right") * np.array([[0], [1], [1]])
    segment = Segment(*map(jnp.asarray, inputs), whole(jnp.asarray(documents), jnp.array([0, 0, NO_DOCUMENT])))
    memory = InfiniMemory(
        jnp.asarray(rng.normal(size=(rows, 1, 128, 128)), jnp.float32),
        jnp.asarray(rng.uniform(1, 2, (rows, 1, 128)), jnp.float32),
    )
    params = module.init(jax.random.key(0), memory, segment, method="advance")["params"]
    return module, params, memory, segment


@pytest.mark.slow
@pytest.mark.parametrize("update", ["linear", "delta"])
def test_a_layer_is_the_same_by_the_kernels_with_its_gradients(update):
    """Documents that end inside the segment, a new stream, grouped queries and a scale of features."""
    module, params, memory, segment = layer_case(update)

    def loss(params, memory, segment):
        y, after, _ = module.apply({"params": params}, memory, segment, method="advance")
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(after)), (y, after)

    def by(form):
        with infini_form.form(form):
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True))(params, memory, segment)

    for ours, theirs in zip(jax.tree.leaves(by("kernel")), jax.tree.leaves(by("plain")), strict=True):
        if ours.dtype == jnp.float32:
            size = max(1.0, float(np.abs(theirs).max()))
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * size)  # float32 sums of sines in another order


@pytest.mark.slow
@pytest.mark.parametrize("update", ["linear", "delta"])
def test_the_kernels_and_their_gradients_lower_for_a_tpu_alone_and_mapped(update):
    module, params, memory, segment = layer_case(update)

    def loss(memory, params, segment):
        y, after, _ = module.apply({"params": params}, memory, segment, method="advance")
        return jnp.sin(y).sum() + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(after))

    by_memory_and_keys = jax.grad(loss, (0, 2), allow_int=True)
    mapped = jax.vmap(by_memory_and_keys, (0, None, None))
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), memory)
    for function, given in ((by_memory_and_keys, memory), (mapped, runs)):
        with target("tpu"), infini_form.form("kernel"):
            text = jax.jit(function).trace(given, params, segment).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("custom_call @tpu_custom_call") == 4  # a read and a write, forwards and backwards
