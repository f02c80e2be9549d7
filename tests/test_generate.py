"""Generation: a prompt read in segments is the prompt read token by token; draws follow the distribution asked for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.model.generate import Sampling, continuation, draw, read_prompt
from tests.support import streams
from tests.support.marks import slow_but

LENGTH = 37  # two segments of 16 and a rest


@pytest.mark.parametrize("name", slow_but(["infini", "memorizing"], MECHANISMS))
def test_the_likeliest_continuation_is_that_of_the_parallel_forward_pass(name):
    model, params = streams.tiny(name, layers=1), streams.parameters_of(streams.tiny(name, layers=1))
    prompt = np.asarray(streams.tokens_of(model)[0, :LENGTH])
    pieces = np.split(prompt, [5, 6, 30])
    decoder, logits = read_prompt(model, params, pieces)
    new = list(itertools.islice(continuation(model, params, decoder, logits, Sampling(temperature=0.0)), 8))
    tokens = jnp.zeros((streams.BATCH, streams.SEGMENTS * model.segment), jnp.int32)
    tokens = tokens.at[0, : LENGTH + 8].set(jnp.array([*prompt, *new]))
    whole = streams.scorer(model)(params, streams.init_carry(model, streams.BATCH), tokens, jnp.zeros_like(tokens))[1][0]
    np.testing.assert_allclose(logits[0], whole[LENGTH - 1], atol=5e-5)  # float32 products of other shapes
    assert new == whole[LENGTH - 1 : LENGTH + 7].argmax(axis=-1).tolist()


def test_draws_follow_the_nucleus_of_the_distribution():
    """10 000 draws against the shares worked out by hand; 0.02 is four standard errors."""
    p = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
    logits = jnp.broadcast_to(jnp.log(p), (10_000, 5))
    for temperature, top_p, kept in (
        (1.0, 1.0, [0, 1, 2, 3, 4]),
        (1.0, 0.7, [1, 2, 3]),
        (2.0, 1.0, [0, 1, 2, 3, 4]),
        (1.0, 0.01, [1]),
    ):
        tokens = np.asarray(draw(jax.random.key(1), logits, jnp.float32(temperature), jnp.float32(top_p)))
        expected = np.zeros(5)
        expected[kept] = p[kept] ** (1 / temperature) / (p[kept] ** (1 / temperature)).sum()
        np.testing.assert_allclose(np.bincount(tokens, minlength=5) / len(tokens), expected, atol=0.02)
    assert np.all(draw(jax.random.key(1), logits[:3], jnp.float32(0.0), jnp.float32(1.0)) == 1)


def test_the_same_seed_draws_the_same_tokens():
    model, params = streams.tiny("infini", layers=1), streams.parameters_of(streams.tiny("infini", layers=1))

    def tokens(seed):
        decoder, logits = read_prompt(model, params, [np.arange(5)])
        return list(itertools.islice(continuation(model, params, decoder, logits, Sampling(seed=seed)), 20))

    assert tokens(1) == tokens(1) != tokens(2)


def test_an_empty_prompt_and_impossible_sampling_are_refused():
    model, params = streams.tiny("infini", layers=1), streams.parameters_of(streams.tiny("infini", layers=1))
    with pytest.raises(ConfigError, match=r"^prompt: it is empty; give at least one token$"):
        read_prompt(model, params, [])
    with pytest.raises(ConfigError, match=r"^temperature: -1 is negative"):
        Sampling(temperature=-1).check()
    with pytest.raises(ConfigError, match=r"^top_p: 0 is not a probability mass"):
        Sampling(top_p=0).check()


def test_a_token_that_the_model_does_not_have_is_refused():
    model = streams.tiny("local", layers=1)
    params = streams.parameters_of(model)
    for token in (-1, model.vocab):
        with pytest.raises(ConfigError, match=rf"^prompt: token {token} is outside the model's vocabulary of {model.vocab}; "):
            read_prompt(model, params, [np.array([0, token])])


def test_tokens_beyond_the_tokenizers_vocabulary_are_never_drawn():
    model = streams.tiny("local", layers=1)
    params = streams.parameters_of(model)
    sampling = Sampling(temperature=100.0, vocab=3)
    new = itertools.islice(continuation(model, params, *read_prompt(model, params, [np.array([1])]), sampling), 40)
    assert set(new) == {0, 1, 2}
