"""A folder with trained networks: a run folder, or what `import` and `export` write. No torch.

An imported or exported model is FOLDER/config.json, NETWORK.safetensors, README.md; config.json
holds sections of a configuration, under the names that a run file has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gear_dist.config.loading import load_config, to_dict
from gear_dist.config.schema import RunConfig, architecture_settings
from gear_dist.config.training import INIT_NETWORKS
from gear_dist.errors import ConfigError, DataError
from gear_dist.runs.run_folder import RunFolder
from gear_dist.storage.atomic import make_folder, write_file
from gear_dist.storage.json_files import to_json
from gear_dist.storage.paths import local_path

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
SECTIONS = ("tokenizer", "generator", "discriminator")
"""Sections of config.json that describe networks, beside the image size."""


class ModelFolder(NamedTuple):
    """Networks that are there, and the configuration that builds them."""

    path: Path
    config: RunConfig
    weights: dict[str, Path]
    """Safetensors file by network."""

    def require(self, network: str) -> Path:
        """The file of a network; DataError where there is none."""
        if network not in self.weights:
            found = ", ".join(self.weights) or "no weights yet"
            raise DataError(f"{self.path}: has no {network} (it has {found})")
        return self.weights[network]


def open_model(path: str | Path) -> ModelFolder:
    """Open a run folder or a model folder for reading.

    Raises:
        DataError: it is neither. ConfigError: its configuration does not fit this version.
    """
    path = local_path(path)
    if (path / CONFIG_NAME).is_file():
        return ModelFolder(path, load_config(path / CONFIG_NAME), _weights(path))
    if path.is_dir() and not (path / "config.yaml").is_file():
        raise DataError(
            f"{path}: neither a run folder (config.yaml) nor a model folder ({CONFIG_NAME}): "
            "`gear-dist import` makes one of a public checkpoint"
        )
    folder = RunFolder.open(path)
    return ModelFolder(folder.path, folder.read_config(), _weights(folder.weights))


def _weights(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.safetensors" for name in INIT_NETWORKS}
    return {name: file for name, file in files.items() if file.is_file()}


def create_model_folder(path: Path) -> None:
    """Make the folder of a new model.

    Raises:
        ConfigError: it holds something already. StorageError: it cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--out {path} exists and is not empty: name another folder")
    make_folder(path)


def write_model_config(path: Path, config: RunConfig, networks: Mapping[str, Any]) -> None:
    """Write config.json, what `load_config` builds these networks from.

    Last of all files, because it makes the folder a model folder.
    """
    settings = to_dict(config)
    node: dict[str, Any] = {"data": {"image_size": config.data.image_size}}
    # A generator alone still needs the number of codes and the tokens' grid.
    wanted = {"tokenizer", *networks} if "generator" in networks else set(networks)
    node |= {section: settings[section] for section in SECTIONS if section in wanted}
    if "generator" in networks:
        node["sampling"] = settings["sampling"]
        if config.generator.condition == "text":
            node["text_encoder"] = settings["text_encoder"]
    if "projectors" in networks:
        section, names = architecture_settings("projectors")
        node[section] = {name: settings[section][name] for name in names}
    write_file(path / CONFIG_NAME, (to_json(node, indent=2) + "\n").encode())
