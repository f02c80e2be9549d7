"""Every setting of every kind, at values that it cannot have: one line that names it, before anything compiles."""

import ast
import dataclasses
import functools
import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import infini_jax
from infini_jax.config import Budget, EvaluationConfig, ModelConfig, Origin, RunConfig, TrainConfig
from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.data.conditioned import ConditionedConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.echo import EchoConfig
from infini_jax.data.haystack import HaystackConfig
from infini_jax.data.mad.noisy_recall import NoisyRecallConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.data.prepare import TokenizerSettings
from infini_jax.data.sorting import SortingConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices.sharding import Sharding
from infini_jax.errors import ConfigError
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.finetuning.evaluation import FineTuning
from infini_jax.memory import COMPOSED, MECHANISMS
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.beside import BesideConfig, NativeConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.cost import planned_flops
from infini_jax.model.generate import Sampling
from infini_jax.model.stopping import Stopping
from infini_jax.pretrained.architecture import Architecture
from infini_jax.study.factors import Design, Factor
from infini_jax.study.jobs import JOB_KINDS
from infini_jax.study.jobs import planned_flops as planned_flops_of_job
from infini_jax.study.ladder import Ladder, Rates
from infini_jax.study.launch import Resources
from infini_jax.training.checkpoint import Saving
from infini_jax.training.mirrors import Mirroring
from infini_jax.units import human_time
from tests.support import commands

REGISTRIES: dict[type, list[type]] = {
    MemoryConfig: [*(mechanism.Config for mechanism in MECHANISMS.values()), *COMPOSED.values()],
    DataConfig: list(SOURCES.values()),
}
ROOTS = [kind.settings for kind in JOB_KINDS.values()]
ROOTS += [
    Architecture,
    Design,
    Ladder,
    Rates,
    Resources,
    Saving,
    Mirroring,
    Sharding,
    Sampling,
    Stopping,
    FineTuning,
    TokenizerSettings,
    *EVALUATIONS.values(),
]
SIZES = ("vocab", "layers", "d_model", "heads", "kv_heads", "key_dim", "value_dim", "mlp_dim", "context")
BASES: dict[type, dict[str, Any]] = {  # what has no default
    Architecture: {"family": "llama"} | dict.fromkeys(SIZES, 4),
    Ladder: {"rungs": (1e11, 4e11), "tolerance": 0.1},
    Rates: {"start": (1e-3, 3e-3, 1e-2)},
    NativeConfig: {"attention": LocalConfig()},
    BesideConfig: {"native": LocalConfig(), "added": InfiniConfig()},
    Factor: {"name": "segment", "setting": "model.segment"},
    Design: {"factors": (Factor("segment", "model.segment"),), "tolerance": 0.1},
    CorpusConfig: {"name": "books", "tokenizer": "bytes", "symbols": 256, "content": "0"},
    ConditionedConfig: {"name": "summaries", "tokenizer": "bytes", "symbols": 256, "content": "0"},
    Origin: {"folder": "first", "name": "first", "fingerprint": "0", "step": 1, "digest": "0"},
}
DATA_OF = {
    "passkey": PasskeyConfig(),
    "haystack": HaystackConfig(),
    "sorting": SortingConfig(),
    "echo": EchoConfig(),
    "symbols": NoisyRecallConfig(),
}
NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, 0, 1e30, 2**31 - 1, 2**64, 10**5000]
OTHERS = ["", "8", "x" * 300, "a\nb", "a\0", None, True, 0.5, (), [8], {}, object()]
MATRICES = ("Infini", "GatedDelta", "KimiDelta", "GatedDelta2", "LogLinear", "MemoryCaching")
NEGATIVE = {f"{name}Config.gate_init" for name in (*MATRICES, "Memorizing")}  # before the sigmoid


def walked(kind: type, above: tuple[type, ...] = ()) -> Iterator[type]:
    """A class of settings and all that its fields have; those that stand `above` it are there already."""
    for one in (one for one in REGISTRIES.get(kind, [kind]) if one not in above):
        yield one
        for hint in typing.get_type_hints(one).values():
            for inner in (hint, *typing.get_args(hint)):
                if isinstance(inner, type) and (dataclasses.is_dataclass(inner) or inner in REGISTRIES):
                    yield from walked(inner, (*above, one))


SETTINGS = list(dict.fromkeys(kind for root in ROOTS for kind in walked(root)))
FIELDS = [
    pytest.param(kind, field.name, id=f"{kind.__name__}.{field.name}")
    for kind in SETTINGS
    for field in dataclasses.fields(kind)
]


def whole(settings: Any) -> None:
    """Makes all that is made of settings before a run starts."""
    if isinstance(settings, MemoryConfig):
        whole(ModelConfig(memory=settings))
    elif isinstance(settings, tuple({type(kind()) for kind in (ModelConfig, TrainConfig, Budget, EvaluationConfig)})):
        names = {ModelConfig: "model", TrainConfig: "train", Budget: "budget", EvaluationConfig: "evaluation"}
        whole(RunConfig(**{names[type(settings)]: settings}))
    elif isinstance(settings, DataConfig):
        whole(RunConfig(data=settings, model=ModelConfig(vocab=1024)))
    elif isinstance(settings, RunConfig):
        assert settings.memory_bytes >= 0
        planned_flops(settings)
        settings.fingerprint()
    elif type(settings) in EVALUATIONS.values():
        settings.check(asked_of(type(settings)))
    elif isinstance(settings, Sampling):
        settings.check()
    elif isinstance(settings, Stopping):
        settings.check(256)
    elif type(settings) in [kind.settings for kind in JOB_KINDS.values()]:
        assert settings.memory_bytes >= 0
        planned_flops_of_job(settings)


@functools.cache
def asked_of(kind: type) -> RunConfig:
    """A run that an evaluation can be made of."""
    data = DATA_OF.get(
        kind.name,
        StdlibConfig()
        if kind.name in ("perplexity", "gains", "blimp", "blimp_supplement", "ruler", "babilong", "slots")
        else RunConfig().data,
    )
    return RunConfig(data=data, model=ModelConfig(vocab=1024))


def told(kind: type, field: str, value: Any) -> ConfigError | None:
    """What is said of a value; None where it is taken. Any other error ends the test."""
    try:
        whole(kind(**{**BASES.get(kind, {}), field: value}))
    except ConfigError as error:
        return error
    return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, told independently of the code."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in inner and not isinstance(value, bool)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint is int:
        return type(value) is int and abs(value) < 2**31
    if hint is float:
        return type(value) in (int, float) and abs(value) < 3.5e38
    return isinstance(value, hint if isinstance(hint, type) else type(hint))


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_setting_takes_a_value_or_says_in_one_line_why_not(kind, field):
    hint = typing.get_type_hints(kind)[field]
    inner = [value for value in typing.get_args(hint) if value is not Ellipsis]
    values = [*NUMBERS, *OTHERS]
    if typing.get_origin(hint) is tuple or any(typing.get_origin(one) is tuple for one in inner):
        values += [(value,) for value in values] + [(8, value) for value in values]
    for value in values:
        error = told(kind, field, value)
        if error is None:
            assert fits(value, hint), f"{value!r:.60} was taken"
            is_negative = isinstance(value, int | float) and not isinstance(value, bool) and value < 0
            assert not is_negative or f"{kind.__name__}.{field}" in NEGATIVE
        else:
            line = str(error)
            assert "\n" not in line
            assert line.isprintable()
            assert len(line) < 400
            assert field in line or fits(value, hint), line


def test_every_class_that_checks_its_fields_is_walked():
    """And so is every class that will."""
    checked = set()
    for module in pkgutil.walk_packages(infini_jax.__path__, "infini_jax."):
        if module.name.endswith("__main__"):
            continue
        file = Path(infini_jax.__file__).parent.joinpath(*module.name.split(".")[1:]).with_suffix(".py")
        if file.is_file() and "check_fields(" in file.read_text():
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and "check_fields(" in (
                    ast.get_source_segment(file.read_text(), node) or ""
                ):
                    checked.add(getattr(importlib.import_module(module.name), node.name))
    assert len(checked) > 10
    assert all(any(issubclass(kind, one) for kind in SETTINGS) for one in checked)


@pytest.mark.parametrize("budget", [Budget("flops", 1e28), Budget("tokens", 1e18)])
def test_a_budget_of_more_steps_than_can_be_counted_is_refused(budget):
    with pytest.raises(ConfigError, match=r"^budget\.amount: .* steps; give at most "):
        planned_flops(RunConfig(budget=budget))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--seed=-1"], "seed: -1 is negative; give 0 or more"),
        (["--seed", str(2**64)], "seed: 18446744073709551616 is too large; give at most 2,147,483,647"),
        (["--train.dropout", "1"], "train.dropout: 1.0 is not a dropout rate; give at least 0 and below 1, such as 0.1"),
        (["--train.dropout=-0.1"], "train.dropout: -0.1 is not a dropout rate; give at least 0 and below 1, such as 0.1"),
        (["--budget.amount", "inf"], "budget.amount: inf is not finite; give a finite number"),
        (["--budget.amount", "1e30"], "budget.amount: 1e+30 steps are too many; give at most 2.14748e+09"),
        (["--name", "x" * 300], "name: a name of 300 bytes is too long; give at most 180"),
        (
            ["--memory-bytes", str(2**64)],
            "memory bytes: 9,223,372,036,854,775,808 per layer are too many: Infini has at most",
        ),
    ],
)
def test_a_command_says_it_and_writes_nothing(command, said, tmp_path, capsys):
    whole = ["train", "infini", "mqar", "--results", str(tmp_path), *command]
    assert commands.told(capsys, whole, 2).startswith(said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (["study", "gates", "--scale", "smoke", "--jobs=-5", "--dry-run"], "jobs"),
        (["mechanisms", "--context=-1"], "context"),
        (["mechanisms", "--memory-bytes", "9999999999999999"], "memory bytes"),
        (["watch", "x" * 300], "path"),
        (["plan", "1b", "--topology", "h100:²"], "topology"),
        (["generate", "x", "--prompt", "a", "--tokens", str(2**64)], "tokens"),
    ],
)
def test_options_of_other_commands_have_limits_too(command, field, capsys):
    assert commands.told(capsys, command, 2).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "plain", [3, None, [], "x", {"train": 3}, {"model": []}, {"model": {"memory": 3}}, {"data": {"kind": []}}]
)
def test_settings_of_a_file_that_are_no_table_are_refused(plain):
    with pytest.raises(ConfigError):
        RunConfig.from_dict(plain)


@pytest.mark.parametrize(("seconds", "said"), [(125, "0:02:05"), (1e30, "3.17e+22 years"), (math.nan, "-")])
def test_times_of_any_length_are_text(seconds, said):
    assert human_time(seconds) == said
