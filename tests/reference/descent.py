"""The delta rule once per segment, in float64 NumPy loops: what a step of gradient descent on 1/2 ||K W - V||^2 must equal."""

import numpy as np

from tests.reference.infini import local


def row(arrays, documents, *, lengths, start, rate):
    """(A TxHxV, GxKxV) of the inputs, queries, keys and values of one row cut into segments of `lengths`.

    W <- W + rate sum_t k_t (v_t - k_t W)^T, every key of a segment against the same W; a document begins with `start` GxKxV.
    """
    _, queries, keys, values = arrays
    tokens, heads, _ = queries.shape
    key_heads, width = values.shape[1:]
    W, A = np.array(start), np.zeros((tokens, heads, width))
    open_document, begin = None, 0
    for length in lengths:
        segment = range(begin, begin + length)
        for t in segment:
            for h in range(heads):
                of_document = W if documents[t] == open_document else start
                remembered = queries[t, h] @ of_document[h // (heads // key_heads)]
                A[t, h] = remembered + local(t, begin, queries, keys, values, documents, h)
        last = documents[segment[-1]]
        if last != open_document:
            W = np.array(start)
        for g in range(key_heads):
            written = [t for t in segment if documents[t] == last]
            W[g] = W[g] + rate * sum(np.outer(keys[t, g], values[t, g] - keys[t, g] @ W[g]) for t in written)
        open_document, begin = last, begin + length
    return A, W
