"""Digests of arrays: by words and their places, the same on the host, on devices and on any number of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.training.digest import SMALL, bit_sum, digests, mixed, named, sums, sums_on_devices
from tests.support.commands import on_devices

WORDS = 2**32


def mixed_by_hand(word: int) -> int:
    """MurmurHash3's finalizer in whole numbers of Python."""
    word = (word ^ word >> 16) * 0x85EBCA6B % WORDS
    word = (word ^ word >> 13) * 0xC2B2AE35 % WORDS
    return word ^ word >> 16


def sums_by_hand(words: np.ndarray) -> tuple[int, int]:
    """Both sums of words with a last axis of the words of an entry, one at a time."""
    first = second = 0
    for index in itertools.product(*map(range, words.shape)):
        place = mixed_by_hand(sum(at * pow(0x9E3779B1, axis + 1, WORDS) for axis, at in enumerate(index)) % WORDS)
        term = mixed_by_hand((int(words[index]) + place) % WORDS)
        first, second = (first + term) % WORDS, (second + term * (place | 1)) % WORDS
    return first, second


def as_numbers(pair) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.linspace(-3, 5, 24, dtype=np.float32).reshape(2, 3, 4), np.uint32),
        (np.array(-7, np.int32), np.uint32),
        (np.array([True, False, True]), np.uint8),
        (np.arange(6, dtype=jnp.bfloat16).reshape(3, 2), np.uint16),
        (np.zeros((0, 3), np.float32), np.uint32),
    ],
)
def test_the_host_and_devices_find_what_is_written_out_by_hand(array, word):
    expected = sums_by_hand(array[..., None].view(word))
    assert as_numbers(sums(array)) == expected
    assert as_numbers(sums_on_devices(jnp.asarray(array))) == expected


def test_entries_of_two_words_count_both():
    array = np.array([1.5, -2.25, 1e300])
    assert as_numbers(sums(array)) == sums_by_hand(array[..., None].view(np.uint32))
    assert as_numbers(sums(np.float64(3.5)[()].reshape(()))) == sums_by_hand(np.array([3.5]).view(np.uint32))


def test_mixing_is_one_to_one():
    """Of 2^32 words 200,000; two with one image would make a changed word invisible."""
    words = np.random.default_rng(0).integers(WORDS, size=200_000).astype(np.uint32)
    assert len(np.unique(mixed(words))) == len(np.unique(words))


def test_any_changed_word_and_any_swap_changes_a_digest():
    array = np.random.default_rng(1).standard_normal((6, 8, 5)).astype(np.float32)
    whole = digests({"a": array}, "x")
    changed = [np.roll(array, 1, axis) for axis in range(3)]
    changed += [array.transpose(2, 0, 1).reshape(array.shape), np.negative(array), array[::-1]]
    for place in range(array.size):
        one = array.copy()
        one.reshape(-1).view(np.uint32)[place] ^= 1 << (place % 32)
        changed.append(one)
    negated = array.copy()  # x and -x swapped: their words differ by 2^31
    negated[0, 0, 1] = -negated[0, 0, 0]
    swapped = negated.copy()
    swapped[0, 0, :2] = negated[0, 0, 1::-1]
    found = [digests({"a": np.ascontiguousarray(one)}, "x")["x/a"] for one in [*changed, negated, swapped]]
    assert len({*found, *whole.values()}) == len(found) + 1


def test_digests_name_path_type_and_shape():
    tree = {"params": {"w": jnp.zeros((2, 3), jnp.bfloat16)}, "step": np.int32(0)}
    found = digests(tree, "state")
    assert {name: said.rsplit(" ", 1)[0] for name, said in found.items()} == {
        "state/params/w": "bfloat16[2, 3]",
        "state/step": "int32[]",
    }
    assert [*named(tree)] == ["params/w", "step"]


def test_the_sum_of_older_checkpoints_stays():
    tree = {"a": jnp.arange(5.0), "b": jnp.array([-1, 2], jnp.int32), "c": jnp.ones(3, jnp.bfloat16)}
    words = [np.arange(5, dtype=np.float32).view(np.uint32), np.array([-1, 2], np.int32).view(np.uint32), [0x3F80] * 3]
    assert int(bit_sum(tree)) == sum(int(word) for part in words for word in part) % WORDS


def large() -> np.ndarray:
    """More than is digested on the host."""
    return np.random.default_rng(2).standard_normal((8, SMALL // 16)).astype(np.float32)


def digest_in_parts(axis: int) -> str:
    """The digest of an array that lies in parts on all devices."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(*[None] * axis, "x")
    return digests({"a": jax.device_put(large(), jax.sharding.NamedSharding(mesh, spec))}, "x")["x/a"]


def test_an_array_has_one_digest_in_one_part_or_four():
    expected = digests({"a": large()}, "x")["x/a"]
    assert expected.endswith("{:08x}{:08x}".format(*as_numbers(sums(large()))))
    assert [on_devices(4, "test_digest", f"digest_in_parts({axis})") for axis in (0, 1)] == [expected] * 2
