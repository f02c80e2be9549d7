"""A tiny model of another's making, with a tokenizer, to be imported and evaluated as it is."""

from pathlib import Path

import numpy as np

from infini_jax.data.tokenizers import train_sentencepiece
from tests.support.foreign import LLAMA, llama_tensors, write_model

LINES = [f"the {number} words of a line, {number * 7}\n" for number in range(200)]
SETTINGS = {**LLAMA, "vocab_size": 300, "max_position_embeddings": 48}


def made_model(folder: Path, dtype: str = "float32", seed: int = 0) -> Path:
    """A folder with a random LLaMA model of 300 tokens and a context of 48, its tensors of a type, and its tokenizer."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    write_model(folder, SETTINGS, llama_tensors(SETTINGS, lambda *shape: (0.3 * random.standard_normal(shape)).astype(kind)))
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(LINES, 300))
    return folder
