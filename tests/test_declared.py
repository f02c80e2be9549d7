"""What a mechanism declares of its parameters: gates by whatever name, and tables that do not decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from infini_jax.codes.capacity import CapacityRun
from infini_jax.codes.learning import init_layer as init_codes
from infini_jax.codes.standalone import learned_gates
from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.evals.gates import GateEvaluation
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import Memory
from infini_jax.memory.declared import check_declared
from infini_jax.memory.infini import Infini, InfiniConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.model.stream import init_params, parameter_shapes
from infini_jax.training.loop import train
from infini_jax.training.optimiser import make_optimiser, names_of, schedule
from tests.support.streams import MODEL, tiny


@dataclasses.dataclass(frozen=True)
class MixedConfig(InfiniConfig):
    """As Infini-attention's."""


class Mixed(Infini):
    """Infini-attention whose gate has another name."""

    Config = MixedConfig
    gates = (("mix",),)

    def setup(self):
        super(Infini, self).setup()
        self.gate = self.param("mix", nn.initializers.constant(self.config.gate_init), (self.dims.heads,))


@pytest.fixture
def mixed(monkeypatch):
    monkeypatch.setitem(MECHANISMS, "mixed", Mixed)


def run_of(memory) -> RunConfig:
    settings = TrainConfig(batch=4, sequence=32, learning_rate=1e-2, gate_learning_rate=0.3, log_every=2, evaluation_steps=1)
    model = dataclasses.replace(MODEL, memory=memory)
    return RunConfig(model=model, data=MqarConfig(pairs=4, symbols=32), train=settings, budget=Budget("steps", 6))


def renamed(params: dict) -> dict:
    """Parameters of `Mixed` under the names of Infini-attention's."""
    memory = params["groups_0"]["memory"]
    return {**params, "groups_0": {**params["groups_0"], "memory": {"gate": memory["mix"], "out": memory["out"]}}}


@pytest.mark.slow
def test_a_gate_of_another_name_trains_and_is_reported_the_same_bit_for_bit(mixed):
    lines, found = ([], []), []
    for memory, logged in zip((InfiniConfig(), MixedConfig()), lines, strict=True):
        run = run_of(memory)
        learned = train(run, logged.append).learned
        found.append((learned, [(one.labels, one.value) for one in GateEvaluation().measure(Subject(run, learned))]))
    (params, gates), (others, told) = found
    jax.tree.map(np.testing.assert_array_equal, params, renamed(others))
    assert gates == told
    assert len(gates) == MODEL.layers * MODEL.heads
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [line["gate_mean"] for line in lines[0]] == [line["gate_mean"] for line in lines[1]]
    assert np.abs(params["groups_0"]["memory"]["gate"]).max() > 0.3  # six steps at the common rate reach 0.06 at most


def test_a_memory_layer_alone_tells_its_gates_whatever_their_name(mixed):
    run = CapacityRun(memory=MixedConfig(), heads=2)
    params = init_codes(run, jax.random.key(0))
    params["memory"]["mix"] = jnp.array([-1.0, 2.0])
    np.testing.assert_array_equal(learned_gates(run, params), nn.sigmoid(params["memory"]["mix"]))
    plain = CapacityRun(memory=TransformerXLConfig())
    assert learned_gates(plain, init_codes(plain, jax.random.key(0))).size == 0


def moves_without_gradient(model, optimiser: str = "adamw") -> dict[tuple[str, ...], bool]:
    """Whether weight decay moves each parameter."""
    settings = TrainConfig(warmup=0.0, weight_decay=0.5, learning_rate=0.1, optimiser=optimiser)
    made = make_optimiser(settings, 10, model)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), parameter_shapes(model))
    moves = jax.jit(lambda params: made.update(jax.tree.map(jnp.zeros_like, params), made.init(params), params)[0])(params)
    return {names_of(path): bool(np.any(move)) for path, move in jax.tree_util.tree_leaves_with_path(moves)}


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor"])
@pytest.mark.parametrize(
    ("name", "changes", "still"),
    [
        ("memorizing", {}, {("bias",)}),
        ("transformer_xl", {"positions": "t5"}, {("attention", "bias")}),
        ("transformer_xl", {"positions": "relative"}, {("attention", "u"), ("attention", "v")}),
        ("compressive", {"positions": "t5"}, {("attention", "bias")}),
        ("compressive", {"positions": "relative"}, {("attention", "u"), ("attention", "v")}),
    ],
)
def test_tables_of_positions_do_not_shrink_and_projections_do(name, changes, still, optimiser):
    model = tiny(name)
    moved = moves_without_gradient(dataclasses.replace(model, memory=dataclasses.replace(model.memory, **changes)), optimiser)
    of_memory = {names[2:]: one for names, one in moved.items() if names[1] == "memory"}
    assert not any(of_memory[names] for names in still)
    assert {names for names, one in of_memory.items() if one} == {names for names in of_memory if names[-1] == "kernel"}


@pytest.mark.parametrize("name", ["infini", "memorizing", "gated_delta"])
def test_the_state_has_the_structure_that_checkpoints_of_format_2_have(name):
    """Gates by their name and decay by rank, as the optimiser of those checkpoints was made."""
    settings, params = TrainConfig(), jax.eval_shape(lambda: init_params(tiny(name), jax.random.key(0)))
    shape, scale = schedule(settings, 10), optax.inject_hyperparams(optax.scale)
    decayed = optax.adamw(shape, b2=0.95, weight_decay=0.1, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 2, tree))
    groups = {
        "weights": optax.chain(decayed, scale(step_size=1e-3)),
        "gates": optax.chain(optax.adam(shape), scale(step_size=1e-2)),
    }

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "gates" if path[-1].key == "gate" else "weights", params)

    before = optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(groups, labels))
    ours, theirs = (jax.eval_shape(one.init, params) for one in (make_optimiser(settings, 10, tiny(name)), before))
    assert jax.tree_util.tree_structure(ours) == jax.tree_util.tree_structure(theirs)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), ours) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), theirs
    )


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"axes": ()}, "Undeclared.axes: there is none, so that no size can be chosen; name at least one"),
        ({"learns": ("gates",)}, "Undeclared.learns: 'gates' is not known; choose inputs, keys or values"),
        ({"holds": "words"}, "Undeclared.holds: 'words' is not known; choose matrix, slots or other"),
        (
            {"exempt": {"is_causal": "it is hard"}},
            "Undeclared.exempt: 'is_causal' is not known; choose reads_without_a_copy, ",
        ),
        ({"neighborhoods": ("far",)}, "Undeclared.neighborhoods: 'far' is not known; choose own, segment, window or cache"),
        (
            {"leave": lambda self, memory, x, bounds: memory},
            "Undeclared.neighborhoods: it works on the residual stream, whose segments stand alone; leave it out",
        ),
        ({"write": Memory.write}, "Undeclared.write: it is not implemented; write it as infini_jax.memory.base.Memory says"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_when_it_is_registered(members, line):
    with pytest.raises(ConfigError) as error:
        MECHANISMS["undeclared"] = type("Undeclared", (Infini,), members)
    assert str(error.value).startswith(line)
    assert "undeclared" not in MECHANISMS


def test_what_a_mechanism_must_declare_is_named_with_what_to_write():
    class Bare(Memory):
        """It declares nothing."""

    with pytest.raises(ConfigError, match=r"^Bare.Config: it is not declared; set it to the class of its settings"):
        check_declared(Bare)
