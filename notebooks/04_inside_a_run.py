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
# # Inside a run: does it use its memory?
#
# A trained run holds more than a score: its gates, what its memory is worth at each place of a document, and which words
# gained from it. This notebook trains a very small model for a few seconds so that there is something to look at; set `RUN`
# to a folder of your own (`results/runs/NAME` of a model that was trained on text) and everything below is about that one.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

from infini_jax.config import CONFIG_FILE, Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.gains import Gains
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.measuring import measure_missing
from infini_jax.memory.infini import InfiniConfig
from infini_jax.results import gates, load, training_curves
from infini_jax.run import execute

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})

RUN = None  # or the folder of a run

if RUN is None:
    model = ModelConfig(vocab=256, layers=2, d_model=32, heads=2, segment=32, memory=InfiniConfig())
    train = TrainConfig(batch=4, sequence=256, learning_rate=1e-2, gate_learning_rate=0.1, log_every=5)
    run = RunConfig(name="small", model=model, data=StdlibConfig(), train=train, budget=Budget("steps", 60))
    RUN = Path(tempfile.mkdtemp()) / run.name
    execute(run, RUN, study="")
run = RunConfig.from_dict(json.loads((RUN / CONFIG_FILE).read_text()))
print(f"{run.name}: {run.model.mechanism}, {run.model.memory_bytes / 1024:.1f} KiB of memory a sequence")

# %% [markdown]
# What is to be measured of it, from its newest checkpoint; what was measured before is not measured again.


# %%
def failed(evaluation, error) -> None:
    print(f"{evaluation.name}: {error}")


asked = (
    LanguageEvaluation(documents=4, tokens=1024, rows=4),
    Gains(documents=4, tokens=1024, rows=4, counted=1 << 16, draws=100),
    GateEvaluation(),
)
measure_missing(RUN, run, asked, failed)
found = load(RUN)
labels = pd.json_normalize(found.measures.labels.map(json.loads).tolist())
figures = pd.concat([found.measures.drop(columns=["folder", "run", "labels"]), labels], axis=1)
figures.groupby(["eval", "metric"]).size()

# %% [markdown]
# ## How it learned

# %%
training_curves(found, "loss")

# %% [markdown]
# ## Gates
# The share of the memory in each head's output, by layer; one half is where they began. A gate near one half is no sign
# that the memory is not read ([findings](../docs/findings.md)).

# %%
if (found.measures.metric == "gate").any():
    display(gates(found))

# %% [markdown]
# ## What the memory is worth, by place in the document
# The same held-out documents three times: with the memory carried along; with the memory emptied at every segment; with the
# memory of *another* document of the same age. Where the last two cost nothing, the memory holds nothing of this document
# that the model uses.

# %%
by_place = figures[figures.metric == "loss_by_position"].pivot(index="from", columns="condition", values="value")
figure, panel = plt.subplots(figsize=(6.5, 3), layout="constrained")
for marker, condition in zip("o^s", by_place.columns, strict=False):
    panel.plot(by_place.index, by_place[condition], marker=marker, label=condition)
panel.set(xlabel="place in the document, tokens", ylabel="held-out nats a token", xscale="log")
panel.legend()

# %%
worth = figures[figures.metric == "loss"].set_index("condition")[["value", "low", "high"]]
worth.assign(more_than_carried=worth.value - worth.value["carried"])

# %% [markdown]
# ## Who gained
# Words in classes: how often they are used in general, how long ago they were last used in this document. Gain is nats a
# token less than with an empty memory, or with another document's. The papers' claim is that rare words which stood far
# back gain most; here a model of 60 steps shows how it is measured, not that it is so.

# %%
gained = figures[(figures["eval"] == "gains") & figures.value.notna()]
table = gained.pivot_table(index=["by", "class"], columns=["metric", "control"], values="value", sort=False)
table.head(14).round(3)
