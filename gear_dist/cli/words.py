"""The `words` command: the vocabulary of a corpus's captions."""

import argparse
import sys
from typing import Any

from gear_dist.cli.arguments import output_file, whole
from gear_dist.config.text import MAX_WORDS
from gear_dist.errors import DataError
from gear_dist.formatting import format_duration
from gear_dist.progress import Pace, StatusLine

SIZE = 1000
_EVERY_S = 5.0


def add_commands(subparsers: Any) -> None:
    """Add `words`."""
    parser = subparsers.add_parser(
        "words",
        help="write the vocabulary of a corpus's captions (for text_encoder.name=words)",
        description="Count the words of all captions of a sharded corpus and write the most "
        "frequent ones. With text_encoder.name=words each is a feature vector of its own, so that "
        "captions need no other model; the width is printed, for generator.text_width.",
    )
    parser.add_argument("corpus", help="sharded corpus: s3://BUCKET/PREFIX, file:///FOLDER or path")
    parser.add_argument("--out", type=output_file(), required=True, help="file to write (.json)")
    parser.add_argument("--endpoint", default="", help="S3 endpoint, as data.endpoint")
    parser.add_argument(
        "--size",
        type=whole(1, MAX_WORDS),
        default=SIZE,
        help=f"words to keep, the most frequent ones (default: {SIZE})",
    )
    parser.set_defaults(run=run_words)


def run_words(args: argparse.Namespace) -> int:
    """Write the vocabulary, and print what a run needs of it; 0.

    Raises:
        DataError: the corpus is not there, or has no captions. StorageError: nothing can be
            written.
    """
    from gear_dist.data.captions import iterate_captions
    from gear_dist.models.text_encoders.words import count_words, words_width, write_vocabulary

    line, pace = StatusLine(sys.stderr, every_s=_EVERY_S), Pace(0)

    def show(done: int, total: int) -> None:
        pace.total = total
        pace.add()
        line.update(lambda: f"{done} of {total} shards, {format_duration(pace.left_s)} left")

    vocabulary = count_words(iterate_captions(args.corpus, args.endpoint, show), args.size)
    line.close(erase=True)
    if not vocabulary.words:
        raise DataError(
            f"{args.corpus}: has no captions: shard it again from a source that has some "
            "(see `gear-dist shard --help`)"
        )
    write_vocabulary(args.out, vocabulary)
    print(
        f"{args.out}: {len(vocabulary.words):,} words: text_encoder.name=words "
        f"text_encoder.path={args.out} generator.text_width={words_width(vocabulary)}"
    )
    return 0
