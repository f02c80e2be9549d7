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


def stream(S, keys, values, beta, g, keeps):
    """(S before each segment WxKxV, S after the last) of one head: keys WxTxK of any length, values WxTxV, gates WxT."""
    before = []
    for segment, kept in enumerate(keeps):
        before.append(S)
        S = S if kept else np.zeros_like(S)
        for t in range(keys.shape[1]):
            S = write(S, unit(keys[segment, t]), values[segment, t], beta[segment, t], g[segment, t])
    return np.stack(before), S


def stream_gradients(S, keys, values, beta, g, keeps, before_slope, after_slope):
    """Gradients of sum(before * before_slope) + sum(after * after_slope) by all arguments of `stream` but the last.

    Token by token from the last one: with P = e^g S, r = v - P^T k and S' = P + beta k r^T,
      d_beta = k^T D r,  dr = beta D^T k,  dk = beta D r - P dr,  dv = dr,  dP = D - k dr^T,  dg = sum(dP P),  dS = e^g dP
    and a key x of length n = sqrt(|x|^2 + 1e-6) has dx = dk / n - x (x . dk) / n^3.
    """
    passed = []  # S before each token
    state = S
    for segment, kept in enumerate(keeps):
        state = state if kept else np.zeros_like(state)
        for t in range(keys.shape[1]):
            passed.append(state)
            state = write(state, unit(keys[segment, t]), values[segment, t], beta[segment, t], g[segment, t])
    slopes = [np.zeros_like(x) for x in (keys, values, beta, g)]
    D = after_slope
    for segment in reversed(range(len(keeps))):
        for t in reversed(range(keys.shape[1])):
            x, k, strength = keys[segment, t], unit(keys[segment, t]), beta[segment, t]
            P = np.exp(g[segment, t]) * passed[segment * keys.shape[1] + t]
            r, dr = values[segment, t] - P.T @ k, strength * D.T @ k
            dk, dP, n = strength * D @ r - P @ dr, D - np.outer(k, dr), np.sqrt(x @ x + 1e-6)
            found = dk / n - x * (x @ dk) / n**3, dr, k @ D @ r, np.sum(dP * P)
            for slope, one in zip(slopes, found, strict=True):
                slope[segment, t] = one
            D = np.exp(g[segment, t]) * dP
        D = (D if keeps[segment] else np.zeros_like(D)) + before_slope[segment]
    return D, *slopes
