"""The k largest of many scores, exactly and fast, or approximately with a measured recall.

`top_k` equals `lax.top_k`, ties included (lowest place first), in the form that the platform and the size call for:
  two_stage   scores are cut into groups of neighbors. Each of the k groups with the largest maxima holds a score that comes
              before every score of the other groups, so the k largest of all are in these k groups: one pass takes maxima,
              and N / g + k g numbers are ordered instead of N.
  by_rows     a loop of two-dimensional top_k: any other becomes a full sort on TPUs, with gigabytes of temporaries.
`approximate` is `lax.approx_max_k` (Chern et al. 2022, arXiv 2206.14286): fast on TPUs, exact and slower than `top_k` on CPUs.
A NaN has no place in this order, and -0 ties with 0.
Letters: R rows of N scores, M groups of E scores and U left over, C candidates.
"""

import math

import jax
import jax.numpy as jnp

from infini_jax.layers.platforms import platform

GROUPS_PAY = 64  # scores per row for each of the k: on a CPU groups win from 80 k on at k = 8, 70 k at 64 (benchmarks/topk.py)

A_CPUS_SCORES, OTHERS_SCORES = 2**24, 2**25  # at once; a CPU's by benchmarks/topk.py, elsewhere 128 MiB


def top_k(scores: jax.Array, k: int, held: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(values, places) of the k largest of the last axis, best first: `lax.top_k`, in the form that is fastest here.

    Args:
      scores: (..., N).
      k: number of scores to find.
      held: (...), number of first places of a row that count; the others are -inf. None for all of them.
    """
    if platform() == "tpu":
        return by_rows(masked(scores, held), k)
    if scores.shape[-1] < GROUPS_PAY * k:
        return jax.lax.top_k(masked(scores, held), k)
    return two_stage(scores, k, held)


def masked(scores: jax.Array, held: jax.Array | None) -> jax.Array:
    """The scores, -inf behind the `held` first places."""
    return scores if held is None else jnp.where(jnp.arange(scores.shape[-1]) < held[..., None], scores, -jnp.inf)


def group_size(places: int, k: int) -> int:
    """Size g of a group, a power of two near sqrt(N / k): N / g maxima and k g scores of the winners are then fewest."""
    return 2 ** max(0, round(math.log2(places / k) / 2))


def two_stage(scores: jax.Array, k: int, held: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(values, places) of the k largest, by the groups' maxima and then the k groups that win.

    At least k groups must fit into the last axis. Only the first `held` places of a row count, None for all; the other scores
    are left as they are, which saves a pass over all of them.
    """
    *rows, places = scores.shape
    held_R = jnp.broadcast_to(places if held is None else held, rows).reshape(-1)
    values, found = _two_stage_of_rows(scores.reshape(-1, places), k, held_R)
    return values.reshape(*rows, k), found.reshape(*rows, k)


def _two_stage_of_rows(scores_RxN: jax.Array, k: int, held_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, places = scores_RxN.shape
    g, inside = group_size(places, k), jnp.arange(group_size(places, k))
    groups = places // g

    def counted(place_RxC: jax.Array) -> jax.Array:
        return jnp.where(place_RxC < held_R[:, None], _at(scores_RxN, place_RxC), -jnp.inf)

    maxima_RxM = scores_RxN[:, : groups * g].reshape(rows, groups, g).max(axis=-1)
    cut_R = jnp.minimum(held_R // g, groups - 1)  # the group in which the scores that count end
    at_cut_Rx1 = counted(cut_R[:, None] * g + inside).max(axis=-1, keepdims=True)
    whole_RxM = jnp.arange(groups) < (held_R // g)[:, None]
    is_cut_RxM = jnp.arange(groups) == cut_R[:, None]
    maxima_RxM = jnp.where(whole_RxM, maxima_RxM, jnp.where(is_cut_RxM, at_cut_Rx1, -jnp.inf))

    _, winner_Rxk = jax.lax.top_k(maxima_RxM, k)
    place_RxkxE = jnp.sort(winner_Rxk, axis=-1)[:, :, None] * g + inside  # rising, so that ties go to the lowest
    left_over_RxU = jnp.broadcast_to(jnp.arange(groups * g, places), (rows, places - groups * g))
    place_RxC = jnp.concatenate([place_RxkxE.reshape(rows, k * g), left_over_RxU], axis=1)
    values_Rxk, candidate_Rxk = jax.lax.top_k(counted(place_RxC), k)
    return values_Rxk, _at(place_RxC, candidate_Rxk)


def _at(array_RxN: jax.Array, place_RxC: jax.Array) -> jax.Array:
    return jnp.take_along_axis(array_RxN, place_RxC, axis=1, mode="promise_in_bounds")


def at_once(queries: int, scores_a_query: int) -> int:
    """The largest divisor of `queries` that make few enough scores to be held at once on this platform; 1 at least."""
    most = max(1, (A_CPUS_SCORES if platform() == "cpu" else OTHERS_SCORES) // scores_a_query)
    return max(tile for tile in range(1, min(queries, most) + 1) if queries % tile == 0)


def by_rows(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(values, places) of the k largest, by one two-dimensional `lax.top_k` after another over all axes but the last two."""
    *outer, rows, places = scores.shape
    if math.prod(outer) == 1:
        values, found = jax.lax.top_k(scores.reshape(rows, places), k)
    else:
        values, found = jax.lax.map(lambda part: jax.lax.top_k(part, k), scores.reshape(-1, rows, places))
    return values.reshape(*outer, rows, k), found.reshape(*outer, rows, k)


def approximate(
    scores: jax.Array, k: int, held: jax.Array | None = None, *, recall_target: float
) -> tuple[jax.Array, jax.Array]:
    """(values, places) of about the k largest, by `lax.approx_max_k`: a share near `recall_target` belongs to the true k.

    Only the first `held` places of a row count, None for all.
    """
    return jax.lax.approx_max_k(masked(scores, held), k, recall_target=recall_target)


def recall(found: jax.Array, true: jax.Array) -> jax.Array:
    """Share of the true places that were found, over all rows; 1 where there is nothing to find.

    Args:
      found, true: places (..., k) in any order, -1 where there is none. An equal score at another place is a miss.
    """
    hits = (found[..., None, :] == true[..., None]).any(axis=-1) & (true >= 0)
    total = jnp.sum(true >= 0)
    return jnp.where(total > 0, jnp.sum(hits) / jnp.maximum(total, 1), 1.0)
