"""`python -m configs` writes the resolved configs again."""

from pathlib import Path

from experiments import quick
from infini_jax.files import json_text

text = json_text({run.name: run.to_dict() for run in quick.study().runs}, indent=1)
(Path(__file__).parent / "quick.json").write_text(text + "\n")
