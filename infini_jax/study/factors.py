"""Factors of a study whose runs are combinations of settings: a study declares them, and its report has their effects.

A factor's levels are the values of a setting of the jobs, or words of their variants where no setting tells them apart. They
are never guessed: a `Design` names the setting or the words, and is checked when the study is made.
"""

import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from infini_jax.errors import check_fields, require, require_not_negative, require_one_line
from infini_jax.study.jobs import Job, learning_rate_of, task_of
from infini_jax.study.ladder import is_same_size
from infini_jax.training.trained import flattened

Level = str | float | tuple  # "none" for a setting that is None


@dataclasses.dataclass(frozen=True)
class Factor:
    """One factor: a setting of the jobs whose values are its levels, or words of which each job's variant has one.

    Attributes:
      name: name in tables.
      setting: dotted name of a setting of the jobs, such as model.memory.update; "" where words tell the levels apart.
      per: dotted name of another setting that it is divided by, such as the learning rate of the rest; "" for none.
      words: levels as words of a variant, between its blanks and dashes; none where a setting tells them apart.

    Raises:
      ConfigError: neither a setting nor two words, both of them, or a text of several lines.
    """

    name: str
    setting: str = ""
    per: str = ""
    words: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields("factor", self)
        for field in ("name", "setting", "per"):
            require_one_line(f"factor.{field}", getattr(self, field))
        for word in self.words:
            require_one_line("factor.words", word)
        require(bool(self.name.strip()), "factor.name", "it is empty", "give the name that tables shall have")
        both = bool(self.setting) == bool(self.words)
        require(not both, "factor.setting", "it needs a setting or words, and not both", "give one of them")
        is_told = not self.words or len(set(self.words)) == len(self.words) > 1
        require(is_told, "factor.words", "they tell no levels apart", "give two different words at least")
        require(not self.per or bool(self.setting), "factor.per", "there is no setting to divide", "give factor.setting")

    def level(self, settings: Mapping[str, Any], variant: str) -> Level | None:
        """The level of a job by its settings, by dotted name, and its variant; None where neither tells it."""
        if self.words:
            found = [word for word in re.split(r"[ -]", variant) if word in self.words]
            return found[0] if len(found) == 1 else None
        if self.setting not in settings or (self.per and not settings.get(self.per)):
            return None
        value = settings[self.setting]
        if self.per and value is not None:
            value = float(f"{value / settings[self.per]:.6g}")  # 0.3 / 0.1 is no other level than 3
        return "none" if value is None else tuple(value) if isinstance(value, list) else value

    def place(self, level: Level) -> tuple:
        """The place of a level among others: words as they are declared, "none" first, numbers before texts."""
        if self.words:
            return (self.words.index(str(level)),)
        return (level != "none", isinstance(level, str), level if not isinstance(level, bool) else int(level))


@dataclasses.dataclass(frozen=True)
class Design:
    """The factors of a study; the bytes of memory are one more where jobs of a mechanism have several.

    Attributes:
      factors: the factors.
      tolerance: difference up to which two scores count as equal, in the task's score, as a ladder's.

    Raises:
      ConfigError: no factor, two of the same name, or a tolerance out of range.
    """

    factors: tuple[Factor, ...]
    tolerance: float

    def __post_init__(self):
        check_fields("design", self)
        require_not_negative("design", tolerance=self.tolerance)
        names = [factor.name for factor in self.factors]
        require(bool(names), "design.factors", "there is none", "give one at least, or leave the design out")
        twice = max(names, key=names.count)
        require(names.count(twice) == 1, "design.factors", f"two are called {twice:.40}", "give each its own name")

    def levels(self, settings: Mapping[str, Any], variant: str) -> tuple[Level | None, ...]:
        """The level of each factor of a job, see `Factor.level`."""
        return tuple(factor.level(settings, variant) for factor in self.factors)


def check_design(design: Design, jobs: Sequence[Job]) -> None:
    """Checks that the factors tell jobs apart: raises `ConfigError` in one line where they do not.

    A setting must be one of some job's, and words must be in some job's variant; and two jobs of a mechanism with one task,
    seed and learning rate must differ in a level, or in their bytes of memory.

    Args:
      design: factors of the study.
      jobs: jobs of the study, without its floor and ceiling.
    """
    found = [(job, design.levels(flattened(job.to_dict()), job.variant)) for job in jobs]
    for number, factor in enumerate(design.factors):
        wanted = f"'{factor.setting:.60}'" if factor.setting else f"one of the words {', '.join(factor.words):.60}"
        is_known = any(levels[number] is not None for _, levels in found)
        require(
            is_known, "design.factors", f"no run has {wanted}, of {factor.name:.40}", "name a setting or words of the runs"
        )
    groups: dict[Hashable, list[tuple[Job, tuple]]] = {}
    for job, levels in found:
        groups.setdefault((task_of(job), job.mechanism), []).append((job, levels))
    for of in groups.values():
        classes, names = size_classes(job.memory_bytes for job, _ in of), dict[Hashable, str]()
        for job, levels in of:
            cell = (classes[job.memory_bytes], levels, job.seed, learning_rate_of(job))
            other = names.setdefault(cell, job.name)
            told = f"{other} and {job.name} have the same levels, bytes, seed and learning rate"
            require(other == job.name, "design.factors", told, "add the factor that tells them apart")


def size_classes(sizes: Iterable[int]) -> dict[int, int]:
    """The smallest of the sizes that count as the same, in bytes, by size (`infini_jax.study.ladder.is_same_size`)."""
    classes: dict[int, int] = {}
    least = 0
    for size in sorted(set(sizes)):
        least = least if classes and is_same_size(least, size) else size
        classes[size] = least
    return classes
