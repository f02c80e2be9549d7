"""Scores of held-out batches, for tasks that are not made of documents."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from infini_jax.config import RunConfig
from infini_jax.data.base import opened
from infini_jax.data.batch import Batch, Split
from infini_jax.devices.chosen_form import form_of_run
from infini_jax.devices.effort import OFTEN, effort
from infini_jax.devices.processes import placed_batches
from infini_jax.devices.queue import keep_close
from infini_jax.devices.sharding import (
    ROWS_ALONE,
    Sharding,
    batch_sharding,
    carry_sharding,
    layout_of,
    summed_over_rows,
)
from infini_jax.model.stream import Carry, init_carry, scan_segments
from infini_jax.training.gradient import Scores, score_tokens
from infini_jax.training.program import rows_of


@functools.lru_cache(maxsize=1)
def make_evaluate(run: RunConfig, sharding: Sharding = ROWS_ALONE) -> Callable[[dict, Split], tuple[float, float]]:
    """The function (params, split) -> (nats per scored token, accuracy) over `train.evaluation_steps` batches, memory carried.

    The devices share the work as in training. One program serves both held-out splits.
    """
    layout = layout_of(run, sharding)
    form = form_of_run(run, layout)

    def score(carry: Carry, batch: Batch, params: dict) -> tuple[Scores, Carry]:
        carry, scores, _ = scan_segments(run.model, params, carry, batch, score_tokens, form=form, most_scored=run.most_scored)
        return jax.tree.map(jnp.sum, scores), carry

    score = jax.jit(summed_over_rows(score, run.model, layout), compiler_options=effort(OFTEN))
    places = carry_sharding(run.model, layout.mesh, layout.rules)
    rows = batch_sharding(layout.mesh, layout.rules)
    begin = jax.jit(lambda: init_carry(run.model, run.train.batch), out_shardings=places)

    def evaluate(params: dict, split: Split) -> tuple[float, float]:
        source, carry, found = opened(run.data, rows_of(run, split)), begin(), []
        for batch in placed_batches(source, rows, run.train.batch, range(run.train.evaluation_steps)):
            scores, carry = score(carry, batch, params)
            found.append(scores)
            keep_close(found)
        total: Scores = jax.tree.map(lambda *sums: sum(sums), *jax.device_get(found))
        loss, accuracy = total.means()
        return float(loss), float(accuracy)

    return evaluate
