"""The look of each mechanism, the same on every page, in every notebook and in every figure of these pages.

Colors are those of Okabe and Ito (2008), told apart with every common form of color blindness, and some of Paul Tol's. A
mechanism has one color and one marker; its variants differ in the dashes of their lines.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal

from infini_jax.records.rows import Row

Series = tuple[str, str]  # mechanism, variant

INK = "#010203"  # stands for the text color: `plots.svg` writes currentColor; pure black would be left out of the SVG
COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # yellow left out: too pale on white paper
SPARE = ("#6699CC", "#CC6677", "#888888")  # of mechanisms that are not in the table
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1, 1, 1))
VARIANTS = {"": 0, "linear": 0, "delta": 1, "unit": 2, "relative": 0}
"""Numbers of the variants that have the same dashes everywhere; the others of a page are numbered behind them by name."""
BASELINE = "local"  # the sliding window: the floor that memory has to beat, drawn first


@dataclasses.dataclass(frozen=True)
class Style:
    """The look of a mechanism and variant.

    Attributes:
      colour: color of its lines and markers.
      marker: matplotlib's name of its marker.
      dashes: lengths of strokes and gaps of its lines in points; () is a whole line.
    """

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()

    @property
    def line(self) -> tuple[float, Sequence[float]] | Literal["-"]:
        """Matplotlib's style of its lines."""
        return (0, self.dashes) if self.dashes else "-"


OF_MECHANISMS = {
    "local": Style(INK, "o"),
    "full": Style(INK, "*"),
    "transformer_xl": Style("#0072B2", "s"),
    "infini": Style("#D55E00", "^"),
    "gated_delta": Style("#009E73", "D"),
    "compressive": Style("#56B4E9", "v"),
    "memorizing": Style("#CC79A7", "P"),
    "landmark": Style("#E69F00", "X"),
    "infinite_former": Style("#882255", "h"),
    "kimi_delta": Style("#117733", "v"),
    "gated_delta2": Style("#999933", "D"),
    "log_linear": Style("#AA4499", "^"),
    "memory_caching": Style("#661100", "P"),
    "rmt": Style("#44AA99", "<"),
    "armt": Style("#44AA99", ">"),
    "block_recurrent": Style("#332288", "s"),
}
"""The look of each mechanism of this package. Floor and ceiling are black."""


def series_of(row: Row) -> Series:
    """The mechanism and variant of a run."""
    return row.mechanism, row.variant


def label_of(series: Series) -> str:
    """A mechanism and variant as text."""
    return " ".join(filter(None, series))


def look_of(mechanism: str) -> Style:
    """The look of a mechanism by its name; that of one that is not in the table follows from the name alone."""
    number = zlib.crc32(mechanism.encode())
    return OF_MECHANISMS.get(mechanism, Style(SPARE[number % len(SPARE)], MARKERS[number // len(SPARE) % len(MARKERS)]))


def numbered(number: int) -> Style:
    """A look for what is no mechanism, such as sizes or update rules, by its place among them."""
    return Style(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])


def styles_of(rows: Sequence[Row]) -> dict[Series, Style]:
    """The look of each mechanism and variant, no look twice; the sliding window comes first, then by name."""
    return looks({series_of(row) for row in rows})


def looks(series: Iterable[Series]) -> dict[Series, Style]:
    """The look of each of some mechanisms and variants, see `styles_of`."""
    order = sorted(set(series), key=lambda one: (one[0] != BASELINE, one))
    numbers: dict[str, dict[str, int]] = {}
    for mechanism, variant in order:
        numbers.setdefault(mechanism, {})[variant] = 0
    for variants in numbers.values():
        known = {name: VARIANTS[name] for name in variants if name in VARIANTS}
        free = (number for number in range(len(variants) + len(VARIANTS)) if number not in known.values())
        variants |= known | {name: next(free) for name in variants if name not in known}
    return {one: _variant(look_of(one[0]), numbers[one[0]][one[1]]) for one in order}


def in_order(series: Iterable[Series], styles: Iterable[Series]) -> list[Series]:
    """The given mechanisms and variants that have a look, each once, in the order of the looks."""
    held = set(series)
    return [one for one in styles if one in held]


def _variant(look: Style, number: int) -> Style:
    """The look of a mechanism's variant: other dashes, and another marker once these are used up."""
    shift = MARKERS.index(look.marker) + number // len(DASHES)
    return Style(look.colour, MARKERS[shift % len(MARKERS)], DASHES[number % len(DASHES)])
