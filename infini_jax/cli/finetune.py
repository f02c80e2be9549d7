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
from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.progress import evaluation_progress
from infini_jax.cli.read_run import record_of, write_record
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import require
from infini_jax.evals.base import Evaluation, Subject
from infini_jax.files import object_or_none
from infini_jax.finetuning.evaluation import BABYLM, FineTuning
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, read_measures, write_measures
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained, saved_config

MACRO, EVERY = "macro", ",".join(BABYLM)
SAME = ("fingerprint", "step", "task", "settings")  # of records of the same measurement
if TYPE_CHECKING:  # its fields are made from the settings, which a type checker does not know

    class TuningOptions: ...
else:
    fields = [field for field in text_fields({FineTuning.name: FineTuning}) if field[0] not in ("task", "path")]
    TuningOptions = dataclasses.make_dataclass("TuningOptions", fields, frozen=True)
TuningOptions.__doc__ = "Settings of fine-tuning; what is left out is BabyLM's recipe."
RECIPE = TuningOptions()


def finetune(
    run: tyro.conf.Positional[Path],
    task: str = EVERY,
    path: str = "",
    options: tyro.conf.OmitArgPrefixes[TuningOptions] = RECIPE,
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
      step: step of the checkpoint, or best for that of the lowest validation loss; by default the newest.
      as_json: prints the figures as JSON instead of tables.
    """
    saved, asked = saved_config(run), tunings(task.split(","), path, options)
    for one in asked:
        one.check(saved)
    measures = tuned_measures(run, step, asked)
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


def tuned_measures(run: Path, step: Which, asked: Sequence[FineTuning]) -> list[Measure]:
    """The figures of all tasks, and of several their macro score; each is written when it is there."""
    use_cores(min(one.batch or 16 for one in asked))
    trained, found = Trained.open(run, step), dict[str, list[Measure]]()
    for one in asked:
        found[one.task] = tuned_on(trained, one)
    measures = [measure for several in found.values() for measure in several]
    if len(asked) > 1:
        measures.append(macro_score(FineTuning.name, {task: several[0] for task, several in found.items()}))
        write_measures(trained.run.name, measures[-1:], RunFolder(run).measures_of(f"{FineTuning.name}-{MACRO}"))
    return measures


def tuned_on(trained: Trained, settings: FineTuning) -> list[Measure]:
    """The figures of one task: those that are there, or new ones, which are written with the epochs and all answers."""
    name, title = f"{settings.name}-{settings.task}", f"{trained.run.name}, step {trained.step}, {settings.task}"
    examples = settings.examples(trained.run)
    known = {"examples": examples.digest(), "from": examples.source.described}
    if made := finished(trained, settings, name, {"examples": known["examples"]}):
        return made
    began = time.perf_counter()
    with evaluation_progress(title, terminal(stderr=True)) as watch:
        found = settings.tuned(Subject(trained.run, trained.params), examples, watch)
    record = record_of(trained, trained.run, settings, time.perf_counter() - began)
    place = RunFolder(trained.folder)
    write_measures(trained.run.name, found.measures, place.measures_of(name))
    write_record(record | known | found.to_plain(), place.evaluation(name))
    return found.measures


def finished(trained: Trained, evaluation: Evaluation, name: str, known: Mapping[str, Any] | None = None) -> list[Measure]:
    """The figures of an evaluation that was made before, with the same settings, checkpoint and `known`; none otherwise."""
    place = RunFolder(trained.folder)
    there = object_or_none(place.evaluation(name)) or {}
    asked = record_of(trained, trained.run, evaluation, 0.0) | dict(known or {})
    is_same = all(there.get(key) == asked[key] for key in (*SAME, *(known or {})))
    file = place.measures_of(name)
    return [measure for _, measure in read_measures([file])] if is_same and file.is_file() else []


def macro_score(evaluation: str, scores: Mapping[str, Measure]) -> Measure:
    """The mean of scores by name, with an interval from theirs over the items; it takes the tasks as they are."""
    value, low, high = mean_interval([(one.value, one.low, one.high) for one in scores.values()])
    return Measure(evaluation, MACRO, value, len(scores), low, high, {"tasks": ",".join(scores)})
