"""A prompt of any length in pieces, as text and as tokens: memory never holds more of it than a piece."""

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from infini_jax.data.decoding import marked
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import ConfigError

BYTES_A_READ = 1 << 16
LONGEST_LINE = 1 << 20  # characters; what is longer is cut


def read_text(file: Path, watch: Callable[[int], None] = lambda size: None) -> Iterator[str]:
    """The text of a file, some whole lines at a time; `watch` gets the number of bytes read so far.

    Tokenizers encode by line, so pieces of whole lines have the tokens of the whole text. A line longer than `LONGEST_LINE` is
    cut in front of its last space, where a tokenizer whose pieces cross spaces may split it otherwise. A byte order mark is
    taken off.

    Raises `ConfigError` where the file cannot be read or is no UTF-8.
    """
    decoder, line, done = codecs.getincrementaldecoder("utf-8")(), "", 0
    try:
        with file.open("rb") as opened:
            while part := opened.read(BYTES_A_READ):
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
        raise ConfigError("prompt_file", f"{file}: {error.strerror}", "give a file that can be read") from error
    except UnicodeDecodeError as error:
        place = done - held + error.start
        mend = "convert it, for example with iconv -f latin1 -t utf-8"
        raise ConfigError("prompt_file", f"{file} is no UTF-8 at byte {place}", mend) from error
    if line:
        yield line


class PromptTokens:
    """The tokens of a prompt, piece by piece, from its texts.

    Attributes:
      begins_line: whether the next text stands at a line's beginning.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterator[str]):
        self.tokenizer, self.texts, self.begins_line = tokenizer, texts, True

    def __iter__(self) -> Iterator[np.ndarray]:
        for text in self.texts:
            self.begins_line = text.endswith("\n")
            yield self.tokenizer.encode(text)
