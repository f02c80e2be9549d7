"""`infini-jax report`: the page of one study, or of several."""

import os
from pathlib import Path

import tyro

from infini_jax.cli.output import terminal
from infini_jax.cli.progress import evaluation_progress
from infini_jax.errors import require
from infini_jax.study.study import noted_failures, study_in, write_tables


def report(folders: tyro.conf.Positional[tuple[Path, ...]], output: Path | None = None) -> None:
    """Writes the report of one study, or of several head to head, from their results and prints the table.

    Example: `infini-jax report results/quick`

    Args:
      folders: folders of the studies' results.
      output: folder that gets report.html and report-figures/; by default the study's, of several the one that holds them all.
    """
    from infini_jax.report import StudySource, terminal_table, write_report  # matplotlib takes a second to load

    require(bool(folders), "folders", "there is none", "name the folder of a study, such as results/quick")
    console, sources, rows, failures = terminal(), [], [], []
    for folder in folders:
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
