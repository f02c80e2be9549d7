"""A run as a model of lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness).

Importing this module enters `infini_jax` into the harness's registry of models. Texts are split into tokens as the harness
says (`TemplateLM`) and read by `infini_jax.evals.reading`, several side by side, each from an empty memory. Nothing is ever
truncated: what has been read is kept in the memory of fixed size, and a text may be of any length.

DEVIATION: the log-likelihood of a whole text is that of one reading from its first token to its last, where the harness's own
models begin anew in each window of their context.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from infini_jax.cli.memory_options import MemoryOptions, chosen_memory, opened_run
from infini_jax.data.examples import Example, example_of, unscored
from infini_jax.data.long_documents import encoded_text
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import ConfigError, lookup, require
from infini_jax.evals.blimp import context_of
from infini_jax.evals.reading import ExampleReader
from infini_jax.model.cost import parameter_count
from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.model.stopping import Stopping
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained, read_with, run_tokenizer, saved_config

TOKENS_A_CALL = 1 << 13  # of a segment of all rows, with `--batch_size auto`
MAX_GEN_TOKS = 256  # the harness's own default
USED = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")  # settings of generation
IDLE = {"num_beams": 1, "repetition_penalty": 1.0, "top_k": 0}  # others that do nothing at these values
AUTO = "auto"
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A continuation that a task asks for.

    Attributes:
      prompt: tokens of the context.
      begins_line: whether the continuation stands at the beginning of a line.
      tokens: number of tokens at most.
      sampling: settings of sampling; None takes the likeliest tokens.
      stopping: settings of where it ends before.
    """

    prompt: np.ndarray
    begins_line: bool
    tokens: int
    sampling: Sampling | None
    stopping: Stopping


@register_model("infini_jax")
class HarnessModel(TemplateLM):
    """A run, or an imported model, that answers the requests of the harness's tasks.

    Args:
      run: the folder that `infini-jax train` or `infini-jax import` left.
      step: step of the checkpoint, or best; by default the newest.
      batch_size: number of texts that are read side by side; auto is as many as have 8192 tokens in a segment.
      max_batch_size: the harness's option; auto needs none.
      device: the harness's option, by default cuda:0, which says nothing here: JAX takes what is there, or JAX_PLATFORMS.
      settings: settings of the memory, such as `memory.slots`, with which the run is read; by default as it was trained.

    Raises:
      ConfigError: there is no such run or checkpoint, it reads no text, or a setting cannot be.
      CheckpointError: the checkpoint is damaged.
    """

    def __init__(
        self,
        run: str,
        step: Which = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        del max_batch_size, device
        folder = Path(run)
        saved = saved_config(folder)
        config = read_with(saved, chosen_memory(saved, memory_options(settings)))
        self.text: Tokenizer = run_tokenizer(saved)
        self.trained: Trained = opened_run(folder, step, config)
        model = config.model
        self.rows = rows_of(batch_size, model.segment)
        self.reader = ExampleReader(model, self.rows, self.text.vocab)

    @property
    def batch_size(self) -> int:
        """Number of texts that are read side by side."""
        return self.rows

    @property
    def eot_token_id(self) -> int | None:
        """The token that the tokenizer declares as the end of a document; None where it has none."""
        return self.text.end

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text whose first token is scored.

        It is the one that the model has for the beginning of a text; else the end of a document, or a line end, as in BLiMP.
        """
        if self.text.begin is None and self.text.end is not None:
            return self.text.end
        return int(context_of(self.text)[-1])

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, which tells cached requests apart."""
        return self.text.name.replace(":", "-")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness's file of results says of the model."""
        run = self.trained.run
        return {
            "model_num_parameters": parameter_count(run.model),
            "model_dtype": run.model.compute,
            "model_revision": self.trained.step,
            "model_sha": run.fingerprint(),
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, behind the one for its beginning unless `add_special_tokens` is False."""
        del kwargs
        return np.concatenate([*encoded_text(self.text, string, add_special_tokens is not False)]).tolist()

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(ln p of the continuation, whether each of its tokens is the likeliest) of each (texts, context, continuation)."""
        del kwargs
        examples = [example_of(np.array(context), np.array(rest, np.int32)) for _, context, rest in requests]
        found = self._scores(examples, "loglikelihood", disable_tqdm)
        for (texts, _, _), one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, one)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of each whole text behind the prefix, read in one piece."""
        texts = [request.args[0] for request in requests]
        before = np.array([self.prefix_token_id])
        examples = [example_of(before, self.text.encode(text)) for text in texts]
        found = [nats for nats, _ in self._scores(examples, "loglikelihood_rolling", disable_tqdm)]
        for text, one in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), one)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a text that ends it, the end of a document or a number of tokens."""
        wanted = [self._wanted(number, *request.args) for number, request in enumerate(requests)]
        greedy = [number for number, one in enumerate(wanted) if one.sampling is None]
        found: dict[int, str] = {}
        with tqdm(total=len(wanted), desc="infini_jax generate_until", disable=disable_tqdm) as bar:
            for group in self._groups(greedy, lambda number: self._shape(wanted[number])):
                said = self._said([wanted[number] for number in group])
                found |= dict(zip(group, said, strict=True))
                bar.update(len(group))
            for number, one in enumerate(wanted):
                if one.sampling is not None:
                    found[number] = self._sampled(one, one.sampling)
                    bar.update()
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[number])
        return [found[number] for number in range(len(wanted))]

    def _scores(self, examples: Sequence[Example], kind: str, disable_tqdm: bool) -> list[tuple[float, bool]]:
        """(ln p of the scored tokens, whether all are the likeliest) of each example; equally long ones are read together."""
        order = sorted(range(len(examples)), key=lambda number: -len(examples[number].tokens))
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(examples), desc=f"infini_jax {kind}", disable=disable_tqdm) as bar:
            readings = self.reader.read(self.trained.params, (examples[number] for number in order))
            for number, reading in zip(order, readings, strict=True):
                found[number] = -float(reading.nats_N.sum()), bool(reading.hits_N.all())
                bar.update()
        return [found[number] for number in range(len(examples))]

    def _wanted(self, number: int, context: str, settings: dict[str, Any]) -> Wanted:
        """The continuation of a request. Raises `ConfigError` for a setting of generation that is not known."""
        asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, MAX_GEN_TOKS))
        temperature = float(asked.get("temperature") or 0.0)
        samples = bool(asked["do_sample"]) and temperature > 0
        check_known(asked, samples)
        sampling = Sampling(temperature, float(asked.get("top_p") or 1.0), number, self.text.vocab)
        stopping = Stopping(tuple(filter(None, asked["until"])), self.text.end)
        prompt = np.array(self.tok_encode(context) or [self.prefix_token_id], np.int32)
        begins_line = not context or context.endswith("\n")
        return Wanted(prompt, begins_line, asked["max_gen_toks"], sampling if samples else None, stopping)

    def _shape(self, wanted: Wanted) -> tuple[int, int]:
        """What is equal for prompts that are read together: whole segments, and the number of new tokens."""
        return -(-len(wanted.prompt) // self.trained.run.model.segment), wanted.tokens

    def _groups(self, items: Iterable[Item], shape: Callable[[Item], Any]) -> Iterator[list[Item]]:
        """Items of equal shape, as many as are read side by side."""
        for _, alike in itertools.groupby(sorted(items, key=shape, reverse=True), key=shape):
            while group := list(itertools.islice(alike, self.rows)):
                yield group

    def _said(self, group: Sequence[Wanted]) -> list[str]:
        """The likeliest continuations, whose prompts are read side by side."""
        examples = [unscored(one.prompt) for one in group]
        readings = self.reader.read(self.trained.params, examples, lambda _: group[0].tokens)
        return [self._ended(one, reading.said_M) for one, reading in zip(group, readings, strict=True)]

    def _sampled(self, wanted: Wanted, sampling: Sampling) -> str:
        """A continuation that is drawn."""
        model, params = self.trained.run.model, self.trained.params
        decoder, logits_1xV = read_prompt(model, params, [wanted.prompt])
        return self._ended(wanted, itertools.islice(continuation(model, params, decoder, logits_1xV, sampling), wanted.tokens))

    def _ended(self, wanted: Wanted, tokens: Iterable[int] | None) -> str:
        """The text of a continuation's tokens, as far as it goes."""
        before_end = wanted.stopping.tokens(tokens if tokens is not None else ())
        return "".join(wanted.stopping.texts(self.text.decode_each(before_end, wanted.begins_line)))


def rows_of(batch_size: int | str, segment: int) -> int:
    """The number of texts side by side that the harness's option says. Raises `ConfigError` where it is no number."""
    if str(batch_size).partition(":")[0] == AUTO:
        count = max(1, TOKENS_A_CALL // segment)
        return -(-count // jax.device_count()) * jax.device_count()
    is_number = str(batch_size).isdecimal() and int(batch_size) > 0
    require(is_number, "batch_size", f"'{batch_size}' is no number of texts", f"give 1 or more, or {AUTO}")
    return int(batch_size)


def memory_options(settings: dict[str, Any]) -> MemoryOptions:
    """The memory's settings among the arguments of the model, which begin with `memory.`. Raises `ConfigError` for others."""
    kind: Any = MemoryOptions
    names = [field.name for field in dataclasses.fields(kind)]
    given = {}
    for name, value in settings.items():
        known = lookup("model_args", name, {f"memory.{one}": one for one in names})
        given[known] = value if isinstance(value, tuple) else str(value)
    return kind(**given)


def check_known(asked: dict[str, Any], samples: bool) -> None:
    """Raises `ConfigError` for a setting of generation that would change the text and is not known."""
    for name, value in asked.items():
        idle = name == "top_k" and not samples
        if name not in USED and not idle and value not in (None, False, IDLE.get(name)):
            raise ConfigError(f"generation_kwargs.{name}", f"{value} is not supported", f"leave it out; {', '.join(USED)} are")
