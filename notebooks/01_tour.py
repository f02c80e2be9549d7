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
# # A tour: what each memory writes, what it reads, how many bytes it takes
#
# One head, one toy document, no training: 64 tokens, each with a random key and a value, in four segments of 16. The last
# segment asks for tokens of the first three again, oldest first. Everything here is the package's own functions, on arrays
# of a size that can be looked at; letters as in the code: B rows, S tokens of a segment, G heads, K and V dimensions, N
# slots.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from infini_jax.config import memory_of
from infini_jax.memory import MECHANISMS, infini, memorizing, signal, sticky
from infini_jax.memory.base import Dims, memory_bytes
from infini_jax.memory.feature_maps import elu_plus_one, unit
from infini_jax.memory.infini import InfiniMemory
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.landmark_retrieval import LandmarkMemory
from infini_jax.memory.memorizing import Ring
from infini_jax.segment import Segment, whole

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "image.cmap": "viridis"})

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
# ## Infini-attention: a matrix
# **Written**: each segment adds σ(K)ᵀV to one matrix, and the sum of its keys to a vector z. **Read**: σ(Q)M / σ(Q)z, then
# a gate a head weighs it against local attention. **Bytes**: K × V + K numbers, however long the document is.


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
figure, axes = plt.subplots(1, 4, figsize=(11, 2.7), layout="constrained")
for place, (panel, memory) in enumerate(zip(axes, linear[1:], strict=True), start=1):
    image = panel.imshow(memory.M[0, 0], vmin=-25, vmax=25, cmap="RdBu_r")
    panel.set(title=f"M after segment {place}", xlabel="value dimension")
axes[0].set_ylabel("feature of the key")
figure.colorbar(image, ax=axes, shrink=0.8)

# %% [markdown]
# Asked with the key of each earlier token: how close is what comes back to its value? Positive keys (elu + 1) all overlap,
# so most of what they give back is common to all. Keys of unit length overlap by chance only.


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
figure, panel = plt.subplots(figsize=(8.5, 2.8), layout="constrained")
for name, (features, rule, normalised, marker) in kinds.items():
    before = streamed(features, rule, normalised)[3]
    read = infini.retrieve(before, features(jnp.asarray(queries)[None, :, None]))[0, :, 0]
    panel.plot(asked, closeness(read), marker=marker, label=name)
panel.set(xlabel="token that is asked for (the oldest on the left)", ylabel="cosine to its value", ylim=(-0.6, 1))
panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
# %% [markdown]
# The gate is one number a head: sigmoid(β) of the memory, the rest local. At β = 0, where it begins, both weigh the same.

# %%
beta = jnp.linspace(-6, 6, 101)
share = jax.vmap(lambda b: infini.combine(b[None], jnp.ones((1, 1)), jnp.zeros((1, 1)))[0, 0])(beta)
figure, panel = plt.subplots(figsize=(4, 2), layout="constrained")
panel.plot(beta, share)
panel.set(xlabel="β", ylabel="share of the memory")

# %% [markdown]
# ## Memorizing Transformer: slots that are searched
# **Written**: each token's key and value into the next slot of a ring. **Read**: every query searches the whole ring for
# its k nearest keys. **Bytes**: slots × (K + V) numbers. Sixteen slots are too few for 48 tokens: what was overwritten
# cannot be found.


# %%
def filled(slots: int) -> Ring:
    """A ring after three segments."""
    ring = Ring(jnp.zeros((1, 1, slots, K)), jnp.zeros((1, 1, slots, V)), jnp.zeros(1, jnp.int32))
    for place, (k, v) in enumerate(zip(parts(keys)[:3], parts(values)[:3], strict=True)):
        documents = jnp.zeros((1, SEGMENT), jnp.int32)
        ring = memorizing.append(ring, unit(k), v, whole(documents, jnp.full(1, 0 if place else -1)))
    return ring


figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", width_ratios=(3, 1))
for panel, slots in zip(axes, (48, 16), strict=True):
    found = memorizing.search(filled(slots), unit(jnp.asarray(queries)[None, :, None]), 3)[0, 0]
    hits = np.zeros((len(asked), slots))
    for order in range(3):
        hits[np.arange(len(asked)), found[:, order]] = 3 - order
    panel.imshow(hits, aspect="auto", cmap="Greys")
    panel.set(title=f"{slots} slots", xlabel="slot", ylabel="query")
figure.suptitle("the three slots that each query retrieves; black is the nearest")
# %% [markdown]
# With 48 slots the nearest one is the right one: a diagonal. With 16, only the newest sixteen tokens can be found, and the
# other queries get the nearest of what is left.

# %% [markdown]
# ## Landmark attention: blocks that are opened
# **Written**: whole blocks of keys and values, each with a landmark behind it that stands for the block. **Read**: a query
# first compares itself with the landmarks, opens the best blocks and attends to their tokens, in one grouped softmax with
# the segment's own. **Bytes**: blocks × (P + 1) × (K + V). The landmarks here are the sums of their blocks' keys, and
# positions turn queries and landmarks against each other, so that the right block is found only sometimes: a model learns
# its landmarks.

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
for place, name in enumerate(("older", "newer")):
    panel.scatter(asked, BLOCKS - 1 - ages[:, place], marker="os"[place], s=60, label=f"opened, the {name} of two")
panel.plot(asked, asked // P, color="black", linewidth=1, label="block where it stands")
panel.set(xlabel="token that is asked for", ylabel="block")
panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
right = np.mean([(BLOCKS - 1 - ages[row] == asked[row] // P).any() for row in range(len(asked))])
print(f"{right:.0%} of the queries open the block where their token stands; by chance {2 / BLOCKS:.0%}")

# %% [markdown]
# ## ∞-former: a signal in continuous time
# **Written**: the tokens as a signal over [0, 1], fitted by N Gaussian bumps; the next segment squeezes the past into the
# first τ of the time and takes the rest. **Read**: each query is a Gaussian over time and gets the mean of the signal under
# it. **Bytes**: N × D numbers.

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

figure, axes = plt.subplots(1, 2, figsize=(11, 2.6), layout="constrained", sharey=True)
first_at, later_at = signal.write_places(SEGMENT, TAU)
axes[0].plot(t, shape @ one, label="the signal")
axes[0].plot(first_at, first, "o", markersize=4, label="tokens of the first segment")
axes[1].plot(t, shape @ two, label="the signal")
axes[1].plot(TAU * first_at, first, "o", markersize=4, label="the first segment, squeezed")
axes[1].plot(later_at, second, "s", markersize=4, label="tokens of the second")
for panel, title in zip(axes, ("after the first write", "after the second"), strict=True):
    panel.set(title=title, xlabel="time")
    panel.legend(fontsize=8)

# %% [markdown]
# A smooth past survives; single tokens do not: that is why this memory stores no pairs ([findings](../docs/findings.md)).
# Queries read by densities over time. With *sticky memories* the past is not sampled evenly when it is squeezed, but more
# densely where attention was:

# %%
mu, sigma_sq = jnp.asarray([[[0.15, 0.2, 0.7, 0.72]]]), jnp.asarray([[[0.001, 0.004, 0.0004, 0.002]]])
histogram = sticky.attention_histogram(mu, sigma_sq, jnp.ones((1, 4), bool))
drawn = sticky.draw_times(sticky.row_keys(0, jnp.zeros(1, jnp.int32)), histogram, SAMPLES, "uniform")

figure, axes = plt.subplots(1, 2, figsize=(11, 2.4), layout="constrained")
for place in range(4):
    axes[0].plot(t, signal.gaussian(t, mu[0, 0, place], sigma_sq[0, 0, place]), label=f"query {place + 1}")
axes[0].set(title="where four queries look", xlabel="time", ylabel="density")
axes[0].legend(fontsize=8)
axes[1].stairs(histogram[0], sticky.bin_edges(), fill=True, alpha=0.5, label="attention, a bin")
axes[1].plot(drawn[0], np.full(SAMPLES, -0.004), "|", color="black", markersize=9, label="times that are sampled")
axes[1].set(title="sticky histogram", xlabel="time")
axes[1].legend(fontsize=8)
# %% [markdown]
# ## Bytes
# What a layer of four heads of 64 carries for one sequence, with each mechanism's default settings, measured on the arrays
# it makes.

# %%
layer = Dims(d_model=256, heads=4, kv_heads=4, key_dim=64, value_dim=64, segment=256)
for name, mechanism in MECHANISMS.items():
    print(f"{name:16} {memory_bytes(memory_of(mechanism.Config(), layer)) / 1024:9.1f} KiB   {mechanism.summary}")
