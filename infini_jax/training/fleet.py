"""Fleets: runs that share a program take their steps side by side, all of them in one call of it.

The step is that of one run, mapped over members by `jax.vmap`; on several devices each has its own members and knows nothing
of the others'. A member is a run like any other: its loop, log, checkpoints, end and row are those of a run alone
(`infini_jax.training.loop.training_steps`), and only the step is taken with others. Members may be at different steps, as the
step is a part of each one's state. One that ends early leaves its place to results that nobody looks at, because a smaller
program would have to be compiled. Readings that members ask for between the same steps, of equal data, are made side by side
(`infini_jax.devices.side_by_side`), with the states as they lie.

Numbers are those of the runs alone to rounding. Seconds are shared: see `Clock`, and the row's column `fleet`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infini_jax.config import RunConfig
from infini_jax.data.batch import Batch
from infini_jax.devices.sharding import ROWS_ALONE, layout_of
from infini_jax.devices.side_by_side import MEMBERS, Learned, SideBySide, members_mesh, read_each, taken_out
from infini_jax.errors import Stopped, require
from infini_jax.model.cost import budget_steps
from infini_jax.model.parts import Parts
from infini_jax.records.rows import Row
from infini_jax.training.asking import Asked, Result
from infini_jax.training.checkpoint import Saving
from infini_jax.training.clock import Clock
from infini_jax.training.execute import OFTEN_ENOUGH, begun, scored, trained_steps
from infini_jax.training.interrupts import terminated
from infini_jax.training.loop import Measured, Seat, Steps
from infini_jax.training.program import Program, Training, TrainState

Ended = Callable[[int, Any], None]  # gets the number of a member, and its result or its exception


@dataclasses.dataclass(frozen=True)
class OfMember:
    """What a step measured of one member; it waits for the device where it becomes an array of the host.

    Attributes:
      measured: what was measured of all members, with them in front.
      place: number of the member.
    """

    measured: jax.Array
    place: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(np.asarray(self.measured)[self.place], dtype)  # JAX keeps what it has copied to the host

    def block_until_ready(self) -> "OfMember":
        """Waits for the step that measured it."""
        self.measured.block_until_ready()
        return self


@dataclasses.dataclass(frozen=True)
class FleetProgram:
    """The identity of a fleet's compiled step.

    Attributes:
      program: program of a member on one device, without a seed, which is an argument here.
      places: number of members that the step has places for, a multiple of the number of devices.
      mesh: the devices.
    """

    program: Program
    places: int
    mesh: Mesh


@functools.lru_cache(maxsize=1)
def compiled_fleet_step(fleet: FleetProgram) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled step (states, batches, seeds) -> (states, metrics), all with the members in front; states are donated."""
    training, members = fleet.program.training, PartitionSpec(MEMBERS)
    places = NamedSharding(fleet.mesh, members)

    def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((fleet.places, *leaf.shape), leaf.dtype, sharding=places)

    step = jax.vmap(training.advance)
    if fleet.mesh.size > 1:  # by hand: the partitioner cannot split loops over heads or kernels
        step = jax.shard_map(step, mesh=fleet.mesh, in_specs=members, out_specs=members, check_vma=False)
    arguments = jax.tree.map(stacked, (training.shapes, training.batch, jax.ShapeDtypeStruct((), jnp.int32)))
    return jax.jit(step, donate_argnums=0, out_shardings=places).lower(*arguments).compile()


class Fleet:
    """The program of runs that share it, on all devices at hand or on these.

    Attributes:
      seats: the seats of the runs, in their order.
      clock: seconds of training, which all members share: it stands still while one of them begins, is examined or scored.

    Raises:
      ConfigError: the runs do not share a program, a budget pays for no step, or data is not there.
    """

    def __init__(self, runs: Sequence[RunConfig], devices: Sequence[Any] | None = None):
        first, *others = [run.in_common(budget_steps(run)) for run in runs]
        problem = "the runs differ in model, training, steps or scored places"
        require(all(other == first for other in others), "runs", problem, "train them in turn")
        devices = jax.devices() if devices is None else devices
        self.clock, self.mesh = Clock(), members_mesh(devices)
        self.of_each = -(-len(runs) // len(devices))  # members of each device
        own = [self.mesh.devices[place // self.of_each] for place in range(len(runs))]
        self.seats = [Member(self, place, run, device) for place, (run, device) in enumerate(zip(runs, own, strict=True))]
        self._count = self.of_each * len(devices)  # of places
        self._places = NamedSharding(self.mesh, PartitionSpec(MEMBERS))
        seeds = np.array([run.seed for run in runs] + [0] * (self._count - len(runs)), np.int32)
        self._seeds = jax.device_put(seeds, self._places)
        self._begun: dict[int, TrainState] = {}  # states of members until the first step
        self._batches: dict[int, Batch] = {}  # the next batch of each member, or its last one
        self._states: Any = None  # of all members, from the first step on

    @functools.cached_property
    def compiled(self) -> tuple[Callable[..., tuple], float]:
        """(the compiled step, seconds of compiling it), once a member has begun."""
        began = time.perf_counter()
        run = self.seats[next(iter(self._begun))].training.run  # one whose data is there
        program = dataclasses.replace(Training(run).program, seed=None)
        return compiled_fleet_step(FleetProgram(program, self._count, self.mesh)), time.perf_counter() - began

    def begin(self, place: int, state: TrainState) -> float:
        """Takes the state at which a member begins; returns the seconds of compiling."""
        self._begun[place] = state
        return self.compiled[1]

    def state_of(self, place: int) -> TrainState:
        """The state of a member after the steps so far, on its own device."""
        if self._states is None:
            return self._begun[place]
        seat, (number, own) = self.seats[place], divmod(place, self.of_each)
        device = self.mesh.devices[number]

        def on_device(leaf: jax.Array) -> jax.Array:
            return next(shard.data for shard in leaf.addressable_shards if shard.device == device)

        return jax.device_put(state_at(jax.tree.map(on_device, self._states), own), seat.training.places)

    def drive(self, steps: Sequence[Steps[Result]], ended: Ended) -> None:
        """Takes the steps of all members until each has ended; `ended` hears of each at once, with its result or exception.

        What a step raises is raised inside of the loops of all members that are under way.
        """
        loops = Loops(self, steps, ended)
        try:
            loops.begin()
            while loops.under_way:
                loops.go_on()
        finally:
            for member in steps:
                member.close()

    def take_step(self, next_batches: Mapping[int, Batch]) -> dict[str, jax.Array]:
        """Takes a step of all places, on the next batches of members that are under way; returns what it measured."""
        self._batches |= next_batches
        some = next(iter(self._batches.values()))  # for places without a member
        batches = [self._batches.get(place, some) for place in range(self._count)]
        stacked = jax.device_put(Batch(*map(np.stack, zip(*batches, strict=True))), self._places)
        self._states, measured = self.compiled[0](self._joined_states(), stacked, self._seeds)
        return measured

    def read(self, places: Sequence[int], read: Callable[[Learned], Sequence[Any]]) -> list[Any]:
        """What is read of what these members have learned so far, or the exceptions with which it ended."""
        states = self._joined_states()
        learned = (
            merged_of_each(self.seats[0].training.parts)(states.learned, states.frozen) if states.frozen else states.learned
        )
        return read_each(SideBySide(learned, tuple(places), self.mesh), read)

    def _joined_states(self) -> TrainState:
        """The states of all places, from now on as one."""
        if self._states is None:
            self._states = self._stacked()
        return self._states

    def _stacked(self) -> TrainState:
        """The states of all places, stacked in front; those without a member get another one's."""
        begun, self._begun = self._begun, {}
        some = next(iter(begun.values()))
        leaves = [jax.tree.leaves(begun.get(place, some)) for place in range(self._count)]
        structure = jax.tree.structure(some)
        del begun, some
        found = []
        for number in range(len(leaves[0])):  # one array after the other, so that no state is there twice
            found.append(self._joined([of_member[number] for of_member in leaves]))
            for of_member in leaves:
                of_member[number] = None
        return jax.tree.unflatten(structure, found)

    def _joined(self, parts: list[jax.Array]) -> jax.Array:
        """Arrays of all places as one, whose parts lie on the places' devices."""
        own = [parts[first : first + self.of_each] for first in range(0, len(parts), self.of_each)]
        on_devices = [
            jnp.stack(jax.device_put(some, device)) for some, device in zip(own, self.mesh.devices.flat, strict=True)
        ]
        shape = (len(parts), *parts[0].shape)
        return jax.make_array_from_single_device_arrays(shape, self._places, on_devices)


class Loops:
    """The loops of a fleet's members, each of which goes on by itself from a step or a reading to the next one.

    Attributes:
      under_way: loop of each member that has not ended.
    """

    def __init__(self, fleet: Fleet, steps: Sequence[Steps[Any]], ended: Ended):
        self.fleet, self.ended, self.under_way = fleet, ended, dict(enumerate(steps))
        self._batches: dict[int, Batch] = {}  # of members that wait for a step
        self._asked: dict[int, Asked] = {}  # by members that wait for a reading

    def begin(self) -> None:
        """Begins all members, and makes the readings that they ask for before the first step."""
        with self.fleet.clock.paused():
            for place, member in list(self.under_way.items()):
                self._move(place, functools.partial(next, member))
        self._answer()

    def go_on(self) -> None:
        """Takes a step of all members, and makes the readings that they ask for behind it."""
        batches, self._batches = self._batches, {}
        try:
            measured = self.fleet.take_step(batches)
        except Exception as error:
            for place, member in list(self.under_way.items()):
                self._move(place, functools.partial(member.throw, error))
        else:
            for place, member in list(self.under_way.items()):
                self._move(place, functools.partial(member.send, part_of(measured, place)))
        self._answer()

    def _answer(self) -> None:
        """Makes all readings that are asked for, those that are alike side by side."""
        while self._asked:
            first = next(iter(self._asked.values()))
            places = [place for place, asked in self._asked.items() if asked.alike == first.alike]
            for place in places:
                del self._asked[place]
            for place, found in zip(places, self.fleet.read(places, first.read), strict=True):
                member = self.under_way[place]
                to = member.throw if isinstance(found, Exception) else member.send
                self._move(place, functools.partial(to, found))

    def _move(self, place: int, move: Callable[[], Sequence[Batch] | Asked]) -> None:
        """Moves a member on to what it waits for next, or to its end."""
        try:
            wanted = move()
        except StopIteration as end:
            result = end.value
        except Exception as error:  # it is this member's alone
            result = error
        else:
            if isinstance(wanted, Asked):
                self._asked[place] = wanted
            else:
                (self._batches[place],) = wanted
            return
        del self.under_way[place]
        with self.fleet.clock.paused():
            self.ended(place, result)


class Member(Seat):
    """The seat of a run in a fleet; what it has outside of the program lies on `device`.

    Raises `ConfigError` where the devices at hand could not share the run if it were alone, as it is when it is scored.
    """

    def __init__(self, fleet: Fleet, place: int, run: RunConfig, device: Any):
        layout_of(run, ROWS_ALONE)
        self.training = Training(run, layout_of(run, ROWS_ALONE, [device]))
        self.fleet, self.place, self.clock = fleet, place, fleet.clock

    @property
    def members(self) -> int:
        return len(self.fleet.seats)

    def take(self, state: TrainState) -> float:
        return self.fleet.begin(self.place, state)

    @property
    def state(self) -> TrainState:
        return self.fleet.state_of(self.place)


def part_of(measured: dict[str, jax.Array], place: int) -> Measured:
    """What a step measured of one member."""
    return {name: OfMember(found, place) for name, found in measured.items()}


state_at = jax.jit(taken_out)


@functools.lru_cache(maxsize=1)
def merged_of_each(parts: Parts) -> Callable[[dict, dict], dict]:
    """The function `Parts.merged` of members, which are in front."""
    return jax.jit(jax.vmap(parts.merged))


def member_steps(seat: Member, folder: Path, study: str, stop: Callable[[], bool], saving: Saving) -> Steps[Row]:
    """The steps of a member, from its config to its row; see `infini_jax.training.execute.execute`."""
    with begun(seat.training.run, folder) as mirrors:
        trained = yield from trained_steps(seat, folder, study, stop, saving=saving, mirrors=mirrors)
        with seat.clock.paused():
            return (yield from scored(trained, folder))


def execute_fleet(
    runs: Sequence[RunConfig], folders: Sequence[Path], study: str, ended: Ended, saving: Saving = OFTEN_ENOUGH
) -> None:
    """Trains and scores runs that share a program side by side, or goes on with those that were stopped or killed.

    Each leaves in its folder what `infini_jax.training.execute.execute` does.

    Args:
      runs: settings of the runs; their budgets have a number of steps.
      folders: folder of each run.
      study: name for the rows' column.
      ended: gets the number of each run as soon as it ends, and its row, or the exception that `execute` would have raised.
      saving: when each run is saved.

    Raises:
      Stopped: a signal that announces the end came; runs that had not ended are saved, and `ended` does not hear of them.
      Interrupted: Ctrl-C was pressed; the same holds.
    """
    stopped: list[Stopped] = []

    def heard(place: int, result: Any) -> None:
        if isinstance(result, Stopped):
            stopped.append(result)
        else:
            ended(place, result)

    with terminated() as stop:
        fleet = Fleet(runs)
        members = zip(fleet.seats, folders, strict=True)
        fleet.drive([member_steps(seat, folder, study, stop, saving) for seat, folder in members], heard)
        if stopped or stop():
            raise next(iter(stopped), Stopped(f"stopped behind the last step of {len(runs)} runs"))
