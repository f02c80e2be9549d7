"""Settings by name: large language models, and the runs of the quick study as they are checked in.

The models have the sizes that the Infini-attention paper (arXiv 2404.07143) continued to train: 1B and 8B. The paper gives no
shapes; these are of the usual kind, and come to 0.97 and 7.9 billion parameters beside the mechanism's own. Segments of 2048
tokens are the paper's.
"""

import dataclasses
import json
from typing import Any

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import lookup
from infini_jax.files import shipped
from infini_jax.memory import MECHANISMS

SIZES = {
    "1b": ModelConfig(vocab=32_000, layers=18, d_model=2048, heads=16, mlp_dim=8192, segment=2048, compute="bfloat16"),
    "8b": ModelConfig(
        vocab=32_000, layers=32, d_model=4096, heads=32, kv_heads=8, mlp_dim=24_576, segment=2048, compute="bfloat16"
    ),
}
"""Sizes of the presets by name, without their memory."""


def preset(name: str, mechanism: str = "infini") -> RunConfig:
    """A run of the size `name`: 10 billion tokens, 64 rows of 16 384 per step, with a mechanism's default settings.

    The data are a stand-in of the same shape. Raises `ConfigError` for an unknown size or mechanism.
    """
    shape, kind = lookup("config", name, SIZES), lookup("mechanism", mechanism, MECHANISMS)
    memory = kind.Config(layers=kind.usual_layers(shape.layers))
    return RunConfig(
        name=f"{name}-{mechanism}",
        model=dataclasses.replace(shape, memory=memory),
        data=StdlibConfig(),
        train=TrainConfig(batch=64, sequence=16_384, rematerialise="layer"),
        budget=Budget("tokens", 1e10),
    )


def checked_in() -> dict[str, dict[str, Any]]:
    """The runs of the quick study from configs/quick.json, by name: plain settings for `RunConfig.from_dict`."""
    return json.loads((shipped("configs") / "quick.json").read_text())
