"""What a run trains of its model, and what it leaves as it is: the setting `TrainConfig.trains`.

  all      every parameter
  memory   those that the run's origin does not have, which are what a mechanism adds
  lora     these, and low-rank factors beside the matrices of the layers that are left as they are: queries, keys, values, the
           output of attention and the MLP (Hu et al. 2021, arXiv 2106.09685: W + (alpha / r) A B; A is drawn, B begins at
           zero, so that the model begins unchanged; all matrices of a layer as in Dettmers et al. 2023, arXiv 2305.14314)

Trained and frozen parameters are two trees. The first alone has a gradient, a state of the optimizer and a place in every
checkpoint. In training the model computes with both and applies factors beside their matrix, so that no gradient of the matrix
is made (`Parts.joined`); whoever reads the run gets the parameters of a plain model, with factors merged into their matrices
(`Parts.merged`). Letters: r rank.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.config.optimisers import GROUP
from infini_jax.errors import require, required
from infini_jax.layers.low_rank import FACTORS
from infini_jax.layers.precision import PARAMETERS
from infini_jax.model.inheritance import EMBEDDING, INSERTED, Keys, inheritance, layer_names
from infini_jax.model.stream import parameter_shapes
from infini_jax.model.transformer import TABLE, layer_groups, memory_parameters

INPUT_AXES = {  # of the kernels that have factors, by their path in a layer
    ("query",): 1,
    ("key",): 1,
    ("value",): 1,
    ("memory", "out"): 2,
    ("mlp", "up"): 1,
    ("mlp", "gate"): 1,
    ("mlp", "down"): 1,
}


@dataclasses.dataclass(frozen=True)
class Parts:
    """The two parts of a model's parameters.

    Attributes:
      model: settings of the model.
      trained: paths of the model's own parameters that are trained, with layers stacked and the embedding's row of inserted
        tokens apart; None is all.
      rank: r, rank of the factors beside frozen matrices; 0 where there are none.
      alpha: A B is multiplied by alpha / r.
    """

    model: ModelConfig
    trained: frozenset[Keys] | None = None
    rank: int = 0
    alpha: float = 1.0

    @functools.cached_property
    def shapes(self) -> tuple[dict, dict]:
        """(trained, frozen) as `jax.ShapeDtypeStruct`s."""
        return jax.eval_shape(lambda params: self.split(params, jax.random.key(0)), parameter_shapes(self.model))

    def split(self, params: dict, key: jax.Array) -> tuple[dict, dict]:
        """(trained, frozen) of a model's parameters, in the beginning: factors are drawn by `key`, and B are zero."""
        if self.trained is None:
            return params, {}
        flat = flat_of(params)
        if INSERTED in self.trained:
            flat |= {EMBEDDING: flat[EMBEDDING][: self.model.vocab], INSERTED: flat[EMBEDDING][self.model.vocab :]}
        trained = {path: leaf for path, leaf in flat.items() if path in self.trained}
        frozen = {path: leaf for path, leaf in flat.items() if path not in self.trained}
        return unflatten_dict(trained | self._factors(frozen, key)), unflatten_dict(frozen)

    def _factors(self, frozen: dict[Keys, Any], key: jax.Array) -> dict[Keys, jax.Array]:
        """New factors beside the frozen matrices: A with a variance of 1 / inputs, B zero."""
        found: dict[Keys, jax.Array] = {}
        for path in sorted(frozen) if self.rank else ():
            if axes := input_axes(path):
                layers, *sides = frozen[path].shape
                inputs, outputs = sides[:axes], sides[axes:]
                drawn = jax.random.normal(jax.random.fold_in(key, len(found)), (layers, *inputs, self.rank), PARAMETERS)
                found[*path[:-1], FACTORS[0]] = drawn * math.prod(inputs) ** -0.5
                found[*path[:-1], FACTORS[1]] = jnp.zeros((layers, self.rank, *outputs), PARAMETERS)
        return found

    def joined(self, trained: dict, frozen: dict) -> dict:
        """The parameters that the model is applied to in training.

        Factors stand beside their matrices, the scale in A. Where the inserted tokens' row of a tied embedding is trained, the
        head gets the other rows, which are frozen, for themselves.
        """
        if self.trained is None:
            return trained
        flat = self._whole_table(flat_of(trained) | flat_of(frozen))
        if self.model.block.head == "tied" and INSERTED in self.trained:
            flat["head", TABLE] = frozen[EMBEDDING[0]][EMBEDDING[1]]
        scaled = {path: leaf * self._scale for path, leaf in flat.items() if path[-1] == FACTORS[0]}
        return unflatten_dict(flat | scaled)

    def merged(self, trained: dict, frozen: dict) -> dict:
        """The parameters as those of a plain model, by which it is evaluated and exported: W + (alpha / r) A B for W."""
        if self.trained is None:
            return trained
        flat = self._whole_table(flat_of(trained) | flat_of(frozen))
        product = jax.vmap(functools.partial(jnp.tensordot, axes=1))  # over layers
        for path in [path for path in flat if path[-1] == FACTORS[0]]:
            a, b = (flat.pop((*path[:-1], name)) for name in FACTORS)
            kernel = (*path[:-1], "kernel")
            flat[kernel] = flat[kernel] + self._scale * product(a, b)
        return unflatten_dict(flat)

    def _whole_table(self, flat: dict[Keys, Any]) -> dict[Keys, Any]:
        """Parameters with the row of inserted tokens back in the embedding."""
        if INSERTED in flat:
            flat[EMBEDDING] = jnp.concatenate([flat[EMBEDDING], flat.pop(INSERTED)])
        return flat

    @property
    def _scale(self) -> float:
        return self.alpha / self.rank

    @functools.cached_property
    def counts(self) -> tuple[int, int]:
        """Numbers of scalars (trained, frozen)."""
        trained, frozen = (sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for part in self.shapes)
        return trained, frozen

    @functools.cached_property
    def factor_weights(self) -> int:
        """Number of scalars in the factors of all layers."""
        trained = flat_of(self.shapes[0]) if self.rank else {}
        return sum(math.prod(leaf.shape) for path, leaf in trained.items() if path[-1] in FACTORS)

    def frozen_weights(self, segments: int = 1) -> tuple[int, int]:
        """Numbers of scalars in the frozen matrices of the layers that a gradient goes through, and of those below them."""
        found, first = {True: 0, False: 0}, self.first_group(segments)
        frozen = {} if self.trained is None else flat_of(self.shapes[1])
        for path, leaf in frozen.items():
            if input_axes(path):
                found[number_of(path) >= first] += math.prod(leaf.shape)
        return found[True], found[False]

    @property
    def trains_head(self) -> bool:
        """Whether the matrix of the logits is trained."""
        path = EMBEDDING if self.model.block.head == "tied" else ("head", "kernel")
        return self.trained is None or path in self.trained

    def first_group(self, segments: int = 1) -> int:
        """Number of the first layer group that a gradient goes through, where every layer takes so many segments at once.

        Parameters that an auxiliary loss alone trains need none; several segments at once, it is not known which those are.
        """
        if self.trained is None or self.rank:
            return 0
        paths = self.trained - self._auxiliary if segments == 1 else self.trained
        in_groups = [number_of(path) for path in paths if path[0].startswith(GROUP)]
        return min(in_groups, default=len(layer_groups(self.model))) if len(in_groups) == len(paths) else 0

    def layers_below(self, segments: int = 1) -> list[bool]:
        """For each layer below those that a gradient goes through, whether an auxiliary loss trains some of its parameters."""
        counts = [count for _, count in layer_groups(self.model)[: self.first_group(segments)]]
        trained = {number_of(path) for path in self._auxiliary & (self.trained or frozenset())}
        return [number in trained for number, count in enumerate(counts) for _ in range(count)]

    @property
    def _auxiliary(self) -> frozenset[Keys]:
        return memory_parameters(self.model, "auxiliary")


def flat_of(tree: Any) -> dict[Keys, Any]:
    """The leaves of a tree of parameters by their paths."""
    flat: Any = flatten_dict(tree)
    return dict(flat)


def input_axes(path: Keys) -> int:
    """Number of input axes of the kernel at a path, one of those that may have factors; 0 of any other parameter."""
    group, *place, name = path
    return INPUT_AXES.get(tuple(place), 0) if name == "kernel" and group.startswith(GROUP) else 0


def number_of(path: Keys) -> int:
    """Number of the layer group of a parameter."""
    return int(path[0].removeprefix(GROUP))


def parts_of(run: RunConfig) -> Parts:
    """The parts of a run's parameters.

    Raises `ConfigError` where the run trains a part and has no origin that the other is from, or there is nothing to train.
    """
    train = run.train
    if train.trains == "all":
        return Parts(run.model)
    problem = f"{train.trains} trains what an origin does not have, and the run has none"
    origin = required(run.origin, "train.trains", problem, "give --from, or train all")
    problem = f"the settings of {run.name} do not say which parameters {origin.name} has"
    other = required(origin.model, "origin.model", problem, "begin it anew with this version")
    return _parts(run.model, other, origin.name, train.trains, train.lora_rank, train.lora_alpha)


@functools.lru_cache(maxsize=64)
def _parts(model: ModelConfig, other: ModelConfig, name: str, trains: str, rank: int, alpha: float) -> Parts:
    fresh = inheritance(other, model, name).fresh
    problem = f"{name} has all parameters of this model, so that its memory adds none"
    require(bool(fresh) or trains == "lora", "train.trains", problem, "train all or lora, or choose another mechanism")
    groups = {layer: group for group, layers in layer_names(model).items() for layer in layers}
    return Parts(model, frozenset((groups.get(path[0], path[0]), *path[1:]) for path in fresh), rank, alpha)
