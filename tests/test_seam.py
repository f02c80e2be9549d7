"""The members of the seam that few mechanisms need, in two that do and equal slow references."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError
from infini_jax.memory.base import Memory
from infini_jax.model.generate import read_prompt
from infini_jax.model.stream import decode, init_carry, init_decoder, scan_segments
from infini_jax.model.transformer import layer_groups
from tests.reference import descent, memory_tokens
from tests.support import ragged, streams
from tests.support.commands import on_devices
from tests.support.extra_mechanisms import EXTRA, Descent, DescentConfig, Recurrent, RecurrentConfig, registered
from tests.support.marks import WAITING, slow_but
from tests.support.streams import BATCH, tiny

NAMES = pytest.mark.parametrize("name", ["descent", "recurrent"])
THOSE_TOO = pytest.mark.parametrize("name", slow_but(EXTRA, (*EXTRA, *WAITING)))


@pytest.fixture(autouse=True)
def both_in_the_registry():
    with registered():
        yield


def test_existing_members_are_enough_for_a_mechanism():
    """The others change nothing where a mechanism does not have them."""
    memory, x, bounds = object(), object(), object()
    assert Memory.enter(memory, memory, x, bounds) is x  # pyright: ignore[reportArgumentType]
    assert Memory.leave(memory, memory, x, bounds) is memory  # pyright: ignore[reportArgumentType]
    assert Memory.finish(memory, memory, x, bounds) is memory  # pyright: ignore[reportArgumentType]
    assert not Descent.works_on_stream()
    assert Recurrent.works_on_stream()


# ---- a memory that begins as a parameter and is written by gradient descent

LAYER = Descent(DescentConfig(), ragged.DIMS)


def by_the_delta_rule(params, arrays, documents):
    return descent.row(arrays, documents, lengths=ragged.LENGTHS, start=params["start"], rate=LAYER.config.rate)


def test_a_gradient_step_is_the_delta_rule_and_gradients_reach_its_start():
    """Outputs, memory and, through the step's own gradient, that of both by every parameter, the start among them."""
    ragged.assert_is_the_reference(LAYER, by_the_delta_rule)


@settings(max_examples=10, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_a_document_begins_from_the_parameter_wherever_it_is_cut(documents, seed):
    ragged.assert_follows_documents(LAYER, by_the_delta_rule, documents, seed)


def test_a_gradient_step_keeps_float32_in_narrow_types():
    ragged.assert_narrow_types_stay_near(LAYER, by_the_delta_rule)


# ---- memory tokens around the segment


def numbers_of(model, params) -> tuple[dict, list]:
    """Parameters as float64: (all, those of each layer)."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    groups = [(params[f"groups_{number}"], count) for number, (_, count) in enumerate(layer_groups(model))]
    return params, [jax.tree.map(lambda leaf, n=n: leaf[n], group) for group, count in groups for n in range(count)]


@pytest.mark.parametrize(
    ("edges", "layers"), [((), None), ((8,), None), ((3, 19), None), ((5, 6, 16), None), ((5,), (1,)), ((5,), (0,))]
)
def test_three_segments_with_memory_tokens_are_those_of_the_reference(edges, layers):
    """Of one document, and of documents that end at the edges of segments, within them, and several in one; also where only
    one of the layers has a memory."""
    memory = RecurrentConfig(tokens=3, layers=layers)
    model = dataclasses.replace(tiny("recurrent"), memory=memory, segment=8, heads=4, kv_heads=2, key_dim=4)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    documents = np.broadcast_to(np.searchsorted(edges, np.arange(tokens.shape[1]), side="right"), tokens.shape)
    _, ours = streams.scorer(model)(params, init_carry(model, BATCH), tokens, jnp.asarray(documents, jnp.int32))
    for row in range(BATCH):
        of_row = (np.asarray(tokens[row]), documents[row])
        mechanism, sizes = memory_tokens.OfEachLayer(3), {"segment": 8, "count": (3, 3)}
        theirs = memory_tokens.logits(*numbers_of(model, params), *of_row, mechanism, **sizes)
        np.testing.assert_allclose(ours[row], theirs, atol=2e-5)  # float32 rounding of two layers of order one


def test_memory_tokens_are_of_the_layers_alone():
    model = dataclasses.replace(tiny("recurrent"), memory=RecurrentConfig(tokens=5))
    assert model.dims.segment == model.segment + 10
    assert (model.ids, model.vocab) == (37, 32)
    assert model.memory_bytes == model.layers * 5 * model.d_model * 4


# ---- both


@NAMES
def test_gradients_of_a_later_segment_reach_the_start_of_the_document_and_bptt_cuts_them(name):
    model = tiny(name)
    params, tokens = streams.parameters(name), streams.tokens_of(model)

    def last_score(params, bptt):
        sequence = streams.Sequence(tokens, jnp.zeros_like(tokens))
        scores = scan_segments(model, params, init_carry(model, BATCH), sequence, lambda logits, _: jnp.sum(logits**2), bptt)
        return scores[1][-1]

    slope = jax.jit(jax.grad(last_score), static_argnums=1)
    whole, cut = (slope(params, bptt)["groups_0"]["memory"]["start"] for bptt in (0, 1))
    assert np.abs(whole).max() > 1e-3
    assert name == "descent" or not np.any(cut)  # a descent's token also asks what a document begins with, if for nothing
    assert np.abs(whole - cut).max() > 1e-3


@THOSE_TOO
@pytest.mark.parametrize("edge", [4, 16, 21])
def test_documents_that_begin_while_decoding_are_those_of_whole_segments(name, edge):
    """Within the first segment, at its edge and behind it; three segments, so that what was closed is closed upon."""
    model, params = tiny(name), streams.parameters(name)
    tokens = streams.tokens_of(model)
    documents = jnp.broadcast_to((jnp.arange(tokens.shape[1]) >= edge).astype(jnp.int32), tokens.shape)
    step, found = jax.jit(lambda *args: decode(model, params, *args)), []
    decoder = init_decoder(model, init_carry(model, BATCH))
    for t in range(tokens.shape[1]):
        decoder, logits = step(decoder, tokens[:, t], documents[:, t])
        found.append(logits)
    expected = streams.logits_of(name, tokens, documents)
    np.testing.assert_allclose(jnp.stack(found, axis=1), expected, atol=5e-5)  # float32 products of other shapes


@THOSE_TOO
def test_a_prompt_is_read_as_whole_segments_are(name):
    model, params = tiny(name), streams.parameters(name)
    tokens = streams.tokens_of(model)[:1]
    _, logits = read_prompt(model, params, [np.asarray(tokens[0, :37])])  # two segments, and five tokens one by one
    np.testing.assert_allclose(logits, streams.logits_of(name, tokens)[:, 36], atol=5e-5)  # as above


@pytest.mark.slow
def test_training_on_several_devices_equals_one():
    for name, found in on_devices(4, "support.extra_mechanisms", "all_losses()").items():
        for layout, reached in found.items():
            np.testing.assert_allclose(reached, found["one"], rtol=2e-5, err_msg=f"{name}, {layout}")  # sums in another order


# ---- what cannot be is refused in one line, before anything compiles


def test_several_segments_at_once_are_refused_where_a_layer_takes_them_in_turn():
    train = TrainConfig(batch=2, sequence=64, segments_per_step=2)
    model, data = tiny("recurrent"), MqarConfig(pairs=2, symbols=32)
    with pytest.raises(ConfigError, match=r"^train.segments_per_step: recurrent works on the residual stream, .*; give 1$"):
        RunConfig(model=model, data=data, train=train)
    RunConfig(model=tiny("descent"), data=data, train=train)


def test_a_memory_layer_alone_has_no_residual_stream():
    with pytest.raises(ConfigError, match=r"^memory: recurrent works on the residual stream, .*; choose another, or a task"):
        CapacityRun(memory=RecurrentConfig())
    assert CapacityRun(memory=DescentConfig()).memory_bytes == 4 * 16 * 16


def test_landmarks_and_memory_tokens_do_not_go_together(monkeypatch):
    monkeypatch.setattr(RecurrentConfig, "landmark_every", 4)
    with pytest.raises(ConfigError, match=r"^memory: it asks for landmarks and for memory tokens; choose one of them$"):
        dataclasses.replace(tiny("local"), memory=RecurrentConfig())
