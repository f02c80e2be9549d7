"""One layer of each mechanism against its naive form and, where torch is installed, against torch's attention of the segment.

Command:  python -m benchmarks.mechanisms                 (about fifteen minutes on two free cores)
Expected: the same numbers from both forms (asserted). Prints tokens/s forward and forward + backward, how many times as fast
as the naive form (benchmarks/naive.py) and as torch's scaled_dot_product_attention of the same segments, and temporary memory.
Everything is float32; a layer is what follows the projections of queries, keys and values, with its output projection.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.models import chosen_cases
from benchmarks.naive import naive
from benchmarks.timing import Program, interleaved, machine
from infini_jax.layers import attention
from infini_jax.layers.segment import NO_DOCUMENT, Segment, length_with_landmarks, whole
from infini_jax.memory import memory_of
from infini_jax.memory.base import Dims, Memory, MemoryConfig
from infini_jax.memory.rewind import rewinding_scan
from infini_jax.model.stream import KEEP_FOUND
from infini_jax.units import human_bytes


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the layer and of the stream it reads."""

    d_model: int = 512
    heads: int = 8
    segment: int = 512
    tokens: int = 8192
    batch: int = 1
    rounds: int = 9
    only: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads


def module_of(memory: MemoryConfig, sizes: Sizes) -> Memory:
    size, length = sizes.head_dim, length_with_landmarks(sizes.segment, memory.landmark_every)
    return memory_of(memory, Dims(sizes.d_model, sizes.heads, sizes.heads, size, size, length))


def inputs_of(module: Memory, sizes: Sizes) -> tuple[jax.Array, ...]:
    """Layer inputs, queries, keys and values of the stream, segments in front."""
    d, rng = module.dims, np.random.default_rng(0)
    shapes = ((d.d_model,), (d.heads, d.key_dim), (d.heads, d.key_dim), (d.heads, d.value_dim))
    lead = (sizes.tokens // sizes.segment, sizes.batch, d.segment)
    return tuple(jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32) for shape in shapes)


def stream(module: Memory, remake: bool, params: dict, inputs: tuple[jax.Array, ...]) -> jax.Array:
    """Outputs of all segments in turn; `remake` rematerializes each for the gradient, as `stream.scan_segments` does."""

    def step(params, carry, arrays):
        memory, before_B = carry
        segment = Segment(*arrays, whole(jnp.zeros(arrays[0].shape[:2], jnp.int32), before_B))
        y, _ = module.apply(params, memory, segment, method="attend")
        return (module.apply(params, memory, segment, method="write"), jnp.zeros_like(before_B)), y

    batch = inputs[0].shape[1]
    start = (module.init_memory(batch), jnp.full(batch, NO_DOCUMENT))
    if not remake:
        return jax.lax.scan(functools.partial(step, params), start, inputs)[1]
    lost = lambda before, after, _: (module.lost(before[0], after[0], 1, None), before[1])  # noqa: E731
    restored = lambda after, gone, _: (module.restored(after[0], gone[0], 1, None), gone[1])  # noqa: E731
    return rewinding_scan(jax.checkpoint(step, policy=KEEP_FOUND), params, start, inputs, lost, restored)[1]


def parameters_of(module: Memory, inputs: tuple[jax.Array, ...]) -> dict:
    def both(module, memory, segment):
        return module.attend(memory, segment), module.write(memory, segment)

    arrays = tuple(x[0] for x in inputs)
    batch = arrays[0].shape[0]
    segment = Segment(*arrays, whole(jnp.zeros(arrays[0].shape[:2], jnp.int32), jnp.zeros(batch, jnp.int32)))
    return jax.jit(lambda: module.init(jax.random.key(0), module.init_memory(batch), segment, method=both))()


def programs_of(module: Memory, sizes: Sizes) -> dict[str, Program]:
    """Ours and the naive form, forward and with gradients by parameters and inputs. Raises where their outputs differ."""
    inputs = inputs_of(module, sizes)
    params, programs, outputs = parameters_of(module, inputs), {}, []
    for name, form, one in (("ours", "auto", module), ("naive", "dense", naive(module))):
        run = functools.partial(stream, one, name == "ours")
        slope = jax.grad(lambda params, inputs, run=run: jnp.sum(jnp.sin(run(params, inputs))), argnums=(0, 1))
        with attention.form(form):
            programs[f"{name} forward"] = Program.of(run, params, inputs)
            programs[f"{name} both"] = Program.of(slope, params, inputs)
            outputs.append(programs[f"{name} forward"].run())
    # float32 sums in another order; a retrieval that tips over at the last bit moves single entries
    difference = np.abs(outputs[0] - outputs[1])
    assert np.quantile(difference, 0.999) < 1e-3 * np.abs(outputs[1]).max(), difference.max()
    return programs


def torch_programs(sizes: Sizes) -> dict[str, Program]:
    """Causal attention of all segments at once with its output projection; nothing where torch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    rows = sizes.batch * sizes.tokens // sizes.segment
    shape = (rows, sizes.heads, sizes.segment, sizes.head_dim)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    out = torch.nn.Linear(sizes.d_model, sizes.d_model, bias=False)

    def forward():
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out(y.transpose(1, 2).reshape(rows, sizes.segment, -1))

    def alone():
        with torch.no_grad():
            return forward()

    return {"torch forward": Program(alone), "torch both": Program(lambda: forward().sin().sum().backward())}


def main(sizes: Sizes) -> None:
    """Times every case."""
    print(machine())
    print(sizes)
    print(f"{'mechanism':24}{'pass':>8} {'tokens/s':>9} {'of naive':>18} {'of torch':>18}", end="")
    print(f" {'temporary':>10} {'naive':>10} {'rounds':>7}")
    for name, case in chosen_cases(sizes.only).items():
        programs = programs_of(module_of(case.memory, sizes), sizes) | torch_programs(sizes)
        times = interleaved(programs, sizes.rounds)
        for part in ("forward", "both"):
            ratios = []
            for other in ("naive", "torch"):
                known = f"{other} {part}" in programs
                ratio = times.ratio(f"{other} {part}", f"ours {part}") if known else None
                ratios.append("{:.2f} ({:.2f}-{:.2f})".format(*ratio) if known else "-")
            rate = sizes.batch * sizes.tokens / times.median(f"ours {part}")
            spare = [human_bytes(programs[f"{form} {part}"].temporary) for form in ("ours", "naive")]
            clean = f"{times.clean}/{times.rounds}"
            print(f"{name:24}{part:>8} {rate:>9.0f} {ratios[0]:>18} {ratios[1]:>18} {spare[0]:>10} {spare[1]:>10} {clean:>7}")


if __name__ == "__main__":
    main(tyro.cli(Sizes))
