"""Text files that a reader never sees half of."""

from pathlib import Path


def write_at_once(text: str, file: Path) -> None:
    """Writes the file at once or not at all, whenever the process dies."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)
