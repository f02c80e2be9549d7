"""The tables of evaluations: passkey in the papers' format, echo, BLiMP, fine-tuning, and published values beside ours."""

import statistics
from collections.abc import Callable, Sequence

from infini_jax.analysis.classification import METRICS
from infini_jax.config.evaluation import CARRIED
from infini_jax.data.classification import task_of
from infini_jax.report.behind import behind
from infini_jax.report.figures.passkey import length_text
from infini_jax.report.found import Found, Point, by, points
from infini_jax.report.looks import label_of
from infini_jax.report.parts import NotMeasured, Table, middle, number, percent
from infini_jax.study.scores import FRESH
from infini_jax.units import human_bytes

THIRDS = (("start", 0.0, 1 / 3), ("middle", 1 / 3, 2 / 3), ("end", 2 / 3, 1.01))
FORMATS = (("infini", "token_accuracy", "token accuracy"), ("landmark", "exact_match", "exact match of the first number"))


def passkey_tables(found: Found) -> list[Table | NotMeasured]:
    """The tables of passkey accuracy, one per prompt format that was measured."""
    tables = []
    for form, metric, said in FORMATS:
        of = points(found, "passkey", metric, format=form)
        fillers = {point.label("novelty") for point in of}
        own = [point for point in of if 0.0 not in fillers or point.label("novelty") == 0.0]
        if own:
            filler = "the paper's own filler" if 0.0 in fillers else "mean over novelties"
            tables.append(passkey_table(own, f"Passkey, {form} format: {said} in %, {filler}"))
    return tables or [NotMeasured("passkey", "Passkey in the papers' format", "the evaluation passkey")]


def passkey_table(of: Sequence[Point], said: str) -> Table:
    """A table of one prompt format: a line per run, a column per length, the thirds of the depth in a cell."""
    lengths = sorted({point.label("length") for point in of})
    runs = by(of, lambda point: (point.row.task, point.series, point.row.memory_bytes, point.row.seed, point.row.run))
    return Table(
        f"{said}; needle at the start / middle / end of the filler, by thirds. – was not measured. From: "
        f"{behind(FRESH, [point.row for point in of], [point.measure for point in of])}.",
        ("Mechanism", "Memory", "Seed", *(f"{length_text(length)} tokens" for length in lengths)),
        tuple(
            (label_of(series), human_bytes(size), str(seed), *(thirds(group, length) for length in lengths))
            for (_, series, size, seed, _), group in runs.items()
        ),
    )


def thirds(of: Sequence[Point], length: float) -> str:
    """The cell of one length, start/middle/end in percent: each the mean of what was measured in that third."""
    shares = []
    for _, low, high in THIRDS:
        cell = [p.value for p in of if p.label("length") == length and low <= p.label("depth") < high]
        shares.append(f"{100 * statistics.fmean(cell):.0f}" if cell else "–")
    return "/".join(shares) if set(shares) != {"–"} else "–"


def echo_table(found: Found) -> Table | NotMeasured:
    """The table of losses and gains on text that quotes itself: a line per memory, a column per distance, seeds' medians."""
    title, losses = "Text that quotes itself, by distance", points(found, "echo", "loss", condition=CARRIED)
    if not losses:
        return NotMeasured("echo", title, "the evaluation echo of runs on the task echo")
    memories = by(losses, lambda point: (point.row.task, point.series, point.row.memory_bytes))
    gains = by(points(found, "echo", "gain"), lambda point: (point.row.run, point.label("distance")))
    distances = sorted({point.label("distance") for point in losses})
    return Table(
        f"{title}: nats per byte with the memory carried, and in brackets the gain over the better of an empty memory and "
        "another document's; median over seeds.",
        ("Mechanism", "Memory", *(f"{length_text(one)} tokens back" if one else "first time" for one in distances)),
        tuple(
            (
                label_of(series),
                human_bytes(size),
                *(echo_cell([point for point in group if point.label("distance") == one], gains) for one in distances),
            )
            for (_, series, size), group in memories.items()
        ),
    )


def echo_cell(of: Sequence[Point], gains: dict[tuple[str, float], list[Point]]) -> str:
    """The loss of one memory at one distance as text, with its gain where that was measured."""
    if not of:
        return "–"
    gained = [min(one.value for one in gains[at]) for point in of if (at := (point.row.run, point.label("distance"))) in gains]
    loss = f"{statistics.median(point.value for point in of):.3f}"
    return f"{loss} ({statistics.median(gained):.3f})" if gained else loss


TARGET_FIGURES = (
    ("perplexity", "Perplexity", "{:.2f}".format),
    ("rouge1", "ROUGE-1", percent),
    ("rouge2", "ROUGE-2", percent),
    ("rougeL", "ROUGE-L", percent),
    ("f1", "F1", percent),
    ("meteor", "METEOR", percent),
)


def targets_table(found: Found) -> Table | NotMeasured:
    """The table of targets behind a context: a line per memory and context, medians over seeds and their range."""
    title, of = "Targets behind a context", points(found, "conditioned", "loss")
    if not of:
        return NotMeasured("conditioned", title, "the evaluation conditioned of runs on documents with targets")
    split = "validation" if any(point.label("split", "validation") == "validation" for point in of) else "test"
    of = [point for point in of if point.label("split", "validation") == split]
    groups = by(of, lambda point: (point.row.task, point.series, point.row.memory_bytes, point.label("context")))
    metrics = {
        metric: by(
            [point for point in points(found, "conditioned", metric) if point.label("split", "validation") == split],
            lambda point: (point.row.run, point.label("context")),
        )
        for metric, _, _ in TARGET_FIGURES
    }

    def shown(group: Sequence[Point], metric: str, text: Callable[[float], str]) -> str:
        keys = [(point.row.run, point.label("context")) for point in group]
        values = [one.value for key in keys for one in metrics[metric].get(key, [])]
        return middle(values, text) if values else "–"

    return Table(
        f"{title}, {split} split: perplexity per token of the targets, and how close to them is what a model says by "
        "itself, in %; with the context given, withheld, and another document's in its place. Median over seeds and their "
        "range. From: "
        f"{behind('conditioned', [point.row for point in of])}.",
        ("Mechanism", "Memory", "Context", *(name for _, name, _ in TARGET_FIGURES)),
        tuple(
            (label_of(series), human_bytes(size), context, *(shown(group, metric, text) for metric, _, text in TARGET_FIGURES))
            for (_, series, size, context), group in groups.items()
        ),
    )


def blimp_table(found: Found) -> Table | NotMeasured:
    """The table of accuracy by phenomenon: the mean of a run's paradigms, the median over seeds."""
    title, of = "BLiMP by phenomenon", points(found, "blimp", "accuracy")
    if not of:
        return NotMeasured("blimp", title, "the evaluation blimp of language models")
    models = by(of, lambda point: (point.series, point.row.memory_bytes, point.row.task))
    phenomena = sorted({str(point.label("phenomenon", "")) for point in of}, key=lambda name: (name != "all", name))
    return Table(
        "BLiMP: pairs whose grammatical sentence is the likelier one, in %; mean over paradigms, median over seeds and their "
        f"range. Chance is 50. From: {behind('BLiMP', [point.row for point in of])}.",
        ("Mechanism", "Memory", "Corpus", *phenomena),
        tuple(
            (
                label_of(series),
                human_bytes(size),
                task,
                *(cell([point for point in group if point.label("phenomenon", "") == name]) for name in phenomena),
            )
            for (series, size, task), group in models.items()
        ),
    )


def cell(of: Sequence[Point]) -> str:
    """The mean over each run's paradigms as text: median and range over runs, in percent."""
    runs = by(of, lambda point: point.row.run).values()
    return middle([statistics.fmean(point.value for point in run) for run in runs], percent) if runs else "–"


def finetune_table(found: Found) -> Table | NotMeasured:
    """The table of fine-tuning: a line per memory, a column per task with its own metric, seeds' medians."""
    title = "Fine-tuning on classification"
    of = [point for metric in METRICS for point in points(found, "finetune", metric) if is_score(point)]
    if not of:
        return NotMeasured("finetune", title, "infini-jax finetune")
    tasks = sorted({(str(point.label("task")), point.measure.metric) for point in of})
    models = by(of, lambda point: (point.series, point.row.memory_bytes, point.row.task))
    return Table(
        f"{title}: the task's score in %, of the first of its validation splits; median over seeds and their range. From: "
        f"{behind('validation', [point.row for point in of], [point.measure for point in of])}.",
        ("Mechanism", "Memory", "Corpus", *(f"{task}, {metric}" for task, metric in tasks)),
        tuple(
            (
                label_of(series),
                human_bytes(size),
                corpus,
                *(cell([one for one in group if (one.label("task"), one.measure.metric) == task]) for task in tasks),
            )
            for (series, size, corpus), group in models.items()
        ),
    )


def is_score(point: Point) -> bool:
    """Whether a figure of fine-tuning is its task's score: of the task's first metric and first split."""
    task = task_of(str(point.label("task", "")))
    return (point.measure.metric, point.label("split", "")) == (task.metrics[0], task.validation[0][0])


def anchors_table(found: Found) -> Table | NotMeasured:
    """The table of published values beside ours: a line per point, over seeds."""
    title, of = "Published values, reproduced", points(found, "retrieval", "published")
    if not of:
        return NotMeasured("anchors", title, "the study fast_weights")
    ours = {point.row.run: point.value for point in points(found, "retrieval", "loss")}
    tests = {point.row.run: point.value for point in points(found, "retrieval", "test_loss")}
    laws = {point.row.run: point.value for point in points(found, "retrieval", "rank_law")}
    groups = by(of, lambda point: (point.series, point.label("features"), point.label("pairs")))
    return Table(
        "Retrieval of pairs (Schlag et al. 2021, setting 1): the lowest validation loss of a run, half the squared error; "
        "median over seeds and, in brackets, lowest and highest. Ours is averaged as the authors do, over batches of unequal "
        "size, the mean over other sequences' questions alike. The rank law is 1/2 (1 - features / pairs).",
        (
            "Mechanism",
            "Features",
            "Pairs",
            "Seeds",
            "Published",
            "Ours",
            "Median difference",
            "Mean, all questions",
            "Rank law",
        ),
        tuple(
            (
                label_of(series),
                number(features),
                number(pairs),
                str(len(group)),
                f"{group[0].value:.4f}",
                middle((ours[point.row.run] for point in group), "{:.4f}".format),
                f"{statistics.median(ours[point.row.run] for point in group) - group[0].value:+.4f}",
                middle((tests[point.row.run] for point in group), "{:.4f}".format),
                f"{laws[group[0].row.run]:.4f}",
            )
            for (series, features, pairs), group in groups.items()
        ),
    )
