"""The experiment that gives one checkpoint every mechanism: its points at every scale, and what it tells is missing.

A model of random numbers stands in for SmolLM2: with as many layers and heads of the same size, so that memories have the same
bytes, and a narrow residual stream.
"""

import dataclasses
import functools
import re
import shutil

import pytest

from experiments import adapt
from infini_jax.config import ModelConfig, RunConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.prepared import MANIFEST_FILE, prepared_folder, read_manifest
from infini_jax.errors import ConfigError
from infini_jax.files import write_at_once
from infini_jax.memory import MECHANISMS
from infini_jax.memory.full import FullConfig
from infini_jax.model.parts import parts_of
from infini_jax.records.folder import MEASURES_FOLDER, RunFolder
from infini_jax.study import comparison
from infini_jax.study.experiment import SCALES, load_experiment
from infini_jax.study.ladder import is_same_size
from infini_jax.study.spending import spending_of
from infini_jax.study.study import Study
from infini_jax.study.workers import do_all
from tests.support.corpora import write_stories
from tests.support.marks import slow_but
from tests.support.registering import without_stream

STAND_IN = ModelConfig(
    FullConfig(slots=8192),
    vocab=256,
    layers=30,
    d_model=12,
    heads=9,
    kv_heads=3,
    key_dim=64,
    value_dim=64,
    mlp_dim=12,
    segment=512,
)
at_all_scales = pytest.mark.parametrize("scale", slow_but(("smoke", "cpu"), SCALES))  # shapes of 28 models are found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model in results/models/smollm2, and a data folder with code and books in its tokens: bytes."""
    folder = tmp_path_factory.mktemp("adapt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("INFINI_JAX_DATA", str(folder / "data"))
        adapt.write_random(STAND_IN, folder / "results" / "models" / "smollm2")
        texts = {
            f"{split}/{number}.txt": f"text {number} of {split} " * 4000
            for split in ("train", "validation", "test")
            for number in range(3)
        }
        stories = write_stories(folder / "texts", texts)
        prepare("text_folder", TokenizerSettings(), "books", stories, jobs=1)
        shutil.copytree(prepared_folder("books"), prepared_folder("code"))
        manifest = dataclasses.replace(read_manifest(prepared_folder("code")), corpus="python_stdlib")
        write_at_once(manifest.to_json(), prepared_folder("code") / MANIFEST_FILE)
        yield folder


@pytest.fixture(scope="module")
def built(place):
    """A function: scale -> study, made with the stand-in."""
    return functools.cache(functools.partial(load_experiment, "adapt"))


def runs_of(study: Study) -> list[RunConfig]:
    return [run for run in study.runs if isinstance(run, RunConfig)]


def memories_of(study: Study) -> list[RunConfig]:
    return [run for run in runs_of(study) if run.mechanism not in ("local", "full")]


@at_all_scales
def test_it_says_what_it_asks_and_costs_and_all_runs_begin_at_one_checkpoint_and_train_factors(built, scale):
    study = built(scale)
    assert all(f"\n{part}:" in adapt.__doc__ for part in ("Command", "Cost", "Expected"))
    assert len({run.origin.digest for run in runs_of(study)}) == 1
    assert {run.train.trains for run in runs_of(study)} == {"lora"}
    assert all(study.evaluations_of(run) for run in runs_of(study))
    assert max(len(run.name) for run in study.jobs_now({})) <= 60
    assert load_experiment("adapt", scale) == study  # made again, it is the same: killed studies go on


@at_all_scales
def test_a_memory_is_attached_in_both_ways_at_the_same_bytes(built, scale):
    every, least = memories_of(built(scale)), adapt.SCALES[scale].sizes[0]
    points = {
        how: {
            (run.mechanism, run.variant.removesuffix(how), run.name.split("-")[-2])
            for run in every
            if run.variant.endswith(how)
        }
        for how in ("add", "replace")
    }
    assert points["add"] == points["replace"]
    found, several = {run.mechanism for run in every}, {"log_linear", "memory_caching"}  # matrices, which may not fit
    assert scale == "cpu" or found | several == set(without_stream()) - {"local", "full"}
    for run in every:
        asked = re.search(r"-(\d+)k-s\d+$", run.name)
        size = next(one for one in adapt.SCALES[scale].sizes if one >> 10 == int(asked[1]))
        assert run.memory_bytes <= size
        assert is_same_size(run.memory_bytes, size), run.name
        assert size == least or MECHANISMS[run.mechanism].holds != "matrix"


@at_all_scales
def test_controls_train_without_a_memory_and_the_window_is_that_beside_every_memory(built, scale):
    study, found = built(scale), adapt.SCALES[scale]
    floor, ceiling = (next(run for run in runs_of(study) if run.mechanism == name) for name in ("local", "full"))
    assert floor.model.memory.window == 2 * found.segment
    assert floor.model.memory.window < ceiling.model.memory.slots <= STAND_IN.memory.slots
    assert {run.model.neighborhood_bytes for run in memories_of(study) if "add" in run.variant} == {floor.memory_bytes}
    assert parts_of(floor).counts[0] == parts_of(ceiling).counts[0]
    assert min(parts_of(run).counts[0] for run in memories_of(study)) >= parts_of(floor).counts[0]


@at_all_scales
def test_passkeys_are_asked_to_eight_times_the_training_length_and_books_read_where_an_accelerator_is(built, scale):
    evaluations, tokens = built(scale).evaluations, adapt.SCALES[scale].train.sequence
    (asked,) = (one for one in evaluations if one.name == "passkey")
    assert max(asked.lengths) == 8 * tokens
    assert [one.data for one in evaluations if one.name == "perplexity"] == ["", "books"][: 1 + (scale == "accelerator")]


def test_smoke_takes_few_steps(built):
    assert {spending_of(built("smoke"), run).steps for run in runs_of(built("smoke"))} == {comparison.SMOKE_STEPS}


@pytest.mark.slow
def test_an_accelerator_climbs_three_rungs_with_five_seeds(built):
    study = built("accelerator")
    assert (len(study.ladder.rungs), len(study.rates.start)) == (3, 3)
    assert {run.seed for run in runs_of(study)} == set(range(5))


def test_a_model_or_corpus_that_is_missing_is_told_with_the_command_that_makes_it(place, tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    for scale in ("cpu", "accelerator"):
        with pytest.raises(ConfigError, match=r"^data: .*; make it: infini-jax corpus prepare python_stdlib --tokenizer json"):
            adapt.study(scale)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^from: there is no model in results/models/smollm2; .*: infini-jax import smollm2$"
    ):
        adapt.study("cpu")


@pytest.mark.slow  # two programs are compiled, and five that read
def test_smoke_runs_to_its_end_from_a_model_that_it_makes(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    study = load_experiment("adapt", "smoke")
    points = ("memorizing-replace-1k", "infini-linear-add-1k")
    chosen = tuple(run for run in runs_of(study) if any(f"-{point}-s0" in run.name for point in points))
    assert len(chosen) == len(points)
    do_all(study.desk(tmp_path / "study"), chosen)
    for run in chosen:
        folder = RunFolder(tmp_path / "study" / "runs" / run.name)
        assert {file.name.partition("-")[0] for file in (folder.path / MEASURES_FOLDER).glob("*.parquet")} == {
            "perplexity",
            "gains",
            "passkey",
        }
