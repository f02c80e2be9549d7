"""What is not finite in a memory stays visible: it never reads as an empty memory, and it stops the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.memory import MECHANISMS
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.infini import InfiniMemory, normalised, retrieve
from infini_jax.memory.infinite_former.sticky import attention_histogram
from infini_jax.model.stream import init_carry
from tests.support import streams
from tests.support.streams import BATCH, tiny

ONLY_MEASURED = jax.tree_util.GetAttrKey("fit")  # the fit of a signal, which nothing is computed from


def is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_each_part_of_a_memory_that_is_not_finite_is_seen_in_what_is_read(name):
    """One array of the memory after the other, the others being as they were written."""
    model, params = tiny(name), streams.parameters(name)
    first, second = jnp.split(streams.tokens_of(model, segments=2), 2, axis=1)
    run, documents = streams.scorer(model), jnp.zeros_like(first)
    written, _ = run(params, init_carry(model, BATCH), first, documents)
    paths, (leaves, structure) = jax.tree.leaves_with_path(written.memory), jax.tree.flatten(written.memory)
    for number in [number for number, (path, leaf) in enumerate(paths) if is_floating(leaf) and path[-1] != ONLY_MEASURED]:
        for value in (np.nan, np.inf):
            spoilt = [jnp.full_like(leaf, value) if at == number else leaf for at, leaf in enumerate(leaves)]
            carry = dataclasses.replace(written, memory=jax.tree.unflatten(structure, spoilt))
            _, logits = run(params, carry, second, documents)
            assert not np.isfinite(logits).all(), (paths[number][0], value)


def features_and_memory(seed: int) -> tuple[jax.Array, InfiniMemory]:
    """Positive features BxSxHxF of queries and a memory with a row in which nothing was written."""
    random = np.random.default_rng(seed)
    features_BxSxHxF = jnp.asarray(random.uniform(0.0, 2.0, (3, 5, 4, 6)), jnp.float32)
    M_BxGxFxV, z_BxGxF = (jnp.asarray(random.uniform(0.1, 3.0, shape), jnp.float32) for shape in ((3, 2, 6, 7), (3, 2, 6)))
    return features_BxSxHxF, InfiniMemory(M_BxGxFxV.at[1].set(0.0), z_BxGxF.at[1].set(0.0))


def read_as_before(features_BxSxHxF: jax.Array, z_BxGxF: jax.Array) -> jax.Array:
    """sigma(Q) / (sigma(Q) z) as it was written before: what is not finite reads as zero."""
    z_BxHxF = jnp.repeat(z_BxGxF, features_BxSxHxF.shape[2] // z_BxGxF.shape[1], axis=1)
    mass_BxSxHx1 = jnp.einsum("bshf,bhf->bsh", features_BxSxHxF, z_BxHxF)[..., None]
    return jnp.where(mass_BxSxHx1 > 0, features_BxSxHxF / jnp.where(mass_BxSxHx1 > 0, mass_BxSxHx1, 1.0), 0.0)


def test_finite_sums_read_as_before_bit_for_bit_with_their_gradients():
    features_BxSxHxF, memory = features_and_memory(0)

    def figures(read):
        value = read(features_BxSxHxF, memory.z)
        return value, *jax.grad(lambda *x: jnp.sum(jnp.sin(read(*x))), argnums=(0, 1))(features_BxSxHxF, memory.z)

    for now, before in zip(figures(normalised), figures(read_as_before), strict=True):
        np.testing.assert_array_equal(now, before)
    assert not np.any(normalised(features_BxSxHxF, memory.z)[1])  # nothing was written there


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sum_of_keys_that_overflowed_reads_as_nan_with_its_gradient(value):
    features_BxSxHxF, memory = features_and_memory(1)
    spoilt = dataclasses.replace(memory, z=memory.z.at[0, 0, 2].set(value))
    read_BxSxHxV = retrieve(spoilt, features_BxSxHxF)
    assert np.isnan(read_BxSxHxV[0, :, :2]).all()  # the query heads of that key head
    np.testing.assert_array_equal(read_BxSxHxV[0, :, 2:], retrieve(memory, features_BxSxHxF)[0, :, 2:])
    np.testing.assert_array_equal(read_BxSxHxV[1:], retrieve(memory, features_BxSxHxF)[1:])
    gradient = jax.grad(lambda x: retrieve(spoilt, x).sum())(features_BxSxHxF)
    assert np.isnan(gradient[0, :, :2]).all()
    assert np.isfinite(gradient[1:]).all()


def test_finite_sums_whose_product_overflows_are_seen_too():
    features_BxSxHxF, memory = features_and_memory(2)
    assert np.isnan(normalised(features_BxSxHxF * 1e30, memory.z * 1e30)[0]).all()


def test_a_key_whose_length_overflows_is_no_zero_vector():
    assert np.isnan(unit(jnp.full((2, 4), 1e30))).all()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
    np.testing.assert_array_equal(unit(x), x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6))


def test_an_attention_that_is_no_number_has_no_equal_shares():
    mu_BxHxS, counted_BxS = jnp.full((2, 3, 4), 0.5).at[0].set(jnp.nan), jnp.ones((2, 4), bool).at[1].set(False)
    shares_BxG = attention_histogram(mu_BxHxS, jnp.full((2, 3, 4), 0.01), counted_BxS, bins=5)
    assert np.isnan(shares_BxG[0]).all()
    np.testing.assert_array_equal(shares_BxG[1], np.full(5, 0.2, np.float32))  # nothing is counted
