"""Training: the optimiser's groups, truncated gradients, exactness, and what stops a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.config.optimisers import OPTIMISERS, SCHEDULES
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import ConfigError, Stopped, TrainingDiverged
from infini_jax.model.cost import training_flops_per_step
from infini_jax.model.stream import init_carry, scan_segments
from infini_jax.training.checkpoint import Checkpoints
from infini_jax.training.gradient import auxiliary_loss, score_tokens
from infini_jax.training.loop import train
from infini_jax.training.optimiser import make_optimiser
from infini_jax.training.program import Training, rows_of
from infini_jax.training.scoring import score_batches
from tests.support import streams
from tests.support.marks import slow_but
from tests.support.streams import MODEL

RUN = RunConfig(
    model=MODEL,
    data=MqarConfig(pairs=4, symbols=32, repeats=2),
    train=TrainConfig(batch=8, sequence=32, learning_rate=1e-2, log_every=10, evaluation_steps=2),
    budget=Budget("steps", 40),
)


def test_training_lowers_the_loss_and_the_same_run_gives_the_same_numbers():
    lines = []
    first = train(RUN, lines.append)
    second = train(RUN, lambda line: None)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert first.last["loss"] < 0.95 * lines[0]["loss"]
    assert 0 < lines[0]["gate_mean"] < 1
    for ours, theirs in zip(jax.tree.leaves(first.state.params), jax.tree.leaves(second.state.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    scores = [score_batches(RUN, OneModel(one.state.params), "validation") for one in (first, second)]
    assert scores[0] == scores[1]


class Clock:
    """`time.perf_counter` by hand: a second passes in each step, ten in compiling, none elsewhere."""

    now = 100.0

    def __init__(self, monkeypatch):
        monkeypatch.setattr("infini_jax.training.loop.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("infini_jax.training.loop.compiled_steps", self.compiled_steps)

    def passes(self, seconds, result):
        self.now += seconds
        return result

    def compiled_steps(self, program, most):
        measured = {name: np.float32(1.0) for name in ("loss", "accuracy", "gradient_norm")}
        measured |= {"gates": np.zeros(0), "skipped": np.bool_(False)}

        def run_step(state, batches):
            return self.passes(1.0, (state.replace(step=state.step + 1), measured))

        return self.passes(10.0, run_step)


def test_speed_is_of_all_steps_and_of_those_since_the_last_line(monkeypatch):
    """A second a step whatever is logged: 8 rows of 32 tokens per second, in every line and overall."""
    clock, lines = Clock(monkeypatch), []

    def log(line):
        lines.append(line)
        clock.now += 5.0 if line["step"] == 20 else 0.0  # a slow disk, say

    finished = train(RUN, log)
    assert [line["seconds"] for line in lines] == [10.0, 20.0, 35.0, 45.0]
    assert [line["tokens_per_second"] for line in lines] == [256.0, 256.0, 256.0 * 30 / 35, 256.0 * 40 / 45]
    assert [line["recent_tokens_per_second"] for line in lines] == [256.0, 256.0, 256.0 * 10 / 15, 256.0]
    assert (finished.seconds, finished.compile_seconds) == (45.0, 10.0)
    assert not any("mfu" in line for line in lines)  # a CPU's peak is not known


def test_mfu_is_the_share_of_the_models_own_flops_in_the_peak(monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr("infini_jax.training.loop.peak_flops", lambda devices: 1e9 * len(list(devices)))
    lines = []
    train(RUN, lines.append)
    assert [line["mfu"] for line in lines] == pytest.approx([training_flops_per_step(RUN) / 1e9] * 4)


def test_time_goes_on_after_a_restart(tmp_path, monkeypatch):
    """Stopped behind step 17 of 40: its seconds and those of compiling are added to, and speed is that of the whole run."""
    clock, lines = Clock(monkeypatch), []
    with Checkpoints(RUN, tmp_path) as checkpoints, pytest.raises(Stopped):
        train(RUN, lines.append, checkpoints, stop=lambda: clock.now >= 100.0 + 10.0 + 17.0)
    clock.now += 1000.0  # waiting for a machine is not training
    with Checkpoints(RUN, tmp_path) as checkpoints:
        finished = train(RUN, lines.append, checkpoints)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert [line["seconds"] for line in lines] == [10.0, 20.0, 30.0, 40.0]
    assert [line["tokens_per_second"] for line in lines] == [256.0] * 4
    assert [line["recent_tokens_per_second"] for line in lines] == [256.0] * 4  # step 20: of the three steps since the restart
    assert (finished.seconds, finished.compile_seconds) == (40.0, 20.0)


def test_parameters_without_a_finite_gradient_stop_the_run_with_one_line():
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, learning_rate=1e30, log_every=5, warmup=0.0))
    with pytest.raises(
        TrainingDiverged, match=r"^gradient: not finite at step 5; lower train.learning_rate, now 1e\+30, under another"
    ):
        train(run, lambda line: None)


def test_a_seed_draws_the_parameters_that_it_always_drew():
    """Pinned: a run of the same settings has the same numbers in every version."""
    params = streams.initial(MODEL)
    layers = params["groups_0"]
    drawn = params["embedding"]["embedding"], layers["query"]["kernel"], layers["mlp"]["up"]["kernel"]
    sizes = [float(np.abs(array).sum(dtype=np.float64)) for array in drawn]
    assert sizes == pytest.approx([105.40363615, 106.18817313, 425.49785849], rel=1e-6)


def test_gates_have_their_own_rate_and_only_matrices_of_layers_decay():
    """With a zero gradient Adam moves nothing, so what moves is weight decay; with gradient one, the rate is the step."""
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, warmup=0.0, gate_learning_rate=0.5, clip=1e9))
    optimiser = make_optimiser(run.train, 10, run.model)
    params = jax.tree.map(jnp.ones_like, streams.initial(MODEL))

    first = jax.jit(lambda gradient: optimiser.update(gradient, optimiser.init(params), params)[0])

    def first_move(gradient):
        return [(path, np.asarray(move)) for path, move in jax.tree_util.tree_leaves_with_path(first(gradient))]

    for path, move in first_move(jax.tree.map(jnp.zeros_like, params)):
        name = jax.tree_util.keystr(path)
        assert bool(np.any(move)) == ("kernel" in name), name
    for path, move in first_move(jax.tree.map(jnp.ones_like, params)):
        if path[-1].key == "gate":
            np.testing.assert_allclose(-move, 0.5, rtol=1e-4)
        else:
            assert np.all(-move < 2e-2), path


@pytest.mark.parametrize("optimiser", slow_but(["adamw"], ["adamw", "adafactor"]))
def test_trials_of_several_rates_share_one_program_and_move_in_proportion(optimiser):
    def trial(rate):
        train = dataclasses.replace(RUN.train, learning_rate=rate, gate_learning_rate=3 * rate, optimiser=optimiser)
        run = dataclasses.replace(RUN, train=train)
        training = Training(run)
        state = training.fresh()
        program = training.step.lower(state, source.batch(0)).as_text()
        gradient = jax.tree.map(jnp.ones_like, state.params)
        moves, _ = jax.jit(training.optimiser.update)(gradient, state.optimiser, state.params)
        return program, jax.tree.map(np.asarray, moves)

    source = RUN.data.open(rows_of(RUN, "train"))
    (one, slow), (other, fast) = trial(1e-3), trial(3e-3)
    assert one == other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-6), slow, fast)


def test_loss_and_accuracy_are_those_of_the_scored_tokens():
    batch = RUN.data.open(rows_of(RUN, "train")).batch(0)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(*batch.tokens.shape, 32)), jnp.float32)
    loss, accuracy = score_tokens(logits, batch).means()
    picked = batch.weights == 1
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))[picked]
    targets = batch.targets[picked]
    assert loss == pytest.approx(-log_probabilities[np.arange(len(targets)), targets].mean(), rel=1e-6)
    assert accuracy == pytest.approx((log_probabilities.argmax(-1) == targets).mean())


def test_memory_goes_on_into_the_next_step_and_gradients_do_not():
    training = Training(RUN)
    state, source = training.fresh(), training.source
    before = jax.tree.leaves(state.carry.memory)[0]
    assert not np.any(before)
    state, _ = training.step(state, source.batch(0))
    assert np.any(jax.tree.leaves(state.carry.memory)[0])
    np.testing.assert_array_equal(state.carry.open_document, source.batch(0).documents[:, -1])


@pytest.mark.parametrize("name", slow_but(["infini"], ["infini", "local"]))
def test_bptt_window_cuts_gradients_between_its_groups_of_segments_only(name):
    model = streams.tiny(name)
    params, tokens = streams.parameters(name), streams.tokens_of(model, segments=4)
    documents = jnp.zeros_like(tokens)

    def last_score(params, bptt):
        carry = init_carry(model, tokens.shape[0])
        sequence = streams.Sequence(tokens, documents)
        _, scores, _ = scan_segments(model, params, carry, sequence, lambda logits, part: jnp.sum(logits**2), bptt)
        return scores[-1]

    gradient = jax.jit(jax.grad(last_score), static_argnums=1)
    full, whole = gradient(params, 0), gradient(params, 4)
    for ours, theirs in zip(jax.tree.leaves(full), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    # the last segment alone, from a memory that is given, is what a window of one sees
    carry, _ = streams.scorer(model)(
        params, init_carry(model, tokens.shape[0]), tokens[:, : 3 * model.segment], documents[:, : 3 * model.segment]
    )

    def alone(params):
        sequence = streams.Sequence(tokens[:, 3 * model.segment :], documents[:, 3 * model.segment :])
        return scan_segments(model, params, carry, sequence, lambda logits, part: jnp.sum(logits**2))[1][-1]

    for ours, theirs in zip(
        jax.tree.leaves(gradient(params, 1)), jax.tree.leaves(jax.jit(jax.grad(alone))(params)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    difference = optax.tree.norm(jax.tree.map(lambda a, b: a - b, full, gradient(params, 1)))
    assert difference > 1e-2 * optax.tree.norm(full)


def test_auxiliary_losses_are_summed_over_layers_and_averaged_over_segments():
    metrics = (
        {"aux/kl": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "gate": jnp.ones((2, 2, 1))},
        {"aux/kl": jnp.array([[10.0], [20.0]])},
    )
    assert auxiliary_loss(metrics) == pytest.approx(2.0 + 3.0 + 15.0)
    assert auxiliary_loss(({},)) == 0.0


def test_an_optimiser_and_a_schedule_that_are_registered_train_and_others_are_refused(monkeypatch):
    """One step of plain descent at a constant rate moves what is no gate by the rate times the clipped gradient."""
    monkeypatch.setitem(OPTIMISERS, "descent", lambda share, weight_decay, mask: optax.sgd(share))
    monkeypatch.setitem(SCHEDULES, "always", lambda steps, warm: optax.constant_schedule(1.0))
    settings = dataclasses.replace(RUN.train, optimiser="descent", schedule="always", learning_rate=0.5, clip=1e9)
    optimiser = make_optimiser(settings, 10, MODEL)
    params = streams.initial(MODEL)
    moves, _ = jax.jit(optimiser.update)(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    weights = [move for path, move in jax.tree_util.tree_leaves_with_path(moves) if "gate" not in jax.tree_util.keystr(path)]
    assert weights
    assert all(np.array_equal(move, np.full(move.shape, -0.5)) for move in weights)
    with pytest.raises(ConfigError, match=r"^train.optimiser: 'adamm' is not known; did you mean 'adamw'\?$"):
        TrainConfig(optimiser="adamm")
    with pytest.raises(ConfigError, match=r"^train.schedule: 'linear' is not known; choose one of always, constant, cosine,"):
        TrainConfig(schedule="linear")
