"""Logits of published architectures, from `transformers` on a CPU with random weights; skipped where that is not installed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.model.stream import init_carry, parameter_shapes
from tests.support import families, streams

torch = pytest.importorskip("torch", reason="pip install torch transformers")
transformers = pytest.importorskip("transformers", reason="pip install torch transformers")

SEGMENT, TOKENS, CONTEXT = 8, 40, 80
NEW = 64  # tokens that are generated
COMMON = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
GATED = COMMON | {"intermediate_size": 40, "num_key_value_heads": 2, "tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = GATED | {"head_dim": 8, "layer_types": KINDS, "tie_word_embeddings": True}
CONFIGS = {
    "llama": ("Llama", GATED | {"rms_norm_eps": 1e-5}),
    "llama, scaled": ("Llama", GATED | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": ("Llama", GATED | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "qwen2": ("Qwen2", GATED),
    "qwen3": ("Qwen3", GATED | {"head_dim": 10}),
    "gpt2": ("GPT2", {"vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": ("GPTNeoX", COMMON | {"intermediate_size": 40, "hidden_size": 32, "rotary_pct": 0.5}),
    "gpt_neox, in turn": ("GPTNeoX", COMMON | {"intermediate_size": 40, "hidden_size": 32, "use_parallel_residual": False}),
    "gemma3": ("Gemma3Text", GEMMA | {"query_pre_attn_scalar": 6, "sliding_window": 5}),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 11, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def theirs(name: str):
    """(a model of random weights, none of them at its initial constant; the names and arrays of its tensors)."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings, attn_implementation="eager")
    model = getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.copy_(0.2 * torch.randn_like(leaf) + (0.0 if leaf.ndim > 1 else leaf))
    return model, {key: leaf.numpy() for key, leaf in model.state_dict().items()}


def ours_of(name: str):
    """(their model, its settings as ours, its parameters as ours)."""
    model, tensors = theirs(name)
    ours = families.model_of(model.config, SEGMENT, CONTEXT)
    return model, ours, jax.tree.map(jnp.asarray, families.parameters_of(model.config.model_type, ours, tensors))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_published_architecture(name):
    """In float32, streamed in segments of 8 tokens and read one by one; the text crosses four segments' edges."""
    model, ours, params = ours_of(name)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameter_shapes(ours))
    tokens = np.random.default_rng(1).integers(0, 61, (2, TOKENS))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(expected).max() > 0.5
    found = streams.scorer(ours)(params, init_carry(ours, 2), jnp.asarray(tokens), jnp.zeros((2, TOKENS), jnp.int32))[1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))
    read = streams.decoded(ours, params, jnp.asarray(tokens[:, : 2 * SEGMENT + 3]))
    np.testing.assert_allclose(read, expected[:, : 2 * SEGMENT + 3], rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["llama, scaled", "gpt2", "gemma3"])
def test_the_likeliest_text_is_theirs_for_64_tokens(name):
    """Over eight segments' edges, and past every window."""
    model, ours, params = ours_of(name)
    prompt = np.random.default_rng(2).integers(0, 61, 11)
    with torch.no_grad():
        expected = model.generate(
            torch.from_numpy(prompt)[None],
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
            eos_token_id=None,
        )
    found = continuation(ours, params, *read_prompt(ours, params, [prompt]), Sampling(temperature=0.0))
    assert list(itertools.islice(found, NEW)) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_gradients_of_the_loss_are_theirs(name):
    """By every parameter, through the caches of all segments; the mean loss of the next token."""
    model, ours, params = ours_of(name)
    tokens = np.random.default_rng(1).integers(0, 61, (2, TOKENS))
    loss = model(torch.from_numpy(tokens), labels=torch.from_numpy(tokens)).loss
    loss.backward()
    slopes = {key: leaf.grad.numpy() for key, leaf in model.named_parameters()}
    expected = families.parameters_of(model.config.model_type, ours, slopes)

    def mean_loss(params):
        documents = jnp.zeros(tokens.shape, jnp.int32)
        logits = streams.scorer(ours)(params, init_carry(ours, 2), jnp.asarray(tokens), documents)[1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(tokens)[:, 1:, None], axis=-1)
        return -chosen.mean()

    value, found = jax.value_and_grad(mean_loss)(params)
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def compare(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * largest)  # float32 on both sides

    jax.tree.map(compare, found, expected)
