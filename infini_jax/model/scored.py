"""Logits where somebody looks: of a row's places, those whose target is scored.

A row of a synthetic task scores few of its places, and the head's product over the whole vocabulary may cost more than all
layers together. Where these places are clearly fewer than the tokens, the features of a sequence are kept, those of scored
places are gathered behind the scan over segments, and head and loss are run on them alone. A place within a segment cannot be
told from the others before the program runs, so that gathering in each segment would have to make room for all scored places
in every one of them.

Letters: N steps of a scan, B batch, S tokens of a row in a step, T tokens of a row, Q scored places of a row, D model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def few_places(most: int, tokens: int) -> int | None:
    """The number of places that are gathered from a row of `tokens` in which at most so many are scored.

    None where these are half of the tokens or more: logits of all places are taken then.
    """
    return max(most, 1) if 2 * most < tokens else None


def scored_places(weights_BxT: jax.Array, count: int) -> jax.Array:
    """BxQ, the places of each row that have a weight; behind them others, where a row has fewer than `count`."""
    return jax.lax.top_k((weights_BxT != 0).astype(jnp.float32), count)[1]


def gathered(features_NxBxSxD: jax.Array, sequence: Any, count: int) -> tuple[jax.Array, Any]:
    """(features BxQxD, `sequence` as arrays BxQ) at `count` places of each row, all scored ones among them."""
    places_BxQ = scored_places(sequence.weights, count)
    row_Bx1 = jnp.arange(len(places_BxQ))[:, None]
    step_BxQ, place_BxQ = jnp.divmod(places_BxQ, features_NxBxSxD.shape[2])
    part = jax.tree.map(lambda leaf_BxT: jnp.take_along_axis(leaf_BxT, places_BxQ, axis=1), sequence)
    return features_NxBxSxD[step_BxQ, row_Bx1, place_BxQ], part


def in_parts(score: Callable[[jax.Array, Any], Any], x_BxQxD: jax.Array, part: Any, most: int) -> Any:
    """`score(x, part)` of at most so many places of each row at a time, stacked; several are made again for the gradient."""
    count = x_BxQxD.shape[1]
    if count <= most:
        return jax.tree.map(lambda found: found[None], score(x_BxQxD, part))
    whole = count - count % most

    def split(leaf: jax.Array) -> jax.Array:
        return leaf[:, :whole].reshape(len(leaf), -1, most, *leaf.shape[2:]).swapaxes(0, 1)

    again = jax.checkpoint(score)
    found = jax.lax.map(lambda one: again(*one), jax.tree.map(split, (x_BxQxD, part)))
    if whole == count:
        return found
    rest = again(*jax.tree.map(lambda leaf: leaf[:, whole:], (x_BxQxD, part)))
    return jax.tree.map(lambda many, last: jnp.concatenate([many, last[None]]), found, rest)
