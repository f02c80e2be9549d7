"""Faults of `infini-jax corpus prepare` as its user meets them: one line, nothing half made, nothing dropped."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infini_jax.cli.main import main
from infini_jax.data.raw_files import LARGEST_DOCUMENT
from tests.support.commands import disk, killed_at, largest_file, spawned, told
from tests.support.corpora import STORIES, write_stories


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def stories(tmp_path) -> Path:
    return write_stories(tmp_path / "stories")


def preparing(stories: Path, *more: str) -> list[str]:
    return ["corpus", "prepare", "text_folder", "--path", str(stories), "--jobs", "1", *more]


def visible(data: Path) -> list[str]:
    return sorted(entry.name for entry in (data / "prepared").glob("[!.]*"))


def link_back(stories: Path) -> None:
    (stories / "deep" / "loop").symlink_to(stories)


def name_that_is_no_text(stories: Path) -> None:
    with open(os.fsencode(stories) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"text")


def holed(file: Path, size: int) -> None:
    """A file of so many bytes that takes no place on disk."""
    with file.open("wb") as opened:
        opened.truncate(size)


FAULTS = {
    "a link to nowhere": (lambda folder: (folder / "bad.txt").symlink_to("nowhere"), "path: bad.txt cannot be read ("),
    "a folder called as a file": (lambda folder: (folder / "bad.md").mkdir(), "path: bad.md cannot be read ("),
    "a pipe": (
        lambda folder: os.mkfifo(folder / "bad.txt"),
        "path: bad.txt cannot be read (is not a regular file); mend or remove it",
    ),
    "a link to a device": (
        lambda folder: (folder / "bad.txt").symlink_to("/dev/zero"),
        "path: bad.txt cannot be read (is not a regular file); mend or remove it",
    ),
    "a file beyond the limit": (
        lambda folder: holed(folder / "bad.txt", LARGEST_DOCUMENT + 1),
        "path: bad.txt holds 1,073,741,825 bytes or more, and a document at most 1,073,741,824; split it into",
    ),
    "a pipe in the folder's place": (
        lambda folder: [shutil.rmtree(folder), os.mkfifo(folder)],
        "path: {} is not a regular file; give a folder or an archive",
    ),
    "no UTF-8": (
        lambda folder: (folder / "deep" / "bad.txt").write_bytes(b"good \xe9"),
        "path: deep/bad.txt is not UTF-8 at byte 5 (0xe9); mend the file, or read it with --errors replace or",
    ),
    "a link back": (link_back, "path: deep/loop leads back to a folder that it lies in; remove the link"),
    "a name that is no text": (name_that_is_no_text, "path: the name 'caf\\udce9.txt' is not UTF-8; rename it"),
    "all empty": (
        lambda folder: [(folder / name).write_text(" \n") for name in STORIES],
        "corpus: text_folder has no text to train on; give a corpus with at least one non-empty document",
    ),
    "no file": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "path: {} has no file that ends in .txt or .md"),
    "no folder": (lambda folder: shutil.rmtree(folder), "path: {} does not exist; give a folder or an archive"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_texts_is_told_in_one_line(fault, data, stories, capsys):
    do, said = FAULTS[fault]
    do(stories)
    assert told(capsys, preparing(stories), 2).startswith(said.format(stories))
    assert visible(data) == []


@pytest.fixture
def anyone() -> Iterator[Path]:
    """A folder of texts that any user may enter, read by one for whom permissions count: they do not for root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        stories = write_stories(Path(folder) / "stories")
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data").chmod(0o777)
        before = os.geteuid()
        try:
            yield stories
        finally:
            os.seteuid(before)
            (stories / "deep").chmod(0o755)


@pytest.mark.parametrize(("name", "said"), [("deep", "deep cannot be listed"), ("one.txt", "one.txt cannot be read")])
def test_what_may_not_be_read_is_named_and_never_left_out(name, said, anyone, monkeypatch, capsys):
    monkeypatch.setenv("INFINI_JAX_DATA", str(anyone.parent / "data"))
    (anyone / name).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    assert told(capsys, preparing(anyone), 2) == f"path: {said} (Permission denied); mend or remove it"


def test_documents_of_a_linked_folder_are_read(data, stories, tmp_path, capsys):
    shutil.move(stories / "deep", tmp_path / "elsewhere")
    (stories / "deep").symlink_to(tmp_path / "elsewhere")
    main(preparing(stories))
    assert documents(capsys.readouterr().out) == (len(STORIES), 0)


def documents(out: str) -> tuple[int, int]:
    """(documents, empty ones) of all splits in the table that is shown."""
    rows = re.findall(r"^ *(?:train|validation|test) +([\d,]+) +([\d,]+)", out, re.MULTILINE)
    return sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows)


@pytest.mark.parametrize("errors", ["replace", "latin-1"])
def test_empty_documents_are_counted_and_bytes_that_are_no_utf8_are_read_as_told(errors, data, stories, capsys):
    write_stories(stories, {"empty.txt": "", "blank.md": " \r\n", "accents.txt": b"d\xe9j\xe0 vu"})
    main(preparing(stories, "--errors", errors))
    assert documents(capsys.readouterr().out) == (len(STORIES) + 1, 2)
    tokens = b"".join(file.read_bytes() for file in (data / "prepared" / "stories-bytes").glob("*.tokens")).decode()
    assert {"replace": "d\ufffdj\ufffd vu", "latin-1": "déjà vu"}[errors] in tokens


@pytest.mark.parametrize("kilobytes", [8, 48, 120])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(kilobytes, stories, tmp_path, monkeypatch, capsys):
    """Too small for the first file, for the data set, and for the tokens beside it."""
    write_stories(stories, {f"{number}.txt": f"story {number} " * 3000 for number in range(2)})
    with disk(tmp_path / "disk", f"{kilobytes}k") as folder:
        monkeypatch.setenv("INFINI_JAX_DATA", str(folder / "data"))
        line = told(capsys, preparing(stories), 1)
        assert line.startswith("disk: ")
        assert "No space left on device; make room or give another folder" in line
        assert [file for file in folder.rglob("*") if "partial" in file.name] == []
        assert visible(folder / "data") == []


def test_files_that_may_not_grow_are_a_full_disk_and_with_room_the_same_command_goes_on(data, stories):
    """The second way, for machines where no disk can be mounted: writes fail behind 4 000 bytes, here those of the tokens."""
    write_stories(stories, {f"{number}.txt": "again and again " * 600 for number in range(3)})
    main(preparing(stories, "--name", "first"))  # makes the data set
    done = spawned(preparing(stories), largest_file(4000))
    assert done.returncode == 1
    assert done.stderr.startswith("infini-jax: disk: ")
    assert done.stderr.count("\n") == 1
    assert visible(data) == ["first"]
    assert not list((data / "prepared").glob(".*partial"))
    main(preparing(stories))
    assert visible(data) == ["first", "stories-bytes"]


def test_a_folder_that_cannot_be_written_is_one_line(stories, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "file"))
    assert told(capsys, preparing(stories), 1).startswith(f"disk: {tmp_path / 'file' / 'prepared'}: Not a directory; ")
    with disk(tmp_path / "disk", "1m", "ro") as folder:
        monkeypatch.setenv("INFINI_JAX_DATA", str(folder))
        assert told(capsys, preparing(stories), 1).startswith(f"disk: {folder / 'prepared'}: Read-only file system; ")


@pytest.mark.parametrize(
    ("part", "event"),
    [(".partial/train.tokens", "open"), (".partial/manifest.json", "open"), (".stories-bytes.partial", "os.rename")],
)
def test_a_preparation_that_is_killed_is_never_read_and_done_again(part, event, data, stories):
    """Before the tokens, before the manifest and before the folder gets its name."""
    done = spawned(preparing(stories), killed_at(part, 1, (event,)))
    assert done.returncode == -9, done.stderr[-1000:]
    assert visible(data) == []
    main(preparing(stories))
    assert visible(data) == ["stories-bytes"]
    assert not list((data / "prepared").glob(".*partial"))
