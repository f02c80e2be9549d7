"""Targets behind a context: summaries of chapters and books, turns of a dialogue about a document.

A target is read with all that stands before it in its document, and said by the model: the prompt, of any length, is streamed
through the memory, and the likeliest token is taken until the model ends the target. What it says is compared with the
reference (`infini_jax.evals.text_metrics`). All is measured with three contexts, the last two of which are controls:

  given      the document's own context, as in training.
  withheld   none: what turns before the target, and the form of targets, tell.
  other      the context of another document, the next one of another text by length: about as long, with the wrong content.

`perplexity` measures targets under controls of the memory itself, an empty one and another document's.

Figures: loss, in nats per token of the targets (the token that ends a target included), and its exponential, perplexity; the
metrics of text; rouge_overall, the geometric mean of the three ROUGE, as in Infini-attention's table of BookSum (Munkhdalai
et al. 2024, arXiv 2404.07143); gain, the loss under a control minus the loss with the context given, paired by document. On
CMU-DoG these are the figures of the ∞-former (Martins et al. 2022, arXiv 2109.00301). Intervals are those between documents.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, get_args

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.data.base import tokenizer_of
from infini_jax.data.batch import Split
from infini_jax.data.conditioned import ConditionedConfig, target_text
from infini_jax.data.documents import Documents
from infini_jax.data.examples import Example, Label, example_of
from infini_jax.data.prepared import existing_folder, read_manifest
from infini_jax.data.target_marks import Marks
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.devices.chosen_form import RowsAtOnce
from infini_jax.devices.side_by_side import Learned
from infini_jax.errors import instance, require, require_not_negative, require_one_line, require_positive
from infini_jax.evals import text_metrics
from infini_jax.evals.base import ReadingEvaluation, Watch, unwatched
from infini_jax.evals.language import loss_margin
from infini_jax.evals.perplexity import chosen_documents
from infini_jax.evals.reading import ExampleReader, Reading
from infini_jax.model.cost import model_cost
from infini_jax.records.measures import OTHER_DATA, Measure
from infini_jax.units import exponential

Context = Literal["given", "withheld", "other"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
GIVEN, WITHHELD, OTHER = CONTEXTS


@dataclasses.dataclass(frozen=True)
class Targets:
    """The targets of some documents of a split, and what their prompts are made of.

    Attributes:
      documents: the documents of the split.
      contexts: int64, the place in the text where each document's context ends.
      others: number of the document whose context takes the place of each document's own, by the document's number.
      of: N (document, begin, end) of the targets, places in the text.
    """

    documents: Documents
    contexts: np.ndarray
    others: dict[int, int]
    of: tuple[tuple[int, int, int], ...]

    def _context(self, document: int, context: Context) -> tuple[int, int]:
        """(first place, place behind the last) of what stands in the context's place."""
        owner = self.others[document] if context == OTHER else document
        last = int(self.contexts[owner])
        return (last if context == WITHHELD else int(self.documents.starts[owner])), last

    def lengths(self, target: int, context: Context) -> tuple[int, int]:
        """(tokens of a target's prompt, tokens of the target)."""
        document, begin, end = self.of[target]
        first, last = self._context(document, context)
        return last - first + begin - int(self.contexts[document]), end - begin

    def example(self, target: int, context: Context) -> Example:
        """A target behind its prompt, with the context given, withheld, or of another document."""
        document, begin, end = self.of[target]
        first, last = self._context(document, context)
        text = self.documents.text
        prompt = np.concatenate([text[first:last], text[self.contexts[document] : begin]])
        return example_of(prompt, text[begin:end], (("document", document), ("context", context)))


@dataclasses.dataclass(frozen=True)
class ConditionedEvaluation(ReadingEvaluation):
    """Summaries and turns behind a context: loss, ROUGE, F1 and METEOR with the context given, withheld, or another's.

    Attributes:
      split: split whose documents are read.
      documents: number of documents, spread evenly over the split; 0 is all.
      contexts: contexts in front of the targets: given, and beside it withheld and other; each costs as much again.
      new_tokens: number of tokens that the model says at most of each target; 0 for the loss alone.
      rows: number of targets that are read side by side.
      data: prepared corpus of documents with targets, in place of the run's own.
    """

    name: ClassVar[str] = "conditioned"
    split: Split = "validation"
    documents: int = 0
    contexts: tuple[Context, ...] = CONTEXTS
    new_tokens: int = 256
    rows: int = 4
    data: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_not_negative(self.name, documents=self.documents, new_tokens=self.new_tokens)
        require_positive(self.name, rows=self.rows)
        require(GIVEN in self.contexts, f"{self.name}.contexts", "given is missing", "name it too")
        require_one_line(f"{self.name}.data", self.data)

    def applies(self, run: RunConfig) -> bool:
        """Whether the run was trained on documents with targets, or is given some in the tokens of its tokenizer."""
        return isinstance(run.data, ConditionedConfig) or (bool(self.data) and run.data.tokenizer_name != "")

    def check(self, run: RunConfig) -> None:
        """Checks a run: raises `ConfigError` for another task, and where documents, targets or packages are missing."""
        mend = "choose a run on the task conditioned, or name a prepared corpus with --data"
        require(self.applies(run), "task", f"conditioned cannot ask a run on {run.task}", mend)
        targets = self.targets(run)
        problem = "all documents have the same context, so that there is no other"
        require(OTHER not in self.contexts or bool(targets.others), "conditioned.contexts", problem, "leave other out")
        if self.new_tokens:
            text_metrics.require_packages()

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of reading every target behind its prompt, and of saying as many tokens as may be said."""
        targets, read = self.targets(run), 0
        for context, target in itertools.product(self.contexts, range(len(targets.of))):
            prompt, own = targets.lengths(target, context)
            again = (prompt - 1) % run.model.segment + self.new_tokens if self.new_tokens else 0
            read += prompt + own - 1 + again
        return model_cost(run.model).flops * read

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The targets that are read side by side; what one carries is there twice while the model answers."""
        return RowsAtOnce(self.rows, memories=2)

    def targets(self, run: RunConfig) -> Targets:
        """The targets of the documents that are read. Raises `ConfigError` where there are none."""
        data = self._data(run)
        documents, _ = data.whole(self.split)
        return targets_of(data, self.split, tuple(chosen_documents(documents.lengths, self.documents).tolist()))

    def _data(self, run: RunConfig) -> ConditionedConfig:
        """The corpus whose targets are read. Raises `ConfigError` where it is in another tokenizer's tokens."""
        if not self.data:
            return instance(run.data, ConditionedConfig, "no other run is asked without documents")
        found = read_manifest(existing_folder(self.data)).tokenizer
        problem = f"'{self.data}' is in tokens of {found}, and the run reads those of {run.data.tokenizer_name}"
        require(found == run.data.tokenizer_name, "data", problem, "prepare it with the run's tokenizer")
        return ConditionedConfig(self.data)

    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> list[dict[Context, list[Reading]]]:
        """The readings of all targets with each model, by context."""
        targets = self.targets(run)
        order: dict[Context, list[int]] = {context: by_length(targets, context) for context in self.contexts}
        total = sum(sum(targets.lengths(target, context)) - 1 for context in order for target in order[context])
        reader, done = ExampleReader(run.model, self.rows, tokenizer_of(run.data).vocab), 0

        def watch_tokens(tokens: int) -> None:
            nonlocal done
            watch(done := done + tokens, total)

        found: list[dict[Context, list[Reading]]] = [{} for _ in range(learned.asked)]
        for context, numbers in order.items():
            examples = (targets.example(target, context) for target in numbers)
            each = list(reader.read_each(learned, examples, lambda example: self.new_tokens, watch_tokens))
            for of_model, readings in zip(found, zip(*each, strict=True), strict=True):
                of_model[context] = list(readings)
        return found

    def figures_of(self, run: RunConfig, found: dict[Context, list[Reading]]) -> list[Measure]:
        """The figures of each context and the gains over the controls."""
        tokenizer = tokenizer_of(run.data)
        more: dict[str, Label] = {"split": self.split} if self.split != "validation" else {}
        more |= {OTHER_DATA: self.data} if self.data else {}
        measures = list(gains(found, more))
        for context, readings in found.items():
            labels = {"context": context, **more}
            measures += losses(readings, labels)
            if self.new_tokens:
                measures += text_measures(readings, tokenizer, labels)
        return measures


@functools.lru_cache(maxsize=4)  # an evaluation is checked and counted before it is made
def targets_of(data: ConditionedConfig, split: Split, numbers: tuple[int, ...]) -> Targets:
    """The targets of the documents with these numbers."""
    documents, _ = data.whole(split)
    contexts = Marks.of(tokenizer_of(data)).contexts(documents)
    spans = documents.targets if documents.targets is not None else np.zeros((0, 2), np.int64)
    first = np.searchsorted(spans[:, 0], documents.starts)
    each = ((number, span) for number in numbers for span in spans[first[number] : first[number + 1]].tolist())
    of = [(number, begin, end) for number, (begin, end) in each]
    return Targets(documents, contexts, other_contexts(documents, contexts, numbers), tuple(of))


def other_contexts(documents: Documents, contexts: np.ndarray, numbers: Sequence[int]) -> dict[int, int]:
    """The next document of another context in the order of lengths, for each of these; empty where all contexts are one."""
    texts = {number: documents.text[documents.starts[number] : contexts[number]].tobytes() for number in numbers}
    order = sorted(numbers, key=lambda number: (len(texts[number]), number))
    if len(set(texts.values())) < 2:
        return {}
    found = {}
    for place, number in enumerate(order):
        following = (order[(place + step) % len(order)] for step in range(1, len(order)))
        found[number] = next(one for one in following if texts[one] != texts[number])
    return found


def by_length(targets: Targets, context: Context) -> list[int]:
    """The numbers of the targets, those of long prompts first, so that what is read side by side is about equally long."""
    return sorted(range(len(targets.of)), key=lambda target: -targets.lengths(target, context)[0])


def summed(readings: Sequence[Reading], values: Sequence[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(sums D, counts D) of values by document, of (value, count) of each reading; documents in the order of their numbers."""
    sums: dict[Label, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
    for reading, value in zip(readings, values, strict=True):
        sums[dict(reading.labels)["document"]] += value
    return tuple(np.array([sums[number] for number in sorted(sums)]).T)


def nats(readings: Sequence[Reading]) -> tuple[np.ndarray, np.ndarray]:
    """(nats D, tokens D) of the targets of each document."""
    return summed(readings, [(float(one.nats_N.sum()), len(one.nats_N)) for one in readings])


def losses(readings: Sequence[Reading], labels: dict[str, Label]) -> Iterator[Measure]:
    """Loss and perplexity of targets."""
    nats_D, tokens_D = nats(readings)
    count = int(tokens_D.sum())
    loss, half = float(nats_D.sum() / count), loss_margin(nats_D, tokens_D)
    yield Measure("conditioned", "loss", loss, count, loss - half, loss + half, labels)
    interval = (exponential(loss), exponential(loss - half), exponential(loss + half))
    yield Measure("conditioned", "perplexity", interval[0], count, *interval[1:], labels=labels)


def gains(found: dict[Context, list[Reading]], labels: dict[str, Label]) -> Iterator[Measure]:
    """The gain over each control, in nats per token, paired by document."""
    given_D, tokens_D = nats(found[GIVEN])
    for control, readings in found.items():
        if control != GIVEN:
            gain_D = nats(readings)[0] - given_D
            gain, half, count = float(gain_D.sum() / tokens_D.sum()), loss_margin(gain_D, tokens_D), int(tokens_D.sum())
            yield Measure("conditioned", "gain", gain, count, gain - half, gain + half, {"control": control, **labels})


def text_measures(readings: Sequence[Reading], tokenizer: Tokenizer, labels: dict[str, Label]) -> Iterator[Measure]:
    """The metrics of what was said, means over targets."""
    end = Marks.of(tokenizer).end
    each = [
        text_metrics.scores(said_text(reading, tokenizer, end), target_text(tokenizer, reading.answer_N))
        for reading in readings
    ]
    means: dict[str, float] = {}
    for metric in text_metrics.METRICS:
        sums_D, counts_D = summed(readings, [(one[metric], 1) for one in each])
        mean, half = float(sums_D.sum() / counts_D.sum()), loss_margin(sums_D, counts_D)
        means[metric] = mean
        yield Measure("conditioned", metric, mean, len(readings), mean - half, mean + half, labels)
    overall = math.prod(means[name] for name in text_metrics.ROUGES) ** (1 / len(text_metrics.ROUGES))
    yield Measure("conditioned", "rouge_overall", overall, len(readings), labels=labels)


def said_text(reading: Reading, tokenizer: Tokenizer, end: int) -> str:
    """The text that a model said, up to where it ended the target."""
    return tokenizer.decode(list(itertools.takewhile(lambda token: token != end, reading.spoken_M.tolist()))).strip()
