"""The table of predictions P1 to P7: predicted, measured with its interval, verdict, and what stands behind it."""

import math
from collections.abc import Sequence

from infini_jax.report.found import Found, StudySource, folder_names
from infini_jax.report.parts import NotMeasured, Table, estimate
from infini_jax.report.predictions import predictions


def predictions_table(sources: Sequence[StudySource], each: Sequence[Found]) -> Table | NotMeasured:
    """The table of predictions: a line for each and its memory, study by study; those that nothing measures have one line.

    `each` has what was found of each source.
    """
    judged = (predictions(found.rows, found.measures, source.jobs) for source, found in zip(sources, each, strict=True))
    named = zip(folder_names([source.folder for source in sources]), judged, strict=True)
    all_lines = [(name, line) for name, lines in named for line in lines]
    measured = [(name, line) for name, line in all_lines if math.isfinite(line.measured.value)]
    if not measured:
        needs = "the studies of capacity, forgetting, passkey and MQAR with three seeds or more"
        return NotMeasured("predictions", "Predictions P1 to P7 and their verdicts", needs)
    done = {line.name for _, line in measured}
    others = {line.name: ("", line) for _, line in all_lines if line.name not in done}
    several = len(sources) > 1
    return Table(
        "The 95 % interval over seeds alone judges: inside what is claimed a prediction agrees, outside it contradicts; where "
        "the interval crosses an edge, or there is none, as with fewer than three seeds, it is not settled.",
        ("Prediction", "About", "Predicted", "Measured [95 % interval]", "Verdict", "Why", "From"),
        tuple(
            (
                line.name,
                f"{line.subject} ({name})" if several and name else line.subject,
                line.predicted,
                estimate(line.measured) or "–",
                line.verdict,
                line.reason,
                str(line.behind) or "–",
            )
            for name, line in sorted([*measured, *others.values()], key=lambda pair: pair[1].name)
        ),
        words=True,
    )
