"""Byte-level BPE of pretrained models (Radford et al. 2019), a tokenizer.json, encoded by the package `tokenizers`.

Tokens are decoded here, from the bytes that each stands for, so that any text comes back exactly unless the tokenizer
normalizes it. A text's special tokens, such as <|endoftext|>, are text: nobody's documents end a document. What the file puts
in front of every text (its post-processor) is the token `begin`.
"""

import codecs
import functools
import hashlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from infini_jax.errors import ConfigError, installs, one_line, require
from infini_jax.files import json_object

TokenIds = Sequence[int] | np.ndarray
PROBE = "  two spaces,\ttab\n\n line\r\n\0 é 😀 \u2581 <s> "  # a text that tokenizers are asked to give back
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")  # names of the end of a document, the first counts
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that stand for themselves


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for: printable ones themselves, the others from U+0100 on."""
    others = [byte for byte in range(256) if byte not in PRINTED]
    return {chr(byte): byte for byte in PRINTED} | {chr(256 + place): byte for place, byte in enumerate(others)}


class ByteLevel:
    """Tokenizer of a tokenizer.json whose tokens are bytes (GPT-2, GPT-NeoX, Llama 3, Qwen, SmolLM).

    `exact` tells whether a difficult text comes back: one that normalizes text, as Qwen's does (NFC), changes some.

    Raises `ConfigError` where the bytes are no such file, its tokens are no bytes, or the package is missing.
    """

    def __init__(self, model: bytes):
        try:
            tokenizers = importlib.import_module("tokenizers")  # a type checker would take the file beside this one
        except ImportError as error:
            raise ConfigError("model", "a tokenizer.json needs the package tokenizers", installs("pretrained")) from error
        try:
            self._made = tokenizers.Tokenizer.from_str(model.decode())
            plain = json_object(model)
        except Exception as error:  # the package raises Exception itself
            raise ConfigError("model", f"it is not a tokenizer.json ({one_line(error)})", "give that of the model") from error
        told = "its tokens are not bytes, as those of byte-level BPE are"
        require(is_byte_level(plain.get("decoder")), "model", told, "give the SentencePiece tokenizer.model instead")
        self._made.no_truncation()
        self._made.no_padding()
        self._made.encode_special_tokens = True
        self.model: bytes | None = model
        self.name = f"json:{hashlib.sha256(model).hexdigest()[:12]}"
        added = {token: one.content for token, one in self._made.get_added_tokens_decoder().items()}
        ids = self._made.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values()) + 1
        self._bytes = [b""] * self.vocab
        for text, token in ids.items():
            self._bytes[token] = added[token].encode() if token in added else bytes_of(text)
        self.end: int | None = next((ids[text] for text in ENDS if text in ids), None)
        whole = self._made.encode("a", add_special_tokens=True)
        self.begin: int | None = whole.ids[0] if whole.special_tokens_mask[0] else None
        if self.begin is not None:
            self._bytes[self.begin] = b""

    @functools.cached_property
    def exact(self) -> bool:
        """Whether a difficult text comes back unchanged."""
        return self.decode(self.encode(PROBE)) == PROBE

    def spelled(self, token: int) -> str:
        """The name of a token, as files of settings have it."""
        return self._made.id_to_token(token)

    def numbered(self, text: str) -> int | None:
        """The token of a name; None where there is none."""
        return self._made.token_to_id(text)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 T."""
        return np.array(self._made.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: TokenIds) -> str:
        """The text of tokens; bytes that are no UTF-8 are shown as U+FFFD."""
        return b"".join(self._bytes[token] for token in np.asarray(tokens, np.int64)).decode(errors="replace")

    def decode_each(self, tokens: Iterable[int], begins_line: bool = True) -> Iterator[str]:
        """The text that each token adds, "" while a character is unfinished, and at last the rest."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(self._bytes[int(token)])
        yield decoder.decode(b"", final=True)


def is_byte_level(decoder: Any) -> bool:
    """Whether a decoder, as tokenizer.json describes it, reads tokens as bytes."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(map(is_byte_level, decoder.get("decoders") or ()))


def bytes_of(text: str) -> bytes:
    """The bytes that a token of byte-level BPE stands for; of a token with other characters its own in UTF-8."""
    alphabet = byte_alphabet()
    return bytes(alphabet[one] for one in text) if all(one in alphabet for one in text) else text.encode()
