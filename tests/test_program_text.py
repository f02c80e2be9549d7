"""Kernels that a compiled program launches, counted in its text: by hand on written texts, by loops' lengths on real ones."""

import jax
import jax.numpy as jnp
import pytest

from infini_jax.errors import ConfigError
from infini_jax.forecast.compiled import buffers_of, collectives_of, kernels_of
from infini_jax.forecast.program_text import ProgramText, kernels_launched

# XLA numbers the members of long types by remarks with an equals sign
SIX = "(s32[], f32[8,8]{1,0}, f32[8,8]{1,0}, f32[8,8]{1,0}, f32[8,8]{1,0}, /*index=5*/f32[8,8]{1,0})"
# 7 turns of a body with 3 kernels, in 5 turns of one with 2 more and a choice of 1 or 4, in an entry with 6
PROGRAM = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %wide = f32[4096,4096]{1,0} broadcast(%p), dimensions={0,1}
  ROOT %twice = f32[8,8]{1,0} add(%p, %p)
}

%region_1.2 (arg: SIX) -> SIX {
  %arg = SIX parameter(0)
  %turn = s32[] get-tuple-element(%arg), index=0
  %a = f32[8,8]{1,0} get-tuple-element(%arg), index=1
  %next = s32[] fusion(%turn), kind=kLoop, calls=%fused
  %gemm = (f32[8,8]{1,0}, s8[4194304]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm"
  %b = f32[8,8]{1,0} get-tuple-element(%gemm), index=0
  %all-reduce-start = f32[512,8]{1,0} all-reduce-start(%b), channel_id=1, to_apply=%add
  %all-reduce-done = f32[512,8]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %tuple.1 = SIX tuple(%next, %b, %a, %a, %a, /*index=5*/%a)
}

%turns_left (arg.1: (s32[], f32[8,8])) -> pred[] {
  %arg.1 = (s32[], f32[8,8]{1,0}) parameter(0)
  ROOT %never_asked = pred[] fusion(%arg.1), kind=kLoop, calls=%fused
}

%few (p.1: f32[8,8]) -> f32[8,8] {
  ROOT %copied = f32[8,8]{1,0} copy(%p.1)
}

%many (p.2: f32[8,8]) -> f32[8,8] {
  %one = f32[8,8]{1,0} fusion(%p.2), kind=kLoop, calls=%fused
  %two = f32[8,8]{1,0} copy(%one)
  %three = f32[8,8]{1,0} call(%two), to_apply=%few
  ROOT %four = f32[8,8]{1,0} sort(%three), dimensions={0}, to_apply=%add
}

%outer (arg.2: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %arg.2 = (s32[], f32[8,8]{1,0}) parameter(0)
  %begin = s32[] copy(%zero)
  %packed = f32[8,8]{1,0} fusion(%arg.2), kind=kLoop, calls=%fused
  %inner = SIX while(%packed), condition=%turns_left, body=%region_1.2, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %chosen = f32[8,8]{1,0} conditional(%which, %packed, %packed), branch_computations={%few, %many}
}

ENTRY %main (p0: f32[8,8]) -> f32[8,8] {
  %p0 = f32[8,8]{1,0} parameter(0)
  %zero.1 = s32[] constant(0)
  %c = f32[8,8]{1,0} copy(%p0)
  %f = f32[8,8]{1,0} fusion(%c), kind=kInput, calls=%fused
  %async = ((f32[8,8]{1,0}), f32[8,8]{1,0}, u32[]) async-start(%f), calls=%few
  %async-done = f32[8,8]{1,0} async-done(%async)
  %d = f32[8,8]{1,0} dot(%f, %f)
  %r = f32[] reduce(%d, %zero.1), dimensions={0,1}, to_apply=%add
  %w = (s32[], f32[8,8]{1,0}) while(%t), condition=%turns_left, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %g = f32[8,8]{1,0} get-tuple-element(%w), index=1
  ROOT %h = f32[8,8]{1,0} scatter(%g), to_apply=%add
}
""".replace("SIX", SIX)

# a loop whose number of turns stands in its condition only, which is asked once more than its body runs
ASKED = """\
%less (a: s32[], b: s32[]) -> pred[] {
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%body (arg: (s32[])) -> (s32[]) {
  %next = s32[] fusion(%arg), kind=kLoop, calls=%less
  %again = s32[] copy(%next)
}

%condition (arg.1: (s32[])) -> pred[] {
  %bound = s32[] constant(9)
  %turn = s32[] get-tuple-element(%arg.1), index=0
  ROOT %asked = pred[] fusion(%turn, %bound), kind=kLoop, calls=%less
}

ENTRY %main (p0: s32[]) -> s32[] {
  ROOT %w = (s32[]) while(%p0), condition=%condition, body=%body
}
"""


def test_kernels_are_instructions_times_the_turns_of_their_loops():
    assert kernels_launched(ProgramText.parse(PROGRAM)) == 6 + 5 * (2 + 7 * 3 + 4)


def test_a_loop_may_tell_its_turns_by_its_condition_which_is_then_asked_each_time():
    assert kernels_launched(ProgramText.parse(ASKED)) == 9 * 2 + 10
    bare = ASKED.replace("%asked = pred[] fusion", "%asked = pred[] compare").replace("kind=kLoop, calls", "direction=LT, x")
    assert kernels_launched(ProgramText.parse(bare)) == 9 * 2 + 10


@pytest.mark.parametrize(
    "change", [("%bound = s32[] constant(9)", "%bound = s32[] get-tuple-element(%arg.1), index=1"), ("=LT", "=NE")]
)
def test_a_loop_that_does_not_tell_its_turns_is_refused_in_one_line(change):
    text = ASKED.replace(*change)
    refused = r"^program: the loop over condition does not tell its number of turns; use lax.scan"
    with pytest.raises(ConfigError, match=refused):
        kernels_launched(ProgramText.parse(text))
    assert kernels_of(ProgramText.parse(text)) is None


def nested(outer: int, inner: int) -> str:
    """Text of a compiled scan in a scan."""

    def turn(c, x):
        return jnp.tanh(c @ x), c.sum()

    def turns(c, xs):
        return jax.lax.scan(turn, c, xs)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 32), (outer, inner, 32, 32))]
    return jax.jit(lambda c, xs: jax.lax.scan(turns, c, xs)).lower(*shapes).compile().as_text()


def test_loops_of_a_real_program_are_counted_by_their_lengths():
    """A scan of N scans of M turns launches a + N (b + M c): c the least for a product, tanh and a sum, at most a few more."""
    kernels = {(n, m): kernels_launched(ProgramText.parse(nested(n, m))) for n, m in ((5, 7), (5, 9), (8, 7), (8, 9))}
    inner = (kernels[5, 9] - kernels[5, 7]) / (5 * 2)
    assert kernels[8, 9] - kernels[8, 7] == 8 * 2 * inner
    assert 3 <= inner < 12
    assert (kernels[8, 7] - kernels[5, 7]) / 3 == (kernels[8, 9] - kernels[5, 9]) / 3 - 2 * inner


def test_a_loop_over_a_traced_number_is_refused():
    loop = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, c: c @ c, x))
    text = loop.lower(jnp.ones((4, 4)), 3).compile().as_text()
    with pytest.raises(ConfigError, match="does not tell its number of turns"):
        kernels_launched(ProgramText.parse(text))


def test_what_lies_in_memory_is_found_in_loops_and_not_in_fusions():
    """XLA calls the bodies of loops regions, as it does the functions that reductions apply."""
    names = {one.name for one in ProgramText.parse(PROGRAM).in_memory()}
    assert {"gemm", "packed", "copied", "h"} <= names
    assert not {"wide", "twice", "sum"} & names
    assert [(one.kind, one.bytes) for one in collectives_of(ProgramText.parse(PROGRAM))] == [("all-reduce", 512 * 8 * 4)]
    assert buffers_of(ProgramText.parse(PROGRAM))[0].bytes == 512 * 8 * 4


def test_types_with_many_members_are_read_whole():
    (loop,) = (one for one in ProgramText.parse(PROGRAM).computations["outer"] if one.operation == "while")
    assert loop.name == "inner"
    assert loop.type == SIX
    assert loop.called("body") == ["region_1.2"]
