"""The tokenizer that comes with a model: tokenizer.json, a SentencePiece model, or the one inside a GGUF.

A GGUF has tokens, merges and the name of a rule that splits text in front of them, of which a tokenizer.json is made; the
rules that are known are in `SPLITS`. Whether texts stand behind a token for their beginning is said beside a tokenizer, in
tokenizer_config.json or a GGUF's metadata, and written into it (`with_begin`), so that one file says all of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infini_jax.data.byte_level import ByteLevel
from infini_jax.data.tokenizers import BEGINS, SentencePiece, Tokenizer, load_tokenizer
from infini_jax.errors import ConfigError, installs, lookup, one_line, require
from infini_jax.files import json_object, json_text, read_object
from infini_jax.pretrained.tensors import Weights

JSON, PIECES, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
NORMAL, CONTROL, DEFINED = 1, 3, 4  # types of tokens in a GGUF
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")


def tokenizer_of(weights: Weights, given: Path | None = None) -> Tokenizer:
    """The tokenizer of a model: the file that is given, or what lies beside or in the files of the model.

    Raises `ConfigError` where there is none, or it cannot be read.
    """
    if given is not None:
        return as_configured(load_tokenizer(given), given.parent)
    if weights.form == "gguf":
        return as_in_gguf(load_tokenizer(of_gguf(weights.settings)), weights.settings)
    failed = None
    for name in (JSON, PIECES):
        if (file := weights.folder / name).is_file():
            try:
                return as_configured(load_tokenizer(file), weights.folder)
            except ConfigError as error:  # Gemma's tokenizer.json is no byte-level one, and its tokenizer.model does
                failed = failed or error
    mend = f"put the model's {JSON} or {PIECES} there, or name it with --tokenizer"
    raise failed or ConfigError("tokenizer", f"{weights.folder} holds none", mend)


def as_configured(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """A tokenizer with the beginning of texts that a folder's tokenizer_config.json says; without it with the usual one.

    That is what a tokenizer.json has, and the token <s> that a SentencePiece model declares, as those of LLaMA and Gemma do.
    Raises `ConfigError` where the file is damaged, or names no token.
    """
    file = folder / CONFIG
    said = read_object(file, "tokenizer", "restore it, or remove it") if file.is_file() else {}
    adds, name = said.get("add_bos_token"), said.get("bos_token")
    if isinstance(tokenizer, SentencePiece):
        return with_begin(tokenizer, None if adds is False else tokenizer.declared_begin)
    if adds is None or not isinstance(tokenizer, ByteLevel):
        return tokenizer
    name = name.get("content") if isinstance(name, dict) else name
    begin = tokenizer.numbered(name) if isinstance(name, str) else None
    problem = f"{file} puts {name} in front of texts, which is no token"
    require(not adds or begin is not None, "bos_token", problem, f"restore it, or set add_bos_token to false in {CONFIG}")
    return with_begin(tokenizer, begin if adds else None)


def as_in_gguf(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer with the beginning of texts that a GGUF says; where it says nothing, Llama 3's rule has one."""
    adds = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.pre") == "llama-bpe")
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    is_token = begin is None or (isinstance(begin, int) and 0 <= begin < tokenizer.vocab)
    require(is_token, "tokenizer.ggml.bos_token_id", f"{begin} is no token", f"name the model's {JSON} with --tokenizer")
    return with_begin(tokenizer, begin if adds else None)


def with_begin(tokenizer: Tokenizer, begin: int | None) -> Tokenizer:
    """A tokenizer with another token in front of every text, or with none, which is written into its file."""
    if tokenizer.begin == begin or tokenizer.model is None:
        return tokenizer
    if isinstance(tokenizer, ByteLevel):
        settings = json_object(tokenizer.model)
        settings["post_processor"] = None if begin is None else template(tokenizer.spelled(begin), begin)
        return load_tokenizer(json_text(settings).encode())
    return load_tokenizer(tokenizer.model.removesuffix(BEGINS) + (BEGINS if begin is not None else b""))


def template(name: str, token: int) -> dict[str, Any]:
    """The post-processor of a tokenizer.json that puts a token in front of every text."""
    text = [{"Sequence": {"id": one, "type_id": 0}} for one in "AB"]
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    known = {name: {"id": name, "ids": [token], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": [first, text[0]], "pair": [first, *text], "special_tokens": known}


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
