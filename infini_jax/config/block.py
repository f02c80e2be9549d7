"""Parts of a layer of the transformer, and of what stands before and behind the layers.

The defaults are this package's own block. Others are what published models are made of, so that one block holds them all:
LLaMA and Mistral, Qwen, GPT-2, GPT-NeoX, Gemma (docs/pretrained.md says which settings are whose).
"""

import dataclasses
import typing
from typing import Literal

from infini_jax.errors import check_fields, require
from infini_jax.layers.mlp import GATED

Norm = Literal["rms", "layer"]
Activation = Literal["gelu_tanh", "gelu", "swiglu", "geglu"]
Bias = Literal["query_key_value", "output", "mlp", "norm", "head"]
MOST_POSITIONS = 1 << 20  # rows of a table of positions: as many as a segment has tokens at most
LARGEST_SCALE = 1e6


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Parts of a layer.

    Attributes:
      norm: rms divides by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467), layer takes the mean away first
        (Ba et al. 2016, arXiv 1607.06450).
      epsilon: number that norms add to the mean square or variance.
      norm_places: before is in front of attention and MLP; both is behind them, too, in front of the residual sum.
      qk_norm: norm of every head's queries and keys, in front of positions.
      mlp: activation of the hidden layer. gelu is the exact one, gelu_tanh its approximation. With swiglu and geglu a second
        hidden layer gates the first, by SiLU or by gelu_tanh (Shazeer 2020, arXiv 2002.05202).
      biases: projections and norms that have a bias; "norm" is for the norm layer only.
      residual: in_turn lets the MLP see what attention added; parallel adds both to the same stream.
      head: tied takes the embedding's table for logits; own has one of its own.
      embedding_scale: factor of embedded tokens.
      attention_scale: factor of the products of queries and keys; 0 is key_dim^(-1/2). Queries are multiplied by what it
        differs by, wherever a mechanism uses them.
      score_cap: bound c of scores of attention, c tanh(score / c); 0 is none. Such attention holds all scores of a segment.
      logit_cap: bound of logits, in the same way; 0 is none.
      learned_positions: rows of a table of positions that is added to embedded tokens; 0 has none. Places count from the
        start of the document where the memory is attention to all of it, otherwise from the start of the segment. Later
        places than the table has take its last row.
    """

    norm: Norm = "rms"
    epsilon: float = 1e-6
    norm_places: Literal["before", "both"] = "before"
    qk_norm: Literal["none", "rms"] = "none"
    mlp: Activation = "gelu_tanh"
    biases: tuple[Bias, ...] = ()
    residual: Literal["in_turn", "parallel"] = "in_turn"
    head: Literal["tied", "own"] = "tied"
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    learned_positions: int = 0

    def __post_init__(self):
        check_fields("model.block", self)
        require(1e-12 <= self.epsilon <= 1, "model.block.epsilon", f"{self.epsilon:g} is no small number", "give such as 1e-6")
        in_order = tuple(name for name in typing.get_args(Bias) if name in self.biases)
        require(
            in_order == self.biases,
            "model.block.biases",
            "names stand twice or in another order",
            f"give them once each, in the order {', '.join(typing.get_args(Bias))}",
        )
        require(
            self.norm == "layer" or "norm" not in self.biases,
            "model.block.biases",
            "the norm rms has none",
            "leave norm out, or choose model.block.norm layer",
        )
        for name in ("attention_scale", "score_cap", "logit_cap"):
            value = getattr(self, name)
            require(
                value == 0 or 1 / LARGEST_SCALE <= value <= LARGEST_SCALE,
                f"model.block.{name}",
                f"{value:g} is out of range",
                f"give 0, or {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g}",
            )
        require(
            1 / LARGEST_SCALE <= self.embedding_scale <= LARGEST_SCALE,
            "model.block.embedding_scale",
            f"{self.embedding_scale:g} is out of range",
            f"give {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g}",
        )
        require(
            0 <= self.learned_positions <= MOST_POSITIONS,
            "model.block.learned_positions",
            f"{self.learned_positions} rows are out of range",
            f"give 0 to {MOST_POSITIONS}",
        )

    @property
    def mlp_products(self) -> int:
        """Number of matrices of the MLP."""
        return 3 if self.mlp in GATED else 2
