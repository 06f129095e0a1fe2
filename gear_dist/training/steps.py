"""The updates of a training step, in the paper's order: tokenizer, discriminator, generator.

Each runs one forward and one backward of a micro-batch; nothing moves before all have run.
Shapes: B images, L tokens, N = B L, C code width, K codes. Source: arXiv 2606.32039.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from gear_dist.config.models import GeneratorConfig
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import AlignmentConfig, LossConfig
from gear_dist.losses.adversarial import adversarial_loss, hinge_loss
from gear_dist.losses.alignment import alignment_loss
from gear_dist.losses.entropy import entropy_loss
from gear_dist.losses.perceptual import LPIPS
from gear_dist.losses.reconstruction import gradient_loss, l1_loss
from gear_dist.models.discriminator.patchgan import MultiBatchDiscriminator
from gear_dist.models.generator import AlignedOutput, Condition, SoftTokens, StraightThroughTokens
from gear_dist.models.tokenizers import Quantized, TokenizerOutput
from gear_dist.training.engine import TrainingEngine
from gear_dist.training.networks import Networks

Metrics = dict[str, Tensor]


class MicroBatch(NamedTuple):
    """What the updates of one micro-batch share."""

    images: Tensor
    """(B, 3, H, W), [-1, 1]."""
    condition: Condition
    """Of each image."""
    features: Sequence[Tensor]
    """Teacher features (B, L, F), one a teacher."""
    drop: Sequence[bool]
    """Whether each image's condition is dropped where the generator learns; on the host."""


class TokenizerResult(NamedTuple):
    """What the other updates take from the tokenizer's, detached."""

    reconstruction: Tensor
    indices_BL: Tensor
    metrics: Metrics


def soft_tokens(quantized: Quantized, batch_size: int, temperature: float) -> SoftTokens:
    """A quantizer's tokens as the soft read-out takes them."""
    latents_BLC = quantized.latents_NC.view(batch_size, -1, quantized.latents_NC.shape[-1])
    log_sum_exp_BL = quantized.soft_log_sum_exp_N.view(batch_size, -1)
    return SoftTokens(latents_BLC, quantized.codes, log_sum_exp_BL, temperature)


def _reconstruction_terms(
    out: TokenizerOutput,
    images: Tensor,
    losses: LossConfig,
    *,
    entropy_weight: float,
    lpips: LPIPS | None,
) -> tuple[Tensor, Metrics]:
    """Pixel, quantizer and entropy terms: their weighted sum, and each by name."""
    quantized = out.quantized
    terms = {
        "l1": l1_loss(out.reconstruction, images),
        "vq": quantized.vq_loss,
        "commit": quantized.commit_loss,
        "entropy": entropy_loss(
            quantized.token_entropy, quantized.mean_probabilities_K, entropy_weight
        ),
    }
    total = losses.l1_weight * terms["l1"] + terms["vq"] + terms["commit"] + terms["entropy"]
    if losses.gradient_weight > 0:
        terms["gradient"] = gradient_loss(out.reconstruction, images)
        total = total + losses.gradient_weight * terms["gradient"]
    if lpips is not None:
        terms["lpips"] = lpips(out.reconstruction, images)
        total = total + losses.lpips_weight * terms["lpips"]
    return total, terms


def _generator_terms(
    forward: Callable[..., AlignedOutput],
    quantized: Quantized,
    batch: MicroBatch,
    alignment: AlignmentConfig,
) -> tuple[Tensor, Metrics]:
    """What reaches the tokenizer through the frozen generator: the weighted sum, and by name."""
    batch_size = batch.images.shape[0]
    soft = soft_tokens(quantized, batch_size, alignment.soft_temperature)
    terms: Metrics = {}
    if alignment.estimator == "soft":
        out = forward(soft.without_last(), batch.condition)
        total = torch.zeros((), device=batch.images.device)
    else:
        tokens = StraightThroughTokens(quantized.indices_N.view(batch_size, -1), soft)
        out = forward(tokens.without_last(), batch.condition, tokens)
        assert out.cross_entropy is not None
        total = terms["cross_entropy_straight_through"] = out.cross_entropy
    if alignment.soft_weight > 0:
        terms["align_soft"] = alignment_loss(out.projected, batch.features)
        total = total + alignment.soft_weight * terms["align_soft"]
    return total, terms


def tokenizer_step(
    tokenizer: TrainingEngine,
    discriminator: TrainingEngine,
    generator: TrainingEngine | None,
    batch: MicroBatch,
    config: RunConfig,
    *,
    adversarial: bool,
    lpips: LPIPS | None = None,
) -> TokenizerResult:
    """Update 1. With a generator (stage 1), `alignment.estimator` reaches the tokenizer through it.

    The frozen passes are held open until the backward has returned.

    Args:
        adversarial: whether the adversarial loss counts yet; the pass runs anyway, for the
            discriminator's batch statistics.
    """
    out: TokenizerOutput = tokenizer(batch.images)
    entropy_weight = config.tokenizer.entropy_weight
    total, terms = _reconstruction_terms(
        out, batch.images, config.losses, entropy_weight=entropy_weight, lpips=lpips
    )
    with ExitStack() as held:
        critic = held.enter_context(discriminator.frozen(training=True))
        terms["gan"] = adversarial_loss(critic(out.reconstruction)[0])
        if adversarial:
            total = total + config.discriminator.weight * terms["gan"]
        if generator is not None and config.alignment.reaches_tokenizer:
            forward = held.enter_context(generator.frozen(training=False))
            through, named = _generator_terms(forward, out.quantized, batch, config.alignment)
            total = total + through
            terms |= named
        tokenizer.backward(total)
    terms["tokenizer_loss"] = total
    indices_BL = out.quantized.indices_N.view(batch.images.shape[0], -1)
    metrics = {name: value.detach() for name, value in terms.items()}
    metrics |= out.quantized.diagnostics._asdict()
    return TokenizerResult(out.reconstruction.detach(), indices_BL, metrics)


def discriminator_step(
    discriminator: TrainingEngine, images: Tensor, reconstruction: Tensor, *, lecam_weight: float
) -> Metrics:
    """Update 2: hinge loss of two passes with their own batch statistics, and LeCam's penalty."""
    real, fake = discriminator(images, reconstruction)
    loss = hinge_loss(real, fake)
    terms: Metrics = {}
    if lecam_weight > 0:
        critic = discriminator.module
        assert isinstance(critic, MultiBatchDiscriminator)
        assert critic.lecam is not None
        terms["lecam"] = critic.lecam(real, fake)
        loss = loss + lecam_weight * terms["lecam"]
    discriminator.backward(loss)
    terms["discriminator_loss"] = loss
    return {name: value.detach() for name, value in terms.items()}


def kept_condition(batch: MicroBatch, generator: GeneratorConfig) -> Condition:
    """The conditions, the null condition where they are dropped."""
    return batch.condition.dropped(batch.drop, generator)


def generator_step(
    generator: TrainingEngine,
    indices_BL: Tensor,
    condition: Condition,
    features: Sequence[Tensor],
    *,
    hard_weight: float,
) -> Metrics:
    """Update 3: next-token cross-entropy and hard alignment, on detached indices."""
    out = generator(indices_BL[:, :-1], condition, indices_BL)
    loss, terms = out.cross_entropy, {"cross_entropy": out.cross_entropy}
    if hard_weight > 0:
        terms["align_hard"] = alignment_loss(out.projected, features)
        loss = loss + hard_weight * terms["align_hard"]
    generator.backward(loss)
    terms["generator_loss"] = loss
    return {name: value.detach() for name, value in terms.items()}


def train_micro_batch(
    networks: Networks,
    batch: MicroBatch,
    config: RunConfig,
    step: int,
    lpips: LPIPS | None,
) -> tuple[Metrics, Tensor]:
    """Forward and backward of every update that the stage has; nothing moves yet.

    Returns:
        Detached metrics, and the batch's indices (B, L).
    """
    engines = networks.engines
    metrics: Metrics = {}
    if networks.frozen_tokenizer is not None:
        indices_BL = networks.frozen_indices(batch.images)
    else:
        done = tokenizer_step(
            engines["tokenizer"],
            engines["discriminator"],
            engines.get("generator"),
            batch,
            config,
            adversarial=step >= config.discriminator.start_step,
            lpips=lpips,
        )
        indices_BL = done.indices_BL
        metrics |= done.metrics
        metrics |= discriminator_step(
            engines["discriminator"],
            batch.images,
            done.reconstruction,
            lecam_weight=config.discriminator.lecam_weight,
        )
    if "generator" in engines:
        metrics |= generator_step(
            engines["generator"],
            indices_BL,
            kept_condition(batch, config.generator),
            batch.features,
            hard_weight=config.alignment.hard_weight,
        )
    return metrics, indices_BL
