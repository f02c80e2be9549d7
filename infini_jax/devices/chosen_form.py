"""The choice of a program's form: what settings leave open follows from platform and size, here and nowhere else.

A GPU waits for launches where a program is many small kernels, so there every layer takes all segments of a step at once and
layers are unrolled. A CPU takes as many segments at once as leave an array of features in a core's cache. A TPU has no
launches: there segments and layers run in turn. Activations are kept where they fit: on a CPU into a fixed bound, elsewhere
into the memory that the state leaves. docs/performance.md has the measurements.
"""

import dataclasses
from collections.abc import Iterable

import jax

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.examples import ExampleConfig
from infini_jax.devices.sharding import Layout
from infini_jax.layers.platforms import GPUS, platform
from infini_jax.model.cost import available_bytes, head_share, most_at_once, parameter_count, state_bytes
from infini_jax.model.form import Form, Rematerialise

KEPT_PER_FEATURE = 64  # numbers per token, layer and feature that the gradient needs: 21 to 78, by mechanism
KEPT_PER_LOGIT = 3  # numbers per token and symbol
MOST_ON_CPU = 2**30  # bytes per device; it pays at a width of 256, and is not settled at 64
IN_CACHE = 2**19  # bytes of an array of features, of a CPU's device
SHARE = 0.8  # of the memory that the state leaves, as the estimate may be too low
MOST_UNROLLED = 32  # layers; a program of more takes too long to compile
MOST_STEPS = 16  # a call's batches are copied together
MOST_MEMBERS = 32  # of a fleet; more take long to begin, and have long filled a device that waits for launches


def form_of_run(run: RunConfig, layout: Layout | None = None, memory: int | None = None) -> Form:
    """The form of a run's programs: the fastest for the platform that fits, with what the run's settings name.

    Args:
      run: settings of the run.
      layout: how the devices share the work; without one, a single device has it all.
      memory: bytes of memory of a device, by default of those at hand.
    """
    train, parts = run.train, 1 if layout is None else layout.sequence_parts
    named = None if train.rematerialise == "auto" else train.rematerialise
    forms: list[tuple[int, Rematerialise]] = [
        (train.segments_per_step or (most_at_once(run.train, run.model) if parts > 1 else segments), named or rematerialise)
        for segments, rematerialise in fastest_first(run, layout)
    ]
    room = MOST_ON_CPU if platform() == "cpu" else room_for_activations(run, layout, memory)
    fitting = (form for form in forms if kept_bytes(run, layout, *form) <= room)
    segments, rematerialise = next(fitting, forms[-1])
    unrolls = platform() in GPUS and run.model.layers <= MOST_UNROLLED
    loop = ("unroll" if unrolls else "scan") if train.layer_loop == "auto" else train.layer_loop
    return Form(segments // parts, rematerialise, loop)


def with_form(run: RunConfig, form: Form, layout: Layout | None = None) -> RunConfig:
    """The run with settings that name a form of a layout's devices."""
    segments = form.segments * (1 if layout is None else layout.sequence_parts)
    named = {"segments_per_step": segments, "rematerialise": form.rematerialise, "layer_loop": form.layer_loop}
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **named))


def fastest_first(run: RunConfig, layout: Layout | None) -> list[tuple[int, Rematerialise]]:
    """(segments at once, what is made again) of the forms to choose from on this platform, those with most bytes first.

    On a CPU the last one is taken whatever its bytes are: what does not fit into its memory is for the user to see.
    """
    if platform() == "cpu":
        fitting = segments_in_cache(run, layout)
        return [(fitting, "none"), (fitting, "segment")]
    most = most_at_once(run.train, run.model)
    at_once: list[tuple[int, Rematerialise]] = [(most, "none"), (most, "layer")]
    return [*(at_once if platform() in GPUS else [(1, "none")]), (1, "segment"), (1, "layer")]


def segments_in_cache(run: RunConfig, layout: Layout | None) -> int:
    """The most segments, a divisor of all or 1, whose features on a device are at most `IN_CACHE` bytes per layer."""
    most = most_at_once(run.train, run.model)
    tokens = tokens_of_device(run, layout) * run.model.segment / run.train.sequence
    fitting = IN_CACHE / (tokens * run.model.d_model * run.model.dims.dtype.itemsize)
    return max(count for count in range(1, most + 1) if most % count == 0 and count <= max(1.0, fitting))


def tokens_of_device(run: RunConfig, layout: Layout | None) -> float:
    """The tokens of a step, or of each part of a batch whose gradients are added, that one device has."""
    return run.tokens_per_step / run.train.accumulate / (1 if layout is None else layout.token_parts)


def kept_bytes(run: RunConfig, layout: Layout | None, segments: int, rematerialise: Rematerialise) -> float:
    """About the bytes of activations that one device holds at most, for its gradient."""
    tokens = tokens_of_device(run, layout)
    share = segments * run.model.segment / run.train.sequence
    inputs = tokens * run.model.layers * run.model.d_model * run.model.dims.dtype.itemsize
    memories = run.model.memory_bytes * tokens / run.train.sequence
    logits, scored = tokens * KEPT_PER_LOGIT * run.model.vocab * 4, head_share(run)
    if rematerialise == "none":
        return KEPT_PER_FEATURE * inputs + scored * logits + 2 * memories / share  # each turn's, and what it was joined with
    layers = 1 if rematerialise == "segment" else run.model.layers
    carried = min(memories / share, memories + 2 * inputs)  # one for each turn, or of caches what each turn pushes out
    return share * (KEPT_PER_FEATURE * inputs / layers + inputs) + min(scored, share) * logits + carried


def room_for_activations(run: RunConfig, layout: Layout | None, memory: int | None) -> float:
    """Bytes of a device's memory that the state leaves."""
    parts = layout.mesh.size if layout is not None and layout.rules.embed else 1
    return SHARE * ((memory or available_bytes()) - state_bytes(run) / parts)


def most_steps() -> int:
    """The most training steps that are handed to the devices in one call, where they are short.

    A CPU's device waits for the host between two calls; others are handed the next steps while they work, and several
    processes have to agree after each one.
    """
    return MOST_STEPS if platform() == "cpu" and jax.process_count() == 1 else 1


@dataclasses.dataclass(frozen=True)
class RowsAtOnce:
    """Rows that an evaluation reads side by side.

    Attributes:
      rows: number of the rows.
      memories: number of memories that each row has meanwhile.
    """

    rows: int = 0
    memories: int = 1


def documents_at_once(settings: EvaluationConfig) -> RowsAtOnce:
    """The rows of held-out documents that are read side by side: what is carried, and the new one under each condition."""
    return RowsAtOnce(settings.rows, 1 + len(settings.conditions))


def reading_bytes(model: ModelConfig, read: RowsAtOnce) -> float:
    """About the bytes that one device needs to read rows: their memories, features of one layer, logits of one segment."""
    tokens = read.rows * model.segment
    features = KEPT_PER_FEATURE * tokens * model.d_model * model.dims.dtype.itemsize
    return read.rows * read.memories * model.memory_bytes + features + KEPT_PER_LOGIT * tokens * model.vocab * 4


def most_members(run: RunConfig, evaluated: Iterable[RowsAtOnce] = ()) -> int:
    """The number of runs like this one that train side by side in one program, as a fleet, on the devices at hand.

    As many as fit by the estimate of bytes, `MOST_MEMBERS` at most, and 1 on a CPU, where fleets do not pay. They fit while
    they are trained, while held-out documents are read beside their states, and while their parameters are `evaluated`.
    """
    if platform() == "cpu":
        return 1
    form = form_of_run(run)
    held_out = RowsAtOnce() if isinstance(run.data, ExampleConfig) else documents_at_once(run.evaluation)
    beside = max(kept_bytes(run, None, form.segments, form.rematerialise), reading_bytes(run.model, held_out))
    learned = run.model.dims.policy.parameters.itemsize * parameter_count(run.model)
    behind = max((reading_bytes(run.model, read) for read in evaluated), default=0.0)
    needed = max(state_bytes(run) + beside, learned + behind)
    return max(1, min(int(SHARE * available_bytes() / needed) * jax.device_count(), MOST_MEMBERS))
