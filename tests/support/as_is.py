"""A tiny model of another's making, with a tokenizer, to be imported and evaluated as it is."""

import io
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


def pieces(begin: int = 1) -> bytes:
    """A SentencePiece model with <s>, as model makers train one."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=300, model_type="bpe", bos_id=begin, eos_id=2,
        byte_fallback=True, user_defined_symbols=["\n"], add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
