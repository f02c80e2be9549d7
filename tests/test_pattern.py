"""Layers of two memories in one model keep what a model with one promises, and a pattern says which layers have which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.pattern import Pattern, patterned
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.model.cost import model_cost, training_flops_per_step
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.results import load
from infini_jax.study.comparison import with_pattern
from infini_jax.training.execute import execute
from infini_jax.training.program import Training
from infini_jax.training.trained import saved_config
from tests.support import streams
from tests.support.commands import on_devices

QUICK = [("memorizing", "gated_delta"), ("gated_delta", "memorizing")]
EVERY = [(name, "infini" if name == "gated_delta" else "gated_delta") for name in MECHANISMS]
PAIRS = [*QUICK, *(pytest.param(pair, marks=pytest.mark.slow) for pair in EVERY if pair not in QUICK)]
SMALL = ModelConfig(MemorizingConfig(slots=24, top_k=4), vocab=64, layers=4, d_model=16, heads=2, segment=16)
RUN = RunConfig(
    model=SMALL,
    data=MqarConfig(pairs=2, symbols=32),
    train=TrainConfig(batch=4, sequence=32, evaluation_steps=1),
    budget=Budget("steps", 2),
)


def hybrid(pair: tuple[str, str], **changes) -> ModelConfig:
    """Three layers, of which the middle one has the first memory of the pair."""
    name, other = pair
    second = streams.tiny(other).memory
    return patterned(streams.tiny(name, layers=3, **changes), Pattern.of(f"1 {other} : 1 {name}"), second)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_flops_and_bytes_are_those_of_the_program(pair):
    """Both memories' bytes are among those of the model."""
    model = hybrid(pair)
    assert streams.walked_flops(model) == pytest.approx(model_cost(model).flops, rel=1e-6)
    carried = sum(leaf.nbytes for leaf in jax.tree.leaves(init_carry(model, 1).memory))
    assert carried == model.memory_bytes + model.neighborhood_bytes


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_token_by_token_it_says_what_it_says_of_whole_segments(pair):
    model = hybrid(pair)
    params, tokens = streams.parameters_of(model), jnp.asarray(streams.tokens_of(model))
    whole = streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, jnp.zeros_like(tokens))[1]
    # the same products in another program: float32 rounding only
    np.testing.assert_allclose(streams.decoded(model, params, tokens), whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_packed_document_is_not_affected_by_the_one_before(pair):
    model = hybrid(pair)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    edge = 3 * model.segment // 2
    documents = np.broadcast_to(np.arange(tokens.shape[1]) >= edge, tokens.shape).astype(np.int32)
    other = np.concatenate([(tokens[:, :edge] + 7) % model.vocab, tokens[:, edge:]], axis=1)
    found, changed = (
        np.asarray(streams.scorer(model)(params, init_carry(model, len(one)), one, documents)[1]) for one in (tokens, other)
    )
    np.testing.assert_array_equal(found[:, edge:], changed[:, edge:])
    assert np.abs(found[:, :edge] - changed[:, :edge]).max() > 1e-3


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_parameter_of_both_learns(pair):
    model = hybrid(pair)
    slopes = streams.slopes_of(model, streams.parameters_of(model))
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf), path


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_segments_at_once_are_segments_in_turn(pair):
    model = hybrid(pair)
    if model.takes_in_turn:
        with pytest.raises(ConfigError, match=r"^train\.segments_per_step: "):
            model.check_at_once(2)
        return
    params, tokens = streams.parameters_of(model), jnp.asarray(streams.tokens_of(model))

    @jax.jit
    def at_once(params):
        _, x, _ = forward_segments(model, params, init_carry(model, len(tokens)), tokens, jnp.zeros_like(tokens))
        return logits_of(model, params, x)

    in_turn = streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, jnp.zeros_like(tokens))[1]
    np.testing.assert_allclose(at_once(params), in_turn, rtol=0, atol=5e-5)  # float32 sums in another order


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_large_parameters_of_both_are_in_parts(pair):
    assert streams.whole_parameters(hybrid(pair, **streams.WIDE)) == []


def test_a_pattern_repeats_from_the_first_layer_on():
    pattern = Pattern.of(" 3 gated_delta:1 memorizing ")
    assert pattern.layers("memorizing", 9) == (3, 7)
    assert pattern.layers("gated_delta", 9) == (0, 1, 2, 4, 5, 6, 8)
    assert pattern.said("memorizing") == "3 gated_delta : 1"
    assert Pattern.of("1 infini : 2 local : 1 infini").layers("infini", 4) == (0, 3)
    model = patterned(SMALL, pattern)
    assert [type(model.layer_memory(layer)) for layer in range(4)] == [GatedDeltaConfig] * 3 + [MemorizingConfig]
    assert model.mechanism == "memorizing"


def test_the_second_memory_has_the_neighborhood_of_the_first():
    model = dataclasses.replace(SMALL, memory=InfiniConfig(local="cache"))
    assert patterned(model, Pattern.of("1 infini : 1 gated_delta")).elsewhere == GatedDeltaConfig(local="cache")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "pattern: '' is not a number and a mechanism; write it as 3 gated_delta : 1 memorizing"),
        ("0 infini : 1 memorizing", "pattern: 0 infini is not a number and a mechanism; "),
        ("memorizing : 3 infini", "pattern: memorizing is not a number and a mechanism; "),
        ("1 memorizing", "pattern: it names 1 mechanisms, and a model has two of them; "),
        ("1 memorizing : 1 infini : 1 full", "pattern: it names 3 mechanisms, and a model has two of them; "),
        ("1 memorizing : 1 infiny", "pattern: 'infiny' is not known; did you mean 'infini'"),
        ("1 full : 1 infini", "pattern: memorizing is not in it; name it, or train full or infini"),
        ("1 memorizing : 1 landmark", "pattern: landmark inserts tokens, .*; train landmark with this pattern"),
        ("7 infini : 1 memorizing", "model.layers: 4 layers have one of its mechanisms only; give a multiple of 8"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        patterned(SMALL, Pattern.of(text))


def test_layers_are_named_once_and_settings_are_of_the_mechanism_that_is_named():
    pattern = Pattern.of("1 infini : 1 memorizing")
    some = dataclasses.replace(SMALL, memory=MemorizingConfig(layers=(1,), slots=24, top_k=4))
    with pytest.raises(ConfigError, match=r"^memory\.layers: the pattern says which layers"):
        patterned(some, pattern)
    with pytest.raises(
        ConfigError, match=r"^model\.elsewhere: the second memory is LandmarkConfig, and the pattern has infini"
    ):
        patterned(SMALL, pattern, LandmarkConfig())


def test_the_first_memory_alone_grows():
    model = patterned(SMALL, Pattern.of("1 infini : 1 memorizing"))
    grown = model.at_bytes(2 * model.memory_bytes)
    assert grown.elsewhere == model.elsewhere
    assert isinstance(grown.memory, MemorizingConfig)
    assert isinstance(model.memory, MemorizingConfig)
    assert grown.memory.slots > model.memory.slots
    assert model.memory_bytes < grown.memory_bytes <= 2 * model.memory_bytes


def test_a_run_of_a_study_is_named_after_its_pattern_and_its_row_says_it(tmp_path):
    run = with_pattern(RUN, MemorizingConfig(slots=16, top_k=4), "1 gated_delta : 1 memorizing")
    assert (run.name, run.variant) == ("mqar-memorizing-1gated_delta-1", "1 gated_delta : 1")
    assert RunConfig.from_dict(run.to_dict()) == run
    assert run.fingerprint() != with_pattern(RUN, MemorizingConfig(slots=16, top_k=4), "1 infini : 1 memorizing").fingerprint()
    row = execute(run, tmp_path / run.name, study="")
    assert (row.mechanism, row.variant, row.memory_bytes) == ("memorizing", run.variant, run.model.memory_bytes)
    assert row.flops_actual == pytest.approx(training_flops_per_step(run) * row.steps, rel=0.05)


def test_the_command_line_trains_a_pattern_with_settings_of_the_second_from_a_file(tmp_path, capsys):
    """A file's `model.elsewhere` are the settings of the second memory; the first one grows."""
    (tmp_path / "run.yaml").write_text("model: {elsewhere: {kind: gated_delta, decay: none}}\n", encoding="utf-8")
    sizes = ["--model.layers", "2", "--model.d-model", "16", "--model.segment", "16", "--train.sequence", "32"]
    small = [*sizes, "--data.pairs", "2", "--data.symbols", "32", "--train.batch", "2", "--budget.unit", "steps"]
    pattern = ["--pattern", "1 gated_delta : 1 memorizing", "--memory-bytes", "8000", "--config", str(tmp_path / "run.yaml")]
    main(["train", "memorizing", "mqar", *small, "--budget.amount", "1", *pattern, "--results", str(tmp_path)])
    assert "memorizing 1 gated_delta : 1, " in capsys.readouterr().out
    run = load(tmp_path).runs.iloc[0]
    assert run.variant == "1 gated_delta : 1"
    assert run.memory_bytes <= 8000
    model = saved_config(tmp_path / "run").model
    assert model.elsewhere == GatedDeltaConfig(decay="none")
    assert model.memory.layers == (1,)


def sharded_losses() -> dict[str, list[float]]:
    """Losses of three steps on one device and on four, two of which share a row's heads."""
    run = with_pattern(RUN, MemorizingConfig(slots=16, top_k=4), "1 gated_delta : 1 memorizing")
    return {"one": streams.losses_of(run), "four": streams.losses_of(run, layout_of(run, Sharding("fsdp+tensor", 2)))}


@pytest.mark.slow
def test_a_pattern_trains_on_four_devices_as_on_one():
    found = on_devices(4, "test_pattern", "sharded_losses()")
    np.testing.assert_allclose(found["four"], found["one"], rtol=2e-5)  # sums in another order


def test_the_states_of_both_memories_are_carried_over_steps():
    """What a step of training carries on has both memories' arrays."""
    training = Training(with_pattern(RUN, MemorizingConfig(slots=16, top_k=4), "1 gated_delta : 1 memorizing"))
    state = training.fresh()
    after, _ = training.step(state, training.source.batch(0))
    changed = [bool(np.any(leaf)) for leaf in jax.tree.leaves(after.carry.memory)]
    assert all(changed)
    assert len(changed) > 4
