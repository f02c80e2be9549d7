"""The parameters of another run at which a run begins: what they are, and where they lay."""

import dataclasses

from infini_jax.config.model import ModelConfig
from infini_jax.errors import check_fields, require_not_negative


@dataclasses.dataclass(frozen=True)
class Origin:
    """The learned parameters of another run at one of its checkpoints; made by `infini_jax.training.origin.begun_from`.

    They are read before the first step; whatever has their digest will do, wherever it lies.

    Attributes:
      folder: folder of the other run; not compared.
      name: name of the other run; not compared.
      fingerprint: fingerprint of the other run's settings.
      step: step of its checkpoint.
      digest: digest of all learned parameters there, twelve hex digits.
      model: settings of the other run's model, which say what parameters it has; None where an older version left
        them out. Not compared, as the fingerprint is of them, too.
    """

    folder: str
    name: str
    fingerprint: str
    step: int
    digest: str
    model: ModelConfig | None = None

    def __post_init__(self):
        check_fields("origin", self)
        require_not_negative("origin", step=self.step)

    @property
    def said(self) -> str:
        """The origin in words: name and step."""
        return f"{self.name}, step {self.step}"

    @property
    def anonymous(self) -> "Origin":
        """All that programs depend on: which parameters there are, and not which numbers."""
        return Origin("", "", "", 0, "", self.model)
