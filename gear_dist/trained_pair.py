"""A trained tokenizer and generator in use: reconstruction and sampling, without engines.

Shapes: B images, H x W pixels, L tokens.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gear_dist.config import RunConfig, SamplingConfig, to_dict
from gear_dist.errors import DataError
from gear_dist.generator import Generator, build_generator, sample
from gear_dist.networks import NetworkStates
from gear_dist.pixel_range import to_model_range, to_u8
from gear_dist.run_folder import RunFolder
from gear_dist.storage import write_file
from gear_dist.tokenizers import Tokenizer, build_tokenizer

GENERATOR_PREFIX = "generator."
CHUNK = 64


def save_weights(
    folder: RunFolder, states: NetworkStates, config: RunConfig, step: int
) -> list[Path]:
    """Write tokenizer and generator (without projectors) as safetensors, each atomically.

    Keys are those of the public checkpoints; the metadata holds the configuration and the step.
    """
    metadata = {"config": json.dumps(to_dict(config)), "step": str(step), "format": "pt"}
    paths = []
    for name in ("tokenizer", "generator"):
        if name not in states:
            continue
        state = states[name]
        if name == "generator":
            state = _generator_part(state)
        path = folder.weights / f"{name}.safetensors"
        tensors = {key: value.contiguous() for key, value in state.items()}
        write_file(path, save(tensors, metadata=metadata))
        paths.append(path)
    return paths


def _generator_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(GENERATOR_PREFIX): value
        for key, value in state.items()
        if key.startswith(GENERATOR_PREFIX)
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such weights; has the run reached its first checkpoint?"
        ) from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable weights: {error}") from None


class TrainedPair:
    """Averaged weights of a run, in evaluation mode; the generator may be absent."""

    def __init__(self, config: RunConfig, states: NetworkStates, device: torch.device):
        """Args: states: whole networks by name, "generator" with or without projectors."""
        self.config = config
        self.device = device
        self.tokenizer: Tokenizer = build_tokenizer(
            config.tokenizer,
            soft_temperature=config.alignment.soft_temperature,
            kernels=config.engine.kernels,
        )
        self.tokenizer.load_state_dict(states["tokenizer"])
        self.tokenizer.to(device).eval()
        self.generator: Generator | None = None
        if "generator" in states:
            state = states["generator"]
            self.generator = build_generator(config)
            self.generator.load_state_dict(_generator_part(state) or state)
            self.generator.to(device).eval()

    @classmethod
    def load(cls, folder: RunFolder, device: torch.device) -> "TrainedPair":
        """Read a run folder's weights.

        Raises:
            DataError: it has none yet, or they do not fit its configuration.
        """
        config = folder.read_config()
        states = {"tokenizer": _read_weights(folder.weights / "tokenizer.safetensors")}
        generator = folder.weights / "generator.safetensors"
        if generator.exists():
            states["generator"] = _read_weights(generator)
        try:
            return cls(config, states, device)
        except RuntimeError as error:
            detail = str(error).splitlines()[0]
            raise DataError(f"{folder.weights}: weights do not fit config.yaml: {detail}") from None

    @torch.no_grad()
    def reconstruct(self, images_u8: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) through the tokenizer and back, uint8 on the CPU."""
        parts = [
            self.tokenizer(to_model_range(chunk.to(self.device))).reconstruction
            for chunk in images_u8.split(CHUNK)
        ]
        return to_u8(torch.cat(parts))

    @torch.no_grad()
    def generate(
        self, labels_B: Tensor, seed: int, sampling: SamplingConfig | None = None
    ) -> Tensor:
        """Images of the given classes, uint8 (B, 3, H, W) on the CPU; a function of the seed.

        Raises:
            DataError: the run has no generator yet.
            ConfigError: a class is out of range, or guidance is asked without a null class.
        """
        if self.generator is None:
            raise DataError("this run has trained no generator yet (stages.tokenizer only)")
        sampling = sampling or self.config.sampling
        random = torch.Generator(self.device).manual_seed(seed)
        parts = []
        for labels in labels_B.split(CHUNK):
            indices = sample(self.generator, labels.to(self.device), sampling, random)
            parts.append(self.tokenizer.decode(indices))
        return to_u8(torch.cat(parts))
