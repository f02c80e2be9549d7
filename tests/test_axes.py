"""What every registered mechanism promises of the axes along which its memory grows."""

import dataclasses

import jax
import pytest

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.model.cost import model_cost, parameter_count
from infini_jax.model.transformer import init_memory
from tests.support import streams
from tests.support.streams import MODEL, tiny

AXES = [(name, axis) for name, mechanism in MECHANISMS.items() for axis in mechanism.axes]
of_all_axes = pytest.mark.parametrize(("name", "axis"), AXES)


def next_larger(model: ModelConfig, axis: str) -> ModelConfig:
    """The model with the next larger memory along `axis`: found by trying sizes one by one."""
    mechanism, size = MECHANISMS[model.mechanism], 1
    while (resized := of_size(model, axis, size)).memory_bytes <= model.memory_bytes:
        size += 1
        assert size < 10_000, f"{mechanism} stays as large"
    return resized


def of_size(model: ModelConfig, axis: str, size: int) -> ModelConfig:
    memory, d = MECHANISMS[model.mechanism].resized(model.memory, model.dims, size, axis)
    return dataclasses.replace(
        model, memory=memory, heads=d.heads, kv_heads=d.kv_heads, key_dim=d.key_dim, value_dim=d.value_dim
    )


def grown(name: str, axis: str) -> ModelConfig:
    """Of several times a tiny memory's bytes."""
    return tiny(name).at_bytes(5 * tiny(name).memory_bytes + 511, axis)


@of_all_axes
def test_at_bytes_fits_and_the_next_size_does_not(name, axis):
    model = tiny(name)
    for budget in (5 * model.memory_bytes, 5 * model.memory_bytes + 511):
        fitted = model.at_bytes(budget, axis)
        assert model.memory_bytes < fitted.memory_bytes <= budget < next_larger(fitted, axis).memory_bytes
        assert fitted.at_bytes(fitted.memory_bytes, axis) == fitted
        assert fitted.at_bytes(fitted.memory_bytes - 1, axis).memory_bytes < fitted.memory_bytes


@of_all_axes
def test_the_memory_of_a_grown_model_really_takes_its_bytes(name, axis):
    model = grown(name, axis)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(init_memory(model, 1))) == model.memory_bytes


@of_all_axes
def test_bytes_never_fall_as_the_size_grows(name, axis):
    """Which the search for the largest relies on."""
    mechanism, model = MECHANISMS[name], dataclasses.replace(tiny(name), segment=48)
    sizes = [*range(1, 18), 24, 47, 48, 49, 95, 96, 97, 150]
    taken = [memory_bytes(mechanism(*mechanism.resized(model.memory, model.dims, size, axis))) for size in sizes]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]


@of_all_axes
def test_counted_flops_of_a_grown_model_equal_those_of_the_program_and_grow(name, axis):
    model = grown(name, axis)
    before, after = model_cost(tiny(name)).attention, model_cost(model).attention
    if "costs_grow_with_bytes" not in MECHANISMS[name].exempt:
        told = f"{name} grew along {axis} and costs no more: mend its `cost`, or declare `costs_grow_with_bytes` in `exempt`"
        assert after.read + after.write > before.read + before.write, told
    assert streams.walked_flops(model) == pytest.approx(model_cost(model).flops, rel=1e-6)


@pytest.mark.parametrize("name", MECHANISMS)
def test_an_axis_that_a_mechanism_lacks_is_refused_with_those_it_has(name):
    with pytest.raises(ConfigError, match="does not grow along 'depth'; choose ") as error:
        tiny(name).at_bytes(2**16, "depth")
    assert all(axis in str(error.value) for axis in MECHANISMS[name].axes)


@pytest.mark.parametrize("name", MECHANISMS)
def test_without_a_name_the_first_axis_grows(name):
    assert tiny(name).at_bytes(2**15) == tiny(name).at_bytes(2**15, MECHANISMS[name].axes[0])


@pytest.mark.parametrize("kv_heads", [0, 1])
def test_heads_grow_in_groups_and_keep_their_dims(kv_heads):
    model = dataclasses.replace(MODEL, memory=InfiniConfig(), kv_heads=kv_heads)
    more = model.at_bytes(3 * model.memory_bytes, "heads")
    assert (more.heads, more.kv_heads) == (6, 3 if kv_heads else 0)
    assert (more.dims.key_dim, more.dims.value_dim) == (model.dims.key_dim, model.dims.value_dim)
    assert more.memory_bytes == 3 * model.memory_bytes
    assert parameter_count(more) > parameter_count(model)
    assert memory_of(more.memory, more.dims).init_memory(1).M.shape[1] == more.dims.kv_heads


def test_the_feature_map_grows_as_dpfp_up_to_its_highest_order():
    model = dataclasses.replace(MODEL, memory=InfiniConfig())
    four = model.at_bytes(4 * model.memory_bytes, "feature_map")
    assert (four.memory.feature_map, four.memory.dpfp_order, four.memory_bytes) == ("dpfp", 2, 4 * model.memory_bytes)
    assert parameter_count(four) == parameter_count(model)
    with pytest.raises(ConfigError, match=r"memory\.dpfp_order: order 500 repeats products of 16 entries"):
        model.at_bytes(1000 * model.memory_bytes, "feature_map")


def test_taylor_features_grow_along_the_key_dimension():
    model = dataclasses.replace(MODEL, memory=InfiniConfig(feature_map="taylor2"))
    more = model.at_bytes(4 * model.memory_bytes)
    assert more.dims.key_dim == 16  # 153 features instead of 45; 18 would have 190
    assert more.memory.feature_map == "taylor2"


@pytest.mark.parametrize(("asked", "block"), [(12, 12), (23, 16), (47, 24), (100, 96), (144, 144)])
def test_blocks_grow_by_divisors_of_the_segment_and_then_by_whole_segments(asked, block):
    model = dataclasses.replace(MODEL, memory=LandmarkConfig(block=10, blocks=2, retrieved=1), segment=48)
    config, dims = MECHANISMS["landmark"].resized(model.memory, model.dims, asked, "block")
    assert config == dataclasses.replace(model.memory, block=block)
    assert dims == dataclasses.replace(model, memory=config).dims


def test_basis_functions_come_in_whole_groups_of_widths():
    model = dataclasses.replace(MODEL, memory=InfiniteFormerConfig(basis=6, widths=(0.01, 0.02, 0.05)))
    assert model.at_bytes(2 * 4 * 16 * 100).memory.basis == 99


def test_a_memory_that_fits_at_no_size_is_refused_with_the_least_bytes():
    with pytest.raises(
        ConfigError, match=r"31 per layer are too few: TransformerXL needs at least 132 bytes per layer; give more$"
    ):
        tiny("transformer_xl").at_bytes(63)


def test_along_the_embedding_heads_stream_and_mlp_grow_together_and_a_head_keeps_its_size():
    model = dataclasses.replace(tiny("infini"), d_model=32, heads=2, mlp_dim=48)
    more = model.at_bytes(3 * model.memory_bytes + 5, "d_model")
    assert (more.heads, more.d_model, more.mlp_dim) == (6, 96, 144)
    assert (more.dims.key_dim, more.dims.value_dim) == (model.dims.key_dim, model.dims.value_dim)
    assert more.memory_bytes == 3 * model.memory_bytes
    assert more.at_bytes(model.memory_bytes, "d_model").d_model == 32
    with pytest.raises(ConfigError, match="does not grow along 'heads'"):
        tiny("transformer_xl").at_bytes(2**15, "d_model")
