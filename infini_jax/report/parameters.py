"""The second reading, at equal parameters: which mechanisms of the same bytes may be compared as models of the same size, too.

A matrix grows with its key dimension or its heads, and the projections with it; a cache of tokens grows by slots, which have
no parameters. At equal bytes models may then differ several times in parameters, and the difference of their scores is not
the memory's alone.
"""

from collections.abc import Sequence

from infini_jax.records.rows import Row
from infini_jax.report.behind import behind
from infini_jax.report.found import Found, by, by_task
from infini_jax.report.looks import label_of
from infini_jax.report.parts import NotMeasured, Table, middle, spread
from infini_jax.report.plots import by_series
from infini_jax.report.scores import score_for
from infini_jax.study.factors import size_classes
from infini_jax.study.ladder import SAME_BYTES
from infini_jax.study.scores import Score
from infini_jax.study.study import BOUNDS
from infini_jax.units import human_bytes

SAME_PARAMETERS = 1.1  # ratio of two models' parameters up to which they count as equal
TITLE = "Scores at equal bytes and equal parameters"


def parameters_table(found: Found) -> Table | NotMeasured:
    """The table of scores at equal bytes and equal parameters: a line for each group of mechanisms that are alike in both."""
    lines = []
    for task, rows in by_task(found.rows, found.configs).items():
        trained = [row for row in rows if row.learning_rate is not None and row.mechanism not in BOUNDS and row.memory_bytes]
        classes, score = size_classes(row.memory_bytes for row in trained), score_for(rows, found)
        for of in by(trained, lambda row, classes=classes: classes[row.memory_bytes]).values():
            lines += lines_at(task, of, score)
    if not lines:
        return NotMeasured("parameters", TITLE, "runs of two mechanisms at the same bytes of memory")
    return Table(
        f"{TITLE}: mechanisms whose bytes are within a factor of {SAME_BYTES:g} and whose parameters are within "
        f"{SAME_PARAMETERS:g} of the smallest of their line, median over seeds and their range. A mechanism that is alone in "
        "its line has no other of as many parameters at these bytes: its score beside theirs is not the memory's alone.",
        ("Task", "Memory", "Parameters", "Scores", "From"),
        tuple(lines),
        words=True,
    )


def lines_at(task: str, rows: Sequence[Row], score: Score) -> list[tuple[str, ...]]:
    """The lines of one task and one size of memory; none where a single mechanism has it."""
    series = by_series(rows)
    if len(series) < 2:
        return []
    lines = []
    for group in alike_in_parameters(rows):
        each = [f"{label_of(one)} {middle(map(score.of, of), score.text)}" for one, of in by_series(group).items()]
        sizes, counts = (row.memory_bytes for row in group), (row.parameters for row in group)
        memory, parameters = spread(sizes, human_bytes), spread(counts, "{:,}".format)
        lines.append((task, memory, parameters, "; ".join(each), str(behind(score.split, group))))
    return lines


def alike_in_parameters(rows: Sequence[Row]) -> list[list[Row]]:
    """The runs by parameters, from few to many: a group ends where one has more than `SAME_PARAMETERS` times its smallest."""
    groups: list[list[Row]] = []
    for count, of in by(rows, lambda row: row.parameters).items():
        if groups and count <= SAME_PARAMETERS * groups[-1][0].parameters:
            groups[-1] += of
        else:
            groups.append(of)
    return groups
