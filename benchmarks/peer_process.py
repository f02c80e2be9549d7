"""A public model in PyTorch that takes one training step for each line it reads; peers.py starts it in another environment.

Command:  python peer_process.py NAME D_MODEL HEADS LAYERS SEGMENT TOKENS BATCH
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

VOCAB = 256


class Layer(nn.Module):
    """Pre-norm attention and MLP; attention is causal inside windows of `window` tokens."""

    def __init__(self, d_model: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm, self.mlp_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.project, self.out = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * d_model, d_model, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, d_model = x.shape
        parts = self.project(self.norm(x)).view(-1, self.window, 3, self.heads, d_model // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, d_model))
        return x + self.mlp(self.mlp_norm(x))


class Plain(nn.Module):
    """A decoder with a tied head and torch's own attention."""

    def __init__(self, d_model: int, heads: int, layers: int, window: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, d_model)
        self.layers = nn.Sequential(*(Layer(d_model, heads, window) for _ in range(layers)))
        self.norm = nn.RMSNorm(d_model)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(self.norm(self.layers(self.embedding(tokens))), self.embedding.weight)


def step_of(name: str, d_model: int, heads: int, layers: int, segment: int, tokens: int, batch: int) -> Callable[[], None]:
    """A function that takes the forward and the backward pass of a model over `tokens` tokens of each row."""
    x, y = torch.randint(1, VOCAB, (2, batch, tokens))
    of_heads = {"dim": d_model, "depth": layers, "heads": heads, "dim_head": d_model // heads}
    if name == "infini":
        from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

        model = InfiniTransformer(num_tokens=VOCAB, **of_heads, use_mem_delta_rule=False)
        every = tokens // segment
        streamed = InfiniTransformerWrapper(model, segment_length=segment, detach_mems_every_num_segments=every)
        return lambda: streamed(torch.cat([x, y[:, -1:]], dim=1), backward=True)
    if name == "memorizing":
        from memorizing_transformers_pytorch import MemorizingTransformer

        model = MemorizingTransformer(num_tokens=VOCAB, **of_heads, memorizing_layers=layers, max_knn_memories=8192)

        def remembering() -> None:
            with model.knn_memories_context(batch_size=batch) as memories:
                for part, labels in zip(x.split(segment, 1), y.split(segment, 1), strict=True):
                    model(part, knn_memories=memories, labels=labels).backward()

        return remembering
    kind, _, compiled = name.partition("-")
    model = Plain(d_model, heads, layers, segment if kind == "window" else tokens)
    run = torch.compile(model) if compiled else model
    return lambda: F.cross_entropy(run(x).flatten(0, 1), y.flatten()).backward()


def main(name: str, *sizes: str) -> None:
    step = step_of(name, *map(int, sizes))
    for _ in sys.stdin:
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
