"""The token that a model has in front of every text stands there wherever a text is read, and nowhere else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.cli.import_model import import_model
from infini_jax.data.given import given_documents
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.tokenizers import BEGINS, SentencePiece, load_tokenizer, train_sentencepiece
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import ConfigError
from infini_jax.evals.blimp import encoded
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.pretrained.tokens import CONFIG, as_configured, as_in_gguf, of_gguf, with_begin
from infini_jax.training.text_generator import TextGenerator
from tests.support.as_is import LINES, made_model, pieces
from tests.test_foreign_tokenizers import HARD, TEXTS, metadata_of, trained

START = "<|im_start|>"


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("tokenizers", reason="tokenizer.json is read by the package tokenizers")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The folder of a tiny imported model whose texts begin with <s>."""
    place = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINI_JAX_DATA", str(place / "data"))
        made = made_model(place / "made")
        (made / "tokenizer.model").write_bytes(pieces())
        (made / CONFIG).write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
        import_model(str(made), "begun", results=place)
        yield place / "begun"


def said(folder, **settings):
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def test_a_tokenizer_json_begins_texts_as_it_or_the_settings_beside_it_say(package, tmp_path):
    made = trained(package, "qwen2")
    start = made.token_to_id(START)
    plain = load_tokenizer(made.to_str().encode())
    assert plain.begin is None
    assert as_configured(plain, tmp_path) is plain
    made.post_processor = package.processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, start)])
    own = load_tokenizer(made.to_str().encode())
    assert own.begin == start
    assert own.name != plain.name
    assert as_configured(own, tmp_path) is own
    added = as_configured(plain, said(tmp_path, add_bos_token=True, bos_token={"content": START}))
    assert added.begin == start
    assert package.Tokenizer.from_str(added.model.decode()).encode("def").ids == [start, *plain.encode("def").tolist()]
    taken = as_configured(own, said(tmp_path, add_bos_token=False, bos_token=START))
    assert taken.begin is None
    assert package.Tokenizer.from_str(taken.model.decode()).encode("def").ids == plain.encode("def").tolist()
    with pytest.raises(ConfigError, match=r"bos_token: .* puts <nothing> in front of texts, which is no token"):
        as_configured(plain, said(tmp_path, add_bos_token=True, bos_token="<nothing>"))
    for text in (*HARD, TEXTS[0]):
        assert own.encode(text).tolist() == plain.encode(text).tolist()
        assert own.decode([start, *own.encode(text)]) == "".join(own.decode_each([start, *own.encode(text)])) == text


def test_a_sentencepiece_model_begins_texts_unless_the_settings_say_no(tmp_path):
    plain = SentencePiece(pieces())
    assert (plain.declared_begin, plain.begin) == (1, None)
    begun = as_configured(plain, tmp_path)
    assert begun.begin == 1
    assert begun.model == plain.model + BEGINS
    assert begun.name != plain.name
    assert as_configured(begun, said(tmp_path, add_bos_token=True)) is begun
    assert as_configured(begun, said(tmp_path, add_bos_token=False)).model == plain.model
    for text in HARD[:-1]:
        assert begun.encode(text).tolist() == plain.encode(text).tolist()
        assert begun.decode([1, *begun.encode(text)]) == "".join(begun.decode_each([1, *begun.encode(text)])) == text
    ours = SentencePiece(train_sentencepiece(LINES, 300))
    assert as_configured(ours, said(tmp_path)) is ours  # trained here, without <s>


@pytest.mark.parametrize(
    ("rule", "says", "begins"),
    [
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        ("gpt-2", {}, False),
        ("gpt-2", {"add_bos_token": True}, True),
    ],
)
def test_a_gguf_says_it_in_its_metadata_and_llama_3_s_rule_without(package, rule, says, begins):
    made = trained(package, rule)
    start = made.token_to_id(START)
    said_of = {f"tokenizer.ggml.{name}": value for name, value in ({"bos_token_id": start} | says).items()}
    found = as_in_gguf(load_tokenizer(of_gguf(metadata_of(made, rule))), metadata_of(made, rule) | said_of)
    assert found.begin == (start if begins else None)
    with pytest.raises(ConfigError, match=r"tokenizer.ggml.bos_token_id: 9999 is no token"):
        as_in_gguf(found, said_of | {"tokenizer.ggml.bos_token_id": 9999})


def reference(generator: TextGenerator, tokens: list[int]) -> np.ndarray:
    """-ln p of each token behind the first, from whole segments read one by one."""
    model, params = generator.trained.run.model, generator.trained.params

    @jax.jit
    def read(carry, part):
        carry, x, _ = forward_segments(model, params, carry, part, jnp.zeros_like(part))
        return carry, jax.nn.log_softmax(logits_of(model, params, x)[0])

    carry, nats, size = init_carry(model, 1), [], model.segment
    for begin in range(0, len(tokens) - 1, size):
        part = np.zeros((1, size), np.int32)
        inputs = tokens[:-1][begin : begin + size]
        part[0, : len(inputs)] = inputs
        carry, log_p = read(carry, part)
        nats += [-float(row[token]) for row, token in zip(log_p, tokens[begin + 1 :], strict=False)]
    return np.array(nats)


def test_an_imported_model_reads_and_continues_texts_behind_its_token(imported, tmp_path):
    generator = TextGenerator.open(imported)
    run, params, tokenizer = generator.trained.run, generator.trained.params, generator.tokenizer
    assert tokenizer.begin == 1
    text = "".join(LINES[3:6])
    (tmp_path / "text.txt").write_text(text)
    tokens = [1, *tokenizer.encode(text).tolist()]
    (found,) = LanguageEvaluation(data=str(tmp_path / "text.txt"), conditions=("carried",)).read(run, OneModel(params))
    nats = reference(generator, tokens)
    assert found.tokens == len(tokens) - 1
    np.testing.assert_allclose(found.nats_CxD[0, 0], nats.sum(), rtol=1e-5)
    said_here = "".join(generator.answer(text, sampling=Sampling(temperature=0.0), tokens=8))
    decoder, logits = read_prompt(run.model, params, [np.array(tokens, np.int32)])
    following = continuation(run.model, params, decoder, logits, Sampling(temperature=0.0, vocab=tokenizer.vocab))
    assert said_here == "".join(tokenizer.decode_each([next(following) for _ in range(8)]))
    memory = generator.read(text[:40])
    assert "".join(generator.answer(text[40:], memory, Sampling(temperature=0.0), 8)) == said_here  # once, not twice


def test_counts_of_given_texts_are_those_of_the_text_alone(imported, tmp_path):
    generator = TextGenerator.open(imported)
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(LINES[number])
    documents, counts = given_documents(generator.trained.run.data, str(tmp_path), "validation")
    assert counts.bytes == sum(map(len, LINES[:2]))
    assert counts.tokens == sum(1 + len(generator.tokenizer.encode(line)) for line in LINES[:2])
    assert documents.text[documents.starts[:-1]].tolist() == [1, 1]
    _, cut = given_documents(generator.trained.run.data, str(tmp_path), "validation", 4)
    assert (cut.tokens, cut.bytes) == (
        8,
        sum(len(generator.tokenizer.decode(generator.tokenizer.encode(one)[:3])) for one in LINES[:2]),
    )


def test_sentences_and_tasks_in_text_stand_behind_it_in_as_many_tokens_as_asked(imported):
    generator = TextGenerator.open(imported)
    run, tokenizer = generator.trained.run, generator.tokenizer
    assert encoded(tokenizer, ["the line"])[0].tolist() == [1, *tokenizer.encode("the line").tolist()]
    evaluation = PasskeyEvaluation(lengths=(700,), depths=(0.5,), examples=1, formats=("infini",))
    (cell,) = evaluation.cells(run)
    (example,) = evaluation.draw(run, cell)
    assert len(example.tokens) == 700 == dict(example.labels)["length"]
    assert example.tokens[0] == 1
    assert example.tokens[1 : 1 + 5].tolist() == tokenizer.encode("There is an important info")[:5].tolist()
    answer = tokenizer.decode(example.answer)
    assert answer.strip() in tokenizer.decode(example.tokens[: example.prompt])
    scored = example.targets[example.prompt - 1 :][: len(example.answer)]
    assert scored.tolist() == example.answer.tolist()
    assert example.tokens[example.prompt :].tolist() == example.targets[example.prompt - 1 : -1].tolist()


@pytest.mark.slow
def test_documents_of_a_prepared_corpus_begin_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text("".join(LINES[number : number + 3]))
    counts = {}
    for name, begin in (("plain", None), ("begun", 1)):
        file = tmp_path / f"{name}.model"
        file.write_bytes(with_begin(SentencePiece(pieces()), begin).model)
        made, _ = prepare("text_folder", TokenizerSettings("sentencepiece", model=file), name, texts, jobs=1)
        documents, counts[name] = made.documents("train"), made.counts("train")
        first = documents.text[documents.starts[:-1]]
        assert set((first == 1).tolist()) == {begin == 1}
    plain, begun = counts["plain"], counts["begun"]
    assert (begun.words, begun.bytes, begun.documents) == (plain.words, plain.bytes, plain.documents)
    assert begun.tokens == plain.tokens + plain.documents
