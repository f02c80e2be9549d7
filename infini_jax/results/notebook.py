"""Figures in a notebook: in the look of reports, each with a caption that is also its alternative text.

Imported by its own name, as IPython is there in notebooks only: `from infini_jax.results.notebook import show, use_look`.
"""

import io

import matplotlib.pyplot as plt
from cycler import cycler
from IPython.display import Image, Markdown, display
from matplotlib import style
from matplotlib.figure import Figure

from infini_jax.report.looks import COLOURS
from infini_jax.report.plots import LOOK

DOTS = 96  # an inch: readable, and a notebook of ten figures stays small


def use_look() -> None:
    """Lets pyplot draw as reports do: the same colors, told apart with every common form of color blindness."""
    style.use({**LOOK, "axes.prop_cycle": cycler(color=COLOURS)})


def show(figure: Figure, caption: str) -> None:
    """Shows the figure on white paper, as pages of notebooks are dark or light, and the caption below it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS, facecolor="white", transparent=False)
    plt.close(figure)  # otherwise pyplot shows it a second time at the end of the cell
    display(Image(file.getvalue(), alt=caption), Markdown(f"*{caption}*"))
