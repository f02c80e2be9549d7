# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # The quick study, run by run
# After `make study`: which memory recalled how much, and how it learnt. Open with jupytext, or run as a script.

# %%
from pathlib import Path

from infini_jax.plots import score_against_bytes, score_of, styles_of
from infini_jax.results import read_rows
from infini_jax.units import human_bytes

STUDY = Path("results/quick")
rows = read_rows(STUDY / "results.parquet")

# %%
for row in rows:
    score = row.accuracy if row.task == "mqar" else row.loss
    print(f"{row.task:14} {row.mechanism:16} {row.variant:7} {human_bytes(row.memory_bytes):>10} {score:7.3f}")

# %%
recall = [row for row in rows if row.task == "mqar"]
figure = score_against_bytes(recall, score_of("mqar"), styles_of(recall))
figure
