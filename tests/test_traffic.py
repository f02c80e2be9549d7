"""Bytes that a compiled program moves, counted in its text: by hand on a written text, by sizes of arrays on real ones."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_traffic import Case
from infini_jax.forecast.program_text import ProgramText
from infini_jax.forecast.topology import is_installed
from infini_jax.forecast.traffic import bytes_moved, bytes_of_type

# a loop of 4 turns, each of which cuts 1/4 of an array, keeps the part on the chip, and puts a part into another in place
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%cut (p.0: f32[4,256], p.1: s32[]) -> f32[1,256] {
  %p.0 = f32[4,256]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %same = f32[4,256]{1,0:T(8,128)} bitcast(%p.0)
  ROOT %part = f32[1,256]{1,0} dynamic-slice(%same, %p.1, %p.1), dynamic_slice_sizes={1,256}
}

%put (q.0: f32[4,256], q.1: f32[1,256], q.2: s32[]) -> (f32[4,256], f32[8,128]) {
  %q.2 = s32[]{:T(128)} parameter(2)
  %q.0 = f32[4,256]{1,0} parameter(0)
  %q.1 = f32[1,256]{1,0} parameter(1)
  %grown = f32[4,256]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2)
  %other = f32[8,128]{1,0} broadcast(%q.2), dimensions={}
  ROOT %both = (f32[4,256]{1,0}, f32[8,128]{1,0}) tuple(%grown, %other)
}

%body (arg: (s32[], f32[4,256], f32[4,256])) -> (s32[], f32[4,256], f32[4,256]) {
  %arg = (s32[], f32[4,256]{1,0}, f32[4,256]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%arg), index=0
  %x = f32[4,256]{1,0} get-tuple-element(%arg), index=1
  %y = f32[4,256]{1,0} get-tuple-element(%arg), index=2
  %near = f32[1,256]{1,0:S(1)} fusion(%x, %turn), kind=kLoop, calls=%cut
  %far = (f32[4,256]{1,0}, f32[8,128]{1,0:S(1)}) fusion(%y, %near, %turn), kind=kLoop, calls=%put
  %y.1 = f32[4,256]{1,0} get-tuple-element(%far), index=0
  ROOT %next = (s32[], f32[4,256]{1,0}, f32[4,256]{1,0}) tuple(%turn, %x, %y.1)
}

%less (arg.1: (s32[], f32[4,256], f32[4,256])) -> pred[] {
  %arg.1 = (s32[], f32[4,256]{1,0}, f32[4,256]{1,0}) parameter(0)
  ROOT %asked = pred[] custom-call(%arg.1), custom_call_target="asked"
}

ENTRY %main (a: f32[4,256], b: bf16[16,32]) -> f32[4,256] {
  %a = f32[4,256]{1,0} parameter(0)
  %b = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[] constant(0)
  %fetched = (bf16[16,32]{1,0:T(8,128)(2,1)S(1)}, bf16[16,32]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%b)
  %here = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetched)
  %room = f32[4,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %called = f32[4,256]{1,0} custom-call(%a, %here), custom_call_target="tpu_custom_call"
  %t = (s32[], f32[4,256]{1,0}, f32[4,256]{1,0}) tuple(%zero, %called, %room)
  %w = (s32[], f32[4,256]{1,0}, f32[4,256]{1,0}) while(%t), condition=%less, body=%body, config={"known_trip_count":{"n":"4"}}
  ROOT %result = f32[4,256]{1,0} get-tuple-element(%w), index=2
}
"""
ROW = 256 * 4
BOUND = 1.3  # times the least


def test_bytes_of_a_written_program_are_those_counted_by_hand():
    """A turn reads a row and its count, keeps the row on the chip, reads the count again and writes a row."""
    fetched = 16 * 128 * 2  # rows of 32 lie in tiles of 128
    called = 2 * 4 * ROW
    assert bytes_moved(ProgramText.parse(PROGRAM)) == fetched + called + 4 * (ROW + 4 + 4 + ROW)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("f32[3,5]{1,0}", 60),
        ("f32[3,5]{0,1:T(8,128)}", 8 * 128 * 4),
        ("f32[3,8,200]{1,2,0:T(8,128)}", 3 * 200 * 128 * 4),
        ("(bf16[8,128]{1,0:T(8,128)(2,1)}, /*index=1*/f32[2]{0:T(128)S(1)}, pred[])", 2 * 8 * 128 + 1),
        ("f32[]", 4),
    ],
)
def test_arrays_are_as_large_as_their_tiles(kind, expected):
    assert bytes_of_type(kind) == expected


def test_a_real_program_moves_its_arrays_and_a_loop_s_as_often_as_it_turns():
    def moved(function, *shapes):
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return bytes_moved(ProgramText.parse(jax.jit(function).lower(*arrays).compile().as_text()))

    assert moved(jnp.sin, (64, 64)) == 2 * 4 * 64 * 64
    turns = {
        count: moved(lambda c, xs: jax.lax.scan(lambda c, x: (jnp.sin(c) + x, None), c, xs)[0], (512, 512), (count, 512, 512))
        for count in (10, 30)
    }
    turn = (turns[30] - turns[10]) / 20
    assert 3 * 4 * 512**2 <= turn < 6 * 4 * 512**2  # reads the sum and a part, writes the sum, and perhaps copies one


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("tpu"), reason="needs libtpu: pip install 'infini_jax[tpu]'")
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
@pytest.mark.parametrize(
    ("dim", "segment", "compute"), [(32, 2048, "float32"), (128, 256, "float32"), (128, 2048, "bfloat16")]
)
def test_the_delta_rule_s_kernel_moves_little_more_than_it_must(topology, dim, segment, compute):
    """What is its own: the memory before each block, written and read, and a gradient of zeros by the memory before all."""
    case = Case("delta, kernel", dim, segment, compute)
    assert case.moved(topology) < BOUND * case.least()
