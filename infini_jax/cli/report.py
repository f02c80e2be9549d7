"""`infini-jax report`: one page about studies, or about runs that belong to none."""

import os
from pathlib import Path

import tyro

from infini_jax.cli.output import terminal
from infini_jax.cli.progress import evaluation_progress
from infini_jax.errors import require
from infini_jax.study.study import noted_failures, study_in, write_tables


def report(folders: tyro.conf.Positional[tuple[Path, ...]], output: Path | None = None) -> None:
    """Write the report of studies or runs from their results, and print the table.

    Several folders are compared on one page. Examples: `infini-jax report results/quick`, `infini-jax report results/runs`

    Args:
      folders: folders of studies, of runs, or of several runs.
      output: folder of report.html and report-figures/. Default: the study's folder, or the one that holds them all.
    """
    from infini_jax.report import StudySource, terminal_table, write_report  # matplotlib takes a second to load
    from infini_jax.report.found import find_alone

    require(bool(folders), "folders", "there are none", "name the folder of a study or of runs, such as results/quick")
    console, sources, rows, failures = terminal(), [], [], []
    for folder in folders:
        alone = StudySource(folder)
        if alone.is_alone:
            found = find_alone(alone)
            sources.append(alone)
            rows.append(found.rows)
            failures.extend(found.missing)
            continue
        asked = study_in(folder)
        with asked.desk(folder).looked_at() as desk:
            rows.append(write_tables(asked, desk))  # a study that was stopped has finished rows and no table yet
            jobs = asked.jobs_on(desk)
        held = dict(asked.held_equal)
        sources.append(StudySource(folder, asked.question, held, asked.command, jobs, asked.ladder, asked.design))
        failures.extend(noted_failures(folder))
    with evaluation_progress("report", console) as watch:
        page = write_report(sources, output or Path(os.path.commonpath(folders)), watch)
    for finished in rows:
        console.print(terminal_table(finished))
    for failure in failures:
        console.print(f"failed: {failure.run}: {failure.error}", style="red")
    console.print(f"report: {page}", soft_wrap=True)
