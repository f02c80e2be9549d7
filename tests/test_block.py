"""The block's parts against float64 NumPy, alone and all at once, streamed and decoded; its default is what it always was."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from infini_jax.config import BlockConfig, Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of, parameter_axes
from infini_jax.errors import ConfigError
from infini_jax.layers.attention import form
from infini_jax.layers.distances import RotaryConfig
from infini_jax.layers.segment import NO_DOCUMENT, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.model.cost import model_cost, training_flops_per_step
from infini_jax.model.inheritance import inheritance, layers_apart, shapes_by_layer
from infini_jax.model.stream import forward_segments, init_carry, init_params, logits_of, parameter_shapes
from infini_jax.model.transformer import layer_groups, memory_parameters, without_decay
from infini_jax.training.execute import execute
from infini_jax.training.program import Training, counted_flops
from infini_jax.training.trained import Trained
from tests.reference.block import Reference
from tests.support import streams
from tests.support.commands import on_devices
from tests.support.streams import losses_of

PLAIN = ModelConfig(
    memory=FullConfig(slots=32), vocab=23, layers=2, d_model=12, heads=4, kv_heads=2, key_dim=6, value_dim=5, segment=6
)
LLAMA3 = RotaryConfig(base=300.0, scaling="llama3", factor=4.0, context=12, high_turns=2.0)
BIASES = ("query_key_value", "output", "mlp", "norm", "head")
PARTS = {
    "layer norm": {"block": BlockConfig(norm="layer", epsilon=1e-3)},
    "norms with a bias": {"block": BlockConfig(norm="layer", biases=("norm",))},
    "norms after": {"block": BlockConfig(norm_places="both")},
    "norms of queries and keys": {"block": BlockConfig(qk_norm="rms")},
    "gelu": {"block": BlockConfig(mlp="gelu", biases=("mlp",))},
    "swiglu": {"block": BlockConfig(mlp="swiglu")},
    "geglu": {"block": BlockConfig(mlp="geglu", biases=("mlp",))},
    "biases of attention": {"block": BlockConfig(biases=("query_key_value", "output"))},
    "parallel residual": {"block": BlockConfig(residual="parallel")},
    "own head": {"block": BlockConfig(head="own", biases=("head",))},
    "tied head with a bias": {"block": BlockConfig(biases=("head",))},
    "scales": {"block": BlockConfig(embedding_scale=3.0, attention_scale=0.7)},
    "caps": {"block": BlockConfig(score_cap=0.3, logit_cap=0.5)},
    "learned positions": {"block": BlockConfig(learned_positions=18), "memory": FullConfig(slots=32, positions="none")},
    "base and fraction": {"rotary": RotaryConfig(base=50.0, fraction=0.7)},
    "neighbors": {"rotary": RotaryConfig(pairs="neighbors")},
    "linear scaling": {"rotary": RotaryConfig(scaling="linear", factor=3.0)},
    "llama3 scaling": {"rotary": LLAMA3},
    "windows in a pattern": {"memory": FullConfig(slots=32, layers=(1,)), "elsewhere": LocalConfig(window=4)},
    "everything": {
        "layers": 3,
        "memory": FullConfig(slots=32, layers=(1,)),
        "elsewhere": LocalConfig(window=8),
        "rotary": dataclasses.replace(LLAMA3, fraction=0.7, pairs="neighbors"),
        "rotary_elsewhere": RotaryConfig(base=100.0),
        "block": BlockConfig(
            norm="layer",
            epsilon=1e-4,
            norm_places="both",
            qk_norm="rms",
            mlp="geglu",
            biases=BIASES,
            residual="parallel",
            head="own",
            embedding_scale=2.0,
            attention_scale=0.6,
            score_cap=0.9,
            logit_cap=2.0,
            learned_positions=20,
        ),
    },
}
TOKENS = 18


def model_of(part: str) -> ModelConfig:
    return dataclasses.replace(PLAIN, **PARTS[part])


def random_parameters(model: ModelConfig) -> dict:
    """None of them at a constant."""
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5 + 0.2, jnp.float32), parameter_shapes(model)
    )


def reference_of(model: ModelConfig, params: dict) -> Reference:
    layers = [model.layer_memory(layer) for layer in range(model.layers)]
    windows = [memory.window if isinstance(memory, LocalConfig) else None for memory in layers]
    turns = [model.dims_of(memory).rotary if getattr(memory, "positions", None) == "rotary" else None for memory in layers]
    return Reference(model, layers_apart(model, params), windows, turns)


def streamed(model: ModelConfig, params: dict, tokens, documents=None):
    documents = jnp.zeros_like(tokens) if documents is None else documents
    return streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, documents)[1]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_its_formula_over_segments(part):
    """Three segments; float32 against float64."""
    model = model_of(part)
    params, tokens = random_parameters(model), np.random.default_rng(4).integers(0, model.vocab, TOKENS)
    expected = reference_of(model, params).logits(tokens)
    plain = Reference(PLAIN, layers_apart(PLAIN, random_parameters(PLAIN)), [None] * 2, [PLAIN.rotary] * 2).logits(tokens)
    assert np.abs(expected - plain).max() > 1e-3  # the part does something
    found = streamed(model, params, jnp.asarray(tokens)[None])[0]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


def test_everything_is_decoded_token_by_token_as_in_whole_segments():
    model = model_of("everything")
    params, tokens = random_parameters(model), streams.tokens_of(model)
    np.testing.assert_allclose(streams.decoded(model, params, tokens), streamed(model, params, tokens), rtol=0, atol=2e-5)


def test_everything_is_the_same_with_segments_at_once_and_in_turn():
    """Gradients too: in turn, the memories before every segment are found again from the last ones."""
    model = model_of("everything")
    params, tokens = random_parameters(model), streams.tokens_of(model)
    documents = jnp.asarray([[0] * 8 + [1] * 10, [0] * 18])

    def at_once(params):
        carry, x, _ = forward_segments(model, params, init_carry(model, 2), tokens, documents)
        return carry, logits_of(model, params, x)

    def in_turn(params):
        return streams.scorer(model)(params, init_carry(model, 2), tokens, documents)

    found = []
    for form_of in (at_once, in_turn):
        carry, logits = jax.jit(form_of)(params)
        np.testing.assert_array_equal(carry.before, [10, 18])
        slopes = jax.jit(jax.grad(lambda p, f=form_of: jnp.sum(jnp.sin(f(p)[1]))))(params)
        found.append((logits, slopes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), *found)


@pytest.mark.parametrize("part", ["learned positions", "everything"])
def test_a_document_behind_another_reads_as_alone(part):
    """Its places begin anew, in the middle of a segment too."""
    model = model_of(part)
    params, tokens = random_parameters(model), np.random.default_rng(5).integers(0, model.vocab, TOKENS)
    documents = jnp.asarray([[0] * 8 + [1] * 10])
    found = streamed(model, params, jnp.asarray(tokens)[None], documents)[0]
    for part_of in (slice(0, 8), slice(8, None)):
        expected = reference_of(model, params).logits(tokens[part_of])
        np.testing.assert_allclose(found[part_of], expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


def test_places_restart_in_every_segment_where_the_memory_is_not_the_whole_document():
    before, documents = jnp.asarray([NO_DOCUMENT, 3]), jnp.asarray([[0, 0, 0, 1, 1], [3, 3, 4, 4, 4]])
    bounds = whole(documents, before)
    assert bounds.places_BxS.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    counted = dataclasses.replace(bounds, before=jnp.asarray([7, 7]))
    assert counted.places_BxS.tolist() == [[0, 1, 2, 0, 1], [7, 8, 0, 1, 2]]
    block = BlockConfig(learned_positions=6)
    for memory, counts in ((FullConfig(), True), (InfiniConfig(), False), (TransformerXLConfig(), False)):
        assert (init_carry(dataclasses.replace(PLAIN, block=block, memory=memory), 1).before is not None) == counts
    assert init_carry(PLAIN, 1).before is None


@pytest.mark.parametrize("part", PARTS)
def test_counted_flops_are_those_of_the_program(part):
    model = model_of(part)
    for segments in (1, 3):
        assert streams.walked_flops(model, segments=segments) == pytest.approx(
            model_cost(model, segments=segments).flops, rel=1e-6
        )


def test_large_parameters_have_axes():
    model = model_of("everything")
    declared: Any = flatten_dict(parameter_axes(model))
    names = {path: axes for path, axes in declared.items() if any(axes)}
    group = "groups_0"
    for name, of_heads in (("query", "heads"), ("key", "kv_heads"), ("value", "kv_heads")):
        assert names[group, name, "bias"] == ("layers", of_heads, "head_dim")
    assert names[group, "mlp", "gate", "kernel"] == ("layers", "embed", "mlp")
    assert names["head", "kernel"] == ("embed", "vocab")
    assert names["positions", "embedding"] == (None, "embed")
    shapes: Any = flatten_dict(parameter_shapes(model))
    assert {path for path, leaf in shapes.items() if leaf.ndim - path[0].startswith("groups") >= 2} <= names.keys()


def test_capped_attention_is_charged_without_tiles():
    """Where attention without a cap leaves tiles out."""
    long = dataclasses.replace(PLAIN, segment=512, layers=1)
    model = dataclasses.replace(long, block=BlockConfig(score_cap=5.0))
    assert model_cost(model).flops > model_cost(long).flops
    assert streams.walked_flops(model, batch=1) == pytest.approx(model_cost(model).flops, rel=1e-6)


def run_of_everything(batch: int) -> RunConfig:
    model = dataclasses.replace(model_of("everything"), vocab=64)
    train = TrainConfig(batch=batch, sequence=18, learning_rate=1e-2)
    return RunConfig(model=model, data=MqarConfig(pairs=4, symbols=32), train=train, budget=Budget("steps", 3))


def test_a_training_step_of_everything_costs_what_is_planned():
    run = run_of_everything(batch=2)
    assert counted_flops(Training(run).program).work == pytest.approx(training_flops_per_step(run), rel=0.02)


DEFAULT = {  # of the commit before the block had parts: the last place's first logits, and the sum of absolute values
    "infini": ([0.76869148, 1.09395349, 0.87355393, 0.57632625, 0.09170055, 0.60184515], 2724.74365),
    "full": ([0.35717770, 0.80896813, 0.71724653, 0.25743866, 0.42586976, 0.13526493], 2590.36572),
}


@pytest.mark.parametrize("name", DEFAULT)
def test_the_default_block_is_what_it_was(name):
    """Drawn parameters and logits, to the rounding of other machines and versions."""
    model = streams.tiny(name)
    tokens = jax.random.randint(jax.random.key(0), (2, 3 * model.segment), 0, model.vocab)
    logits: Any = streams.logits_of(name, tokens)
    last, total = DEFAULT[name]
    np.testing.assert_allclose(logits[0, -1, :6], last, rtol=0, atol=1e-5)
    assert float(jnp.abs(logits).sum()) == pytest.approx(total, rel=1e-5)
    paths = {path[0] for path in shapes_by_layer(model)}
    assert paths == {"embedding", "norm", "layer0", "layer1"}


def test_the_default_enters_no_fingerprint_and_every_other_part_does():
    def run_of(model: ModelConfig) -> RunConfig:
        return RunConfig(model=dataclasses.replace(model, vocab=128), train=TrainConfig(batch=2, sequence=96))

    run = run_of(PLAIN)
    assert run_of(dataclasses.replace(PLAIN, block=BlockConfig(), rotary=RotaryConfig())).fingerprint() == run.fingerprint()
    others = [run_of(model_of(part)) for part in PARTS]
    assert len({one.fingerprint() for one in [run, *others]}) == 1 + len(others)
    for one in others:
        assert RunConfig.from_dict(one.to_dict()) == one


def test_memories_of_other_layers_are_counted_grouped_and_carried():
    model = model_of("everything")
    assert [count for _, count in layer_groups(model)] == [1, 1, 1]
    window = memory_bytes(memory_of(model.layer_memory(0), model.dims))
    full = memory_bytes(memory_of(model.memory, model.dims))
    assert model.memory_bytes == full + 2 * window
    carried = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(init_carry(model, 1).memory))
    assert carried == model.memory_bytes
    grown = model.at_bytes(4 * model.memory_bytes)
    assert model.memory_bytes < grown.memory_bytes <= 4 * model.memory_bytes
    assert grown.elsewhere == model.elsewhere
    with pytest.raises(ConfigError, match=r"^memory bytes: .* the layers without full carry"):
        model.at_bytes(2 * window)


def test_biases_and_norms_do_not_decay():
    model = model_of("everything")
    paths = without_decay(model)
    for name in ("query", "key", "value"):
        assert ("groups_0", name, "bias") in paths
    assert not any(path[-1] == "kernel" for path in paths)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"block": BlockConfig(score_cap=1.0), "memory": LandmarkConfig(block=3)}, "model.block.score_cap: Landmark"),
        ({"block": BlockConfig(attention_scale=1.0), "memory": MemorizingConfig()}, "model.block.attention_scale: Memorizing"),
        ({"block": BlockConfig(learned_positions=5)}, "model.block.learned_positions: 5 rows"),
        ({"elsewhere": LocalConfig()}, "model.elsewhere: every layer carries the memory"),
        ({"rotary_elsewhere": RotaryConfig()}, "model.rotary_elsewhere: every layer carries the memory"),
        ({"memory": FullConfig(layers=(0,)), "elsewhere": LandmarkConfig(block=3)}, "model.elsewhere: it inserts tokens"),
        ({"memory": FullConfig(layers=(0,)), "elsewhere": LocalConfig(layers=(1,))}, "model.elsewhere.layers: "),
        ({"rotary": RotaryConfig(fraction=0.5)}, "model.rotary.fraction: 3 of 6 entries are no pairs"),
    ],
)
def test_parts_that_cannot_be_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        dataclasses.replace(PLAIN, **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        (BlockConfig, {"biases": ("norm",)}, "biases"),
        (BlockConfig, {"biases": ("mlp", "output")}, "biases"),
        (BlockConfig, {"score_cap": -1.0}, "score_cap"),
        (RotaryConfig, {"factor": 2.0}, "factor"),
        (RotaryConfig, {"low_turns": 5.0}, "low_turns"),
        (RotaryConfig, {"fraction": 0.0}, "fraction"),
    ],
)
def test_settings_of_parts_have_limits(kind, settings, field):
    with pytest.raises(ConfigError, match=rf"^model\.\w+\.{field}: "):
        kind(**settings)


def test_a_form_without_a_cap_is_refused():
    model = model_of("caps")
    with form("blockwise"), pytest.raises(ConfigError, match=r"^attention: blockwise has no soft cap of scores"):
        streams.walked_flops(model)


CHANNELS = {  # parameters of memories whose last axis is the entries of a key
    "block_recurrent": ("ask", "state_queries", "state_keys"),
    "gated_delta2": ("forget_up", "erase"),
    "kimi_delta": ("forget_up",),
    "memory_caching": ("forget_up", "connect"),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_turns_as_the_model_says(name):
    """Neighbors are the halves of another order: with the entries of heads in that order logits are the same."""
    model = streams.tiny(name, key_taps=1)
    if "rotary" not in MECHANISMS[name].honors:
        pytest.skip("it is refused")
    if hasattr(model.memory, "positions"):
        model = dataclasses.replace(model, memory=dataclasses.replace(model.memory, positions="rotary"))
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    order = np.arange(model.dims.key_dim).reshape(2, -1).T.ravel()  # of neighbors: halves' first, second, first, ...

    def reordered(path, leaf):
        names = [key.key for key in path]
        of_memory = names[1:2] == ["memory"] and names[2] in CHANNELS.get(name, ())
        return leaf[..., order] if of_memory or names[1:] in (["query", "kernel"], ["key", "kernel"]) else leaf

    other = dataclasses.replace(model, rotary=RotaryConfig(pairs="neighbors"))
    permuted = jax.tree_util.tree_map_with_path(reordered, params)
    own = streamed(model, params, tokens)
    if name in ("infinite_former", "compressive"):  # whose own parameters know the order of a key's entries
        tokens = tokens[:, : model.segment]
        own = own[:, : model.segment]
    np.testing.assert_allclose(streamed(other, permuted, tokens), own, rtol=0, atol=2e-5)
    assert np.abs(streamed(other, params, tokens) - own).max() > 1e-4


def test_another_block_is_no_model_to_begin_at():
    with pytest.raises(ConfigError, match=r"^model\.block\.mlp: gelu_tanh does not fit the parameters of first"):
        inheritance(model_of("swiglu"), PLAIN, "first")
    assert not inheritance(model_of("linear scaling"), PLAIN, "first").fresh  # turns may change


def test_gradients_reach_every_parameter():
    model = model_of("everything")
    params, tokens = random_parameters(model), streams.tokens_of(model)
    documents = jnp.zeros_like(tokens)

    def loss(params):
        logits = streams.scorer(model)(params, init_carry(model, 2), tokens, documents)[1]
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    slopes = jax.jit(jax.grad(loss))(params)
    flat = jax.tree_util.tree_leaves_with_path(slopes)
    still = {"/".join(key.key for key in path) for path, leaf in flat if not np.abs(leaf).max() > 0}
    assert still == set()
    assert jax.tree.structure(init_params(model, jax.random.key(0))) == jax.tree.structure(params)


@pytest.mark.parametrize("name", [name for name in MECHANISMS if "score_cap" in MECHANISMS[name].honors])
def test_a_cap_of_nearly_nothing_is_a_query_of_nothing(name):
    """In a first segment, where nothing is remembered or gates let nothing be heard, all tokens before weigh the same."""
    model = streams.tiny(name)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model, segments=1)
    if MECHANISMS[name].reads_own:
        gates = memory_parameters(model, "gates")
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: 0 * leaf - 40.0 if streams.names_of(path) in gates else leaf, params
        )
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if streams.names_of(path)[-2] in ("query", "ask") else leaf, params
    )
    expected = streamed(model, silent, tokens)
    found = streamed(dataclasses.replace(model, block=BlockConfig(score_cap=1e-6)), params, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(streamed(model, params, tokens) - expected).max() > 1e-3


def test_everything_works_in_bfloat16():
    model = model_of("everything")
    params, tokens = random_parameters(model), streams.tokens_of(model)
    half: Any = streamed(dataclasses.replace(model, compute="bfloat16"), params, tokens)
    assert half.dtype == jnp.float32
    assert np.corrcoef(np.ravel(half), np.ravel(streamed(model, params, tokens)))[0, 1] > 0.98


def test_a_run_of_everything_is_saved_and_opened_again(tmp_path):
    """Its carry counts places, and its config has all parts."""
    run = run_of_everything(batch=2)
    row = execute(run, tmp_path, study="")
    assert row.memory_bytes == run.model.memory_bytes
    opened = Trained.open(tmp_path)
    assert opened.run.model == run.model
    assert jax.tree.map(jnp.shape, opened.params) == jax.tree.map(jnp.shape, parameter_shapes(run.model))


def sharded_losses() -> dict[str, list[float]]:
    """Losses of three steps on one device and on four, two of which share a row's heads."""
    run = run_of_everything(batch=4)
    return {"one": losses_of(run), "four": losses_of(run, layout_of(run, Sharding("fsdp+tensor", 2)))}


@pytest.mark.slow
def test_everything_trains_on_four_devices_as_on_one():
    found = on_devices(4, "test_block", "sharded_losses()")
    np.testing.assert_allclose(found["four"], found["one"], rtol=2e-5)  # sums in another order
