"""Command:  python -m benchmarks.accelerator --minutes 9       (again, until it says that nothing is left)

Runs the parts of `parts.py` in their order, each in a process of its own, until the minutes are used up; a part that does not
fit into what is left waits for the next call. Writes parts.jsonl, one line for each part that ran, and tables.md, made of it.
A part that failed is tried once more, after all others. Needs neither grain nor tensorflow-datasets, and no input.
"""

import time
from pathlib import Path

import tyro

from benchmarks.accelerator.parts import SCALES, Scale, parts_of
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.tables import tables_of
from infini_jax.errors import lookup
from infini_jax.files import write_at_once

START = 0.5  # minutes that a part needs at least


def main(
    into: Path = Path("docs/results/accelerator"),
    minutes: float = 9.0,
    scale: Scale = "device",
    only: tuple[str, ...] = (),
    dry_run: bool = False,
) -> None:
    """Runs what is left of the campaign.

    Args:
      into: folder of the record and the tables.
      minutes: minutes that this call may take.
      scale: device, the sizes that are asked about; tiny, the same parts at sizes that a CPU runs in seconds.
      only: names of the parts to run, by default all.
      dry_run: prints the parts, what each costs and decides, and runs nothing.
    """
    began, parts, record = time.monotonic(), parts_of(SCALES[scale]), Record(into / "parts.jsonl")
    for name in only:
        lookup("only", name, {part.name: part for part in parts})
    left = record.left([part for part in parts if not only or part.name in only])
    for part in left:
        if dry_run:
            print(f"{part.name:32} {part.minutes:4.1f} min  {part.decides}")
            continue
        spare = minutes - (time.monotonic() - began) / 60
        if spare < max(part.minutes, START):
            continue
        line = part.run(60 * spare)
        record.add(line)
        write_at_once(tables_of(record.lines), into / "tables.md")
        print(f"{part.name:32} {line['outcome']:10} {line['seconds']:6.1f} s", flush=True)
    if not dry_run:
        print(f"left: {', '.join(part.name for part in record.left(left)) or 'nothing'}")


if __name__ == "__main__":
    tyro.cli(main)
