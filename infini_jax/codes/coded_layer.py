"""One memory layer between tables of trained codes: what stands in for a transformer's embeddings and projections.

Letters as in `infini_jax.layers.segment`, and V symbols (values), C symbols (keys); W segments of S pairs.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from infini_jax.codes.capacity import CapacityRun
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Segment, insert_landmarks, whole
from infini_jax.memory import memory_of

OPEN, OTHER = 1, 0  # documents: of the pairs that count, and of what stands before them


class CodedLayer(nn.Module):
    """The memory of a run, its codes and the table of its answers.

    A pair's input is the sum of a key's and a value's code. Its memory keys come from a table of their own, its values from
    the value's code by a projection, as in a transformer. Queries begin as the keys, which a pair of projections could learn
    as well, and are trained apart from them.
    """

    run: CapacityRun

    def setup(self):
        """Makes the memory, the tables of codes and the neutral codes of questions."""
        run, d = self.run, self.run.dims
        normal, small = nn.initializers.normal(1.0), nn.initializers.normal(0.02)

        def as_keys(_: jax.Array) -> jax.Array:
            return jnp.repeat(self.keys, d.heads // d.kv_heads, axis=1)

        self.memory = memory_of(run.memory, d)
        self.key_inputs = self.param("key_inputs", normal, (run.symbols, d.d_model), PARAMETERS)
        self.value_inputs = self.param("value_inputs", normal, (run.symbols, d.d_model), PARAMETERS)
        self.keys = self.param("keys", normal, (run.symbols, d.kv_heads, d.key_dim), PARAMETERS)
        self.queries = self.param("queries", as_keys)
        self.values = nn.DenseGeneral((d.kv_heads, d.value_dim), use_bias=False)
        self.answers = self.param("answers", nn.initializers.normal(d.d_model**-0.5), (run.symbols, d.d_model), PARAMETERS)
        # a question's input and key; what a landmark adds to the codes of its block
        self.neutral_input = self.param("neutral_input", normal, (d.d_model,), PARAMETERS)
        self.neutral_key = self.param("neutral_key", small, (d.kv_heads, d.key_dim), PARAMETERS)
        self.landmark_input = self.param("landmark_input", small, (d.d_model,), PARAMETERS)
        self.landmark_key = self.param("landmark_key", small, (d.kv_heads, d.key_dim), PARAMETERS)

    def __call__(self, symbols_BxS: jax.Array, memory) -> tuple:
        """Logits and memory after one segment of questions, in a call that touches every parameter: it initializes them."""
        documents_BxS = jnp.full_like(symbols_BxS, OPEN)
        asked = self._segment(self._questions(symbols_BxS), documents_BxS, documents_BxS[:, 0])
        y_BxTxD, memory, _ = self.memory.advance(memory, asked)
        return self.score(y_BxTxD), memory

    def pairs(self, keys_BxS: jax.Array, values_BxS: jax.Array) -> tuple[jax.Array, ...]:
        """Inputs, queries, keys and values of pairs of symbols, of one segment or of all.

        Of all at once the tables' gradients are gathered in one pass, and not once per segment.
        """
        inputs_BxSxD = (self.key_inputs[keys_BxS] + self.value_inputs[values_BxS]) * 2**-0.5
        return inputs_BxSxD, self.queries[keys_BxS], self.keys[keys_BxS], self.values(self.value_inputs[values_BxS])

    def write(self, memory, tokens: tuple[jax.Array, ...], documents_BxS: jax.Array, opened_B: jax.Array):
        """The memory after a segment of pairs.

        Args:
          memory: the memory before it.
          tokens: inputs, queries, keys and values of the segment's `pairs`.
          documents_BxS: document of each pair.
          opened_B: document that was open before the segment.
        """
        return self.memory.write(memory, self._segment(tokens, documents_BxS, opened_B))

    def ask(self, memory, symbols_BxS: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The memory's answers to a segment of keys: (BxSxD, metrics). The questions are never written."""
        documents_BxS = jnp.full_like(symbols_BxS, OPEN)
        y_BxTxD, metrics = self.memory.attend(
            memory, self._segment(self._questions(symbols_BxS), documents_BxS, documents_BxS[:, 0])
        )
        every = self.run.memory.landmark_every
        if every is not None:
            blocks = y_BxTxD.reshape(y_BxTxD.shape[0], -1, every + 1, y_BxTxD.shape[-1])
            y_BxTxD = blocks[:, :, :every].reshape(*symbols_BxS.shape, -1)
        return y_BxTxD, metrics

    def score(self, y_BxSxD: jax.Array) -> jax.Array:
        """Logits of answers over all values: BxSxV."""
        return y_BxSxD @ self.answers.T

    def value_codes(self, symbols: jax.Array) -> jax.Array:
        """Codes of value symbols, the target of the squared-error probe: ...xD."""
        return self.value_inputs[symbols]

    def _questions(self, symbols_BxS: jax.Array) -> tuple[jax.Array, ...]:
        """Inputs, queries, keys and values of a segment of questions, all but the queries the same everywhere."""

        def everywhere(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (*symbols_BxS.shape, *x.shape))

        neutral_BxSxD = everywhere(self.neutral_input)
        return neutral_BxSxD, self.queries[symbols_BxS], everywhere(self.neutral_key), self.values(neutral_BxSxD)

    def _segment(self, tokens: tuple[jax.Array, ...], documents_BxS: jax.Array, opened_B: jax.Array) -> Segment:
        """The segment of S tokens' inputs, queries, keys and values, with landmarks where the mechanism has them."""
        every = self.run.memory.landmark_every
        if every is None:
            inputs, queries, keys, values = tokens
            return Segment(inputs, queries, keys, values, whole(documents_BxS, opened_B))
        inputs, queries, keys, values = (with_landmarks(x, documents_BxS, every) for x in tokens)
        is_landmark_T = (jnp.arange(inputs.shape[1]) + 1) % (every + 1) == 0
        inputs = inputs + is_landmark_T[:, None] * self.landmark_input
        keys = keys + is_landmark_T[:, None, None] * self.landmark_key
        return Segment(inputs, queries, keys, values, whole(insert_landmarks(documents_BxS, every), opened_B))


def with_landmarks(x_BxSx: jax.Array, documents_BxS: jax.Array, every: int) -> jax.Array:
    """The tokens of S / `every` blocks with a landmark behind each block.

    A landmark is the mean of the block's tokens of the document in which the block ends.

    In a network a landmark attends to its block in the layers below; alone, all landmarks would be the same and no block could
    be told from another.
    """
    batch, _, *rest = x_BxSx.shape
    blocks = x_BxSx.reshape(batch, -1, every, *rest)
    documents_BxMxP = documents_BxS.reshape(batch, -1, every)
    same_BxMxP = (documents_BxMxP == documents_BxMxP[..., -1:]).astype(x_BxSx.dtype)
    share = (same_BxMxP / same_BxMxP.sum(axis=-1, keepdims=True)).reshape(*same_BxMxP.shape, *(1 for _ in rest))
    closing = (blocks * share).sum(axis=2, keepdims=True)
    return jnp.concatenate([blocks, closing], axis=2).reshape(batch, -1, *rest)
