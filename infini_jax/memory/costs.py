"""The cost of a memory: FLOPs and bytes moved, as its mechanism counts them."""

import dataclasses

BACKWARD = 2.0  # products of a backward pass for each of the forward pass, where gradients reach both operands


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost per token of one layer's attention in a forward pass, projections by the model excluded.

    FLOPs are those of matrix products and convolutions (a multiply-add is two); element-wise work is not counted.

    Attributes:
      local: FLOPs of attention inside the neighborhood, by default the segment.
      read: FLOPs of reading the memory.
      write: FLOPs of writing the memory.
      read_saved: FLOPs by which the backward pass of attending falls short of twice the forward pass, as no gradient reaches
        one operand of a product or both: once or twice those of the product.
      write_saved: FLOPs by which the backward pass of writing falls short.
      write_again: FLOPs of `write` that `attend` makes again where it is called alone, as it reads its own segment; `advance`
        makes them once for both.
      shared: forward and backward FLOPs that a batch spends once for all its rows; the other numbers hold them for one row.
      bytes_moved: bytes that reading and writing the carried memory move, spread over the segment's tokens.
    """

    local: float = 0.0
    read: float = 0.0
    write: float = 0.0
    read_saved: float = 0.0
    write_saved: float = 0.0
    write_again: float = 0.0
    shared: float = 0.0
    bytes_moved: float = 0.0

    @property
    def flops(self) -> float:
        """Forward FLOPs per token, all parts together."""
        return self.local + self.read + self.write

    @property
    def training_flops(self) -> float:
        """Forward and backward FLOPs per token in a batch of one row, recomputation left out."""
        return (1.0 + BACKWARD) * self.flops - self.read_saved - self.write_saved
