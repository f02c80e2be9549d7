"""Models side by side: an evaluation reads the same rows with one model, or with several in the same calls.

Programs that read rows are written for one model (`ReadingProgram`). Of several, each is mapped over members by `jax.vmap`:
parameters and what is carried are each member's own, rows are shared. On several devices each has its own members. An
evaluation calls its programs through the `Places` of what was `Learned` and does not know which of the two it has.

Of one model it is the program itself, whose rows the devices share. Numbers of members are those of one model to rounding.
Letters: A members that are asked for.
"""

import abc
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from infini_jax.config import ModelConfig
from infini_jax.data.batch import Batch, Source
from infini_jax.data.serve import batches
from infini_jax.devices.effort import OFTEN, ONCE, effort
from infini_jax.devices.processes import placed_batches
from infini_jax.devices.sharding import Layout, batch_sharding, carry_sharding, data_mesh, replicated
from infini_jax.errors import named_line
from infini_jax.model.stream import Carry, init_carry

MEMBERS = "members"  # mesh axis of the places of members
Found = TypeVar("Found")
logger = logging.getLogger(__name__)


class ReadingProgram:
    """A program that reads rows: `function(*settings, layout, params, *own, *shared)`, compiled when it is first called.

    Attributes:
      function: the function, to be traced.
      settings: number of its first arguments, which are constants of the program and hashable.
      own: number of arguments behind the parameters that each model has for itself, such as what it carries.
      uses_up: whether what is each model's own is donated.
      level: effort of compiling the program of one model, see `infini_jax.devices.effort`.
    Calling the object calls the program of one model.
    """

    def __init__(self, function: Callable, settings: int, own: int = 0, uses_up: bool = False, level: int = OFTEN):
        functools.update_wrapper(self, function)
        self.function, self.settings, self.own, self.uses_up, self.level = function, settings, own, uses_up, level

    @functools.cached_property
    def once(self) -> "ReadingProgram":
        """This program, compiled with the effort for what runs a few times."""
        return ReadingProgram(self.function, self.settings, self.own, self.uses_up, ONCE)

    @functools.cached_property
    def alone(self) -> Callable[..., Any]:
        """The program of one model; its platform is known when it is first called."""
        constants, donated = range(self.settings + 1), range(self.settings + 2, self.settings + 2 + self.own * self.uses_up)
        return jax.jit(
            self.function,
            static_argnums=tuple(constants),
            donate_argnums=tuple(donated),
            compiler_options=effort(self.level),
        )

    def __call__(self, *arguments: Any) -> Any:
        return self.alone(*arguments)


@functools.lru_cache(maxsize=16)
def mapped(program: ReadingProgram, settings: tuple, mesh: Mesh) -> Callable[[dict, tuple, tuple], Any]:
    """The program of members: (params, own, shared) -> results, with members in front but for what is shared."""

    def of_member(params: dict, own: tuple, shared: tuple) -> Any:
        return program.function(*settings, None, params, *own, *shared)

    called, members = jax.vmap(of_member, in_axes=(0, 0, None)), PartitionSpec(MEMBERS)
    if mesh.size > 1:  # by hand: the partitioner cannot split loops over heads or kernels
        specs = {"in_specs": (members, members, PartitionSpec()), "out_specs": members}
        called = jax.shard_map(called, mesh=mesh, check_vma=False, **specs)
    return jax.jit(called, donate_argnums=1 if program.uses_up else ())


class Places(abc.ABC):
    """The devices on which rows are read, with what reads them.

    Attributes:
      model: settings of the model that reads.
      rows: R, number of rows that are read side by side.
    """

    model: ModelConfig
    rows: int

    @abc.abstractmethod
    def fresh(self) -> Carry:
        """The carry of R rows that have read nothing."""

    @abc.abstractmethod
    def put(self, text: np.ndarray) -> Any:
        """An array with rows in front, placed on the rows' devices."""

    @abc.abstractmethod
    def batches(self, source: Source, steps: range) -> Iterator[Batch]:
        """The batches of `steps`, of R rows each, placed on the rows' devices."""

    @abc.abstractmethod
    def call(self, program: ReadingProgram, settings: tuple, own: tuple, shared: tuple) -> Any:
        """The results of a program; what is own, and what is returned, is each model's."""

    @abc.abstractmethod
    def on_host(self, results: Any) -> Any:
        """Results as arrays of the host, with the A models that are asked for in front."""


class Learned(abc.ABC):
    """Parameters with which rows are read: those of one model, or of several side by side.

    Attributes:
      asked: A, number of models that are asked for.
    """

    @property
    @abc.abstractmethod
    def asked(self) -> int: ...

    @abc.abstractmethod
    def places(self, model: ModelConfig, rows: int, layout: Layout | None = None) -> Places:
        """The places of `rows` rows; `layout` is how devices share those of one model, by default all where they can."""


@dataclasses.dataclass(frozen=True)
class OneModel(Learned):
    """The parameters of one model, whole on every device.

    Attributes:
      params: the parameters.
    """

    params: dict

    @property
    def asked(self) -> int:
        return 1

    def places(self, model: ModelConfig, rows: int, layout: Layout | None = None) -> Places:
        if layout is None and rows % jax.device_count() == 0:
            layout = Layout(data_mesh(rows))
        return RowPlaces(model, rows, layout, self.params)


@dataclasses.dataclass(frozen=True)
class RowPlaces(Places):
    """The devices that share the rows of one model.

    Attributes:
      model: settings of the model.
      rows: R, number of rows that are read side by side.
      layout: how the devices share the rows, None for one device.
      params: parameters of the model.
    """

    model: ModelConfig
    rows: int
    layout: Layout | None
    params: dict

    def fresh(self) -> Carry:
        return carry_maker(self.model, self.rows, self.layout)()

    def put(self, text: np.ndarray) -> Any:
        if self.layout is None:
            return text
        tokens = batch_sharding(self.layout.mesh, self.layout.rules).tokens.spec
        spec = NamedSharding(self.layout.mesh, PartitionSpec(*tokens[: text.ndim]))
        return jax.make_array_from_callback(text.shape, spec, text.__getitem__)

    def batches(self, source: Source, steps: range) -> Iterator[Batch]:
        if self.layout is None:
            return batches(source, steps, 0, self.rows)
        return placed_batches(source, batch_sharding(self.layout.mesh, self.layout.rules), self.rows, steps)

    def call(self, program: ReadingProgram, settings: tuple, own: tuple, shared: tuple) -> Any:
        return program(*settings, self.layout, self.params, *own, *shared)

    def on_host(self, results: Any) -> Any:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], results)


@functools.lru_cache(maxsize=4)
def carry_maker(model: ModelConfig, rows: int, layout: Layout | None) -> Callable[[], Carry]:
    """The function that makes a fresh carry, compiled once and kept for all that read such rows."""
    where = layout and carry_sharding(model, layout.mesh, layout.rules)
    return jax.jit(functools.partial(init_carry, model, rows), out_shardings=where)


@dataclasses.dataclass(frozen=True)
class SideBySide(Learned):
    """The parameters of members, models of equal settings.

    Attributes:
      params: the parameters with the members' places in front, as many on each device; some places may hold no member.
      members: places of the members that are asked for.
      mesh: the devices, along the axis `MEMBERS`.
    """

    params: dict
    members: tuple[int, ...]
    mesh: Mesh

    @staticmethod
    def of(params: Sequence[dict], devices: Sequence[Any] | None = None) -> "SideBySide":
        """Parameters of members, arrays of the host, on all devices at hand or on these; all of them are asked for."""
        devices = jax.devices() if devices is None else devices
        mesh = members_mesh(devices)
        filled = [*params, *[params[0]] * (-len(params) % len(devices))]
        where = NamedSharding(mesh, PartitionSpec(MEMBERS))
        stacked = jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves), where), *filled)
        return SideBySide(stacked, tuple(range(len(params))), mesh)

    @property
    def asked(self) -> int:
        return len(self.members)

    @property
    def count(self) -> int:
        """Number of places."""
        return jax.tree.leaves(self.params)[0].shape[0]

    def only(self, members: Sequence[int]) -> "SideBySide":
        """These parameters with other members asked for."""
        return dataclasses.replace(self, members=tuple(members))

    def alone(self, member: int) -> OneModel:
        """The parameters at one place, whole on every device."""
        return OneModel(one_of(replicated(self.mesh))(self.params, member))

    def places(self, model: ModelConfig, rows: int, layout: Layout | None = None) -> Places:
        return MemberPlaces(model, rows, self)


def members_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of devices that have members of their own each."""
    return jax.make_mesh((len(devices),), (MEMBERS,), (AxisType.Auto,), devices=devices)


@functools.lru_cache(maxsize=2)
def one_of(where: NamedSharding) -> Callable[[Any, int], Any]:
    """The function that takes the arrays at one place out of stacked ones."""
    return jax.jit(taken_out, out_shardings=where)


def taken_out(tree: Any, place: int | jax.Array) -> Any:
    """The arrays at one place of stacked ones."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), tree)


@dataclasses.dataclass(frozen=True)
class MemberPlaces(Places):
    """The devices of members, each of which reads all rows.

    Attributes:
      model: settings of the members' models.
      rows: R, number of rows that are read side by side.
      learned: parameters of the members.
    """

    model: ModelConfig
    rows: int
    learned: SideBySide

    def fresh(self) -> Carry:
        return carries_maker(self.model, self.rows, self.learned.count, self.learned.mesh)()

    def put(self, text: np.ndarray) -> Any:
        return text

    def batches(self, source: Source, steps: range) -> Iterator[Batch]:
        return batches(source, steps, 0, self.rows)

    def call(self, program: ReadingProgram, settings: tuple, own: tuple, shared: tuple) -> Any:
        return mapped(program, settings, self.learned.mesh)(self.learned.params, own, shared)

    def on_host(self, results: Any) -> Any:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[list(self.learned.members)], results)


@functools.lru_cache(maxsize=4)
def carries_maker(model: ModelConfig, rows: int, count: int, mesh: Mesh) -> Callable[[], Carry]:
    """The function that makes fresh carries of `count` places."""

    def fresh() -> Carry:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), init_carry(model, rows))

    return jax.jit(fresh, out_shardings=NamedSharding(mesh, PartitionSpec(MEMBERS)))


def read_each(learned: SideBySide, read: Callable[[Learned], Sequence[Found]]) -> list[Found | Exception]:
    """What is read with each of the members that are asked for, or the exception with which its reading ended.

    They are read side by side. Where half of all places or fewer are asked for, and where reading side by side fails, as for
    want of memory, they are read one after the other.

    Args:
      learned: the parameters.
      read: function from parameters to what is read with each model.
    """
    if 2 * learned.asked > learned.count:
        try:
            return [*read(learned)]
        except Exception as error:  # of one member, it must not be that of the others
            logger.warning("side by side: %s; members are read one after the other", named_line(error))

    def of_member(member: int) -> Found:
        return read_alone(learned.alone(member), read)

    return [tried(functools.partial(of_member, member)) for member in learned.members]


def read_alone(learned: OneModel, read: Callable[[Learned], Sequence[Found]]) -> Found:
    """What is read with one model."""
    (found,) = read(learned)
    return found


def tried(call: Callable[[], Found]) -> Found | Exception:
    """What a call returns, or the exception that it raises."""
    try:
        return call()
    except Exception as error:  # whatever went wrong, it is this call's alone
        return error
