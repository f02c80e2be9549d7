"""Trackers that a run's metrics can be copied to, behind one interface. Each imports its library when it is opened.

A run that goes on from a checkpoint goes on in its tracker, and the steps after the checkpoint come again, as in
metrics.jsonl: TensorBoard hides the earlier ones; the others cannot take them back and have two values at those steps.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """The run whose metrics are copied.

    Attributes:
      id: the run's id in the trackers, the same whenever the run goes on.
      name: name of the run.
      project: project of the runs that belong together.
      folder: folder of the run.
      config: settings of the run as plain values.
      after: step from which the run goes on, 0 for a new run.
    """

    id: str
    name: str
    project: str
    folder: Path
    config: dict[str, Any]
    after: int


class Mirror(Protocol):
    """Interface of a tracker. All calls come from one thread, which may be kept waiting; exceptions are reported, never fatal.

    Attributes:
      needs: the modules that the tracker's extra installs.
    """

    needs: ClassVar[tuple[str, ...]]

    def open(self, source: Origin) -> None:
        """Begins the run, or goes on with it."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Copies the metrics of a step."""

    def close(self) -> None:
        """Ends what `open` began; everything is written when this returns."""


class TensorBoard:
    """The tracker TensorBoard: event files in <run>/tensorboard, written by tensorboardX, which needs no TensorFlow."""

    needs = ("tensorboardX",)

    def open(self, source: Origin) -> None:
        """Opens an event file that makes readers drop their values of the steps that come again."""
        from tensorboardX import SummaryWriter

        # a reader drops what it has of the steps from purge_step on; the suffix keeps two starts in one second apart
        suffix = f".{os.getpid()}.{time.monotonic_ns()}"
        folder = str(source.folder / "tensorboard")
        self.writer = SummaryWriter(folder, purge_step=source.after + 1, flush_secs=10, filename_suffix=suffix)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step as scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the event file."""
        self.writer.close()


class WandB:
    """The tracker Weights & Biases. Without a login or a network its files stay in <run>/wandb until `wandb sync` sends them.

    The environment variables of wandb (WANDB_MODE, WANDB_ENTITY, ...) apply.
    """

    needs = ("wandb",)

    def open(self, source: Origin) -> None:
        """Begins or resumes the run, offline where there is no login or no network."""
        import wandb

        mode, trouble = os.environ.get("WANDB_MODE", "online"), None
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode, trouble = "offline", "no login was found"
        try:
            self.run = self._init(source, mode)
        except wandb.errors.CommError:
            wandb.teardown()  # its own process takes the id for used
            self.run, trouble = self._init(source, "offline"), "the service cannot be reached"
        if trouble:
            files = source.folder / "wandb" / f"offline-run-*-{source.id}"
            logger.warning("mirror wandb: %s, so the run is kept: wandb sync %s", trouble, files)
        # wandb's own steps may not go back to a checkpoint; ours are a metric, and the axis of all others
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    @staticmethod
    def _init(source: Origin, mode: str) -> Any:
        import wandb

        return wandb.init(
            project=source.project,
            id=source.id,
            name=source.name,
            config=source.config,
            dir=source.folder,
            mode=mode,
            resume="allow",  # noted in the files of an offline run too, for `wandb sync`
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),  # it would read along what the terminal shows
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step, with the step as one of them."""
        self.run.log({"step": step, **values})

    def close(self) -> None:
        """Finishes the run."""
        self.run.finish()


class Trackio:
    """The tracker trackio: a local database (TRACKIO_DIR), or a Space where TRACKIO_SPACE_ID names one."""

    needs = ("trackio",)

    def open(self, source: Origin) -> None:
        """Begins or resumes the run, under its id as its name."""
        import trackio

        # a run goes on by its name, which therefore has to be the id
        self.run = trackio.init(
            source.project,
            source.id,
            config={"name": source.name, **source.config},
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self.run.finish()


class MLflow:
    """The tracker MLflow: the server in MLFLOW_TRACKING_URI, or the database mlflow.db in the current folder."""

    needs = ("mlflow", "sqlalchemy", "alembic")
    TAG = "infini_jax.id"

    def open(self, source: Origin) -> None:
        """Finds the run by its tag and marks it as running, or creates it with its settings."""
        from mlflow import MlflowClient

        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(source.project)
        experiment = found.experiment_id if found else self.client.create_experiment(source.project)
        runs = self.client.search_runs([experiment], f"tags.`{self.TAG}` = '{source.id}'")
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(experiment, run_name=source.name, tags={self.TAG: source.id}).info.run_id
        for name, value in settings(source.config):
            self.client.log_param(self.run, name, value)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step with the time."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        """Marks the run as ended."""
        self.client.set_terminated(self.run)


def settings(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and values of nested plain values, such as ("model.layers", 2)."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio, "mlflow": MLflow}
"""Registry of trackers: name on the command line -> class."""
