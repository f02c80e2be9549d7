"""Effects of factors and their interactions over seeds, in designs where every level of a factor meets levels of the others.

A cell is one level of every factor, with one score a seed. The effect of a factor from one level to another is a difference of
cells that differ in nothing else, averaged over the settings of the other factors; an interaction is a difference of two such
effects (Yates 1937; Box, Hunter and Hunter 2005, chapter 5). Each seed gives one number, in which all of its cells are paired,
and the interval is Student's t over seeds, see `infini_jax.analysis.intervals`.

Only settings in which all cells of the difference were measured enter; the others are named. A seed that lacks one of these
cells is left out and named, so that no difference is taken between different seeds or different settings.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping

from infini_jax.analysis.intervals import NOTHING, Estimate, mean_of_seeds

Levels = tuple[Hashable, ...]  # one level of each factor
Cells = Mapping[Levels, Mapping[int, float]]  # the score of each seed in each cell


@dataclasses.dataclass(frozen=True)
class Contrast:
    """An effect, or an interaction.

    Attributes:
      estimate: the mean over seeds with its interval.
      settings: settings of the other factors that it is averaged over, in the order of the factors without its own.
      left_out: settings of the other factors that lack a cell.
    """

    estimate: Estimate
    settings: tuple[Levels, ...]
    left_out: tuple[Levels, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every setting of the other factors has all cells."""
        return bool(self.settings) and not self.left_out


def contrast(
    cells: Cells,
    ends: Mapping[int, tuple[Hashable, Hashable]],
    deviations: Mapping[Levels, float] | None = None,
) -> Contrast:
    """The difference of cells from the first to the second level of one factor, or of several at once.

    With one factor it is its effect. With two it is their interaction, the effect of either at the second level of the other
    minus that at the first; which of them is called the first makes no difference.

    Args:
      cells: scores by cell and seed; one that is not finite counts as missing.
      ends: (from, to) levels by the number of the factor among the levels of a cell.
      deviations: standard deviation that a seed's score in a cell has in any case, such as that of a share of few questions.
    """
    known = {cell: found for cell, of in cells.items() if (found := {s: y for s, y in of.items() if math.isfinite(y)})}
    near = [cell for cell in known if all(cell[place] in pair for place, pair in ends.items())]
    settings = dict.fromkeys(without(cell, ends) for cell in near)
    corners = {rest: corners_of(rest, ends) for rest in settings}
    complete = tuple(rest for rest in settings if all(cell in known for cell in corners[rest]))
    left_out = tuple(rest for rest in settings if rest not in complete)
    if not complete:
        return Contrast(dataclasses.replace(NOTHING, why="no setting has all levels"), (), left_out)
    needed = {cell: sign for rest in complete for cell, sign in corners[rest].items()}
    lacking = {seed: sum(seed not in known[cell] for cell in needed) for seed in sorted({s for c in needed for s in known[c]})}
    by_seed = {
        seed: sum(sign * known[cell][seed] for cell, sign in needed.items()) / len(complete)
        for seed, missing in lacking.items()
        if not missing
    }
    dropped = [f"seed {seed} (lacks {missing} of {len(needed)} runs)" for seed, missing in lacking.items() if missing]
    least = math.sqrt(sum((deviations or {}).get(cell, 0.0) ** 2 for cell in needed)) / len(complete)
    return Contrast(mean_of_seeds(by_seed, least, dropped), complete, left_out)


def without(cell: Levels, ends: Mapping[int, tuple[Hashable, Hashable]]) -> Levels:
    """The levels of a cell's other factors."""
    return tuple(level for place, level in enumerate(cell) if place not in ends)


def corners_of(rest: Levels, ends: Mapping[int, tuple[Hashable, Hashable]]) -> dict[Levels, int]:
    """The cells of a difference at one setting of the other factors, each with its sign."""
    found = {}
    for upper in itertools.product((0, 1), repeat=len(ends)):
        own, others = dict(zip(ends, upper, strict=True)), iter(rest)
        cell = tuple(ends[n][own[n]] if n in ends else next(others) for n in range(len(rest) + len(ends)))
        found[cell] = (-1) ** (len(ends) - sum(upper))
    return found
