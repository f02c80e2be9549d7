"""Infini-attention segment by segment against many segments at once: forward and backward, ratios from one interleaved run.

Question: where does the parallel form of infini.py pay?
Command:  python benchmarks/infini_parallel.py            (two minutes on two free cores)
Expected: the same numbers from both forms (asserted); times and their ratio for the memory alone and for the memory with
local attention and gate, each with the temporary memory that XLA plans for it.
"""

import argparse
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.attention import attend_segment
from infini_jax.memory import infini
from infini_jax.memory.infini import InfiniMemory, combine, sigma
from infini_jax.segment import Segment, whole

SEGMENT, HEADS, SIZE = 512, 8, 64
GATE = np.zeros(HEADS, np.float32)
PARALLEL = {"linear": infini.parallel_linear, "delta": infini.parallel_delta}


def segment_of(q_BxSxHxK, k_BxSxHxK, v_BxSxHxV) -> Segment:
    """One segment within one document."""
    documents = jnp.zeros(q_BxSxHxK.shape[:2], jnp.int32)
    return Segment(v_BxSxHxV, q_BxSxHxK, k_BxSxHxK, v_BxSxHxV, whole(documents, documents[:, 0]))


def empty(batch: int) -> InfiniMemory:
    return InfiniMemory(jnp.zeros((batch, HEADS, SIZE, SIZE)), jnp.zeros((batch, HEADS, SIZE)))


def streamed(rule: str, local: bool, q_BxWxSxHxK, k_BxWxSxHxK, v_BxWxSxHxV):
    """A scan over segments, each rematerialised, as `stream.scan_segments` runs them."""

    @jax.checkpoint
    def step(memory, arrays):
        segment = segment_of(*arrays)
        y = infini.retrieve(memory, sigma(segment.queries))
        if local:
            y = combine(GATE, y, attend_segment(segment))
        return infini.update(memory, sigma(segment.keys), segment.values, rule), y

    by_segment = [jnp.moveaxis(x, 1, 0) for x in (q_BxWxSxHxK, k_BxWxSxHxK, v_BxWxSxHxV)]
    memory, y = jax.lax.scan(step, empty(q_BxWxSxHxK.shape[0]), tuple(by_segment))
    return jnp.moveaxis(y, 0, 1), memory


def parallel(rule: str, local: bool, q_BxWxSxHxK, k_BxWxSxHxK, v_BxWxSxHxV):
    """The memory of all segments at once; local attention still a segment at a time, or its scores fill the machine."""
    keeps_BxW = jnp.ones(q_BxWxSxHxK.shape[:2], bool)
    y, memory = PARALLEL[rule](empty(q_BxWxSxHxK.shape[0]), sigma(q_BxWxSxHxK), sigma(k_BxWxSxHxK), v_BxWxSxHxV, keeps_BxW)
    if local:
        by_segment = tuple(jnp.moveaxis(x, 1, 0) for x in (q_BxWxSxHxK, k_BxWxSxHxK, v_BxWxSxHxV))
        a_dot_WxBxSxHxV = jax.lax.map(jax.checkpoint(lambda arrays: attend_segment(segment_of(*arrays))), by_segment)
        y = combine(GATE, y, jnp.moveaxis(a_dot_WxBxSxHxV, 0, 1))
    return y, memory


def compiled(form, rule: str, local: bool, arrays):
    """(program, temporary bytes): loss and gradients by queries, keys and values."""

    def loss(*arrays):
        y, memory = form(rule, local, *arrays)
        return jnp.sum(y**2) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(memory)) * 1e-6

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
    return program, program.memory_analysis().temp_size_in_bytes


def interleaved(programs, arrays, samples: int) -> list[float]:
    """Median seconds of each program, taken in turn so that a slow minute of the machine meets all of them."""
    times = [[] for _ in programs]
    for _ in range(samples):
        for program, taken in zip(programs, times, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def machine() -> str:
    """What the figures depend on."""
    device, load = jax.devices()[0].device_kind, os.getloadavg()[0]
    tunables = os.environ.get("GLIBC_TUNABLES", "default allocator")
    return f"{device}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, jax {jax.__version__}, {tunables}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--samples", type=int, default=11)
    options = parser.parse_args()
    shape = (1, options.tokens // SEGMENT, SEGMENT, HEADS, SIZE)
    arrays = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
    print(machine())
    print(f"{options.tokens} tokens, segment {SEGMENT}, {HEADS} heads of {SIZE}, float32, medians of {options.samples}")
    for rule in PARALLEL:
        for local in (False, True):
            forms = [compiled(form, rule, local, arrays) for form in (streamed, parallel)]
            programs = [program for program, _ in forms]
            results = [program(*arrays) for program in programs]  # also the first, slow call
            for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))
            seconds = interleaved(programs, arrays, options.samples)
            name = f"{rule}, {'with local attention' if local else 'memory alone'}"
            times = ", ".join(
                f"{form} {1e3 * taken:.1f} ms ({bytes_ / 2**20:.0f} MiB)"
                for form, taken, (_, bytes_) in zip(("streamed", "parallel"), seconds, forms, strict=True)
            )
            print(f"{name}: {times}, parallel {seconds[0] / seconds[1]:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
