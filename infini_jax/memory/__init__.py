"""Memory mechanisms by name. One row per mechanism: all else (contract tests, cost table, studies, report) follows from it."""

from infini_jax.errors import require
from infini_jax.memory.armt import ARMT
from infini_jax.memory.base import Dims, Memory, MemoryConfig
from infini_jax.memory.beside import Beside, BesideConfig, Native, NativeConfig
from infini_jax.memory.block_recurrent import BlockRecurrent
from infini_jax.memory.compressive import Compressive
from infini_jax.memory.full import Full
from infini_jax.memory.gated_delta import GatedDelta
from infini_jax.memory.gated_delta2 import GatedDelta2
from infini_jax.memory.infini import Infini
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer
from infini_jax.memory.kimi_delta import KimiDelta
from infini_jax.memory.landmark.mechanism import Landmark
from infini_jax.memory.local import Local
from infini_jax.memory.log_linear import LogLinear
from infini_jax.memory.memorizing import Memorizing
from infini_jax.memory.memory_caching import MemoryCaching
from infini_jax.memory.neighborhood import check_local, composed
from infini_jax.memory.registry import Registry
from infini_jax.memory.rmt import RMT
from infini_jax.memory.segment_only import SegmentOnly
from infini_jax.memory.transformer_xl import TransformerXL

COMPOSED: dict[str, type[MemoryConfig]] = {"beside": BesideConfig, "native": NativeConfig, "segment_only": SegmentOnly.Config}
"""Settings that are no mechanism of their own, by name in plain settings: of several mechanisms, or of none."""

MECHANISMS = Registry(
    {
        "local": Local,
        "full": Full,
        "transformer_xl": TransformerXL,
        "compressive": Compressive,
        "infini": Infini,
        "gated_delta": GatedDelta,
        "kimi_delta": KimiDelta,
        "gated_delta2": GatedDelta2,
        "log_linear": LogLinear,
        "memory_caching": MemoryCaching,
        "memorizing": Memorizing,
        "landmark": Landmark,
        "infinite_former": InfiniteFormer,
        "rmt": RMT,
        "armt": ARMT,
        "block_recurrent": BlockRecurrent,
    },
    COMPOSED,
)
"""Registry of mechanisms: name on the command line and in results -> class. Add your own mechanism here, or declare it in a
package of its own (`infini_jax.memory.registry`)."""


def class_of(config: MemoryConfig) -> type[Memory]:
    """The class of the mechanism with these settings. Raises `ConfigError` unless it is in one row of the registry."""
    kind, name = type(config), type(config).__name__
    found = [SegmentOnly] if kind is SegmentOnly.Config else [MECHANISMS[one] for one in MECHANISMS.names_of(kind)]
    require(len(found) > 0, "memory", f"{name} is in no row of the registry", "add it to MECHANISMS")
    require(len(found) == 1, "memory", f"{name} is in {len(found)} rows of the registry", "give each mechanism its own Config")
    return found[0]


def kind_of(config: MemoryConfig) -> type[Memory]:
    """The class of the memory with these settings, one composed of several mechanisms included; errors as `class_of`."""
    composed_kinds = {NativeConfig: Native, BesideConfig: Beside}
    return next((kind for settings, kind in composed_kinds.items() if isinstance(config, settings)), None) or class_of(config)


def memory_of(config: MemoryConfig, dims: Dims) -> Memory:
    """The Linen module of a memory with these settings and sizes, and of what is carried beside it.

    Raises `ConfigError` unless the classes of the settings are in one row of the registry each, and its mechanism can have
    what is beside it.
    """
    if isinstance(config, NativeConfig):
        return Native(config, dims, class_of(config.attention))
    if isinstance(config, BesideConfig):
        native, added = class_of(config.native), class_of(config.added)
        check_local(added, config.added)
        problem = f"{added.__name__} works on the residual stream, which adding has to leave as it is"
        require(not added.works_on_stream(), "memory.added", problem, "let it replace the attention")
        return Beside(config, dims, native, added)
    return composed(class_of(config), config, dims)
