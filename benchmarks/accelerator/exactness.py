"""A file of tests on the device, counted: `python -m benchmarks.accelerator.exactness --test attention`."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import tyro

from infini_jax.files import json_text

WORKERS = 8  # compiling takes longer than running, and shares the device
MISTAKES = 2  # pytest's exit status from which on no tests ran as they should


def main(test: str) -> None:
    """Runs tests/test_TEST.py without what is slow, and prints how many passed, failed and were skipped, and which failed."""
    several = min(WORKERS, os.cpu_count() or 1) if importlib.util.find_spec("xdist") else 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        asked = [f"tests/test_{test}.py", "-q", "-m", "not slow", f"--junitxml={report}"]
        ended = subprocess.run([sys.executable, "-m", "pytest", *asked, *(["-n", str(several)] if several else [])])
        if ended.returncode >= MISTAKES:
            sys.exit(ended.returncode)
        cases = list(ET.parse(report).iter("testcase"))
    from infini_jax.records.environment import environment  # asks for the device, which the tests have left

    bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    found = {"passed": len(cases) - len(bad) - skipped, "failed": len(bad), "skipped": skipped, "which": bad}
    print(json_text(found | environment()))


if __name__ == "__main__":
    tyro.cli(main)
