"""The rows as a table for the terminal."""

import statistics
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from infini_jax.records.rows import Row
from infini_jax.report.found import by_task
from infini_jax.report.looks import label_of
from infini_jax.report.parts import flops_text, spread
from infini_jax.report.sections import groups, median_word, tokens_per_second
from infini_jax.report.settled import top_rows
from infini_jax.study.scores import score_of
from infini_jax.units import human_bytes


def terminal_table(rows: Sequence[Row]) -> Table:
    """The rows as a table of 80 columns: a line per mechanism and memory, with the median over seeds and their range.

    Scores are those of the validation split, which every row has, and the head says so; reports have evaluations.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    several = bool(median_word(rows))
    table.add_column("task", no_wrap=True)
    table.add_column("mechanism", overflow="fold")
    for head in ("memory", "validation", *(["seeds"] if several else []), "FLOPs", "tokens/s"):
        table.add_column(head, justify="right", no_wrap=True)
    for task, every in by_task(rows, {}).items():
        of_task = top_rows(every)
        score = score_of(task)
        for number, (series, runs) in enumerate(groups(of_task)):
            values = [score.of(row) for row in runs]
            table.add_row(
                Text("" if number else task),  # text for any console, also one that reads markup
                Text(label_of(series)),
                human_bytes(runs[0].memory_bytes),
                score.number(statistics.median(values)) + ("" if score.unit else " %"),
                *([spread(values, score.number)] if several else []),
                spread([statistics.median(row.flops_actual for row in runs)], flops_text),
                tokens_per_second(runs),
            )
        table.add_section()
    return table
