"""Tables for the terminal, 80 columns wide."""

from pathlib import Path

from rich import box
from rich.table import Table

from infini_jax.config import ModelConfig
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import model_cost
from infini_jax.records.rows import Row
from infini_jax.units import human_bytes, human_count, human_time


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
    table = Table("mechanism", title="memory for a document of this many tokens, all layers")
    for length in LENGTHS:
        table.add_column(length, justify="right")
    for model in models:
        sizes = [model.bytes_holding(tokens) for tokens in LENGTHS.values()]
        if len(set(sizes)) > 1:
            table.add_row(model.mechanism, *map(human_bytes, sizes))
    table.caption = "all others have one size, whatever the length"
    return table


def result(row: Row, folder: Path) -> Table:
    """A table of what a run came to, with where it is; all columns of the row are in its folder."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0), title=row.run, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    share = "" if row.accuracy != row.accuracy else f", {100 * row.accuracy:.1f} % of tokens right"
    table.add_row("held-out loss", f"{row.loss:.4f} nats/token{share}")
    if row.test_loss is not None and row.test_accuracy is not None:
        table.add_row("test loss", f"{row.test_loss:.4f} nats/token, {100 * row.test_accuracy:.1f} % of tokens right")
    table.add_row("training loss", f"{row.train_loss:.4f} nats/token")
    table.add_row("memory", f"{row.mechanism} {row.variant}".strip() + f", {human_bytes(row.memory_bytes)} per sequence")
    early = f", stopped early: {row.stopped_early}" if row.stopped_early else ""
    table.add_row("training", f"{row.steps:,} steps, {row.tokens:,} tokens, {human_count(row.flops_actual)} FLOPs{early}")
    if row.skipped_steps:
        table.add_row("skipped steps", f"{row.skipped_steps:,}, whose gradient was not finite")
    speed = f", {row.tokens / row.seconds:,.0f} tokens/s" if row.seconds else ""
    table.add_row("time", f"{human_time(row.seconds)}{speed}; compiled in {human_time(row.compile_seconds)}")
    table.add_row("folder", str(folder))
    return table
