"""Finds an experiment: a module with a function `study()` that returns a `Study`."""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from infini_jax.errors import require, suggestion
from infini_jax.study import Study


def load_experiment(name: str) -> Study:
    """The study of experiments/<name>.py, or of the Python file at that path. Raises `ConfigError` where there is none."""
    module = _from_file(Path(name)) if name.endswith(".py") else _from_package(name)
    require(hasattr(module, "study"), "experiment", f"'{name}' has no function study()", "define one that returns a Study")
    return module.study()


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
