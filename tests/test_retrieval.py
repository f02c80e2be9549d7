"""The retrieval task: pairs, the layer against float64 loops, counted FLOPs, the end of training, the published points."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import fast_weights
from infini_jax.codes import retrieval, retrieving
from infini_jax.codes.retrieval import RetrievalRun
from infini_jax.config import Budget
from infini_jax.errors import ConfigError
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.folder import OWN_FILE
from infini_jax.records.measures import read_measures
from infini_jax.records.rows import read_rows
from infini_jax.study import jobs

TINY = RetrievalRun(key_dim=6, pairs=7, batch=3, sequences=2, budget=Budget("steps", 300))
DPFP = dataclasses.replace(TINY, memory=InfiniConfig(feature_map="dpfp"))


def test_sequences_hold_every_key_and_every_value_once_and_an_examination_asks_all():
    drawn = retrieving.draw(TINY, np.random.default_rng(0), 50)
    np.testing.assert_array_equal(np.sort(drawn.keys), np.broadcast_to(np.arange(7), (50, 7)))
    np.testing.assert_array_equal(np.sort(drawn.values), np.broadcast_to(np.arange(7), (50, 7)))
    assert set(drawn.asked[:, 0]) == set(range(7))
    examined = retrieving.draw_examination(TINY, np.random.default_rng(0))
    np.testing.assert_array_equal(examined.asked, np.broadcast_to(np.arange(7), (2, 7)))


def features_of(run: RetrievalRun, x: np.ndarray) -> np.ndarray:
    """elu + 1, or products of neighbors among relu([x, -x])."""
    if run is TINY:
        return np.where(x > 0, x + 1, np.exp(x))
    r = np.maximum(np.concatenate([x, -x]), 0)
    return np.array([r[i] * r[i - 1] for i in range(len(r))])


@pytest.mark.parametrize("run", [TINY, DPFP], ids=["elu", "dpfp"])
def test_the_loss_is_that_of_a_loop_over_pairs(run):
    params, _ = retrieving.begun(run)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    drawn = retrieving.draw_examination(run, np.random.default_rng(1))
    lost, right = retrieving.errors(run, params, drawn)
    for row in range(2):
        S, z = np.zeros((run.features, 7)), np.zeros(run.features)
        for key, value in zip(drawn.keys[row], drawn.values[row], strict=True):
            inputs = np.concatenate([np.eye(7)[value], p["embeddings"][key]])
            weights = np.concatenate([p["key_of_value"], p["key_of_embedding"]])
            k = features_of(run, inputs @ weights + p["key_bias"])
            S, z = S + np.outer(k, np.eye(7)[value]), z + k
        for place in range(7):
            query = p["embeddings"][drawn.keys[row, place]] @ p["query_of_embedding"] + p["query_bias"]
            q = features_of(run, query)
            answer = q @ S / (q @ z)
            expected = 0.5 * np.sum((answer - np.eye(7)[drawn.values[row, place]]) ** 2)
            assert float(lost[row, place]) == pytest.approx(expected, rel=1e-4)  # float32 against float64
            assert bool(right[row, place]) == (answer.argmax() == drawn.values[row, place])


def test_few_questions_are_projected_alone_and_many_from_the_table_to_the_same_answers():
    params, _ = retrieving.begun(TINY)
    drawn = retrieving.draw_examination(TINY, np.random.default_rng(2))
    many, _ = retrieving.errors(TINY, params, drawn)  # 14 questions, 7 keys
    few, _ = retrieving.errors(TINY, params, jax.tree.map(lambda x: x[:1, :], drawn).replace(asked=drawn.asked[:1, 2:5]))
    np.testing.assert_allclose(few[0], many[0, 2:5], rtol=1e-5)  # float32: products in another order


@pytest.mark.parametrize("run", [RetrievalRun(), RetrievalRun(memory=InfiniConfig(feature_map="dpfp"), pairs=140)])
def test_planned_flops_are_those_of_the_program(run):
    counted = retrieving.counted_step_flops(run)
    assert counted.work == pytest.approx(retrieval.step_flops(run), rel=0.03)  # element-wise work is not planned


def test_the_authors_loss_is_the_mean_of_the_means_of_batches_that_are_not_equally_large():
    run = dataclasses.replace(TINY, batch=3)  # batches of 3, 3 and 1
    lost_Q = np.random.default_rng(0).random(7).astype(np.float32)
    expected = np.mean([lost_Q[:3].mean(), lost_Q[3:6].mean(), lost_Q[6]])
    assert float(lost_Q @ retrieving.authors_weights(run)) == pytest.approx(float(expected), rel=1e-6)  # float32
    even = dataclasses.replace(TINY, batch=7)
    np.testing.assert_allclose(retrieving.authors_weights(even), 1 / 7, rtol=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run, row, figures by name, folder) of a memory with room for its pairs, done as a job."""
    folder = tmp_path_factory.mktemp("retrieval")
    run = dataclasses.replace(TINY, key_dim=16, batch=16, enough=0.05, published=0.25, budget=Budget("steps", 3000))
    row = jobs.execute_job(run, folder, "study")
    return run, row, {one.metric: one for _, one in read_measures([folder / "measures" / OWN_FILE])}, folder


def test_a_memory_with_room_retrieves_and_ends_by_its_loss(finished):
    run, row, found, folder = finished
    assert row.loss <= 0.05
    assert row.accuracy > 0.95
    assert row.test_loss == pytest.approx(row.loss, abs=0.05)  # other sequences
    assert row.steps < 3000
    assert row.stopped_early == "a loss of 0.05 or less"
    assert read_rows(folder / "row.parquet") == [row]
    assert jobs.job_from_plain(jobs.job_to_plain(run)) == run
    assert found["loss"].value == row.loss
    assert found["difference"].value == pytest.approx(row.loss - 0.25)
    assert row.flops_actual < row.flops_planned


def test_training_ends_where_the_loss_no_longer_falls():
    crowded = dataclasses.replace(TINY, key_dim=2, pairs=12, patience=1, learning_rate=1e-2, budget=Budget("steps", 20_000))
    lines = []
    trained = retrieving.train(crowded, lines.append)
    losses = [line["loss"] for line in lines]
    assert trained.ended == "no lower loss in 2 examinations"
    assert trained.loss == min(losses) < min(losses[-2:])
    assert trained.loss > 0.5 * (1 - 2 / 12) - 0.15  # learned keys beat the law of random ones by little
    assert trained.best_step == lines[-3]["step"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"memory": LocalConfig()}, "choose infini"),
        ({"memory": InfiniConfig(update="delta")}, "choose infini"),
        ({"memory": InfiniConfig(feature_map="unit")}, "choose infini"),
        ({"budget": Budget("flops", 1e9)}, "give the most steps"),
        ({"budget": Budget("steps", 99)}, "give 100 at least"),
        ({"pairs": 1}, "give at least 2"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_a_line(wrong, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(TINY, **wrong)


def test_the_published_points_are_run_by_the_published_protocol():
    runs = fast_weights.study("cpu").runs
    assert {(run.variant, run.pairs, run.published) for run in runs} == {
        (variant, pairs, published) for variant, _, pairs, published in fast_weights.PUBLISHED
    }
    assert {(run.key_dim, run.batch, run.learning_rate, run.patience, run.enough) for run in runs} == {
        (64, 32, 1e-3, 10, 1e-3)
    }
    assert {run.features for run in runs} == {64, 128}
