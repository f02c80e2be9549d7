"""What a run remembers of a prompt, kept in a file: going on from it is reading in one piece, and no other run takes it."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.model import generate
from infini_jax.model.generate import PromptState, Sampling, continuation, open_prompt, read_prompt, read_segments
from infini_jax.model.prompt import LONGEST_REST, PromptTokens
from infini_jax.model.stopping import Stopping
from infini_jax.training import memory_file
from infini_jax.training.text_generator import TextGenerator, TextMemory
from infini_jax.training.trained import Trained
from tests.support import streams

ENDS = (5, 16, 21, 32)  # of a prompt, with segments of 16: inside the first, at its end, inside the second, at its end


def trained_of(mechanism: str = "infini", **changes) -> Trained:
    """Random parameters of a run that was never trained."""
    segment = {"segment": 18} if mechanism == "landmark with a phase" else {}
    model = streams.tiny(mechanism.split()[0], layers=1, vocab=Bytes.vocab, **segment)
    train = TrainConfig(batch=1, sequence=model.segment)
    settings = {"name": "run", "model": model, "data": MqarConfig(pairs=2, symbols=32), "train": train}
    run = RunConfig(**settings | {"budget": Budget("steps", 1)} | changes)
    return Trained(Path("run"), run, 10, streams.parameters_of(model))


def bits_of(tree) -> list[tuple]:
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def questioned(trained: Trained, tokens: np.ndarray, folder: Path) -> None:
    """A question behind a file of every part of these tokens has the bits of all of them in one piece."""
    model, params = trained.run.model, trained.params
    whole = bits_of(open_prompt(model, params, read_segments(model, params, [tokens])))
    for end in ENDS:
        file = folder / f"{end}.memory"
        memory_file.save_memory(read_segments(model, params, [tokens[:end]]), {"rest": ""}, trained, file)
        content = file.read_bytes()
        state, notes = memory_file.load_memory(file, trained)
        assert (state.tokens, notes["rest"]) == (end, "")
        for _ in range(2):  # asked again: the first question has used nothing up
            assert bits_of(open_prompt(model, params, read_segments(model, params, [tokens[end:]], state))) == whole
        assert file.read_bytes() == content


def test_a_question_behind_a_file_has_the_bits_of_prompt_and_question_in_one_piece(tmp_path):
    """Decoder and logits, from which all else follows; the last tokens are read one by one."""
    trained = trained_of()
    questioned(trained, np.asarray(streams.tokens_of(trained.run.model, segments=4)[0, :53]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "infini"] + ["landmark with a phase"])
def test_every_mechanism_goes_on_from_a_file_as_in_one_piece(name, tmp_path):
    """Three whole segments, which one program reads: a file cuts them anywhere."""
    trained = trained_of(name)
    assert trained.run.model.has_phase == (" " in name)
    questioned(trained, np.asarray(streams.tokens_of(trained.run.model)[0]), tmp_path)


def test_every_array_of_a_carry_comes_back_with_all_of_its_bits(tmp_path):
    trained = trained_of()
    empty = PromptState.empty(trained.run.model)
    odd = jax.tree.map(lambda leaf: leaf.at[..., :1].set(jnp.nan if leaf.dtype.kind == "f" else 7), empty.carry)
    memory_file.save_memory(PromptState(odd, np.arange(3, dtype=np.int32), 99), {}, trained, tmp_path / "a.memory")
    state, _ = memory_file.load_memory(tmp_path / "a.memory", trained)
    assert jax.tree.structure(state.carry) == jax.tree.structure(odd)
    assert bits_of(state.carry) == bits_of(odd)
    assert (state.waiting.tolist(), state.tokens) == ([0, 1, 2], 99)
    kinds = [np.empty(0, kind) for kind in (jnp.bfloat16, np.float16, bool, np.uint32, np.int8)]
    entries = memory_file.entries_of({str(number): array for number, array in enumerate(kinds)})
    assert [entry["dtype"] for entry in entries.values()] == ["BF16", "F16", "BOOL", "U32", "I8"]


def test_the_header_is_the_one_of_safetensors(tmp_path):
    """Read as the format's page says: eight bytes, JSON, then every array at its offsets, without holes."""
    trained = trained_of()
    state = PromptState(PromptState.empty(trained.run.model).carry, np.arange(5, dtype=np.int32), 5)
    memory_file.save_memory(state, {"rest": "é"}, trained, tmp_path / "a.memory")
    content = (tmp_path / "a.memory").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    about = json.loads(header.pop("__metadata__")["about"])
    assert (about["run"], about["mechanism"], about["step"], about["tokens"], about["rest"]) == ("run", "infini", 10, 5, "é")
    assert about["fingerprint"] == trained.run.fingerprint()
    ends = [0]
    for entry in header.values():
        begin, end = entry["data_offsets"]
        size = {"F32": 4, "I32": 4}[entry["dtype"]] * int(np.prod(entry["shape"]))
        assert (begin, end) == (ends[-1], begin + size)
        ends.append(end)
    assert (ends[-1], length % 8) == (len(data), 0)
    begin, end = header["waiting"]["data_offsets"]
    assert np.frombuffer(data[begin:end], "<i4").tolist() == [0, 1, 2, 3, 4]


# ---- what is refused --------------------------------------------------------------------------------------------------------


def saved(folder: Path, trained: Trained | None = None) -> Path:
    trained = trained or trained_of()
    state = PromptState(PromptState.empty(trained.run.model).carry, np.arange(5, dtype=np.int32), 5)
    memory_file.save_memory(state, {"rest": ""}, trained, folder / "a.memory")
    return folder / "a.memory"


def refused(file: Path, trained: Trained) -> str:
    with pytest.raises(ConfigError) as error:
        memory_file.load_memory(file, trained)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(file), "FILE")


def test_a_changed_or_cut_file_is_refused_wherever_the_change_is(tmp_path):
    trained, file = trained_of(), saved(tmp_path)
    content = file.read_bytes()
    for place in (0, 3, 8, 40, len(content) // 3, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert refused(file, trained).startswith("memory: FILE is damaged or no memory ("), place
    for damaged in (b"", content[:5], content[:100], content[:-1], content + b"\0", b"It was a dark night\n" * 9, b"[]" * 99):
        file.write_bytes(damaged)
        assert re.fullmatch(r"memory: FILE is damaged or no memory \(.*\); read .* with --save-memory", refused(file, trained))
    assert refused(tmp_path, trained).endswith("is not a regular file; give a file of --save-memory")
    assert "No such file or directory; give a file of --save-memory" in refused(tmp_path / "none", trained)


def test_another_run_step_or_parameters_are_told_with_what_differs(tmp_path):
    trained, file = trained_of(), saved(tmp_path)
    model = streams.tiny("gated_delta", layers=1)
    other = dataclasses.replace(trained, run=dataclasses.replace(trained.run, name="other", model=model))
    assert refused(file, other) == (
        f"memory: FILE is of the run 'run' (infini, {trained.run.fingerprint()}), "
        f"this is 'other' (gated_delta, {other.run.fingerprint()}); give the folder of 'run'"
    )
    later = dataclasses.replace(trained, step=20)
    assert refused(file, later) == "memory: FILE is of step 10, this is step 20; give --step 10"
    params = jax.tree.map(lambda leaf: leaf + 1, trained.params)
    again = "read the prompt again with --save-memory"
    assert refused(file, dataclasses.replace(trained, params=params)) == (
        f"memory: FILE was read with other parameters of step 10, as of a run that was made again; {again}"
    )
    renamed = dataclasses.replace(trained, run=dataclasses.replace(trained.run, name="moved"))
    assert memory_file.load_memory(file, renamed)[0].tokens == 5  # a name is no setting


def test_a_file_of_another_version_is_told(tmp_path, monkeypatch):
    trained, file = trained_of(), saved(tmp_path)
    monkeypatch.setattr(memory_file, "FORMAT", "infini_jax memory 2")
    assert refused(file, trained).startswith("memory: FILE has the format 'infini_jax memory 1' and not 'infini_jax memory 2'")
    monkeypatch.undo()
    monkeypatch.setattr(memory_file, "WAITING", "kept")
    assert refused(file, trained).startswith("memory: FILE is damaged or no memory")
    monkeypatch.undo()
    carry = memory_file.init_carry
    monkeypatch.setattr(memory_file, "init_carry", lambda model, rows: carry(model, rows + 1))
    assert refused(file, trained).startswith("memory: FILE has arrays of another form, as of another version of infini_jax; ")


def test_no_file_is_written_over_and_none_is_left_half(tmp_path, monkeypatch):
    file = saved(tmp_path)
    with pytest.raises(ConfigError, match=r"^save_memory: .* exists; give another name, or delete it$"):
        saved(tmp_path)
    with pytest.raises(ConfigError, match=r"^save_memory: there is no folder .*none; make it, or give another name$"):
        saved(tmp_path / "none")
    file.unlink()
    monkeypatch.setattr(Path, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigError, match=r"^save_memory: .*: No space left on device; give a file that can be written$"):
        saved(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- text -------------------------------------------------------------------------------------------------------------------

BOOK = "It was a dark night.\n  The rain, é 😀, fell in torrents\n\nexcept when "
QUESTIONS = ["it was checked", "\nWho?\n", " ", "é"]


@pytest.mark.parametrize("begun", [BOOK, "a line\n", "x", "many words of one line " * 100, "x" * 3000])
def test_remembered_tokens_and_a_question_are_the_tokens_of_both_in_one_piece(begun):
    pieces = SentencePiece(train_sentencepiece([BOOK, *QUESTIONS, "many words of one line"], 300))
    for tokenizer in (Bytes(), pieces):
        for question in QUESTIONS:
            read = PromptTokens(tokenizer, [begun[:7], begun[7:]])
            tokens = [*read, read.shortened()]
            assert len(read.rest) <= LONGEST_REST
            assert begun.endswith(read.rest)
            on = PromptTokens(tokenizer, [question], read.rest, read.begins_line)
            tokens += [*on, on.last()]
            np.testing.assert_array_equal(np.concatenate(tokens), tokenizer.encode(begun + question))
            assert (on.rest, on.begins_line) == ("", question.endswith("\n"))


def test_a_long_line_that_splits_otherwise_in_parts_is_kept_whole():
    class Backwards(Bytes):
        def encode(self, text: str) -> np.ndarray:
            return super().encode(text)[::-1]

    line = PromptTokens(Backwards(), ["many words " * 200])
    assert [*line, *line.shortened()] == []
    assert line.rest == "many words " * 200


@pytest.fixture(scope="module")
def generator():
    return TextGenerator(trained_of(), Bytes())


def test_many_questions_behind_one_memory_have_the_answers_of_whole_prompts(generator, tmp_path):
    sampling = Sampling(seed=3)
    memory = generator.read(iter([BOOK[:30], BOOK[30:]]))
    assert memory.rest == "except when "
    generator.save(memory, tmp_path / "book.memory")
    loaded = generator.load(tmp_path / "book.memory")
    for question in QUESTIONS:
        whole = "".join(generator.answer(BOOK + question, None, sampling, 20))
        for remembered in (memory, loaded):
            assert "".join(generator.answer(question, remembered, sampling, 20)) == whole
    assert "".join(generator.go_on(loaded, sampling, 20)) == "".join(generator.answer(BOOK, None, sampling, 20))
    longer = generator.read(QUESTIONS[0], loaded)
    assert longer.state.tokens + len(longer.rest) == len((BOOK + QUESTIONS[0]).encode())
    assert "".join(generator.answer("!", longer, sampling, 20)) == "".join(
        generator.answer(BOOK + QUESTIONS[0] + "!", None, sampling, 20)
    )


def test_an_empty_text_is_refused_also_behind_a_memory(generator):
    memory = TextMemory(PromptState.empty(generator.trained.run.model), "so far")
    for text in ("", [], ["", ""]):
        for after in (None, memory):
            with pytest.raises(ConfigError, match=r"^prompt: it is empty; give at least one token$"):
                generator.answer(text, after)
    with pytest.raises(ConfigError, match=r"^tokens: -1 is negative"):
        generator.go_on(memory, tokens=-1)


def test_an_answer_ends_in_front_of_a_text_or_a_token_and_nothing_is_compiled_for_it(generator):
    greedy = Sampling(temperature=0.0)
    whole = "".join(generator.answer(BOOK, None, greedy, 20))
    compiled = generate._next._cache_size()
    for stop in (whole[4:7], whole[9:10]):
        assert "".join(generator.answer(BOOK, None, greedy, 20, Stopping((stop,)))) == whole[: whole.index(stop)]
    tokens = list(itertools.islice(continuation(*opened(generator, BOOK), greedy), 20))
    found = generator.answer(BOOK, None, greedy, 20, Stopping(stop_token=tokens[6]))
    assert "".join(found) == Bytes().decode(tokens[: tokens.index(tokens[6])])
    assert generate._next._cache_size() == compiled
    with pytest.raises(ConfigError, match=r"^stop_token: 256 is none of the tokenizer's 256 tokens; give 0 to 255$"):
        generator.answer(BOOK, None, greedy, 20, Stopping(stop_token=256))


def opened(generator: TextGenerator, text: str) -> tuple:
    model, params = generator.trained.run.model, generator.trained.params
    return model, params, *read_prompt(model, params, [Bytes().encode(text)])
