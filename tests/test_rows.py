"""Rows of whole documents: nothing lost, nothing twice, the same for any number of processes."""

import importlib.util
import itertools
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.data.batch import Rows
from infini_jax.data.documents import DocumentRows, Documents, deal
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.serve import batches

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=20)


def numbered(lengths: list[int]) -> Documents:
    """Documents in which every token is another number."""
    return Documents(np.arange(sum(lengths), dtype="<u2"), np.cumsum([0, *lengths], dtype=np.int64), "numbered")


def streams(source: DocumentRows, row: int, steps: int) -> tuple[np.ndarray, ...]:
    """Fields of one row over the first steps."""
    parts = [source.batch(step) for step in range(steps)]
    return tuple(np.concatenate([field[row] for field in fields]) for fields in zip(*parts, strict=True))


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, rows=st.integers(1, 5), tokens=st.integers(1, 70), seed=st.integers(0, 9))
def test_each_epoch_of_a_row_is_its_documents_once_whole_and_in_order(lengths, rows, tokens, seed):
    rows = min(rows, len(lengths))
    documents = numbered(lengths)
    source = DocumentRows(documents, Rows(rows, tokens, seed))
    bounds = [(int(start), int(start) + length) for start, length in zip(documents.starts, lengths, strict=False)]
    seen = []
    for row in range(rows):
        first_text = streams(source, row, 1)[0]
        mine = [bound for bound in bounds if bound[0] in documents.starts[source.dealt[row]]]
        total = sum(end - start for start, end in mine)
        text, targets, weights, ids = streams(source, row, -(-3 * total // tokens))
        np.testing.assert_array_equal(first_text, text[:tokens])
        position = 0
        for _ in range(3):
            left = dict(mine)
            while left:  # the next document is known by its first token
                start = int(text[position])
                end = left.pop(start)
                whole = slice(position, position + end - start)
                np.testing.assert_array_equal(text[whole], np.arange(start, end))
                np.testing.assert_array_equal(targets[whole][:-1], np.arange(start + 1, end))
                np.testing.assert_array_equal(weights[whole], [1.0] * (end - start - 1) + [0.0])
                assert len(set(ids[whole])) == 1
                assert position == 0 or ids[position] != ids[position - 1]
                position = whole.stop
        seen += mine
    assert sorted(seen) == bounds  # no document is in two rows and none is left out


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, tokens=st.integers(1, 40), step=st.integers(0, 9), data=st.data())
def test_processes_read_their_rows_of_the_same_batch(lengths, tokens, step, data):
    rows = data.draw(st.integers(1, len(lengths)))
    whole = DocumentRows(numbered(lengths), Rows(rows, tokens, 3)).batch(step)
    processes = data.draw(st.integers(1, rows))
    edges = [rows * number // processes for number in range(processes + 1)]
    parts = [
        DocumentRows(numbered(lengths), Rows(rows, tokens, 3)).rows(step, first, end - first)
        for first, end in itertools.pairwise(edges)
    ]
    for field, mine in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(field, np.concatenate(mine))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, data=st.data())
def test_rows_get_about_the_same_number_of_tokens(lengths, data):
    rows = data.draw(st.integers(1, len(lengths)))
    dealt = deal(np.array(lengths), rows)
    totals = [sum(lengths[document] for document in mine) for mine in dealt]
    assert all(len(mine) for mine in dealt)
    assert max(totals) - min(totals) <= max(lengths)  # longest first: the last dealt is the whole difference at most
    assert sorted(np.concatenate(dealt)) == list(range(len(lengths)))


def test_the_order_changes_with_the_epoch_and_the_seed():
    lengths = [7] * 30
    orders = set()
    for seed in range(3):
        text = streams(DocumentRows(numbered(lengths), Rows(1, 7, seed)), 0, 60)[0]
        orders |= {tuple(text[:210]), tuple(text[210:])}
    assert len(orders) == 6


def test_a_row_asks_for_no_token_of_another_row():
    class Watched(np.ndarray):
        def __getitem__(self, index):
            asked.append(index)
            return np.asarray(self)[index]

    asked, documents = [], numbered([5, 9, 4, 8, 7, 6])
    source = DocumentRows(Documents(documents.text.view(Watched), documents.starts, ""), Rows(3, 11, 0))
    source.rows(2, 1, 1)
    allowed = np.concatenate([np.arange(documents.starts[d], documents.starts[d + 1]) for d in source.dealt[1]])
    assert asked
    assert set(np.concatenate(asked)) <= set(allowed)


def test_document_ids_stay_in_range_and_change_at_edges_after_many_epochs():
    source = DocumentRows(numbered([3, 2]), Rows(1, 5, 0))
    far = 10**9 + 7  # epochs: two ids each are more than int32 holds
    for step in (far, 2**31 // 2 - 1, 2**31 // 2):
        ids = source.batch(step).documents[0]
        assert ids.min() >= 0
        assert np.flatnonzero(np.diff(ids)).size == 1


def test_a_corpus_larger_than_memory_is_read_in_place(tmp_path):
    """Six gigabytes of tokens in a sparse file: a batch takes megabytes."""
    documents, length = 3000, 1 << 20
    with (tmp_path / "tokens").open("wb") as file:
        file.truncate(2 * documents * length)
    text = np.memmap(tmp_path / "tokens", "<u2", "r")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = DocumentRows(Documents(text, np.arange(documents + 1) * length, "sparse"), Rows(8, 4096, 0))
    for step in (0, 1, 10**6):
        assert source.batch(step).tokens.shape == (8, 4096)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("served_by", ["grain", "nothing"])
def test_batches_are_served_in_order_and_are_those_of_the_source(served_by, monkeypatch):
    if served_by == "nothing":
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "grain" else found(name))
    else:
        pytest.importorskip("grain")
    for source in (DocumentRows(numbered([5, 9, 4, 8, 7, 6]), Rows(3, 11, 0)), MqarConfig(4, 16).open(Rows(3, 20, 0))):
        for step, batch in zip(range(3, 20), batches(source, range(3, 20)), strict=True):
            np.testing.assert_array_equal(batch.tokens, source.batch(step).tokens)
        for step, batch in zip(range(5), batches(source, range(5), first=1, count=2), strict=True):
            for ours, whole in zip(batch, source.batch(step), strict=True):
                np.testing.assert_array_equal(ours, whole[1:])


def test_an_error_of_a_source_reaches_the_reader():
    class Broken:
        def batch(self, step):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(iter(batches(Broken(), range(3))))
