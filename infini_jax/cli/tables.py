"""Tables for the terminal, 80 columns wide."""

import dataclasses

from rich.table import Table

from infini_jax.config import ModelConfig
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import model_cost
from infini_jax.records.rows import Row
from infini_jax.units import human_bytes, human_count


def mechanism_table(models: list[ModelConfig], context: int) -> Table:
    """A table of bytes, compression against keys and values of all `context` tokens, and forward FLOPs per token."""
    table = Table(title=f"a sequence of {context} tokens, all layers together")
    table.add_column("mechanism")
    for name in ("memory", "compression", "attention FLOPs/token", "all FLOPs/token"):
        table.add_column(name, justify="right")
    for model in models:
        cost = model_cost(model)
        compression = f"{model.cache_bytes(context) / model.memory_bytes:.4g}x" if model.memory_bytes else "-"
        table.add_row(
            model.mechanism,
            human_bytes(model.memory_bytes),
            compression,
            human_count(cost.attention.flops),
            human_count(cost.flops),
        )
    described = {model.mechanism: MECHANISMS[model.mechanism] for model in models}
    table.caption = "\n".join(f"{name}: {mechanism.summary} ({mechanism.paper})" for name, mechanism in described.items())
    return table


LENGTHS = {"4K": 1 << 12, "64K": 1 << 16, "1M": 1 << 20}  # tokens of a document


def length_table(models: list[ModelConfig]) -> Table:
    """A table of the bytes that hold documents of some lengths, of mechanisms whose memory grows with them."""
    table = Table("mechanism", title="memory that holds a document of so many tokens, all layers together")
    for length in LENGTHS:
        table.add_column(length, justify="right")
    for model in models:
        sizes = [model.bytes_holding(tokens) for tokens in LENGTHS.values()]
        if len(set(sizes)) > 1:
            table.add_row(model.mechanism, *map(human_bytes, sizes))
    table.caption = "all others have one size, whatever they read"
    return table


def key_values(row: Row) -> Table:
    """A table of one run's row, with one line per column."""
    table = Table("column", "value")
    for name, value in dataclasses.asdict(row).items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    return table
