"""Retention: which checkpoints are kept; deletes only what this run wrote."""

from collections.abc import Sequence

from gear_dist.checkpoints.layout import MANIFEST, Published, is_object, run_of
from gear_dist.checkpoints.listing import CheckpointListing, belongs, look
from gear_dist.config.run import CheckpointConfig
from gear_dist.storage.base import Storage


class Retention:
    """The newest ones, one every so many steps, and the best by a metric."""

    def __init__(self, config: CheckpointConfig):
        self._config = config

    def kept(self, published: Sequence[Published]) -> set[str]:
        """Folders to keep of published checkpoints, oldest first."""
        config = self._config
        kept = {item.folder for item in published[-config.keep_last :]}
        if every := config.keep_every_steps:
            kept |= {item.folder for item in published if item.manifest.step % every == 0}
        scores = [
            (item.manifest.state.get("metrics", {}).get(config.best_metric), item.folder)
            for item in published
        ]
        known = [(score, folder) for score, folder in scores if score is not None]
        return kept | {folder for _, folder in sorted(known)[:1]}

    def prune(self, storage: Storage, run: str) -> None:
        """Remove a run's checkpoints that are not kept, and its unfinished ones.

        What is not marked as the run's stays, and so does what is damaged: it does not count
        towards retention and may still be needed for inspection.

        Raises:
            UserError: something could not be read, and nothing was removed, or not removed.
        """
        contents = look(storage)
        whole = [item for item in contents.published if _is_own(item, run)]
        kept = self.kept(whole)
        dropped = [item.folder for item in whole if item.folder not in kept]
        dropped += [
            folder
            for folder in contents.unfinished
            # A listing that lacks the manifest is not enough to lose a checkpoint by.
            if run_of(folder) == run and not storage.exists(f"{folder}/{MANIFEST}")
        ]
        for folder in sorted(dropped):
            _remove(storage, folder, contents)


def _is_own(item: Published, run: str) -> bool:
    return bool(item.manifest.run) and belongs(item, run)


def _remove(storage: Storage, folder: str, contents: CheckpointListing) -> None:
    """Manifest first, so that a folder never looks whole; what users have put there stays."""
    names = contents.objects[folder]
    storage.delete(f"{folder}/{MANIFEST}")
    if all(is_object(name) for name in names):
        storage.delete_folder(folder)
        return
    for name in filter(is_object, names):
        storage.delete(f"{folder}/{name}")
