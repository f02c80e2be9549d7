"""Bytes that a compiled program moves to and from a device's memory, counted in the program's text.

On paper a program takes at least as long as these bytes over the bandwidth of the memory. Each operation reads its operands
and writes its results, a fusion those of all that is inside; what the compiler placed on the chip moves nothing, and of an
array that is cut or written in place only the part that is touched moves. Arrays are as large as their tiles: a row of 32
numbers in tiles of 128 takes 128.
"""

import math
import re

from infini_jax.forecast.program_text import BYTES, NAME, Instruction, ProgramText, total

LAID_OUT = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
TILE = re.compile(r"T\(([\d,]+)\)")
ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # a space other than the device's memory
MOVES_NOTHING = ("AllocateBuffer", "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
EVERYTHING = 2**63  # bytes, at most those that there are
CUTS = ("dynamic-slice", "slice", "gather")
FETCHES = ("copy-start", "slice-start", "dynamic-slice-start")


def bytes_moved(program: ProgramText) -> int:
    """Bytes that one call of a compiled program moves; bodies of loops times their turns, the dearest branch of a choice.

    Raises `ConfigError` where the text does not tell a loop's number of turns.
    """
    known = {one.name: one for instructions in program.computations.values() for one in instructions}
    return total(program, lambda one: moved_by(one, program, known))


def bytes_of_type(kind: str) -> int:
    """Bytes that the arrays of a type take in the device's memory, in whole tiles."""
    return sum(map(_in_memory, LAID_OUT.findall(kind)))


def _in_memory(array: tuple[str, str, str, str]) -> int:
    return 0 if ON_CHIP.search(array[3]) else _in_tiles(array)


def _in_tiles(array: tuple[str, str, str, str]) -> int:
    name, shape, order, rest = array
    sizes, tile = [int(size) for size in shape.split(",") if size], TILE.search(rest)
    if tile and sizes:  # of the axes that lie closest together
        for axis, step in zip(map(int, order.split(",")), map(int, reversed(tile[1].split(","))), strict=False):
            sizes[axis] = math.ceil(sizes[axis] / step) * step
    return math.prod(sizes) * BYTES.get(name, 0)


def operands_of(one: Instruction) -> list[str]:
    """Names of the operands of an instruction, in their order."""
    arguments = one.line.partition(f" {one.operation}(")[2]
    depth, end = 1, len(arguments)
    for place, letter in enumerate(arguments):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            end = place
            break
    return NAME.findall(arguments[:end])


def moved_by(one: Instruction, program: ProgramText, known: dict[str, Instruction]) -> int:
    """Bytes that one instruction moves: what it reads of its operands and what it writes of its results."""
    if one.operation.endswith("-done") or any(f'"{name}"' in one.line for name in MOVES_NOTHING):
        return 0
    if one.operation in FETCHES:  # a tuple that has where from and where to, and a mark
        ends = LAID_OUT.findall(one.type)[:2]
        return min(map(_in_tiles, ends)) * sum(_in_memory(end) > 0 for end in ends)
    if one.operation.endswith("-start"):  # the tuple has operands and results
        return bytes_of_type(one.type)
    operands = [known[name] for name in operands_of(one) if name in known]
    if one.operation in CUTS:
        return bytes_of_type(one.type) + (bytes_of_type(operands[0].type) and bytes_of_type(one.type))
    if one.operation == "dynamic-update-slice":
        return bytes_of_type(operands[1].type) + (bytes_of_type(one.type) and bytes_of_type(operands[1].type))
    if one.operation != "fusion":
        return bytes_of_type(one.type) + sum(bytes_of_type(operand.type) for operand in operands)
    (inside,) = one.called("calls")
    parameters = _parameters(program.computations[inside])
    read = sum(
        min(bytes_of_type(operand.type), _read(parameter, program, inside))
        for operand, parameter in zip(operands, parameters, strict=True)
    )
    return read + _written(one, program, inside)


def _parameters(instructions: tuple[Instruction, ...]) -> list[Instruction]:
    found = (one for one in instructions if one.operation == "parameter")
    return sorted(found, key=lambda one: int(one.line.partition("parameter(")[2].partition(")")[0]))


def _read(array: Instruction, program: ProgramText, inside: str) -> int:
    """Bytes that a fusion reads of an array: the parts that it cuts, or all of it."""
    read = 0
    for user in program.computations[inside]:
        places = [place for place, name in enumerate(operands_of(user)) if name == array.name]
        if not places:
            continue
        if user.operation == "bitcast":
            read += _read(user, program, inside)
        elif user.operation in CUTS and places == [0]:
            read += bytes_of_type(user.type)
        elif user.operation == "fusion":
            (nested,) = user.called("calls")
            parameters = _parameters(program.computations[nested])
            read += sum(_read(parameters[place], program, nested) for place in places)
        elif user.operation != "dynamic-update-slice" or places != [0]:  # written in place, it is not read
            read += bytes_of_type(array.type)
    return min(read, bytes_of_type(array.type))


def _written(fusion: Instruction, program: ProgramText, inside: str) -> int:
    """Bytes that a fusion writes: its results, or the part of an array that it changes."""
    within = {one.name: one for one in program.computations[inside]}
    root = next((one for one in within.values() if one.line.lstrip().startswith("ROOT ")), None)
    results = LAID_OUT.findall(fusion.type)
    made = [within[name] for name in operands_of(root)] if root and root.operation == "tuple" else [root]
    if len(made) != len(results):
        return bytes_of_type(fusion.type)
    return sum(min(_in_memory(result), _changed(one, within, program)) for result, one in zip(results, made, strict=True))


def _changed(one: Instruction | None, within: dict[str, Instruction], program: ProgramText) -> int:
    """Bytes of the part of an array that an instruction in a fusion changes; `EVERYTHING` where it makes all of it."""
    if one is None:
        return EVERYTHING
    if one.operation == "bitcast":
        return _changed(within.get(operands_of(one)[0]), within, program)
    if one.operation == "dynamic-update-slice":
        return bytes_of_type(within[operands_of(one)[1]].type)
    if one.operation == "fusion":
        (nested,) = one.called("calls")
        return _written(one, program, nested)
    return EVERYTHING
