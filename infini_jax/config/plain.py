"""Settings as plain JSON values and back, and their digest. Members of a registry carry their name there under `kind`."""

import dataclasses
import hashlib
import json
import typing
from typing import Any

from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.errors import lookup, require, suggestion
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig


def digest_of(science: dict[str, Any]) -> str:
    """Twelve hex digits of plain JSON values."""
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:12]


def fingerprint_of(settings: Any) -> str:
    """`digest_of` a frozen dataclass but for its name and variant."""
    return digest_of({name: value for name, value in to_plain(settings).items() if name not in ("name", "variant")})


def mechanism_configs() -> dict[str, type]:
    """Registry name -> settings class of the mechanisms."""
    return {name: mechanism.Config for name, mechanism in MECHANISMS.items()}


def kind_of(value: Any, table: dict[str, type]) -> str:
    """The registry name of a settings object."""
    return next(name for name, kind in table.items() if kind is type(value))


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists; members of a registry get a `kind`."""
    if not dataclasses.is_dataclass(value):
        return [to_plain(one) for one in value] if isinstance(value, tuple) else value
    plain = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for table in (mechanism_configs(), SOURCES):
        if type(value) in table.values():
            return {"kind": kind_of(value, table), **plain}
    return plain


def from_plain(kind: Any, plain: Any, where: str) -> Any:
    """A value of type `kind` from JSON values."""
    for base, table in ((MemoryConfig, mechanism_configs()), (DataConfig, SOURCES)):
        if kind is base:
            return from_plain(
                lookup(f"{where}.kind", plain["kind"], table), {k: v for k, v in plain.items() if k != "kind"}, where
            )
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        types_of = typing.get_type_hints(kind)
        for name in plain:
            require(name in types_of, f"{where}.{name}", "is no setting", suggestion(name, types_of))
        return kind(**{name: from_plain(types_of[name], value, f"{where}.{name}") for name, value in plain.items()})
    if isinstance(plain, list):
        inner, *_ = typing.get_args(kind) or (None,)  # of tuple[inner, ...]
        return tuple(from_plain(inner, one, where) for one in plain)
    return plain
