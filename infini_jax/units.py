"""Numbers with prefixes, and times, as text for people."""

import datetime
import math

CENTURY = 3_155_760_000  # seconds


def human_bytes(size: float) -> str:
    """A number of bytes as text with a binary prefix: 512 B, 3.9 KiB, 64 KiB."""
    power = min(int(math.log2(size)) // 10, 4) if size >= 1 else 0
    return f"{size / 1024**power:.1f}".removesuffix(".0") + (" B", " KiB", " MiB", " GiB", " TiB")[power]


def human_count(count: float) -> str:
    """A count as text with a decimal prefix: 512, 65.5K, 1.59M, 2.3P."""
    power = min(int(math.log10(count)) // 3, 6) if count >= 1 else 0
    return f"{count / 1000**power:.3g}" + ("", "K", "M", "G", "T", "P", "E")[power]


def human_time(seconds: float) -> str:
    """A number of seconds as text in hours, minutes and seconds: 0:02:05; in years where they are many."""
    if not seconds < CENTURY:  # nor a number
        return f"{seconds / CENTURY * 100:.3g} years"
    return str(datetime.timedelta(seconds=round(seconds)))


def whole_number(text: str) -> int:
    """The count that a text gives, with or without a binary prefix: 512, 4k is 4096, 1m is 1048576.

    Raises `ValueError` for any other text.
    """
    power = {"k": 1, "m": 2}.get(text[-1:].lower(), 0)
    return int(text[:-1] if power else text) * 1024**power
