"""Softmax attention token by token in float64 NumPy, over keys that are picked by rules on the whole stream.

No segments are shifted and no masks are made: a rule says which earlier tokens a token sees, so a streamed form is
compared with one long attention. Arrays: q, k TxHxK, v TxHxV of one row, documents T.

Gradients are taken by central differences along a direction. Mechanisms stop some gradients: a reference therefore takes
its inputs twice, `live` ones and `held` ones, and differences move the live ones only.
"""

import numpy as np


def softmax(logits):
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


def rotate(x, place):
    """The pairs (i, i + K/2) of one vector turned by place * 10000^(-2i/K)."""
    half = len(x) // 2
    turned = np.empty_like(x)
    for i in range(half):
        angle = place * 10_000.0 ** (-2 * i / len(x))
        turned[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        turned[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return turned


def rotary_logit(q, k, distance, head):
    return rotate(q, distance) @ k / np.sqrt(len(q))


def segment_starts(lengths):
    """The first token of the segment that each token is in."""
    return [start for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False) for _ in range(length)]


def in_window(window):
    return lambda t, source, start: t - source < window


def in_cache(slots):
    """The token's own segment and the `slots` tokens before it."""
    return lambda t, source, start: source >= start - slots


def stream(live, held, documents, lengths, sees, logit=rotary_logit):
    """Outputs TxHxV of one row; keys and values of earlier segments are the held ones."""
    (q, k, v), (_, held_k, held_v) = live, held
    starts, outputs = segment_starts(lengths), []
    for t in range(len(q)):
        seen = [j for j in range(t + 1) if documents[j] == documents[t] and sees(t, j, starts[t])]
        heads = []
        for h in range(q.shape[1]):
            keys = [k[j, h] if j >= starts[t] else held_k[j, h] for j in seen]
            values = [v[j, h] if j >= starts[t] else held_v[j, h] for j in seen]
            weights = softmax(np.array([logit(q[t, h], key, t - j, h) for key, j in zip(keys, seen, strict=True)]))
            heads.append(weights @ np.array(values))
        outputs.append(heads)
    return np.array(outputs)


def last_of_document(x, documents, slots):
    """The newest `slots` entries of the document that is open at the end of the row."""
    return x[documents == documents[-1]][-slots:]


def slope(function, inputs, direction, step=1e-3):
    """d/de function(inputs + e direction) at 0: central differences of fourth order, good to about 1e-10 of the terms."""

    def at(e):
        return function([x + e * d for x, d in zip(inputs, direction, strict=True)])

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
