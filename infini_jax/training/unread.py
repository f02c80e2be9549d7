"""Checkpoints of parameters that lie in other files: each is read while it is written, and no more than one is in memory.

Orbax copies arrays of the host before it writes them, and collects two gigabytes of compressed ones before it opens a file.
Here arrays are written in the foreground, one after the other, in smaller files and in chunks that are no larger than these.
Chunks are compressed by many threads, of which each keeps what it has freed: that is returned behind every array, or it would
add up, by more the slower the disk is and the more threads wait for it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from infini_jax.devices.allocator import return_pages
from infini_jax.pretrained.tensors import Tensor
from infini_jax.training import notes
from infini_jax.training.checkpoint import MEMORY, META, STATE, Checkpoints
from infini_jax.training.digest import digests, named
from infini_jax.training.notes import Progress

FILE_BYTES = 64 << 20  # of a file of arrays, at most; a small state has some dozens of files, too


class OneByOne(ocp.type_handlers.NumpyHandler):
    """Orbax's writer of arrays of the host, for arrays that were not read yet: each is read when the last one is written."""

    async def serialize(self, values: Sequence[Tensor], infos: Sequence[Any], args: Sequence[Any] | None = None) -> list[Any]:
        """Writes the arrays; nothing is left to be waited for."""
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for written in await super().serialize([value.read().view(Given)], [info], [arg]):
                written.result()
            return_pages()
        return []

    def memory_size(self, values: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Bytes of each array that are written and read, by which orbax limits what it has at once."""
        return [(value.size, value.size) for value in values]


class Given(np.ndarray):
    """An array that nobody changes any more, so that a copy of it is the array itself."""

    def __deepcopy__(self, memo: dict) -> "Given":
        return self


class UnreadCheckpoints(Checkpoints):
    """The checkpoints of one run's folder, for a state whose arrays are read one at a time when they are saved."""

    def __enter__(self) -> "UnreadCheckpoints":
        types = ocp.type_handlers.create_type_handler_registry((Tensor, OneByOne()))
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(STATE, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(type_handler_registry=types))
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        with self._failures("cannot be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, progress: Progress, state: Any, carry: Any) -> None:
        """Saves a state, whose leaves are arrays or `Tensor`s, which are read twice. Raises `CheckpointError`."""
        unread = jax.tree.map(as_unread, state)
        said: dict[str, str] = {}
        for name, leaf in named(unread).items():
            said |= digests({name: leaf.read()}, STATE)
            return_pages()
        meta = notes.sealed(self.run, progress, said | digests(carry, MEMORY))
        file_bytes = min(FILE_BYTES, max(1 << 20, sum(leaf.size for leaf in named(unread).values()) // 64))
        items = {STATE: ocp.args.PyTreeSave(unread, ocdbt_target_data_file_size=file_bytes)}
        items |= {MEMORY: ocp.args.StandardSave(carry), META: ocp.args.JsonSave(meta)}
        with self._failures("could not be saved"):
            self._manager.save(progress.step, args=ocp.args.Composite(**items), force=True)


def as_unread(leaf: Any) -> Tensor:
    """An array as one that is read when it is asked for; a `Tensor` is one."""
    if isinstance(leaf, Tensor):
        return leaf
    return Tensor(leaf.shape, leaf.dtype.name, functools.partial(np.asarray, leaf))
