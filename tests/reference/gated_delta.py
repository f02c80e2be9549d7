"""The gated delta rule in float64 NumPy loops, one token after the other; nothing is shared with the package."""

import numpy as np

from tests.reference.infini import gated, sigmoid, unit


def write(S, k, v, beta, g):
    """S_t = e^g S + beta k (v - k^T e^g S)^T for one token of one head."""
    S = np.exp(g) * S
    return S + beta * np.outer(k, v - k @ S)


def row(arrays, documents, *, lengths, params):
    """(A TxHxV, {"S": GxKxV}) of the inputs, queries, keys and values of one row cut into segments of `lengths`.

    Query head h reads the S of key head h // (H // G); no "forget" among `params` is no decay.
    """
    inputs, queries, keys, values = arrays
    tokens, heads, size = queries.shape
    key_heads, width = values.shape[1:]
    S, A = np.zeros((key_heads, size, width)), np.zeros((tokens, heads, width))
    open_document, begin = None, 0
    for length in lengths:
        segment = range(begin, begin + length)
        for t in segment:
            for h in range(heads):
                remembered = np.zeros(width)
                if documents[t] == open_document:
                    remembered = S[h // (heads // key_heads)].T @ queries[t, h] / np.sqrt(size)
                A[t, h] = gated(params["gate"][h], remembered, t, begin, queries, keys, values, documents, h)
        last = documents[segment[-1]]
        if last != open_document:
            S = np.zeros_like(S)
        for t in segment:
            for g in range(key_heads):
                if documents[t] != last:
                    continue
                beta, log_decay = sigmoid(inputs[t] @ params["strength"][:, g]), 0.0
                if "forget" in params:
                    logit = inputs[t] @ params["forget"][:, g] + params["forget_bias"][g]
                    log_decay = -np.exp(params["forget_rate"][g]) * np.log(1 + np.exp(logit))
                S[g] = write(S[g], unit(keys[t, g]), values[t, g], beta, log_decay)
        open_document, begin = last, begin + length
    return A, {"S": S}
