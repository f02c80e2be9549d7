"""Settings: refused in one line when they cannot work, the same after a round trip."""

import dataclasses
import json
import typing
from typing import Literal

import pytest

from infini_jax.codes.random_codes import RandomCodesRun
from infini_jax.config import Budget, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from infini_jax.data import SOURCES
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices.sharding import Sharding
from infini_jax.errors import ConfigError, check_fields
from infini_jax.memory import MECHANISMS
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.training.mirrors import Mirroring


def run_with(**changes) -> RunConfig:
    return dataclasses.replace(RunConfig(), **changes)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: run_with(model=ModelConfig(segment=1024)), "model.segment"),
        (lambda: run_with(train=TrainConfig(sequence=500)), "train.sequence"),
        (lambda: run_with(model=ModelConfig(vocab=100)), "model.vocab"),
        (lambda: run_with(name="a/b"), "name"),
        (lambda: ModelConfig(heads=3), "model.heads"),
        (lambda: ModelConfig(heads=0), "model.heads"),
        (lambda: ModelConfig(key_dim=7), "model.key_dim"),
        (lambda: ModelConfig(layers=0), "model.layers"),
        (lambda: ModelConfig(compute="float16"), "model.compute"),
        (lambda: ModelConfig(memory=InfiniConfig(layers=(2,))), "memory.layers"),
        (lambda: ModelConfig(memory=InfiniConfig(layers=())), "memory.layers"),
        (lambda: ModelConfig(memory=InfiniConfig(update="sum")), "memory.update"),
        (lambda: ModelConfig(memory=LocalConfig(window=0)), "memory.window"),
        (lambda: ModelConfig(memory=TransformerXLConfig(slots=0)), "memory.slots"),
        (lambda: ModelConfig(memory=MemorizingConfig(slots=0)), "memory.slots"),
        (lambda: ModelConfig(memory=MemorizingConfig(slots=8, top_k=9)), "memory.top_k"),
        (lambda: ModelConfig().at_bytes(1), "memory bytes"),
        (lambda: ModelConfig().at_bytes(-1), "memory.bytes"),
        (lambda: Budget(amount=-1.0), "budget.amount"),
        (lambda: Budget(unit="hours"), "budget.unit"),
        (lambda: TrainConfig(batch=0), "train.batch"),
        (lambda: TrainConfig(learning_rate=0.0), "train.learning_rate"),
        (lambda: TrainConfig(warmup=1.0), "train.warmup"),
    ],
)
def test_impossible_settings_are_refused_in_one_line_that_names_the_field(make, field):
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.field == field
    text = str(error.value)
    assert text.startswith(f"{field}: ")
    assert "; " in text  # the mend
    assert "\n" not in text


@pytest.mark.parametrize("name", MECHANISMS)
def test_json_round_trip_gives_the_same_run(name):
    memory = MECHANISMS[name].Config(layers=(1,))
    run = RunConfig(name="x", model=ModelConfig(memory=memory), data=StdlibConfig(), budget=Budget("flops", 1e12))
    again = RunConfig.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run
    assert again.fingerprint() == run.fingerprint()


def test_unknown_fields_and_kinds_are_refused_with_a_suggestion():
    plain = RunConfig().to_dict()
    plain["model"]["memory"]["kind"] = "infnii"
    with pytest.raises(ConfigError, match="did you mean 'infini'"):
        RunConfig.from_dict(plain)
    plain = RunConfig().to_dict()
    plain["train"]["btach"] = 3
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        RunConfig.from_dict(plain)


def test_fingerprint_changes_with_the_science_and_only_with_it():
    run = RunConfig()
    same = [run_with(name="other", variant="x"), run_with(train=TrainConfig(log_every=3))]
    other = [run_with(seed=1), run_with(version=2), run_with(data=MqarConfig(pairs=3)), run_with(train=TrainConfig(clip=2.0))]
    assert {each.fingerprint() for each in same} == {run.fingerprint()}
    assert len({each.fingerprint() for each in [run, *other]}) == 1 + len(other)


def test_landmarks_lengthen_the_segment_that_layers_see():
    assert ModelConfig(memory=LandmarkConfig(block=8, blocks=4, retrieved=2), segment=64).dims.segment == 72
    assert (
        ModelConfig(memory=LandmarkConfig(block=8, blocks=4, retrieved=2), segment=60).dims.segment == 68
    )  # of which one may be dead
    assert ModelConfig(segment=64).dims.segment == 64


SETTINGS = {
    "budget": (Budget,),
    "train": (TrainConfig,),
    "model": (ModelConfig,),
    "evaluation": (EvaluationConfig,),
    "sharding": (Sharding,),
    "mirrors": (Mirroring,),
    "random_codes": (RandomCodesRun,),
    "memory": tuple(mechanism.Config for mechanism in MECHANISMS.values()),
    "data": tuple(SOURCES.values()),
}
CHOICES = [
    pytest.param(owner, kind, field.name, id=f"{kind.__name__}.{field.name}")
    for owner, kinds in SETTINGS.items()
    for kind in kinds
    for field in dataclasses.fields(kind)
    if "Literal[" in str(typing.get_type_hints(kind)[field.name])
]


@pytest.mark.parametrize(("owner", "kind", "field"), CHOICES)
def test_a_name_that_is_none_of_a_settings_choices_is_refused(owner, kind, field):
    """Of every setting whose type names its values, also of those that come later."""
    is_tuple = typing.get_origin(typing.get_type_hints(kind)[field]) is tuple
    with pytest.raises(ConfigError, match=rf"^{owner}\.{field}: 'nonsense' is not known; choose "):
        kind(**{field: ("nonsense",) if is_tuple else "nonsense"})


def test_all_kinds_of_choices_are_looked_at():
    assert len(CHOICES) > 20


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Every form that a field with choices may have, and some without."""

    one: Literal["a", "b", "c"] = "a"
    maybe: Literal["a", "b"] | None = None
    some: tuple[Literal["a", "b"], ...] = ()
    pair: tuple[int, Literal["a", "b"]] = (0, "a")
    perhaps: tuple[Literal["a", "b"], ...] | None = None
    flag: Literal[True] = True
    count: Literal[1, 2] = 1
    either: Literal["a"] | int = 3
    free: str = "z"
    named: str = "x"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"one": "z"}, "it.one: 'z' is not known; choose a, b or c"),
        ({"one": None}, "it.one: 'None' is not known; choose a, b or c"),
        ({"maybe": "z"}, "it.maybe: 'z' is not known; choose a or b"),
        ({"some": ("a", "z")}, "it.some: 'z' is not known; choose a or b"),
        ({"pair": (3, "z")}, "it.pair: 'z' is not known; choose a or b"),
        ({"perhaps": ("z",)}, "it.perhaps: 'z' is not known; choose a or b"),
        ({"flag": 1}, "it.flag: '1' is not known; choose True"),
        ({"count": True}, "it.count: 'True' is not known; choose 1 or 2"),
        ({"named": "qqq"}, "it.named: 'qqq' is not known; choose one of x, y"),
        ({}, ""),
        ({"maybe": "b", "some": ("b",), "perhaps": ("a", "b"), "count": 2, "either": 4, "named": "y"}, ""),
    ],
)
def test_choices_are_told_by_the_type_or_by_a_registry(changes, said):
    found = ""
    try:
        check_fields("it", Chosen(**changes), named={"x": 0, "y": 1})
    except ConfigError as error:
        found = str(error)
    assert found == said
