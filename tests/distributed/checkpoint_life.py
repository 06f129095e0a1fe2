"""A life of a run, cut down to its checkpoints: a real process, the real store, tiny tensors.

It takes its address, resumes from the newest checkpoint, and saves once a step. What it learns it
appends to a file, a JSON object a line, so that a kill loses nothing that was told.
"""

import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gear_dist.checkpoints import owner
from gear_dist.checkpoints.resume import open_manager, open_resumed
from gear_dist.checkpoints.saving import Saver
from gear_dist.checkpoints.shards import TensorShard, replicated
from gear_dist.config.loading import load_config, to_dict
from gear_dist.errors import UserError
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage import s3, s3_client

NUM_ELEMENTS = 64
CRASHED = 1


def live(words: list[str], environment: dict[str, str], saves: int, told: Path) -> None:
    """Run to the end of `saves` steps; the process's exit code is the command's."""
    os.environ |= environment
    _hurry()

    def tell(**what: Any) -> None:
        with told.open("a") as file:
            file.write(json.dumps(what) + "\n")

    try:
        _live(words, saves, tell)
    except UserError as error:
        tell(error=str(error), kind=type(error).__name__, code=error.exit_code)
        sys.exit(error.exit_code)
    tell(done=True)


def _hurry() -> None:
    """The same patience in shorter seconds."""
    torch.set_num_threads(1)
    s3_client._MAX_WAIT_S = 0.02  # type: ignore[attr-defined]
    impatient = functools.partial(s3_client.make_client, read_timeout_s=0.4)
    s3.make_client = impatient  # type: ignore[attr-defined]
    owner.HEARTBEAT_S, owner.OWNER_TIMEOUT_S = 0.2, 1.0


def _live(words: list[str], saves: int, tell: Any) -> None:
    config = load_config(None, words)
    RunFolder.create(config.run.folder, config)
    store = open_manager(config)
    saver = Saver(store, lambda line: tell(said=line), config.checkpoint.max_failed_saves)
    reader = open_resumed(store, config)
    step = 0
    if reader is not None:
        with reader:
            step = reader.manifest.step
            found = reader.read("net.weights.a", (NUM_ELEMENTS,))
        assert torch.equal(found, _values(step)), "another step's tensors"
    tell(resumed=step, skipped_checkpoints=store.skipped_checkpoints)
    state = {"config": to_dict(config), "origin": "", "metrics": {}}
    for number in range(step + 1, step + saves + 1):
        saver.save(number, state, _pieces(number))
    saver.check_last()
    store.close()


def _values(step: int) -> torch.Tensor:
    return torch.arange(float(NUM_ELEMENTS)) + step


def _pieces(step: int) -> Iterator[TensorShard]:
    yield replicated("net.weights.a", _values(step))
