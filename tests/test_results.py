"""Results in a Python shell: tables of what lies in folders, every column documented, figures of what the tables hold."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import ConfigError
from infini_jax.memory.infini import InfiniConfig
from infini_jax.records.rows import read_rows
from infini_jax.records.training_log import read_metrics
from infini_jax.results import gates, is_chosen, load, loss_against_bytes, recall_against_bytes, tasks, training_curves
from infini_jax.results.columns import COLUMNS, markdown, names_of
from infini_jax.results.figures import found_of
from infini_jax.training.execute import execute
from tests.support.made_results import fill, made_rows, metric_lines, row_of, write_all_measures

ROOT = Path(__file__).parents[1]
LIBRARIES = ("pandas", "polars")


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """A folder of two studies whose runs have the same names."""
    folder, rows = tmp_path_factory.mktemp("results"), made_rows()
    for name, part in (("first", rows), ("second", rows[:6])):
        fill(folder / name, part)
        write_all_measures(folder / name, part)
    return folder


def lines_of(table) -> list[dict]:
    """Of either library."""
    return table.to_dicts() if hasattr(table, "to_dicts") else table.to_dict("records")


def drawn(figure) -> list[tuple[float, float]]:
    """The places of all markers."""
    clouds = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == "None"]
    return sorted((x, y) for line in clouds for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))


def refused(path, **more) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_hold_every_row_metric_and_figure_of_a_study(studies, library):
    found, rows = load(studies / "first", library), read_rows(studies / "first" / "results.parquet")
    assert type(found.runs).__module__.startswith(library)
    assert [line["run"] for line in lines_of(found.runs)] == [row.run for row in rows]
    assert [line["loss"] for line in lines_of(found.runs)] == [row.loss for row in rows]
    curve = [line for line in lines_of(found.curves) if (line["run"], line["metric"]) == (rows[0].run, "loss")]
    assert [(line["step"], line["tokens"], line["value"]) for line in curve] == [
        (line["step"], line["tokens"], line["loss"]) for line in metric_lines(rows[0])
    ]
    gate = [line for line in lines_of(found.measures) if line["eval"] == "gates"]
    assert {tuple(json.loads(line["labels"])) for line in gate} == {("head", "layer")}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("table", ["runs", "curves", "measures"])
def test_every_column_is_described_and_nothing_else(studies, table, library):
    found = load(studies, library)
    assert list(getattr(found, table).columns) == names_of(table)
    described = [line for line in lines_of(found.columns) if line["table"] == table]
    assert all(line["meaning"] for line in described)
    assert len({line["name"] for line in described}) == len(described)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on documents with gates and all controls, which writes all kinds of lines, and its gates evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    model = ModelConfig(vocab=256, layers=1, d_model=16, heads=1, segment=16, memory=InfiniConfig())
    train = TrainConfig(batch=2, sequence=32, evaluation_steps=1, log_every=1)
    run = RunConfig(name="one", model=model, data=StdlibConfig(), train=train, budget=Budget("steps", 2))
    run = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, documents=2, tokens=64))
    execute(run, folder / "one", study="")
    main(["evaluate", str(folder / "one"), "--task", "gates"])
    return folder


def test_every_metric_that_a_run_logs_is_described(trained):
    logged = {name for line in read_metrics(trained / "one" / "metrics.jsonl") for name in line} - {"step", "tokens"}
    metrics = [column for column in COLUMNS if column.table == "metrics"]
    assert {"gate_mean", "validation_loss_another", "validation_loss_from_32"} <= logged
    assert [name for name in logged if not any(column.fits(name) for column in metrics)] == []
    assert set(load(trained / "one").curves.metric) == logged


def test_a_run_alone_and_its_evaluation_load_by_its_folder(trained):
    found = load(trained)
    assert list(found.runs.run) == list(dict.fromkeys(found.measures.run)) == ["one"]
    assert [y for _, y in drawn(gates(found))] == list(found.measures.value)


def test_a_run_in_a_folder_of_another_name_keeps_its_curves(trained, tmp_path):
    shutil.copytree(trained / "one", tmp_path / "renamed")
    for path in (tmp_path, tmp_path / "renamed"):
        found = load(path)
        assert list(found.runs.run) == list(dict.fromkeys(found.curves.run)) == ["one"]
        assert training_curves(found, "loss").axes[0].lines


def test_the_documentation_has_the_table_of_columns():
    assert markdown() in (ROOT / "docs" / "results.md").read_text()


def test_a_folder_of_studies_is_all_of_them_and_their_runs_stay_apart(studies):
    found = load(studies)
    assert set(found.runs.folder) == {str(studies / "first"), str(studies / "second")}
    assert len(found.runs) == len(load([studies / "first", studies / "second"]).runs)
    assert len(drawn(loss_against_bytes(load(studies), task_with(found, "mqar")))) == len(made_rows()) // 2 + 6


def task_with(found, name: str) -> str:
    return next(task for task in tasks(found) if task.startswith(name))


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_small_tables_of_the_documentation_load_without_runs(library):
    found = load(ROOT / "docs" / "results" / "mqar_pareto", library)
    assert {line["task"] for line in lines_of(found.runs)} == {"mqar"}
    assert len(found.curves) == 0
    assert all(0 < y <= 1 for _, y in drawn(recall_against_bytes(found)))
    assert drawn(gates(load(ROOT / "docs" / "results" / "gates", library)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_figures_show_the_figures_of_the_tables(studies, library):
    found = load(studies / "first", library)
    rows = read_rows(studies / "first" / "results.parquet")
    for figure, task, column in ((recall_against_bytes, "mqar", "accuracy"), (loss_against_bytes, "python_stdlib", "loss")):
        shown = sorted(y for _, y in drawn(figure(found, task)))
        assert shown == sorted(getattr(row, column) for row in rows if row.task == task)
    (line,) = (line for line in training_curves(found, "gate_mean", "mqar").axes[1].lines[:1])
    assert list(line.get_ydata()) == [one["gate_mean"] for one in metric_lines(first_of(rows, "infini", "delta"))]
    assert {x for x, _ in drawn(gates(found))} == {0, 1}  # layers


def first_of(rows, mechanism: str, variant: str):
    return min(
        (row for row in rows if (row.task, row.mechanism, row.variant) == ("mqar", mechanism, variant)),
        key=lambda row: (row.memory_bytes, row.seed),
    )


def test_a_selection_of_runs_is_drawn_alone(studies):
    found = load(studies / "first")
    few = dataclasses.replace(found, runs=found.runs[(found.runs.mechanism == "landmark") & (found.runs.seed == 1)])
    assert len(drawn(recall_against_bytes(few, "mqar"))) == 3


def test_of_learning_rates_that_were_tried_the_chosen_one_is_drawn(tmp_path):
    good, bad = row_of("mqar", "local", "", 4096, 0), row_of("mqar", "local", "", 4096, 0)
    fill(
        tmp_path,
        [dataclasses.replace(good, run="a", loss=1.0, learning_rate=1e-3), dataclasses.replace(bad, run="b", loss=2.0)],
    )
    found = load(tmp_path)
    assert [y for _, y in drawn(loss_against_bytes(found))] == [1.0]
    assert list(found.runs[is_chosen(found)].run) == ["a"]
    assert lines_of(load(tmp_path, "polars").runs.filter(is_chosen(found)))[0]["run"] == "a"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_score_that_is_not_a_number_is_left_out_and_what_is_missing_stays_missing(tmp_path, library):
    good, bad = row_of("mqar", "local", "", 4096, 0), row_of("mqar", "local", "", 15872, 0)
    fill(tmp_path, [good, dataclasses.replace(bad, accuracy=math.nan)])
    found = load(tmp_path, library)
    assert [y for _, y in drawn(recall_against_bytes(found))] == [good.accuracy]
    assert found_of(found).rows[0] == good  # test_loss and gates are None, not NaN


def test_a_task_or_metric_that_must_be_named_is_asked_for(studies):
    found = load(studies / "first")
    with pytest.raises(ConfigError, match="task: there are 2: mqar; python_stdlib; name one of them"):
        recall_against_bytes(found)
    with pytest.raises(ConfigError, match="metric: 'los' is not known; did you mean 'loss'"):
        training_curves(found, "los", "mqar")
    with pytest.raises(ConfigError, match="gates: none were measured"):
        gates(dataclasses.replace(found, measures=found.measures[:0]))


def test_a_study_that_is_not_finished_has_the_rows_and_curves_that_are_there(tmp_path):
    rows = made_rows()[:2]
    for row in rows:
        fill(tmp_path / row.run, [row])
        (tmp_path / "study" / "runs").mkdir(parents=True, exist_ok=True)
        shutil.copytree(tmp_path / row.run / "runs" / row.run, tmp_path / "study" / "runs" / row.run)
    shutil.copy(tmp_path / rows[0].run / "results.parquet", tmp_path / "study" / "runs" / rows[0].run / "row.parquet")
    (tmp_path / "study" / "study.json").write_text("{}")
    with (tmp_path / "study" / "runs" / rows[1].run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 100000, "lo')  # being written
    found = load(tmp_path / "study")
    assert list(found.runs.run) == [rows[0].run]
    assert set(found.curves.run) == {row.run for row in rows}
    assert found.curves.step.max() < 100000


def test_what_is_missing_or_damaged_gets_one_line(tmp_path):
    assert refused(tmp_path / "none").startswith(f"path: there is no folder {tmp_path / 'none'}; name a study's folder")
    assert refused(tmp_path).startswith(f"path: {tmp_path} holds no results; name a study's folder")
    assert refused(tmp_path, library="panda") == "library: 'panda' is not known; choose pandas or polars"
    row = made_rows()[0]
    fill(tmp_path / "study", [row])
    table, run = tmp_path / "study" / "results.parquet", tmp_path / "study" / "runs" / row.run
    whole = table.read_bytes()
    table.write_bytes(whole[:-20])
    assert f"path: {table} is damaged or no Parquet; make it again with" in refused(tmp_path)
    table.write_bytes(whole[:4] + bytes(len(whole) - 8) + whole[-4:])
    assert f"path: {table} is damaged or no Parquet; make it again with" in refused(tmp_path)
    table.write_bytes(whole[:4] + bytes(400) + whole[404:])
    assert f"path: {table} is damaged or no Parquet; make it again with" in refused(tmp_path)
    table.write_bytes(whole)
    log = run / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2, "loss\n{"step": 3}\n')
    assert refused(tmp_path) == f"metrics: line 2 of {log} is damaged; take the line out, or train the run again"
    log.write_bytes(b'{"step": 1, "\xff": 2}\n')
    assert refused(tmp_path) == f"metrics: line 1 of {log} is damaged; take the line out, or train the run again"
    log.unlink()
    (run / "config.json").write_text("{")
    assert refused(tmp_path).startswith(f"path: {run / 'config.json'} is damaged (")


def test_a_library_that_is_missing_is_told_with_what_installs_it(studies, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused(studies, library="polars") == "library: polars is not installed; pip install 'infini_jax[explore]'"
