"""A scan whose gradient finds the state before every step again, where `lax.scan` keeps all of them.

A cache of N slots that takes S tokens per step would be kept for each of W steps, W N slots in all. A step takes out of it as
much as it puts in: with that, S slots per step, the caches are found from the last one backwards, the same to the bit.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0

from infini_jax.memory.offload import on_host

Step = Callable[[Any, Any, Any], tuple[Any, Any]]  # (params, carry, item) -> (carry, output)


def rewinding_scan(
    step: Step,
    params: Any,
    carry: Any,
    items: Any,
    lost: Callable[[Any, Any, Any], Any],
    restored: Callable[[Any, Any, Any], Any],
) -> tuple[Any, Any]:
    """(last carry, outputs stacked) of `step(params, carry, item) -> (carry, output)`, as `lax.scan` has them.

    Of what the step's own gradient keeps, all is kept that is no argument of the step. The carries before the steps are found
    again. Parameters that no gradient is asked for cost none. The step must close over no array that a gradient is asked for.

    Args:
      step: one step; under `jax.checkpoint`, as a rule.
      params: the same for all steps.
      carry: state before the first step.
      items: arrays with the steps in front.
      lost: (carry before a step, carry after it, item) -> what is to be kept to find the one before.
      restored: (carry after a step, what `lost` gave, item) -> the carry before it, each array of floats from its own alone
        and from integers: arrays that no gradient uses are not kept.
    """
    if any(on_host(leaf) for leaf in jax.tree.leaves(carry)):  # JAX has no zero gradient that lies on the host
        return jax.lax.scan(functools.partial(step, params), carry, items)

    @jax.custom_vjp
    def scanned(params: Any, carry: Any, items: Any) -> tuple[Any, Any]:
        return jax.lax.scan(functools.partial(step, params), carry, items)

    def forward(params: Any, carry: Any, items: Any) -> tuple[tuple, tuple]:
        params, fixed = parts_of_params(params)
        carry, items = jax.tree.map(lambda one: one.value, (carry, items))
        constants = []  # arrays that the step closes over, the same for all steps

        def body(carry: Any, item: Any) -> tuple[Any, tuple]:
            arguments = (params, carry, item)

            def of_floats(*floats: jax.Array) -> tuple[Any, Any]:
                free, carry, item = with_floats(floats, arguments)
                return step(joined_params(free, fixed), carry, item)

            (after, output), pullback = jax.vjp(of_floats, *floats_of(arguments))
            constants[:] = [leaf for leaf in jax.tree.leaves(pullback) if not isinstance(leaf, Tracer)]
            kept = Kept.of(pullback, dict(enumerate(jax.tree.leaves((arguments, fixed, constants)))))
            first = len(jax.tree.leaves(params))
            unused = {n: x for n, x in enumerate(jax.tree.leaves(carry)) if is_float(x) and first + n not in kept.places}
            return after, (output, kept, Kept.of(lost(carry, after, item), unused))

        after, (outputs, kept, gone) = jax.lax.scan(body, carry, items)
        return (after, outputs), (params, fixed, items, constants, after, kept, gone)

    def backward(saved: tuple, slopes: tuple) -> tuple:
        params, fixed, items, constants, after, kept, gone = saved
        slope_after, slope_outputs = jax.tree.map(as_array, slopes)
        of_a_step = jax.tree.map(lambda leaf: leaf if is_float(leaf) else np.zeros(leaf.shape[1:], float0), slope_outputs)

        def body(state: tuple, turn: tuple) -> tuple[tuple, list]:
            after, slope_after_floats, sums = state
            item, kept, gone, slope_output_floats = turn
            before = restored(after, gone.filled(after), item)  # of what no gradient uses, any numbers
            slopes = (with_floats(slope_after_floats, slope_after), with_floats(slope_output_floats, of_a_step))
            found = kept.filled(((params, before, item), fixed, constants))(slopes)
            to_params, to_before = found[: len(sums)], found[len(sums) :][: len(slope_after_floats)]
            sums = [total + one for total, one in zip(sums, to_params, strict=True)]
            return (before, list(to_before), sums), list(found[len(sums) + len(to_before) :])

        start = (after, floats_of(slope_after), [jnp.zeros_like(leaf) for leaf in floats_of(params)])
        (_, to_carry, to_params), to_items = jax.lax.scan(
            body, start, (items, kept, gone, floats_of(slope_outputs)), reverse=True
        )
        by_argument = ((to_params, params), (to_carry, after), (to_items, items))
        return tuple(with_floats(floats, nothing(tree)) for floats, tree in by_argument)

    scanned.defvjp(forward, backward, symbolic_zeros=True)
    return scanned(params, carry, items)


@struct.dataclass
class Kept:
    """A tree without those of its leaves that are known from elsewhere.

    Attributes:
      arrays: the leaves that are kept.
      tree: structure of the tree.
      places: for each leaf its number among the known ones, None where it is one of `arrays`.
    """

    arrays: list[jax.Array]
    tree: Any = struct.field(pytree_node=False)
    places: tuple[int | None, ...] = struct.field(pytree_node=False)

    @classmethod
    def of(cls, tree: Any, known: dict[int, jax.Array]) -> "Kept":
        """What is to be kept of `tree` beside `known`, by number; a leaf is known where it is the same object."""
        leaves, structure = jax.tree.flatten(tree)
        numbers = {id(leaf): number for number, leaf in known.items()}
        places = tuple(numbers.get(id(leaf)) for leaf in leaves)
        return cls([leaf for leaf, place in zip(leaves, places, strict=True) if place is None], structure, places)

    def filled(self, known: Any) -> Any:
        """The tree, with the leaves of `known` by number."""
        arrays, leaves = iter(self.arrays), jax.tree.leaves(known)
        return self.tree.unflatten([next(arrays) if place is None else leaves[place] for place in self.places])


def is_float(leaf: Any) -> bool:
    """Whether an array has a gradient."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def floats_of(tree: Any) -> list[jax.Array]:
    """The leaves that have a gradient."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def with_floats(floats: Iterable[jax.Array], tree: Any) -> Any:
    """`tree` with `floats` in place of its leaves that have a gradient."""
    rest = iter(floats)
    return jax.tree.map(lambda leaf: next(rest) if is_float(leaf) else leaf, tree)


def nothing(tree: Any) -> Any:
    """`tree` with JAX's zero of no size, the gradient of integers, in place of leaves that have none."""
    return jax.tree.map(lambda leaf: leaf if is_float(leaf) else np.zeros(leaf.shape, float0), tree)


def parts_of_params(params: Any) -> tuple[Any, Any]:
    """(those that a gradient is asked for, the others) of parameters as a rule of JAX gets them, each with None elsewhere."""
    free = jax.tree.map(lambda one: one.value if one.perturbed else None, params)
    return free, jax.tree.map(lambda one: None if one.perturbed else one.value, params)


def joined_params(free: Any, fixed: Any) -> Any:
    """The inverse of `parts_of_params`."""
    return jax.tree.map(lambda one, other: other if one is None else one, free, fixed, is_leaf=lambda one: one is None)


def as_array(slope: Any) -> Any:
    """A slope as an array, also where JAX knows it to be zero and has none."""
    if not isinstance(slope, SymbolicZero):
        return slope
    zero: Any = slope.aval
    return jnp.zeros(zero.shape, zero.dtype) if is_float(zero) else np.zeros(zero.shape, float0)
