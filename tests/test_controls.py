"""Whether a task decided anything: the words of the report where controls hold, fail, are missing or cannot tell."""

import dataclasses

import pytest
from scipy import stats

from infini_jax.config import RunConfig
from infini_jax.data import SOURCES
from infini_jax.data.echo import EchoConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.positions import PositionedConfig
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.report import StudySource, write_report
from infini_jax.report.controls import decisions, memory_gains, seed_interval
from infini_jax.report.found import Found
from infini_jax.report.looks import styles_of
from infini_jax.report.sections import score_for, task_view
from infini_jax.report.tables import echo_table
from tests.support.made_results import SIZES, config_of, fill, row_of

ROW = row_of("mqar", "local", "", SIZES[0], 0)
SLOTS = 512


def row(mechanism: str, seed: int, value: float, task: str = "mqar") -> Row:
    """A made-up run: its accuracy is `value`, and its loss."""
    made = dataclasses.replace(ROW, mechanism=mechanism, seed=seed, task=task, accuracy=value, loss=value)
    return dataclasses.replace(made, run=f"{task}-{mechanism}-{seed}")


def config(made: Row, slots: int = SLOTS, window: int = 8, positions: str = "rotary") -> RunConfig:
    """Settings of a made-up run; MQAR's questions stand 105 tokens behind the last value, the window reaches 14."""
    found = config_of(dataclasses.replace(made, task="mqar" if made.task == "mqar" else "python_stdlib"))
    memory: dict[str, PositionedConfig] = {
        "full": FullConfig(slots=slots, positions=positions),
        "local": LocalConfig(window=window, positions=positions),
    }
    model = dataclasses.replace(found.model, layers=2, memory=memory.get(made.mechanism, found.model.memory))
    data = EchoConfig(distances=(256, 1024)) if made.task == "echo" else found.data
    return dataclasses.replace(found, data=data, model=model)


def found_of(rows: list[Row], measures=(), **settings) -> Found:
    configs = {made.run: config(made, **settings).to_dict() for made in rows}
    return Found(rows, [], configs, {}, list(measures), {made.run: "a command" for made in rows})


def said(rows: list[Row], measures=(), **settings) -> list[str]:
    found = found_of(rows, measures, **settings)
    return [one.sentence for one in decisions(rows, found, score_for(rows, found))]


def pairs(full: list[float], local: list[float], task: str = "mqar") -> list[Row]:
    return [row(name, seed, value, task) for name, of in (("full", full), ("local", local)) for seed, value in enumerate(of)]


def echoes(rows: list[Row], losses: dict[tuple[str, int], float]) -> list[tuple[str, Measure]]:
    """Losses of quotations with the memory carried, by mechanism and distance; each seed is a thousandth worse."""
    return [
        (
            made.run,
            Measure("echo", "loss", loss + made.seed / 1000, 500, labels={"condition": "carried", "distance": distance}),
        )
        for made in rows
        for (mechanism, distance), loss in losses.items()
        if mechanism == made.mechanism
    ]


def test_every_task_declares_its_controls():
    for name, kind in SOURCES.items():
        controls = kind.controls
        assert (controls.floor, controls.positive, controls.negative) == ("local", "full", ("reset", "another"))
        perfect = {"echo": 0.0, "python_stdlib": None, "corpus": None, "conditioned": None, "sorting": None}.get(name, 1.0)
        assert controls.perfect == perfect


def test_a_positive_control_that_is_not_above_the_floor_is_told_with_both_scores():
    rows = pairs([0.031, 0.034, 0.029], [0.030, 0.033, 0.032])
    (line,) = said(rows)
    assert line.startswith(
        "This task decided nothing, because the positive control (full attention, 512 slots) has 3.1 %, not above the "
        "floor's 3.2 %; paired over 3 seeds it is better by -0.0 ("
    )
    (decided,) = decisions(rows, found_of(rows), score_for(rows, found_of(rows)))
    assert not decided.is_decided


def test_one_that_is_surely_above_it_decides():
    rows = pairs([0.98, 0.97, 0.99], [0.03, 0.035, 0.031])
    (decided,) = decisions(rows, found_of(rows), score_for(rows, found_of(rows)))
    assert decided.is_decided
    assert decided.sentence == (
        "The controls hold: the positive control (full attention, 512 slots) has 98.0 %, above the floor's 3.1 % "
        "(100.0 % is perfect); paired over 3 seeds it is better by 94.8 (91.8 to 97.8)."
    )


def test_pairing_decides_where_seeds_differ_more_than_controls():
    """Seed by seed the control is better by a tenth; the two ranges overlap."""
    (line,) = said(pairs([0.31, 0.61, 0.90], [0.21, 0.50, 0.80]))
    assert line.startswith("The controls hold")
    (line,) = said(pairs([0.90, 0.31, 0.61], [0.21, 0.50, 0.80]))
    assert line.startswith("This task decided nothing")


def test_few_seeds_decide_without_an_interval_and_say_so():
    (line,) = said(pairs([0.98], [0.03]))
    assert line.endswith("; 1 seed, too few for an interval.")
    (line,) = said(pairs([0.98, 0.02], [0.03, 0.03]))
    assert line.startswith("This task decided nothing")  # one of the two is not above


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        (pairs([], [0.03]), {}, "no positive control was run: full attention with enough slots"),
        (pairs([0.98], []), {}, "no floor was run: the sliding window, which the answers lie outside of"),
        (
            pairs([0.98], [0.03]),
            {"slots": 64},
            "the positive control (full attention, 64 slots) does not hold all that is asked about",
        ),
        (pairs([0.98], [0.03]), {"window": 128}, "its floor, the sliding window, reaches the answers"),
        (
            [row("full", 0, 0.98), row("local", 1, 0.03)],
            {},
            "no seed was run with both the positive control and the floor",
        ),
        (pairs([float("nan")], [0.03]), {}, "no positive control was run: full attention with enough slots"),
    ],
)
def test_what_is_missing_is_named(rows, settings, reason):
    assert said(rows, **settings) == [f"This task decided nothing, because {reason}."]


def test_echo_is_decided_distance_by_distance_and_doubts_positions_that_do_not_carry():
    rows = pairs([1.0] * 3, [2.0] * 3, "echo")
    losses = {("full", 256): 0.2, ("local", 256): 1.3, ("full", 1024): 1.31, ("local", 1024): 1.3}
    near, far = said(rows, echoes(rows, losses), slots=2048)
    assert near == (
        "The controls hold at 256 tokens: the positive control (full attention, 2,048 slots) has 0.2010 nats per byte, below "
        "the floor's 1.3010 nats per byte (0.0000 nats per byte is perfect); paired over 3 seeds it is better by 1.1000 "
        "(1.1000 to 1.1000)."
    )
    assert far.startswith(
        "This task decided nothing at 1,024 tokens, because the positive control (full attention, 2,048 slots)"
    )
    assert far.endswith("; its positions (rotary) may not carry beyond the 128 tokens of a training row.")
    assert "positions" not in said(rows, echoes(rows, losses), slots=2048, positions="t5")[1]
    _, short = said(rows, echoes(rows, losses), slots=512)
    assert short.endswith("(full attention, 512 slots) does not hold all that is asked about.")


def test_text_is_decided_by_its_evaluation_and_by_rows_where_there_is_none():
    """Lower is better; the task's figure of the memory carried comes before the row's loss."""
    rows = pairs([2.0] * 3, [2.5, 2.6, 2.55], "python_stdlib")
    (line,) = said(rows)
    assert line.startswith(
        "The controls hold: the positive control (full attention, 512 slots) has 2.0000 nats per byte, below"
    )
    measures = [
        (
            made.run,
            Measure("perplexity", "loss", {"full": 2.6, "local": 2.5}[made.mechanism], 9, labels={"condition": "carried"}),
        )
        for made in rows
    ]
    (line,) = said(rows, measures)
    assert "has 2.6000 nats per byte, not below the floor's 2.5000 nats per byte" in line


def test_jobs_that_are_no_task_of_the_registry_have_no_controls():
    assert said([dataclasses.replace(ROW, task="capacity")]) == []


def test_the_interval_over_seeds_is_students_t():
    values = [0.3, 0.5, 0.1, 0.45, 0.2]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert seed_interval(values) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert seed_interval(values[:2]) is None


def gains(over: dict[str, tuple[float, float]], seeds: int) -> tuple[list[Row], list[tuple[str, Measure]]]:
    """Runs of infini and their gains over each control as (value, lower end), each seed a thousandth more."""
    rows = [row("infini", seed, 1.0, "python_stdlib") for seed in range(seeds)]
    measures = [
        (made.run, Measure("perplexity", "gain", value + made.seed / 1000, 99, low, 9.0, {"control": control}))
        for made in rows
        for control, (value, low) in over.items()
    ]
    return rows, measures


YES = "Memory, better than each control by at least so many nats per byte: infini"
NO = "Not called memory, for want of a sure gain over a control: infini"
NOT = float("nan")


@pytest.mark.parametrize(
    ("over", "seeds", "told"),
    [
        ({"reset": (0.3, 0.2), "another": (0.1, 0.05)}, 1, f"{YES} (0.100); 1 seed, too few for an interval over them."),
        ({"reset": (0.3, 0.2), "another": (0.1, -0.05)}, 1, f"{NO} (another)."),
        ({"reset": (-0.3, -0.4), "another": (-0.1, -0.2)}, 1, f"{NO} (reset and another)."),
        ({"reset": (0.3, 0.2)}, 1, f"{NO} (another)."),
        ({"reset": (0.3, -1.0), "another": (0.1, -1.0)}, 3, f"{YES} (0.101)."),  # seeds say it, not documents
        ({"reset": (0.3, NOT), "another": (0.1, NOT)}, 2, f"{NO} (reset and another)."),
    ],
)
def test_a_gain_is_called_memory_only_where_it_beats_both_controls(over, seeds, told):
    rows, measures = gains(over, seeds)
    found = found_of(rows, measures)
    assert memory_gains(rows, found, score_for(rows, found)) == [told]


def test_the_table_of_distances_has_the_median_loss_and_the_gain_over_the_better_control():
    rows = pairs([1.0] * 3, [], "echo")
    measures = echoes(rows, {("full", 0): 1.4, ("full", 256): 0.2})
    measures += [
        (made.run, Measure("echo", "gain", gain + made.seed, 500, labels={"control": control, "distance": 256}))
        for made in rows
        for control, gain in (("reset", 1.5), ("another", 1.25))
    ]
    table = echo_table(found_of(rows, measures))
    assert table.heads == ("Mechanism", "Memory", "first time", "256 tokens back")
    assert table.lines == (("full", "4 KiB", "1.401", "0.201 (2.250)"),)
    assert echo_table(found_of(rows)).needs == "the evaluation echo of runs on the task echo"


def test_a_tasks_section_of_the_page_opens_with_it(tmp_path):
    rows = pairs([0.031, 0.034, 0.029], [0.030, 0.033, 0.032])
    found = found_of(rows)
    (line,) = task_view("mqar", rows, found, styles_of(rows))["controls"]
    assert line.startswith("This task decided nothing, because")
    fill(tmp_path, rows, configs={made.run: config(made) for made in rows})
    page = write_report([StudySource(tmp_path)], tmp_path).read_text(encoding="utf-8").replace("&#39;", "'")
    assert page.index('<dl class="verdicts">') < page.index(line) < page.index("The highest median validation accuracy is")
