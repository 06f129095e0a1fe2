"""A corpus and a run small enough to train under Ray in seconds."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

from gear_dist.cli.main import main

GEAR_DIST = (sys.executable, "-m", "gear_dist")

CONFIG = """\
run: {workers: 2, device: cpu}
data: {image_size: 16}
tokenizer:
  codebook_size: 32
  code_width: 4
  channels: 32
  channel_multipliers: [1, 1]
  num_res_blocks: 1
  latent_channels: 32
generator:
  width: 32
  num_layers: 2
  num_heads: 2
  num_classes: 16
  tap_layer: 1
discriminator: {width: 8, num_layers: 1}
losses: {lpips_weight: 0, gradient_weight: 1}
alignment: {soft_weight: 0, hard_weight: 0}
stages: {tokenizer: {steps: 4}, joint: {steps: 20}}
engine: {global_batch: 8}
log: {every_steps: 2}
"""


class Case(NamedTuple):
    """Where things are."""

    config: Path
    corpus: Path
    environment: dict[str, str]
    """For child processes: one thread each, no memory monitor."""

    def settings(self, root: Path) -> list[str]:
        """Overrides that name the corpus and the folder of run folders."""
        address = f"file://{self.corpus}"
        return [
            f"run.root={root}",
            f"data.train={address}/train",
            f"data.validation={address}/validation",
        ]


def make_case(folder: Path) -> Case:
    """Make the corpus by the real commands, and write the configuration."""
    images, corpus = folder / "images", folder / "corpus"
    sizes = ["--size", "16", "--train", "64", "--validation", "16", "--workers", "1"]
    assert main(["sample-corpus", str(images), *sizes]) == 0
    assert main(["shard", str(images), str(corpus), "--shard-samples", "32", "--workers", "1"]) == 0
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    # Only the commands' own folders are on the path, and no cluster or store of the user's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    scripts = str(Path(sys.executable).parent)
    environment |= {
        "PATH": os.pathsep.join([scripts, environment.get("PATH", "")]),
        "OMP_NUM_THREADS": "1",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return Case(config, corpus, environment)


def list_workers(driver: int) -> list[psutil.Process]:
    """The workers of a driver process that has a cluster of its own."""
    processes = psutil.Process(driver).children(recursive=True)
    return [process for process in processes if "RayTrainWorker" in process.name()]
