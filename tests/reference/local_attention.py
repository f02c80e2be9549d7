"""Local attention a query at a time in float64, with the gradients of the textbook.

q BxSxHxK, k BxJxGxK, v BxJxGxV: query head h reads key head h // (H // G), whose gradients are sums over its query heads.
"""

import numpy as np


def sees(query: int, key: int, documents_S, key_documents_J, start: int, prefix: int, window: int | None) -> bool:
    distance = (start + query) - (key - prefix)
    near = distance >= 0 and (window is None or distance < window)
    return near and documents_S[query] == key_documents_J[key]


def attention(q, k, v, scale, bias, documents, key_documents, start=0, prefix=0, window=None):
    """(y BxSxHxV, lse BxHxS, weights BxHxSxJ); a row that sees nothing is zero and has lse -1e30."""
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    y, lse = np.zeros((*q.shape[:3], v.shape[-1])), np.full((batch, heads, queries), -1e30)
    weights = np.zeros((batch, heads, queries, keys))
    for b, h, i in np.ndindex(batch, heads, queries):
        seen = [j for j in range(keys) if sees(i, j, documents[b], key_documents[b], start, prefix, window)]
        if not seen:
            continue
        distance = [start + i + prefix - j for j in seen]
        g = h // (heads // k.shape[2])
        scores = scale[h] * (k[b, seen, g] @ q[b, i, h]) + bias[h, distance]
        lse[b, h, i] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
        weights[b, h, i, seen] = np.exp(scores - lse[b, h, i])
        y[b, i, h] = weights[b, h, i] @ v[b, :, g]
    return y, lse, weights


def gradients(q, k, v, scale, bias, documents, key_documents, dy, dlse, start=0, prefix=0, window=None):
    """Gradients of sum(y dy) + sum(lse dlse): (dq, dk, dv, dscale, dbias)."""
    y, _, weights = attention(q, k, v, scale, bias, documents, key_documents, start, prefix, window)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    dscale, dbias = np.zeros(scale.shape), np.zeros(bias.shape)
    for b, h, i in np.ndindex(weights.shape[:3]):
        p, g = weights[b, h, i], h // (q.shape[2] // k.shape[2])
        dv[b, :, g] += np.outer(p, dy[b, i, h])
        ds = p * (v[b, :, g] @ dy[b, i, h] - y[b, i, h] @ dy[b, i, h] + dlse[b, h, i])
        dq[b, i, h] += scale[h] * (ds @ k[b, :, g])
        dk[b, :, g] += scale[h] * np.outer(ds, q[b, i, h])
        dscale[h] += ds @ (k[b, :, g] @ q[b, i, h])
        for j in np.flatnonzero(p):
            dbias[h, start + i + prefix - j] += ds[j]
    return dq, dk, dv, dscale, dbias
