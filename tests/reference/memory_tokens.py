"""A whole transformer with memory tokens around each segment, one row in float64 NumPy; nothing is shared with the package.

What a mechanism does with them is an object with three methods, called for each segment:
  enter(number, p, x, around, open_document) -> x   in front of layer `number`, whose memory has the parameters p
  leave(number, p, x, around, open_document)        behind it
  finish(x)                                         behind the last norm
`around` are the documents of all places of the segment, memory tokens included; `open_document` was open before it.
"""

import numpy as np

from tests.reference.attention import rotate, softmax


def norm(x_TxD, scale_D):
    return x_TxD / np.sqrt(np.mean(x_TxD**2, axis=1, keepdims=True) + 1e-6) * scale_D


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def tapped(x_TxD, kernel_IxD, documents):
    """Each token with those before it, of its document and segment."""
    mixed = np.zeros_like(x_TxD)
    for t in range(len(x_TxD)):
        for back, weight_D in enumerate(kernel_IxD):
            if t >= back and documents[t - back] == documents[t]:
                mixed[t] += weight_D * x_TxD[t - back]
    return mixed


def attended(t, seen, queries, keys, values, head):
    """One token's attention to the tokens in `seen`, rotary by place."""
    g = head // (queries.shape[1] // keys.shape[1])
    query = rotate(queries[t, head], t)
    scores = np.array([query @ rotate(keys[j, g], j) for j in seen]) / np.sqrt(len(query))
    return softmax(scores) @ values[seen, g]


def layer(p, x_TxD, documents, mutual):
    """Attention and MLP of one layer over one segment and its memory tokens, of which a group sees all of itself."""
    before, after = mutual
    h_TxD, size = norm(x_TxD, p["attention_norm"]["scale"]), len(x_TxD)
    queries = np.einsum("td,dhk->thk", h_TxD, p["query"]["kernel"])
    keys = np.einsum("td,dhk->thk", tapped(h_TxD, p["taps"]["kernel"], documents), p["key"]["kernel"])
    values = np.einsum("td,dhv->thv", h_TxD, p["value"]["kernel"])
    rows = []
    for t in range(size):
        end = before if t < before else size if t >= size - after else t + 1
        seen = [j for j in range(end) if documents[j] == documents[t]]
        rows.append([attended(t, seen, queries, keys, values, h) for h in range(queries.shape[1])])
    x_TxD = x_TxD + np.einsum("thv,hvd->td", np.array(rows), p["memory"]["out"]["kernel"])
    hidden_TxF = gelu(norm(x_TxD, p["mlp_norm"]["scale"]) @ p["mlp"]["up"]["kernel"])
    return x_TxD + hidden_TxF @ p["mlp"]["down"]["kernel"]


def logits(params, layers, tokens, documents, mechanism, *, segment, count, mutual=(0, 0)):
    """TxV of one row: `layers` are the parameters of each; `count` memory tokens stand before and after each segment."""
    table, (before, after) = params["embedding"]["embedding"], count
    vocab, found, open_document = len(table) - max(count), [], None
    for begin in range(0, len(tokens), segment):
        own = list(documents[begin : begin + segment])
        around = [own[0]] * before + own + [own[-1]] * after
        inserted = [range(vocab, vocab + number) for number in count]
        x_TxD = table[[*inserted[0], *tokens[begin : begin + segment], *inserted[1]]]
        for number, p in enumerate(layers):
            x_TxD = mechanism.enter(number, p["memory"], x_TxD, around, open_document)
            x_TxD = layer(p, x_TxD, around, mutual)
            mechanism.leave(number, p["memory"], x_TxD, around, open_document)
        x_TxD, open_document = norm(x_TxD, params["norm"]["scale"]), own[-1]
        mechanism.finish(x_TxD)
        found.append(x_TxD[before : before + len(own)] @ table[:vocab].T)
    return np.concatenate(found)


class OfEachLayer:
    """What stood at the last N places at a layer's end stands at the first N of the next segment at the layer's beginning.

    It does so as long as the document goes on. A layer without a memory lets what stands there pass.
    """

    def __init__(self, count):
        self.count, self.memory = count, {}

    def enter(self, number, p, x_TxD, around, open_document):
        if "start" not in p:
            return x_TxD
        first = self.memory[number] if around[0] == open_document else p["start"]
        return np.concatenate([first, x_TxD[self.count :]])

    def leave(self, number, p, x_TxD, around, open_document):
        self.memory[number] = x_TxD[-self.count :]

    def finish(self, x_TxD):
        pass


class FromLastToFirst:
    """The Recurrent Memory Transformer: features at the last N places stand at both ends of the next segment."""

    def __init__(self, count):
        self.count, self.memory = count, None

    def enter(self, number, p, x_TxD, around, open_document):
        if number > 0:
            return x_TxD
        x_TxD = np.array(x_TxD)
        if around[0] == open_document:
            x_TxD[: self.count] = self.memory
        if around[-1] == open_document:
            x_TxD[-self.count :] = self.memory
        return x_TxD

    def leave(self, number, p, x_TxD, around, open_document):
        pass

    def finish(self, x_TxD):
        self.memory = x_TxD[-self.count :]
