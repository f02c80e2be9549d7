"""Layers of two memories in one model, as a pattern that repeats from the first layer on: `3 gated_delta : 1 memorizing`.

`ModelConfig.memory` is the one that is named, compared and grown; the other one is `ModelConfig.elsewhere`.
"""

import dataclasses
import re

from infini_jax.config.model import ModelConfig
from infini_jax.errors import lookup, quoted, require, required
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig

PART = re.compile(r"\s*([1-9][0-9]{0,3})\s+(\w+)\s*")
MEND = "write it as 3 gated_delta : 1 memorizing"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Mechanisms of consecutive layers, which repeat.

    Attributes:
      parts: (number of layers, registry name of their mechanism) in the order of the layers.
    """

    parts: tuple[tuple[int, str], ...]

    @staticmethod
    def of(text: str) -> "Pattern":
        """The pattern in a text, numbers and names apart by colons. Raises `ConfigError` where it holds none."""
        found = [
            required(PART.fullmatch(part), "pattern", f"{quoted(part.strip())} is not a number and a mechanism", MEND)
            for part in text.split(":")
        ]
        parts = tuple((int(one[1]), one[2]) for one in found)
        names = {name for _, name in parts}
        for name in names:
            lookup("pattern", name, MECHANISMS)
        require(len(names) == 2, "pattern", f"it names {len(names)} mechanisms, and a model has two of them", MEND)
        return Pattern(parts)

    def layers(self, name: str, count: int) -> tuple[int, ...]:
        """The layers of a mechanism among `count` layers, from 0."""
        period = [one for number, one in self.parts for _ in range(number)]
        return tuple(layer for layer in range(count) if period[layer % len(period)] == name)

    def other(self, name: str) -> str:
        """The mechanism beside `name`. Raises `ConfigError` where the pattern does not have that one."""
        names = [one for _, one in self.parts]
        require(name in names, "pattern", f"{name} is not in it", f"name it, or train {' or '.join(dict.fromkeys(names))}")
        return next(one for one in names if one != name)

    def said(self, name: str, between: str = " : ", gap: str = " ") -> str:
        """The pattern as the variant of mechanism `name`, which is not repeated: `3 gated_delta : 1`."""
        return between.join(f"{count}" if one == name else f"{count}{gap}{one}" for count, one in self.parts)


def patterned(model: ModelConfig, pattern: Pattern, other: MemoryConfig | None = None) -> ModelConfig:
    """The model with its memory in some of its layers and a second one in the others.

    Args:
      model: a model whose memory is in the pattern, in all layers.
      pattern: mechanisms of the layers.
      other: settings of the second memory; None is its defaults, with the neighborhood of the first.

    Raises `ConfigError` where the model is too shallow for the pattern, or the two cannot stand in one model.
    """
    own = model.mechanism
    name = pattern.other(own)
    is_free = model.memory.layers == MECHANISMS[own].Config().layers
    require(is_free, "memory.layers", "the pattern says which layers", "leave out one of the two")
    if other is None:
        default, local = MECHANISMS[name].Config(), model.memory.local
        other = default.with_local(local) if local in MECHANISMS[name].neighborhoods else default
    told = f"the second memory is {type(other).__name__}, and the pattern has {name}"
    require(type(other) is MECHANISMS[name].Config, "model.elsewhere", told, "let both name one mechanism")
    told = f"{name} inserts tokens, which only the memory of a run may do"
    require(not other.inserts_tokens, "pattern", told, f"train {name} with this pattern, not {own}")
    layers, period = pattern.layers(own, model.layers), sum(count for count, _ in pattern.parts)
    told = f"{model.layers} layers have one of its mechanisms only"
    require(0 < len(layers) < model.layers, "model.layers", told, f"give a multiple of {period}")
    return dataclasses.replace(model, memory=dataclasses.replace(model.memory, layers=layers), elsewhere=other)
