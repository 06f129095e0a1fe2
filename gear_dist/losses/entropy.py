"""The codebook's entropy term over all ranks' tokens.

Shapes: K codes. Source: arXiv 2310.05737; over ranks as in arXiv 2606.32039.
"""

import torch
import torch.distributed as dist
from torch import Tensor

EPS = 1e-5


def mean_over_ranks_straight_through(mean_K: Tensor) -> Tensor:
    """Forward: the mean over ranks; backward: this rank's own, so that averaging is exact.

    Communicates: one all-reduce of K values, without gradient. Every rank must hold equally many
    tokens.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mean_K
    everywhere = mean_K.detach().clone()
    dist.all_reduce(everywhere)
    return mean_K + (everywhere / dist.get_world_size() - mean_K).detach()


def entropy_loss(token_entropy: Tensor, mean_probabilities_K: Tensor, weight: float) -> Tensor:
    """weight * (mean_n H(p_n) - H(mean_n p_n)): confident assignments, an evenly used codebook."""
    mean_K = mean_over_ranks_straight_through(mean_probabilities_K)
    average_entropy = -(mean_K * torch.log(mean_K + EPS)).sum()
    return weight * (token_entropy - average_entropy)
