"""Reconstruction and sample grids at fixed images and seeds, as training goes."""

import torch

from gear_dist.config.schema import RunConfig
from gear_dist.data.first_batches import first_images
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.seeds import derive_seeds
from gear_dist.inference.weights import NetworkStates, split_states
from gear_dist.report.image_grid import pair_rows, save_grid
from gear_dist.runs.loggers import MetricsLog
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.caption_features import NUM_GRID_CAPTIONS
from gear_dist.training.conditions import Conditions

COLUMNS = 8
NUM_RECONSTRUCTIONS = 16
NUM_SAMPLES = NUM_GRID_CAPTIONS


class GridPainter:
    """Draws the run's grids from whole averaged weights. Rank 0 alone uses it."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        log: MetricsLog,
        device: torch.device,
        *,
        conditions: Conditions,
        num_classes: int,
    ):
        """Reads the images.

        Args:
            conditions: of the run.
            num_classes: classes that samples are asked for, those of the training corpus; 0: all
                that the generator has.

        Raises:
            DataError: the validation corpus is not there, or damaged.
        """
        self._config = config
        self._folder = folder
        self._log = log
        self._device = device
        # Read at once: a wrong data.validation should not wait for the end of the first stage.
        self._images = first_images(config.data, NUM_RECONSTRUCTIONS)
        # What sample grids show, in the grid's order.
        self.samples = conditions.samples(NUM_SAMPLES, num_classes or config.generator.num_classes)

    def paint(self, states: NetworkStates, step: int) -> None:
        """Originals over reconstructions, and samples where there is a generator."""
        pair = GearPipeline(self._config, split_states(states), self._device)
        images = self._images
        path = self._folder.reconstruction_grid_path(step)
        rebuilt = pair.reconstruct(images)
        save_grid(pair_rows(images.numpy(), rebuilt.numpy(), COLUMNS), path, COLUMNS)
        self._log.log_grid("reconstruction", path, step)
        if pair.generator is None:
            return
        path = self._folder.sample_grid_path(step)
        condition, captions = self.samples
        seeds = derive_seeds(self._config.run.seed, range(condition.num_images))
        save_grid(pair.generate(condition, seeds), path, COLUMNS, captions=captions)
        self._log.log_grid("samples", path, step)
