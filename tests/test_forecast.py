"""What `infini-jax plan` counts, against arrays that were really made; what it reads in compiled programs and refuses."""

import dataclasses
import json

import jax
import pytest
from rich.console import Console

from infini_jax.cli.main import main
from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.config.presets import SIZES, preset
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding
from infini_jax.errors import ConfigError
from infini_jax.forecast import compiled as ahead
from infini_jax.forecast.compiled import Buffer, Collective, Compiled, DoesNotFit
from infini_jax.forecast.counted import compiled, compiled_table, forecast
from infini_jax.forecast.program_text import ProgramText
from infini_jax.forecast.topology import Topology, is_installed
from infini_jax.model.cost import training_flops_per_step
from infini_jax.records.folder import CONFIG_FILE
from infini_jax.training.program import Training
from tests.support.commands import told
from tests.support.streams import tiny

RUN = RunConfig(
    model=tiny("infini"),
    data=MqarConfig(pairs=4, symbols=32),
    train=TrainConfig(batch=8, sequence=32),
    budget=Budget("steps", 7),
)
V5E = Topology.parse("v5e:2x4")


def test_bytes_are_those_of_a_state_that_was_made():
    state = Training(RUN).fresh()
    found = forecast(RUN, Sharding(), None)
    parts = (found.parameter_bytes, found.optimiser_bytes, found.memory_bytes)
    assert parts == tuple(
        sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (state.params, state.optimiser, state.carry)
    )
    assert found.device_bytes == sum(parts)
    assert found.step_seconds is None


def test_devices_hold_their_parts_and_a_step_takes_its_share_of_their_peak():
    alone, spread = (forecast(RUN, sharding, V5E) for sharding in (Sharding(), Sharding("fsdp+tensor", 2)))
    assert alone.device_bytes == alone.parameter_bytes + alone.optimiser_bytes + alone.memory_bytes // 8
    assert spread.device_bytes < alone.device_bytes / 4
    assert alone.step_seconds == pytest.approx(training_flops_per_step(RUN) / (0.4 * 8 * 197e12))
    assert (alone.devices, alone.steps, alone.tokens) == (8, 7, 7 * 8 * 32)


def test_intensity_falls_with_the_rows_that_share_a_read():
    """Parameters are read once per segment by all rows of a device."""
    few = forecast(RUN, Sharding(), V5E).intensity
    many = forecast(dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, batch=64)), Sharding(), V5E).intensity
    assert few < many < 8 * few


@pytest.mark.parametrize(("size", "billions"), [("1b", 0.97), ("8b", 7.9)])
def test_presets_have_the_sizes_they_are_called_by(size, billions):
    assert forecast(preset(size, "local"), Sharding(), None).parameters == pytest.approx(billions * 1e9, rel=0.01)
    assert SIZES[size].segment == 2048


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5x:4x4", "topology: 'v5x' is not a known chip; did you mean 'v5"),
        ("v5e:4y4", "topology: '4y4' is not a shape; give one such as v5e:4x4"),
        ("h100", "topology: '' is not a shape; give one such as h100:8"),
        ("h100:2x2x2", "topology: '2x2x2' is not a shape; give one such as h100:8"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_in_one_line(name, said):
    with pytest.raises(ConfigError) as error:
        Topology.parse(name)
    assert str(error.value).startswith(said)


def test_rows_that_the_devices_of_a_topology_cannot_share_are_refused(capsys, tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps(RUN.to_dict()))
    line = told(capsys, ["plan", str(tmp_path / CONFIG_FILE), "--topology", "v5e:4x4"], 2)
    assert line == "train.batch: 8 rows (batch / accumulate) cannot be shared by 16 devices; give a multiple of 16"


@pytest.mark.skipif(is_installed("cuda"), reason="the CUDA plug-in compiles it here")
def test_what_compiles_nowhere_here_is_counted_and_said(capsys, tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps(RUN.to_dict()))
    main(["plan", str(tmp_path / CONFIG_FILE), "--topology", "h100:8"])
    said = capsys.readouterr().out
    assert "seconds per step at 40 % of the peak" in said
    assert "not compiled: topology: h100:8 cannot be compiled for here" in said
    main(["plan", str(tmp_path / CONFIG_FILE), "--topology", "h100:8", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["devices"], found["outcome"]["fits"], found["steps"]) == (8, None, 7)


def test_a_preset_and_a_file_are_told_apart(capsys, tmp_path):
    line = told(capsys, ["plan", "2b"], 2)
    assert line == "config: there is no file 2b; name a run's config.json, a run of the quick study, or one of 1b, 8b"
    line = told(capsys, ["plan", "mqar-infini-delta-5k", "--mechanism", "local"], 2)
    assert line == "mechanism: a run has its own; leave it out, or name one of 1b, 8b"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(RUN.to_dict()))
    line = told(capsys, ["plan", str(tmp_path / CONFIG_FILE), "--mechanism", "local"], 2)
    assert line == "mechanism: a run has its own; leave it out, or name one of 1b, 8b"


def test_what_does_not_fit_comes_with_the_compilers_words_and_what_makes_it_smaller(capsys, monkeypatch, tmp_path):
    def refuse(*_):
        raise DoesNotFit("needs 107G of 95G")

    monkeypatch.setattr("infini_jax.forecast.counted.compile_step", refuse)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(RUN.to_dict()))
    main(["plan", str(tmp_path / CONFIG_FILE), "--topology", "v5e:2x4"])
    said = " ".join(capsys.readouterr().out.split())
    assert "not compiled: needs 107G of 95G fits into 16 GiB per device: no" in said
    for mend in ("--sharding.rules fsdp:", "--train.accumulate 2:", "--model.compute bfloat16:", "--train.sequence 16:"):
        assert mend in said


def test_what_is_compiled_fits_where_a_device_has_room_for_it(monkeypatch):
    for state, temporary, fits in ((2**33, 2**32, True), (2**33, 2**33 + 1, False)):
        monkeypatch.setattr(
            "infini_jax.forecast.counted.compile_step",
            lambda *_, sizes=(state, temporary): Compiled("", 1.0, *sizes, (), (), 7),
        )
        assert compiled(RUN, Sharding(), V5E).fits is fits


PROGRAM = """\
HloModule step

%fused_computation.3 (p: f32[8,8]) -> f32[8,8] {
  %wide = f32[4096,4096]{1,0} broadcast(%p), dimensions={0,1}
  ROOT %add = f32[4096,4096]{1,0} add(%wide, %wide)
}

%body (arg: (f32[16,8])) -> (f32[16,8]) {
  %arg = (f32[16,8]{1,0}) parameter(0)
  %all-gather-start.1 = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), channel_id=1, dimensions={0}
  %all-gather-done.1 = f32[16,8]{1,0} all-gather-done(%all-gather-start.1)
  %dot.7 = bf16[64,64]{1,0:T(8,128)} dot(%a, %b), metadata={op_name="jit(step)/transformer/mlp/dot_general"}
}

ENTRY %main (p0: f32[1024,1024]) -> f32[4] {
  %p0 = f32[1024,1024]{1,0} parameter(0)
  %wide_sum = f32[4]{0} fusion(%p0), kind=kLoop, calls=%fused_computation.3
  %rs = f32[4,8]{1,0} reduce-scatter(%g), channel_id=2, dimensions={0}
  ROOT %all-reduce.2 = f32[4]{0} all-reduce(%rs), channel_id=3, to_apply=%add
}
"""


@pytest.mark.parametrize(("kernels", "said"), [(12_345, "12,345"), (None, "not known")])
def test_the_table_of_a_compiled_step_has_its_kernels(capsys, kernels, said):
    Console(width=100).print(compiled_table(Compiled("", 1.0, 2**30, 2**20, (), (), kernels), V5E))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "kernels a step launches" in line)
    assert said in line


def test_collectives_are_counted_once_and_by_what_they_leave():
    assert ahead.collectives_of(ProgramText.parse(PROGRAM)) == (
        Collective("all-gather", 1, 16 * 8 * 4),
        Collective("all-reduce", 1, 4 * 4),
        Collective("reduce-scatter", 1, 4 * 8 * 4),
    )


def test_buffers_are_the_largest_results_in_memory():
    """Not what lives inside a fusion, what comes from outside, and what an asynchronous pair shows twice."""
    first, *_ = ahead.buffers_of(ProgramText.parse(PROGRAM))
    assert first == Buffer("bf16[64,64]", 64 * 64 * 2, "dot_general")
    assert all("4096" not in one.type and "1024" not in one.type for one in ahead.buffers_of(ProgramText.parse(PROGRAM)))
