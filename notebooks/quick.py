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
from infini_jax.results import load, recall_against_bytes, training_curves

found = load("results/quick")
found.runs[["task", "mechanism", "variant", "memory_bytes", "accuracy", "loss"]]

# %%
found.columns  # what the columns mean, and their units

# %%
figure = recall_against_bytes(found, "mqar")
figure

# %%
curves = training_curves(found, "loss", "mqar")
curves
