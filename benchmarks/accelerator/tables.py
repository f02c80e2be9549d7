"""The tables of a campaign, as Markdown, made of its record."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from infini_jax.units import human_bytes

Line = dict[str, Any]


def tables_of(lines: Sequence[Line]) -> str:
    """All tables: a heading with the devices, one table for each kind of part, and what did not end well."""
    done = [line["figures"] | {"part": line["part"]} for line in lines if line["outcome"] == "done"]
    machines = {f"{one['device']}, jax {one['jax']}, Python {one['python']}" for one in done}
    parts = ["# The campaign on an accelerator", *sorted(machines)]
    for kind, title, table in KINDS:
        found = [one for one in done if one["part"].startswith(kind)]
        if found:
            parts.append(f"## {title}\n" + table(found))
    bad = [f"- {line['part']}: {line['outcome']} after {line['seconds']} s" for line in lines if line["outcome"] != "done"]
    return "\n\n".join([*parts, *(["## Did not end well\n" + "\n".join(bad)] if bad else [])]) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def speeds(found: Sequence[Line]) -> str:
    """Tokens per second, MFU and kernels of each size and mechanism, before and in the chosen form."""

    def row(one: Line) -> list[str]:
        before, now = one["before"], one["chosen"]
        lower, middle, upper = one["faster"]
        rate = one["tokens"] / now["seconds"][1]
        both = [f"{of(before)}, {of(now)}" for of in (mfu, kernels, spare)]
        return [
            one["part"].removeprefix("speed/"),
            f"{rate:.0f}",
            f"{middle:.2f} ({lower:.2f}-{upper:.2f})",
            *both,
            now["form"],
        ]

    head = ["step", "tokens/s", "of before (quartiles)", "MFU before, now", "kernels", "temporaries", "form"]
    most = "\n".join(f"- {one['part'].removeprefix('speed/')}: {profile(one['profile'])}" for one in found)
    return markdown(head, map(row, found)) + "\n\nWhere a step's time goes, by kinds of operation:\n\n" + most


def mfu(form: Line) -> str:
    return share(form["mfu"])


def share(of_peak: float | None) -> str:
    return "-" if of_peak is None else f"{100 * of_peak:.1f} %"


def kernels(form: Line) -> str:
    return "-" if form["kernels"] is None else str(form["kernels"])


def spare(form: Line) -> str:
    return human_bytes(form["temporary_bytes"])


def profile(found: Line) -> str:
    """A profile in one line."""
    most = ", ".join(f"{kind} {1e3 * seconds:.2f} ms ({count})" for kind, seconds, count in found["most"][:6])
    return f"{found['operations']} operations in {1e3 * found['seconds']:.2f} ms, of these {most}"


def fleets(found: Sequence[Line]) -> str:
    """Tokens per second of all members of each fleet, and how many times as fast they are as one after the other."""

    def row(one: Line) -> list[str]:
        lower, middle, upper = one["faster"]
        rates = (one["tokens"] / one["alone_seconds"][1], one["members"] * one["tokens"] / one["seconds"][1])
        both = f"{share(one['alone_mfu'])}, {share(one['mfu'])}"
        return [
            one["part"].removeprefix("fleet/"),
            *(f"{rate:.0f}" for rate in rates),
            f"{middle:.2f} ({lower:.2f}-{upper:.2f})",
            both,
        ]

    return markdown(
        ["runs", "tokens/s of one alone", "of all together", "times as fast (quartiles)", "MFU alone, together"],
        map(row, found),
    )


def exactness(found: Sequence[Line]) -> str:
    """How many tests of each file passed."""
    rows = [
        [
            one["part"].removeprefix("exact/"),
            *(str(one[name]) for name in ("passed", "failed", "skipped")),
            ", ".join(one["which"]),
        ]
        for one in found
    ]
    return markdown(["tests", "passed", "failed", "skipped", "which failed"], rows)


KINDS: tuple[tuple[str, str, Callable[[Sequence[Line]], str]], ...] = (
    ("speed/", "Speed of a training step", speeds),
    ("fleet/", "Many runs in one program", fleets),
    ("exact/", "Tests of the mathematics on the device", exactness),
)
"""Kinds of parts: how their names begin, the title of their table, and what makes it."""
