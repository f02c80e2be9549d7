"""Corpora of rows (JSON lines, Parquet, Arrow) and of one large file, by one table of endings."""

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infini_jax.cli.main import main
from infini_jax.data.batch import SPLIT_NUMBER
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.readers import LARGEST_LINE, READERS, lines
from infini_jax.data.row_texts import CutFile, Tables, cut, number_of_rows, open_texts
from infini_jax.data.texts import TextFiles
from infini_jax.errors import ConfigError
from tests.support.commands import told
from tests.support.corpora import write_stories

TEXTS = [
    "the first",
    "é 😀\nof two lines",
    "",
    "the fourth \u2028 with odd ends\r\n",
    *(f"text {number}" for number in range(60)),
]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def documents_of(texts) -> dict[str, dict[str, str]]:
    return {split: {name: "".join(text) for name, text in texts.documents(split)} for split in SPLIT_NUMBER}


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=row["id"] % 2 == 0) + "\n" for row in rows).encode()


def write_rows(file: Path, rows: list[dict] = ROWS) -> Path:
    """The rows in a file of the form that its name ends in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if file.suffix == ".parquet":
        pq.write_table(table, file, row_group_size=7)
    elif file.suffix == ".arrow":  # the stream that datasets.save_to_disk writes
        with pa.OSFile(str(file), "wb") as opened, pa.ipc.new_stream(opened, table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
    else:
        file.write_bytes(gzip.compress(jsonl(rows)) if file.suffix == ".gz" else jsonl(rows))
    return file


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "arrow"])
@pytest.mark.parametrize("form", ["file", "folder", "zip"])
def test_rows_are_documents_in_every_form(ending, form, tmp_path):
    place = write_rows(tmp_path / "rows" / f"all.{ending}")
    write_stories(tmp_path / "rows", {"README.md": "no row", ".hidden.jsonl": "no JSON"})
    if form == "folder":
        place = tmp_path / "rows"
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "rows.zip", "w") as opened:
            opened.write(place, f"rows/{place.name}")
        place = tmp_path / "rows.zip"
    found = documents_of(open_texts(place, "refuse", (), "text"))
    assert all(found.values())  # each row by its own name: some in every split
    everything = {name: text for part in found.values() for name, text in part.items()}
    assert everything == {f"all.{ending}/{number}": text for number, text in enumerate(TEXTS)}


def test_files_named_after_splits_are_splits(tmp_path):
    names = {"train-00000-of-00002": 0, "train-00001-of-00002": 1, "validation-00000-of-00001": 2, "test": 3}
    for name, number in names.items():
        write_rows(tmp_path / "hub" / f"{name}.parquet", ROWS[number : number + 1])
    found = documents_of(Tables(tmp_path / "hub", "text"))
    assert [list(part.values()) for part in found.values()] == [TEXTS[:2], [TEXTS[2]], [TEXTS[3]]]
    write_rows(tmp_path / "hub" / "more.parquet")
    assert len(documents_of(Tables(tmp_path / "hub", "text"))["validation"]) > 1  # now each row by its own name


def test_folders_of_a_saved_data_set_are_splits_and_its_caches_are_left_alone(tmp_path):
    for number, split in enumerate(SPLIT_NUMBER):
        write_rows(tmp_path / "saved" / split / "data-00000-of-00001.arrow", ROWS[number : number + 1])
        write_stories(tmp_path / "saved" / split, {"state.json": "{}", "dataset_info.json": "{}"})
    write_rows(tmp_path / "saved" / "train" / "cache-1b2c.arrow")
    found = documents_of(Tables(tmp_path / "saved", "text"))
    assert [list(part.values()) for part in found.values()] == [[text] for text in TEXTS[:3]]


def test_files_of_rows_are_split_by_lists(tmp_path):
    for number, name in enumerate("abc"):
        write_rows(tmp_path / "rows" / f"{name}.jsonl", ROWS[number : number + 1])
    (tmp_path / "list").write_text("b.jsonl\n")
    found = documents_of(Tables(tmp_path / "rows", "text", lists=(("validation", tmp_path / "list"),)))
    assert found == {
        "train": {"a.jsonl/0": TEXTS[0], "c.jsonl/0": TEXTS[2]},
        "validation": {"b.jsonl/0": TEXTS[1]},
        "test": {},
    }


def numbers(file: Path) -> None:
    write_rows(file, [{"id": 1, "text": 3}])


FAULTS = {
    "no column": (
        "a.jsonl",
        b'{"body": "x", "id": 1}\n',
        r"column: a.jsonl line 1 has no column 'text'; name one that it has: 'body',",
    ),
    "no JSON": ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"path: a.jsonl line 2 is not JSON \(.*\); mend or remove it"),
    "too deep": ("a.jsonl", b"[" * 100_000, r"path: a.jsonl line 1 is not JSON"),
    "no object": ("a.jsonl", b"[1]\n", r"path: a.jsonl line 1 is not a JSON object; give one object per line"),
    "no text": ("a.jsonl", b'{"text": 3}', r"column: a.jsonl line 1 holds int, no text; name a column of strings"),
    "half a pair": (
        "a.jsonl",
        rb'{"text": "\ud83d"}',
        r"path: a.jsonl line 1 holds half of a surrogate pair; mend it, or read",
    ),
    "no gzip": ("a.jsonl.gz", b'{"text": "x"}', r"path: a.jsonl.gz cannot be read \(Not a gzipped file"),
    "half a gzip": ("a.jsonl.gz", gzip.compress(jsonl(ROWS))[:60], r"path: a.jsonl.gz cannot be read \(Compressed file ended"),
    "no Parquet": ("a.parquet", b"PAR1 and nothing else", r"path: a.parquet cannot be read \(.+\); mend or remove it"),
    "no Arrow": ("a.arrow", b"not an arrow stream", r"path: a.arrow cannot be read \(.+\); mend or remove it"),
    "numbers": ("a.parquet", numbers, r"column: a.parquet has int64 in 'text', no text; name a column of strings"),
    "no such file": ("a.txt", b"x", r"path: .*rows has no file that ends in .jsonl, .*; leave --column out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_cannot_be_read_are_told_in_one_line(fault, data, tmp_path, capsys):
    name, made, said = FAULTS[fault]
    if callable(made):
        made(tmp_path / "rows" / name)
    else:
        write_stories(tmp_path / "rows", {name: made})
    with pytest.raises(ConfigError, match=f"^{said}") as error:
        documents_of(Tables(tmp_path / "rows", "text"))
    assert "\n" not in str(error.value)


def test_rows_of_no_text_are_empty_and_half_a_pair_is_replaced_when_told(tmp_path):
    write_stories(tmp_path / "rows", {"train.jsonl": b'\xef\xbb\xbf{"text": null}\n\n{"text": "\\ud83d!"}\n'})
    assert documents_of(Tables(tmp_path / "rows", "text", "replace"))["train"] == {
        "train.jsonl/0": "",
        "train.jsonl/1": "\ufffd!",
    }


def test_a_line_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"^path: a.jsonl has a line of more than 67,108,864 characters; "):
        list(lines(iter(["x" * (LARGEST_LINE // 4)] * 5), "a.jsonl", "path"))
    assert list(lines(iter(["a\nb", "c\n", "\n"]), "", "path")) == ["a", "bc", "", ""]


def test_rows_need_a_column_and_other_corpora_have_none(data, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl")
    said = f"column: {rows} holds rows (rows.jsonl); name the column of the text, such as --column text"
    assert told(capsys, ["corpus", "prepare", "text_folder", "--path", str(rows)], 2) == said
    assert told(capsys, ["corpus", "prepare", "metamath", "--path", str(rows), "--column", "text"], 2) == (
        "column: metamath has no rows; leave it out"
    )


def test_a_folder_of_text_is_read_as_before_beside_rows_and_packed_files_are_text(tmp_path):
    folder = write_stories(tmp_path / "texts", {"a.txt": "1", "b.jsonl": "{}", "c.txt.gz": gzip.compress(b"2"), "d.md": "3"})
    texts = open_texts(folder, "refuse", ())
    assert isinstance(texts, TextFiles)
    assert sorted(text for part in documents_of(texts).values() for text in part.values()) == ["1", "2", "3"]


@pytest.mark.parametrize("size", [1, 2, 19, 500, 4096 * 20 - 1, 4096 * 45, 1_000_000])
def test_one_file_is_cut_into_rows_that_join_to_it(size, tmp_path):
    """With characters of one to four bytes across the edges; in order: training, validation, test."""
    random = np.random.default_rng(size)
    text = "".join(random.choice(list("ab\né\u2581😀"), size))[:size]
    (tmp_path / "enwik8").write_text(text)
    found = documents_of(CutFile(tmp_path / "enwik8"))
    assert "".join(row for part in found.values() for row in part.values()) == text
    total = len(text.encode())
    count = number_of_rows(total)
    lengths = [len(row.encode()) for part in found.values() for row in part.values()]
    assert max(lengths) <= -(-total // count) + 3
    if size >= 500:
        assert [len(part) for part in found.values()] == [count - count // 10, count // 20, count // 20]


def test_enwik8_has_its_usual_splits():
    """A hundred million bytes: 90, 5 and 5 million, by arithmetic on blocks that are not kept."""
    block, sizes = "x" * 1_000_000, [0] * 100
    for row, text in cut((block for _ in range(100)), 100_000_000, number_of_rows(100_000_000)):
        sizes[row] += len(text)
    assert sizes == [1_000_000] * 100


@pytest.mark.parametrize("form", ["enwik8", "enwik8.txt", "enwik8.gz", "enwik8.txt.gz", "enwik8.zip"])
def test_a_large_file_is_prepared_packed_or_not(form, data, tmp_path):
    text = "<page> some words </page>\n" * 20_000
    place = tmp_path / form
    if form.endswith(".zip"):
        with zipfile.ZipFile(place, "w") as opened:
            opened.writestr("enwik8", text)
    else:
        place.write_bytes(gzip.compress(text.encode()) if form.endswith(".gz") else text.encode())
    prepared, _ = prepare("text_folder", TokenizerSettings(), path=place, jobs=1)
    assert prepared.folder.name == "enwik8-bytes"
    counts = {split: (counts.documents, counts.tokens) for split, counts in prepared.manifest.splits.items()}
    assert counts == {"train": (90, 468_000), "validation": (5, 26_000), "test": (5, 26_000)}


def test_lists_are_refused_for_a_file_that_is_cut(data, tmp_path, capsys):
    write_stories(tmp_path, {"enwik8": "text " * 5000, "list": "0"})
    arguments = ["corpus", "prepare", "text_folder", "--path", str(tmp_path / "enwik8"), "--test", str(tmp_path / "list")]
    assert told(capsys, arguments, 2).startswith(
        "splits: text_folder is split by the names of its documents, or one file by share"
    )


def test_a_column_is_prepared_from_the_command_line(data, tmp_path, capsys):
    rows = write_rows(tmp_path / "news.jsonl.gz")
    main(["corpus", "prepare", "text_folder", "--path", str(rows), "--column", "text", "--jobs", "1"])
    assert "news-bytes" in capsys.readouterr().out
    again, is_new = prepare("text_folder", TokenizerSettings(), path=rows, jobs=1, column="text")
    assert not is_new
    assert sum(counts.documents + counts.empty for counts in again.manifest.splits.values()) == len(TEXTS)
    assert prepare("text_folder", TokenizerSettings(), path=rows, jobs=1, column="text", errors="replace")[1]


def test_every_ending_stands_in_the_documentation():
    shown = (Path(__file__).parents[1] / "docs" / "corpora.md").read_text()
    for suffix, reader in READERS.items():
        assert f"| `{suffix}` | {reader.about} |" in shown
