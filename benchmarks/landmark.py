"""Landmark attention: the forms of its two parts against each other, forward and with gradients, interleaved in one process.

Question: what do tiles win over explicit masks inside a segment, and over a copy of a block for each query when reading?
Command:  python -m benchmarks.landmark            (three minutes on two free cores)
Expected: the same numbers from all forms (asserted). Inside the segment tiles are at least 4 times as fast as explicit masks
forward and 8 times with gradients, and take at most 1.5 times as long as plain attention in tiles.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.timing import Program, interleaved, machine
from infini_jax.layers.blockwise import blockwise
from infini_jax.layers.segment import whole
from infini_jax.memory.landmark import layouts, retrieval
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark.retrieval import LandmarkMemory


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Inside a segment: `tokens` in blocks of `block`, the landmark included. From the cache: `queries` read `retrieved` of
    each number `cached` of blocks of `read_block`."""

    tokens: int = 1024
    heads: int = 8
    size: int = 64
    block: int = 64
    queries: int = 272
    read_block: int = 17
    cached: tuple[int, ...] = (64, 1024)
    retrieved: int = 4
    rounds: int = 7


def with_gradient(form: Callable, arrays: tuple) -> Callable:
    """Values and the gradients of a weighted sum of them, by all arrays of floats."""
    floats = tuple(place for place, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating))

    def loss(*arrays):
        y = form(*arrays)
        return jnp.vdot(y, jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), y

    return jax.value_and_grad(loss, argnums=floats, has_aux=True)


def compare(title: str, forms: dict[str, Callable], arrays: tuple, rounds: int, *, alike: int) -> None:
    """Prints medians; the first `alike` forms must give the same numbers."""
    print(title)
    for label, wrap in (("forward", lambda form: form), ("and gradients", lambda form: with_gradient(form, arrays))):
        programs = {name: Program.of(wrap(form), *arrays) for name, form in forms.items()}
        results = [jax.tree.leaves(program.run())[1 if label != "forward" else 0 :] for program in programs.values()]
        for other in results[1:alike]:
            for ours, theirs in zip(results[0], other, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * float(jnp.abs(theirs).max()))
        times = interleaved(programs, rounds)
        last = times.median(list(forms)[-1])
        for name, taken in times.seconds.items():
            middle = times.median(name)
            spread = f"{min(taken) / middle:.2f}-{max(taken) / middle:.2f}"
            print(f"  {label:14} {name:15} {1e3 * middle:9.1f} ms {spread:>10} {middle / last:7.2f} of the last", flush=True)


def inside_a_segment(sizes: Sizes) -> None:
    """Explicit masks, all scores by blocks, tiles; plain attention in tiles of the same length."""
    shape = (1, sizes.tokens, sizes.heads, sizes.size)
    arrays = tuple(jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3))
    documents = jnp.zeros((1, sizes.tokens), jnp.int32)
    bounds, scale = whole(documents, documents[:, 0]), sizes.size**-0.5
    is_landmark = jnp.arange(1, sizes.tokens + 1)[None] % sizes.block == 0

    def explicit(q, k, v):
        scores = jnp.einsum("bshk,bthk->bhst", q, k) * scale
        weights = landmark_softmax.grouped_softmax(scores, is_landmark, bounds.local_BxSxT, renormalise=True)
        return jnp.einsum("bhst,bthv->bshv", weights, v)

    forms = {
        "explicit masks": explicit,
        "dense": lambda q, k, v: landmark_softmax.dense(q, k, v, bounds, sizes.block)[0],
        "tiles": lambda q, k, v: landmark_softmax.tiles(q, k, v, documents, sizes.block)[0],
        "plain tiles": lambda q, k, v: blockwise(q, k, v, bounds.sight(), scale=jnp.full(sizes.heads, scale))[0],
    }
    compare(f"inside a segment of {sizes.tokens}, blocks of {sizes.block}", forms, arrays, sizes.rounds, alike=3)


def from_the_cache(sizes: Sizes, cached: int) -> None:
    """Random choices of `retrieved` blocks per query and head."""
    keys = jax.random.split(jax.random.key(1), 4)
    heads, length, tokens = sizes.heads, sizes.read_block, sizes.queries
    q = jax.random.normal(keys[0], (1, tokens, heads, sizes.size))
    held = jax.random.normal(keys[1], (1, heads, cached, length, sizes.size))
    values = jax.random.normal(keys[2], (1, heads, cached, length - 1, sizes.size))
    scores = jax.random.normal(keys[3], (1, heads, cached, tokens))
    full, every = jnp.array([cached * length]), jnp.ones((1, cached), bool)
    reads = jnp.ones((1, tokens), bool)
    select = jax.jit(retrieval.select_blocks, static_argnums=(3, 4))
    chosen = select(scores, every, reads, sizes.retrieved, "token_and_head")

    def read(form: str, size: int = 1):
        def run(q, held, values, chosen):
            turned = retrieval.turned_queries(q, jnp.arange(tokens), sizes.retrieved, length)
            return retrieval.read(LandmarkMemory(held, values, full), turned, chosen, reads, form, size)[0]

        return run

    forms = {"a copy each": read("gather"), **{f"tiles of {size}": read("tiles", size) for size in (8, 16, 32)}}
    auto, size = layouts.form_of(tokens * sizes.retrieved, cached, length, shared=False)
    title = f"{tokens} queries read {sizes.retrieved} of {cached} blocks of {length}; chosen by size: {auto} {size}"
    compare(title, forms, (q, held, values, chosen), sizes.rounds, alike=len(forms))


def main(sizes: Sizes) -> None:
    """All comparisons."""
    print(machine(), sizes)
    inside_a_segment(sizes)
    for cached in sizes.cached:
        from_the_cache(sizes, cached)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
