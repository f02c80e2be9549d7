"""Text files that a reader never sees half of, and files that come with the package."""

from pathlib import Path


def write_at_once(text: str, file: Path) -> None:
    """Writes the file at once or not at all, whenever the process dies."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


def shipped(folder: str) -> Path:
    """A folder that comes with infini_jax, such as experiments: in a wheel inside the package, in the repository beside it."""
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder
