"""Temporary memory of a gradient through a whole sequence, by its length: compiled, not run.

Command:  python -m benchmarks.temporaries --tokens 4096 16384          (some minutes)
Expected: bytes grow at most as the tokens do, also where a cache has as many slots as there are tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro

from infini_jax.config import ModelConfig
from infini_jax.data.batch import Batch
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig
from infini_jax.model.stream import init_carry, parameter_shapes, scan_segments
from infini_jax.training.gradient import auxiliary_loss, score_tokens
from infini_jax.units import human_bytes


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of the sequences; mechanisms, all where none is named."""

    tokens: tuple[int, ...] = (4096, 16384)
    only: tuple[str, ...] = ()


def memory_for(name: str, tokens: int) -> MemoryConfig:
    """Settings: as many slots as tokens in full, memorizing and landmark; 256 in transformer_xl; else the defaults."""
    changes = {
        "full": {"slots": tokens},
        "memorizing": {"slots": tokens},
        "landmark": {"block": 16, "blocks": tokens // 16},
        "transformer_xl": {"slots": 256},
    }
    return MECHANISMS[name].Config(**changes.get(name, {}))


def temporaries(name: str, tokens: int) -> int:
    """Bytes beside arguments and results: d_model 128, 4 heads, 2 layers, segment 256, one row."""
    model = ModelConfig(memory=memory_for(name, tokens), layers=2, d_model=128, heads=4, segment=256)
    shape = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    batch = Batch(shape, shape, jax.ShapeDtypeStruct((1, tokens), jnp.float32), shape)

    def loss(params, carry, batch):
        carry, scores, metrics = scan_segments(model, params, carry, batch, score_tokens)
        return scores.loss.sum() + auxiliary_loss(metrics), carry

    shapes = (parameter_shapes(model), jax.eval_shape(lambda: init_carry(model, 1)), batch)
    return jax.jit(jax.grad(loss, has_aux=True)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def main(lengths: Lengths) -> None:
    """Prints a line for each mechanism."""
    for name in lengths.only or sorted(MECHANISMS):
        print(f"{name:16}", *(f"{human_bytes(temporaries(name, tokens)):>10}" for tokens in lengths.tokens), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Lengths))
