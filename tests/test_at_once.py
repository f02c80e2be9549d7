"""Several segments of each stream that a layer takes at once, against the same segments one after the other.

The streams are cut by documents inside segments, at their edges, nowhere, and several times in one; the memory before them is
that of other segments. float64, in which the two forms differ by rounding only.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.segment import NO_DOCUMENT, Segment, counts_before_each, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import AUXILIARY, Memory
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former import InfiniteFormerConfig
from infini_jax.memory.kimi_delta import KimiDeltaConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.memory_caching import MemoryCachingConfig
from infini_jax.memory.rewind import is_float
from tests.support import ragged
from tests.support.marks import slow_but

W, S = 4, 6  # segments, and tokens of one
EDGES = [(), (6, 12), (3,), (2, 4, 15), (12, 13, 19), (25, 26, 47)]  # where documents begin in the 2 W segments of each row
FORMER = InfiniteFormerConfig(basis=6, widths=(0.1, 0.3), samples=4)
CASES = {
    "local": LocalConfig(window=5),
    "gated_delta": GatedDeltaConfig(),
    "kimi_delta": KimiDeltaConfig(),
    "memory_caching": MemoryCachingConfig(slots=3, selected=2),
    "∞-former": FORMER,
    "∞-former, little cached": dataclasses.replace(FORMER, cached=4),
    "∞-former, much cached": dataclasses.replace(FORMER, cached=15),
    "∞-former, sampled": dataclasses.replace(FORMER, basis=12, samples=4),
    "∞-former, sticky": dataclasses.replace(FORMER, sampling="sticky"),
    "memorizing": MemorizingConfig(slots=9, top_k=3),
    "memorizing, fewer slots than tokens": MemorizingConfig(slots=4, top_k=4, cached=2),
    "memorizing, more slots than tokens": MemorizingConfig(slots=64, top_k=2, cached=20, positions="rotary"),
    "memorizing, beside a cache": MemorizingConfig(slots=9, top_k=3, local="cache"),
    "infini, beside a window": InfiniConfig(local="window"),
    "gated_delta, beside a cache": GatedDeltaConfig(local="cache"),
    "∞-former, beside a window": dataclasses.replace(FORMER, local="window"),
    "compressive, beside a cache": CompressiveConfig(slots=0, compressed=5, ratio=4, local="cache"),
    "landmark": LandmarkConfig(block=2, blocks=5, retrieved=2),
    "landmark, beside a cache": LandmarkConfig(block=2, blocks=5, retrieved=2, local="cache"),
    "landmark, one block": LandmarkConfig(block=5, blocks=1, retrieved=1),
    "landmark, many blocks": LandmarkConfig(block=1, blocks=40, retrieved=3, positions="none"),
    "landmark, a choice for all heads": LandmarkConfig(block=2, blocks=7, retrieved=3, selection="heads", positions="t5"),
    "landmark, a choice for all tokens": LandmarkConfig(block=2, blocks=7, retrieved=3, selection="tokens"),
}


def module_of(case: str) -> Memory:
    return memory_of(CASES[case], dataclasses.replace(ragged.DIMS, segment=S))


def segments_of(documents: jax.Array, opened: jax.Array, arrays) -> Segment:
    """W segments as `Memory.advance` takes them."""
    rows = len(documents)
    ends = documents.reshape(rows, W, S)[:, :, -1]
    before = jnp.concatenate([opened[:, None], ends[:, :-1]], axis=1)
    bounds = whole(documents.reshape(-1, S), before.reshape(-1))
    inputs, queries, keys, values = (x.reshape(-1, S, *x.shape[2:]) for x in arrays)
    return Segment(inputs, queries, keys, values, bounds)


def apart(memory) -> tuple[list, list]:
    """The leaves of a memory: those with a gradient, and the counts."""
    leaves = jax.tree.leaves(memory)
    return [leaf for leaf in leaves if is_float(leaf)], [leaf for leaf in leaves if not is_float(leaf)]


def measured(module: Memory, form, structure):
    """Jitted: ((loss, (outputs, memory, metrics)), its gradients by parameters, inputs and the memory before)."""

    def loss(params, arrays, floats, counts, stream, weights):
        kinds = (is_float(leaf) for leaf in jax.tree.leaves(module.init_memory(1)))
        sources = {True: iter(floats), False: iter(counts)}
        memory = structure.unflatten([next(sources[kind]) for kind in kinds])
        found: Any = module.apply(params, memory, segments_of(stream[0], stream[1], arrays), method=form)
        y, after, metrics = found
        added = sum(value for name, value in metrics.items() if name.startswith(AUXILIARY))
        of_memory = sum(jnp.sin(leaf).sum() for leaf in apart(after)[0])
        return (y * weights).sum() + added + of_memory, (y, after, metrics)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("case", slow_but(("memorizing", "infini, beside a window"), CASES))
def test_segments_at_once_are_segments_in_turn(case):
    """Outputs, memory, metrics and gradients by parameters, inputs and the memory before."""
    module, rows, rng = module_of(case), len(EDGES), np.random.default_rng(1)
    documents = np.stack([np.searchsorted(edges, np.arange(2 * W * S), side="right") for edges in EDGES])
    with jax.enable_x64(True):
        params = {"params": jax.tree.map(jnp.asarray, ragged.parameters(module))}
        arrays = [jnp.asarray(rng.normal(size=(rows, 2 * W * S, *shape))) for shape in ragged.shapes(module.dims)]
        weights = jnp.asarray(rng.normal(size=(rows * W, S, module.dims.d_model)))
        memory, parts = module.init_memory(rows), (slice(W * S), slice(W * S, None))
        in_turn, at_once = (
            measured(module, form, jax.tree.structure(memory)) for form in (Memory.advance, type(module).advance)
        )
        for part, before in zip(parts, (np.full(rows, NO_DOCUMENT), documents[:, W * S - 1]), strict=True):
            stream = (jnp.asarray(documents[:, part]), jnp.asarray(before))
            given = (params, [x[:, part] for x in arrays], *apart(memory), stream, weights)
            found, expected = at_once(*given), in_turn(*given)
            # float64: sums of some hundred terms in another order
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), found, expected)
            memory = expected[0][1][1]


def test_counts_before_each_segment_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    held, added, keeps = rng.integers(0, 9, 20), rng.integers(0, 5, (20, 7)), rng.random((20, 7)) < 0.7
    expected = [held]
    for number in range(7):
        expected.append(np.where(keeps[:, number], expected[-1], 0) + added[:, number])
    found = counts_before_each(jnp.asarray(held), jnp.asarray(added), jnp.asarray(keeps))
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))


def test_every_mechanism_is_compared():
    """Those whose `advance` is their own; infini's is in test_infini_parallel.py, a cache's is that of local."""
    own = {cls for cls in MECHANISMS.values() if cls.advance is not Memory.advance}
    compared = {type(module_of(case)) for case in CASES}
    assert {cls.advance for cls in own} - {cls.advance for cls in compared} == {MECHANISMS["infini"].advance}
