"""infini_jax: long-context memory of transformers, settled by measurement."""

__version__ = "0.1.0"
