"""Digests of arrays: what is read from a disk is compared with what was saved, on whatever devices it lay then and lies now.

A digest is a sum over an array's words, each mixed with its place. A sum needs no order, so that every device adds up its own
part without a copy; the places make swapped parts count, and the mixing is one to one, so that any single changed word does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # of NumPy or of JAX: the arithmetic is the same
SMALL = 2**18  # bytes up to which an array is digested on the host, where nothing needs to be compiled
PART = 2**22  # bytes of an array that are digested at once
STEP = 0x9E3779B1  # odd; its powers are the strides of the axes, in place of a linear index that repeats after 2^32 words


def named(tree: Any) -> dict[str, Array]:
    """The arrays of a tree by their paths, such as params/embedding."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digests(tree: Any, prefix: str) -> dict[str, str]:
    """Type, shape and digest of each array of a tree, by its path behind `prefix`."""
    arrays = named(tree)
    sums = jax.device_get({name: digest(array) for name, array in arrays.items()})
    return {
        f"{prefix}/{name}": f"{array.dtype}{list(array.shape)} {int(sums[name][0]):08x}{int(sums[name][1]):08x}"
        for name, array in arrays.items()
    }


def digest(array: Array) -> tuple[Array, Array]:
    """Two words, uint32, of the bits of an array and their places; of all of it, also where this process has only a part.

    A large array of one device is taken some rows at a time: what the words of all of it need would be several times as large.
    """
    is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
    if is_here and array.nbytes <= SMALL:
        return sums(np.asarray(jax.device_get(array)))
    if array.ndim and array.nbytes > PART and (not isinstance(array, jax.Array) or len(array.devices()) == 1):
        return sums_of_parts(array)
    return sums_on_devices(array)


def sums_of_parts(array: Array) -> tuple[Array, Array]:
    """The sums behind `digest` of an array of the host or of one device, added up over parts of its rows."""
    rows, found = max(1, PART * len(array) // array.nbytes), np.zeros(2, np.uint32)
    for row in range(0, len(array), rows):
        if isinstance(array, jax.Array):
            part = sums_of_rows(array, row, min(rows, len(array) - row))
        else:
            part = sums_on_devices(array[row : row + rows].copy(), row)  # JAX may hold it for longer than it needs it
        found += np.array(jax.device_get(part), np.uint32)
    return found[0], found[1]


def sums(array: Array, first: int | jax.Array = 0) -> tuple[Array, Array]:
    """The sums behind `digest`, in the arithmetic of the library of `array`, whose first row is row `first` of the whole."""
    words, numpy = words_of(array), jnp if isinstance(array, jax.Array) else np
    places = numpy.zeros(words.shape, np.uint32) + numpy.uint32(STEP) * numpy.asarray(first, np.uint32)
    for axis, size in enumerate(words.shape):
        along = [1] * axis + [size] + [1] * (words.ndim - axis - 1)
        places += (numpy.arange(size, dtype=np.uint32) * np.uint32(pow(STEP, axis + 1, 2**32))).reshape(along)
    places = mixed(places)
    terms = mixed(words + places)
    return terms.sum(dtype=np.uint32), (terms * (places | np.uint32(1))).sum(dtype=np.uint32)


sums_on_devices = jax.jit(sums)


@functools.partial(jax.jit, static_argnums=2)
def sums_of_rows(array: jax.Array, first: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The sums behind `digest` of `count` rows, from row `first` on."""
    return sums(jax.lax.dynamic_slice_in_dim(array, first, count), first)


def words_of(array: Array) -> Array:
    """The bits of an array as unsigned words, uint32, with a last axis of the words of an entry."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[array.dtype.itemsize]
    return array[..., None].view(kind).astype(np.uint32)


def mixed(words: Array) -> Array:
    """Words of uint32 mixed one to one: the finalizer of MurmurHash3 (Appleby, public domain)."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


@jax.jit
def bit_sum(tree: Any) -> Array:
    """The sum of all bits of a tree as unsigned words, uint32: what checkpoints of format 2 have in place of digests."""
    return sum((words_of(leaf).sum(dtype=jnp.uint32) for leaf in jax.tree.leaves(tree)), start=jnp.zeros((), jnp.uint32))


def typed(shapes: Any, said: dict[str, str], prefix: str) -> Any:
    """Shapes of arrays with the types that their digests say, by the path behind `prefix`; those without one as they are."""
    leaves, tree = jax.tree.flatten(shapes)
    kinds = [said.get(f"{prefix}/{name}", str(leaf.dtype)).partition("[")[0] for name, leaf in named(shapes).items()]
    pairs = zip(leaves, kinds, strict=True)
    return tree.unflatten([jax.ShapeDtypeStruct(one.shape, jnp.dtype(kind), sharding=one.sharding) for one, kind in pairs])
