"""Parameters of one model as the first ones of another: taken by path and shape, layer by layer.

Models group their layers by memory, so that the stacks of two models differ where their memories lie in other layers. Layers
are therefore matched one by one. The embedding's row of inserted tokens (landmarks, memory tokens) is a parameter of its own:
a model without them gives its tokens to one that has them.
"""

import contextlib
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from infini_jax.config import ModelConfig
from infini_jax.config.optimisers import GROUP
from infini_jax.errors import ConfigError, require
from infini_jax.model.stream import parameter_shapes
from infini_jax.model.transformer import layer_groups

EMBEDDING, INSERTED = ("embedding", "embedding"), ("embedding", "inserted")
SHARED = ("vocab", "layers", "d_model", "heads", "kv_heads", "key_dim", "value_dim", "mlp_dim")  # decide shared shapes
Keys = tuple[str, ...]
Flat = dict[Keys, Any]  # arrays or shapes by their path, with layers apart: ("layer3", "query", "kernel")


@dataclasses.dataclass(frozen=True)
class Inheritance:
    """The parameters that a model takes from another, and those that it does not; shapes by path, with layers apart.

    Attributes:
      taken: parameters of both, with one shape.
      fresh: parameters that only the new model has.
      left: parameters that only the other model has.
    """

    taken: Flat
    fresh: Flat
    left: Flat

    @property
    def said(self) -> str:
        """One line: how many parameters are taken, which are fresh, which nobody takes."""
        taken, fresh = scalars(self.taken.values()), scalars(self.fresh.values())
        return (
            f"takes {taken:,} of {taken + fresh:,} parameters; freshly initialized: {in_words(self.fresh)}; "
            f"left behind: {in_words(self.left)}"
        )


def scalars(shapes: Iterable[Any]) -> int:
    """Number of scalars in arrays of these shapes."""
    return sum(math.prod(leaf.shape) for leaf in shapes)


def in_words(parameters: Flat) -> str:
    """Parameters in words, those of several layers at once."""
    counts = Counter("/".join(path[1:] if path[0].startswith("layer") else path) for path in parameters)
    return ", ".join(name if count == 1 else f"{name} ({count} layers)" for name, count in counts.items()) or "none"


def layers_apart(model: ModelConfig, params: dict) -> Flat:
    """Parameters by path, with stacked layers apart and the embedding of inserted tokens apart."""
    found: Flat = {}
    flat: Any = flatten_dict(params)
    for path, leaf in flat.items():
        if path[0].startswith(GROUP):
            found |= {(name, *path[1:]): leaf[place] for place, name in enumerate(layer_names(model)[path[0]])}
        elif path == EMBEDDING and model.ids > model.vocab:
            found |= {EMBEDDING: leaf[: model.vocab], INSERTED: leaf[model.vocab :]}
        else:
            found[path] = leaf
    return found


def grouped(model: ModelConfig, flat: Flat) -> dict:
    """The inverse of `layers_apart`: parameters of a model with the layers of a group stacked."""
    found: Flat = {path: leaf for path, leaf in flat.items() if not path[0].startswith("layer") and path != INSERTED}
    if INSERTED in flat:
        found[EMBEDDING] = jnp.concatenate([flat[EMBEDDING], flat[INSERTED]])
    for group, names in layer_names(model).items():
        paths = [path[1:] for path in flat if path[0] == names[0]]
        found |= {(group, *path): jnp.stack([flat[name, *path] for name in names]) for path in paths}
    return unflatten_dict(found)


def layer_names(model: ModelConfig) -> dict[str, list[str]]:
    """The names of the layers in each group, by the group's name."""
    names = iter(f"layer{number}" for number in range(model.layers))
    return {f"{GROUP}{number}": [next(names) for _ in range(count)] for number, (_, count) in enumerate(layer_groups(model))}


@functools.lru_cache(maxsize=16)
def shapes_by_layer(model: ModelConfig) -> Flat:
    """The shapes of a model's parameters by path, with layers apart."""
    return jax.eval_shape(functools.partial(layers_apart, model), parameter_shapes(model))


def inheritance(other: ModelConfig, model: ModelConfig, name: str) -> Inheritance:
    """The parameters that `model` takes from `other`, found on shapes alone; `name` is that of the other run in messages.

    Raises `ConfigError` with the setting that differs where a parameter of both has two shapes.
    """
    for field in SHARED:
        check_same(f"model.{field}", resolved(other, field), resolved(model, field), name)
    for part in dataclasses.fields(model.block):
        check_same(f"model.block.{part.name}", getattr(other.block, part.name), getattr(model.block, part.name), name)
    theirs, ours = shapes_by_layer(other), shapes_by_layer(model)
    taken = {path: leaf for path, leaf in ours.items() if path in theirs}
    for path in [path for path, leaf in taken.items() if leaf.shape != theirs[path].shape]:
        if is_own(path) and other.mechanism != model.mechanism:
            del taken[path]  # of the same name only
            continue
        raise other_shape(other, model, path, name)
    fresh = {path: leaf for path, leaf in ours.items() if path not in taken}
    return Inheritance(taken, fresh, {path: leaf for path, leaf in theirs.items() if path not in taken})


def other_shape(other: ModelConfig, model: ModelConfig, path: Keys, name: str) -> ConfigError:
    """The error for a parameter of both with two shapes: it names the setting of `other` that gives it the other's shape."""
    shape = shapes_by_layer(other)[path].shape
    candidates = [("model.key_taps", dataclasses.replace(model, key_taps=other.key_taps), other.key_taps, model.key_taps)]
    for field in dataclasses.fields(model.memory.main) if other.mechanism == model.mechanism else ():
        theirs, ours = getattr(other.memory.main, field.name), getattr(model.memory.main, field.name)
        with contextlib.suppress(ConfigError):  # of settings that do not go together
            memory = model.memory.with_main(dataclasses.replace(model.memory.main, **{field.name: theirs}))
            changed = dataclasses.replace(model, memory=memory)
            candidates.append((f"memory.{field.name}", changed, theirs, ours))
    for field, changed, theirs, ours in candidates:
        if theirs != ours and (found := shapes_by_layer(changed).get(path)) and found.shape == shape:
            return ConfigError(field, f"{ours} does not fit the parameters of {name}, which have {theirs}", f"give {theirs}")
    return ConfigError("origin", f"{'/'.join(path)} of {name} has another shape", "begin from another run")


def check_same(field: str, theirs: Any, ours: Any, name: str) -> None:
    """Raises `ConfigError` of a setting that two runs must share and do not."""
    require(theirs == ours, field, f"{ours} does not fit the parameters of {name}, which have {theirs}", f"give {theirs}")


def resolved(model: ModelConfig, field: str) -> int:
    """A size of a model, with 0 as what it stands for."""
    if field == "mlp_dim":
        return model.mlp_dim or 4 * model.d_model
    return getattr(model.dims, field) if hasattr(model.dims, field) else getattr(model, field)


def is_own(path: Keys) -> bool:
    """Whether a parameter is a mechanism's own: inserted tokens, and all behind `memory` but the output every layer has."""
    return path == INSERTED or (path[1:2] == ("memory",) and path[2:3] != ("out",))


def inherited(other: ModelConfig, learned: dict, model: ModelConfig, fresh: dict) -> dict:
    """Parameters like `fresh`, those of `model`, with what `other` has `learned` in the place of all that it has.

    The two must fit, see `inheritance`. Types are those of `fresh`: what was kept in half precision is trained in float32.
    """
    theirs = layers_apart(other, learned)
    ours = {
        path: theirs[path].astype(leaf.dtype) if path in theirs and theirs[path].shape == leaf.shape else leaf
        for path, leaf in layers_apart(model, fresh).items()
    }
    return grouped(model, ours)
