"""`infini-jax study`: does what is missing of an experiment, and writes its report."""

from pathlib import Path
from typing import Annotated

import tyro

from infini_jax.cli.output import AsJson, print_json, print_table, terminal
from infini_jax.cli.progress import study_progress
from infini_jax.cli.report import report
from infini_jax.errors import lookup, require, require_local
from infini_jax.records.folder import StudyFolder
from infini_jax.study.experiment import load_experiment
from infini_jax.study.fleets import fleet_size, fleets_described
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.spending import spending_plain, spending_table
from infini_jax.study.study import cut_short, missing_of, save_study, study_in

LauncherName = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(LAUNCHERS) + "}")]  # an experiment's file may add its own


def study(
    experiment: tyro.conf.Positional[str],
    scale: str = "",
    results: Path = Path("results"),
    jobs: int = 0,
    launch: LauncherName = "local",
    resources: Resources = Resources(),
    fleet: str = "1",
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
      dry_run: prints what would be done, with its tokens, bytes and FLOPs, and what would be submitted, and stops.
      cancel: ends this study's workers on a scheduler, and stops.
      as_json: with --dry-run, prints one JSON object instead of tables.
    """
    require(dry_run or not as_json, "json", "only a dry run is printed for scripts", "add --dry-run")
    require_local("experiment", experiment)
    console = terminal()
    if StudyFolder(Path(experiment)).study.exists():
        require(not scale, "scale", f"the study in {experiment} has its own", "leave --scale out")
        found, folder = study_in(Path(experiment)), Path(experiment)
    else:
        found = load_experiment(experiment, scale)
        folder = results / found.label
    size = fleet_size(fleet)
    launcher = lookup("launch", launch, LAUNCHERS)(jobs, resources, size)
    if cancel:
        console.print(launcher.cancel(folder), soft_wrap=True)
        return
    if as_json:
        print_json({"study": found.label, "runs": spending_plain(found), "workers": launcher.described(found, folder)})
        return
    if dry_run:
        print_table(console, spending_table(found))
        console.print(launcher.described(found, folder), soft_wrap=True)
        if said := fleets_described(missing_of(found, folder), size):
            console.print(said, soft_wrap=True)
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
