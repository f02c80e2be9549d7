"""A memory for a model that was trained without one: in the place of its attention, or beside it.

`replace` takes attention's place in some layers, with its projections. `add` leaves attention as it is and adds what the
memory reads (`infini_jax.memory.beside`), which is nothing before training. Either way attention stays in what was trained:
full attention becomes a window of at most as many tokens as it held, and with learned positions, which begin anew in every
segment, it ends at the segment. What attention carries is counted apart from the memory (`ModelConfig.neighborhood_bytes`).
"""

import dataclasses
from typing import Literal

from infini_jax.config.model import ModelConfig, check_layers
from infini_jax.config.plain import mechanism_of
from infini_jax.errors import require
from infini_jax.layers.distances import RotaryConfig
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.beside import BesideConfig, NativeConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.positions import PositionedConfig
from infini_jax.memory.segment_only import SegmentOnlyConfig

Attachment = Literal["add", "replace"]
NativeAttention = FullConfig | LocalConfig | SegmentOnlyConfig


def attached(model: ModelConfig, memory: MemoryConfig, how: Attachment, window: int = 0, segment: int = 0) -> ModelConfig:
    """The model with a memory attached to it.

    Where a run carries the same mechanism, attached in the same way, this is that run's model with other settings of it.

    Args:
      model: the model, whose layers have full attention or windows.
      memory: settings of the memory. Positions that are its mechanism's default become those of the attention. Its layers are
        those that get it; None is all of them, of a model with windows in some layers those with full attention.
      how: add leaves the model's function as it is, replace does not.
      window: tokens that native attention sees, a query's own included; 0 is as many as it was trained for.
      segment: tokens of a segment; 0 is the model's.

    Raises `ConfigError` where the model carries another memory already, layers do not exist or do not have one kind of
    attention, or the memory cannot have a part of the model's attention, or needs places beyond those that were trained.
    """
    segment = segment or model.segment
    if isinstance(model.memory, BesideConfig) or native_of(model.memory) is None:
        return attached_again(model, memory, how, window, segment)
    chosen, kinds = chosen_layers(model, memory.layers), kinds_of(model)
    others = tuple(layer for layer in range(model.layers) if layer not in chosen)
    check_one_kind(model, chosen, others)
    check_window(window, max(map(reach, kinds.values())), how == "add" or bool(others))
    trained, learned = kinds[chosen[0]], bool(model.block.learned_positions)
    memory = dataclasses.replace(settled(memory, trained), layers=None)
    if how == "add":
        check_added(memory, learned)
    check_places(memory, segment, reach(trained))
    if how == "add":
        memory = BesideConfig(native=within(trained, window, learned), added=memory)
    native, turns, theirs = None, rotary_of(model, chosen[0]), None
    if others:
        memory, theirs = dataclasses.replace(memory, layers=chosen), rotary_of(model, others[0])
        native = NativeConfig(attention=within(kinds[others[0]], window, learned), every=memory.landmark_every)
    beside = None if theirs == turns else theirs
    return dataclasses.replace(model, memory=memory, segment=segment, rotary=turns, elsewhere=native, rotary_elsewhere=beside)


def check_window(window: int, trained: int, is_used: bool) -> None:
    """Raises `ConfigError` for a window of more tokens than attention was trained to see, or that no layer has."""
    told = f"{window} tokens are more than the {trained} that attention was trained to see"
    require(window <= trained, "window", told, f"give at most {trained}")
    require(window >= 0, "window", f"{window} is negative", "give 0 for as many as were trained")
    require(is_used or not window, "window", "no layer keeps its attention", "leave it out, or name some in memory.layers")


def check_added(memory: MemoryConfig, is_learned: bool) -> None:
    """Raises `ConfigError` for a memory that cannot be added so that the model's function stays."""
    told = f"{mechanism_of(memory)} is attention as the model has it"
    require(not isinstance(memory, NativeAttention), "attach", told, "let it replace, or choose another mechanism")
    told = "landmarks take places among learned positions, so that the model would be another"
    require(not is_learned or memory.landmark_every is None, "attach", told, "let it replace attention")


def attached_again(model: ModelConfig, memory: MemoryConfig, how: Attachment, window: int, segment: int) -> ModelConfig:
    """The model of a run that carries a memory, with other settings of it.

    Raises `ConfigError` unless the memory is of the same mechanism and attached in the same way.
    """
    held, beside = model.memory, isinstance(model.memory, BesideConfig)
    told = f"the model carries {model.mechanism} {'beside its attention' if beside else 'in the place of attention'}"
    mend = f"give {model.mechanism} with --attach {'add' if beside else 'replace'}, or begin at a model without a memory"
    is_same = type(memory) is type(held.main) and how == ("add" if beside else "replace")
    require(is_same, "attach", told, mend)
    is_same = chosen_layers(model, memory.layers) == chosen_layers(model, held.layers)
    require(is_same, "memory.layers", f"{told} of other layers", "leave it out")
    memory, elsewhere = settled(memory, held.main), model.elsewhere
    kept = {native_of(one) for one in (held.parts[0], elsewhere) if one is not None}
    is_same = window in (0, *(reach(one) for one in kept if one is not None))
    require(is_same, "window", f"{told}, whose window is another", "leave it out")
    if isinstance(held, BesideConfig):
        check_places(memory, segment, reach(held.native))
        memory = held.with_main(dataclasses.replace(memory, layers=None))
    else:
        memory = dataclasses.replace(memory, layers=held.layers)
    if isinstance(elsewhere, NativeConfig):
        elsewhere = dataclasses.replace(elsewhere, every=memory.landmark_every)
    return dataclasses.replace(model, memory=memory, segment=segment, elsewhere=elsewhere)


def native_of(memory: MemoryConfig) -> NativeAttention | None:
    """The attention of a layer that carries nothing but it; None where it carries a memory."""
    attention = memory.main
    return dataclasses.replace(attention, layers=None) if isinstance(attention, NativeAttention) else None


def kinds_of(model: ModelConfig) -> dict[int, NativeAttention]:
    """The attention of each layer of a model that carries no memory, by number."""
    found = {layer: native_of(model.layer_memory(layer)) for layer in range(model.layers)}
    return {layer: attention for layer, attention in found.items() if attention is not None}


def chosen_layers(model: ModelConfig, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """The layers that get the memory, in order; those of the model's own memory where None."""
    check_layers(layers, model.layers)
    found = (model.memory.layers or range(model.layers)) if layers is None else layers
    return tuple(sorted(set(found)))


def check_one_kind(model: ModelConfig, chosen: tuple[int, ...], others: tuple[int, ...]) -> None:
    """Raises `ConfigError` unless the layers that get a memory have one kind of attention, and so have the others."""
    by_layer = {layer: (kind, rotary_of(model, layer)) for layer, kind in kinds_of(model).items()}
    if all(len({by_layer[layer] for layer in some}) < 2 for some in (chosen, others)):
        return
    groups: dict[object, list[int]] = {}
    for layer, kind in by_layer.items():
        groups.setdefault(kind, []).append(layer)
    every = " or ".join(" ".join(map(str, some)) for some in groups.values())
    told = "its layers have two kinds of attention, and a model has a memory in all layers of one"
    require(False, "memory.layers", told, f"name {every}")


def rotary_of(model: ModelConfig, layer: int) -> RotaryConfig:
    """The turns of a layer's queries and keys."""
    return model.dims_of(model.layer_memory(layer)).rotary


def reach(attention: MemoryConfig) -> int:
    """Number of places that a layer's attention was trained to tell apart; 0 where that is the segment."""
    if isinstance(attention, FullConfig):
        return attention.slots
    return attention.window if isinstance(attention, LocalConfig) else 0


def within(attention: NativeAttention, window: int, is_learned: bool) -> NativeAttention:
    """Attention within what was trained, and within `window` tokens unless that is 0.

    Full attention over learned positions ends at the segment, where they begin anew. Raises `ConfigError` for a window then.
    """
    if isinstance(attention, FullConfig) and is_learned:
        told = "learned positions begin anew in every segment, where attention ends"
        require(not window, "window", told, "leave it out, and choose model.segment")
        return SegmentOnlyConfig(positions=attention.positions)
    if isinstance(attention, SegmentOnlyConfig):
        return attention
    most = reach(attention)
    return LocalConfig(window=min(window or most, most), positions=attention.positions)


def settled(memory: MemoryConfig, attention: MemoryConfig) -> MemoryConfig:
    """Settings of a memory whose positions, left at the mechanism's default, are those of the attention."""
    if not (isinstance(memory, PositionedConfig) and isinstance(attention, PositionedConfig)):
        return memory
    default = {field.name: field.default for field in dataclasses.fields(memory)}["positions"]
    return dataclasses.replace(memory, positions=attention.positions) if memory.positions == default else memory


def check_places(memory: MemoryConfig, segment: int, trained: int) -> None:
    """Raises `ConfigError` where a segment, or what a memory tells apart by rotary positions, has more places than `trained`.

    0 knows of no number.
    """
    told = f"{segment} tokens are more than the {trained} that attention was trained to tell apart"
    require(not trained or segment <= trained, "model.segment", told, f"give at most {trained}")
    is_rotary = isinstance(memory, PositionedConfig) and memory.positions == "rotary"
    places = memory.places(segment) if is_rotary else 0
    told = f"it tells {places} places apart with segments of {segment}, and {trained} were trained"
    require(not trained or places <= trained, "memory", told, "give a shorter model.segment, or a smaller cache")
