"""The text of a compiled program (XLA's HLO): its computations, their instructions, and how many kernels a call launches."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from infini_jax.errors import ConfigError

NAME = re.compile(r"%([\w.-]+)")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NO_KERNEL = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "after-all",
    "add-dependency",
    "opt-barrier",
    "async-update",
}
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
}
BRANCHES = ("branch_computations", "true_computation", "false_computation")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
      name: XLA's name.
      type: XLA's type of the result; in parentheses for a tuple.
      operation: XLA's name of the operation.
      line: the whole line.
    """

    name: str
    type: str
    operation: str
    line: str

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that the instruction has under any of these attributes, such as `body`."""
        found = (re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.-]+)", self.line) for attribute in attributes)
        return [name for one in found if one for name in NAME.findall(one[1])]


@dataclasses.dataclass(frozen=True)
class ProgramText:
    """A compiled program as it was read from its text.

    Attributes:
      computations: instructions by the name of their computation.
      entry: name of the computation that a call runs.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "ProgramText":
        """The program of `compiled.as_text()`."""
        found: dict[str, list[Instruction]] = {}
        entry, here = "", None
        for line in text.splitlines():
            if line.endswith("{") and "->" in line and not line[0].isspace():
                name = NAME.search(line)
                here = found.setdefault(name[1] if name else "", [])
                entry = name[1] if name and line.startswith("ENTRY") else entry
            elif line.startswith("}"):
                here = None
            elif here is not None and (one := _instruction(line)):
                here.append(one)
        return cls({name: tuple(instructions) for name, instructions in found.items()}, entry)

    def in_memory(self) -> Iterator[Instruction]:
        """The instructions whose results lie in memory: those inside a fusion or a reduction do not."""
        every = [one for instructions in self.computations.values() for one in instructions]
        inside = {name for one in every if one.operation != "call" for name in one.called("to_apply")}
        inside |= {name for one in every if one.operation == "fusion" for name in one.called("calls")}
        for name, instructions in self.computations.items():
            if name not in inside:
                yield from instructions


def _instruction(line: str) -> Instruction | None:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    if not rest:
        return None
    end = _end_of_tuple(rest) if rest.startswith("(") else rest.find(" ")
    operation = rest[end:].lstrip().partition("(")[0]
    return Instruction(name.removeprefix("%"), rest[:end], operation, line)


def _end_of_tuple(text: str) -> int:
    """Number of characters up to the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return place + 1
    return len(text)


def total(program: ProgramText, count: Callable[[Instruction], int]) -> int:
    """The sum of what is counted of each instruction that one call of a compiled program runs, as often as it runs it.

    Bodies of loops count as often as they turn, of a choice the branch that has most.

    Raises `ConfigError` where the text does not tell a loop's number of turns.
    """
    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = sum(map(of_one, program.computations[name]))
        return known[name]

    def of_one(one: Instruction) -> int:
        if one.operation in NO_KERNEL:
            return 0
        if one.operation == "while":
            (body,), (condition,) = one.called("body"), one.called("condition")
            annotated = TURNS.search(one.line)
            if annotated:  # then nobody asks the condition
                return int(annotated[1]) * of(body)
            turns = _turns_of(program, condition)
            return turns * of(body) + (turns + 1) * of(condition)
        if one.operation == "conditional":
            return max(map(of, one.called(*BRANCHES)))
        if one.operation in ("call", "async-start"):
            return sum(map(of, one.called("to_apply", "calls")))
        return count(one)

    return of(program.entry)


def kernels_launched(program: ProgramText) -> int:
    """Number of kernels that one call of a compiled program launches: its instructions times the turns of their loops.

    A fusion, a copy and a call of a library count one each (inside, cuDNN's gradient is several), a choice its largest branch.
    On a GPU each costs microseconds, whatever its work. The text of a program for a CPU has the steps of its executor instead.

    Raises `ConfigError` where the text does not tell a loop's number of turns.
    """
    return total(program, lambda one: not one.operation.endswith("-done"))


def _turns_of(program: ProgramText, condition: str) -> int:
    """The number of turns of a loop that counts from 0, as `lax.scan` does, from its condition: a number less than a constant.

    Raises `ConfigError` for any other condition.
    """
    instructions = program.computations[condition]
    last = next((one for one in instructions if one.line.lstrip().startswith("ROOT ")), instructions[-1])
    compared = [last, *(inner for name in last.called("calls") for inner in program.computations[name])]
    operands = last.line.partition(f"{last.operation}(")[2].partition(")")[0]
    constants = [one for one in instructions if one.operation == "constant" and one.name in NAME.findall(operands)]
    number = re.search(r"constant\((\d+)\)", constants[0].line) if len(constants) == 1 else None
    if number is None or not any(one.operation == "compare" and "direction=LT" in one.line for one in compared):
        problem = f"the loop over {condition} does not tell its number of turns"
        raise ConfigError("program", problem, "use lax.scan, or lax.fori_loop with bounds known before it is compiled")
    return int(number[1])
