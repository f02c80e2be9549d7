"""`infini-jax mechanisms`: bytes, FLOPs and compression of each mechanism."""

from infini_jax.cli.model_options import Shape, made, sized
from infini_jax.cli.output import terminal
from infini_jax.cli.tables import length_table, mechanism_table
from infini_jax.errors import require, suggestion
from infini_jax.memory import MECHANISMS


def mechanisms(model: Shape = Shape(), memory_bytes: int = 0, memory_axis: str = "", context: int = 32_768) -> None:
    """Compare the mechanisms: memory, FLOPs per token, compression relative to a full key-value cache, and which grow.

    Example: `infini-jax mechanisms --memory-bytes 65536 --model.segment 128`

    Args:
      model: sizes of the transformer.
      memory_bytes: largest memory that fits in this many bytes per sequence; 0 keeps each mechanism's default.
      memory_axis: axis along which memories grow, such as heads; only mechanisms that have it are listed.
      context: number of tokens of the full cache they are compared with.
    """
    require(context >= 1, "context", f"{context} tokens fill no cache", "give at least 1")
    configs = [made(mechanism.Config(), model) for mechanism in MECHANISMS.values()]
    if memory_axis:
        configs = [config for config in configs if memory_axis in MECHANISMS[config.mechanism].axes]
        known = {axis for mechanism in MECHANISMS.values() for axis in mechanism.axes}
        require(bool(configs), "memory axis", f"no mechanism grows along '{memory_axis}'", suggestion(memory_axis, known))
    models = [sized(config, memory_bytes, memory_axis) for config in configs]
    terminal().print(mechanism_table(models, context))
    terminal().print(length_table(models))
