"""What a run asks for between two steps: that something is read with its learned parameters.

A run does not read by itself, because others that share its program may ask alike at the same time: then all of them are read
side by side. `infini_jax.training.loop.Alone` answers a run alone, `infini_jax.training.fleet` the members of a fleet.
"""

import dataclasses
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, TypeVar

from infini_jax.devices.side_by_side import Learned

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A reading that a run asks for; the answer is what was read with its own parameters, or the exception is raised there.

    Attributes:
      read: function from parameters to what is read with each model.
      alike: runs of one program whose askings are equal in this may be read by the function of any of them.
    """

    read: Callable[[Learned], Sequence[Any]]
    alike: Hashable


Asks = Generator[Asked, Any, Result]  # what asks, gets the answers, and has a result
