"""Checkpoints: what is saved comes back bit for bit; damaged or another run's is refused; a full disk loses nothing."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import RunConfig
from infini_jax.errors import CheckpointError, ConfigError
from infini_jax.records.folder import CHECKPOINTS_FOLDER
from infini_jax.training import checkpoint
from infini_jax.training.checkpoint import Checkpoints, FinishedCheckpoints, Progress, Saving, differences
from infini_jax.training.notes import READ, checked_notes

RUN = RunConfig()
STATE = {"params": {"kernel": np.arange(20_000, dtype=np.float32).reshape(100, 200)}, "step": np.int32(0)}
CARRY = {"memory": np.linspace(0, 1, 999, dtype=np.float32), "open": np.array([3, 4], np.int32)}


def filled(folder, steps=(1, 2, 3), run=RUN):
    """Checkpoints of these steps, each with its own numbers."""
    with Checkpoints(run, folder) as checkpoints:
        for step in steps:
            checkpoints.save(Progress(step, 10.0 * step, 1.0, {"loss": 2.0}), *numbered(step))
    return folder / CHECKPOINTS_FOLDER


def numbered(step):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) + np.asarray(step, leaf.dtype), (STATE, CARRY))


def shapes():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), (STATE, CARRY))


def restored(folder, run=RUN, step=None):
    with Checkpoints(run, folder) as checkpoints:
        return checkpoints.restore(*shapes(), step)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_newest_comes_back_bit_for_bit_and_older_ones_are_deleted(tmp_path):
    filled(tmp_path)
    progress, state, carry = restored(tmp_path)
    assert progress == Progress(3, 30.0, 1.0, {"loss": 2.0})
    assert_same((state, carry), numbered(3))
    assert_same(restored(tmp_path, step=2)[1:], numbered(2))
    with pytest.raises(ConfigError, match=r"^checkpoint: there is no checkpoint of step 1; choose one of 2, 3$"):
        restored(tmp_path, step=1)


def test_steps_kept_for_good_stay(tmp_path):
    with Checkpoints(RUN, tmp_path, Saving(keep_every=2)) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(Progress(step), *numbered(step))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5, 6]


def test_a_run_without_a_checkpoint_begins(tmp_path):
    assert restored(tmp_path) is None


def test_no_damage_is_read(tmp_path):
    """Every file of a checkpoint cut to half, and with a bit of its middle flipped: refused, or read without a difference."""
    folder, refusals = filled(tmp_path), set()
    for file in sorted(path for path in (folder / "3").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (whole[: len(whole) // 2], bytes(flipped)):
            file.write_bytes(damaged)
            try:
                assert_same(restored(tmp_path)[1:], numbered(3))
            except CheckpointError as error:
                refusals.add(str(error))
            file.write_bytes(whole)
    assert refusals == {f"checkpoint: {folder / '3'} is damaged or incomplete; resume from step 2 with --resume 2"}
    assert_same(restored(tmp_path)[1:], numbered(3))


def test_another_config_and_another_format_are_refused(tmp_path):
    folder = filled(tmp_path)
    other = dataclasses.replace(RUN, seed=5)
    with pytest.raises(CheckpointError, match=r"3 is of another config \(seed was 0, is 5\); give the run a new name"):
        restored(tmp_path, other)
    mend = "go on with the version that wrote it, or give the run a new name"
    for written, said in (
        (5, "newer than this version's 4; update infini_jax, or resume from step 2"),
        (1, f"older than this version's 2; {mend}$"),
    ):
        noted(folder).write_text(json.dumps({"format": written}))
        with pytest.raises(CheckpointError, match=rf"3 has format {written}, {said}"):
            restored(tmp_path)
    assert (folder / "3").exists()


def noted(folder, step=3):
    """The file of the notes of a checkpoint."""
    return folder / str(step) / "meta" / "metadata"


def refused(tmp_path) -> str:
    with pytest.raises(CheckpointError) as error:
        restored(tmp_path)
    return str(error.value)


@pytest.mark.parametrize("names", [("step", 3, 2), ("seconds", 30.0, 20.0), ("last", {"loss": 2.0}, {"loss": 3.0})])
def test_notes_that_were_altered_are_refused(tmp_path, names):
    """One flipped bit turns a digit into another: the run would go on from another step."""
    name, was, altered = names
    folder = filled(tmp_path)
    notes = json.loads(noted(folder).read_text())
    assert notes[name] == was
    noted(folder).write_text(json.dumps({**notes, name: altered}))
    assert refused(tmp_path) == f"checkpoint: {folder / '3'} is damaged or incomplete; resume from step 2 with --resume 2"


def test_a_checkpoint_in_the_folder_of_another_step_is_refused(tmp_path):
    folder = filled(tmp_path)
    (folder / "3").rename(folder / "4")
    assert refused(tmp_path) == f"checkpoint: {folder / '4'} is damaged or incomplete; resume from step 2 with --resume 2"


def test_a_state_of_another_step_than_its_notes_is_refused(tmp_path):
    with Checkpoints(RUN, tmp_path) as checkpoints:
        checkpoints.save(Progress(5), *numbered(4))
    assert "5 is damaged or incomplete" in refused(tmp_path)


def test_no_flipped_bit_of_the_notes_is_read_as_other_values(tmp_path):
    """One bit of every byte, by the function that checks them; some of these through the whole reading too."""
    file = noted(filled(tmp_path))
    whole, random = file.read_bytes(), np.random.default_rng(0)
    saved, same = checked_notes(json.loads(whole), 3), 0
    assert len(whole) > 1000
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        try:
            found = checked_notes(json.loads(bytes(flipped)), 3)
            assert found == saved or found["format"] not in READ  # of another format nothing is read
            same += 1
        except ValueError:
            pass
    assert same < len(whole) / 100  # such as 1e-3 and 1E-3
    with Checkpoints(RUN, tmp_path) as checkpoints:
        for place in random.integers(len(whole), size=40):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(random.integers(8))
            file.write_bytes(flipped)
            try:
                assert checkpoints.progress() == Progress(3, 30.0, 1.0, {"loss": 2.0})
            except CheckpointError:
                continue


def other_blocks(array):
    """The same numbers in another order: two halves of the array swapped."""
    return jnp.roll(array, array.shape[0] // 2, axis=0)


@pytest.mark.parametrize(("place", "name"), [(0, "kernel"), (1, "memory")])
def test_swapped_blocks_of_an_array_are_refused(tmp_path, place, name):
    """Notes of one checkpoint beside the arrays of another, whose words add up to the same."""
    folder = filled(tmp_path)
    notes = json.loads(noted(folder).read_text())
    shutil.rmtree(tmp_path)
    state, carry = numbered(3)
    group = (state["params"], carry)[place]
    group[name] = other_blocks(group[name])
    with Checkpoints(RUN, tmp_path) as checkpoints:
        checkpoints.save(Progress(3, 30.0, 1.0, {"loss": 2.0}), state, carry)
    restored(tmp_path)
    noted(folder).write_text(json.dumps(notes))
    assert "3 is damaged or incomplete" in refused(tmp_path)
    if place == 0:
        with FinishedCheckpoints(RUN, tmp_path) as checkpoints, pytest.raises(CheckpointError, match="3 is damaged"):
            checkpoints.restore_part("params", shapes()[0]["params"])


def word_sum(tree) -> int:
    """The checksum of format 2, written anew: all words added up."""
    return sum(int(np.asarray(leaf).view(np.uint32).sum(dtype=np.uint64)) for leaf in jax.tree.leaves(tree)) % 2**32


def in_format_2(folder, step=3):
    """The notes of a checkpoint as they were written before there were digests and a hash."""
    notes = json.loads(noted(folder, step).read_text())
    state, carry = numbered(step)
    names = ("package", "fingerprint", "config", "step", "seconds", "compile_seconds", "last")
    sums = {"checksum": word_sum((state, carry)), "parts": {"params": word_sum(state["params"])}}
    return {"format": 2, **{name: notes[name] for name in names}, **sums}


def test_checkpoints_of_format_2_are_read_and_checked_by_their_own_sum(tmp_path):
    folder = filled(tmp_path)
    old = in_format_2(folder)
    noted(folder).write_text(json.dumps(old))
    progress, *found = restored(tmp_path)
    assert progress == Progress(3, 30.0, 1.0, {"loss": 2.0})
    assert_same(tuple(found), numbered(3))
    with FinishedCheckpoints(RUN, tmp_path) as checkpoints:
        assert_same(checkpoints.restore_part("params", shapes()[0]["params"]), (3, numbered(3)[0]["params"]))
    for altered in ({"checksum": old["checksum"] ^ 1}, {"step": 2}):
        noted(folder).write_text(json.dumps({**old, **altered}))
        assert "3 is damaged or incomplete; resume from step 2" in refused(tmp_path)


def test_adafactor_of_format_2_does_not_go_on_and_is_evaluated(tmp_path):
    """Its moments were factored over the stacked layers."""
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, optimiser="adafactor"))
    folder = filled(tmp_path, run=run)
    noted(folder).write_text(json.dumps(in_format_2(folder)))
    with FinishedCheckpoints(run, tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="has Adafactor's moments of all layers at once"):
            checkpoints.restore(*shapes())
        assert_same(checkpoints.restore_part("params", shapes()[0]["params"]), (3, numbered(3)[0]["params"]))


@pytest.mark.parametrize("lost", [["hash"], ["hash", "arrays"], ["arrays"]])
@pytest.mark.parametrize("called", [2, 3])
def test_notes_that_lost_their_hash_are_not_read_as_older_ones(tmp_path, lost, called):
    folder = filled(tmp_path)
    notes = json.loads(noted(folder).read_text())
    for name in lost:
        notes[f"x{name}"] = notes.pop(name)
    noted(folder).write_text(json.dumps({**notes, "format": called}))
    assert "3 is damaged or incomplete" in refused(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / CHECKPOINTS_FOLDER).write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"^checkpoint: .*checkpoints cannot be written \(.*\); make room"):
        restored(tmp_path)


def test_a_full_disk_is_one_line_and_the_last_good_one_stays(tmp_path):
    """On a disk of one mebibyte, which takes one checkpoint and no second once it is filled up."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this process lacks")
    try:
        filled(tmp_path, steps=(1,))
        with contextlib.suppress(OSError), (tmp_path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(CheckpointError, match=r"could not be .*the last finished one is kept$"):
            filled(tmp_path, steps=(2,))
        assert_same(restored(tmp_path)[1:], numbered(1))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_differences_name_the_settings():
    old, new = {"a": 1, "b": {"c": [1], "d": "x"}}, {"a": 2, "b": {"c": [1], "d": "y", "e": None, "f": 0}}
    assert differences(old, new) == 'a was 1, is 2, b.d was "x", is "y", b.f was null, is 0'
    assert differences(json.loads(json.dumps(old)), old) == ""


@pytest.mark.parametrize(("field", "value"), [("keep", 1), ("every_minutes", -1.0), ("every_steps", -1), ("keep_every", -2)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"^saving.{field}: "):
        Saving(**{field: value})


def test_writes_that_failed_beside_the_first_of_a_save_are_not_told_again():
    """asyncio tells of them when they are collected, at a place nobody knows; what else it says stays."""

    def is_told(error: Exception) -> bool:
        said = "Task exception was never retrieved"
        return checkpoint.is_told_once(logging.LogRecord("asyncio", 40, "", 0, said, (), (type(error), error, None)))

    assert not is_told(OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    assert not is_told(ValueError(f"OUT_OF_RANGE: Error writing: {os.strerror(errno.ENOSPC)}"))
    assert is_told(KeyError("k"))
