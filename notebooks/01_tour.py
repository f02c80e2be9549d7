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
# # A tour: what each memory writes, reads and costs
#
# One head, one toy document and no training: 64 tokens, each with a random key and a value, in four segments of 16. The
# last segment asks for tokens of the first three segments again, oldest first. Everything here uses the package's own
# functions on small arrays. Letters are those of the code: B rows, S tokens of a segment, G heads, K and V dimensions, N
# slots.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import MECHANISMS, gated_delta, infini, memorizing, memory_of
from infini_jax.memory.base import Dims, memory_bytes
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.feature_maps import elu_plus_one, unit
from infini_jax.memory.infini import InfiniMemory
from infini_jax.memory.infinite_former import expectation, signal, sticky
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.landmark.retrieval import LandmarkMemory
from infini_jax.memory.memorizing import Ring
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.results.notebook import show, use_look

use_look()

K, V, SEGMENT, SEGMENTS = 16, 16, 16, 4
rng = np.random.default_rng(0)
keys = rng.normal(size=(SEGMENTS * SEGMENT, K)).astype(np.float32)
values = rng.normal(size=(SEGMENTS * SEGMENT, V)).astype(np.float32)
asked = np.arange(0, 48, 3)  # the tokens that the last segment asks for
queries = keys[asked]


def parts(x_TxK: np.ndarray) -> list[jax.Array]:
    """Segments, each 1xSx1xK: one row, one head."""
    return [jnp.asarray(part)[None, :, None] for part in np.split(x_TxK, SEGMENTS)]


# %% [markdown]
# ## Transformer-XL and Compressive Transformer: caches
# - **Written**: each token's key and value, at the new end. Tokens that no longer fit are lost. In the Compressive
#   Transformer they become part of one entry for four tokens.
# - **Read**: by the same softmax as the segment's own tokens.
# - **Bytes**: entries × (K + V) numbers.
#
# Here the value of each token is its own name, so that the cache shows whose values it holds.

# %%
names = np.eye(48, dtype=np.float32)
named = Dims(d_model=K, heads=1, kv_heads=1, key_dim=K, value_dim=48, segment=SEGMENT)


def after_three_segments(config):
    """The memory of a layer that nobody has trained: compression begins as a mean."""
    layer = memory_of(config, named)
    memory, variables = layer.init_memory(1), None
    for place, part in enumerate(np.split(np.arange(48), 3)):
        k, v = (jnp.asarray(x[part])[None, :, None] for x in (keys, names))
        bounds = whole(jnp.zeros((1, SEGMENT), jnp.int32), jnp.full(1, 0 if place else -1))
        segment = Segment(jnp.zeros((1, SEGMENT, K)), k, k, v, bounds)
        variables = variables or layer.init(jax.random.key(0), memory, segment, method="write")
        memory = layer.apply(variables, memory, segment, method="write")
    return memory


cache = after_three_segments(TransformerXLConfig(slots=24))
both = after_three_segments(CompressiveConfig(slots=16, compressed=6, ratio=4))
held = {
    "Transformer-XL: 24 entries": cache.values[0, :, 0],
    "Compressive: 6 of four tokens each, 16 of one": np.concatenate([both.compressed.values, both.recent.values], axis=1)[
        0, :, 0
    ],
}
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
for panel, (title, entries) in zip(axes, held.items(), strict=True):
    image = panel.imshow(entries, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="none")
    panel.set(title=title, xlabel="token", ylabel="entry, oldest above")
    panel.grid(False)
figure.colorbar(image, ax=axes, label="share of the value")
show(figure, "Of 48 tokens, 24 entries hold the last 24; 22 entries of which six are means of four tokens hold the last 40.")

# %% [markdown]
# ## Infini-attention: a matrix
# - **Written**: each segment adds σ(K)ᵀV to one matrix, and the sum of its keys to a vector z.
# - **Read**: σ(Q)M / σ(Q)z. A gate per head then weighs it against local attention.
# - **Bytes**: K × V + K numbers, whatever the length of the document.


# %%
def streamed(features, rule: str, normalised: bool) -> list[InfiniMemory]:
    """The memory before each segment, and after the last."""
    memory = InfiniMemory(jnp.zeros((1, 1, K, V)), jnp.zeros((1, 1, K)) if normalised else None)
    found = [memory]
    for k, v in zip(parts(keys), parts(values), strict=True):
        memory = infini.update(memory, features(k), v, rule)
        found.append(memory)
    return found


linear = streamed(elu_plus_one, "linear", normalised=True)
figure, axes = plt.subplots(1, 4, figsize=(8.5, 2.3), layout="constrained", sharey=True)
for place, (panel, memory) in enumerate(zip(axes, linear[1:], strict=True), start=1):
    image = panel.imshow(memory.M[0, 0], vmin=-25, vmax=25, cmap="RdBu_r")
    panel.set(title=f"M after segment {place}", xlabel="value dimension")
    panel.grid(False)
axes[0].set_ylabel("feature of the key")
figure.colorbar(image, ax=axes, shrink=0.8)
show(figure, "The same matrix after each of four segments: its entries grow, its size does not.")

# %% [markdown]
# Query the memory with the key of each earlier token. How close is the result to the token's value?
#
# - Positive keys (elu + 1) all overlap, so most of each result is common to all tokens.
# - Keys of unit length overlap only by chance.
# - The delta rule writes only what the memory does not return yet.
# - *Token by token*, as in the gated delta rule (here without its decay and gates), each token corrects what those before
#   it in the same segment wrote. The newest tokens stand out.


# %%
def closeness(read_SxV: jax.Array) -> np.ndarray:
    """Cosine between what was read and what had been written."""
    wanted = values[asked]
    return np.sum(read_SxV * wanted, -1) / np.linalg.norm(read_SxV, axis=-1) / np.linalg.norm(wanted, axis=-1)


kinds = {
    "elu + 1, divided by z (the paper)": (elu_plus_one, "linear", True, "o"),
    "elu + 1, delta rule": (elu_plus_one, "delta", True, "s"),
    "unit keys": (unit, "linear", False, "^"),
}
asks = jnp.asarray(queries)[None, :, None]
figure, panel = plt.subplots(figsize=(8.5, 2.8), layout="constrained")
for name, (features, rule, normalised, marker) in kinds.items():
    before = streamed(features, rule, normalised)[3]
    read = infini.retrieve(before, features(asks))[0, :, 0]
    panel.plot(asked, closeness(read), marker=marker, label=f"{name}: mean {closeness(read).mean():.2f}")

S = jnp.zeros((1, 1, K, V))
for k, v in zip(parts(keys)[:3], parts(values)[:3], strict=True):
    S = gated_delta.write_tokens(S, unit(k), v, jnp.ones((1, SEGMENT, 1)), jnp.zeros((1, SEGMENT, 1)))
read = gated_delta.retrieve(S, unit(asks))[0, :, 0]
panel.plot(asked, closeness(read), marker="D", label=f"unit keys, delta rule by tokens: mean {closeness(read).mean():.2f}")
panel.set(xlabel="token that is asked for (the oldest on the left)", ylabel="cosine to its value", ylim=(-0.6, 1.05))
figure.legend(loc="outside lower center", ncols=2)
show(figure, "How close four ways of writing into a 16 × 16 matrix come to the value that was written, by token.")

# %% [markdown]
# The gate is one number per head: sigmoid(β) is the weight of the memory, the rest is local. At β = 0, the initial value,
# both weigh the same.

# %%
beta = jnp.linspace(-6, 6, 101)
share = jax.vmap(lambda b: infini.combine(b[None], jnp.ones((1, 1)), jnp.zeros((1, 1)))[0, 0])(beta)
figure, panel = plt.subplots(figsize=(4, 2), layout="constrained")
panel.plot(beta, share)
panel.plot([0], [0.5], "o")
panel.set(xlabel="β", ylabel="share of the memory")
show(figure, "The gate: an S-shaped curve from local attention alone to memory alone; the marker is where it begins.")

# %% [markdown]
# ## Memorizing Transformer: slots that are searched
# - **Written**: each token's key and value, into the next slot of a ring.
# - **Read**: every query searches the whole ring for its k nearest keys.
# - **Bytes**: slots × (K + V) numbers.
#
# Sixteen slots are too few for 48 tokens: an overwritten token cannot be found.


# %%
def filled(slots: int) -> Ring:
    """A ring after three segments."""
    ring = Ring(jnp.zeros((1, 1, slots, K)), jnp.zeros((1, 1, slots, V)), jnp.zeros(1, jnp.int32))
    for place, (k, v) in enumerate(zip(parts(keys)[:3], parts(values)[:3], strict=True)):
        documents = jnp.zeros((1, SEGMENT), jnp.int32)
        ring = memorizing.append(ring, unit(k), v, whole(documents, jnp.full(1, 0 if place else -1)))
    return ring


figure, axes = plt.subplots(1, 2, figsize=(8.5, 3), layout="constrained", width_ratios=(3, 1))
for panel, slots in zip(axes, (48, 16), strict=True):
    found = memorizing.search(filled(slots), unit(jnp.asarray(queries)[None, :, None]), 3)[0, 0]
    hits = np.zeros((len(asked), slots))
    for order in range(3):
        hits[np.arange(len(asked)), found[:, order]] = 3 - order
    panel.imshow(hits, aspect="auto", cmap="Greys", interpolation="none")
    panel.set(title=f"{slots} slots", xlabel="slot", ylabel="query", yticks=range(0, 16, 5))
    panel.grid(False)
show(figure, "The three slots that each query retrieves, black the nearest: a diagonal with 48 slots, none with 16.")

# %% [markdown]
# With 48 slots, the nearest slot is the correct one: a diagonal. With 16, only the newest sixteen tokens can be found. The
# other queries get the nearest remaining token.

# %% [markdown]
# ## Landmark attention: blocks that are opened
# - **Written**: whole blocks of keys and values, each followed by a landmark that stands for the block.
# - **Read**: a query first compares itself with the landmarks. It opens the best blocks and attends to their tokens, in one
#   grouped softmax with the segment's own tokens.
# - **Bytes**: blocks × (P + 1) × (K + V) numbers.
#
# The landmarks here are the sums of their blocks' keys, and positions rotate queries and landmarks against each other. The
# correct block is therefore found only sometimes. A trained model learns its landmarks.

# %%
P, BLOCKS = 4, 12
dims = Dims(d_model=K, heads=1, kv_heads=1, key_dim=K, value_dim=V, segment=SEGMENT + SEGMENT // P)
landmark = memory_of(LandmarkConfig(block=P, blocks=BLOCKS, retrieved=2), dims)


def with_landmarks(x_TxK: np.ndarray) -> np.ndarray:
    """Each block of P tokens and the sum of them behind it: Bx(P+1)xK."""
    blocks = x_TxK.reshape(-1, P, x_TxK.shape[-1])
    return np.concatenate([blocks, blocks.sum(axis=1, keepdims=True)], axis=1)


kept = LandmarkMemory(
    keys=jnp.asarray(with_landmarks(keys[:48]))[None, None],
    values=jnp.asarray(values[:48].reshape(1, 1, BLOCKS, P, V)),
    tokens=jnp.full(1, 48 + BLOCKS),
)
last = [jnp.asarray(with_landmarks(x).reshape(1, -1, 1, x.shape[-1])) for x in (queries, keys[48:], values[48:])]
same, open_document = jnp.zeros((1, dims.segment), jnp.int32), jnp.zeros(1, jnp.int32)
segment = Segment(jnp.zeros((1, dims.segment, K)), *last, whole(same, open_document))
variables = landmark.init(jax.random.key(0), kept, segment, method="attend")
opened = landmark.apply(variables, kept, segment, method="retrieved")
is_token = np.arange(dims.segment) % (P + 1) != P
ages = np.asarray(opened.ages[0, 0])[is_token]

figure, panel = plt.subplots(figsize=(8.5, 2.8), layout="constrained")
panel.step(asked, asked // P, where="mid", linewidth=1, label="block where it stands")
for place, name in enumerate(("older", "newer")):
    panel.plot(asked, BLOCKS - 1 - ages[:, place], "os"[place], markersize=7, label=f"opened, the {name} of two")
panel.set(xlabel="token that is asked for", ylabel="block")
figure.legend(loc="outside lower center", ncols=3)
show(figure, "The two blocks that each query opens, and a staircase of the block where its token stands.")
right = np.mean([(BLOCKS - 1 - ages[row] == asked[row] // P).any() for row in range(len(asked))])
print(f"{right:.0%} of the queries open the block where their token stands; by chance {2 / BLOCKS:.0%}")

# %% [markdown]
# ## ∞-former: a signal in continuous time
# - **Written**: the tokens, as a signal over [0, 1] fitted by N Gaussian basis functions. The next segment compresses the
#   past into the first τ of the time and takes the rest.
# - **Read**: each query is a Gaussian over time and gets the mean of the signal under it.
# - **Bytes**: N × D numbers.

# %%
N, WIDTH, RIDGE, TAU, SAMPLES = 32, (0.03,), 1e-3, 0.5, 64
t = np.linspace(0, 1, 400)
first = np.sin(np.arange(SEGMENT) / 2)[:, None] + 0.3 * rng.normal(size=(SEGMENT, 1))
second = np.where(np.arange(SEGMENT) < 8, 1.0, -1.0)[:, None]
one = signal.first_write_matrix(SEGMENT, N, WIDTH, RIDGE).T @ first
again = signal.update_matrix(SEGMENT, N, WIDTH, RIDGE, SAMPLES, TAU)
sampled = signal.psi(signal.sample_times(SAMPLES), *signal.basis(N, WIDTH)) @ one
two = again.T @ np.concatenate([sampled, second])
shape = signal.psi(t, *signal.basis(N, WIDTH))

figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained", sharey=True)
first_at, later_at = signal.write_places(SEGMENT, TAU)
axes[0].plot(t, shape @ one)
axes[0].plot(first_at, first, "o", markersize=4)
axes[1].plot(t, shape @ two, label="the signal")
axes[1].plot(TAU * first_at, first, "o", markersize=4, label="tokens of the first segment")
axes[1].plot(later_at, second, "s", markersize=4, label="tokens of the second")
for panel, title in zip(axes, ("after the first write", "after the second"), strict=True):
    panel.set(title=title, xlabel="time")
figure.legend(loc="outside lower center", ncols=3)
show(figure, "A curve through the first segment; after the second write it is squeezed into the first half of the time.")

# %% [markdown]
# A smooth past survives, single tokens do not. This is why this memory stores no pairs ([findings](../docs/findings.md)).
#
# A query reads with its density over time and gets the mean of the signal under it: the wider the density, the smoother the
# result. (A trained layer computes mean and variance from the query and the signal, `signal.density_parameters`; here they
# are chosen to be visible.) With *sticky memories*, compression does not sample the past evenly, but more densely where
# attention was.

# %%
mu, sigma_sq = jnp.asarray([[[0.15, 0.3, 0.7, 0.76]]]), jnp.asarray([[[0.001, 0.004, 0.0004, 0.002]]])
reads = expectation.expected_basis(mu, sigma_sq, *signal.basis(N, WIDTH))[0, 0] @ two
histogram = sticky.attention_histogram(mu, sigma_sq, jnp.ones((1, 4), bool))
drawn = sticky.draw_times(sticky.row_keys(0, jnp.zeros(1, jnp.int32)), histogram, SAMPLES, "uniform")

figure, axes = plt.subplots(3, 1, figsize=(7, 5.2), layout="constrained", sharex=True)
axes[0].plot(t, shape @ two, linewidth=1)
for place, marker in enumerate("os^D"):
    mean, variance, colour = mu[0, 0, place], sigma_sq[0, 0, place], f"C{place + 1}"
    axes[0].errorbar(mean, reads[place], xerr=jnp.sqrt(variance), marker=marker, color=colour, capsize=3)
    axes[1].plot(t, signal.gaussian(t, mean, variance), color=colour, marker=marker, markevery=[round(400 * float(mean))])
axes[0].set(title="what four queries read: mean of the signal, over one standard deviation", ylabel="signal")
axes[1].set(title="where they look", ylabel="density")
axes[2].stairs(histogram[0], sticky.bin_edges(), fill=True, alpha=0.6)
axes[2].plot(drawn[0], np.full(SAMPLES, -0.004), "|", color="C2", markersize=9)
axes[2].set(
    title="sticky histogram of their attention; below it the times that are sampled", xlabel="time", ylabel="share a bin"
)
show(figure, "Signal with what four queries read of it, their densities, and the histogram from which sticky memories sample.")

# %% [markdown]
# ## Bytes
# What a layer of four heads of 64 carries per sequence, with each mechanism's default settings, measured on its arrays.
# `local` counts the open window, `full` 1024 tokens. How much recall a byte gives is another question
# ([03](03_compare.ipynb)).

# %%
layer = Dims(d_model=256, heads=4, kv_heads=4, key_dim=64, value_dim=64, segment=256)
for name, mechanism in MECHANISMS.items():
    print(f"{name:16} {memory_bytes(memory_of(mechanism.Config(), layer)) / 1024:9.1f} KiB   {mechanism.summary}")
