"""The half-way point of a recall curve: by a logistic fit where it describes the curve, by the crossing of one half elsewhere.

A fit uses all points near the middle and is the more precise, but it is wrong where the curve is no logistic: one that rises
before it falls, or has steps. So the curve is asked first, and what was done is told (`HalfPoint.by`).
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from infini_jax.analysis.intervals import FEWEST, ROUNDING, TAIL, Interval
from infini_jax.units import exponential

MIDDLE = (0.2, 0.8)  # accuracies where a recall curve is nearly a logistic
SLOPES, NEWTON_STEPS, CLOSE = (0.05, 60.0), 60, 1e-13
LARGEST_LOG = 700.0  # of a number of pairs far outside the data: its exponential is a float
RARE = 0.01  # chance of a deviance that is called out of range
By = Literal["fit", "crossing", ""]


@dataclasses.dataclass(frozen=True)
class HalfPoint:
    """The number of pairs at which half are recalled, of a recall curve of n pairs.

    Attributes:
      n50: the number; NaN where the curve does not fall below one half within the n that were measured.
      slope: steepness in log n of the logistic, accuracy = 1 / (1 + (n / n50)^slope); NaN for a crossing.
      deviance: twice the log-likelihood that a curve through every point of the fit would gain, over the dispersion; NaN where
        there is no fit.
      freedom: degrees of freedom of the deviance.
      by: whether `n50` is that of the fit or the crossing of one half; "" where there is none.
      crossings: how often the curve falls below one half. Of several the last is taken: the largest n at which at least half
        were recalled.
    """

    n50: float
    slope: float = math.nan
    deviance: float = math.nan
    freedom: int = 0
    by: By = ""
    crossings: int = 0

    def accuracy(self, pairs: np.ndarray) -> np.ndarray:
        """Accuracy of the logistic at each number of pairs, a share."""
        return special.expit(-self.slope * (np.log(pairs) - math.log(self.n50)))


def labelled(found: HalfPoint) -> dict[str, str]:
    """The label of a figure that says how its n50 was found; none where there is no n50."""
    return {"by": found.by} if found.by else {}


def half_point(pairs: ArrayLike, right: ArrayLike, asked: ArrayLike, dispersion: float = 1.0) -> HalfPoint:
    """The half-way point of measured counts.

    The fit is by maximum likelihood of a logistic in log n with binomial counts. The tails of recall curves are no logistic's
    and pull the middle by 5 %, so a second fit takes only the points that the first one puts inside `MIDDLE`, where there are
    three. In place of the fit stands the crossing of one half where the curve is not monotone, the fit's deviance is out of
    range for its degrees of freedom, both at the level `RARE`, or the fit puts n50 outside the n that were measured.

    Args:
      pairs: n, numbers of pairs.
      right: number of right answers at each n.
      asked: number of questions at each n; an n without any has no part.
      dispersion: variance of the counts relative to that of independent questions, see `dispersion_of`.
    """
    n, k, m = in_order(pairs, right, asked)
    if not _crosses(k, m):
        return HalfPoint(math.nan)
    crossings = len(_falls(k, m))
    fitted = _fit(n, k, m, dispersion)
    inside = n[0] <= fitted.n50 <= n[-1]
    if inside and is_monotone(k, m, dispersion) and in_range(fitted.deviance, fitted.freedom):
        return dataclasses.replace(fitted, crossings=crossings)
    n50 = _crossing(n, k, m)
    by: By = "crossing" if math.isfinite(n50) else ""
    return dataclasses.replace(fitted, n50=n50, slope=math.nan, by=by, crossings=crossings)


def in_order(pairs: ArrayLike, *counts: ArrayLike) -> list[np.ndarray]:
    """The curve by ascending n, without n that were not asked; the last of `counts`, N, are the questions."""
    columns = [np.asarray(x, float) for x in (pairs, *counts)]
    order = np.argsort(columns[0], kind="stable")
    asked = columns[-1][order] > 0
    return [x[..., order[asked]] for x in columns]


def in_range(deviance: float, freedom: int) -> bool:
    """Whether a deviance is one that chance gives, by the chi-squared distribution."""
    return freedom < 1 or deviance <= float(special.chdtri(freedom, RARE))


def is_monotone(k_N: np.ndarray, m_N: np.ndarray, dispersion: float = 1.0) -> bool:
    """Whether the shares k / m, by ascending n, are those of a curve that never rises, but for noise of their counts.

    The best such curve has blocks of equal shares (pooled adjacent violators); what a curve through every point gains over it
    is chi-squared with as many degrees of freedom as there are points beyond blocks (Robertson, Wright and Dykstra 1988,
    chapter 2).
    """
    blocks: list[tuple[float, float, int]] = []
    for k, m in zip(k_N.tolist(), m_N.tolist(), strict=True):
        blocks.append((k, m, 1))
        while len(blocks) > 1 and blocks[-1][0] / blocks[-1][1] > blocks[-2][0] / blocks[-2][1]:
            last = blocks.pop()
            before = blocks[-1]
            blocks[-1] = before[0] + last[0], before[1] + last[1], before[2] + last[2]
    share_N = np.concatenate([np.full(points, k / m) for k, m, points in blocks])
    return in_range(_deviance(k_N, m_N, share_N) / dispersion, len(k_N) - len(blocks))


def _deviance(k_N: np.ndarray, m_N: np.ndarray, share_N: np.ndarray) -> float:
    """Twice the log-likelihood that shares through every point gain over `share_N`."""
    at_best = special.xlogy(k_N, k_N / m_N) + special.xlogy(m_N - k_N, 1.0 - k_N / m_N)
    here = special.xlogy(k_N, share_N) + special.xlogy(m_N - k_N, 1.0 - share_N)
    return float(2.0 * np.sum(at_best - here))


def dispersion_of(right_RxN: np.ndarray, asked_RxN: np.ndarray) -> float:
    """The variance of the rows' counts relative to that of independent questions, at least 1: Pearson's statistic over its
    degrees of freedom. The questions to one memory go together, so that R memories tell less than all of their questions."""
    k_RxN, m_RxN = np.asarray(right_RxN, float), np.asarray(asked_RxN, float)
    share_N = k_RxN.sum(axis=0) / np.maximum(m_RxN.sum(axis=0), 1.0)
    told_N = (share_N > 0) & (share_N < 1)
    freedom = (len(k_RxN) - 1) * int(told_N.sum())
    if freedom < 1:
        return 1.0
    k_RxN, m_RxN, share_N = k_RxN[:, told_N], m_RxN[:, told_N], share_N[told_N]
    variance_RxN = m_RxN * share_N * (1.0 - share_N)
    strays_RxN = np.divide((k_RxN - m_RxN * share_N) ** 2, variance_RxN, out=np.zeros_like(k_RxN), where=m_RxN > 0)
    return max(1.0, float(strays_RxN.sum()) / freedom)


def half_point_interval(pairs: ArrayLike, right_RxN: ArrayLike, asked_RxN: ArrayLike) -> Interval:
    """The interval of n50 over the memories of one run: t on a jackknife of log n50 that leaves out one row at a time.

    It says how well this run's n50 is known, and nothing of other seeds. None for fewer than `FEWEST` rows, where n50 hangs on
    one of them, and where rows do not differ.

    Args:
      pairs: n, numbers of pairs.
      right_RxN: number of right answers of each row at each n.
      asked_RxN: number of questions of each row at each n.
    """
    right_RxN, asked_RxN = np.asarray(right_RxN, float), np.asarray(asked_RxN, float)
    rows = len(right_RxN)
    right_N, asked_N = right_RxN.sum(axis=0), asked_RxN.sum(axis=0)
    found = half_point(pairs, right_N, asked_N, dispersion_of(right_RxN, asked_RxN))
    if rows < FEWEST or not found.by:
        return None
    n, k, m = in_order(pairs, right_N, asked_N)
    _, k_RxN, m_RxN, _ = in_order(pairs, right_N - right_RxN, asked_N - asked_RxN, asked_N)
    if found.by == "fit":
        left_R, _ = _logistics(n, k_RxN, m_RxN, _used(n, k, m))
    else:
        left_R = np.array([_crossing(*in_order(n, *of)) for of in zip(k_RxN, m_RxN, strict=True)])
    log_R = np.log(left_R)
    error = math.sqrt((rows - 1) / rows * float(np.sum((log_R - log_R.mean()) ** 2)))
    half, middle = float(special.stdtrit(rows - 1, 1.0 - TAIL)) * error, math.log(found.n50)
    return (exponential(middle - half), exponential(middle + half)) if half > ROUNDING else None


def _falls(k_N: np.ndarray, m_N: np.ndarray) -> np.ndarray:
    """The places i such that at least half are right at the i-th n and fewer at the next."""
    high_N = k_N >= m_N / 2.0
    return np.flatnonzero(high_N[:-1] & ~high_N[1:])


def _crossing(n_N: np.ndarray, k_N: np.ndarray, m_N: np.ndarray) -> float:
    """Where the curve last falls through one half, by a line in log n; NaN where the largest n is not below one half."""
    falls = _falls(k_N, m_N)
    if not len(falls) or k_N[-1] >= m_N[-1] / 2.0:
        return math.nan
    i = int(falls[-1])
    high, low = k_N[i] / m_N[i], k_N[i + 1] / m_N[i + 1]
    step = math.log(n_N[i + 1] / n_N[i])
    return float(n_N[i]) * math.exp(step * (high - 0.5) / (high - low))


def _fit(n_N: np.ndarray, k_N: np.ndarray, m_N: np.ndarray, dispersion: float) -> HalfPoint:
    """The logistic of a curve, with the deviance of the points that enter it."""
    used_N = _used(n_N, k_N, m_N)
    (n50,), (slope,) = _logistics(n_N, k_N[None], m_N[None], used_N)
    found = HalfPoint(float(n50), float(slope), freedom=int(used_N.sum()) - 2, by="fit")
    n, k, m = (of[used_N] for of in (n_N, k_N, m_N))
    return dataclasses.replace(found, deviance=_deviance(k, m, found.accuracy(n)) / dispersion)


def _used(n_N: np.ndarray, k_N: np.ndarray, m_N: np.ndarray) -> np.ndarray:
    """Whether each point enters the fit: those that a first fit of all puts inside `MIDDLE`, or all."""
    (n50,), (slope,) = _logistics(n_N, k_N[None], m_N[None], np.ones(len(n_N), bool))
    share_N = HalfPoint(float(n50), float(slope)).accuracy(n_N)
    middle_N = (share_N > MIDDLE[0]) & (share_N < MIDDLE[1])
    again = middle_N.sum() >= 3 and _crosses(k_N[middle_N], m_N[middle_N])
    return middle_N if again else np.ones(len(n_N), bool)


def _crosses(k_N: np.ndarray, m_N: np.ndarray) -> bool:
    """Whether a curve has points at one half or above, and others at it or below."""
    share_N = k_N / m_N
    return len(share_N) > 1 and share_N.min() <= 0.5 <= share_N.max() and share_N.min() < share_N.max()


def _logistics(n_N: np.ndarray, k_RxN: np.ndarray, m_RxN: np.ndarray, used_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n50 R, slope R) of the logistics of R curves of the points in `used_N`: share = expit(a - b x) by Newton's method.

    b is kept in `SLOPES`. Two parameters are solved in closed form: an optimizer's calls cost a thousand times the arithmetic.
    """
    k_RxN, m_RxN, x_N = k_RxN[:, used_N], m_RxN[:, used_N], np.log(n_N[used_N])
    centre = x_N.mean()
    x_N = x_N - centre
    a_R, b_R = np.zeros(len(k_RxN)), np.full(len(k_RxN), 2.0)
    for _ in range(NEWTON_STEPS):
        before_2xR = np.stack([a_R, b_R])
        share_RxN = special.expit(a_R[:, None] - b_R[:, None] * x_N)
        miss_RxN, weight_RxN = k_RxN - share_RxN * m_RxN, m_RxN * share_RxN * (1.0 - share_RxN)
        w0, w1, w2 = (np.sum(weight_RxN * x_N**power, axis=1) for power in (0, 1, 2))
        g0, g1 = miss_RxN.sum(axis=1), np.sum(miss_RxN * x_N, axis=1)
        determinant = w0 * w2 - w1**2 + 1e-9 * (1.0 + w0) ** 2
        a_R = a_R + np.clip((w2 * g0 - w1 * g1) / determinant, -1.0, 1.0)  # short steps: far out the curvature vanishes
        b_R = np.clip(b_R - np.clip((w0 * g1 - w1 * g0) / determinant, -1.0, 1.0), *SLOPES)
        if np.abs(before_2xR - (a_R, b_R)).max() < CLOSE * (1.0 + np.abs(before_2xR).max()):
            break
    return np.exp(np.minimum(centre + a_R / b_R, LARGEST_LOG)), b_R
