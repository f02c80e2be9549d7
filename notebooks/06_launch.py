# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Launch: plan before you queue, stop at any time
#
# This notebook shows what a run needs on devices that are not present, what a study would run and submit, and a run that is
# stopped in the middle and resumes with the same numbers. The commands are shell commands: `infini-jax ...`.

# %%
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import matplotlib.pyplot as plt

from infini_jax.results.notebook import show, use_look

use_look()
HERE = Path(tempfile.mkdtemp())
PROGRAM = [sys.executable, "-c", "import sys; from infini_jax.cli.main import main; main(sys.argv[1:])"]


def infini_jax(command: str) -> str:
    """What the command says."""
    place = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    done = subprocess.run([*PROGRAM, *shlex.split(command)], capture_output=True, text=True, cwd=HERE, env=place, check=False)
    return done.stdout or done.stderr


# %% [markdown]
# ## Plan
# One billion parameters on eight H100s: bytes, FLOPs and hours, counted from the settings alone. With the compiler of the
# devices installed (`infini_jax[cuda]`, or `infini_jax[tpu]` for topologies such as `v5p:4x4x4`), the same command compiles
# the real training step for them and says whether it fits.

# %%
print(infini_jax("plan 1b --mechanism infini --topology h100:8 --sharding.rules fsdp"))

# %% [markdown]
# ## Dry run
# A study before it runs: every job with its bytes, tokens and FLOPs, and what a scheduler would get.

# %%
asked = "study gates --scale smoke --launch slurm --jobs 2 --resources.cpus 2 --resources.partition short --dry-run"
print("\n".join(infini_jax(asked).splitlines()[-14:]))

# %% [markdown]
# ## Stop and resume
# A small run is ended by SIGTERM, as a scheduler does it. It saves and exits with code 75, which means "try again later".
# The same command resumes it.

# %%
TINY = (
    "train infini python_stdlib --model.vocab 256 --model.layers 1 --model.d-model 16 --model.segment 16 --train.batch 2 "
    "--train.sequence 64 --train.log-every 1 --budget.unit steps --budget.amount 400 --evaluation.documents 1 "
    "--evaluation.tokens 64 --evaluation.conditions carried --name {name}"
)


def metrics(name: str) -> list[dict]:
    """Lines of a run's log about training."""
    file = HERE / "results" / "runs" / name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []
    return [line for line in lines if "loss" in line]


command = [*PROGRAM, *TINY.format(name="stopped").split()]
process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
while len(metrics("stopped")) < 50 and process.poll() is None:
    time.sleep(0.05)
process.send_signal(signal.SIGTERM)
said = process.communicate()[1].decode()
print(textwrap.fill(f"code {process.returncode}: {said.strip()}", 100, break_on_hyphens=False))
stopped_at = metrics("stopped")[-1]["step"]

# %%
infini_jax(TINY.format(name="stopped"))
infini_jax(TINY.format(name="whole"))
again, whole = ([line["loss"] for line in metrics(name)] for name in ("stopped", "whole"))
print(f"{len(again)} steps, {len(again) - stopped_at} of them after the stop; equal to an undisturbed run: {again == whole}")
assert again == whole

# %%
figure, panel = plt.subplots(figsize=(6, 2.8), layout="constrained")
panel.plot(range(1, len(whole) + 1), whole, label="undisturbed", linewidth=3, alpha=0.35)
panel.plot(range(1, len(again) + 1), again, label="stopped and gone on", linewidth=1)
panel.axvline(stopped_at, linestyle=":", color="C2", label="here it was stopped")
panel.set(xlabel="step", ylabel="training loss, nats")
figure.legend(loc="outside lower center", ncols=3)
show(figure, "Training loss of both runs, one on the other, and a dotted upright line where the first was stopped.")
