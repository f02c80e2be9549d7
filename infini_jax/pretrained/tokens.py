"""The tokenizer that comes with a model: tokenizer.json, a SentencePiece model, or the one inside a GGUF.

A GGUF has tokens, merges and the name of a rule that splits text in front of them, of which a tokenizer.json is made; the
rules that are known are in `SPLITS`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infini_jax.data.tokenizers import Tokenizer, load_tokenizer
from infini_jax.errors import ConfigError, installs, lookup, one_line, require
from infini_jax.pretrained.tensors import Weights

JSON, PIECES = "tokenizer.json", "tokenizer.model"
NORMAL, CONTROL, DEFINED = 1, 3, 4  # types of tokens in a GGUF
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")


def tokenizer_of(weights: Weights, given: Path | None = None) -> Tokenizer:
    """The tokenizer of a model: the file that is given, or what lies beside or in the files of the model.

    Raises `ConfigError` where there is none, or it cannot be read.
    """
    if given is not None:
        return load_tokenizer(given)
    if weights.form == "gguf":
        return load_tokenizer(of_gguf(weights.settings))
    failed = None
    for name in (JSON, PIECES):
        if (file := weights.folder / name).is_file():
            try:
                return load_tokenizer(file)
            except ConfigError as error:  # Gemma's tokenizer.json is no byte-level one, and its tokenizer.model does
                failed = failed or error
    mend = f"put the model's {JSON} or {PIECES} there, or name it with --tokenizer"
    raise failed or ConfigError("tokenizer", f"{weights.folder} holds none", mend)


def of_gguf(metadata: Mapping[str, Any]) -> bytes:
    """The tokenizer inside a GGUF as a tokenizer.json.

    Raises `ConfigError` where the file has none, or one that cannot be made again from what it says.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("tokenizer", "that of a GGUF needs the package tokenizers", installs("pretrained")) from error
    kind = metadata.get("tokenizer.ggml.model")
    mend = f"name the model's {JSON} or {PIECES} with --tokenizer"
    require(kind == "gpt2", "tokenizer.ggml.model", f"'{kind}' is not byte-level BPE", mend)
    tokens, merges, types, rule = (
        metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type", "pre")
    )
    require(isinstance(tokens, list) and isinstance(merges, list), "tokenizer.ggml.tokens", "the file has none", mend)
    split = lookup("tokenizer.ggml.pre", rule or "default", SPLITS)
    pairs = [tuple(merge.split(" ")) for merge in merges or ()]
    ids = {token: number for number, token in enumerate(tokens or ())}
    try:
        model = tokenizers.models.BPE(vocab=ids, merges=pairs, ignore_merges=rule == "llama-bpe")
    except Exception as error:  # the package raises Exception itself
        raise ConfigError("tokenizer.ggml.merges", f"they do not fit the tokens ({one_line(error)})", mend) from error
    kinds = types or [NORMAL] * len(ids)
    told = "they are not one a token, or a token stands twice"
    require(len(kinds) == len(ids) == len(tokens or ()), "tokenizer.ggml.token_type", told, mend)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = split()
    made.decoder = tokenizers.decoders.ByteLevel()
    for special in (True, False):
        wanted = CONTROL if special else DEFINED
        texts = [token for token, its_kind in zip(tokens or (), kinds, strict=True) if its_kind == wanted]
        add = made.add_special_tokens if special else made.add_tokens
        add([tokenizers.AddedToken(text, normalized=False, special=special) for text in texts])
    return made.to_str().encode()


def gpt2_split() -> Any:
    """GPT-2's rule: words with the space in front of them, numbers, signs, white space."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def smollm_split() -> Any:
    """SmolLM's rule: digits one by one, and the rest by GPT-2's."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2_split()])


def pattern_split(pattern: str) -> Callable[[], Any]:
    """The rule that a regular expression's matches are split from each other."""

    def split() -> Any:
        from tokenizers import Regex, pre_tokenizers

        words = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return split


SPLITS: dict[str, Callable[[], Any]] = {
    "default": gpt2_split,
    "gpt-2": gpt2_split,
    "olmo": gpt2_split,  # what GGUFs of GPT-NeoX say, too
    "smollm": smollm_split,
    "llama-bpe": pattern_split(LLAMA3),
    "qwen2": pattern_split(QWEN2),
}
"""Rules by which text is split in front of merges, by the name that a GGUF gives them."""
