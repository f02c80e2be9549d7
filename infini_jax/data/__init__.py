"""Tasks and corpora by name: the settings that give the source of a run's training batches."""

from infini_jax.data.base import DataConfig
from infini_jax.data.conditioned import ConditionedConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.echo import EchoConfig
from infini_jax.data.haystack import HaystackConfig
from infini_jax.data.mad.compression import CompressionConfig
from infini_jax.data.mad.fuzzy_recall import FuzzyRecallConfig
from infini_jax.data.mad.in_context_recall import InContextRecallConfig
from infini_jax.data.mad.memorization import MemorizationConfig
from infini_jax.data.mad.noisy_recall import NoisyRecallConfig
from infini_jax.data.mad.selective_copying import SelectiveCopyingConfig
from infini_jax.data.mqar import MixedMqarConfig, MqarConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.data.sorting import SortingConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.data.zoology.compositional import CompositionalMqarConfig
from infini_jax.data.zoology.forgetting import ForgettingMqarConfig
from infini_jax.data.zoology.stacked import StackedMqarConfig

SOURCES: dict[str, type[DataConfig]] = {
    "mqar": MqarConfig,
    "mqar_mixed": MixedMqarConfig,
    "mqar_forgetting": ForgettingMqarConfig,
    "mqar_compositional": CompositionalMqarConfig,
    "mqar_stacked": StackedMqarConfig,
    "in_context_recall": InContextRecallConfig,
    "noisy_recall": NoisyRecallConfig,
    "fuzzy_recall": FuzzyRecallConfig,
    "selective_copying": SelectiveCopyingConfig,
    "compression": CompressionConfig,
    "memorization": MemorizationConfig,
    "passkey": PasskeyConfig,
    "haystack": HaystackConfig,
    "sorting": SortingConfig,
    "python_stdlib": StdlibConfig,
    "corpus": CorpusConfig,
    "conditioned": ConditionedConfig,
    "echo": EchoConfig,
}
"""Registry of tasks: name on the command line and in results -> class of its settings. Add your own task here."""
