"""`infini-jax doctor`: the state of this machine and installation, to set it up or to report a problem."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from infini_jax import __version__
from infini_jax.cli import probe
from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.errors import ConfigError, installs
from infini_jax.files import data_folder
from infini_jax.forecast.topology import COMPILERS, is_installed
from infini_jax.records.environment import processor
from infini_jax.units import human_bytes

PACKAGES = {  # that must be here -> what is imported of them; each behind those that it needs
    "numpy": "numpy",
    "ml-dtypes": "ml_dtypes",
    "scipy": "scipy",
    "jaxlib": "jaxlib",
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "pyyaml": "yaml",
    "tyro": "tyro",
    "rich": "rich",
    "sentencepiece": "sentencepiece",
    "grain": "grain",
    "importlib-resources": "importlib_resources",
    "tensorflow-datasets": "tensorflow_datasets",
}
PATIENCE = 180  # seconds for all imports and for JAX to start on its devices
EXTRAS = {"tpu": "tpu", "cuda": "cuda", "gpu": "cuda"}  # platform in JAX_PLATFORMS -> what installs it


@dataclasses.dataclass(frozen=True)
class Part:
    """An optional part of the installation.

    Attributes:
      extra: name of the extra by which pip installs the part.
      use: use of the part, in words.
      modules: modules that the part needs, where it is no platform of JAX.
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
    Part("summaries", "ROUGE and METEOR of summaries", ("rouge_score", "nltk")),
    Part(
        "pretrained", "GGUF files, tokenizer.json and the hub of pretrained models", ("gguf", "tokenizers", "huggingface_hub")
    ),
    Part("harness", "tasks of lm-evaluation-harness", ("lm_eval",)),
    Part("tensorboard", "metrics in TensorBoard", ("tensorboardX",)),
    Part("wandb", "metrics in Weights & Biases", ("wandb",)),
    Part("trackio", "metrics in trackio", ("trackio",)),
    Part("mlflow", "metrics in MLflow", ("mlflow", "sqlalchemy", "alembic")),
)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of JAX.

    Attributes:
      kind: kind of device in JAX's words.
      platform: platform in JAX's words.
      bytes: bytes of memory, None where the device does not say.
      bytes_in_use: bytes of memory in use, None where the device does not say.
    """

    kind: str
    platform: str
    bytes: int | None
    bytes_in_use: int | None


@dataclasses.dataclass(frozen=True)
class Health:
    """The findings of `infini-jax doctor`.

    Attributes:
      versions: name of a package -> version, None where it is not installed.
      problems: name of a package that is needed -> its problem and the mend.
      processor: name of the processor and number of its cores.
      memory_bytes, memory_free_bytes: bytes of memory of this machine, and those that are free.
      devices: devices that JAX sees.
      trouble: reason why JAX sees no device, with the mend, or "".
      cache: folder of compiled programs, "" where JAX keeps none.
      cache_bytes: bytes in that folder.
      data: folder of prepared corpora, "" without one.
      data_trouble: reason why there is none, or "".
      parts: name of an optional part -> whether it is here.
    """

    versions: dict[str, str | None]
    problems: dict[str, str]
    processor: str
    memory_bytes: int
    memory_free_bytes: int
    devices: tuple[Device, ...]
    trouble: str
    cache: str
    cache_bytes: int
    data: str
    data_trouble: str
    parts: dict[str, bool]

    @property
    def wrong(self) -> list[str]:
        """The problems that keep the package from running, one line each."""
        found = self.problems | ({"devices": self.trouble} if self.trouble else {})
        return [f"{name}: {problem}" for name, problem in found.items()]


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices with their memory, compiled programs, optional parts, and what is wrong.

    The exit code is 1 if a required package is missing, broken or out of range, or JAX finds no device.

    Examples: `infini-jax doctor`, `infini-jax doctor --json`

    Args:
      as_json: print one JSON object instead of tables.
    """
    found = examine()
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        console = terminal()
        console.print(versions_table(found), machine_table(found), parts_table(found), sep="\n")
        for line in found.wrong:
            console.print(line, style="red", soft_wrap=True)
    if found.wrong:
        sys.exit(1)


def examine() -> Health:
    """The findings about this machine; another process imports the packages and has JAX start on its devices."""
    page = os.sysconf("SC_PAGE_SIZE")
    answers = tried((*PACKAGES.values(), probe.COMMANDS, probe.DEVICES))
    problems = problems_of(answers)
    if not problems and (said := answers[probe.COMMANDS]["problem"]):
        problems["infini_jax"] = f"cannot be imported ({said}); pip install --force-reinstall infini_jax"
    started = answers[probe.DEVICES]
    cache = started.get("cache", "")
    data, data_trouble = data_place()
    return Health(
        versions={
            "python": platform.python_version(),
            "infini_jax": __version__,
            **{name: version(name) for name in PACKAGES},
        },
        problems=problems,
        processor=processor(),
        memory_bytes=page * os.sysconf("SC_PHYS_PAGES"),
        memory_free_bytes=page * os.sysconf("SC_AVPHYS_PAGES"),
        devices=tuple(Device(**one) for one in started.get("devices", ())),
        trouble=trouble_of(started["problem"]) if started["problem"] and "jax" not in problems else "",
        cache=cache,
        cache_bytes=bytes_in(Path(cache)) if cache else 0,
        data=data,
        data_trouble=data_trouble,
        parts={part.extra: part.is_here for part in PARTS},
    )


def data_place() -> tuple[str, str]:
    """(folder of prepared corpora, "") or ("", why there is none)."""
    try:
        return str(data_folder()), ""
    except ConfigError as error:
        return "", str(error)


def tried(asked: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The answers of `probe`; it is started again for what is left when something hangs or kills it."""
    found: dict[str, dict[str, Any]] = {}
    while left := asked[len(found) :]:
        command = [sys.executable, "-m", probe.__name__, *left]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False)
            said, end = done.stdout, f"it ends Python with {ending(done.returncode)}"
        except subprocess.TimeoutExpired as error:
            said, end = error.stdout or b"", f"it takes more than {PATIENCE} seconds"
        found.update(zip(left, map(json.loads, said.splitlines()), strict=False))
        if len(found) < len(asked):
            found[asked[len(found)]] = {"problem": end}
    return found


def ending(code: int) -> str:
    """The end of a process in words, by its exit code: the signal's name, or the code."""
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def problems_of(answers: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The problem of each package that has one; a package that fails because of another one says so."""
    problems: dict[str, str] = {}
    for name, module in PACKAGES.items():
        said, number, asked = answers[module]["problem"], version(name), requirement(name)
        if said and (broken := [other for other in needs(name) if other in problems]):
            problems[name] = f"needs {', '.join(broken)}"
        elif said and number is None:
            problems[name] = f"not installed; pip install '{asked}'"
        elif said:
            problems[name] = f"cannot be imported ({said}); pip install --force-reinstall '{asked}'"
        elif number is not None and not is_in_range(number, asked):
            problems[name] = f"version {number} is out of range; pip install '{asked}'"
    return problems


@functools.cache
def needs(package: str) -> dict[str, str]:
    """The requirements of an installed package by name, such as jax<0.13,>=0.10; extras are left out."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    plain = [line for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-"): line.partition(";")[0].strip() for line in plain}


def requirement(package: str) -> str:
    """The requirement of infini_jax on another package; the package's name where there is none."""
    return needs("infini_jax").get(package, package)


def is_in_range(number: str, asked: str) -> bool:
    """Whether a version meets a requirement; True where that cannot be told."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with matplotlib, which may be what is missing
        return True
    return Requirement(asked).specifier.contains(number, prereleases=True)


def trouble_of(said: str) -> str:
    """The reason why JAX has no device, and the mend: usually a platform that was asked for cannot start."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if not asked:
        return f"{said}; JAX_PLATFORMS=cpu does without them"
    extras = {EXTRAS[name] for name in asked.split(",") if name in EXTRAS}
    mends = ["unset it", *(installs(extra) for extra in sorted(extras) if not is_installed(extra))]
    return f"JAX_PLATFORMS={asked} cannot start ({said}); {', or '.join(mends)}"


def version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            file = Path(inner, name)
            total += file.stat().st_size if file.exists() else 0
    return total


def versions_table(found: Health) -> Table:
    """A table with one line per package."""
    table = Table("package", "version", *(["what is wrong"] if found.problems else []), title="versions")
    for name, number in found.versions.items():
        problem = found.problems.get(name, "").partition(";")[0]
        table.add_row(name, number or "–", *([problem] if found.problems else []), style="red" if problem else "")
    return table


def machine_table(found: Health) -> Table:
    """The table of processor, memory, devices and folders."""
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
    table.add_row("prepared corpora", found.data or f"none: {found.data_trouble}")
    return table


def parts_table(found: Health) -> Table:
    """A table with one line per optional part, with the command that installs it where it is missing."""
    table = Table(title="optional parts", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("part", "for", "here, or what installs it"):
        table.add_column(head, no_wrap=head != "for")
    for part in PARTS:
        table.add_row(part.extra, part.use, "yes" if found.parts[part.extra] else part.install)
    return table
