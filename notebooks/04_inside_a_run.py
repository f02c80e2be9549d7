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
# A trained run has more than a score: its gates, the value of its memory at each place of a document, and the words that
# gained from it. This notebook trains a very small model for a few seconds as an example. Set `RUN` to your own folder
# (`results/runs/NAME` of a model trained on text) to see that run instead.

# %%
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.base import documents_of, tokenizer_of
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.gains import Gains
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.perplexity import Reader
from infini_jax.evals.words import unit_of_tokens
from infini_jax.memory.infini import InfiniConfig
from infini_jax.model.stream import forward_segments, init_carry
from infini_jax.records.folder import RunFolder
from infini_jax.results import gates, load, training_curves
from infini_jax.results.notebook import show, use_look
from infini_jax.study.evaluations import measure_missing
from infini_jax.training.execute import execute
from infini_jax.training.trained import Trained

use_look()

RUN = None  # or the folder of a run

if RUN is None:
    small = ModelConfig(vocab=256, layers=2, d_model=32, heads=2, segment=32, memory=InfiniConfig())
    train = TrainConfig(batch=4, sequence=256, learning_rate=1e-2, gate_learning_rate=0.1, log_every=5)
    run = RunConfig(name="small", model=small, data=StdlibConfig(), train=train, budget=Budget("steps", 60))
    RUN = Path(tempfile.mkdtemp()) / run.name
    execute(run, RUN, study="")
trained = Trained.open(Path(RUN))
run, model = trained.run, trained.run.model
print(f"{run.name}: {model.mechanism}, {model.memory_bytes / 1024:.1f} KiB of memory a sequence, {trained.step} steps")

# %% [markdown]
# Evaluations of the newest checkpoint. Existing figures are not measured again.


# %%
def failed(evaluation, error) -> None:
    print(f"{evaluation.name}: {error}")


asked = (
    LanguageEvaluation(documents=4, tokens=1024, rows=4),
    Gains(documents=4, tokens=1024, rows=4, counted=1 << 16, draws=100),
    GateEvaluation(),
)
measure_missing(RunFolder(trained.folder), run, asked, failed)
found = load(trained.folder)
labels = pd.json_normalize(found.measures.labels.map(json.loads).tolist())
figures = pd.concat([found.measures.drop(columns=["folder", "run", "labels"]), labels], axis=1)
figures.groupby(["eval", "metric"]).size()

# %% [markdown]
# ## Training curve

# %%
show(training_curves(found, "loss"), "Training loss against tokens.")

# %% [markdown]
# ## Gates
# The share of the memory in each head's output, by layer. Gates start at one half. A gate near one half does not mean that
# the memory is not read ([findings](../docs/findings.md)).

# %%
if (found.measures.metric == "gate").any():
    show(gates(found), "The gate of every head, a marker each, by layer.")

# %% [markdown]
# ## Use of the memory
# One held-out document, segment by segment, and what each layer carries:
#
# - the share of its numbers that are in use (not zero);
# - for matrix memories, the number of directions over which they spread: the effective rank of M, the exponential of the
#   entropy of its squared singular values.
#
# Slots fill up. A matrix is in use at once. A low rank means that its keys overlap, so that it can distinguish little.


# %%
def effective_rank(M_GxKxV: np.ndarray) -> float:
    """Mean over heads; nan before anything was written."""
    energy = np.linalg.svd(M_GxKxV, compute_uv=False) ** 2
    if not energy.any():
        return float("nan")
    share = energy / energy.sum(axis=-1, keepdims=True)
    return float(np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum(axis=-1)).mean())


def usage_of(group) -> list[tuple[float, float]]:
    """(share in use, effective rank or nan) of each layer of a group of layers."""
    numbers = [np.asarray(leaf) for leaf in jax.tree.leaves(group) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    matrix = getattr(group, "M", group if isinstance(group, jax.Array) else None)
    return [
        (
            np.mean(np.concatenate([leaf[layer].ravel() for leaf in numbers]) != 0),
            effective_rank(np.asarray(matrix)[layer, 0]) if matrix is not None else float("nan"),
        )
        for layer in range(len(numbers[0]) if numbers else 0)
    ]


documents, counts = documents_of(run.data, "validation")
longest = int(np.argmax(documents.lengths))
start, length = documents.starts[longest], min(int(documents.lengths[longest]), 64 * model.segment)
text_WxS = np.asarray(documents.text[start : start + length // model.segment * model.segment], np.int32).reshape(
    -1, model.segment
)
read = jax.jit(lambda carry, tokens: forward_segments(model, trained.params, carry, tokens, jnp.zeros_like(tokens))[0])

carry, usage = init_carry(model, 1), []
for tokens_S in text_WxS:
    carry = read(carry, tokens_S[None])
    usage.append([layer for group in carry.memory for layer in usage_of(group)])
usage_WxLx2 = np.array(usage)

# %%
places = model.segment * np.arange(1, len(usage_WxLx2) + 1)
kinds = ["share of numbers in use", "effective rank of M"][: 1 if np.isnan(usage_WxLx2[..., 1]).all() else 2]
figure, axes = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 2.8), layout="constrained", squeeze=False)
for kind, (panel, name) in enumerate(zip(axes[0], kinds, strict=True)):
    for layer, marker in zip(range(usage_WxLx2.shape[1]), "os^DvP<>" * model.layers, strict=False):
        values = usage_WxLx2[:, layer, kind]
        panel.plot(places, values, marker=marker, markevery=max(1, len(places) // 8), label=f"layer {layer}")
    panel.set(xlabel="tokens read", ylabel=name, ylim=(0, None))
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
show(figure, "How the memory is used by tokens read, a line a layer.")

# %% [markdown]
# ## Value of the memory, by place in the document
# The same held-out documents are read three times: with the memory carried, with the memory emptied at every segment, and
# with the memory of *another* document of the same age. If the last two do not increase the loss, the model uses nothing of
# this document that is in its memory.

# %%
by_place = figures[figures.metric == "loss_by_position"].pivot(index="from", columns="condition", values="value")
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3), layout="constrained")
for marker, condition in zip("os^", ("carried", "reset", "another"), strict=True):
    axes[0].plot(by_place.index, by_place[condition], marker=marker, markersize=5, label=condition)
    axes[1].plot(by_place.index, by_place[condition] - by_place["carried"], marker=marker, markersize=5)
axes[0].set(xlabel="place in the document, tokens", ylabel="held-out nats a token", xscale="log")
axes[1].set(xlabel="place in the document, tokens", ylabel="more than carried", xscale="log")
figure.legend(loc="outside lower center", ncols=3)
show(figure, "Loss by place in the document under three conditions of the memory, and what two of them lose by it.")

# %%
worth = figures[figures.metric == "loss"].set_index("condition")[["value", "low", "high"]]
worth.assign(more_than_carried=worth.value - worth.value["carried"])

# %% [markdown]
# ## Gain by class of word
# Words are grouped by how often they are used in general, and by how long ago they were last used in this document. Gain is
# the loss in nats per token with an empty memory, or with another document's, minus that with the document's own. The
# papers claim that rare words last used far back gain most. A model of 60 steps demonstrates the measurement, not the
# claim.

# %%
gained = figures[(figures["eval"] == "gains") & figures.value.notna()]
table = gained.pivot_table(index=["by", "class"], columns=["metric", "control"], values="value", sort=False)
table.head(14).round(3)

# %% [markdown]
# The same for single words: a passage of one held-out document, each character in the color of its word's gain over an
# empty memory.

# %%
reader = Reader(model, documents, counts, EvaluationConfig(documents=2, tokens=1024, rows=2))
number, nats_CxT = next(reader.token_nats(trained.params))
nats = dict(zip(reader.conditions, nats_CxT, strict=True))
begin = documents.starts[number]
text, units, unit_T = unit_of_tokens(documents.text[begin : begin + nats_CxT.shape[1] + 1].tolist(), tokenizer_of(run.data))
gain_N = np.bincount(unit_T[1:], nats["reset"] - nats["carried"], minlength=len(units.spelt))

ends = np.append(units.starts[1:], len(text))
words = pd.DataFrame({"word": units.spelt, "at": units.starts, "gain": gain_N})[
    units.are("name", "number", "identifier", "word")
]
words.nlargest(8, "gain").round(2)

# %%
ACROSS, DOWN = 72, 9
passage = text[-ACROSS * DOWN :]
gains = np.repeat(gain_N, ends - units.starts)[-ACROSS * DOWN :]
shape = (-(-len(passage) // ACROSS), ACROSS)
grid = np.zeros(shape)
grid.flat[: len(gains)] = gains
most = np.quantile(np.abs(gains), 0.98)
figure, panel = plt.subplots(figsize=(8.5, 2.6), layout="constrained")
image = panel.imshow(grid, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto", interpolation="none")
for place, character in enumerate(passage):
    panel.text(
        place % ACROSS, place // ACROSS, character if character.isprintable() else "·", ha="center", va="center", fontsize=7
    )
panel.set_axis_off()
figure.colorbar(image, label="nats gained")
show(
    figure,
    "The end of what was read of a document, orange where a word gained from the memory, violet where it lost; · ends a line.",
)
