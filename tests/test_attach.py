"""A memory that an imported model gets: beside its attention nothing changes at the first step, in its place it loads."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.cli.train import found_run
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.attach import attached
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.data.tokenizers import train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.layers.segment import Segment, insert_landmarks, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import MemoryConfig, memory_bytes
from infini_jax.memory.beside import BesideConfig, NativeConfig, RawTokens
from infini_jax.memory.full import FullConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.segment_only import SegmentOnlyConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.model.controls import emptied
from infini_jax.model.cost import model_cost
from infini_jax.model.inheritance import inheritance, inherited, layer_names
from infini_jax.model.stream import init_carry, scan_segments
from infini_jax.pretrained.families import architecture_of
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.importing import described, parameters
from infini_jax.pretrained.names import TABLES, rows_of
from infini_jax.pretrained.settings import model_settings
from infini_jax.records.rows import read_rows
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.origin import begun_from
from infini_jax.training.trained import Trained
from tests.support import streams
from tests.support.commands import on_devices, told
from tests.support.foreign import GEMMA, GPT2, LLAMA, llama_tensors, write_model
from tests.support.marks import slow_but
from tests.support.registering import without_stream

ADDED = [name for name in without_stream() if name not in ("local", "full")]
SMALL = {"landmark": {"block": 2, "blocks": 3, "retrieved": 2}, "memorizing": {"top_k": 2}}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 5}
SEGMENT, TOKENS = 4, 16


def small(name: str, **changes) -> MemoryConfig:
    """Settings of a small memory of a mechanism, with what it tells apart within 32 places."""
    memory, _ = MECHANISMS[name].resized(MECHANISMS[name].Config(), streams.MODEL.dims, 6)
    return dataclasses.replace(memory, **SMALL.get(name, {}) | changes)


@functools.cache
def family(name: str) -> dict:
    return {"llama": LLAMA, "mistral": MISTRAL, "gpt2": GPT2, "gemma": GEMMA}[name]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A function: name of a family -> (model, parameters) of a random tiny one, read from its files."""

    @functools.cache
    def read(name: str):
        settings, random, tensors = family(name), np.random.default_rng(0), {}
        architecture = architecture_of(settings)
        for row in rows_of(TABLES["safetensors", architecture.family], architecture):
            for layer in range(architecture.layers if row.in_layers else 1):
                tensors[row.tensor.format(layer)] = 0.4 * random.standard_normal(row.layout.stored_shape(architecture.sizes))
        tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        weights = open_weights(write_model(tmp_path_factory.mktemp("foreign") / name, settings, tensors))
        model = model_settings(described(weights), segment=SEGMENT)
        groups = {group: len(names) for group, names in layer_names(model).items()}
        return model, jax.tree.map(jnp.asarray, parameters(weights, architecture, groups))

    return read


@functools.cache
def tokens_of(vocab: int, tokens: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocab, (2, tokens), np.int32)


def streamed(model: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """Logits of one document a row, segment by segment."""
    return np.asarray(streams.scorer(model)(params, init_carry(model, len(tokens)), tokens, np.zeros_like(tokens))[1])


def begun(model: ModelConfig, params: dict, other: ModelConfig) -> dict:
    """Parameters of `other` that begin at those of `model`."""
    return inherited(model, params, other, streams.initial(other, 5))


def with_memory(found, memory, how="add", **options) -> tuple[ModelConfig, dict]:
    model, params = found
    other = attached(model, memory, how, **options)
    return other, begun(model, params, other)


def assert_same(found, expected):
    """To the rounding of float32 products of other shapes, as landmarks make them longer."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", slow_but(("infini", "memorizing", "landmark", "infinite_former"), ADDED))
def test_an_added_memory_changes_nothing_at_the_first_step(name, imported):
    """In one of two layers, streamed in segments and decoded token by token, within the native window."""
    model, params = imported("llama")
    tokens = tokens_of(model.vocab)
    expected = streamed(model, params, tokens)
    other, same = with_memory((model, params), small(name, layers=(1,)))
    assert_same(streamed(other, same, tokens), expected)
    assert_same(streams.decoded(other, same, tokens[:, :7]), expected[:, :7])
    assert streams.walked_flops(other) == pytest.approx(model_cost(other).flops, rel=1e-6)


def test_landmarks_take_no_part_in_native_attention(imported):
    """In all layers; of 3 tokens each, blocks end inside other segments, which then have a dead place."""
    model, params = imported("llama")
    tokens, memory = tokens_of(model.vocab), LandmarkConfig(block=3, blocks=3, retrieved=2)
    expected = streamed(model, params, tokens)
    other, same = with_memory((model, params), memory)
    assert other.has_phase
    assert_same(streamed(other, same, tokens), expected)
    assert_same(streams.decoded(other, same, tokens[:, :9]), expected[:, :9])
    assert streams.walked_flops(other) == pytest.approx(model_cost(other).flops, rel=1e-6)


def test_raw_tokens_are_found_and_put_back_where_they_stood():
    """One row a phase; while a segment is open, a landmark alone reads nothing."""
    raw = np.arange(1, 21, dtype=np.int32).reshape(2, 10)
    phase = jnp.array([0, 3], jnp.int32)
    tokens = insert_landmarks(jnp.asarray(raw), 4, 0, phase)
    x = tokens[..., None].astype(jnp.float32)
    heads, documents = x[..., None], insert_landmarks(jnp.zeros_like(raw), 4, None, phase)
    segment = Segment(x, heads, heads, heads, whole(documents, jnp.zeros(2, jnp.int32), phase))
    found = RawTokens.of(segment, 4)
    for array in (found.segment.inputs[..., 0], found.segment.keys[..., 0, 0], found.segment.queries[..., 0, 0]):
        np.testing.assert_array_equal(array, raw)
    back = np.asarray(found.put_back(found.segment.inputs))[..., 0]
    np.testing.assert_array_equal(back[np.asarray(tokens) > 0], np.asarray(tokens)[np.asarray(tokens) > 0])
    assert not back[np.asarray(tokens) == 0].any()
    for place in range(12):
        one = dataclasses.replace(
            segment,
            queries=heads[:1, place : place + 1],
            **{name: getattr(segment, name)[:1] for name in ("inputs", "keys", "values")},
            bounds=dataclasses.replace(
                whole(documents[:1], jnp.zeros(1, jnp.int32), phase[:1]),
                query_documents=documents[:1, place : place + 1],
                start=jnp.int32(place),
            ),
        )
        open_one = RawTokens.of(one, 4)
        before = int((np.asarray(tokens)[0, :place] > 0).sum())
        assert int(open_one.segment.bounds.start) == before
        read = open_one.put_back(jnp.ones((1, 1, 1)))
        assert float(read.squeeze()) == float(tokens[0, place] > 0)


@pytest.mark.parametrize("name", ["mistral", "gpt2", "gemma"])
def test_models_with_windows_and_learned_positions_stay_what_they_are(name, imported):
    """Of learned positions within a segment, where they begin anew; of windows in some layers, with turns of their own."""
    model, params = imported(name)
    tokens = tokens_of(model.vocab, 2 * SEGMENT)
    segment = 2 * SEGMENT if name == "gpt2" else SEGMENT
    expected = streamed(model, params, tokens)
    other, same = with_memory((model, params), InfiniConfig(), segment=segment)
    kept = other.memory.native
    assert type(kept) is (SegmentOnlyConfig if name == "gpt2" else LocalConfig)
    assert other.memory.layers == ((5,) if name == "gemma" else None)
    assert other.memory.added.positions == ("none" if name == "gpt2" else "rotary")
    assert_same(streamed(other, same, tokens), expected)
    if name == "gemma":
        far, same = with_memory((model, params), GatedDeltaConfig(layers=(0, 1, 2, 3, 4, 6)))
        assert (far.rotary, far.rotary_elsewhere) == (model.rotary_elsewhere, model.rotary)
        assert_same(streamed(far, same, tokens), expected)


def test_native_attention_ends_at_the_window(imported):
    """Tokens further back than two windows of 4 reach through two layers change nothing, exactly."""
    model, params = with_memory(imported("llama"), InfiniConfig(layers=(0,)), window=4)
    tokens = tokens_of(model.vocab)
    other = tokens.copy()
    other[:, 2] = (other[:, 2] + 1) % model.vocab
    first, second = streamed(model, params, tokens), streamed(model, params, other)
    np.testing.assert_array_equal(first[:, 9:], second[:, 9:])
    assert np.any(first[:, 8] != second[:, 8])


@pytest.mark.parametrize("name", slow_but(("infini",), ADDED))
def test_a_memory_in_the_place_of_attention_loads_and_is_another_model(name, imported):
    model, params = imported("llama")
    other, same = with_memory((model, params), small(name, layers=(1,)), "replace")
    found = inheritance(model, other, "llama")
    assert not found.left
    assert all(path[:2] == ("layer1", "memory") or path == ("embedding", "inserted") for path in found.fresh)
    tokens = tokens_of(model.vocab)
    logits, expected = streamed(other, same, tokens), streamed(model, params, tokens)
    assert np.all(np.isfinite(logits))
    assert np.abs(logits - expected)[:, SEGMENT:].max() > 1e-2


@pytest.mark.parametrize("name", slow_but(("infini",), ADDED))
def test_the_output_projections_of_an_added_memory_learn_at_the_first_step(name, imported):
    model, params = with_memory(imported("llama"), small(name, layers=(1,)))
    tokens = tokens_of(model.vocab)

    @jax.jit
    @jax.grad
    def slopes(params):
        def score(logits, part):
            return jnp.mean((logits - jax.nn.one_hot(jnp.roll(part.tokens, -1, axis=1), model.vocab)) ** 2)

        sequence = streams.Sequence(tokens, jnp.zeros_like(tokens))
        return scan_segments(model, params, init_carry(model, len(tokens)), sequence, score)[1].mean()

    found = slopes(params)["groups_1"]["memory"]["added"]
    outputs = {"out", "long_out", "out_states"} & found.keys()
    assert all(np.any(found[output]["kernel"]) for output in outputs)
    others = {path: leaf for path, leaf in found.items() if path not in outputs}
    moved = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(others) if np.any(leaf)]
    assert moved == []  # a projection of zeros hands nothing on


def test_bytes_tell_memory_and_window_apart():
    model = dataclasses.replace(streams.MODEL, memory=FullConfig(slots=32), layers=3)
    memory = MemorizingConfig(slots=16, top_k=4, positions="rotary")
    other = attached(model, dataclasses.replace(memory, layers=(1,)), "add", window=20)
    assert other.memory_bytes == memory_bytes(memory_of(memory, model.dims))
    window = memory_bytes(memory_of(LocalConfig(window=20), model.dims))
    assert other.neighborhood_bytes == 3 * window
    carry = init_carry(other, 1)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(carry.memory)) == other.memory_bytes + other.neighborhood_bytes
    grown = other.at_bytes(3 * other.memory_bytes)
    assert grown.memory.added.slots == 3 * 16
    assert grown.neighborhood_bytes == other.neighborhood_bytes
    assert attached(model, dataclasses.replace(memory, layers=(1,)), "replace").neighborhood_bytes > 0


def test_a_control_without_memory_keeps_the_window(imported):
    """At the first step both read the same."""
    model, params = with_memory(imported("llama"), MemorizingConfig(slots=6, top_k=2))
    tokens = tokens_of(model.vocab)
    run = streams.scorer(model)
    carry, _ = run(params, init_carry(model, 2), tokens[:, :8], np.zeros((2, 8), np.int32))
    held, empty = (run(params, one, tokens[:, 8:], np.zeros((2, 8), np.int32))[1] for one in (carry, emptied(model, carry)))
    np.testing.assert_array_equal(held, empty)
    assert not np.any(emptied(model, carry).memory[0].far.ring.written)


def test_settings_come_back_from_plain_ones():
    model = dataclasses.replace(streams.MODEL, vocab=128, memory=FullConfig(slots=32), layers=3)
    run = RunConfig(model=attached(model, LandmarkConfig(block=4, blocks=2, retrieved=1, layers=(0, 2)), "add"))
    plain = run.to_dict()
    assert plain["model"]["memory"]["kind"] == "beside"
    assert plain["model"]["elsewhere"]["kind"] == "native"
    assert plain["model"]["elsewhere"]["every"] == 4
    assert RunConfig.from_dict(plain) == run
    assert run.mechanism == "landmark"
    learned = dataclasses.replace(model.block, learned_positions=64)
    gpt2 = dataclasses.replace(model, memory=FullConfig(slots=64, positions="none"), block=learned)
    gpt2 = attached(gpt2, InfiniConfig(), "add")
    assert RunConfig.from_dict(RunConfig(model=gpt2).to_dict()).model == gpt2


FULL = dataclasses.replace(streams.MODEL, memory=FullConfig(slots=32), layers=4)
MIXED = dataclasses.replace(FULL, memory=FullConfig(slots=32, layers=(1, 3)), elsewhere=LocalConfig(window=8))
LEARNED = dataclasses.replace(
    FULL, memory=FullConfig(slots=32, positions="none"), block=dataclasses.replace(FULL.block, learned_positions=32)
)
BLOCKS = LandmarkConfig(block=4, blocks=2, retrieved=1)
CAPPED = dataclasses.replace(FULL, block=dataclasses.replace(FULL.block, score_cap=5.0))


@pytest.mark.parametrize(
    ("model", "memory", "options", "said"),
    [
        (FULL, InfiniConfig(layers=(4,)), {}, "memory.layers: layer 4 does not exist; name layers 0 to 3"),
        (FULL, InfiniConfig(layers=()), {}, "memory.layers: no layer carries the memory; "),
        (FULL, InfiniConfig(), {"segment": 64}, "model.segment: 64 tokens are more than the 32 that attention was trained "),
        (FULL, InfiniConfig(), {"window": 33}, "window: 33 tokens are more than the 32 that attention was trained to see; "),
        (FULL, InfiniConfig(), {"window": -1}, "window: -1 is negative; "),
        (FULL, InfiniConfig(), {"window": 8, "how": "replace"}, "window: no layer keeps its attention; "),
        (FULL, FullConfig(), {}, "attach: full is attention as the model has it; let it replace, or choose another mechanism"),
        (FULL, TransformerXLConfig(slots=17), {}, "memory: it tells 33 places apart with segments of 16, and 32 "),
        (FULL, InfiniConfig(local="window"), {}, "memory.local: the native attention is the neighborhood already; "),
        (MIXED, InfiniConfig(layers=(1,)), {}, "memory.layers: its layers have two kinds of attention, .*; name 0 2 or 1 3"),
        (MIXED, InfiniConfig(layers=(0, 1)), {"how": "replace"}, "memory.layers: its layers have two kinds of attention, "),
        (LEARNED, InfiniConfig(), {"window": 8}, "window: learned positions begin anew in every segment, "),
        (LEARNED, BLOCKS, {}, "attach: landmarks take places among learned positions, "),
        (CAPPED, BLOCKS, {}, "model.block.score_cap: Landmark reads its memory without it; "),
    ],
)
def test_what_cannot_be_attached_is_told_in_one_line(model, memory, options, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        attached(model, memory, **{"how": "add"} | options)


def test_a_memory_is_attached_again_with_other_settings_of_the_same_mechanism():
    added = attached(FULL, MemorizingConfig(slots=16, top_k=4, layers=(1, 2)), "add", window=20)
    again = attached(added, MemorizingConfig(slots=64, top_k=4), "add", segment=8)
    larger = added.memory.with_main(dataclasses.replace(added.memory.added, slots=64))
    assert again == dataclasses.replace(added, memory=larger, segment=8)
    assert attached(added, MemorizingConfig(slots=16, top_k=4, layers=(2, 1)), "add", window=20) == added
    replaced = attached(FULL, LandmarkConfig(block=4, blocks=2, retrieved=1, layers=(1, 2)), "replace")
    longer = attached(replaced, LandmarkConfig(block=8, blocks=2, retrieved=1), "replace")
    assert (longer.memory.block, longer.memory.layers, longer.elsewhere.every) == (8, (1, 2), 8)
    for model, memory, how, said in (
        (added, InfiniConfig(), "add", "attach: .* memorizing beside its attention; give memorizing with --attach add"),
        (added, MemorizingConfig(), "replace", "attach: the model carries memorizing beside its attention; "),
        (replaced, LandmarkConfig(), "add", "attach: the model carries landmark in the place of attention; "),
        (added, MemorizingConfig(layers=(0,)), "add", "memory.layers: the model carries .* of other layers; leave it out"),
    ):
        with pytest.raises(ConfigError, match=f"^{said}"):
            attached(model, memory, how)
    with pytest.raises(ConfigError, match=r"^window: .*, whose window is another; leave it out$"):
        attached(added, MemorizingConfig(), "add", window=12)


def test_settings_of_what_is_composed_are_checked():
    for memory, said in (
        (BesideConfig(native=LocalConfig(), added=InfiniConfig(layers=(0,))), "memory.layers: the added memory has layers "),
        (BesideConfig(native=LocalConfig(layers=(0,)), added=InfiniConfig()), "memory.attention: it has layers of its own; "),
        (BesideConfig(native=LandmarkConfig(), added=InfiniConfig()), "memory.attention: it inserts tokens into segments; "),
        (BesideConfig(native=LocalConfig(), added=InfiniConfig(), local="cache"), "memory.local: the native attention is "),
        (NativeConfig(attention=LocalConfig(), every=0), "memory.every: 0 tokens are not a block; give 1 or more"),
    ):
        with pytest.raises(ConfigError, match=f"^{said}"):
            ModelConfig(memory=memory)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an imported model, results/models/tiny."""
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    settings = {**LLAMA, "vocab_size": 300}
    write_model(tmp_path / "tiny", settings, {name: 0.3 * leaf for name, leaf in llama_tensors(settings).items()})
    texts = [f"the {number} words of a line, {number * 7}\n" for number in range(200)]
    (tmp_path / "tiny" / "tokenizer.model").write_bytes(train_sentencepiece(texts, 300))
    main(["import", "tiny", "--segment", "8"])
    shutil.rmtree(tmp_path / "tiny")
    return tmp_path


COMMAND = ["train", "infini", "mqar", "--from", "tiny", "--attach", "add", "--memory.layers", "1", "--train.sequence", "16"]
COMMAND += ["--data.pairs", "4", "--data.repeats", "2", "--train.batch", "2", "--budget.unit", "steps", "--budget.amount", "3"]


def test_a_model_named_alone_gets_a_memory_and_is_trained_and_resumed(place, capsys):
    """Sizes, segment and turns are the model's; the same command goes on, and without the model, too."""
    main([*COMMAND, "--saving.every-steps", "1", "--saving.keep", "9"])
    said = capsys.readouterr().out
    assert "run starts from the parameters of tiny, step 0: takes " in said
    assert "freshly initialized: memory/added/gate, memory/added/out/kernel; left behind: none" in said
    folder, source = place / "results/runs/run", Trained.open(place / "results/models/tiny")
    first, last = Trained.open(folder, 0), Trained.open(folder)
    assert first.run.model == attached(source.run.model, InfiniConfig(layers=(1,)), "add")
    tokens = tokens_of(300)
    expected = streamed(source.run.model, source.params, tokens)
    assert_same(streamed(first.run.model, first.params, tokens), expected)
    assert np.abs(streamed(last.run.model, last.params, tokens) - expected).max() > 1e-4
    (row,) = read_rows(folder / "row.parquet")
    assert (row.mechanism, row.variant, row.origin, row.steps) == ("infini", "add", "tiny", 3)
    assert (row.memory_bytes, row.neighborhood_bytes) == (first.run.model.memory_bytes, first.run.model.neighborhood_bytes)
    assert row.flops_planned == pytest.approx(row.flops_counted, rel=0.02)
    (folder / "row.parquet").unlink()
    shutil.rmtree(place / "results/models/tiny")
    main([*COMMAND, "--resume", "1"])
    (again,) = read_rows(folder / "row.parquet")
    assert (again.train_loss, again.loss) == (row.train_loss, row.loss)


def test_a_name_is_that_of_the_imported_model_where_its_files_lie_here_too(place, capsys):
    write_model(place / "tiny", LLAMA, llama_tensors(LLAMA))
    assert found_run(Path("tiny")) == Path("results/models/tiny")
    assert found_run(Path("other")) == Path("results/models/other")
    told_of_files = told(capsys, ["generate", "tiny", "--prompt", "a"], 2)
    assert told_of_files == "run: tiny holds a model of another program; import it: infini-jax import tiny"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infini", "landmark"])
def test_an_attached_run_is_evaluated_continued_and_exported_by_the_command_line(name, place, capsys):
    """Perplexity before a step is that of the model without the memory; generated text is that of the exported run."""
    (place / "text.txt").write_text("".join(f"the {number} words of a line\n" for number in range(40)))
    small = ["--memory.block", "4", "--memory.blocks", "2", "--memory.retrieved", "1"] if name == "landmark" else []
    texts = place / "texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"the {number} words of a line\n" * 8)
    settings = TokenizerSettings("sentencepiece", model=Path("results/models/tiny/tokenizer.model"))
    prepare("text_folder", settings, "lines", texts, jobs=1)
    more = [
        "corpus",
        "--data.name",
        "lines",
        *COMMAND[3:9],
        "--train.batch",
        "2",
        "--budget.unit",
        "steps",
        "--budget.amount",
        "2",
    ]
    main(["train", name, *more, "--saving.every-steps", "1", "--saving.keep", "9", *small])
    asked = ["--data", "text.txt", "--conditions", "carried", "--tokens", "30"]  # within the window of both
    folder = "results/runs/run"
    main(["evaluate", folder, "--step", "0", *asked])
    main(["evaluate", "results/models/tiny", *asked])
    own, model = (
        json.loads((place / one / "evaluation-perplexity-data-text.txt.json").read_text())
        for one in (folder, "results/models/tiny")
    )
    losses = [found["conditions"]["carried"]["loss"] for found in (own, model)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    capsys.readouterr()
    main(["generate", folder, "--prompt", "the 7 words", "--tokens", "12", "--temperature", "0"])
    said = capsys.readouterr().out
    main(["export", folder, "out"])
    main(["import", "out"])
    capsys.readouterr()
    main(["generate", "results/models/out", "--prompt", "the 7 words", "--tokens", "12", "--temperature", "0"])
    assert capsys.readouterr().out == said != "the 7 words\n"


def test_the_command_line_says_what_cannot_be(place, capsys):
    def says(*words: str) -> str:
        return told(capsys, [*COMMAND, *words], 2)

    assert says("--model.d-model", "32") == "model.d_model: 32 is not 12, as results/models/tiny has it; leave it out"
    assert says("--memory.layers", "2") == "memory.layers: layer 2 does not exist; name layers 0 to 1"
    assert says("--model.segment", "33", "--train.sequence", "66").startswith("model.segment: 33 tokens are more than the 32 ")
    assert says("--from", "nothing").startswith("from: results/models/nothing is not a folder; ")
    without = COMMAND[:3] + COMMAND[5:]
    assert told(capsys, without, 2) == "attach: no model is named that gets the memory; give --from, too"
    without = COMMAND[:5] + COMMAND[7:] + ["--window", "8"]
    assert told(capsys, without, 2) == "window: no memory is attached; give --attach, too"


@pytest.mark.slow
def test_an_attached_landmark_trains_and_goes_on_from_any_step(tmp_path):
    """With its inserted token beside the tokens of the model it began at."""
    base = RunConfig(
        name="base",
        model=dataclasses.replace(FULL, layers=2, vocab=48, segment=8),
        data=MqarConfig(pairs=4, symbols=32, repeats=2),
        train=TrainConfig(batch=2, sequence=16, evaluation_steps=1),
        budget=Budget("steps", 2),
    )
    execute(base, tmp_path / "base", study="")
    model = attached(base.model, LandmarkConfig(block=4, blocks=2, retrieved=1, layers=(1,)), "add")
    run = begun_from(dataclasses.replace(base, name="added", model=model, budget=Budget("steps", 3)), tmp_path / "base")
    row = execute(run, tmp_path / "added", study="", saving=Saving(every_steps=1, keep=9))
    (tmp_path / "added" / "row.parquet").unlink()
    again = execute(run, tmp_path / "added", study="", saving=Saving(every_steps=1, keep=9), resume=1)
    assert (row.train_loss, row.loss) == (again.train_loss, again.loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infini_beside", "landmark_beside"])
def test_training_on_several_devices_equals_one(name):
    found = on_devices(4, "support.beside", f"losses('{name}')")
    for layout, reached in found.items():
        np.testing.assert_allclose(reached, found["one"], rtol=1e-4, err_msg=layout)  # float32 sums in another order
