"""Every experiment builds at every scale without compiling anything, and holds equal what it says it does."""

import functools
import re
import sys
from pathlib import Path

import pytest

from experiments import (
    compressive_scaling,
    head_to_head,
    initial_values,
    language_modelling,
    mqar_pareto,
    passkey_novelty,
    sorting,
    window_vs_memory,
)
from infini_jax.cli.main import main
from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import RunConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.local import LocalConfig
from infini_jax.model.balance import gap
from infini_jax.study import comparison
from infini_jax.study.experiment import SCALES, load_experiment
from infini_jax.study.ladder import is_same_size
from infini_jax.study.spending import spending_of
from infini_jax.study.study import Study
from infini_jax.study.trials import rate_text
from tests.support.corpora import write_stories
from tests.support.registering import without_stream

EXPERIMENTS = (
    "mqar_pareto",
    "passkey_novelty",
    "sorting",
    "language_modelling",
    "window_vs_memory",
    "gates",
    "head_to_head",
    "echo",
    "initial_values",
    "infini_factors",
    "zoology_mqar",
    "compressive_scaling",
)
of_recall = pytest.mark.parametrize("name", ["mqar_pareto", "passkey_novelty", "sorting", "head_to_head"])
at_all_scales = pytest.mark.parametrize("scale", SCALES)


@functools.cache
def built(name: str, scale: str) -> Study:
    """Making it checks that names are unique, budgets pay for a step and evaluations suit their runs."""
    return load_experiment(name, scale)


def runs_of(study: Study) -> list[RunConfig]:
    return [job for job in study.runs if isinstance(job, RunConfig)]


@pytest.mark.parametrize("name", EXPERIMENTS)
@at_all_scales
def test_an_experiment_says_what_it_asks_and_costs_and_every_run_is_measured(name, scale):
    study = built(name, scale)
    text = sys.modules[f"infini_jax.experiments.{name}"].__doc__
    assert all(f"\n{part}:" in text for part in ("Command", "Cost", "Expected"))
    assert f"infini-jax study {name} --scale cpu" in text
    assert study.label == f"{name}-{scale}"
    assert all(study.evaluations_of(run) for run in runs_of(study))
    assert max(len(run.name) for run in study.runs) <= 60


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_takes_few_steps(name):
    steps = {spending_of(built(name, "smoke"), run).steps for run in runs_of(built(name, "smoke"))}
    assert steps == {comparison.SMOKE_STEPS}


@of_recall
@at_all_scales
def test_every_mechanism_stands_between_a_floor_and_a_ceiling(name, scale):
    for task in {run.task for run in runs_of(built(name, scale))}:
        found = {run.mechanism for run in runs_of(built(name, scale)) if run.task == task}
        assert found == set(without_stream() if task == "capacity" else MECHANISMS)


@at_all_scales
def test_language_modelling_has_floor_and_ceiling_and_the_papers_mechanisms(scale, monkeypatch, tmp_path):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    found = {run.mechanism for run in runs_of(language_modelling.study(scale))}
    assert {"local", "full", "infini", "memorizing", "landmark"} <= found
    assert scale == "accelerator" or found == set(MECHANISMS)


def test_a_corpus_that_is_not_here_is_said_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    study = language_modelling.study("accelerator")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(corpus in line for corpus in ("hol_light", "metamath", "text_folder"))
    assert line.strip().endswith(dict(study.held_equal)["corpora that are not here"])
    language_modelling.study("cpu")
    assert capsys.readouterr().err == ""


def test_books_are_read_where_they_are_prepared_by_all_and_by_some_with_three_seeds(monkeypatch, tmp_path):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^data.name: no prepared corpus 'books' in \$INFINI_JAX_DATA"):
        load_experiment("books").evaluations_of(load_experiment("books").runs[0])
    texts = {f"{split}/{split}.txt": f"a book of {split} " * 400 for split in ("train", "validation", "test")}
    folder = str(write_stories(tmp_path / "texts", texts))
    main(["corpus", "prepare", "text_folder", "--path", folder, "--name", "books", "--jobs", "1"])
    runs = runs_of(load_experiment("books"))
    assert {run.mechanism for run in runs if not run.seed} == set(MECHANISMS)
    assert {(run.mechanism, run.variant) for run in runs if run.seed} == {
        ("local", ""),
        ("transformer_xl", ""),
        ("landmark", ""),
        ("infini", "linear"),
    }
    assert {(run.seed, run.train.learning_rate, run.budget.amount) for run in runs} == {(s, 1e-2, 1e12) for s in range(3)}


@pytest.mark.parametrize("module", [mqar_pareto, passkey_novelty, sorting, head_to_head])
@at_all_scales
def test_the_floor_sees_none_of_what_is_asked_and_the_ceiling_all_of_it(module, scale):
    """Windows add up over layers; the ceiling holds the longest text that is asked about."""
    found = module.SCALES[scale]
    found = found.comparison if isinstance(found, head_to_head.Contest) else found
    reach = found.base.model.layers * (found.window - 1)
    study = built(module.__name__.removeprefix("experiments."), scale)
    for run in runs_of(study):
        tokens = run.train.sequence
        if run.mechanism == "local":
            assert run.model.layers * (run.model.memory.window - 1) == reach
        if run.mechanism == "local" and isinstance(run.data, MqarConfig):
            assert run.data.gap(tokens) >= reach
        if run.mechanism == "full" and run.task not in ("python_stdlib",):
            asked = [length for one in study.evaluations_of(run) for length in one.lengths or (tokens,)]
            assert run.model.memory.slots >= max(asked) - run.model.segment


@pytest.mark.parametrize("name", EXPERIMENTS)
@at_all_scales
def test_learning_rates_are_chosen_from_three_at_least_but_for_the_head_to_head_and_smoke(name, scale):
    study = built(name, scale)
    rates = set(study.rates.start) if study.rates else {run.train.learning_rate for run in runs_of(study)}
    assert len(rates) == 1 if scale == "smoke" or name == "head_to_head" else len(rates) >= 3


CLIMBING = ("capacity_law", "mqar_pareto", "passkey_novelty", "sorting", "language_modelling", "compressive_scaling")


@pytest.mark.parametrize("name", CLIMBING)
def test_what_two_cores_find_climbs_three_rungs_with_five_seeds_and_grids_that_grow(name):
    study = built(name, "cpu")
    assert len(study.ladder.rungs) == 3
    assert study.rates.growths == 2
    assert {run.seed for run in runs_of(study)} <= set(range(5))
    assert len({run.seed for run in study.runs}) == 5


@at_all_scales
def test_initial_values_are_tried_in_every_combination_with_three_seeds(scale):
    runs, seeds = runs_of(built("initial_values", scale)), 1 if scale == "smoke" else 3
    for task, sweep in zip(("mqar", "python_stdlib"), initial_values.SCALES[scale], strict=True):
        found = [run for run in runs if run.task == task]
        values = {(run.model.memory, run.model.key_taps_own) for run in found if run.mechanism in ("infini", "gated_delta")}
        assert len(values) == len(sweep.own) * (len(sweep.horizons) + len(sweep.gates) * len(sweep.scales))
        assert len(found) == (len(values) + 2) * seeds  # at each of the rates that the study tries
        assert {run.seed for run in found} == set(range(seeds))
        assert {"local", "full"} < {run.mechanism for run in found}


@at_all_scales
def test_compressive_memories_are_taken_to_the_same_bytes_along_two_axes_each(scale):
    """The key dimension or entries in the base model, and the width of the model; the floor reaches as far as the caches."""
    scaling, every = compressive_scaling.SCALES[scale], runs_of(built("compressive_scaling", scale))
    assert {run.task for run in every} == {"mqar", "passkey", "haystack", "python_stdlib"}
    for base in scaling.tasks:
        of_task = [run for run in every if run.task == base.task]
        assert {run.mechanism for run in of_task} == {"infini", "gated_delta", "compressive", "local", "full"}
        assert len(of_task) == len(scaling.sizes) * (2 * 4 + 2) * scaling.seeds
        axes: dict[tuple, dict[str, list[RunConfig]]] = {}
        for run in (run for run in of_task if run.mechanism not in ("local", "full") and not run.seed):
            *update, axis = run.variant.split("-")
            axes.setdefault((run.mechanism, *update), {}).setdefault(axis, []).append(run)
            assert run.model.memory.local == "cache"
            assert (run.model.d_model == base.model.d_model) == (axis != "d_model")
        assert len(axes) == 4
        for found in axes.values():
            own, wide = (found[axis] for axis in sorted(found, key="d_model".__eq__))
            assert len(own) == len(wide) == len(scaling.sizes)
            assert all(is_same_size(a.memory_bytes, b.memory_bytes) for a, b in zip(own, wide, strict=True))
        floors = [run for run in of_task if run.mechanism == "local"]
        assert {run.model.d_model for run in floors} == {run.model.d_model for run in axes["infini", "linear"]["d_model"]}
        assert {run.model.memory.window for run in floors} == {2 * base.model.segment}
        if isinstance(base.data, MqarConfig):
            assert base.data.gap(base.train.sequence) >= base.model.layers * (2 * base.model.segment - 1)


def test_blimp_is_asked_of_books_where_both_are_here(monkeypatch, tmp_path):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    assert "blimp" not in {one.name for one in compressive_scaling.asked("accelerator")}
    assert compressive_scaling.text_of("accelerator") == StdlibConfig()
    (tmp_path / "blimp").mkdir()
    assert "blimp" in {one.name for one in compressive_scaling.asked("accelerator")}
    assert "blimp" not in {one.name for one in compressive_scaling.asked("cpu")}
    texts = {f"{split}/{split}.txt": f"a book of {split} " * 400 for split in ("train", "validation", "test")}
    folder = str(write_stories(tmp_path / "texts", texts))
    main(["corpus", "prepare", "text_folder", "--path", folder, "--name", "books", "--jobs", "1"])
    assert compressive_scaling.text_of("accelerator").name == "books"
    assert compressive_scaling.text_of("cpu") == StdlibConfig()


@at_all_scales
def test_window_and_memory_share_the_same_flops_of_a_token(scale):
    split = window_vs_memory.SCALES[scale]
    runs = runs_of(built("window_vs_memory", scale))
    assert all(0 <= gap(run, split.flops) < 0.01 for run in runs)
    by_size = {size: [run for run in runs if f"-{size // 1024}k-" in run.name] for size in split.sizes}
    assert all(size / 2 < run.memory_bytes <= size for size, found in by_size.items() for run in found)
    assert any(isinstance(run.model.memory, LocalConfig) for run in runs)


def test_a_mechanism_of_the_registry_is_compared_without_another_change(monkeypatch):
    class Toy(MECHANISMS["transformer_xl"]):
        """Transformer-XL under another name and settings class."""

        class Config(MECHANISMS["transformer_xl"].Config):
            pass

    monkeypatch.setitem(MECHANISMS, "toy", Toy)
    study = head_to_head.study("smoke")
    tasks = {run.task for run in study.runs}
    assert {run.task for run in study.runs if run.mechanism == "toy"} == tasks
    assert any(isinstance(run, CapacityRun) for run in study.runs)
    assert len(tasks) == 6


def test_the_documentation_lists_every_experiment():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "studies.md").read_text(encoding="utf-8")
    table = page[page.index("| experiment | asks |") :].split("\n\n")[0]
    listed = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert sorted(listed) == sorted(file.stem for file in (root / "experiments").glob("[!_]*.py"))


def test_names_of_runs_tell_mechanism_size_and_rate():
    found = comparison.at_bytes(
        mqar_pareto.SCALES["cpu"].base, *comparison.memories(16, "gated_delta")[0], 16 << 10, "value_dim"
    )
    assert found.name == "mqar-gated_delta-value_dim-16k"
    assert found.memory_bytes <= 16 << 10
    assert f"{found.name}-lr{rate_text(3e-3)}".endswith("16k-lr3e-3")
