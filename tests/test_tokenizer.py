"""Tokenizers give back the text that they got."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infini_jax.data.tokenizers import Bytes, SentencePiece, load_tokenizer, train_sentencepiece, training_lines
from infini_jax.errors import ConfigError

TEXTS = [f"def f{number}(x):\n    return x + {number}  # {'many ' * (number % 7)}words\n" for number in range(200)]
DIFFICULT = st.text(st.sampled_from(" \n\r\t\0\u2581\u2028\ufeff\ufffdaé😀\u0301<0x>/s"), max_size=40)
ANY = st.one_of(DIFFICULT, st.text(st.characters(exclude_categories=["Cs"]), max_size=60))  # surrogates are no UTF-8


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request):
    if request.param == "bytes":
        return Bytes()
    return SentencePiece(train_sentencepiece(TEXTS, 300, request.param))


@settings(max_examples=300, deadline=None)
@given(text=ANY)
@example(text="  leading, two  spaces\n\n\n tail ")
@example(text="\0\u2581 \u2581\u2581\n\u2581a<s></s><unk><0x0A>")
@example(text="")
def test_any_text_comes_back_exactly(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) == 0 or (tokens.min() >= 0 and tokens.max() < tokenizer.vocab)


def test_lines_are_encoded_by_themselves(tokenizer):
    """So that a document's tokens do not depend on how much of it is encoded at once."""
    text = "".join(TEXTS[:9])
    parts = [tokenizer.encode(line) for line in text.splitlines(keepends=True)]
    np.testing.assert_array_equal(np.concatenate(parts), tokenizer.encode(text))


def test_pieces_are_shorter_than_bytes_and_the_name_tells_the_model():
    model = train_sentencepiece(TEXTS, 300)
    assert train_sentencepiece(TEXTS, 300) == model  # the same texts, the same model
    ours, other = SentencePiece(model), SentencePiece(train_sentencepiece(TEXTS, 290))
    assert ours.exact
    assert ours.vocab == 300
    assert ours.name == SentencePiece(model).name != other.name
    assert len(ours.encode(TEXTS[3])) < len(TEXTS[3].encode()) / 1.5


def public_model(**options) -> bytes:
    """A model as others train theirs."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXTS for line in text.splitlines()),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_a_model_like_llamas_keeps_text_exactly_line_by_line():
    """BPE with bytes, a space put in front of what is encoded, and no other normalisation."""
    model = public_model(
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    ours, pieces = SentencePiece(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    text = "  x + 1\n\nwords é 😀\n return"
    assert ours.decode(ours.encode(text)) == text
    line_end = pieces.piece_to_id("<0x0A>")
    expected = [*pieces.encode("  x + 1"), line_end, line_end, *pieces.encode("words é 😀"), line_end]
    np.testing.assert_array_equal(ours.encode(text), [*expected, *pieces.encode(" return")])


def test_a_model_like_t5s_says_that_it_changes_text():
    """Unigram without bytes; NFKC and single spaces: line ends are dropped."""
    model = public_model(vocab_size=120, model_type="unigram")
    ours, pieces = SentencePiece(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    assert not ours.exact
    np.testing.assert_array_equal(ours.encode("return x\nmany words"), pieces.encode("return x") + pieces.encode("many words"))


OTHERS = {
    "llama": {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False},
    "t5": {"vocab_size": 120, "model_type": "unigram"},
}


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram", *OTHERS])
def test_text_that_comes_token_by_token_is_the_text_of_all_tokens(kind):
    """Any tokens: characters in parts, broken ones, spaces at the beginning of lines; behind a prompt, too."""
    ours = Bytes() if kind == "bytes" else None if kind in OTHERS else SentencePiece(train_sentencepiece(TEXTS, 300, kind))
    tokenizer, random = ours or SentencePiece(public_model(**OTHERS[kind])), np.random.default_rng(0)
    texts = [tokenizer.encode(text) for text in (" é\n  😀 x", "a\n\n\u2581 b", "word")]
    prompt = tokenizer.encode("some words").tolist()
    for _ in range(300):
        some, first, second = random.integers(0, tokenizer.vocab, random.integers(6)), *random.integers(3, size=2)
        tokens = np.concatenate([some, texts[first], texts[second][random.integers(3) :]]).tolist()
        each = list(tokenizer.decode_each(tokens))
        assert "".join(each) == tokenizer.decode(tokens)
        assert len(each) == len(tokens) + 1
        after = "".join(tokenizer.decode_each(tokens, begins_line=False))
        assert tokenizer.decode(prompt) + after == tokenizer.decode(prompt + tokens)


def test_training_lines_are_cut_and_have_no_nul():
    lines = list(training_lines(["a\0b\n\n" + "x" * 10_000]))
    assert lines[:2] == ["a", "b"]
    assert [len(line) for line in lines[2:]] == [4096, 4096, 1808]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: train_sentencepiece(["abc"], 8192), r"^vocab: 8192 tokens cannot be learnt \(.+\); give fewer"),
        (lambda path: train_sentencepiece(TEXTS, 200), r"^vocab: 200 tokens leave none beside the 256 bytes"),
        (lambda path: load_tokenizer(b"no model"), r"^model: it is not a SentencePiece model"),
        (lambda path: load_tokenizer(path / "t5.model"), r"^model: .+t5.model does not exist"),
    ],
)
def test_what_cannot_be_a_tokenizer_gets_one_line(make, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)
