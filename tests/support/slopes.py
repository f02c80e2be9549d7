"""Jobs whose result is a formula of their rate, budget and seed: what a ladder decides can be told without training."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from infini_jax.config import Budget
from infini_jax.config.plain import fingerprint_of, from_plain, to_plain
from infini_jax.errors import TrainingDiverged
from infini_jax.records.folder import ROW_FILE
from infini_jax.records.rows import Row, write_rows
from infini_jax.study.jobs import JobKind
from tests.support.made_results import row_of


@dataclasses.dataclass(frozen=True)
class Slope:
    """A run whose loss is `floor` + `fall` / budget, and more the further its rate is from `best`."""

    name: str = "slope"
    version: int = 1
    variant: str = ""
    seed: int = 0
    mechanism: str = "one"
    memory_bytes: int = 1024
    learning_rate: float = 1e-2
    budget: Budget = Budget("flops", 1.0)
    best: float = 1e-2
    floor: float = 1.0
    fall: float = 0.0
    breaks: float = 1e30  # rate from which the loss is not finite

    task = "slope"

    def fingerprint(self) -> str:
        return fingerprint_of(self)

    def to_dict(self) -> dict[str, Any]:
        return to_plain(self)

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "Slope":
        return from_plain(Slope, plain, "slope")

    def with_learning_rate(self, rate: float) -> "Slope":
        return dataclasses.replace(self, learning_rate=rate)

    @property
    def loss(self) -> float:
        away = abs(math.log(self.learning_rate / self.best))
        return self.floor + self.fall / self.budget.amount + 0.1 * away + 1e-4 * self.seed


def planned_flops(job: Slope) -> float:
    return job.budget.amount


def fall(job: Slope, folder: Path, study: str) -> Row:
    """Does a job."""
    folder.mkdir(parents=True, exist_ok=True)
    if job.learning_rate >= job.breaks:
        raise TrainingDiverged("loss: not finite")
    made_up = row_of("mqar", "local", "", 4096, job.seed)
    row = dataclasses.replace(
        made_up,
        **{name: getattr(job, name) for name in ("seed", "task", "mechanism", "variant", "memory_bytes", "learning_rate")},
        run=job.name,
        fingerprint=job.fingerprint(),
        study=study,
        loss=job.loss,
        budget_unit=job.budget.unit,
        budget_amount=job.budget.amount,
        flops_planned=job.budget.amount,
        flops_actual=job.budget.amount,
    )
    write_rows([row], folder / ROW_FILE)
    return row


KIND = JobKind(Slope, "tests.support.slopes:fall", planned_flops)
