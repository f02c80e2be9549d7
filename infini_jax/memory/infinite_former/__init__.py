"""The ∞-former (arXiv 2109.00301): a continuous signal over the past."""

from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig

__all__ = ["InfiniteFormer", "InfiniteFormerConfig"]
