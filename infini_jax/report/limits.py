"""What a page cannot say: why nothing of a study is a conclusion, for the top of its page.

A conclusion needs several budgets, as the order of mechanisms may turn at a larger one, and an interval over seeds. A study
that lacks either shows what its runs scored, and the page says so before it shows anything.
"""

from collections.abc import Sequence

from infini_jax.analysis.intervals import FEWEST
from infini_jax.records.rows import Row
from infini_jax.report.found import Found, StudySource, by, folder_names
from infini_jax.report.looks import series_of


def limits(sources: Sequence[StudySource], each: Sequence[Found]) -> list[str]:
    """A sentence for each study of which nothing is a conclusion, with the reasons; none for the others.

    Args:
      sources: the studies.
      each: rows of the chosen rates of each source, on all rungs.
    """
    named = zip(folder_names([one.folder for one in sources]), sources, each, strict=True)
    told = []
    for name, source, found in named:
        reasons = reasons_of(source, [row for row in found.rows if row.learning_rate is not None])
        where = f" of {name}" if len(sources) > 1 else " on this page"
        shows = "What follows says what these runs scored, and no more."
        told += [f"Nothing{where} is a conclusion: {'; '.join(reasons)}. {shows}"] if reasons else []
    return told


def reasons_of(source: StudySource, rows: Sequence[Row]) -> list[str]:
    """The reasons why the trained runs of a study allow no conclusion; none where there are no such runs, or no reason.

    Runs that ended by their own loss had as large a budget as they could use.
    """
    if not rows:
        return []
    seeds = max(len({row.seed for row in of}) for of in by(rows, _point).values())
    several = f"{seeds} seed{'s' if seeds > 1 else ''} per point"
    budgets = {row.rung for row in rows if row.rung is not None}
    climbs = source.ladder is not None and len(budgets) > 1
    reasons = [] if climbs or all(row.stopped_early for row in rows) else [_one_budget(source)]
    reasons += (
        []
        if seeds >= FEWEST
        else [f"there {'is' if seeds == 1 else 'are'} {several}, and no interval from fewer than {FEWEST}"]
    )
    tried = all(row.rate_inside is None for row in rows)
    return [*reasons, "one learning rate was tried at each point"] if reasons and tried else reasons


def _one_budget(source: StudySource) -> str:
    of = "no point has finished two of its budgets" if source.ladder else "every point has one budget"
    return f"{of}, so that nothing tells whether a score or an order holds at a larger one"


def _point(row: Row) -> tuple:
    return (row.task, series_of(row), row.memory_bytes, row.budget_unit, row.budget_amount)
