"""Patch discriminator with batch norm over all ranks or group norm.

Shapes: B images, C channels, H x W positions.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from gear_dist.config.models import DiscriminatorConfig
from gear_dist.models.discriminator.lecam import LeCam
from gear_dist.models.tokenizers.blocks import GroupNorm

INIT_STD = 0.02
SLOPE = 0.2


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all ranks' images.

    torch's own refuses CPU tensors. Communicates in training where there are several ranks:
    one all-reduce of 2 C + 1 values forward, one backward. Computes in fp32, on x minus the
    running mean: the variance as E[x^2] - E[x]^2 then loses no digits to a large mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float()).to(x.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        origin = self.running_mean.clone()
        x = x - origin[None, :, None, None]
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), count])
        total = all_reduce(sums)
        channels = x.shape[1]
        size = total[-1].detach()
        mean = total[:channels] / size
        variance = total[channels:-1] / size - mean.square()
        self._track(mean.detach() + origin, variance.detach(), size)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return x * scale[None, :, None, None] + shift[None, :, None, None]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, size: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * size / (size - 1), self.momentum)


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) to a map of logits (B, 1, h, w). Source: PatchGAN, arXiv 1611.07004."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        channels = config.width
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        # Batch norm takes a channel's mean away, and a bias with it; group norm only a group's.
        bias = config.norm == "group"
        for i, wider in enumerate(config.layer_channels, 1):
            stride = 2 if i < config.num_layers else 1
            layers += [
                nn.Conv2d(channels, wider, 4, stride, 1, bias=bias),
                _build_norm(config, wider),
                nn.LeakyReLU(SLOPE),
            ]
            channels = wider
        self.main = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def _build_norm(config: DiscriminatorConfig, channels: int) -> nn.Module:
    if config.norm == "group":
        return GroupNorm(config.norm_groups, channels)
    return SyncBatchNorm(channels)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, INIT_STD)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, INIT_STD)
        nn.init.zeros_(module.bias)


class MultiBatchDiscriminator(nn.Module):
    """The discriminator as its engine trains it: several batches in one forward.

    An engine's forward may run once a micro-batch, and the update needs two passes with their
    own batch statistics.

    Attributes:
        lecam: its regularisation, with averages that are no part of the discriminator; or None.
    """

    def __init__(self, discriminator: PatchDiscriminator, lecam: LeCam | None = None):
        super().__init__()
        self.discriminator = discriminator
        self.lecam = lecam

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """One logit map a batch of images."""
        return tuple(self.discriminator(images) for images in batches)


def build_discriminator(config: DiscriminatorConfig) -> MultiBatchDiscriminator:
    """The discriminator of a configuration, randomly initialised, with what it is trained by."""
    lecam = LeCam(config.lecam_decay) if config.lecam_weight > 0 else None
    return MultiBatchDiscriminator(PatchDiscriminator(config), lecam)
