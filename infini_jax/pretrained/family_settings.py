"""`Architecture` -> config.json of a family: the inverse of `infini_jax.pretrained.families`.

A writer says what its family can say and leaves out the rest. Whether a model is of the family is then asked of the reader: it
is where the settings that were written mean this very model when they are read, and of none where no family's do. So nothing
has to be known twice of what a family lacks. Fields are the older ones, which all versions of `transformers` read.
"""

from collections.abc import Callable
from typing import Any

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.distances import RotaryConfig
from infini_jax.pretrained.architecture import Architecture
from infini_jax.pretrained.families import GATES, architecture_of
from infini_jax.pretrained.settings import architecture_in, model_settings, plain_settings

Settings = dict[str, Any]
GATE_NAMES = {ours: theirs for theirs, ours in GATES.items()}
GELU_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""Classes of `transformers` that read a family's models."""


def family_of(model: ModelConfig, context: int = 0) -> tuple[Architecture, Settings] | None:
    """(architecture, config.json) of the first family that has a model with these settings; None where none has.

    The type of activations and the length of a segment are no part of a model here: they change nothing that it says.

    Args:
      model: settings of the model.
      context: tokens that it was trained to read at once, where all its layers have windows and its settings do not say it.
    """
    for name, write in WRITERS.items():
        sketch = architecture_in(model, name, context)
        if sketch is None:
            return None
        settings = {"model_type": name, "architectures": [CLASSES[name]], **write(sketch)}
        try:
            read = architecture_of(settings)
            if model_settings(read, model.segment) == plain_settings(model):
                return read, settings
        except ConfigError:  # of a part that the family does not have
            continue
    return None


def shared_fields(a: Architecture) -> Settings:
    """The fields that all families but GPT-2 have."""
    return {
        "vocab_size": a.vocab,
        "hidden_size": a.d_model,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_dim,
        "max_position_embeddings": a.context,
        "tie_word_embeddings": a.block.head == "tied",
    }


def gated_fields(a: Architecture) -> Settings:
    """The fields of families like LLaMA."""
    return {
        **shared_fields(a),
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.key_dim,
        "rms_norm_eps": a.block.epsilon,
        "hidden_act": GATE_NAMES.get(a.block.mlp),
        **turned_fields(a.rotary, "rope_theta"),
    }


def turned_fields(rotary: RotaryConfig | None, base: str) -> Settings:
    """The fields of rotary positions; none where there are none, which no such family can say."""
    return {base: rotary.base, "rope_scaling": scaling_of(rotary)} if rotary else {}


def scaling_of(rotary: RotaryConfig) -> Settings | None:
    """The table of a published scaling; None without one."""
    if rotary.scaling == "none":
        return None
    scaling: Settings = {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling == "llama3":
        scaling |= {"low_freq_factor": rotary.low_turns, "high_freq_factor": rotary.high_turns}
        scaling["original_max_position_embeddings"] = rotary.context
    return scaling


def llama_fields(a: Architecture) -> Settings:
    """The fields of LLaMA, whose attention has all biases or none."""
    return {**gated_fields(a), "attention_bias": "output" in a.block.biases, "mlp_bias": "mlp" in a.block.biases}


def mistral_fields(a: Architecture) -> Settings:
    """The fields of Mistral, whose layers have one window."""
    return {**gated_fields(a), "sliding_window": a.window or None}


def qwen3_fields(a: Architecture) -> Settings:
    """The fields of Qwen3, whose attention has all biases or none."""
    return {**gated_fields(a), "attention_bias": "output" in a.block.biases}


def gpt2_fields(a: Architecture) -> Settings:
    """The fields of GPT-2."""
    return {
        "vocab_size": a.vocab,
        "n_embd": a.d_model,
        "n_layer": a.layers,
        "n_head": a.heads,
        "n_inner": a.mlp_dim,
        "n_positions": a.block.learned_positions,
        "layer_norm_epsilon": a.block.epsilon,
        "activation_function": GELU_NAMES.get(a.block.mlp),
        "tie_word_embeddings": a.block.head == "tied",
    }


def neox_fields(a: Architecture) -> Settings:
    """The fields of GPT-NeoX."""
    return {
        **shared_fields(a),
        "layer_norm_eps": a.block.epsilon,
        "hidden_act": GELU_NAMES.get(a.block.mlp),
        "attention_bias": "output" in a.block.biases,
        "use_parallel_residual": a.block.residual == "parallel",
        "rotary_pct": a.rotary.fraction if a.rotary else None,
        **turned_fields(a.rotary, "rotary_emb_base"),
    }


def gemma3_fields(a: Architecture) -> Settings:
    """The fields of Gemma 3's text models."""
    near = a.rotary_windowed or a.rotary
    kinds = ["sliding_attention" if layer in a.windowed else "full_attention" for layer in range(a.layers)]
    return {
        **{name: value for name, value in gated_fields(a).items() if name != "hidden_act"},
        "hidden_activation": GATE_NAMES.get(a.block.mlp),
        "query_pre_attn_scalar": query_scalar(a),
        "final_logit_softcapping": a.block.logit_cap or None,
        "layer_types": kinds,
        "sliding_window": a.window or a.context,  # there has to be one, also where no layer has it
        "rope_local_base_freq": near.base if near else None,
    }


def query_scalar(a: Architecture) -> float:
    """The number whose inverse root multiplies scores: a whole one, where it is one but for rounding."""
    if not a.block.attention_scale:
        return a.key_dim
    scalar = a.block.attention_scale**-2
    return round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar


WRITERS: dict[str, Callable[[Architecture], Settings]] = {
    "llama": llama_fields,
    "mistral": mistral_fields,
    "qwen2": gated_fields,
    "qwen3": qwen3_fields,
    "gpt2": gpt2_fields,
    "gpt_neox": neox_fields,
    "gemma3_text": gemma3_fields,
}
"""Writer of a family's settings, by `model_type`; the first that fits is taken."""
