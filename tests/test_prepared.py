"""Prepared corpora: made once, whole or not at all, and never another than the run names."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.batch import Rows
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.prepare import TokenizerSettings, chunks, prepare
from infini_jax.data.prepared import MANIFEST_FILE, MODEL_FILE, Counts, Manifest, Prepared
from infini_jax.data.tokenizers import Bytes, load_tokenizer
from infini_jax.errors import ConfigError
from infini_jax.training.execute import execute
from tests.support.commands import held_by_another
from tests.support.corpora import STORIES, write_stories

BYTES = TokenizerSettings()
PIECES = TokenizerSettings("sentencepiece", 290)
EMPTY = {"empty.txt": "", "blank.txt": " \n\t\n"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def stories(tmp_path):
    return write_stories(tmp_path / "stories")


def make(stories, settings=BYTES, **more) -> tuple[Prepared, bool]:
    return prepare("text_folder", settings, path=stories, jobs=1, **more)


def texts_of(prepared: Prepared, split: str) -> list[str]:
    """The documents as they come back."""
    documents = prepared.documents(split)
    model = prepared.folder / MODEL_FILE
    tokenizer = load_tokenizer(model) if model.exists() else Bytes()
    return [tokenizer.decode(documents.text[a:b]) for a, b in zip(documents.starts, documents.starts[1:], strict=False)]


def files_of(prepared: Prepared) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in prepared.folder.iterdir()}


@pytest.mark.parametrize("settings", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_documents_come_back_and_everything_is_counted(settings, data, stories):
    write_stories(stories, EMPTY)
    prepared, is_new = make(stories, settings)
    assert is_new
    found = {split: texts_of(prepared, split) for split in prepared.manifest.splits}
    assert sorted(text for texts in found.values() for text in texts) == sorted(STORIES.values())
    for split, texts in found.items():
        counts = prepared.counts(split)
        assert counts.documents == len(texts)
        assert counts.words == sum(len(text.split()) for text in texts)
        assert counts.bytes == sum(len(text.encode()) for text in texts)
        assert counts.tokens == len(prepared.documents(split).text)
        assert counts.longest == np.diff(prepared.documents(split).starts).max()
    assert sum(counts.empty for counts in prepared.manifest.splits.values()) == 2
    assert prepared.documents("train").text.dtype == (np.uint8 if settings.tokenizer == "bytes" else np.uint16)
    assert isinstance(prepared.documents("train").text, np.memmap)


@pytest.mark.parametrize(("vocab", "bits"), [(2, 8), (256, 8), (257, 16), (65536, 16), (65537, 32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(vocab, bits):
    assert Manifest("", "", "", "", vocab, {}).dtype.itemsize * 8 == bits


def test_counts_turn_nats_a_token_into_word_perplexity_and_bits_a_byte():
    counts = Counts(1, 0, tokens=300, words=100, bytes=900, longest=300, tokens_sha256="", starts_sha256="")
    assert counts.word_perplexity(1.5) == pytest.approx(math.exp(4.5))
    assert counts.bits_per_byte(1.5) == pytest.approx(0.5 / math.log(2))


def test_doing_it_again_does_nothing(data, stories):
    first, _ = make(stories, PIECES)
    times = {file.name: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    again, is_new = make(stories, PIECES)
    assert not is_new
    assert again == first
    assert {file.name: file.stat().st_mtime_ns for file in again.folder.iterdir()} == times


def test_processes_side_by_side_write_the_same_bytes(data, stories):
    one, _ = make(stories, PIECES, name="one")
    two, _ = prepare("text_folder", PIECES, "two", stories, jobs=2)
    assert files_of(one) == files_of(two)


def test_documents_are_shared_out_without_a_gap():
    for documents in (0, 1, 255, 256, 257, 1000, 300_000):
        parts = chunks(documents)
        assert [number for part in parts for number in part] == list(range(documents))
        assert max(map(len, parts), default=0) <= 1024


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    """A bit, at the same size and time: only the checksum tells."""
    raw, times = bytearray(file.read_bytes()), file.stat()
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


def edit(file):
    """A count, as if by hand."""
    file.write_text(file.read_text().replace('"words": ', '"words": 1'))


DAMAGES = {
    "tokens cut": ("train.tokens", cut),
    "tokens flipped": ("train.tokens", flip),
    "tokens gone": ("train.tokens", lambda file: file.unlink()),
    "starts cut": ("train.starts", cut),
    "starts flipped": ("test.starts", flip),
    "model cut": (MODEL_FILE, cut),
    "model gone": (MODEL_FILE, lambda file: file.unlink()),
    "manifest half": (MANIFEST_FILE, lambda file: file.write_text(file.read_text()[:100])),
    "manifest gone": (MANIFEST_FILE, lambda file: file.unlink()),
    "manifest no object": (MANIFEST_FILE, lambda file: file.write_text("[1]")),
    "manifest of a later format": (MANIFEST_FILE, lambda file: file.write_text(json.dumps({"format": 99, "content": ""}))),
    "manifest edited": (MANIFEST_FILE, edit),
    "model flipped": (MODEL_FILE, flip),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_mended_and_never_read(damage, data, stories):
    prepared, _ = make(stories, PIECES)
    whole = files_of(prepared)
    name, do = DAMAGES[damage]
    do(prepared.folder / name)
    assert (prepared.folder / name).exists() == ("gone" not in damage)
    with pytest.raises(ConfigError, match=r"^data.name: .+; prepare it again: infini-jax corpus prepare$") as error:
        CorpusConfig("stories-bpe290")
    assert "\n" not in str(error.value)
    again, is_new = make(stories, PIECES)
    assert is_new
    assert files_of(again) == whole


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_preparation_leaves_nothing_that_is_read(after, data, stories):
    calls = []

    def interrupt(*done):
        calls.append(done)
        if len(calls) > 2 + after:  # of the parts, after the two stages before them
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(stories, PIECES, watch=interrupt)
    with pytest.raises(ConfigError, match=r"^data.name: no prepared corpus 'stories-bpe290'"):
        CorpusConfig("stories-bpe290")
    prepared, is_new = make(stories, PIECES)
    assert is_new
    assert [entry.name for entry in prepared.folder.parent.iterdir() if entry.is_dir()] == ["stories-bpe290"]


def test_a_corpus_that_changed_is_prepared_anew_and_an_old_run_refuses_it(data, stories):
    first, _ = make(stories)
    config = CorpusConfig("stories-bytes")
    open_one = first.documents("train").text
    before = bytes(open_one)
    for name in STORIES:  # all, so that the change is in every split
        (stories / name).write_text(f"{name} has changed")
    second, is_new = make(stories)
    assert is_new
    assert second.manifest.source != first.manifest.source
    assert bytes(open_one) == before  # who has it open reads on
    with pytest.raises(
        ConfigError, match=rf"^data.content: the run wants {config.content} and .+ has {second.manifest.content};"
    ):
        config.open(Rows(1, 4, 0))


def test_a_name_is_not_taken_from_another_preparation(data, stories):
    make(stories, name="mine")
    with pytest.raises(ConfigError, match=r"^name: 'mine' is text_folder with bytes, not text_folder with sentencepiece"):
        make(stories, PIECES, name="mine")
    with pytest.raises(ConfigError, match=r"^data.name: 'a/b' is not a file name"):
        make(stories, name="a/b")


def test_two_processes_do_not_prepare_the_same(data, stories):
    prepared, _ = make(stories)
    with held_by_another(prepared.folder.parent / f".{prepared.folder.name}.lock") as first:
        with pytest.raises(ConfigError) as refused:
            make(stories)
        who = f"process {first.pid} on {socket.gethostname()}"
    assert str(refused.value) == (
        f"name: 'stories-bytes' is being written by {who}; wait until it is done, or give another --name"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "bad.txt").mkdir(), r"^path: bad.txt cannot be read"),
        (lambda folder: (folder / "bad.txt").symlink_to("nowhere"), r"^path: bad.txt cannot be read"),
        (lambda folder: (folder / "bad.txt").write_bytes(b"\xff"), r"^path: bad.txt is not UTF-8 at byte 0 \(0xff\)"),
        (
            lambda folder: [(folder / name).write_text(" ") for name in STORIES],
            r"^corpus: text_folder has no text to train on",
        ),
        (lambda folder: [(folder / name).unlink() for name in STORIES], r"^path: .+ has no file that ends in .txt or .md"),
    ],
    ids=["a directory", "a dangling link", "no UTF-8", "all empty", "no file"],
)
def test_a_fault_of_the_texts_is_one_line_and_leaves_nothing(change, said, data, stories):
    change(stories)
    with pytest.raises(ConfigError, match=said) as error:
        make(stories)
    assert "\n" not in str(error.value)
    assert not list((data / "prepared").glob("[!.]*"))


def test_a_corpus_in_which_nothing_is_scored_is_refused_before_it_is_trained_on(data, stories):
    for name in STORIES:
        (stories / name).write_text("a")
    prepared, _ = make(stories)
    said = r"^data: no document of the train split of stories-bytes has two tokens, and the first of each is never predicted; "
    with pytest.raises(ConfigError, match=said):
        CorpusConfig(prepared.folder.name).open(Rows(1, 8, 0))


def test_preparing_without_its_packages_names_them(data, stories, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r"^corpus: sentencepiece is not installed .+; pip install sentencepiece$"):
        make(stories, PIECES)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install tensorflow-datasets$"):
        make(stories)


def test_a_run_with_another_tokenizer_is_refused(data, stories):
    make(stories)
    with pytest.raises(
        ConfigError, match=r"^data.tokenizer: the run wants sentencepiece:12ab and the prepared corpus .+ has bytes"
    ):
        CorpusConfig("stories-bytes", tokenizer="sentencepiece:12ab")
    saved = dataclasses.replace(CorpusConfig("stories-bytes"), tokenizer="sentencepiece:12ab")
    with pytest.raises(ConfigError, match=r"^data.tokenizer: "):
        saved.open(Rows(1, 4, 0))
    with pytest.raises(ConfigError, match=r"did you mean 'stories-bytes'"):
        CorpusConfig("storis-bytes")


def test_the_vocabulary_comes_from_the_corpus_and_a_run_keeps_it(data, stories, tmp_path, monkeypatch):
    make(stories, PIECES)
    shape, train = ModelConfig(vocab=290, segment=8), TrainConfig(batch=2, sequence=16)
    run = RunConfig(model=shape, data=CorpusConfig("stories-bpe290"), train=train)
    assert run.data.vocab == 290
    assert run.task == "corpus"
    with pytest.raises(ConfigError, match=r"^model.vocab: 256 symbols, but the data has 290"):
        dataclasses.replace(run, model=dataclasses.replace(shape, vocab=256))
    plain = json.loads(json.dumps(run.to_dict()))
    assert str(data) not in json.dumps(plain)
    data.rename(tmp_path / "moved")  # a saved run is read without its corpus, and is the same wherever that lies
    assert RunConfig.from_dict(plain) == run
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "moved"))
    assert RunConfig.from_dict(plain).fingerprint() == run.fingerprint()
    source = run.data.open(Rows(2, 16, 0))
    assert run.data.content in source.corpus
    assert source.batch(0).tokens.max() < 290


def test_other_tokens_are_another_run(data, stories):
    make(stories)
    before = CorpusConfig("stories-bytes").content
    for name in STORIES:
        (stories / name).write_text("something else")
    make(stories)
    assert CorpusConfig("stories-bytes").content != before


def test_a_split_that_is_not_there_is_named(data, tmp_path):
    make(write_stories(tmp_path / "two", {"a.txt": "one", "b.txt": "two"}))
    with pytest.raises(ConfigError, match=r"^data.name: 'two-bytes' has no validation split; it has train;"):
        CorpusConfig("two-bytes").open(Rows(1, 4, 0, "validation"))


def test_the_command_prepares_lists_and_says_when_there_is_nothing_to_do(data, stories, capsys):
    command = ["corpus", "prepare", "text_folder", "--path", str(stories), "--jobs", "1"]
    main(command)
    first = capsys.readouterr().out
    assert "--data.name stories-bytes" in first
    assert "already prepared" not in first
    main(command)
    assert "already prepared" in capsys.readouterr().out
    main(["corpus", "list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("shakespeare", "apt-get install", "stories-bytes"))
    with pytest.raises(SystemExit) as end:
        main(["corpus", "prepare", "shakespear"])
    assert end.value.code == 2
    assert "did you mean 'shakespeare'?" in capsys.readouterr().err


BLOCKED = """
    import sys
    for name in {blocked}:
        sys.modules[name] = None  # an import of it fails
"""
READS = """
    import infini_jax.cli.train  # and with it all that trains
    from infini_jax.data.base import Rows
    from infini_jax.data.corpus import CorpusConfig
    from infini_jax.data.serve import batches
    for batch in batches(CorpusConfig("stories-bytes").open(Rows(2, 16, 0)), range(3)):
        assert batch.tokens.shape == (2, 16)
"""
WITHOUT_TENSORFLOW = """
    import sys
    from pathlib import Path
    from infini_jax.data.prepare import TokenizerSettings, prepare
    prepare("text_folder", TokenizerSettings(), path=Path(sys.argv[2]), jobs=1)
    assert "tensorflow_datasets" in sys.modules
"""
NO_TENSORFLOW = """
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow" and sys.modules[name]]
"""


def python(*parts: str, arguments: list[str]) -> None:
    """Runs a program in a process of its own."""
    program = "".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_preparing_and_reading_never_import_tensorflow(data, stories):
    python(WITHOUT_TENSORFLOW, READS, NO_TENSORFLOW, arguments=["", str(stories)])


def test_reading_needs_neither_tfds_nor_grain_nor_sentencepiece(data, stories):
    make(stories)
    blocked = ["tensorflow", "tensorflow_datasets", "grain", "array_record", "sentencepiece"]
    python(BLOCKED.format(blocked=blocked), READS, arguments=[])


@pytest.mark.slow  # compiles
def test_a_run_trains_on_a_prepared_corpus(data, stories, tmp_path):
    prepared, _ = make(stories)
    shape = ModelConfig(vocab=256, layers=1, d_model=16, segment=8)
    run = RunConfig(
        model=shape,
        data=CorpusConfig("stories-bytes"),
        train=TrainConfig(batch=1, sequence=16, evaluation_steps=1),
        budget=Budget("steps", 2),
    )
    row = execute(run, tmp_path / "run", study="")
    assert row.task == "corpus"
    assert row.test_loss is None  # the test split has no document of two tokens
    assert prepared.manifest.content in row.corpus
