"""`infini-jax export`: files of a family that give the same model, and files of this package for every other."""

import dataclasses
import itertools
import json
import re
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml

from infini_jax.cli.main import main
from infini_jax.config import ModelConfig, Origin, RunConfig
from infini_jax.config.block import BlockConfig
from infini_jax.data.long_documents import encoded_text
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.tokenizers import SentencePiece, load_tokenizer, train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.files import read_object, write_json
from infini_jax.layers.distances import RotaryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.pretrained.exporting import exported
from infini_jax.pretrained.families import FAMILIES, architecture_of
from infini_jax.pretrained.family_settings import WRITERS, family_of
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.importing import described, read_all
from infini_jax.pretrained.names import TABLES, rows_of
from infini_jax.pretrained.opened import load, parameters_in, settings_in
from infini_jax.pretrained.own_format import is_own, run_in
from infini_jax.pretrained.safetensors_file import safetensors, write_safetensors
from infini_jax.pretrained.settings import model_settings
from infini_jax.pretrained.tensors import Tensor
from infini_jax.pretrained.tokens import tokenizer_of, with_begin
from infini_jax.records.folder import RunFolder
from infini_jax.report.model_card import OWN_LOADS, model_card
from infini_jax.training.exported import imported_source, save_exported, tokenizer_settings
from infini_jax.training.trained import Trained
from tests.reference import foreign_model
from tests.support import streams
from tests.support.as_is import LINES, pieces
from tests.support.commands import PAIRS, told
from tests.support.foreign import CASES, GEMMA, LLAMA, NEOX, gguf_of_llama, write_model
from tests.support.streams import initial

ROOT = Path(__file__).parents[1]
MORE = CASES | {
    "llama, geglu": {**LLAMA, "hidden_act": "gelu_pytorch_tanh", "mlp_bias": True},
    "qwen2, wide heads": {**CASES["qwen2"], "head_dim": 6},
    "qwen3, biased": {**CASES["qwen3"], "attention_bias": True, "tie_word_embeddings": False},
    "gpt2, own head": {**CASES["gpt2"], "tie_word_embeddings": False, "n_inner": 20, "activation_function": "gelu"},
    "gpt_neox, other turns": {**NEOX, "rotary_emb_base": 30, "attention_bias": False, "rotary_pct": 1.0},
    "gemma3_text, whole": {**GEMMA, "layer_types": ["full_attention"] * 7, "rope_theta": 500.0},
    "gemma3_text, scaled": {**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 7.0},
}
BLOCK = BlockConfig(mlp="swiglu")
MODEL = ModelConfig(FullConfig(slots=24), vocab=20, layers=2, d_model=12, heads=2, mlp_dim=14, segment=8, block=BLOCK)


def tensors_for(settings) -> dict[str, np.ndarray]:
    """Random tensors of a model with a family's settings, by the family's names."""
    architecture, random, found = architecture_of(settings), np.random.default_rng(0), {}
    for row in rows_of(TABLES["safetensors", architecture.family], architecture):
        for layer in range(architecture.layers if row.in_layers else 1):
            shape = row.layout.stored_shape(architecture.sizes)
            found[row.tensor.format(layer)] = (0.4 * random.standard_normal(shape)).astype(np.float32)
    return found


def run_of(model: ModelConfig) -> RunConfig:
    """A run of the model on a task of few symbols."""
    return RunConfig(model=model, data=MqarConfig(pairs=2, symbols=8))


def written(folder, model: ModelConfig, params, dtype: str = "float32", **more):
    """The folder of a model without a tokenizer."""
    save_exported(exported(run_of(model), 0, params, dtype), None, "", folder, **more)
    return folder


@pytest.mark.parametrize("case", MORE)
def test_what_was_imported_comes_back_bit_for_bit_under_the_names_it_had(case, tmp_path):
    tensors = tensors_for(MORE[case])
    model, params = load(write_model(tmp_path / "theirs", MORE[case], tensors))
    written(tmp_path / "ours", model, params)
    weights = open_weights(tmp_path / "ours")
    assert settings_in(weights, model.segment) == model
    jax.tree.map(np.testing.assert_array_equal, read_all(parameters_in(weights, model)), params)
    assert weights.tensors.keys() == tensors.keys()
    for name, tensor in weights.tensors.items():  # 1 was added to scales of Gemma's norms, which rounds what is below 4
        np.testing.assert_allclose(tensor.read(), tensors[name], rtol=0, atol=2**-23)
    assert not is_own(weights.settings)


@pytest.mark.parametrize("case", MORE)
def test_transformers_reads_it_and_gives_the_same_logits(case, tmp_path):
    """In float64 there, against our architecture's in float64 NumPy; nothing is missing, and nothing is new."""
    torch = pytest.importorskip("torch", reason="reads models by torch and transformers")
    transformers = pytest.importorskip("transformers", reason="reads models by torch and transformers")
    model, params = load(write_model(tmp_path / "theirs", MORE[case], tensors_for(MORE[case])))
    folder = written(tmp_path / "ours", model, params)
    found, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert {name: list(value) for name, value in said.items() if value} == {}
    ids = np.arange(13) * 7 % 20
    with torch.no_grad():
        theirs = found.double()(torch.tensor(ids)[None]).logits[0].numpy()
    weights = open_weights(folder)
    architecture = described(weights)
    whole = read_all(parameters_in(weights, model_settings(architecture)))
    (groups,) = [{name: len(leaf["query"]["kernel"]) for name, leaf in whole.items() if name.startswith("groups_")}]
    ours = foreign_model.logits(architecture, joined(whole, groups), ids, "all")
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=3e-5 * np.abs(ours).max())  # cos and sin are float32 there


@pytest.mark.parametrize("memory", [FullConfig(slots=24), LocalConfig(window=5)], ids=["llama", "mistral"])
def test_a_run_of_ours_with_the_block_of_a_family_is_read_by_transformers(memory, tmp_path):
    """Streamed here in segments of 8 tokens, read there at once."""
    torch = pytest.importorskip("torch", reason="reads models by torch and transformers")
    transformers = pytest.importorskip("transformers", reason="reads models by torch and transformers")
    model = dataclasses.replace(MODEL, memory=memory)
    params, tokens = initial(model), np.arange(24)[None] * 7 % 20
    found = transformers.AutoModelForCausalLM.from_pretrained(written(tmp_path / "out", model, params))
    with torch.no_grad():
        theirs = found(torch.tensor(tokens)).logits.numpy()
    ours = streams.scorer(model)(params, init_carry(model, 1), jnp.asarray(tokens), jnp.zeros((1, 24), jnp.int32))[1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())  # float32 on both sides


def joined(params: dict, groups: dict[str, int]) -> dict:
    """Parameters whose layers are one stack, called all."""
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(params[name] for name in groups))
    return {name: leaf for name, leaf in params.items() if name not in groups} | {"all": stacked}


def test_every_family_that_is_read_can_be_written():
    assert WRITERS.keys() == FAMILIES.keys()


LAYERED = BlockConfig(norm="layer", biases=("query_key_value", "output", "mlp", "norm"))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"kv_heads": 1, "key_dim": 8, "value_dim": 8, "compute": "bfloat16", "segment": 16}),
        ("llama", {"rotary": RotaryConfig(500.0, scaling="llama3", factor=4.0, context=16)}),
        ("mistral", {"memory": LocalConfig(window=5)}),
        ("qwen2", {"block": dataclasses.replace(BLOCK, biases=("query_key_value",), head="own")}),
        ("qwen3", {"block": dataclasses.replace(BLOCK, qk_norm="rms")}),
        (
            "gpt2",
            {
                "block": dataclasses.replace(LAYERED, learned_positions=24),
                "memory": FullConfig(slots=24, positions="none"),
            },
        ),
        ("gpt_neox", {"block": LAYERED}),
        (None, {"block": BlockConfig()}),  # this package's own
        (None, {"memory": InfiniConfig()}),
        (None, {"memory": FullConfig(slots=24, positions="relative")}),
        (None, {"memory": FullConfig(slots=24, positions="none")}),
        (None, {"memory": FullConfig(slots=24, layers=(0,))}),
        (None, {"memory": FullConfig(slots=24, layers=(0,)), "elsewhere": LocalConfig(window=5)}),
        (None, {"key_taps": 2}),
        (None, {"value_dim": 4}),
        (None, {"rotary": RotaryConfig(fraction=0.7)}),
        (None, {"rotary": RotaryConfig(pairs="neighbors")}),
        (None, {"block": dataclasses.replace(BLOCK, logit_cap=3.0)}),
        (None, {"block": dataclasses.replace(BLOCK, biases=("head",))}),
        (None, {"block": dataclasses.replace(BLOCK, biases=("query_key_value",)), "memory": LocalConfig(window=5)}),
        (
            None,
            {"block": dataclasses.replace(LAYERED, learned_positions=32), "memory": FullConfig(slots=24, positions="none")},
        ),
    ],
)
def test_a_model_is_of_a_family_only_where_nothing_remains_outside_it(family, changes):
    model = dataclasses.replace(MODEL, **changes)
    found = family_of(model)
    assert (found and found[1]["model_type"]) == family
    if found:
        read = model_settings(architecture_of(found[1]), model.segment)
        assert (read.memory, read.block, read.rotary) == (model.memory, model.block, model.rotary)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_and_numbers_beyond_it_are_refused(tmp_path, dtype):
    params = jax.tree.map(np.array, initial(MODEL))
    written(tmp_path / "half", MODEL, params, dtype)
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "half")[1], rounded)
    params["norm"]["scale"][3] = np.inf if dtype == "bfloat16" else 7e4
    with pytest.raises(ConfigError, match=rf"^dtype: model\.norm\.weight holds numbers that are not finite in {dtype}"):
        written(tmp_path / "wrong", MODEL, params, dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["half"]


@pytest.mark.parametrize("model", [MODEL, dataclasses.replace(MODEL, memory=InfiniConfig())], ids=["llama", "own"])
def test_tensors_are_spread_over_files_of_at_most_so_many_bytes(tmp_path, model):
    params = initial(model)
    written(tmp_path / "parts", model, params, largest=2000)
    written(tmp_path / "one", model, params)
    names = sorted(file.name for file in (tmp_path / "parts").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 3
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    total = 0
    for name in names:
        tensors = safetensors(tmp_path / "parts" / name)
        assert {tensor for tensor, file in index["weight_map"].items() if file == name} == tensors.keys()
        sizes = [tensor.size for tensor in tensors.values()]
        assert sum(sizes) <= 2000 or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "parts")[1], load(tmp_path / "one")[1])


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """As much as the largest, and a quarter of it for all else; all tensors together have nine times as much."""
    params = {
        "embedding": {"embedding": np.ones((4000, 12), np.float32)},
        **{name: leaf for name, leaf in initial(dataclasses.replace(MODEL, vocab=4000)).items() if name != "embedding"},
    }
    found = exported(run_of(dataclasses.replace(MODEL, vocab=4000)), 0, params)
    large = {f"{n}": tensor for n in range(9) for name, tensor in found.tensors.items() if "embed" in name}
    largest = max(tensor.size for tensor in large.values())
    tracemalloc.start()
    write_safetensors(large, tmp_path / "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest <= peak <= 1.5 * largest  # one byte of four for the question whether numbers are finite
    assert (tmp_path / "file").stat().st_size > 9 * largest


def test_the_package_safetensors_reads_what_is_written(tmp_path):
    package = pytest.importorskip("safetensors", reason="compares with the package safetensors")
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.zeros((0, 4), np.float32),
        "one": np.array(2.5, np.float16),
    }
    made = {name: Tensor(array.shape, array.dtype.name, lambda array=array: array) for name, array in arrays.items()}
    brain = np.array([[0.5, 3.0]], ml_dtypes.bfloat16)
    write_safetensors({**made, "brain": Tensor((1, 2), "bfloat16", lambda: brain)}, tmp_path / "file")
    with package.safe_open(tmp_path / "file", framework="np") as opened:
        assert {*opened.keys()} == {*arrays, "brain"}
        assert opened.metadata() == {"format": "pt"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.get_tensor(name), array, strict=True)
    np.testing.assert_array_equal(safetensors(tmp_path / "file")["brain"].read(), brain, strict=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pairs(place):
    """The folder of a run of Infini-attention on pairs, of which an evaluation was made."""
    main([*PAIRS, "--train.sequence", "32", "--train.batch", "2", "--budget.amount", "3", "--data.pairs", "4"])
    main(["evaluate", "results/runs/run", "--task", "mqar", "--pairs", "2,4"])
    return place / "results/runs/run"


def test_a_run_with_a_memory_is_read_by_the_lines_of_its_card_and_imported_again(pairs, place, capsys):
    main(["export", "results/runs/run", "out"])
    assert "out: infini_jax, " in capsys.readouterr().out
    trained = Trained.open(pairs)
    (code,) = re.findall(r"```python\n(.*?)```", OWN_LOADS, re.DOTALL)
    tokens = np.arange(8, dtype=np.int32)[None]
    assert code in (ROOT / "docs" / "pretrained.md").read_text()
    names = {"tokens": tokens, "documents": np.zeros_like(tokens)}
    exec(code.replace("FOLDER", "out"), names)
    assert names["model"] == trained.run.model
    jax.tree.map(np.testing.assert_array_equal, names["params"], trained.params)
    carry = init_carry(trained.run.model, 1)
    _, features, _ = forward_segments(trained.run.model, trained.params, carry, jnp.asarray(tokens), jnp.zeros_like(tokens))
    np.testing.assert_array_equal(names["logits"], logits_of(trained.run.model, trained.params, features))
    main(["import", "out", "--name", "again"])
    again = Trained.open(place / "results/models/again")
    assert (again.run.model, again.run.data, again.step) == (trained.run.model, trained.run.data, 0)
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
    source = json.loads((again.folder / "source.json").read_text())
    assert (source["family"], source["run"], source["step"]) == ("infini_jax", "run", 3)
    main(["evaluate", "results/models/again", "--task", "mqar", "--pairs", "2"])


def test_the_card_of_a_run_says_its_settings_data_and_figures_and_no_path(pairs, place):
    main(["export", "results/runs/run", "out", "--dtype", "bfloat16"])
    head, body = card_of(place / "out")
    run = Trained.open(pairs).run
    assert head == {"library_name": "infini_jax", "tags": ["long-context", "memory", "infini"]}
    for part in (
        run.fingerprint(),
        f"{run.model.memory_bytes:,} bytes",
        "| segment | 8 tokens |",
        "| budget | 3 steps |",
        "| seed | 0 |",
        "tensors bfloat16",
        '"kind": "mqar"',
        "fresh parameters",
        "| validation | ",
        "`mqar` (step 3):",
        "pairs 4",
        "from infini_jax.pretrained.opened import load",
    ):
        assert part in body, part
    assert str(place) not in body
    assert "results/runs" not in body


def test_a_run_of_a_family_whose_task_has_no_text_stays_on_it(place, capsys):
    block = [
        "full",
        "mqar",
        "--memory.slots",
        "32",
        "--model.block.mlp",
        "swiglu",
        "--train.batch",
        "2",
        "--budget.amount",
        "2",
    ]
    main(["train", *block, *PAIRS[3:], "--train.sequence", "32", "--data.pairs", "4"])
    main(["export", "results/runs/run", "out"])
    assert "out: llama, " in capsys.readouterr().out
    main(["import", "out"])
    first, again = (Trained.open(place / name) for name in ("results/runs/run", "results/models/out"))
    assert (again.run.data, again.run.model.segment) == (first.run.data, 8)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


def card_of(folder) -> tuple[dict, str]:
    """(head, text) of a model card."""
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def test_an_imported_model_goes_out_with_tokenizer_licence_and_origin_and_comes_back(place, capsys):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer.json is read by the package tokenizers")
    made = letters(tokenizers)
    folder = write_model(place / "tiny", {**LLAMA, "_name_or_path": "someone/tiny"}, tensors_for(LLAMA), shards=2)
    (folder / "tokenizer.json").write_text(made.to_str())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    main(["import", "tiny"])
    main(["export", "results/models/tiny", "out"])
    main(["import", "out"])
    first, second = (Trained.open(place / "results/models" / name) for name in ("tiny", "out"))
    assert second.run.model == first.run.model
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)
    assert (place / "out/tokenizer.json").read_text() == made.to_str()
    assert json.loads((place / "out/tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    assert json.loads((place / "out/config.json").read_text())["eos_token_id"] == 8
    head, body = card_of(place / "out")
    assert head == {
        "license": "apache-2.0",
        "base_model": "someone/tiny",
        "library_name": "transformers",
        "tags": ["llama"],
    }
    source = json.loads((first.folder / "source.json").read_text())
    assert source["sha256"] in body
    assert all(name in body for name in source["files"])
    assert "without any training since" in body
    assert json.loads((second.folder / "source.json").read_text())["license"] == "apache-2.0"
    assert str(place) not in body
    assert "is there already" in told(capsys, ["export", "results/models/tiny", "out"], 2)
    assert "out/nothing is not a folder" in told(capsys, ["export", "out/nothing", "other"], 2)
    assert not (place / "other").exists()


@pytest.mark.parametrize("begin", [None, 1])
def test_transformers_makes_the_tokens_of_a_sentencepiece_model(begin, tmp_path):
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    ours = with_begin(SentencePiece(train_sentencepiece(LINES, 300) if begin is None else pieces()), begin)
    save_exported(exported(run_of(MODEL), 0, initial(MODEL)), ours, "", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the 3 words of a line, 21\n", "  two é  \n\nx😀", LINES[5]):
        assert theirs.encode(text) == [token for part in encoded_text(ours, text) for token in part]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (begin, ours.end)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == ours.model


def test_the_ids_of_beginning_and_end_go_out_and_the_settings_of_the_tokenizer(tmp_path):
    ours = with_begin(SentencePiece(pieces()), 1)
    save_exported(exported(run_of(MODEL), 0, initial(MODEL)), ours, "", tmp_path / "out")
    settings, said = (read_object(tmp_path / "out" / name, "", "") for name in ("config.json", "tokenizer_config.json"))
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (1, 2)
    assert (said["bos_token"], said["eos_token"], said["add_bos_token"]) == ("<s>", "</s>", True)
    assert tokenizer_of(open_weights(tmp_path / "out")).name == ours.name
    unigram = SentencePiece(train_sentencepiece(LINES, 300, "unigram"))
    assert tokenizer_settings(unigram) == {}  # LlamaTokenizer is byte-pair encoding


@pytest.mark.parametrize("begin", [None, "a"])
def test_transformers_reads_the_tokenizer(begin, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer.json is read by the package tokenizers")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    plain = load_tokenizer(letters(tokenizers).to_str().encode())
    ours = with_begin(plain, begin and 0)
    save_exported(exported(run_of(MODEL), 0, initial(MODEL)), ours, "", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    first = [] if begin is None else [0]
    assert theirs.encode("headbag") == first + ours.encode("headbag").tolist()
    assert theirs.decode(theirs.encode("headbag", add_special_tokens=False)) == "headbag"
    assert theirs.bos_token == begin
    assert theirs.eos_token_id == ours.end == 8


def letters(tokenizers):
    """A byte-level BPE of the first eight letters, and the end of a document."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={one: n for n, one in enumerate("abcdefgh")}, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def test_the_imported_model_behind_a_run_is_found_by_way_of_the_runs_between(place):
    model = RunFolder(place / "model")
    model.write_config(RunConfig(name="model").to_dict())
    write_json({"source": "someone/tiny", "license": "mit"}, model.source)
    folders = [model.path, place / "first", place / "second"]
    for before, folder in itertools.pairwise(folders):
        run = RunConfig(name=folder.name, origin=Origin(str(before), before.name, "0", 1, "0"))
        RunFolder(folder).write_config(run.to_dict())
    trained = Trained(folders[2], run, 5, {})
    source = imported_source(trained)
    assert source == {"source": "someone/tiny", "license": "mit"}
    card = model_card(trained, exported(run, 5, initial(run.model)), "float32", source)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert "began at the parameters of someone/tiny" in card
    assert str(place) not in card
    settings = exported(run, 5, initial(run.model)).settings
    assert settings["infini_jax"]["run"]["origin"]["folder"] == "first"
    assert run_in(settings) == dataclasses.replace(run, origin=dataclasses.replace(run.origin, folder="first"))
    shutil.rmtree(folders[1])
    assert imported_source(trained) is None


def test_a_damaged_config_of_ours_is_told_in_one_line(tmp_path):
    model = dataclasses.replace(MODEL, memory=InfiniConfig())
    file = written(tmp_path / "out", model, initial(model)) / "config.json"
    whole = json.loads(file.read_text())

    def said(changed) -> str:
        file.write_text(json.dumps(whole | {"infini_jax": whole["infini_jax"] | changed}))
        with pytest.raises(ConfigError) as error:
            load(tmp_path / "out")
        return str(error.value)

    assert said({"format": 2}).startswith("infini_jax.format: 2 is not 1, which this version reads; update infini_jax")
    run = whole["infini_jax"]["run"]
    assert said({"run": run | {"model": run["model"] | {"depth": 3}}}).startswith(
        "config.model.depth: there is no such setting"
    )
    assert said({"run": []}).startswith("infini_jax.run: ")
    narrow = said({"run": run | {"model": run["model"] | {"d_model": 24}}})
    assert "has the shape (20, 12), and the model's settings say (20, 24)" in narrow
    fewer = said({"run": run | {"model": run["model"] | {"key_taps": 2}}})
    assert "tensors are missing" in fewer


def test_a_gguf_comes_out_as_safetensors(tmp_path):
    """Rows of q and k that a GGUF of LLaMA has as neighbors are halves there, as the family has them."""
    tensors = tensors_for(LLAMA)
    _, wanted = load(write_model(tmp_path / "hf", LLAMA, tensors))
    model, params = load(gguf_of_llama(tmp_path / "tiny.gguf", LLAMA, tensors))
    written(tmp_path / "out", model, params)
    again, found = load(tmp_path / "out")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    for name, tensor in open_weights(tmp_path / "out").tensors.items():
        np.testing.assert_array_equal(tensor.read(), tensors[name], strict=True)
