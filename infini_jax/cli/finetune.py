"""`infini-jax finetune`: what a run's features are worth to tasks of classification; changes nothing of the run."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from infini_jax.analysis.classification import mean_interval
from infini_jax.cli.evaluation_options import given_settings, text_fields
from infini_jax.cli.evaluation_tables import measure_tables
from infini_jax.cli.memory_options import AS_TRAINED, MemoryOptions, chosen_memory, labels, opened_run, suffix
from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.progress import evaluation_progress
from infini_jax.cli.read_run import record_of, with_labels, write_record
from infini_jax.config import RunConfig
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import require
from infini_jax.evals.base import Evaluation, Subject
from infini_jax.files import json_object, json_text, object_or_none
from infini_jax.finetuning.evaluation import BABYLM, FineTuning
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, read_measures, write_measures
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained, read_with, saved_config

MACRO, EVERY = "macro", ",".join(BABYLM)
SAME = ("fingerprint", "step", "memory", "task", "settings")  # of records of the same measurement
if TYPE_CHECKING:  # its fields are made from the settings, which a type checker does not know

    class TuningOptions: ...
else:
    NAMED = [field for field in text_fields({FineTuning.name: FineTuning}) if field[0] not in ("task", "path")]
    TuningOptions = dataclasses.make_dataclass("TuningOptions", NAMED, frozen=True)
TuningOptions.__doc__ = "Settings of fine-tuning; what is left out is BabyLM's recipe."
RECIPE = TuningOptions()


def finetune(
    run: tyro.conf.Positional[Path],
    task: str = EVERY,
    path: str = "",
    options: tyro.conf.OmitArgPrefixes[TuningOptions] = RECIPE,
    memory: MemoryOptions = AS_TRAINED,
    step: Which = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tunes a trained run on tasks of classification, each from the run's own parameters, and scores it.

    A task whose figures are there with the same settings, checkpoint and examples is not done again.

    Examples: `infini-jax finetune results/runs/run --task rte,boolq`,
    `infini-jax finetune results/runs/run --task glue/cola --train-examples 2000 --trains lora --lora-rank 8`,
    `infini-jax finetune results/runs/run --task mine --path folder`

    Args:
      run: the folder that `infini-jax train`, or `infini-jax import`, left.
      task: tasks, separated by commas: cola, sst2, mrpc, qqp, mnli, qnli and rte of GLUE, boolq, multirc and wsc of SuperGLUE,
        or names of one's own; by default those of BabyLM's evaluation of 2025.
      path: folder or archive of <task>.train.jsonl and <task>.valid.jsonl, or TFDS's folder; by default a place in the data
        folder.
      options: settings of fine-tuning.
      memory: settings of the memory with which texts are read, such as more slots; by default as it was trained.
      step: step of the checkpoint, or best for that of the lowest validation loss; by default the newest.
      as_json: prints the figures as JSON instead of tables.
    """
    saved, asked = saved_config(run), tunings(task.split(","), path, options)
    used = read_with(saved, chosen_memory(saved, memory))
    for one in asked:
        one.check(used)
    use_cores(min(one.batch or 16 for one in asked))
    measures = ReadRun(saved, opened_run(run, step, used)).tuned_on_all(asked)
    if as_json:
        print_json(list(map(dataclasses.asdict, measures)))
        return
    terminal().print(*measure_tables(measures, f"{saved.name}, fine-tuned"))


def tunings(tasks: Sequence[str], path: str, options: Any) -> list[FineTuning]:
    """The settings of each task. Raises `ConfigError` for a task that is named twice, and values that cannot be."""
    names = [name.strip().removeprefix("glue/").removeprefix("super_glue/") for name in tasks]
    require(len(set(names)) == len(names), "task", f"{','.join(names)} names one twice", "name each once")
    given = given_settings(options, FineTuning.name, FineTuning)
    return [FineTuning(task=name, path=path, **given) for name in names]


@dataclasses.dataclass(frozen=True)
class ReadRun:
    """A run that is measured, and what is written of it in its folder.

    Attributes:
      saved: its settings.
      trained: the run at a checkpoint, read with the memory that was chosen.
    """

    saved: RunConfig
    trained: Trained

    def written(self, name: str, measures: list[Measure], record: Mapping[str, Any] | None = None) -> list[Measure]:
        """Writes figures and, where there is one, their record; both say with which other memory the run was read."""
        models = self.saved.model, self.trained.run.model
        place, found = RunFolder(self.trained.folder), with_labels(measures, labels(*models))
        write_measures(self.saved.name, found, place.measures_of(name + suffix(*models)))
        if record is not None:
            write_record(dict(record), place.evaluation(name + suffix(*models)))
        return found

    def made_before(self, evaluation: Evaluation, name: str, known: Mapping[str, Any] | None = None) -> list[Measure]:
        """The figures that are there, made with the same settings, checkpoint, memory and `known`; none otherwise."""
        place, name = RunFolder(self.trained.folder), name + suffix(self.saved.model, self.trained.run.model)
        there = object_or_none(place.evaluation(name)) or {}
        asked = json_values(self.record(evaluation, 0.0) | dict(known or {}))
        is_same = all(there.get(key) == asked[key] for key in (*SAME, *(known or {})))
        file = place.measures_of(name)
        return [measure for _, measure in read_measures([file])] if is_same and file.is_file() else []

    def record(self, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
        """The record of an evaluation as JSON values."""
        return record_of(self.trained, self.saved, evaluation, seconds)

    def title(self, name: str) -> str:
        """What is shown above a bar or a table."""
        return f"{self.saved.name}, step {self.trained.step}{f', {name}' if name else ''}"

    def tuned_on_all(self, asked: Sequence[FineTuning]) -> list[Measure]:
        """The figures of all tasks, and of several their macro score; each is written when it is there."""
        found = {one.task: self.tuned_on(one) for one in asked}
        measures = [measure for several in found.values() for measure in several]
        if len(asked) == 1:
            return measures
        macro = macro_score(FineTuning.name, {task: several[0] for task, several in found.items()})
        return [*measures, *self.written(f"{FineTuning.name}-{MACRO}", [macro])]

    def tuned_on(self, settings: FineTuning) -> list[Measure]:
        """The figures of one task: those that are there, or new ones, which are written with the epochs and all answers."""
        name, examples = f"{settings.name}-{settings.task}", settings.examples(self.trained.run)
        known = {"examples": examples.digest()}
        if made := self.made_before(settings, name, known):
            return made
        began = time.perf_counter()
        with evaluation_progress(self.title(settings.task), terminal(stderr=True)) as watch:
            found = settings.tuned(Subject(self.trained.run, self.trained.params), examples, watch)
        record = self.record(settings, time.perf_counter() - began) | known | {"from": examples.source.described}
        return self.written(name, found.measures, record | found.to_plain())


def json_values(value: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file of JSON."""
    return json_object(json_text(value).encode())


def macro_score(evaluation: str, scores: Mapping[str, Measure]) -> Measure:
    """The mean of scores by name, with an interval from theirs over the items; it takes the tasks as they are."""
    value, low, high = mean_interval([(one.value, one.low, one.high) for one in scores.values()])
    return Measure(evaluation, MACRO, value, len(scores), low, high, {"tasks": ",".join(scores)})
