"""∞-former: our read, gate and contraction against a plain transcription of the published ones, in one interleaved run.

Command:  python -m benchmarks.infinite_former            (a minute on two free cores)
Expected: the same numbers from both forms (asserted); the read at least 1.6 times as fast forward and 5 times forward and
backward, the gate and the contraction faster as well.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.timing import Program, interleaved, machine
from infini_jax.memory.infinite_former import expectation, signal
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that public PyTorch code was measured at."""

    d_model: int = 256
    heads: int = 8
    segment: int = 256
    batch: int = 2
    basis: int = 512
    rounds: int = 15


CONFIG = InfiniteFormerConfig()


def plain_read(q_BxSxHxK, B_BxNxD, w_k_DxHxK, w_v_DxHxV, w_mu_N, w_sigma_N):
    """Section 3.1 as it is printed: keys, values and scores of every basis function."""
    k_BxNxHxK = jnp.einsum("bnd,dhk->bnhk", B_BxNxD, w_k_DxHxK)
    v_BxNxHxV = jnp.einsum("bnd,dhv->bnhv", B_BxNxD, w_v_DxHxV)
    z_BxHxSxN = jnp.einsum("bshk,bnhk->bhsn", q_BxSxHxK, k_BxNxHxK) / np.sqrt(q_BxSxHxK.shape[-1])
    mu_BxHxS = jax.nn.sigmoid(z_BxHxSxN @ w_mu_N)
    sigma_sq_BxHxS = jnp.maximum(jax.nn.softplus(z_BxHxSxN @ w_sigma_N), signal.VARIANCE_FLOOR)
    mu_N, sigma_N = (jnp.asarray(x, jnp.float32) for x in signal.basis(len(w_mu_N), CONFIG.widths))
    variance_BxHxSxN = sigma_N**2 + sigma_sq_BxHxS[..., None]
    exponent_BxHxSxN = -0.5 * (mu_N - mu_BxHxS[..., None]) ** 2 / variance_BxHxSxN
    r_BxHxSxN = jnp.exp(exponent_BxHxSxN) / jnp.sqrt(2 * np.pi * variance_BxHxSxN)
    return jnp.einsum("bhsn,bnhv->bshv", r_BxHxSxN, v_BxNxHxV)


def our_read(q_BxSxHxK, B_BxNxD, w_k_DxHxK, w_v_DxHxV, w_mu_N, w_sigma_N):
    mu_BxHxS, sigma_sq_BxHxS = signal.density_parameters(q_BxSxHxK, B_BxNxD, w_k_DxHxK, w_mu_N, w_sigma_N)
    return expectation.context(mu_BxHxS, sigma_sq_BxHxS, B_BxNxD, w_v_DxHxV, CONFIG.widths)


def plain_gate(x_BxTxD, kernel_3xDxD, bias_D):
    mixed_BxTxD = jax.lax.conv_general_dilated(x_BxTxD, kernel_3xDxD, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return x_BxTxD * jax.nn.sigmoid(mixed_BxTxD + bias_D)


def forms_of(sizes: Sizes) -> dict[str, tuple]:
    """(published form, ours, arguments) of each part."""
    key_dim, rng = sizes.d_model // sizes.heads, np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    q, x = draw(sizes.batch, sizes.segment, sizes.heads, key_dim), draw(sizes.batch, sizes.segment, sizes.d_model)
    B = draw(sizes.batch, sizes.basis, sizes.d_model, scale=0.05)
    w = [draw(sizes.d_model, sizes.heads, key_dim, scale=sizes.d_model**-0.5) for _ in range(2)]
    w_mu, w_sigma = draw(sizes.basis, scale=0.1), draw(sizes.basis, scale=0.1)
    kernel = draw(3, sizes.d_model, sizes.d_model, scale=(3 * sizes.d_model) ** -0.5)

    settings = (sizes.segment, sizes.basis, CONFIG.widths, CONFIG.ridge, CONFIG.samples, CONFIG.tau)
    old_MxN = jnp.asarray(signal.update_matrix(*settings)[: CONFIG.samples], jnp.float32)
    psi_MxN = jnp.asarray(
        signal.psi(signal.sample_times(CONFIG.samples), *signal.basis(sizes.basis, CONFIG.widths)), jnp.float32
    )
    contraction_NxN = jnp.asarray(signal.contraction_matrix(*settings), jnp.float32)
    return {
        "read": (plain_read, our_read, (q, B, *w, w_mu, w_sigma)),
        "gate": (plain_gate, signal.gate, (x, kernel, jnp.zeros(sizes.d_model))),
        "contraction": (
            lambda B: signal.resampled(B, psi_MxN, old_MxN),
            lambda B: signal.einsum("nj,bjd->bnd", contraction_NxN, B),
            (B,),
        ),
    }


def compare(name: str, forms, arguments, rounds: int) -> None:
    """Asserts that the programs agree and prints their times."""
    programs = {which: Program.of(form, *arguments) for which, form in zip(("published", "ours"), forms, strict=True)}
    for ours, theirs in zip(*(jax.tree.leaves(program.run()) for program in programs.values()), strict=True):
        # float32 sums of hundreds of terms in another order
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(jnp.abs(theirs).max()))
    times = interleaved(programs, rounds)
    middle, lower, upper = times.ratio("published", "ours")
    took = ", ".join(f"{which} {1e3 * times.median(which):6.1f} ms" for which in programs)
    clean = f"{times.clean} of {rounds} rounds"
    print(f"{name:30} {took}, {middle:.2f} times as fast (quartiles {lower:.2f}-{upper:.2f}, {clean})", flush=True)


def main(sizes: Sizes) -> None:
    """Times every part."""
    print(machine(), sizes)
    for name, (plain, ours, arguments) in forms_of(sizes).items():
        compare(f"{name}, forward", (plain, ours), arguments, sizes.rounds)
        if name == "contraction":  # of the detached past
            continue
        gradients = [
            jax.grad(functools.partial(lambda form, *a: (form(*a) ** 2).sum(), form), argnums=tuple(range(len(arguments))))
            for form in (plain, ours)
        ]
        compare(f"{name}, forward and backward", gradients, arguments, sizes.rounds)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
