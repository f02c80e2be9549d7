"""A user's Python file that makes a study, and registers what the study needs: mechanisms, tasks, launchers.

Every process that works on the study, or reads it again, has to load the file before it meets a name of a registry.
"""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from infini_jax.errors import ConfigError, require


def loaded(file: Path) -> ModuleType:
    """The module of a Python file. Raises `ConfigError` where there is none."""
    require(file.is_file(), "experiment", f"there is no file {file}", "check the path")
    spec = importlib.util.spec_from_file_location(name_of(file), file)
    if spec is None or spec.loader is None:
        raise ConfigError("experiment", f"{file} is not a Python file", "give a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations that are strings
    spec.loader.exec_module(module)
    return module


def name_of(file: Path) -> str:
    """The name under which a file is loaded as a module."""
    return f"infini_jax.experiments.{file.stem}"


def load_once(file: str) -> None:
    """Loads a file unless this process has, or the file is not here: results can be read without what made them."""
    before = getattr(sys.modules.get(name_of(Path(file))), "__file__", None)
    if file and before != file and Path(file).is_file():
        loaded(Path(file))


@dataclasses.dataclass(frozen=True)
class OwnCode:
    """A user's file, which is loaded where this is unpickled: in a new process, before objects whose classes are in the file.

    Attributes:
      file: path of the file, "" for none.
    """

    file: str

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (self.file,)


def unpickled(file: str) -> OwnCode:
    """The `OwnCode` of a file, which is loaded first."""
    load_once(file)
    return OwnCode(file)
