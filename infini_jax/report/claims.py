"""Claims and their verdicts: predicted, measured with its interval, verdict, reason, what stands behind it.

A claim is a range for a number. The number's 95 % interval over seeds alone judges it: inside the range it agrees, outside it
contradicts, and what crosses an edge or has no interval is not settled: fewer than three seeds, or no run that measures it.
"""

import dataclasses
import math
from typing import Literal

from infini_jax.analysis.intervals import NOTHING, Estimate
from infini_jax.report.behind import Behind
from infini_jax.report.parts import listed

Verdict = Literal["agrees", "contradicts", "not settled"]
Range = tuple[float, float]
ANYWHERE = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One line of the table of predictions.

    Attributes:
      name: P1 to P7.
      subject: the memory that the prediction is about.
      predicted: the claim in words.
      measured: the measured number with its interval, NaN without data.
      verdict: whether the interval agrees with the claim.
      reason: reason for the verdict, in one line, with what was left out.
      behind: what the number is computed from.
    """

    name: str
    subject: str
    predicted: str
    measured: Estimate
    verdict: Verdict
    reason: str
    behind: Behind


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that a number lies in a range.

    Attributes:
      name: P1 to P7.
      words: the claim in words.
      range: the range.
    """

    name: str
    words: str
    range: Range = ANYWHERE

    def judged(self, subject: str, measured: Estimate, behind: Behind, note: str = "") -> Prediction:
        """The prediction with its verdict; `note` says more of the number than the verdict does."""
        verdict, why = verdict_on(self.range, measured)
        left_out = f"without {listed(measured.dropped)}" if measured.dropped else ""
        reason = "; ".join(filter(None, (why, note, left_out)))
        return Prediction(self.name, subject, self.words, measured, verdict, reason, behind)

    def missing(self, subject: str, why: str = "no run measures it") -> Prediction:
        """The prediction where nothing measures it."""
        return self.judged(subject, dataclasses.replace(NOTHING, why=why), Behind())


def verdict_on(claim: Range, measured: Estimate) -> tuple[Verdict, str]:
    """The verdict on the claim that a number lies in a range, by its interval alone, and the reason."""
    if measured.interval is None or not math.isfinite(measured.value):
        return "not settled", measured.why
    low, high = measured.interval
    if claim[0] <= low and high <= claim[1]:
        return "agrees", "the interval lies inside the claim"
    if high < claim[0] or low > claim[1]:
        return "contradicts", "the interval lies outside the claim"
    return "not settled", "the interval crosses the edge of the claim"


def verdict_on_difference(found: Estimate, tolerance: float) -> tuple[str, str]:
    """The verdict on a difference by its interval alone, and the reason.

    Within the tolerance it agrees with 0, also where it lies on one side; else it is above or below 0, or not settled.
    """
    verdict, why = verdict_on((-tolerance, tolerance), found)
    if verdict == "agrees":
        return "agrees with 0", f"the interval lies within ±{tolerance:g}"
    if found.interval is None:
        return "not settled", why
    low, high = found.interval
    if low <= 0.0 <= high:
        return "not settled", f"the interval holds 0 and reaches beyond ±{tolerance:g}"
    return "above 0" if low > 0.0 else "below 0", "the interval lies on one side of 0"
