"""The vendors' attention kernels: interpreted or compared in structure here, and lowered for their platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers import attention, kernels
from infini_jax.layers.platforms import platform
from infini_jax.layers.segment import NEVER_SEEN, Sight


def kernel_case(prefix: int, window: int | None, dtype=jnp.float32, length: int = 128):
    key_dim = 64
    keys = jax.random.split(jax.random.key(3), 3)
    sizes = (length, 4), (prefix + length, 2), (prefix + length, 2)  # tokens and heads
    q, k, v = (jax.random.normal(key, (1, *size, key_dim), dtype) for key, size in zip(keys, sizes, strict=True))
    documents = jnp.asarray(np.searchsorted((50,), np.arange(length), side="right"))[None]
    carried = jnp.where(jnp.arange(prefix) >= prefix // 2, 0, NEVER_SEEN)[None]
    return q, k, v, Sight(documents, jnp.concatenate([carried, documents], 1), jnp.int32(0), prefix, window)


SIGHTS = [(0, None), (128, None), (128, 100)]
SCALE = jnp.array([0.1, 0.3, 0.2, 0.15])


@pytest.mark.parametrize(("prefix", "window"), SIGHTS)
def test_interpreted_splash_attention_equals_the_dense_form(prefix, window):
    q, k, v, sight = kernel_case(prefix, window)
    assert kernels.KERNELS["splash"].problem(q, k, v, sight, False) is None

    def loss(attend, q, k, v):
        return (attend(q, k, v) ** 2).sum()

    def splash(q, k, v):
        return kernels.splash(q, k, v, sight, SCALE, interpret=True)

    def dense(q, k, v):
        return attention.dense(q, k, v, sight.mask_BxSxJ, scale=SCALE)[0]

    real, wanted = (jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1, 2)))(q, k, v) for f in (splash, dense))
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)  # float32 sums in another order


@pytest.fixture
def answered_by_xla(monkeypatch):
    """What cuDNN is asked for is answered by XLA: the arguments mean the same on CUDA.

    As with a kernel, lengths must be even, and a query that sees no key spoils its row's outputs and gradients.
    """
    plain = jax.nn.dot_product_attention

    def answer(q, k, v, *, mask, implementation, **options):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == 0 == k.shape[1] % 2
        spoiled = q * jnp.where(mask.any(axis=-1), 1, jnp.nan).swapaxes(1, 2)[..., None]
        return plain(spoiled, k, v, mask=mask, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)


@pytest.mark.usefixtures("answered_by_xla")
@pytest.mark.parametrize(("prefix", "window"), SIGHTS)
def test_what_cudnn_is_asked_for_equals_the_dense_form(prefix, window):
    q, k, v, sight = kernel_case(prefix, window)
    wanted = jax.jit(by_dense)(q, k, v, sight)
    real = jax.jit(lambda *case: kernels.cudnn(*case, SCALE))(q, k, v, sight)
    np.testing.assert_allclose(real, wanted, atol=1e-5)  # float32 rounding


def squared(attend, q, k, v, sight):
    """(outputs, gradients) of a loss of them."""
    y, pull = jax.vjp(lambda *arrays: attend(*arrays, sight), q, k, v)
    return y, *pull(2 * y)


def assert_all_close(real, wanted):
    for name, a, b in zip(("y", "dq", "dk", "dv"), real, wanted, strict=True):
        size = float(np.abs(b).max())
        np.testing.assert_allclose(a, b, atol=2e-5 * size, err_msg=name)  # float32 sums of hundreds of terms in another order


def by_cudnn(q, k, v, sight):
    return kernels.cudnn(q, k, v, sight, SCALE)


def by_dense(q, k, v, sight):
    return attention.dense(q, k, v, sight.mask_BxSxJ, scale=SCALE)[0]


@pytest.mark.usefixtures("answered_by_xla")
@pytest.mark.parametrize(
    ("length", "prefix", "window"), [(128, 127, 128), (127, 0, None), (127, 128, 128), (127, 127, None), (127, 0, 20)]
)
def test_odd_lengths_get_cudnn_with_one_place_more(length, prefix, window):
    """A window of 128 carries 127 keys; landmarks make segments odd. Outputs and gradients are those of the dense form."""
    q, k, v, sight = kernel_case(prefix, window, length=length)
    narrow = (x.astype(jnp.bfloat16) for x in (q, k, v))
    assert kernels.KERNELS["cudnn"].problem(*narrow, sight, False) is None
    real, wanted = (jax.jit(functools.partial(squared, attend))(q, k, v, sight) for attend in (by_cudnn, by_dense))
    assert_all_close(real, wanted)


@pytest.mark.usefixtures("answered_by_xla")
@pytest.mark.parametrize("axes", [(0, 0, 0, 0), (0, None, 0, 0), (None, 0, None, None)])
def test_cudnn_mapped_over_runs_is_each_of_them(axes):
    """With arguments that all runs share, and documents of each run's own."""
    runs = 3
    q, k, v, sight = kernel_case(127, 128, length=127)
    scales = jnp.arange(1.0, runs + 1).reshape(-1, 1, 1, 1, 1) / runs
    q, k, v = (x if axis is None else scales * x for x, axis in zip((q, k, v), axes, strict=False))
    if axes[3] is not None:
        edges = jnp.arange(runs)[:, None] * 9
        sight = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (runs, *leaf.shape)), sight)
        sight = sight.replace(query_documents=sight.query_documents.at[:, :, 60:].add(edges[..., None]))
        sight = sight.replace(key_documents=sight.key_documents.at[:, :, 187:].add(edges[..., None]))
    mapped = jax.jit(jax.vmap(functools.partial(squared, by_cudnn), axes))(q, k, v, sight)
    alone = jax.jit(functools.partial(squared, by_dense))
    for run in range(runs):
        own = [
            x if axis is None else jax.tree.map(lambda leaf, run=run: leaf[run], x)
            for x, axis in zip((q, k, v, sight), axes, strict=True)
        ]
        assert_all_close([leaf[run] for leaf in mapped], alone(*own))


@pytest.mark.skipif(platform() != "cuda", reason="needs an NVIDIA GPU: TESTS_ON=cuda")
@pytest.mark.parametrize(("prefix", "window"), SIGHTS)
def test_cudnn_itself_is_as_close_to_float32_as_the_dense_form_is(prefix, window):
    q, k, v, sight = kernel_case(prefix, window)

    def results(attend, dtype):
        loss = lambda *arrays: (attend(*arrays).astype(jnp.float32) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*(x.astype(dtype) for x in (q, k, v)))

    def dense(q, k, v):
        return attention.dense(q, k, v, sight.mask_BxSxJ, scale=SCALE)[0]

    def cudnn(q, k, v):
        return kernels.cudnn(q, k, v, sight, SCALE)

    def errors(real):
        return [np.abs(np.float32(a) - b).max() for a, b in zip(jax.tree.leaves(real), exact, strict=True)]

    exact = [np.float32(leaf) for leaf in jax.tree.leaves(results(dense, jnp.float32))]
    theirs, ours = (errors(results(attend, jnp.bfloat16)) for attend in (cudnn, dense))
    sizes = [2**-8 * np.abs(leaf).max() for leaf in exact]  # one rounding of the largest number in bfloat16
    assert all(a <= 2 * b + size for a, b, size in zip(theirs, ours, sizes, strict=True)), (theirs, ours)


@pytest.fixture
def no_cudnn_to_ask(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)


@pytest.mark.usefixtures("no_cudnn_to_ask")
@pytest.mark.parametrize(
    ("form", "platform", "call"), [("cudnn", "cuda", "__cudnn$fmha"), ("splash", "tpu", "tpu_custom_call")]
)
def test_kernels_and_their_gradients_lower_for_their_platform(form, platform, call):
    case = kernel_case(128, None, jnp.bfloat16)

    def loss(q, k, v, sight):
        with attention.form(form):
            return attention.attend(q, k, v, sight).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*case).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(call) >= 2  # forward and backward


@pytest.mark.usefixtures("no_cudnn_to_ask")
def test_cudnn_mapped_over_runs_lowers_as_one_call_of_more_rows():
    case = kernel_case(127, 128, jnp.bfloat16)
    runs = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), case)

    def loss(q, k, v, sight):
        with attention.form("cudnn"):
            return attention.attend(q, k, v, sight).astype(jnp.float32).sum()

    def of_runs(*runs):
        return jax.vmap(loss)(*runs).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    for mapped in (jax.vmap(gradient), jax.grad(of_runs, (0, 1, 2)), jax.vmap(jax.checkpoint(gradient))):
        text = jax.jit(mapped).trace(*runs).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("__cudnn$fmha") == 2  # forward and backward
        assert "3x128x4x64xbf16" in text  # the rows of all runs
