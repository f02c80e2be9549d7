"""Derived figures never end a run: what overflows is infinite, what has no value is NaN, an evaluation that fails is told."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest

from infini_jax.analysis import fits, theory
from infini_jax.analysis.intervals import wilson
from infini_jax.cli.main import main
from infini_jax.cli.progress import live_line
from infini_jax.config import RunConfig
from infini_jax.data import SOURCES
from infini_jax.data.batch import Rows
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.prepared import Counts
from infini_jax.errors import EvaluationFailed
from infini_jax.evals.scores import share_measure
from infini_jax.records.folder import METRICS_FILE, ROW_FILE, UNSCORED_FILE
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row, read_rows
from infini_jax.report.predictions import predictions
from infini_jax.report.terminal import terminal_table
from infini_jax.study.study import Study, collect
from infini_jax.study.trials import chosen
from infini_jax.study.workers import do
from infini_jax.training.execute import execute
from infini_jax.units import exponential, human_bytes, human_count, human_time, ratio
from tests.support.commands import training
from tests.support.corpora import write_stories
from tests.support.made_results import row_of
from tests.test_measuring import Norm
from tests.test_study import GOOD

GONE = "the disk of the held-out data is gone"


def test_arithmetic_of_figures_gives_infinity_and_nan_and_never_raises():
    assert exponential(1.5) == math.exp(1.5)
    assert exponential(710.0) == math.inf  # the largest float is e^709.78
    assert ratio(1.0, 4.0) == 0.25
    assert math.isnan(ratio(1.0, 0.0))
    assert math.isnan(exponential(ratio(0.0, 0.0)))


@pytest.mark.parametrize("text", [human_bytes, human_count, human_time])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_a_dash_as_text(text, value):
    assert text(value) == "-"


def test_more_days_than_a_calendar_holds_are_years():
    assert human_time(1e9 * 86400) == "2.74e+06 years"
    assert human_time(1e4 * 86400) == "10000 days, 0:00:00"
    assert human_time(math.inf) == human_time(math.nan) == "-"


def test_a_live_line_of_a_run_whose_clock_stood_still_is_shown():
    line = {"step": 1, "loss": 2.0, "tokens": 16, "recent_tokens_per_second": math.nan, "tokens_per_second": math.nan}
    assert live_line(line, 5) == "loss 2.000, - left, nan tokens/s (nan overall)"
    assert "- left" in live_line({**line, "recent_tokens_per_second": 0.0}, 5)


def test_word_perplexity_of_text_that_is_one_word_is_infinite():
    counts = Counts(1, 0, tokens=1000, words=1, bytes=1000, longest=1000, tokens_sha256="", starts_sha256="")
    assert counts.word_perplexity(5.5) == math.inf  # e^5500
    assert counts.bits_per_byte(5.5) == pytest.approx(5.5 / math.log(2))
    empty = dataclasses.replace(counts, words=0, bytes=0)
    assert math.isnan(empty.word_perplexity(5.5))
    assert math.isnan(empty.bits_per_byte(5.5))


@pytest.mark.slow
def test_a_run_on_text_without_spaces_ends_with_its_row(tmp_path, monkeypatch):
    """As typed: corpus prepare of a folder of such text, then train."""
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    texts = {f"{split}/{name}.txt": f"{name}無空白" * 60 for split in ("train", "validation", "test") for name in "abc"}
    prepare("text_folder", TokenizerSettings(), "solid", write_stories(tmp_path / "solid", texts), jobs=1)
    main(training(tmp_path, "--name", "solid", corpus="solid"))
    (row,) = read_rows(tmp_path / "solid" / ROW_FILE)
    assert math.isfinite(row.loss)
    assert math.isfinite(row.test_loss or math.nan)
    lines = [json.loads(line) for line in (tmp_path / "solid" / METRICS_FILE).read_text().splitlines()]
    assert lines[-1]["validation_word_perplexity"] in (math.inf, None)


@dataclasses.dataclass(frozen=True)
class Fragile(MqarConfig):
    """Recall whose held-out data cannot be read while `lost` names their split."""

    lost = ()

    def open(self, rows: Rows):
        if rows.split in Fragile.lost:
            raise OSError(GONE)
        return super().open(rows)


@pytest.fixture
def fragile(monkeypatch) -> RunConfig:
    monkeypatch.setitem(SOURCES, "fragile", Fragile)
    monkeypatch.setattr(Fragile, "lost", ("validation",))
    return dataclasses.replace(GOOD, name="fragile", data=Fragile(pairs=2, symbols=32))


def test_an_evaluation_that_fails_leaves_the_row_and_the_same_call_makes_it_again(fragile, tmp_path, monkeypatch, caplog):
    with pytest.raises(EvaluationFailed) as end:
        execute(fragile, tmp_path, "")
    assert str(end.value) == (
        f"evaluation validation: OSError: {GONE}; {tmp_path / ROW_FILE} is written without it; "
        "repeat the command to evaluate it again"
    )
    assert [record.getMessage() for record in caplog.records if record.name.startswith("infini_jax")] == [
        f"evaluation validation: OSError: {GONE}; the run goes on without its figures"
    ]
    (row,) = read_rows(tmp_path / ROW_FILE)
    assert math.isnan(row.loss)
    assert math.isnan(row.accuracy)
    assert math.isfinite(row.test_loss or math.nan)  # the other evaluation was made
    assert (row.steps, math.isfinite(row.train_loss), row.seconds > 0) == (5, True, True)
    monkeypatch.setattr(Fragile, "lost", ())
    again = execute(fragile, tmp_path, "")
    assert math.isfinite(again.loss)
    assert (again.test_loss, again.train_loss) == (row.test_loss, row.train_loss)
    assert again.seconds == row.seconds  # not trained again
    assert not (tmp_path / UNSCORED_FILE).exists()


def test_a_study_keeps_the_row_makes_the_other_evaluations_and_tries_again(fragile, tmp_path, monkeypatch):
    study = Study("tiny", "what is lost?", (fragile,), evaluations=(Norm(2),))
    desk = study.desk(tmp_path)
    do(desk, fragile)
    (row,), (failure,) = collect(study, desk)
    assert math.isnan(row.loss)
    assert failure.error.startswith(f"evaluation validation: OSError: {GONE}; ")
    assert all(file.exists() for file in desk.measure_files(fragile))
    assert not desk.is_finished(fragile)
    monkeypatch.setattr(Fragile, "lost", ())
    do(desk, fragile)
    (row,), failures = collect(study, desk)
    assert math.isfinite(row.loss)
    assert failures == []


def test_a_row_without_a_loss_is_shown_and_chooses_no_learning_rate():
    good = row_of("python_stdlib", "infini", "delta", 4096, 0)
    lost = dataclasses.replace(good, learning_rate=1e-3, loss=math.nan, accuracy=math.nan)
    assert chosen([lost, good]) == [good]
    assert chosen([good, lost]) == [good]
    assert chosen([lost]) == [lost]
    assert terminal_table([lost]).row_count == 1


def test_fits_of_any_figures_give_numbers_or_nan():
    """Figures far beyond what is measured: a prefactor, a constant of decay and a share that leave the floats."""
    x = np.array([1e3, 1.01e3])
    assert fits.power_law(x, [1e-290, 1e10], [0, 0]).prefactor.value == 0.0
    assert fits.power_law(x, [1e10, 1e-290], [0, 0]).prefactor.value == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of a covariance that cannot be estimated
        assert not math.isfinite(fits.decay([1, 2, 3, math.nan, 5], [0.5, 0.5, 0.5, 0.5, math.inf], [4, 4, 4, 4, 0]).constant)
        fits.decay([1, 2, 3, 4, 5], [0.5] * 5, [4] * 5)  # does not decay: a constant without end
    low, high = wilson(1e9 + 1e-6, 1e9) or (0.0, 0.0)
    assert 0.999 < low < high <= 1.0
    assert math.isnan(theory.top1_n50_large(8, 8, 1))
    assert math.isnan(theory.bits_per_scalar(4.0, 0.0, 8))


def test_a_share_of_no_answers_has_no_value():
    found = share_measure("passkey", "exact_match", [], {})
    assert math.isnan(found.value)
    assert found.count == 0


def test_predictions_relative_to_nothing_are_not_settled():
    """P2 divides by the bits of unit keys, which a memory that recalls nothing does not have."""

    def made(variant: str, seed: int) -> Row:
        row = row_of("mqar", "infini", "delta", 4096, seed)
        return dataclasses.replace(row, task="capacity", variant=variant, run=variant)

    rows = [made("unit", 0), made("elu", 1)]
    measures = [(row.run, Measure("capacity", "bits_per_scalar", 0.0, 1)) for row in rows]
    verdicts = {line.subject: line.verdict for line in predictions(rows, measures) if line.name == "P2"}
    assert verdicts["infini elu"] == "not settled"
