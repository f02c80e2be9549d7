"""Studies: jobs, ladders of budgets, the desk where they are worked on, workers, trials, experiments."""

from infini_jax.study.ladder import Ladder, Rates
from infini_jax.study.study import Study, collect, missing_of, save_study, saved_study
from infini_jax.study.workers import run_study, work_on

__all__ = ["Ladder", "Rates", "Study", "collect", "missing_of", "run_study", "save_study", "saved_study", "work_on"]
