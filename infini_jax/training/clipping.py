"""The clip of the global gradient norm, right for every gradient that is finite."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

EXPONENTS = 100  # of two, up to which a gradient is scaled: the power and its inverse are normal numbers of every type


def largest(tree: Any) -> jax.Array:
    """The largest absolute entry of a tree, float32; not finite where any entry is not."""
    return jnp.stack([jnp.abs(leaf).max(initial=0).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]).max()


def unless_infinite(gradient: Any, after: Any, before: Any) -> tuple[Any, jax.Array]:
    """(`after` where every entry of the gradient is finite, `before` elsewhere; whether it is)."""
    is_finite = jnp.isfinite(largest(gradient))
    return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, before), is_finite


def scaled(tree: Any) -> tuple[Any, jax.Array]:
    """(the tree times a power of two that brings its largest entry near one, the inverse of the power).

    Squares of what is scaled neither overflow nor vanish. A power of two rounds nothing.
    """
    _, exponent = jnp.frexp(largest(tree))
    exponent = exponent.clip(-EXPONENTS, EXPONENTS).astype(jnp.int32)
    power = jnp.ldexp(jnp.float32(1), -exponent)
    return jax.tree.map(lambda leaf: leaf * power.astype(leaf.dtype), tree), jnp.ldexp(jnp.float32(1), exponent)


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all entries, infinite only where it is larger than float32 holds."""
    near_one, inverse = scaled(tree)
    return optax.tree.norm(near_one) * inverse


def clip_by_global_norm(maximum: float) -> optax.GradientTransformation:
    """Scales gradients whose global norm is above `maximum` down to it.

    As `optax.clip_by_global_norm`, whose norm overflows to infinity for entries of 1e20, and whose update then is zero.
    """

    def clipped(updates: Any, params: Any = None) -> Any:
        del params
        near_one, inverse = scaled(updates)
        norm = optax.tree.norm(near_one)
        is_within = norm * inverse < maximum

        def clip(update: jax.Array, near: jax.Array) -> jax.Array:
            return jnp.where(is_within, update, (near / norm.astype(near.dtype)) * maximum)

        return jax.tree.map(clip, updates, near_one)

    return optax.stateless(clipped)
