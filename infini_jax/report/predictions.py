"""The predictions P1 to P7, judged by figures: predicted, measured, interval, verdict, reason.

A prediction is a range for a number. It holds where the 95 % interval lies inside the range, fails where it lies outside, and
is not decided where it crosses an edge or there is no interval: one seed, or no run that measures it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from infini_jax.analysis import theory
from infini_jax.analysis.fits import Interval, decay, half_point, interval_of, mean_over_seeds, power_law
from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import RunConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory import MECHANISMS
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.study.jobs import Job
from infini_jax.study.trials import chosen
from infini_jax.units import ratio

Verdict = Literal["holds", "fails", "not decided"]
ANYWHERE = (-math.inf, math.inf)
OWN_FILLER = 25  # distinct tokens of the passkey papers' filler, which novelty 0 stands for


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One line of the table of predictions.

    Attributes:
      name: P1 to P7.
      subject: the memory that the prediction is about.
      predicted: the claim in words.
      measured: the measured number, NaN without data.
      interval: 95 % interval of the number, or None.
      verdict: whether the prediction holds.
      reason: reason for the verdict, in one line.
    """

    name: str
    subject: str
    predicted: str
    measured: float
    interval: Interval
    verdict: Verdict
    reason: str


def judge(
    name: str, subject: str, predicted: str, measured: float, interval: Interval, claim: tuple[float, float], reason: str = ""
) -> Prediction:
    """The prediction with its verdict on the claim that a number lies in the range `claim`."""
    low, high = claim
    if not math.isfinite(measured):
        verdict, why = "not decided", reason or "no run measures it"
    elif interval is None:
        verdict, why = "not decided", "no interval: fewer than two seeds at each size"
    elif low <= interval[0] and interval[1] <= high:
        verdict, why = "holds", "the interval lies inside the claim"
    elif interval[1] < low or interval[0] > high:
        verdict, why = "fails", "the interval lies outside the claim"
    else:
        verdict, why = "not decided", "the interval crosses the edge of the claim"
    reasons = why if why == reason or not reason else f"{why}; {reason}"
    return Prediction(name, subject, predicted, measured, interval, verdict, reasons)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The results of studies that predictions are judged by.

    Attributes:
      rows: rows of the chosen learning rates.
      measures: figures of evaluations by run name.
      jobs: jobs by run name, as far as known.
    """

    rows: list[Row]
    measures: Mapping[str, list[Measure]]
    jobs: Mapping[str, Job]

    def of(self, row: Row, evaluation: str, metric: str) -> list[Measure]:
        """A run's figures of an evaluation's metric."""
        return [one for one in self.measures.get(row.run, []) if (one.eval, one.metric) == (evaluation, metric)]

    def subjects(self, task: str, mechanisms: Iterable[str] = ()) -> dict[str, list[Row]]:
        """Rows of a task by mechanism and variant."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.task == task and (not mechanisms or row.mechanism in mechanisms):
                found.setdefault(f"{row.mechanism} {row.variant}".strip(), []).append(row)
        return found

    def points(self, rows: list[Row], evaluation: str, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The figures of a metric by memory: the arrays (scalars of the memory, figure, seed) over the rows that have one."""
        found = [(row.memory_bytes / 4, one.value, row.seed) for row in rows for one in self.of(row, evaluation, metric)]
        scalars, figures, seeds = np.array(found, float).reshape(-1, 3).T
        return scalars, figures, seeds


def holding(what: str) -> tuple[str, ...]:
    """Names of the mechanisms that declare to remember in a matrix, or in slots."""
    return tuple(name for name, mechanism in MECHANISMS.items() if mechanism.holds == what)


def predictions(rows: Sequence[Row], measures: Sequence[tuple[str, Measure]], jobs: Sequence[Job] = ()) -> list[Prediction]:
    """The table of predictions P1 to P7, in order.

    Args:
      rows: rows of finished runs, all learning rates.
      measures: (run name, figure) pairs of evaluations.
      jobs: jobs with sizes that rows do not have (key dimension, number of symbols).
    """
    by_run: dict[str, list[Measure]] = {}
    for run, one in measures:
        by_run.setdefault(run, []).append(one)
    evidence = Evidence(_best(rows), by_run, {job.name: job for job in jobs})
    parts = (growth_of_matrices, bits, laws, fading, passkey, growth_of_slots, fraction)
    return [line for part in parts for line in part(evidence)]


def _best(rows: Sequence[Row]) -> list[Row]:
    """The rows of each point's chosen learning rate, and all rows of what learns nothing."""
    learned = [row for row in rows if row.learning_rate is not None]
    return [row for row in rows if row.learning_rate is None] + chosen(learned)


def _or_missing(name: str, subject: str, predicted: str, found: list[Prediction]) -> list[Prediction]:
    """The predictions found, or one without data."""
    return found or [judge(name, subject, predicted, math.nan, None, ANYWHERE)]


def _growth(evidence: Evidence, name: str, mechanisms: tuple[str, ...], what: str) -> list[Prediction]:
    """A prediction for each memory of these mechanisms on the exponent of n50 in its scalars."""
    predicted, found = "n50 ~ scalars^a, a = 1.0 +- 0.1", []
    for subject, rows in evidence.subjects("capacity", mechanisms).items():
        scalars, n50, seeds = evidence.points(rows, "capacity", "n50")
        law = power_law(scalars, n50, seeds)
        enough = law.points >= 3
        reason = f"{law.points} sizes, {law.seeds} seeds" if enough else "fewer than three sizes with a half-way point"
        exponent = law.exponent if enough else math.nan
        found.append(judge(name, subject, predicted, exponent, law.exponent_interval, (0.9, 1.1), reason))
    return _or_missing(name, what, predicted, found)


def growth_of_matrices(evidence: Evidence) -> list[Prediction]:
    """P1: n50 of matrix memories grows in proportion to their scalars."""
    return _growth(evidence, "P1", holding("matrix"), "matrix memories")


def growth_of_slots(evidence: Evidence) -> list[Prediction]:
    """P6: n50 of slot memories grows in proportion to their scalars."""
    return _growth(evidence, "P6", holding("slots"), "slot memories")


def bits(evidence: Evidence) -> list[Prediction]:
    """P2: bits per scalar over all sizes, of unit keys against a range and of elu + 1 against half of those."""
    subjects, found = evidence.subjects("capacity", holding("matrix")), []
    normalised = [one for one in subjects if one.startswith("infini") and "unit" not in one]
    for subject in (one for one in subjects if one not in normalised):
        mean, interval = mean_over_seeds(*evidence.points(subjects[subject], "capacity", "bits_per_scalar"))
        found.append(judge("P2", subject, "0.7 to 1.0 bits per scalar", mean, interval, (0.7, 1.0)))
    unit, _ = mean_over_seeds(*evidence.points(subjects.get("infini unit", []), "capacity", "bits_per_scalar"))
    for subject in normalised:
        mean, interval = mean_over_seeds(*evidence.points(subjects[subject], "capacity", "bits_per_scalar"))
        share = None if interval is None else (ratio(interval[0], unit), ratio(interval[1], unit))
        found.append(judge("P2", subject, "0.4 to 0.6 of the bits of unit keys", ratio(mean, unit), share, (0.4, 0.6)))
    return _or_missing("P2", "matrix memories", "0.7 to 1.0 bits per scalar for unit keys, half for elu + 1", found)


def laws(evidence: Evidence) -> list[Prediction]:
    """P3: R^2 of the rank law on the probe's errors, no free parameter, where d = d_k; and n50 beyond the law's 2 d."""
    predicted = "rank law explains the probe (R^2 above 0.95), while top-1 n50 exceeds its 2 d"
    best = evidence.subjects("random_codes", ("least_squares",))  # the law is about the best linear memory
    subjects, found = {**best, **evidence.subjects("capacity", holding("matrix"))}, []
    for subject, rows in subjects.items():
        fits, ratios = [], []
        for row in rows:
            dim = _key_dim(evidence, row)
            errors = [one for one in evidence.of(row, row.task, "nmse") if math.isfinite(one.value)]
            n50 = [one.value for one in evidence.of(row, row.task, "n50")]
            if dim and len(errors) > 2 and n50:
                pairs = np.array([float(one.labels["pairs"]) for one in errors])
                fits.append(theory.rank_fit(pairs, np.array([one.value for one in errors]), dim))
                ratios.append(n50[0] / (2 * dim))
        name = f"random codes, {subject}" if rows[0].task == "random_codes" else subject
        spread = (min(fits), max(fits)) if len(fits) > 1 else None
        line = judge("P3", name, predicted, float(np.mean(fits)) if fits else math.nan, spread, (0.95, 1.0))
        if line.verdict == "holds" and not min(ratios) > 1:
            line = dataclasses.replace(line, verdict="fails", reason="top-1 does not exceed what the rank law gives")
        reason = f"{line.reason}; range over {len(fits)} runs, n50 / 2 d {np.mean(ratios):.2f}" if fits else line.reason
        found.append(dataclasses.replace(line, reason=reason))
    return _or_missing("P3", "random and trained codes", predicted, found)


def _key_dim(evidence: Evidence, row: Row) -> float:
    """d_k of a run, 0 where it is not known."""
    for one in evidence.of(row, "random_codes", "n50"):
        return float(one.labels["key_dim"])
    job = evidence.jobs.get(row.run)
    return float(job.key_dim * job.heads) if isinstance(job, CapacityRun) else 0.0


def fading(evidence: Evidence) -> list[Prediction]:
    """P4: the constant of the decay with age in units of d_k, 1 for random codes.

    Trained codes need only decay exponentially.
    """
    found = []
    for row in evidence.rows:
        if row.task == "random_codes" and row.mechanism == "delta":
            points = evidence.of(row, "random_codes", "survival_by_age")
            fitted, dim = _decay_of(points), _key_dim(evidence, row)
            interval = fitted.interval and (ratio(fitted.interval[0], dim), ratio(fitted.interval[1], dim))
            claim = "e^(-age / (c d_k)), c = 1.0 +- 0.1"
            subject = f"random codes, delta, d_k {dim:g}"
            found.append(judge("P4", subject, claim, ratio(fitted.constant, dim), interval, (0.9, 1.1)))
    for subject, rows in evidence.subjects("capacity", ("gated_delta",)).items():
        fits = []
        for row in rows:
            points = evidence.of(row, "capacity", "accuracy_by_age")
            most = max((one.labels["pairs"] for one in points), default=0)
            fits.append(_decay_of([one for one in points if one.labels["pairs"] == most]).r2)
        fits = [one for one in fits if math.isfinite(one)]
        spread = (min(fits), max(fits)) if len(fits) > 1 else None
        claim = "accuracy decays exponentially with age (R^2 above 0.9)"
        measured = float(np.mean(fits)) if fits else math.nan
        found.append(judge("P4", subject, claim, measured, spread, (0.9, 1.0), "range over runs" if fits else ""))
    return _or_missing("P4", "delta rules", "recall by age decays as e^(-age / (c d_k))", found)


def _decay_of(points: list[Measure]):
    """The exponential decay fitted to figures by age."""
    return decay(*([float(x) for x in column] for column in _columns(points)))


def _columns(points: list[Measure]) -> tuple[list, list, list]:
    """The figures as columns: (age, value, count)."""
    return [one.labels["age"] for one in points], [one.value for one in points], [one.count for one in points]


def passkey(evidence: Evidence) -> list[Prediction]:
    """P5: the loss of accuracy over the novelties measured, minus that over the lengths, by a plane in their logarithms."""
    found = []
    for task in sorted({row.task for row in evidence.rows}):
        for subject, rows in evidence.subjects(task, holding("matrix")).items():
            delta = "delta" in subject
            differences = [one for one in (_novelty_minus_length(evidence, row) for row in rows) if math.isfinite(one)]
            if differences:
                claim = "accuracy falls more with novelty than with length" if delta else "more with length than with novelty"
                random = np.random.default_rng(0)
                draws = random.choice(differences, (400, len(differences))).mean(axis=1)
                interval = interval_of(draws) if len(differences) > 1 else None
                inside = (1e-9, math.inf) if delta else (-math.inf, -1e-9)
                found.append(judge("P5", subject, claim, float(np.mean(differences)), interval, inside))
    return _or_missing("P5", "passkey", "set by novelty / d_key for delta, by length for the ungated sum", found)


def _novelty_minus_length(evidence: Evidence, row: Row) -> float:
    """The difference that P5 is about, of one run; NaN where fewer than two novelties or lengths were measured."""
    points = evidence.of(row, "passkey", "token_accuracy")
    novelty = np.log([float(one.labels.get("novelty", 0)) or OWN_FILLER for one in points])
    length = np.log([float(one.labels["length"]) for one in points])
    if len(set(novelty)) < 2 or len(set(length)) < 2:
        return math.nan
    plane = np.stack([np.ones(len(points)), novelty, length], axis=1)
    _, by_novelty, by_length = np.linalg.lstsq(plane, np.array([one.value for one in points]), rcond=None)[0]
    return float(-by_novelty * np.ptp(novelty) + by_length * np.ptp(length))


def fraction(evidence: Evidence) -> list[Prediction]:
    """P7: n50 of MQAR of a trained language model, relative to the large limit for all scalars of its matrix memories."""
    predicted, found = "eta = n50(language model) / n50(theory) below 1", []
    for subject, rows in evidence.subjects("mqar", holding("matrix")).items():
        scalars, etas, seeds = [], [], []
        for row in rows:
            symbols = _mqar_values(evidence.jobs.get(row.run))
            points = [one for one in evidence.of(row, "mqar", "accuracy") if not one.labels.get("overwrites")]
            n50 = _n50_of(points)
            if symbols and math.isfinite(n50):
                scalars.append(row.memory_bytes / 4)
                etas.append(ratio(n50, theory.top1_n50_large(row.memory_bytes / 4, 1, symbols)))
                seeds.append(row.seed)
        mean, interval = mean_over_seeds(scalars, etas, seeds)
        reason = "" if etas else "no half-way point between the numbers of pairs measured, or settings unknown"
        found.append(judge("P7", subject, predicted, mean, interval, (0.0, 1.0), reason))
    return _or_missing("P7", "language models", predicted, found)


def _n50_of(points: list[Measure]) -> float:
    """The number of pairs at which half is recalled, NaN where the figures do not cross it."""
    pairs = [float(one.labels["pairs"]) for one in points]
    return half_point(pairs, [one.value * one.count for one in points], [one.count for one in points]).n50


def _mqar_values(job: Job | None) -> int:
    """Candidates for a value in a run's MQAR, 0 where it has none."""
    return job.data.symbols // 2 if isinstance(job, RunConfig) and isinstance(job.data, MqarConfig) else 0
