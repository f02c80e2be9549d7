"""The same neighborhood for every mechanism: local attention over exactly that, and each mechanism's own far read.

The references are those of the mechanisms, in float64 loops, whose attention inside the segment is taken out and put back over
the neighborhood, token by token on the whole stream. Segments of the streams have 6 tokens and one, documents end anywhere.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.devices.sharding import Sharding, check_shares
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS, class_of, memory_of
from infini_jax.memory.base import AUXILIARY, memory_bytes
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.neighborhood import FarAndNear, WithNeighborhood, neighborhood_bytes
from infini_jax.memory.segment_only import SegmentOnlyConfig
from infini_jax.model.controls import emptied, with_neighborhoods
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.study import comparison
from tests import test_compressive, test_gated_delta, test_infinite_former_cache
from tests import test_landmark_straddle as landmark
from tests.reference import attention, infini, memorizing
from tests.support import ragged, streams
from tests.support.commands import on_devices
from tests.test_positions import scaled
from tests.test_windows import holds_the_newest

S = ragged.DIMS.segment
SEES = {"segment": attention.in_cache(0), "window": attention.in_window(S), "cache": attention.in_cache(S)}
CONFIGS = {
    "infini": InfiniConfig(),
    "infini, keys scaled": InfiniConfig(feature_scale=1.7),
    "gated_delta": GatedDeltaConfig(),
    "memorizing": MemorizingConfig(slots=8, top_k=3),
    "infinite_former": test_infinite_former_cache.module_of(0).config,
}
IDLE = {"gated_delta": (), "infinite_former": ()}  # others do not look at layer inputs


def with_local(case: str, local: str):
    """(the module, what its tokens see, whether what is carried of them is held without gradient)."""
    return memory_of(CONFIGS[case].with_local(local), ragged.DIMS), SEES[local], local == "cache"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def far_and_segment(case: str, params, live, held, documents):
    """Values TxHxV of a mechanism's own reference, with attention inside the segment, of one row."""
    if case == "memorizing":
        c = CONFIGS[case]
        return memorizing.row(params, live, held, documents, lengths=ragged.LENGTHS, slots=c.slots, k=c.top_k, cached=0)[0]
    if case == "gated_delta":
        return test_gated_delta.row(params, live, documents)[0]
    scale, rule = CONFIGS[case].feature_scale, {"rule": "linear", "feature_map": "elu_plus_one", "nu": 1, "normalise": True}
    written = [live[0], scale * live[1], scale * live[2], live[3]]
    return infini.row(written, documents, lengths=ragged.LENGTHS, beta=params["gate"], **rule)[0]


def local_values(case: str, params, live, held, documents, sees, scale=1.0):
    """Values TxHxV of local attention; the keys and values of earlier segments are the held ones."""
    logit = attention.rotary_logit
    live, held = ([scale * x[1], scale * x[2], x[3]] for x in (live, held))
    if case == "memorizing":
        live, held = ([unit(q), unit(k), v] for q, k, v in (live, held))
        logit = scaled("t5", params, np.abs(params["scale"]) * np.sqrt(live[0].shape[-1]))
    return attention.stream(live, held, documents, ragged.LENGTHS, sees, logit)


def unit(x):
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


def row_of(case: str, params, live, held, documents, sees, holds: bool):
    """Values TxHxV of one row with the neighborhood in the place of the segment."""
    scale = getattr(CONFIGS[case], "feature_scale", 1.0)
    before = local_values(case, params, live, live, documents, SEES["segment"], scale)
    after = local_values(case, params, live, held if holds else live, documents, sees)
    share = (1 - sigmoid(params["gate"]))[:, None] if "gate" in params else 1.0
    if case == "infinite_former":
        return after - before
    return far_and_segment(case, params, live, held, documents) + share * (after - before)


def expected(case: str, point, held_point, sees, holds: bool, documents=ragged.DOCUMENTS):
    """(outputs BxTxD, auxiliary losses per segment)."""
    (params, live), (held_params, held) = point, held_point
    rows = [
        row_of(case, params, [x[row] for x in live], [x[row] for x in held], of_row, sees, holds)
        for row, of_row in enumerate(documents)
    ]
    outputs = ragged.projected(params, rows)
    if case != "infinite_former":
        return outputs, []
    alone, _, losses = test_infinite_former_cache.expected(CONFIGS[case], params, live, held_params, held, documents)
    return outputs + alone, losses


@pytest.mark.parametrize("local", SEES)
@pytest.mark.parametrize("case", CONFIGS)
def test_outputs_and_gradients_are_those_of_the_far_read_and_of_exactly_that_neighborhood(case, local):
    """A gradient enters a window and no cache; the memory is read and written as without any."""
    module, sees, holds = with_local(case, local)
    point = ragged.parameters(module), ragged.inputs()
    weights, direction = ragged.like(point[1][0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, metrics) = ragged.streamed_with_gradient(module, *point, weights)
    wanted, losses = expected(case, point, point, sees, holds)
    np.testing.assert_allclose(outputs, wanted, atol=1e-10)  # float64; the ∞-former's regression loses a digit
    for measured, value in zip(metrics, losses, strict=False):
        np.testing.assert_allclose(measured[AUXILIARY + "kl"], value, atol=1e-10)
    if local != "segment":
        holds_the_newest(memory.near, point[1], S - (local == "window"))

    def loss(moved):
        outputs, losses = expected(case, moved, point, sees, holds)
        return np.sum(weights * outputs) + sum(losses)

    ragged.assert_slope(gradient, loss, point, direction, IDLE.get(case, (ragged.INPUTS,)))


@settings(max_examples=12, deadline=None)
@given(
    documents=ragged.documents_cut_anywhere(),
    seed=st.integers(0, 99),
    case=st.sampled_from(["infini", "gated_delta", "memorizing"]),
    local=st.sampled_from(["window", "cache"]),
)
def test_documents_cut_anywhere_see_nothing_of_each_other(documents, seed, case, local):
    module, sees, holds = with_local(case, local)
    point = ragged.parameters(module), ragged.inputs(seed)
    with jax.enable_x64(True):
        outputs, _, _ = ragged.stream(module, *point, documents)
    np.testing.assert_allclose(outputs, expected(case, point, point, sees, holds, documents)[0], atol=1e-10)


@pytest.mark.parametrize(("local", "slots"), [("segment", 0), ("cache", S)])
def test_the_compressive_cache_is_the_neighborhood_and_what_leaves_it_is_compressed(local, slots):
    config = CompressiveConfig(slots=0, compressed=3, ratio=3, loss_weight=0.7, local=local)
    module, as_own = memory_of(config, ragged.DIMS), dataclasses.replace(config, slots=slots, local="own")
    params, arrays = point = ragged.parameters(module), ragged.inputs()
    weights, direction = ragged.like(arrays[0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, metrics) = ragged.streamed_with_gradient(module, *point, weights)
    wanted, rows, losses = test_compressive.expected(as_own, params, arrays, params, arrays)
    np.testing.assert_allclose(outputs, wanted, atol=ragged.EXACT)
    np.testing.assert_allclose([m[AUXILIARY + "reconstruction"] for m in metrics], losses, atol=ragged.EXACT)
    far = memory.far if slots else memory
    for row, (_, older) in enumerate(rows):
        test_compressive.holds(far.compressed, row, older)
    assert far.recent is None

    def loss(moved):
        outputs, _, losses = test_compressive.expected(as_own, *moved, params, arrays)
        return np.sum(weights * outputs) + sum(losses)

    ragged.assert_slope(gradient, loss, point, direction)


@pytest.mark.parametrize(("blocks", "retrieved"), [(5, 2), (2, 1), (0, 1)])
def test_landmarks_of_the_segment_before_are_seen_as_those_of_the_segment_and_its_blocks_retrieved_later(blocks, retrieved):
    """Against the loops, which hold the tokens of one segment back before their blocks may be retrieved."""
    block, segment = 2, 6
    config, dims = LandmarkConfig(block=block, blocks=blocks, retrieved=retrieved, local="cache"), landmark.dims_of(6, 2)
    config.check(dims)
    *qkv, documents, is_landmark = landmark.inserted(block)
    with jax.enable_x64(True):
        y = landmark.run_stream(config, dims, segment, is_landmark, documents, *map(jnp.asarray, qkv))
    rows = landmark.expected_rows(config, segment, *qkv, documents, is_landmark, kept_back=dims.segment)
    np.testing.assert_allclose(y, np.einsum("bnhv,hvd->bnd", rows, landmark.kernel_of()), rtol=0, atol=1e-12)
    without = landmark.expected_rows(config, segment, *qkv, documents, is_landmark)
    assert np.abs(np.array(rows) - np.array(without)).max() > 1e-2


def model_of(memory, **changes) -> ModelConfig:
    return dataclasses.replace(streams.MODEL, memory=memory, **changes)


BESIDE = {
    "infini": InfiniConfig(local="cache", positions="relative"),
    "gated_delta": GatedDeltaConfig(local="window"),
    "memorizing": MemorizingConfig(slots=16, top_k=4, local="window"),
    "landmark": LandmarkConfig(block=4, blocks=8, retrieved=2, local="cache"),
    "compressive": CompressiveConfig(slots=0, compressed=8, local="cache"),
    "some layers": InfiniConfig(local="cache", layers=(1,)),
}


@pytest.mark.parametrize("case", BESIDE)
def test_it_is_paid_for_and_decoding_token_by_token_equals_whole_segments(case):
    model = model_of(BESIDE[case])
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    assert streams.walked_flops(model, batch=1) == pytest.approx(model_cost(model).flops, rel=1e-6)
    _, whole = streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, jnp.zeros_like(tokens))
    few = tokens[:, : 2 * model.segment + 3]
    # float32 products of other shapes
    np.testing.assert_allclose(streams.decoded(model, params, few), whole[:, : few.shape[1]], atol=5e-5)


@pytest.mark.parametrize("case", BESIDE)
def test_bytes_of_memory_and_of_the_neighborhood_are_counted_apart(case):
    """The budget of bytes is the memory's alone."""
    model, layers = model_of(BESIDE[case]), streams.MODEL.layers
    carried = sum(leaf.nbytes for leaf in jax.tree.leaves(init_carry(model, 1).memory))
    assert model.memory_bytes + model.neighborhood_bytes == carried
    d, (slots, _) = model.dims, model.memory.neighbors(model.dims.segment)
    assert model.neighborhood_bytes == layers * 4 * (slots * d.kv_heads * (d.key_dim + d.value_dim) + 1)  # and its length
    fitted = model.at_bytes(5 * model.memory_bytes)
    assert model.memory_bytes < fitted.memory_bytes <= 5 * model.memory_bytes
    own = memory_of(dataclasses.replace(fitted.memory, local="own"), fitted.dims) if case != "compressive" else None
    assert own is None or fitted.memory_bytes == fitted.memory_layers * memory_bytes(own)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_segment_alone_is_what_mechanisms_without_a_cache_have_already(name):
    """So that nothing is carried for it, and a mechanism's own neighborhood carries nothing either."""
    mechanism, dims = MECHANISMS[name], ragged.DIMS
    assert type(memory_of(mechanism.Config(), dims)) is mechanism
    if "segment" in mechanism.neighborhoods and name != "landmark":
        alone = memory_of(mechanism.Config().with_local("segment"), dims)
        assert type(alone) is mechanism
        assert neighborhood_bytes(alone) == 0


def test_layers_without_the_memory_have_the_same_neighborhood():
    model = model_of(BESIDE["some layers"])
    assert model.layer_memory(0) == SegmentOnlyConfig(local="cache")
    assert isinstance(memory_of(model.layer_memory(0), model.dims), WithNeighborhood)


@pytest.mark.parametrize(
    ("memory", "line"),
    [
        (
            lambda: MECHANISMS["full"].Config(local="cache"),
            "memory.local: Full has no neighborhood 'cache' beside its memory; ",
        ),
        (lambda: MECHANISMS["local"].Config(local="segment"), "memory.local: Local has no neighborhood 'segment'"),
        (lambda: MECHANISMS["transformer_xl"].Config(local="window"), "memory.local: TransformerXL has no neighborhood"),
        (lambda: CompressiveConfig(slots=0, local="window"), "memory.local: Compressive has no neighborhood 'window'"),
        (lambda: LandmarkConfig(local="window"), "memory.local: Landmark has no neighborhood 'window'"),
        (lambda: LandmarkConfig(block=5, local="cache"), "memory.local: blocks of 5 tokens straddle segments"),
        (lambda: CompressiveConfig(local="cache"), "memory.slots: 64 tokens are cached beside the neighborhood 'cache'; "),
        (lambda: CompressiveConfig(slots=0), "memory.slots: 0 is not positive"),
        (lambda: MemorizingConfig(cached=8, local="segment"), "memory.cached: 8 tokens are cached beside"),
        (lambda: InfiniteFormerConfig(cached=8, local="cache"), "memory.cached: 8 tokens are cached beside"),
        (lambda: InfiniConfig(local="far"), "memory.local: 'far' is not known; choose own, segment, window or cache"),
    ],
)
def test_a_neighborhood_that_cannot_be_is_refused_in_one_line(memory, line):
    with pytest.raises(ConfigError) as error:
        ModelConfig(memory=memory())
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_sequence_that_devices_share_has_its_own_neighborhood_only():
    run = RunConfig(model=ModelConfig(memory=InfiniConfig(local="cache")))
    with pytest.raises(ConfigError, match=r"^sharding.rules: memory.local takes the segments of a sequence in turn"):
        check_shares(run, Sharding("fsdp+sequence", 2))


def test_a_default_enters_no_fingerprint_and_another_one_does():
    plain = RunConfig(model=ModelConfig(memory=InfiniConfig()))
    others = [RunConfig(model=ModelConfig(memory=InfiniConfig(local=local))) for local in ("segment", "window", "cache")]
    assert len({run.fingerprint() for run in (plain, *others)}) == 4
    assert RunConfig.from_dict(others[2].to_dict()) == others[2]


def test_one_argument_gives_all_compared_memories_the_same_neighborhood():
    compared = comparison.memories(64, local="cache")
    assert {type(memory) for _, memory in compared} == {type(memory) for _, memory in comparison.memories(64)}
    for _, memory in compared:
        dims = ModelConfig(memory=memory, segment=64).dims
        can_have_one = bool(class_of(memory).neighborhoods)  # a cache of tokens alone has none, nor what works on the stream
        assert (neighborhood_bytes(memory_of(memory, dims)) > 0) == can_have_one
    assert comparison.memories(64, local="own") == comparison.memories(64)
    one = dataclasses.replace(comparison.SMALL_TEXT, local="cache")
    runs = [run for run in one.runs("infini", "memorizing") if run.mechanism in ("infini", "memorizing")]
    assert {run.model.memory.local for run in runs} == {"cache"}
    assert all(run.memory_bytes <= max(one.sizes) for run in runs)
    assert ("neighborhood beside each memory", "cache") in one.held_equal


def test_controls_empty_and_exchange_the_memory_and_leave_each_text_its_own_neighborhood():
    """So that what a memory gains is told of the far past."""
    model = model_of(InfiniConfig(local="cache"))
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    first, second, _ = jnp.split(tokens, 3, axis=1)
    zeros = jnp.zeros_like(first)

    @jax.jit
    def read(carry, tokens):
        carry, x, _ = forward_segments(model, params, carry, tokens, zeros)
        return carry, logits_of(model, params, x)

    carry, _ = read(init_carry(model, len(tokens)), first)
    control = emptied(model, carry)
    (held,), (empty,) = carry.memory, control.memory
    assert isinstance(held, FarAndNear)
    assert np.any(held.far.M)
    assert not np.any(empty.far.M)
    jax.tree.map(np.testing.assert_array_equal, empty.near, held.near)
    kept, nothing = (read(one, second)[1] for one in (control, init_carry(model, len(tokens))))
    assert np.abs(kept - nothing).max() > 1e-3
    assert np.abs(kept - read(carry, second)[1]).max() > 1e-3

    rolled = with_neighborhoods(carry, lambda leaf: jnp.roll(leaf, -1, axis=1)).memory[0]
    jax.tree.map(np.testing.assert_array_equal, rolled.far, held.far)
    np.testing.assert_array_equal(rolled.near.keys[:, 0], held.near.keys[:, 1])


def test_controls_of_a_memory_alone_are_those_of_a_new_stream():
    model = model_of(InfiniConfig())
    carry = jax.tree.map(lambda leaf: leaf + 1, init_carry(model, 2))
    jax.tree.map(np.testing.assert_array_equal, emptied(model, carry), init_carry(model, 2))
    jax.tree.map(np.testing.assert_array_equal, with_neighborhoods(carry, jnp.zeros_like), carry)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infini_cache", "memorizing_window", "landmark_cache"])
def test_training_on_several_devices_equals_one(name):
    found = on_devices(4, "support.neighborhoods", f"losses('{name}')")
    for layout, reached in found.items():
        np.testing.assert_allclose(reached, found["one"], rtol=1e-4, err_msg=layout)  # float32 sums in another order
