"""Positions of local attention are one setting of every mechanism, and what it is by default it always was."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import ModelConfig, RunConfig
from infini_jax.layers.segment import NO_DOCUMENT, Segment, whole
from infini_jax.memory import MECHANISMS
from infini_jax.memory.gated_delta import GatedDelta, GatedDeltaConfig
from infini_jax.memory.infini import Infini, InfiniConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.memorizing import Memorizing, MemorizingConfig
from infini_jax.memory.segment_only import SegmentOnly, SegmentOnlyConfig
from infini_jax.model.cost import model_cost
from tests import test_landmark_straddle as landmark
from tests.reference import attention as reference
from tests.support import ragged, streams

KINDS = ("rotary", "relative", "t5", "none")
# Digests of default settings as they were before positions could be chosen everywhere: results in folders go on with them.
# Those of gated_delta are younger: one head alone began with another horizon before, whose results are no others' results.
BEFORE = {
    "local": ("5495f5f95584", "bc4975ff785b"),
    "full": ("8f4338a3bdc4", "5c467387bfd8"),
    "transformer_xl": ("21895859484f", "2f2e5432775d"),
    "compressive": ("095e602eaa72", "863b7d620004"),
    "infini": ("6b6f6a7365f3", "06b3b0ea8d6c"),
    "gated_delta": ("c04c316e12d1", "2c481694298d"),
    "memorizing": ("7018492a8f20", "a67a437ec9f3"),
    "landmark": ("654cddc8041a", "763f38c3f1e8"),
    "infinite_former": ("c15d04e8741e", "5fd79eefaae2"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_default_settings_have_the_fingerprints_that_results_have_and_others_have_others(name):
    memory = MECHANISMS[name].Config()
    run, job = RunConfig(model=ModelConfig(memory=memory)), CapacityRun(memory=memory)
    assert (run.fingerprint(), job.fingerprint()) == BEFORE[name]
    kinds = {dataclasses.replace(job, memory=dataclasses.replace(memory, positions=kind)).fingerprint() for kind in KINDS}
    assert len(kinds) == len(KINDS)
    assert RunConfig.from_dict(run.to_dict()).fingerprint() == run.fingerprint()


def test_layers_without_a_memory_have_the_positions_of_the_others():
    for memory, kind in (
        (InfiniConfig(layers=(1,), positions="none"), "none"),
        (MemorizingConfig(layers=(1,), positions="relative"), "relative"),
        (MemorizingConfig(layers=(1,)), "rotary"),  # beside its own T5
    ):
        assert ModelConfig(memory=memory).layer_memory(0) == SegmentOnlyConfig(positions=kind)


def logit_of(kind: str, learned: dict):
    """The reference's logits with a module's parameters."""
    if kind == "relative":
        return reference.relative_logit(learned["w_r"]["kernel"], learned["u"], learned["v"])
    return (
        reference.t5_logit(learned["bias"])
        if kind == "t5"
        else {"none": reference.plain_logit, "rotary": reference.rotary_logit}[kind]
    )


LOCAL = {
    "segment_only": lambda kind: SegmentOnly(SegmentOnlyConfig(positions=kind), ragged.DIMS),
    "infini": lambda kind: Infini(InfiniConfig(positions=kind), ragged.DIMS),
    "gated_delta": lambda kind: GatedDelta(GatedDeltaConfig(positions=kind), ragged.DIMS),
    "memorizing": lambda kind: Memorizing(MemorizingConfig(slots=8, top_k=2, positions=kind), ragged.DIMS),
    "infinite_former": lambda kind: InfiniteFormer(InfiniteFormerConfig(basis=4, samples=4, positions=kind), ragged.DIMS),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOCAL)
def test_local_attention_beside_a_memory_has_the_positions_asked_for(name, kind):
    """In a first segment, where nothing is remembered: two documents, two query heads a key head."""
    module = LOCAL[name](kind)
    params, (inputs, q, k, v) = ragged.parameters(module), (x[:1, :6] for x in ragged.inputs())
    documents = np.array([[0, 0, 0, 1, 1, 1]])
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x) for x in (inputs, q, k, v))
        segment = Segment(*arrays, whole(jnp.asarray(documents), jnp.full(1, NO_DOCUMENT)))
        attend = jax.jit(functools.partial(module.apply, method="attend"))
        y, _ = attend({"params": params}, module.init_memory(1), segment)
    logit = logit_of(kind, params.get("attention", params))
    if name == "memorizing":  # vectors of unit length, and a scale in the place of 1 / sqrt(K)
        q, k = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6) for x in (q, k))
        logit = scaled(kind, params, np.abs(params["scale"]) * np.sqrt(q.shape[-1]))
    row = [x[0] for x in (q, k, v)]
    values = reference.stream(row, row, documents[0], (6,), reference.in_cache(0), logit)
    if "gate" in params:
        values = values / (1 + np.exp(params["gate"]))[:, None]
    np.testing.assert_allclose(y, ragged.projected(params, [values]), atol=ragged.EXACT)


def scaled(kind: str, learned: dict, factor_H):
    """The products times a factor a head; a bias stays as it is."""
    if kind == "t5":
        biased = reference.t5_logit(learned["bias"])
        return lambda q, k, distance, head: biased(factor_H[head] * q, k, distance, head)
    plain = logit_of(kind, learned)
    return lambda q, k, distance, head: factor_H[head] * plain(q, k, distance, head)


@pytest.mark.parametrize(
    ("kind", "block", "segment"),
    [
        pytest.param("none", 4, 6, marks=pytest.mark.slow),
        ("t5", 4, 6),
        pytest.param("relative", 4, 6, marks=pytest.mark.slow),
        ("relative", 3, 6),
    ],
)
def test_landmark_attention_has_the_positions_asked_for_inside_the_segment(kind, block, segment):
    """Retrieved blocks keep their slots, without positions there are none; blocks straddle segments of 6, or do not."""
    config = LandmarkConfig(block=block, blocks=4, retrieved=2, positions=kind)
    dims, rng = landmark.dims_of(segment, block, d_model=6), np.random.default_rng(4)
    shapes = {
        "none": {},
        "t5": {"bias": (32, dims.heads)},
        "relative": {
            "w_r": {"kernel": (dims.d_model, dims.heads, dims.key_dim)},
            "u": (dims.heads, dims.key_dim),
            "v": (dims.heads, dims.key_dim),
        },
    }
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    learned = jax.tree.map(lambda shape: rng.normal(size=shape), shapes[kind], is_leaf=is_shape)
    *qkv, documents, is_landmark = landmark.inserted(block)
    with jax.enable_x64(True):
        y = landmark.run_stream(
            config, dims, segment, is_landmark, documents, *qkv, learned=jax.tree.map(jnp.asarray, {"attention": learned})
        )
    turn = {"turn": lambda x, place: x} if kind == "none" else {}
    rows = landmark.expected_rows(config, segment, *qkv, documents, is_landmark, near=logit_of(kind, learned), **turn)
    np.testing.assert_allclose(y, np.einsum("bnhv,hvd->bnd", rows, landmark.kernel_of(dims)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "landmark" else pytest.param(name, marks=pytest.mark.slow)
        for name, mechanism in MECHANISMS.items()
        if not any(mechanism.Config().mutual_tokens)  # they refuse them
    ],
)
def test_relative_positions_are_paid_for_everywhere(name):
    """They alone take products of their own."""
    model = streams.tiny(name, layers=1)
    model = dataclasses.replace(model, memory=dataclasses.replace(model.memory, positions="relative"))
    assert streams.walked_flops(model, batch=1) == pytest.approx(model_cost(model).flops, rel=1e-6)
