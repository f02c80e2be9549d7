"""RULER's two scores: the share of the references that stand in what was said, or whether any of them does."""

from collections.abc import Sequence


def match_all(said: str, references: Sequence[str]) -> list[bool]:
    """Whether each reference stands in the text, upper and lower case alike (`string_match_all` is the share)."""
    return [reference.lower() in said.lower() for reference in references]


def match_part(said: str, references: Sequence[str]) -> list[bool]:
    """Whether any reference stands in the text, upper and lower case alike (`string_match_part`)."""
    return [any(match_all(said, references))]
