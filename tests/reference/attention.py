"""Softmax attention token by token in float64 NumPy, over keys that are picked by rules on the whole stream.

No segments are shifted and no masks are made: a rule says which earlier tokens a token sees, so a streamed form is
compared with one long attention. Arrays: q TxHxK, k TxGxK, v TxGxV of one row, documents T; query head h reads key
head h // (H // G).

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


def plain_logit(q, k, distance, head):
    return q @ k / np.sqrt(len(q))


def relative_logit(w_r, u, v):
    """Transformer-XL's, with W_r DxHxK."""

    def logit(q, k, distance, head):
        pairs = range(0, len(w_r), 2)
        sines = [np.sin(distance * 10_000.0 ** (-i / len(w_r))) for i in pairs]
        cosines = [np.cos(distance * 10_000.0 ** (-i / len(w_r))) for i in pairs]
        r = np.array(sines + cosines) @ w_r[:, head]
        return ((q + u[head]) @ k + (q + v[head]) @ r) / np.sqrt(len(q))

    return logit


def t5_bucket(distance, buckets=32, max_distance=128):
    exact = buckets // 2
    if distance < exact:
        return distance
    far = np.log(distance / exact) / np.log(max_distance / exact) * (buckets - exact)
    return min(exact + int(far), buckets - 1)


def t5_logit(table):
    """A bias of each distance's bucket, table NxH."""
    return lambda q, k, distance, head: q @ k / np.sqrt(len(q)) + table[t5_bucket(distance, len(table)), head]


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
            g = h // (q.shape[1] // k.shape[1])
            keys = [k[j, g] if j >= starts[t] else held_k[j, g] for j in seen]
            values = [v[j, g] if j >= starts[t] else held_v[j, g] for j in seen]
            weights = softmax(np.array([logit(q[t, h], key, t - j, h) for key, j in zip(keys, seen, strict=True)]))
            heads.append(weights @ np.array(values))
        outputs.append(heads)
    return np.array(outputs)


def last_of_document(x, documents, slots):
    """The newest `slots` entries of the document that is open at the end of the row."""
    return x[documents == documents[-1]][-slots:]
