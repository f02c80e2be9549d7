"""The real sharded training step compiled ahead of time for devices that are not here, and what the compiler says of it.

XLA's own FLOPs and seconds are not used: it counts a loop's body once. Bytes are what it plans: what lies on a device when a
step begins, and what it needs besides at most.
"""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator

import jax

from infini_jax.config import RunConfig
from infini_jax.devices.chosen_form import form_of_run, with_form
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.errors import ConfigError
from infini_jax.forecast.program_text import BYTES, ProgramText, kernels_launched
from infini_jax.forecast.topology import Topology
from infini_jax.layers.platforms import target
from infini_jax.training.program import Training

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
NO_BUFFER = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "iota", "broadcast"}
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collective operations of one kind in a compiled program.

    Attributes:
      kind: XLA's name.
      sites: number of places in the program, each of which may stand in a loop.
      bytes: bytes of the results of all sites.
    """

    kind: str
    sites: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A large intermediate result.

    Attributes:
      type: XLA's type with its shape.
      bytes: size in bytes.
      made_by: operation in our program that makes it.
    """

    type: str
    bytes: int
    made_by: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures of a training step, for one device.

    Attributes:
      form: form of the step.
      seconds: seconds of compiling.
      state_bytes: bytes on the device between steps.
      temporary_bytes: bytes that a step needs besides.
      collectives: collective operations of the whole program, by kind.
      buffers: intermediate results, the largest first.
      kernels: number of kernels that a step launches; None where the program does not tell how often a loop turns.
    """

    form: str
    seconds: float
    state_bytes: int
    temporary_bytes: int
    collectives: tuple[Collective, ...]
    buffers: tuple[Buffer, ...]
    kernels: int | None

    @property
    def bytes(self) -> int:
        """Bytes that a step needs on one device, the state included."""
        return self.state_bytes + self.temporary_bytes


class DoesNotFit(Exception):
    """Raised where the compiler finds no room in a device's memory.

    Attributes:
      said: the compiler's words in one line.
    """

    def __init__(self, said: str):
        super().__init__(said)
        self.said = said


def compile_step(run: RunConfig, topology: Topology, sharding: Sharding) -> Compiled:
    """Compiles the training step of a run for a topology.

    Raises:
      DoesNotFit: the memory of the topology's chips is too small.
      ConfigError: nothing here compiles for the topology.
    """
    layout = layout_of(run, sharding, topology.compile_devices())
    with target(topology.chip.platform), refused(topology):
        form = form_of_run(run, layout, topology.chip.memory)
        training = Training(with_form(run, form, layout), layout)
        state, batch = training.shapes, training.batch
        began = time.perf_counter()
        compiled = training.step.lower(state, batch).compile()
    memory, program = compiled.memory_analysis(), ProgramText.parse(compiled.as_text())
    return Compiled(
        form=str(form),
        seconds=time.perf_counter() - began,
        state_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        collectives=collectives_of(program),
        buffers=buffers_of(program),
        kernels=kernels_of(program),
    )


@contextlib.contextmanager
def refused(topology: Topology) -> Iterator[None]:
    """A context that turns the compiler's errors into ours.

    Raises `DoesNotFit` for too little memory, `ConfigError` for operations that the chip does not have.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        needs = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", said)
        raise DoesNotFit(f"needs {needs[1]} of {needs[2]}" if needs else said[:200]) from error
    except NotImplementedError as error:
        raise ConfigError("topology", f"{topology.name} cannot run this ({error})", "choose another memory or form") from error


def kernels_of(program: ProgramText) -> int | None:
    """The number of kernels that a call of a compiled program launches, None where a loop's turns are not told."""
    try:
        return kernels_launched(program)
    except ConfigError:
        return None


def size_of(kind: str) -> int:
    """Bytes of a type; for a tuple, of its largest member, as an asynchronous operation names its operands too."""
    sizes = [math.prod(map(int, filter(None, shape.split(",")))) * BYTES.get(of, 0) for of, shape in ARRAY.findall(kind)]
    return max(sizes, default=0)


def collectives_of(program: ProgramText) -> tuple[Collective, ...]:
    """The collective operations of a compiled program, by kind."""
    found: dict[str, list[int]] = {}
    for one in program.in_memory():
        name = one.operation.removesuffix("-start")
        if name in COLLECTIVES:
            found.setdefault(name, []).append(size_of(one.type))
    return tuple(Collective(kind, len(found[kind]), sum(found[kind])) for kind in COLLECTIVES if kind in found)


def buffers_of(program: ProgramText, count: int = 5) -> tuple[Buffer, ...]:
    """The `count` largest intermediate results of a compiled program, each type and operation once."""
    found: dict[tuple[str, str], int] = {}
    for one in program.in_memory():
        if one.operation in NO_BUFFER or one.type.startswith("(") or one.operation.endswith("-done"):
            continue
        name = re.search(r'op_name="([^"]*)"', one.line)
        made_by = name[1].rsplit("/", 1)[-1] if name else one.operation
        shape = ARRAY.search(one.type)
        if shape:
            found[shape[0], made_by] = size_of(one.type)
    largest = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
    return tuple(Buffer(kind, size, made_by) for (kind, made_by), size in largest)
