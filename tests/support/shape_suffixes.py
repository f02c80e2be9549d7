"""Shape suffixes of local variables, compared with the arrays that the variables hold while code runs.

A suffix names the axes: `q_BxSxHxK` has four. An axis is a letter, a number (`gate_Hx1`), or both: `3D` is three times D and
`G1` is G + 1. An x at an end leaves further axes open (`x_BxSx`, `scores_xNxS`). A single lower-case letter is a suffix only
where the module's docstring declares it so (`_b`): `top_k` is a word. A function of such a name promises what it returns.

Functions get other code for a while, in which every returned value passes through a look at the frame. A trace function would
see the same, and slow down all of JAX to half its speed.
"""

import ast
import builtins
import contextlib
import dataclasses
import functools
import gc
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import infini_jax

PACKAGE = Path(infini_jax.__file__).parent
LOOK = "_look_at_shapes"
AXIS = r"(?:\d+|\d*[A-WYZ]\d*|[a-wyz])"
SUFFIXED = re.compile(rf".*_(?P<before>x?)(?P<axes>{AXIS}(?:x{AXIS})*)(?P<after>x?)")
PARTS = re.compile(r"(?P<times>\d*)(?P<letter>[A-Za-z]?)(?P<plus>\d*)")


@dataclasses.dataclass(frozen=True)
class Suffix:
    """Attributes: axes, as they are written; before, after, whether others may stand there."""

    axes: tuple[str, ...]
    before: bool
    after: bool

    def problem(self, shape: tuple[int, ...], sizes: dict[str, int]) -> str | None:
        """What of the shape contradicts the suffix or the letters' sizes, to which it adds its own."""
        others = len(shape) - len(self.axes)
        if others < 0 or (others and not (self.before or self.after)):
            return f"{len(self.axes)} axes are named"
        for axis, size in zip(self.axes, shape[others:] if self.before else shape, strict=False):
            times, letter, plus = PARTS.fullmatch(axis).groups()
            if not letter:
                if size != int(times):
                    return f"the axis {axis} is of size {size}"
                continue
            of_letter, rest = divmod(size - int(plus or 0), int(times or 1))
            if rest:
                return f"the axis {axis} is of size {size}"
            if sizes.setdefault(letter, of_letter) != of_letter:
                return f"{letter} is {sizes[letter]} elsewhere in the function"
        return None


@dataclasses.dataclass
class Checked:
    """Attributes: names, (file, function, name) of every suffix that was compared; wrong, a line for each that lies."""

    names: set[tuple[str, str, str]] = dataclasses.field(default_factory=set)
    wrong: dict[tuple[str, str, str], str] = dataclasses.field(default_factory=dict)

    def frame(self, frame: FrameType, returned: Any, suffixes: dict[str, Suffix]) -> None:
        """Compares the variables of a function that returns. Of what is no array nothing is known."""
        code, sizes = frame.f_code, {}
        found = frame.f_locals | {code.co_name: returned}
        for name, suffix in suffixes.items():
            shape = getattr(found.get(name), "shape", None)
            if not isinstance(shape, tuple):
                continue
            file = Path(code.co_filename)
            place = ("/".join(file.parts[-2:]), code.co_qualname, name)
            self.names.add(place)
            problem = suffix.problem(shape, sizes)
            if problem:
                self.wrong.setdefault(place, f"{place[0]}: {place[1]}: {name} is {shape}, {problem}")


@functools.cache
def suffixes_of(code: CodeType, docstring: str) -> dict[str, Suffix]:
    """By name, of a function's parameters and variables, those of enclosing functions included, and its own name."""
    found = {}
    for name in (*code.co_varnames, *code.co_cellvars, *code.co_freevars, code.co_name):
        match = SUFFIXED.fullmatch(name)
        if match and (not re.fullmatch("[a-z]", match["axes"]) or f"`_{match['axes']}`" in docstring):
            found[name] = Suffix(tuple(match["axes"].split("x")), bool(match["before"]), bool(match["after"]))
    return found


class Looks(ast.NodeTransformer):
    """Puts `LOOK(...)` around what functions return, and around the elements of comprehensions, which are functions too."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        self.generic_visit(node)
        return ast.Return(looked_at(node.value or ast.Constant(None)))

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        self.generic_visit(node)
        return ast.Lambda(node.args, looked_at(node.body))

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp):
        self.generic_visit(node)
        return type(node)(looked_at(node.elt), node.generators)

    visit_GeneratorExp = visit_ListComp


def looked_at(value: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(LOOK, ast.Load()), [value], [])


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Of all functions that a module or class defines, but for those inside functions."""
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            if not one.co_flags & inspect.CO_OPTIMIZED:  # the body of a class
                yield from codes_in(one)


@functools.cache
def looking_codes(file: Path) -> dict[tuple[str, int], CodeType]:
    """The code that looks, by name and line."""
    tree = ast.fix_missing_locations(Looks().visit(ast.parse(file.read_text())))
    return {(code.co_qualname, code.co_firstlineno): code for code in codes_in(compile(tree, str(file), "exec"))}


@functools.cache
def functions_of(files: frozenset[str]) -> list[FunctionType]:
    """That live, also behind decorators; those that others define while they run have their code from these."""
    return [one for one in gc.get_objects() if isinstance(one, FunctionType) and one.__code__.co_filename in files]


@contextlib.contextmanager
def checked(*files: Path) -> Iterator[Checked]:
    """While this is open, functions of these files, by default of the whole package, are looked at when they return."""
    result, paths = Checked(), {str(file): file for file in files or PACKAGE.rglob("*.py")}

    def look(returned: Any) -> Any:
        frame = sys._getframe(1)
        suffixes = suffixes_of(frame.f_code, frame.f_globals["__doc__"] or "")
        if suffixes:
            result.frame(frame, returned, suffixes)
        return returned

    plain = {}
    for function in functions_of(frozenset(paths)):
        code = function.__code__
        other = looking_codes(paths[code.co_filename]).get((code.co_qualname, code.co_firstlineno))
        if other is not None:
            plain[function], function.__code__ = code, other
    setattr(builtins, LOOK, look)
    try:
        yield result
    finally:
        delattr(builtins, LOOK)
        for function, code in plain.items():
            function.__code__ = code
