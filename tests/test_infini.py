"""Infini-attention against float64 arrays made from the paper's equations, and against what it must equal."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.attention import dense
from infini_jax.layers.distances import rotary
from infini_jax.memory import infini
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.infini import Infini, InfiniConfig, InfiniMemory
from tests.golden import golden
from tests.support.streams import MODEL

RULES = ("linear", "delta")
WEIGHTS = ("X", "Wq", "Wk", "Wv", "Wo", "beta")


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def stream(weights: dict, seg: int, rule: str, rope: bool = False, truncate: bool = False):
    """Outputs BxTxD and the memories after each segment, from the plain functions."""
    x, beta = weights["X"], weights["beta"]
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, weights[name]) for name in ("Wq", "Wk", "Wv"))
    batch, length, heads, key_dim = q.shape
    memory = InfiniMemory(
        jnp.zeros((batch, heads, key_dim, v.shape[-1]), x.dtype), jnp.zeros((batch, heads, key_dim), x.dtype)
    )
    outputs, memories, parts = [], [], []
    for begin in range(0, length, seg):
        q_s, k_s, v_s = (array[:, begin : begin + seg] for array in (q, k, v))
        size = q_s.shape[1]
        turn = (lambda y: rotary(y, jnp.arange(size))) if rope else (lambda y: y)  # noqa: B023 (used at once)
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))
        a_dot, _ = dense(turn(q_s), turn(k_s), v_s, mask)
        a_mem = infini.retrieve(memory, infini.sigma(q_s))
        outputs.append(jnp.einsum("bshv,hvd->bsd", infini.combine(beta, a_mem, a_dot), weights["Wo"]))
        memory = infini.update(memory, infini.sigma(k_s), v_s, rule)
        memory = jax.lax.stop_gradient(memory) if truncate else memory
        memories.append(memory)
        parts.append((a_mem, a_dot))
    return jnp.concatenate(outputs, axis=1), memories, parts


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_and_states_equal_the_golden_arrays(rule, rope, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        arrays = golden("infini_paper_f64")
        outputs, memories, parts = stream({name: jnp.asarray(arrays[name], dtype) for name in WEIGHTS}, 6, rule, rope)
        prefix = f"{rule}_rope" if rope else rule
        np.testing.assert_allclose(outputs, arrays[f"{prefix}_O"], atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(np.stack([m.M for m in memories]), arrays[f"{prefix}_M"], atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(np.stack([m.z for m in memories]), arrays[f"{prefix}_z"], atol=tolerance, rtol=tolerance)
        if not rope:
            a_mem = np.concatenate([part[0] for part in parts], axis=1).swapaxes(1, 2)
            np.testing.assert_allclose(a_mem, arrays[f"{rule}_A_mem"], atol=tolerance, rtol=tolerance)
        a_dot = np.concatenate([part[1] for part in parts], axis=1).swapaxes(1, 2)
        np.testing.assert_allclose(a_dot, arrays["rope_A_dot" if rope else "A_dot"], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-4)])
@pytest.mark.parametrize("kind", ["bptt", "detach"])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_the_golden_arrays(rule, kind, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        arrays = golden("infini_paper_f64")
        weights = {name: jnp.asarray(arrays[name], dtype) for name in WEIGHTS}
        upstream = jnp.asarray(arrays["dO"], dtype)

        def loss(weights):
            return (stream(weights, 6, rule, truncate=kind == "detach")[0] * upstream).sum()

        for name, gradient in jax.jit(jax.grad(loss))(weights).items():
            expected = arrays[f"grad_{rule}_{kind}_{name}"]
            np.testing.assert_allclose(gradient, expected, atol=tolerance * np.abs(expected).max(), err_msg=name)


def test_linear_memory_is_normalised_linear_attention_over_all_earlier_segments():
    with jax.enable_x64(True):
        arrays = golden("infini_paper_f64")
        sigma = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))  # noqa: E731
        q, k, v = (np.einsum("btd,dhk->bthk", arrays["X"], arrays[name]) for name in ("Wq", "Wk", "Wv"))
        _, _, parts = stream({name: jnp.asarray(arrays[name]) for name in WEIGHTS}, 6, "linear")
        for number in range(1, 4):
            past, here = slice(0, 6 * number), slice(6 * number, 6 * number + 6)
            weights = np.einsum("bshk,bthk->bhst", sigma(q[:, here]), sigma(k[:, past]))
            expected = np.einsum("bhst,bthv->bshv", weights / weights.sum(-1, keepdims=True), v[:, past])
            np.testing.assert_allclose(parts[number][0], expected, atol=1e-12)


def test_memory_has_the_size_that_the_paper_states():
    """d_key (d_value + 1) H L scalars; 12 layers x 8 heads x 128 x 129 is the paper's 1.6M."""
    dims = dataclasses.replace(MODEL.dims, heads=8, kv_heads=8, key_dim=128, value_dim=128)
    assert 12 * memory_bytes(Infini(InfiniConfig(), dims)) // 4 == 1_585_152


def test_gates_weigh_the_memory_and_start_even():
    a_mem, a_dot = jnp.ones((1, 1, 2, 1)), jnp.zeros((1, 1, 2, 1))
    np.testing.assert_allclose(infini.combine(jnp.array([0.0, 20.0]), a_mem, a_dot).ravel(), [0.5, 1.0], atol=1e-6)
