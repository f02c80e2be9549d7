"""What every registered mechanism promises of its other forms: several segments per step, grouped queries. Dear to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.model.form import Form
from infini_jax.model.stream import init_carry, scan_segments
from infini_jax.training.gradient import auxiliary_loss
from tests.support import streams
from tests.support.streams import BATCH, tiny

pytestmark = [pytest.mark.parametrize("name", MECHANISMS), pytest.mark.slow]


def test_several_segments_a_step_equal_one_after_the_other(name):
    """Logits, carry and gradients; documents end within a segment of a step, and where one begins. Or it is refused."""
    model = tiny(name, layers=1)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model, segments=4)
    documents = jnp.searchsorted(jnp.array([20, 34]), jnp.arange(tokens.shape[1]), side="right") * jnp.array([[0], [1]])

    def run(params, together):
        sequence, carry = streams.Sequence(tokens, documents), init_carry(model, BATCH)
        carry, logits, metrics = scan_segments(
            model, params, carry, sequence, lambda logits, part: logits, form=Form(together)
        )
        logits = logits.swapaxes(0, 1).reshape(*tokens.shape, -1)
        return jnp.sum(jnp.sin(3 * logits)) + auxiliary_loss(metrics), (carry, logits)

    both = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    if MECHANISMS[name].works_on_stream():
        with pytest.raises(ConfigError, match=rf"^train.segments_per_step: {name} works on the residual stream"):
            both(params, 4)
        return
    ((_, found), gradient), ((_, expected), slope) = both(params, 4), both(params, 1)
    # float32 sums in another order; gradients add up hundreds of terms
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3 * np.abs(b).max()), gradient, slope)


def test_every_form_has_the_same_gradient_and_layers_made_again_need_the_least_memory(name):
    model = tiny(name, layers=4)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model, segments=2)

    def loss(params, form):
        sequence, carry = streams.Sequence(tokens, jnp.zeros_like(tokens)), init_carry(model, BATCH)
        _, logits, metrics = scan_segments(model, params, carry, sequence, lambda logits, part: logits, form=form)
        return jnp.sum(jnp.sin(logits)) + auxiliary_loss(metrics)

    forms = [Form(), Form(rematerialise="layer"), Form(rematerialise="none"), Form(1, "none", "unroll")]
    programs = {form: jax.jit(jax.grad(loss), static_argnums=1).lower(params, form).compile() for form in forms}
    whole, *others = (programs[form](params) for form in forms)
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), found, whole)
    needs = [program.memory_analysis().temp_size_in_bytes for program in programs.values()]
    assert needs[1] < needs[0] < needs[2]


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_read_what_their_key_head_wrote(name, kv_heads):
    """As if each key head stood there once for every query head that shares it, four query heads in all."""
    if kept_from_it := MECHANISMS[name].exempt.get("key_heads_apart"):
        pytest.skip(kept_from_it)
    _, grouped_params, grouped = streams.layer(name, heads=4, kv_heads=kv_heads)
    _, params, stream = streams.layer(name, heads=4)
    inputs, documents = streams.free_inputs(name, heads=4, kv_heads=kv_heads), streams.documents_of(name, (5,))
    repeated = (*inputs[:2], *(jnp.repeat(array, 4 // kv_heads, axis=2) for array in inputs[2:]))
    expected = stream(widened(grouped_params, params, 4 // kv_heads), repeated, documents)
    # the same products in another order; a retrieval that tips over at the last bit would show as a large difference
    np.testing.assert_allclose(grouped(grouped_params, inputs, documents), expected, atol=5e-6)


def widened(grouped, params, repeats: int):
    """Parameters a key head, repeated for each query head; those that mix all heads become blocks on the diagonal."""

    def widen(array, like):
        axes = [axis for axis, (few, many) in enumerate(zip(array.shape, like.shape, strict=True)) if few < many]
        if len(axes) < 2:
            return jnp.repeat(array, repeats, axis=axes[0]) if axes else array
        pytest.fail(
            "a parameter mixes key heads: declare `key_heads_apart` in `exempt`, and test grouped heads by a reference"
        )

    return jax.tree.map(widen, grouped, params)
