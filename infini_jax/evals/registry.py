"""The evaluations. One row an evaluation: studies, the command line and saved settings find it here by its name."""

from infini_jax.evals.base import Evaluation

EVALUATIONS: dict[str, type[Evaluation]] = {}
