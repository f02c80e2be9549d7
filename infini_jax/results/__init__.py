"""Results in a Python shell: tables of runs, curves and figures of evaluations, and the standard figures of them.

    from infini_jax.results import load, recall_against_bytes
    found = load("results/quick")
    found.runs.groupby("mechanism").accuracy.max()
    recall_against_bytes(found, "mqar").savefig("recall.svg")

See docs/results.md. What writes and reads the files themselves is in `infini_jax.records`.
"""

from infini_jax.records.rows import Row, read_rows, write_rows
from infini_jax.results.figures import gates, is_chosen, loss_against_bytes, recall_against_bytes, tasks, training_curves
from infini_jax.results.load import Results, load

__all__ = [
    "Results",
    "Row",
    "gates",
    "is_chosen",
    "load",
    "loss_against_bytes",
    "read_rows",
    "recall_against_bytes",
    "tasks",
    "training_curves",
    "write_rows",
]
