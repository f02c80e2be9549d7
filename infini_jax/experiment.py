"""Finds an experiment: a module with a function `study()` that returns a `Study`, or `study(scale)` where it has scales."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

from infini_jax.errors import require, suggestion
from infini_jax.study import Study

SCALES = ("smoke", "cpu", "accelerator")  # seconds to see that it runs; two cores; one large accelerator


def load_experiment(name: str, scale: str = "") -> Study:
    """The study of experiments/<name>.py, or of the Python file at that path, at one of `SCALES` where it has scales.

    Raises `ConfigError` where there is none, or none of that scale.
    """
    module = _from_file(Path(name)) if name.endswith(".py") else _from_package(name)
    require(hasattr(module, "study"), "experiment", f"'{name}' has no function study()", "define one that returns a Study")
    if "scale" not in inspect.signature(module.study).parameters:
        require(not scale, "scale", f"'{name}' has one scale only", "leave --scale out")
        return module.study()
    problem = f"'{scale}' is none" if scale else f"'{name}' has several"
    require(scale in SCALES, "scale", problem, f"give --scale {', '.join(SCALES[:-1])} or {SCALES[-1]}")
    return dataclasses.replace(module.study(scale), scale=scale)


def _from_file(file: Path) -> ModuleType:
    require(file.is_file(), "experiment", f"there is no file {file}", "check the path")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> ModuleType:
    import experiments

    known = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
    require(name in known, "experiment", f"'{name}' is not known", suggestion(name, known))
    return importlib.import_module(f"experiments.{name}")
