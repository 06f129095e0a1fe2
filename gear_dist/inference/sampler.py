"""Sampling with guidance, temperature, top-k, top-p and a key-value cache.

Shapes: B images, L tokens, K codes.
"""

import torch
from torch import Tensor

from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.models.generator.conditioning import Condition
from gear_dist.models.generator.transformer import Generator


def filter_logits(logits_BK: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the likeliest codes to -inf.

    top_k keeps the k largest (0: all), ties with the k-th included; top_p then the smallest set
    of likeliest codes whose probability reaches p, at least one.
    """
    if 0 < top_k < logits_BK.shape[-1]:
        floor = logits_BK.topk(top_k, dim=-1).values[:, -1:]
        logits_BK = logits_BK.masked_fill(logits_BK < floor, -torch.inf)
    if top_p < 1:
        ordered, order = logits_BK.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits_BK = logits_BK.masked_fill(dropped, -torch.inf)
    return logits_BK


def draw(logits_BK: Tensor, config: SamplingConfig, random: torch.Generator | None) -> Tensor:
    """Codes (B,): drawn with the given random state, or the likeliest where it is None."""
    if random is None:
        return logits_BK.argmax(dim=-1)
    filtered = filter_logits(logits_BK / config.temperature, config.top_k, config.top_p)
    return torch.multinomial(filtered.softmax(dim=-1), 1, generator=random)[:, 0]


@torch.no_grad()
def sample(
    generator: Generator,
    condition: Condition,
    config: SamplingConfig,
    random: torch.Generator | None,
) -> Tensor:
    """Indices (B, L) of an image for each condition.

    Guidance s at every token: logits = null + s (condition - null), by a doubled batch; s = 1 runs
    the conditional half only. Greedy where `random` is None.

    Raises:
        ConfigError: guidance is asked of a generator without a null class.
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
    caches = generator.new_caches(len(x), like=x)
    first = x.shape[1]
    positions = torch.arange(first + generator.num_tokens, device=x.device)
    indices: list[Tensor] = []
    for filled in range(first, first + generator.num_tokens):
        logits = generator.decode_step(x, positions[filled - x.shape[1] : filled], filled, caches)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + config.guidance * (conditional - unconditional)
        codes_B = draw(logits, config, random)
        indices.append(codes_B)
        x = generator.tok_embeddings((codes_B.repeat(2) if guided else codes_B)[:, None])
    generator.train(was_training)
    return torch.stack(indices, dim=1)
