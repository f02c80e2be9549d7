"""The tables of evaluations: passkey in the papers' format, BLiMP by phenomenon, and every trial of a learning rate."""

import statistics
from collections.abc import Sequence

from infini_jax.plots import label_of
from infini_jax.report.figures.passkey import length_text
from infini_jax.report.found import Found, Point, by, points
from infini_jax.report.parts import NotMeasured, Table, middle, percent
from infini_jax.report.sections import flops_text
from infini_jax.report.trials import trials_of
from infini_jax.units import human_bytes

THIRDS = (("start", 0.0, 1 / 3), ("middle", 1 / 3, 2 / 3), ("end", 2 / 3, 1.01))
FORMATS = (("infini", "token_accuracy", "token accuracy"), ("landmark", "exact_match", "exact match of the first number"))


def passkey_tables(found: Found) -> list[Table | NotMeasured]:
    """One table a prompt format that was measured."""
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
    lengths = sorted({point.label("length") for point in of})
    runs = by(of, lambda point: (point.row.task, point.series, point.row.memory_bytes, point.row.seed, point.row.run))
    return Table(
        f"{said}; needle at the start / middle / end of the filler, by thirds. – was not measured.",
        ("Mechanism", "Memory", "Seed", *(f"{length_text(length)} tokens" for length in lengths)),
        tuple(
            (label_of(series), human_bytes(size), str(seed), *(thirds(group, length) for length in lengths))
            for (_, series, size, seed, _), group in runs.items()
        ),
    )


def thirds(of: Sequence[Point], length: float) -> str:
    """start/middle/end of one length, each the mean of what was measured in that third."""
    shares = []
    for _, low, high in THIRDS:
        cell = [p.value for p in of if p.label("length") == length and low <= p.label("depth") < high]
        shares.append(f"{100 * statistics.fmean(cell):.0f}" if cell else "–")
    return "/".join(shares) if set(shares) != {"–"} else "–"


def blimp_table(found: Found) -> Table | NotMeasured:
    """Accuracy by phenomenon: the mean of a run's paradigms, the median over seeds."""
    title, of = "BLiMP by phenomenon", points(found, "blimp", "accuracy")
    if not of:
        return NotMeasured("blimp", title, "the evaluation blimp of language models")
    models = by(of, lambda point: (point.series, point.row.memory_bytes, point.row.task))
    overall = {model: [p for p in group if p.label("phenomenon", "") == "all"] for model, group in models.items()}
    phenomena = sorted({str(point.label("phenomenon", "")) for point in of} - {"all"})
    tasks = len({task for _, _, task in models}) > 1
    lines = [
        (phenomenon, *(cell([p for p in group if p.label("phenomenon", "") == phenomenon]) for group in models.values()))
        for phenomenon in phenomena
    ]
    if any(overall.values()):
        lines.append(("all", *(cell(group) for group in overall.values())))
    heads = [", ".join([label_of(series), human_bytes(size), *([task] if tasks else [])]) for series, size, task in models]
    return Table(
        "BLiMP: pairs whose grammatical sentence is the likelier one, in %; mean over paradigms, median over seeds and their "
        "range. Chance is 50.",
        ("Phenomenon", *heads),
        tuple(lines),
    )


def cell(of: Sequence[Point]) -> str:
    """Mean over a run's paradigms, median and range over runs."""
    runs = by(of, lambda point: point.row.run).values()
    return middle([statistics.fmean(point.value for point in run) for run in runs], percent) if runs else "–"


def trials_table(found: Found) -> Table | NotMeasured:
    """Every learning rate that was tried at each point, and which was taken. `found` holds all trials."""
    tried = [point for point in trials_of(found.rows, found.configs) if len(point.rates) > 1]
    if not tried:
        return NotMeasured("trials", "Trials of learning rates", "runs that differ only in the learning rate and the seed")
    total = sum(row.flops_actual for row in found.rows)
    kept = sum(row.flops_actual for point in trials_of(found.rows, found.configs) for row in point.chosen)
    lines = []
    for point in tried:
        row = point.chosen[0]
        rates = [
            f"{rate:g}: {middle([one.loss for one in rows], '{:.4f}'.format)}{' ← taken' if rate == point.rate else ''}"
            for rate, rows in point.rates.items()
        ]
        flops = sum(one.flops_actual for rows in point.rates.values() for one in rows)
        name = label_of((row.mechanism, row.variant))
        lines.append((name, row.task, human_bytes(row.memory_bytes), "; ".join(rates), flops_text(flops)))
    return Table(
        "Every learning rate tried, with the held-out loss: median over seeds, and their range. The one with the lowest "
        "median is taken, and only its runs are in figures and other tables. Training FLOPs of all trials "
        f"{flops_text(total)}, of those taken {flops_text(kept)}.",
        ("Mechanism", "Task", "Memory", "Learning rate: loss", "FLOPs"),
        tuple(lines),
        words=True,
    )
