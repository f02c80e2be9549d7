"""MAD's noisy in-context recall, its baseline: a fifth of the pairs is noise of sixteen symbols of its own."""

import dataclasses

from infini_jax.data.mad.in_context_recall import InContextRecallConfig


@dataclasses.dataclass(frozen=True)
class NoisyRecallConfig(InContextRecallConfig):
    """Settings of noisy in-context recall, those of in-context recall with MAD's defaults."""

    title = "noisy recall"
    symbols: int = 32
    noise: float = 0.2
    noise_symbols: int = 16
