"""Which of a test's cases a contributor runs all day, and which wait for the long run."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

SLOW_ROWS = {"log_linear", "memory_caching", "gated_delta2"}
"""Mechanisms whose cases of tests that take the registry's rows as `name` are all slow: a row costs about half a minute. Their
own test files are not; of what is alike, `kimi_delta` stands for those that read their own segment."""


def slow_but(quick: Collection[str], cases: Iterable[str]) -> list[Any]:
    """The cases as parameters; all but the quick ones have the mark for long tests."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
