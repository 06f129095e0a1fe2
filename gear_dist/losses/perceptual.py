"""LPIPS: squared differences of unit-normalised VGG16 features through learned 1x1 heads.

Shapes: B images, H x W pixels in [-1, 1]. Source: arXiv 1801.03924.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.training import LossConfig
from gear_dist.errors import ConfigError
from gear_dist.storage.file_kinds import not_a_checkpoint
from gear_dist.storage.paths import local_path

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
STAGE_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
NORM_EPS = 1e-10


class LPIPS(nn.Module):
    """Distance between images, the mean over the batch of the spatial means' sum. Frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        stages, channels = [], 3
        for widths in STAGE_WIDTHS:
            sizes = [channels, *widths]
            convs = (nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
            stages.append(nn.Sequential(*(nn.Sequential(conv, nn.ReLU()) for conv in convs)))
            channels = widths[-1]
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(
            nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in STAGE_WIDTHS
        )
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of the five ReLU stages."""
        x = (images - self.shift) / self.scale
        outputs: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i > 0 else x)
            outputs.append(x)
        return outputs

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) twice to an fp32 scalar; gradient to the first."""
        with torch.no_grad():
            wanted = self.features(images)
        total = reconstruction.new_zeros((), dtype=torch.float32)
        for ours, theirs, head in zip(
            self.features(reconstruction), wanted, self.heads, strict=True
        ):
            difference = (_unit(ours) - _unit(theirs)).square()
            total = total + head(difference).float().mean()
        return total


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + NORM_EPS)


def load_lpips(config: LossConfig) -> LPIPS | None:
    """LPIPS with the public weights, or None where its weight is 0.

    Raises:
        ConfigError: a file is missing, is not plain tensors, or has another layout.
    """
    if config.lpips_weight == 0:
        return None
    model = LPIPS()
    convs: list[nn.Module] = [m for m in model.stages.modules() if isinstance(m, nn.Conv2d)]
    vgg = _read(config.lpips_vgg16_path, "losses.lpips_vgg16_path")
    indices = sorted({int(k.split(".")[1]) for k in vgg if k.startswith("features.")})
    layers = [f"features.{i}" for i in indices]
    _copy(convs, vgg, layers, "losses.lpips_vgg16_path", config.lpips_vgg16_path)
    heads = _read(config.lpips_heads_path, "losses.lpips_heads_path")
    names = [f"lin{i}.model.1" for i in range(len(model.heads))]
    _copy(list(model.heads), heads, names, "losses.lpips_heads_path", config.lpips_heads_path)
    return model


def _read(path: str, setting: str) -> dict[str, Tensor]:
    file = local_path(path, setting)
    try:
        if kind := not_a_checkpoint(file):
            raise ConfigError(f"{setting}={path}: {kind}")
        return torch.load(file, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{setting}={path}: cannot be read: {error.strerror}; download it, or train without "
            "LPIPS: losses.lpips_weight=0 losses.gradient_weight=1"
        ) from None
    except Exception:  # torch's reader ends in any way, mostly with advice to run what it holds
        raise ConfigError(f"{setting}={path}: not a readable file of tensors") from None


def _copy(
    modules: list[nn.Module], state: dict[str, Tensor], names: list[str], setting: str, path: str
) -> None:
    if len(names) != len(modules):
        raise ConfigError(
            f"{setting}={path}: {len(names)} layers found, {len(modules)} expected: give VGG16's"
        )
    for module, name in zip(modules, names, strict=True):
        for key, target in module.state_dict().items():
            value = state.get(f"{name}.{key}")
            if value is None or value.shape != target.shape:
                found = "nothing" if value is None else tuple(value.shape)
                raise ConfigError(
                    f"{setting}={path}: {name}.{key} should be {tuple(target.shape)}, found {found}"
                )
            target.copy_(value)
