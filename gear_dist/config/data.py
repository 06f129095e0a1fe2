"""Settings of the data. No torch."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from gear_dist.config.checks import (
    MAX_SIDE,
    MAX_THREADS,
    MAX_WIDTH,
    require,
    require_at_least,
    require_at_most,
    require_colour,
    require_fraction,
)
from gear_dist.redaction import refuse_user


class CaptionTypes(NamedTuple):
    """Types of captions that are read of a corpus; none: all."""

    types: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    """How often each is drawn where a sample has several, in proportion; none: every caption
    equally."""


@dataclass(frozen=True)
class DataConfig:
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "endpoint",
        "prefetch_batches",
        "decode_threads",
        "read_attempts",
        "cache_folder",
        "cache_bytes",
        "max_bad_share",
        "shard_memory_bytes",
        "caption_features",
    )

    train: str = ""
    """Sharded training corpus: s3://bucket/prefix, file:///folder or a path."""
    mixture: tuple[str, ...] = ()
    """Further training corpora that are mixed with `train`."""
    mixture_weights: tuple[float, ...] = ()
    """Share of each batch for `train` and each corpus of `mixture`, in proportion; empty: the \
corpora are joined, so that an epoch shows every sample once."""
    validation: str = ""
    """Sharded validation corpus for grids and evaluation; empty: the training corpus."""
    endpoint: str = ""
    """S3 endpoint for s3:// addresses; empty: the AWS default or AWS_ENDPOINT_URL."""
    image_size: int = 256
    """Side length of the square crops in pixels."""
    crop: Literal["random", "centre"] = "random"
    """Where training's square crops are taken."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    max_pixels: int = 64_000_000
    """Largest width x height that is decoded; larger images are refused before decoding."""
    decoding: Literal["exact", "fast"] = "exact"
    """exact: pixels within one grey level of PIL's bicubic resize; fast: JPEGs of at least twice \
the size are decoded at a half, a quarter or an eighth, which changes pixels."""
    background: str = "white"
    """Colour that transparent pixels are composited over: a name, #rrggbb, or three numbers from \
0 to 255 with commas between them."""
    captions: Literal["off", "first", "random"] = "off"
    """Captions in the batches: none, each image's first, or one of its captions drawn again every \
epoch. Unless off, a sample may lack a class and must have a caption."""
    caption_types: tuple[str, ...] = ()
    """Types of captions that are read, where samples tell them (GPIC: tag, short, medium, long); \
without any of them a sample is not usable. Empty: all."""
    caption_weights: tuple[float, ...] = ()
    """With captions=random, how often each of caption_types is drawn where a sample has several, \
in proportion; empty: every caption equally."""
    mixture_captions: tuple[str, ...] = ()
    """Types of captions and their weights for `train` and each corpus of `mixture`, in place of \
caption_types and caption_weights: [short=1 long=3, tag, ""]; an empty one takes these."""
    subsets: tuple[str, ...] = ()
    """Parts of the corpora that are used, such as GPIC's nano, lite and full, where samples tell \
theirs (`split`); empty: all."""
    licenses: tuple[str, ...] = ()
    """Licences of images that are used, as patterns in any case: [cc0*, cc-by-4.0]; an image that \
states none is then left out. Empty: all."""
    min_side: int = 0
    """Images whose shorter side has fewer pixels are left out, of training and validation."""
    caption_features: str = ""
    """Local folder with the text encoder's features of all captions, which `gear-dist features` \
writes: training reads them in place of running the encoder. For small corpora; empty: none."""
    caption_dropout: float = 0.1
    """Probability that a caption is replaced by an empty one, for guidance. Where a run trains a \
generator on them, generator.class_dropout takes its place, with the same draws."""
    flip_sides: bool = False
    """Whether images are flipped whose caption says left or right, where captions are read."""
    prefetch_batches: int = 4
    """Batches that the loader's thread reads ahead."""
    shuffle_buffer_shards: int = 8
    """Shards whose samples are mixed at any time, over all workers: at most, and at least one a \
worker. A corpus of up to 256 MiB is kept in memory and mixed as a whole."""
    shard_memory_bytes: int = 4 << 30
    """Memory of a worker for shards, half of it for those that are mixed and half for the next. \
Where `shuffle_buffer_shards` of them need more, a run that starts mixes fewer; later the setting \
may change, and only limits how early shards are fetched."""
    lanes: int = 0
    """Equal segments of the epoch, of each of which every global batch takes the same number of \
samples; a worker reads only its own. A divisor of engine.global_batch, at best a multiple of the \
number of workers; 0: chosen when the run starts. They stay when the number of workers changes."""
    tail: Literal["drop", "repeat"] = "drop"
    """What happens to the samples of an epoch that do not fill a global batch. drop: left out, \
different ones each epoch; repeat: filled up with samples of the epoch's beginning."""
    decode_threads: int = 0
    """Threads of a worker that decode images; what it yields does not depend on it. 0: its share \
of the machine's cores but one, from 2 to 16."""
    max_bad_share: float = 0.001
    """Share of a worker's samples of an epoch that may be unusable: each is named in the run \
folder's bad_samples.txt and replaced by the next one of its shard; more of them end the run."""
    read_attempts: int = 3
    """Tries of a shard that cannot be read or is damaged, with growing pauses; on S3 each is \
itself up to ten requests."""
    cache_folder: str = ""
    """Local folder where shards are kept once they are read; empty: none."""
    cache_bytes: int = 100_000_000_000
    """Size up to which `cache_folder` grows; then the shards longest unused go."""

    def __post_init__(self) -> None:
        refuse_user("data.endpoint", self.endpoint, endpoint=True)
        require_at_least("data", self, 1, "image_size", "max_pixels", "shuffle_buffer_shards")
        require_at_least("data", self, 1, "prefetch_batches", "read_attempts")
        require_at_least("data", self, 1, "shard_memory_bytes")
        require_at_least("data", self, 0, "min_side", "lanes", "cache_bytes", "decode_threads")
        require_at_most("data", self, MAX_SIDE, "image_size", "min_side")
        require_at_most("data", self, MAX_WIDTH, "lanes")
        require_at_most("data", self, MAX_THREADS, "prefetch_batches", "decode_threads")
        require(0 <= self.flip <= 1, f"data.flip={self.flip} is out of range: use 0 to 1")
        require_fraction("data", self, "max_bad_share", "caption_dropout")
        require_colour("data.background", self.background)
        self._check_caption_types()
        weights = self.mixture_weights
        require(
            all(weight > 0 for weight in weights),
            f"data.mixture_weights={list(weights)} must all be > 0; leave a corpus out instead",
        )

        self._check_filters()

    def _check_filters(self) -> None:
        for name in ("subsets", "licenses"):
            values = getattr(self, name)
            require(
                all(value.strip() for value in values) and len(set(values)) == len(values),
                f"data.{name}={list(values)}: give each name once, and none that is empty",
            )
        texts, of = self.mixture_captions, len(self.train_addresses)
        require(
            len(texts) in (0, of),
            f"data.mixture_captions has {len(texts)} entries for {of} corpora (data.train and "
            'those of data.mixture): give one each ("" takes data.caption_types), or none',
        )
        for text in texts:
            _parse_caption_types(text)

    def captions_of(self, number: int, num_corpora: int) -> CaptionTypes:
        """Types of captions of a corpus that is read.

        Args:
            number: its place among the corpora.
            num_corpora: that are read together; validation's, which is alone, takes those of the
                one training corpus.
        """
        if self.captions == "off":
            return CaptionTypes()
        general = CaptionTypes(self.caption_types, self.caption_weights)
        if num_corpora != len(self.mixture_captions):
            return general
        return _parse_caption_types(self.mixture_captions[number]) or general

    def _check_caption_types(self) -> None:
        types, weights = self.caption_types, self.caption_weights
        require(
            len(set(types)) == len(types) and all(types),
            f"data.caption_types={list(types)}: give each type once",
        )
        require(
            not weights or (len(weights) == len(types) and all(weight > 0 for weight in weights)),
            f"data.caption_weights={list(weights)}: give a number above 0 for each of "
            f"data.caption_types={list(types)}, or none",
        )

    @property
    def train_addresses(self) -> tuple[str, ...]:
        """All training corpora."""
        return (self.train, *self.mixture)


def _parse_caption_types(text: str) -> CaptionTypes | None:
    """`short=1 long=3`, or types alone, which are drawn equally; None: an empty text.

    Raises:
        ConfigError: a type twice, or a weight that is no number above 0.
    """
    pairs = [word.partition("=") for word in text.split()]
    types = tuple(name for name, _, _ in pairs)
    weights = tuple(_weight(weight) if sign else 1.0 for _, sign, weight in pairs)
    require(
        all(types) and len(set(types)) == len(types) and all(0 < w < math.inf for w in weights),
        f"data.mixture_captions: {text!r} is not a list of types with weights above 0, each type "
        "once: write it as short=1 long=3",
    )
    return CaptionTypes(types, weights) if types else None


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
