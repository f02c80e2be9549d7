"""Which of a test's cases a contributor runs all day, and which wait for the long run."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[str], cases: Iterable[str]) -> list[Any]:
    """The cases as parameters; all but the quick ones have the mark for long tests."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


WAITING = ("rmt", "armt", "block_recurrent", "gated_delta2", "log_linear", "memory_caching")
"""Mechanisms whose cases wait for the long run where a test runs for every mechanism: each has references of its own.
Of what is alike, `kimi_delta` stands all day for those that read their own segment."""
DAILY = {
    "test_no_output_depends_on_a_later_token",
    "test_what_must_be_declared_is_declared",
    "test_a_later_segment_trains_what_is_declared_of_an_earlier_one",
    "test_second_packed_document_is_not_affected_by_the_first",
    "test_attending_does_not_depend_on_what_the_segment_will_write",
    "test_bytes_are_those_of_the_arrays",
    "test_counted_flops_equal_those_of_the_program",
}
"""Tests that run for those all day, too: they cost little, or find what a change of the model breaks first."""


def waiting(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The cases of mechanisms in `WAITING` among tests that run for every mechanism, `DAILY` ones left out."""
    cases = [item for item in items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    values = {item: {value for value in item.callspec.params.values() if isinstance(value, str)} for item in cases}
    for_all = {(item.path, item.originalname) for item in cases if "infini" in values[item]}
    return [
        item
        for item in cases
        if (item.path, item.originalname) in for_all and values[item].intersection(WAITING) and item.originalname not in DAILY
    ]
