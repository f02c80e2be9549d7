"""The command line in this process or in one of its own, on tiny models."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infini_jax.cli.main import main

TINY = ["--model.vocab", "256", "--model.layers", "1", "--model.d-model", "16", "--model.segment", "8"]
TINY += ["--train.sequence", "16", "--train.batch", "2", "--train.evaluation-steps", "1", "--train.log-every", "1"]
TINY += ["--budget.amount", "6"]

PAIRS = ["train", "infini", "mqar", "--model.vocab", "32", "--model.layers", "1", "--model.d-model", "16"]
PAIRS += ["--model.segment", "8", "--data.symbols", "32"]
PROGRAM = [sys.executable, "-c", "import sys; from infini_jax.cli.main import main; main(sys.argv[1:])"]  # the command line


def training(results: Path, *more: str, corpus: str = "stories-bytes", every: int = 2) -> list[str]:
    """A run of six steps, saved after every second."""
    where = ["--data.name", corpus, "--results", str(results), "--saving.every-steps", str(every)]
    return ["train", "infini", "corpus", *TINY, *where, *more]


def told(capsys, arguments: list[str], code: int) -> str:
    """The one line that a command says which ends with `code`, without the name of the program."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == code, said
    assert said.startswith("infini-jax: "), said
    assert said.count("\n") == 1, said
    return said.removeprefix("infini-jax: ").rstrip("\n")


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process whose CPU looks like so many devices."""
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"}


def on_devices(count: int, module: str, call: str) -> Any:
    """What a call of a module in tests returns, by way of JSON, in a process with so many devices."""
    program = f"import json; import tests.{module} as module; print(json.dumps(module.{call}))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=with_devices(count), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def spawned(arguments: list[str], before: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own; `before` is Python that runs in it first."""
    program = f"{before}\nimport sys\nfrom infini_jax.cli.main import main\nmain(sys.argv[1:])"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300)


def killed_at(part: str, number: int, events: tuple[str, ...] = ("open", "os.mkdir", "os.rename")) -> str:
    """Python for `spawned`: the process dies by SIGKILL before its `number`-th such operation on a path with this part."""
    return f"""
import os, signal, sys
seen = []
def watch(event, arguments):
    if event in {events} and any({part!r} in str(one) for one in arguments[:2]):
        seen.append(event)
        if len(seen) == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@contextmanager
def disk(folder: Path, size: str, options: str = "rw") -> Iterator[Path]:
    """A small disk on `folder`; skips the test where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs rights that this process lacks")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def largest_file(size: int) -> str:
    """Python for `spawned`: no file may grow beyond `size` bytes; what a full disk does, where none can be mounted."""
    return f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


HOLDS = """
import sys
from pathlib import Path
from infini_jax.locks import claimed
with claimed(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(lock: Path) -> Iterator[subprocess.Popen]:
    """A process that holds a lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()
