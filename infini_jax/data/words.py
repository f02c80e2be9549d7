"""A closed vocabulary of words for tasks made of text, and made-up words that mean nothing."""

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from infini_jax.data.tokenizers import TokenIds
from infini_jax.errors import ConfigError

PIECE = re.compile(r"\.\.\.|[A-Za-z]+|\d|\n|\S")
NO_SPACE_BEFORE = (".", ",", ":", ";", "?", "!", "\n")

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
ENDINGS = [syllable for syllable in SYLLABLES if not syllable.endswith("e")]  # few English words end otherwise
MADE_UP = len(SYLLABLES) * len(ENDINGS)
STRIDE = 1873  # prime to their number, so that neighbors begin differently


class Words:
    """Tokenizer with one token per word, digit, mark or line end, of the texts it was made from and of nothing else.

    Spaces are not stored: they stand between all tokens but digits, and not before a mark. Texts written so come back exactly.
    """

    end: int | None = None
    begin: int | None = None
    model: bytes | None = None

    def __init__(self, texts: Iterable[str]):
        self._pieces = sorted({piece for text in texts for piece in PIECE.findall(text)})
        self._numbers = {piece: number for number, piece in enumerate(self._pieces)}
        self.name = f"words:{hashlib.sha256(' '.join(self._pieces).encode()).hexdigest()[:12]}"
        self.vocab = len(self._pieces)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 T. Raises `ConfigError` for a word that is not in the vocabulary."""
        try:
            return np.array([self._numbers[piece] for piece in PIECE.findall(text)], np.int32)
        except KeyError as error:
            raise ConfigError(
                "data.tokenizer", f"'{error.args[0]}' is not a word of this task", "use bytes for other texts"
            ) from None

    def decode(self, tokens: TokenIds) -> str:
        """The text of tokens."""
        return "".join(self.decode_each(tokens))

    def decode_each(self, tokens: Iterable[int], begins_line: bool = True) -> Iterator[str]:
        """The text that each token adds, its space included, and at last ""."""
        before = "\n" if begins_line else " "
        for token in tokens:
            piece = self._pieces[int(token)]
            joined = before == "\n" or piece in NO_SPACE_BEFORE or (before.isdigit() and piece.isdigit())
            yield piece if joined else f" {piece}"
            before = piece
        yield ""


def made_up(number: int) -> str:
    """The made-up word of a number below `MADE_UP`: four letters, different for every number."""
    first, second = divmod(number * STRIDE % MADE_UP, len(ENDINGS))
    return SYLLABLES[first] + ENDINGS[second]
