"""A prompt of any length in pieces, as text and as tokens: memory never holds more of it than a piece."""

import codecs
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from infini_jax.data.decoding import marked
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import ConfigError, one_line, require

STANDARD_INPUT = Path("-")
BYTES_A_READ = 1 << 16
LONGEST_LINE = 1 << 20  # characters; what is longer is cut
LONGEST_REST, TAIL = 1024, 64  # characters of a last line that is kept as text; of its end, where it has no space


def read_text(file: Path, watch: Callable[[int], None] = lambda size: None) -> Iterator[str]:
    """The text of a file, or of `STANDARD_INPUT`, some whole lines at a time; `watch` gets the number of bytes read so far.

    Tokenizers encode by line, so pieces of whole lines have the tokens of the whole text. A line longer than `LONGEST_LINE` is
    cut in front of its last space, where a tokenizer whose pieces cross spaces may split it otherwise. A byte order mark is
    taken off.

    Raises `ConfigError` where the file cannot be read or is no UTF-8.
    """
    decoder, line, done = codecs.getincrementaldecoder("utf-8")(), "", 0
    name = "standard input" if file == STANDARD_INPUT else file
    try:
        with opened(file) as source:
            while part := source.read(BYTES_A_READ):
                if not done:
                    encoding, mark = marked(part)
                    decoder, part, done = codecs.getincrementaldecoder(encoding)(), part[mark:], mark
                held = len(decoder.getstate()[0])
                line += decoder.decode(part)
                done += len(part)
                watch(done)
                cut = line.rfind("\n") + 1
                if not cut and len(line) > LONGEST_LINE:
                    cut = max(line.rfind(" "), 0) or len(line)
                if cut:
                    yield line[:cut]
                    line = line[cut:]
            held = len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
    except OSError as error:
        raise ConfigError(
            "prompt_file", f"{name}: {error.strerror or one_line(error)}", "give a file that can be read"
        ) from error
    except UnicodeDecodeError as error:
        place = done - held + error.start
        mend = "convert it, for example with iconv -f latin1 -t utf-8"
        raise ConfigError("prompt_file", f"{name} is not UTF-8 at byte {place}", mend) from error
    if line:
        yield line


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A context with the bytes of a file, or of `STANDARD_INPUT`, which stays open.

    Raises `ConfigError` where there is no standard input.
    """
    if file != STANDARD_INPUT:
        with file.open("rb") as source:
            yield source
        return
    require(sys.stdin is not None, "prompt_file", "there is no standard input", "give a file")
    yield sys.stdin.buffer


class PromptTokens:
    """The tokens of a prompt, piece by piece, from its texts, but those of its unfinished last line.

    What follows the prompt may change how that line is split into tokens.

    Attributes:
      rest: text of the last line where it has no line end, whose tokens are still to come; at first that of an earlier prompt.
      begins_line: whether the next text stands at a line's beginning.
      is_empty: whether the texts had no character.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str], rest: str = "", begins_line: bool = True):
        self.tokenizer, self.texts = tokenizer, texts
        self.rest, self.begins_line, self.is_empty = rest, begins_line, True

    def __iter__(self) -> Iterator[np.ndarray]:
        for text in self.texts:
            if not text:
                continue
            self.is_empty, self.begins_line = False, text.endswith("\n")
            if len(self.rest) > LONGEST_LINE:
                yield self._taken(len(self.rest))
            self.rest += text
            if cut := self.rest.rfind("\n") + 1:
                yield self._taken(cut)

    def shortened(self) -> np.ndarray:
        """The tokens of the beginning of a long last line, none of a short one; the rest then is its end.

        The line is cut in front of its last space, or some characters before its end where it has none, and only where
        both parts have the tokens of the whole.
        """
        cut = max(self.rest.rfind(" "), 0) or len(self.rest) - TAIL
        if len(self.rest) <= LONGEST_REST or not self._may_cut(cut):
            return np.zeros(0, np.int32)
        return self._taken(cut)

    def last(self) -> np.ndarray:
        """The tokens of the unfinished last line, of which no rest is left."""
        return self._taken(len(self.rest))

    def _may_cut(self, cut: int) -> bool:
        parts = [self.tokenizer.encode(part) for part in (self.rest[:cut], self.rest[cut:])]
        return np.array_equal(np.concatenate(parts), self.tokenizer.encode(self.rest))

    def _taken(self, cut: int) -> np.ndarray:
        """The tokens of the first `cut` characters of the rest, which loses them."""
        text, self.rest = self.rest[:cut], self.rest[cut:]
        return self.tokenizer.encode(text)
