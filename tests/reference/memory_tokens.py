"""A whole transformer with memory tokens around each segment, one row in float64 NumPy; nothing is shared with the package.

Per layer: what stood at the last N places of a segment at the layer's end stands at the first N places of the next segment at
the layer's beginning, as long as the document goes on. A layer without a memory lets what stands there pass.
"""

import numpy as np

from tests.reference.infini import local


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


def layer(p, x_TxD, documents):
    """Attention and MLP of one layer over one segment and its memory tokens."""
    h_TxD = norm(x_TxD, p["attention_norm"]["scale"])
    queries = np.einsum("td,dhk->thk", h_TxD, p["query"]["kernel"])
    keys = np.einsum("td,dhk->thk", tapped(h_TxD, p["taps"]["kernel"], documents), p["key"]["kernel"])
    values = np.einsum("td,dhv->thv", h_TxD, p["value"]["kernel"])
    heads = range(queries.shape[1])
    attended = [[local(t, 0, queries, keys, values, documents, h) for h in heads] for t in range(len(x_TxD))]
    x_TxD = x_TxD + np.einsum("thv,hvd->td", np.array(attended), p["memory"]["out"]["kernel"])
    hidden_TxF = gelu(norm(x_TxD, p["mlp_norm"]["scale"]) @ p["mlp"]["up"]["kernel"])
    return x_TxD + hidden_TxF @ p["mlp"]["down"]["kernel"]


def logits(params, layers, tokens, documents, *, segment, count):
    """TxV of one row: `layers` are the parameters of each; `count` memory tokens stand before and after each segment."""
    table = params["embedding"]["embedding"]
    inserted, found = list(range(len(table) - count, len(table))), []
    memory, open_document = [None] * len(layers), None
    for begin in range(0, len(tokens), segment):
        own = list(documents[begin : begin + segment])
        around = [own[0]] * count + own + [own[-1]] * count
        x_TxD = table[inserted + list(tokens[begin : begin + segment]) + inserted]
        for number, p in enumerate(layers):
            if "start" in p["memory"]:
                x_TxD = np.array(x_TxD)
                x_TxD[:count] = memory[number] if own[0] == open_document else p["memory"]["start"]
            x_TxD = layer(p, x_TxD, around)
            memory[number] = x_TxD[-count:]
        open_document = own[-1]
        found.append(norm(x_TxD[count:-count], params["norm"]["scale"]) @ table[:-count].T)
    return np.concatenate(found)
