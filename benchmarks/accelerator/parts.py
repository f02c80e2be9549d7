"""The parts of the campaign in their order: what each costs, what it decides, and the command that does it."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from benchmarks.accelerator.speed import BEFORE, SIZES
from infini_jax.memory import MECHANISMS

ROOT = Path(__file__).parents[2]
LATE = 2.0  # times its minutes, after which a part is ended
SAID = 600  # characters of what a failed part said
Scale = Literal["device", "tiny"]

# Tests of the mathematics, those first that only a GPU can decide.
EXACT = (
    ("attention_kernels", 2.0),
    ("attention", 2.0),
    ("infini_reference", 1.0),
    ("infini_parallel", 1.0),
    ("gated_delta", 1.5),
    ("recurrence", 0.5),
    ("memorizing_reference", 1.0),
    ("topk", 0.5),
    ("landmark", 1.5),
    ("landmark_forms", 1.5),
    ("infinite_former_golden", 1.0),
    ("infinite_former_gradients", 1.0),
    ("compressive", 1.0),
    ("rewind", 1.0),
    ("precision", 0.5),
    ("contract_forms", 3.0),
    ("contract", 6.0),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the campaign.

    Attributes:
      name: name, which begins with the kind of its figures.
      minutes: minutes that it is expected to take.
      decides: what its figures decide.
      command: what Python runs, from the repository's root; it prints one line of JSON last.
      environment: variables that it is run with.
    """

    name: str
    minutes: float
    decides: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def run(self, seconds: float) -> dict[str, Any]:
        """A line of the record: the part's outcome after at most so many seconds, and its figures or what it said."""
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=ROOT,
            env=os.environ | dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=min(seconds, 60 * LATE * self.minutes))
            figures = object_at_end(said) if process.returncode == 0 else None
            outcome = "failed" if figures is None else "done"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            said, _ = process.communicate()
            outcome, figures = "timed out", None
        line = {"part": self.name, "outcome": outcome, "seconds": round(time.monotonic() - began, 1)}
        return line | ({"said": said[-SAID:]} if figures is None else {"figures": figures})


def object_at_end(said: str) -> dict[str, Any] | None:
    """The JSON object in the last line of an output, None where there is none."""
    try:
        found = json.loads(said.rstrip().rsplit("\n", 1)[-1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@dataclasses.dataclass(frozen=True)
class Extent:
    """How large the parts are.

    Attributes:
      sizes: sizes of the models whose speed is measured, each with mechanisms and the minutes that one of them takes.
      rounds: rounds that take the forms in turn.
      steps: steps of a round.
      fleets: size, mechanism, number of members and minutes of each fleet.
      tests: names of the tests of the mathematics, with their minutes.
      platform: JAX's name of the platform that they run on.
    """

    sizes: tuple[tuple[str, tuple[str, ...], float], ...]
    rounds: int
    steps: int
    fleets: tuple[tuple[str, str, int, float], ...]
    tests: tuple[tuple[str, float], ...]
    platform: str


FIRST = ("infini", "local", "full")
SCALES: dict[Scale, Extent] = {
    "device": Extent(
        sizes=(
            ("study", (*FIRST, *sorted(set(MECHANISMS) - set(FIRST))), 1.0),
            ("1b", ("infini", "local"), 2.0),
            ("135m", FIRST, 2.0),
            ("17m", (*FIRST, "gated_delta", "memorizing"), 1.5),
        ),
        rounds=5,
        steps=10,
        fleets=(
            ("study", "infini", 8, 2.0),
            ("study", "local", 8, 2.0),
            ("study", "infini", 32, 3.0),
            ("17m", "infini", 8, 3.0),
        ),
        tests=EXACT,
        platform="cuda",
    ),
    "tiny": Extent(
        sizes=(("tiny", ("infini",), 1.0),),
        rounds=2,
        steps=1,
        fleets=(("tiny", "infini", 2, 1.0),),
        tests=(("recurrence", 1.0),),
        platform="cpu",
    ),
}


def parts_of(extent: Extent) -> list[Part]:
    """All parts in their order: speeds that the aims are stated in, exactness, then the rest."""
    speeds = [speed_part(extent, size, one, minutes) for size, names, minutes in extent.sizes for one in names]
    fleets = [fleet_part(extent, *fleet) for fleet in extent.fleets]
    exact = [exactness_part(name, minutes, extent.platform) for name, minutes in extent.tests]
    return [*speeds[:3], *fleets[:1], *exact[:2], *speeds[3:], *fleets[1:], *exact[2:]]


def speed_part(extent: Extent, size: str, mechanism: str, minutes: float) -> Part:
    """The part that measures the step of a model."""
    what = ("--size", size, "--mechanism", mechanism, "--rounds", str(extent.rounds), "--steps", str(extent.steps))
    return Part(
        name=f"speed/{size}/{mechanism}",
        minutes=minutes,
        decides=f"MFU of {SIZES[size].says} in the chosen form against {BEFORE}; where a step's time goes",
        command=("-m", "benchmarks.accelerator.speed", *what),
    )


def fleet_part(extent: Extent, size: str, mechanism: str, members: int, minutes: float) -> Part:
    """The part that measures many runs in one program."""
    what = ("--size", size, "--mechanism", mechanism, "--members", str(members))
    return Part(
        name=f"fleet/{size}/{mechanism}/{members}",
        minutes=minutes,
        decides=f"how many times as fast {members} runs of {SIZES[size].says} are in one program",
        command=("-m", "benchmarks.accelerator.fleets", *what, "--rounds", str(extent.rounds), "--steps", str(extent.steps)),
    )


def exactness_part(test: str, minutes: float, platform: str) -> Part:
    """The part that runs a file of tests on the device, float32 products in full precision."""
    return Part(
        name=f"exact/{test}",
        minutes=minutes,
        decides=f"whether tests/test_{test}.py holds there",
        command=("-m", "benchmarks.accelerator.exactness", "--test", test),
        environment=(("TESTS_ON", platform), ("JAX_PLATFORMS", platform)),
    )
