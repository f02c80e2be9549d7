"""What stands behind a number: split, number of answers, seeds, rung of the budget, learning rates."""

import dataclasses
from collections.abc import Iterable, Sequence

from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.report.found import by
from infini_jax.report.parts import flops_text


@dataclasses.dataclass(frozen=True)
class Behind:
    """What a number is computed from; what is not known is empty.

    Attributes:
      split: the data that were asked.
      answers: number of answers or scored tokens.
      seeds: seeds of the runs.
      rungs: budgets of the runs.
      rates: learning rates of the runs.
    """

    split: str = ""
    answers: int = 0
    seeds: tuple[int, ...] = ()
    rungs: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()

    def __str__(self) -> str:
        parts = [
            self.split,
            f"{self.answers:,} answers" if self.answers else "",
            f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}" if self.seeds else "",
            " and ".join(self.rungs),
            f"rate{'s' if len(self.rates) > 1 else ''} {', '.join(f'{rate:g}' for rate in self.rates)}" if self.rates else "",
        ]
        return "; ".join(filter(None, parts))


def behind(split: str, rows: Iterable[Row], measures: Iterable[Measure] = ()) -> Behind:
    """What stands behind a number that is computed from these runs and their figures."""
    rows = list(rows)
    return Behind(
        split,
        sum(one.count for one in measures),
        tuple(sorted({row.seed for row in rows})),
        tuple(filter(None, rungs(rows))),
        tuple(sorted({row.learning_rate for row in rows if row.learning_rate is not None})),
    )


def rung_of(row: Row) -> str:
    """The budget of a run as text: its rung on a ladder of budgets; "" where nothing is trained, or no budget is known."""
    unit, amount = rung_key(row)
    if not amount:
        return ""
    return f"{flops_text(amount)} FLOPs" if unit == "flops" else f"{amount:,.10g} {unit}"


def rung_key(row: Row) -> tuple[str, float]:
    """(unit, amount) of a run's budget, ("", 0) where nothing is trained: how much was asked of a memory is no rung."""
    is_trained = row.steps > 0 or row.learning_rate is not None
    return (row.budget_unit, row.budget_amount) if is_trained else ("", 0.0)


def rungs(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs by the text of their budget, from the smallest to the largest."""
    return {rung_of(of[0]): of for of in by(rows, rung_key).values()}
