"""The memory layer alone: what is drawn and counted, that codes learn, that any mechanism of the registry is measured."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.codes import learning as training
from infini_jax.codes.capacity import CapacityRun, capacity_steps, forward_flops, planned_flops, step_flops
from infini_jax.codes.coded_layer import OPEN, with_landmarks
from infini_jax.codes.probe import read_out_error
from infini_jax.codes.standalone import counted_step_flops, grid
from infini_jax.config import Budget
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.model.cost import program_flops
from infini_jax.records.folder import OWN_FILE
from infini_jax.records.measures import read_measures
from infini_jax.records.rows import read_rows
from infini_jax.study import jobs
from tests.support.marks import slow_but
from tests.support.registering import without_stream

TINY = CapacityRun(
    symbols=16,
    key_dim=8,
    value_dim=8,
    segment=4,
    pairs=(1, 12),
    batch=4,
    grid=4,
    rows=8,
    questions=4,
    budget=Budget("steps", 3),
)
SETTINGS = {
    "memorizing": MemorizingConfig(slots=8, top_k=4),
    "landmark": LandmarkConfig(block=4, blocks=2, retrieved=1),
    "infinite_former": InfiniteFormerConfig(basis=8, samples=8),
    "full": FullConfig(slots=12),
}
QUICK = ("infini",)


def of(name: str) -> CapacityRun:
    return dataclasses.replace(TINY, memory=SETTINGS.get(name, MECHANISMS[name].Config()))


def mechanisms():
    return slow_but(QUICK, without_stream())


@functools.cache
def answers_of(name: str):
    run = of(name)
    return training.init_layer(run, jax.random.key(0)), jax.jit(lambda params, pairs: training.answers(run, params, pairs)[0])


def drawn(n: int, distinct: int = 0, seed: int = 0) -> training.Pairs:
    return training.draw(TINY, np.random.default_rng(seed), 16, np.full(3, n), np.full(3, distinct or n))


def test_keys_are_written_once_and_questions_want_what_was_written():
    pairs = drawn(9)
    for row in range(3):
        counted = np.flatnonzero(pairs.documents[row] == OPEN)
        assert list(counted) == list(range(3, 12))
        assert len(set(pairs.keys[row, counted])) == 9
        written = dict(zip(pairs.keys[row, counted], pairs.values[row, counted], strict=True))
        assert [written[key] for key in pairs.asked[row]] == list(pairs.wanted[row])
        np.testing.assert_array_equal(pairs.keys[row, 11 - pairs.ages[row]], pairs.asked[row])


def test_the_newest_value_of_a_key_counts():
    pairs = drawn(10, 5)
    for row in range(3):
        newest = dict(zip(pairs.keys[row, 2:], pairs.values[row, 2:], strict=True))  # later ones replace earlier ones
        assert len(newest) == 5
        assert [newest[key] for key in pairs.asked[row]] == list(pairs.wanted[row])


def test_numbers_of_pairs_are_spread_evenly_in_the_logarithm():
    run = dataclasses.replace(TINY, symbols=64, pairs=(2, 50), batch=64)
    n = (training.draw_steps(run, np.random.default_rng(0), 50).documents == OPEN).sum(axis=-1).ravel()
    assert (n.min(), n.max()) == (2, 50)
    for edge in (4, 10, 25):
        share = math.log(edge / 2) / math.log(51 / 2)
        assert np.mean(n < edge) == pytest.approx(share, abs=0.03)  # 3 sigma of 3200 draws


@pytest.mark.parametrize("name", mechanisms())
def test_what_stands_before_the_pairs_changes_nothing(name):
    params, answers = answers_of(name)
    pairs = drawn(6)
    old = np.arange(12) < 6
    other = pairs.replace(keys=np.where(old, pairs.keys[:, ::-1], pairs.keys), values=np.where(old, 0, pairs.values))
    np.testing.assert_array_equal(answers(params, pairs), answers(params, other))
    newer = pairs.replace(values=np.where(old, pairs.values, (pairs.values + 1) % 16))
    assert np.abs(answers(params, pairs) - answers(params, newer)).max() > 1e-6


@pytest.mark.parametrize("name", mechanisms())
def test_counted_flops_are_those_of_the_program(name):
    run = of(name)
    shapes = jax.eval_shape(lambda: training.init_layer(run, jax.random.key(0)))
    pairs = training.draw(run, np.random.default_rng(0), run.segment, np.full(4, 5), np.full(4, 5))
    written, asked = forward_flops(run)

    def loss(params, pairs):
        return training.loss(run, params, pairs)

    counted = run.batch * run.segment * (run.segments * written + asked)
    executed = program_flops(loss, shapes, pairs).executed
    if "charges_where_computed" in MECHANISMS[name].exempt:  # questions are asked fewer times than pairs are written
        assert executed < counted < 1.2 * executed
    else:
        assert executed == pytest.approx(counted)


@pytest.mark.parametrize("name", mechanisms())
def test_the_plan_counts_what_a_training_step_computes_without_recomputation(name):
    """Where no gradient reaches what is written, none reaches the values that codes are projected to; the plan has them."""
    counted, planned = counted_step_flops(of(name)).work, step_flops(of(name))
    if "values" in MECHANISMS[name].learns:
        assert counted == pytest.approx(planned, rel=0.02), f"let {name}'s cost say what no gradient reaches, or its `learns`"
    else:
        assert counted < planned < 1.3 * counted


def test_budgets_become_steps():
    run = dataclasses.replace(TINY, budget=Budget("flops", 10.5 * step_flops(TINY)))
    assert (capacity_steps(run), planned_flops(run)) == (10, 10 * step_flops(TINY))
    assert capacity_steps(dataclasses.replace(TINY, budget=Budget("tokens", 4 * 16 * 7))) == 7
    for budget in (Budget("flops", 1.0), Budget("seconds", 5)):
        with pytest.raises(ConfigError, match="budget"):
            capacity_steps(dataclasses.replace(TINY, budget=budget))


@pytest.mark.parametrize("wrong", [{"pairs": (3, 17)}, {"pairs": (5, 5)}, {"segment": 0}, {"grid": 1}, {"overwrites": -1}])
def test_settings_that_cannot_work_are_one_line(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(TINY, **wrong)
    with pytest.raises(ConfigError, match="blocks of 3"):
        dataclasses.replace(TINY, memory=LandmarkConfig(block=3))


def test_a_landmark_has_the_mean_of_its_block_without_other_documents():
    x = np.arange(8.0).reshape(1, 8, 1)
    documents = np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    found = with_landmarks(jnp.asarray(x), jnp.asarray(documents), 4)[0, :, 0]
    np.testing.assert_allclose(found, [0, 1, 2, 3, 3, 4, 5, 6, 7, 5.5])


def test_the_probe_reads_what_is_linear_and_gains_nothing_from_noise():
    random = np.random.default_rng(0)
    codes, noise = random.standard_normal((400, 3)), random.standard_normal((400, 5))
    assert read_out_error(codes @ random.standard_normal((3, 5)) + 7, codes) < 1e-6
    assert read_out_error(noise, codes) == pytest.approx(1.0, abs=0.05)  # three standard deviations of 1200 squares' mean
    draws = [read_out_error(random.standard_normal((64, 7)), random.standard_normal((64, 9))) for _ in range(200)]
    assert np.mean(draws) == pytest.approx(
        1.0, abs=0.02
    )  # uncorrected it is 1.3: each half fits eight weights to 32 questions
    flat = np.repeat(random.standard_normal((400, 2)), 20, axis=1)  # forty entries of rank two
    assert read_out_error(flat, codes) == pytest.approx(1.0, abs=0.05)
    assert math.isnan(read_out_error(noise[:20], codes[:20]))


@dataclasses.dataclass(frozen=True)
class TallyConfig(MemoryConfig):
    """A toy: the sum of key x value over what was written. Attributes: share, of the memory in the answer."""

    share: float = 1.0


class Tally(Memory):
    """Nothing but what the interface asks for."""

    Config = TallyConfig
    summary, paper, axes = "a toy", "none", ("key_dim",)

    def init_memory(self, batch: int) -> Any:
        d = self.dims
        return jnp.zeros((batch, d.kv_heads, d.key_dim, d.value_dim))

    def logical_axes(self) -> Any:
        return ("batch", "kv_heads", None, None)

    def attend(self, memory, segment):
        y_BxSxHxV = jnp.einsum("bshk,bhkv->bshv", segment.queries, memory) * self.config.share
        return self.out(jnp.where(segment.bounds.reads_BxS[..., None, None], y_BxSxHxV, 0.0)), {}

    def write(self, memory, segment):
        keys = segment.keys * segment.bounds.writes_BxT[..., None, None]
        kept = jnp.where(segment.bounds.keeps_B[:, None, None, None], memory, 0.0)
        return kept + jnp.einsum("bthk,bthv->bhkv", keys, segment.values)

    def cost(self, segment_length: int) -> Cost:
        matrix = 2.0 * self.dims.heads * self.dims.key_dim * self.dims.value_dim
        return Cost(read=matrix, write=matrix)

    @classmethod
    def resized(cls, config: TallyConfig, dims: Dims, size: int, axis: str = "") -> tuple[TallyConfig, Dims]:
        return config, dataclasses.replace(dims, key_dim=size)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A mechanism that is in the registry only now, trained as a job: (run, row, figures by metric, folder)."""
    patch = pytest.MonkeyPatch()
    patch.setitem(MECHANISMS, "tally", Tally)
    run = dataclasses.replace(TINY, memory=TallyConfig(), batch=8, rows=32, budget=Budget("steps", 200)).at_bytes(140)
    folder = tmp_path_factory.mktemp("tally")
    row = jobs.execute_job(run, folder, "study")
    found = [one for _, one in read_measures([folder / "measures" / OWN_FILE])]
    yield run, row, {name: [one for one in found if one.metric == name] for name in {one.metric for one in found}}, folder
    patch.undo()


def test_a_mechanism_that_is_added_now_is_trained_and_measured(finished):
    run, row, found, folder = finished
    assert (row.mechanism, row.task, row.memory_bytes) == ("tally", "capacity", 128)
    assert read_rows(folder / "row.parquet") == [row]
    assert jobs.job_from_plain(jobs.job_to_plain(run)) == run
    assert {"accuracy", "nmse", "accuracy_by_age", "accuracy_by_writes", "overwritten", "n50", "bits_per_scalar"} == set(found)
    assert [one.labels["pairs"] for one in found["accuracy"]] == grid(run)
    assert row.flops_actual == row.flops_planned == planned_flops(run)
    assert row.flops_counted == pytest.approx(row.flops_actual, rel=0.2)  # a toy that does not look at inputs saves gradients
    assert row.flops_executed >= row.flops_counted


def test_trained_codes_are_recalled_and_more_of_them_less(finished):
    _, row, found, _ = finished
    accuracy = [one.value for one in found["accuracy"]]
    assert accuracy[0] > 0.95  # chance is 1/16
    assert accuracy[-1] < accuracy[0] - 0.1
    assert row.loss < 0.8 * math.log(16)
    assert row.test_loss == pytest.approx(row.loss, abs=0.3)  # other pairs, the same codes


def test_figures_by_age_and_by_writes_add_up_to_the_accuracy(finished):
    run, _, found, _ = finished
    for metric, label in (("accuracy_by_age", "age"), ("accuracy_by_writes", "writes")):
        for whole in found["accuracy"]:
            parts = [one for one in found[metric] if one.labels["pairs"] == whole.labels["pairs"]]
            assert sum(one.count for one in parts) == whole.count
            assert sum(one.value * one.count for one in parts) == pytest.approx(whole.value * whole.count)
            assert len({one.labels[label] for one in parts}) == len(parts)
    assert max(one.labels["writes"] for one in found["accuracy_by_writes"]) == run.segments - 1


def test_a_sum_cannot_overwrite(finished):
    _, _, found, _ = finished
    once = {one.labels["pairs"]: one.value for one in found["accuracy"]}
    for one in found["overwritten"]:
        assert one.value < once[one.labels["pairs"]]


def test_the_rate_rises_and_falls_to_a_tenth():
    rate = training.rates(dataclasses.replace(TINY, learning_rate=0.2), 100)
    assert rate[4] == rate.max() == np.float32(0.2)
    assert rate[-1] == pytest.approx(0.02)
    assert np.all(np.diff(rate[:5]) > 0)
    assert np.all(np.diff(rate[4:]) < 0)


def test_trials_of_a_point_share_their_programs():
    first = dataclasses.replace(TINY, name="a", seed=1)
    other = dataclasses.replace(TINY, name="b", seed=2, budget=Budget("steps", 99)).with_learning_rate(1.0)
    assert training.program_key(first) == training.program_key(other)
    assert training.program_key(first) != training.program_key(dataclasses.replace(first, key_dim=10))
    assert first.fingerprint() != dataclasses.replace(first, seed=2).fingerprint()
    assert first.fingerprint() == dataclasses.replace(first, name="c", variant="v").fingerprint()
