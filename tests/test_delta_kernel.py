"""The gated delta rule's kernel, interpreted, against a float64 loop token by token, forwards and backwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.platforms import target
from infini_jax.layers.segment import NO_DOCUMENT, Segment, whole
from infini_jax.memory import gated_delta
from infini_jax.memory.base import Dims
from infini_jax.memory.delta_kernel import CHUNK, Plan, refuses, unit_lower_inverse, written
from infini_jax.memory.gated_delta import GatedDelta, GatedDeltaConfig
from tests.reference import gated_delta as reference
from tests.support import ragged

KEEPS = np.array([[True, False, True], [True, True, False]])  # 2 rows of 3 segments, in which documents end
NAMES = ("before", "after", "dS", "dk", "dv", "dbeta", "dg")


def arrays_of(tokens: int, heads: int, key_dim: int, value_dim: int, seed: int = 0) -> list[np.ndarray]:
    """S, keys, values, beta and g of all rows and segments, float64. A tail of each segment's tokens is not written."""
    rng, (rows, count) = np.random.default_rng(seed), KEEPS.shape
    lead = rows * count, tokens, heads
    written_T = np.arange(tokens) < tokens - 3
    beta, g = rng.uniform(size=lead) * written_T[:, None], -rng.exponential(0.1, lead) * written_T[:, None]
    keys, values = rng.normal(size=(*lead, key_dim)), rng.normal(size=(*lead, value_dim))
    return [rng.normal(size=(rows, heads, key_dim, value_dim)), keys, values, beta, g]


def slopes_of(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Random gradients by S before each segment and after the last."""
    rng, S = np.random.default_rng(9), arrays[0]
    return [rng.normal(size=(S.shape[0], KEEPS.shape[1], *S.shape[1:])), rng.normal(size=S.shape)]


def expected(arrays: list[np.ndarray], slopes: list[np.ndarray]) -> list[np.ndarray]:
    """Results and gradients of the float64 loop, in the kernel's shapes, in the order of `NAMES`."""
    S, *tokens = (np.asarray(x, np.float64) for x in arrays)
    rows, count = KEEPS.shape
    tokens = [x.reshape(rows, count, *x.shape[1:]) for x in tokens]
    before, after = (np.zeros_like(x) for x in slopes)
    dS, dtokens = np.zeros_like(S), [np.zeros_like(x) for x in tokens]
    for b in range(rows):
        for h in range(S.shape[1]):
            own = [S[b, h], *(x[b, :, :, h] for x in tokens), KEEPS[b]]
            before[b, :, h], after[b, h] = reference.stream(*own)
            dS[b, h], *found = reference.stream_gradients(*own, slopes[0][b, :, h], slopes[1][b, h])
            for slope, one in zip(dtokens, found, strict=True):
                slope[b, :, :, h] = one
    return [before, after, dS, *(x.reshape(-1, *x.shape[2:]) for x in dtokens)]


@functools.partial(jax.jit, static_argnames=("write",))
def with_gradients(write, arrays, slopes):
    """Results and gradients of a write, in the order of `NAMES`."""
    results, pull = jax.vjp(lambda *arrays: write(*arrays, jnp.asarray(KEEPS)), *arrays)
    return *results, *pull(tuple(x.astype(result.dtype) for x, result in zip(slopes, results, strict=True)))


INTERPRETED = functools.partial(written, interpret=True)


@pytest.mark.parametrize(
    ("tokens", "heads", "key_dim", "value_dim"),
    [
        (CHUNK, 1, 32, 32),
        pytest.param(2 * CHUNK, 8, 32, 64, marks=pytest.mark.slow),  # four heads at once in two cells
        pytest.param(11 * CHUNK, 1, 32, 32, marks=pytest.mark.slow),  # eleven blocks, as eight chunks at most are one
        pytest.param(9 * CHUNK, 1, 32, 32, marks=pytest.mark.slow),  # three blocks of three chunks
        pytest.param(CHUNK, 3, 32, 32, marks=pytest.mark.slow),  # no few of three heads fill a tile
    ],
)
def test_results_and_all_gradients_are_those_of_a_loop_token_by_token(tokens, heads, key_dim, value_dim):
    arrays = arrays_of(tokens, heads, key_dim, value_dim)
    slopes = slopes_of(arrays)
    with jax.enable_x64(True):
        found = with_gradients(INTERPRETED, [jnp.asarray(x) for x in arrays], [jnp.asarray(x) for x in slopes])
    for name, ours, theirs in zip(NAMES, found, expected(arrays, slopes), strict=True):
        # float64 rounding of some hundred terms
        np.testing.assert_allclose(ours, theirs, atol=1e-11 * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.float32, 2**-23), (jnp.bfloat16, 2**-8)])
def test_narrow_types_stay_near_the_loop_over_the_same_numbers(dtype, rounding):
    """Sums are float32 whatever keys and values are; their gradients are rounded to their type at the end."""
    S, keys, values, beta, g = (jnp.asarray(x, jnp.float32) for x in arrays_of(3 * CHUNK, 1, 32, 32))
    arrays = [S, keys.astype(dtype), values.astype(dtype), beta, g]
    slopes = [jnp.asarray(x, jnp.float32) for x in slopes_of(arrays)]
    found = with_gradients(INTERPRETED, arrays, slopes)
    assert [x.dtype for x in found] == [jnp.float32] * 3 + [dtype] * 2 + [jnp.float32] * 2
    for name, ours, theirs in zip(NAMES, found, expected(arrays, slopes), strict=True):
        bound = (rounding if name in ("dk", "dv") else 0.0) + 2e-5  # sums over hundreds of tokens in float32
        np.testing.assert_allclose(np.float64(ours), theirs, atol=bound * np.abs(theirs).max(), err_msg=name)


def test_a_strong_decay_forgets_without_overflow_and_equal_keys_stay_exact():
    S, keys, values, beta, g = arrays_of(CHUNK, 1, 32, 32)
    arrays = [jnp.asarray(x, jnp.float32) for x in (S, keys[:, :1] + 0 * keys, values, 0 * beta + 1, 0 * g - 60)]
    slopes = [jnp.asarray(x, jnp.float32) for x in slopes_of(arrays)]
    found = with_gradients(INTERPRETED, arrays, slopes)
    assert all(np.all(np.isfinite(x)) for x in found)  # e^{60 * 64} is no float
    still = [*arrays[:4], 0 * arrays[4]]
    found = with_gradients(INTERPRETED, still, slopes)
    for name, ours, theirs in zip(NAMES[:2], found[:2], expected(still, slopes)[:2], strict=True):
        # powers of A have entries up to 1e18; those of the inverse stay below one
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_inverses_of_all_blocks_at_once_are_the_inverse(size):
    A = np.tril(np.random.default_rng(size).normal(size=(size, size)), -1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(unit_lower_inverse(jnp.asarray(A)) @ (np.eye(size) + A), np.eye(size), atol=1e-7)


@pytest.mark.slow
def test_runs_are_mapped_side_by_side():
    runs = [arrays_of(CHUNK, 2, 32, 32, seed) for seed in range(2)]
    stacked = [jnp.asarray(np.stack(x), jnp.float32) for x in zip(*runs, strict=True)]
    slopes = [jnp.asarray(x, jnp.float32) for x in slopes_of(runs[0])]
    mapped = jax.vmap(lambda *arrays: with_gradients(INTERPRETED, arrays, slopes))(*stacked)
    for number in range(2):
        alone = with_gradients(INTERPRETED, [x[number] for x in stacked], slopes)
        for ours, theirs in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(ours[number], theirs, rtol=1e-5, atol=1e-5)  # float32 sums in another order


# ---- where it is chosen --------------------------------------------------------------------------------------------------


def tokens_like(tokens: int, key_dim: int = 32, dtype=jnp.float32, heads: int = 4):
    return (jax.ShapeDtypeStruct((2, tokens, heads, key_dim), dtype),) * 2


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (tokens_like(100), "takes segments that 64 divides, not 100"),
        (tokens_like(128, key_dim=24), "takes dims that 32 divides, not 24 and 24"),
        (tokens_like(128, dtype=jnp.float16), "takes float32 and bfloat16, not float16"),
        (tokens_like(512, key_dim=1024), "MiB on the chip"),
    ],
)
def test_what_the_kernel_cannot_do_is_written_in_chunks_and_refused_where_it_is_asked_for(case, reason):
    assert reason in refuses(*case)
    with target("tpu"):
        assert gated_delta.chosen_form(*case) == "chunks"
    with gated_delta.form("kernel"), pytest.raises(ConfigError, match=rf"^gated_delta.form: the kernel .*{reason}"):
        gated_delta.chosen_form(*case)


def test_a_tpu_takes_the_kernel_and_others_do_not():
    case = tokens_like(128, dtype=jnp.bfloat16)
    assert gated_delta.chosen_form(*case) == "chunks"
    with target("tpu"):
        assert gated_delta.chosen_form(*case) == "kernel"
        with gated_delta.form("chunks"):
            assert gated_delta.chosen_form(*case) == "chunks"
    with gated_delta.form("fast"), pytest.raises(ConfigError, match=r"^gated_delta.form: 'fast' is not a form; choose one"):
        gated_delta.chosen_form(*case)


def test_few_heads_fill_a_tile_and_blocks_divide_a_segment():
    plans = {shape: Plan.of(*tokens_like(shape[0], shape[1], heads=shape[2])) for shape in
             [(2048, 128, 8), (2048, 32, 8), (320, 64, 6), (704, 32, 3)]}  # fmt: skip
    found = {shape: (plan.heads, plan.chunks, plan.blocks) for shape, plan in plans.items()}
    assert found == {(2048, 128, 8): (1, 8, 4), (2048, 32, 8): (4, 8, 4), (320, 64, 6): (2, 5, 1), (704, 32, 3): (3, 1, 11)}


def layer_case(segments: int):
    """A layer with heads of 32, its parameters, a memory and segments of 64 tokens in which a document ends."""
    module = GatedDelta(GatedDeltaConfig(), Dims(16, 4, 2, 32, 32, CHUNK))
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(2 * segments, CHUNK, *shape)).astype(np.float32) for shape in ragged.shapes(module.dims)]
    documents = np.where(np.arange(CHUNK) < 20, 0, 1) * np.array([[0], [1]]).repeat(segments, 0)
    opened = np.where(np.arange(2 * segments) % segments == 0, NO_DOCUMENT, documents[:, -1])
    segment = Segment(*map(jnp.asarray, inputs), whole(jnp.asarray(documents), jnp.asarray(opened)))
    memory = jnp.asarray(rng.normal(size=(2, 2, 32, 32)), jnp.float32)
    params = module.init(jax.random.key(0), memory, segment, method="advance")["params"]
    return module, params, memory, segment


@pytest.mark.slow
@pytest.mark.parametrize("segments", [1, 2])
def test_a_layer_is_the_same_by_the_kernel_with_its_gradients(segments):
    """Segments of a step, in turn and at once; grouped queries."""
    module, params, memory, segment = layer_case(segments)

    def loss(params, memory, segment):
        y, after, _ = module.apply({"params": params}, memory, segment, method="advance")
        written = module.apply({"params": params}, memory, segment, method="write") if segments == 1 else 0.0
        return jnp.sum(jnp.sin(y)) + jnp.sum(after**2) + jnp.sum(jnp.cos(written)), (y, after)

    def by(form):
        with gated_delta.form(form):
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True))(params, memory, segment)

    for ours, theirs in zip(jax.tree.leaves(by("kernel")), jax.tree.leaves(by("chunks")), strict=True):
        if ours.dtype == jnp.float32:
            size = max(1.0, float(np.abs(theirs).max()))
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * size)  # float32 sums in another order


@pytest.mark.slow
def test_the_kernel_and_its_gradient_lower_for_a_tpu_alone_and_mapped():
    module, params, memory, segment = layer_case(1)

    def loss(params, memory, segment):
        return module.apply({"params": params}, memory, segment, method="write").sum()

    mapped = jax.vmap(jax.grad(loss), (0, None, None))
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    for function, given in ((jax.grad(loss), params), (mapped, runs)):
        with target("tpu"):
            text = jax.jit(function).trace(given, memory, segment).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") >= 2  # forward and backward
