"""Reconstruction and sample grids at fixed images and seeds, as training goes."""

import torch

from gear_dist.config.data import DataConfig
from gear_dist.config.schema import RunConfig
from gear_dist.data.loader import build_loader
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.seeds import derive_seeds
from gear_dist.inference.weights import NetworkStates, split_states
from gear_dist.models.generator import ClassCondition
from gear_dist.report.image_grid import pair_rows, save_grid
from gear_dist.runs.loggers import MetricsLog
from gear_dist.runs.run_folder import RunFolder

COLUMNS = 8
NUM_RECONSTRUCTIONS = 16
NUM_SAMPLES = 64


def grid_labels(num_classes: int, count: int = NUM_SAMPLES) -> torch.Tensor:
    """Classes 0, 1, ... in turn, or spread evenly where there are more than images."""
    if num_classes <= count:
        return torch.arange(count) % num_classes
    return torch.arange(count) * num_classes // count


class GridPainter:
    """Draws the run's grids from whole averaged weights. Rank 0 alone uses it."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        log: MetricsLog,
        device: torch.device,
        *,
        num_classes: int,
    ):
        """Reads the images.

        Args:
            num_classes: classes that samples are asked for, those of the training corpus; 0: all
                that the generator has.

        Raises:
            DataError: the validation corpus is not there, or damaged.
        """
        self._config = config
        self._folder = folder
        self._log = log
        self._device = device
        self.labels = grid_labels(num_classes or config.generator.num_classes)
        """Classes of the sample grids, in the grid's order."""
        # Read at once: a wrong data.validation should not wait for the end of the first stage.
        self._images = first_images(config.data, NUM_RECONSTRUCTIONS)

    def paint(self, states: NetworkStates, step: int) -> None:
        """Originals over reconstructions, and samples where there is a generator."""
        pair = GearPipeline(self._config, split_states(states), self._device)
        images = self._images
        path = self._folder.reconstruction_grid_path(step)
        rebuilt = pair.reconstruct(images)
        save_grid(pair_rows(images.numpy(), rebuilt.numpy(), COLUMNS), path, COLUMNS)
        self._log.log_grid("reconstruction", path, step)
        if pair.generator is None or self._config.generator.condition == "text":
            return
        path = self._folder.sample_grid_path(step)
        seeds = derive_seeds(self._config.run.seed, range(len(self.labels)))
        save_grid(pair.generate(ClassCondition(self.labels), seeds), path, COLUMNS)
        self._log.log_grid("samples", path, step)


def first_images(data: DataConfig, count: int) -> torch.Tensor:
    """The first images of the validation corpus (else the training one), centre crops.

    Returns:
        uint8 (B, 3, H, W), B at most `count`.
    """
    loader = build_loader(
        data,
        data.validation or data.train,
        batch_size=1,
        rank=0,
        world_size=1,
        seed=0,
        num_classes=None,
    )
    try:
        return torch.cat([batch.images for batch in loader.validation_batches(count)])
    finally:
        loader.close()
