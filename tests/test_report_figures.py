"""Figures F1 to F10 and the tables show what was measured, say what was not, and hold no sentence that the data do not."""

import dataclasses
import math
import re

import pytest
from scipy import stats

from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.measures import Measure
from infini_jax.report import StudySource, write_report
from infini_jax.report.checks import warnings
from infini_jax.report.figures.capacity import collapse, n50
from infini_jax.report.figures.loss import gains, loss_against_bytes
from infini_jax.report.figures.passkey import COLOURS, heat_maps, needles, text_on
from infini_jax.report.figures.recall import pareto
from infini_jax.report.figures.trade import best_split
from infini_jax.report.found import Found, by_task, find
from infini_jax.report.looks import styles_of
from infini_jax.report.parts import NotMeasured, Table
from infini_jax.report.plots import COLUMNS, drawing, save_pdf
from infini_jax.report.tables import blimp_table, finetune_table, passkey_tables
from infini_jax.report.trials import only_chosen, trials_table
from tests.support.made_results import SEEDS, SIZES, config_of, fill, random_row, row_of, share, write_all_measures

SERIES = (("local", ""), ("infini", "delta"))
COMMAND = "infini-jax study quick --scale smoke"


def found_of(rows, measures=(), configs=None) -> Found:
    """As if read from a folder."""
    settings = {row.run: (configs or {}).get(row.run, config_of(row)).to_dict() for row in rows}
    return Found(list(rows), [], settings, {}, list(measures), {row.run: COMMAND for row in rows})


def runs(task="mqar", series=SERIES, sizes=SIZES, seeds=SEEDS):
    return [row_of(task, *one, size, seed) for one in series for size in sizes for seed in seeds]


def texts_of(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def markers_of(figure) -> list[float]:
    """What every marker of the figure shows."""
    clouds = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == "None"]
    return sorted(float(y) for line in clouds for y in line.get_ydata())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study with every evaluation."""
    folder = tmp_path_factory.mktemp("results") / "quick"
    rows = [*runs("python_stdlib", sizes=SIZES[::2]), random_row("sum", 32)]
    configs = {}
    for segment in (8, 32):
        for seed in SEEDS:
            row = dataclasses.replace(row_of("python_stdlib", "infini", "linear", SIZES[0], seed), run=f"{segment}-{seed}")
            rows.append(dataclasses.replace(row, memory_bytes=1024 * segment))
            configs[row.run] = config_of(row, segment)
    fill(folder, rows, configs=configs)
    write_all_measures(folder, rows)
    return folder


@pytest.fixture(scope="module")
def page(study) -> str:
    return write_report([StudySource(study, "Which?", command=COMMAND)], study).read_text(encoding="utf-8")


def test_every_figure_is_on_the_page_with_its_seeds_and_its_command(page):
    figures = dict(re.findall(r'<h3 id="at-([^"]+)">(.*?)</figure>', page, flags=re.DOTALL))
    families = {re.match(r"F\d+", name).group() for name in figures}
    assert families == {f"F{number}" for number in range(1, 11)}
    for text in figures.values():
        assert re.search(r"\d( to \d)? seeds? per point\. Remake it: <code>" + re.escape(COMMAND), text)
        assert re.search(r"<title[^>]*>[^<]+</title>\s*<desc[^>]*>[^<]+</desc>", text)


def test_ids_are_unique_and_every_reference_lands(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert set(wanted + re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', page)) <= set(ids)
    assert not re.findall(r"<th(?![^>]*scope=)[\s>]", page)
    assert page.count("<table") == page.count("<caption")


def test_every_figure_lies_beside_the_page_as_svg_and_pdf(study, page):
    names = set(re.findall(r"report-figures/([^<]+)\.pdf", page))
    files = study / "report-figures"
    assert (
        {file.stem.removesuffix("-wide") for file in files.glob("*.pdf")}
        == {file.stem for file in files.glob("*.svg")}
        == names
    )
    each = [files / f"{name}{ending}.pdf" for name in names for ending in COLUMNS]
    assert all(file.read_bytes().startswith(b"%PDF") for file in each)
    assert all("<svg" in (files / f"{name}.svg").read_text() for name in names)


def test_the_same_measures_give_the_same_files(study, tmp_path):
    for number in (0, 1):
        (drawn,) = n50(found := find([StudySource(study)]), styles_of(found.rows))
        (tmp_path / f"{number}.svg").write_text(drawing(drawn.figure))
        save_pdf(drawn.figure, tmp_path / f"{number}.pdf", 3.35)
    for kind in ("svg", "pdf"):
        assert (tmp_path / f"0.{kind}").read_bytes() == (tmp_path / f"1.{kind}").read_bytes()


def test_what_was_not_measured_is_listed_and_not_drawn():
    rows = [row for row in runs() if row.mechanism != "local"]
    found = found_of([dataclasses.replace(row, gate_mean=None) for row in rows])
    for figure in (collapse, n50, pareto, heat_maps, needles, gains, best_split, loss_against_bytes):
        made = figure(found, styles_of(found.rows))
        assert made
        assert all(isinstance(one, NotMeasured) and one.needs for one in made)
    assert isinstance(blimp_table(found), NotMeasured)
    assert isinstance(trials_table(found), NotMeasured)


def test_f2_finds_the_exponent_it_was_given():
    rows = runs("mqar", SERIES[1:], seeds=(0, 1, 2))
    halves = {row.run: 0.3 * row.memory_bytes ** (0.9 + 0.01 * (row.seed - 1)) for row in rows}  # the mean is 0.9
    measures = [(row.run, Measure("capacity", "n50", halves[row.run], 100)) for row in rows]
    (drawn,) = n50(found_of(rows, measures), styles_of(rows))
    ((name, rung, sizes, seeds, exponent, prefactor, crossing, answers, left_out),) = drawn.table.lines
    assert (name, rung, sizes, seeds) == ("infini delta", "3.00e11 FLOPs", "3", "0, 1, 2")
    assert (crossing, answers, left_out) == ("not said", "900", "–")  # as in tables of before
    low, high = map(float, re.search(r"\[(.*), (.*)\]", exponent).groups())
    assert exponent.startswith("0.9 ")
    assert low <= 0.9 <= high
    assert prefactor.startswith("0.3 ")
    assert markers_of(drawn.figure) == sorted(halves.values())


def test_f2_marks_crossings_and_names_a_seed_without_a_half_way_point():
    rows = runs("mqar", SERIES[1:], seeds=(0, 1, 2, 3))
    last = max(rows, key=lambda row: (row.seed, row.memory_bytes))
    halves = {row.run: 0.3 * row.memory_bytes ** (0.9 + 0.01 * row.seed) for row in rows} | {last.run: math.nan}
    labels = {row.run: {"by": "crossing" if row.seed == 1 else "fit"} for row in rows}
    measures = [(row.run, Measure("capacity", "n50", halves[row.run], 100, labels=labels[row.run])) for row in rows]
    (drawn,) = n50(found_of(rows, measures), styles_of(rows))
    ((*_, seeds, _, _, crossing, _, left_out),) = drawn.table.lines
    assert (seeds, crossing) == ("0, 1, 2", "3 of 11")
    assert left_out == f"seed 3 (not measured at {last.memory_bytes:,})"
    (crosses,) = [line for line in drawn.figure.axes[0].lines if line.get_marker() == "x"]
    assert sorted(crosses.get_ydata()) == sorted(halves[row.run] for row in rows if row.seed == 1)


def test_f1_marks_every_seed_and_scales_by_the_memory():
    rows = [random_row("sum", 32)]
    labels = {"rule": "sum", "key_dim": 32, "value_dim": 32, "symbols": 8192, "pairs": 57}
    (drawn,) = collapse(
        found_of(rows, [(rows[0].run, Measure("random_codes", "accuracy", 0.47, 9, labels=labels))]), styles_of(rows)
    )
    assert markers_of(drawn.figure) == [0.47]
    (cloud,) = [line for line in drawn.figure.axes[0].lines if line.get_linestyle() == "None"]
    assert cloud.get_xdata()[0] == pytest.approx(57 * 2 * math.log(8192) / 1024)


def test_f3_draws_every_run_and_knows_chance():
    rows = runs()
    measures = [(row.run, Measure("mqar", "accuracy", *share(row.accuracy), {"pairs": 8, "length": 256})) for row in rows]
    drawn, *others = pareto(found_of(rows, measures), styles_of(rows))
    assert markers_of(drawn.figure) == sorted(row.accuracy for row in rows)
    assert all(isinstance(other, NotMeasured) for other in others)
    flat = [line for line in drawn.figure.axes[0].lines if list(line.get_ydata()) == [1 / 32, 1 / 32]]
    assert len(flat) == 1


def test_f3_of_what_was_trained_is_a_table_as_the_score_is_drawn_already():
    rows = runs()
    measures = [(row.run, Measure("mqar", "accuracy", *share(row.accuracy), {"pairs": 8, "length": 128})) for row in rows]
    table, *others = pareto(found_of(rows, measures), styles_of(rows))
    assert isinstance(table, Table)
    assert len(table.lines) == len(SERIES) * len(SIZES)
    assert all(isinstance(other, NotMeasured) for other in others)


def test_f3_has_means_over_seeds_with_what_stands_behind_them():
    rows = runs("mqar", SERIES[1:], SIZES[:1], seeds=(0, 1, 2))
    shares = {0: 0.5, 1: 0.625, 2: 0.75}
    labels = {"pairs": 8, "length": 128}
    measures = [(row.run, Measure("mqar", "accuracy", shares[row.seed], 400, labels=labels)) for row in rows]
    table, *_ = pareto(found_of(rows, measures), styles_of(rows))
    low, high = stats.ttest_1samp([50, 62.5, 75], 0).confidence_interval(0.95)
    ((name, memory, share_, stands),) = table.lines
    assert (name, memory, share_) == ("infini delta", "4 KiB", f"62.5 [{low:.3g}, {high:.3g}]")
    assert stands == "evaluation; 1,200 answers; seeds 0, 1, 2; 3.00e11 FLOPs; rate 0.01"


def test_f5_prints_median_and_range_of_the_seeds():
    rows = runs("python_stdlib", SERIES[1:], SIZES[-1:])
    values = {(0, 1024): 0.5, (1, 1024): 0.7, (0, 4096): 0.25, (1, 4096): 0.25}
    measures = [
        (row.run, Measure("passkey", "exact_match", values[row.seed, length], 50, labels={"length": length, "depth": depth}))
        for row in rows
        for length in (1024, 4096)
        for depth in (0.0, 1.0)
    ]
    novelty, depth = heat_maps(found_of(rows, measures), styles_of(rows))
    assert isinstance(novelty, NotMeasured)  # one novelty is no axis
    assert sorted(texts_of(depth.figure)) == sorted(["60", "50–70", "25"] * 2)
    assert "infini delta: exact match 25 to 60 %" in depth.alternative


def test_f5_has_needles_by_kind_with_what_was_not_measured_left_empty():
    rows = runs("haystack", SERIES[1:], SIZES[-1:], SEEDS[:1])
    cells = {("facts1", 128): 0.75, ("facts2", 128): 0.5, ("facts1", 512): 0.25}
    measures = [
        (rows[0].run, Measure("haystack", "hit", value, 32, labels={"kind": kind, "length": length}))
        for (kind, length), value in cells.items()
    ]
    (drawn,) = needles(found_of(rows, measures), styles_of(rows))
    assert sorted(texts_of(drawn.figure)) == ["25", "50", "75"]
    assert [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()] == ["facts1", "facts2"]
    assert "infini delta: needles found 25 to 75 %" in drawn.alternative


def test_f5_has_suites_where_they_were_asked():
    rows = runs("python_stdlib", SERIES[1:], SIZES[-1:], SEEDS[:1])
    labels = {"kind": "vt", "length": 4096}
    measures = [(rows[0].run, Measure(name, "score", 0.25, 8, labels=labels)) for name in ("ruler", "babilong")]
    haystack, *drawn = needles(found_of(rows, measures), styles_of(rows))
    assert (haystack.identity, [one.identity for one in drawn]) == ("F5-kind", ["F5-ruler", "F5-babilong"])
    assert all(texts_of(one.figure) == ["25"] and "answers found 25 to 25 %" in one.alternative for one in drawn)


def test_text_in_cells_stands_out():
    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for share_ in range(101):
        cell = "#" + "".join(f"{round(255 * part):02x}" for part in COLOURS(share_ / 100)[:3])
        light, dark = sorted((luminance(cell), luminance(text_on(cell))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2 AA


def test_f7_counts_intervals_and_claims_nothing_without_them():
    row = runs("python_stdlib", SERIES[1:], SIZES[:1], SEEDS[:1])[0]

    def caption(*intervals) -> str:
        labels = [{"control": "reset", "by": "gap", "class": str(n)} for n in range(len(intervals))]
        measures = [
            (row.run, Measure("gains", "gain", sum(ends) / 2, 9, *ends, one))
            for ends, one in zip(intervals, labels, strict=True)
        ]
        return gains(found_of([row], measures), styles_of([row]))[0].caption

    assert "Of 4 intervals 1 lies above zero, 1 below it and 2 hold it." in caption((0.1, 0.2), (-1, 1), (-2, 1), (-2, -1))
    assert "no gain is said to be one" in caption((math.nan, math.nan))


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ({8: (2.0, 2.1, 2.05), 32: (2.2, 2.31, 2.25)}, "in nats per byte: -0.203 [-0.218, -0.189]"),
        ({8: (2.0, 2.25), 32: (2.2, 2.3)}, "in nats per byte: -0.125 (no interval from 2 seeds (0, 1))"),
        ({8: (2.0,), 32: (2.2,)}, "in nats per byte: -0.2 (no interval from 1 seed (0))"),
    ],
)
def test_f8_says_no_more_than_the_seeds_allow(losses, verdict):
    rows, configs = [], {}
    for segment, of in losses.items():
        for seed, loss in enumerate(of):
            row = row_of("python_stdlib", "infini", "delta", SIZES[0], seed)
            row = dataclasses.replace(row, run=f"{segment}-{seed}", memory_bytes=65536 // segment, loss=loss)
            rows.append(row)
            configs[row.run] = config_of(row, segment)
    (drawn,) = best_split(found_of(rows, configs=configs), styles_of(rows))
    assert "infini delta has its best median with a window of 8 and 8 KiB of memory" in drawn.caption
    assert verdict in drawn.caption
    assert markers_of(drawn.figure) == sorted(loss for of in losses.values() for loss in of)


def test_passkey_table_has_thirds_and_shows_what_is_missing():
    row = runs("python_stdlib", SERIES[1:], SIZES[:1], SEEDS[:1])[0]
    cells = {(1024, 0.0): 1.0, (1024, 0.5): 0.9, (1024, 1.0): 0.8, (4096, 0.1): 0.4, (4096, 0.3): 0.6}
    measures = [
        (
            row.run,
            Measure("passkey", "token_accuracy", value, 9, labels={"format": "infini", "length": length, "depth": depth}),
        )
        for (length, depth), value in cells.items()
    ]
    (table,) = passkey_tables(found_of([row], measures))
    assert table.lines == (("infini delta", "4 KiB", "0", "100/90/80", "50/–/–"),)


def test_blimp_is_the_mean_of_paradigms_and_the_median_of_seeds():
    rows = runs("python_stdlib", SERIES[1:], SIZES[:1])
    measures = [
        (row.run, Measure("blimp", "accuracy", value + 0.1 * row.seed, 9, labels={"paradigm": name, "phenomenon": "binding"}))
        for row in rows
        for name, value in (("a", 0.5), ("b", 0.7))
    ]
    assert blimp_table(found_of(rows, measures)).lines == (("infini delta", "4 KiB", "python_stdlib", "65.0 (60.0–70.0)"),)


def test_fine_tuning_has_the_score_of_each_task_and_the_median_of_seeds():
    """Of the task's own metric and first split; other figures of a task are left out."""
    rows = runs("python_stdlib", SERIES[1:], SIZES[:1])
    figures = [("cola", "matthews", "validation", 0.3), ("cola", "accuracy", "validation", 0.9)]
    figures += [("mnli", "accuracy", "validation_matched", 0.5), ("mnli", "accuracy", "validation_mismatched", 0.1)]
    measures = [
        (row.run, Measure("finetune", metric, value + 0.1 * row.seed, 9, labels={"task": task, "split": split, "seed": 42.0}))
        for row in rows
        for task, metric, split, value in figures
    ]
    table = finetune_table(found_of(rows, measures))
    assert table.heads[3:] == ("cola, matthews", "mnli, accuracy")
    assert table.lines == (("infini delta", "4 KiB", "python_stdlib", "35.0 (30.0–40.0)", "55.0 (50.0–60.0)"),)


def test_all_trials_are_counted_and_the_best_rate_is_shown():
    good = runs("mqar", SERIES[1:], SIZES[:1])
    bad = [dataclasses.replace(row, run=f"{row.run}-lr", learning_rate=1e-3, loss=row.loss + 1) for row in good]
    found = found_of(good + bad)
    assert {row.run for row in only_chosen(found).rows} == {row.run for row in good}
    table = trials_table(found)
    losses = [row.loss for row in good]
    assert f"0.01: {sum(losses) / 2:.4f} ({min(losses):.4f}–{max(losses):.4f}) ← taken" in table.lines[0][3]
    assert "0.001: 4.3731" in table.lines[0][3]
    assert "all runs 1.20e12, of those taken 5.99e11" in table.caption  # four of 2.993e11, and two


def full(accuracy: float, seed: int):
    return dataclasses.replace(
        row_of("mqar", "infini", "delta", SIZES[0], seed), mechanism="full", run=f"full-{seed}", accuracy=accuracy
    )


def test_a_ceiling_that_fails_is_said_at_the_top(tmp_path):
    rows = [full(0.62, 0), full(0.7, 1)]
    fill(tmp_path, rows)
    page = write_report([StudySource(tmp_path)], tmp_path).read_text()
    assert page.index("These results are not to be trusted") < page.index("What was found")
    assert "Full attention does not solve mqar (validation accuracy) at its trained length: 66.0 (62.0–70.0) %" in page


def test_no_warning_where_ceiling_and_floor_are_as_they_should_be():
    floor = [dataclasses.replace(row, accuracy=0.033) for row in runs("mqar", SERIES[:1], SIZES[:1])]
    found = found_of([full(0.95, 0), full(0.97, 1), *floor])
    assert warnings(found) == []


def test_a_floor_above_chance_is_a_warning_only_where_the_pairs_are_out_of_reach():
    floor = [dataclasses.replace(row, accuracy=0.3) for row in runs("mqar", SERIES[:1], SIZES[:1])]
    (warning,) = warnings(found_of(floor))
    assert "A window alone is above chance on mqar" in warning
    assert "30.0 %" in warning
    wide = {
        row.run: dataclasses.replace(c := config_of(row), train=dataclasses.replace(c.train, sequence=32)) for row in floor
    }
    assert warnings(found_of(floor, configs=wide)) == []  # the gap is 8 tokens, the window reaches 14


def test_passkey_within_reach_of_a_window_is_no_leak():
    row = runs("python_stdlib", SERIES[:1], SIZES[:1], SEEDS[:1])[0]

    def found(depth: float) -> Found:
        labels = {"length": 1024, "depth": depth, "novelty": 0}
        return found_of([row], [(row.run, Measure("passkey", "exact_match", 0.2, 50, 0.11, 0.33, labels))])

    assert warnings(found(1.0)) == []
    assert len(warnings(found(0.5))) == 1


def test_full_attention_on_passkey_is_checked_where_it_was_trained_and_by_the_papers_own_score():
    row = dataclasses.replace(full(0.9, 0), task="passkey", run="full")
    trained = RunConfig(
        model=ModelConfig(vocab=246, segment=16),
        data=PasskeyConfig(digits=2, novelty=32),
        train=TrainConfig(sequence=112),
    )

    def told(value: float, length: int = 112, novelty: int = 32, metric: str = "token_accuracy") -> list[str]:
        labels = {"format": "infini", "length": length, "novelty": novelty, "depth": 0.5}
        return warnings(found_of([row], [(row.run, Measure("passkey", metric, value, 32, labels=labels))], {row.run: trained}))

    assert told(0.95) == []
    (warning,) = told(0.8)
    assert "passkey of 112 tokens (token accuracy, trained on passkey) at its trained length: 80.0 %" in warning
    assert told(0.8, length=224) == told(0.8, novelty=16) == []  # it may not generalise


def test_a_window_that_hits_tokens_of_a_passkey_by_chance_is_no_leak():
    row = dataclasses.replace(runs("mqar", SERIES[:1], SIZES[:1], SEEDS[:1])[0], task="passkey")
    labels = {"format": "infini", "length": 1024, "novelty": 32, "depth": 0.0}
    settings = RunConfig(
        model=ModelConfig(memory=LocalConfig(window=8), layers=1, vocab=246, segment=16),
        data=PasskeyConfig(digits=2, novelty=32),
        train=TrainConfig(sequence=112),
    )

    def told(value: float) -> list[str]:
        measures = [(row.run, Measure("passkey", "token_accuracy", value, 1000, labels=labels))]
        return warnings(found_of([row], measures, {row.run: settings}))

    assert told(0.11) == []  # two digits: (1/9 + 1/10) / 2
    (warning,) = told(0.2)
    assert "against 10.6 % of a guess" in warning


def test_runs_of_several_studies_are_told_apart(tmp_path):
    both = runs("mqar", SERIES[1:], SIZES[:1])
    fill(tmp_path / "a", both)
    fill(tmp_path / "b", [*both, *runs("mqar", SERIES[:1], SIZES[:1])])
    found = find([StudySource(tmp_path / "a"), StudySource(tmp_path / "b", command="make b")])
    assert len({row.run for row in found.rows}) == len(found.rows) == 6
    assert {(row.mechanism, row.variant) for row in found.rows} == {
        ("infini", "delta (a)"),
        ("infini", "delta (b)"),
        ("local", ""),
    }
    assert found.all_commands == ["infini-jax study quick", "make b"]


def test_runs_whose_data_differ_are_different_tasks():
    rows = runs("mqar", SERIES[1:], SIZES[:1], SEEDS[:1])
    rows.append(dataclasses.replace(rows[0], run="more"))
    config = config_of(rows[0])
    configs = {"more": dataclasses.replace(config, data=dataclasses.replace(config.data, pairs=16))}
    found = found_of(rows, configs=configs)
    assert by_task(found.rows, found.configs) == {"mqar, pairs 8": rows[:1], "mqar, pairs 16": rows[1:]}
    lost = by_task(found.rows, {rows[0].run: found.configs[rows[0].run]})
    assert {tuple(row.run for row in of) for of in lost.values()} == {(rows[0].run,), ("more",)}  # not known to be the same


def test_predictions_are_judged_from_the_measures(study, page):
    table = re.search(r'<h2 id="predictions">.*?</table>', page, flags=re.DOTALL).group()
    assert re.findall(r'scope="row" class="word">(P\d)', table)[0] == "P1"
    assert {f"P{number}" for number in range(1, 8)} == set(re.findall(r">(P\d)</th>", table))
