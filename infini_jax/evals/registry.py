"""The evaluations by name, and as JSON values. A new evaluation is one file and one row here."""

from typing import Any

from infini_jax.config.plain import from_plain, to_plain
from infini_jax.errors import lookup, require
from infini_jax.evals.babilong import BabilongEvaluation
from infini_jax.evals.base import Evaluation
from infini_jax.evals.blimp import Blimp, BlimpSupplement
from infini_jax.evals.conditioned import ConditionedEvaluation
from infini_jax.evals.echo import EchoEvaluation
from infini_jax.evals.gains import Gains
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.haystack import HaystackEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.evals.ruler import RulerEvaluation
from infini_jax.evals.slots import SlotsEvaluation
from infini_jax.evals.sorting import SortingEvaluation
from infini_jax.evals.symbols import SymbolEvaluation

EVALUATIONS: dict[str, type[Evaluation]] = {
    evaluation.name: evaluation
    for evaluation in (
        LanguageEvaluation,
        MqarEvaluation,
        PasskeyEvaluation,
        HaystackEvaluation,
        SortingEvaluation,
        SymbolEvaluation,
        RulerEvaluation,
        BabilongEvaluation,
        SlotsEvaluation,
        EchoEvaluation,
        ConditionedEvaluation,
        Gains,
        Blimp,
        BlimpSupplement,
        GateEvaluation,
    )
}
"""Registry of evaluations: name on the command line and in results -> class. Add your own evaluation here."""


def evaluation_to_plain(evaluation: Evaluation) -> dict[str, Any]:
    """The settings of an evaluation as JSON values, its registry name under `kind`. Raises `ConfigError` for one in no row."""
    known, name = type(evaluation) in EVALUATIONS.values(), type(evaluation).__name__
    require(known, "study.evaluations", f"{name} is in no row of the registry", "add it to EVALUATIONS")
    return {"kind": evaluation.name, **to_plain(evaluation)}


def evaluation_from_plain(plain: dict[str, Any], where: str = "evaluations") -> Evaluation:
    """The evaluation of JSON values, the inverse of `evaluation_to_plain`.

    Raises `ConfigError` for an unknown name or field, with a suggestion.
    """
    kind = lookup(f"{where}.kind", plain["kind"], EVALUATIONS)
    return from_plain(kind, {name: value for name, value in plain.items() if name != "kind"}, where)
