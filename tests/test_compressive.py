"""Compressive Transformer against a slow float64 reference and against arrays of public code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import compressive, window
from infini_jax.memory.base import AUXILIARY
from infini_jax.memory.compressive import Compressive, CompressiveConfig, CompressiveMemory, Entries
from infini_jax.memory.positions import attend_relative
from tests.golden import public_golden
from tests.reference import compressive as reference
from tests.reference.attention import relative_logit, rotary_logit
from tests.support import ragged

# A cache longer than a segment, and one shorter (new tokens are compressed at once); ratios that divide segments and do not.
CASES = {
    "cache 8, 3 to 1": CompressiveConfig(slots=8, compressed=3, ratio=3, loss_weight=0.7),
    "cache 4, 4 to 1": CompressiveConfig(slots=4, compressed=2, ratio=4, positions="relative"),
}


def compress_of(params: dict) -> tuple:
    keys, values = params["compress_keys"], params["compress_values"]
    return (keys["kernel"], 0.0), (values["kernel"], values["offset"])


def logit_of(params: dict):
    if "attention" not in params:
        return rotary_logit
    learned = params["attention"]
    return relative_logit(learned["w_r"]["kernel"], learned["u"], learned["v"])


def expected(config, params, arrays, held_params, held):
    """(outputs BxTxD, rows of (cache, compressed), auxiliary losses per segment) of the reference."""
    rows = [
        reference.stream(
            *([x[row] for x in inputs[1:]] for inputs in (arrays, held)),
            documents,
            ragged.LENGTHS,
            config.slots,
            config.compressed,
            compress_of(params),
            compress_of(held_params),
            logit_of(params),
        )
        for row, documents in enumerate(ragged.DOCUMENTS)
    ]
    errors = [[error for row in squares for error in row] for squares in zip(*(row[3] for row in rows), strict=True)]
    losses = [config.loss_weight * np.mean(squares) if squares else 0.0 for squares in errors]
    return ragged.projected(params, [row[0] for row in rows]), [row[1:3] for row in rows], losses


def holds(kept: window.Recent, row: int, entries: list) -> None:
    """The valid entries of a row are these (key, value) pairs."""
    assert kept.length[row] == len(entries)
    for array, side in ((kept.keys, 0), (kept.values, 1)):
        for found, entry in zip(array[row][array.shape[1] - len(entries) :], entries, strict=True):
            np.testing.assert_allclose(found, entry[side], atol=ragged.EXACT)


@pytest.mark.parametrize("case", CASES)
def test_outputs_memory_loss_and_gradients_are_those_of_the_reference(case):
    config = CASES[case]
    module = Compressive(config, ragged.DIMS)
    params, arrays = point = ragged.parameters(module), ragged.inputs()
    weights, direction = ragged.like(arrays[0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, metrics) = ragged.streamed_with_gradient(module, *point, weights)
    wanted, rows, losses = expected(config, params, arrays, params, arrays)
    np.testing.assert_allclose(outputs, wanted, atol=ragged.EXACT)
    np.testing.assert_allclose([m[AUXILIARY + "reconstruction"] for m in metrics], losses, atol=ragged.EXACT)
    assert losses[-1] > 0
    for row, (cache, older) in enumerate(rows):
        holds(memory.recent, row, cache)
        holds(memory.compressed, row, older)
    assert int(memory.compressed.length.max()) == config.compressed  # entries were dropped at the old end

    def loss(moved):
        outputs, _, losses = expected(config, *moved, params, arrays)
        return np.sum(weights * outputs) + sum(losses)

    ragged.assert_slope(gradient, loss, point, direction)


def as_entries(x_BxTxD):
    """Layer inputs as keys of one head: public code caches and compresses them before the projections."""
    return x_BxTxD[:, :, None, :]


@pytest.mark.parametrize("positions", ["nopos", "pos"])
def test_outputs_memories_and_loss_are_those_of_public_code(positions):
    """A PyTorch port that caches layer inputs: our functions take them as keys and values, projections stand here."""
    a = public_golden("compressive_lucidrains_f64")
    heads, _, key_dim = a["pos_emb"].shape
    slots, size, ratio, batch = int(a["mem_len"]), int(a["cmem_len"]), int(a["ratio"]), a["X"].shape[1]
    with jax.enable_x64(True):
        kernel, bias = jnp.asarray(a["compress_mem_fn_conv_weight"]).transpose(2, 1, 0), a["compress_mem_fn_conv_bias"]
        r_JxHxK = (positions == "pos") * jnp.asarray(a["pos_emb"]).swapaxes(0, 1)
        none, width = jnp.zeros((heads, key_dim)), a["X"].shape[-1]

        def projected(x, weight):
            return (x[:, :, 0] @ weight.T).reshape(*x.shape[:2], -1, heads, key_dim)

        def empty(entries):
            return window.Recent(*[jnp.zeros((batch, entries, 1, width))] * 2, jnp.zeros(batch, jnp.int32))

        def kv(x):
            return jnp.moveaxis(projected(x, a["to_kv_weight"]), 2, 0)

        memory, before = CompressiveMemory(empty(slots), empty(size)), jnp.full(batch, -1)
        for s, x in enumerate(jnp.asarray(a["X"])):
            x = as_entries(x)
            segment = Segment(x, x, x, x, whole(jnp.zeros(x.shape[:2], int), before))
            seen, q = window.view(segment, memory.compressed, memory.recent), projected(x, a["to_q_weight"])[:, :, 0]
            keys, values = kv(seen.keys)
            heard = attend_relative(q, seen.replace(keys=keys, values=values), r_JxHxK, none, none)
            output = heard.reshape(*x.shape[:2], -1) @ a["to_out_weight"].T + a["to_out_bias"]
            np.testing.assert_allclose(output, a[f"{positions}_O"][s], atol=1e-12)

            old = compressive.evicted(memory.recent, segment, ratio)
            packed = compressive.f_c(old.keys, kernel, bias)
            compressed = Entries(packed, packed, -(-old.count // ratio))
            loss = compressive.reconstruction(
                q,
                jnp.ones(x.shape[:2], bool),
                Entries(*kv(old.keys), old.count),
                Entries(*kv(packed), compressed.count),
            )
            np.testing.assert_allclose(loss, a[f"{positions}_aux"][s], atol=1e-12)
            memory = compressive.append(memory, segment, compressed)
            before = jnp.zeros(batch, int)
            for kept, golden in ((memory.recent, f"mem{s}"), (memory.compressed, f"cmem{s}")):
                wanted = a[f"{positions}_{golden}"]
                assert np.all(kept.length == wanted.shape[1])
                np.testing.assert_allclose(kept.keys[:, kept.keys.shape[1] - wanted.shape[1] :, 0], wanted, atol=1e-12)


def test_the_loss_trains_the_compression_and_nothing_else():
    module = Compressive(CASES["cache 8, 3 to 1"], ragged.DIMS)
    point = ragged.parameters(module), ragged.inputs()
    outputs_count_for_nothing = np.zeros_like(point[1][0])
    with jax.enable_x64(True):
        (of_loss, of_inputs), _ = ragged.streamed_with_gradient(module, *point, outputs_count_for_nothing)
        (of_both, _), _ = ragged.streamed_with_gradient(module, *point, outputs_count_for_nothing + 1.0)
    for name in ("compress_keys", "compress_values"):
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(of_loss[name]))
        jax.tree.map(np.testing.assert_array_equal, of_both[name], of_loss[name])
    assert not np.any(of_loss["out"]["kernel"])
    assert not any(np.any(leaf) for leaf in of_inputs)


def test_compression_is_a_mean_before_training():
    module = compressive.Compression(ratio=2, features=6, has_offset=True)
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 3))
    y, _ = module.init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(y, x.reshape(1, 2, 2, 2, 3).mean(axis=2), atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"), [("slots", 0), ("compressed", 0), ("ratio", 0), ("positions", "absolute"), ("loss_weight", -1.0)]
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"^memory.{field}: "):
        CompressiveConfig(**{field: value}).check(ragged.DIMS)
