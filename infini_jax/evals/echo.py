"""Echo: what a memory is worth on text that quotes itself (`infini_jax.data.echo`), by the distance of what is quoted.

Held-out documents are read once; the controls read in the same pass (`infini_jax.evals.perplexity`). Losses and gains are in
nats per byte, where a token has as many bytes as in the whole split. They are those of quoted tokens by the distance drawn,
and, under distance 0, of text that stands for the first time; cues and the first tokens of quotations are in neither.

  loss               mean loss under a condition of the memory.
  gain               loss under a control minus the loss with the memory carried.
  gain_by_document   the same of each document, with its number and its tokens.

A reader that remembers all and knows quotations has a loss near 0 on quoted tokens; one whose window does not reach their
first use has about that of text for the first time. Intervals are those between documents (a ratio estimate with Student's t).
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.config.evaluation import CARRIED, CONDITIONS, Condition, EvaluationConfig
from infini_jax.data.base import documents_of
from infini_jax.data.batch import Split
from infini_jax.data.echo import FIRST_TIME, EchoConfig, EchoText
from infini_jax.devices.chosen_form import RowsAtOnce, documents_at_once
from infini_jax.devices.side_by_side import Learned
from infini_jax.errors import instance, require
from infini_jax.evals.base import ReadingEvaluation, Watch, unwatched
from infini_jax.evals.language import gains_over, loss_margin
from infini_jax.evals.perplexity import Reader
from infini_jax.model.cost import model_cost
from infini_jax.records.measures import Label, Measure


@dataclasses.dataclass(frozen=True)
class Sums:
    """The losses of one distance's tokens.

    Attributes:
      distance: the distance, 0 for text that stands for the first time.
      documents: D, numbers of the documents that have such tokens.
      tokens_D: number of such tokens of each.
      nats_CxD: sum of their losses under each condition, in nats.
    """

    distance: int
    documents: np.ndarray
    tokens_D: np.ndarray
    nats_CxD: np.ndarray


@dataclasses.dataclass(frozen=True)
class EchoEvaluation(ReadingEvaluation):
    """Loss and gain on quotations by distance, and on text that stands for the first time.

    Attributes:
      split: split whose documents are read.
      documents: number of documents, spread evenly over the split; 0 is all.
      tokens: number of tokens per document, from its first on; 0 is all.
      rows: number of documents that are read side by side.
    """

    name: ClassVar[str] = "echo"
    split: Split = "validation"
    documents: int = 0
    tokens: int = 131_072
    rows: int = 8

    def __post_init__(self):
        super().__post_init__()
        self.reading  # noqa: B018  refuses what cannot be read

    @property
    def reading(self) -> EvaluationConfig:
        """These settings as settings of the reader, with all conditions of the memory."""
        return EvaluationConfig(self.documents, self.tokens, self.rows, CONDITIONS)

    def applies(self, run: RunConfig) -> bool:
        """Whether the run was trained on text that quotes itself."""
        return isinstance(run.data, EchoConfig)

    def check(self, run: RunConfig) -> None:
        """Checks a run: raises `ConfigError` for another task, and where no document is long enough for a quotation."""
        require(self.applies(run), "task", f"echo cannot ask a run on {run.task}", "choose a run that was trained on echo")
        reader, text = self._reader(run)
        longest, least = int(reader.lengths_D[0]), text.layout.distances[0]
        problem = f"documents of {longest} tokens quote nothing from {least} tokens back"
        require(longest > least, "echo.tokens", problem, "read more of them, or prepare longer ones")

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of reading the documents once under each condition."""
        reader, _ = self._reader(run)
        return model_cost(run.model).flops * reader.read_tokens * len(reader.conditions)

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The documents that are read side by side, with a memory for each condition."""
        return documents_at_once(self.reading)

    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> list[list[Sums]]:
        """The losses of each distance that has tokens, with each model."""
        reader, text = self._reader(run)
        distances = (FIRST_TIME, *text.layout.distances)
        found = [{distance: [] for distance in distances} for _ in range(learned.asked)]
        for number, nats_AxCxT in reader.token_nats_each(learned, lambda done: watch(done, reader.tokens)):
            place_T = text.places(number, nats_AxCxT.shape[2] + 1)[1:]  # the first token is never predicted
            for distance in np.intersect1d(place_T, distances).tolist():
                nats_AxC = nats_AxCxT[:, :, place_T == distance].sum(axis=2, dtype=float)
                for of_model, nats_C in zip(found, nats_AxC, strict=True):
                    of_model[distance].append((number, int((place_T == distance).sum()), nats_C))
        return [
            [summed(distance, sorted(of, key=lambda one: one[0])) for distance, of in of_model.items() if of]
            for of_model in found
        ]

    def figures_of(self, run: RunConfig, found: list[Sums]) -> list[Measure]:
        """The losses and gains of each distance, in nats per byte."""
        reader, _ = self._reader(run)
        scale = reader.counts.tokens / reader.counts.bytes
        return [one for part in found for one in measures_of(part, reader.conditions, scale)]

    def _reader(self, run: RunConfig) -> tuple[Reader, EchoText]:
        documents, counts = documents_of(run.data, self.split)
        text = instance(documents.text, EchoText, "the documents of the task echo have no other")
        return Reader(run.model, documents, counts, self.reading), text


def summed(distance: int, of: list[tuple[int, int, np.ndarray]]) -> Sums:
    """The sums of one distance from (document, tokens, nats C) of each document."""
    numbers, tokens, nats = zip(*of, strict=True)
    return Sums(distance, np.array(numbers), np.array(tokens), np.stack(nats, axis=1))


def measures_of(sums: Sums, conditions: tuple[Condition, ...], scale: float) -> Iterator[Measure]:
    """The figures of one distance; `scale` is the number of tokens per byte."""
    count = int(sums.tokens_D.sum())
    at: dict[str, Label] = {"distance": sums.distance}
    for condition, nats_D in zip(conditions, sums.nats_CxD * scale, strict=True):
        loss, half = float(nats_D.sum() / count), loss_margin(nats_D, sums.tokens_D)
        yield Measure("echo", "loss", loss, count, loss - half, loss + half, {"condition": condition, **at})
    yield from gains_over("echo", conditions, sums.nats_CxD * scale, sums.tokens_D, at)
    carried_D = sums.nats_CxD[conditions.index(CARRIED)]
    for condition, nats_D in zip(conditions, sums.nats_CxD, strict=True):
        gain_D = (nats_D - carried_D) * scale / sums.tokens_D
        for number, tokens, gain in zip(sums.documents, sums.tokens_D, gain_D, strict=True) if condition != CARRIED else ():
            labels: dict[str, Label] = {"control": condition, **at, "document": int(number)}
            yield Measure("echo", "gain_by_document", float(gain), int(tokens), labels=labels)
