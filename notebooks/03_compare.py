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

from infini_jax.report.looks import label_of, styles_of
from infini_jax.results import is_chosen, load, loss_against_bytes, recall_against_bytes, tasks, training_curves
from infini_jax.results.notebook import show

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "docs" / "results").is_dir())
KNOWN = [ROOT / "results" / "quick", ROOT / "docs" / "results" / "mqar_pareto"]
STUDY = Path(os.environ.get("INFINI_JAX_STUDY") or next(one for one in KNOWN if (one / "results.parquet").exists()))

found = load(STUDY)
print(f"{STUDY.name}: {len(found.runs)} runs, {', '.join(tasks(found))}")

# %% [markdown]
# ## The picture
# A line a mechanism through the medians over seeds. Where several learning rates were tried, the one that was chosen on
# validation is drawn. Where the settings of the runs are there, a line shows chance.

# %%
for task in tasks(found):
    show(recall_against_bytes(found, task), f"{task}: share of right answers against the memory of a sequence, every seed.")

# %% [markdown]
# What was held equal: training FLOPs, which are counted.

# %%
equal = found.runs.groupby("task").flops_actual.agg(["min", "max"])
equal.assign(spread=equal["max"] / equal["min"] - 1)

# %% [markdown]
# And what was tried: a row a run.

# %%
columns = ["task", "mechanism", "variant", "memory_bytes", "learning_rate", "seed", "steps", "accuracy", "loss"]
found.runs[columns].assign(chosen=is_chosen(found)).sort_values(columns[:6]).head(9)

# %% [markdown]
# ## Interactive
# Choose below the figure: task, score, seed, and whether trials of other learning rates are shown. Click mechanisms in the
# legend (with shift for several). Click a point: its settings and its curve appear beside it. It works in a live notebook
# and on any page with JavaScript, such as that of `jupyter nbconvert --to html`; where you see no figure, those above are
# pictures of the same numbers.


# %%
def settings_of(run) -> str:
    """What a run was made of, a line for each part."""
    rate = "nothing learned" if run.learning_rate != run.learning_rate else f"learning rate {run.learning_rate:g}"
    lines = [f"{run.label}, seed {run.seed}", f"{rate}, {run.steps} steps, {run.flops_actual:.3g} FLOPs"]
    config = json.loads(run.config) if isinstance(run.config, str) else {}
    if not config:
        lines.append("(its other settings are not kept in this folder)")
    elif "model" in config:
        model, train = config["model"], config["train"]
        lines.append(f"layers {model['layers']}, width {model['d_model']}, segment {model['segment']}, batch {train['batch']}")
        lines += [f"{name}: {value}" for name, value in model["memory"].items() if name not in ("kind", "layers")]
    return "\n".join(lines)


runs = found.runs.fillna({"variant": ""}).assign(KiB=found.runs.memory_bytes / 1024, chosen=is_chosen(found))
styles = styles_of(list(runs.itertuples()))  # colours and markers as in the pictures
runs["label"] = [label_of(series) for series in zip(runs.mechanism, runs.variant, strict=True)]
runs["settings"] = [settings_of(run) for run in runs.itertuples()]
curves = found.curves[found.curves.metric == "loss"][["run", "tokens", "value"]]

# %%
# Markers of matplotlib as Vega names them, or as paths within a square from -1 to 1.
SHAPES = {"o": "circle", "s": "square", "D": "diamond", "P": "cross"}
SHAPES |= {"^": "triangle-up", "v": "triangle-down", "<": "triangle-left", ">": "triangle-right"}
SHAPES |= {
    "X": "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "*": "M0,-1L.24,-.32L.95,-.31L.38,.12L.59,.81L0,.4L-.59,.81L-.38,.12L-.95,-.31L-.24,-.32Z",
}


def choice(name: str, options: list) -> alt.Parameter:
    """A list below the figure."""
    return alt.param(name, value=options[0], bind=alt.binding_select(options=options, name=f"{name} "))


by_task = choice("task", sorted(runs.task.unique()))
score = choice("score", ["right answers, %", "held-out loss, nats"])
by_seed = choice("seed", ["all", *sorted(map(int, runs.seed.unique()))])
rates = choice("rates", ["chosen", "all"])
by_label = alt.selection_point(fields=["label"], bind="legend")
clicked = alt.selection_point(fields=["run"], on="click", empty=False)

labels = [label_of(series) for series in styles]
colours = alt.Scale(domain=labels, range=[style.colour for style in styles.values()])
shapes = alt.Scale(domain=labels, range=[SHAPES[style.marker] for style in styles.values()])
bytes_axis = alt.Scale(type="log", base=2) if runs.KiB.min() > 0 else alt.Scale(type="symlog")
key = alt.Legend(orient="bottom", columns=4, labelLimit=220)

points = (
    alt.Chart(runs[["run", "task", "label", "KiB", "accuracy", "loss", "learning_rate", "seed", "steps", "chosen"]])
    .transform_filter("datum.task == task && (seed == 'all' || datum.seed == seed) && (rates == 'all' || datum.chosen)")
    .transform_calculate(shown="score == 'held-out loss, nats' ? datum.loss : 100 * datum.accuracy")
    .mark_point(filled=True)
    .encode(
        x=alt.X("KiB:Q", scale=bytes_axis, title="memory of a sequence, KiB"),
        y=alt.Y("shown:Q", title=None),
        color=alt.Color("label:N", title="mechanism", scale=colours, legend=key),
        shape=alt.Shape("label:N", title="mechanism", scale=shapes, legend=key),
        opacity=alt.when(by_label).then(alt.value(0.9)).otherwise(alt.value(0.1)),
        size=alt.when(clicked).then(alt.value(300)).otherwise(alt.value(100)),
        tooltip=["run", "KiB", "accuracy", "loss", "learning_rate", "seed", "steps"],
    )
    .add_params(by_task, score, by_seed, rates, by_label, clicked)
    .properties(width=380, height=320, title=alt.TitleParams(alt.expr("score + ': click a point'"), anchor="start"))
)
curve = (
    alt.Chart(curves)
    .transform_filter(clicked)
    .mark_line(color="#0072B2")
    .encode(
        x=alt.X("tokens:Q", title="tokens trained on"),
        y=alt.Y("value:Q", title="training loss, nats", scale=alt.Scale(zero=False)),
    )
    .properties(width=260, height=150, title=alt.TitleParams("how it learned", anchor="start"))
)
words = (
    alt.Chart(runs[["run", "settings"]])
    .transform_filter(clicked)
    .mark_text(align="left", baseline="top", lineBreak="\n", fontSize=11)
    .encode(text="settings:N", x=alt.value(0), y=alt.value(0))
    .properties(width=260, height=150, title=alt.TitleParams("its settings", anchor="start"))
)
alt.hconcat(points, words & curve if len(curves) else words).properties(
    description="Score against bytes of memory, a point a run, with filters by task, seed and mechanism."
)

# %% [markdown]
# ## How they learned
# Training curves of the runs in the picture, where the study's folder has the logs of its runs.

# %%
if len(found.curves):
    for task in tasks(found):
        show(training_curves(found, "loss", task), f"{task}: training loss of every run; the thinner, the smaller the memory.")
else:
    print("This folder holds tables only; `infini-jax study` leaves the logs of the runs too.")

# %% [markdown]
# ## Any part of it
# The tables are ordinary ones: take out rows, and the same functions draw what is left.

# %%
few = dataclasses.replace(found, runs=found.runs[found.runs.mechanism.isin(["infini", "memorizing", "local"])])
show(loss_against_bytes(few, tasks(few)[0]), "Held-out loss of three mechanisms against the memory of a sequence.")

# %%
measured = found.measures.merge(found.runs[["run", "mechanism", "memory_bytes"]], on="run")
measured[["mechanism", "memory_bytes", "eval", "metric", "value", "low", "high", "labels"]].head(8)
