"""`python -m configs` writes the resolved configs again."""

import json
from pathlib import Path

from experiments import quick

text = json.dumps({run.name: run.to_dict() for run in quick.study().runs}, indent=1)
(Path(__file__).parent / "quick.json").write_text(text + "\n")
