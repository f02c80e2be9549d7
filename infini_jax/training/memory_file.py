"""The file of a memory: what a run remembers of a prompt, in the format safetensors, which holds arrays and JSON and no code.

Eight bytes with the length of a header, the header as JSON, then the arrays, little-endian, one behind the other. The header's
`__metadata__` says which run read what. Its hash is over the rest of the header and all arrays: nothing is believed of a file
that is not as it was written.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax import __version__
from infini_jax.errors import ConfigError, one_line, require
from infini_jax.files import json_object, json_text, open_regular, replaced_at_once
from infini_jax.memory.offload import on_host, to_host
from infini_jax.model.generate import PromptState
from infini_jax.model.stream import init_carry
from infini_jax.training.digest import digests, named
from infini_jax.training.notes import hash_of
from infini_jax.training.trained import Trained

FORMAT = "infini_jax memory 1"  # raise the number when what is written changes
HEAD, LONGEST_HEADER = 8, 100_000_000  # bytes; the most that safetensors reads
KINDS = {"bool": "BOOL", "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}  # safetensors' words
KINDS |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
WAITING = "waiting"
AGAIN = "read the prompt again with --save-memory"


def save_memory(state: PromptState, notes: dict[str, Any], trained: Trained, file: Path) -> None:
    """Writes the state behind a prompt, with notes of JSON values about its text, at once or not at all.

    Raises `ConfigError` where the file exists or cannot be written.
    """
    check_new(file)
    arrays = {name: np.asarray(leaf) for name, leaf in named(jax.device_get(state.carry)).items()}
    arrays[WAITING] = state.waiting
    about = {"format": FORMAT, "package": __version__, **reader_of(trained), "tokens": state.tokens, **notes}
    data = b"".join(array.tobytes() for array in arrays.values())
    header = {"__metadata__": {"about": json_text(about, sort_keys=True)}, **entries_of(arrays)}
    header["__metadata__"]["hash"] = checksum(header, data)
    text = json_text(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with replaced_at_once(file) as partial:
            partial.write_bytes(len(text).to_bytes(HEAD, "little") + text + data)
    except OSError as error:
        raise ConfigError("save_memory", f"{file}: {error.strerror}", "give a file that can be written") from error


def check_new(file: Path) -> None:
    """Checks the name of a file to be: raises `ConfigError` where it exists, or its folder does not."""
    require(not file.exists(), "save_memory", f"{file} exists", "give another name, or delete it")
    require(file.parent.is_dir(), "save_memory", f"there is no folder {file.parent}", "make it, or give another name")


def load_memory(file: Path, trained: Trained) -> tuple[PromptState, dict[str, Any]]:
    """(the state behind a prompt, the notes about its text) in a file, for the run that it was read by.

    Raises `ConfigError` where the file is damaged, no memory, or of another run, step or parameters.
    """
    try:
        with open_regular(file) as opened:
            header, data = parts_of(opened.read())
        about = json_object(header.pop("__metadata__")["about"])
        check_reader(file, about, trained)
        waiting = np.zeros(min(header[WAITING]["shape"][0], trained.run.model.segment), np.int32)
        state = PromptState(init_carry(trained.run.model, 1), waiting, about["tokens"])
    except OSError as error:
        raise ConfigError("memory", f"{file}: {error.strerror or error}", "give a file of --save-memory") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError("memory", f"{file} is damaged or no memory ({one_line(error)})", AGAIN) from error
    return with_data(file, state, header, data), about


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, bytes of the arrays). Raises `ValueError` or KeyError where they are not what was written."""
    length = int.from_bytes(content[:HEAD], "little")
    if not 0 < length <= min(LONGEST_HEADER, len(content) - HEAD):
        raise ValueError("it has no header")
    header, data = json_object(content[HEAD : HEAD + length]), content[HEAD + length :]
    noted = header["__metadata__"].pop("hash")
    if noted != checksum(header, data):
        raise ValueError("other bytes than were written")
    return header, data


def checksum(header: dict[str, Any], data: bytes) -> str:
    """BLAKE2b of a header without its hash and of all arrays, 32 hex digits."""
    found = hashlib.blake2b(json_text(header, sort_keys=True).encode(), digest_size=16)
    found.update(data)
    return found.hexdigest()


def entries_of(arrays: Mapping[str, np.ndarray | jax.Array]) -> dict[str, Any]:
    """The header's entries of arrays that lie one behind the other."""
    found, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        found[name] = {"dtype": KINDS[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
    return found


def reader_of(trained: Trained) -> dict[str, Any]:
    """What a memory is of: run, mechanism, step and parameters."""
    return {
        "run": trained.run.name,
        "mechanism": trained.run.mechanism,
        "fingerprint": trained.run.fingerprint(),
        "step": trained.step,
        "parameters": hash_of(digests(trained.params, "params")),
    }


def check_reader(file: Path, about: dict[str, Any], trained: Trained) -> None:
    """Raises `ConfigError` with what differs where a memory is not of this run at this step with these parameters."""
    ours, form = reader_of(trained), about.get("format")
    require(form == FORMAT, "memory", f"{file} has the format '{form}' and not '{FORMAT}'", AGAIN)
    theirs, own = (f"'{one['run']}' ({one['mechanism']}, {one['fingerprint']})" for one in (about, ours))
    is_ours = about["fingerprint"] == ours["fingerprint"]
    of_another = about["run"] != ours["run"]
    mend = f"give the folder of '{about['run']}'" if of_another else "give the settings of the memory with which it was read"
    require(is_ours, "memory", f"{file} is of the run {theirs}, this is {own}", mend)
    step = about["step"]
    require(step == ours["step"], "memory", f"{file} is of step {step}, this is step {ours['step']}", f"give --step {step}")
    is_same = about["parameters"] == ours["parameters"]
    require(is_same, "memory", f"{file} was read with other parameters of step {step}, as of a run that was made again", AGAIN)


def with_data(file: Path, state: PromptState, header: dict[str, Any], data: bytes) -> PromptState:
    """A state with the arrays of a file, which the header names, in place of its own.

    Raises `ConfigError` where they have other names, shapes or types.
    """
    arrays = {**named(state.carry), WAITING: state.waiting}
    entries, problem = entries_of(arrays), f"{file} has arrays of another form, as of another version of infini_jax"
    require(header == entries, "memory", problem, AGAIN)

    def of_file(name: str, array: Any) -> np.ndarray:
        begin, end = entries[name]["data_offsets"]
        return np.frombuffer(data[begin:end], array.dtype).reshape(array.shape)

    def placed(path: Any, array: jax.Array) -> jax.Array:
        found = jnp.asarray(of_file(jax.tree_util.keystr(path, simple=True, separator="/"), array))
        return to_host(found) if on_host(array) else found

    carry = jax.tree_util.tree_map_with_path(placed, state.carry)
    return PromptState(carry, of_file(WAITING, state.waiting), state.tokens)
