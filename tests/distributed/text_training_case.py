"""What workers do for the tests of training on captions."""

from pathlib import Path

import training_case as case

from gear_dist.config.schema import RunConfig
from gear_dist.errors import UserError
from gear_dist.models.text_encoders.words import count_words, write_vocabulary


def refusals(
    rank: int, world_size: int, configs: list[RunConfig], words: list[str]
) -> list[tuple[str, str]]:
    """Worker: how each run is refused with a vocabulary of other words: kind and message."""
    found = []
    for config in configs:
        write_vocabulary(Path(config.text_encoder.path), count_words(words, len(words)))
        try:
            case.train(config, rank, world_size)
        except UserError as error:
            found.append((type(error).__name__, str(error)))
    return found
