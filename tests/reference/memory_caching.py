"""Memory Caching over the delta rule of Kimi delta attention in float64 NumPy loops; nothing is the package's."""

import numpy as np

from tests.reference.infini import local, sigmoid, unit
from tests.reference.running_delta import log_decay, step


def row(arrays, documents, *, lengths, params, slots, selected, begins):
    """(A TxHxV, {"S": GxKxV, "states": NxGxKxV, "topics": NxGxK}) of one row cut into segments of `lengths`.

    N are the entries that are held, at most `slots`.
    """
    inputs, queries, keys, values = arrays
    tokens, heads, size = queries.shape
    key_heads, width = values.shape[1:]
    S, A, cached, open_document, begin = np.zeros((key_heads, size, width)), np.zeros((tokens, heads, width)), [], None, 0
    for length in lengths:
        if begins == "empty":
            S = np.zeros_like(S)
        read, topics = list(cached), []
        for t in range(begin, begin + length):
            before = documents[t - 1] if t > begin else open_document
            if documents[t] != before:
                S, topics, cached = np.zeros_like(S), [], []
            k = np.stack([unit(key) for key in keys[t]])
            topics.append(k)
            for g in range(key_heads):
                strength = sigmoid(inputs[t] @ params["strength"]["kernel"][:, g])
                S[g] = step(S[g], k[g], strength * k[g], strength * values[t, g], log_decay(params, inputs[t], g))
            for h in range(heads):
                g = h // (heads // key_heads)
                sees = [(state[g], topic[g]) for state, topic in read] if documents[t] == open_document else []
                u, topic = inputs[t] @ params["connect"]["kernel"][:, h], np.mean(topics, axis=0)[g]
                remembered = weighed(u, S[g], topic, sees, selected)
                near = local(t, begin, queries, keys, values, documents, h)
                weight, o = sigmoid(params["gate"][h]), remembered.T @ queries[t, h] / np.sqrt(size)
                A[t, h] = weight * o + (1 - weight) * near
        cached = [*cached, (S.copy(), np.mean(topics, axis=0))][-slots:]
        open_document, begin = documents[begin + length - 1], begin + length
    states, topics = (np.stack(parts) for parts in zip(*cached, strict=True))
    return A, {"S": S, "states": states, "topics": topics}


def weighed(u, S, topic, cached, selected):
    """The sum of the memories that a token reads, each times its gamma: as a matrix KxV, which is linear memories' soup."""
    scored = sorted(((u @ about, state) for state, about in cached), key=lambda one: -one[0])
    scored = [*(scored[:selected] if selected else scored), (u @ topic, S)]
    gamma = np.exp([score for score, _ in scored])
    return sum(weight * state for weight, (_, state) in zip(gamma / gamma.sum(), scored, strict=True))
