"""Studies of other jobs than training a transformer: one row in the table of kinds and the rest follows."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from infini_jax.cli.progress import flops_done, share_logged, study_progress
from infini_jax.config import Budget
from infini_jax.errors import ConfigError
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.records.folder import MEASURES_FILE, METRICS_FILE, OWN_FILE, ROW_FILE
from infini_jax.records.measures import Measure, read_measures, write_measures
from infini_jax.records.rows import Row, write_rows
from infini_jax.records.training_log import newest_line
from infini_jax.study.evaluations import measure_file
from infini_jax.study.jobs import JOB_KINDS, JobKind, job_from_plain, job_to_plain, kind_name
from infini_jax.study.spending import spending_of, spending_table
from infini_jax.study.study import Study, collect, cut_short, save_study, saved_study
from infini_jax.study.trials import trials
from infini_jax.study.workers import do
from tests.test_measuring import Norm
from tests.test_report import row_of
from tests.test_study import GOOD


@dataclasses.dataclass(frozen=True)
class Coin:
    """Throws a coin: a job that trains nothing."""

    name: str = "coin"
    version: int = 1
    seed: int = 0
    variant: str = ""
    throws: int = 64
    rate: float = 0.5

    task = mechanism = "coin"
    memory_bytes = 1

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.seed, self.throws, self.rate]).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "Coin":
        return Coin(**plain)

    def with_learning_rate(self, rate: float) -> "Coin":
        return dataclasses.replace(self, rate=rate)

    def planned_flops(self) -> float:
        if self.throws < 1:
            raise ConfigError("coin.throws", "none", "give at least 1")
        return 1e6 * self.throws


def throw(job: Coin, folder: Path, study: str) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    heads = float(np.random.default_rng(job.seed).integers(2, size=job.throws).mean())
    write_measures(job.name, [Measure("coin", "heads", heads, job.throws)], folder / "measures" / OWN_FILE)
    made_up = row_of("mqar", "local", "", 4096, job.seed)
    row = dataclasses.replace(made_up, run=job.name, fingerprint=job.fingerprint(), study=study, task="coin", loss=heads)
    write_rows([row], folder / ROW_FILE)
    return row


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(JOB_KINDS, "coin", JobKind(Coin, "tests.test_jobs:throw", Coin.planned_flops, measures_itself=True))
    monkeypatch.setitem(EVALUATIONS, "norm", Norm)


@pytest.fixture
def study() -> Study:
    return Study("mixed", "heads or tails?", (GOOD, Coin()), evaluations=(Norm(2),), scale="smoke")


def test_any_job_survives_the_saved_study(study, tmp_path):
    save_study(study, tmp_path)
    assert saved_study(tmp_path)[0] == study
    assert [job_from_plain(json.loads(json.dumps(job_to_plain(job)))) for job in study.runs] == list(study.runs)
    assert job_to_plain(GOOD) == GOOD.to_dict()
    with pytest.raises(ConfigError, match="did you mean 'coin'"):
        job_from_plain({**job_to_plain(Coin()), "kind": "cion"})


def test_a_job_is_done_with_its_own_figures_and_again_where_they_were_cut_short(study, tmp_path):
    study = dataclasses.replace(study, runs=(Coin(),))
    desk = study.desk(tmp_path)
    do(desk, Coin())
    (row,), failures = collect(study, desk)
    assert (row.run, row.study, failures) == ("coin", "mixed-smoke", [])
    assert [one.value for _, one in read_measures([tmp_path / MEASURES_FILE])] == [row.loss]
    own = desk.of(Coin()).own_measures
    own.write_bytes(own.read_bytes()[:20])
    assert cut_short(study, tmp_path) == [own]
    assert not desk.is_done(Coin())
    assert collect(study, desk)[0] == []
    do(desk, Coin())
    assert desk.is_finished(Coin())
    assert not list(desk.of(Coin()).path.glob("measures/norm*"))  # evaluations are of trained models


def test_jobs_are_tried_at_rates_and_refused_by_name_like_runs(study):
    assert [job.name for job in trials(Coin(), (0.1, 0.2))] == ["coin-lr1e-1", "coin-lr2e-1"]
    with pytest.raises(ConfigError, match=r"^run coin: coin.throws: none"):
        dataclasses.replace(study, runs=(Coin(throws=0),))


def test_a_plan_has_the_flops_of_runs_jobs_and_evaluations(study):
    run, coin = (spending_of(study, job) for job in study.runs)
    assert (run.steps, run.tokens, run.evaluation_flops) == (5, 5 * 32, 2e6)
    assert (coin.steps, coin.tokens, coin.flops, coin.evaluation_flops) == (None, None, 64e6, 0)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(spending_table(study))
    text = console.export_text()
    assert "64M" in text
    assert "2 runs" in text
    assert max(map(len, text.splitlines())) <= 80


def test_progress_counts_training_jobs_and_evaluations_by_their_flops(study, tmp_path):
    desk = study.desk(tmp_path)
    plans = [spending_of(study, job) for job in study.runs]

    def done() -> list[float]:
        return [flops_done(desk, job, plan) for job, plan in zip(study.runs, plans, strict=True)]

    assert done() == [0.0, 0.0]
    desk.of(GOOD).path.mkdir(parents=True)
    desk.of(GOOD).metrics.write_text('{"st')
    assert done() == [0.0, 0.0]  # a line that is being written
    desk.of(GOOD).metrics.write_text('{"step": 2}\n{"st')
    do(desk, Coin())
    assert done() == [pytest.approx(2 / 5 * plans[0].flops), 64e6]
    write_measures("good", [], measure_file(desk.of(GOOD), Norm(2)))
    assert done()[0] == pytest.approx(2 / 5 * plans[0].flops + 2e6)
    desk.fail(GOOD, "it broke")
    assert done() == [plans[0].all_flops, 64e6]


def test_a_bar_counts_runs_where_seconds_are_not_measured_yet(study, tmp_path):
    timed = dataclasses.replace(GOOD, budget=Budget("seconds", 10.0))
    study = dataclasses.replace(study, runs=(timed, Coin()))
    file = io.StringIO()
    with study_progress(study, Console(file=file, width=120, force_terminal=True)) as watch:
        do(study.desk(tmp_path), Coin())
        watch(study.desk(tmp_path))
    assert "1/2 runs" in file.getvalue()
    (tmp_path / METRICS_FILE).write_text('{"step": 2, "seconds": 2.5}\n')
    assert share_logged(newest_line(tmp_path / METRICS_FILE), timed) == 0.25


def test_a_job_of_no_kind_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^study.runs: int is not a kind of job; add it to KINDS"):
        kind_name(5)
