"""A block-recurrent layer (arXiv 2203.07852) in float64 NumPy: one row, one state or token and head at a time."""

import numpy as np

from tests.reference.attention import softmax
from tests.reference.infini import local, sigmoid


def attended(query_K, keys_JxK, values_JxV):
    return softmax(keys_JxK @ query_K / np.sqrt(len(query_K))) @ values_JxV


def of_states(p, s_NxD):
    """(inputs NxD, keys NxGxK, values NxGxV) of states."""
    inputs = [s / np.sqrt(np.mean(s**2) + 1e-6) * p["norm"]["scale"] + own for s, own in zip(s_NxD, p["ids"], strict=True)]
    made = [[np.einsum("d,dgk->gk", x, p[name]["kernel"]) for x in inputs] for name in ("state_keys", "state_values")]
    return np.array(inputs), *map(np.array, made)


def read(p, s_NxD, x_D, heads):
    """What a token with the input `x_D` reads of states: HxV."""
    _, keys, values = of_states(p, s_NxD)
    shared = heads // keys.shape[1]
    asked = np.einsum("d,dhk->hk", x_D, p["ask"]["kernel"])
    return [attended(asked[h], keys[:, h // shared], values[:, h // shared]) for h in range(heads)]


def written(p, s_NxD, token_keys, token_values, heads, gate):
    """The states after a segment whose tokens have keys and values JxGxK, JxGxV."""
    inputs, keys, values = of_states(p, s_NxD)
    shared, after = heads // keys.shape[1], []
    for s_D, x_D in zip(s_NxD, inputs, strict=True):
        asked = np.einsum("d,dchk->chk", x_D, p["state_queries"]["kernel"])
        h = [attended(asked[0, h], keys[:, h // shared], values[:, h // shared]) for h in range(heads)]
        h += [attended(asked[1, h], token_keys[:, h // shared], token_values[:, h // shared]) for h in range(heads)]
        after.append(gated(p["gate"], s_D, np.concatenate(h), gate))
    return np.array(after)


def gated(p, s_D, h_C, gate):
    def dense(name):
        return h_C @ p[name]["kernel"] + p[name]["bias"]

    if gate == "fixed":
        kept = sigmoid(p["kept"])
        return kept * s_D + (1 - kept) * dense("new")
    return sigmoid(dense("forget") + 1) * s_D + sigmoid(dense("input") - 1) * np.tanh(dense("new"))


def row(params, arrays, documents, *, lengths, gate):
    """(values Tx2HxV before both output kernels, states NxD behind the last segment) of one row."""
    inputs, queries, keys, values = arrays
    states, open_document, outputs, heads, begin = params["start"], None, [], queries.shape[1], 0
    for length in lengths:
        end = begin + length
        for t in range(begin, end):
            seen = local_of(t, begin, queries, keys, values, documents)
            of_document = states if documents[t] == open_document else params["start"]
            outputs.append([*seen, *read(params, of_document, inputs[t], heads)])
        last = documents[end - 1]
        own = [t for t in range(begin, end) if documents[t] == last]
        held = states if last == open_document else params["start"]
        states = written(params, held, keys[own], values[own], heads, gate)
        open_document, begin = last, end
    return np.array(outputs), states


def local_of(t, begin, queries, keys, values, documents):
    return [local(t, begin, queries, keys, values, documents, h) for h in range(queries.shape[1])]
