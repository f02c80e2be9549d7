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
# # Capacity: two laws of a matrix memory, and measurements
#
# How many pairs can a matrix of d_k × d_v numbers hold? Two laws answer two questions
# ([theory.py](../infini_jax/analysis/theory.py)):
#
# - **Rank law**: how exact is the retrieved value?
# - **Top-1 law**: how often is the correct one of V candidates the nearest?
#
# This notebook needs no training. It reads the study `capacity_law`: yours, or the tables in the repository.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from infini_jax.analysis import theory
from infini_jax.results import is_chosen, load, recall_against_bytes, tasks
from infini_jax.results.notebook import show, use_look

use_look()

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "docs" / "results").is_dir())
KNOWN = [ROOT / "results" / "capacity_law-cpu", ROOT / "docs" / "results" / "capacity_law"]
found = load(next(one for one in KNOWN if (one / "results.parquet").exists()))
print(", ".join(tasks(found)))

# %% [markdown]
# ## Random codes: no training
# Keys and values are random, with V = 8192 candidates. The line is the finite-size top-1 law, which includes the spread of
# the interference. The points are the recall of each update rule. Recall is one half at n50.

# %%
labels = found.measures.labels.map(json.loads)
codes = found.measures.assign(
    **{name: labels.map(lambda one, name=name: one.get(name)) for name in ("rule", "key_dim", "value_dim", "symbols", "pairs")}
)
codes = codes[(codes["eval"] == "random_codes") & (codes.metric == "accuracy")]
figure, axes = plt.subplots(1, codes.key_dim.nunique(), figsize=(8.5, 3.4), layout="constrained", sharey=True)
for panel, (size, group) in zip(axes, codes.groupby("key_dim"), strict=True):
    d, V = int(size), int(group.symbols.iloc[0])
    pairs = np.geomspace(2, group.pairs.max(), 60)
    panel.plot(pairs, theory.top1_accuracy(pairs, d, d, V), label="theory of the sum")
    panel.axvline(theory.top1_n50(d, d, V), color="C0", linestyle=":", linewidth=1)
    for marker, (rule, of) in zip("osD^v", group.groupby("rule"), strict=True):
        of = of.sort_values("pairs")
        panel.plot(of.pairs, of.value, marker=marker, markersize=4, linestyle=":", label=rule)
    panel.set(title=f"{d} × {d}", xlabel="pairs that were written", xscale="log")
axes[0].set_ylabel("share recalled")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
show(figure, "Share recalled against pairs, by update rule; the sum lies on its theory, its n50 on the dotted upright line.")

# %% [markdown]
# ## Trained codes: recall per byte
# Keys and values are trained for the memory, with four sizes per mechanism. A power law of the bytes is a straight line
# here. Slots and matrices with unit keys have slope one. Low points have many bytes and little recall.

# %%
figure = recall_against_bytes(found, "capacity")
figure.axes[0].set(yscale="log", ylim=(3, 300))
show(figure, "n50, the pairs of which half are recalled, against the bytes of the memory, both on logarithmic axes.")

# %% [markdown]
# Fit the exponent by hand: n50 against bytes, in logarithms, at the rates that validation chose, over both seeds.
# `infini-jax report` fits it seed by seed, with intervals from three seeds on, and gives the verdicts on P1 to P7.

# %%
half = found.measures[(found.measures["eval"] == "capacity") & (found.measures.metric == "n50")]
half = half.merge(found.runs[is_chosen(found)][["run", "mechanism", "variant", "memory_bytes"]], on="run")
half["who"] = (half.mechanism + " " + half.variant.fillna("")).str.strip()
for who, of in half[np.isfinite(half.value)].groupby("who"):
    if of.memory_bytes.nunique() >= 3:
        slope = np.polyfit(np.log(of.memory_bytes), np.log(of.value), 1)[0]
        print(f"{who:28} n50 grows as bytes^{slope:.2f}")

# %% [markdown]
# ## Two laws answer two questions
# The rank law is about error, not recall. It applies once there are more pairs than dimensions, when most answers are still
# correct.

# %%
n, d = np.arange(1, 400), 64
figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
panel.plot(n, 1 - theory.rank_nmse(d, n), label="of the values' energy (rank law)")
panel.plot(n, theory.top1_accuracy(n, d, d, 8192), linestyle="--", label="of the pairs, recalled by a sum (top-1 law)")
panel.axvline(d, linestyle=":", linewidth=1)
panel.text(d + 5, 0.05, "d = 64")
panel.set(xlabel="pairs written into 64 × 64", ylabel="share", ylim=(0, 1.05))
figure.legend(loc="outside lower center", ncols=1)
middle = theory.top1_n50(d, d, 8192)
show(figure, f"The share of energy falls beyond {d} pairs; the share recalled is one half at {middle:.0f} pairs.")
