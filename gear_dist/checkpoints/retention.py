"""Which checkpoints stay."""

from collections.abc import Sequence

from gear_dist.checkpoints.layout import Published
from gear_dist.config import CheckpointConfig


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
            (item.manifest.facts.get("metrics", {}).get(config.best_metric), item.folder)
            for item in published
        ]
        known = [(score, folder) for score, folder in scores if score is not None]
        return kept | {folder for _, folder in sorted(known)[:1]}
