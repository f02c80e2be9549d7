"""`python -m configs` writes the resolved configs and the descriptions of all options again."""

from pathlib import Path

from experiments import quick
from infini_jax.cli import described
from infini_jax.files import json_text

text = json_text({run.name: run.to_dict() for run in quick.study().runs}, indent=1)
(Path(__file__).parent / "quick.json").write_text(text + "\n")
described.store()
