# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add a mechanism
#
# Add a memory of your own in four steps: write it, register it, let the project's contract tests try to break it, and use
# it in a study. In a checkout it would be one file in `infini_jax/memory/` and one row in its `__init__.py`. Here it is a
# cell.

# %%
import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from infini_jax.errors import require
from infini_jax.layers.attention import attend_flops, attend_segment
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.segment import reset_where_new
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Cost, Memory, MemoryConfig, memory_bytes
from infini_jax.memory.feature_maps import unit

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "docs" / "results").is_dir())
sys.path.insert(0, str(ROOT))  # for its tests and experiments

# %% [markdown]
# ## 1. Write it
# *Fading* is one matrix per head, as in linear attention, multiplied by λ at every segment so that it forgets evenly. With
# keys of unit length it needs no normalization:
#
# M_s = λ M_{s-1} + K̂ᵀ V,  A = A_local + Q̂ M_{s-1}
#
# Settings are a frozen dataclass. Its `check` refuses invalid settings in one line. The class holds parameters (here only
# W_O, which it inherits) and defines
#
# - the arrays of its memory (`init_memory`);
# - how it grows (`resized`, `axes`);
# - how its arrays may be split over devices (`logical_axes`);
# - the cost of a token (`cost`, which a test compares with the program).


# %%
@dataclasses.dataclass(frozen=True)
class FadingConfig(MemoryConfig):
    """Settings. Attributes: keeps, the share λ of the memory that a segment leaves."""

    keeps: float = 0.9

    def check(self, dims) -> None:
        require(0.0 < self.keeps <= 1.0, "memory.keeps", f"{self.keeps} is no share", "give one above 0 and up to 1")


class Fading(Memory):
    """A key_dim x value_dim matrix a key head."""

    Config = FadingConfig
    summary, paper = "matrix memory that fades by segments", "this notebook"
    axes = ("key_dim",)

    def init_memory(self, batch: int) -> jax.Array:
        d = self.dims
        return jnp.zeros((batch, d.kv_heads, d.key_dim, d.value_dim), d.memory_dtype)

    def attend(self, M_BxGxKxV, segment):
        q_BxSxGxRxK = by_key_head(unit(segment.queries.astype(self.dims.memory_dtype)), M_BxGxKxV.shape[1])
        read_BxSxGxRxV = jnp.einsum("bsgrk,bgkv->bsgrv", q_BxSxGxRxK, M_BxGxKxV)
        read_BxSxHxV = read_BxSxGxRxV.reshape(*segment.queries.shape[:3], -1)
        read_BxSxHxV = jnp.where(segment.bounds.reads_BxS[..., None, None], read_BxSxHxV, 0.0)
        return self.out((attend_segment(segment) + read_BxSxHxV).astype(self.dims.dtype)), {}

    def write(self, M_BxGxKxV, segment):
        k_BxTxGxK = unit(segment.keys.astype(self.dims.memory_dtype)) * segment.bounds.writes_BxT[..., None, None]
        v_BxTxGxV = segment.values.astype(self.dims.memory_dtype)
        kept_BxGxKxV = reset_where_new(segment.bounds.keeps_B, M_BxGxKxV)
        return self.config.keeps * kept_BxGxKxV + jnp.einsum("btgk,btgv->bgkv", k_BxTxGxK, v_BxTxGxV)

    def logical_axes(self):
        return ("batch", "kv_heads", "key_dim", "value_dim")

    def cost(self, segment_length: int) -> Cost:
        d = self.dims
        matrix = 2.0 * d.key_dim * d.value_dim
        return Cost(
            local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim),
            read=d.heads * matrix,
            write=d.kv_heads * matrix,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,
        )

    @classmethod
    def resized(cls, config, dims, size: int, axis: str = "key_dim"):
        return config, dataclasses.replace(dims, key_dim=max(size - size % 2, 2))  # rotary turns pairs


# %% [markdown]
# ## 2. Register it

# %%
MECHANISMS["fading"] = Fading

# %% [markdown]
# ## 3. Try to break it
# The contract tests take every mechanism in the registry. Among other things they check that
#
# - no output depends on a later token (by gradient, exactly);
# - a packed document never sees the one before;
# - decoding token by token equals the parallel form;
# - the counted FLOPs equal those of the program.
#
# They are the project's own tests, called here for the new row. Those of promises that it does not make are skipped.

# %%
import contextlib
import io
import re

import pytest


class Outcomes:
    """A pytest plugin that notes how each test ended."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.of[re.sub(r".*::test_", "", report.nodeid).replace("_", " ")] = report.outcome


def contract(selected: str) -> dict[str, str]:
    """Test -> outcome, of the contract tests that pytest's -k selects."""
    outcomes, said = Outcomes(), io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main([str(ROOT / "tests" / "test_contract.py"), "-q", "-k", selected], plugins=[outcomes])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), said.getvalue()
    return outcomes.of


kept = contract("fading")
for test, outcome in kept.items():
    print(f"{outcome:8} {test}")
assert set(kept.values()) == {"passed", "skipped"}, "the mechanism breaks a promise"

# %% [markdown]
# Now a mechanism that breaks a test: the same memory, but a new document does not empty it. (It has settings of its own,
# because a mechanism is found by the class of its settings.)


# %%
@dataclasses.dataclass(frozen=True)
class LeakyConfig(FadingConfig):
    """Settings."""


class Leaky(Fading):
    """Forgets to look at the boundaries when it writes."""

    Config = LeakyConfig

    def write(self, M_BxGxKxV, segment):
        k_BxTxGxK, v_BxTxGxV = unit(segment.keys), segment.values
        return self.config.keeps * M_BxGxKxV + jnp.einsum("btgk,btgv->bgkv", k_BxTxGxK, v_BxTxGxV)


MECHANISMS["leaky"] = Leaky
leaky = contract("leaky and (packed or later)")
for test, outcome in leaky.items():
    print(f"{outcome:8} {test}")
assert "failed" in leaky.values()
del MECHANISMS["leaky"]

# %% [markdown]
# ## 4. Use it in a study
# A memory layer alone, as in the study `capacity_law`, but smaller: keys and values are trained for the memory, which is
# then queried for pairs. The gated delta rule is the comparison. (The jobs run one after the other in this process, because
# workers would import a registry without the new row. In a checkout, `infini-jax study capacity_law` includes the mechanism
# at once.)

# %%
from experiments.capacity_law import at_bytes
from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import Budget
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.results import load, recall_against_bytes
from infini_jax.results.notebook import show
from infini_jax.study.study import Study, save_study, write_tables
from infini_jax.study.workers import do

base = CapacityRun(symbols=64, key_dim=8, value_dim=8, segment=8, batch=8, rows=16, grid=6, budget=Budget("steps", 150))
memories = [dataclasses.replace(base, memory=memory) for memory in (FadingConfig(), GatedDeltaConfig())]
runs = tuple(at_bytes(memory, size) for memory in memories for size in (256, 1024))
study = Study("with_fading", "How many pairs does a fading matrix recall?", runs, (("steps of Adam", "150"),))
folder = Path(tempfile.mkdtemp())
save_study(study, folder)
for run in runs:
    do(study.desk(folder), run)
rows = write_tables(study, study.desk(folder))
found = load(folder)
show(
    recall_against_bytes(found),
    "n50, the pairs of which half are recalled, against bytes: the new mechanism and the gated delta rule.",
)

# %% [markdown]
# One seed and a few seconds of training show that it learns and that four times the bytes hold more. They are not enough to
# rank the two.

# %%
figures = found.measures[found.measures.metric == "n50"].merge(found.runs, on="run")
figures[["mechanism", "memory_bytes", "value"]].rename(columns={"value": "n50, pairs"})

# %% [markdown]
# The report has the mechanism in every table and figure, like any other. These are the alternative texts of its figures:

# %%
from infini_jax.report import StudySource, write_report

page = write_report([StudySource(folder, study.question, dict(study.held_equal), "this notebook")], folder)
for said in re.findall(r"<desc[^>]*>([^<]*fading[^<]*)", page.read_text()):
    print(said)
