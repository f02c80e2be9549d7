"""`corpus remove` and the sizes in `corpus list`: only a prepared corpus goes, and none that a process uses."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.cli.main import main
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.prepared import Prepared
from infini_jax.data.removal import bytes_on_disk, remove
from infini_jax.errors import ConfigError
from tests.support.commands import held_by_another, told
from tests.support.corpora import write_stories


@pytest.fixture
def made(tmp_path, monkeypatch) -> Prepared:
    """A prepared corpus called tales-bytes, and one called others-bytes."""
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    for name in ("others", "tales"):
        prepared, _ = prepare("text_folder", TokenizerSettings(), path=write_stories(tmp_path / name), jobs=1)
    return prepared


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith(".lock"))


def test_a_corpus_is_removed_and_its_bytes_are_told(made, capsys):
    size = sum(file.stat().st_size for file in made.folder.iterdir())
    assert bytes_on_disk(made.folder) == size
    main(["corpus", "remove", "tales-bytes", "--yes"])
    assert capsys.readouterr().out.startswith("removed tales-bytes: ")
    assert names(made.folder.parent) == ["others-bytes"]
    said = "data.name: no prepared corpus 'tales-bytes' in $INFINI_JAX_DATA or the cache; "
    assert told(capsys, ["corpus", "remove", "tales-bytes", "--yes"], 2).startswith(said)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("answer", "is_kept"), [("y\n", False), ("YES\n", False), ("n\n", True), ("\n", True), ("yo\n", True)]
)
def test_it_asks_where_it_can_be_answered(answer, is_kept, made, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    main(["corpus", "remove", "tales-bytes"])
    assert capsys.readouterr().out.startswith(f"remove {made.folder} (2 KiB)? [y/N] ")
    assert made.folder.exists() == is_kept


def test_nobody_to_ask_removes_nothing(made, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    said = "yes: 'tales-bytes' is not removed without confirmation; add --yes"
    assert told(capsys, ["corpus", "remove", "tales-bytes"], 2) == said
    assert made.folder.exists()


def test_one_that_is_read_is_refused_until_the_reader_ends(made):
    documents = made.documents("train")
    with pytest.raises(ConfigError, match=r"^name: 'tales-bytes' is being read by a process; wait until it ends$"):
        remove("tales-bytes")
    assert Prepared.read(made.folder) == made
    del documents
    assert remove("tales-bytes") > 0


def test_one_that_another_process_reads_is_refused(made):
    program = "import sys\nfrom infini_jax.data.prepared import Prepared\n"
    program += "held = Prepared.open('tales-bytes').documents('train')\nprint('reads', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        with pytest.raises(ConfigError, match="is being read by a process"):
            remove("tales-bytes")
        reader.communicate()
    assert remove("tales-bytes") > 0


def test_one_that_is_being_prepared_is_refused(made):
    lock = made.folder.with_name(f".{made.folder.name}.lock")
    with held_by_another(lock), pytest.raises(ConfigError, match="'tales-bytes' is being written by process"):
        remove("tales-bytes")
    assert made.folder.exists()


@pytest.mark.parametrize("name", ["..", ".", "../tfds", "", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name, made, capsys):
    with pytest.raises(ConfigError, match=r"^data.name: "):
        remove(name)
    assert names(made.folder.parent) == ["others-bytes", "tales-bytes"]


def test_what_is_no_prepared_corpus_is_left_alone(made, tmp_path):
    folder = made.folder.parent
    write_stories(folder, {"thesis/chapter.txt": "years of work", "empty/train.tokens": "", "tales-bytes/notes.txt": "mine"})
    (folder / "link").symlink_to(folder / "others-bytes")
    for name, said in {
        "thesis": "'thesis' is not a prepared corpus: it holds 'chapter.txt'; look at it, and remove it by hand",
        "empty": "'empty' is not a prepared corpus: it has no manifest.json; look at it",
        "tales-bytes": "'tales-bytes' is not a prepared corpus: it holds 'notes.txt'",
        "link": "'link' is a link to ",
    }.items():
        with pytest.raises(ConfigError, match=f"^name: {said}"):
            remove(name)
    assert names(folder) == ["empty", "link", "others-bytes", "tales-bytes", "thesis"]


def test_a_damaged_corpus_is_removed(made):
    (made.folder / "train.tokens").write_bytes(b"")
    (made.folder / "manifest.json").write_text("{")
    assert remove("tales-bytes") > 0
    assert names(made.folder.parent) == ["others-bytes"]


def test_the_list_shows_sizes_of_whole_and_damaged_ones(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (made.folder.with_name("others-bytes") / "train.tokens").write_bytes(b"123")
    main(["corpus", "list", "--json"])
    shown = {one["name"]: one for one in json.loads(capsys.readouterr().out)["prepared"]}
    assert shown["tales-bytes"]["bytes_on_disk"] == bytes_on_disk(made.folder)
    assert "is damaged" in shown["others-bytes"]["trouble"]
    assert shown["others-bytes"]["bytes_on_disk"] == bytes_on_disk(made.folder.with_name("others-bytes"))
    main(["corpus", "list"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "tales-bytes" in line]
    splits = made.manifest.splits.values()
    for number in (sum(one.documents for one in splits), sum(one.tokens for one in splits)):
        assert f" {number:,} " in row
    assert "KiB" in row
