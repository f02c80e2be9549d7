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
      norm: rms divides by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467); layer subtracts the mean first (Ba
        et al. 2016, arXiv 1607.06450).
      epsilon: constant added to the mean square or variance in norms.
      norm_places: position of the norms: before attention and MLP, or both before and after, ahead of the residual sum.
      qk_norm: norm of each head's queries and keys, before positions.
      mlp: activation of the hidden layer. gelu is exact, gelu_tanh its approximation. swiglu and geglu add a second hidden
        layer that gates the first, by SiLU or gelu_tanh (Shazeer 2020, arXiv 2002.05202).
      biases: projections and norms with a bias; "norm" requires the norm layer.
      residual: in_turn feeds the MLP with the output of attention; parallel adds both to the same stream.
      head: tied shares the embedding table for logits; own has a table of its own.
      embedding_scale: scale of embedded tokens.
      attention_scale: scale of the products of queries and keys; 0 is key_dim^(-1/2). Queries are multiplied by the ratio of
        the two wherever a mechanism uses them.
      score_cap: soft cap c of attention scores, c tanh(score / c); 0 is none. Capped attention keeps all scores of a segment.
      logit_cap: soft cap of logits, in the same form; 0 is none.
      learned_positions: number of learned position embeddings, added to embedded tokens; 0 has none. Positions count from the
        start of the document if the memory is attention to all of it, otherwise from the start of the segment. Positions
        beyond the table use its last row.
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
        require(
            1e-12 <= self.epsilon <= 1,
            "model.block.epsilon",
            f"{self.epsilon:g} is not a small number",
            "give a number such as 1e-6",
        )
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
