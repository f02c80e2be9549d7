"""Tables of evaluations for the terminal, at most 80 columns wide."""

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from infini_jax.evals.perplexity import Perplexity
from infini_jax.records.measures import Label, Measure


def figures_table(found: Perplexity, title: str) -> Table:
    """A table with one line per condition: nats per token, word perplexity, bits per byte."""
    table = Table("memory", title=title, box=box.SIMPLE_HEAD)
    for name in ("nats per token", "word perplexity", "bits per byte"):
        table.add_column(name, justify="right")
    for condition in found.conditions:
        figures = found.figures(condition)
        numbers = (f"{figures['loss']:.4f}", f"{figures['word_perplexity']:.5g}", f"{figures['bits_per_byte']:.4f}")
        table.add_row(condition, *numbers)
    cut = f", {found.cut} of them cut" if found.cut else ""
    table.caption = f"{len(found.documents)} documents{cut}\n{found.tokens:,} tokens, accuracy {100 * found.accuracy:.2f} %"
    return table


def position_table(found: Perplexity) -> Table:
    """A table with one line per range of places in the document: nats per token by condition, bits per byte of the first."""
    table = Table(title="nats per token by place in the document", box=box.SIMPLE_HEAD)
    for name in ("from", "tokens", *found.conditions, "bits per byte"):
        table.add_column(name, justify="right")
    for place in found.by_position():
        losses = [place[condition] for condition in found.conditions]
        numbers = (f"{number:.4f}" for number in (*losses, found.counts.bits_per_byte(losses[0])))
        table.add_row(f"{place['from']:,}", f"{place['tokens']:,}", *numbers)
    return table


MOST_COLUMNS = 5  # of metrics with their intervals, in 80 columns


def measure_tables(measures: Sequence[Measure], title: str) -> list[Table]:
    """A table for each set of label names: a line for each of their values, a column for each metric with its interval.

    More metrics than `MOST_COLUMNS` have a line each, and the values have columns. A label that never changes stands in the
    caption.
    """
    tables = []
    for names in dict.fromkeys(tuple(one.labels) for one in measures):
        part = [one for one in measures if tuple(one.labels) == names]
        tables.append(_table(names, part, title))
        title = ""
    return tables


def _table(names: tuple[str, ...], part: Sequence[Measure], title: str) -> Table:
    values = {name: {one.labels[name] for one in part} for name in names}
    axes = [name for name in names if len(values[name]) > 1]
    metrics = list(dict.fromkeys(one.metric for one in part))
    lines: dict[tuple[Label, ...], dict[str, Measure]] = {}
    for one in part:
        lines.setdefault(tuple(one.labels[name] for name in axes), {})[one.metric] = one
    cells = [[_figure(found[metric]) if metric in found else "" for metric in metrics] for found in lines.values()]
    named = [tuple(map(_label, labels)) for labels in lines]
    heads, rows = (*axes, *metrics), [(*labels, *row) for labels, row in zip(named, cells, strict=True)]
    if len(metrics) > MOST_COLUMNS:
        heads, rows = (" ".join(axes), *map(" ".join, named)), list(zip(metrics, *cells, strict=True))
    table = Table(title=title or None, box=box.SIMPLE_HEAD)
    for name in heads:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*row)
    same = [f"{name.replace('_', ' ')} {_label(next(iter(values[name])))}" for name in names if name not in axes]
    counts = {one.count for one in part}
    same.append(
        f"{min(counts):,} to {max(counts):,} answers per figure" if len(counts) > 1 else f"{min(counts):,} answers per figure"
    )
    table.caption = ", ".join(same)
    return table


def _label(label: Label) -> str:
    return label if isinstance(label, str) else f"{label:,}" if isinstance(label, int) else f"{label:g}"


def _figure(one: Measure) -> str:
    """The value of a figure as text, with its interval where one is known."""
    return f"{one.value:.3g}" if math.isnan(one.low) else f"{one.value:.3f} ({one.low:.2f}-{one.high:.2f})"
