"""The k largest: every form equals `lax.top_k`, ties included; recall counts what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.platforms import target
from infini_jax.memory import topk

SIZES = [(33, 1), (130, 2), (257, 8), (1000, 31), (2047, 32), (2048, 32), (40, 8)]


def scores_of(kind: str, places: int) -> np.ndarray:
    """Scores 2x3xN: none equal, many equal, all equal, and fewer numbers than k."""
    x = np.random.default_rng(places).normal(size=(2, 3, places)).astype(np.float32)
    if kind == "ties":
        return np.round(x)
    if kind == "equal":
        return np.zeros_like(x)
    if kind == "masked":
        x[..., 5:] = -np.inf
        x[1] = -np.inf
    return x


@functools.cache
def compiled(form):
    """Of (scores, k, ...), once for all scores of a size."""
    return jax.jit(form, static_argnums=1)


@pytest.mark.parametrize("kind", ["numbers", "ties", "equal", "masked"])
@pytest.mark.parametrize("form", [topk.two_stage, topk.by_rows, topk.top_k])
def test_every_form_is_that_of_lax_with_its_order_of_equals(form, kind):
    """Sizes that groups divide and do not divide, where they pay and where they do not."""
    for places, k in SIZES:
        scores = scores_of(kind, places)
        for found, expected in zip(compiled(form)(scores, k), compiled(jax.lax.top_k)(scores, k), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=f"{k} of {places}")


@pytest.mark.parametrize("form", [topk.two_stage, topk.top_k])
def test_places_that_do_not_count_are_as_if_they_were_minus_infinity(form):
    """None, one, as many as end in a group, at its edge, and in what fills no group; those that do not count are large."""
    for places, k in [(33, 1), (1000, 31), (2051, 32)]:
        held = np.array([[0, 1, 8], [29, places - 1, places]])
        scores = np.round(scores_of("numbers", places), 1)
        scores[np.arange(places) >= held[..., None]] += 10.0
        expected = compiled(jax.lax.top_k)(jax.jit(topk.masked)(scores, held), k)
        assert np.isneginf(np.asarray(expected[0])[0, 0]).all()
        for found, wanted in zip(compiled(form)(scores, k, held), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=f"{k} of {places}")


def test_groups_are_as_small_as_both_stages_like():
    """The number of sorted scores is within a half of its least, 2 sqrt(N k)."""
    for places, k in [(1024, 32), (8192, 32), (65_536, 32), (262_144, 8), (5000, 7)]:
        size = topk.group_size(places, k)
        assert places / size + k * size < 1.5 * 2 * np.sqrt(places * k)
        assert places // size >= k


@pytest.mark.parametrize(
    ("platform", "places", "form"),
    [("cpu", 64, "plain"), ("cpu", 4096, "groups"), ("gpu", 4096, "groups"), ("tpu", 4096, "rows")],
)
def test_the_form_is_chosen_by_platform_and_size(platform, places, form):
    with target(platform):
        program = str(jax.make_jaxpr(lambda scores: topk.top_k(scores, 4))(jax.ShapeDtypeStruct((3, 5, places), jnp.float32)))
    assert ("scan[" in program, "reduce_max[" in program) == (form == "rows", form == "groups")


@pytest.mark.parametrize(
    ("found", "true", "share"),
    [
        ([[3, 1, 2]], [[1, 2, 3]], 1.0),  # the order does not matter
        ([[3, 1, 9]], [[1, 2, 3]], 2 / 3),
        ([[4, 5, 6]], [[1, 2, 3]], 0.0),
        ([[7, -1, -1]], [[7, 8, -1]], 1 / 2),  # two valid places only; what is missing is no hit
        ([[1, 2], [4, -1]], [[1, 2], [3, -1]], 2 / 3),  # a share of all places, not a mean over rows
        ([[-1, -1]], [[-1, -1]], 1.0),  # nothing to find
    ],
)
def test_recall_is_the_share_of_true_places_that_were_found(found, true, share):
    assert topk.recall(jnp.array(found), jnp.array(true)) == pytest.approx(share)


def test_approximate_search_has_the_recall_that_it_aims_at():
    scores = jnp.asarray(scores_of("numbers", 2000))
    _, found = topk.approximate(scores, 16, recall_target=0.8)
    assert topk.recall(found, jax.lax.top_k(scores, 16)[1]) >= 0.8
