"""Random codes: how many pairs an update rule recalls without any training, as theory describes it.

Keys and values are random unit vectors of d_k and d_v entries; n pairs are written, keys are asked, and the answer is the
one of `symbols` candidate values with the highest score. Rules, S the memory, k a key, v its value:
  least_squares   S = K^+ V: the best that a linear memory of this shape can do for the squared error
  sum             S = sum k v^T
  delta           S += k (v - k^T S), one token after the other: the newest pair is always exact, older ones wear off
  elu_sum         S = sum f(k) v^T, z = sum f(k), read f(q) S / f(q) z, f = elu + 1: Infini-attention's linear update
  elu_delta       S += sum over a segment of f(k) (v - f(k) S / f(k) z), all reading the S and z from before the segment
The elu rules get keys of length sqrt(d_k), entries of size one as a layer's keys have: f of smaller ones is nearly constant.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.linalg import solve_triangular

from infini_jax.analysis.half_points import dispersion_of, half_point, half_point_interval, labelled
from infini_jax.analysis.intervals import wilson
from infini_jax.codes.probe import read_out_error
from infini_jax.codes.settings import CodesSettings
from infini_jax.errors import (
    check_fields,
    require,
    require_file_name,
    require_not_negative,
    require_one_line,
    require_positive,
)
from infini_jax.records.measures import Label, Measure

Rule = Literal["least_squares", "sum", "delta", "elu_sum", "elu_delta"]
Read = Callable[[int], np.ndarray]  # pairs written -> the answers to their keys, nxV
GROUPS = 16  # of memories that are left out together for intervals
NAME = "random_codes"


def unit_rows(random: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Random unit vectors: rows x dim, float32."""
    x = random.standard_normal((rows, dim), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def elu_plus_one(keys: np.ndarray) -> np.ndarray:
    """elu(x) + 1 of keys scaled to a length of sqrt(d_k), n x d_k."""
    x = keys * np.float32(keys.shape[1] ** 0.5)
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))


def least_squares(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    """Reads S = K^+ V of the first n pairs, the best linear memory for the squared error."""
    return lambda n: keys[:n] @ np.linalg.lstsq(keys[:n], values[:n], rcond=None)[0]


def summed(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    """Reads S = sum k v^T over the first n pairs."""
    return lambda n: keys[:n] @ (keys[:n].T @ values[:n])


def delta(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    """Reads the delta rule's S after n pairs, from one solve for all n.

    What token t really adds, u_t = v_t - sum_{i<t} (k_t . k_i) u_i, does not depend on later tokens.
    """
    added = solve_triangular(np.tril(keys @ keys.T, -1) + np.eye(len(keys)), values, lower=True, unit_diagonal=True)
    return lambda n: keys[:n] @ (keys[:n].T @ added[:n])


def elu_summed(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    """Reads Infini-attention's linear update over the first n pairs: f(q) S / f(q) z."""
    features = elu_plus_one(keys)
    return lambda n: _normalised(features[:n], features[:n].sum(axis=0)) @ (features[:n].T @ values[:n])


def elu_delta(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    """Reads Infini-attention's delta update after n pairs, written `segment` at a time."""
    features = elu_plus_one(keys)

    def read(n: int) -> np.ndarray:
        S, z = np.zeros((keys.shape[1], values.shape[1])), np.zeros(keys.shape[1])
        for start in range(0, n, segment):
            f, v = features[start : min(start + segment, n)], values[start : min(start + segment, n)]
            S, z = S + f.T @ (v - _normalised(f, z) @ S), z + f.sum(axis=0)
        return _normalised(features[:n], z) @ S

    return read


def _normalised(features: np.ndarray, z: np.ndarray) -> np.ndarray:
    """f / (f z), zero where nothing was written."""
    mass = features @ z
    return features * np.divide(1.0, mass, out=np.zeros_like(mass), where=mass > 0)[:, None]


RULES: dict[Rule, Callable[[np.ndarray, np.ndarray, int], Read]] = {
    "least_squares": least_squares,
    "sum": summed,
    "delta": delta,
    "elu_sum": elu_summed,
    "elu_delta": elu_delta,
}
"""Registry of update rules: name -> function (keys, values, segment) -> read of the memory."""


@dataclasses.dataclass(frozen=True)
class RandomCodesRun(CodesSettings):
    """One update rule at one size, as a job of a study that trains nothing.

    Attributes:
      name: name of the job and of its folder.
      version: version of the name; raise it when the same name should mean something new.
      variant: name that tells the job from others of its rule in tables.
      seed: seed of codes and questions.
      rule: name of the update rule in `RULES`.
      key_dim: d_k, number of entries of a key.
      value_dim: d_v, number of entries of a value.
      symbols: number of candidates for a value.
      pairs: grid of n, the number of pairs.
      questions: number of questions at each n, to as many memories as it takes.
      segment: number of pairs that elu_delta writes at once.

    Raises:
      ConfigError: an unknown rule, or sizes out of range.
    """

    kind = NAME
    name: str = "random-codes"
    version: int = 1
    variant: str = ""
    seed: int = 0
    rule: Rule = "sum"
    key_dim: int = 64
    value_dim: int = 64
    symbols: int = 8192
    pairs: tuple[int, ...] = (64, 90, 128, 181, 256, 362, 512)
    questions: int = 2048
    segment: int = 8

    def __post_init__(self):
        require_file_name("name", self.name)
        check_fields(NAME, self)
        require_one_line("variant", self.variant)
        require_not_negative(NAME, version=self.version, seed=self.seed)
        require_positive(NAME, key_dim=self.key_dim, value_dim=self.value_dim, segment=self.segment)
        require(self.symbols >= 2, f"{NAME}.symbols", f"{self.symbols} leave nothing to choose", "give at least 2")
        require(
            len(self.pairs) > 0 and min(self.pairs) > 0,
            f"{NAME}.pairs",
            f"{self.pairs} is not a grid of numbers of pairs",
            "give at least one, all above zero",
        )
        require(
            self.questions >= 4 * GROUPS,
            f"{NAME}.questions",
            f"{self.questions} are too few for an interval",
            f"give at least {4 * GROUPS}",
        )

    @property
    def task(self) -> str:
        """The name of this task."""
        return NAME

    @property
    def mechanism(self) -> str:
        """The name of the rule: no mechanism of the registry is at work."""
        return self.rule

    @property
    def memory_bytes(self) -> int:
        """Bytes of S, and of z for the rules that have one, in float32."""
        return 4 * self.key_dim * (self.value_dim + self.rule.startswith("elu"))


def planned_flops(run: RandomCodesRun) -> float:
    """FLOPs of all answers, by the sum rule's count, and of their scores; the other rules' writes cost more."""
    writes = sum(2.0 * pairs * _memories(run, pairs) for pairs in run.pairs) * GROUPS
    return 2.0 * run.value_dim * (writes * run.key_dim + run.questions * len(run.pairs) * run.symbols)


def _memories(run: RandomCodesRun, pairs: int) -> int:
    """Memories in one group, enough for all groups together to hold the run's questions."""
    return math.ceil(run.questions / GROUPS / min(pairs, run.questions // GROUPS))


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of one group of M memories at one n.

    Attributes:
      answers: QxV, entries of the answers.
      values: QxV, entries of the values that were written.
      hit: Q, whether the best candidate is the right one.
      left: MxN, what is left of every pair, answer . value, the oldest first.
    """

    answers: np.ndarray
    values: np.ndarray
    hit: np.ndarray
    left: np.ndarray


def ask(run: RandomCodesRun, pairs: int, table: np.ndarray, random: np.random.Generator) -> Answers:
    """The answers of one group of fresh memories at n = `pairs`, with a table of the candidates' values."""
    answers, written, left = [], [], []
    for _ in range(_memories(run, pairs)):
        symbols = random.integers(0, run.symbols, pairs)
        read = RULES[run.rule](unit_rows(random, pairs, run.key_dim), table[symbols], run.segment)
        asked = random.permutation(pairs)[: run.questions // GROUPS]
        found = read(pairs)
        answers.append(found[asked])
        written.append(symbols[asked])
        left.append((found * table[symbols]).sum(axis=1))
    answers_QxV, written_Q = np.concatenate(answers).astype(np.float32), np.concatenate(written)
    hit_Q = (answers_QxV @ table.T).argmax(axis=1) == written_Q
    return Answers(answers_QxV, table[written_Q], hit_Q, np.stack(left))


def measure(run: RandomCodesRun) -> list[Measure]:
    """The figures of a run: accuracy and nmse by n, n50 with its interval over memories, survival by age at the largest n."""
    labels = {"rule": run.rule, "key_dim": run.key_dim, "value_dim": run.value_dim, "symbols": run.symbols}
    figure = functools.partial(Measure, NAME)
    tables = [unit_rows(np.random.default_rng([run.seed, group]), run.symbols, run.value_dim) for group in range(GROUPS)]
    found, right_GxN, asked_GxN = [], [], []
    for pairs in run.pairs:
        groups = [
            ask(run, pairs, table, np.random.default_rng([run.seed, group, pairs])) for group, table in enumerate(tables)
        ]
        right_GxN.append([group.hit.sum() for group in groups])
        asked_GxN.append([group.hit.size for group in groups])
        right, asked = sum(right_GxN[-1]), sum(asked_GxN[-1])
        here: dict[str, Label] = {**labels, "pairs": pairs}
        low, high = wilson(right, asked) or (math.nan, math.nan)
        found.append(figure("accuracy", right / asked, int(asked), low, high, here))
        answers, values = (np.concatenate([getattr(group, name) for group in groups]) for name in ("answers", "values"))
        found.append(figure("nmse", read_out_error(answers, values), len(answers), labels=here))
    right_GxN, asked_GxN = np.array(right_GxN).T, np.array(asked_GxN).T
    dispersion = dispersion_of(right_GxN, asked_GxN)
    fitted = half_point(run.pairs, right_GxN.sum(axis=0), asked_GxN.sum(axis=0), dispersion)
    interval = half_point_interval(run.pairs, right_GxN, asked_GxN) or (math.nan, math.nan)
    found.append(figure("n50", fitted.n50, int(asked_GxN.sum()), *interval, {**labels, **labelled(fitted)}))
    return found + survival(run, groups, {**labels, "pairs": pairs})


def survival(run: RandomCodesRun, groups: list[Answers], labels: dict[str, Label]) -> list[Measure]:
    """The share of a value that is left by age, answer . v: 1 where the pair is recalled as written; ages in doubling bins."""
    left_MxN, found = np.concatenate([group.left for group in groups])[:, ::-1], []
    for low, high in age_bins(left_MxN.shape[1]):
        inside = left_MxN[:, low:high]
        if inside.size > 1:
            value, error = float(inside.mean()), float(1.96 * inside.std(ddof=1) / math.sqrt(inside.size))
            here: dict[str, Label] = {**labels, "age": (low + high - 1) / 2}
            found.append(Measure(NAME, "survival_by_age", value, inside.size, value - error, value + error, here))
    return found


def age_bins(pairs: int) -> list[tuple[int, int]]:
    """Half-open bins of ages 0 .. pairs - 1, each half as wide as its start, at least 1."""
    edges = [0]
    while edges[-1] < pairs:
        edges.append(min(pairs, edges[-1] + max(1, edges[-1] // 2)))
    return list(itertools.pairwise(edges))
