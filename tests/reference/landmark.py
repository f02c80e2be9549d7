"""Landmark attention in float64 NumPy loops, one query and one head at a time.

Written from the definitions: keys are kept as they were written and turned at the explicit positions of the paper, the
first token behind the cached blocks stands at min(blocks ever, k+1) * P, and every query gets one list of keys. Segments may
end inside a block: what follows the newest landmark then stands before the next segment's tokens. Nothing is shared with the
package.
"""

import numpy as np


def rotate(vector, position, base=10_000.0):
    """Rotary embedding of one vector; pairs (i, i + half)."""
    half = len(vector) // 2
    turned = np.empty(len(vector))
    for i in range(half):
        angle = position * base ** (-i / half)
        turned[i] = vector[i] * np.cos(angle) - vector[i + half] * np.sin(angle)
        turned[i + half] = vector[i + half] * np.cos(angle) + vector[i] * np.sin(angle)
    return turned


def softmax(values):
    exp = np.exp(values - np.max(values))
    return exp / exp.sum()


def grouped_row(scores, is_landmark, allowed, own, renormalise=False):
    """Weights of one query over T keys; `own` is the place of the query's own key."""
    block = np.cumsum(is_landmark) - is_landmark
    raw = {b: [j for j in np.flatnonzero(block == b) if allowed[j] and not is_landmark[j]] for b in np.unique(block)}
    home = list(raw[block[own]])
    for j in np.flatnonzero(is_landmark & allowed):
        if block[j] != block[own] and (raw[block[j]] or not renormalise):
            home.append(j)
    weights = np.zeros(len(scores))
    if not home:
        return weights
    for j, share in zip(home, softmax(scores[home]), strict=True):
        if not is_landmark[j]:
            weights[j] = share
        elif raw[block[j]]:
            weights[raw[block[j]]] = share * softmax(scores[raw[block[j]]])
    return weights


def grouped_softmax(scores, is_landmark, allowed, renormalise=False):
    """BxHxSxT; `allowed` BxSxT; the last S keys are the queries' own."""
    weights = np.zeros_like(scores)
    batch, heads, queries, keys = scores.shape
    for b, h, i in np.ndindex(batch, heads, queries):
        own = keys - queries + i
        weights[b, h, i] = grouped_row(scores[b, h, i], is_landmark[b], allowed[b, i], own, renormalise)
    return weights


def place_of_age(cached, ever, retrieved):
    """Slot in which each cached block stands while it is scored, oldest first."""
    if ever <= retrieved:
        return list(range(cached))  # all of them stand where they stood
    return [max(a - (cached - retrieved) + 1, 0) for a in range(cached)]


def choose(shares, retrieved):
    """The best of `shares` by cached block, the newest first among equals; ascending."""
    order = sorted(range(len(shares)), key=lambda a: (-shares[a], -a))
    return sorted(order[:retrieved])


class Row:
    """One document stream through one layer.

    The cache is a list of blocks: keys PxHxK as written, values PxHxV, documents P; `ever` counts the blocks of the
    open document, evicted ones included. `tail` holds (key, value, document) of the tokens of the unfinished block.

    `near` (q, k, distance, head) is the score of a token that is not retrieved; None turns both as all others are. `turn` is
    what slots do to keys and queries. The newest `kept_back` tokens stay in the tail, although their blocks are complete.
    """

    def __init__(self, block, blocks, retrieved, selection, near=None, turn=rotate, kept_back=0):
        self.near, self.turn, self.kept_back = near, turn, kept_back
        self.length, self.blocks, self.retrieved, self.selection = block + 1, blocks, retrieved, selection
        self.cache, self.ever, self.open, self.tail = [], 0, None, []

    def selected(self, queries, documents):
        """{(token, head): chosen ages} for the tokens that may read the cache."""
        slots = place_of_age(len(self.cache), self.ever, self.retrieved)
        start = min(self.ever, self.retrieved + 1) * self.length + len(self.tail)
        tokens, heads, size = queries.shape
        readers = [i for i in range(tokens) if documents[i] == self.open]
        shares = {}
        for i in readers:
            for h in range(heads):
                q = self.turn(queries[i, h], start + i)
                marks = [
                    self.turn(c["keys"][-1, h], s * self.length + self.length - 1)
                    for c, s in zip(self.cache, slots, strict=True)
                ]
                shares[i, h] = softmax(np.array([q @ mark for mark in marks]) / np.sqrt(size)) if marks else np.zeros(0)
        if self.selection == "heads":
            shares = {(i, h): np.max([shares[i, g] for g in range(heads)], axis=0) for i, h in shares}
        if self.selection == "tokens":
            shares = {(i, h): np.max([shares[j, h] for j in readers], axis=0) for i, h in shares}
        return {key: choose(share, self.retrieved) for key, share in shares.items()}

    def slots_of(self, chosen):
        """Slot of each chosen block, by age rank."""
        if self.ever <= self.retrieved:
            return list(chosen)
        return [rank + (age >= len(self.cache) - self.retrieved) for rank, age in enumerate(chosen)]

    def attend(self, queries, keys, values, documents):
        """TxHxV for a whole segment, and {(token, head): [(age before the segment, landmark score, mass)]} of what is read."""
        tokens, heads, size = queries.shape
        start, begun = min(self.ever, self.retrieved + 1) * self.length, len(self.tail)
        choices = self.selected(queries, documents)
        near = self.tail + list(zip(keys, values, documents, strict=True))
        y, reads = np.zeros((tokens, heads, values.shape[-1])), {}
        for i in range(tokens):
            for h in range(heads):
                seen, shown, allowed, is_landmark = [], [], [], []
                chosen = choices.get((i, h), [])
                for age, slot in zip(chosen, self.slots_of(chosen), strict=True):
                    for p in range(self.length):
                        seen.append(self.turn(self.cache[age]["keys"][p, h], slot * self.length + p))
                        shown.append(self.cache[age]["values"][p, h])
                        allowed.append(self.cache[age]["documents"][p] == documents[i])
                        is_landmark.append(p == self.length - 1)
                own = len(seen) + begun + i
                for t, (key, value, document) in enumerate(near):
                    seen.append(self.turn(key[h], start + t))
                    shown.append(value[h])
                    allowed.append(t <= begun + i and document == documents[i])
                    is_landmark.append(t % self.length == self.length - 1)
                scores = np.array(seen) @ self.turn(queries[i, h], start + begun + i) / np.sqrt(size)
                if self.near is not None:
                    logits = [self.near(queries[i, h], key[h], begun + i - t, h) for t, (key, _, _) in enumerate(near)]
                    scores[len(seen) - len(near) :] = logits
                weights = grouped_row(scores, np.array(is_landmark), np.array(allowed), own, renormalise=True)
                y[i, h] = weights @ np.array(shown)
                reads[i, h] = []
                for rank, age in enumerate(chosen):
                    part = slice(rank * self.length, (rank + 1) * self.length)
                    reads[i, h].append((len(self.cache) - 1 - age, scores[part][-1], weights[part].sum()))
        return y, reads

    def write(self, keys, values, documents):
        if documents[-1] != self.open:
            self.cache, self.ever, self.open = [], 0, documents[-1]
        self.tail = self.tail + list(zip(keys, values, documents, strict=True))
        while len(self.tail) >= self.length + self.kept_back:
            block = {
                name: np.array(part)
                for name, part in zip(
                    ("keys", "values", "documents"), zip(*self.tail[: self.length], strict=True), strict=True
                )
            }
            self.tail = self.tail[self.length :]
            if (block["documents"] == self.open).any():
                self.cache.append(block)
                self.ever += 1
        self.cache = self.cache[-self.blocks :] if self.blocks else []


def stream(queries, keys, values, documents, **settings):
    """WxBxTxHxV of a stream of W segments: queries and keys WxBxTxHxK, values WxBxTxHxV, documents WxBxT."""
    y = np.zeros(values.shape)
    for b in range(queries.shape[1]):
        row = Row(**settings)
        for w in range(len(queries)):
            y[w, b], _ = row.attend(queries[w, b], keys[w, b], values[w, b], documents[w, b])
            row.write(keys[w, b], values[w, b], documents[w, b])
    return y
