"""What all settings of jobs without a transformer have alike."""

from typing import Any, ClassVar, Self

from infini_jax.config.plain import fingerprint_of, from_plain, to_plain


class CodesSettings:
    """The base of frozen dataclasses that are jobs of a study.

    Attributes:
      kind: name of the kind of job in messages.
    """

    kind: ClassVar[str]

    def fingerprint(self) -> str:
        """Twelve hex digits of the settings that decide the result."""
        return fingerprint_of(self)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ConfigError` for unknown fields."""
        return from_plain(cls, plain, cls.kind)
