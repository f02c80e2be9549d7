"""An architecture in words and numbers: what a family's settings and ours have in common."""

import dataclasses

from infini_jax.config.block import BlockConfig
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
      block: parts of a layer and of what stands around the layers.
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
    block: BlockConfig = BlockConfig()
    rotary: RotaryConfig | None = ROTARY
    window: int = 0
    windowed: tuple[int, ...] = ()
    rotary_windowed: RotaryConfig | None = None

    def __post_init__(self):
        check_fields("architecture", self)
        sizes = ("vocab", "layers", "d_model", "heads", "kv_heads", "key_dim", "value_dim", "mlp_dim", "context")
        require_positive("architecture", **{name: getattr(self, name) for name in sizes})
        require_not_negative("architecture", window=self.window)
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
            "C": self.block.learned_positions,
            "I": self.key_dim // 2,
            "P": 2,
            "T": 3,
        }
