"""Names of tensors, by format and family, and the parameters that they are. Data: it can be read in both directions.

A module of the model has a weight and maybe a bias. Its parameters keep their axes in one order whatever the family (`KEPT`,
`KEPT_BIAS`); a family says under which name and with which axes a file has them. `{}` is the number of a layer.
"""

import dataclasses
from collections.abc import Iterator

from infini_jax.layers.mlp import GATED
from infini_jax.pretrained.architecture import Architecture
from infini_jax.pretrained.layouts import Layout

Path = tuple[str, ...]
KEPT = {
    "embedding": "ND",
    "positions": "CD",
    "attention_norm": "D",
    "query": "DHK",
    "key": "DGK",
    "value": "DGV",
    "query_norm": "K",
    "key_norm": "K",
    "memory/out": "HVD",
    "attention_norm_after": "D",
    "mlp_norm": "D",
    "mlp/gate": "DF",
    "mlp/up": "DF",
    "mlp/down": "FD",
    "mlp_norm_after": "D",
    "norm": "D",
    "head": "DN",
}
"""Axes of each module's weight as our parameters have them."""
KEPT_BIAS = {"query": "HK", "key": "GK", "value": "GV", "memory/out": "D", "mlp/up": "F", "mlp/gate": "F", "mlp/down": "D"}
KEPT_BIAS |= {"attention_norm": "D", "mlp_norm": "D", "norm": "D", "head": "N"}
"""Axes of each module's bias."""
WHOLE = ("embedding", "positions", "norm", "head")  # modules that are there once
WEIGHT, BIAS = ".weight", ".bias"  # ends of the names of tensors
BIAS_OF = {"query": "query_key_value", "key": "query_key_value", "value": "query_key_value", "memory/out": "output"}


@dataclasses.dataclass(frozen=True)
class Module:
    """The tensors of one module in a file.

    Attributes:
      path: path of the module's parameters, joined by /.
      tensor: name of its tensors without .weight and .bias.
      weight: axes of the weight.
      bias: axes of the bias, where a family may have one.
      part: place on the axis T of a fused tensor.
    """

    path: str
    tensor: str
    weight: str
    bias: str = ""
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Table:
    """All tensors of a family in a format.

    Attributes:
      modules: all modules that a model of the family may have.
      ignored: patterns of names of tensors that hold nothing learned.
      prefix: beginning of all names that some files leave out.
      norm_offset: number that is added to the scales of norms.
    """

    modules: tuple[Module, ...]
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    norm_offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter and its tensor.

    Attributes:
      path: path of the parameter, below its layer where it has one.
      tensor: name of the tensor, with {} for the number of a layer.
      layout: how the one lies against the other.
    """

    path: Path
    tensor: str
    layout: Layout

    @property
    def in_layers(self) -> bool:
        """Whether every layer has one."""
        return self.path[0] not in WHOLE


def rows_of(table: Table, architecture: Architecture) -> list[Row]:
    """The parameters that a model has, in the order of the table."""
    return [
        row
        for module in table.modules
        if has(architecture, module.path)
        for row in rows_of_module(table, module, architecture)
    ]


def rows_of_module(table: Table, module: Module, architecture: Architecture) -> Iterator[Row]:
    """The rows of a module: its weight, and its bias where the model has it."""
    is_norm, path = "norm" in module.path, tuple(module.path.split("/"))
    leaf = "scale" if is_norm else "embedding" if module.path in ("embedding", "positions") else "kernel"
    layout = Layout(module.weight, KEPT[module.path], module.part, table.norm_offset if is_norm else 0.0)
    yield Row((*path, leaf), module.tensor + WEIGHT, layout)
    if module.bias and has_bias(architecture, module.path):
        yield Row((*path, "bias"), module.tensor + BIAS, Layout(module.bias, KEPT_BIAS[module.path], module.part))


def has(architecture: Architecture, module: str) -> bool:
    """Whether a model has a module."""
    block = architecture.block
    return {
        "mlp/gate": block.mlp in GATED,
        "query_norm": block.qk_norm == "rms",
        "key_norm": block.qk_norm == "rms",
        "attention_norm_after": block.norm_places == "both",
        "mlp_norm_after": block.norm_places == "both",
        "head": block.head == "own",
        "positions": block.learned_positions > 0,
    }.get(module, True)


def has_bias(architecture: Architecture, module: str) -> bool:
    """Whether a module of a model has a bias. Norms have one where they are layer norms."""
    if "norm" in module:
        return architecture.block.norm == "layer" and "norm" in architecture.block.biases
    return BIAS_OF.get(module, module.split("/")[0]) in architecture.block.biases


def like_llama(**changed: str) -> tuple[Module, ...]:
    """Modules of LLaMA and families like it in config.json's world; `changed` are other names of norms."""
    names = {"mlp_norm": "post_attention_layernorm", **changed}
    layer = "model.layers.{}."
    return (
        Module("embedding", "model.embed_tokens", "ND"),
        Module("attention_norm", layer + "input_layernorm", "D"),
        Module("query", layer + "self_attn.q_proj", "(HK)D", "(HK)"),
        Module("key", layer + "self_attn.k_proj", "(GK)D", "(GK)"),
        Module("value", layer + "self_attn.v_proj", "(GV)D", "(GV)"),
        Module("query_norm", layer + "self_attn.q_norm", "K"),
        Module("key_norm", layer + "self_attn.k_norm", "K"),
        Module("memory/out", layer + "self_attn.o_proj", "D(HV)", "D"),
        *(Module(path, layer + name, "D") for path, name in names.items()),
        Module("mlp/gate", layer + "mlp.gate_proj", "FD", "F"),
        Module("mlp/up", layer + "mlp.up_proj", "FD", "F"),
        Module("mlp/down", layer + "mlp.down_proj", "DF", "D"),
        Module("norm", "model.norm", "D"),
        Module("head", "lm_head", "ND"),
    )


GEMMA = {
    "attention_norm_after": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_norm_after": "post_feedforward_layernorm",
}
GPT2_LAYER = "transformer.h.{}."
GPT2 = (
    Module("embedding", "transformer.wte", "ND"),
    Module("positions", "transformer.wpe", "CD"),
    Module("attention_norm", GPT2_LAYER + "ln_1", "D", "D"),
    Module("query", GPT2_LAYER + "attn.c_attn", "D(THK)", "(THK)", 0),
    Module("key", GPT2_LAYER + "attn.c_attn", "D(TGK)", "(TGK)", 1),
    Module("value", GPT2_LAYER + "attn.c_attn", "D(TGV)", "(TGV)", 2),
    Module("memory/out", GPT2_LAYER + "attn.c_proj", "(HV)D", "D"),
    Module("mlp_norm", GPT2_LAYER + "ln_2", "D", "D"),
    Module("mlp/up", GPT2_LAYER + "mlp.c_fc", "DF", "F"),
    Module("mlp/down", GPT2_LAYER + "mlp.c_proj", "FD", "D"),
    Module("norm", "transformer.ln_f", "D", "D"),
    Module("head", "lm_head", "ND"),
)
NEOX_LAYER = "gpt_neox.layers.{}."
NEOX = (
    Module("embedding", "gpt_neox.embed_in", "ND"),
    Module("attention_norm", NEOX_LAYER + "input_layernorm", "D", "D"),
    Module("query", NEOX_LAYER + "attention.query_key_value", "(HTK)D", "(HTK)", 0),
    Module("key", NEOX_LAYER + "attention.query_key_value", "(GTK)D", "(GTK)", 1),
    Module("value", NEOX_LAYER + "attention.query_key_value", "(GTV)D", "(GTV)", 2),
    Module("memory/out", NEOX_LAYER + "attention.dense", "D(HV)", "D"),
    Module("mlp_norm", NEOX_LAYER + "post_attention_layernorm", "D", "D"),
    Module("mlp/up", NEOX_LAYER + "mlp.dense_h_to_4h", "FD", "F"),
    Module("mlp/down", NEOX_LAYER + "mlp.dense_4h_to_h", "DF", "D"),
    Module("norm", "gpt_neox.final_layer_norm", "D", "D"),
    Module("head", "embed_out", "ND"),
)


def in_gguf(query: str, key: str) -> tuple[Module, ...]:
    """Modules of a GGUF; `query` and `key` are the axes of the rows of q and k, without parentheses."""
    return (
        Module("embedding", "token_embd", "ND"),
        Module("attention_norm", "blk.{}.attn_norm", "D", "D"),
        Module("query", "blk.{}.attn_q", f"({query})D", f"({query})"),
        Module("key", "blk.{}.attn_k", f"({key})D", f"({key})"),
        Module("value", "blk.{}.attn_v", "(GV)D", "(GV)"),
        Module("query_norm", "blk.{}.attn_q_norm", "K"),
        Module("key_norm", "blk.{}.attn_k_norm", "K"),
        Module("memory/out", "blk.{}.attn_output", "D(HV)", "D"),
        Module("attention_norm_after", "blk.{}.post_attention_norm", "D"),
        Module("mlp_norm", "blk.{}.ffn_norm", "D", "D"),
        Module("mlp/gate", "blk.{}.ffn_gate", "FD", "F"),
        Module("mlp/up", "blk.{}.ffn_up", "FD", "F"),
        Module("mlp/down", "blk.{}.ffn_down", "DF", "D"),
        Module("mlp_norm_after", "blk.{}.post_ffw_norm", "D"),
        Module("positions", "position_embd", "CD"),
        Module("norm", "output_norm", "D", "D"),
        Module("head", "output", "ND"),
    )


FUSED = (  # fused queries, keys and values of a GGUF lie one behind the other, also where the family's own files mix them
    *(module for module in in_gguf("HK", "GK") if module.path not in ("query", "key", "value")),
    Module("query", "blk.{}.attn_qkv", "(THK)D", "(THK)", 0),
    Module("key", "blk.{}.attn_qkv", "(TGK)D", "(TGK)", 1),
    Module("value", "blk.{}.attn_qkv", "(TGV)D", "(TGV)", 2),
)
FREQUENCIES = (r".*\.rotary_emb\.inv_freq", r".*\.rotary_emb\.(cos|sin)_cached")
MASKS = (r".*\.(attn|attention)\.(bias|masked_bias)",)
LLAMA = Table(like_llama(), FREQUENCIES)
TABLES: dict[tuple[str, str], Table] = {
    ("safetensors", "llama"): LLAMA,
    ("safetensors", "qwen2"): LLAMA,
    ("safetensors", "qwen3"): LLAMA,
    ("safetensors", "gemma3_text"): Table(like_llama(**GEMMA), FREQUENCIES, norm_offset=1.0),
    ("safetensors", "gpt2"): Table(GPT2, MASKS, prefix="transformer."),
    ("safetensors", "gpt_neox"): Table(NEOX, (*FREQUENCIES, *MASKS)),
    ("gguf", "llama"): Table(in_gguf("HIP", "GIP")),  # pairs lie next to each other there
    ("gguf", "qwen2"): Table(in_gguf("HK", "GK")),
    ("gguf", "qwen3"): Table(in_gguf("HK", "GK")),
    ("gguf", "gemma3_text"): Table(in_gguf("HK", "GK")),
    ("gguf", "gpt2"): Table(FUSED),
    ("gguf", "gpt_neox"): Table(FUSED),
}
"""Tensors by (format, family)."""
