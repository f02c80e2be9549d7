"""Settings of a foreign model -> `Architecture`: config.json of LLaMA, Mistral, Qwen2, Qwen3, GPT-2, GPT-NeoX and Gemma 3.

A field that changes what a model computes and that we do not know in its value is refused by name. Metadata of GGUF files
become such settings in `infini_jax.pretrained.metadata`. `infini_jax.pretrained.family_settings` writes what is read here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from infini_jax.config.block import Bias, BlockConfig
from infini_jax.errors import require
from infini_jax.layers.distances import RotaryConfig
from infini_jax.pretrained.architecture import Architecture
from infini_jax.pretrained.fields import Fields

GATES = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
BIASED: tuple[Bias, ...] = ("query_key_value", "output", "mlp", "norm")  # all but the head


def architecture_of(settings: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes.

    Raises `ConfigError` of one line that names the field, where a family or an option is not supported.
    """
    family = settings.get("model_type")
    known = ", ".join(FAMILIES)
    require(family in FAMILIES, "model_type", f"'{family}' is not supported", f"import one of {known}")
    return FAMILIES[str(family)](Fields(settings))


def llama(fields: Fields) -> Architecture:
    """The architecture of LLaMA (Touvron et al. 2023, arXiv 2302.13971) and of Mistral, whose window all layers have."""
    biased, mlp_biased = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    biases: tuple[Bias, ...] = (*(("query_key_value", "output") if biased else ()), *(("mlp",) if mlp_biased else ()))
    layers, window = shared_sizes(fields)["layers"], 0
    if fields.values.get("model_type") == "mistral" and "sliding_window" in fields:
        window = fields.whole("sliding_window")
    windowed = tuple(range(layers)) if window else ()
    return gated(fields, "llama", {"biases": biases}, window=window, windowed=windowed)


def qwen2(fields: Fields) -> Architecture:
    """The architecture of Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on queries, keys and values."""
    check_all_full(fields)
    return gated(fields, "qwen2", {"biases": ("query_key_value",)})


def qwen3(fields: Fields) -> Architecture:
    """The architecture of Qwen3 (arXiv 2505.09388): each head's queries and keys are normed."""
    check_all_full(fields)
    biases: tuple[Bias, ...] = ("query_key_value", "output") if fields.flag("attention_bias", False) else ()
    return gated(fields, "qwen3", {"biases": biases, "qk_norm": "rms"})


def check_all_full(fields: Fields) -> None:
    """Raises `ConfigError` where some layers of a Qwen model have a window."""
    fields.only("use_sliding_window", False)
    for kind in fields.values.get("layer_types") or ():
        Fields({"layer_types": kind}).only("layer_types", "full_attention")


def gated(fields: Fields, family: str, parts: Mapping[str, Any], **more: Any) -> Architecture:
    """The architecture of families like LLaMA: RMS norms, rotary positions, SwiGLU; `parts` are others of the block."""
    block: dict[str, Any] = {
        "epsilon": fields.number("rms_norm_eps", 1e-6),
        "mlp": fields.choice("hidden_act", GATES, "silu"),
        "head": "tied" if fields.flag("tie_word_embeddings", False) else "own",
    }
    plain = {"block": BlockConfig(**{**block, **parts}), "rotary": rotary_of(fields, base=10_000.0)}
    return Architecture(family, **{**shared_sizes(fields), **plain, **more})


def shared_sizes(fields: Fields) -> dict[str, int]:
    """The sizes under the names that all families but GPT-2 have."""
    heads, d_model = fields.whole("num_attention_heads"), fields.whole("hidden_size")
    head_dim = fields.whole("head_dim", d_model // max(heads, 1))
    return {
        "vocab": fields.whole("vocab_size"),
        "layers": fields.whole("num_hidden_layers"),
        "d_model": d_model,
        "heads": heads,
        "kv_heads": fields.whole("num_key_value_heads", heads),
        "key_dim": head_dim,
        "value_dim": head_dim,
        "mlp_dim": fields.whole("intermediate_size"),
        "context": fields.whole("max_position_embeddings"),
    }


def rotary_of(fields: Fields, base: float, base_field: str = "rope_theta", fraction: float = 1.0) -> RotaryConfig:
    """Rotary positions by `rope_parameters`, or by the fields of older settings."""
    new = "rope_parameters" in fields
    scaling = fields.inner("rope_parameters" if new else "rope_scaling")
    base = scaling.number("rope_theta", base) if new else fields.number(base_field, base)
    fraction = scaling.number("partial_rotary_factor", fraction)
    return scaled(RotaryConfig(base, fraction), scaling)


def scaled(rotary: RotaryConfig, scaling: Fields) -> RotaryConfig:
    """Rotary positions with the scaling that a table of settings names. Raises `ConfigError` for an unsupported one."""
    field = "rope_type" if "rope_type" in scaling else "type"
    kind = scaling.choice(field, {"default": "none", "none": "none", "linear": "linear", "llama3": "llama3"}, "default")
    if kind == "linear":
        return dataclasses.replace(rotary, scaling="linear", factor=scaling.number("factor"))
    if kind == "llama3":
        return dataclasses.replace(
            rotary,
            scaling="llama3",
            factor=scaling.number("factor"),
            low_turns=scaling.number("low_freq_factor"),
            high_turns=scaling.number("high_freq_factor"),
            context=scaling.whole("original_max_position_embeddings"),
        )
    return rotary


def gpt2(fields: Fields) -> Architecture:
    """The architecture of GPT-2 (Radford et al. 2019): learned positions, layer norms, biases everywhere but the head."""
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    d_model, heads, positions = fields.whole("n_embd"), fields.whole("n_head"), fields.whole("n_positions", 1024)
    block: dict[str, Any] = {
        "norm": "layer",
        "epsilon": fields.number("layer_norm_epsilon", 1e-5),
        "mlp": fields.choice("activation_function", GELU, "gelu_new"),
        "biases": BIASED,
        "head": "tied" if fields.flag("tie_word_embeddings", True) else "own",
        "learned_positions": positions,
    }
    return Architecture(
        family="gpt2",
        vocab=fields.whole("vocab_size"),
        layers=fields.whole("n_layer"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        key_dim=d_model // max(heads, 1),
        value_dim=d_model // max(heads, 1),
        mlp_dim=fields.whole("n_inner", 4 * d_model),
        context=positions,
        block=BlockConfig(**block),
        rotary=None,
    )


def gpt_neox(fields: Fields) -> Architecture:
    """The architecture of GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745): parallel residual, partial rotary."""
    fraction = fields.number("rotary_pct", 0.25)
    block: dict[str, Any] = {
        "norm": "layer",
        "epsilon": fields.number("layer_norm_eps", 1e-5),
        "mlp": fields.choice("hidden_act", GELU, "gelu"),
        "biases": BIASED if fields.flag("attention_bias", True) else ("mlp", "norm"),
        "residual": "parallel" if fields.flag("use_parallel_residual", True) else "in_turn",
        "head": "tied" if fields.flag("tie_word_embeddings", False) else "own",
    }
    plain = {"block": BlockConfig(**block), "rotary": rotary_of(fields, 10_000.0, "rotary_emb_base", fraction)}
    return Architecture("gpt_neox", **{**shared_sizes(fields), **plain})


def gemma3(fields: Fields) -> Architecture:
    """The architecture of Gemma 3's text models (arXiv 2503.19786): norms before and after, windows in most layers."""
    fields.only("attention_bias", False)
    fields.only("use_bidirectional_attention", False)
    fields.only("attn_logit_softcapping", 0.0)  # Gemma 2's, which the family's own code does not apply here
    sizes = shared_sizes(fields)
    key_dim = sizes["key_dim"]
    scalar = fields.number("query_pre_attn_scalar", key_dim)
    everywhere, windowed_rotary = gemma_rotary(fields)
    window = fields.whole("sliding_window", 0)
    windowed = windowed_layers(fields, sizes["layers"]) if window else ()
    parts = {
        "norm_places": "both",
        "qk_norm": "rms",
        "head": "tied" if fields.flag("tie_word_embeddings", True) else "own",
        "embedding_scale": sizes["d_model"] ** 0.5,
        "attention_scale": 0.0 if scalar == key_dim else scalar**-0.5,
        "logit_cap": fields.number("final_logit_softcapping", 0.0),
    }
    return gated(
        Fields({**fields.values, "hidden_act": fields.values.get("hidden_activation", "gelu_pytorch_tanh")}),
        "gemma3_text",
        parts,
        rotary=everywhere,
        window=window if windowed else 0,
        windowed=windowed,
        rotary_windowed=windowed_rotary if windowed else None,
    )


def gemma_rotary(fields: Fields) -> tuple[RotaryConfig, RotaryConfig]:
    """Gemma's rotary positions of layers that see everything, and of those that have a window, which are never scaled."""
    if "rope_parameters" in fields:
        apart = fields.inner("rope_parameters")
        full, near = apart.inner("full_attention"), apart.inner("sliding_attention")
        return (
            scaled(RotaryConfig(full.number("rope_theta", 1e6)), full),
            scaled(RotaryConfig(near.number("rope_theta", 1e4)), near),
        )
    return rotary_of(fields, 1e6), RotaryConfig(fields.number("rope_local_base_freq", 1e4))


def windowed_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    """The layers with a window: by `layer_types`, or all but each sixth, or what the pattern says."""
    kinds = fields.values.get("layer_types")
    if kinds is None:
        pattern = fields.whole("sliding_window_pattern", fields.values.get("_sliding_window_pattern") or 6)
        return tuple(layer for layer in range(layers) if (layer + 1) % pattern)
    fits = isinstance(kinds, list) and len(kinds) == layers
    require(fits, "layer_types", f"they are not those of {layers} layers", "restore the model's config.json")
    for kind in kinds:
        Fields({"layer_types": kind}).only("layer_types", "full_attention", "sliding_attention")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")


FAMILIES: dict[str, Callable[[Fields], Architecture]] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gemma3_text": gemma3,
}
"""Reader of a family's settings, by `model_type`."""
