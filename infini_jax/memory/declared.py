"""What the class of a mechanism must declare, checked when it enters the registry."""

from typing import Literal

from infini_jax.errors import check_value, require
from infini_jax.memory.base import Honored, Memory, Neighborhood, Part, Promise

REQUIRED = {
    "Config": "the class of its settings, a frozen dataclass on MemoryConfig",
    "summary": "one line for tables",
    "paper": "where it was published, or 'none'",
    "axes": "settings or dims along which it grows, such as ('slots',)",
}
METHODS = ("init_memory", "attend", "write", "logical_axes", "cost")


def check_declared(mechanism: type[Memory]) -> None:
    """Checks what a mechanism must declare: raises `ConfigError` for the first that is missing, with what to write."""
    name = mechanism.__name__
    for field, what in REQUIRED.items():
        require(hasattr(mechanism, field), f"{name}.{field}", "it is not declared", f"set it to {what}")
    for method in METHODS:
        missing = getattr(mechanism, method) is getattr(Memory, method)
        require(not missing, f"{name}.{method}", "it is not implemented", "write it as infini_jax.memory.base.Memory says")
    require(bool(mechanism.axes), f"{name}.axes", "there is none, so that no size can be chosen", "name at least one")
    check_value(f"{name}.learns", tuple(mechanism.learns), tuple[Part, ...])
    check_value(f"{name}.holds", mechanism.holds, Literal["matrix", "slots", "other"])
    check_value(f"{name}.exempt", tuple(mechanism.exempt), tuple[Promise, ...])
    check_value(f"{name}.neighborhoods", tuple(mechanism.neighborhoods), tuple[Neighborhood, ...])
    check_value(f"{name}.honors", tuple(mechanism.honors), tuple[Honored, ...])
    check_value(f"{name}.keeps_bfloat16", mechanism.keeps_bfloat16, bool)
    check_value(f"{name}.reads_own", mechanism.reads_own, bool)
    on_stream = bool(mechanism.neighborhoods) and mechanism.works_on_stream()
    require(
        not on_stream, f"{name}.neighborhoods", "it works on the residual stream, whose segments stand alone", "leave it out"
    )
