"""Dropout: its scale and gradient, masks that follow from seed and step alone, nothing of it outside training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.batch import Batch
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import Stopped
from infini_jax.layers.dropout import dropout_of_step, dropped
from infini_jax.layers.segment import whole
from infini_jax.memory.infini import InfiniConfig
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.model.transformer import Block, dropout_by_group
from infini_jax.training.checkpoint import Checkpoints
from infini_jax.training.gradient import gradient_function, score_tokens
from infini_jax.training.loop import train
from infini_jax.training.program import Training
from infini_jax.training.scoring import score_batches
from tests.support.commands import on_devices
from tests.support.saved import drawn
from tests.support.streams import losses_of

RATE = 0.25
MODEL = ModelConfig(memory=InfiniConfig(layers=(0,)), vocab=48, layers=2, d_model=16, heads=2, segment=8)  # two groups
TRAIN = TrainConfig(batch=2, sequence=16, dropout=RATE, evaluation_steps=1)
RUN = RunConfig(model=MODEL, data=MqarConfig(pairs=4, symbols=32, repeats=2), train=TRAIN, budget=Budget("steps", 4))


def with_settings(**changes):
    return dataclasses.replace(RUN, train=dataclasses.replace(TRAIN, **changes))


def dropout_at(step, seed=0):
    return drawn_at(seed, jnp.int32(step))


drawn_at = jax.jit(lambda seed, step: dropout_of_step(RATE, seed, step, 2, 2))


def row_keys(step=0, segment=0):
    """The dropout of both rows of one segment."""
    found = dropout_at(step)
    return dataclasses.replace(found, keys=found.keys[:, segment])


def has_random(jaxpr) -> bool:
    return "random_bits" in str(jaxpr)


@pytest.fixture(scope="module")
def case():
    """(parameters, carry, batch, gradient by a loop over segments that neither scans nor makes anything again)."""
    training, dropout = Training(RUN), dropout_at(3)
    params, batch = drawn(training.shapes.params, 0), training.source.batch(0)

    def loss(params):
        carry, total = init_carry(MODEL, 2), 0.0
        for number in range(2):
            part = Batch(*(leaf[:, 8 * number : 8 * number + 8] for leaf in batch))
            keys = dataclasses.replace(dropout, keys=dropout.keys[:, number : number + 1])
            carry, x, _ = forward_segments(MODEL, params, carry, part.tokens, part.documents, dropout=keys)
            total += score_tokens(logits_of(MODEL, params, x), part).loss
        return total / batch.weights.sum()

    return params, init_carry(MODEL, 2), batch, jax.jit(jax.grad(loss))(params)


def test_its_mean_is_what_it_leaves_out():
    x, draws = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32), 4000
    found = jax.jit(jax.vmap(lambda step: dropped(x, row_keys(step), 0)))(jnp.arange(draws))
    kept = np.asarray(found != 0)
    np.testing.assert_allclose(found, np.where(kept, x / (1 - RATE), 0), rtol=1e-6)
    sigma = np.sqrt(RATE * (1 - RATE) / draws)  # of a binomial share
    np.testing.assert_allclose(kept.mean(0), 1 - RATE, atol=5 * sigma)
    assert (np.abs(found.mean(0) - x) <= 5 * sigma * np.abs(x) / (1 - RATE)).all()
    assert dropped(x, None, 0) is x


def test_every_step_row_segment_layer_and_seed_has_keys_of_its_own():
    of_row = [dropout_at(step, seed) for step in (0, 1) for seed in (0, 1)]
    flat = [dataclasses.replace(one, keys=one.keys.reshape(-1)) for one in of_row]
    layers = [group.keys for one in flat for group in dropout_by_group(MODEL, one)]
    assert [keys.shape for keys in layers] == [(1, 4)] * 8
    keys = np.concatenate(
        [jax.random.key_data(one).reshape(-1, 2) for one in [*layers, *(one.folded(0).keys for one in flat)]]
    )
    assert len({tuple(key) for key in keys}) == len(keys) == 4 * 4 * 3  # 4 rows and segments: two layers, the embeddings


def test_a_block_with_it_is_the_formula_with_the_same_masks():
    """x + mask Memory(norm(x)), then x + mask MLP(norm(x)), written out; and the gradient by x and by the MLP's matrices."""
    block = Block(MODEL, InfiniConfig())
    rng = np.random.default_rng(1)
    x, upstream = (jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.float32) for _ in range(2))
    bounds, dropout = whole(jnp.zeros((2, 8), jnp.int32), jnp.zeros(2, jnp.int32)), row_keys()
    memory = jax.tree.map(lambda leaf: leaf[0], init_carry(MODEL, 2).memory[0])
    params = nn.meta.unbox(jax.jit(block.init)(jax.random.key(0), x, (memory, None), bounds))["params"]
    ones = jnp.ones((2, 8, 16))
    mask = [dropped(ones, dropout, number) for number in (0, 1)]
    assert (mask[0] != mask[1]).any()

    def output(params, x, dropout=None):
        return block.apply({"params": params}, x, (memory, dropout), bounds)[0]

    def written_out(mlp, x):
        silent = jax.tree.map(jnp.zeros_like, params["mlp"])
        x = x + mask[0] * (output({**params, "mlp": silent}, x) - x)  # without an MLP, a block adds its attention alone
        normed = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)  # the norm's scale is 1 when it is made
        return x + mask[1] * (nn.gelu(normed @ mlp["up"]["kernel"]) @ mlp["down"]["kernel"])

    def with_it(mlp, x):
        return output({**params, "mlp": mlp}, x, dropout)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda *given, of=of: (upstream * of(*given)).sum(), (0, 1)))(params["mlp"], x)
        for of in (with_it, written_out)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)  # float32 sums


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rematerialise": "layer", "accumulate": 2, "segments_per_step": 2},
        pytest.param({"rematerialise": "layer"}, marks=pytest.mark.slow),
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"segments_per_step": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_recomputation_turns_and_segments_at_once_have_the_same_masks(case, changes):
    *given, expected = case
    found, _, _ = jax.jit(gradient_function(with_settings(**changes)))(*given, dropout_at(3))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), found, expected)  # sums in another order


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    stops = iter([False, True])
    whole_run = train(RUN, lambda line: None)
    with Checkpoints(RUN, tmp_path) as checkpoints, pytest.raises(Stopped, match="step 2 of 4"):
        train(RUN, lambda line: None, checkpoints, stop=lambda: next(stops))
    with Checkpoints(RUN, tmp_path) as checkpoints:
        resumed = train(RUN, lambda line: None, checkpoints)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole_run.state)
    assert resumed.last["loss"] == whole_run.last["loss"]
    learned = OneModel(resumed.learned)
    scores = [score_batches(with_settings(dropout=rate), learned, "validation") for rate in (RATE, 0.0)]
    assert scores[0] == scores[1]  # held-out scores have none


def test_only_a_training_step_with_dropout_draws_random_numbers():
    plain, dropping = Training(with_settings(dropout=0.0)), Training(RUN)
    assert not has_random(plain.step.trace(plain.shapes, plain.batch).jaxpr)
    assert has_random(dropping.step.trace(dropping.shapes, dropping.batch).jaxpr)
    assert jax.tree.structure(plain.shapes) == jax.tree.structure(dropping.shapes)  # nothing new in checkpoints


def test_runs_without_it_keep_their_fingerprint_and_seeds_share_a_program_only_without_it():
    default = dataclasses.replace(RUN, train=TrainConfig(batch=2, sequence=16, evaluation_steps=1))
    assert with_settings(dropout=0.0).fingerprint() == default.fingerprint() != RUN.fingerprint()
    for run, shared in ((default, True), (RUN, False)):
        assert (Training(run).program == Training(dataclasses.replace(run, seed=1)).program) is shared


def losses() -> dict[str, list[float]]:
    """Of three steps, on one device and on four."""
    run = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, memory=InfiniConfig()))
    run = dataclasses.replace(run, train=dataclasses.replace(TRAIN, batch=4, segments_per_step=2))
    kinds = {"data": Sharding(), "fsdp+tensor": Sharding("fsdp+tensor", 2), "fsdp+sequence": Sharding("fsdp+sequence", 2)}
    return {"one": losses_of(run)} | {name: losses_of(run, layout_of(run, kind)) for name, kind in kinds.items()}


@pytest.mark.slow
def test_the_masks_are_the_same_on_any_layout_of_devices():
    found = on_devices(4, "test_dropout", "losses()")
    for layout, reached in found.items():
        np.testing.assert_allclose(reached, found["one"], rtol=2e-5, err_msg=layout)  # sums in another order
