"""Files from elsewhere are read in blocks: regular ones only, none beyond a limit, whatever an archive says of its sizes."""

import io
import itertools
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from infini_jax.data.decoding import decoded, pieces
from infini_jax.data.minimal_pairs import blimp_pairs
from infini_jax.data.raw_files import LARGEST_DOCUMENT, Files, check_size, counted_blocks, open_files, read_foreign
from infini_jax.data.tokenizers import load_tokenizer
from infini_jax.errors import ConfigError
from infini_jax.files import open_regular

TOO_LARGE = r"^path: bomb.txt holds [\d,]+ bytes or more, and a document at most 1,073,741,824; split it into smaller files"


class Zeros(io.RawIOBase):
    """Zeros without an end, as an archive gives them that lies about its sizes."""

    def __init__(self):
        self.block = bytes(1 << 20)

    def read(self, size=-1):
        return self.block


class Small(Files):
    """One file that declares a single byte."""

    def entries(self):
        return ["bomb.txt"]

    def size(self, name):
        return 1

    def open(self, name):
        return Zeros()

    def digest(self, suffixes):
        return b""


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "text").write_text("some text")
    (tmp_path / "link").symlink_to("text")
    for name in ("pipe", "zero", "."):
        with pytest.raises(OSError, match="is not a regular file"):
            open_regular(tmp_path / name)
    with open_regular(tmp_path / "link") as opened:
        assert opened.read() == b"some text"


def test_every_reader_of_a_users_file_refuses_a_pipe(tmp_path):
    """A reader that opened it would wait for ever."""
    os.mkfifo(tmp_path / "pairs.jsonl")
    for read in (read_foreign, open_files, load_tokenizer):
        with pytest.raises(ConfigError, match=r"pairs.jsonl"):
            read(tmp_path / "pairs.jsonl")
    for place in (tmp_path, tmp_path / "pairs.jsonl"):
        with pytest.raises(ConfigError, match=r"^blimp.path: .*not a regular file"):
            blimp_pairs(str(place))


def declared_zip(folder: Path) -> Path:
    """A zip that declares three gigabytes for a member of three bytes."""
    packed = folder / "bomb.zip"
    with zipfile.ZipFile(packed, "w") as opened:
        opened.writestr("bomb.txt", "abc")
    raw = bytearray(packed.read_bytes())
    struct.pack_into("<I", raw, raw.index(b"PK\1\2") + 24, 3_000_000_000)
    packed.write_bytes(raw)
    return packed


def declared_tar(folder: Path) -> Path:
    """A tar with three gigabytes of nothing, a hole on disk."""
    header = tarfile.TarInfo("bomb.txt")
    header.size = 3 << 30
    with (folder / "bomb.tar").open("wb") as file:
        file.write(header.tobuf())
        file.truncate(512 + header.size + 1024)
    return folder / "bomb.tar"


@pytest.mark.parametrize("made", [declared_zip, declared_tar])
def test_a_member_that_declares_more_than_the_limit_is_refused_before_it_is_read(made, tmp_path):
    with pytest.raises(ConfigError, match=TOO_LARGE):
        next(open_files(made(tmp_path)).blocks("bomb.txt"))


def test_bytes_are_counted_where_a_declared_size_lies():
    sizes = map(len, Small(Path()).blocks("bomb.txt"))
    assert sum(itertools.islice(sizes, LARGEST_DOCUMENT >> 20)) == LARGEST_DOCUMENT
    with pytest.raises(ConfigError, match=TOO_LARGE):
        next(sizes)
    with pytest.raises(ConfigError, match=r"^blimp.path: zeros holds"):
        list(counted_blocks(Zeros(), "zeros", "blimp.path"))


def test_exactly_the_limit_is_a_document():
    check_size("whole", LARGEST_DOCUMENT, "path")
    with pytest.raises(ConfigError):
        check_size("more", LARGEST_DOCUMENT + 1, "path")


def test_members_that_are_no_files_are_named(tmp_path):
    pipe = tarfile.TarInfo("pipe.txt")
    pipe.type = tarfile.FIFOTYPE
    with tarfile.open(tmp_path / "odd.tar", "w") as opened:
        opened.addfile(pipe)
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    for archive, said in (
        ("odd.tar", r"pipe.txt cannot be read \(is not a reg"),
        ("odd.zip", r"link.txt cannot be read \(is a l"),
    ):
        files = open_files(tmp_path / archive)
        with pytest.raises(ConfigError, match=rf"^path: {said}"):
            list(files.blocks(files.names()[0]))


@pytest.mark.parametrize("errors", ["refuse", "replace", "latin-1"])
@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_text_decoded_by_blocks_is_that_of_the_whole(errors, length):
    raw = "é 😀 \r\n plain \u2581".encode() * 3

    def read():
        return (raw[start : start + length] for start in range(0, len(raw), length))

    assert "".join(decoded(read, "a.txt", errors)) == raw.decode()
    raw = raw[:20] + b"\xe9" + raw[20:] + b"\xf0\x9f"
    if errors == "refuse":
        with pytest.raises(ConfigError, match=rf"^path: a.txt is not UTF-8 at byte {place_of(raw)} \(0x"):
            list(decoded(read, "a.txt", errors))
    else:
        whole = raw.decode(errors="replace") if errors == "replace" else raw.decode("latin-1")
        assert "".join(decoded(read, "a.txt", errors)) == whole


def place_of(raw: bytes) -> int:
    """Where Python's own decoding of all bytes fails."""
    with pytest.raises(UnicodeDecodeError) as error:
        raw.decode()
    return error.value.start


def test_a_document_beyond_a_piece_is_read_as_latin_1_as_a_whole():
    """Its first byte that is no UTF-8 comes after text has been given already."""
    raw = [b"\xc3\xa9" * (1 << 19)] * 17 + [b"\xe9"]
    text = "".join(decoded(lambda: iter(raw), "long.txt", "latin-1"))
    assert text == b"".join(raw).decode("latin-1")


def test_pieces_end_behind_a_line_or_a_space_and_join_to_the_text():
    text = "one line\nanother line of words\n" + "x" * 25 + "\nshort"
    for blocks in ([text], list(text), [text[:7], text[7:]]):
        found = list(pieces(blocks, 12))
        assert "".join(found) == text
        assert found[:3] == ["one line\n", "another ", "line of "]
        assert max(map(len, found)) <= 12
    assert list(pieces(["exactly twelve"[:12]], 12)) == ["exactly twel"]
    assert list(pieces([], 12)) == []
