"""One memory layer over segments of different lengths, compared with a reference that reads row by row.

A reference is a function of one row: (inputs TxD, queries, keys TxHxK, values TxHxV, documents T) -> (outputs TxHxV, final
memory as a dict). The layer's output kernel is applied to the reference's outputs here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.memory.base import Dims
from infini_jax.segment import NO_DOCUMENT, Segment, whole

LENGTHS = (4, 6, 3)
DIMS = Dims(d_model=5, heads=2, kv_heads=2, key_dim=4, value_dim=3, segment=6)
BATCH, TOKENS = 2, sum(LENGTHS)
CUTS = np.array([[0] * 6 + [1] * 7, [0] * 2 + [1] * 2 + [2] * 9])  # edges within segments and at one


def arrays(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs, queries, keys and values of `BATCH` rows."""
    rng = np.random.default_rng(seed)
    sizes = [(DIMS.d_model,), (DIMS.heads, DIMS.key_dim), (DIMS.heads, DIMS.key_dim), (DIMS.heads, DIMS.value_dim)]
    return tuple(rng.normal(size=(BATCH, TOKENS, *size)) for size in sizes)


def run(module, params, arrays, documents):
    """(outputs BxTxD, final memory) of a layer, segment by segment."""
    memory, before, outputs, begin = module.init_memory(BATCH), jnp.full(BATCH, NO_DOCUMENT), [], 0
    for length in LENGTHS:
        part = slice(begin, begin + length)
        segment = Segment(*(array[:, part] for array in arrays), whole(documents[:, part], before))
        y, _ = module.apply(params, memory, segment, method="attend")
        memory = module.apply(params, memory, segment, method="write")
        outputs.append(y)
        before, begin = documents[:, begin + length - 1], begin + length
    return jnp.concatenate(outputs, axis=1), memory


@functools.cache
def compiled(module, x64: bool):
    """`run` of a layer, compiled once; `x64` because a compiled function remembers its types."""
    return jax.jit(functools.partial(run, module))


def expected(reference, kernel: np.ndarray, arrays, documents) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(outputs BxTxD, final memories) of a reference."""
    rows = [reference(*(array[b] for array in arrays), documents[b]) for b in range(BATCH)]
    outputs = np.einsum("bthv,hvd->btd", np.stack([y for y, _ in rows]), kernel)
    return outputs, {name: np.stack([memory[name] for _, memory in rows]) for name in rows[0][1]}


def slope(function, place: int, arguments, direction, step: float = 1e-5) -> float:
    """Central difference of a scalar function along a direction of one argument."""

    def moved(by):
        return function(*(x + by * direction if i == place else x for i, x in enumerate(arguments)))

    return (moved(step) - moved(-step)) / (2 * step)


def assert_gradients_are_slopes(ours, theirs, arguments) -> None:
    """`jax.grad` of ours against differences of theirs along a random direction of every argument; call inside enable_x64.

    1e-7 is the error of a central difference with a step of 1e-5 in float64.
    """
    rng = np.random.default_rng(7)
    gradients = jax.jit(jax.grad(ours, argnums=tuple(range(len(arguments)))))(*arguments)
    for place, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        measured = slope(theirs, place, arguments, direction)
        assert abs(measured) > 1e-6, f"argument {place} has no effect"
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), measured, rtol=1e-7, atol=1e-7)
