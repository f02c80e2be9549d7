"""A transformer of named parts in float64 NumPy, head by head: no segments, no masks, each token sees those before it.

Parameters are those of `infini_jax.model.inheritance.layers_apart`: ("layer0", "query", "kernel") and so on.
"""

import numpy as np
from scipy.special import erf

from tests.reference.attention import softmax

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
}
"""Activation of the hidden layer, or of its gate."""


def frequencies(config, count):
    """Of the pairs of 2 `count` turned entries, one by one."""
    found = []
    for i in range(count):
        f = config.base ** (-i / count)
        turns = config.context * f / (2 * np.pi)
        if config.scaling == "linear" or (config.scaling == "llama3" and turns < config.low_turns):
            f = f / config.factor
        elif config.scaling == "llama3" and turns <= config.high_turns:
            smooth = (turns - config.low_turns) / (config.high_turns - config.low_turns)
            f = (1 - smooth) * f / config.factor + smooth * f
        found.append(f)
    return found


def rotate(x, place, config):
    """The first entries of a vector turned by its place."""
    turned, count = np.array(x, float), int(len(x) * config.fraction) // 2
    for i, frequency in enumerate(frequencies(config, count)):
        a, b = (i, i + count) if config.pairs == "halves" else (2 * i, 2 * i + 1)
        cos, sin = np.cos(place * frequency), np.sin(place * frequency)
        turned[a], turned[b] = x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin
    return turned


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


class Reference:
    """Logits of `model` with `flat` parameters; layer `n` sees `windows[n]` tokens (None: all) and turns by `turns[n]`."""

    def __init__(self, model, flat, windows, turns):
        self.model, self.block, self.windows, self.turns = model, model.block, windows, turns
        self.flat = {path: np.asarray(leaf, np.float64) for path, leaf in flat.items()}

    def affine(self, path, x, letters):
        y = np.einsum(letters, x, self.flat[*path, "kernel"])
        return y + self.flat.get((*path, "bias"), 0.0)

    def norm(self, path, x, kind):
        if kind == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        y = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.block.epsilon) * self.flat[*path, "scale"]
        return y + self.flat.get((*path, "bias"), 0.0)

    def after(self, path, y):
        return self.norm(path, y, self.block.norm) if self.block.norm_places == "both" else y

    def attention(self, layer, x):
        """Of one layer, whose input is normed: TxD."""
        name, heads, groups = f"layer{layer}", self.model.dims.heads, self.model.dims.kv_heads
        q, k, v = (self.affine((name, part), x, "td,dhk->thk") for part in ("query", "key", "value"))
        if self.block.qk_norm == "rms":
            q, k = self.norm((name, "query_norm"), q, "rms"), self.norm((name, "key_norm"), k, "rms")
        scale = self.block.attention_scale or q.shape[-1] ** -0.5
        turn = self.turns[layer]
        values = np.zeros((len(x), heads, v.shape[-1]))
        for t in range(len(x)):
            first = 0 if self.windows[layer] is None else max(0, t - self.windows[layer] + 1)
            for head in range(heads):
                g, asked = head // (heads // groups), q[t, head] if turn is None else rotate(q[t, head], t, turn)
                keys = [k[j, g] if turn is None else rotate(k[j, g], j, turn) for j in range(first, t + 1)]
                scores = np.array([capped(scale * (asked @ key), self.block.score_cap) for key in keys])
                values[t, head] = softmax(scores) @ v[first : t + 1, g]
        return self.affine((name, "memory", "out"), values, "thv,hvd->td")

    def mlp(self, layer, x):
        name = f"layer{layer}"
        up = self.affine((name, "mlp", "up"), x, "td,df->tf")
        if self.block.mlp in ("swiglu", "geglu"):
            hidden = ACTIVATIONS[self.block.mlp](self.affine((name, "mlp", "gate"), x, "td,df->tf")) * up
        else:
            hidden = ACTIVATIONS[self.block.mlp](up)
        return self.affine((name, "mlp", "down"), hidden, "tf,fd->td")

    def logits(self, tokens):
        """TxV of a document's tokens, whose places count from its start."""
        table, kind = self.flat["embedding", "embedding"], self.block.norm
        x = table[tokens] * self.block.embedding_scale
        if self.block.learned_positions:
            x = x + self.flat["positions", "embedding"][: len(tokens)]
        for layer in range(self.model.layers):
            name = f"layer{layer}"
            heard = self.attention(layer, self.norm((name, "attention_norm"), x, kind))
            heard = self.after((name, "attention_norm_after"), heard)
            seen = x if self.block.residual == "parallel" else x + heard
            made = self.mlp(layer, self.norm((name, "mlp_norm"), seen, kind))
            x = x + heard + self.after((name, "mlp_norm_after"), made)
        x = self.norm(("norm",), x, kind)
        kernel = self.flat["head", "kernel"] if self.block.head == "own" else table[: self.model.vocab].T
        return capped(x @ kernel + self.flat.get(("head", "bias"), 0.0), self.block.logit_cap)
