"""Dropout (Srivastava et al. 2014) where the Transformer has it (Vaswani et al. 2017, section 5.4).

It falls on the output of each sub-layer, before that is added to the residual stream, and on the embeddings; none falls on
attention weights, inside the MLP, or on what is read from or written to a memory inside a mechanism.

Letters: B rows of a batch, W segments of a sequence, R rows of one segment each, S tokens, D model.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Dropout:
    """Dropout of a training step: random keys, from which all masks follow, and the rate.

    A mask is decided by the run's seed, the step, the row, the number of the segment, the layer and the sub-layer. It is the
    same in a resumed run, when it is made again for the gradient, on any layout of devices, and whatever
    `train.segments_per_step` and `train.accumulate`.

    Attributes:
      keys: a key for each row and segment: BxW of a sequence, R of rows of one segment, with the layers in front where
        they are stacked.
      rate: share of the entries that are set to zero.
    """

    keys: jax.Array
    rate: float = struct.field(pytree_node=False)

    def folded(self, number: int | jax.Array) -> "Dropout":
        """The dropout of a numbered part, such as a layer, of rows of one segment."""
        return Dropout(jax.vmap(jax.random.fold_in, (0, None))(self.keys, number), self.rate)


def dropout_of_step(rate: float, seed: int | jax.Array, step: jax.Array, rows: int, segments: int) -> Dropout | None:
    """The dropout of a training step, keys BxW; None at a rate of 0.

    The keys are those of threefry whatever JAX's default is: other generators draw other numbers on other layouts.
    """
    if not rate:
        return None
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    numbered = jax.vmap(jax.random.fold_in, (None, 0))
    return Dropout(jax.vmap(numbered, (0, None))(numbered(key, jnp.arange(rows)), jnp.arange(segments)), rate)


def dropped(x_RxSxD: jax.Array, dropout: Dropout | None, number: int) -> jax.Array:
    """`x_RxSxD` with a share of its entries set to zero and the others divided by the share that is kept; as it is for None.

    The number tells this mask from others of the same keys.
    """
    if dropout is None:
        return x_RxSxD
    kept = 1.0 - dropout.rate
    draw = functools.partial(jax.random.bernoulli, p=jnp.float32(kept), shape=x_RxSxD.shape[1:])
    return jnp.where(jax.vmap(draw)(dropout.folded(number).keys), x_RxSxD / kept, 0)
