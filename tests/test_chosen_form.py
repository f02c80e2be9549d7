"""The form of a program: chosen by platform and size, named by settings, the same numbers in each (test_contract_forms.py)."""

import dataclasses
import math

import jax
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.chosen_form import SHARE, form_of_run, kept_bytes, with_form
from infini_jax.devices.sharding import Sharding
from infini_jax.errors import ConfigError
from infini_jax.layers.platforms import target
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import state_bytes
from infini_jax.model.form import Form
from infini_jax.model.stream import scan_segments
from infini_jax.training.gradient import score_tokens
from infini_jax.training.program import Training
from tests.support.extra_mechanisms import registered
from tests.support.marks import slow_but
from tests.support.streams import tiny

GIB = 2**30


def run_of(mechanism: str = "infini", d_model: int = 32, layers: int = 1, sequence: int = 512, **train) -> RunConfig:
    memory = MECHANISMS[mechanism].Config()
    model = ModelConfig(memory=memory, vocab=256, layers=layers, d_model=d_model, heads=2, segment=64)
    return RunConfig(
        model=model,
        data=MqarConfig(pairs=16, symbols=64),
        train=TrainConfig(batch=4, sequence=sequence, **train),
        budget=Budget("steps", 3),
    )


def test_a_cpu_takes_as_many_segments_as_stay_in_its_cache_and_keeps_what_is_small():
    """2048 tokens of 4 bytes per dim: an array of features has 256 KiB at 32 dims, and half a MiB may be taken at once."""
    assert form_of_run(run_of()) == Form(8, "none", "scan")
    assert form_of_run(run_of(d_model=128)) == Form(4, "none", "scan")
    assert form_of_run(run_of(d_model=128, bptt=2)) == Form(2, "none", "scan")
    assert form_of_run(run_of(d_model=128), Sharding().counted_layout(rows=4, devices=2)) == Form(8, "none", "scan")
    assert form_of_run(run_of(d_model=512)) == Form(1, "none", "scan")
    assert form_of_run(run_of(d_model=512, layers=8)) == Form(1, "segment", "scan")


@pytest.mark.parametrize(
    ("mebibytes", "expected"),
    [
        (2000, Form(8, "none", "unroll")),
        (400, Form(8, "layer", "unroll")),
        (200, Form(1, "segment", "unroll")),
        (10, Form(1, "layer", "unroll")),
    ],
)
def test_a_gpu_takes_all_segments_at_once_and_makes_again_as_much_as_it_must(mebibytes, expected):
    """About a GiB of activations, a quarter of it in a layer, an eighth in a segment; `mebibytes` are beside the state."""
    run = run_of(d_model=512, layers=4)
    with target("cuda"):
        assert form_of_run(run, memory=state_bytes(run) + int(mebibytes * 2**20 / SHARE)) == expected


def test_a_tpu_takes_them_in_turn_and_keeps_what_fits():
    run = run_of(d_model=512, layers=8)
    with target("tpu"):
        assert form_of_run(run, memory=80 * GIB) == Form(1, "none", "scan")
        assert form_of_run(run, memory=2 * GIB) == Form(1, "segment", "scan")


def test_what_settings_name_is_taken_and_the_rest_chosen():
    run = run_of(segments_per_step=2, rematerialise="layer", layer_loop="unroll")
    assert form_of_run(run) == Form(2, "layer", "unroll")
    assert form_of_run(run_of(segments_per_step=4)) == Form(4, "none", "scan")
    with target("cuda"):
        assert form_of_run(run_of(rematerialise="segment"), memory=80 * GIB) == Form(8, "segment", "unroll")
        assert form_of_run(run_of(bptt=2), memory=80 * GIB) == Form(2, "none", "unroll")
        assert form_of_run(run_of(layers=40), memory=80 * GIB).layer_loop == "scan"


def test_devices_that_share_a_sequence_take_all_of_it():
    layout = Sharding("fsdp+sequence", 4).counted_layout(rows=4, devices=8)
    run = run_of()
    assert form_of_run(run, layout) == Form(2, "none", "scan")
    named = with_form(run, form_of_run(run, layout), layout)
    assert (named.train.segments_per_step, form_of_run(named, layout)) == (8, Form(2, "none", "scan"))


def test_a_layer_on_the_residual_stream_takes_segments_in_turn_on_every_platform():
    with registered(), target("cuda"):
        run = dataclasses.replace(run_of(), model=dataclasses.replace(tiny("recurrent"), vocab=256))
        assert form_of_run(run, memory=80 * GIB).segments == 1


def test_a_form_names_itself_and_decides_no_result():
    assert str(Form(8, "none", "unroll")) == "segments 8, rematerialise none, layers unroll"
    run = run_of()
    assert with_form(run, Form(8, "layer", "unroll")).fingerprint() == run.fingerprint()
    with pytest.raises(ConfigError, match=r"^train.segments_per_step: -1 is negative"):
        run_of(segments_per_step=-1)
    with pytest.raises(ConfigError, match=r"^train.rematerialise: 'all' is not known"):
        run_of(rematerialise="all")


@pytest.mark.parametrize("name", slow_but(("infini", "memorizing"), MECHANISMS))
def test_bytes_kept_are_those_of_the_program_within_a_factor(name):
    """Counted before XLA joins anything: what the backward pass takes of the forward pass, parameters left out."""
    run = run_of(name, d_model=64, layers=2, rematerialise="none")
    training = Training(run)

    def kept(params, carry, batch):
        def loss(params):
            form = Form(1, "none")
            found = scan_segments(run.model, params, carry, batch, score_tokens, form=form, most_scored=run.most_scored)
            return found[1].loss.sum()

        return jax.vjp(loss, params)[1]

    found = jax.eval_shape(kept, training.shapes.params, training.shapes.carry, training.batch)
    counted = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
    assert counted / 2 < kept_bytes(run, None, 1, "none") < 4 * counted
