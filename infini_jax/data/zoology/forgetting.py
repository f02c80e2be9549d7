"""Zoology's forgetting MQAR: half of the keys are written again with another value, and the newer one counts.

DEVIATION: the new value always differs from the one that the key had; the released generator compares it with another key's.
"""

import dataclasses

from infini_jax.data.mqar import MqarConfig


@dataclasses.dataclass(frozen=True)
class ForgettingMqarConfig(MqarConfig):
    """Settings of forgetting MQAR, those of MQAR with Zoology's defaults."""

    title = "forgetting MQAR"
    pairs: int = 8
    symbols: int = 8192
    overwrites: int = 4
    spread: float = 0.01
    noise: float = 1.0
