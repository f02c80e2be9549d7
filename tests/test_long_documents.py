"""Documents of any length are prepared in bounded memory, in pieces that give the tokens of the whole text."""

import re
from pathlib import Path

import numpy as np
import pytest

from infini_jax.data import spilled
from infini_jax.data.decoding import PIECE, pieces
from infini_jax.data.long_documents import PART, in_parts, parts_of_lines, places_of
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.snapshots import own_snapshot
from infini_jax.data.texts import TextFiles
from tests.support.commands import spawned
from tests.support.corpora import write_stories


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def examples_of(documents: dict[int, list[str]], seed: int) -> list[dict]:
    """The examples of documents in pieces, shuffled as TFDS does."""
    found = [
        {"book_id": number, "book_link": link.encode(), "text": text}
        for number, parts in documents.items()
        for _, link, text in in_parts(f"{number}.txt", iter(parts))
    ]
    return [found[place] for place in np.random.default_rng(seed).permutation(len(found))]


@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_of_a_long_document_come_in_order_where_its_first_one_stands(seed):
    documents = {0: ["one"], 1: ["a\n", "b\n", " \n", "c"], 2: [""], 3: [" ", "\n", " "], 4: ["d\n", "e"]}
    examples = examples_of(documents, seed)
    places = places_of(examples, lambda example: example["text"], [1, 3, 4])
    found = [(int(number), bool(more), bool(maybe)) for number, more, maybe in zip(*places[:3], strict=True)]
    joined: list[str] = []
    for number, continues, may_be_blank in found:
        assert may_be_blank == (examples[number]["book_id"] in (0, 2))
        if continues:
            joined[-1] += examples[number]["text"]
        else:
            joined.append(examples[number]["text"])
    assert sorted(joined) == sorted(["one", "a\nb\n \nc", "", "d\ne"])
    assert places.blank == 1  # the third has no text at all
    firsts = [one["book_id"] for one in examples if PART.encode() not in one["book_link"] or one["book_link"].endswith(b"=0")]
    assert [examples[number]["book_id"] for number, more, _ in found if not more] == [one for one in firsts if one != 3]


def test_lines_given_at_once_join_to_the_text_and_end_behind_line_ends():
    text = "a\nbb\n\nccc\n" * 7 + "no end"
    for size in range(1, 40):
        parts = list(parts_of_lines(text, size))
        assert "".join(parts) == text
        assert all(part.endswith("\n") and len(part) >= size for part in parts[:-1])
    assert list(parts_of_lines("", 5)) == []


def test_a_long_document_has_the_tokens_and_counts_of_the_whole(data, tmp_path):
    line = "some words é and others 😀\r\n"
    text = line * (2 * PIECE // len(line) + 1000) + "the end"
    assert len(list(pieces([text]))) == 3
    write_stories(
        tmp_path / "texts", {"train/long.txt": text, "train/blank.txt": " \n" * (PIECE // 2 + 7), "train/a.txt": "a"}
    )
    prepared, _ = prepare("text_folder", TokenizerSettings(), path=tmp_path / "texts", jobs=1)
    documents, counts = prepared.documents("train"), prepared.counts("train")
    assert (counts.documents, counts.empty, counts.words, counts.bytes) == (
        2,
        1,
        len(text.split()) + 1,
        len(text.encode()) + 1,
    )
    assert sorted(np.diff(documents.starts)) == [1, len(text.encode())]
    start = int(documents.starts[int(np.argmax(np.diff(documents.starts)))])
    assert documents.text[start : start + len(text.encode())].tobytes() == text.encode()


def test_a_split_sorted_on_disk_gives_the_same_files(tmp_path, monkeypatch):
    texts = TextFiles(write_stories(tmp_path / "texts", {f"{number}.txt": f"text {number} " * 50 for number in range(60)}))
    found = []
    for place, size in (("memory", spilled.IN_MEMORY), ("disk", 2000)):
        monkeypatch.setattr(spilled, "IN_MEMORY", size)
        folder = Path(own_snapshot("text_folder", texts, tmp_path / place).folder)
        found.append({file.name: file.read_bytes() for file in folder.glob("*.array_record*")})
        assert [file.name for file in folder.parent.rglob("*bucket*")] == []
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.slow
def test_the_memory_of_a_preparation_does_not_grow_with_a_document(tmp_path):
    """Of a whole process. A document held once would make 128 MiB of difference; the limit leaves room for the allocator."""
    peaks = []
    for megabytes in (64, 192):
        folder = tmp_path / f"of{megabytes}"
        write_stories(folder / "train", {"long.txt": "eight words are on this line of text\n" * (megabytes * 28340)})
        # of the process alone: ru_maxrss begins at what its parent had
        before = "import atexit, pathlib\nstatus = lambda: pathlib.Path('/proc/self/status').read_text()\n"
        before += "atexit.register(lambda: print(*(line for line in status().splitlines() if line.startswith('VmHWM'))))"
        arguments = ["corpus", "prepare", "text_folder", "--path", str(folder), "--jobs", "1"]
        done = spawned(arguments, before, INFINI_JAX_DATA=str(tmp_path / "data"))
        assert done.returncode == 0, done.stderr[-500:]
        peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) / 1024)
    assert peaks[1] - peaks[0] < 96, peaks
