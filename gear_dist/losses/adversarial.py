"""The hinge losses of the discriminator, and the tokenizer's adversarial loss."""

import torch.nn.functional as F
from torch import Tensor


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0.5 (mean relu(1 - real) + mean relu(1 + fake)), fp32 scalar."""
    real, fake = real_logits.float(), fake_logits.float()
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """-mean of the discriminator's logits on reconstructions, fp32 scalar."""
    return -fake_logits.float().mean()
