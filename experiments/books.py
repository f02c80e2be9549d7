"""Books: does memory pay in a language model of long books, once it was trained ten times as long?

Command:   infini-jax corpus prepare text_folder --path FOLDER --name books
           infini-jax study books
Cost:      46 runs and 4.6e13 FLOPs; 34 minutes on two cores that tests kept busy
Expected:  what language_modelling expects at its cpu scale, of which this is the same model with ten times its budget and the
           learning rate that was mostly chosen there; three seeds where loss and memory are told apart: landmark
           attention, Transformer-XL and Infini-attention.
"""

import dataclasses

from infini_jax.config import Budget
from infini_jax.data.corpus import CorpusConfig
from infini_jax.study import Study
from infini_jax.study.comparison import SMALL_READ, SMALL_TEXT

CORPUS, BUDGET, RATES, SEEDS = CorpusConfig("books"), Budget("flops", 1e12), (1e-2,), 3
REPEATED = ("transformer_xl", "landmark", "infini")


def study() -> Study:
    """All mechanisms once, some of them with more seeds. Raises `ConfigError` where no corpus called books is prepared."""
    found = SMALL_TEXT.on(CORPUS)
    found = dataclasses.replace(found, base=dataclasses.replace(found.base, budget=BUDGET), rates=RATES)
    repeated = dataclasses.replace(found, seeds=SEEDS).runs(*REPEATED)
    more = [run for run in repeated if run.seed and run.mechanism != "full" and run.variant != "delta"]
    return Study(
        name="books",
        question="Does memory pay in a language model of long books?",
        runs=(*found.runs(), *more),
        held_equal=found.held_equal,
        evaluations=SMALL_READ,
    )
