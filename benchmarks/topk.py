"""The search of the Memorizing Transformer, 8 heads x 512 queries x k 32: in two stages and in parts against `lax.top_k`.

Question: from how many slots on do groups pay, and what does the search gain?
Command:  python -m benchmarks.topk            (some minutes on two free cores; XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
          and `taskset -c 0` for one thread)
Prints the machine and, for each number of slots, medians with their range of
  whole      all scores at once and `lax.top_k` of them, as one would write it (left out where they take more than 2 GiB)
  parts      the same in parts, as memorizing.search makes them
  search     memorizing.search: in parts, each part in two stages where they pay
and the two ratios, medians with quartiles over rounds of the ratios within a round. All must find the same slots. Then
`lax.top_k` against two_stage on scores that are there already, from 1024 slots on: the crossover that topk.GROUPS_PAY states.
"""

import dataclasses
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.timing import Program, Times, interleaved, machine
from infini_jax.memory import memorizing
from infini_jax.memory.memorizing import Ring
from infini_jax.memory.topk import masked, two_stage


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is searched."""

    heads: int = 8
    queries: int = 512
    key_dim: int = 64
    top_k: int = 32
    rounds: int = 7
    slots: tuple[int, ...] = (8192, 65_536, 262_144)
    crossover: tuple[int, ...] = (1024, 2048, 4096, 8192)


def whole(ring: Ring, q_BxSxHxK: jax.Array, k: int) -> jax.Array:
    """All scores at once."""
    return jax.lax.top_k(jnp.einsum("bshk,bhnk->bhsn", q_BxSxHxK, ring.keys), k)[1]


def plain(scores: jax.Array, k: int, held: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of the scores that count."""
    return jax.lax.top_k(masked(scores, held), k)


def described(times: list[float]) -> str:
    """Median and range in milliseconds."""
    return f"{1e3 * statistics.median(times):.1f} ms ({1e3 * min(times):.1f}-{1e3 * max(times):.1f})"


def gain(times: Times, slow: str, fast: str) -> str:
    """Median and quartiles of the ratios within rounds."""
    return "{:.2f} ({:.2f}-{:.2f})".format(*times.ratio(slow, fast))


def searched(sizes: Sizes, slots: int) -> None:
    """Times the forms at one number of slots."""
    keys = jax.random.split(jax.random.key(0), 2)
    q = memorizing.unit(jax.random.normal(keys[0], (1, sizes.queries, sizes.heads, sizes.key_dim)))
    held = memorizing.unit(jax.random.normal(keys[1], (1, sizes.heads, slots, sizes.key_dim)))
    ring, k = Ring(held, jnp.zeros((1, sizes.heads, slots, 1)), jnp.array([slots], jnp.int32)), sizes.top_k
    programs = {
        "whole": lambda ring, q: whole(ring, q, k),
        "parts": lambda ring, q: memorizing.search(ring, q, k, plain),
        "search": lambda ring, q: memorizing.search(ring, q, k),
    }
    if 4 * sizes.heads * sizes.queries * slots > 2**31:
        del programs["whole"]
    programs = {name: Program.of(form, ring, q) for name, form in programs.items()}
    found = [np.asarray(program.run()) for program in programs.values()]
    different = max(np.mean(other != found[-1]) for other in found[:-1])
    times = interleaved(programs, sizes.rounds)
    gains = ", ".join(f"{gain(times, name, 'search')} times {name}" for name in programs if name != "search")
    temporary = programs["search"].temporary
    figures = ", ".join(f"{name} {described(taken)}" for name, taken in times.seconds.items())
    print(
        f"{slots} slots: {figures}; search is {gains}; {temporary / 2**20:.0f} MiB; {different:.0e} of the slots differ",
        flush=True,
    )


def crossed(sizes: Sizes, slots: int) -> None:
    """`lax.top_k` against two stages, without the products."""
    scores = jax.random.normal(jax.random.key(0), (32, slots))  # short, so that other load seldom interrupts it
    programs = {
        "lax": Program.of(lambda scores: jax.lax.top_k(scores, sizes.top_k), scores),
        "two_stage": Program.of(lambda scores: two_stage(scores, sizes.top_k), scores),
    }
    times = interleaved(programs, 30 * sizes.rounds)
    print(f"{slots} scores per row: two stages {gain(times, 'lax', 'two_stage')} times lax.top_k", flush=True)


def main(sizes: Sizes) -> None:
    """Prints the figures."""
    print(f"{machine()}, XLA_FLAGS '{os.environ.get('XLA_FLAGS', '')}'")
    print(sizes)
    for slots in sizes.crossover:
        crossed(sizes, slots)
    for slots in sizes.slots:
        searched(sizes, slots)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
