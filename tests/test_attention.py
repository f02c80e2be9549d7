"""Local attention: tiles and dense form against a float64 loop: ragged lengths, documents, prefixes, windows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.errors import ConfigError
from infini_jax.layers import attention
from infini_jax.layers.blockwise import NO_QUERY, blockwise, seen_blocks, tiling_of
from infini_jax.layers.distances import t5_distance_bias
from infini_jax.layers.grouped_heads import repeat_heads
from infini_jax.layers.platforms import target
from infini_jax.layers.segment import NEVER_SEEN, Segment, Sight, whole
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import model_cost, program_flops
from infini_jax.model.stream import forward_segments, init_carry, init_params, logits_of
from tests.reference import local_attention as reference
from tests.support import streams

BATCH, HEADS, KV_HEADS, KEY, VALUE = 2, 4, 2, 4, 6
RESULTS = ("y", "lse", "dq", "dk", "dv", "dscale", "dbias")

# (queries, segment keys, prefix, window): one tile, ragged tiles, a prefix, windows shorter and longer than a tile, and open
# segments, whose queries begin anywhere
SHAPES = [
    (7, 7, 0, None),
    (131, 131, 0, None),
    (150, 150, 21, None),
    (140, 140, 9, 10),
    (133, 133, 0, 130),
    (1, 20, 5, 6),
    (3, 140, 4, None),
]
# in blocks: a prefix that is no multiple of them, a window of more than two, several bands of tiles, and an open segment
LONG = [(150, 150, 999, None), (260, 260, 900, 1030), (130, 130, 1150, None), (520, 520, 530, None), (5, 1100, 30, None)]


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one attention, float64. Attributes: arrays (q, k, v, scale, bias); sight; cotangents (dy, dlse)."""

    arrays: tuple
    sight: Sight
    cotangents: tuple


def make_case(shape, edges=(), valid: int = 10_000, start: int | None = None, seed: int = 0) -> Case:
    """Documents begin at `edges` of the segment; of the prefix the last `valid` keys hold something."""
    queries, length, prefix, window = shape
    rng = np.random.default_rng(seed)
    start = (0 if queries == length else length - queries) if start is None else start
    keys = prefix + length
    q, k, v = (BATCH, queries, HEADS, KEY), (BATCH, keys, KV_HEADS, KEY), (BATCH, keys, KV_HEADS, VALUE)
    arrays = tuple(rng.normal(size=size) for size in (q, k, v, (HEADS,), (HEADS, keys)))
    documents = np.stack([np.searchsorted(edges, np.arange(length), side="right"), np.zeros(length, int)])
    carried = np.broadcast_to(np.where(np.arange(prefix) >= prefix - valid, 0, NEVER_SEEN), (BATCH, prefix))
    sight = Sight(
        documents[:, start : start + queries], np.concatenate([carried, documents], 1), np.int32(start), prefix, window
    )
    cotangents = (rng.normal(size=(BATCH, queries, HEADS, VALUE)), rng.normal(size=(BATCH, HEADS, queries)))
    return Case(arrays, sight, cotangents)


@functools.cache
def runner(form: str):
    """Jitted (arrays, sight, cotangents) -> (y, lse, gradients of the arrays)."""

    def run(arrays, sight, cotangents):
        def call(q, k, v, scale, bias):
            if form == "dense":
                bias_HxSxJ = bias[:, jnp.clip(sight.distance_SxJ, 0, k.shape[1] - 1)]
                return attention.dense(q, k, v, sight.mask_BxSxJ, scale=scale, bias_HxSxT=bias_HxSxJ)
            k, v = (repeat_heads(x, HEADS) for x in (k, v))
            rows = {"one_row_at_a_time": False} if form == "rows together" else {}
            return blockwise(q, k, v, sight, scale=scale, distance_bias_HxJ=bias, **rows)

        (y, lse), pull = jax.vjp(call, *arrays)
        return y, lse, *pull(tuple(c.astype(leaf.dtype) for c, leaf in zip(cotangents, (y, lse), strict=True)))

    return jax.jit(run)


def outputs(form: str, case: Case, dtype=jnp.float32):
    narrow = [jnp.asarray(array, dtype) for array in case.arrays[:3]] + [jnp.asarray(a, jnp.float32) for a in case.arrays[3:]]
    return runner(form)(tuple(narrow), jax.tree.map(jnp.asarray, case.sight), case.cotangents)


def expected(case: Case):
    s = case.sight
    where = {"start": int(s.start), "prefix": s.prefix, "window": s.window}
    documents = (s.query_documents, s.key_documents)
    y, lse, _ = reference.attention(*case.arrays, *documents, **where)
    return y, lse, *reference.gradients(*case.arrays, *documents, *case.cotangents, **where)


def assert_close(real, wanted, tolerance: float):
    for name, a, b in zip(RESULTS, real, wanted, strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, atol=tolerance * max(1.0, np.abs(b[b > -1e29]).max()), err_msg=name
        )


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("dense", SHAPES[2]),
        ("dense", SHAPES[5]),
        *(("blockwise", shape) for shape in SHAPES + LONG),
        ("rows together", SHAPES[3]),
    ],
)
def test_outputs_lse_and_gradients_equal_the_loop(form, shape):
    case = make_case(shape, edges=(5, 77), valid=3)
    assert_close(outputs(form, case), expected(case), 1e-5)  # float32 sums of at most 300 terms of order one


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([SHAPES[2], SHAPES[3], SHAPES[6]]),
    edges=st.lists(st.integers(1, 139), max_size=4).map(sorted),
    valid=st.integers(0, 22),
    seed=st.integers(0, 9),
)
def test_tiles_equal_the_dense_form_for_any_documents(shape, edges, valid, seed):
    case = make_case(shape, tuple(edges), valid, start=None if shape[0] == shape[1] else seed * 10, seed=seed)
    assert_close(outputs("blockwise", case), [np.asarray(x, np.float64) for x in outputs("dense", case)], 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_that_are_skipped_hold_nothing_that_a_query_sees(seed):
    """float64, so that a skipped pair would show: documents whose numbers fall and come again, empty and filled places."""
    rng = np.random.default_rng(seed)
    edges, valid = tuple(sorted(rng.integers(1, 299, 3))), int(rng.integers(0, 400))
    with jax.enable_x64(True):
        case = make_case((300, 300, 900, None), edges, valid, seed=seed)
        numbers = rng.permutation(len(edges) + 1)
        numbers[-1] = numbers[0] if seed else numbers[-1]  # a number may come again
        query, keys = (np.where(x < 0, x, numbers[x]) for x in (case.sight.query_documents, case.sight.key_documents))
        case = dataclasses.replace(case, sight=case.sight.replace(query_documents=query, key_documents=keys))
        plan = tiling_of(300, 1200, 900)
        padded = jnp.pad(jnp.asarray(query), ((0, 0), (0, plan.padded - 300)), constant_values=NO_QUERY)
        filled = jnp.pad(jnp.asarray(keys), ((0, 0), (0, -1200 % plan.block)), constant_values=NEVER_SEEN)
        seen_BxNxM = np.asarray(seen_blocks(plan, padded, filled, jnp.int32(0)))
        assert 0 < seen_BxNxM.sum() < seen_BxNxM.size
        visible_BxLxJ = np.zeros((BATCH, plan.padded, filled.shape[1]), bool)
        visible_BxLxJ[:, :300, :1200] = case.sight.mask_BxSxJ
        tiles_BxNxM = visible_BxLxJ.reshape(BATCH, -1, plan.tile, filled.shape[1] // plan.block, plan.block).any(axis=(2, 4))
        assert not np.any(tiles_BxNxM & ~seen_BxNxM)
        real = runner("blockwise").__wrapped__(*jax.tree.map(jnp.asarray, (case.arrays, case.sight, case.cotangents)))
        assert_close(real, expected(case), 1e-12)


def test_a_block_that_nobody_sees_is_not_computed():
    """Infinite keys there would make the scores of a computed block no numbers."""
    case = make_case((150, 150, 2048, None), valid=0)
    q, k, v = (repeat_heads(jnp.asarray(a, jnp.float32), HEADS) for a in case.arrays[:3])
    k, sight = k.at[:, :1900].set(jnp.inf), jax.tree.map(jnp.asarray, case.sight)

    def loss(q, k, v):
        return jnp.sum(blockwise(q, k, v, sight, scale=jnp.ones(HEADS), one_row_at_a_time=True)[0] ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
    assert jnp.isfinite(value)
    assert all(jnp.all(jnp.isfinite(x)) for x in gradients)
    assert not np.any(gradients[1][:, :1900])


def test_runs_that_are_mapped_see_the_same_with_blocks():
    """Under `vmap` the choice becomes a selection: slower, and the same numbers."""
    cases = [make_case((150, 150, 950, None), valid=valid, seed=valid) for valid in (0, 300)]
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x), *[jax.tree.map(jnp.asarray, (c.arrays, c.sight, c.cotangents)) for c in cases]
    )
    mapped = jax.jit(jax.vmap(runner("blockwise").__wrapped__))(*stacked)
    for number, case in enumerate(cases):
        assert_close([x[number] for x in mapped], expected(case), 1e-5)


def test_rows_that_see_nothing_are_zero_and_have_no_gradient():
    case = make_case((150, 150, 21, None))
    documents = np.array(case.sight.query_documents)
    documents[:, 40:60] = 9  # of no key
    case = dataclasses.replace(case, sight=case.sight.replace(query_documents=documents))
    for form in ("dense", "blockwise"):
        y, lse, dq, *_ = outputs(form, case)
        assert not np.any(y[:, 40:60])
        assert not np.any(dq[:, 40:60])
        assert np.all(lse[:, :, 40:60] < -1e29)
        assert_close(outputs(form, case), expected(case), 1e-5)


def test_bf16_is_as_close_to_the_loop_as_the_dense_form():
    case = make_case((150, 150, 21, None), edges=(5, 77), valid=3)
    tiles, dense = (outputs(form, case, jnp.bfloat16) for form in ("blockwise", "dense"))
    for name, a, b, exact in zip(RESULTS, tiles, dense, expected(case), strict=True):
        errors = [np.sqrt(np.mean((np.asarray(x, np.float64) - exact) ** 2)) for x in (a, b)]
        # rounded inputs cost both the same; tiles also round dS to 8 bits before its products, and dscale is a cancelling sum
        own = 2**-4 if name == "dscale" else 2**-7
        assert errors[0] < 1.3 * errors[1] + own * np.sqrt(np.mean(exact**2)), name
        assert a.dtype == b.dtype


def test_float64_is_kept():
    with jax.enable_x64(True):
        case = make_case((131, 131, 2, 40))
        real = runner("rows together")(case.arrays, case.sight, case.cotangents)
        assert_close(real, expected(case), 1e-13)


def test_gradient_reaches_the_t5_table_through_tiles():
    table = jax.random.normal(jax.random.key(0), (32, HEADS))
    case = make_case((150, 150, 21, None))
    q, k, v = (jnp.asarray(a, jnp.float32) for a in case.arrays[:3])
    sight = jax.tree.map(jnp.asarray, case.sight)

    def loss(table, form):
        with attention.form(form):
            y = attention.attend(q, k, v, sight, distance_bias_HxJ=t5_distance_bias(table, k.shape[1]))
        return (y * case.cotangents[0]).sum()

    tiles, dense = (jax.jit(jax.grad(loss), static_argnums=1)(table, form) for form in ("blockwise", "dense"))
    assert np.count_nonzero(dense) > 40
    np.testing.assert_allclose(tiles, dense, atol=2e-4)  # sums over thousands of pairs in another order


@pytest.mark.parametrize("one_row_at_a_time", [True, False])
def test_temporary_memory_of_the_gradient_grows_with_the_length_not_its_square(one_row_at_a_time):
    def temporary(length: int) -> int:
        shape = jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32)
        documents = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(q, k, v, documents):
            sight = Sight(documents, documents, jnp.int32(0))
            return blockwise(q, k, v, sight, scale=jnp.ones(2), one_row_at_a_time=one_row_at_a_time)[0].sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, documents).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    long = temporary(2048)
    assert long < 4.5 * temporary(512)
    assert long < 2 * 2048 * 2048 * 4 / 2  # the scores of its two heads; the dense form holds several such


@pytest.mark.parametrize(
    "shape", [(512, 512, 0, None), (2048, 2048, 0, None), (300, 300, 128, None), (2048, 2048, 63, 64), (700, 700, 1300, 1200)]
)
def test_plan_covers_every_visible_pair_and_little_more(shape):
    queries, length, prefix, window = shape
    keys = prefix + length
    plan = tiling_of(queries, keys, prefix, window)
    covered = np.zeros((plan.padded, keys if plan.block is None else keys + -keys % plan.block), bool)
    for band in plan.bands:
        for tile, low in zip(band.tiles, band.lows, strict=True):
            covered[tile * plan.tile : (tile + 1) * plan.tile, low : low + band.width] = True
    distance = np.arange(queries)[:, None] + prefix - np.arange(keys)
    visible = (distance >= 0) & (distance < (window or keys))
    assert np.all(covered[:queries, :keys][visible])
    assert covered.sum() == plan.pairs
    if plan.block is not None and window:
        assert plan.pairs < 1.5 * visible.sum()  # edges of blocks on both sides of a window
    else:
        assert plan.pairs < (0.66 if window is None else 0.15) * queries * keys + queries * prefix
    assert len(plan.bands) <= 10


def test_form_follows_length_and_can_be_asked_for():
    def form_of(queries, keys, **options):
        q, k = (jnp.zeros((1, length, HEADS, KEY)) for length in (queries, keys))
        sight = Sight(jnp.zeros((1, queries)), jnp.zeros((1, keys)), 0)
        return attention.chosen_form(q, k, k, sight, **options)

    assert [form_of(n, n) for n in (16, 64, 128, 256, 2048)] == ["dense"] * 3 + ["blockwise"] * 2
    assert form_of(1, 4096) == "dense"
    with attention.form("blockwise"):
        assert form_of(16, 16) == "blockwise"
    with attention.form("cudnn"), pytest.raises(ConfigError, match="bfloat16"):
        form_of(16, 16)
    with attention.form("splash"), pytest.raises(ConfigError, match="bias"):
        form_of(128, 128, biased=True)
    with attention.form("fast"), pytest.raises(ConfigError, match="is not a form"):
        form_of(16, 16)


def test_a_compiled_program_is_not_reused_under_another_form():
    documents = jnp.zeros((1, 8), jnp.int32)
    x = jax.random.normal(jax.random.key(0), (1, 8, HEADS, KEY))
    traced = []

    @jax.jit
    def run(x):
        traced.append(attention.form.value)
        return attention.attend(x, x, x, Sight(documents, documents, jnp.int32(0)))

    plain = run(x)
    with attention.form("blockwise"):
        np.testing.assert_allclose(run(x), plain, atol=1e-6)  # float32 rounding
    assert traced == ["auto", "blockwise"]


@pytest.mark.parametrize("name", [*MECHANISMS])
def test_counted_flops_equal_those_of_the_program_where_tiles_run(name):
    """As the contract test, at a segment of more than one tile and a memory longer than it."""
    mechanism = MECHANISMS[name]
    every = mechanism.Config().landmark_every or 1
    memory, dims = mechanism.resized(
        mechanism.Config(), streams.MODEL.dims, 900 if name in ("local", "transformer_xl") else 16
    )
    segment = every * -(-300 // every)
    model = dataclasses.replace(streams.MODEL, memory=memory, key_dim=dims.key_dim, segment=segment, layers=1)
    tokens = jax.ShapeDtypeStruct((2, segment), jnp.int32)

    def forward(params, carry, tokens):
        carry, x, _ = forward_segments(model, params, carry, tokens, tokens)
        return carry, logits_of(model, params, x)

    shapes = jax.eval_shape(lambda: (init_params(model, jax.random.key(0)), init_carry(model, 2)))
    assert program_flops(forward, *shapes, tokens).executed / (2 * segment) == pytest.approx(model_cost(model).flops, rel=1e-6)


def test_attend_segment_is_the_same_in_tiles():
    documents = jnp.asarray(np.searchsorted((50, 180), np.arange(260), side="right"))[None]
    x = jax.random.normal(jax.random.key(0), (1, 260, 2, 8))
    segment = Segment(x[:, :, 0], x, x[..., ::-1], x**2, whole(documents, documents[:, 0]))
    run = jax.jit(attention.attend_segment)
    with attention.form("dense"):
        dense = run(segment)
    np.testing.assert_allclose(run(segment), dense, atol=1e-5)  # float32 rounding


def test_the_loop_over_rows_follows_the_platform_that_the_program_is_for():
    """Compiled on a CPU for a GPU, all rows run side by side, as they will there."""
    case = make_case((150, 150, 21, None))
    q, k, v = (repeat_heads(jnp.asarray(a, jnp.float32), HEADS) for a in case.arrays[:3])

    def traced(**options) -> str:
        run = lambda q, k, v: blockwise(q, k, v, case.sight, scale=jnp.ones(HEADS), **options)  # noqa: E731
        return str(jax.make_jaxpr(run)(q, k, v))

    side_by_side = traced(one_row_at_a_time=False)
    for name in ("cuda", "tpu"):
        with target(name):
            assert traced() == side_by_side
    with target("cpu"):
        assert traced() == traced(one_row_at_a_time=True) != side_by_side
