"""One memory layer, streamed over segments of any lengths in float64, beside the NumPy references.

The streams are the same for all mechanisms: three rows of 19 tokens in segments of 6 and of 1, with document edges
inside segments, at their edges, and several in one. float64 shows mistakes that float32 rounding would hide.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.memory.base import AUXILIARY, Dims
from infini_jax.segment import NO_DOCUMENT, Segment, whole

DIMS = Dims(d_model=6, heads=2, kv_heads=2, key_dim=4, value_dim=3, segment=6, compute="float64")
LENGTHS = (6, 1, 6, 6)
DOCUMENTS = np.array([[0] * 19, [0] * 4 + [1] * 9 + [2] * 6, [0] * 6 + [1] * 2 + [2] * 2 + [3] * 9])
EXACT = 1e-11  # float64 rounding of a few hundred terms of order one
SLOPE = 1e-8  # what central differences leave


def inputs(seed: int = 0) -> list[np.ndarray]:
    """Layer inputs, queries, keys and values of the three rows."""
    rng, d = np.random.default_rng(seed), DIMS
    shapes = [(d.d_model,), (d.heads, d.key_dim), (d.heads, d.key_dim), (d.heads, d.value_dim)]
    return [rng.normal(size=(*DOCUMENTS.shape, *shape)) for shape in shapes]


def like(tree, seed: int):
    """Random values in the shapes of `tree`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)


def parameters(module) -> dict:
    """Random parameters of the layer, as NumPy arrays."""
    segment = Segment(*(jnp.asarray(x[:, :6]) for x in inputs()), whole(jnp.asarray(DOCUMENTS[:, :6]), jnp.full(3, -1)))

    def both(module, memory, segment):
        return module.attend(memory, segment), module.write(memory, segment)

    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), module.init_memory(3), segment, method=both))
    return jax.tree.map(lambda leaf: 0.5 * leaf, like(variables["params"], seed=3))


@functools.partial(jax.jit, static_argnames="module")
def step(module, params, memory, arrays, documents, before):
    """One segment: ((outputs, metrics), new memory). Compiled once a length."""
    segment = Segment(*arrays, whole(documents, before))

    def both(module):
        return module.attend(memory, segment), module.write(memory, segment)

    return module.apply({"params": params}, method=both)


def stream(module, params, arrays, documents=DOCUMENTS, lengths=LENGTHS):
    """(outputs BxTxD, final memory, metrics of the segments)."""
    rows, ends = documents.shape[0], np.cumsum(lengths)
    memory, before, outputs, metrics = module.init_memory(rows), jnp.full(rows, NO_DOCUMENT), [], []
    for start, end in zip(ends - np.array(lengths), ends, strict=True):
        part = [x[:, start:end] for x in arrays]
        (y, measured), memory = step(module, params, memory, part, jnp.asarray(documents[:, start:end]), before)
        before = jnp.asarray(documents[:, end - 1])
        outputs.append(y)
        metrics.append(measured)
    return jnp.concatenate(outputs, axis=1), memory, metrics


def streamed_with_slope(module, params, arrays, weights, direction):
    """(outputs, memory, metrics, slope): the slope is the derivative of sum(outputs * weights) + auxiliary losses along
    `direction`, a pair like (params, arrays)."""

    def loss(params, arrays):
        outputs, memory, metrics = stream(module, params, arrays)
        added = [value for measured in metrics for name, value in measured.items() if name.startswith(AUXILIARY)]
        return jnp.sum(outputs * weights) + sum(added), (outputs, memory, metrics)

    gradient, streamed = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, arrays)
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
    return *streamed, float(sum(jax.tree.leaves(products)))
