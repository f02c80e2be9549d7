"""Compressive Transformer in float64 NumPy, row by row, with lists that grow and are cut: no masks, no fixed shapes.

One row: q TxHxK, k TxGxK, v TxGxV, documents T; query head h reads key head h // (H // G). `compress` is a pair of (kernel
RxFxF, bias F) for keys and for values. Inputs and `compress` come twice, live and held: the memory is made of the held ones,
as nothing in it has a gradient.
"""

import numpy as np

from tests.reference.attention import rotary_logit, softmax


def convolve(entries, kernel, bias):
    """Strided convolution over a list of GxK entries, whose length is a multiple of the stride."""
    out = []
    for start in range(0, len(entries), len(kernel)):
        group = entries[start : start + len(kernel)]
        out.append((sum(x.ravel() @ tap for x, tap in zip(group, kernel, strict=True)) + bias).reshape(entries[0].shape))
    return out


def compressed(old, compress):
    """(keys, values) of the compression of a list of (key, value) entries."""
    sides = []
    for side, (kernel, bias) in enumerate(compress):
        entries = [entry[side] for entry in old]
        filling = [np.zeros_like(entries[0])] * (-len(entries) % len(kernel)) if entries else []
        sides.append(convolve(filling + entries, kernel, bias))
    return list(zip(*sides, strict=True))


def content_attention(q, entries):
    """One head's query over (key, value) vectors, without positions."""
    weights = softmax(np.array([q @ key / np.sqrt(len(q)) for key, _ in entries]))
    return weights @ np.array([value for _, value in entries])


def head_of(entries, g):
    return [(key[g], value[g]) for key, value in entries]


def attend(q, places, entries, logit):
    """One query HxK over (key, value) entries that stand `places` before it: HxV."""
    outputs = []
    for h in range(len(q)):
        own = head_of(entries, h // (len(q) // len(entries[0][0])))
        weights = softmax(np.array([logit(q[h], key, place, h) for (key, _), place in zip(own, places, strict=True)]))
        outputs.append(weights @ np.array([value for _, value in own]))
    return outputs


def stream(live, held, documents, lengths, slots, size, compress, held_compress, logit=rotary_logit):
    """(outputs TxHxV, cache, compressed entries, [squared errors of each query that asks, a segment])."""
    cache, older, outputs, errors, start = [], [], [], [], 0
    shared = live[0].shape[1] // live[1].shape[1]
    open_document = None
    for length in lengths:
        tokens = range(start, start + length)
        last = documents[start + length - 1]
        for t in tokens:
            reads = documents[t] == open_document
            own = [(live[1][j], live[2][j]) for j in range(start, t + 1) if documents[j] == documents[t]]
            past = [*older, *cache] if reads else []
            # one place an entry; the compressed ones stand before all slots of the cache
            ages = [slots + i for i in range(len(older), 0, -1)] + list(range(len(cache), 0, -1)) if reads else []
            places = [age + t - start for age in ages] + list(range(len(own) - 1, -1, -1))
            outputs.append(attend(live[0][t], places, past + own, logit))
        if last != open_document:
            cache, older = [], []
        cache = cache + [(held[1][j], held[2][j]) for j in tokens if documents[j] == last]
        room = max(len(cache) - slots, 0)
        leaving, cache = cache[:room], cache[room:]
        squares = []
        if leaving:
            rebuilt = compressed(leaving, compress)
            for t in tokens:
                if documents[t] == last:
                    gaps = [
                        content_attention(q, head_of(leaving, h // shared))
                        - content_attention(q, head_of(rebuilt, h // shared))
                        for h, q in enumerate(held[0][t])
                    ]
                    squares.append(np.mean(np.array(gaps) ** 2))
            older = (older + compressed(leaving, held_compress))[-size:]
        errors.append(squares)
        start, open_document = start + length, last
    return np.array(outputs), cache, older, errors
