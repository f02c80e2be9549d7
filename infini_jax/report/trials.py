"""Trials of learning rates: figures and tables have the runs of the chosen rate, the table of trials has them all."""

import dataclasses

from infini_jax.records.rows import Row
from infini_jax.report.found import Found, by, by_task
from infini_jax.report.looks import label_of, series_of
from infini_jax.report.parts import NotMeasured, Table, flops_text, middle
from infini_jax.study.trials import best_rate, by_point, chosen
from infini_jax.units import human_bytes


def points_of(found: Found) -> list[tuple[str, list[Row]]]:
    """The trials of each point, as (task, rows): runs whose data differ are not trials of the same point."""
    return [(task, rows) for task, of in by_task(found.rows, found.configs).items() for rows in by_point(of).values()]


def only_chosen(found: Found) -> Found:
    """The results without the trials whose learning rate was not chosen."""
    return only_rows(found, {row.run for _, rows in points_of(found) for row in chosen(rows)})


def only_rows(found: Found, runs: set[str]) -> Found:
    """The results of some of the finished runs, by name; what is missing stays."""
    return dataclasses.replace(
        found,
        rows=[row for row in found.rows if row.run in runs],
        measures=[(run, measure) for run, measure in found.measures if run in runs],
    )


def trials_table(found: Found) -> Table | NotMeasured:
    """The table of every learning rate that was tried at each point, and which was chosen. `found` holds all trials."""
    points = points_of(found)
    tried = [(task, rows) for task, rows in points if len({row.learning_rate for row in rows}) > 1]
    if not tried:
        return NotMeasured("trials", "Trials of learning rates", "runs that differ only in the learning rate and the seed")
    total = sum(row.flops_actual for row in found.rows)
    taken = sum(row.flops_actual for _, rows in points for row in chosen(rows))
    return Table(
        "Every learning rate tried, with the validation loss: median over seeds, and their range. The one with the lowest "
        "median is taken, and only its runs are in figures and other tables. Training FLOPs of all runs "
        f"{flops_text(total)}, of those taken {flops_text(taken)}.",
        ("Mechanism", "Task", "Memory", "Learning rate: loss", "FLOPs", "Chosen rate"),
        tuple(
            (
                label_of(series_of(rows[0])),
                task,
                human_bytes(rows[0].memory_bytes),
                "; ".join(rates_of(rows)),
                flops_text(sum(row.flops_actual for row in rows)),
                where_text(rows),
            )
            for task, rows in tried
        ),
        words=True,
    )


def where_text(rows: list[Row]) -> str:
    """Whether the chosen rate lies inside those tried, and the budget where a point climbs a ladder, as text."""
    inside = {None: "not known", True: "inside", False: "at an edge"}[rows[0].rate_inside]
    return inside if rows[0].rung is None else f"{inside}, rung {rows[0].rung}"


def rates_of(rows: list[Row]) -> list[str]:
    """Each learning rate of a point with its losses, as text."""
    rates, best = by(rows, lambda row: row.learning_rate or 0.0), best_rate(rows) or 0.0
    return [
        f"{rate:g}: {middle([row.loss for row in group], '{:.4f}'.format)}{' ← taken' if rate == best else ''}"
        for rate, group in rates.items()
    ]
