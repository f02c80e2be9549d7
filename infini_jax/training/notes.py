"""The notes beside a checkpoint's arrays: sealed by a hash of all of them when written, and checked before any is believed.

Each format has its own names and no others. Notes that lost their hash, or the number of their format, are therefore refused;
they are not read as older ones, which have neither a hash nor digests.
"""

import dataclasses
import hashlib
from typing import Any

from infini_jax import __version__
from infini_jax.config import RunConfig
from infini_jax.files import json_text, with_nan, without_nan
from infini_jax.training.standing import Standing

FORMAT = 4  # raise it when what is written changes; 3: digests and a hash; 4: what readings of held-out documents said
READ = (2, 3, FORMAT)
HASH = "hash"


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
      step: number of steps that were done.
      seconds: seconds of training, over all restarts.
      compile_seconds: seconds of compiling, over all restarts.
      last: last line of metrics.
      skipped: number of steps that changed nothing, because their gradient was not finite.
      skipped_in_row: number of the newest of these, with no other step between or behind them.
      standing: what readings of held-out documents said before that of this step, which a run that goes on makes again.
    """

    step: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    skipped_in_row: int = 0
    standing: Standing = Standing()


RUN_NAMES = {"format", "package", "fingerprint", "config"}
PROGRESS_NAMES = {field.name for field in dataclasses.fields(Progress)}
NAMES = {
    2: RUN_NAMES | PROGRESS_NAMES - {"skipped", "skipped_in_row", "standing"} | {"checksum", "parts"},
    3: RUN_NAMES | PROGRESS_NAMES - {"standing"} | {"arrays", HASH},
    FORMAT: RUN_NAMES | PROGRESS_NAMES | {"arrays", HASH},
}


def sealed(run: RunConfig, progress: Progress, arrays: dict[str, str]) -> dict[str, Any]:
    """The notes of a checkpoint as JSON values; `arrays` are the digests of its arrays by name."""
    notes = without_nan(
        {
            "format": FORMAT,
            "package": __version__,
            "fingerprint": run.fingerprint(),
            "config": run.to_dict(),
            "arrays": arrays,
            **dataclasses.asdict(progress),
        }
    )
    return {**notes, HASH: hash_of(notes)}


def hash_of(notes: dict[str, Any]) -> str:
    """BLAKE2b of all notes but the hash itself, 32 hex digits."""
    text = json_text({name: value for name, value in notes.items() if name != HASH}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def checked_notes(notes: Any, step: int) -> dict[str, Any]:
    """The notes themselves, as they were read from the folder of `step`.

    Nothing is known of the notes of other formats than those in `READ`, and nothing of them is checked.

    Raises `ValueError` where they are not what was written.
    """
    if not isinstance(notes, dict) or type(notes.get("format")) is not int:
        raise ValueError("no notes of a checkpoint")
    if notes["format"] not in READ:
        return notes
    if {*notes} != NAMES[notes["format"]]:
        raise ValueError(f"not the names of format {notes['format']}: {', '.join(sorted(notes))}")
    if HASH in notes and notes[HASH] != hash_of(notes):
        raise ValueError("other notes than were written")
    if notes["step"] != step:
        raise ValueError(f"step {notes['step']} in the folder of step {step}")
    return notes


def written_part(notes: dict[str, Any], place: str) -> dict[str, Any]:
    """What checked notes say of the arrays of a part of the state, such as state/params: digests by name."""
    if notes["format"] == 2:
        return {place: notes["parts"][place.split("/")[-1]]}
    return {name: said for name, said in notes["arrays"].items() if name.startswith(f"{place}/")}


def progress_in(notes: dict[str, Any]) -> Progress:
    """The progress in checked notes."""
    found = {name: notes[name] for name in PROGRESS_NAMES if name in notes}
    standing = Standing(**notes.get("standing", {}))
    return Progress(**{**found, "last": with_nan(notes["last"]), "standing": standing})
