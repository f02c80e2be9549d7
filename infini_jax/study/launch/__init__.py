"""Where the workers of a study run. A new launcher is one file and one row here.

A worker does what is missing of a study's folder and nobody else does; the folder lies where all of them see it. Whoever is
stopped goes on from the last checkpoint, so that a launcher has to start workers and nothing else.
"""

from infini_jax.study.launch.base import Launcher, Resources
from infini_jax.study.launch.local import Local
from infini_jax.study.launch.sky import Sky
from infini_jax.study.launch.slurm import Slurm
from infini_jax.study.launch.xpk import Xpk

LAUNCHERS: dict[str, type[Launcher]] = {"local": Local, "slurm": Slurm, "sky": Sky, "xpk": Xpk}

__all__ = ["LAUNCHERS", "Launcher", "Resources"]
