"""∞-former in float64 NumPy, row by row, head by head, token by token: slow and plain, for the tests.

Everything the fast form avoids is done here: keys of all N coefficients, the scores z, matrix inverses, masks by loops.
Parameters are a dict with the module's names: w_mu N, w_sigma N, w_k DxHxK, w_v DxHxV, gate_kernel 3xDxD, gate_bias D,
out HxVxD, long_out HxVxD.
"""

import numpy as np


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


def write_row(B, x, documents, open_document, params, config):
    """Coefficients after one segment of one row; B is None where nothing was written before."""
    functions = basis(config.basis, config.widths)
    last = documents[-1]
    ours = np.array([document == last for document in documents])
    x = gated(np.where(ours[:, None], x, 0.0), params) * ours[:, None]
    if B is None or last != open_document:
        return first_matrix(len(x), functions, config.ridge).T @ x
    times = [m / config.samples for m in range(1, config.samples + 1)]
    signal = evaluate(times, functions) @ B
    matrix = second_matrix(len(x), functions, config.ridge, config.samples, config.tau)
    return matrix.T @ np.concatenate([signal, x])


def read_query(q_HxK, B, params, config):
    """One query: (context HxV, mu H, sigma^2 H, r HxN)."""
    functions = basis(config.basis, config.widths)
    contexts, mus, variances, rs = [], [], [], []
    for head, q in enumerate(q_HxK):
        keys, values = B @ params["w_k"][:, head], B @ params["w_v"][:, head]
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


def rotate(x, position):
    half = len(x) // 2
    out = np.zeros(len(x))
    for i in range(half):
        angle = position * 10_000.0 ** (-i / half)
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def local(t, queries, keys, values, documents):
    """Short-term attention of query t: HxV."""
    out = []
    for head in range(queries.shape[1]):
        q = rotate(queries[t, head], t)
        seen = [j for j in range(t + 1) if documents[j] == documents[t]]
        scores = np.array([q @ rotate(keys[j, head], j) for j in seen]) / np.sqrt(len(q))
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum()
        out.append(sum(weight * values[j, head] for weight, j in zip(weights, seen, strict=True)))
    return np.array(out)


def attend_row(B, queries, keys, values, documents, open_document, params, config):
    """One row of one segment: (output SxD, KL of every query and head SxH, zero where nothing may be read)."""
    outputs, divergences = [], []
    for t, query in enumerate(queries):
        y = np.einsum("hv,hvd->d", local(t, queries, keys, values, documents), params["out"])
        divergence = np.zeros(len(query))
        if B is not None and documents[t] == open_document:
            context, _, variance, _ = read_query(query, B, params, config)
            y = y + np.einsum("hv,hvd->d", context, params["long_out"])
            divergence = kl(variance, config.kl_sigma)
        outputs.append(y)
        divergences.append(divergence)
    return np.array(outputs), np.array(divergences)
