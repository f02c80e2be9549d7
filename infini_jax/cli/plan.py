"""`infini-jax plan`: whether a run fits, and how long it will take, before it is queued for the devices."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import tyro

from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.progress import waiting
from infini_jax.config import RunConfig
from infini_jax.config.presets import SIZES, checked_in, preset
from infini_jax.devices.sharding import Sharding
from infini_jax.errors import ConfigError, one_line, require, require_local
from infini_jax.files import read_object
from infini_jax.forecast.counted import advice, compiled, compiled_table, forecast, forecast_table
from infini_jax.forecast.topology import Topology
from infini_jax.units import human_bytes

HERE = Sharding()


def plan(
    config: tyro.conf.Positional[str],
    mechanism: str = "",
    topology: str = "",
    sharding: Sharding = HERE,
    as_json: AsJson = False,
) -> None:
    """Estimate the memory and compute of a run, and compile its training step for other devices.

    Examples: `infini-jax plan results/runs/run/config.json`,
    `infini-jax plan 1b --mechanism memorizing --topology v5p:4x4x4 --sharding.rules fsdp`

    Args:
      config: a run's config.json, or a preset: 1b, 8b, or a run of the quick study, such as mqar-infini-linear-5k.
      mechanism: mechanism of a preset. Default: infini.
      topology: v4, v5e, v5p or v6e and its shape, such as v5e:4x4; h100:8, or h100:2x8. Default: the devices of this machine.
      sharding: how devices share the work.
      as_json: print one JSON object instead of tables.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs: devices at hand are left to who uses them
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for other devices cannot be read back
    run, where = run_of(config, mechanism), Topology.parse(topology) if topology else None
    counted = forecast(run, sharding, where)
    with waiting(f"compiling for {topology}", terminal(stderr=True)) if where else contextlib.nullcontext():
        outcome = compiled(run, sharding, where) if where else None
    if as_json:
        print_json(dataclasses.asdict(counted) | {"outcome": outcome and dataclasses.asdict(outcome)})
        return
    console = terminal()
    console.print(forecast_table(counted, where))
    if outcome is None or where is None:
        return
    if outcome.compiled:
        console.print(compiled_table(outcome.compiled, where))
    else:
        console.print(f"not compiled: {outcome.said}", soft_wrap=True)
    if outcome.fits is not None:
        fits = "yes" if outcome.fits else "no"
        console.print(f"fits into {human_bytes(where.chip.memory)} per device: {fits}")
    if outcome.fits is False:
        console.print("what makes it smaller:", *(f"  {line}" for line in advice(run, sharding)), sep="\n")


def run_of(config: str, mechanism: str) -> RunConfig:
    """The run of a file or of a preset. Raises `ConfigError` where there is none, or where it has a mechanism of its own."""
    require_local("config", config)
    if config in SIZES:
        return preset(config, mechanism or "infini")
    require(not mechanism, "mechanism", "a run has its own", f"leave it out, or name one of {', '.join(SIZES)}")
    if config in (known := checked_in()):
        return RunConfig.from_dict(known[config])
    is_there = Path(config).is_file()
    mend = f"name a run's config.json, a run of the quick study, or one of {', '.join(SIZES)}"
    require(is_there, "config", f"there is no file {config}", mend)
    plain = read_object(Path(config), "config", mend)
    try:
        return RunConfig.from_dict(plain)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError("config", f"{config} is not a run's config.json ({one_line(error)})", mend) from error
