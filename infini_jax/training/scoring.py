"""Scores of held-out batches, for tasks that are not made of documents."""

import functools

import jax
import jax.numpy as jnp

from infini_jax.config import RunConfig
from infini_jax.data.base import opened
from infini_jax.data.batch import Batch, Split
from infini_jax.devices.chosen_form import form_of_run
from infini_jax.devices.queue import keep_close
from infini_jax.devices.sharding import ROWS_ALONE, Layout, Sharding, layout_of, summed_over_rows
from infini_jax.devices.side_by_side import Learned, ReadingProgram
from infini_jax.model.cost import training_flops_per_step
from infini_jax.model.stream import Carry, scan_segments
from infini_jax.training.gradient import Scores, score_tokens
from infini_jax.training.program import rows_of

LITTLE = 4e9  # FLOPs that a CPU's core does in about a second without optimizing: what that saves of compiling


@functools.partial(ReadingProgram, settings=1, own=1)
def score_batch(run: RunConfig, layout: Layout | None, params: dict, carry: Carry, batch: Batch) -> tuple[Scores, Carry]:
    """(sums of a batch's scores, carry behind it); `run` has defaults where its program does not depend on a setting."""
    form = form_of_run(run, layout)

    def score(carry: Carry, batch: Batch, params: dict) -> tuple[Scores, Carry]:
        carry, scores, _ = scan_segments(run.model, params, carry, batch, score_tokens, form=form, most_scored=run.most_scored)
        return jax.tree.map(jnp.sum, scores), carry

    return summed_over_rows(score, run.model, layout)(carry, batch, params)


def reads_little(run: RunConfig) -> bool:
    """Whether scoring both held-out splits takes less than the effort that would make it faster."""
    both_splits = 2 * run.train.evaluation_steps * training_flops_per_step(run) / 3  # forward is a third of a step
    return both_splits < LITTLE


def score_batches(
    run: RunConfig, learned: Learned, split: Split, sharding: Sharding = ROWS_ALONE
) -> list[tuple[float, float]]:
    """(nats per scored token, accuracy) of each model over `train.evaluation_steps` batches of a split, memory carried.

    The devices share the work of one model as in training. One program serves both held-out splits.

    Args:
      run: settings that the models' runs have in common, as `RunConfig.program` returns them.
      learned: parameters of the models.
      split: split of the batches.
      sharding: how the devices share the rows of one model.
    """
    places = learned.places(run.model, run.train.batch, layout_of(run, sharding))
    source, carry, found = opened(run.data, rows_of(run, split)), places.fresh(), []
    program = score_batch.once if reads_little(run) else score_batch
    for batch in places.batches(source, range(run.train.evaluation_steps)):
        scores, carry = places.call(program, (run,), (carry,), (batch,))
        found.append(scores)
        keep_close(found)
    total: Scores = jax.tree.map(lambda *sums: sum(sums), *map(places.on_host, found))
    loss_A, accuracy_A = total.means()
    return [*zip(loss_A.tolist(), accuracy_A.tolist(), strict=True)]
