"""Language modeling: the streaming perplexity of held-out documents (`infini_jax.evals.perplexity`) as an evaluation."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.config.evaluation import CARRIED, CONDITIONS, Condition, EvaluationConfig
from infini_jax.data.batch import Split
from infini_jax.data.examples import ExampleConfig
from infini_jax.data.given import given_documents, given_name
from infini_jax.devices.chosen_form import RowsAtOnce, documents_at_once
from infini_jax.devices.side_by_side import Learned
from infini_jax.errors import LATER, require, require_one_line
from infini_jax.evals.base import ReadingEvaluation, Watch, unwatched
from infini_jax.evals.perplexity import Perplexity, Reader
from infini_jax.evals.scores import ratio_variance
from infini_jax.model.cost import model_cost
from infini_jax.records.measures import OTHER_DATA, Label, Measure


@dataclasses.dataclass(frozen=True)
class LanguageEvaluation(ReadingEvaluation):
    """Streaming perplexity of whole held-out documents: memory carried, reset, and of another document.

    Attributes:
      documents: number of documents, spread evenly over the split; 0 is all.
      tokens: number of tokens per document, from its first on; 0 is all.
      rows: number of documents that are read side by side.
      conditions: conditions of the memory; each one costs as much again.
      split: split whose documents are read.
      data: prepared corpus, or file or folder of texts, that is read in place of the run's own documents.
    """

    name: ClassVar[str] = "perplexity"
    documents: int = 0
    tokens: int = 0
    rows: int = 8
    conditions: tuple[Condition, ...] = CONDITIONS
    split: Split = "validation"
    data: str = dataclasses.field(default="", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        self.settings  # noqa: B018  checked when made
        require_one_line("perplexity.data", self.data)

    @property
    def settings(self) -> EvaluationConfig:
        """These settings as settings of the reader."""
        return EvaluationConfig(self.documents, self.tokens, self.rows, self.conditions)

    def applies(self, run: RunConfig) -> bool:
        """Whether the run was trained on documents rather than on examples of a task."""
        return not isinstance(run.data, ExampleConfig)

    def check(self, run: RunConfig) -> None:
        """Checks a run: raises `ConfigError` where the split has no documents that can be scored."""
        self.reader(run)

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of the scored tokens under each condition."""
        reader = self.reader(run)
        return model_cost(run.model).flops * reader.tokens * len(reader.conditions)

    def reader(self, run: RunConfig) -> Reader:
        """The reader of the documents. Raises `ConfigError` where there are none."""
        require(self.applies(run), "run", f"its task {run.task} has no documents", "choose a run on a corpus")
        documents, counts = given_documents(run.data, self.data, self.split, self.tokens)
        return Reader(run.model, documents, counts, self.settings)

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The documents that are read side by side, with a memory for each condition."""
        return documents_at_once(self.settings)

    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> list[Perplexity]:
        """The perplexity of the run's documents with each model."""
        reader = self.reader(run)
        return reader.read_each(learned, lambda tokens: watch(tokens, reader.tokens))

    def figures_of(self, run: RunConfig, found: Perplexity) -> list[Measure]:
        """The figures of `language_measures` for the run; of another split than validation they have the label `split`.

        Those of other documents than the run's own have the label `data`.
        """
        more: dict[str, Label] = {"split": self.split} if self.split != "validation" else {}
        more |= {OTHER_DATA: given_name(self.data)} if self.data else {}
        return [dataclasses.replace(one, labels=one.labels | more) for one in language_measures(found)]


def language_measures(found: Perplexity) -> list[Measure]:
    """Loss, word perplexity and bits per byte of each condition, loss and bits by place in the document, and gains.

    Loss and gain are in nats per token. Intervals are those between documents (a ratio estimate with Student's t); a single
    document has none.
    """
    measures: list[Measure] = list(gains_over("perplexity", found.conditions, found.nats_CxD, found.tokens_D, {}))
    for number, condition in enumerate(found.conditions):
        loss = found.loss(condition)
        half = loss_margin(found.nats_CxD[number], found.tokens_D)
        figures: dict[str, Callable[[float], float]] = {
            "loss": lambda nats: nats,
            "word_perplexity": found.counts.word_perplexity,
            "bits_per_byte": found.counts.bits_per_byte,
        }
        measures += [
            Measure("perplexity", name, of(loss), found.tokens, of(loss - half), of(loss + half), {"condition": condition})
            for name, of in figures.items()
        ]
    for place in found.by_position():
        for condition in found.conditions:
            labels = {"condition": condition, "from": place["from"]}
            loss, count = place[condition], int(place["tokens"])
            measures.append(Measure("perplexity", "loss_by_position", loss, count, labels=labels))
            bits = found.counts.bits_per_byte(loss)
            measures.append(Measure("perplexity", "bits_per_byte_by_position", bits, count, labels=labels))
    return measures


def gains_over(
    evaluation: str, conditions: tuple[Condition, ...], nats_CxD: np.ndarray, tokens_D: np.ndarray, labels: dict[str, Label]
) -> Iterator[Measure]:
    """The gain over each control: its loss minus that of the memory carried, the two paired by document.

    Args:
      evaluation: name of the evaluation.
      conditions: C conditions of the memory.
      nats_CxD: loss of each document's tokens under each condition.
      tokens_D: number of these tokens.
      labels: labels of the figures, beside `control`.
    """
    count, carried_D = int(tokens_D.sum()), nats_CxD[conditions.index(CARRIED)]
    for condition, nats_D in zip(conditions, nats_CxD, strict=True):
        if condition != CARRIED:
            gain, half = float((nats_D - carried_D).sum() / count), loss_margin(nats_D - carried_D, tokens_D)
            yield Measure(evaluation, "gain", gain, count, gain - half, gain + half, {"control": condition, **labels})


def loss_margin(nats_D: np.ndarray, tokens_D: np.ndarray) -> float:
    """Half the width of the 95 % interval of nats per token, from how D documents differ; NaN for a single one."""
    from scipy import stats  # takes a second to load

    count = len(nats_D)
    return float(stats.t.ppf(0.975, count - 1)) * math.sqrt(ratio_variance(nats_D, tokens_D)) if count > 1 else math.nan
