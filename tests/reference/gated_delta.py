"""The gated delta rule in float64 NumPy loops, one token after the other; nothing is shared with the package."""

import numpy as np

from tests.reference.infini import gated, sigmoid, unit


def write(S, k, v, beta, g):
    """S_t = e^g S + beta k (v - k^T e^g S)^T for one token of one head."""
    S = np.exp(g) * S
    return S + beta * np.outer(k, v - k @ S)


def row(inputs, queries, keys, values, documents, *, lengths, params):
    """(A TxHxV, {"S": HxKxV}) of one row cut into segments of `lengths`; no "forget" among `params` is no decay."""
    heads, width, size = *values.shape[1:], keys.shape[-1]
    S, A = np.zeros((heads, size, width)), np.zeros(values.shape)
    open_document, begin = None, 0
    for length in lengths:
        tokens = range(begin, begin + length)
        for t in tokens:
            for h in range(heads):
                remembered = S[h].T @ queries[t, h] / np.sqrt(size) if documents[t] == open_document else np.zeros(width)
                A[t, h] = gated(params["gate"][h], remembered, t, begin, queries, keys, values, documents, h)
        last = documents[tokens[-1]]
        if last != open_document:
            S = np.zeros_like(S)
        for t in tokens:
            for h in range(heads):
                if documents[t] != last:
                    continue
                beta, g = sigmoid(inputs[t] @ params["strength"][:, h]), 0.0
                if "forget" in params:
                    logit = inputs[t] @ params["forget"][:, h] + params["forget_bias"][h]
                    g = -np.exp(params["forget_rate"][h]) * np.log(1 + np.exp(logit))
                S[h] = write(S[h], unit(keys[t, h]), values[t, h], beta, g)
        open_document, begin = last, begin + length
    return A, {"S": S}
