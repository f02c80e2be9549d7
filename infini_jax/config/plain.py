"""Settings as plain JSON values and back, and their digest. Members of a registry carry their name there under `kind`."""

import dataclasses
import hashlib
import typing
from typing import Any

from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.errors import check_value, lookup, require, suggestion
from infini_jax.files import json_text
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig


def digest_of(science: dict[str, Any]) -> str:
    """Digest of plain JSON values, twelve hex digits of SHA-256."""
    return hashlib.sha256(json_text(science, sort_keys=True).encode()).hexdigest()[:12]


def fingerprint_of(settings: Any) -> str:
    """Digest of a frozen dataclass apart from its name and variant, twelve hex digits."""
    return digest_of({name: value for name, value in to_plain(settings).items() if name not in ("name", "variant")})


def mechanism_configs() -> dict[str, type]:
    """The settings class of each mechanism, by registry name."""
    return {name: mechanism.Config for name, mechanism in MECHANISMS.items()}


def kind_of(value: Any, table: dict[str, type]) -> str:
    """The registry name of a settings object in `table`, found by its class."""
    return next(name for name, kind in table.items() if kind is type(value))


def to_plain(value: Any) -> Any:
    """Plain JSON values of settings: dataclasses become dicts, tuples become lists; members of a registry get a `kind`."""
    if not dataclasses.is_dataclass(value):
        return [to_plain(one) for one in value] if isinstance(value, tuple) else value
    plain = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for table in (mechanism_configs(), SOURCES):
        if type(value) in table.values():
            return {"kind": kind_of(value, table), **plain}
    return plain


def from_plain(kind: Any, plain: Any, where: str) -> Any:
    """A value of type `kind` from plain JSON values, the inverse of `to_plain`.

    `where` is its path in messages. Raises `ConfigError` with the nearest name for an unknown field or registry name.
    """
    for base, table in ((MemoryConfig, mechanism_configs()), (DataConfig, SOURCES)):
        if kind is base:
            check_value(where, plain, dict)
            settings = lookup(f"{where}.kind", plain.get("kind"), table)
            return from_plain(settings, {name: value for name, value in plain.items() if name != "kind"}, where)
    settings = [one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)]
    if settings:  # or None
        return None if plain is None else from_plain(settings[0], plain, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        check_value(where, plain, dict)
        types_of = typing.get_type_hints(kind)
        for name in plain:
            require(name in types_of, f"{where}.{name}", "is no setting", suggestion(name, types_of))
        return kind(**{name: from_plain(types_of[name], value, f"{where}.{name}") for name, value in plain.items()})
    if isinstance(plain, list):
        inner, *_ = typing.get_args(kind) or (None,)  # of tuple[inner, ...]
        return tuple(from_plain(inner, one, where) for one in plain)
    return plain
