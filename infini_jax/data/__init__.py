"""Tasks and corpora by name: the settings that give the source of a run's training batches."""

from infini_jax.data.base import DataConfig
from infini_jax.data.conditioned import ConditionedConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.echo import EchoConfig
from infini_jax.data.haystack import HaystackConfig
from infini_jax.data.mqar import MixedMqarConfig, MqarConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.data.sorting import SortingConfig
from infini_jax.data.stdlib import StdlibConfig

SOURCES: dict[str, type[DataConfig]] = {
    "mqar": MqarConfig,
    "mqar_mixed": MixedMqarConfig,
    "passkey": PasskeyConfig,
    "haystack": HaystackConfig,
    "sorting": SortingConfig,
    "python_stdlib": StdlibConfig,
    "corpus": CorpusConfig,
    "conditioned": ConditionedConfig,
    "echo": EchoConfig,
}
"""Registry of tasks: name on the command line and in results -> class of its settings. Add your own task here."""
