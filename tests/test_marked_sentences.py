"""Summaries from far back are learned with a memory and not with a window: the path from texts to ROUGE, on a made corpus."""

import dataclasses

import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.conditioned import ConditionedConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.evals.base import Subject
from infini_jax.evals.conditioned import GIVEN, OTHER, WITHHELD, ConditionedEvaluation
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.training.execute import execute
from infini_jax.training.trained import Trained


@pytest.mark.slow
def test_marked_sentences_are_learned_with_a_memory_and_not_with_a_window(tmp_path, monkeypatch):
    pytest.importorskip("rouge_score")
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    prepared, _ = prepare("marked_sentences", TokenizerSettings("sentencepiece", 480), jobs=1)
    model = ModelConfig(vocab=480, layers=1, d_model=64, heads=1, mlp_dim=128, segment=8, key_taps=2)
    base = RunConfig(
        model=model,
        data=ConditionedConfig(prepared.folder.name),
        train=TrainConfig(batch=8, sequence=136, learning_rate=1e-2),
        budget=Budget("steps", 900),
        evaluation=EvaluationConfig(documents=16),
    )
    memories = {"memory": GatedDeltaConfig(), "window": LocalConfig(window=8)}
    found = {}
    for name, memory in memories.items():
        run = dataclasses.replace(base, name=name, model=dataclasses.replace(model, memory=memory))
        execute(run, tmp_path / name, study="")
        asked = ConditionedEvaluation(new_tokens=24, rows=8)
        measures = asked.measure(Subject(run, Trained.open(tmp_path / name).params))
        found[name] = {(one.metric, *one.labels.values()): one.value for one in measures}
    assert found["memory"]["rouge2", GIVEN] > 0.7  # 1.00 when this was written
    assert found["memory"]["gain", WITHHELD] > 1.0
    assert found["memory"]["gain", OTHER] > 1.0
    assert found["window"]["rouge2", GIVEN] < 0.1  # no word of a sentence can be known
    assert found["window"]["loss", GIVEN] > 1.0
    assert abs(found["window"]["gain", OTHER]) < 0.1  # the context is out of its reach
