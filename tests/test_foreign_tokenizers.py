"""Tokenizers of foreign models: any text comes back, and tokens are those of the package that made them."""

import json

import numpy as np
import pytest

from infini_jax.data.prepared import Prepared
from infini_jax.data.tokenizers import SentencePiece, load_tokenizer, train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.pretrained.tensors import Weights
from infini_jax.pretrained.tokens import SPLITS, of_gguf, tokenizer_of

TEXTS = [f"def f{one}(x):\n    return x + {one}  # {'many ' * (one % 7)}words, aren't they?\n" for one in range(99)]
HARD = [
    "",
    " ",
    "  leading, two  spaces\n\n\n tail ",
    "\0\u2581 \u2028\ufeff\ufffd\r\n\t\x7f\x80\xad",
    "e\u0301 é 😀 👩‍👩‍👧 研究 العربية",
    "1234567 0x1F 3.14 don't I'LL",
    "<|endoftext|><|im_start|>user</s><unk>",
    "    return x  \n\n\tdef f():\n",
]


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("tokenizers", reason="tokenizer.json is read by the package tokenizers")


def trained(package, rule: str):
    """A byte-level BPE as model makers train one, with special tokens."""
    made = package.Tokenizer(package.models.BPE(ignore_merges=rule == "llama-bpe"))
    made.pre_tokenizer, made.decoder = SPLITS[rule](), package.decoders.ByteLevel()
    alphabet = package.pre_tokenizers.ByteLevel.alphabet()
    trainer = package.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>", "<|im_start|>"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def metadata_of(made, rule: str) -> dict:
    """What a GGUF says of a tokenizer."""
    model = json.loads(made.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    types = [3 if token.startswith("<|") else 1 for token in tokens]
    found = {"model": "gpt2", "pre": rule, "tokens": tokens, "merges": merges, "token_type": types}
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


@pytest.mark.parametrize("rule", SPLITS)
def test_one_that_a_gguf_holds_is_made_again(package, rule):
    made = trained(package, rule)
    ours = load_tokenizer(of_gguf(metadata_of(made, rule)))
    assert ours.vocab == made.get_vocab_size()
    assert ours.end == made.token_to_id("<|endoftext|>") == 0
    made.encode_special_tokens = True
    for text in (*HARD, *TEXTS[::9]):
        tokens = ours.encode(text)
        assert tokens.tolist() == made.encode(text, add_special_tokens=False).ids
        assert ours.decode(tokens) == text
        assert "".join(ours.decode_each(tokens.tolist())) == text
        assert not {0, 1} & set(tokens.tolist())  # a text ends no document
    assert ours.exact
    assert ours.decode([0, *ours.encode("é").tolist()]) == "<|endoftext|>é"


def test_digits_are_split_one_by_one_where_the_rule_says_so(package):
    made = trained(package, "gpt-2")
    ours = {rule: load_tokenizer(of_gguf(metadata_of(made, rule))) for rule in ("gpt-2", "smollm")}
    assert len(ours["smollm"].encode("98")) == 2
    assert len(ours["gpt-2"].encode("98")) == 1  # numbers up to 98 stand in the texts


def test_an_unfinished_character_is_held_back(package):
    ours = load_tokenizer(trained(package, "gpt-2").to_str().encode())
    tokens = ours.encode("😀").tolist()
    assert len(tokens) == 4
    assert list(ours.decode_each(tokens)) == ["", "", "", "😀", ""]
    assert ours.decode(tokens[:2]) == "".join(ours.decode_each(tokens[:2])) == "\ufffd"


def test_one_that_normalizes_says_that_it_is_not_exact(package):
    made = trained(package, "qwen2")
    made.normalizer = package.normalizers.NFC()
    ours = load_tokenizer(made.to_str().encode())
    assert ours.decode(ours.encode("e\u0301")) == "é"
    assert load_tokenizer(trained(package, "qwen2").to_str().encode()).name != ours.name


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model"),
        ({"pre": "smolm"}, "tokenizer.ggml.pre"),
        ({"tokens": None}, "tokenizer.ggml.tokens"),
        ({"merges": ["zz yy"]}, "tokenizer.ggml.merges"),
    ],
)
def test_what_cannot_be_made_again_is_told(package, change, field):
    metadata = metadata_of(trained(package, "smollm"), "smollm")
    with pytest.raises(ConfigError) as error:
        of_gguf(metadata | {f"tokenizer.ggml.{name}": value for name, value in change.items()})
    assert error.value.field == field
    assert str(error.value).isprintable()


def test_a_corpus_is_prepared_with_it_and_names_it(package, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from infini_jax.data.corpus import CorpusConfig
    from infini_jax.data.prepare import TokenizerSettings, prepare

    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    file, texts = tmp_path / "tokenizer.json", tmp_path / "texts"
    file.write_text(trained(package, "smollm").to_str())
    for split in ("train", "validation"):
        (texts / split).mkdir(parents=True)
        (texts / split / "a.txt").write_text("".join(TEXTS[:5]) + HARD[4])
    settings = TokenizerSettings("json", model=file)
    prepared, is_new = prepare("text_folder", settings, "books", texts, jobs=1)
    assert is_new
    assert not prepare("text_folder", settings, "books", texts, jobs=1)[1]
    data = CorpusConfig("books")
    assert data.tokenizer == prepared.manifest.tokenizer == load_tokenizer(file).name
    assert data.tokenizer.startswith("json:")
    tokens = np.asarray(Prepared.open("books").documents("train").text)
    assert data.open_tokenizer().decode(tokens) == "".join(TEXTS[:5]) + HARD[4]


def weights_in(folder) -> Weights:
    return Weights("safetensors", (), {}, {}, folder)


def test_a_sentencepiece_model_beside_the_tensors_is_taken(tmp_path):
    with pytest.raises(ConfigError, match=r"^tokenizer: .* holds none; put the model's tokenizer\.json"):
        tokenizer_of(weights_in(tmp_path))
    model = train_sentencepiece(TEXTS, 300)
    (tmp_path / "tokenizer.model").write_bytes(model)
    found = tokenizer_of(weights_in(tmp_path))
    assert isinstance(found, SentencePiece)
    assert found.model == model
    other = tmp_path / "other.model"
    other.write_bytes(train_sentencepiece(TEXTS, 305))
    assert tokenizer_of(weights_in(tmp_path), other).vocab == 305


def test_a_tokenizer_json_whose_tokens_are_no_bytes_gives_way_to_the_sentencepiece_model(package, tmp_path):
    made = package.Tokenizer(package.models.BPE(vocab={"a": 0}, merges=[]))
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    with pytest.raises(ConfigError, match="tokens are not bytes"):
        tokenizer_of(weights_in(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(TEXTS, 300))
    assert tokenizer_of(weights_in(tmp_path)).vocab == 300
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ConfigError, match=r"it is not a tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
