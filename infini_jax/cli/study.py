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
    """Does the runs of an experiment that are not done yet, side by side, and writes the report.

    Finished runs are kept and never run again: stop it when you like and call it again to go on. Examples:
    `infini-jax study quick`, `infini-jax study capacity_law --scale smoke --dry-run`

    Args:
      experiment: a name in experiments/ (such as quick), the path of a Python file with a function `study()`, or the folder of
        a study that was begun.
      scale: smoke (seconds, to see that it runs), cpu or accelerator, where the experiment has them.
      results: folder that gets <study>/ or <study>-<scale>/ with report.html, results.parquet, measures.parquet and the runs.
      jobs: workers at the same time; 0 is one for each of at most 4 CPU cores, and one where JAX finds an accelerator.
      launch: launcher of the workers: on this machine, queued by SLURM, or on machines of a cloud, for which a file is written
        and the command printed; or a launcher that the experiment's own file registers.
      resources: resources of each worker that is not on this machine.
      fleet: most runs that a worker trains side by side in one program: those that differ in seeds, rates and data alone. auto
        is as many as fit on an accelerator, and 1 on a CPU, where fleets do not pay.
      until: settled, or the number of the rung of the experiment's ladder up to which every run is done; without it as the
        experiment says. It is kept in the study's folder.
      ceiling: training FLOPs of the whole study above which no ladder is climbed and no rate added, 0 for none; kept, too.
      only: mechanisms to which the study is restricted, such as infini,memorizing; floor and ceiling are always there. The
        part has a folder of its own, and `infini-jax report` takes the folders of several parts.
      dry_run: prints what would be done, with its tokens, bytes and FLOPs, and what would be submitted, and stops.
      cancel: ends this study's workers on a scheduler, and stops.
      as_json: with --dry-run, prints one JSON object instead of tables.
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
        console.print(f"{file} was cut short and is made again", style="yellow", soft_wrap=True)
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
