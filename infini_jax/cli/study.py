"""`infini-jax study`: does what is missing of an experiment, and writes its report."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from infini_jax.cli.output import AsJson, print_json, print_table, terminal
from infini_jax.cli.progress import study_progress
from infini_jax.cli.report import report
from infini_jax.errors import ConfigError, lookup, require, require_local
from infini_jax.records.folder import StudyFolder
from infini_jax.study.experiment import load_experiment
from infini_jax.study.fleets import fleet_size, fleets_described
from infini_jax.study.ladder import until_of
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.spending import range_described, range_plain, spending_plain, spending_table
from infini_jax.study.study import Study, check_origins, cut_short, missing_of, save_study, study_in

LauncherName = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(LAUNCHERS) + "}")]  # an experiment's file may add its own


def study(
    experiment: tyro.conf.Positional[str],
    scale: str = "",
    results: Path = Path("results"),
    jobs: int = 0,
    launch: LauncherName = "local",
    resources: Resources = Resources(),
    fleet: str = "1",
    until: str = "",
    ceiling: float | None = None,
    only: str = "",
    dry_run: bool = False,
    cancel: bool = False,
    as_json: AsJson = False,
) -> None:
    """Run the jobs of an experiment that are missing, in parallel, and write the report.

    Finished runs are kept and never run again: interrupt at any time, and repeat the command to continue. Examples:
    `infini-jax study quick`, `infini-jax study capacity_law --scale smoke --dry-run`

    Args:
      experiment: name in experiments/ (such as quick), Python file with a function `study()`, or folder of a study that was
        started.
      scale: scale of the experiment, if it has several: smoke (seconds, a trial run), cpu or accelerator.
      results: parent of the study's folder, <study>/ or <study>-<scale>/, with report.html, results.parquet, measures.parquet
        and the runs.
      jobs: number of parallel workers; 0 is one per CPU core, at most 4, or one if JAX finds an accelerator.
      launch: launcher of the workers: local, slurm, or a cloud launcher, which writes a file and prints the command to submit
        it. The experiment's file may register more.
      resources: resources per worker, except on this machine.
      fleet: largest number of runs trained side by side in one program by a worker; they may differ in seed, learning rate and
        data only. auto is as many as fit on an accelerator, and 1 on a CPU, where fleets do not pay off.
      until: rung of the experiment's ladder up to which all runs are trained: its number, or settled. Default: the
        experiment's. Stored in the study's folder.
      ceiling: training FLOPs of the whole study beyond which no ladder is climbed and no learning rate added; 0 is no limit.
        Stored in the study's folder.
      only: comma-separated mechanisms, such as infini,memorizing; floor and ceiling are always included. Each selection has
        its own folder, and `infini-jax report` combines several.
      dry_run: print the planned runs with tokens, bytes and FLOPs, and what would be submitted, and exit.
      cancel: cancel this study's workers on the scheduler, and exit.
      as_json: with --dry-run, print one JSON object instead of tables.
    """
    require(dry_run or not as_json, "json", "only a dry run is printed for scripts", "add --dry-run")
    require_local("experiment", experiment)
    console = terminal()
    if StudyFolder(Path(experiment)).study.exists():
        require(not scale, "scale", f"the study in {experiment} has its own", "leave --scale out")
        require(not only, "only", f"the study in {experiment} has its own part", "leave --only out")
        found, folder = study_in(Path(experiment)), Path(experiment)
    else:
        found = load_experiment(experiment, scale)
        found = found.restricted(*only.split(",")) if only else found
        folder = results / found.label
    found, size = limited(found, until, ceiling), fleet_size(fleet)
    launcher = lookup("launch", launch, LAUNCHERS)(jobs, resources, size)
    if cancel:
        console.print(launcher.cancel(folder), soft_wrap=True)
        return
    check_origins(found, folder)
    if as_json:
        said = {"study": found.label, "runs": spending_plain(found), **range_plain(found)}
        print_json({**said, "workers": launcher.described(found, folder)})
        return
    if dry_run:
        print_table(console, spending_table(found))
        lines = (launcher.described(found, folder), fleets_described(missing_of(found, folder), size), range_described(found))
        for line in filter(None, lines):
            console.print(line, soft_wrap=True)
        return
    save_study(found, folder)
    for file in cut_short(found, folder):
        console.print(f"{file} was incomplete and is made again", style="yellow", soft_wrap=True)
    with study_progress(found, console) as watch:
        left = launcher.run(found, folder, watch)
    if left:
        console.print(left, soft_wrap=True)
        return
    report((folder,))


def limited(found: Study, until: str, ceiling: float | None) -> Study:
    """A study with other limits of its ladder, where any are given. Raises `ConfigError` where it has no ladder."""
    given: dict[str, Any] = {}
    if until:
        given["until"] = until_of(until)
    if ceiling is not None:
        given["ceiling"] = ceiling
    if not given:
        return found
    if found.ladder is None:
        raise ConfigError(min(given), f"the study {found.label} has no ladder", "leave it out, or give the experiment one")
    return dataclasses.replace(found, ladder=dataclasses.replace(found.ladder, **given))
