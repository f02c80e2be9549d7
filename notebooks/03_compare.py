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
# # Compare: what is recalled, by the bytes there are to remember in
#
# Any study: recall against bytes of memory at equal FLOPs, what was tried for it, and the settings and curves of each run.
# After `make study` this shows the quick study; before, the tables of a larger one that are kept in the repository. Change
# `STUDY` for another.

# %%
import dataclasses
import json
import os
from pathlib import Path

import altair as alt
import matplotlib.pyplot as plt
from IPython.display import display

from infini_jax.results import load, loss_against_bytes, recall_against_bytes, tasks, training_curves

# %matplotlib inline
plt.rcParams["figure.dpi"] = 80

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "docs" / "results").is_dir())
KNOWN = [ROOT / "results" / "quick", ROOT / "docs" / "results" / "mqar_pareto"]
STUDY = Path(os.environ.get("INFINI_JAX_STUDY") or next(one for one in KNOWN if (one / "results.parquet").exists()))

found = load(STUDY)
print(f"{STUDY.name}: {len(found.runs)} runs, {', '.join(tasks(found))}")

# %% [markdown]
# ## The picture
# A line a mechanism. Where several learning rates were tried, the one that was chosen on validation is drawn. Where the
# settings of the runs are there, a line shows chance.

# %%
task = tasks(found)[0]
recall_against_bytes(found, task)

# %% [markdown]
# Every trial of it as a table: what it held equal, what it gave up for it, how it did.

# %%
columns = [
    "task",
    "mechanism",
    "variant",
    "memory_bytes",
    "learning_rate",
    "seed",
    "steps",
    "flops_actual",
    "accuracy",
    "loss",
]
found.runs[columns].sort_values(columns[:6]).head(12)

# %%
equal = found.runs.groupby("task").flops_actual.agg(["min", "max"])
equal.assign(spread=equal["max"] / equal["min"] - 1)  # of the training FLOPs, which the budget holds equal

# %% [markdown]
# ## Interactive
# Choose a task and a seed below the figure, click mechanisms in the legend (with shift for several), click a point: its
# settings and its curve appear beside it. This needs a live notebook, or a page with JavaScript; the other figures are
# pictures.


# %%
def settings_of(config: str | None) -> str:
    """What a run was made of, in one line."""
    if not config:
        return "not kept in this folder"
    model, train = json.loads(config)["model"], json.loads(config)["train"]
    memory = ", ".join(f"{name} {value}" for name, value in model["memory"].items() if name not in ("kind", "layers"))
    return f"{memory}; segment {model['segment']}, width {model['d_model']}, {model['layers']} layers; batch {train['batch']}"


runs = found.runs.assign(
    label=(found.runs.mechanism + " " + found.runs.variant.fillna("")).str.strip(),
    KiB=found.runs.memory_bytes / 1024,
    settings=found.runs["config"].map(settings_of),
)
shown = ["run", "task", "label", "KiB", "accuracy", "loss", "learning_rate", "seed", "steps", "settings"]
curves = found.curves[found.curves.metric == "loss"].merge(runs[["run", "label"]], on="run")


def choice(name: str, values) -> alt.Parameter:
    """A list below the figure."""
    return alt.param(name, value=values[0], bind=alt.binding_select(options=values, name=f"{name} "))


by_task, by_seed = choice("task", sorted(runs.task.unique())), choice("seed", sorted(map(int, runs.seed.unique())))
by_label = alt.selection_point(fields=["label"], bind="legend")
clicked = alt.selection_point(fields=["run"], on="click", empty=False)

points = (
    alt.Chart(runs[shown])
    .transform_filter((alt.datum.task == by_task) & (alt.datum.seed == by_seed))
    .mark_point(filled=True)
    .encode(
        x=alt.X("KiB", scale=alt.Scale(type="symlog"), title="memory of a sequence, KiB"),
        y=alt.Y("accuracy", axis=alt.Axis(format="%"), title="right answers"),
        color=alt.Color("label", title="mechanism", scale=alt.Scale(scheme="tableau10")),
        shape=alt.Shape("label", title="mechanism"),
        opacity=alt.when(by_label).then(alt.value(0.9)).otherwise(alt.value(0.1)),
        size=alt.when(clicked).then(alt.value(240)).otherwise(alt.value(90)),
        tooltip=shown,
    )
    .add_params(by_task, by_seed, by_label, clicked)
    .properties(width=380, height=280, title="click a point")
)
curve = (
    alt.Chart(curves[["run", "tokens", "value"]])
    .transform_filter(clicked)
    .mark_line()
    .encode(x=alt.X("tokens", title="tokens trained on"), y=alt.Y("value", title="training loss, nats"))
    .properties(width=300, height=180, title="how it learned")
)
words = (
    alt.Chart(runs[["run", "settings"]])
    .transform_filter(clicked)
    .mark_text(align="left", limit=620)
    .encode(y=alt.Y("run", title=None), x=alt.value(0), text="settings")
    .properties(width=300, title="its settings")
)
points | (curve & words)

# %% [markdown]
# ## How they learned
# Training curves of the runs in the picture, where the study's folder has the logs of its runs.

# %%
if len(found.curves):
    display(training_curves(found, "loss", task))
else:
    print("This folder holds tables only; `infini-jax study` leaves the logs of the runs too.")

# %% [markdown]
# ## Any part of it
# The tables are ordinary ones: take out rows, and the same functions draw what is left.

# %%
few = dataclasses.replace(found, runs=found.runs[found.runs.mechanism.isin(["infini", "memorizing", "local"])])
loss_against_bytes(few, task)

# %%
measured = found.measures.merge(found.runs[["run", "mechanism", "memory_bytes"]], on="run")
measured[["mechanism", "memory_bytes", "eval", "metric", "value", "low", "high", "labels"]].head(8)
