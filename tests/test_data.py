"""Sources of batches: pure functions of the step that lose no token."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.data.batch import Rows
from infini_jax.data.documents import DocumentRows, Documents
from infini_jax.data.mqar import FILLER, MqarConfig
from infini_jax.data.stdlib import StdlibConfig, split_of, stdlib_documents
from infini_jax.errors import ConfigError

MQAR = MqarConfig(pairs=5, symbols=32, repeats=3)
ROWS = Rows(batch=4, tokens=40, seed=1)


@pytest.mark.parametrize("config", [MQAR, StdlibConfig()], ids=["mqar", "stdlib"])
def test_batches_depend_on_nothing_but_the_step_and_the_seed(config):
    first, again = config.open(ROWS), config.open(ROWS)
    again.batch(0)
    for ours, theirs in zip(first.batch(3), again.batch(3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first.batch(3).tokens, first.batch(4).tokens)
    assert not np.array_equal(first.batch(3).tokens, config.open(dataclasses.replace(ROWS, seed=2)).batch(3).tokens)
    assert not np.array_equal(
        first.batch(3).tokens, config.open(dataclasses.replace(ROWS, split="validation")).batch(3).tokens
    )


def test_mqar_asks_every_key_and_an_oracle_that_looks_it_up_is_always_right():
    batch = MQAR.open(ROWS).batch(7)
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
        keys, values = tokens[0:10:2], tokens[1:10:2]
        assert len(set(keys)) == 5
        assert all(FILLER < key < 16 for key in keys)
        assert all(16 <= value < 32 for value in values)
        asked = weights == 1
        np.testing.assert_array_equal(asked, np.arange(40) >= 25)
        table = dict(zip(keys, values, strict=True))
        assert [table[key] for key in tokens[asked]] == list(targets[asked])
        assert sorted(tokens[asked]) == sorted([*keys] * 3)
        assert set(tokens[10:25]) == {FILLER}


def test_mqar_rows_are_documents_of_their_own():
    documents = np.concatenate([MQAR.open(ROWS).batch(step).documents for step in range(3)])
    assert all(len(set(row)) == 1 for row in documents)
    assert len({row[0] for row in documents}) == 12


@pytest.mark.parametrize(
    ("config", "tokens", "field"),
    [
        (MqarConfig(pairs=16, symbols=32), 100, "data.pairs"),
        (MqarConfig(pairs=0), 100, "data.pairs"),
        (MqarConfig(pairs=10, symbols=64), 29, "train.sequence"),
    ],
)
def test_mqar_that_cannot_be_made_is_refused(config, tokens, field):
    with pytest.raises(ConfigError) as error:
        config.check(tokens)
    assert error.value.field == field


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    rows=st.integers(1, 4),
    tokens=st.integers(1, 33),
    seed=st.integers(0, 3),
)
def test_every_token_of_an_epoch_appears_once_in_order_within_one_row(lengths, rows, tokens, seed):
    rows = min(rows, len(lengths))
    texts, begin = [], 0
    for number, length in enumerate(lengths):  # every document has bytes of its own where there is room
        texts.append(((begin + np.arange(length)) % 251 + number % 5).astype(np.uint8).tobytes())
        begin += length
    documents = Documents.join(texts)
    source = DocumentRows(documents, Rows(rows, tokens, seed))
    for row, mine in enumerate(source.dealt):
        total = sum(lengths[document] for document in mine)
        steps = -(-2 * total // tokens)  # two epochs
        batches = [source.batch(step) for step in range(steps)]
        text, targets, weights, ids = (
            np.concatenate([getattr(batch, field)[row] for batch in batches]) for field in batches[0]._fields
        )
        for epoch in range(2):
            part = slice(epoch * total, (epoch + 1) * total)
            edges = np.flatnonzero(np.diff(ids[part])) + 1
            found = [piece.astype(np.uint8).tobytes() for piece in np.split(text[part], edges)]
            assert sorted(found) == sorted(texts[document] for document in mine)
            for piece, target, weight in zip(
                *(np.split(array[part], edges) for array in (text, targets, weights)), strict=True
            ):
                np.testing.assert_array_equal(target[:-1], piece[1:])
                np.testing.assert_array_equal(weight, [1.0] * (len(piece) - 1) + [0.0])
    dealt = np.concatenate(source.dealt)
    assert sorted(dealt) == list(range(len(lengths)))


def test_an_empty_corpus_and_more_rows_than_documents_are_refused():
    with pytest.raises(ConfigError, match=r"^data: the corpus is empty"):
        Documents.join([b"", b""])
    with pytest.raises(ConfigError, match=r"^train.batch: 3 rows need as many documents"):
        DocumentRows(Documents.join([b"a", b"b"]), Rows(3, 8, 0))


def test_standard_library_splits_by_package_and_reads_only_source(tmp_path):
    for name in ("aa/__init__.py", "aa/x.py", "bb.py", "site-packages/no.py", "cc/__init__.py", "dd/empty.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if "empty" in name else f"# {name}\n")
    found = []
    for split in ("train", "validation", "test"):
        if any(split_of(name) == split for name in ("aa", "bb", "cc")):
            documents = stdlib_documents(split, str(tmp_path))
            found += [bytes(documents.text[a:b]) for a, b in zip(documents.starts, documents.starts[1:], strict=False)]
    assert sorted(found) == [b"# aa/__init__.py\n# aa/x.py\n", b"# bb.py\n", b"# cc/__init__.py\n"]


def test_the_running_library_is_a_corpus_of_megabytes_in_every_split():
    sizes = {split: len(stdlib_documents(split).text) for split in ("train", "validation", "test")}
    assert sizes["train"] > 5e6
    assert min(sizes.values()) > 1e5


def test_a_folder_without_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no Python source"):
        stdlib_documents("train", str(tmp_path))
