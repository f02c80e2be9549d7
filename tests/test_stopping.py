"""Generated text ends in front of a text or a token, wherever it is cut into parts; prompts from standard input."""

import io
import random
import sys

import pytest

from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.model import prompt
from infini_jax.model.prompt import STANDARD_INPUT, read_text
from infini_jax.model.stopping import Stopping
from tests.test_tokenizer import TEXTS, public_model


def cut_by_character(text: str, stops: tuple[str, ...]) -> str:
    """What stands in front of the stop that is complete first; of several that end together the longest."""
    for end in range(1, len(text) + 1):
        if ended := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ended))]
    return text


def in_parts(text: str, draws: random.Random) -> list[str]:
    parts, at = [], 0
    while at < len(text):
        size = draws.choice((0, 1, 1, 2, 5))
        parts.append(text[at : at + size])
        at += size
    return parts


def test_the_text_ends_where_reading_by_characters_ends_it_whatever_the_parts():
    """Short texts of three letters, where stops overlap with themselves and each other."""
    draws, ended = random.Random(0), 0
    for _ in range(3000):
        text = "".join(draws.choices("abé", k=draws.randrange(12)))
        stops = tuple("".join(draws.choices("abé", k=draws.randrange(1, 5))) for _ in range(draws.randrange(4)))
        expected, shown = cut_by_character(text, stops), ""
        for part in Stopping(stops).texts(in_parts(text, draws)):
            shown += part
            assert expected.startswith(shown)  # nothing was shown that had to be taken back
        assert shown == expected
        ended += expected != text
    assert ended > 1000


def test_only_what_may_be_the_beginning_of_a_stop_waits():
    parts = Stopping(("\nQ:",)).texts(iter(["one", "\n", "\n", "Q", ".", "\nQ", ":", "never"]))
    assert list(parts) == ["one", "", "\n", "", "\nQ.", "", ""]


def test_nothing_is_asked_for_behind_the_end():
    """A model would have to compute it."""

    def parts():
        yield "a stop"
        raise AssertionError("asked for more")

    assert list(Stopping(("stop",)).texts(parts())) == ["a "]
    assert list(Stopping(stop_token=7).tokens(iter([1, 2, 7, 3]))) == [1, 2]
    assert list(Stopping().tokens(iter([1, 2, 7, 3]))) == [1, 2, 7, 3]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("stop", ["é", "😀 wörds", "ö", "ds\nnext"])
def test_a_stop_is_found_across_tokens_and_the_bytes_of_a_character(kind, stop):
    text = "many words é and 😀 wörds\nnext line"
    tokenizer = Bytes() if kind == "bytes" else SentencePiece(train_sentencepiece(TEXTS, 300))
    tokens = tokenizer.encode(text).tolist()
    assert "".join(Stopping((stop,)).texts(tokenizer.decode_each(tokens))) == text[: text.index(stop)]


def test_a_character_that_an_end_leaves_unfinished_is_shown_as_decoding_shows_it():
    tokens = [*b"a", *"é".encode()[:1], 0, 98]
    assert "".join(Bytes().decode_each(Stopping(stop_token=0).tokens(tokens))) == Bytes().decode(tokens[:2]) == "a\ufffd"


def test_the_end_of_a_document_is_the_one_that_the_tokenizer_declares():
    ours, theirs = SentencePiece(train_sentencepiece(TEXTS, 300)), SentencePiece(public_model())
    assert (Bytes().end, ours.end, theirs.end) == (None, None, 2)  # SentencePiece's own default is 2
    assert SentencePiece(public_model(eos_id=-1)).end is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stop": ("a", "")}, "stop: it is empty; give a text"),
        ({"stop": ("\udcff",)}, "stop: it is not UTF-8; give text"),
        ({"stop": "text"}, "stop: text is not a tuple; give one such as (1, 2)"),
        ({"stop_token": 256}, "stop_token: 256 is none of the tokenizer's 256 tokens; give 0 to 255"),
        ({"stop_token": -1}, "stop_token: -1 is none of the tokenizer's 256 tokens; give 0 to 255"),
        ({"stop_token": "end"}, "stop_token: end is not a whole number; give a number such as 8"),
    ],
)
def test_settings_that_can_never_end_a_text_are_refused(settings, said):
    with pytest.raises(ConfigError) as error:
        Stopping(**settings).check(256)
    assert str(error.value) == said


# ---- standard input ---------------------------------------------------------------------------------------------------------


def test_a_prompt_comes_from_standard_input_in_pieces(monkeypatch):
    text = "first é line\nsecond 😀\nno end"
    for size in (1, 7, 1 << 16):
        monkeypatch.setattr(prompt, "BYTES_A_READ", size)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "ascii"))
        assert "".join(read_text(STANDARD_INPUT)) == text
        assert not sys.stdin.closed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 au lait")))
    with pytest.raises(ConfigError, match=r"^prompt_file: standard input is not UTF-8 at byte 3; convert it, for example"):
        list(read_text(STANDARD_INPUT))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match=r"^prompt_file: there is no standard input; give a file$"):
        list(read_text(STANDARD_INPUT))
