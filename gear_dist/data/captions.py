"""All captions of a corpus, without decoding its images."""

from collections.abc import Callable, Iterator

from gear_dist.data.corpus import open_corpus
from gear_dist.data.shard_reader import UnreadableSampleError, read_shard


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
