"""The predictions P1 to P7 and the numbers that judge them, see `infini_jax.report.claims`."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from infini_jax.analysis import theory
from infini_jax.analysis.fits import decay, power_law
from infini_jax.analysis.half_points import HalfPoint, half_point
from infini_jax.analysis.intervals import (
    Estimate,
    curves_of,
    mean_over_seeds,
    paired_difference,
    share_deviation,
)
from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import RunConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory import MECHANISMS
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.report.behind import Behind, behind, rungs
from infini_jax.report.claims import Claim, Prediction
from infini_jax.report.looks import label_of, series_of
from infini_jax.study.jobs import Job
from infini_jax.study.scores import FRESH
from infini_jax.study.trials import chosen
from infini_jax.units import exponential, ratio

OWN_FILLER = 25  # distinct tokens of the passkey papers' filler, which novelty 0 stands for
UNEXPLAINED = 1e-12  # the least share of a variance that a law leaves: a logarithm has no place for none


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
        """Rows of a task by mechanism and variant, and by budget where there are several: rungs are never pooled."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.task == task and (not mechanisms or row.mechanism in mechanisms):
                found.setdefault(label_of(series_of(row)), []).append(row)
        return {
            ", ".join(filter(None, (subject, rung if len(each) > 1 else ""))): of
            for subject, rows in found.items()
            for each in (rungs(rows),)
            for rung, of in each.items()
        }

    def points(self, rows: list[Row], evaluation: str, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The figures of a metric by memory: the arrays (scalars of the memory, figure, seed), NaN for rows that have none."""
        found = [
            (row.memory_bytes / 4, one, row.seed)
            for row in rows
            for one in [measure.value for measure in self.of(row, evaluation, metric)] or [math.nan]
        ]
        scalars, figures, seeds = np.array(found, float).reshape(-1, 3).T
        return scalars, figures, seeds

    def behind(self, rows: Sequence[Row], evaluation: str, metric: str) -> Behind:
        """What stands behind a number computed from a metric of these runs."""
        have = {row.run: self.of(row, evaluation, metric) for row in rows}
        return behind(FRESH, [row for row in rows if have[row.run]], [one for of in have.values() for one in of])

    def crossings(self, rows: Sequence[Row], evaluation: str) -> str:
        """The remark on how many n50 are crossings because no logistic describes the curve; "" without any."""
        by = [
            one.labels.get("by", "fit") for row in rows for one in self.of(row, evaluation, "n50") if math.isfinite(one.value)
        ]
        return crossed(by)


def crossed(by: Sequence[object]) -> str:
    """The remark on how many n50 are crossings because no logistic describes the curve; "" without any."""
    count = sum(one == "crossing" for one in by)
    return f"{count} of {len(by)} n50 by crossing" if count else ""


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


def _or_missing(claim: Claim, subject: str, found: list[Prediction]) -> list[Prediction]:
    """The predictions found, or one without data."""
    return found or [claim.missing(subject)]


def _growth(evidence: Evidence, name: str, mechanisms: tuple[str, ...], what: str) -> list[Prediction]:
    """A prediction for each memory of these mechanisms on the exponent of n50 in its scalars."""
    claim, found = Claim(name, "n50 ~ scalars^a, a = 1.0 +- 0.1", (0.9, 1.1)), []
    for subject, rows in evidence.subjects("capacity", mechanisms).items():
        law = power_law(*evidence.points(rows, "capacity", "n50"))
        if law.sizes < 3:
            few = "fewer than three sizes with a half-way point"
            found.append(dataclasses.replace(claim.missing(subject, few), behind=evidence.behind(rows, "capacity", "n50")))
            continue
        note = "; ".join(filter(None, (f"{law.sizes} sizes", evidence.crossings(rows, "capacity"))))
        found.append(claim.judged(subject, law.exponent, evidence.behind(rows, "capacity", "n50"), note))
    return _or_missing(claim, what, found)


def growth_of_matrices(evidence: Evidence) -> list[Prediction]:
    """P1: n50 of matrix memories grows in proportion to their scalars."""
    return _growth(evidence, "P1", holding("matrix"), "matrix memories")


def growth_of_slots(evidence: Evidence) -> list[Prediction]:
    """P6: n50 of slot memories grows in proportion to their scalars."""
    return _growth(evidence, "P6", holding("slots"), "slot memories")


BITS = "capacity", "bits_per_scalar"


def bits(evidence: Evidence) -> list[Prediction]:
    """P2: bits per scalar over all sizes, of unit keys against a range, of elu + 1 against half of those of the same seeds."""
    subjects, found = evidence.subjects("capacity", holding("matrix")), []
    of_unit = Claim("P2", "0.7 to 1.0 bits per scalar", (0.7, 1.0))
    of_elu = Claim("P2", "0.4 to 0.6 of the bits of unit keys", (0.4, 0.6))
    for subject, rows in subjects.items():
        name, *rung = subject.split(", ")
        if not name.startswith("infini") or "unit" in name:
            mean = mean_over_seeds(*evidence.points(rows, *BITS))
            found.append(of_unit.judged(subject, mean, evidence.behind(rows, *BITS)))
            continue
        unit = subjects.get(", ".join(("infini unit", *rung)), [])
        share = _ratio(evidence, rows, unit)
        found.append(of_elu.judged(subject, share, evidence.behind([*rows, *unit], *BITS)))
    return _or_missing(Claim("P2", "0.7 to 1.0 bits per scalar for unit keys, half for elu + 1"), "matrix memories", found)


def _ratio(evidence: Evidence, rows: list[Row], others: list[Row]) -> Estimate:
    """The ratio of two memories' bits per scalar: means over sizes, and paired differences of their logarithms over seeds."""
    curves = [curves_of(*evidence.points(of, *BITS)) for of in (rows, others)]
    a, b = ({seed: math.log(bits) if bits > 0 else math.nan for seed, bits in of.of_each(np.mean).items()} for of in curves)
    found = paired_difference(a, b).mapped(exponential)
    return dataclasses.replace(found, dropped=(*(one for of in curves for one in of.dropped), *found.dropped))


def laws(evidence: Evidence) -> list[Prediction]:
    """P3: R^2 of the rank law on the probe's errors, no free parameter, where d = d_k; and n50 beyond the law's 2 d."""
    fits = Claim("P3", "rank law explains the probe (R^2 above 0.95)", (0.95, 1.0))
    beyond = Claim("P3", "top-1 n50 exceeds the 2 d of the rank law", (1.0, math.inf))
    best = evidence.subjects("random_codes", ("least_squares",))  # the law is about the best linear memory
    found = []
    for subject, rows in {**best, **evidence.subjects("capacity", holding("matrix"))}.items():
        explained, ratios = [], []
        for row in rows:
            dim = _key_dim(evidence, row)
            errors = [one for one in evidence.of(row, row.task, "nmse") if math.isfinite(one.value)]
            n50 = [one.value for one in evidence.of(row, row.task, "n50")]
            if dim and len(errors) > 2 and n50:
                pairs = np.array([float(one.labels["pairs"]) for one in errors])
                explained.append((row, theory.rank_fit(pairs, np.array([one.value for one in errors]), dim)))
                ratios.append((row, n50[0] / (2 * dim)))
        name = f"random codes, {subject}" if rows[0].task == "random_codes" else subject
        if explained:
            found.append(
                fits.judged(name, _mean_r2(explained), evidence.behind(rows, rows[0].task, "nmse"), "mean over sizes")
            )
            crossings = evidence.crossings(rows, rows[0].task)
            found.append(beyond.judged(name, _mean(ratios), evidence.behind(rows, rows[0].task, "n50"), crossings))
        else:
            found.append(fits.missing(name))
    return _or_missing(fits, "random and trained codes", found)


def _mean(of: Sequence[tuple[Row, float]], least: float = 0.0) -> Estimate:
    """The mean of a number of each run over sizes and seeds."""
    return mean_over_seeds([row.memory_bytes for row, _ in of], [one for _, one in of], [row.seed for row, _ in of], least)


def _mean_r2(of: Sequence[tuple[Row, float]]) -> Estimate:
    """The mean R^2 of runs: one minus the geometric mean of what is not explained, as R^2 has an edge at one."""
    logs = [(row, math.log(max(1.0 - r2, UNEXPLAINED))) for row, r2 in of]
    return _mean(logs).mapped(lambda log: 1.0 - exponential(log))


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
    constant = Claim("P4", "e^(-age / (c d_k)), c = 1.0 +- 0.1", (0.9, 1.1))
    shape = Claim("P4", "accuracy decays exponentially with age (R^2 above 0.9)", (0.9, 1.0))
    found, by_dim = [], dict[float, list[tuple[Row, float]]]()
    for row in evidence.rows:
        if row.task == "random_codes" and row.mechanism == "delta":
            dim = _key_dim(evidence, row)
            fitted = _decay_of(evidence.of(row, "random_codes", "survival_by_age"))
            by_dim.setdefault(dim, []).append((row, ratio(fitted.constant, dim)))
    for dim, of in by_dim.items():
        stands = evidence.behind([row for row, _ in of], "random_codes", "survival_by_age")
        found.append(constant.judged(f"random codes, delta, d_k {dim:g}", _mean(of), stands))
    for subject, rows in evidence.subjects("capacity", ("gated_delta",)).items():
        explained = [(row, _decay_of(_oldest(evidence, row)).r2) for row in rows]
        stands = evidence.behind(rows, "capacity", "accuracy_by_age")
        found.append(shape.judged(subject, _mean_r2(explained), stands, "mean over sizes"))
    return _or_missing(Claim("P4", "recall by age decays as e^(-age / (c d_k))"), "delta rules", found)


def _oldest(evidence: Evidence, row: Row) -> list[Measure]:
    """A run's accuracies by age at its largest number of pairs."""
    points = evidence.of(row, "capacity", "accuracy_by_age")
    most = max((one.labels["pairs"] for one in points), default=0)
    return [one for one in points if one.labels["pairs"] == most]


def _decay_of(points: list[Measure]):
    """The exponential decay fitted to figures by age."""
    return decay(*([float(x) for x in column] for column in _columns(points)))


def _columns(points: list[Measure]) -> tuple[list, list, list]:
    """The figures as columns: (age, value, count)."""
    return [one.labels["age"] for one in points], [one.value for one in points], [one.count for one in points]


TOKENS = "passkey", "token_accuracy"


def passkey(evidence: Evidence) -> list[Prediction]:
    """P5: the loss of accuracy over the novelties measured, minus that over the lengths, by a plane in their logarithms."""
    by_novelty = Claim("P5", "accuracy falls more with novelty than with length", (0.0, math.inf))
    by_length = Claim("P5", "more with length than with novelty", (-math.inf, 0.0))
    found = []
    for task in sorted({row.task for row in evidence.rows}):
        for subject, rows in evidence.subjects(task, holding("matrix")).items():
            differences = [(row, _novelty_minus_length(evidence, row)) for row in rows]
            known = [(row, *one) for row, one in differences if one]
            if known:
                sizes = len({row.memory_bytes for row, *_ in known})
                least = math.sqrt(float(np.mean([variance for *_, variance in known])) / sizes)
                mean = _mean([(row, difference) for row, difference, _ in known], least)
                claim = by_novelty if "delta" in subject else by_length
                found.append(claim.judged(subject, mean, evidence.behind([row for row, *_ in known], *TOKENS)))
    return _or_missing(Claim("P5", "set by novelty / d_key for delta, by length for the ungated sum"), "passkey", found)


def _novelty_minus_length(evidence: Evidence, row: Row) -> tuple[float, float] | None:
    """(the difference that P5 is about, its variance by the number of questions) of a run.

    None where fewer than two novelties or lengths were measured.
    """
    points = evidence.of(row, *TOKENS)
    novelty = np.log([float(one.labels.get("novelty", 0)) or OWN_FILLER for one in points])
    length = np.log([float(one.labels["length"]) for one in points])
    if len(set(novelty)) < 2 or len(set(length)) < 2:
        return None
    plane = np.stack([np.ones(len(points)), novelty, length], axis=1)
    _, of_novelty, of_length = np.linalg.pinv(plane)
    weights = of_length * np.ptp(length) - of_novelty * np.ptp(novelty)
    values, counts = np.array([one.value for one in points]), np.array([one.count for one in points])
    return float(weights @ values), float(weights**2 @ share_deviation(values * counts, counts) ** 2)


def fraction(evidence: Evidence) -> list[Prediction]:
    """P7: n50 of MQAR of a trained language model, relative to the large limit for all scalars of its matrix memories."""
    claim, found = Claim("P7", "eta = n50(language model) / n50(theory) below 1", (-math.inf, 1.0)), []
    for subject, rows in evidence.subjects("mqar", holding("matrix")).items():
        etas, by = [], []
        for row in rows:
            symbols = _mqar_values(evidence.jobs.get(row.run))
            half = _half_point_of([one for one in evidence.of(row, "mqar", "accuracy") if not one.labels.get("overwrites")])
            by += [half.by] if half.by else []
            limit = theory.top1_n50_large(row.memory_bytes / 4, 1, symbols) if symbols else math.nan
            etas.append((row, ratio(half.n50, limit)))
        mean = _mean(etas)
        if math.isnan(mean.value):
            why = "no half-way point between the numbers of pairs measured, or settings unknown"
            mean = dataclasses.replace(mean, why=why, dropped=())
        found.append(claim.judged(subject, mean, evidence.behind(rows, "mqar", "accuracy"), crossed(by)))
    return _or_missing(claim, "language models", found)


def _half_point_of(points: list[Measure]) -> HalfPoint:
    """The half-way point of figures by number of pairs."""
    pairs = [float(one.labels["pairs"]) for one in points]
    return half_point(pairs, [one.value * one.count for one in points], [one.count for one in points])


def _mqar_values(job: Job | None) -> int:
    """Candidates for a value in a run's MQAR, 0 where it has none."""
    return job.data.symbols // 2 if isinstance(job, RunConfig) and isinstance(job.data, MqarConfig) else 0
