"""Log-linear attention in float64 NumPy loops: the states of the levels token by token; nothing is shared with the package."""

import numpy as np

from tests.reference.infini import local, sigmoid, unit


def merged(states, place):
    """The states of the levels before the token at `place` (from 0) is added, L + 1 of them, of which the first is its own.

    With b the lowest bit that is set in the place, levels 0 to b become level b + 1, and those above stay.
    """
    if place == 0:
        return np.zeros_like(states)
    target = min((place & -place).bit_length(), len(states) - 1)
    return np.stack([np.zeros_like(states[0])] * target + [states[: target + 1].sum(axis=0), *states[target + 1 :]])


def row(arrays, documents, *, lengths, params, levels):
    """(A TxHxV, {"S": LxGxKxV, "count"}) of inputs, queries, keys and values of a row, cut into segments of `lengths`."""
    inputs, queries, keys, values = arrays
    tokens, heads, size = queries.shape
    key_heads, width = values.shape[1:]
    A, begins, place = np.zeros((tokens, heads, width)), np.repeat(np.cumsum([0, *lengths[:-1]]), lengths), 0
    states = np.zeros((key_heads, levels + 1, size, width))
    for t in range(tokens):
        place = place + 1 if t and documents[t] == documents[t - 1] else 0
        for g in range(key_heads):
            logit = inputs[t] @ params["forget"]["kernel"][:, g] + params["forget"]["bias"][g]
            decay = np.exp(-np.exp(params["forget_rate"][g]) * np.log(1 + np.exp(logit)))
            states[g] = decay * merged(states[g], place)
            states[g, 0] = np.outer(unit(keys[t, g]), values[t, g])
        for h in range(heads):
            logits = inputs[t] @ params["weigh"]["kernel"][:, h] + params["weigh"]["bias"][h]
            weights, S = np.log(1 + np.exp(logits)), states[h // (heads // key_heads)]
            read = sum(weight * state.T @ queries[t, h] for weight, state in zip(weights, S, strict=True)) / np.sqrt(size)
            near = local(t, begins[t], queries, keys, values, documents, h)
            A[t, h] = sigmoid(params["gate"][h]) * read + (1 - sigmoid(params["gate"][h])) * near
    carried = np.stack([merged(of_head, place + 1)[1:] for of_head in states], axis=1)
    return A, {"S": carried, "count": np.float64(place + 1)}
