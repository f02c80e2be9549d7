"""Documents with targets: the published forms of BookSum and CMU-DoG, the marks, and what of a document is scored."""

import functools
import gzip
import json

import numpy as np
import pytest

from infini_jax.data.batch import Rows
from infini_jax.data.booksum import BookSum
from infini_jax.data.cmu_dog import CmuDog, film_text
from infini_jax.data.conditioned import ConditionedConfig, target_text
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.documents import Documents
from infini_jax.data.marked_sentences import MarkedSentences
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.target_marks import END, READ, TARGET, Marks, Turn, marked
from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.data.words import Words
from infini_jax.errors import ConfigError
from tests.support import targets
from tests.support.corpora import write_stories
from tests.test_corpora import everything, pack

CHAPTER, BOOK = "It was a dark night.\n\nIt rained.\n", "It was a dark night.\n\nIt rained.\n\nThen it did not.\n"


def document(context: str, *said: str) -> str:
    return context + "".join(f"\n{TARGET}\n{one}\n{END}\n" for one in said)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path


def test_booksums_alignments_name_chapters_books_and_summaries(tmp_path):
    folder = targets.write_alignments(tmp_path / "booksum")
    chapters, books = everything(BookSum(folder)), everything(BookSum(folder, "books"))
    said = document(CHAPTER, "It is dark. It is wet.")
    assert [list(found.values()) for found in chapters.values()] == [[said], [said], []]
    of_book = [document(BOOK, "All is wet.")]
    assert [list(found.values()) for found in books.values()] == [of_book, [], of_book]
    assert BookSum(folder).left_out() == ["finished_summaries/shmoop/A Book/section_1_part_0.txt"]
    assert everything(BookSum(pack(folder, tmp_path / "booksum.zip"))) == chapters
    before = [BookSum(folder).digest(), BookSum(folder, "books").digest()]
    (folder / "finished_summaries" / "shmoop" / "A Book" / "overview.json").write_text('{"summary": ["Dry."]}')
    assert len({*before, BookSum(folder).digest(), BookSum(folder, "books").digest()}) == 4


def test_alignments_may_be_packed_and_have_their_texts_in_place(tmp_path):
    row = {"chapter_path": "x", "summary_path": "y", "text": ["One.", "Two."], "summary": ["It is one,", "then two."]}
    packed = gzip.compress(json.dumps(row).encode() + b"\n")
    for name in ("chapter_summary_aligned_val_split.jsonl.gathered", "chapter_summary_aligned_test_split.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.decompress(packed) if name.endswith("d") else packed)
    found = everything(BookSum(tmp_path))
    assert [list(part.values()) for part in found.values()] == [[], *[[document("One.\n\nTwo.", "It is one, then two.")]] * 2]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_booksum_of_kmfoda_has_a_document_per_row(kind, tmp_path):
    found = everything(BookSum(targets.write_kmfoda(tmp_path, kind)))
    said = document(targets.KMFODA["chapter"], targets.KMFODA["summary_text"])
    assert [list(part.values()) for part in found.values()] == [[said, said]] * 3
    assert not any(everything(BookSum(tmp_path, "books")).values())


def test_a_text_with_several_summaries_is_as_many_documents(tmp_path):
    folder = targets.write_cleaned(tmp_path)
    for found in everything(BookSum(folder)).values():
        assert list(found.values()) == [document("It rained.", "It is wet."), document("It rained.", "Rain.")]
    for found in everything(BookSum(folder, "books")).values():
        assert list(found.values()) == [document("It rained. Then it did not.", "It is wet.")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"chapter": "One."}\n', r"^path: train.jsonl line 1 has no summary; give BookSum's"),
        ("[1]\n", r"^path: train.jsonl line 1 is not a JSON object"),
        ("{", r"^path: train.jsonl line 1 is not JSON \("),
        (None, r"^path: .* has no rows of a train, val or test split"),
    ],
)
def test_what_is_no_booksum_is_told_in_one_line(content, told, tmp_path):
    (tmp_path / ("train.jsonl" if content else "train.txt")).write_text(content or "One.")
    with pytest.raises(ConfigError, match=told):
        everything(BookSum(tmp_path))


def test_conversations_follow_their_film_and_informed_turns_are_targets(tmp_path):
    folder = targets.write_cmu_dog(tmp_path / "dog")
    found = everything(CmuDog(folder))
    film = film_text(targets.FILM)
    assert film.startswith("movieName: The Boat\nyear: 1999\n")
    assert film.endswith("The boat leaves.\nThe boat sinks.\nCaptain One swims.")
    assert "cast: A. Actor as Captain One; B. Actor as Two\nintroduction: The Boat is a film about a boat.\n" in film
    told = "Have you seen The Boat? The captain swims."
    assert found["train"]["train/00a8.json"] == document(f"{film}\n{READ}\nHello there!\n", told) + f"\n{READ}\nNo.\n"
    other = film.replace("The Boat\nyear", "The Train\nyear").replace("The boat leaves.", "It leaves.")
    assert found["train"]["train/00b9.json"] == document(other, "Hello there!", told, "No.")
    assert list(found["validation"]) == ["validation/01c0.json", "validation/01c1.json"]
    assert found["test"] == {}  # nobody said anything
    assert everything(CmuDog(pack(folder, tmp_path / "dog.zip"))) == found


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("WikiData/The_Boat.json", "{}", r"^path: WikiData/The_Boat.json has no wikiDocumentIdx"),
        ("Conversations/train/x.json", '{"wikiDocumentIdx": 9}', r"^path: the film of Conversations/train/x.json is missing"),
        ("Conversations/train/x.json", '{"wikiDocumentIdx": 4}', r"^path: Conversations/train/x.json is no conversation"),
        ("Conversations/train/x.json", "{", r"^path: Conversations/train/x.json is no JSON"),
    ],
)
def test_what_is_no_conversation_is_told_in_one_line(name, content, told, tmp_path):
    (targets.write_cmu_dog(tmp_path) / name).write_text(content)
    with pytest.raises(ConfigError, match=told):
        everything(CmuDog(tmp_path))


def test_marks_in_texts_become_spaces():
    assert "".join(marked(["a\x02b"], [Turn("\x03 c\x05\n")])) == document("a b", "c")


@functools.cache
def tokenizer(kind: str):
    if kind == "bytes":
        return Bytes()
    texts = ["".join(part) for _, part in MarkedSentences().documents("validation")]
    return SentencePiece(train_sentencepiece(texts, 400 if kind == "bpe" else 330, kind))


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_targets_are_found_again_in_the_tokens(kind):
    texts = [document("One.", "Two é\n three."), document(f"x\n{READ}\nyes\n", "no", "..."), "no target", document("", "end")]
    tokens = [tokenizer(kind).encode(text) for text in texts]
    documents = Documents(np.concatenate(tokens), np.cumsum([0, *map(len, tokens)]), "made")
    marks = Marks.of(tokenizer(kind))
    found = [documents.text[begin:end] for begin, end in marks.targets(documents)]
    assert [target_text(tokenizer(kind), one) for one in found] == ["Two é\n three.", "no", "...", "end"]
    assert all(one[-1] == marks.end for one in found)
    contexts = [documents.text[begin:end] for begin, end in zip(documents.starts[:-1], marks.contexts(documents), strict=True)]
    assert [tokenizer(kind).decode(one) for one in contexts] == ["One.\n", "x\n", "no target", "\n"]


def test_a_tokenizer_without_tokens_for_the_marks_is_refused():
    class Deaf(Bytes):
        def encode(self, text):
            return super().encode(text.replace(END, "?").replace(READ, "?"))

    with pytest.raises(ConfigError, match=r"^tokenizer: bytes has no tokens for the marks of targets; prepare the corpus"):
        Marks.of(Deaf())
    with pytest.raises(ConfigError):
        Marks.of(Words(["a b"]))


@pytest.mark.parametrize("text", ["no target at all", f"{TARGET}\nnever ends", f"{TARGET}\na\n{TARGET}\nb\n{END}\n"])
def test_documents_without_whole_targets_are_refused(text):
    with pytest.raises(ConfigError, match=r"^data.name: made has (no targets|targets without an end)"):
        Marks.of(Bytes()).targets(Documents.join([text.encode()], "made"))


def test_scored_tokens_are_those_of_targets_alone(data_folder):
    config = targets.prepared_dialogues(data_folder / "dog")
    documents, counts = config.whole("train")
    is_scored_T = documents.are_scored(np.arange(len(documents.text)))
    slow_T, inside = np.zeros(len(is_scored_T), bool), False
    for place, token in enumerate(bytes(documents.text)):
        slow_T[place] = inside and not (token == ord("\n") and documents.text[place - 1] == ord(TARGET))
        inside = (inside or token == ord(TARGET)) and token != ord(END)
    np.testing.assert_array_equal(is_scored_T, slow_T)
    said = "Have you seen The Boat? The captain swims."
    assert counts.words == sum(len(one.split()) for one in (said, "Hello there!", said, "No."))
    assert counts.tokens == counts.bytes + 2 * 4 == slow_T.sum()  # a line end and the mark behind each
    batch = config.open(Rows(2, 2000, 0)).batch(0)
    of_targets = batch.targets[batch.weights > 0]
    assert {target_text(Bytes(), part) for part in np.split(of_targets, np.flatnonzero(of_targets == ord(END)) + 1)[:-1]} == {
        said,
        "Hello there!",
        "No.",
    }


def test_which_documents_have_targets_in_their_first_tokens():
    documents = Documents(
        np.zeros(30, np.uint8), np.array([0, 10, 20, 30]), "made", targets=np.array([[4, 6], [10, 11], [29, 30]])
    )
    numbers = np.arange(3)
    for length in range(1, 11):
        slow = [any(documents.are_scored(np.arange(10 * one + 1, 10 * one + length))) for one in numbers]
        np.testing.assert_array_equal(documents.have_scored(numbers, np.full(3, length)), slow)


def test_an_ordinary_corpus_is_no_conditioned_one(data_folder):
    prepare("text_folder", TokenizerSettings(), path=write_stories(data_folder / "stories"), jobs=1)
    config = ConditionedConfig("stories-bytes")
    with pytest.raises(
        ConfigError, match=r"^data.name: 'stories-bytes' \(train split\) has no targets; prepare a corpus with"
    ):
        config.open(Rows(1, 8, 0))
    assert CorpusConfig("stories-bytes").open(Rows(1, 8, 0)).batch(0).weights.any()


def test_marked_sentences_are_the_summary_and_no_window_reaches_them():
    kind = MarkedSentences()
    for name, parts in list(kind.documents("validation"))[:8]:
        text, said = "".join(parts).split(f"\n{TARGET}\n")
        lines = text.splitlines()
        assert said == "\n".join(line for line in lines if line.startswith("#")) + f"\n{END}\n", name
        assert not any(line.startswith("#") for line in lines[-kind.far :])
        words = [word for line in said.splitlines()[:-1] for word in line.rstrip(".").split()[1:]]
        assert len(set(words)) == kind.kept * kind.length
        assert not set(words) & {word for line in lines if not line.startswith("#") for word in line.rstrip(".").split()}
    splits = {split: list(found.values()) for split, found in everything(kind).items()}
    assert not set(splits["train"]) & set(splits["validation"] + splits["test"])
