"""Metadata of a GGUF as the settings of config.json, so that a family is read in one place.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights say whether there is an own head, because metadata
do not.
"""

from collections.abc import Mapping
from typing import Any

from infini_jax.errors import ConfigError, require
from infini_jax.pretrained.fields import Fields
from infini_jax.pretrained.tensors import Tensor

FAMILY_OF = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "gemma3": "gemma3_text",
}
FACTORS = "rope_freqs.weight"  # frequencies of Llama 3.1 and later, divided by these


def settings_of(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that a GGUF's metadata mean, under the names of config.json.

    Raises `ConfigError` of one line that names the field, where an architecture or an option is not supported.
    """
    architecture = metadata.get("general.architecture")
    known = architecture in FAMILY_OF
    mend = f"import one of {', '.join(FAMILY_OF)}"
    require(known, "general.architecture", f"'{architecture}' is not supported", mend)
    said = "the file holds factors of frequencies without the numbers they came from"
    require(FACTORS not in tensors, FACTORS, said, "import the model's safetensors")
    if (embedding := tensors.get("token_embd.weight")) is None:
        raise ConfigError("token_embd.weight", "the file has no embedding", "import another file")
    prefix = f"{architecture}."
    fields = Fields({name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)})
    found = sizes(fields, embedding.shape[0]) | {
        "model_type": FAMILY_OF[str(architecture)],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    return found | (learned(fields) if architecture == "gpt2" else turned(fields, found))


def sizes(fields: Fields, vocab: int) -> dict[str, Any]:
    """Sizes and norms, for GPT-2 under its own names, too. A head's dimensions must be those of a key and of a value."""
    heads, d_model = fields.whole("attention.head_count"), fields.whole("embedding_length")
    key_dim = fields.whole("attention.key_length", d_model // max(heads, 1))
    fields.only("attention.value_length", key_dim)
    fields.only("expert_count", 0)
    fields.only("attention.causal", True)
    epsilon = (
        "attention.layer_norm_rms_epsilon" if "attention.layer_norm_rms_epsilon" in fields else "attention.layer_norm_epsilon"
    )
    number, layers, width = fields.number(epsilon), fields.whole("block_count"), fields.whole("feed_forward_length")
    return {
        "vocab_size": vocab,
        "num_hidden_layers": layers,
        "hidden_size": d_model,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
        "head_dim": key_dim,
        "intermediate_size": width,
        "max_position_embeddings": fields.whole("context_length"),
        "rms_norm_eps": number,
        "layer_norm_eps": number,
    }


def learned(fields: Fields) -> dict[str, Any]:
    """GPT-2's names of sizes."""
    return {
        "n_embd": fields.whole("embedding_length"),
        "n_head": fields.whole("attention.head_count"),
        "n_layer": fields.whole("block_count"),
        "n_inner": fields.whole("feed_forward_length"),
        "n_positions": fields.whole("context_length"),
        "layer_norm_epsilon": fields.number("attention.layer_norm_epsilon"),
    }


def turned(fields: Fields, found: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions and what belongs to some families only."""
    base, key_dim = fields.number("rope.freq_base", 10_000.0), found["head_dim"]
    rotary = {
        "rope_theta": base,
        "rotary_emb_base": base,
        "rotary_pct": fields.whole("rope.dimension_count", key_dim) / key_dim,
        "rope_scaling": scaling(fields),
    }
    if found["model_type"] == "gpt_neox":
        return rotary | {"use_parallel_residual": fields.flag("use_parallel_residual", True)}
    turns_all = {"rope.dimension_count": fields.values.get("rope.dimension_count")}
    Fields(turns_all).only("rope.dimension_count", key_dim)
    if found["model_type"] != "gemma3_text":
        return rotary
    return rotary | {
        "rope_theta": fields.number("rope.freq_base", 1e6),
        "rope_local_base_freq": fields.number("rope.freq_base_swa", 1e4),
        "sliding_window": fields.whole("attention.sliding_window", 0),
        "final_logit_softcapping": fields.number("final_logit_softcapping", 0.0),
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", 0.0),
    }


def scaling(fields: Fields) -> dict[str, Any] | None:
    """The scaling of rotary positions as config.json has it; None without one."""
    kind = fields.values.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    fields.only("rope.scaling.type", "linear")
    return {"rope_type": "linear", "factor": fields.number("rope.scaling.factor")}
