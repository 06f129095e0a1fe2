"""The three quantizers behind one protocol: latents to codes, with losses and statistics.

Shapes: B images, N = B L tokens, K codes, C code width, h x w token grid.
Source: arXiv 2406.06525 (VQ), 2409.04410 (LFQ), 2412.02692 (IBQ), 2606.32039 (dual read-out).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import TokenizerConfig
from gear_dist.models.tokenizers.codes import Codes, LearnedCodes, SignCodes
from gear_kernels import Affinity, Assignment, assign, lfq_assign, straight_through_readout

NORMALISE_EPS = 1e-12


class Diagnostics(NamedTuple):
    """Scalars to watch, without gradient; by-products of the assignment."""

    effective_codes: Tensor
    """exp of the entropy of the mean probabilities, over this rank's tokens: 1 to K."""
    top1_probability: Tensor
    """Mean largest probability of softmax(affinity)."""
    top1_probability_soft: Tensor
    """The same at the soft temperature: near 1, the soft read-out is as good as hard."""


class Quantized(NamedTuple):
    """What one quantizer pass returns. Everything is fp32 whatever autocast says."""

    quantized_BChw: Tensor
    """What the decoder reads; straight-through gradient to the latents."""
    indices_N: Tensor
    """int64 codes, raster order, image-major."""
    latents_NC: Tensor
    """The latents that the affinity uses (l2-normalised for VQ), differentiable."""
    codes: Codes
    """The codes that the affinity uses, for read-outs of other tables."""
    soft_log_sum_exp_N: Tensor
    """Log-sum-exp of affinity / soft temperature, no gradient."""
    vq_loss: Tensor
    commit_loss: Tensor
    """Includes its weight."""
    token_entropy: Tensor
    """Mean over tokens of the entropy of softmax(affinity / entropy temperature)."""
    mean_probabilities_K: Tensor
    """Mean over this rank's tokens of that softmax."""
    diagnostics: Diagnostics


class QuantizerSettings(NamedTuple):
    """What all quantizers are built from."""

    num_codes: int
    width: int
    commit_weight: float
    entropy_temperature: float
    soft_temperature: float
    kernels: str

    @classmethod
    def of(
        cls, config: TokenizerConfig, soft_temperature: float, kernels: str
    ) -> "QuantizerSettings":
        """The settings of a configuration."""
        return cls(
            num_codes=config.codebook_size,
            width=config.code_width,
            commit_weight=config.commit_weight,
            entropy_temperature=config.entropy_temperature,
            soft_temperature=soft_temperature,
            kernels=kernels,
        )

    def assign_options(self) -> dict[str, Any]:
        """Keyword arguments that the assignments share."""
        return {
            "entropy_temperature": self.entropy_temperature,
            "soft_temperature": self.soft_temperature,
            "implementation": self.kernels,
        }


class Losses(NamedTuple):
    """A quantizer's own terms, weights included."""

    vq: Tensor
    commit: Tensor


class Quantizer(nn.Module):
    """Latents to codes and back: what every family implements."""

    def __init__(self, settings: QuantizerSettings):
        super().__init__()
        self.settings = settings

    def forward(self, z_BChw: Tensor) -> Quantized:
        """Quantise latents (B, C, h, w). Nothing (N, K) but by the reference kernels."""
        raise NotImplementedError

    def lookup(self, indices_Bhw: Tensor) -> Tensor:
        """Codes of given indices (B, h, w) as the decoder reads them, (B, C, h, w)."""
        raise NotImplementedError


class Codebook(nn.Module):
    """Learned code table under the key `embedding.weight`, (K, C), uniform in [-1/K, 1/K].

    Its own forward, so that ZeRO-3 gathers the weight there and other modules take an output.
    """

    def __init__(self, num_codes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))
        bound = 1.0 / num_codes
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self) -> Tensor:
        """The codes (K, C) in fp32, in memory of their own: ZeRO-3 releases the weight's."""
        return self.weight.float().clone()


class NormalisedCodebook(Codebook):
    """Codes of length 1."""

    def __init__(self, num_codes: int, width: int):
        super().__init__(num_codes, width)
        with torch.no_grad():
            self.weight.copy_(_normalised(self.weight))

    def forward(self) -> Tensor:
        """The l2-normalised codes (K, C)."""
        return _normalised(self.weight.float())


class VectorQuantizer(Quantizer):
    """VQ: nearest code by squared distance between l2-normalised latents and codes.

    s[n, k] = -|z_n - c_k|^2;  quantised = z + sg(c_idx - z);  vq = mean((c_idx - sg z)^2);
    commit = weight * mean((sg c_idx - z)^2).
    """

    def __init__(self, settings: QuantizerSettings):
        super().__init__(settings)
        self.embedding = NormalisedCodebook(settings.num_codes, settings.width)

    def forward(self, z_BChw: Tensor) -> Quantized:
        """See `Quantizer`."""
        with torch.autocast(z_BChw.device.type, enabled=False):
            z_NC = _normalised(_tokens(z_BChw))
            codes = LearnedCodes(self.embedding(), Affinity.SQUARED_DISTANCE)
            found = assign(
                z_NC, codes.codebook_KC, affinity=codes.affinity, **self.settings.assign_options()
            )
            code_NC = F.embedding(found.indices_N, codes.codebook_KC)
            losses = Losses(
                vq=F.mse_loss(code_NC, z_NC.detach()),
                commit=self.settings.commit_weight * F.mse_loss(z_NC, code_NC.detach()),
            )
            straight_NC = z_NC + (code_NC - z_NC).detach()
            return _quantized(_grid(straight_NC, z_BChw), z_NC, codes, found, losses)

    def lookup(self, indices_Bhw: Tensor) -> Tensor:
        """See `Quantizer`."""
        return F.embedding(indices_Bhw, self.embedding()).permute(0, 3, 1, 2)


class LookupFreeQuantizer(Quantizer):
    """LFQ: a bit for the sign of each channel; no codebook is learned and z is not normalised.

    s[n, k] = 2 z_n.b_k;  quantised = z + sg(sign(z) - z), sign(0) = -1;  no vq loss;
    commit = weight * mean((z - sg sign(z))^2).
    """

    def forward(self, z_BChw: Tensor) -> Quantized:
        """See `Quantizer`."""
        with torch.autocast(z_BChw.device.type, enabled=False):
            z_NC = _tokens(z_BChw)
            found = lfq_assign(z_NC, **self.settings.assign_options())
            sign_NC = torch.where(z_NC > 0, 1.0, -1.0)
            losses = Losses(
                vq=torch.zeros((), device=z_NC.device),
                commit=self.settings.commit_weight * F.mse_loss(z_NC, sign_NC),
            )
            straight_NC = z_NC + (sign_NC - z_NC).detach()
            codes = SignCodes(self.settings.width)
            return _quantized(_grid(straight_NC, z_BChw), z_NC, codes, found, losses)

    def lookup(self, indices_Bhw: Tensor) -> Tensor:
        """See `Quantizer`."""
        bits = torch.arange(self.settings.width, device=indices_Bhw.device)
        on_BhwC = (indices_Bhw[..., None] >> bits) & 1
        return (2.0 * on_BhwC - 1.0).permute(0, 3, 1, 2)


class IndexBackpropagationQuantizer(Quantizer):
    """IBQ: the gradient of the hard one-hot is that of softmax(s), for latents and all codes.

    s[n, k] = z_n.c_k, nothing normalised; q = onehot_st @ codebook with onehot_st = hard +
    softmax(s) - sg softmax(s);  vq = mean((q - z)^2) + mean((sg hardq - z)^2) + weight *
    mean((hardq - sg z)^2), the commitment included, so commit = 0.
    """

    def __init__(self, settings: QuantizerSettings):
        super().__init__(settings)
        self.embedding = Codebook(settings.num_codes, settings.width)

    def forward(self, z_BChw: Tensor) -> Quantized:
        """See `Quantizer`."""
        with torch.autocast(z_BChw.device.type, enabled=False):
            z_NC = _tokens(z_BChw)
            codes = LearnedCodes(self.embedding(), Affinity.INNER_PRODUCT)
            codebook_KC = codes.codebook_KC
            found = assign(
                z_NC, codebook_KC, affinity=codes.affinity, **self.settings.assign_options()
            )
            straight_NC = straight_through_readout(
                z_NC,
                codebook_KC,
                codebook_KC,
                found.indices_N,
                affinity=codes.affinity,
                implementation=self.settings.kernels,
            )
            code_NC = F.embedding(found.indices_N, codebook_KC)
            losses = Losses(
                vq=F.mse_loss(straight_NC, z_NC)
                + F.mse_loss(z_NC, code_NC.detach())
                + self.settings.commit_weight * F.mse_loss(code_NC, z_NC.detach()),
                commit=torch.zeros((), device=z_NC.device),
            )
            return _quantized(_grid(straight_NC, z_BChw), z_NC, codes, found, losses)

    def lookup(self, indices_Bhw: Tensor) -> Tensor:
        """See `Quantizer`."""
        return F.embedding(indices_Bhw, self.embedding()).permute(0, 3, 1, 2)


def _normalised(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=NORMALISE_EPS)


def _tokens(z_BChw: Tensor) -> Tensor:
    """(N, C) in fp32, raster order, image-major."""
    return z_BChw.float().permute(0, 2, 3, 1).reshape(-1, z_BChw.shape[1])


def _grid(values_NC: Tensor, like_BChw: Tensor) -> Tensor:
    """(N, C) back to (B, C, h, w)."""
    batch, width, rows, columns = like_BChw.shape
    return values_NC.view(batch, rows, columns, width).permute(0, 3, 1, 2)


def _quantized(
    quantized_BChw: Tensor, z_NC: Tensor, codes: Codes, found: Assignment, losses: Losses
) -> Quantized:
    return Quantized(
        quantized_BChw=quantized_BChw,
        indices_N=found.indices_N,
        latents_NC=z_NC,
        codes=codes,
        soft_log_sum_exp_N=found.soft_log_sum_exp_N,
        vq_loss=losses.vq,
        commit_loss=losses.commit,
        token_entropy=found.token_entropy,
        mean_probabilities_K=found.mean_probabilities_K,
        diagnostics=Diagnostics(
            found.effective_codes, found.top1_probability, found.top1_probability_soft
        ),
    )
