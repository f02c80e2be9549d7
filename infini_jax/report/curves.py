"""Curves of runs, by run and metric, as figures draw them."""

import numpy as np

from infini_jax.records.remembered import Joined

Curve = tuple[np.ndarray, np.ndarray]  # tokens trained on, values of a metric
Curves = dict[str, Curve]  # of one run by metric; empty arrays for a metric whose lines do not say their tokens
NO_CURVE: Curve = (np.empty(0), np.empty(0))


def curves_by_run(runs: list[str], logs: Joined) -> dict[str, Curves]:
    """The curves of each run, by name, from the table of all their logs, one log per run."""
    counts = [count or 0 for count in logs.counts]
    owners, lines = np.repeat(np.arange(len(runs)), counts), logs.table.combine_chunks()
    tokens, values = lines.column("tokens"), lines.column("value").to_numpy()
    numbers, is_told = tokens.to_numpy(), tokens.is_valid().to_numpy()
    metrics = lines.column("metric").combine_chunks().dictionary_encode()
    codes = metrics.indices.to_numpy()
    found: dict[str, Curves] = {run: {} for run in runs}
    for code, metric in enumerate(metrics.dictionary.to_pylist()):
        mine = codes == code
        told = np.flatnonzero(mine & is_told)
        ends = np.cumsum(np.bincount(owners[told], minlength=len(runs)))
        of_metric, at = values[told], numbers[told]
        for owner in np.unique(owners[mine]).tolist():
            part = slice(ends[owner - 1] if owner else 0, ends[owner])
            found[runs[owner]][metric] = at[part], of_metric[part]
    return found
