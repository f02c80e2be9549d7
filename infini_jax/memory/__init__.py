"""The mechanisms. One row a mechanism: everything else (contract tests, cost table, studies, report) follows from it."""

from infini_jax.memory.base import Memory
from infini_jax.memory.compressive import Compressive
from infini_jax.memory.full import Full
from infini_jax.memory.gated_delta import GatedDelta
from infini_jax.memory.infini import Infini
from infini_jax.memory.infinite_former import InfiniteFormer
from infini_jax.memory.landmark import Landmark
from infini_jax.memory.local import Local
from infini_jax.memory.memorizing import Memorizing
from infini_jax.memory.transformer_xl import TransformerXL

MECHANISMS: dict[str, type[Memory]] = {
    "local": Local,
    "full": Full,
    "transformer_xl": TransformerXL,
    "compressive": Compressive,
    "infini": Infini,
    "gated_delta": GatedDelta,
    "memorizing": Memorizing,
    "landmark": Landmark,
    "infinite_former": InfiniteFormer,
}
