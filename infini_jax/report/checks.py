"""Whether the ceiling reached the top and the floor stayed at chance: if either did not, the task or the training is wrong."""

import statistics
from collections.abc import Sequence

from infini_jax.analysis.fits import wilson
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.plots import BASELINE
from infini_jax.report.figures.trade import window_of
from infini_jax.report.found import Found, Point, at, by, by_task, points
from infini_jax.report.parts import NotMeasured, middle, percent
from infini_jax.report.sections import chance_of
from infini_jax.rows import Row

CEILING, SOLVED = "full", 0.9
NAMES = {"exact_match": "exact match", "token_accuracy": "token accuracy"}


def warnings(found: Found) -> list[str]:
    """Sentences for the top of the page."""
    return [*ceiling_warnings(found), *floor_warnings(found)]


def unchecked(found: Found) -> list[NotMeasured]:
    """What is missing for the checks to mean anything."""
    tasks = {row.task for row in found.rows} & {"mqar", "passkey"}
    missing = []
    if not (ceiling_scores(found)):
        missing.append(
            NotMeasured("ceiling", "Whether full attention solves the task", f"runs of {CEILING} on MQAR or passkey")
        )
    if tasks and not any(row.mechanism == BASELINE for row in found.rows):
        missing.append(NotMeasured("floor", "Whether a window alone is at chance", f"runs of {BASELINE} on the same tasks"))
    return missing


def ceiling_scores(found: Found) -> dict[str, list[float]]:
    """Task as trained -> accuracy of full attention, a value a seed."""
    scores = {}
    for task, rows in by_task(found.rows, found.configs).items():
        if of := [row.accuracy for row in rows if row.task == "mqar" and row.mechanism == CEILING]:
            scores[task] = of
    trained = [point for point in passkey_points(found) if is_as_trained(point)]
    for (task, metric), of in by(trained, lambda point: (point.row.task, point.measure.metric)).items():
        longest = max(point.label("length") for point in of)
        runs = by((point for point in of if point.label("length") == longest), lambda point: point.row.run).values()
        name = f"passkey of {longest:g} tokens ({NAMES[metric]}, trained on {task})"
        scores[name] = [statistics.fmean(point.value for point in run) for run in runs]
    return scores


def passkey_points(found: Found) -> list[Point]:
    """Each paper's own score: the number said, or the share of its tokens."""
    shares = [point for point in points(found, "passkey", "token_accuracy") if point.label("format") == "infini"]
    return [*points(found, "passkey", "exact_match"), *shares]


def is_as_trained(point: Point) -> bool:
    """Full attention on passkey at a length that it was trained at, with filler as in training (a corpus: the papers' own)."""
    longest, novelty = at(point.config, "train.sequence", 0), at(point.config, "data.novelty", 0)
    return point.row.mechanism == CEILING and point.label("length") <= longest and point.label("novelty") == novelty


def chance_of_passkey(point: Point) -> float:
    """What a guesser scores who draws numbers as the task does."""
    data = PasskeyConfig(
        format=point.label("format", "landmark"), digits=at(point.config, "data.digits", PasskeyConfig.digits)
    )
    return data.chance()[point.measure.metric]


def ceiling_warnings(found: Found) -> list[str]:
    return [
        f"Full attention does not solve {task} at its trained length: {middle(of, percent)} %, "
        f"{'the median over seeds and their range, ' if len(of) > 1 else ''}below {100 * SOLVED:.0f} %. The task or the "
        "training is wrong; what other mechanisms score there says nothing about memory."
        for task, of in ceiling_scores(found).items()
        if statistics.median(of) < SOLVED
    ]


def floor_warnings(found: Found) -> list[str]:
    found_wrong = []
    for task, rows in by_task(found.rows, found.configs).items():
        outside = [row for row in rows if row.task == "mqar" and row.mechanism == BASELINE and pairs_are_outside(row, found)]
        chance = chance_of(rows, found.configs)
        if outside and chance is not None:
            asked = sum(questions(row, found) for row in outside)
            share = sum(row.accuracy * questions(row, found) for row in outside) / asked
            found_wrong += above(task, share, wilson(share * asked, asked), chance)
    outside = [point for point in passkey_points(found) if needle_is_outside(point, found)]
    kinds = by(outside, lambda point: (point.label("length"), point.measure.metric, chance_of_passkey(point)))
    for (length, metric, chance), of in kinds.items():
        asked = sum(point.measure.count for point in of)
        if asked:
            share = sum(point.value * point.measure.count for point in of) / asked
            found_wrong += above(
                f"passkey of {length:g} tokens ({NAMES[metric]})", share, wilson(share * asked, asked), chance
            )
    return found_wrong


def above(task: str, share: float, interval: Sequence[float] | None, chance: float) -> list[str]:
    """The warning, where the whole 95 % interval lies above chance."""
    if interval is None or interval[0] <= chance:
        return []
    return [
        f"A window alone is above chance on {task}, though what is asked for lies outside its reach: {percent(share)} % "
        f"({percent(interval[0])}–{percent(interval[1])}) against {100 * chance:.3g} % of a guess. The answers leak, or the "
        "reach is not what it should be."
    ]


def questions(row: Row, found: Found) -> float:
    """Questions behind a row's accuracy, counted from its settings."""
    config = found.configs[row.run]
    each = at(config, "data.pairs", 1) * at(config, "data.repeats", 1)
    return at(config, "train.evaluation_steps", 1) * at(config, "train.batch", 1) * each


def reach(row: Row, found: Found) -> float:
    """Tokens back that a window alone can carry anything: a window less one a layer. Without bound where it is not known."""
    window, layers = window_of(row, found), at(found.configs.get(row.run, {}), "model.layers")
    return (window - 1) * layers if window and layers else float("inf")


def pairs_are_outside(row: Row, found: Found) -> bool:
    """Whether every pair lies further back than the window reaches: the gap before the first question is wider."""
    config = found.configs.get(row.run, {})
    pairs, repeats, tokens = (at(config, name) for name in ("data.pairs", "data.repeats", "train.sequence"))
    if None in (pairs, repeats, tokens):
        return False
    return tokens - (2 + repeats) * pairs >= reach(row, found)


def needle_is_outside(point: Point, found: Found) -> bool:
    """Whether the filler behind the needle alone is longer than the window reaches."""
    return point.row.mechanism == BASELINE and (1 - point.label("depth", 1.0)) * point.label("length") > 2 * reach(
        point.row, found
    )
