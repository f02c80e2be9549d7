"""Memorizing Transformer against float64 arrays made from the paper's equations, and the edges of its ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.attention import dense
from infini_jax.memory import memorizing
from infini_jax.memory.memorizing import Ring
from infini_jax.segment import whole
from tests.golden import golden


def stream(arrays: dict, dtype: str):
    """Outputs, V_m, V_c and slot ids of each segment, and the ring at the end, from the plain functions."""
    weights = {name: jnp.asarray(arrays[name], dtype) for name in ("X", "Wq", "Wk", "Wv", "Wo", "scale", "bg")}
    segments, batch, length, _ = arrays["X"].shape
    heads, key_dim = arrays["Wq"].shape[1:]
    slots, k = int(arrays["M"]), int(arrays["k"])
    empty = jnp.zeros((batch, heads, slots, key_dim), dtype)
    ring, document, found = Ring(empty, empty, jnp.zeros(batch, jnp.int32)), np.zeros(batch, np.int32), []
    for s in range(segments):
        before, document = document, document + arrays["start"][s]
        bounds = whole(jnp.asarray(np.repeat(document[:, None], length, axis=1)), jnp.asarray(before))
        q_s, k_s, v_s = (jnp.einsum("btd,dhk->bthk", weights["X"][s], weights[name]) for name in ("Wq", "Wk", "Wv"))
        q_s, k_s = memorizing.unit(q_s), memorizing.unit(k_s)
        v_c, _ = dense(q_s, k_s, v_s, bounds.local_BxSxT, scale=weights["scale"])
        slot = memorizing.search(ring, q_s, k)
        v_m = memorizing.retrieve(ring, q_s, weights["scale"], slot)
        reads = bounds.reads_BxS[..., None, None]
        v_m = jnp.where(reads, v_m, 0.0)
        slot = jnp.where(reads.swapaxes(1, 2), slot, -1)
        output = jnp.einsum("bshv,hvd->bsd", memorizing.combine(weights["bg"], v_m, v_c), weights["Wo"])
        ring = memorizing.append(ring, k_s, v_s, bounds)
        found.append((output, v_m.swapaxes(1, 2), v_c.swapaxes(1, 2), slot))
    return [jnp.stack(part) for part in zip(*found, strict=True)], ring


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_outputs_neighbours_and_ring_equal_the_golden_arrays(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        arrays = golden("memorizing_paper_f64")
        (outputs, v_m, v_c, slot), ring = stream(arrays, dtype)
        np.testing.assert_array_equal(slot, arrays["idx"])
        # the arrays have zeros where a new document has not written yet; ours keeps the old numbers there and masks them
        held = (np.arange(ring.keys.shape[2]) < arrays["n_written"][:, None])[:, None, :, None]
        ring = ring.replace(keys=ring.keys * held, values=ring.values * held)
        for name, found in (
            ("O", outputs),
            ("V_m", v_m),
            ("V_c", v_c),
            ("K_mem_final", ring.keys),
            ("V_mem_final", ring.values),
        ):
            np.testing.assert_allclose(found, arrays[name], atol=tolerance, err_msg=name)
        np.testing.assert_array_equal(ring.written, arrays["n_written"])


def ring_of(slots: int, written: int = 0) -> Ring:
    filled = jnp.arange(float(slots)).reshape(1, 1, slots, 1)
    return Ring(filled, -filled, jnp.array([written], jnp.int32))


def append(ring: Ring, values: list[float], keeps: bool = True) -> Ring:
    new = jnp.asarray(values).reshape(1, -1, 1, 1)
    documents = jnp.zeros((1, len(values)), jnp.int32)
    return memorizing.append(ring, new, -new, whole(documents, jnp.array([0 if keeps else 5])))


def test_a_segment_longer_than_the_ring_leaves_its_last_tokens_in_ring_order():
    ring = append(ring_of(4, written=2), [10.0, 11, 12, 13, 14, 15, 16])  # places 2..8 of the stream
    assert ring.keys.ravel().tolist() == [16.0, 13.0, 14.0, 15.0]
    assert ring.values.ravel().tolist() == [-16.0, -13.0, -14.0, -15.0]
    assert ring.written.tolist() == [9]


def test_a_new_document_forgets_the_old_one():
    ring = append(ring_of(4, written=9), [10.0, 11.0], keeps=False)
    assert ring.written.tolist() == [2]
    slot = memorizing.search(ring, jnp.ones((1, 1, 1, 1)), k=4)
    assert sorted(slot.ravel().tolist()) == [-1, -1, 0, 1]


def test_an_empty_ring_gives_zero_and_finite_gradients():
    ring = ring_of(4)

    def total(q):
        return memorizing.retrieve(ring, q, jnp.ones(1), memorizing.search(ring, q, k=2)).sum()

    value, gradient = jax.value_and_grad(total)(jnp.ones((1, 3, 1, 1)))
    assert value == 0
    assert not np.any(gradient)
