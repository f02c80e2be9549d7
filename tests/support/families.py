"""Published architectures as settings of ours, and their tensors as parameters, by the names that `transformers` gives both.

A layer's tensors become `layers_apart` paths such as ("layer3", "query", "kernel").
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.config.block import BlockConfig
from infini_jax.layers.distances import RotaryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.inheritance import grouped

Tensors = dict[str, np.ndarray]


def rotary_of(rope: dict, **others: Any) -> RotaryConfig:
    """The turns that `rope_parameters` say."""
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        others |= {"scaling": "linear", "factor": rope["factor"]}
    if kind == "llama3":
        turns = {"low_turns": rope["low_freq_factor"], "high_turns": rope["high_freq_factor"]}
        others |= {"scaling": "llama3", "factor": rope["factor"], "context": rope["original_max_position_embeddings"], **turns}
    return RotaryConfig(base=rope["rope_theta"], **others)


def sizes_of(config: Any, segment: int, **others: Any) -> dict[str, Any]:
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {"vocab": config.vocab_size, "layers": config.num_hidden_layers, "d_model": config.hidden_size}
    heads = {"heads": config.num_attention_heads, "kv_heads": kv_heads, "key_dim": head, "value_dim": head}
    return sizes | heads | {"segment": segment, **others}


def llama_like(config: Any, segment: int, context: int) -> ModelConfig:
    """LLaMA, Mistral without its window, Qwen2 and Qwen3."""
    biases = ("query_key_value",) if config.model_type == "qwen2" else ()
    block = BlockConfig(
        mlp="swiglu",
        epsilon=config.rms_norm_eps,
        biases=biases,
        qk_norm="rms" if config.model_type == "qwen3" else "none",
        head="tied" if config.tie_word_embeddings else "own",
    )
    others = {"mlp_dim": config.intermediate_size, "block": block, "rotary": rotary_of(config.rope_parameters)}
    return ModelConfig(memory=FullConfig(slots=context), **sizes_of(config, segment, **others))


def gemma(config: Any, segment: int, context: int) -> ModelConfig:
    """Gemma 2, which has soft caps, and Gemma 3, which has norms of queries and keys and two kinds of turns."""
    block = BlockConfig(
        mlp="geglu",
        epsilon=config.rms_norm_eps,
        norm_places="both",
        qk_norm="rms" if config.model_type == "gemma3_text" else "none",
        embedding_scale=config.hidden_size**0.5,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        score_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        logit_cap=config.final_logit_softcapping or 0.0,
    )
    layers = tuple(number for number, kind in enumerate(config.layer_types) if kind == "full_attention")
    ropes = config.rope_parameters
    turns = {kind: rotary_of(ropes.get(kind, ropes)) for kind in ("full_attention", "sliding_attention")}
    return ModelConfig(
        memory=FullConfig(slots=context, layers=layers),
        elsewhere=LocalConfig(window=config.sliding_window),
        rotary=turns["full_attention"],
        rotary_elsewhere=turns["sliding_attention"],
        **sizes_of(config, segment, mlp_dim=config.intermediate_size, block=block),
    )


def gpt_neox(config: Any, segment: int, context: int) -> ModelConfig:
    block = BlockConfig(
        norm="layer",
        epsilon=config.layer_norm_eps,
        mlp="gelu",
        biases=("query_key_value", "output", "mlp", "norm"),
        residual="parallel" if config.use_parallel_residual else "in_turn",
        head="own",
    )
    turns = rotary_of(config.rope_parameters, fraction=config.rope_parameters["partial_rotary_factor"])
    others = {"mlp_dim": config.intermediate_size, "block": block, "rotary": turns}
    return ModelConfig(memory=FullConfig(slots=context), **sizes_of(config, segment, **others))


def gpt2(config: Any, segment: int, context: int) -> ModelConfig:
    block = BlockConfig(
        norm="layer",
        epsilon=config.layer_norm_epsilon,
        biases=("query_key_value", "output", "mlp", "norm"),
        learned_positions=config.n_positions,
    )
    memory = FullConfig(slots=context, positions="none")
    return ModelConfig(memory=memory, **sizes_of(config, segment, mlp_dim=config.n_inner or 0, block=block))


def by_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """A projection to heads, stored output first, as DxHxK; a bias as HxK."""
    return weight.T.reshape(*weight.T.shape[:-1], heads, -1)


def from_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """A projection from heads, stored output first, as HxKxD."""
    return weight.T.reshape(heads, -1, weight.shape[0])


def of_part(tensors: Tensors, name: str, shaped: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """The kernel and, where there is one, the bias of a projection; a bias of the output is shaped as it is."""
    found = {"kernel": shaped(tensors[f"{name}.weight"])}
    bias = tensors.get(f"{name}.bias")
    return found if bias is None else found | {"bias": bias if found["kernel"].shape[-1] == len(bias) else shaped(bias)}


def norm_from(tensors: Tensors, name: str, offset: float = 0.0) -> dict[str, np.ndarray]:
    found = {"scale": tensors[f"{name}.weight"] + offset}
    return found | ({"bias": tensors[f"{name}.bias"]} if f"{name}.bias" in tensors else {})


def layer_like_llama(model: ModelConfig, tensors: Tensors, number: int) -> dict[str, Any]:
    d, at, is_gemma = model.dims, f"model.layers.{number}.", model.block.norm_places == "both"
    offset = 1.0 if is_gemma else 0.0
    found: dict[str, Any] = {
        "attention_norm": norm_from(tensors, at + "input_layernorm", offset),
        "memory": {"out": of_part(tensors, at + "self_attn.o_proj", lambda w: from_heads(w, d.heads))},
        "mlp": {name: of_part(tensors, f"{at}mlp.{name}_proj", np.transpose) for name in ("up", "gate", "down")},
        "mlp_norm": norm_from(tensors, at + ("pre_feedforward" if is_gemma else "post_attention") + "_layernorm", offset),
    }
    for name, heads in (("query", d.heads), ("key", d.kv_heads), ("value", d.kv_heads)):
        found[name] = of_part(tensors, f"{at}self_attn.{name[0]}_proj", lambda w, heads=heads: by_heads(w, heads))
    if model.block.qk_norm == "rms":
        found |= {f"{name}_norm": norm_from(tensors, f"{at}self_attn.{name[0]}_norm", offset) for name in ("query", "key")}
    if is_gemma:
        found["attention_norm_after"] = norm_from(tensors, at + "post_attention_layernorm", offset)
        found["mlp_norm_after"] = norm_from(tensors, at + "post_feedforward_layernorm", offset)
    return found


def layer_like_neox(model: ModelConfig, tensors: Tensors, number: int) -> dict[str, Any]:
    d, at = model.dims, f"gpt_neox.layers.{number}."
    weight, bias = (tensors[f"{at}attention.query_key_value.{kind}"] for kind in ("weight", "bias"))
    of_head = (weight.reshape(d.heads, 3, d.key_dim, -1), bias.reshape(d.heads, 3, d.key_dim))
    names = ("query", "key", "value")
    return {
        **{name: {"kernel": np.moveaxis(of_head[0][:, n], 2, 0), "bias": of_head[1][:, n]} for n, name in enumerate(names)},
        "attention_norm": norm_from(tensors, at + "input_layernorm"),
        "mlp_norm": norm_from(tensors, at + "post_attention_layernorm"),
        "memory": {"out": of_part(tensors, at + "attention.dense", lambda w: from_heads(w, d.heads))},
        "mlp": {
            "up": of_part(tensors, at + "mlp.dense_h_to_4h", np.transpose),
            "down": of_part(tensors, at + "mlp.dense_4h_to_h", np.transpose),
        },
    }


def layer_like_gpt2(model: ModelConfig, tensors: Tensors, number: int) -> dict[str, Any]:
    """Its projections are stored input first."""
    d, at = model.dims, f"transformer.h.{number}."
    weight, bias = (np.split(tensors[f"{at}attn.c_attn.{kind}"], 3, axis=-1) for kind in ("weight", "bias"))
    shape, names = (d.heads, d.key_dim), ("query", "key", "value")
    parts = zip(names, weight, bias, strict=True)
    out = of_part(tensors, at + "attn.c_proj", lambda w: w.reshape(*shape, -1))
    return {
        **{name: {"kernel": w.reshape(-1, *shape), "bias": b.reshape(shape)} for name, w, b in parts},
        "attention_norm": norm_from(tensors, at + "ln_1"),
        "mlp_norm": norm_from(tensors, at + "ln_2"),
        "memory": {"out": out},
        "mlp": {
            name: of_part(tensors, f"{at}mlp.{theirs}", lambda w: w) for name, theirs in (("up", "c_fc"), ("down", "c_proj"))
        },
    }


AROUND = {  # embedding, positions, last norm
    "llama": ("model.embed_tokens", None, "model.norm"),
    "gpt_neox": ("gpt_neox.embed_in", None, "gpt_neox.final_layer_norm"),
    "gpt2": ("transformer.wte", "transformer.wpe", "transformer.ln_f"),
}
FAMILIES: dict[str, tuple[Callable, Callable, str]] = {
    "llama": (llama_like, layer_like_llama, "llama"),
    "qwen2": (llama_like, layer_like_llama, "llama"),
    "qwen3": (llama_like, layer_like_llama, "llama"),
    "gemma2": (gemma, layer_like_llama, "llama"),
    "gemma3_text": (gemma, layer_like_llama, "llama"),
    "gpt_neox": (gpt_neox, layer_like_neox, "gpt_neox"),
    "gpt2": (gpt2, layer_like_gpt2, "gpt2"),
}


def model_of(config: Any, segment: int, context: int) -> ModelConfig:
    """Settings of a model as it is, whose memory is attention to `context` tokens."""
    return FAMILIES[config.model_type][0](config, segment, context)


def parameters_of(kind: str, model: ModelConfig, tensors: Tensors) -> dict:
    """The parameters of a model from the tensors of an architecture, by their names there."""
    _, layer, around = FAMILIES[kind]
    embedding, positions, norm = AROUND[around]
    offset = 1.0 if kind.startswith("gemma") else 0.0
    flat: dict[tuple[str, ...], Any] = {("embedding", "embedding"): tensors[f"{embedding}.weight"]}

    def put(path: tuple[str, ...], tree: Any) -> None:
        for name, leaf in tree.items():
            if isinstance(leaf, dict):
                put((*path, name), leaf)
            else:
                flat[*path, name] = leaf

    for number in range(model.layers):
        put((f"layer{number}",), layer(model, tensors, number))
    put(("norm",), norm_from(tensors, norm, offset))
    if positions:
        flat["positions", "embedding"] = tensors[f"{positions}.weight"]
    if model.block.head == "own":
        (name,) = (name for name in ("lm_head", "embed_out") if f"{name}.weight" in tensors)
        put(("head",), of_part(tensors, name, np.transpose))
    return grouped(model, flat)
