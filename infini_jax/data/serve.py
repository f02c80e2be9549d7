"""Batches ahead of the training step: by grain's threads where grain is installed, else one after the other.

Both ways give the same batches: a source is a pure function of the step, so there is no state to save or to resume.
"""

import importlib.util
from collections.abc import Iterator

from infini_jax.data.batch import Batch, Source

THREADS, AHEAD = 2, 4


def batches(source: Source, steps: range, first: int = 0, count: int | None = None) -> Iterator[Batch]:
    """The batches of `steps` in order, whole or only `count` rows from row `first` on: one process's part."""

    def read(step: int) -> Batch:
        return source.batch(step) if count is None else source.rows(step, first, count)

    if importlib.util.find_spec("grain") is None:
        return map(read, steps)
    import grain

    ahead = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(steps.start, steps.stop, steps.step).map(read).to_iter_dataset(ahead))
