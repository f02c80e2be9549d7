"""The k largest of many scores, exactly and fast, or approximately with a measured recall.

`top_k` equals `lax.top_k`, ties included (lowest place first), in the form that the platform and the size call for:
  two_stage   scores are cut into groups of neighbours. Each of the k groups with the largest maxima holds a score that comes
              before every score of the other groups, so the k largest of all are in these k groups: one pass takes maxima,
              and N / g + k g numbers are ordered instead of N.
  by_rows     a loop of two-dimensional top_k: any other becomes a full sort on TPUs, with gigabytes of temporaries.
`approximate` is `lax.approx_max_k` (Chern et al. 2022, arXiv 2206.14286): fast on TPUs, exact and slower than `top_k` on CPUs.
A NaN has no place in this order, and -0 ties with 0.
"""

import math

import jax
import jax.numpy as jnp

GROUPS_PAY = (
    64  # scores a row for each of the k: measured on a CPU, groups win from 80 k on at k = 8, 70 k at 64 (benchmarks/topk.py)
)


def top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(values, places) of the k largest of the last axis, best first: `lax.top_k`, in the form that is fastest here."""
    if jax.default_backend() == "tpu":
        return by_rows(scores, k)
    return two_stage(scores, k) if scores.shape[-1] >= GROUPS_PAY * k else jax.lax.top_k(scores, k)


def group_size(places: int, k: int) -> int:
    """A power of two near sqrt(N / k), where the N / g maxima and the k g scores of the winning groups are fewest."""
    return 2 ** max(0, round(math.log2(places / k) / 2))


def two_stage(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Groups' maxima, then the k groups that win. At least k groups must fit into the last axis."""
    *rows, places = scores.shape
    values, found = _two_stage_of_rows(scores.reshape(-1, places), k, group_size(places, k))
    return values.reshape(*rows, k), found.reshape(*rows, k)


def _two_stage_of_rows(scores_RxN: jax.Array, k: int, g: int) -> tuple[jax.Array, jax.Array]:
    rows, places = scores_RxN.shape
    groups = places // g
    maxima_RxM = scores_RxN[:, : groups * g].reshape(rows, groups, g).max(axis=-1)
    _, winner_Rxk = jax.lax.top_k(maxima_RxM, k)
    place_RxkxE = jnp.sort(winner_Rxk, axis=-1)[:, :, None] * g + jnp.arange(g)  # rising, so that ties go to the lowest
    left_over_RxE = jnp.broadcast_to(jnp.arange(groups * g, places), (rows, places - groups * g))
    place_RxC = jnp.concatenate([place_RxkxE.reshape(rows, k * g), left_over_RxE], axis=1)
    values_Rxk, candidate_Rxk = jax.lax.top_k(_at(scores_RxN, place_RxC), k)
    return values_Rxk, _at(place_RxC, candidate_Rxk)


def _at(array_RxN: jax.Array, place_RxC: jax.Array) -> jax.Array:
    return jnp.take_along_axis(array_RxN, place_RxC, axis=1, mode="promise_in_bounds")


def by_rows(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """One two-dimensional `lax.top_k` after another, over all axes but the last two."""
    *outer, rows, places = scores.shape
    if math.prod(outer) == 1:
        values, found = jax.lax.top_k(scores.reshape(rows, places), k)
    else:
        values, found = jax.lax.map(lambda part: jax.lax.top_k(part, k), scores.reshape(-1, rows, places))
    return values.reshape(*outer, rows, k), found.reshape(*outer, rows, k)


def approximate(scores: jax.Array, k: int, recall_target: float) -> tuple[jax.Array, jax.Array]:
    """`lax.approx_max_k`: (values, places), best first, of which a share near `recall_target` belongs to the true k."""
    return jax.lax.approx_max_k(scores, k, recall_target=recall_target)


def recall(found: jax.Array, true: jax.Array) -> jax.Array:
    """Share of the true places that were found, over all rows; 1 where there is nothing to find.

    Args:
      found, true: places (..., k) in any order, -1 where there is none. An equal score at another place is a miss.
    """
    hits = (found[..., None, :] == true[..., None]).any(axis=-1) & (true >= 0)
    total = jnp.sum(true >= 0)
    return jnp.where(total > 0, jnp.sum(hits) / jnp.maximum(total, 1), 1.0)
