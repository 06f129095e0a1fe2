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
    x = generator.cls_embedding(condition.with_null(generator.config) if guided else condition)
    uniforms_LB = torch.from_numpy(token_uniforms(seeds, generator.num_tokens).T).to(x.device)
    caches = generator.new_caches(len(x), like=x)
    first = x.shape[1]
    positions = torch.arange(first + generator.num_tokens, device=x.device)
    indices: list[Tensor] = []
    for filled in range(first, first + generator.num_tokens):
        logits = generator.decode_step(x, positions[filled - x.shape[1] : filled], filled, caches)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + config.guidance * (conditional - unconditional)
        codes_B = draw_codes(logits, uniforms_LB[filled - first], config)
        indices.append(codes_B)
        x = generator.tok_embeddings((codes_B.repeat(2) if guided else codes_B)[:, None])
    generator.train(was_training)
    return torch.stack(indices, dim=1)
