"""A small ∞-former in float64 over segments with document edges, shared by its tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers.segment import NO_DOCUMENT, Segment, whole
from infini_jax.memory.base import Dims
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig

# Key and value dims do not multiply to d_model; at 7 or 8 queries r (B W_v) is cheaper, at one (r B) W_v.
DIMS = Dims(d_model=10, heads=2, kv_heads=2, key_dim=4, value_dim=3, segment=8, compute="float64")
GROUPED = dataclasses.replace(DIMS, heads=4)  # two query heads share a key head
CONFIG = InfiniteFormerConfig(basis=12, widths=(0.02, 0.1), samples=9, tau=0.6, ridge=0.5, kl_weight=0.1)

# Row 0: one document. Row 1: cuts inside segments. Row 2: a cut at a segment's edge, then two in one segment.
DOCUMENTS = np.array(
    [
        [[0] * 8, [0] * 8, [0] * 8, [0] * 8],
        [[0] * 8, [0] * 3 + [1] * 5, [1] * 8, [1] * 7 + [2]],
        [[0] * 8, [0] * 8, [1] * 8, [1] * 2 + [2] * 3 + [3] * 3],
    ]
)


def relative(ours, theirs) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-300))


def segment_of(rng, documents_BxS, open_document_B, dims=DIMS) -> Segment:
    batch, tokens = documents_BxS.shape
    shapes = {
        "inputs": (batch, tokens, dims.d_model),
        "queries": (batch, tokens, dims.heads, dims.key_dim),
        "keys": (batch, tokens, dims.kv_heads, dims.key_dim),
        "values": (batch, tokens, dims.kv_heads, dims.value_dim),
    }
    arrays = {name: jnp.asarray(rng.standard_normal(shape), dims.dtype) for name, shape in shapes.items()}
    return Segment(bounds=whole(jnp.asarray(documents_BxS), jnp.asarray(open_document_B)), **arrays)


def segments_of(rng, documents_BxWxS, dims=DIMS) -> list[Segment]:
    """One segment a step, each opened by the document that closed the one before."""
    opened = np.concatenate([np.full((len(documents_BxWxS), 1), NO_DOCUMENT), documents_BxWxS[:, :-1, -1]], axis=1)
    return [segment_of(rng, documents_BxWxS[:, i], opened[:, i], dims) for i in range(documents_BxWxS.shape[1])]


def parameters_of(rng, module, segment):
    """Random parameters, large enough that queries differ in mu and sigma^2."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), module.init_memory(1), segment, method="attend"))
    scale = {"w_mu": 2.0, "w_sigma": 2.0, "gate_bias": 0.5}
    fans = {"w_k": DIMS.d_model, "w_v": DIMS.d_model, "gate_kernel": 3 * DIMS.d_model}

    def draw(path, leaf):
        name = path[-1].key
        return jnp.asarray(rng.standard_normal(leaf.shape) * scale.get(name, fans.get(name, 6) ** -0.5))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def plain(variables) -> dict[str, np.ndarray]:
    """The module's parameters under the reference's names."""
    params = {name: np.asarray(value) for name, value in variables["params"].items() if name not in ("out", "long_out")}
    return params | {name: np.asarray(variables["params"][name]["kernel"]) for name in ("out", "long_out")}


@functools.lru_cache(maxsize=4)
def compiled(config=CONFIG, dims=DIMS):
    """(attend, write) of a module, compiled once for all tests that share it."""
    module = InfiniteFormer(config, dims)
    return tuple(jax.jit(functools.partial(module.apply, method=method)) for method in ("attend", "write"))


def setting(documents=DOCUMENTS, dims=DIMS):
    """(module, variables, segments) in float64; call inside enable_x64."""
    rng = np.random.default_rng(0)
    module = InfiniteFormer(CONFIG, dims)
    segments = segments_of(rng, documents, dims)
    return module, parameters_of(rng, module, segments[0]), segments
