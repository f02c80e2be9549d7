"""A prompt in pieces has the tokens of the whole prompt; what cannot be read gets one line."""

import numpy as np
import pytest

from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.model import prompt
from infini_jax.model.prompt import PromptTokens, read_text

TEXT = "".join(f"line {number} é 😀\r\n{'  ' * (number % 3)}more words\n" for number in range(60)) + "no end"


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_tokens_are_those_of_the_whole_file_whatever_the_reads(kind, tmp_path, monkeypatch):
    tokenizer = Bytes() if kind == "bytes" else SentencePiece(train_sentencepiece([TEXT], 300))
    file = tmp_path / "prompt.txt"
    file.write_bytes(TEXT.encode())
    for size in (1, 7, 64, 1 << 16):
        monkeypatch.setattr(prompt, "BYTES_A_READ", size)
        read = []
        tokens = PromptTokens(tokenizer, read_text(file, read.append))
        np.testing.assert_array_equal(np.concatenate([*tokens, tokens.last()]), tokenizer.encode(TEXT))
        assert read[-1] == len(TEXT.encode())
        assert not tokens.begins_line


def test_a_line_without_end_is_cut_at_spaces_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt, "BYTES_A_READ", 16)
    monkeypatch.setattr(prompt, "LONGEST_LINE", 64)
    for text in ("many words " * 100, "x" * 1000, " " + "x" * 500):
        file = tmp_path / "line.txt"
        file.write_text(text)
        pieces = list(read_text(file))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 64 + 16


def test_pieces_are_small_whatever_the_file(tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("some words of a line\n" * 50_000)
    assert max(len(piece) for piece in read_text(file)) <= prompt.BYTES_A_READ + 32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"^prompt_file: .*here: No such file or directory; give a file that can be read$"),
        (b"caf\xe9 au lait", r"^prompt_file: .* is not UTF-8 at byte 3; convert it, for example with iconv -f latin1"),
        (b"0123456789 \xf0\x9f", r"^prompt_file: .* is not UTF-8 at byte 11; convert it"),
        (b"0123456789 \xf0\x9f x", r"^prompt_file: .* is not UTF-8 at byte 11; convert it"),
    ],
)
@pytest.mark.parametrize("size", [4, 6, 1 << 16])
def test_a_file_that_is_no_text_gets_one_line_with_the_place(content, said, size, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt, "BYTES_A_READ", size)
    file = tmp_path / "here"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        list(read_text(file))
