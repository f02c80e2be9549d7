"""Launchers, which start the workers of a study, by name. A new launcher is one file and one row here.

A worker does the jobs that are missing in a study's folder and that no other worker does; the folder lies where all of them
see it. A stopped worker goes on from the last checkpoint, so that a launcher has to start workers and nothing else.
"""

from infini_jax.study.launch.base import Launcher, Resources
from infini_jax.study.launch.local import Local
from infini_jax.study.launch.sky import Sky
from infini_jax.study.launch.slurm import Slurm
from infini_jax.study.launch.xpk import Xpk

LAUNCHERS: dict[str, type[Launcher]] = {"local": Local, "slurm": Slurm, "sky": Sky, "xpk": Xpk}
"""Registry of launchers: name on the command line -> class. Add your own launcher here."""

__all__ = ["LAUNCHERS", "Launcher", "Resources"]
