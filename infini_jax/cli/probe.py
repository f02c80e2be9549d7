"""The checks that `infini-jax doctor` makes in a process of their own, as they may raise, hang or crash: imports and devices.

`python -m infini_jax.cli.probe jax devices` prints one JSON object per argument, in their order, whose `problem` is one line,
or "" without one.
"""

import importlib
import os
import sys
from typing import Any

from infini_jax.errors import one_line
from infini_jax.files import json_text

COMMANDS, DEVICES = "commands", "devices"  # all modules of this package that commands need; what JAX runs on


def answer(asked: str) -> dict[str, Any]:
    """The findings about a module, `COMMANDS` or `DEVICES`."""
    found: dict[str, Any] = {"problem": ""}
    try:
        if asked == DEVICES:
            import jax

            settings: Any = jax.config  # its options are attributes made at run time
            found["cache"] = settings.jax_compilation_cache_dir or ""
            found["devices"] = [described(device) for device in jax.local_devices()]
        elif asked == COMMANDS:
            from infini_jax.cli import commands

            for name in commands.COMMANDS:
                commands.command(name)
        else:
            importlib.import_module(asked)
    except (Exception, SystemExit) as error:  # a broken package raises anything
        name, said = type(error).__name__, one_line(error)
        found["problem"] = name if said == name else f"{name}: {said}"
    return found


def described(device: Any) -> dict[str, Any]:
    """The settings of a `doctor.Device`."""
    stats = device.memory_stats() or {}
    held = {"bytes": stats.get("bytes_limit"), "bytes_in_use": stats.get("bytes_in_use")}
    return {"kind": device.device_kind, "platform": device.platform, **held}


def main(asked: list[str]) -> None:
    """Prints the answers; output of the packages themselves goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for one in asked:
            print(json_text(answer(one)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
