"""Tiny foreign models in files of our own making: safetensors by their definition, settings as families write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 14,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SIZES = {name: LLAMA[name] for name in LLAMA if name not in ("model_type", "num_key_value_heads", "head_dim", "rms_norm_eps")}
NEOX = {**SIZES, "model_type": "gpt_neox", "hidden_size": 24, "rotary_pct": 1 / 3, "tie_word_embeddings": False}
GPT2 = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
GEMMA = {**LLAMA, "model_type": "gemma3_text", "sliding_window": 5, "query_pre_attn_scalar": 9, "num_hidden_layers": 7}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
CASES = {
    "llama": {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama, scaled": {**LLAMA, "rope_theta": 30.0, "rope_scaling": LLAMA3},
    "llama, linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 5},
    "qwen2": {**LLAMA, "model_type": "qwen2", "hidden_size": 16, "head_dim": 4},
    "qwen3": {**LLAMA, "model_type": "qwen3"},
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "gpt_neox, in turn": {**NEOX, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    "gemma3_text": GEMMA,
    "gemma3_text, capped": {**GEMMA, "final_logit_softcapping": 3.0},
}


GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "head_count_kv": "num_key_value_heads",
    "key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "layer_norm_rms_eps": "rms_norm_eps",
}


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """The bytes of a file with these tensors."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        ends = [place, place + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": ends}
        place = ends[1]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values())


def write_model(folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    """A folder with config.json and the tensors, in one file or in shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    names, placed = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = {name: tensors[name] for name in names[number::shards]}
        (folder / file).write_bytes(safetensors_bytes(own))
        placed |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def llama_tensors(settings: dict[str, Any], draw: Any = None) -> dict[str, np.ndarray]:
    """The tensors of a LLaMA model without biases, random unless `draw` makes them of a shape."""
    random = np.random.default_rng(0)
    draw = draw or (lambda *shape: random.standard_normal(shape).astype(np.float32))
    d, f, k = settings["hidden_size"], settings["intermediate_size"], settings["head_dim"]
    h, g = settings["num_attention_heads"], settings["num_key_value_heads"]
    found = {"model.embed_tokens.weight": draw(settings["vocab_size"], d), "model.norm.weight": draw(d)}
    for layer in range(settings["num_hidden_layers"]):
        found |= {
            f"model.layers.{layer}.{name}.weight": draw(*shape)
            for name, shape in {
                "input_layernorm": (d,),
                "self_attn.q_proj": (h * k, d),
                "self_attn.k_proj": (g * k, d),
                "self_attn.v_proj": (g * k, d),
                "self_attn.o_proj": (d, h * k),
                "post_attention_layernorm": (d,),
                "mlp.gate_proj": (f, d),
                "mlp.up_proj": (f, d),
                "mlp.down_proj": (d, f),
            }.items()
        }
    return found


def gguf_of_llama(file: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A GGUF of a LLaMA model without biases, as its converter writes one; skips the test where the package is missing.

    The converter reorders rows of q and k by reshape(heads, 2, K / 2).swapaxes(1, 2).
    """
    gguf = pytest.importorskip("gguf", reason="GGUF files are read by the package gguf")
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{one}_proj": f"attn_{two}" for one, two in zip("qkvo", ("q", "k", "v", "output"), strict=True)}
    names |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
    around = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    key_dim, writer = settings["head_dim"], gguf.GGUFWriter(file, "llama")
    for add, field in GGUF_FIELDS.items():
        getattr(writer, f"add_{add}")(settings[field])
    writer.add_value_length(key_dim)
    writer.add_rope_freq_base(settings.get("rope_theta", 1e4))
    for name, tensor in tensors.items():
        ours = around.get(name, "")
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            ours = f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        if ".q_proj" in name or ".k_proj" in name:
            heads = len(tensor) // key_dim
            tensor = tensor.reshape(heads, 2, key_dim // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(ours, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
