"""One memory layer, streamed over segments of any lengths, beside NumPy references that read row by row.

The streams are the same for all mechanisms: three rows of 19 tokens in segments of 6 and of 1, with document edges
inside segments, at their edges, and several in one. Each of two key heads serves two query heads. float64 shows mistakes
that float32 rounding would hide.

A reference is a function (params, arrays of one row, its documents T) -> (values TxHxV before the output kernel, final
memory whose leaves stand in the order of the layer's).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from infini_jax.layers.segment import NO_DOCUMENT, Segment, whole
from infini_jax.memory.base import AUXILIARY, Dims

DIMS = Dims(d_model=6, heads=4, kv_heads=2, key_dim=4, value_dim=3, segment=6, compute="float64")
LENGTHS = (6, 1, 6, 6)
DOCUMENTS = np.array([[0] * 19, [0] * 4 + [1] * 9 + [2] * 6, [0] * 6 + [1] * 2 + [2] * 2 + [3] * 9])
ROWS, TOKENS = DOCUMENTS.shape
EXACT = 1e-11  # float64 rounding of a few hundred terms of order one
SLOPE = 1e-8  # what central differences leave
INPUTS = "[1][0]"  # where (params, arrays) has the layer inputs, which most mechanisms do not look at


def shapes(dims: Dims) -> list[tuple[int, ...]]:
    """Of one token's input, queries, keys and values."""
    d = dims
    return [(d.d_model,), (d.heads, d.key_dim), (d.kv_heads, d.key_dim), (d.kv_heads, d.value_dim)]


def inputs(seed: int = 0) -> list[np.ndarray]:
    """Layer inputs, queries, keys and values of the three rows."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(ROWS, TOKENS, *shape)) for shape in shapes(DIMS)]


def documents_cut_anywhere():
    """A Hypothesis strategy of documents in the shape of `DOCUMENTS`."""

    def numbered(rows):
        return np.stack([np.searchsorted(sorted(edges), np.arange(TOKENS), side="right") for edges in rows])

    edges = st.lists(st.integers(1, TOKENS - 1), max_size=4)
    return st.lists(edges, min_size=ROWS, max_size=ROWS).map(numbered)


def like(tree, seed: int):
    """Random values in the shapes of `tree`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)


def both(module, memory, segment):
    """attend and write of one segment, so that init makes the parameters of both."""
    return module.attend(memory, segment), module.write(memory, segment)


def parameters(module) -> dict:
    """Random parameters of the layer, as NumPy arrays."""
    with jax.enable_x64(module.dims.compute == "float64"):
        arrays = (jnp.zeros((1, 6, *shape)) for shape in shapes(module.dims))
        segment = Segment(*arrays, whole(jnp.zeros((1, 6), int), jnp.zeros(1, int)))
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), module.init_memory(1), segment, method=both))
    return jax.tree.map(lambda leaf: 0.5 * leaf, like(variables["params"], seed=3))


# ---- ours: compiled once per module, lengths and types


@functools.partial(jax.jit, static_argnames="module")
def one_segment(module, params, memory, segment):
    """((outputs, metrics), memory behind it); traced once for all segments of a length."""
    return module.apply({"params": params}, memory, segment, method=both)


@functools.partial(jax.jit, static_argnames=("module", "lengths"))
def stream(module, params, arrays, documents=DOCUMENTS, lengths=LENGTHS):
    """(outputs BxTxD, final memory, metrics of the segments)."""
    rows, ends = documents.shape[0], np.cumsum(lengths)
    memory, before, outputs, metrics = module.init_memory(rows), jnp.full(rows, NO_DOCUMENT), [], []
    for start, end in zip(ends - np.array(lengths), ends, strict=True):
        segment = Segment(*(x[:, start:end] for x in arrays), whole(documents[:, start:end], before))
        (y, measured), memory = one_segment(module, params, memory, segment)
        before = documents[:, end - 1]
        outputs.append(y)
        metrics.append(measured)
    return jnp.concatenate(outputs, axis=1), memory, metrics


def no_part(memory) -> float:
    """The memory is not in the loss."""
    return 0.0


def squares(memory):
    """What the loss has of a memory whose every entry counts; takes the reference's memories too."""
    return sum((leaf * leaf).sum() for leaf in jax.tree.leaves(memory))


@functools.partial(jax.jit, static_argnames=("module", "of_memory"))
def streamed_with_gradient(module, params, arrays, weights, of_memory=no_part):
    """(gradient by (params, arrays), what `stream` returns).

    The gradient is that of sum(outputs * weights) + auxiliary losses + of_memory(final memory).
    """

    def loss(point):
        outputs, memory, metrics = stream.__wrapped__(module, *point)
        added = [value for measured in metrics for name, value in measured.items() if name.startswith(AUXILIARY)]
        return jnp.sum(outputs * weights) + sum(added) + of_memory(memory), (outputs, memory, metrics)

    return jax.grad(loss, has_aux=True)((params, arrays))


# ---- theirs


def projected(params: dict, rows) -> np.ndarray:
    """Outputs BxTxD of the values TxHxV of each row, or Tx2HxV where a second kernel stands behind the first."""
    kernels = [params[name]["kernel"] for name in ("out", "out_states") if name in params]
    return np.einsum("bthv,hvd->btd", np.array(rows), np.concatenate(kernels))


def expected(reference, params, arrays, documents=DOCUMENTS):
    """(outputs BxTxD, final memories) of a reference."""
    rows = [reference(params, [x[row] for x in arrays], of_row) for row, of_row in enumerate(documents)]
    memories = jax.tree.map(lambda *leaves: np.stack(leaves), *(memory for _, memory in rows))
    return projected(params, [values for values, _ in rows]), memories


def slope(function, point, direction, step: float = 1e-4) -> float:
    """d/de function(point + e direction) at 0: central differences of fourth order.

    A step so small that no entry of a point drawn at random crosses the kink of a feature map.
    """

    def at(e):
        return function(jax.tree.map(lambda x, along: x + e * along, point, direction))

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


# ---- one beside the other


def assert_slope(gradient, loss, point, direction, idle: tuple[str, ...] = (INPUTS,)) -> None:
    """`gradient` is that of the reference's `loss`. Every leaf of the point but the `idle` ones has a part in it."""
    parts = jax.tree.map(lambda g, along: float(np.sum(np.asarray(g) * along)), gradient, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(parts)), slope(loss, point, direction), rtol=SLOPE)
    seen = {jax.tree_util.keystr(path) for path, part in jax.tree_util.tree_leaves_with_path(parts) if abs(part) > 1e-5}
    everything = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(parts)}
    np.testing.assert_equal(everything - seen, set(idle))


def assert_close(ours, theirs, tolerance: float) -> None:
    """Outputs and memories; the tolerance is relative to the largest entry of an array."""
    for real, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(real, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


def assert_is_the_reference(module, reference, idle: tuple[str, ...] = (INPUTS,)) -> None:
    """Outputs, final memory and the gradient of both by parameters and arrays, of a layer that stops no gradient."""
    point = (parameters(module), inputs())
    weights, direction = like(point[1][0], seed=5), like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, _) = streamed_with_gradient(module, *point, weights, squares)

    def loss(point):
        outputs, memory = expected(reference, *point)
        return np.sum(outputs * weights) + squares(memory)

    assert_close((outputs, memory), expected(reference, *point), EXACT)
    assert_slope(gradient, loss, point, direction, idle)


def assert_follows_documents(module, reference, documents, seed: int) -> None:
    """Outputs and final memory where documents are cut elsewhere."""
    params, arrays = parameters(module), inputs(seed)
    with jax.enable_x64(True):
        outputs, memory, _ = stream(module, params, arrays, documents)
    assert_close((outputs, memory), expected(reference, params, arrays, documents), EXACT)


def assert_narrow_types_stay_near(module, reference) -> None:
    """float32: its rounding. bf16: the memory is as exact, given the rounded arrays; outputs carry bf16's eight bits."""
    params, arrays = parameters(module), inputs()
    single, half = (module.clone(dims=dataclasses.replace(DIMS, compute=name)) for name in ("float32", "bfloat16"))
    outputs, memory, _ = stream(single, params, arrays)
    assert_close((outputs, memory), expected(reference, params, arrays), 1e-5)

    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    outputs, memory, _ = stream(half, params, rounded)
    wanted, wanted_memory = expected(reference, params, [np.asarray(x, np.float64) for x in rounded])
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(memory)} == {jnp.dtype("float32")}
    assert_close(memory, wanted_memory, 1e-5)
    assert np.abs(np.asarray(outputs, np.float64) - wanted).max() < 0.03 * np.abs(wanted).max()
