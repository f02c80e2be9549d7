"""Infini-attention in float64 NumPy loops: one row, one head, one token at a time.

Written from the paper's equations and from the feature maps' definitions; nothing is shared with the package. Query head h
reads key head h // (H // G), locally and in memory: queries TxHxK, keys TxGxK, values TxGxV.
"""

import numpy as np

from tests.reference.attention import rotate, softmax


def elu_plus_one(x):
    return np.array([entry + 1.0 if entry > 0 else np.exp(entry) for entry in x])


def unit(x):
    return x / np.sqrt(sum(entry**2 for entry in x) + 1e-6)


def dpfp(x, nu):
    """Schlag et al. 2021: products of neighbours at distance 1..nu on the ring of relu([x, -x])."""
    ring = [max(entry, 0.0) for entry in x] + [max(-entry, 0.0) for entry in x]
    return np.array([ring[i] * ring[i - j] for j in range(1, nu + 1) for i in range(len(ring))])


def taylor2(x):
    """Of s = q . k / sqrt(K): 1, then s, then s^2 / 2 with each unordered pair once."""
    size = len(x)
    y = x / size**0.25
    pairs = [y[i] * y[j] * (np.sqrt(0.5) if i == j else 1.0) for i in range(size) for j in range(i, size)]
    return np.array([1.0, *y, *pairs])


def features_of(name, x, nu):
    if name == "dpfp":
        return dpfp(x, nu)
    return {"elu_plus_one": elu_plus_one, "unit": unit, "taylor2": taylor2}[name](x)


def read(M, z, feature):
    """eq. 7 for one query of one head; `z` None reads without a normaliser."""
    if z is None:
        return feature @ M
    return feature @ M / (feature @ z) if feature @ z > 0 else np.zeros(M.shape[1])


def local(t, begin, queries, keys, values, documents, head):
    """eq. 6: token t over the tokens of its segment (from `begin`) and document, rotary by the place in the segment."""
    seen = [j for j in range(begin, t + 1) if documents[j] == documents[t]]
    q, g = rotate(queries[t, head], t - begin), head // (queries.shape[1] // keys.shape[1])
    scores = np.array([q @ rotate(keys[j, g], j - begin) for j in seen]) / np.sqrt(len(q))
    return sum(weight * values[j, g] for weight, j in zip(softmax(scores), seen, strict=True))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gated(beta, remembered, t, begin, queries, keys, values, documents, head):
    """eq. 10 for one token and head."""
    weight = sigmoid(beta)
    return weight * remembered + (1.0 - weight) * local(t, begin, queries, keys, values, documents, head)


def row(arrays, documents, *, lengths, beta, rule, feature_map, nu, normalise):
    """(A TxHxV, {"M": GxFxV, "z": GxF}) of the inputs, queries, keys and values of one row cut into segments of `lengths`."""
    _, queries, keys, values = arrays
    tokens, heads, _ = queries.shape
    key_heads, width = values.shape[1:]
    size = len(features_of(feature_map, keys[0, 0], nu))
    M, z = np.zeros((key_heads, size, width)), np.zeros((key_heads, size))
    A = np.zeros((tokens, heads, width))
    open_document, begin = None, 0
    for length in lengths:
        segment = range(begin, begin + length)
        for t in segment:
            for h in range(heads):
                remembered, g = np.zeros(width), h // (heads // key_heads)
                if documents[t] == open_document:
                    remembered = read(M[g], z[g] if normalise else None, features_of(feature_map, queries[t, h], nu))
                A[t, h] = gated(beta[h], remembered, t, begin, queries, keys, values, documents, h)
        last = documents[segment[-1]]
        if last != open_document:
            M, z = np.zeros_like(M), np.zeros_like(z)
        before = M.copy(), z.copy()
        for t in segment:
            for g in range(key_heads):
                if documents[t] != last:
                    continue
                feature, value = features_of(feature_map, keys[t, g], nu), values[t, g]
                if rule == "delta":
                    value = value - read(before[0][g], before[1][g] if normalise else None, feature)
                M[g] += np.outer(feature, value)
                z[g] += feature
        open_document, begin = last, begin + length
    return A, {"M": M, "z": z} if normalise else {"M": M}
