"""Registry of mechanisms: rows of this package and of a user's own file, and those that installed packages declare.

A package of its own declares a mechanism as an entry point of the group `infini_jax.mechanisms`; its name is the row's:

  [project.entry-points."infini_jax.mechanisms"]
  fading = "fading_memory:Fading"

Every process finds it in the installed packages' metadata: commands, workers and reports know it without an edit. A module
is imported when its row is asked for, not when a name is looked up. A package that cannot be loaded is told once in one line
and left out of all loops; asked for by name, it is a `ConfigError`. A name that is taken is told and left out.
"""

import importlib.metadata
import logging
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from infini_jax.errors import ConfigError, named_line, require, require_file_name
from infini_jax.memory.base import Memory
from infini_jax.memory.declared import check_declared

GROUP = "infini_jax.mechanisms"
logger = logging.getLogger(__name__)


class Registry(MutableMapping[str, type[Memory]]):
    """Mechanisms by name. A row that is assigned stands before one that a package declares under the same name.

    Loops, `values` and `items` take the rows that can be loaded; `in` looks at names alone.
    """

    def __init__(self, own: dict[str, type[Memory]], composed: Iterable[str] = ()):
        """`own` are the rows whose names no package may take, and `composed` names that no row may have."""
        self._composed = frozenset(composed)
        self._rows, self._own, self._told = dict(own), frozenset(own) | self._composed, set[str]()
        self._declared: dict[str, importlib.metadata.EntryPoint] | None = None

    def __getitem__(self, name: str) -> type[Memory]:
        """The class of a mechanism. Raises `ConfigError` with the package where that cannot be loaded, else `KeyError`."""
        if name not in self._rows and name in self._packages():
            self._rows[name] = self._loaded(self._packages()[name])
        return self._rows[name]

    def __setitem__(self, name: str, mechanism: type[Memory]) -> None:
        """Adds a row.

        Raises `ConfigError` for a name of composed settings, and where the class does not declare what it must
        (`check_declared`).
        """
        problem = f"'{name}' means settings that are composed of mechanisms, or of none"
        require(name not in self._composed, "MECHANISMS", problem, "give the mechanism another name")
        check_declared(mechanism)
        self._rows[name] = mechanism

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._packages()

    def __iter__(self) -> Iterator[str]:
        return (name for name in (*self._rows, *(one for one in self._packages() if one not in self._rows)) if self.get(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, name: str, default: Any = None) -> Any:
        """The class of a mechanism; `default` where there is none, or its package cannot be loaded, which is told once."""
        try:
            return self[name]
        except KeyError:
            return default
        except ConfigError as error:
            self._tell(str(error))
            return default

    def configs(self) -> dict[str, type]:
        """The class of each mechanism's settings, by name."""
        return {name: mechanism.Config for name, mechanism in self.items()}

    def names_of(self, settings: type) -> list[str]:
        """Names of the rows with this class of settings; packages are loaded only where no row that is at hand has it."""
        found = [name for name, mechanism in self._rows.items() if mechanism.Config is settings]
        return found or [name for name, mechanism in self.items() if mechanism.Config is settings]

    def _packages(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Entry points by name, those whose name is taken left out; looked for once."""
        if self._declared is None:
            self._declared = {}
            for one in importlib.metadata.entry_points(group=GROUP):
                first = self._declared.setdefault(one.name, one)
                if one.name in self._own or first is not one:
                    whose = "infini_jax" if one.name in self._own else package_of(first)
                    problem = f"{package_of(one)} calls a mechanism '{one.name}', as {whose} does"
                    self._tell(f"{GROUP}: {problem}; have it renamed, until then it is left out")
            for name in self._own:
                self._declared.pop(name, None)
        return self._declared

    def _loaded(self, one: importlib.metadata.EntryPoint) -> type[Memory]:
        """The class that an entry point names. Raises `ConfigError` with the package in one line, whatever went wrong."""
        mend = f"mend or uninstall {package_of(one).removeprefix('package ')}"
        try:
            require_file_name("its name", one.name)
            mechanism = one.load()
            require(
                isinstance(mechanism, type) and issubclass(mechanism, Memory),
                one.value,
                "it is not a Memory",
                "name the class",
            )
            check_declared(mechanism)
            used = [name for name, other in self._rows.items() if other.Config is mechanism.Config and other is not mechanism]
            require(not used, one.value, f"its Config is that of {', '.join(used)}", "give it one of its own")
        except Exception as error:  # a module of somebody else's may raise anything
            problem = f"{package_of(one)} does not load: {named_line(error)}"
            raise ConfigError(f"mechanism {one.name}", problem, mend) from error
        return mechanism

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            logger.warning("infini-jax: %s", line)


def package_of(one: importlib.metadata.EntryPoint) -> str:
    """What an entry point's package is called in messages."""
    return f"package {one.dist.name}" if one.dist else f"package of {one.value}"
