"""Second readings of a page: the data of every figure, slopes by doublings of memory, scores at equal parameters."""

import csv
import dataclasses
import re

import numpy as np
import pytest
from scipy import stats

from infini_jax.records.rows import Row
from infini_jax.report import StudySource, write_report
from infini_jax.report.data import COLUMNS, runs_behind
from infini_jax.report.found import Found
from infini_jax.report.parameters import parameters_table
from infini_jax.report.parts import NotMeasured
from infini_jax.report.slopes import slopes_table
from tests.support.made_results import SEEDS, SERIES, SIZES, fill, random_row, row_of, write_all_measures


def row(mechanism: str, size: int, seed: int, accuracy: float, **columns) -> Row:
    made = row_of("mqar", "infini", "linear", SIZES[0], 0)
    known = {"run": f"{mechanism}-{size}-{seed}", "mechanism": mechanism, "variant": "", "seed": seed, "memory_bytes": size}
    return dataclasses.replace(made, accuracy=accuracy, **known | columns)


def found_of(rows: list[Row]) -> Found:
    return Found(rows, [], {}, {}, [], {})


def test_the_data_of_every_figure_have_the_parameters_of_every_run_behind_it(tmp_path):
    rows = [row_of("python_stdlib", *series, size, seed) for series in SERIES for size in SIZES for seed in SEEDS]
    rows = [dataclasses.replace(one, memory_bytes_bf16=one.memory_bytes // 2) for one in rows] + [random_row("sum", 32)]
    fill(tmp_path, rows)
    write_all_measures(tmp_path, rows)
    page = write_report([StudySource(tmp_path)], tmp_path).read_text(encoding="utf-8")
    files = {file.stem: file for file in (tmp_path / "report-figures").glob("*.csv")}
    assert set(files) == {file.stem for file in (tmp_path / "report-figures").glob("*.svg")}
    assert len(files) >= 12
    assert page.count("the runs behind it, with their parameters: <code>.csv</code>") == len(files)
    by_run = {one.run: one for one in rows}
    for file in files.values():
        lines = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        assert tuple(lines[0]) == COLUMNS
        assert lines
        assert [int(line["parameters"]) for line in lines] == [by_run[line["run"]].parameters for line in lines]
        known = [by_run[line["run"]].memory_bytes_bf16 for line in lines]
        assert [line["memory_bytes_bf16"] for line in lines] == ["" if one is None else str(one) for one in known]
    every = set().union(*({line["run"] for line in csv.DictReader(f.read_text().splitlines())} for f in files.values()))
    assert every == set(by_run)


def test_text_that_anybody_gave_a_variant_is_one_cell():
    (head, line) = csv.reader(runs_behind([row("infini", 4096, 0, 0.5, variant='a, "b"')]).splitlines())
    assert dict(zip(head, line, strict=True))["variant"] == 'a, "b"'


def curve(mechanism: str, of: dict[int, float], seeds: int = 4, **columns) -> list[Row]:
    random = np.random.default_rng(len(mechanism))
    return [
        row(mechanism, size, seed, value + 0.05 * seed + 0.001 * random.normal(), **columns)
        for size, value in of.items()
        for seed in range(seeds)
    ]


def slopes(rows: list[Row]) -> dict[str, tuple[str, ...]]:
    return {line[0]: line[2:] for line in slopes_table(found_of(rows)).lines}


def test_a_planted_slope_is_found_with_the_interval_of_the_seeds_and_none_where_none_is():
    sizes = (1024, 2048, 3072, 8192)
    rising = curve("infini", {size: 0.02 * np.log2(size) for size in sizes})
    told = slopes([*rising, *curve("landmark", dict.fromkeys(sizes, 0.4)), *curve("local", dict.fromkeys(sizes, 0.1))])
    assert set(told) == {"infini", "landmark"}  # the floor has no size to grow by
    by_seed = []
    for seed in range(4):
        mine = [one for one in rising if one.seed == seed]
        by_seed.append(
            stats.linregress(np.log2([one.memory_bytes for one in mine]), [100 * one.accuracy for one in mine]).slope
        )
    low, high = stats.t.interval(0.95, 3, np.mean(by_seed), stats.sem(by_seed))
    slope, unit, verdict, span, monotone, stands = told["infini"]
    assert slope == f"{np.mean(by_seed):.3g} [{low:.3g}, {high:.3g}]"
    assert unit == "points of a hundred of validation accuracy, higher is better"
    assert (verdict, span, monotone) == ("above 0", "4, 1 KiB to 8 KiB", "yes")
    assert stands == "validation; seeds 0, 1, 2, 3; 3.00e11 FLOPs; rate 0.01"
    assert told["landmark"][2] == "not settled"


def test_a_curve_that_goes_back_is_named_where_it_does():
    told = slopes(curve("infini", {1024: 0.2, 2048: 0.6, 4096: 0.5, 8192: 0.9}))
    assert told["infini"][4] == "no: back from 2 KiB to 4 KiB"


def test_a_seed_that_lacks_a_size_and_rungs_that_not_all_have_finished_have_no_part_in_a_slope():
    rows = curve("infini", {1024: 0.2, 2048: 0.3, 4096: 0.4}, rung=1)
    rows = [one for one in rows if (one.memory_bytes, one.seed) != (2048, 3)]
    more = [dataclasses.replace(one, run=f"{one.run}-b", rung=2, accuracy=0.9) for one in rows if one.memory_bytes == 1024]
    slope = slopes([*rows, *more])["infini"][0]
    assert slope.endswith(", without seed 3 (not measured at 2,048)")
    assert float(slope.split()[0]) == pytest.approx(10, abs=0.3)


def test_two_sizes_are_no_curve():
    assert isinstance(slopes_table(found_of(curve("infini", {1024: 0.2, 2048: 0.6}))), NotMeasured)


def test_scores_at_equal_bytes_stand_in_one_line_where_parameters_are_equal_too():
    rows = [
        *curve("infini", {4096: 0.5}, 3, parameters=124_000),
        *curve("gated_delta", {4000: 0.6}, 3, parameters=120_000),
        *curve("landmark", {4100: 0.4}, 3, parameters=37_000),
        *curve("landmark", {16_384: 0.7}, 3, parameters=37_000),
        *curve("infini", {16_384: 0.8}, 3, parameters=37_100),
        *curve("full", {16_384: 0.9}, 3, parameters=37_100),
        *curve("memorizing", {65_536: 0.9}, 3, parameters=37_100),
    ]
    lines = parameters_table(found_of(rows)).lines
    assert [(line[1], line[2], re.findall(r"[a-z_]{5,}", line[3])) for line in lines] == [
        ("4 KiB", "37,000", ["landmark"]),
        ("3.9 KiB–4 KiB", "120,000–124,000", ["gated_delta", "infini"]),
        ("16 KiB", "37,000–37,100", ["infini", "landmark"]),
    ]
    middle = sorted(one.accuracy for one in rows if one.mechanism == "gated_delta")[1]
    assert f"gated_delta {100 * middle:.1f} %" in lines[1][3]
    assert isinstance(parameters_table(found_of(rows[:3])), NotMeasured)
