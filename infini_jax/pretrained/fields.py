"""Plain settings of a foreign model, read field by field: what has another type or an unsupported value is named."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from infini_jax.errors import ConfigError, article, quoted, require

NO_DEFAULT = object()
UNSUPPORTED = "import a model without it"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Settings by name.

    Attributes:
      values: plain values.
      owner: name in front of a field in messages, such as rope_scaling.
    """

    values: Mapping[str, Any]
    owner: str = ""

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def name(self, field: str) -> str:
        """The name of a field in messages."""
        return f"{self.owner}.{field}" if self.owner else field

    def whole(self, field: str, default: Any = NO_DEFAULT) -> int:
        """A whole number. Raises `ConfigError` where the field is none, or missing without a default."""
        return self._typed(field, default, int, "whole number")

    def number(self, field: str, default: Any = NO_DEFAULT) -> float:
        """A number. Raises `ConfigError` where the field is none, or missing without a default."""
        return float(self._typed(field, default, (int, float), "number"))

    def flag(self, field: str, default: bool) -> bool:
        """A truth value. Raises `ConfigError` where the field is none."""
        return self._typed(field, default, bool, "truth value")

    def inner(self, field: str) -> "Fields":
        """The settings below a field; none of them where it is missing. Raises `ConfigError` where it is no table."""
        found = self._typed(field, {}, dict, "table of settings")
        return Fields(found, self.name(field))

    def only(self, field: str, *values: Any) -> None:
        """Checks an option that we know in these values only: raises `ConfigError` for any other, if the field is there."""
        found = self.values.get(field)
        require(found is None or found in values, self.name(field), f"{quoted(found)} is not supported", UNSUPPORTED)

    def choice(self, field: str, table: Mapping[str, str], default: str) -> str:
        """Our word for a named option. Raises `ConfigError` for a name that has none."""
        found = self.values.get(field) or default
        known = isinstance(found, str) and found in table
        require(known, self.name(field), f"{quoted(found)} is not supported", f"import a model with {' or '.join(table)}")
        return table[found]

    def _typed(self, field: str, default: Any, kind: Any, word: str) -> Any:
        found = self.values.get(field)
        found = default if found is None else found
        if found is NO_DEFAULT:
            raise ConfigError(self.name(field), "the model's settings do not say it", "add it to config.json")
        is_one = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        require(is_one, self.name(field), f"{quoted(found)} is not {article(word)} {word}", "restore the model's settings")
        return found
