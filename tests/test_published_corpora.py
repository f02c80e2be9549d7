"""Corpora in their published forms: WikiText-103, Debian packages of proof libraries, folders of repositories."""

import io
import math
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infini_jax.data.builders import BUILDERS
from infini_jax.data.corpora import CORPORA, Own, own_texts
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.raw_files import open_files
from infini_jax.data.texts import Repositories
from infini_jax.data.wikitext import WikiText, detokenized
from infini_jax.errors import ConfigError
from tests.support.corpora import write_stories
from tests.test_corpora import everything

TRAIN = """ 
 = A Boat = 
 
 The boat 's sails , 1 @,@ 200 of them , are 5 @.@ 5 m ( 18 ft ) high . 
 
 = = Later years = = 
 
 " It sank , " he said ; the sailors ' boats didn 't . 
 = b = 
 
 = A Train = 
 
 A well @-@ known train : it <unk> . 
"""
ARTICLES = [
    "= A Boat =\n\nThe boat's sails, 1,200 of them, are 5.5 m (18 ft) high.\n\n== Later years ==\n\n"
    "\"It sank,\" he said; the sailors' boats didn 't.\n= b =\n",
    "= A Train =\n\nA well-known train: it <unk>.\n",
]


def write_wikitext(folder: Path, kind: str) -> Path:
    """WikiText-103 in a published form: the authors' files, spaced or raw, or the Parquet files of Hugging Face."""
    folder.mkdir()
    for split, theirs in {"train": TRAIN, "validation": TRAIN.replace("Boat", "Ship"), "test": TRAIN[:18]}.items():
        if kind == "parquet":
            rows = [{"text": "" if not line.strip() else f"{line}\n"} for line in theirs.splitlines()]
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
        else:
            (folder / f"wiki.{split.replace('validation', 'valid')}.{kind}").write_text(theirs)
    return folder


@pytest.mark.parametrize("kind", ["tokens", "raw", "parquet"])
def test_wikitext_comes_in_articles_of_running_text(kind, tmp_path):
    found = everything(WikiText(write_wikitext(tmp_path / "wikitext-103", kind)))
    texts = [list(part.values()) for part in found.values()]
    assert texts == [ARTICLES, [text.replace("Boat", "Ship") for text in ARTICLES], ["= A Boat =\n"]]


def test_word_perplexity_of_wikitext_is_per_word_of_the_spaced_text_with_line_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    folder = write_wikitext(tmp_path / "wikitext-103", "raw")
    prepared, _ = prepare("wikitext103", TokenizerSettings(), path=folder, jobs=1)
    counts = prepared.counts("train")
    words = len(TRAIN.split()) + TRAIN.count("\n")
    assert counts.words == words > len("".join(ARTICLES).split())
    assert counts.bytes == counts.tokens == len("".join(ARTICLES).encode())
    assert counts.word_perplexity(0.5) == pytest.approx(math.exp(0.5 * counts.tokens / words))


@pytest.mark.parametrize(
    ("spaced", "running"),
    [
        ("a ? , b", "a?, b"),
        ("the boys ' hats ", "the boys' hats "),
        ("[ 1 ] { x } ' why '", "[1] {x} 'why'"),
        ("= = = Deep = = = ", "=== Deep === "),
        ("20 ° C", "20°C"),
        ("N N N", "N 1 N"),
        ('" open', '" open'),
    ],
)
def test_the_rules_of_detokenization(spaced, running):
    assert detokenized(spaced) == running


def write_package(folder: Path, file: Path, packed: str = "xz") -> Path:
    """The files of a folder as a Debian package: control and data archives, the first of an odd size."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode=f"w:{packed}") as tar:
        tar.add(folder, "./usr/lib/ocaml/coq/theories")
    entries = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{packed}": inner.getvalue()}
    raw = b"!<arch>\n"
    for name, content in entries.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        raw += head + content + b"\n" * (len(content) % 2)
    file.write_bytes(raw)
    return file


PROOFS = {
    "Init/Logic.v": "Theorem a : True.\n",
    "Arith/Plus.v": "Lemma b : 1 = 1.\n",
    "Arith/Plus.vo": "\0",
    "x.v": "(* caf\xe9 *)",
}


@pytest.mark.parametrize("packed", ["xz", "gz"])
def test_a_debian_package_is_the_folder_that_it_unpacks_to(packed, tmp_path):
    folder = write_stories(tmp_path / "theories", {name: text.encode("latin-1") for name, text in PROOFS.items()})
    package = write_package(folder, tmp_path / "libcoq-stdlib_8.16_amd64.deb", packed)
    found = everything(own_texts("coq_stdlib", package))
    assert found == everything(own_texts("coq_stdlib", folder))
    assert {name: text for part in found.values() for name, text in part.items()} == {
        name: text for name, text in PROOFS.items() if name.endswith(".v")
    }


@pytest.mark.parametrize(
    "raw", [b"!<arch>\n", b"!<arch>\n" + b"x" * 70, b"!<arch>\ndata.tar.xz" + b" " * 37 + b"999       `\nx"]
)
def test_a_damaged_package_is_refused_in_one_line(raw, tmp_path):
    (tmp_path / "a.deb").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"^path: .*a.deb is not a complete archive") as error:
        open_files(tmp_path / "a.deb").names()
    assert "\n" not in str(error.value)


def test_a_repository_is_a_document(tmp_path):
    files = {"one/src/b.py": "b\n", "one/a.c": "a\n", "one/README.md": "no code", "two/x.go": "x\n", "three/deep/y.ts": "y\n"}
    folder = write_stories(tmp_path / "code", files)
    whole = {name: text for part in everything(own_texts("github", folder)).values() for name, text in part.items()}
    assert whole == {"one": "a\nb\n", "two": "x\n", "three": "y\n"}
    (tmp_path / "list").write_text("two\n")
    listed = everything(Repositories(folder, (".py", ".go", ".c", ".ts"), lists=(("test", tmp_path / "list"),)))
    assert list(listed["test"]) == ["two"]
    folders = write_stories(tmp_path / "split", {f"{split}/r/a.py": split for split in ("train", "test")})
    assert everything(own_texts("github", folders))["test"] == {"test/r": "test"}


def test_every_corpus_that_is_read_here_has_a_builder_of_its_name():
    assert set(BUILDERS) == {name for name, corpus in CORPORA.items() if isinstance(corpus, Own)}
