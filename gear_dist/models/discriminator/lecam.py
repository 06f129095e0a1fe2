"""LeCam regularisation of a discriminator. Source: arXiv 2104.03310."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.distributed import collectives


class LeCam(nn.Module):
    """Holds logits on images near the average of those on reconstructions, and the reverse.

    penalty = mean(relu(real - fake_average)^2) + mean(relu(real_average - fake)^2)

    Both averages are exponential and moving, of the mean logits of all ranks; they begin at 0, and
    move in every call, before they are compared with.
    """

    real_average: Tensor
    fake_average: Tensor

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """fp32 scalar, of this rank's logits. One all-reduce of two numbers, without a gradient.

        Args:
            real_logits: on images, any shape, the same on every rank.
            fake_logits: on reconstructions, likewise.
        """
        real, fake = real_logits.float(), fake_logits.float()
        self._track(real, fake)
        above = F.relu(real - self.fake_average).square().mean()
        below = F.relu(self.real_average - fake).square().mean()
        return above + below

    @torch.no_grad()
    def _track(self, real: Tensor, fake: Tensor) -> None:
        means = collectives.mean_over_ranks(torch.stack([real.mean(), fake.mean()]))
        self.real_average.lerp_(means[0], 1 - self.decay)
        self.fake_average.lerp_(means[1], 1 - self.decay)
