"""Quantizers: latents to codes, with the losses and statistics of the assignment.

Shapes: B images, N = B L tokens, K codes, C code width, h x w token grid.
Source: arXiv 2406.06525 (VQ); arXiv 2606.32039 (dual read-out).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_kernels import assign

NORMALISE_EPS = 1e-12


class Quantized(NamedTuple):
    """What one quantizer pass returns. Everything is fp32 whatever autocast says."""

    quantized_BChw: Tensor
    """What the decoder reads; straight-through gradient to the latents."""
    indices_N: Tensor
    """int64 codes, raster order, image-major."""
    latents_NC: Tensor
    """The latents that the affinity uses (l2-normalised for VQ), differentiable."""
    codebook_KC: Tensor
    """The codes that the affinity uses, a differentiable output and never the parameter."""
    soft_log_sum_exp_N: Tensor
    """Log-sum-exp of affinity / soft temperature, no gradient."""
    vq_loss: Tensor
    commit_loss: Tensor
    """Includes its weight."""
    token_entropy: Tensor
    """Mean over tokens of the entropy of softmax(affinity / entropy temperature)."""
    mean_probabilities_K: Tensor
    """Mean over this rank's tokens of that softmax."""


class Codebook(nn.Module):
    """Learned code table under the key `embedding.weight`, (K, C)."""

    def __init__(self, num_codes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))
        bound = 1.0 / num_codes
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            self.weight.copy_(F.normalize(self.weight, dim=-1, eps=NORMALISE_EPS))

    def forward(self) -> Tensor:
        """The l2-normalised codes (K, C); its own forward, so that ZeRO-3 gathers the weight."""
        return F.normalize(self.weight.float(), dim=-1, eps=NORMALISE_EPS)


class VectorQuantizer(nn.Module):
    """Nearest code by squared distance between l2-normalised latents and codes.

    affinity s[n, k] = -|z_n - c_k|^2;  index = argmax_k s[n, k], ties to the lowest.
    """

    def __init__(
        self,
        num_codes: int,
        width: int,
        *,
        commit_weight: float,
        entropy_temperature: float,
        soft_temperature: float,
        kernels: str = "auto",
    ):
        super().__init__()
        self.embedding = Codebook(num_codes, width)
        self.commit_weight = commit_weight
        self.entropy_temperature = entropy_temperature
        self.soft_temperature = soft_temperature
        self.kernels = kernels

    def forward(self, z_BChw: Tensor) -> Quantized:
        """Quantise latents (B, C, h, w). Allocates no (N, K) matrix with the fused kernels."""
        with torch.autocast(z_BChw.device.type, enabled=False):
            batch, width, rows, columns = z_BChw.shape
            flat_NC = z_BChw.float().permute(0, 2, 3, 1).reshape(-1, width)
            z_NC = F.normalize(flat_NC, dim=-1, eps=NORMALISE_EPS)
            codes_KC = self.embedding()
            found = assign(
                z_NC,
                codes_KC,
                entropy_temperature=self.entropy_temperature,
                soft_temperature=self.soft_temperature,
                implementation=self.kernels,
            )
            code_NC = F.embedding(found.indices_N, codes_KC)
            straight_NC = z_NC + (code_NC - z_NC).detach()
            straight = straight_NC.view(batch, rows, columns, width).permute(0, 3, 1, 2)
            return Quantized(
                quantized_BChw=straight,
                indices_N=found.indices_N,
                latents_NC=z_NC,
                codebook_KC=codes_KC,
                soft_log_sum_exp_N=found.soft_log_sum_exp_N,
                vq_loss=F.mse_loss(code_NC, z_NC.detach()),
                commit_loss=self.commit_weight * F.mse_loss(z_NC, code_NC.detach()),
                token_entropy=found.token_entropy,
                mean_probabilities_K=found.mean_probabilities_K,
            )

    def lookup(self, indices_Bhw: Tensor) -> Tensor:
        """Codes of given indices (B, h, w) as the decoder reads them, (B, C, h, w)."""
        return F.embedding(indices_Bhw, self.embedding()).permute(0, 3, 1, 2)
