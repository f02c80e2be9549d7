"""Text from bytes as they are read, and cut into pieces: memory holds a piece of a document, however long it is."""

import codecs
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from infini_jax.errors import ConfigError

Errors = Literal["refuse", "replace", "latin-1"]
PIECE = 16 << 20  # characters: what is longer is cut


def decoded(read: Callable[[], Iterator[bytes]], name: str, errors: Errors) -> Iterator[str]:
    """The text of a document as it stands, line ends included, some of it at a time.

    Args:
      read: function that begins to read its bytes; called twice where they are many and may be Latin-1.
      name: of the document, for errors.
      errors: treatment of bytes that are no UTF-8.

    Raises `ConfigError` with the place of the first byte that is no UTF-8 where `errors` is refuse.
    """
    blocks = read()
    start = first_bytes(blocks, PIECE)
    encoding = "utf-8"
    if errors == "latin-1" and not is_text(itertools.chain([start], read() if len(start) >= PIECE else ()), encoding):
        encoding = "latin-1"
    decoder = codecs.getincrementaldecoder(encoding)("replace" if errors == "replace" else "strict")
    done = 0  # bytes before the block at hand
    for block in itertools.chain([start], blocks, [b""]):
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ConfigError(
                "path",
                f"{name} is not UTF-8 at byte {done - held + error.start} (0x{error.object[error.start]:02x})",
                "mend the file, or read it with --errors replace or --errors latin-1",
            ) from error
        done += len(block)
        yield text


def first_bytes(blocks: Iterator[bytes], least: int) -> bytes:
    """The bytes of whole blocks, at least so many unless there are fewer."""
    taken, size = [], 0
    for block in blocks:
        taken.append(block)
        size += len(block)
        if size >= least:
            break
    return b"".join(taken)


def is_text(blocks: Iterable[bytes], encoding: str) -> bool:
    """Whether all bytes are text of this encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks:
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def pieces(text: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Pieces of at most `size` characters that join to the text: one for a text that is no longer, none for an empty one.

    A piece ends behind a line end, or else a space, or else anywhere: tokenizers encode by line, so that pieces of whole lines
    have the tokens of the whole text.
    """
    held = ""
    for block in text:
        held += block
        while len(held) > size:
            cut = held.rfind("\n", 0, size) + 1 or held.rfind(" ", 0, size) + 1 or size
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held
