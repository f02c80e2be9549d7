"""The record of a campaign: one line of JSON for each part that ran, which tells what is left."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.parts import Part
from infini_jax.files import json_text, write_at_once

TRIES = 2  # of a part that does not end well


@dataclasses.dataclass(frozen=True)
class Record:
    """The record in a file, which is written anew for each line, so that it is always whole."""

    file: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines so far, oldest first."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def add(self, line: dict[str, Any]) -> None:
        """Adds a line."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_at_once("".join(json_text(one) + "\n" for one in [*self.lines, line]), self.file)

    def left(self, parts: Sequence[Part]) -> list[Part]:
        """The parts that are to be run: those never tried in their order, then those that did not end well, once more."""
        lines = self.lines
        outcomes = {part.name: [line["outcome"] for line in lines if line["part"] == part.name] for part in parts}
        left = [part for part in parts if "done" not in outcomes[part.name] and len(outcomes[part.name]) < TRIES]
        return sorted(left, key=lambda part: len(outcomes[part.name]))
