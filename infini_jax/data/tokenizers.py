"""Text to tokens and back: bytes, and SentencePiece (Kudo & Richardson 2018, arXiv 1808.06226), encoded line by line.

Those of pretrained models that are a tokenizer.json stand in `infini_jax.data.byte_level`.

Models trained here keep any text exactly: identity normalization, bytes for what no piece covers, a piece for the line end.

A model that was trained with a token in front of every text (`Tokenizer.begin`) reads texts behind it: whoever encodes a whole
text puts it there (`long_documents.encoded_text`), as `encode` knows no beginning. It has no text: `decode` leaves it out.
"""

import codecs
import functools
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from infini_jax.data.byte_level import PROBE, ByteLevel, TokenIds
from infini_jax.data.raw_files import read_foreign
from infini_jax.errors import ConfigError, require

Algorithm = Literal["bpe", "unigram"]
TokenizerKind = Literal["bytes", "sentencepiece", "json"]
BEGINS = b"\xc0\x0c\x01"  # field 200, which a model's format leaves to others: true, where texts stand behind its token <s>
SPACE = "\u2581"  # SentencePiece writes a space so, and reads the character itself as a space
LONGEST_LINE = 4096  # characters of a line that SentencePiece is trained on; longer ones are cut


class Tokenizer(Protocol):
    """Text to tokens and back.

    Attributes:
      name: equal for tokenizers that give the same tokens.
      vocab: number of distinct tokens.
      end: token that the tokenizer declares as the end of a document; None where it has none.
      begin: token in front of every text that its model reads; None where there is none.
      model: bytes of which `load_tokenizer` makes it again; None where there is no file of it.
    """

    name: str
    vocab: int
    end: int | None
    begin: int | None
    model: bytes | None

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, integers T."""
        ...

    def decode(self, tokens: TokenIds) -> str:
        """The text of tokens, without `begin`."""
        ...

    def decode_each(self, tokens: Iterable[int], begins_line: bool = True) -> Iterator[str]:
        """The text that each token adds, "" while a character is unfinished, and at last the rest.

        The parts joined are `decode` of all tokens. `begins_line` tells whether they stand at the beginning of a line.
        """
        ...


class Bytes:
    """Tokenizer whose tokens are the bytes of UTF-8. `decode` shows bytes that are no UTF-8 as U+FFFD."""

    name = "bytes"
    vocab = 256
    end: int | None = None
    begin: int | None = None
    model: bytes | None = None

    def encode(self, text: str) -> np.ndarray:
        """The bytes of a text, uint8 T."""
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, tokens: TokenIds) -> str:
        """The text of bytes."""
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")

    def decode_each(self, tokens: Iterable[int], begins_line: bool = True) -> Iterator[str]:
        """The text that each byte adds, "" while a character is unfinished, and at last the rest."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)


class SentencePiece:
    """Tokenizer of a SentencePiece model, trained here or elsewhere (T5, LLaMA).

    A model without a token for the line end, such as T5's, drops it; `exact` tells. Models that put a space in front of
    what they encode (LLaMA) do so in front of every line, and `decode` takes it off again. `declared_begin` is the model's
    token <s>, whether or not texts stand behind it; `takes_space` tells of such a space, `unknown` is the token for what no
    piece covers.

    Raises `ConfigError` for bytes that are no model.
    """

    def __init__(self, model: bytes):
        import sentencepiece

        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ConfigError(
                "model", "it is not a SentencePiece model", "give a .model file written by SentencePiece"
            ) from error
        self.model: bytes | None = model
        self.name = f"sentencepiece:{hashlib.sha256(model).hexdigest()[:12]}"
        self.vocab = self._pieces.get_piece_size()
        self.end: int | None = end if (end := self._pieces.eos_id()) >= 0 else None
        self.declared_begin: int | None = first if (first := self._pieces.bos_id()) >= 0 else None
        self.begin: int | None = self.declared_begin if model.endswith(BEGINS) else None
        self._line_end = self._only_token("\n")
        self._space = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self.unknown = self._pieces.unk_id()
        self.takes_space = self._pieces.encode("a", out_type=str)[0].startswith(SPACE)
        self._splits_space = not self.takes_space and all(self._pieces.is_byte(token) for token in self._space)

    def _only_token(self, character: str) -> int | None:
        """The token of this one character: a piece of its own, or its byte; None where there is neither."""
        for piece in (character, f"<0x{ord(character):02X}>"):
            token = self._pieces.piece_to_id(piece)
            if not self._pieces.is_unknown(token):
                return token
        return None

    @functools.cached_property
    def exact(self) -> bool:
        """Whether a difficult text comes back unchanged."""
        return self.decode(self.encode(PROBE)) == PROBE

    @functools.cached_property
    def is_bpe(self) -> bool:
        """Whether it is byte-pair encoding, whose scores are ranks; those of a unigram model are logarithms."""
        return all(self._pieces.get_score(token).is_integer() for token in range(self.vocab))

    def spelled(self, token: int) -> str:
        """The piece of a token, as files of settings name it."""
        return self._pieces.id_to_piece(token)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 T."""
        lines = text.split("\n")
        if self._splits_space and SPACE in text:
            encoded = [self._encode_with_space(line) for line in lines]
        else:
            encoded = self._pieces.encode(lines, num_threads=1)  # callers have one process per core
        tokens: list[int] = []
        for number, line in enumerate(encoded):
            if number and self._line_end is not None:
                tokens.append(self._line_end)
            tokens += line
        return np.array(tokens, np.int32)

    def _encode_with_space(self, line: str) -> list[int]:
        """The tokens of a line with U+2581 as its bytes, which come back unchanged."""
        tokens: list[int] = []
        for number, part in enumerate(line.split(SPACE)):
            tokens += self._space * bool(number) + self._pieces.encode(part)
        return tokens

    def decode(self, tokens: TokenIds) -> str:
        """The text of tokens."""
        token_T = np.asarray(tokens, np.int64)
        ends = np.flatnonzero(token_T == self._line_end) if self._line_end is not None else np.zeros(0, np.int64)
        starts = [0, *(ends + 1)]
        lines = (token_T[a:b].tolist() for a, b in zip(starts, [*ends, len(token_T)], strict=True))
        return "\n".join(self._pieces.decode(line) for line in lines)

    def decode_each(self, tokens: Iterable[int], begins_line: bool = True) -> Iterator[str]:
        """The text that each token adds, "" while a character is unfinished, and at last the rest."""
        waiting: list[int] = []  # bytes of an unfinished character, or what has no text yet at the beginning of a line
        for token in tokens:
            if token == self._line_end:
                yield self._text(waiting, begins_line) + "\n"
                waiting, begins_line = [], True
                continue
            waiting.append(token)
            ready = waiting[: len(waiting) - self._unfinished(waiting)]
            text = self._text(ready, begins_line)
            if text or not begins_line:
                waiting, begins_line = waiting[len(ready) :], False
            yield text
        yield self._text(waiting, begins_line)

    def _text(self, tokens: list[int], begins_line: bool) -> str:
        """The text of tokens. Within a line they are decoded behind a token that has text, so that no space is taken off."""
        if begins_line or not tokens:
            return self._pieces.decode(tokens)
        return self._pieces.decode([self._anchor, *tokens])[len(self._pieces.decode([self._anchor])) :]

    @functools.cached_property
    def _anchor(self) -> int:
        """A token that is no byte and has text that is no space."""
        return next(token for token in range(self.vocab) if not self._pieces.is_byte(token) and self.decode([token]).strip())

    def _unfinished(self, tokens: list[int]) -> int:
        """Number of tokens at the end that are bytes and may be the beginning of a character."""
        for count in (3, 2, 1):
            last = tokens[-count:]
            if len(last) == count and all(self._pieces.is_byte(token) for token in last):
                part = bytes(int(self._pieces.id_to_piece(token)[3:-1], 16) for token in last)
                if may_begin_character(part):
                    return count
        return 0


def may_begin_character(part: bytes) -> bool:
    """Whether more bytes could make `part` one character of UTF-8."""
    try:
        return codecs.getincrementaldecoder("utf-8")("strict").decode(part) == ""
    except UnicodeDecodeError:
        return False


def train_sentencepiece(texts: Iterable[str], vocab: int, algorithm: Algorithm = "bpe") -> bytes:
    """A SentencePiece model of `vocab` tokens, serialized; equal for equal texts.

    Raises `ConfigError` where the texts yield fewer tokens.
    """
    import sentencepiece

    require(vocab > 257, "vocab", f"{vocab} tokens leave none beside the 256 bytes and the unknown", "give more, such as 8192")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(texts),
            model_writer=model,
            vocab_size=vocab,
            model_type=algorithm,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,  # indentation
            user_defined_symbols=["\n"],
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * LONGEST_LINE,  # in bytes
            shuffle_input_sentence=False,
            num_threads=4,  # the model of the same texts must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit(") ", 1)[-1].strip().rstrip(".")
        raise ConfigError("vocab", f"{vocab} tokens cannot be learnt ({reason})", "give fewer, or more text") from error
    return model.getvalue()


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines that SentencePiece takes: not empty, not too long, without NUL, which ends its strings."""
    for text in texts:
        for line in text.replace("\0", "\n").split("\n"):
            for start in range(0, len(line), LONGEST_LINE):
                yield line[start : start + LONGEST_LINE]


def load_tokenizer(model: Path | bytes | None) -> Tokenizer:
    """The tokenizer of a model, a file or its bytes: SentencePiece's, or a tokenizer.json; the byte tokenizer for None.

    Raises `ConfigError` where the file does not exist or is no model.
    """
    if model is None:
        return Bytes()
    if isinstance(model, Path):
        require(model.is_file(), "model", f"{model} does not exist", "give a SentencePiece .model file, or a tokenizer.json")
        model = read_foreign(model, "model")
    if model.lstrip().startswith(b"{"):  # SentencePiece's begin with the tag of a field
        return byte_level(model)
    return SentencePiece(model)


@functools.lru_cache(maxsize=2)
def byte_level(model: bytes) -> ByteLevel:
    """The tokenizer of a tokenizer.json, made once: it takes half a second, and a study asks for it with every run."""
    return ByteLevel(model)
