"""Whole models against public code in PyTorch: a training step of both in turn, forward and backward.

Command:  python -m benchmarks.peers                     (some minutes, and an installation of about 1 GB)
Installs PyTorch and two public ports from the package index in a throw-away environment and says what could not be had. Each
peer is a process of its own that takes a step when it is told to (peer_process.py), so that ours and theirs never run at once.
Prints tokens/s of both and how many times as fast ours is: median and quartiles of the rounds' ratios. The ports are not the
same model to the bit, the sizes are.
"""

import contextlib
import dataclasses
import os
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import tyro

from benchmarks.models import CASES, Case, Sizes, program_of, run_of
from benchmarks.timing import Program, interleaved, machine
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import lookup, present
from infini_jax.memory.full import FullConfig

TORCH = ("torch", "--index-url", "https://download.pytorch.org/whl/cpu")  # without the libraries of GPUs
PROCESS = Path(__file__).with_name("peer_process.py")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A public model beside one of ours.

    Attributes:
      ours: our model.
      packages: packages of the index that it needs beside PyTorch.
    """

    ours: Case
    packages: tuple[str, ...] = ()


PEERS = {
    "window": Peer(CASES["local"]),
    "window-compiled": Peer(CASES["local"]),
    "full": Peer(Case(FullConfig(slots=2048))),
    "full-compiled": Peer(Case(FullConfig(slots=2048))),
    "infini": Peer(CASES["infini linear"], ("infini-transformer-pytorch",)),
    "memorizing": Peer(CASES["memorizing, one layer"], ("memorizing-transformers-pytorch", "einops-exts")),
}
"""Peers by name, as peer_process.py knows them."""


def install(folder: Path, *packages: str) -> str:
    """Installs packages in an environment; returns the last line of what was said where that failed, else ""."""
    asked = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    done = subprocess.run(asked, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip() or "no reason was given").splitlines()[-1]


def made(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Makes the environment in a folder; returns why peers could not be had, by name."""
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    why = install(folder, *TORCH) and install(folder, "torch")
    if why:
        return dict.fromkeys(names, why)
    return {name: said for name in names if (packages := PEERS[name].packages) and (said := install(folder, *packages))}


class Missing(Exception):
    """Raised where a peer's process does not get ready, with its last words."""


@contextlib.contextmanager
def stepping(python: Path, name: str, sizes: Sizes) -> Iterator[Program]:
    """A context with a peer's step as a program. Raises `Missing` where the peer does not work here."""
    shape = {field: str(getattr(sizes, field)) for field in ("d_model", "heads", "layers", "segment", "tokens", "batch")}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w+") as said:
        process = subprocess.Popen(
            [python, PROCESS, name, *shape.values()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=folder,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))},
        )
        to, of = present(process.stdin, "a pipe was asked for"), present(process.stdout, "a pipe was asked for")

        def step() -> None:
            to.write("step\n")
            to.flush()
            if of.readline() != "done\n":
                said.seek(0)
                raise Missing((said.read().strip() or "it ended without a word").splitlines()[-1])

        try:
            step()
            yield Program(step)
        finally:
            process.kill()
            process.wait()


def main(sizes: Sizes, environment: Path | None = None) -> None:
    """Times every peer.

    Args:
      sizes: sizes of the models; `only` names peers.
      environment: folder of the peers' environment, which is kept and used again; by default a temporary one.
    """
    names = sizes.only or tuple(PEERS)
    for name in names:
        lookup("only", name, PEERS)
    use_cores(sizes.batch)
    print(machine())
    print(sizes)
    with contextlib.ExitStack() as stack:
        folder = environment or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        missing = made(folder, names)
        print(f"{'peer':18}{'ours tokens/s':>14} {'theirs':>8} {'times as fast (quartiles)':>26} {'rounds':>7}")
        for name in names:
            if name in missing:
                print(f"{name:18}cannot be had: {missing[name]}")
                continue
            ours = program_of(run_of(PEERS[name].ours, sizes, 0))
            try:
                with stepping(folder / "bin" / "python", name, sizes) as theirs:
                    times = interleaved({"ours": ours, "theirs": theirs}, sizes.rounds)
            except Missing as why:
                print(f"{name:18}does not run here: {why}")
                continue
            rates = [sizes.batch * sizes.tokens / times.median(one) for one in ("ours", "theirs")]
            ratio = "{:.2f} ({:.2f}-{:.2f})".format(*times.ratio("theirs", "ours"))
            print(f"{name:18}{rates[0]:>14.0f} {rates[1]:>8.0f} {ratio:>26} {f'{times.clean}/{times.rounds}':>7}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
