"""A folder of texts is read once before it is prepared: all files that cannot be read in one error, replacements counted."""

import pytest

from infini_jax.cli.corpus import few_held_out
from infini_jax.data.prepared import Counts, Manifest, Prepared
from infini_jax.data.texts import TextFiles
from infini_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.txt").write_text("all is well \ufffd")  # a replacement character that the author typed
    (tmp_path / "one.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "two.txt").write_bytes(b"\xff\xfa or \xff")
    return tmp_path


def test_all_files_that_cannot_be_read_are_told_in_one_error(folder):
    said = (
        r"^path: 2 files cannot be read: one.txt is not UTF-8 at byte 3 \(0xe9\), two.txt is not UTF-8 at byte 0 \(0xff\); "
        "mend the files, "
    )
    with pytest.raises(ConfigError, match=said):
        TextFiles(folder).checked()
    (folder / "two.txt").unlink()
    with pytest.raises(ConfigError, match=r"^path: one.txt is not UTF-8 at byte 3"):
        TextFiles(folder).checked()


def test_what_was_replaced_is_counted_and_what_was_there_is_not(folder):
    (line,) = TextFiles(folder, errors="replace").checked()
    assert line == "replaced by U+FFFD: 4 invalid sequences in 2 files: one.txt (1), two.txt (3)"
    assert TextFiles(folder, errors="latin-1").checked() == []


@pytest.mark.parametrize(("documents", "warned"), [(0, True), (1, True), (7, True), (8, False)])
def test_few_held_out_documents_are_warned_of_with_numbers(tmp_path, documents, warned):
    counts = Counts(documents, 0, 1200, 300, 1200, 400, "", "")
    found = list(few_held_out(Prepared(tmp_path, Manifest("text_folder", "", "bytes", "bytes", 256, {"validation": counts}))))
    assert bool(found) == warned
    assert all(f"{documents} document" in line and "1,200 tokens" in line for line in found)
