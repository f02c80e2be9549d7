"""Delta rules with gates of each channel in float64 NumPy loops, read after every token; nothing is the package's."""

import numpy as np

from tests.reference.infini import local, sigmoid, unit


def step(S, k, e, v, g):
    """S_t = (I - k e^T) Diag(exp g) S + k v^T for one token of one head."""
    return (np.eye(len(k)) - np.outer(k, e)) @ (np.exp(g)[:, None] * S) + np.outer(k, v)


def log_decay(params, x, g):
    """Logarithms K of the factors by which a token with input `x` keeps the channels of key head `g`."""
    logit = x @ params["forget_down"]["kernel"] @ params["forget_up"]["kernel"][:, g] + params["forget_up"]["bias"][g]
    return -np.exp(params["forget_rate"][g]) * np.log(1 + np.exp(logit))


def row(arrays, documents, *, lengths, params, gates):
    """(A TxHxV, {"S": GxKxV}) of the inputs, queries, keys and values of one row, cut into segments of `lengths`.

    `gates` gives (erased share of each channel K, written share of each channel V) of (an input, the number of a key head).
    S is that of a token's document alone: where a segment ends matters to local attention only.
    """
    inputs, queries, keys, values = arrays
    tokens, heads, size = queries.shape
    key_heads, width = values.shape[1:]
    S, A = np.zeros((key_heads, size, width)), np.zeros((tokens, heads, width))
    begins = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    for t in range(tokens):
        if t and documents[t] != documents[t - 1]:
            S = np.zeros_like(S)
        for g in range(key_heads):
            (erased, written), k = gates(inputs[t], g), unit(keys[t, g])
            S[g] = step(S[g], k, erased * k, written * values[t, g], log_decay(params, inputs[t], g))
        for h in range(heads):
            weight, read = sigmoid(params["gate"][h]), S[h // (heads // key_heads)].T @ queries[t, h] / np.sqrt(size)
            near = local(t, begins[t], queries, keys, values, documents, h)
            A[t, h] = weight * read + (1 - weight) * near
    return A, {"S": S}
