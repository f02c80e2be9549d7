"""Equal FLOPs per token by size: counted, as close as sizes allow, and refused where no size fits. Nothing is compiled."""

import dataclasses

import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.balance import affordable, fit_to_flops, gap
from infini_jax.model.cost import budget_steps, run_cost, training_flops_per_step

BYTES = 32 * 1024
RUN = RunConfig(
    model=ModelConfig(memory=InfiniConfig(), layers=2, d_model=64, heads=2, segment=48),
    train=TrainConfig(batch=2, sequence=480),
    budget=Budget("flops", 1e12),
)


def with_memory(memory, **changes) -> RunConfig:
    return dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, memory=memory, **changes))


def flops(run: RunConfig) -> float:
    return run_cost(run).training_flops


AS_WIDE_AS_THE_MODEL = ("rmt", "block_recurrent")  # of whose states a narrower model has more, which cost more than it saves


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name not in ("full", *AS_WIDE_AS_THE_MODEL)])
def test_width_gives_way_until_a_token_costs_what_was_asked_with_the_same_memory(name):
    run = with_memory(MECHANISMS[name].Config())
    run = dataclasses.replace(run, model=run.model.at_bytes(BYTES))
    target = 0.8 * flops(run)
    found = fit_to_flops(run, target, "width", BYTES)
    assert 0 <= gap(found, target) < 0.01
    assert gap(found, target) == pytest.approx(1 - flops(found) / target)
    assert found.model.d_model < run.model.d_model
    assert found.model.d_model % run.model.heads == 0
    # within what one unit of its natural size is worth: its basis has the model's width
    assert found.memory_bytes == pytest.approx(run.memory_bytes, rel=0.03)
    assert found.budget == dataclasses.replace(run.budget, gives="width")
    assert RunConfig.from_dict(found.to_dict()) == found


def test_a_wider_mlp_or_model_would_cost_more_than_asked():
    target = 0.7 * flops(RUN)
    found = fit_to_flops(RUN, target, "width").model
    more = [dataclasses.replace(found, mlp_dim=found.mlp_dim + 1), dataclasses.replace(found, d_model=found.d_model + 4)]
    assert all(flops(dataclasses.replace(RUN, model=model)) > target for model in more)


def test_heads_whose_sizes_are_not_given_shrink_with_the_width_and_stay_even():
    found = fit_to_flops(RUN, 0.5 * flops(RUN), "width").model
    assert found.dims.key_dim == found.d_model // 2
    assert found.dims.key_dim % 2 == 0


def test_width_may_grow_too():
    target = 3 * flops(RUN)
    found = fit_to_flops(RUN, target, "width")
    assert found.model.d_model > RUN.model.d_model
    assert 0 <= gap(found, target) < 0.01


def test_a_sliding_window_gives_way_by_a_token_at_a_time():
    run = with_memory(LocalConfig(window=200))
    target = 0.9 * flops(run)
    found = fit_to_flops(run, target, "window")
    one_more = with_memory(LocalConfig(window=found.model.memory.window + 1))
    assert found.model.memory.window < 200
    assert flops(found) <= target < flops(one_more)
    with pytest.raises(ConfigError, match=r"^memory_bytes: a sliding window"):
        fit_to_flops(run, target, "window", BYTES)


def test_the_segment_gives_way_to_memory_at_equal_flops():
    """The trade of window against memory: more bytes leave a shorter segment, and a token costs no more."""
    target = flops(with_memory(InfiniConfig(), segment=240))
    found = [fit_to_flops(with_memory(InfiniConfig()), target, "window", size) for size in (4096, 16384, 32768)]
    segments = [run.model.segment for run in found]
    assert segments == sorted(segments, reverse=True)
    assert segments[0] > segments[-1]
    assert all(run.train.sequence % run.model.segment == 0 for run in found)
    assert all(gap(run, target) >= 0 for run in found)
    longer = dataclasses.replace(found[-1].model, segment=min(size for size in divisors(480) if size > segments[-1]))
    assert flops(dataclasses.replace(found[-1], model=longer)) > target


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def test_segments_stay_whole_steps():
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, segments_per_step=2))
    target = flops(with_memory(InfiniConfig(), segment=160))
    assert (
        fit_to_flops(run, target, "window").model.segment == 120
    )  # the longest of which 480 tokens are a whole number of pairs
    assert fit_to_flops(RUN, target, "window").model.segment == 160


def test_steps_give_way_by_the_budget_alone():
    assert fit_to_flops(RUN, 1.0, "steps") == RUN


@pytest.mark.parametrize(("gives", "field"), [("width", "model.d_model"), ("window", "model.segment")])
def test_where_no_size_fits_one_line_says_what_would(gives, field):
    with pytest.raises(ConfigError, match=rf"^{field}: 10 FLOPs per token pay for no size; give at least .+$") as error:
        fit_to_flops(RUN, 10.0, gives)
    assert error.value.field == field


def test_a_budget_and_its_steps_say_what_a_token_may_cost():
    """Twice the steps at half the FLOPs per token spend the same budget."""
    steps = 2 * budget_steps(RUN)
    found = fit_to_flops(RUN, affordable(RUN, steps), "width")
    assert budget_steps(found) == pytest.approx(steps, rel=0.01)
    assert budget_steps(found) * training_flops_per_step(found) == pytest.approx(RUN.budget.amount, rel=0.01)
    with pytest.raises(ConfigError, match=r"^budget.unit: steps are not FLOPs"):
        affordable(dataclasses.replace(RUN, budget=Budget("steps", 3)), 3)


def test_what_gave_way_is_no_part_of_a_runs_identity():
    noted = dataclasses.replace(RUN, budget=dataclasses.replace(RUN.budget, gives="width"))
    assert noted.fingerprint() == RUN.fingerprint()
