"""Counted FLOPs, budgets and the memory check, against programs whose work is known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.chosen_form import form_of_run
from infini_jax.errors import ConfigError
from infini_jax.layers.blockwise import blockwise
from infini_jax.layers.segment import Sight
from infini_jax.memory import MECHANISMS, delta_kernel
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.model.cost import (
    ProgramFlops,
    budget_steps,
    check_fits,
    model_cost,
    parameter_count,
    program_flops,
    run_cost,
    training_flops_per_step,
)
from infini_jax.model.stream import init_params
from infini_jax.training.gradient import gradient_function
from infini_jax.training.program import Training, counted_flops
from tests.support import streams
from tests.support.streams import MODEL

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
RUN = RunConfig(
    model=MODEL, data=MqarConfig(pairs=4, symbols=32), train=TrainConfig(batch=2, sequence=48), budget=Budget("tokens", 1000)
)


def test_walker_counts_a_product():
    assert program_flops(lambda a, b: a @ b, A, B).executed == 2 * 3 * 5 * 7


def test_walker_multiplies_scan_bodies_by_their_length_through_jit_remat_and_gradients():
    def scanned(a, c):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ c), None))
        return jax.lax.scan(jax.jit(body), a, None, length=11)[0].sum()

    c = jnp.ones((5, 5))
    product = 2 * 3 * 5 * 5
    assert program_flops(scanned, A, c).executed == 11 * product
    # backward: the product again, because it is rematerialised, and one for each operand
    gradient = program_flops(jax.grad(scanned, argnums=(0, 1)), A, c)
    assert gradient == ProgramFlops(work=11 * (1 + 2) * product, executed=11 * (1 + 1 + 2) * product)


def test_walker_counts_batched_products_and_convolutions():
    assert program_flops(lambda x: jnp.einsum("bik,bjk->bij", x, x), jnp.ones((4, 3, 5))).executed == 2 * 4 * 3 * 3 * 5
    signal, kernel = jnp.ones((2, 10, 6)), jnp.ones((3, 6, 8))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))

    assert program_flops(convolve, signal, kernel).executed == 2 * (2 * 10 * 8) * (3 * 6)


def test_walker_takes_the_dearest_branch_and_refuses_loops_without_a_length():
    assert (
        program_flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.ones((3, 7))), A, B).executed
        == 2 * 105
    )
    with pytest.raises(ConfigError, match=r"use lax\.scan"):
        program_flops(lambda c: jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ c, c), jnp.ones((5, 5)))


def test_walker_counts_a_kernel_s_body_for_every_cell_of_its_grid_and_every_run_that_is_mapped():
    def body(x_ref, y_ref):
        @pl.when(pl.program_id(1) == 0)
        def _():
            y_ref[...] = x_ref[...] @ x_ref[...]

        y_ref[...] += x_ref[...] @ x_ref[...]

    tile = pl.BlockSpec((8, 8), lambda i, j: (i, j))
    squared = pl.pallas_call(
        body, out_shape=jax.ShapeDtypeStruct((24, 40), jnp.float32), grid=(3, 5), in_specs=[tile], out_specs=tile
    )
    x = jnp.ones((24, 40))
    assert program_flops(squared, x).executed == 15 * 2 * 2 * 8**3  # a product that is skipped in some cells counts in all
    assert program_flops(jax.vmap(squared), jnp.stack([x, x])).executed == 2 * 15 * 2 * 2 * 8**3


def test_walker_counts_the_products_of_the_delta_rule_s_kernel():
    rows, tokens, heads, K, V, C = 3, 1024, 4, 32, 64, delta_kernel.CHUNK
    shape = rows, tokens, heads
    keys, values, gate, S = jnp.ones((*shape, K)), jnp.ones((*shape, V)), jnp.ones(shape), jnp.ones((rows, heads, K, V))
    found = program_flops(delta_kernel.written, S, keys, values, gate, gate, jnp.ones((rows, 1)))
    # A = K K^T, its inverse by 5 levels of two products, K S, X beta (...), K^T U
    chunk = 2 * C * C * K + 5 * 2 * 2 * C**3 + 2 * C * K * V + 2 * C * C * V + 2 * C * K * V
    assert found.executed == rows * heads * (tokens // C) * chunk


def test_landmark_tokens_are_paid_for():
    plain = dataclasses.replace(MODEL, memory=TransformerXLConfig(slots=8))
    landmark = dataclasses.replace(MODEL, memory=LandmarkConfig(block=8, blocks=4, retrieved=2))
    assert model_cost(landmark).projections == pytest.approx(9 / 8 * model_cost(plain).projections)


def test_budget_buys_whole_steps_in_each_unit():
    price = training_flops_per_step(RUN)
    assert price == pytest.approx(3 * 96 * run_cost(RUN).flops)
    assert run_cost(RUN).head == 4 / 48 * model_cost(MODEL).head  # four of 48 places are scored
    for unit, amount in (("flops", 7.9 * price), ("tokens", 7.9 * 96), ("steps", 7)):
        assert budget_steps(dataclasses.replace(RUN, budget=Budget(unit, amount))) == 7


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(ConfigError, match=r"^budget.amount: .* do not pay for one step"):
        budget_steps(dataclasses.replace(RUN, budget=Budget("tokens", 95)))


def test_a_product_made_again_by_a_gradient_rule_is_executed_and_no_work():
    """Attention in tiles makes its scores again in the backward pass: six products of work, seven that run."""
    q, k = jnp.ones((1, 64, 2, 8)), jnp.ones((1, 64, 2, 8))
    documents = jnp.zeros((1, 64), jnp.int32)

    def summed(q, k, v):
        return blockwise(q, k, v, Sight(documents, documents, jnp.int32(0)), scale=jnp.ones(2))[0].sum()

    found = program_flops(jax.grad(summed, argnums=(0, 1, 2)), q, k, k)
    pairs, rows = 2 * 2 * 64 * 64 * 8, 2 * 2 * 64 * 8  # of which D = dy . y is one number each
    assert found == ProgramFlops(work=6 * pairs + rows, executed=7 * pairs + rows)


# From a toy to a width of 256 with segments that attention takes in tiles; heads in groups.
SIZES = [
    {"d_model": 16, "heads": 2, "segment": 8},
    {"d_model": 32, "heads": 4, "kv_heads": 2, "segment": 24},
    {"d_model": 64, "heads": 4, "segment": 32, "layers": 3},
    {"d_model": 128, "heads": 4, "segment": 128},
    {"d_model": 256, "heads": 4, "segment": 512},
]
DELTA = {"update": "delta"}
SETTINGS = {
    "compressive": ({}, {"positions": "relative"}, {"slots": 0, "local": "cache"}),
    "gated_delta": ({}, {"local": "window"}),
    "transformer_xl": ({}, {"positions": "t5"}, {"positions": "relative"}),
    "infini": (
        {},
        DELTA,
        {"feature_map": "dpfp"},
        {"local": "cache"},
        {"local": "cache", "positions": "relative"},
    ),
    "memorizing": ({}, {"cached": 8}, {"positions": "relative"}, {"local": "cache"}, {"local": "window"}),
    "landmark": ({}, {"blocks": 0}, {"block": 5}, {"positions": "relative"}, {"block": 8, "local": "cache"}),
    "infinite_former": (
        {"basis": 32, "samples": 32},
        {"basis": 32, "samples": 8, "cached": 8},
        {"basis": 32, "samples": 32, "sampling": "sticky"},
        {"basis": 32, "samples": 32, "local": "window"},
    ),
}


CASES = [
    pytest.param(name, changes, sizes, marks=[] if at == 1 else [pytest.mark.slow], id=f"{name}-{changes}-size {at}")
    for at, sizes in enumerate(SIZES)
    for name in MECHANISMS
    for changes in SETTINGS.get(name, ({},))[: None if at == 1 else 1]
]
IN_TILES = {"infini": "cache", "gated_delta": "window", "memorizing": "cache"}  # of attention, for which segments are long
CASES += [
    pytest.param(name, {"local": local}, SIZES[4], marks=pytest.mark.slow, id=f"{name}-{local} in tiles")
    for name, local in IN_TILES.items()
]


def run_with(name: str, changes: dict, sizes: dict) -> RunConfig:
    """A run of two rows of four segments."""
    model = ModelConfig(memory=dataclasses.replace(MECHANISMS[name].Config(), **changes), vocab=64, **{"layers": 2, **sizes})
    train = TrainConfig(batch=2, sequence=4 * model.segment)
    return RunConfig(model=model, data=RUN.data, train=train, budget=Budget("steps", 1))


@pytest.mark.parametrize(("name", "changes", "sizes"), CASES)
def test_the_plan_counts_what_the_training_step_computes_without_recomputation(name, changes, sizes):
    """Within 2 %, as budgets of FLOPs are compared, in the form that is chosen, with segments in turn and all of them at once.
    Relative positions get 3 % where segments are taken in turn: their table W_r R is that of every segment, so that JAX takes
    its product out of the forward loop, which a count per token cannot know."""
    run = run_with(name, changes, sizes)
    for segments in {form_of_run(run).segments, 1, 1 if run.model.takes_in_turn else 4}:
        named = dataclasses.replace(run, train=dataclasses.replace(run.train, segments_per_step=segments))
        training = Training(named)
        counted = program_flops(gradient_function(named), training.shapes.params, training.shapes.carry, training.batch)
        tolerance = 0.03 if changes.get("positions") == "relative" and segments < 4 else 0.02
        assert counted.work == pytest.approx(training_flops_per_step(run, segments), rel=tolerance), segments


@pytest.mark.parametrize(("name", "changes", "sizes"), CASES)
def test_the_plan_of_segments_at_once_counts_their_forward_pass_exactly(name, changes, sizes):
    model = run_with(name, changes, sizes).model
    for segments in (1,) if model.takes_in_turn else (1, 3):
        planned = model_cost(model, segments=segments).flops
        assert streams.walked_flops(model, 1, segments) == pytest.approx(planned, rel=1e-6), segments


@pytest.mark.parametrize(
    ("name", "changes", "cheaper"),
    [("landmark", {}, 4), ("transformer_xl", {"positions": "relative"}, 4), ("infini", DELTA, 1)],
)
def test_a_budget_pays_for_the_form_of_fewest_flops_whatever_form_is_taken_here(name, changes, cheaper):
    """Tiles hold fewer empty places at once, and a table of positions is made once; the delta rule in turn erases less."""
    run = run_with(name, changes, SIZES[2])
    prices = {segments: training_flops_per_step(run, segments) for segments in (1, 4)}
    assert min(prices, key=lambda segments: prices[segments]) == cheaper
    for segments in (0, 1, 2, 4):
        named = dataclasses.replace(run, train=dataclasses.replace(run.train, segments_per_step=segments))
        assert training_flops_per_step(named) == prices[cheaper]
    cut = dataclasses.replace(run, train=dataclasses.replace(run.train, bptt=2))  # where gradients are cut, steps end
    assert training_flops_per_step(cut) == min(training_flops_per_step(run, segments) for segments in (1, 2))


def test_a_mechanism_that_overrides_its_cost_is_planned_by_it():
    class Twice(MECHANISMS["landmark"]):
        def cost(self, segment_length):
            return dataclasses.replace(super().cost(segment_length), read=7.0)

    model = run_with("landmark", {}, SIZES[1]).model
    assert Twice(model.memory, model.dims).cost_at_once(model.dims.segment, 4).read == 7.0


def test_executed_flops_are_those_counted_plus_recomputation():
    """A backward pass that makes each segment again runs four forward passes where three are work done; a little less where
    the program leaves out what nobody asks for. One that keeps all activations runs three."""

    def counted_with(rematerialise: str) -> ProgramFlops:
        run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, rematerialise=rematerialise))
        return counted_flops(Training(run).program)

    again, kept = counted_with("segment"), counted_with("none")
    assert 1.0 < again.executed / training_flops_per_step(RUN) < 4 / 3 + 0.02
    assert kept.executed == kept.work
    for counted in (again, kept):
        assert counted.work == pytest.approx(training_flops_per_step(RUN), rel=0.02)


def test_parameters_are_counted_on_the_real_shapes():
    real = sum(leaf.size for leaf in jax.tree.leaves(jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()))
    assert parameter_count(MODEL) == real


def test_more_memory_than_the_machine_has_is_refused_before_anything_compiles():
    huge = ModelConfig(memory=TransformerXLConfig(slots=2**28), vocab=64)
    with pytest.raises(ConfigError, match=r"^memory: training needs at least .*, and the device has "):
        check_fits(dataclasses.replace(RUN, model=dataclasses.replace(huge, segment=16)))
    check_fits(dataclasses.replace(RUN, model=dataclasses.replace(MODEL, memory=InfiniConfig())))
