"""An architecture in words and numbers: what a family's settings and ours have in common."""

import dataclasses
from typing import Literal

from infini_jax.config.block import Activation, Bias, Norm
from infini_jax.errors import check_fields, require, require_not_negative, require_positive
from infini_jax.layers.distances import ROTARY, RotaryConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer of any family.

    Attributes:
      family: name of the family, which names the tensors.
      vocab: number of rows of the embedding.
      layers: number of layers.
      d_model: width of the residual stream.
      heads: number of query heads.
      kv_heads: number of key heads.
      key_dim, value_dim: dimensions of one head.
      mlp_dim: width of the MLP.
      context: number of tokens that it was trained to read at once.
      norm: kind of all norms over the residual stream.
      epsilon: number that norms add to a variance.
      norm_places: norms in front of attention and MLP, or before and after each.
      qk_norm: norm of each head's queries and keys.
      mlp: activation of the MLP, which is gated in swiglu and geglu.
      biases: names of the parts that add a bias.
      residual: attention, then MLP; or both read the same stream and are added up (GPT-NeoX).
      head: tied where the matrix of the logits is the embedding.
      embedding_scale: number by which embeddings are multiplied.
      attention_scale: number by which scores are multiplied; 0 is key_dim^-1/2.
      score_cap, logit_cap: bounds of scores and logits, by tanh; 0 is none.
      learned_positions: rows of a table of positions that is added to the embedding; 0 is none.
      rotary: rotary positions; None for none.
      window: tokens that a query of the windowed layers sees, itself included; 0 is no window.
      windowed: numbers of these layers.
      rotary_windowed: rotary positions of these layers, where they are others.
    """

    family: str
    vocab: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    mlp_dim: int
    context: int
    norm: Norm = "rms"
    epsilon: float = 1e-6
    norm_places: Literal["before", "both"] = "before"
    qk_norm: Literal["none", "rms"] = "none"
    mlp: Activation = "swiglu"
    biases: tuple[Bias, ...] = ()
    residual: Literal["in_turn", "parallel"] = "in_turn"
    head: Literal["tied", "own"] = "tied"
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    learned_positions: int = 0
    rotary: RotaryConfig | None = ROTARY
    window: int = 0
    windowed: tuple[int, ...] = ()
    rotary_windowed: RotaryConfig | None = None

    def __post_init__(self):
        check_fields("architecture", self)
        sizes = ("vocab", "layers", "d_model", "heads", "kv_heads", "key_dim", "value_dim", "mlp_dim", "context")
        scales = ("epsilon", "embedding_scale")
        require_positive("architecture", **{name: getattr(self, name) for name in (*sizes, *scales)})
        caps = ("attention_scale", "score_cap", "logit_cap", "learned_positions", "window")
        require_not_negative("architecture", **{name: getattr(self, name) for name in caps})
        shared = f"{self.kv_heads} key heads cannot be shared evenly by {self.heads} heads"
        require(self.heads % self.kv_heads == 0, "architecture.kv_heads", shared, f"give a divisor of {self.heads}")
        require(self.key_dim % 2 == 0, "architecture.key_dim", f"{self.key_dim} is odd", "give an even size")
        inside = all(0 <= layer < self.layers for layer in self.windowed)
        require(inside, "architecture.windowed", f"{self.windowed} are not among {self.layers} layers", "name layers from 0")
        require(bool(self.window) == bool(self.windowed), "architecture.window", "one without windowed layers", "give both")

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of axes by letter, as in `infini_jax.pretrained.layouts`."""
        return {
            "N": self.vocab,
            "D": self.d_model,
            "H": self.heads,
            "G": self.kv_heads,
            "K": self.key_dim,
            "V": self.value_dim,
            "F": self.mlp_dim,
            "C": self.learned_positions,
            "I": self.key_dim // 2,
            "P": 2,
            "T": 3,
        }
