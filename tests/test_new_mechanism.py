"""A mechanism that nobody knew: one file, one row in the registry, and the capacity study and its report have it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import capacity_law
from infini_jax.attention import attend_flops, attend_segment
from infini_jax.jobs import execute
from infini_jax.measures import read_measures
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig
from infini_jax.report import Source, write_report
from infini_jax.segment import Segment, reset_where_new
from infini_jax.study import MEASURES_FILE, Study, save_study, saved_study, write_tables


@dataclasses.dataclass(frozen=True)
class BucketsConfig(MemoryConfig):
    """Attributes: buckets, in which values are summed."""

    buckets: int = 4


class Buckets(Memory):
    """The sum of the values of every bucket, where a key belongs to buckets as much as its first entries say."""

    Config = BucketsConfig
    summary = "sums of values by bucket"
    paper = "a test"
    axes = ("buckets",)

    def init_memory(self, batch: int) -> jax.Array:
        return jnp.zeros((batch, self.config.buckets, self.dims.kv_heads, self.dims.value_dim))

    def _shares(self, x_BxSxHxK: jax.Array) -> jax.Array:
        turned = jnp.resize(x_BxSxHxK, (*x_BxSxHxK.shape[:-1], self.config.buckets))
        return jax.nn.softmax(turned, axis=-1)

    def attend(self, memory: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        read = jnp.einsum("bshn,bnhv->bshv", self._shares(segment.queries), memory)
        return self.out(attend_segment(segment) + jnp.where(segment.bounds.reads_BxS[..., None, None], read, 0.0)), {}

    def write(self, memory: jax.Array, segment: Segment) -> jax.Array:
        shares = self._shares(segment.keys) * segment.bounds.writes_BxT[..., None, None]
        return reset_where_new(segment.bounds.keeps_B, memory) + jnp.einsum("bthn,bthv->bnhv", shares, segment.values)

    def logical_axes(self) -> tuple[str, ...]:
        return ("batch", "slots", "heads", "value_dim")

    def cost(self, segment_length: int) -> Cost:
        d = self.dims
        moved = 2.0 * d.heads * self.config.buckets * d.value_dim
        return Cost(local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim), read=moved, write=moved)

    @classmethod
    def resized(cls, config: BucketsConfig, dims: Dims, size: int, axis: str = "") -> tuple[BucketsConfig, Dims]:
        return dataclasses.replace(config, buckets=size), dims


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(MECHANISMS, "buckets", Buckets)


@pytest.mark.usefixtures("registered")
def test_a_mechanism_of_one_row_is_in_the_capacity_study_and_its_report(tmp_path):
    whole = capacity_law.study("smoke")
    assert {run.mechanism for run in whole.runs if run.task == "capacity"} == set(MECHANISMS)
    few = tuple(run for run in whole.runs if run.mechanism in ("buckets", "gated_delta"))
    study = Study(whole.name, whole.question, few, whole.held_equal)
    save_study(study, tmp_path)
    desk = study.desk(tmp_path)
    for run in few:  # in this process: the workers of a study would import a registry without it
        execute(run, desk.of(run), study.name)
    write_tables(study, desk)
    restored, rows, failures = saved_study(tmp_path)
    assert (restored.runs, failures) == (few, [])
    (row,) = (row for row in rows if row.mechanism == "buckets")
    assert row.memory_bytes == 4 * 8 * 12  # as many buckets of eight float32 values as fit into 400 bytes
    assert {one.metric for run, one in read_measures([tmp_path / MEASURES_FILE]) if run == row.run} >= {"accuracy", "nmse"}
    page = write_report([Source(tmp_path, study.question, {}, "a command")], tmp_path).read_text()
    assert "sums of values by bucket" in page
    assert page.count("buckets") > page.count("sums of values by bucket")
