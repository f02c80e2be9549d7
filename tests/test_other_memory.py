"""A run read with another memory than it was trained with: the figures of that memory, told and recorded; or refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.cli.memory_options import MemoryOptions, chosen_memory
from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.infinite_former import InfiniteFormerConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.records.measures import read_measures
from infini_jax.results import load
from infini_jax.training.trained import Trained, read_with
from tests.support.commands import told
from tests.support.saved import saved_run

MODEL = ModelConfig(memory=LocalConfig(window=8), vocab=256, layers=1, d_model=16, segment=16)
RUN = RunConfig(name="small", model=MODEL, data=PasskeyConfig(tokenizer="bytes"), train=TrainConfig(batch=1, sequence=256))
ASKED = ["--task", "passkey", "--lengths", "256", "--depths", "0.5", "--examples", "1", "--rows", "1"]
SAID = "memory: trained with window 8 (900 B per sequence), used with window 64 (7.9 KiB)\n"


def with_memory(memory, **changes):
    return dataclasses.replace(RUN, **changes, model=dataclasses.replace(MODEL, memory=memory))


LARGE = with_memory(LocalConfig(window=64), name="large")
OWN = {"kind": "local", "positions": "rotary", "layers": None, "local": "own"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(small, large): runs with the same parameters, trained with windows of 8 and 64."""
    top = tmp_path_factory.mktemp("other")
    return saved_run(RUN, top / "small"), saved_run(LARGE, top / "large")


def figures(file):
    return {(one.metric, one.labels["depth"]): one.value for _, one in read_measures([file])}


def test_evaluate_reads_with_the_larger_memory_and_says_so(folders, capsys):
    small, large = folders
    main(["evaluate", str(small), *ASKED, "--memory.window", "64"])
    assert capsys.readouterr().err.startswith(SAID)
    main(["evaluate", str(large), *ASKED])
    assert "memory:" not in capsys.readouterr().err
    other = small / "measures" / "passkey-window-64.parquet"
    assert figures(other) == figures(large / "measures" / "passkey.parquet")
    assert all(
        one.labels["memory.window"] == "64" and one.labels["memory_bytes"] == LARGE.memory_bytes
        for _, one in read_measures([other])
    )
    record = json.loads((small / "evaluation-passkey-window-64.json").read_text())
    assert record["memory"] == {
        "trained": {**OWN, "window": 8, "bytes": RUN.memory_bytes},
        "used": {**OWN, "window": 64, "bytes": LARGE.memory_bytes},
    }
    assert (record["run"], record["fingerprint"]) == ("small", RUN.fingerprint())
    assert set(load(small.parent).measures.run) == {"small", "large"}


@pytest.mark.slow
def test_generate_reads_with_the_larger_memory(folders, capsys):
    small, large = folders
    words = ["--prompt", "the pass key is 12345. " * 4, "--tokens", "8", "--temperature", "0"]
    texts = []
    for folder, more in ((small, ["--memory.window", "64"]), (large, []), (small, [])):
        main(["generate", str(folder), *words, *more])
        said = capsys.readouterr()
        assert (SAID in said.err) == bool(more)
        texts.append(said.out)
    assert texts[0] == texts[1]


def test_parameters_follow_layers_that_no_longer_carry_the_memory(tmp_path):
    """A window in one of two layers makes two stacks of one; the parameters of each layer are the same."""
    run = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, layers=2))
    trained = Trained.open(saved_run(run, tmp_path / "two"))
    found = trained.with_memory(LocalConfig(layers=(1,), window=8))
    for layer in range(2):
        jax.tree.map(
            lambda new, old, layer=layer: np.testing.assert_array_equal(new[0], old[layer]),
            found.params[f"groups_{layer}"],
            trained.params["groups_0"],
        )
    assert trained.with_memory(LocalConfig(window=64)).params is trained.params


@pytest.mark.parametrize(
    ("trained", "used", "said"),
    [
        (InfiniteFormerConfig(basis=16), InfiniteFormerConfig(basis=32), r"memory\.basis: 32 does not fit .*; give 16"),
        (
            TransformerXLConfig(),
            TransformerXLConfig(positions="t5"),
            r"memory: with these settings small has other parameters",
        ),
        (MemorizingConfig(), MemorizingConfig(layers=()), r"memory\.layers: no layer carries the memory"),
        (LocalConfig(window=8), LocalConfig(window=0), r"memory\.window: "),
    ],
)
def test_a_memory_that_decides_parameters_is_refused_in_one_line(trained, used, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        read_with(with_memory(trained), used)


@pytest.mark.parametrize("name", ["local", "transformer_xl"])
def test_memories_of_tokens_grow_without_new_parameters(name):
    memory = MECHANISMS[name].Config()
    size = {"local": "window"}.get(name, "slots")
    run = with_memory(memory)
    assert read_with(run, dataclasses.replace(memory, **{size: 4 * getattr(memory, size)})).memory_bytes > run.memory_bytes


def test_options_are_of_the_runs_own_mechanism(folders, capsys):
    small = str(folders[0])
    said = told(capsys, ["generate", small, "--prompt", "a", "--memory.slots", "64"], 2)
    assert said == "memory.slots: local has no such option; leave it out: local has layers, local, positions, window"
    said = told(capsys, ["evaluate", small, "--task", "passkey", "--memory.window", "x"], 2)
    assert said == "memory.window: 'x' is not a number; give digits, such as 4096, 4k or 1m"
    options = dataclasses.replace(MemoryOptions(), layers=("0,0",), window="4k")
    assert chosen_memory(RUN, options) == LocalConfig(layers=(0, 0), window=4096)


def test_an_empty_value_is_not_taken_for_none():
    with pytest.raises(ConfigError, match=r"^memory.window: it is empty; give digits"):
        chosen_memory(RUN, dataclasses.replace(MemoryOptions(), window=""))
    assert chosen_memory(RUN, MemoryOptions()) == RUN.model.memory
