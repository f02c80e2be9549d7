"""The model card of an exported run, README.md as hubs show it: what it is, its origin, settings, data, figures, loading.

The head is YAML, by the fields of https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Nothing in it names a folder
of this machine.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from infini_jax.config.plain import to_plain
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.files import json_text, object_or_none
from infini_jax.model.cost import parameter_count
from infini_jax.pretrained.exporting import Exported
from infini_jax.pretrained.hub import is_hub_name
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, read_measures
from infini_jax.records.rows import Row, is_whole, read_rows
from infini_jax.records.training_log import newest_line
from infini_jax.training.trained import Trained
from infini_jax.units import human_bytes

MOST = 40  # figures of one evaluation; the run's folder has all
Source = dict[str, Any]  # what source.json says
FAMILY_LOADS = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")
```

It is read in one piece there, with attention to all of its context or its windows. config.json has all settings of the run."""
OWN_LOADS = """```python
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.pretrained.opened import load

model, params = load("FOLDER")
carry, features, _ = forward_segments(model, params, init_carry(model, batch=1), tokens, documents)
logits = logits_of(model, params, features)  # of one segment, int32 1 x model.segment; the carry goes on to the next
```

Its layers are not those of any family that `transformers` has; config.json holds all settings of the run."""


def model_card(trained: Trained, model: Exported, dtype: str, source: Source | None) -> str:
    """The card of a run, Markdown with a YAML head.

    Args:
      trained: the run at the step that is exported.
      model: the model as it is written.
      dtype: type of the tensors.
      source: what source.json says of the imported model that it is or began at; None where its parameters were fresh.
    """
    run = trained.run
    sections = {
        run.name: what_it_is(trained, model, source),
        "Origin": "\n".join(origin_lines(trained, source)),
        "Settings": markdown_table(("setting", "value"), settings_rows(trained, model, dtype)),
        "Data": "\n".join(data_lines(trained)),
        "Figures": "\n\n".join(found_figures(trained)) or "None were found beside the run.",
        "Loading": (OWN_LOADS if model.is_own else FAMILY_LOADS) + "\n\n`infini-jax import FOLDER` makes a run of it again.",
    }
    head = yaml.safe_dump(front_matter(run.mechanism, model, source), sort_keys=False, allow_unicode=True)
    text = "\n\n".join(f"{'##' if number else '#'} {title}\n\n{body}" for number, (title, body) in enumerate(sections.items()))
    return f"---\n{head}---\n\n{text}\n"


def front_matter(mechanism: str, model: Exported, source: Source | None) -> dict[str, Any]:
    """The fields of the head: the licence of the origin, the model it is from, what reads it, and words to find it by."""
    found: dict[str, Any] = {"license": source["license"]} if source and source.get("license") else {}
    if source and (base := base_model(source)):
        found["base_model"] = base
    tags = ["long-context", "memory", mechanism] if model.is_own else [model.family]
    return {**found, "library_name": "infini_jax" if model.is_own else "transformers", "tags": tags}


def base_model(source: Source) -> str:
    """The name of the imported model: that on the hub where one is known."""
    names = [str(source.get(field) or "") for field in ("source", "name")]
    return next((name for name in names if is_hub_name(name)), Path(names[0]).name)


def what_it_is(trained: Trained, model: Exported, source: Source | None) -> str:
    """One paragraph that says what the model is."""
    run, size = trained.run, f"{parameter_count(trained.run.model):,} parameters"
    kind = f"A decoder-only transformer with {size} whose layers carry a memory ({run.mechanism})"
    if not model.is_own:
        kind = f"A decoder-only transformer with {size}, in the files of the family `{model.family}`"
    if source is None:
        return f"{kind}, trained from fresh parameters with `infini_jax`."
    name = base_model(source)
    if is_imported(trained):
        return f"{kind}: {name} as `infini_jax` imported it, without any training since."
    return f"{kind}, which began at the parameters of {name} and was trained with `infini_jax`."


def is_imported(trained: Trained) -> bool:
    """Whether a run is an imported model itself, which took no step here."""
    return trained.step == 0 and RunFolder(trained.folder).source.is_file()


def origin_lines(trained: Trained, source: Source | None) -> Iterator[str]:
    """Lines about the run at whose parameters the model began, and the files of the imported model behind it."""
    origin = trained.run.origin
    if origin:
        yield f"- begun at the parameters of the run `{origin.name}`, step {origin.step:,} (digest `{origin.digest}`)"
    if source is None:
        yield "- no imported model is known behind it" if origin else "- fresh parameters"
        return
    revision = f", revision `{source['revision']}`" if source.get("revision") else ""
    files = ", ".join(f"`{name}`" for name in source.get("files", ()))
    yield f"- imported from {base_model(source)}{revision}: {files}"
    yield f"- SHA-256 of these files, one behind the other: `{source.get('sha256', '')}`"
    yield f"- licence: {source.get('license') or 'the files named none'}"


def settings_rows(trained: Trained, model: Exported, dtype: str) -> list[tuple[str, str]]:
    """(setting, value) of the run and its model."""
    run, m = trained.run, trained.run.model
    sizes = f"{m.layers} layers, width {m.d_model}, {m.heads} heads ({m.dims.kv_heads} of keys), vocabulary {m.vocab}"
    rows = [
        ("run", f"`{run.name}`, fingerprint `{run.fingerprint()}`, step {trained.step:,}"),
        ("sizes", sizes),
        ("mechanism", f"`{json_text(to_plain(m.memory))}`"),
        ("memory", f"{human_bytes(m.memory_bytes)} ({m.memory_bytes:,} bytes) per sequence, all layers together"),
        ("segment", f"{m.segment} tokens"),
    ]
    if not is_imported(trained):
        rows += [("budget", f"{run.budget.amount:g} {run.budget.unit}"), ("seed", str(run.seed))]
    if run.train.average:
        rows.append(("parameters", f"their moving average, decay {run.train.average:g}"))
    return [*rows, ("files", f"family `{model.family}`, tensors {dtype}")]


def data_lines(trained: Trained) -> Iterator[str]:
    """Lines about the data that the run was trained on: name, and hash of what was read."""
    if is_imported(trained):
        yield f"- tokenizer: `{trained.run.data.tokenizer_name}`; what it was trained on is said where it is from"
        return
    yield f"- task `{trained.run.task}`: `{json_text(to_plain(trained.run.data))}`"
    if row := row_of(trained):
        yield f"- read in training: {row.corpus}"


def row_of(trained: Trained) -> Row | None:
    """The row of the run, where it is finished and of the step that is exported."""
    file = RunFolder(trained.folder).row
    (row,) = read_rows(file) if is_whole(file) else [None]
    return row if row and row.steps == trained.step else None


def found_figures(trained: Trained) -> Iterator[str]:
    """The tables of what was measured of the run, as its folder has it."""
    if row := row_of(trained):
        scores = {"validation": (row.loss, row.accuracy), "test": (row.test_loss, row.test_accuracy)}
        read = newest_line(RunFolder(trained.folder).metrics).get("validation_tokens")  # where documents are read whole
        counts = {"validation": f"{int(read):,}"} if read else {}
        lines = [
            (name, f"{loss:.4g}", f"{hits:.4g}", counts.get(name, ""))
            for name, (loss, hits) in scores.items()
            if loss is not None and hits is not None
        ]
        heads = ("split", "loss, nats per scored token", "accuracy", "tokens")
        yield f"Held-out data at the end of training, step {row.steps:,}:\n\n{markdown_table(heads, lines)}"
    place = RunFolder(trained.folder)
    for file in sorted(place.all_measures.glob("*.parquet")):
        if is_whole(file) and (measures := [one for _, one in read_measures([file]) if one.metric != "loss_by_position"]):
            record = object_or_none(record_file(place, file.stem)) or {}
            yield f"{heading(measures[0].eval, record)}\n\n{measures_table(measures)}"


def record_file(place: RunFolder, name: str) -> Path:
    """The file of `infini-jax evaluate` that belongs to figures of this name: perplexity's own is called evaluation.json."""
    return place.evaluation("" if name == "perplexity" else name)


def heading(name: str, record: dict[str, Any]) -> str:
    """What a table of figures is of: the evaluation, its split, the step and the corpus, as far as they are known."""
    kind = EVALUATIONS.get(name)
    settings = record.get("settings") or (to_plain(kind()) if kind else {})
    said = [f"split {settings['split']}"] if settings.get("split") else []
    said += (
        [f"step {record['step']:,}"] if isinstance(record.get("step"), int) else ["the checkpoint that was the newest then"]
    )
    said += [str(record["corpus"])] if record.get("corpus") else []
    return f"`{name}` ({', '.join(said)}):"


def measures_table(measures: Sequence[Measure]) -> str:
    """A table with a line per figure: its labels, value, 95 % interval, and the trials or tokens behind it."""
    lines = [
        (
            one.metric,
            ", ".join(f"{name} {value}" for name, value in one.labels.items()),
            f"{one.value:.4g}",
            f"{one.low:.4g} to {one.high:.4g}" if one.low == one.low else "",
            f"{one.count:,}",
        )
        for one in measures[:MOST]
    ]
    more = f"\n\nand {len(measures) - MOST} more in the run's folder" if len(measures) > MOST else ""
    return markdown_table(("figure", "of", "value", "95 % interval", "count"), lines) + more


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; bars and line ends in its cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell_text(cell) for cell in line) + " |" for line in lines)


def cell_text(cell: str) -> str:
    """The text of a cell on one line."""
    return " ".join(cell.split()).replace("|", "\\|")
