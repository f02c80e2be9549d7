"""Checkpoints: what is saved comes back bit for bit; damaged or another run's is refused; a full disk loses nothing."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import RunConfig
from infini_jax.errors import CheckpointError, ConfigError
from infini_jax.records.folder import CHECKPOINTS_FOLDER
from infini_jax.training import checkpoint
from infini_jax.training.checkpoint import Checkpoints, Progress, Saving, checksum, differences

RUN = RunConfig()
STATE = {"params": {"kernel": np.arange(20_000, dtype=np.float32).reshape(100, 200)}, "step": np.int32(7)}
CARRY = {"memory": np.linspace(0, 1, 999, dtype=np.float32), "open": np.array([3, 4], np.int32)}


def filled(folder, steps=(1, 2, 3)):
    """Checkpoints of these steps, each with its own numbers."""
    with Checkpoints(RUN, folder) as checkpoints:
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
    with pytest.raises(ConfigError, match=r"^checkpoint: there is none of step 1; choose one of 2, 3$"):
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


def test_another_config_and_another_format_are_refused(tmp_path, monkeypatch):
    folder = filled(tmp_path)
    other = dataclasses.replace(RUN, seed=5)
    with pytest.raises(CheckpointError, match=r"3 is of another config \(seed was 0, is 5\); give the run a new name"):
        restored(tmp_path, other)
    written, mend = checkpoint.FORMAT, "go on with the version that wrote it, or give the run a new name"
    for own, said in (
        (written - 1, f"newer than this version's {written - 1}; update infini_jax$"),
        (written + 1, f"older than this version's {written + 1}; {mend}$"),
    ):
        monkeypatch.setattr(checkpoint, "FORMAT", own)
        with pytest.raises(CheckpointError, match=rf"3 has format {written}, {said}"):
            restored(tmp_path)
    assert (folder / "3").exists()


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


def test_numbers_are_summed_wherever_they_are():
    tree = {"a": jnp.arange(5.0), "b": jnp.array([-1, 2], jnp.int32), "c": jnp.ones(3, jnp.bfloat16)}
    words = [np.arange(5, dtype=np.float32).view(np.uint32), np.array([-1, 2], np.int32).view(np.uint32), [0x3F80] * 3]
    assert int(checksum(tree)) == sum(int(word) for part in words for word in part) % 2**32


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
