"""Parts that experiments share: the memories that are compared, their bytes and learning rates, their floor and ceiling."""

import dataclasses
from pathlib import Path

from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig, Trains
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.config.pattern import Pattern, patterned
from infini_jax.data.base import DataConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.base import Evaluation
from infini_jax.evals.gains import Gains
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig, Neighborhood
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.log_linear import LogLinearConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.study.ladder import Ladder, Rates
from infini_jax.study.study import BOUNDS
from infini_jax.study.trials import seeded, trials
from infini_jax.training.checkpoint import Which
from infini_jax.training.origin import begun_from
from infini_jax.training.trained import saved_config

# One layer and one head, so that a recall is one memory's doing; with key taps of two, one layer can bind a value to its key.
ONE_LAYER = ModelConfig(layers=1, d_model=64, heads=1, mlp_dim=128, segment=16, key_taps=2)
"""Settings of a small model: one layer, one head, width 64, segments of 16 tokens."""
RATES = (3e-3, 1e-2, 3e-2)
"""Learning rates of small models, among which validation chooses."""
AT_THE_END = EvaluationConfig(documents=8, tokens=2048, conditions=(CARRIED,))
"""Settings of the reading of held-out documents by which the learning rate is chosen."""
SMOKE = dataclasses.replace(ONE_LAYER, d_model=32, mlp_dim=32)
"""Settings of the model at the scale smoke."""
SMOKE_TRAIN = TrainConfig(batch=2, learning_rate=1e-2, evaluation_steps=1)
"""Settings of training at the scale smoke."""
SMOKE_STEPS = 3
"""Number of training steps at the scale smoke."""
SMOKE_CODES = CapacityRun(
    symbols=32,
    key_dim=8,
    value_dim=8,
    segment=4,
    pairs=(2, 16),
    batch=2,
    grid=4,
    rows=8,
    questions=2,
    budget=Budget("steps", 4),
)
"""Settings of a memory layer alone at the scale smoke."""


SHORT_DOCUMENTS = LogLinearConfig(longest=512)
"""Log-linear attention with few levels, which share a budget of a few KiB: most documents compared here are short."""


def memories(segment: int, *names: str, local: Neighborhood = "own") -> tuple[tuple[str, MemoryConfig], ...]:
    """(variant, settings) of the named mechanisms; without names, of all in the registry between floor and ceiling.

    A mechanism that is added to the registry is compared too, with its default settings. Blocks and samples fit segments of
    `segment` tokens. All have the neighborhood `local` but those that are nothing else than a cache of the last tokens.
    """
    settings: dict[str, tuple[tuple[str, MemoryConfig], ...]] = {
        "infini": (("linear", InfiniConfig()), ("delta", InfiniConfig(update="delta"))),
        "memorizing": (("", MemorizingConfig(top_k=8)),),
        "landmark": (("", LandmarkConfig(block=max(8, segment // 8), retrieved=4)),),
        "infinite_former": (("", InfiniteFormerConfig(samples=max(64, segment))),),
        "log_linear": (("", SHORT_DOCUMENTS),),
    }
    chosen = [name for name in MECHANISMS if (name in names if names else name not in BOUNDS)]
    pairs = [(name, *pair) for name in chosen for pair in settings.get(name, (("", MECHANISMS[name].Config()),))]
    return tuple(
        (variant, memory.with_local(local) if MECHANISMS[name].neighborhoods else memory) for name, variant, memory in pairs
    )


def code_memories() -> list[tuple[str, MemoryConfig]]:
    """(variant, settings) of every mechanism in the registry that needs no residual stream, for a layer that recalls codes."""
    settings: dict[str, tuple[tuple[str, MemoryConfig], ...]] = {
        "infini": (
            ("linear", InfiniConfig()),
            ("delta", InfiniConfig(update="delta")),
            ("unit", InfiniConfig(feature_map="unit")),
        ),
        # rotary would turn keys that never learn, as the cache has no gradient
        "transformer_xl": (("relative", TransformerXLConfig(positions="relative")),),
        "memorizing": (("", MemorizingConfig(top_k=8)),),
        "landmark": (("", LandmarkConfig(block=4, retrieved=2)),),
        "infinite_former": (("", InfiniteFormerConfig(samples=64)),),
        "log_linear": (("", LogLinearConfig(longest=64)),),  # six levels, the most that fit in a few hundred bytes
    }
    alone = [(name, kind.Config()) for name, kind in MECHANISMS.items() if not kind.works_on_stream()]
    return [pair for name, memory in alone for pair in settings.get(name, (("", memory),))]


def with_memory(base: RunConfig, memory: MemoryConfig, *names: str, variant: str = "") -> RunConfig:
    """The run `base` with another memory, named after its task, mechanism, variant and `names`."""
    model = dataclasses.replace(base.model, memory=memory)
    name = "-".join(filter(None, (base.task, model.mechanism, variant, *names)))
    return dataclasses.replace(base, name=name, variant=variant, model=model)


def with_pattern(base: RunConfig, memory: MemoryConfig, text: str, other: MemoryConfig | None = None) -> RunConfig:
    """The run `base` with layers of two memories, named after its task, mechanism and pattern.

    Args:
      base: settings of the run.
      memory: the memory that is compared, and that `ModelConfig.at_bytes` grows.
      text: pattern of the layers that repeats, such as "3 gated_delta : 1 memorizing".
      other: settings of the second memory; None is its defaults, with the neighborhood of the first.

    Raises `ConfigError` where the text is no pattern, or the two cannot stand in one model.
    """
    pattern = Pattern.of(text)
    model = patterned(dataclasses.replace(base.model, memory=memory, elsewhere=None), pattern, other)
    own = model.mechanism
    name = f"{base.task}-{own}-{pattern.said(own, between='-', gap='')}"
    return dataclasses.replace(base, name=name, variant=pattern.said(own), model=model)


def at_window(base: RunConfig, window: int) -> RunConfig:
    """The run `base` with a sliding window of `window` tokens, the floor."""
    return with_memory(base, LocalConfig(window=window), str(window))


def at_ceiling(base: RunConfig, slots: int) -> RunConfig:
    """The run `base` with full attention to the last `slots` tokens, the ceiling."""
    return with_memory(base, FullConfig(slots=slots))


def at_bytes(base: RunConfig, variant: str, memory: MemoryConfig, size: int, axis: str = "") -> RunConfig:
    """The run `base` with the largest memory of at most `size` bytes per sequence, grown along `axis`.

    Raises `ConfigError` where even the smallest memory does not fit, or the memory does not grow along `axis`.
    """
    run = with_memory(base, memory, axis, f"{size // 1024}k", variant=variant)
    return dataclasses.replace(run, model=run.model.at_bytes(size, axis))


def adapting(base: RunConfig, folder: Path, step: Which = None) -> RunConfig:
    """The run `base` with the model of the run in `folder`, at whose parameters it begins: continued training of that model.

    What gives it another memory (`with_memory`, `at_window`, `at_ceiling`, `at_bytes`, `Comparison`) keeps the origin, so that
    all runs of a comparison begin at one checkpoint. `step` is that of the checkpoint, or "best"; by default the newest.

    Raises:
      ConfigError: the folder is no run's, has no such checkpoint, or the data do not go with its model.
      CheckpointError: the checkpoint is damaged.
    """
    model = saved_config(folder, "from").model
    return begun_from(dataclasses.replace(base, model=model), folder, step)


def training_only(run: RunConfig, trains: Trains, rank: int = 0) -> RunConfig:
    """The run with another part of its parameters trained, see `infini_jax.model.parts`; its variant and name say so."""
    train = dataclasses.replace(run.train, trains=trains, lora_rank=rank)
    variant = "-".join(filter(None, (run.variant, f"{trains}{rank or ''}")))
    return dataclasses.replace(run, name=f"{run.name}-{trains}{rank or ''}", variant=variant, train=train)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Memories of several sizes between a floor and a ceiling, each at several learning rates.

    Attributes:
      base: settings of all runs, without their memory and learning rate.
      sizes: bytes per sequence of the memories.
      rates: learning rates, among which validation chooses.
      window: number of tokens that the floor sees, fewer than the distance to what is asked about.
      slots: number of tokens that the ceiling holds, as many as the longest text that is asked about.
      seeds: number of seeds per point.
      local: neighborhood of all memories, which is the same for all unless it is each one's own.
      ladder: budgets that all points climb, None for the one of `base`; give it to the study.
      growths: rates that a point's grid may get at each edge; above 0 the study tries the rates itself: give it `grids`.
    """

    base: RunConfig
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    window: int
    slots: int
    seeds: int = 1
    local: Neighborhood = "own"
    ladder: Ladder | None = None
    growths: int = 0

    @property
    def grids(self) -> Rates | None:
        """The rates as a study tries them itself, None where `runs` has a run for each."""
        return Rates(self.rates, growths=self.growths) if self.growths else None

    @property
    def held_equal(self) -> tuple[tuple[str, str], ...]:
        """(name, value) lines for the report about what all runs spend, and how their rates were chosen."""
        budget, train = self.base.budget, self.base.train
        amounts = ", ".join(f"{amount:.2g}" for amount in (self.ladder.rungs if self.ladder else (budget.amount,)))
        added = f", {self.growths} more at each edge at most" if self.growths else ""
        return (
            ("training", f"{amounts} {budget.unit}, {train.batch} rows of {train.sequence} tokens per step"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in self.rates)}{added}, chosen on validation"),
            ("optimizer", "AdamW, warm-up and cosine"),
            *([] if self.local == "own" else [("neighborhood beside each memory", self.local)]),
        )

    def on(self, data: DataConfig) -> "Comparison":
        """This comparison on another corpus, with its vocabulary."""
        model = dataclasses.replace(self.base.model, vocab=data.vocab)
        return dataclasses.replace(self, base=dataclasses.replace(self.base, data=data, model=model))

    def runs(self, *names: str) -> tuple[RunConfig, ...]:
        """The runs of the floor, of the ceiling, and of the named mechanisms; of all mechanisms where none is named."""
        compared = memories(self.base.model.segment, *names, local=self.local)
        sized = [at_bytes(self.base, variant, memory, size) for variant, memory in compared for size in self.sizes]
        points = [at_window(self.base, self.window), at_ceiling(self.base, self.slots), *sized]
        each = [one for point in points for one in seeded(point, self.seeds)]
        return tuple(each) if self.growths else tuple(run for one in each for run in trials(one, self.rates))


SMALL_TEXT = Comparison(
    RunConfig(
        model=ModelConfig(layers=1, d_model=64, heads=1, mlp_dim=128, segment=64, vocab=256),
        data=StdlibConfig(),
        train=TrainConfig(batch=4, sequence=512, evaluation_steps=1),
        budget=Budget("flops", 1e11),
        evaluation=AT_THE_END,
    ),
    sizes=(5 << 10, 16 << 10, 48 << 10),
    rates=RATES,
    window=64,
    slots=1024,
)
"""A comparison of language models of bytes that two cores train in seconds."""
SMALL_READ: tuple[Evaluation, ...] = (
    LanguageEvaluation(documents=8, tokens=4096),
    Gains(documents=8, tokens=4096, counted=1 << 20, draws=200),
)
"""The evaluations of the models in `SMALL_TEXT`."""
