"""The table of effects: what a study must declare, and what the report says of planted effects, of none, and of gaps."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from scipy import stats

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.rows import Row
from infini_jax.report import StudySource, write_report
from infini_jax.report.effects import effects_table
from infini_jax.report.found import Found
from infini_jax.report.parts import NotMeasured
from infini_jax.study.factors import Design, Factor, size_classes
from infini_jax.study.study import Study, save_study, study_in
from tests.support.made_results import fill, row_of

GATES, UPDATES, SEEDS = (-2.0, 0.0, 2.0), ("linear", "delta"), 5
DESIGN = Design((Factor("gate", "model.memory.gate_init"), Factor("update", "model.memory.update")), tolerance=0.02)


def job(gate: float, update: str, seed: int, key_dim: int = 4) -> RunConfig:
    return RunConfig(
        name=f"gate{gate:g}-{update}-k{key_dim}-s{seed}",
        seed=seed,
        variant=f"gate{gate:g} {update}",
        model=ModelConfig(
            vocab=32, layers=1, d_model=8, heads=1, key_dim=key_dim, memory=InfiniConfig(gate_init=gate, update=update)
        ),
        data=MqarConfig(pairs=4, symbols=32),
        train=TrainConfig(batch=1, sequence=64),
        budget=Budget("steps", 1),
    )


def jobs(key_dims=(4,), seeds=SEEDS) -> list[RunConfig]:
    return [job(*of) for of in itertools.product(GATES, UPDATES, range(seeds), key_dims)]


def row(made: RunConfig, accuracy: float, **columns) -> Row:
    known = {"variant": made.variant, "seed": made.seed, "memory_bytes": made.memory_bytes, "accuracy": accuracy}
    return dataclasses.replace(row_of("mqar", "infini", "linear", 4096, 0), run=made.name, **known, **columns)


def shares(effect: float = 0.0, together: float = 0.0, key_dims=(4,)) -> dict[str, float]:
    """Accuracies by run: seeds differ by tenths, cells by hundredths; `effect` and `together` are planted at delta."""
    random = np.random.default_rng(7)
    of_seed, of_cell = 0.1 * random.random(SEEDS), {gate: 0.02 * random.random() for gate in GATES}
    return {
        made.name: 0.4
        + of_seed[made.seed]
        + of_cell[made.model.memory.gate_init]
        + (effect + together * (made.model.memory.gate_init == 2.0)) * (made.model.memory.update == "delta")
        + 0.002 * random.normal()
        for made in jobs(key_dims)
    }


def found_of(made: list[RunConfig], accuracies: dict[str, float], **columns) -> Found:
    rows = [row(one, accuracies[one.name], **columns) for one in made]
    return Found(rows, [], {one.name: one.to_dict() for one in made}, {}, [], {one.name: "a command" for one in made})


def lines(found: Found, tmp_path, design: Design = DESIGN) -> dict[str, tuple[str, ...]]:
    """The lines of the table by factor and step."""
    table = effects_table([StudySource(tmp_path, design=design)], [found])
    return {f"{line[0]}: {line[2]}": line[3:] for line in table.lines}


def numbers_of(cell: str) -> list[float]:
    return [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", cell)]


def by_hand(found: Found, low: str, high: str, gates=GATES) -> tuple[float, float, float]:
    """Mean and interval of high minus low in points of a hundred, from the names of the runs alone."""
    value = {one.run: 100 * one.accuracy for one in found.rows}
    by_seed = [
        np.mean([value[f"gate{g:g}-{high}-k4-s{s}"] - value[f"gate{g:g}-{low}-k4-s{s}"] for g in gates]) for s in range(5)
    ]
    return (np.mean(by_seed), *stats.t.interval(0.95, 4, np.mean(by_seed), stats.sem(by_seed)))


def test_a_planted_effect_is_found_and_where_none_is_planted_none_is_claimed(tmp_path):
    found = found_of(jobs(), shares(effect=0.1))
    told = lines(found, tmp_path)
    effect, verdict, why, settings, stands = told["update: delta → linear"]
    assert numbers_of(effect) == pytest.approx(by_hand(found, "delta", "linear"), rel=5e-3)  # three digits are printed
    assert (verdict, why, settings) == ("below 0", "the interval lies on one side of 0", "3 of 3")
    assert stands == "validation; seeds 0, 1, 2, 3, 4; 3.00e11 FLOPs; rate 0.01"
    assert told["gate × update: -2 → 2; delta → linear"][1:3] == ("agrees with 0", "the interval lies within ±2")


def test_of_no_effect_within_the_tolerance_it_is_said_that_it_agrees_with_zero(tmp_path):
    accuracies = shares()
    assert lines(found_of(jobs(), accuracies), tmp_path)["update: delta → linear"][1] == "agrees with 0"
    narrow = dataclasses.replace(DESIGN, tolerance=1e-5)
    verdict, why = lines(found_of(jobs(), accuracies), tmp_path, narrow)["update: delta → linear"][1:3]
    assert (verdict, why) == ("not settled", "the interval holds 0 and reaches beyond ±0.001")


def test_a_planted_interaction_is_told_beside_the_effects(tmp_path):
    told = lines(found_of(jobs(), shares(effect=0.02, together=0.2)), tmp_path)
    assert told["gate × update: -2 → 2; delta → linear"][1] == "below 0"
    assert numbers_of(told["gate × update: -2 → 2; delta → linear"][0])[0] == pytest.approx(-20, abs=1)


def test_a_seed_without_a_run_is_left_out_of_what_needs_it_and_named(tmp_path):
    made = [one for one in jobs() if one.name not in ("gate0-delta-k4-s1", "gate0-delta-k4-s3")]
    told = lines(found_of(made, shares(effect=0.1)), tmp_path)
    effect, verdict, why, *_ = told["update: delta → linear"]
    assert (verdict, len(numbers_of(effect))) == ("below 0", 3)
    assert "without seed 1 (lacks 1 of 6 runs) and seed 3 (lacks 1 of 6 runs)" in why
    made = [one for one in made if one.seed != 0]
    assert lines(found_of(made, shares(effect=0.1)), tmp_path)["update: delta → linear"][1:3] == (
        "not settled",
        "no interval from 2 seeds (2, 4); without seed 1 (lacks 1 of 6 runs) and seed 3 (lacks 1 of 6 runs)",
    )


def test_a_design_that_is_not_balanced_names_what_it_lacks_and_has_no_interaction_there(tmp_path):
    made = [one for one in jobs() if not one.name.startswith("gate2-delta")]
    found = found_of(made, shares(effect=0.1))
    told = lines(found, tmp_path)
    effect, verdict, why, settings, _ = told["update: delta → linear"]
    assert numbers_of(effect) == pytest.approx(by_hand(found, "delta", "linear", GATES[:2]), rel=5e-3)
    assert (verdict, settings) == ("below 0", "2 of 3")
    assert why.endswith("lacking at 2")
    assert told["gate × update: -2 → 2; delta → linear"][:3] == (
        "–",
        "not settled",
        "not all combinations of these levels were measured",
    )


def test_bytes_of_memory_are_a_factor_and_others_are_compared_at_equal_bytes(tmp_path):
    key_dims = (4, 16)
    accuracies = shares(effect=0.1, key_dims=key_dims)
    grown = {name: value + 0.05 * ("-k16-" in name) for name, value in accuracies.items()}
    told = lines(found_of(jobs(key_dims), grown), tmp_path)
    small, large = (job(0.0, "linear", 0, key_dim).memory_bytes for key_dim in key_dims)
    assert numbers_of(told[f"memory: {small} B → {large} B"][0])[0] == pytest.approx(5, abs=0.3)
    assert told["update: delta → linear"][3] == "6 of 6"
    assert told[f"update × memory: delta → linear; {small} B → {large} B"][1] == "agrees with 0"


def test_bytes_that_follow_from_the_levels_are_no_factor_of_their_own(tmp_path):
    made = [one for one in jobs((4, 16)) if (one.model.key_dim == 4) == (one.model.memory.update == "linear")]
    told = lines(found_of(made, shares(effect=0.1, key_dims=(4, 16))), tmp_path)
    assert all("memory" not in name for name in told)
    assert told["update: delta → linear"][2].endswith("bytes of memory follow from the levels")


def test_two_runs_of_a_seed_with_the_same_levels_say_nothing(tmp_path):
    made = jobs()
    again = [dataclasses.replace(one, name=f"{one.name}-again") for one in made]
    accuracies = shares()
    found = found_of([*made, *again], accuracies | {one.name: accuracies[one.name.removesuffix("-again")] for one in again})
    (line,) = effects_table([StudySource(tmp_path, design=DESIGN)], [found]).lines
    assert line[4:6] == ("not settled", f"several runs of a seed have the levels of {made[0].name}")


def test_points_are_compared_on_the_highest_rung_that_all_of_them_have_finished(tmp_path):
    made, accuracies = jobs(), shares(effect=0.1)
    found = found_of(made, accuracies, rung=1, budget_amount=1e11)
    above = found_of(made, {name: value + 0.3 for name, value in shares().items()}, rung=2, budget_amount=4e11)
    some = [dataclasses.replace(one, run=f"{one.run}-b2") for one in above.rows if "linear" in one.variant]
    configs = found.configs | {one.run: found.configs[one.run.removesuffix("-b2")] for one in some}
    both = dataclasses.replace(found, rows=[*found.rows, *some], configs=configs)
    assert lines(both, tmp_path)["update: delta → linear"] == lines(found, tmp_path)["update: delta → linear"]
    alone = [dataclasses.replace(one, rung=1 + ("linear" in one.variant)) for one in found.rows]
    (line,) = effects_table([StudySource(tmp_path, design=DESIGN)], [dataclasses.replace(found, rows=alone)]).lines
    assert line[5] == "its points have no finished rung in common"


def test_floor_and_runs_of_unknown_levels_have_no_part(tmp_path):
    found = found_of(jobs(), shares(effect=0.1))
    floor = dataclasses.replace(found.rows[0], run="floor", mechanism="local", accuracy=0.9)
    old = dataclasses.replace(found.rows[0], run="old", accuracy=0.9)
    settings = found.configs[found.rows[0].run]
    memory = {name: value for name, value in settings["model"]["memory"].items() if name != "update"}
    configs = found.configs | {"floor": settings, "old": settings | {"model": settings["model"] | {"memory": memory}}}
    more = dataclasses.replace(found, rows=[*found.rows, floor, old], configs=configs)
    told = lines(more, tmp_path)["update: delta → linear"]
    assert told[0] == lines(found, tmp_path)["update: delta → linear"][0]
    assert "without 1 runs whose levels are not known" in told[2]


def test_the_page_has_the_table_and_says_how_many_intervals_there_are(tmp_path):
    made = jobs()
    found = found_of(made, shares(effect=0.1))
    fill(tmp_path, found.rows, configs={one.name: one for one in made})
    page = write_report([StudySource(tmp_path, design=DESIGN)], tmp_path).read_text(encoding="utf-8")
    assert '<h2 id="effects">Effects of factors</h2>' in page
    assert "Of 4 intervals about 0 would miss 0 if nothing had an effect." in page
    assert "gate × update" in page
    plain = write_report([StudySource(tmp_path)], tmp_path).read_text(encoding="utf-8")
    assert '<h2 id="effects">' not in plain
    assert isinstance(effects_table([StudySource(tmp_path)], [found]), NotMeasured)


def study(made: list[RunConfig], *factors: Factor) -> Study:
    return Study("combined", "What matters?", tuple(made), design=Design(factors, 0.02))


def test_a_study_keeps_its_design_in_its_folder(tmp_path):
    made = study(jobs(), *DESIGN.factors, Factor("gate by word", words=("gate0", "gate2", "gate-2")))
    save_study(made, tmp_path)
    assert study_in(tmp_path).design == made.design
    floor = dataclasses.replace(jobs()[0], name="floor", model=dataclasses.replace(jobs()[0].model, memory=LocalConfig()))
    part = dataclasses.replace(made, runs=(*made.runs, floor)).restricted("infini")
    assert part.design == made.design


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: study(jobs(), Factor("gate", "model.memory.gate")),
            "design.factors: no run has 'model.memory.gate', of gate",
        ),
        (lambda: study(jobs(), Factor("axis", words=("key_dim", "d_model"))), "design.factors: no run has one of the words"),
        (lambda: study(jobs(), DESIGN.factors[0]), "design.factors: gate-2-linear-k4-s0 and gate-2-delta-k4-s0 have the same"),
        (lambda: Design((), 0.1), "design.factors: there is none"),
        (lambda: Design((DESIGN.factors[0],) * 2, 0.1), "design.factors: two are called gate"),
        (lambda: Design(DESIGN.factors, -0.1), "design.tolerance: -0.1 is negative"),
        (lambda: Factor("gate"), "factor.setting: it needs a setting or words, and not both"),
        (lambda: Factor("gate", "seed", words=("a", "b")), "factor.setting: it needs a setting or words, and not both"),
        (lambda: Factor("gate", words=("a", "a")), "factor.words: they tell no levels apart"),
        (lambda: Factor("", "seed"), "factor.name: it is empty"),
        (lambda: Factor("gate", per="seed", words=("a", "b")), "factor.per: there is no setting to divide"),
    ],
)
def test_a_design_that_tells_nothing_apart_is_one_line(made, said):
    with pytest.raises(ConfigError) as raised:
        made()
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_levels_are_settings_quotients_of_two_or_words_of_the_variant():
    settings = {"train.gate_learning_rate": 0.3, "train.learning_rate": 0.1, "model.key_taps_own": None, "data.sizes": [1, 2]}
    assert Factor("rate", "train.gate_learning_rate", per="train.learning_rate").level(settings, "") == 3.0
    assert Factor("own", "model.key_taps_own").level(settings, "") == "none"
    assert Factor("sizes", "data.sizes").level(settings, "") == (1, 2)
    assert Factor("lost", "model.other").level(settings, "") is None
    axis = Factor("axis", words=("key_dim", "d_model"))
    assert [axis.level({}, of) for of in ("linear-d_model", "key_dim", "a d_model", "linear")] == [
        "d_model",
        "key_dim",
        "d_model",
        None,
    ]
    assert sorted(("d_model", "key_dim"), key=axis.place) == ["key_dim", "d_model"]
    assert sorted((2.0, "none", -1.0), key=Factor("own", "x").place) == ["none", -1.0, 2.0]


def test_sizes_within_a_quarter_of_the_smallest_are_one_class():
    assert size_classes([1000, 1250, 1251, 1500, 2000, 1000]) == {1000: 1000, 1250: 1000, 1251: 1251, 1500: 1251, 2000: 2000}
