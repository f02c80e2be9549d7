"""Several segments of each stream that a layer takes at once, against the same segments one after the other.

The streams are cut by documents inside segments, at their edges, nowhere, and several times in one; the memory before them is
that of other segments. float64, in which the two forms differ by rounding only.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.segment import NO_DOCUMENT, Segment, by_turn, counts_before_each, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import AUXILIARY, Memory
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infinite_former import InfiniteFormerConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from tests.support import ragged
from tests.support.marks import slow_but

W, S = 4, 6  # segments, and tokens of one
EDGES = [(), (6, 12), (3,), (2, 4, 15), (12, 13, 19), (25, 26, 47)]  # where documents begin in the 2 W segments of each row
FORMER = InfiniteFormerConfig(basis=6, widths=(0.1, 0.3), samples=4)
CASES = {
    "local": LocalConfig(window=5),
    "gated_delta": GatedDeltaConfig(),
    "∞-former": FORMER,
    "∞-former, little cached": dataclasses.replace(FORMER, cached=4),
    "∞-former, much cached": dataclasses.replace(FORMER, cached=15),
    "∞-former, sampled": dataclasses.replace(FORMER, basis=12, samples=4),
    "∞-former, sticky": dataclasses.replace(FORMER, sampling="sticky"),
    "memorizing": MemorizingConfig(slots=9, top_k=3),
    "memorizing, fewer slots than tokens": MemorizingConfig(slots=4, top_k=4, cached=2),
    "memorizing, more slots than tokens": MemorizingConfig(slots=64, top_k=2, cached=20, positions="rotary"),
    "landmark": LandmarkConfig(block=2, blocks=5, retrieved=2),
    "landmark, one block": LandmarkConfig(block=5, blocks=1, retrieved=1),
    "landmark, many blocks": LandmarkConfig(block=1, blocks=40, retrieved=3, positions="none"),
    "landmark, a choice for all heads": LandmarkConfig(block=2, blocks=7, retrieved=3, selection="heads", positions="t5"),
    "landmark, a choice for all tokens": LandmarkConfig(block=2, blocks=7, retrieved=3, selection="tokens"),
    "landmark that straddles": LandmarkConfig(block=3, blocks=4, retrieved=2),
    "landmark without blocks": LandmarkConfig(block=2, blocks=0),
}


def module_of(case: str) -> Memory:
    return memory_of(CASES[case], dataclasses.replace(ragged.DIMS, segment=S))


def segments_of(module: Memory, documents: np.ndarray, opened: np.ndarray, arrays) -> tuple[Segment, jax.Array]:
    """(W segments as `Memory.advance` takes them, the documents that are open after them)."""
    rows, places = len(documents), np.arange(W)
    ends = documents.reshape(rows, W, S)[:, :, -1]
    before = np.concatenate([opened[:, None], ends[:, :-1]], axis=1)
    every = module.config.landmark_every
    phase = None
    if every is not None and S % (every + 1):
        raw = S - -(-S // (every + 1))
        phase = jnp.asarray(np.broadcast_to(places * raw % every, (rows, W)).reshape(-1))
    bounds = whole(jnp.asarray(documents.reshape(-1, S)), jnp.asarray(before.reshape(-1)), phase)
    return Segment(*(x.reshape(-1, S, *x.shape[2:]) for x in arrays), bounds), ends[:, -1]


def in_turn(module: Memory, memory, segments: Segment):
    """`Memory.advance` by `attend` and `write` alone."""
    turns, outputs, measured = by_turn(segments, W), [], []
    for number in range(W):
        segment = jax.tree.map(lambda leaf, n=number: leaf[n], turns)
        y, metrics = module.attend(memory, segment)
        memory = module.write(memory, segment)
        outputs.append(y)
        measured.append(metrics)
    outputs = jnp.stack(outputs, axis=1)
    metrics = jax.tree.map(lambda *leaves: sum(leaves) / W, *measured)
    return outputs.reshape(-1, *outputs.shape[2:]), memory, metrics


def at_once(module: Memory, memory, segments: Segment):
    return module.advance(memory, segments)


@pytest.mark.parametrize("case", slow_but(("∞-former, little cached", "memorizing", "landmark"), CASES))
def test_segments_at_once_are_segments_in_turn(case):
    """Outputs, memory, metrics and gradients by parameters, inputs and the memory before."""
    module, rows = module_of(case), len(EDGES)
    documents = np.stack([np.searchsorted(edges, np.arange(2 * W * S), side="right") for edges in EDGES])
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        params = {"params": jax.tree.map(jnp.asarray, ragged.parameters(module))}
        arrays = [jnp.asarray(rng.normal(size=(rows, 2 * W * S, *shape))) for shape in ragged.shapes(module.dims)]
        weights = jnp.asarray(rng.normal(size=(rows * W, S, module.dims.d_model)))
        first, second = ([x[:, part] for x in (documents, *arrays)] for part in (slice(W * S), slice(W * S, None)))
        segments, opened = segments_of(module, first[0], np.full(rows, NO_DOCUMENT), first[1:])
        memory = module.init_memory(rows)
        memory = jax.jit(lambda memory: module.apply(params, memory, segments, method=in_turn)[1])(memory)
        floats, structure = jax.tree.flatten(memory)

        def loss(point, form):
            params, arrays, given = point
            leaves = [new if jnp.issubdtype(old.dtype, jnp.inexact) else old for new, old in zip(given, floats, strict=True)]
            segments, _ = segments_of(module, second[0], opened, arrays)
            y, after, metrics = module.apply(params, structure.unflatten(leaves), segments, method=form)
            added = sum(value for name, value in metrics.items() if name.startswith(AUXILIARY))
            of_memory = sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.inexact))
            return (y * weights).sum() + added + of_memory, (y, after, metrics)

        def measured(form):
            given = [leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.zeros(()) for leaf in floats]
            return jax.jit(jax.value_and_grad(lambda *point: loss(point, form), argnums=(0, 1, 2), has_aux=True))(
                params, second[1:], given
            )

        found, expected = measured(at_once), measured(in_turn)
    # float64: sums of some hundred terms in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), found, expected)


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
