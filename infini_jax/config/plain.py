"""Settings as plain JSON values and back, and their digest. Members of a registry carry their name there under `kind`."""

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import marshal
import typing
from collections.abc import Callable, Iterator
from typing import Any

from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.errors import ConfigError, check_value, hints_of, lookup, require, suggestion
from infini_jax.files import json_text
from infini_jax.memory import COMPOSED, MECHANISMS
from infini_jax.memory.base import MemoryConfig


def digest_of(science: dict[str, Any]) -> str:
    """Digest of plain JSON values, twelve hex digits of SHA-256."""
    return hashlib.sha256(json_text(science, sort_keys=True).encode()).hexdigest()[:12]


def fingerprint_of(settings: Any) -> str:
    """Digest of a frozen dataclass apart from its name and variant, twelve hex digits."""
    return digest_of({name: value for name, value in science_of(settings).items() if name not in ("name", "variant")})


def mechanism_of(memory: MemoryConfig) -> str:
    """The registry name of a memory's settings. Raises `ConfigError` where they are in no row."""
    names = MECHANISMS.names_of(type(memory))
    require(bool(names), "memory", f"{type(memory).__name__} is in no row of the registry", "add it to MECHANISMS")
    return names[0]


def memory_kind(memory: MemoryConfig) -> str:
    """The name of a memory's settings in plain ones: that of the mechanism, or of what is composed of several."""
    return next((name for name, kind in COMPOSED.items() if kind is type(memory)), None) or mechanism_of(memory)


def kind_of(value: Any, table: dict[str, type]) -> str:
    """The registry name of a settings object in `table`, found by its class."""
    return next(name for name, kind in table.items() if kind is type(value))


def science_of(settings: Any) -> dict[str, Any]:
    """Plain JSON values of settings for a digest: those that came later than results enter where they are no default."""
    return to_plain(settings, lambda field, value: not (field.metadata.get("later") and value == field.default))


def to_plain(value: Any, takes: Callable[[dataclasses.Field, Any], bool] = lambda field, value: True) -> Any:
    """Plain JSON values of settings: dataclasses become dicts, tuples become lists; members of a registry get a `kind`.

    `takes` says of a field and its value whether they are among them.
    """
    if not dataclasses.is_dataclass(value):
        return [to_plain(one, takes) for one in value] if isinstance(value, tuple) else value
    found = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    plain = {field.name: to_plain(one, takes) for field, one in found if takes(field, one)}
    if isinstance(value, MemoryConfig):
        return {"kind": memory_kind(value), **plain}
    return {"kind": kind_of(value, SOURCES), **plain} if type(value) in SOURCES.values() else plain


def from_plain(kind: Any, plain: Any, where: str) -> Any:
    """A value of type `kind` from plain JSON values, the inverse of `to_plain`.

    `where` is its path in messages. Raises `ConfigError` with the nearest name for an unknown field or registry name.
    """
    if kind is MemoryConfig or kind is DataConfig:
        check_value(where, plain, dict)
        name: Any = plain.get("kind")
        composed = COMPOSED.get(name) if kind is MemoryConfig and isinstance(name, str) else None
        found: Any = composed or lookup(f"{where}.kind", name, MECHANISMS if kind is MemoryConfig else SOURCES)
        settings = found.Config if kind is MemoryConfig and composed is None else found
        return from_plain(settings, {name: value for name, value in plain.items() if name != "kind"}, where)
    settings, is_optional = settings_within(kind)
    if is_optional:  # or None
        return None if plain is None else from_plain(settings, plain, where)
    if settings is not None:
        made = _made.get()
        if made is None:
            return settings_from_plain(kind, plain, where)
        text = (kind, where, marshal.dumps(plain, 2))  # no text is made faster; later versions tell the same values apart
        if text not in made:
            made[text] = settings_from_plain(kind, plain, where)
        return made[text]
    if isinstance(plain, list):
        inner, *_ = typing.get_args(kind) or (None,)  # of tuple[inner, ...]
        return tuple(from_plain(inner, one, where) for one in plain)
    return plain


@functools.cache
def settings_within(kind: Any) -> tuple[Any, bool]:
    """(the dataclass that a value of type `kind` is, None for other values; whether it may be None instead)."""
    is_tuple = typing.get_origin(kind) is tuple
    inner = [one for one in typing.get_args(kind) if dataclasses.is_dataclass(one) and not is_tuple]
    return (inner[0], True) if inner else (kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None, False)


def settings_from_plain(kind: Any, plain: Any, where: str) -> Any:
    """The dataclass `kind` from plain JSON values, see `from_plain`."""
    check_value(where, plain, dict)
    types_of = hints_of(kind)
    for name in plain:
        if name not in types_of:
            raise ConfigError(f"{where}.{name}", "there is no such setting", suggestion(name, types_of))
    return kind(**{name: from_plain(types_of[name], value, f"{where}.{name}") for name, value in plain.items()})


_made: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar("made", default=None)


@contextlib.contextmanager
def each_made_once() -> Iterator[None]:
    """A context in which `from_plain` makes settings of the same values one object, checked once: for many runs of a study.

    Registries stay as they are in it.
    """
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)
