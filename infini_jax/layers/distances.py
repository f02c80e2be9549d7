"""Positions by distance: rotary turns (Su et al. 2021) and T5 buckets (Raffel et al. 2020)."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.errors import check_fields, require
from infini_jax.layers import precision

Turn = Callable[[jax.Array, jax.Array], jax.Array]  # (...xSxHxK, positions S) -> the same, turned by its position


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    """Rotary turns of queries and keys: of pairs of their entries, each pair at its own frequency (arXiv 2104.09864).

    Frequencies are base^(-2i/R) for the pairs i of R turned entries. A published scaling makes them slower, so that a model
    takes longer contexts than it was trained with: linear divides all by `factor` (Chen et al. 2023, arXiv 2306.15595);
    llama3 those that turn less than `low_turns` times in `context` tokens, none that turn more than `high_turns` times, and
    blends between (Llama Team 2024, arXiv 2407.21783). Scores know distances only, whatever the settings.

    Attributes:
      base: base of the frequencies.
      fraction: fraction of a head's entries that are rotated, from the first on; R is rounded down.
      pairs: halves rotates entry i with entry i + R/2, neighbors entry 2i with 2i + 1.
      scaling: published scaling of the frequencies.
      factor: divisor of the scaled frequencies.
      low_turns: number of turns below which llama3 scales a frequency.
      high_turns: number of turns above which llama3 scales none.
      context: context of the model before scaling, in tokens, for llama3.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    pairs: Literal["halves", "neighbors"] = "halves"
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_turns: float = 1.0
    high_turns: float = 4.0
    context: int = 8192

    def __post_init__(self):
        check_fields("model.rotary", self)
        require(1 < self.base <= 1e12, "model.rotary.base", f"{self.base:g} is out of range", "give above 1 to 1e12")
        require(
            0 < self.fraction <= 1,
            "model.rotary.fraction",
            f"{self.fraction:g} is not a fraction of a head",
            "give a number above 0, at most 1",
        )
        require(
            1 <= self.factor <= 1e6 and (self.factor == 1 or self.scaling != "none"),
            "model.rotary.factor",
            f"{self.factor:g} scales nothing, or is out of range",
            "give 1 to 1e6 with model.rotary.scaling linear or llama3",
        )
        require(
            0 < self.low_turns < self.high_turns,
            "model.rotary.low_turns",
            f"{self.low_turns:g} is not below high_turns {self.high_turns:g}",
            "give such as low_turns 1 and high_turns 4",
        )
        require(self.context >= 1, "model.rotary.context", f"{self.context} is not a length", "give at least 1")

    def check(self, key_dim: int) -> None:
        """Checks the settings: raises `ConfigError` where heads of `key_dim` entries have no pairs to turn."""
        turned = self.turned(key_dim)
        problem, mend = f"{turned} of {key_dim} entries are no pairs", f"give an even share of {key_dim}, such as all"
        require(turned > 0 and turned % 2 == 0, "model.rotary.fraction", problem, mend)

    def turned(self, key_dim: int) -> int:
        """Number R of the entries that are turned."""
        return int(key_dim * self.fraction)

    def frequencies(self, turned: int) -> np.ndarray:
        """Radians per token of each pair, R / 2 float64."""
        half = turned // 2
        plain_I = self.base ** (-np.arange(half) / half)
        if self.scaling == "none":
            return plain_I
        if self.scaling == "linear":
            return plain_I / self.factor
        turns_I = self.context * plain_I / (2 * np.pi)
        kept_I = np.clip((turns_I - self.low_turns) / (self.high_turns - self.low_turns), 0.0, 1.0)
        return kept_I * plain_I + (1.0 - kept_I) * plain_I / self.factor

    def __call__(self, x_xSxHxK: jax.Array, positions_S: jax.Array) -> jax.Array:
        """`x` turned by its positions, a `Turn`; equal settings are equal turns."""
        return rotary(x_xSxHxK, positions_S, self)


ROTARY = RotaryConfig()


def rotary(x_xSxHxK: jax.Array, positions_S: jax.Array, config: RotaryConfig = ROTARY) -> jax.Array:
    """`x` with pairs turned by position times frequency: BxSxHxK (Su et al. 2021, arXiv 2104.09864, eq. 34).

    By default pairs (i, i + K/2) by position * 10000^(-2i/K).
    """
    size, turned = x_xSxHxK.shape[-1], config.turned(x_xSxHxK.shape[-1])
    wide = precision.wide(x_xSxHxK.dtype)
    angles_SxI = positions_S[:, None].astype(wide) * config.frequencies(turned)
    cos, sin = jnp.cos(angles_SxI)[:, None], jnp.sin(angles_SxI)[:, None]
    part = x_xSxHxK[..., :turned].astype(wide) if turned < size else x_xSxHxK.astype(wide)
    in_halves = config.pairs == "halves"
    first, second = jnp.split(part, 2, axis=-1) if in_halves else (part[..., 0::2], part[..., 1::2])
    pairs = (first * cos - second * sin, second * cos + first * sin)
    y = jnp.concatenate(pairs, axis=-1) if in_halves else jnp.stack(pairs, axis=-1).reshape(part.shape)
    y = y.astype(x_xSxHxK.dtype)
    return y if turned == size else jnp.concatenate([y, x_xSxHxK[..., turned:]], axis=-1)


def unturned(x_xSxHxK: jax.Array, positions_S: jax.Array) -> jax.Array:
    """`x` as it is, wherever it stands: `rotary` without positions."""
    return x_xSxHxK


def t5_buckets(distance: jax.Array, buckets: int = 32, max_distance: int = 128) -> jax.Array:
    """T5's causal bucket of query-minus-key distances, half exact, half logarithmic (Raffel et al. 2020, arXiv 1910.10683)."""
    exact = buckets // 2
    distance = jnp.maximum(distance, 0)
    ratio = jnp.log(jnp.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


def t5_distance_bias(table_RxH: jax.Array, distances: int) -> jax.Array:
    """Bias of the distances 0 .. distances - 1 from a table with one row per bucket: Hx`distances`."""
    return table_RxH[t5_buckets(jnp.arange(distances), table_RxH.shape[0])].T
