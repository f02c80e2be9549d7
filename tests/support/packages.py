"""Small distributions as pip leaves them in site-packages: modules, and a dist-info with entry points."""

from pathlib import Path

from infini_jax.memory.registry import GROUP
from tests.support.documentation import ROOT, blocks_of

BLOCKS = blocks_of((ROOT / "docs" / "adding.md").read_text(), "adding.md")
FADING = next(block.text for block in BLOCKS if block.language == "python")
"""A whole mechanism: the first block of the page that tells how one is added."""


def install(site: Path, name: str, source: str, **rows: str) -> None:
    """A distribution with one module of the same name; `rows` are its entry points: name of a mechanism -> class."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "\n".join(f"{row} = {module}:{kind}" for row, kind in rows.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


def install_fading(site: Path) -> None:
    """The page's mechanism as a package of its own, which registers nothing itself."""
    source = FADING.replace('MECHANISMS["fading"] = Fading', "").replace("from infini_jax.memory import MECHANISMS\n", "")
    install(site, "fading-memory", source, fading="Fading")
