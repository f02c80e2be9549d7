"""A trained run that reads text, keeps what it remembers of it, and goes on from there as often as it is asked."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import check_value, require, require_not_negative
from infini_jax.model.generate import PromptState, Sampling, continuation, open_prompt, read_segments
from infini_jax.model.prompt import PromptTokens
from infini_jax.model.stopping import Stopping
from infini_jax.training import memory_file
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained, run_tokenizer, saved_config

AS_IT_IS, TOKENS, NEVER = Sampling(), 200, Stopping()
Watch = Callable[[int], None]


def unseen(tokens: int) -> None:
    """Does nothing with a number of tokens."""


@dataclasses.dataclass(frozen=True)
class TextMemory:
    """What a run remembers of a text: all that going on from it needs.

    Attributes:
      state: memory behind the text's whole segments, and the tokens behind them.
      rest: text of the unfinished last line, which is read together with what follows it.
      begins_line: whether what follows stands at a line's beginning.
    """

    state: PromptState
    rest: str = ""
    begins_line: bool = True


@dataclasses.dataclass(frozen=True)
class TextGenerator:
    """A trained run with its tokenizer.

    Attributes:
      trained: the run at one of its checkpoints.
      tokenizer: the tokenizer of the run's corpus.
    """

    trained: Trained
    tokenizer: Tokenizer

    @staticmethod
    def open(folder: Path, step: Which = None) -> "TextGenerator":
        """The run in a folder at its newest checkpoint, at that of `step` or at the best.

        Raises:
          ConfigError: the folder is no run's, has no such checkpoint, or its run has no text or not its tokenizer.
          CheckpointError: the checkpoint is damaged.
        """
        tokenizer = run_tokenizer(saved_config(folder))
        return TextGenerator(Trained.open(folder, step), tokenizer)

    def read(self, text: str | Iterable[str], after: TextMemory | None = None, watch: Watch = unseen) -> TextMemory:
        """The memory behind a text, to go on from as often as wanted.

        Args:
          text: the text, whole or in pieces that follow one another, each of which is read as it comes.
          after: memory of what stands in front of the text, which stays as it is and can be gone on from again.
          watch: called with the number of tokens read so far, those of `after` included.

        Raises `ConfigError` for an empty text, or a token that the model does not have.
        """
        whole = self._read(text, after, watch)
        line = PromptTokens(self.tokenizer, [], whole.rest, whole.begins_line)
        state = read_segments(self.trained.run.model, self.trained.params, [line.shortened()], whole.state, watch)
        return TextMemory(state, line.rest, line.begins_line)

    def answer(
        self,
        text: str | Iterable[str],
        after: TextMemory | None = None,
        sampling: Sampling = AS_IT_IS,
        tokens: int = TOKENS,
        stopping: Stopping = NEVER,
        watch: Watch = unseen,
    ) -> Iterator[str]:
        """What the model makes of a text, piece by piece; the text itself is read before this returns.

        Behind a memory it is what the model makes of the remembered text and this one in one piece.

        Args:
          text: the text, whole or in pieces that follow one another.
          after: memory of what stands in front of the text, which stays as it is and can be gone on from again.
          sampling: settings of sampling, but for the vocabulary, which is the tokenizer's.
          tokens: number of tokens to sample at most.
          stopping: settings of where the text ends before.
          watch: called with the number of tokens read so far, those of `after` included.

        Raises `ConfigError` for an empty text, a token that the model does not have, and settings that cannot be.
        """
        self._check(sampling, tokens, stopping)
        return self.go_on(self._read(text, after, watch), sampling, tokens, stopping, watch)

    def go_on(
        self,
        memory: TextMemory,
        sampling: Sampling = AS_IT_IS,
        tokens: int = TOKENS,
        stopping: Stopping = NEVER,
        watch: Watch = unseen,
    ) -> Iterator[str]:
        """What the model makes of a remembered text, as `answer` does of a text. Raises `ConfigError` as it does."""
        self._check(sampling, tokens, stopping)
        model, params = self.trained.run.model, self.trained.params
        line = PromptTokens(self.tokenizer, [], memory.rest, memory.begins_line)
        state = read_segments(model, params, [line.last()], memory.state, watch)
        decoder, logits = open_prompt(model, params, state, watch)
        sampling = dataclasses.replace(sampling, vocab=self.tokenizer.vocab)
        new = itertools.islice(continuation(model, params, decoder, logits, sampling), tokens)
        return stopping.texts(self.tokenizer.decode_each(stopping.tokens(new), memory.begins_line))

    def save(self, memory: TextMemory, file: Path) -> None:
        """Writes a memory to a file, whole or not at all; see `memory_file` for what stands in it.

        Raises `ConfigError` where the file exists or cannot be written.
        """
        notes = {"rest": memory.rest, "begins_line": memory.begins_line}
        memory_file.save_memory(memory.state, notes, self.trained, file)

    def load(self, file: Path) -> TextMemory:
        """The memory in a file that `save` wrote, every bit of it.

        Raises `ConfigError` where the file is damaged, no memory, or of another run, step or parameters.
        """
        state, notes = memory_file.load_memory(file, self.trained)
        return TextMemory(state, notes["rest"], notes["begins_line"])

    def _beginning(self) -> PromptState:
        """The state in front of a text, whose token of the beginning waits where there is one."""
        empty, begin = PromptState.empty(self.trained.run.model), self.tokenizer.begin
        return empty if begin is None else dataclasses.replace(empty, waiting=np.array([begin], np.int32), tokens=1)

    def _check(self, sampling: Sampling, tokens: int, stopping: Stopping) -> None:
        check_sampling(sampling, tokens)
        stopping.check(self.tokenizer.vocab)

    def _read(self, text: str | Iterable[str], after: TextMemory | None, watch: Watch) -> TextMemory:
        """The memory behind a text, with all of its unfinished last line."""
        after = after or TextMemory(self._beginning())
        pieces = PromptTokens(self.tokenizer, [text] if isinstance(text, str) else text, after.rest, after.begins_line)
        state = read_segments(self.trained.run.model, self.trained.params, pieces, after.state, watch)
        require(not pieces.is_empty, "prompt", "it is empty", "give at least one token")
        return TextMemory(state, pieces.rest, pieces.begins_line)


def check_sampling(sampling: Sampling, tokens: int) -> None:
    """Checks settings: raises `ConfigError` where they draw nothing, or for a number of tokens that cannot be."""
    check_value("tokens", tokens, int)
    require_not_negative("", tokens=tokens)
    sampling.check()
