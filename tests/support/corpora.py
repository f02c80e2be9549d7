"""Small folders of text for the tests of corpora."""

from pathlib import Path

STORIES = {
    "one.txt": "It was a dark night.\n\nThe rain  fell in torrents,\texcept at intervals. ",
    "two.md": "# A heading\n\nSome words é and 😀, with a line end.\r\n",
    "deep/three.txt": "  leading spaces and \u2581 and a NUL \0.\n" * 3,
    "deep/four.txt": "word " * 50,
    "five.txt": "x",
    "six.txt": "the sixth file of all\n" * 9,
}


def write_stories(folder: Path, stories: dict[str, str | bytes] = STORIES) -> Path:
    """The stories as files below `folder`, byte for byte."""
    for name, text in stories.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder
