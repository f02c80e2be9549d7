"""`infini-jax doctor`: what this machine and this installation have, for who sets it up and for who reports a problem."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infini_jax import __version__
from infini_jax.cli.output import AsJson, print_json
from infini_jax.data.prepared import data_folder
from infini_jax.errors import installs, one_line
from infini_jax.forecast.topology import COMPILERS, is_installed
from infini_jax.records.environment import processor
from infini_jax.units import human_bytes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pyarrow", "duckdb", "matplotlib")
PACKAGES += ("tyro", "rich", "sentencepiece", "grain", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that can be left out.

    Attributes: extra, the name by which pip installs it; use; modules it needs, all of them, where it is no platform of JAX.
    """

    extra: str
    use: str
    modules: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        if self.extra in COMPILERS:
            return is_installed(self.extra)
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    @property
    def install(self) -> str:
        return installs(self.extra)


PARTS = (
    Part("cuda", "NVIDIA GPUs, and compiling for them in `plan`"),
    Part("tpu", "TPUs, and compiling for them in `plan`"),
    Part("explore", "results as tables in a Python shell", ("pandas", "polars")),
    Part("notebooks", "the notebooks", ("jupytext", "altair", "nbclient", "ipykernel")),
    Part("slurm", "studies on a cluster", ("submitit",)),
    Part("tensorboard", "metrics in TensorBoard", ("tensorboardX",)),
    Part("wandb", "metrics in Weights & Biases", ("wandb",)),
    Part("trackio", "metrics in trackio", ("trackio",)),
    Part("mlflow", "metrics in MLflow", ("mlflow", "sqlalchemy", "alembic")),
)


@dataclasses.dataclass(frozen=True)
class Device:
    """Attributes: kind; platform; bytes it can hold and bytes in use, None where it does not say."""

    kind: str
    platform: str
    bytes: int | None
    bytes_in_use: int | None


@dataclasses.dataclass(frozen=True)
class Health:
    """What `infini-jax doctor` found.

    Attributes:
      versions: name -> version, None where it is not installed.
      processor; memory_bytes of this machine, and those that are free.
      devices, as JAX sees them; trouble, why it sees none, or "".
      cache: folder of compiled programs, "" where JAX keeps none; cache_bytes in it.
      data: folder of prepared corpora.
      parts: name of an optional part -> whether it is here.
    """

    versions: dict[str, str | None]
    processor: str
    memory_bytes: int
    memory_free_bytes: int
    devices: tuple[Device, ...]
    trouble: str
    cache: str
    cache_bytes: int
    data: str
    parts: dict[str, bool]


def doctor(as_json: AsJson = False) -> None:
    """Says what is here: versions, devices and their memory, compiled programs that are kept, optional parts.

    Examples: `infini-jax doctor`, `infini-jax doctor --json`

    Args:
      as_json: prints one JSON object instead of tables.
    """
    found = examine()
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    Console().print(versions_table(found), machine_table(found), parts_table(found), sep="\n")


def examine() -> Health:
    """Looks; JAX starts on its devices for it."""
    page = os.sysconf("SC_PAGE_SIZE")
    devices, trouble = devices_here()
    settings: Any = jax.config  # its options are attributes made at run time
    cache = settings.jax_compilation_cache_dir or ""
    return Health(
        versions={
            "python": platform.python_version(),
            "infini_jax": __version__,
            **{name: version(name) for name in PACKAGES},
        },
        processor=processor(),
        memory_bytes=page * os.sysconf("SC_PHYS_PAGES"),
        memory_free_bytes=page * os.sysconf("SC_AVPHYS_PAGES"),
        devices=devices,
        trouble=trouble,
        cache=cache,
        cache_bytes=bytes_in(Path(cache)) if cache else 0,
        data=str(data_folder()),
        parts={part.extra: part.is_here for part in PARTS},
    )


def version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices_here() -> tuple[tuple[Device, ...], str]:
    """The devices, or none and why: a platform that was asked for and cannot start is the usual cause."""
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        return (), one_line(error)
    stats = [device.memory_stats() or {} for device in found]
    return tuple(
        Device(device.device_kind, device.platform, one.get("bytes_limit"), one.get("bytes_in_use"))
        for device, one in zip(found, stats, strict=True)
    ), ""


def bytes_in(folder: Path) -> int:
    """Of all files in it; files that vanish meanwhile count nothing."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            file = Path(inner, name)
            total += file.stat().st_size if file.exists() else 0
    return total


def versions_table(found: Health) -> Table:
    """A line a package."""
    table = Table("package", "version", title="versions")
    for name, number in found.versions.items():
        table.add_row(name, number or "[red]not installed[/red]")
    return table


def machine_table(found: Health) -> Table:
    """Processor, memory, devices and folders."""
    table = Table(title="this machine", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("processor", found.processor)
    table.add_row("memory", f"{human_bytes(found.memory_bytes)}, {human_bytes(found.memory_free_bytes)} free")
    for number, device in enumerate(found.devices):
        holds = "" if device.bytes is None else f", {human_bytes(device.bytes)}, {human_bytes(device.bytes_in_use or 0)} used"
        table.add_row(f"device {number}", f"{device.kind} ({device.platform}){holds}")
    if found.trouble:
        table.add_row("devices", f"none: {found.trouble}")
    off = "not kept, but by studies in their own folders; JAX_COMPILATION_CACHE_DIR=FOLDER keeps them"
    table.add_row("compiled programs", f"{human_bytes(found.cache_bytes)} in {found.cache}" if found.cache else off)
    table.add_row("prepared corpora", found.data)
    return table


def parts_table(found: Health) -> Table:
    """A line an optional part, with what installs it where it is missing."""
    table = Table(title="optional parts", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("part", "for", "here, or what installs it"):
        table.add_column(head, no_wrap=head != "for")
    for part in PARTS:
        table.add_row(part.extra, part.use, "yes" if found.parts[part.extra] else escape(part.install))
    return table
