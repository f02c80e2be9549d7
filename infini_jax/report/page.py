"""The page itself: findings, figures, tables, what is missing, and how to remake it."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from infini_jax.evals.base import Watch, unwatched
from infini_jax.files import make_folder, replaced_at_once, write_at_once
from infini_jax.records.folder import StudyFolder
from infini_jax.records.rows import Row
from infini_jax.report.behind import behind
from infini_jax.report.checks import unchecked, warnings
from infini_jax.report.data import runs_behind
from infini_jax.report.effects import effects_table
from infini_jax.report.figures import FIGURES
from infini_jax.report.figures.ladder import score_against_flops
from infini_jax.report.found import Found, StudySource, by_task, find_each, joined
from infini_jax.report.limits import limits
from infini_jax.report.looks import styles_of
from infini_jax.report.parameters import parameters_table
from infini_jax.report.parts import Drawn, NotMeasured, Table, seeds_of
from infini_jax.report.plots import COLUMNS, drawing, save_pdf, svg
from infini_jax.report.sections import mechanisms, provenance, same_settings, task_view
from infini_jax.report.settled import only_top, rate_sentences, settled_sentences
from infini_jax.report.slopes import slopes_table
from infini_jax.report.summary import Climb
from infini_jax.report.tables import anchors_table, blimp_table, echo_table, finetune_table, passkey_tables, targets_table
from infini_jax.report.trials import only_chosen, trials_table
from infini_jax.report.verdicts import predictions_table

PICTURED = ("figure", "curves")  # what of a task's view are figures, or None


def write_report(sources: Sequence[StudySource], folder: Path, watch: Watch = unwatched) -> Path:
    """Writes `report.html` into `folder`, at once or not at all, and returns its path.

    The page's figures lie beside it in report-figures/: SVG, PDF one and two columns wide, and the runs behind them as CSV.

    Args:
      sources: the studies on the page; with several, runs of different studies are never pooled.
      folder: where the page is written.
      watch: function that gets the number of figures saved so far, and the number of all.

    Raises:
      ConfigError: a study's folder has no finished run.
    """
    each, place = find_each(sources), StudyFolder(folder)
    tried = joined([source.folder for source in sources], each)
    climbed = only_chosen(tried)
    found = only_top(climbed)
    styles = styles_of(found.rows)
    on_rungs = by_task(climbed.rows, climbed.configs)
    tasks = [
        task_view(task, rows, found, styles, climb_of(on_rungs.get(task, []), sources))
        for task, rows in by_task(found.rows, found.configs).items()
    ]
    made = [one for figure in FIGURES for one in figure(found, styles)] + score_against_flops(climbed, styles)
    at_rates = [only_chosen(one) for one in each]
    effects = effects_table(sources, at_rates)
    readings = [slopes_table(climbed), parameters_table(found)]
    tables = [*readings, *passkey_tables(found), echo_table(found), targets_table(found), blimp_table(found)]
    tables += [finetune_table(found), anchors_table(found)]
    tables += [one for one in made if isinstance(one, Table)]
    trials, predicted = trials_table(tried), predictions_table(sources, [only_top(one) for one in each])
    count = sum(task[name] is not None for task in tasks for name in PICTURED) + sum(isinstance(one, Drawn) for one in made)
    shown = Pictures(place.figures, found, lambda done: watch(done, count))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("infini_jax.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = dict(
        studies=list(dict.fromkeys(row.study for row in found.rows)),
        questions=list(dict.fromkeys(filter(None, (source.question for source in sources)))),
        commands=found.all_commands,
        warnings=warnings(found),
        limits=limits(sources, at_rates),
        missing=found.missing,
        runs=len(tried.rows),
        settled=[*settled_sentences(sources, at_rates), *rate_sentences(found.rows)],
        tasks=[task | {name: task[name] and shown(task[name]) for name in PICTURED} for task in tasks],
        figures=[shown(one) for one in made if isinstance(one, Drawn)],
        predictions=predicted if isinstance(predicted, Table) else None,
        effects=effects if isinstance(effects, Table) else None,
        tables=[one for one in tables if isinstance(one, Table)],
        trials=trials if isinstance(trials, Table) else None,
        not_measured=[
            one for one in (*made, *tables, trials, predicted, effects, *unchecked(found)) if isinstance(one, NotMeasured)
        ],
        mechanisms=mechanisms(found.rows),
        held_equal=held_equal(sources),
        settings=same_settings(found),
        provenance=provenance(tried.rows),
    )
    page = environment.get_template("report.html.j2").render(parts, contents=contents_of(parts))
    make_folder(folder)
    write_at_once(page, place.report)
    return place.report


class Pictures:
    """A function that saves a figure for a paper and returns what the page needs to show it.

    `watch` is told how many figures are saved so far.
    """

    def __init__(self, folder: Path, found: Found, watch: Callable[[int], None]):
        self.folder, self.found, self.watch, self.names = folder, found, watch, set[str]()

    def __call__(self, drawn: Drawn) -> dict[str, Any]:
        """Saves a figure as SVG and PDF, and the runs behind it, and returns its variables for the page's template."""
        name = unlike(slug(drawn.identity), self.names)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = drawing(drawn.figure)
        write_at_once(text, self.folder / f"{name}.svg")
        for ending, width in COLUMNS.items():
            with replaced_at_once(self.folder / f"{name}{ending}.pdf") as partial:
                save_pdf(drawn.figure, partial, width)
        write_at_once(runs_behind(drawn.rows), self.folder / f"{name}.csv")
        self.names.add(name)
        self.watch(len(self.names))
        return {
            "identity": name,
            "title": drawn.title,
            "picture": Markup(svg(text, name, drawn.title, drawn.alternative)),
            "caption": drawn.caption,
            "seeds": "; ".join(filter(None, (str(behind("", drawn.rows)), seeds_of(drawn.rows)))),
            "commands": self.found.commands_of(drawn.rows),
            "file": f"{self.folder.name}/{name}",
            "table": drawn.table,
        }


def slug(text: str) -> str:
    """A text as a name for an element of the page and for a file."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")


def unlike(name: str, taken: set[str]) -> str:
    """A name that no other has, also where case does not tell files apart: itself, or with the first number that is free."""
    small = {one.lower() for one in taken}
    each = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in each if one.lower() not in small)


SECTIONS = {
    "missing": "Missing runs",
    "limits": "What this page cannot say",
    "found": "What was found",
    "settled": "Settled or not",
    "predictions": "Predictions",
    "effects": "Effects of factors",
    "figures": "Figures",
    "tables": "Tables",
    "training": "Training",
    "numbers": "All numbers",
    "gates": "Gates",
    "trials": "Trials",
    "unmeasured": "Not measured",
    "equal": "Held equal",
    "made": "Made with",
    "remake": "How to remake it",
}


def contents_of(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has, in order: (id, name)."""
    of_tasks, others = {"training": "curves", "gates": "gates"}, {"unmeasured": "not_measured"}
    lacks = {name for name in SECTIONS if not parts.get(others.get(name, name), True)}
    lacks |= {name for name, of in of_tasks.items() if not any(task[of] for task in parts["tasks"])}
    return [(name, said) for name, said in SECTIONS.items() if name not in lacks]


def climb_of(rows: Sequence[Row], sources: Sequence[StudySource]) -> Climb:
    """A task's rows on its ladder, where the page is of one study that has one and the task is trained."""
    is_trained = any(row.learning_rate is not None for row in rows)
    return Climb(tuple(rows), sources[0].ladder if len(sources) == 1 and is_trained else None)


def held_equal(sources: Sequence[StudySource]) -> dict[str, str]:
    """The settings that the studies kept the same: name -> value; with several studies, names begin with the folder."""
    if len(sources) == 1:
        return dict(sources[0].held_equal)
    return {f"{source.folder.name}: {name}": value for source in sources for name, value in source.held_equal.items()}
