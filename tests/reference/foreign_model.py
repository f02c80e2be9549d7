"""A decoder-only transformer by its `Architecture`, float64 NumPy: one document, all positions at once."""

import math
from typing import Any

import numpy as np
from scipy import special

from infini_jax.layers.distances import RotaryConfig
from infini_jax.pretrained.architecture import Architecture


def frequencies(rotary: RotaryConfig, turned: int) -> np.ndarray:
    """Radians per place of each pair, with the published scalings."""
    plain = rotary.base ** (-2.0 * np.arange(turned // 2) / turned)
    if rotary.scaling == "linear":
        return plain / rotary.factor
    if rotary.scaling == "llama3":
        turns = rotary.context * plain / (2 * math.pi)  # in the original context
        share = np.clip((turns - rotary.low_turns) / (rotary.high_turns - rotary.low_turns), 0, 1)
        return share * plain + (1 - share) * plain / rotary.factor
    return plain


def turned(x: np.ndarray, rotary: RotaryConfig | None) -> np.ndarray:
    """SxHxK with the first dimensions turned, pairs (i, i + half)."""
    if rotary is None:
        return x
    count = int(x.shape[-1] * rotary.fraction)
    angles = np.arange(len(x))[:, None, None] * frequencies(rotary, count)
    a, b, rest = x[..., : count // 2], x[..., count // 2 : count], x[..., count:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles), rest], -1)


def norm(x: np.ndarray, p: dict, kind: str, epsilon: float) -> np.ndarray:
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * p["scale"] + p.get("bias", 0.0)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu_tanh": gelu_tanh,
    "geglu": gelu_tanh,
    "gelu": lambda x: 0.5 * x * (1 + special.erf(x / math.sqrt(2))),
    "swiglu": lambda x: x / (1 + np.exp(-x)),
}


def dense(x: np.ndarray, p: dict, axes: int = 1) -> np.ndarray:
    return np.tensordot(x, p["kernel"], axes) + p.get("bias", 0.0)


def attention(a: Architecture, p: dict, x: np.ndarray, layer: int) -> np.ndarray:
    q, k, v = (dense(x, p[name]) for name in ("query", "key", "value"))
    if a.block.qk_norm == "rms":
        q, k = norm(q, p["query_norm"], "rms", a.block.epsilon), norm(k, p["key_norm"], "rms", a.block.epsilon)
    is_windowed = layer in a.windowed
    rotary = a.rotary_windowed if is_windowed and a.rotary_windowed else a.rotary
    q, k = turned(q, rotary), turned(k, rotary)
    places = np.arange(len(x))
    distance = places[:, None] - places
    seen = (distance >= 0) & (distance < (a.window if is_windowed else len(x)))
    found = np.empty((len(x), a.heads, a.value_dim))
    for head in range(a.heads):
        group = head // (a.heads // a.kv_heads)
        scores = q[:, head] @ k[:, group].T * (a.block.attention_scale or a.key_dim**-0.5)
        scores = a.block.score_cap * np.tanh(scores / a.block.score_cap) if a.block.score_cap else scores
        found[:, head] = special.softmax(np.where(seen, scores, -np.inf), axis=-1) @ v[:, group]
    return dense(found, p["memory"]["out"], 2)


def mlp(a: Architecture, p: dict, x: np.ndarray) -> np.ndarray:
    act = ACTIVATIONS[a.block.mlp]
    hidden = act(dense(x, p["gate"])) * dense(x, p["up"]) if "gate" in p else act(dense(x, p["up"]))
    return dense(hidden, p["down"])


def logits(a: Architecture, params: dict[str, Any], ids: np.ndarray, group: str) -> np.ndarray:
    """Logits SxN of tokens S; `group` is the name of the only layer group."""
    x = params["embedding"]["embedding"][ids].astype(np.float64) * a.block.embedding_scale
    if a.block.learned_positions:
        x = x + params["positions"]["embedding"][: len(ids)]
    for layer in range(a.layers):
        p = of_layer(params[group], layer)
        y = attention(a, p, norm(x, p["attention_norm"], a.block.norm, a.block.epsilon), layer)
        if a.block.norm_places == "both":
            y = norm(y, p["attention_norm_after"], a.block.norm, a.block.epsilon)
        into_mlp = x if a.block.residual == "parallel" else x + y
        z = mlp(a, p["mlp"], norm(into_mlp, p["mlp_norm"], a.block.norm, a.block.epsilon))
        if a.block.norm_places == "both":
            z = norm(z, p["mlp_norm_after"], a.block.norm, a.block.epsilon)
        x = x + y + z
    x = norm(x, params["norm"], a.block.norm, a.block.epsilon)
    found = x @ params["embedding"]["embedding"].T if a.block.head == "tied" else dense(x, params["head"])
    return a.block.logit_cap * np.tanh(found / a.block.logit_cap) if a.block.logit_cap else found


def of_layer(tree: dict[str, Any], layer: int) -> dict[str, Any]:
    """The parameters of one layer, float64."""
    return {
        name: of_layer(inner, layer) if isinstance(inner, dict) else inner[layer].astype(np.float64)
        for name, inner in tree.items()
    }
