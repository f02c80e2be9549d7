"""Memorizing Transformer against float64 arrays made from the paper's equations, the edges of its ring, and its programs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.attention import dense
from infini_jax.layers.segment import Boundaries, Segment, whole
from infini_jax.memory import memorizing, topk
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.memorizing import Memorizing, MemorizingConfig, Ring
from infini_jax.memory.ring import grown
from infini_jax.memory.topk import top_k
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import init_carry, init_params, scan_segments
from tests.golden import golden
from tests.support import ragged, streams


@functools.partial(jax.jit, static_argnums=(2, 3))
def stream(weights: dict, starts, slots: int, k: int):
    """Outputs, V_m, V_c and slot ids of each segment, and the ring at the end, from the plain functions."""
    segments, batch, length, _ = weights["X"].shape
    heads, key_dim = weights["Wq"].shape[1:]
    empty = jnp.zeros((batch, heads, slots, key_dim), weights["X"].dtype)
    ring, document, found = Ring(empty, empty, jnp.zeros(batch, jnp.int32)), jnp.zeros(batch, jnp.int32), []
    for s in range(segments):
        before, document = document, document + starts[s].astype(jnp.int32)
        bounds = whole(jnp.repeat(document[:, None], length, axis=1), before)
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
        weights = {name: jnp.asarray(arrays[name], dtype) for name in ("X", "Wq", "Wk", "Wv", "Wo", "scale", "bg")}
        (outputs, v_m, v_c, slot), ring = stream(weights, arrays["start"], int(arrays["M"]), int(arrays["k"]))
        np.testing.assert_array_equal(slot, arrays["idx"])
        # the arrays have zeros where a new document has not written yet; ours keeps the old numbers there and masks them
        held = (np.arange(ring.keys.shape[2]) < arrays["n_written"][:, None])[:, None, :, None]
        ring = ring.replace(keys=np.asarray(ring.keys) * held, values=np.asarray(ring.values) * held)
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
    filled = np.arange(slots, dtype=np.float32).reshape(1, 1, slots, 1)
    return Ring(jnp.asarray(filled), jnp.asarray(-filled), jnp.array([written], jnp.int32))


def append(ring: Ring, values: list[float], keeps: bool = True) -> Ring:
    new = np.reshape(values, (1, -1, 1, 1)).astype(np.float32)
    documents = np.zeros((1, len(values)), np.int32)
    return appended(ring, new, -new, documents, np.array([0 if keeps else 5], np.int32))


@jax.jit
def appended(ring: Ring, keys, values, documents, open_document) -> Ring:
    return memorizing.append(ring, keys, values, whole(documents, open_document))


search = jax.jit(memorizing.search, static_argnums=(2, 3))


def test_a_segment_longer_than_the_ring_leaves_its_last_tokens_in_ring_order():
    ring = append(ring_of(4, written=2), [10.0, 11, 12, 13, 14, 15, 16])  # places 2..8 of the stream
    assert ring.keys.ravel().tolist() == [16.0, 13.0, 14.0, 15.0]
    assert ring.values.ravel().tolist() == [-16.0, -13.0, -14.0, -15.0]
    assert ring.written.tolist() == [9]


def test_a_new_document_forgets_the_old_one():
    ring = append(ring_of(4, written=9), [10.0, 11.0], keeps=False)
    assert ring.written.tolist() == [2]
    slot = search(ring, np.ones((1, 1, 1, 1), np.float32), 4)
    assert sorted(slot.ravel().tolist()) == [-1, -1, 0, 1]


def test_an_empty_ring_gives_zero_and_finite_gradients():
    ring = ring_of(4)

    def total(q):
        return memorizing.retrieve(ring, q, jnp.ones(1), memorizing.search(ring, q, k=2)).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(np.ones((1, 3, 1, 1), np.float32))
    assert value == 0
    assert not np.any(gradient)


# ---- search


def random_ring(slots: int, written: list[int], kv_heads: int = 2) -> Ring:
    keys, values = np.random.default_rng(1).standard_normal((2, len(written), kv_heads, slots, 4), np.float32)
    return Ring(jax.jit(memorizing.unit)(keys), jnp.asarray(values), jnp.array(written, jnp.int32))


def queries(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("scores", [2**24, 6 * 2 * 40, 1])
def test_a_search_in_parts_finds_what_numpy_finds(monkeypatch, scores):
    """All queries at once, six at once, and one: query head h searches key head h // 2, of the first `written` slots."""
    monkeypatch.setattr(topk, "A_CPUS_SCORES", scores)
    ring, q = random_ring(40, [30, 100]), queries(2, 6, 4, 4)
    found = np.asarray(jax.jit(lambda ring, q: memorizing.search(ring, q, 5))(ring, q))
    for b, s, h in np.ndindex(2, 6, 4):
        products = np.asarray(ring.keys)[b, h // 2, : [30, 40][b]] @ q[b, s, h]
        np.testing.assert_array_equal(found[b, h, s], np.argsort(-products, kind="stable")[:5])


def test_equal_keys_are_found_from_the_lowest_slot_on():
    """In layer 0 the keys of equal tokens are equal."""
    ring = random_ring(2000, [1990])
    ring, q = ring.replace(keys=np.tile(np.asarray(ring.keys)[:, :, :100], (1, 1, 20, 1))), queries(1, 3, 2, 4)

    @jax.jit
    def expected(q, keys):
        scores = jnp.einsum("bshk,bhnk->bhsn", q, keys).at[..., 1990:].set(-jnp.inf)
        return jax.lax.top_k(scores, 30)[1]

    np.testing.assert_array_equal(search(ring, q, 30), expected(q, ring.keys))


def half_found(scores, k: int, held):
    """A search that misses every other neighbour."""
    values, slots = top_k(scores, 2 * k, held)
    return values[..., ::2], slots[..., ::2]


@pytest.mark.parametrize(("written", "reads", "share"), [(30, True, 0.5), (3, True, 2 / 3), (0, True, 1.0), (30, False, 1.0)])
def test_measured_recall_is_the_share_of_the_neighbours_that_were_found(written, reads, share):
    """Also with fewer tokens than neighbours (of three slots the first and the third are found), with an empty ring, and
    where nobody may read."""
    ring, q = random_ring(40, [written]), queries(1, 20, 2, 4)
    found = search(ring, q, 4, half_found)
    measured = jax.jit(memorizing.measured_recall)(ring, q, found, np.full((1, 20), reads))
    assert measured == pytest.approx(share)


def test_an_approximate_search_reports_its_recall_and_pays_for_measuring_it():
    """On a CPU `approx_max_k` is exact: the recall is 1, whatever the target."""
    config = MemorizingConfig(slots=24, top_k=4, search="approximate", recall_target=0.5)
    model = dataclasses.replace(streams.tiny("memorizing"), memory=config)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    sequence = streams.Sequence(tokens, jnp.zeros_like(tokens))
    score = jax.jit(lambda params, carry: scan_segments(model, params, carry, sequence, lambda logits, _: logits.sum()))
    _, _, (metrics,) = score(params, init_carry(model, len(tokens)))
    np.testing.assert_array_equal(metrics["recall"], 1.0)
    assert streams.walked_flops(model) == pytest.approx(model_cost(model).flops, rel=1e-6)


# ---- the XL cache


def test_a_cache_beside_the_ring_is_counted_and_decodes_like_whole_segments():
    model = dataclasses.replace(streams.tiny("memorizing"), memory=MemorizingConfig(slots=24, top_k=4, cached=10))
    d = model.dims
    assert memory_bytes(Memorizing(model.memory, d)) == 4 * (d.kv_heads * (d.key_dim + d.value_dim) * (24 + 10) + 2)
    assert streams.walked_flops(model) == pytest.approx(model_cost(model).flops, rel=1e-6)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    _, at_once = streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, jnp.zeros_like(tokens))
    few = tokens[:, : model.segment + 5]
    np.testing.assert_allclose(streams.decoded(model, params, few), at_once[:, : few.shape[1]], atol=5e-5)


# ---- growing


@pytest.mark.parametrize("written", [0, 3, 8, 13])
def test_a_grown_ring_holds_the_same_tokens_in_order_and_goes_on(written):
    """Empty, half full, full, and wrapped; then ten more tokens, the last of which push out the oldest of 12."""
    ring = append(ring_of(8), list(np.arange(float(written)))) if written else ring_of(8)
    larger = append(grown(ring, 12), list(np.arange(100.0, 110.0)))
    tokens = [*range(max(0, written - 8), written), *range(100, 110)][-12:]
    count, held = int(larger.written[0]), int(larger.held_B[0])
    assert held == len(tokens)
    for array, sign in ((larger.keys, 1), (larger.values, -1)):
        assert array[0, 0, np.arange(count - held, count) % 12, 0].tolist() == [sign * token for token in tokens]


def test_layers_grow_together_and_nothing_shrinks():
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), random_ring(8, [11, 3]), random_ring(8, [0, 8]))
    larger = grown(layers, 16)
    for layer in range(2):
        one = grown(jax.tree.map(lambda leaf, layer=layer: leaf[layer], layers), 16)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf, layer=layer: leaf[layer], larger), one)
    with pytest.raises(ConfigError, match=r"^memory.slots: a ring of 8 slots does not shrink to 7; give at least 8"):
        grown(layers, 7)


# ---- programs


def ring_copies(text: str) -> list[str]:
    """Copies of whole rings, and other arrays as large that are no update in place, in a compiled program."""
    shape = r"f32\[(?:2,)?2,(?:1,)?640,[34]\]"
    made = re.findall(rf"^.*= {shape}\S* (?:copy|transpose|pad|select|concatenate|dynamic-slice)\(.*$", text, re.MULTILINE)
    return made + re.findall(rf"^.*= \({shape}[^=]*copy-start.*$", text, re.MULTILINE)


def compiled_layer(method: str, donated: tuple[int, ...], queries: int):
    """A layer's program over a ring of 640 slots, with the memory as its second argument."""
    dims = dataclasses.replace(ragged.DIMS, compute="float32")
    module = Memorizing(MemorizingConfig(slots=640, top_k=4), dims)
    d, keys = dims, (2, dims.segment)
    documents, before = jnp.zeros(keys, jnp.int32), jnp.zeros(2, jnp.int32)
    bounds = Boundaries(documents[:, :queries], documents, before, jnp.int32(0))
    rows = (
        (*keys, d.d_model),
        (2, queries, d.heads, d.key_dim),
        (*keys, d.kv_heads, d.key_dim),
        (*keys, d.kv_heads, d.value_dim),
    )
    segment = Segment(*(jnp.zeros(shape) for shape in rows), bounds)
    run = functools.partial(module.apply, method=method)
    params = {"params": ragged.parameters(module)}
    return jax.jit(run, donate_argnums=donated).lower(params, module.init_memory(2), segment).compile()


def test_a_donated_ring_is_written_in_place():
    program = compiled_layer("write", donated=(1,), queries=6)
    memory = program.memory_analysis()
    ring = 4 * 2 * 2 * 640 * (ragged.DIMS.key_dim + ragged.DIMS.value_dim)
    assert memory.alias_size_in_bytes >= ring
    assert memory.temp_size_in_bytes < ring / 10  # the segment's own arrays
    assert not ring_copies(program.as_text())


def test_reading_a_token_copies_no_ring():
    """One token of each row, as while decoding: the largest temporary is the scores of all slots."""
    program = compiled_layer("attend", donated=(), queries=1)
    scores = 4 * 2 * ragged.DIMS.heads * 640
    ring = 4 * 2 * 2 * 640 * ragged.DIMS.key_dim
    assert program.memory_analysis().temp_size_in_bytes < 2 * scores + ring / 10
    assert not ring_copies(program.as_text())


def primitives(jaxpr, name: str) -> int:
    """How often a primitive stands in a program, its inner ones included."""
    return str(jaxpr).count(f" {name}[")


def test_the_backward_pass_does_not_search_again_and_keeps_no_ring():
    """Segments are rematerialised, but what was found is kept."""
    config = MemorizingConfig(slots=999, top_k=4)
    model = dataclasses.replace(streams.tiny("memorizing"), memory=config)
    params, tokens = jax.eval_shape(lambda: (init_params(model, jax.random.key(0)), streams.tokens_of(model)))

    def loss(params, tokens):
        sequence = streams.Sequence(tokens, jnp.zeros_like(tokens))
        return scan_segments(model, params, init_carry(model, 2), sequence, lambda logits, _: logits.mean())[1].sum()

    forward, training = jax.make_jaxpr(loss)(params, tokens), jax.make_jaxpr(jax.grad(loss))(params, tokens)
    assert primitives(training, "top_k") == primitives(forward, "top_k") > 0
    assert not re.search(rf"f32\[{streams.SEGMENTS},(?:\d+,)*999,\d+\]", str(training))  # a ring for each segment


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"slots": 0}, "slots"),
        ({"top_k": 513}, "top_k"),
        ({"cached": -1}, "cached"),
        ({"search": "hnsw"}, "search"),
        ({"recall_target": 1.0}, "recall_target"),
        ({"scale_init": 0.0}, "scale_init"),
    ],
)
def test_impossible_settings_are_refused(changes, field):
    with pytest.raises(ConfigError, match=rf"^memory.{field}: "):
        MemorizingConfig(**changes).check(ragged.DIMS)
