"""The evaluations by name, and as JSON values. A new one is one file and one row here."""

from typing import Any

from infini_jax.config import from_plain, to_plain
from infini_jax.errors import lookup
from infini_jax.evals.base import Evaluation

EVALUATIONS: dict[str, type[Evaluation]] = {}


def evaluation_to_plain(evaluation: Evaluation) -> dict[str, Any]:
    """Its settings as JSON values, with its registry name under `kind`."""
    return {"kind": evaluation.name, **to_plain(evaluation)}


def evaluation_from_plain(plain: dict[str, Any], where: str = "evaluations") -> Evaluation:
    """The inverse. Raises `ConfigError` for an unknown name or field, with a suggestion."""
    kind = lookup(f"{where}.kind", plain["kind"], EVALUATIONS)
    return from_plain(kind, {name: value for name, value in plain.items() if name != "kind"}, where)
