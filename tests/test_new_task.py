"""A task that nobody knew: one file, one row in the registry, and the report has its chance line and its checks."""

import dataclasses
import io
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data import SOURCES
from infini_jax.data.examples import ExampleConfig, example_of
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.evals.scores import share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row, write_rows
from infini_jax.report import StudySource, terminal_table, write_report
from infini_jax.report.checks import unchecked, warnings
from infini_jax.report.figures.recall import pareto
from infini_jax.report.found import Found, find
from infini_jax.report.looks import styles_of
from infini_jax.report.sections import task_view
from infini_jax.study.study import Study, write_tables
from infini_jax.study.workers import do
from infini_jax.training.execute import execute
from tests.support.made_results import SIZES, fill, row_of, share

WORD, SYMBOLS, TOKENS = 4, 18, 64
CHANCE = 1 / 16


@dataclasses.dataclass(frozen=True)
class Parrot(ExampleConfig):
    """A word, silence, and the word again."""

    title = "the parrot"
    length: int = WORD
    symbols: int = SYMBOLS

    @property
    def vocab(self):
        return self.symbols

    def check(self, tokens):
        pass

    def chance(self):
        return {"accuracy": 1 / (self.symbols - 2)}

    def distance(self, tokens):
        return tokens - self.length

    def example(self, random, tokens):
        word = random.integers(2, self.symbols, self.length)
        return example_of(np.concatenate([word, np.zeros(tokens - 2 * self.length, np.int32), [1]]), word)


@dataclasses.dataclass(frozen=True)
class ParrotEvaluation(ExampleEvaluation):
    """By the number of symbols."""

    name: ClassVar[str] = "parrot"
    Config: ClassVar[type] = Parrot
    grid = ("symbols",)
    symbols: tuple[int, ...] = (10, SYMBOLS)
    lengths: tuple[int, ...] = ()
    examples: int = 8
    seed: int = 0
    rows: int = 8

    def cells(self, run):
        labels = [{"symbols": n, "length": length} for length in lengths_or(self.lengths, run) for n in self.symbols]
        return [Cell(self.own(run.data).with_labels(one), one["length"], one) for one in labels]

    def figures(self, run, cell, readings):
        return [share_measure(self.name, "accuracy", [reading.hits_N for reading in readings], cell.labels)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SOURCES, "parrot", Parrot)


def run_of(mechanism: str, window: int = 8, **data) -> RunConfig:
    memory = {"full": FullConfig(slots=TOKENS), "local": LocalConfig(window=window)}[mechanism]
    model = ModelConfig(memory=memory, vocab=SYMBOLS, layers=1, d_model=16, heads=1, mlp_dim=32, segment=8)
    train = TrainConfig(batch=2, sequence=TOKENS, evaluation_steps=8)
    return RunConfig(name=mechanism, model=model, data=Parrot(**data), train=train, budget=Budget("steps", 2))


def made(mechanism: str, accuracy: float) -> Row:
    """A row of a run that was never trained."""
    row = row_of("mqar", "local", "", SIZES[0], 0)
    return dataclasses.replace(row, run=mechanism, task="parrot", mechanism=mechanism, accuracy=accuracy)


def found_of(*rows: Row, measures=(), **runs: RunConfig) -> Found:
    configs = {row.run: runs.get(row.run, run_of(row.mechanism)).to_dict() for row in rows}
    return Found(list(rows), [], configs, {}, list(measures), {row.run: "a command" for row in rows})


def view_of(found: Found) -> dict:
    return task_view("parrot", found.rows, found, styles_of(found.rows))


def chance_lines(figure) -> list[float]:
    """Of the heights of level lines across all panels."""
    return [line.get_ydata()[0] for axes in figure.axes for line in axes.lines if list(line.get_xdata()) == [0, 1]]


@pytest.mark.slow
def test_runs_of_it_have_their_score_their_chance_line_and_their_ceiling_check(tmp_path: Path):
    rows = [execute(run_of(name), tmp_path / "runs" / name, study="mine") for name in ("full", "local")]
    write_rows(rows, tmp_path / "results.parquet")
    page = write_report([StudySource(tmp_path)], tmp_path).read_text(encoding="utf-8")
    assert "Test accuracy against memory" in page
    assert "a guess has 6.2 %" in page
    assert "Chance 6.2 %." in page
    assert "Full attention does not solve parrot (validation accuracy) at its trained length" in page  # after two steps
    assert "A window alone is above chance" not in page
    assert chance_lines(view_of(find([StudySource(tmp_path)]))["figure"].figure) == [CHANCE]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(rows))
    assert f"{100 * rows[0].accuracy:.1f} %" in console.export_text()


def test_full_attention_that_solves_it_is_no_warning_and_one_that_is_missing_is_listed():
    assert warnings(found_of(made("full", 0.95))) == []
    assert [line.split(":")[0] for line in warnings(found_of(made("full", 0.85)))] == [
        "Full attention does not solve parrot (validation accuracy) at its trained length"
    ]
    needs = {one.identity: one.needs for one in unchecked(found_of(made("local", CHANCE)))}
    assert needs.keys() == {"ceiling"}
    assert needs["ceiling"].endswith("the parrot")
    assert [one.identity for one in unchecked(found_of(made("full", 0.95)))] == ["floor"]


def test_a_window_above_chance_is_a_leak_only_where_the_word_is_out_of_its_reach():
    (warning,) = warnings(found_of(made("local", 0.5)))  # 60 tokens back; the window reaches 7
    assert "A window alone is above chance on parrot" in warning
    assert "against 6.25 % of a guess" in warning
    assert warnings(found_of(made("local", CHANCE))) == []
    assert warnings(found_of(made("local", 0.5), local=run_of("local", window=TOKENS))) == []
    few = 1 + 1 / (8 * 2 * WORD)  # one answer of all that were scored above chance is no proof
    assert warnings(found_of(made("local", few * CHANCE))) == []


def test_settings_that_no_longer_parse_or_are_foreign_end_no_report_and_have_no_chance_line(tmp_path):
    row = made("local", 0.5)
    fill(tmp_path, [row], configs={row.run: run_of("local")})
    file = tmp_path / "runs" / row.run / "config.json"
    whole = json.loads(file.read_text())
    for data in ({"kind": "parrot", "feathers": 3}, {"kind": "owl"}, {"length": 4}, {"kind": "parrot", "title": 1}, [], 3):
        file.write_text(json.dumps({**whole, "data": data} if data != 3 else {}))
        found = find([StudySource(tmp_path)])
        assert view_of(found)["finding"].startswith("The highest validation accuracy is 50.0 %")
        assert chance_lines(view_of(found)["figure"].figure) == []
        assert warnings(found) == []


def test_where_the_settings_of_a_run_are_lost_its_job_tells_them(tmp_path):
    row = made("local", 0.5)
    write_rows([row], tmp_path / "results.parquet")
    jobs = Study("mine", "?", (run_of("local"),)).runs
    assert chance_lines(view_of(find([StudySource(tmp_path)]))["figure"].figure) == []
    assert chance_lines(view_of(find([StudySource(tmp_path, jobs=jobs)]))["figure"].figure) == [CHANCE]


def test_an_evaluation_of_it_with_a_grid_has_a_figure_with_the_chance_of_each_panel(monkeypatch, tmp_path):
    monkeypatch.setitem(EVALUATIONS, "parrot", ParrotEvaluation)
    study = Study("mine", "?", (run_of("local"),), evaluations=(ParrotEvaluation(),))
    do(study.desk(tmp_path), study.runs[0])
    write_tables(study, study.desk(tmp_path))
    found = find([StudySource(tmp_path)])
    drawn = pareto(found, styles_of(found.rows))[-1]
    assert drawn.title.startswith("Recall against memory: the parrot")
    assert [axes.get_title(loc="left") for axes in drawn.figure.axes] == ["symbols 10", "symbols 18"]
    assert chance_lines(drawn.figure) == [1 / 8, CHANCE]


def test_its_evaluation_is_checked_where_the_row_does_not_say_the_same(monkeypatch):
    monkeypatch.setitem(EVALUATIONS, "parrot", ParrotEvaluation)

    def told(mechanism: str, accuracy: float, symbols: int, length: int) -> list[str]:
        row = made(mechanism, {"full": 0.95, "local": CHANCE}[mechanism])
        measure = Measure("parrot", "accuracy", *share(accuracy), {"symbols": symbols, "length": length})
        return warnings(found_of(row, measures=[(mechanism, measure)]))

    (warning,) = told("full", 0.5, SYMBOLS, TOKENS // 2)
    assert "parrot of 32 tokens (accuracy, trained on parrot)" in warning
    assert told("full", 0.5, SYMBOLS, TOKENS) == []  # the row's, which is right there
    assert told("full", 0.5, SYMBOLS, 2 * TOKENS) == told("full", 0.5, 10, TOKENS) == []  # it was trained on neither
    (warning,) = told("local", 0.3, 10, TOKENS)
    assert "parrot of 64 tokens (accuracy)" in warning
    assert "against 12.5 % of a guess" in warning
    assert told("local", 0.3, 10, 8) == []  # within reach
