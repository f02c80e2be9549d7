"""Memorizing Transformer in float64 NumPy: one row, one token, one head at a time, with lists that grow and are cut.

One row: q TxHxK, k TxGxK, v TxGxV, documents T; query head h reads key head h // (H // G). Arrays come twice, live and held:
what is remembered, and which of it is nearest, comes from the held ones, as nothing there has a gradient.
"""

import numpy as np

from tests.reference.attention import softmax, t5_bucket


def unit(x):
    return x / np.sqrt(sum(entry**2 for entry in x) + 1e-6)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def remembered(q, held_q, entries, scale, k):
    """V_m of one head: the k entries nearest to the held query, weighed by the live one; `entries` are (key, value)."""
    nearest = sorted(entries, key=lambda entry: -(unit(held_q) @ entry[0]))[:k]
    weights = softmax(np.array([scale * (unit(q) @ key) for key, _ in nearest]))
    return weights @ np.array([value for _, value in nearest])


def local(q, entries, scale, bias):
    """V_c of one head over (key, value, distance)."""
    scores = [scale * (unit(q) @ key) + bias[t5_bucket(distance, len(bias))] for key, value, distance in entries]
    return softmax(np.array(scores)) @ np.array([value for _, value, _ in entries])


def head_of(entries, g):
    return [(keys[g], values[g]) for keys, values in entries]


def row(params, live, held, documents, *, lengths, slots, k, cached):
    """(V_a TxHxV, the ring's (keys, values), the cache's, tokens of the open document), lists oldest first."""
    (_, queries, keys, values), (_, held_queries, held_keys, held_values) = live, held
    shared, V_a = queries.shape[1] // keys.shape[1], np.zeros((*queries.shape[:2], values.shape[-1]))
    ring, recent, count, open_document, begin = [], [], 0, None, 0
    for length in lengths:
        for t in range(begin, begin + length):
            reads = documents[t] == open_document
            own = [j for j in range(begin, t + 1) if documents[j] == documents[t]]
            for h in range(queries.shape[1]):
                g, scale = h // shared, abs(params["scale"][h])
                seen = [(unit(keys[j, g]), values[j, g], t - j) for j in own]
                V_m = 0.0
                if reads:
                    seen += [(*entry, t - begin + age) for age, entry in enumerate(reversed(head_of(recent, g)), start=1)]
                    V_m = remembered(queries[t, h], held_queries[t, h], head_of(ring, g), scale, k)
                gate = sigmoid(params["gate"][h])
                V_a[t, h] = gate * V_m + (1 - gate) * local(queries[t, h], seen, scale, params["bias"][:, h])
        last = documents[begin + length - 1]
        if last != open_document:
            ring, recent, count = [], [], 0
        for j in range(begin, begin + length):
            if documents[j] == last:
                entry = [unit(key) for key in held_keys[j]], held_values[j]
                ring, recent, count = [*ring, entry], [*recent, entry], count + 1
        ring, recent = ring[-slots:], recent[len(recent) - min(len(recent), cached) :]
        open_document, begin = last, begin + length
    return V_a, ring, recent, count
