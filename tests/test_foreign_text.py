"""Text from other systems: hidden and junk files are left out and counted, byte order marks taken off, odd names told."""

import codecs
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from infini_jax.cli.main import main
from infini_jax.data.batch import SPLIT_NUMBER
from infini_jax.data.corpora import own_texts
from infini_jax.data.raw_files import hidden, open_files
from infini_jax.data.texts import TextFiles, listed
from infini_jax.errors import ConfigError
from infini_jax.model.prompt import read_text
from tests.support.commands import told
from tests.support.corpora import write_stories

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
JUNK = {
    ".hidden.txt": "not meant to be read",
    ".ipynb_checkpoints/one-checkpoint.txt": "an old state",
    "__MACOSX/._one.txt": b"\0\5\26\7\0Mac OS X \xe9",
    "__MACOSX/deep/._two.txt": b"\0\5\26\7\0Mac OS X \xe9",
    "deep/.DS_Store": b"\0\0\0\1Bud1\xe9",
    "deep/Thumbs.db": b"\xd0\xcf",
    "desktop.ini": b"\xff\xfe[",
}
LEFT_OUT = [".hidden.txt", ".ipynb_checkpoints", "__MACOSX", "deep/.DS_Store", "deep/Thumbs.db", "desktop.ini"]
TEXTS = {"one.txt": "the first", "deep/two.txt": "the second"}


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def texts_of(texts) -> dict[str, str]:
    return {name: "".join(text) for split in SPLIT_NUMBER for name, text in texts.documents(split)}


def packed(folder: Path, archive: Path) -> Path:
    """The files of a folder in an archive, hidden ones included."""
    names = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for file in names:
                opened.write(file, file.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz") as opened:
            for file in names:
                opened.add(file, file.relative_to(folder))
    return archive


@pytest.mark.parametrize("form", ["folder", "mac.zip", "mac.tar.gz"])
def test_hidden_and_junk_files_are_no_documents_and_are_named(form, tmp_path):
    place = write_stories(tmp_path / "texts", {**TEXTS, **JUNK})
    if form != "folder":
        place = packed(place, tmp_path / form)
    assert texts_of(TextFiles(place)) == TEXTS
    assert TextFiles(place).left_out() == LEFT_OUT


def test_what_is_left_out_is_told_in_one_line(data, tmp_path, capsys):
    mac = packed(write_stories(tmp_path / "texts", {**TEXTS, **JUNK}), tmp_path / "mac.zip")
    for _ in range(2):  # also where nothing is left to do
        main(["corpus", "prepare", "text_folder", "--path", str(mac), "--jobs", "1"])
        said = "left out as hidden, junk or missing: 6 ('.hidden.txt', '.ipynb_checkpoints', '__MACOSX', ...)\n"
        assert capsys.readouterr().out.count(said) == 1
    assert sorted((data / "prepared" / "mac-bytes").glob("*.tokens"))


def test_a_folder_may_be_hidden_itself_and_a_name_may_hold_dots(tmp_path):
    folder = write_stories(tmp_path / ".cache" / "texts", {"a.b.txt": "kept", "...and more.txt": "left out"})
    assert texts_of(TextFiles(folder)) == {"a.b.txt": "kept"}
    assert [hidden(name) for name in ("./a.txt", "../a.txt", "a/.b/c.txt", "A/THUMBS.DB", "thumbs.db.txt")] == [
        None,
        None,
        "a/.b",
        "A/THUMBS.DB",
        None,
    ]


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("errors", ["refuse", "replace", "latin-1"])
def test_byte_order_marks_are_taken_off_and_name_the_encoding(encoding, errors, tmp_path):
    raw = MARKS[encoding] + "é 😀\r\nsecond line \ufeff".encode(encoding)
    folder = write_stories(tmp_path / "texts", {"one.txt": raw, "empty.txt": MARKS[encoding]})
    assert texts_of(TextFiles(folder, errors=errors)) == {"one.txt": "é 😀\r\nsecond line \ufeff", "empty.txt": ""}
    assert "".join(read_text(folder / "one.txt")) == "é 😀\r\nsecond line \ufeff"  # a prompt too


def test_a_mark_that_does_not_fit_is_refused_in_one_line(tmp_path):
    folder = write_stories(tmp_path / "texts", {"one.txt": codecs.BOM_UTF16_LE + "good".encode("utf-16-le") + b"x"})
    with pytest.raises(
        ConfigError, match=r"^path: one.txt is not UTF-16 at byte 10 \(0x78\); mend the file, or read it with --err"
    ):
        texts_of(TextFiles(folder))
    assert texts_of(TextFiles(folder, errors="replace")) == {"one.txt": "good\ufffd"}


@pytest.mark.parametrize("encoding", MARKS)
def test_a_list_of_names_may_have_a_mark(encoding, tmp_path):
    folder = write_stories(tmp_path / "texts", {"one.txt": "1", "two.txt": "2"})
    (tmp_path / "list").write_bytes(MARKS[encoding] + "one.txt\r\n".encode(encoding))
    texts = TextFiles(folder, lists=(("validation", tmp_path / "list"),))
    assert [name for name, _ in texts.documents("validation")] == ["one.txt"]


def test_a_list_that_is_no_text_is_refused_in_one_line(tmp_path):
    (tmp_path / "list").write_bytes(b"caf\xe9.txt\n")
    with pytest.raises(ConfigError, match=r"^splits: .*list is not UTF-8 at byte 3 \(0xe9\)"):
        listed(tmp_path / "list")


def test_a_tar_with_a_latin_1_name_is_refused_in_one_line(data, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"caf\xe9.jpg"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(b"text")
    with tarfile.open(tmp_path / "odd.tar", "w", format=tarfile.GNU_FORMAT) as opened:
        opened.add(folder, "texts", filter=lambda info: info)
    said = told(capsys, ["corpus", "prepare", "text_folder", "--path", str(tmp_path / "odd.tar"), "--jobs", "1"], 2)
    assert said == r"path: the name 'texts/caf\udce9.txt' is not UTF-8; rename it"


def test_odd_names_of_what_is_no_document_stop_nothing(tmp_path):
    folder = write_stories(tmp_path / "texts", TEXTS)
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"\xff\xd8")
    assert texts_of(TextFiles(folder)) == TEXTS


def test_a_zip_whose_name_is_no_text_is_refused_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as opened:
        opened.writestr("café.txt", "text")
    raw = (tmp_path / "odd.zip").read_bytes().replace("é".encode(), b"\xe9\xe9")
    (tmp_path / "odd.zip").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"^path: .*odd.zip is not a complete archive \('utf-8' codec"):
        open_files(tmp_path / "odd.zip").names()


def test_the_digest_does_not_depend_on_what_is_left_out(tmp_path):
    folder = write_stories(tmp_path / "texts", TEXTS)
    before = own_texts("text_folder", folder).digest()
    write_stories(folder, JUNK)
    assert own_texts("text_folder", folder).digest() == before
