"""Training of a part of the parameters: what stays as it is, factors beside matrices, and FLOPs that the plan counts."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import BlockConfig, Budget, ModelConfig, Origin, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import CheckpointError, ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.cost import model_cost, program_flops, state_bytes, training_flops_per_step
from infini_jax.model.parts import Parts, flat_of, parts_of
from infini_jax.model.stream import forward_segments, init_carry, logits_of, parameter_shapes
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.fleet import Fleet
from infini_jax.training.frozen import save_frozen
from infini_jax.training.gradient import gradient_function
from infini_jax.training.loop import train, training_steps, unexamined
from infini_jax.training.optimiser import make_optimiser
from infini_jax.training.origin import begun_from, read_origin
from infini_jax.training.program import Training
from infini_jax.training.trained import Trained
from tests.support.saved import drawn, saved_run
from tests.support.streams import losses_of
from tests.test_cost import SETTINGS

MODEL = ModelConfig(memory=LocalConfig(), vocab=48, layers=2, d_model=16, heads=4, kv_heads=2, segment=8)
BIASED = dataclasses.replace(
    MODEL, block=BlockConfig(mlp="swiglu", norm="rms", head="own", biases=("query_key_value", "output", "mlp"))
)
PARENT = RunConfig(
    name="first",
    model=MODEL,
    data=MqarConfig(pairs=4, symbols=32, repeats=2),
    train=TrainConfig(batch=2, sequence=16, log_every=1, evaluation_steps=1),
    budget=Budget("steps", 3),
)
LORA: dict[str, Any] = {"trains": "lora", "lora_rank": 3}
MEMORY: dict[str, Any] = {"trains": "memory"}


def child(memory: Any, model: ModelConfig = MODEL, **train_settings: Any) -> RunConfig:
    """A run that begins at a checkpoint of `PARENT` with another model, and is not looked for."""
    return dataclasses.replace(
        PARENT,
        name="second",
        model=dataclasses.replace(model, memory=memory),
        train=dataclasses.replace(PARENT.train, **train_settings),
        origin=Origin("nowhere", "first", "f" * 12, 2, "d" * 12, model),
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    return saved_run(PARENT, tmp_path_factory.mktemp("parts") / "first")


def begun(parent: Path, memory: Any, **train_settings: Any) -> RunConfig:
    return begun_from(dataclasses.replace(child(memory, **train_settings), origin=None), parent)


def moved(trained: dict) -> dict:
    """Trained parameters after something was learned: factors B are no longer zero."""
    return jax.tree.map(lambda leaf, by: leaf + by, trained, drawn(trained, 7))


def logits(model: ModelConfig, params: dict) -> np.ndarray:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.vocab, (2, 3 * model.segment)), jnp.int32)
    _, features, _ = forward_segments(model, params, init_carry(model, 2), tokens[:, : model.segment], tokens[:, :8] * 0)
    return np.asarray(logits_of(model, params, features))


@pytest.mark.parametrize("model", [MODEL, BIASED], ids=["plain", "biased, gated, own head"])
def test_factors_leave_the_model_as_it_was_and_merge_into_what_they_have_learned(model):
    """To the bit in the beginning, where (x A) 0 is added; float32 sums in another order later, W + A B apart or at once."""
    run = child(LocalConfig(), model, **LORA)
    parts, base = parts_of(run), drawn(parts_of(dataclasses.replace(run, train=PARENT.train)).shapes[0], 1)
    trained, frozen = parts.split(base, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, parts.merged(trained, frozen), base)
    np.testing.assert_array_equal(logits(run.model, parts.joined(trained, frozen)), logits(run.model, base))
    trained = moved(trained)
    merged = parts.merged(trained, frozen)
    apart, at_once = (logits(run.model, params) for params in (parts.joined(trained, frozen), merged))
    assert np.abs(at_once - logits(run.model, base)).max() > 0.1
    np.testing.assert_allclose(apart, at_once, atol=1e-5 * np.abs(at_once).max())


def test_merged_matrices_are_w_and_alpha_over_r_a_b():
    """In float64 NumPy, for every matrix of a layer with its axes; nothing else changes."""
    run = child(LocalConfig(), BIASED, **LORA, lora_alpha=6.0)
    parts, base = parts_of(run), drawn(parts_of(dataclasses.replace(run, train=PARENT.train)).shapes[0], 1)
    trained, frozen = parts.split(base, jax.random.key(3))
    trained = moved(trained)
    found, factors = flat_of(parts.merged(trained, frozen)), flat_of(trained)
    assert found.keys() == flat_of(base).keys()
    adapted = [path[:-1] for path in factors if path[-1] == "lora_a"]
    assert {path[1:] for path in adapted} == {
        *(("query",), ("key",), ("value",), ("memory", "out"), ("mlp", "up"), ("mlp", "gate"), ("mlp", "down"))
    }
    for path, leaf in flat_of(base).items():
        expected = np.asarray(leaf, np.float64)
        if path[-1] == "kernel" and path[:-1] in adapted:
            a, b = (np.asarray(factors[*path[:-1], name], np.float64) for name in ("lora_a", "lora_b"))
            product = np.einsum("lir,lro->lio", a.reshape(2, -1, 3), b.reshape(2, 3, -1))
            expected = expected + 6.0 / 3 * product.reshape(expected.shape)
            np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)  # float32
        else:
            np.testing.assert_array_equal(found[path], leaf)


def gradient_of(run: RunConfig, params: dict, frozen: dict) -> dict:
    training = Training(run)
    state, batch = training.fresh(), training.source.batch(0)
    return jax.jit(gradient_function(run))(params, state.carry, batch, None, frozen)[0]


@pytest.mark.parametrize("segments", [1, 2])
def test_the_gradient_of_a_part_is_that_part_of_the_gradient_of_all(segments):
    """Also of the memory's own parameters in a layer above one that has none, and of the row of inserted tokens."""
    for memory in (InfiniConfig(layers=(1,)), LandmarkConfig(block=4)):
        some = child(memory, **MEMORY, segments_per_step=segments)
        every = dataclasses.replace(some, train=dataclasses.replace(some.train, trains="all"))
        params = drawn(parts_of(every).shapes[0], 2)
        trained, frozen = parts_of(some).split(params, jax.random.key(0))
        found, whole = flat_of(gradient_of(some, trained, frozen)), flat_of(gradient_of(every, params, {}))
        whole["embedding", "inserted"] = whole["embedding", "embedding"][48:]
        assert found.keys() == parts_of(some).trained
        for path, leaf in found.items():
            assert np.abs(leaf).max() > 0
            np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=1e-5 * np.abs(whole[path]).max())


def test_the_gradient_of_factors_is_that_of_their_products_with_the_merged_gradient():
    """dA = s dW B^T and dB = s A^T dW, where dW is the gradient of all parameters at the merged ones."""
    some = child(InfiniConfig(), BIASED, **LORA)
    every = dataclasses.replace(some, train=PARENT.train)
    trained, frozen = parts_of(some).split(drawn(parts_of(every).shapes[0], 2), jax.random.key(0))
    trained = moved(trained)
    found = flat_of(gradient_of(some, trained, frozen))
    whole = flat_of(gradient_of(every, parts_of(some).merged(trained, frozen), {}))
    assert set(found) - set(flat_of(trained)) == set()
    for path in [path for path in found if path[-1] == "lora_a"]:
        a, b = (np.asarray(flat_of(trained)[*path[:-1], name], np.float64) for name in ("lora_a", "lora_b"))
        a_LxIxR, b_LxRxO = a.reshape(2, -1, 3), b.reshape(2, 3, -1)
        dw_LxIxO = np.asarray(whole[*path[:-1], "kernel"], np.float64).reshape(2, a_LxIxR.shape[1], -1)
        expected = (
            16 / 3 * np.einsum("lio,lro->lir", dw_LxIxO, b_LxRxO),
            16 / 3 * np.einsum("lir,lio->lro", a_LxIxR, dw_LxIxO),
        )
        for name, one in zip(("lora_a", "lora_b"), expected, strict=True):
            leaf = np.asarray(found[*path[:-1], name]).reshape(one.shape)
            np.testing.assert_allclose(leaf, one, atol=1e-4 * np.abs(one).max(), err_msg=str(path))


@pytest.mark.parametrize("settings", [MEMORY, {**LORA, "average": 0.5}], ids=["memory", "lora"])
def test_what_is_frozen_stays_to_the_bit_and_has_no_state(settings, parent, tmp_path):
    """A run through its folder: checkpoints hold what is trained, readers get the whole model, and a resume ends the same."""
    run = begun(parent, InfiniConfig(), **settings)
    folder, everywhere = tmp_path / "second", Saving(every_steps=1, keep=9)
    row = execute(run, folder, study="", saving=everywhere)
    base, first, last = Trained.open(parent).params, Trained.open(folder, 0).params, Trained.open(folder, 3).params
    parts = parts_of(run)
    assert row.trained_parameters == parts.counts[0] < parts.counts[1]
    paths = flat_of(last)
    for path, leaf in flat_of(base).items():
        np.testing.assert_array_equal(flat_of(first)[path], leaf)
        is_merged = settings is not MEMORY and path[-1] == "kernel"
        assert np.array_equal(paths[path], leaf) == (not is_merged)
    gate = ("groups_0", "memory", "gate")
    assert not np.array_equal(paths[gate], flat_of(first)[gate])
    shapes = Training(run).shapes
    frozen = flat_of(shapes.frozen)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes.optimiser)]
    assert frozen
    assert not [name for name in names if any(name.endswith("/".join(path)) for path in frozen)]
    assert (folder / "frozen").is_dir()
    (folder / "row.parquet").unlink()
    again = execute(run, folder, study="", saving=everywhere, resume=1)
    assert (again.train_loss, again.loss, again.flops_actual) == (row.train_loss, row.loss, row.flops_actual)
    jax.tree.map(np.testing.assert_array_equal, Trained.open(folder).params, last)


def test_a_run_begins_at_what_factors_have_learned(parent, tmp_path):
    """The other run's parameters are its frozen ones with factors merged, whose digest the origin has."""
    run = begun(parent, LocalConfig(), **LORA)
    folder = saved_run(run, tmp_path / "second")
    with pytest.raises(ConfigError, match=r"^run: .*frozen, the parameters that it does not train, is gone; "):
        begun_from(dataclasses.replace(PARENT, name="third"), folder)
    frozen = drawn(parts_of(run).shapes[1], 4)
    save_frozen(run, folder, frozen)
    third = begun_from(dataclasses.replace(PARENT, name="third"), folder)
    assert third.origin
    _, learned = read_origin(third, third.origin, None)
    assert jax.tree.map(jnp.shape, learned) == jax.tree.map(jnp.shape, parameter_shapes(MODEL))
    np.testing.assert_array_equal(learned["embedding"]["embedding"], frozen["embedding"]["embedding"])
    jax.tree.map(np.testing.assert_array_equal, Trained.open(folder).params, learned)
    save_frozen(run, folder, drawn(parts_of(run).shapes[1], 5))  # as of a start under the same name with other numbers
    with pytest.raises(
        CheckpointError, match=r"^origin: step 2 of .*second has other parameters than this run was to begin from; "
    ):
        read_origin(third, third.origin, None)


def test_gates_keep_their_rate_and_factors_decay_as_matrices_do():
    """A zero gradient moves what decays: factors, and neither gates nor the row of inserted tokens."""
    for memory in (InfiniConfig(), LandmarkConfig(block=4)):
        run = child(memory, **LORA, weight_decay=0.5, gate_learning_rate=1.0, learning_rate=0.1, warmup=0.0)
        params = drawn(parts_of(run).shapes[0], 1)
        optimiser = make_optimiser(run.train, 3, run.model)
        zero, one = (jax.tree.map(lambda leaf, x=x: jnp.full_like(leaf, x), params) for x in (0.0, 1.0))
        decayed, _ = optimiser.update(zero, optimiser.init(params), params)
        moves, _ = optimiser.update(one, optimiser.init(params), params)
        for path, leaf in flat_of(decayed).items():
            is_factor = path[-1] in ("lora_a", "lora_b")
            assert np.any(np.asarray(leaf) != 0) == is_factor, path
            size = np.abs(np.asarray(flat_of(moves)[path])).max()
            assert (size > 0.5) == (path[-1] == "gate"), path


@pytest.mark.parametrize(
    ("memory", "settings", "said"),
    [
        (LocalConfig(), MEMORY, r"train\.trains: first has all parameters of this model, so that its memory adds none; "),
        (InfiniConfig(), {"trains": "lora"}, r"train\.lora_rank: factors have a rank; give at least 1"),
        (InfiniConfig(), {"trains": "lora", "lora_rank": -1}, r"train\.lora_rank: -1 is negative; "),
        (InfiniConfig(), {"lora_rank": 2}, r"train\.lora_rank: 2 is the rank of no factors with train\.trains all; "),
        (InfiniConfig(), {"lora_alpha": 2.0}, r"train\.lora_alpha: 2 multiplies no factors with train\.trains all; "),
        (InfiniConfig(), {**LORA, "lora_alpha": 0.0}, r"train\.lora_alpha: 0\.0 is not positive; "),
        (
            InfiniConfig(),
            {"trains": "lora", "lora_rank": 9},
            r"train\.lora_rank: 9 is above 8, the smallest side of a matrix .*give at most 8",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(memory, settings, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        training_flops_per_step(child(memory, **settings))


def test_a_part_needs_an_origin_whose_model_is_known():
    run = child(InfiniConfig(), **MEMORY)
    with pytest.raises(
        ConfigError, match=r"^train\.trains: memory trains what an origin does not have, and the run has none; "
    ):
        training_flops_per_step(dataclasses.replace(run, origin=None))
    assert run.origin
    older = dataclasses.replace(run, origin=dataclasses.replace(run.origin, model=None))
    with pytest.raises(ConfigError, match=r"^origin\.model: the settings of second do not say which parameters first has; "):
        training_flops_per_step(older)
    assert Origin("here", "first", "f" * 12, 2, "d" * 12).model is None
    assert child(InfiniConfig(), **LORA).fingerprint() != child(InfiniConfig(), trains="lora", lora_rank=2).fingerprint()


def test_rows_whose_gradients_are_added_up_in_turn_take_the_same_steps():
    """Losses of three steps; sums in another order."""
    run = child(InfiniConfig(), **LORA, batch=4)
    parts = dataclasses.replace(run, train=dataclasses.replace(run.train, accumulate=2))
    expected = losses_of(run)
    assert len(set(expected)) == 3
    np.testing.assert_allclose(losses_of(parts), expected, rtol=2e-5)


@pytest.mark.slow
def test_members_of_a_fleet_have_their_own_factors(parent):
    runs = [begun(parent, InfiniConfig(), **LORA)]
    runs.append(dataclasses.replace(runs[0], seed=1, name="other"))
    fleet, found = Fleet(runs), {}
    steps = [training_steps(seat, lambda line: None, None, lambda: False, unexamined) for seat in fleet.seats]
    fleet.drive(steps, lambda number, result: found.update({number: result}))
    for number, run in enumerate(runs):
        expected = train(run, lambda line: None)
        assert found[number].last["loss"] == pytest.approx(expected.last["loss"], rel=1e-6)
        state = fleet.seats[number].state
        ours = Training(run).parts.merged(state.learned, state.frozen)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected.learned)


SIZES: dict[str, Any] = {"vocab": 64, "layers": 3, "d_model": 32, "heads": 4, "kv_heads": 2, "segment": 24}
PARTS = [
    (name, changes, settings)
    for name in MECHANISMS
    for changes in SETTINGS.get(name, ({},))
    for settings in (MEMORY, LORA)
    if settings is LORA or name not in ("local", "full", "transformer_xl") or changes
]
FEW = [
    *(("infini", {}, MEMORY), ("infini", {}, LORA), ("compressive", {}, MEMORY)),
    *(("landmark", {}, MEMORY), ("memorizing", {}, LORA)),
]


@pytest.mark.parametrize(
    ("name", "changes", "settings"), [one if one in FEW else pytest.param(*one, marks=pytest.mark.slow) for one in PARTS]
)
def test_the_plan_counts_what_a_step_of_a_part_computes(name, changes, settings):
    """Within 2 %, 3 % for relative positions in turn, as for all parameters; the memory in all layers or in the middle one."""
    base = ModelConfig(memory=LocalConfig(), **SIZES)  # rotary: other positions have parameters, which are trained then
    for layers in (MECHANISMS[name].Config().layers, (1,)):
        memory = dataclasses.replace(MECHANISMS[name].Config(), **changes, layers=layers)
        run = child(memory, base, **settings, sequence=4 * base.segment)
        for segments in (1,) if run.model.takes_in_turn else (1, 4):
            named = dataclasses.replace(run, train=dataclasses.replace(run.train, segments_per_step=segments))
            state, batch = Training(named).shapes, Training(named).batch
            counted = program_flops(gradient_function(named), state.params, state.carry, batch, None, state.frozen)
            tolerance = 0.03 if changes.get("positions") == "relative" and segments < 4 else 0.02
            assert counted.work == pytest.approx(training_flops_per_step(run, segments), rel=tolerance), (layers, segments)


def test_a_model_of_135_million_parameters_costs_what_is_said_of_it():
    """SmolLM2's sizes: GFLOP per token forward, with all, with a memory alone and with factors of rank 8 trained."""
    sizes: dict[str, Any] = {
        "layers": 30,
        "d_model": 576,
        "heads": 9,
        "kv_heads": 3,
        "mlp_dim": 1536,
        "vocab": 49152,
        "segment": 512,
    }
    model = ModelConfig(memory=FullConfig(slots=512), block=BlockConfig(mlp="swiglu", norm="rms"), **sizes)
    run = dataclasses.replace(child(InfiniConfig(), model, sequence=2048), data=StdlibConfig())
    costs = [model_cost(run.model)]
    for settings in (MEMORY, LORA | {"lora_rank": 8}):
        part = dataclasses.replace(run, train=dataclasses.replace(run.train, **settings))
        costs.append(model_cost(run.model, parts=parts_of(part)))
        assert state_bytes(part) < 0.4 * state_bytes(run)
    assert costs[0].projections + costs[0].head == pytest.approx(0.27e9, rel=0.01)
    found = [round((cost.training_flops - cost.attention.training_flops) / 1e9, 2) for cost in costs]
    assert found == [0.81, 0.54, 0.55]
    assert Parts(model).counts[0] == pytest.approx(134.5e6, rel=0.001)
