"""∞-former in float64 NumPy, row by row, head by head, token by token: slow and plain, for the tests.

Everything the fast form avoids is done here: keys of all N coefficients, the scores z, matrix inverses, masks by loops.
Parameters are a dict with the module's names: w_mu N, w_sigma N, w_k DxGxK, w_v DxGxV, gate_kernel 3xDxD, gate_bias D,
out HxVxD, long_out HxVxD.
"""

import numpy as np

from tests.reference import attention


def basis(count, widths):
    centres = np.linspace(0, 1, count // len(widths))
    return [(centre, width) for centre in centres for width in widths]


def normal(t, mean, deviation):
    return np.exp(-((t - mean) ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))


def evaluate(times, functions):
    return np.array([[normal(t, centre, width) for centre, width in functions] for t in times])


def regression(positions, functions, ridge):
    F = evaluate(positions, functions).T
    return F.T @ np.linalg.inv(F @ F.T + ridge * np.eye(len(functions)))


def first_matrix(length, functions, ridge):
    if length % 2:
        shift = 1 / length
        positions = np.linspace(-0.5 + shift, 1.5 - shift, 2 * length - 1)
    else:
        shift = 1 / (2 * length)
        positions = np.linspace(-0.5 + shift, 1.5 - shift, 2 * length)
    inside = (positions > 0) & (positions < 1)
    return regression(positions, functions, ridge)[inside]


def second_matrix(length, functions, ridge, samples, tau):
    shift = 1 / (2 * length + samples)
    around = np.linspace(-0.5 + shift, 1.5 - shift, 2 * (length + samples))
    old = [tau * m / samples for m in range(1, samples + 1)]
    new = [tau + (1 - tau) * i / length for i in range(1, length + 1)]
    before, after = list(around[around < 0]), list(around[around > 1])
    matrix = regression(before + old + new + after, functions, ridge)
    return matrix[len(before) : len(before) + samples + length]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated(x, params):
    out = np.zeros_like(x)
    for t in range(len(x)):
        mixed = params["gate_bias"].copy()
        for tap in range(3):
            if 0 <= t + tap - 1 < len(x):
                mixed = mixed + x[t + tap - 1] @ params["gate_kernel"][tap]
        out[t] = x[t] * sigmoid(mixed)
    return out


def written(B, leaving, length, params, config):
    """Coefficients once `leaving`, the last of `length` vectors, are written; B is None where there was no signal."""
    functions = basis(config.basis, config.widths)
    before = length - len(leaving)
    x = np.concatenate([np.zeros((before, leaving.shape[1])), leaving])
    x = gated(x, params)
    assert not np.any(x[:before])
    if B is None:
        return first_matrix(length, functions, config.ridge).T @ x
    times = [m / config.samples for m in range(1, config.samples + 1)]
    signal = evaluate(times, functions) @ B
    matrix = second_matrix(length, functions, config.ridge, config.samples, config.tau)
    return matrix.T @ np.concatenate([signal, x])


def write_row(B, x, documents, open_document, params, config):
    """Coefficients after one segment of one row, without a cache."""
    last = documents[-1]
    ours = [document == last for document in documents]
    return written(B if last == open_document else None, x[ours], len(x), params, config)


def read_query(q_HxK, B, params, config):
    """One query: (context HxV, mu H, sigma^2 H, r HxN)."""
    functions = basis(config.basis, config.widths)
    contexts, mus, variances, rs = [], [], [], []
    for head, q in enumerate(q_HxK):
        shared = head // (len(q_HxK) // params["w_k"].shape[1])
        keys, values = B @ params["w_k"][:, shared], B @ params["w_v"][:, shared]
        z = keys @ q / np.sqrt(len(q))
        mu = sigmoid(params["w_mu"] @ z)
        variance = max(np.log1p(np.exp(params["w_sigma"] @ z)), 1e-6)
        r = np.array([normal(mu, centre, np.sqrt(width**2 + variance)) for centre, width in functions])
        contexts.append(r @ values)
        mus.append(mu)
        variances.append(variance)
        rs.append(r)
    return np.array(contexts), np.array(mus), np.array(variances), np.array(rs)


def kl(variance, sigma_0):
    return 0.5 * (variance / sigma_0**2 - np.log(variance / sigma_0**2) - 1)


def short_term(live, held, documents, lengths, cached):
    """Softmax attention over the segment and `cached` tokens before it: TxHxV."""
    return attention.stream(live, held, documents, lengths, attention.in_cache(cached))


def long_term(B, queries, reads, params, config):
    """(long-term context through its output kernel SxD, KL of every query and head SxH), zero where nothing may be read."""
    outputs, divergences = [], []
    for query, may_read in zip(queries, reads, strict=True):
        y, divergence = np.zeros(params["long_out"].shape[2]), np.zeros(len(query))
        if B is not None and may_read:
            context, _, variance, _ = read_query(query, B, params, config)
            y, divergence = np.einsum("hv,hvd->d", context, params["long_out"]), kl(variance, config.kl_sigma)
        outputs.append(y)
        divergences.append(divergence)
    return np.array(outputs), np.array(divergences)


def attend_row(B, queries, keys, values, documents, open_document, params, config):
    """One row of one segment without a cache: (output SxD, KL of every query and head SxH)."""
    arrays = (queries, keys, values)
    short = short_term(arrays, arrays, documents, [len(queries)], 0)
    long, divergences = long_term(B, queries, documents == open_document, params, config)
    return np.einsum("shv,hvd->sd", short, params["out"]) + long, divergences


def stream(live, held, documents, lengths, params, held_params, config):
    """One row over segments: (outputs TxD, B or None, inputs of the cached tokens, KL of every query and head a segment).

    `live` and `held` are layer inputs, queries, keys, values. What an earlier segment put into the cache is held, and so is
    the signal that a rewrite samples.
    """
    short = short_term(live[1:], held[1:], documents, lengths, config.cached)
    outputs, losses = np.einsum("thv,hvd->td", short, params["out"]), []
    B = held_B = None
    waiting, before, start = [], -1, 0
    for length in lengths:
        end = start + length
        long, divergences = long_term(B, live[1][start:end], documents[start:end] == before, params, config)
        outputs[start:end] += long
        losses.append(divergences)
        if documents[end - 1] != before:
            B, held_B, waiting, before = None, None, [], documents[end - 1]
        waiting += [t for t in range(start, end) if documents[t] == before]
        leaving = waiting[: max(len(waiting) - config.cached, 0)]
        waiting = waiting[len(leaving) :]
        if leaving:
            now = np.array([live[0][t] if t >= start else held[0][t] for t in leaving])
            B = written(held_B, now, length, params, config)
            held_B = written(held_B, held[0][leaving], length, held_params, config)
        start = end
    return outputs, B, held[0][waiting], losses
