"""Text from bytes as they are read, and cut into pieces: memory holds a piece of a document, however long it is."""

import codecs
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from infini_jax.errors import ConfigError

Errors = Literal["refuse", "replace", "latin-1"]
PIECE = 16 << 20  # characters: what is longer is cut
MARKS = (  # of byte orders, with what follows them; the longer ones first, as two begin alike
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(read: Callable[[], Iterator[bytes]], name: str, errors: Errors, field: str = "path") -> Iterator[str]:
    """The text of a document as it stands, line ends included, some of it at a time. A byte order mark is taken off.

    Args:
      read: function that begins to read its bytes; called twice where they are many and may be Latin-1.
      name: name of the document, for errors.
      errors: treatment of bytes that are no UTF-8, or not of the encoding that a mark names.
      field: setting that gave the document, named in errors.

    Raises `ConfigError` with the place of the first byte that is none of the encoding where `errors` is refuse.
    """
    blocks = read()
    start = first_bytes(blocks, PIECE)
    encoding, done = marked(start)  # done: bytes before those at hand
    if errors == "latin-1" and encoding == "utf-8":
        whole = read() if len(start) >= PIECE else [start]
        encoding = "utf-8" if is_text(whole, "utf-8-sig") else "latin-1"
    decoder = codecs.getincrementaldecoder(encoding)("replace" if errors == "replace" else "strict")
    for block in itertools.chain([start[done:]], blocks, [b""]):
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            others = "--errors replace or --errors latin-1" if encoding == "utf-8" else "--errors replace"
            shown = encoding.upper().removesuffix("-LE").removesuffix("-BE")
            raise ConfigError(
                field,
                f"{name} is not {shown} at byte {done - held + error.start} (0x{error.object[error.start]:02x})",
                f"mend the file, or read it with {others}",
            ) from error
        done += len(block)
        yield text


def marked(start: bytes) -> tuple[str, int]:
    """The encoding that a byte order mark at the start of a text names, and the mark's length; UTF-8 and 0 without one."""
    return next(((encoding, len(mark)) for mark, encoding in MARKS if start.startswith(mark)), ("utf-8", 0))


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
