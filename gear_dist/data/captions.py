"""All captions of a corpus, without decoding its images."""

from collections.abc import Callable, Iterator, Sequence

from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import Corpus, open_corpus
from gear_dist.data.selection import Selection
from gear_dist.data.shard_reader import Shard, TypedCaption, UnreadableSampleError, read_shard


def usable_captions(shard: Shard, row: int, types: Sequence[str]) -> Sequence[TypedCaption]:
    """The captions of a sample that a run may draw.

    Args:
        shard: it.
        row: of the sample.
        types: those that are read; none: all.

    Raises:
        UnreadableSampleError: see `Shard.typed_captions`.
    """
    if not types:
        return [TypedCaption("", text) for text in shard.captions(row)]
    return [caption for caption in shard.typed_captions(row) if caption.kind in types]


def iterate_drawn_captions(
    corpora: Sequence[Corpus],
    selection: Selection,
    data: DataConfig,
    on_shard: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[str]:
    """Every caption that a run can meet in its corpora, with its filters and types.

    Args:
        corpora: in the order of the settings.
        selection: what is taken of them.
        data: settings of the run.
        on_shard: told of the shards that are read, and of how many there are.

    Raises:
        DataError: a shard is damaged.
    """
    sources = [
        (corpus.storage, info, data.captions_of(number, len(corpora)).types)
        for number, corpus in enumerate(corpora)
        for info in corpus.manifest.shards
    ]
    for number, (storage, info, types) in enumerate(sources):
        taken = selection.rows(number)
        if taken is None or len(taken):
            shard = read_shard(storage, info)
            for row in range(len(shard.keys)) if taken is None else taken.tolist():
                try:
                    found = usable_captions(shard, row, types)
                except UnreadableSampleError:
                    continue  # training names and replaces it
                yield from (c.text for c in (found[:1] if data.captions == "first" else found))
        on_shard(number + 1, len(sources))


def iterate_captions(
    address: str, endpoint: str = "", on_shard: Callable[[int, int], None] = lambda done, of: None
) -> Iterator[str]:
    """Every caption of every sample, shard by shard; unreadable ones are left out.

    Args:
        address: the sharded corpus.
        endpoint: of S3.
        on_shard: told of the shards that are read, and of how many there are.

    Raises:
        DataError: the corpus is not there, or a shard is damaged.
    """
    storage, manifest = open_corpus(address, endpoint)
    for number, info in enumerate(manifest.shards):
        shard = read_shard(storage, info)
        for row in range(len(shard.keys)):
            try:
                yield from shard.captions(row)
            except UnreadableSampleError:
                continue  # training names and replaces it
        on_shard(number + 1, len(manifest.shards))


def iterate_first_captions(corpus: Corpus) -> Iterator[str]:
    """The first caption of each sample in the corpus's order, on one line; unreadable ones and
    samples without any are left out.

    Raises:
        DataError: a shard is damaged.
    """
    for info in corpus.manifest.shards:
        shard = read_shard(corpus.storage, info)
        for row in range(len(shard.keys)):
            try:
                captions = shard.captions(row)
            except UnreadableSampleError:
                continue
            if captions and (line := " ".join(captions[0].split())):
                yield line
