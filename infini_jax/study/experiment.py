"""Experiments by name or file: modules with a function `study()`, or `study(scale)`, that returns a `Study`."""

import dataclasses
import inspect
from pathlib import Path
from types import ModuleType

from infini_jax.errors import ConfigError, lookup, quoted, require
from infini_jax.files import shipped
from infini_jax.study.own_code import loaded
from infini_jax.study.study import Study

SCALES = ("smoke", "cpu", "accelerator")  # seconds to see that it runs; two cores; one large accelerator


def load_experiment(name: str, scale: str = "") -> Study:
    """The study of experiments/<name>.py, or of the Python file at that path, at one of `SCALES` where it has scales.

    Raises `ConfigError` where there is no such experiment, or it does not have the scale.
    """
    is_own = name.endswith(".py")
    file = Path(name).resolve() if is_own else _shipped(name)
    found = _study_of(loaded(file), name, scale)
    return dataclasses.replace(found, own_code=str(file)) if is_own else found


def _study_of(module: ModuleType, name: str, scale: str) -> Study:
    require(hasattr(module, "study"), "experiment", f"'{name}' has no function study()", "define one that returns a Study")
    if "scale" not in inspect.signature(module.study).parameters:
        require(not scale, "scale", f"'{name}' has one scale only", "leave --scale out")
        return _checked(module.study(), name)
    problem = f"'{scale}' is none" if scale else f"'{name}' has several"
    require(scale in SCALES, "scale", problem, f"give --scale {', '.join(SCALES[:-1])} or {SCALES[-1]}")
    return dataclasses.replace(_checked(module.study(scale), name), scale=scale)


def _checked(found: object, name: str) -> Study:
    """What study() of a file returned. Raises `ConfigError` unless it is a study."""
    if not isinstance(found, Study):
        problem = f"study() of '{name}' returned {type(found).__name__} {quoted(found)}"
        raise ConfigError("experiment", problem, "return an infini_jax.study.study.Study")
    return found


def _shipped(name: str) -> Path:
    """The file of an experiment that comes with the package. Raises `ConfigError` for an unknown name."""
    known = {file.stem: file for file in shipped("experiments").glob("[!_]*.py")}
    return lookup("experiment", name, known)
