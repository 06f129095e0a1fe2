"""Sampling images' indices with guidance and a key-value cache.

Shapes: B images, L tokens, K codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.draws import draw_codes
from gear_dist.inference.seeds import token_uniforms
from gear_dist.models.generator import begin_decoding
from gear_dist.models.generator.conditioning import Condition
from gear_dist.models.generator.transformer import Generator


@torch.no_grad()
def sample(
    generator: Generator, condition: Condition, seeds: Sequence[int], config: SamplingConfig
) -> Tensor:
    """Indices (B, L) of an image for each condition and its seed.

    Guidance s at every token: logits = null + s (condition - null), by a doubled batch; s = 1 runs
    the conditional half only.

    Raises:
        ConfigError: guidance is asked of a generator without a null class; a seed that is none.
    """
    guided = config.guidance != 1
    if guided and generator.config.class_dropout == 0:
        raise ConfigError(
            f"sampling.guidance={config.guidance} needs a null class, and this generator was "
            "trained with generator.class_dropout=0: use sampling.guidance=1"
        )
    was_training = generator.training
    generator.eval()
    decoding = begin_decoding(
        generator, condition.with_null(generator.config) if guided else condition
    )
    device = decoding.logits_BK.device
    uniforms_LB = torch.from_numpy(token_uniforms(seeds, generator.num_tokens).T).to(device)
    indices: list[Tensor] = []
    for uniforms_B in uniforms_LB:
        if indices:
            codes_B = indices[-1]
            decoding.advance(codes_B.repeat(2) if guided else codes_B)
        logits = decoding.logits_BK
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + config.guidance * (conditional - unconditional)
        indices.append(draw_codes(logits, uniforms_B, config))
    generator.train(was_training)
    return torch.stack(indices, dim=1)
