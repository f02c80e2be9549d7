"""Settings of the transformer, its memory included. Impossible values raise `ConfigError` before anything compiles."""

import dataclasses
import functools

from infini_jax.config.block import BlockConfig
from infini_jax.config.plain import mechanism_of
from infini_jax.errors import LATER, ConfigError, check_fields, require, require_positive
from infini_jax.layers.distances import ROTARY, RotaryConfig
from infini_jax.layers.precision import Compute
from infini_jax.layers.segment import length_with_landmarks
from infini_jax.memory import MECHANISMS, class_of, memory_of
from infini_jax.memory.base import LONGEST_SEGMENT, Dims, MemoryConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.neighborhood import neighborhood_bytes
from infini_jax.memory.segment_only import SegmentOnlyConfig
from infini_jax.memory.sizes import memory_bytes, memory_bytes_bf16

MOST_LAYERS = 10_000  # each of which is counted
WIDTH = "d_model"  # axis along which a memory grows with the whole model


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of a decoder-only transformer whose layers carry `memory`.

    Attributes:
      memory: mechanism and its settings.
      vocab: number of raw tokens in the vocabulary (landmarks get ids above it).
      layers: number of layers.
      d_model: width of the residual stream.
      heads: number of query heads.
      kv_heads: number of heads of keys, values and memory, each shared by heads / kv_heads query heads; 0 is as many as heads.
      key_dim: key dimension per head; 0 is d_model / heads.
      value_dim: value dimension per head; 0 is d_model / heads.
      mlp_dim: width of the MLP; 0 is 4 d_model.
      segment: number of raw tokens per segment.
      key_taps: number of tokens per key, mixed by a short causal convolution; 1 is no mixing, as in the papers.
      compute: type of activations, which determines the other types, see `infini_jax.layers.precision`.
      key_taps_own: initial weight of a key's own token in `key_taps`, from 0 to 1; the tokens before it share the rest evenly.
        None is the mean of all.
      block: parts of a layer, and of the embedding and head.
      rotary: rotary positions of queries and keys.
      elsewhere: memory of the layers that `memory.layers` leaves out; None is attention to the neighborhood only.
      rotary_elsewhere: rotary positions in those layers; None is `rotary`.
    """

    memory: MemoryConfig = InfiniConfig()
    vocab: int = 256
    layers: int = 2
    d_model: int = 64
    heads: int = 2
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    mlp_dim: int = 0
    segment: int = 64
    key_taps: int = 1
    compute: Compute = "float32"
    key_taps_own: float | None = dataclasses.field(default=None, metadata=LATER)  # study initial_values: no gain is settled
    block: BlockConfig = dataclasses.field(default=BlockConfig(), metadata=LATER)
    rotary: RotaryConfig = dataclasses.field(default=ROTARY, metadata=LATER)
    elsewhere: MemoryConfig | None = dataclasses.field(default=None, metadata=LATER)
    rotary_elsewhere: RotaryConfig | None = dataclasses.field(default=None, metadata=LATER)

    def __post_init__(self):
        check_fields("model", self)
        require_positive(
            "model",
            vocab=self.vocab,
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            segment=self.segment,
            key_taps=self.key_taps,
        )
        long = f"{self.segment} are too many"
        require(self.segment <= LONGEST_SEGMENT, "model.segment", long, f"give at most {LONGEST_SEGMENT}")
        require(self.layers <= MOST_LAYERS, "model.layers", f"{self.layers} are too many", f"give at most {MOST_LAYERS}")
        require(
            self.kv_heads >= 0 and self.heads % (self.kv_heads or 1) == 0,
            "model.kv_heads",
            f"{self.kv_heads} key heads cannot be shared evenly by {self.heads} heads",
            f"give a divisor of {self.heads}, or 0 for as many",
        )
        for field in ("key_dim", "value_dim"):
            size = getattr(self, field)
            require(size >= 0, f"model.{field}", f"{size} is negative", "give a size, or 0 for d_model / heads")
            require(
                size > 0 or self.d_model % self.heads == 0,
                "model.heads",
                f"{self.heads} heads do not divide d_model {self.d_model}",
                f"choose heads that divide {self.d_model}, or give model.{field}",
            )
        require(self.mlp_dim >= 0, "model.mlp_dim", f"{self.mlp_dim} is negative", "give a width, or 0 for 4 d_model")
        inserts = (self.memory.landmark_every is not None, any(self.memory.memory_tokens))
        require(not all(inserts), "memory", "it asks for landmarks and for memory tokens", "choose one of them")
        added = max(self.memory.memory_tokens)
        most = f"give at most {LONGEST_SEGMENT:,}"
        require(added <= LONGEST_SEGMENT, "memory.tokens", f"{added:,} are no part of a segment", most)
        dims = self.dims
        require(dims.key_dim % 2 == 0, "model.key_dim", f"{dims.key_dim} is odd and rotary turns pairs", "give an even size")
        check_layers(self.memory.layers, self.layers)
        own = self.key_taps_own
        require(
            own is None or (0 <= own <= 1 and self.key_taps > 1),
            "model.key_taps_own",
            f"{own} is not a weight among {self.key_taps} taps",
            "give 0 to 1 with at least 2 model.key_taps, or leave it out",
        )
        self.memory.check(dims)
        if self.memory.local != "own" or self.memory.main is not self.memory:
            memory_of(self.memory, dims)  # says whether the mechanism can have what is beside it
        if self.elsewhere is not None or self.rotary_elsewhere is not None:
            self._check_elsewhere()
        self._check_parts()

    def _check_elsewhere(self) -> None:
        field = "model.rotary_elsewhere" if self.elsewhere is None else "model.elsewhere"
        some = self.memory.layers is not None and self.memory_layers < self.layers
        require(some, field, "every layer carries the memory", "leave it out, or name some layers in memory.layers")
        if self.elsewhere is None:
            return
        problem = "they are those that memory.layers leaves out"
        require(self.elsewhere.layers is None, "model.elsewhere.layers", problem, "leave it out")
        is_cut = self.elsewhere.inserts_tokens or self.has_phase
        problem = "it inserts tokens into segments, or memory cuts them at landmarks"
        require(not is_cut, "model.elsewhere", problem, "choose another mechanism, or a segment of whole landmark blocks")
        self.elsewhere.check(self.dims_of(self.elsewhere))
        memory_of(self.elsewhere, self.dims_of(self.elsewhere))

    def _check_parts(self) -> None:
        """Raises `ConfigError` where the sizes or a mechanism cannot have a part of the block."""
        block, used = self.block, {self.layer_memory(layer) for layer in range(self.layers)} if self.has_parts else set()
        rows = block.learned_positions
        problem = f"{rows} rows are fewer than the {self.dims.segment} places of a segment"
        require(rows == 0 or rows >= self.dims.segment, "model.block.learned_positions", problem, f"give {self.dims.segment}")
        for memory in used:
            dims = self.dims_of(memory)
            dims.rotary.check(dims.key_dim)
            asked = {"attention_scale": block.attention_scale, "score_cap": block.score_cap, "rotary": dims.rotary != ROTARY}
            needed = [part for part, value in asked.items() if value]
            for one, part in ((one, part) for one in memory.parts for part in needed if part not in class_of(one).honors):
                name = type(one).__name__.removesuffix("Config")
                field = "model.rotary" if part == "rotary" else f"model.block.{part}"
                require(False, field, f"{name} reads its memory without it", "leave it out, or choose another mechanism")

    @property
    def has_parts(self) -> bool:
        """Whether attention has parts that not every mechanism can have."""
        return bool(
            self.block.attention_scale or self.block.score_cap or {self.rotary, self.rotary_elsewhere} - {ROTARY, None}
        )

    @property
    def dims(self) -> Dims:
        """Sizes of one attention layer."""
        return Dims(
            d_model=self.d_model,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            key_dim=self.key_dim or self.d_model // self.heads,
            value_dim=self.value_dim or self.d_model // self.heads,
            segment=length_with_landmarks(self.segment, self.memory.landmark_every) + sum(self.memory.memory_tokens),
            compute=self.compute,
            rotary=self.rotary,
            score_cap=self.block.score_cap,
            output_bias="output" in self.block.biases,
            mutual=self.memory.mutual_tokens,
        )

    def dims_of(self, memory: MemoryConfig) -> Dims:
        """Sizes of the layers that carry `memory`, one of those that `layer_memory` gives."""
        if self.rotary_elsewhere is None or memory == self.memory:
            return self.dims
        return dataclasses.replace(self.dims, rotary=self.rotary_elsewhere)

    @property
    def counts_places(self) -> bool:
        """Whether the carry knows how many tokens of the open document were read, for learned positions."""
        return bool(self.block.learned_positions) and self.memory.covers_document

    @property
    def has_phase(self) -> bool:
        """Whether landmarks fall at other places in each segment, because segments are no whole landmark blocks."""
        every = self.memory.landmark_every
        return every is not None and self.segment % every != 0

    @property
    def ids(self) -> int:
        """Number of rows of the embedding: raw tokens, and behind them those that are inserted into segments.

        Landmarks have one; memory tokens one each, which those before a segment share with those after it.
        """
        return self.vocab + max(self.memory.landmark_every is not None, *self.memory.memory_tokens)

    @property
    def mechanism(self) -> str:
        """The registry name of the memory."""
        return mechanism_of(self.memory.main)

    @property
    def takes_in_turn(self) -> bool:
        """Whether the layers can only take the segments of a stream in turn."""
        used = (self.memory,) if self.elsewhere is None else (self.memory, self.elsewhere)
        return any(memory_of(memory, self.dims).works_on_stream() for memory in used)

    def check_at_once(self, segments: int) -> None:
        """Checks for several segments at once: raises `ConfigError` where the memory takes those of a stream in turn."""
        if segments > 1 and self.takes_in_turn:
            problem = f"{self.mechanism} works on the residual stream, and takes the segments of a stream in turn"
            raise ConfigError("train.segments_per_step", problem, "give 1")

    def layer_memory(self, layer: int) -> MemoryConfig:
        """Settings of the memory that layer `layer` carries; those of no memory where `memory.layers` leaves it out."""
        return self.memory if self.memory.layers is None or layer in self.memory.layers else self._elsewhere

    @property
    def _elsewhere(self) -> MemoryConfig:
        return self.elsewhere or SegmentOnlyConfig(positions=self.memory.positions_elsewhere, local=self.memory.local)

    @property
    def memory_layers(self) -> int:
        """Number of layers that carry the memory."""
        return self.layers if self.memory.layers is None else len(set(self.memory.layers))

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory per sequence, all layers together, measured on shapes; those of a neighborhood are counted apart."""
        return self.memory_layers * layer_bytes(self.memory, self.dims) + self._bytes_elsewhere

    @property
    def _bytes_elsewhere(self) -> int:
        return (self.layers - self.memory_layers) * layer_bytes(self.elsewhere, self.dims) if self.elsewhere else 0

    @property
    def memory_bytes_bf16(self) -> int | None:
        """Bytes of memory per sequence with numbers at bfloat16, all layers; None where a mechanism cannot keep them so."""
        counts = ((self.memory, self.memory_layers), (self.elsewhere, self.layers - self.memory_layers))
        carried = [(memory_bytes_bf16(memory_of(memory, self.dims)), count) for memory, count in counts if memory and count]
        known = [size * count for size, count in carried if size is not None]
        return sum(known) if len(known) == len(carried) else None

    @property
    def neighborhood_bytes(self) -> int:
        """Bytes per sequence of what `memory.local` carries beside the memory, all layers together, measured on shapes."""
        counts = ((self.memory, self.memory_layers), (self._elsewhere, self.layers - self.memory_layers))
        return sum(count * neighborhood_bytes(memory_of(memory, self.dims)) for memory, count in counts if count)

    def bytes_holding(self, tokens: int) -> int:
        """Bytes per sequence of memories that hold a document of `tokens` tokens, all layers: see `Memory.holding`.

        Those of the model as it is where its mechanism's memory has one size, whatever it reads.
        """
        holding = MECHANISMS[self.mechanism].holding(self.memory.main, self.dims, tokens)
        return dataclasses.replace(self, memory=self.memory.with_main(holding)).memory_bytes

    def cache_bytes(self, tokens: int) -> int:
        """Bytes per sequence of a cache of all keys and values of `tokens` tokens, all layers: what memories compress.

        A cache holds one key and one value per key head, in the compute type.
        """
        d = self.dims
        return tokens * self.layers * d.kv_heads * (d.key_dim + d.value_dim) * d.dtype.itemsize

    def at_bytes(self, total: int, axis: str = "") -> "ModelConfig":
        """This model with the largest memory of at most `total` bytes per sequence, all layers but no neighborhood counted.

        Args:
          total: bytes per sequence.
          axis: one of the mechanism's `axes`, along which the memory grows; its first where none is named. Heads and their
            dims grow in the whole model, which then has more parameters and FLOPs per token. `d_model` is the axis `heads`
            with a residual stream and an MLP that are as many times wider: the embedding grows, the sizes of a head stay.

        Raises `ConfigError` where even the smallest memory does not fit, or the memory does not grow along `axis`.
        """
        mechanism = MECHANISMS[self.mechanism]
        require_positive("memory", bytes=total)
        if axis == WIDTH:
            return self._wider(self.at_bytes(total, "heads"))
        left = total - self._bytes_elsewhere
        problem = f"{total} are fewer than the layers without {self.mechanism} carry"
        require(left > 0, "memory bytes", problem, f"ask for more than {self._bytes_elsewhere}")
        main, dims = mechanism.at_bytes(self.memory.main, self.dims, left // self.memory_layers, axis)
        grown = dataclasses.replace(
            self,
            memory=self.memory.with_main(main),
            heads=dims.heads,
            kv_heads=self.kv_heads and dims.kv_heads,
            key_dim=dims.key_dim,
            value_dim=dims.value_dim,
        )
        problem = f"with larger heads the layers without {self.mechanism} carry {grown._bytes_elsewhere}"
        require(grown.memory_bytes <= total or grown.elsewhere is None, "memory axis", problem, "choose another axis")
        return grown

    def _wider(self, grown: "ModelConfig") -> "ModelConfig":
        """`grown`, which has more heads than this model, with a residual stream and an MLP in proportion."""
        return dataclasses.replace(
            grown,
            d_model=max(1, self.d_model * grown.heads // self.heads),
            mlp_dim=self.mlp_dim and max(1, self.mlp_dim * grown.heads // self.heads),
            key_dim=self.dims.key_dim,
            value_dim=self.dims.value_dim,
        )


def check_layers(layers: tuple[int, ...] | None, count: int) -> None:
    """Checks the layers that carry a memory, of `count`: raises `ConfigError` for one that does not exist, or for none."""
    for layer in layers or ():
        exists = 0 <= layer < count
        require(exists, "memory.layers", f"layer {layer} does not exist", f"name layers 0 to {count - 1}")
    require(layers != (), "memory.layers", "no layer carries the memory", "name at least one, or None for all")


@functools.lru_cache(maxsize=1024)
def layer_bytes(memory: MemoryConfig, dims: Dims) -> int:
    """Bytes of memory per sequence of one layer, measured on shapes once, the neighborhood left out."""
    return memory_bytes(memory_of(memory, dims))
