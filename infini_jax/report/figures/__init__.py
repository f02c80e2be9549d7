"""The figures F1 to F10, each from what was measured; a figure without data says what would measure it."""

from collections.abc import Callable

from infini_jax.report.figures.capacity import collapse, n50
from infini_jax.report.figures.forgetting import forgetting
from infini_jax.report.figures.gates import gates
from infini_jax.report.figures.loss import gains, loss_against_bytes
from infini_jax.report.figures.passkey import heat_maps, needles
from infini_jax.report.figures.recall import pareto
from infini_jax.report.figures.sorting import sorting
from infini_jax.report.figures.trade import best_split
from infini_jax.report.found import Found
from infini_jax.report.looks import Series, Style
from infini_jax.report.parts import Figures

FIGURES: tuple[Callable[[Found, dict[Series, Style]], Figures], ...] = (
    collapse,
    n50,
    pareto,
    forgetting,
    heat_maps,
    needles,
    loss_against_bytes,
    gains,
    best_split,
    sorting,
    gates,
)
