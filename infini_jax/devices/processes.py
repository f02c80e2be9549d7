"""Several processes on one run: the rows that each reads, their agreement, and the one that writes.

Every process runs the same program on the same mesh; arrays are global and each process holds the parts of its own devices.
Clocks and signals differ between processes and collectives must not, so that whatever stops or saves a run is agreed on first.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from infini_jax.data.batch import Batch, Source
from infini_jax.data.serve import batches
from infini_jax.errors import ConfigError, instance, require

SILENT_SECONDS = 60  # after which a process that says nothing is given up, and the run with it
LOST = re.compile(
    r"Gloo|NCCL|UNAVAILABLE|heartbeat|barrier|coordination", re.IGNORECASE
)  # in errors that a dead process causes


def join_job() -> None:
    """Finds the other processes of a SLURM step, a TPU slice or an Open MPI run; to be called before JAX is used.

    Raises `ConfigError` where this process is in none of them.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=SILENT_SECONDS)
    except ValueError as error:  # what JAX says where it finds no such job
        problem = "this process is in no SLURM step, TPU slice or Open MPI run"
        raise ConfigError("processes", problem, "start it by srun or mpirun, or leave it out") from error


@contextlib.contextmanager
def ended_with_the_job(code: int) -> Iterator[None]:
    """A context that ends this process with `code`, and one line that says so, where another process of its run has died.

    It ends at once: at a usual end JAX waits for the dead.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if jax.process_count() == 1 or not LOST.search(str(error)):
            raise
        print(
            "infini-jax: processes: another one of this run is gone; start all again: they go on from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(code)


def is_first() -> bool:
    """Whether this process writes the files that are written once: config, metrics, the row of results."""
    return jax.process_index() == 0


def of_the_first(number: int) -> int:
    """The `number` of the first process, in every process; clocks and folders differ between them."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def own_rows(rows: NamedSharding, batch: int) -> tuple[int, int]:
    """(first, count) of the batch's rows on this process's devices. Raises `ConfigError` where they are not neighbors."""
    shape = (batch, rows.mesh.size)  # any length that the devices can share
    where: Any = rows.addressable_devices_indices_map(shape)
    slices = [index[0].indices(batch)[:2] for index in where.values()]
    first, last = min(start for start, _ in slices), max(stop for _, stop in slices)
    held = {row for start, stop in slices for row in range(start, stop)}
    require(
        len(held) == last - first,
        "train.batch",
        f"the rows of process {jax.process_index()} are not neighbors on this mesh",
        "order the devices by process",
    )
    return first, last - first


def placed(batch: Batch, places: Batch, rows: int) -> Batch:
    """A global batch of `rows` rows on the devices, from the rows that this process has read."""

    def place(leaf: np.ndarray, where: NamedSharding) -> jax.Array:
        return jax.make_array_from_process_local_data(where, leaf, (rows, *leaf.shape[1:]))

    return Batch(*map(place, batch, places))


def batch_shapes(source: Source, places: Batch, rows: int) -> Batch:
    """Shapes, types and shardings of a global batch of `rows` rows; only one row is read."""

    def shape(leaf: np.ndarray, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=where)

    return Batch(*map(shape, source.rows(0, 0, 1), places))


def placed_batches(source: Source, places: Batch, rows: int, steps: range) -> Iterator[Batch]:
    """The batches of `steps` on the devices; each process reads its own rows and no others."""
    for batch in batches(source, steps, *own_rows(places.tokens, rows)):
        yield placed(batch, places, rows)


class Agreement:
    """Yes-or-no questions with the same answer in all processes: whether any of them says yes.

    One process answers for itself at once. Several get the answer of the call before: the sum over the processes is taken
    behind the training step that is under way, and nobody waits for more than the step before that. After a yes the call
    under way is dropped: it asked before anybody could act.
    """

    def __init__(self, mesh: Mesh | AbstractMesh):
        self._alone = jax.process_count() == 1
        if self._alone:
            return
        flat = Mesh(instance(mesh, Mesh, "processes agree on devices that are here").devices.ravel(), ("devices",))
        self._places = NamedSharding(flat, PartitionSpec("devices"))
        self._own = len(self._places.addressable_devices)
        self._any = jax.jit(lambda answers: answers.any(axis=0), out_shardings=NamedSharding(flat, PartitionSpec()))
        self._before: jax.Array | None = None

    def __call__(self, *answers: bool) -> tuple[bool, ...]:
        if self._alone:
            return answers
        mine = np.tile(np.array(answers, bool), (self._own, 1))
        before, self._before = self._before, self._any(jax.make_array_from_process_local_data(self._places, mine))
        agreed = (False,) * len(answers) if before is None else tuple(map(bool, np.asarray(before)))
        if any(agreed):
            self._before = None
        return agreed
