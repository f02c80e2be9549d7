"""Derived figures that never raise, whatever they are derived from, and numbers and times as text for people.

What overflows is infinite, what has no value is NaN, and both are "-" as text: a figure must not end the run it describes.
"""

import datetime
import math

CENTURY = 3_155_760_000  # seconds
NONE = "-"  # the text of a figure that is not finite


def exponential(exponent: float) -> float:
    """e^exponent, infinite where that is beyond the largest float."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def ratio(part: float, whole: float) -> float:
    """part / whole, NaN where `whole` is zero."""
    return part / whole if whole else math.nan


def human_bytes(size: float) -> str:
    """A number of bytes as text with a binary prefix: 512 B, 3.9 KiB, 64 KiB."""
    if not math.isfinite(size):
        return NONE
    power = min(int(math.log2(size)) // 10, 4) if size >= 1 else 0
    return f"{size / 1024**power:.1f}".removesuffix(".0") + (" B", " KiB", " MiB", " GiB", " TiB")[power]


def human_count(count: float) -> str:
    """A count as text with a decimal prefix: 512, 65.5K, 1.59M, 2.3P."""
    if not math.isfinite(count):
        return NONE
    power = min(int(math.log10(count)) // 3, 6) if count >= 1 else 0
    return f"{count / 1000**power:.3g}" + ("", "K", "M", "G", "T", "P", "E")[power]


def human_time(seconds: float) -> str:
    """A number of seconds as text in hours, minutes and seconds: 0:02:05; in years where they are many, "-" for no number."""
    if not math.isfinite(seconds):
        return NONE
    if seconds >= CENTURY:
        return f"{seconds / CENTURY * 100:.3g} years"
    return str(datetime.timedelta(seconds=round(seconds)))


def whole_number(text: str) -> int:
    """The count that a text gives, with or without a binary prefix: 512, 4k is 4096, 1m is 1048576.

    Raises `ValueError` for any other text.
    """
    power = {"k": 1, "m": 2}.get(text[-1:].lower(), 0)
    return int(text[:-1] if power else text) * 1024**power
