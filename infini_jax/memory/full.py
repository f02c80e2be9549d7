"""Full attention: every token sees all earlier tokens of its document, up to `slots` carried ones. The ceiling.

Exactly one long causal attention as long as no document has more than `slots` tokens before the segment; gradients flow
through the cache (`train.bptt` cuts them). Beyond that length the oldest keys are dropped, a segment at a time, when it
is written: the t-th token of a segment then sees the last `slots` + t tokens, itself included.
"""

import dataclasses

from infini_jax.memory.dims import Dims
from infini_jax.memory.window import Cache, SlotsConfig


@dataclasses.dataclass(frozen=True)
class FullConfig(SlotsConfig):
    """Settings of full attention.

    Attributes:
      slots: cached tokens per layer: the context length up to which nothing is forgotten.
    """

    slots: int = 1024

    @property
    def covers_document(self) -> bool:
        return True


class Full(Cache):
    """Memory that is a cache of all keys and values of the document, with gradient."""

    Config = FullConfig
    summary = "all earlier keys and values, the ceiling"
    paper = "Vaswani et al. 2017, arXiv 1706.03762"
    holds = "slots"

    @classmethod
    def holding(cls, config: FullConfig, dims: Dims, tokens: int) -> FullConfig:
        return dataclasses.replace(config, slots=tokens)
